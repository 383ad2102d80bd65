"""Clusters keep true books: a note that lists the members is joined along and checked against."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from contract import same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vismem.kernels.ward import reference

from vismem.memory.observations import (
    OVERHEAD,
    Observation,
    observations_from,
    observations_state,
)
from vismem.memory.slots import Slot, pool_grid
from vismem.memory.ward import WardClusters

DIM, EMBEDDING, GAP = 4, 3, 2.0
GRIDS = [(1, 1), (1, 7), (7, 1), (3, 5), (2, 2), (4, 4)]


def join(note: bytes, weight: int, other: bytes, other_weight: int) -> bytes:
    """A note is the list of the members, the representative's first."""
    assert (weight, other_weight) == (len(members(note)), len(members(other)))
    return note + other


def members(note: bytes) -> list[int]:
    return [int.from_bytes(note[n : n + 2], "big") for n in range(0, len(note), 2)]


def frame(number: int, seed: int = 0, scenes: int = 6) -> Observation:
    """A frame of a random grid, of one of a few scenes, at a time that never goes back."""
    noise = torch.Generator().manual_seed(100_000 * seed + number)
    scene = random.Random(100_000 * seed + number).randrange(scenes)
    base = torch.randn(DIM, generator=torch.Generator().manual_seed(7 * seed + scene))
    grid = GRIDS[(number * 5 + seed) % len(GRIDS)]
    time = 0.7 * number + 5.0 * (number // 9)
    embedding = base[:EMBEDDING] / base[:EMBEDDING].norm()
    tokens = base + 0.3 * torch.randn(math.prod(grid), DIM, generator=noise)
    note = number.to_bytes(2, "big")
    return Observation(time, time, time, number, tokens.half(), grid, embedding.half(), note)


def clusters(
    grid: tuple[int, int] = (2, 2), gist: tuple[int, int] = (1, 1), **more: Any
) -> WardClusters:
    rule: dict[str, Any] = {"mass_limit": 4.0, "max_gap": GAP, "join_notes": join}
    return WardClusters(grid, gist, DIM, **(rule | more))


class Books:
    """Does the same as a `WardClusters`, and knows of every frame where it must be."""

    def __init__(self, held: WardClusters, seed: int = 0):
        self.held, self.seed = held, seed
        self.frames: dict[int, Observation] = {}  # all that were added and not forgotten
        self.sharp: set[int] = set()
        # What the synopsis of each cluster is, by its members; nothing where it was given up.
        self.finer: dict[tuple[int, ...], Tensor | None] = {}
        self.views: list[tuple[Any, list[Any]]] = []
        self.number = 0

    def partition(self) -> list[list[int]]:
        return [members(kept.note) for kept in self.held.kept]

    def do(self, op: str, draw: random.Random) -> None:
        held = self.held
        if op == "add":
            if len(held) == held.room:
                held.resize(held.room + draw.randint(1, 3))
            new = frame(self.number, self.seed)
            held.add(new)
            self.frames[self.number] = new
            self.sharp.add(self.number)
            finer = held.grid != held.gist
            pooled = pool_grid(new.tokens.double(), new.grid, held.grid)
            self.finer[(self.number,)] = pooled if finer else None
            self.number += 1
        elif op == "merge" and len(held) > 1:
            self.merge()
        elif op == "blur" and held.detail_bytes:
            before, count = self.sharp_now(), len(held)
            held.blur(lightest=draw.random() < 0.5)
            (gone,) = before - self.sharp_now()
            self.sharp.discard(gone)
            assert len(held) == count
        elif op == "condense" and held.synopsis_bytes:
            before = [len(synopsis) for synopsis in held.synopses]
            held.condense(lightest=draw.random() < 0.5)
            after = [len(synopsis) for synopsis in held.synopses]
            (row,) = [n for n, size in enumerate(before) if size != after[n]]
            assert after[row] == 0
            self.finer[tuple(sorted(self.partition()[row]))] = None
        elif op == "forget":
            start = draw.uniform(-1, 1.1 * frame(self.number).time)
            end = start + draw.expovariate(0.3)
            kept = [
                part
                for part in self.partition()
                if self.frames[min(part)].time > end or self.frames[max(part)].time < start
            ]
            assert held.forget(start, end) == len(self.partition_before) - len(kept)
            assert sorted(map(sorted, self.partition())) == sorted(map(sorted, kept))
            alive = {n for part in kept for n in part}
            self.frames = {n: f for n, f in self.frames.items() if n in alive}
        elif op == "resize":
            held.resize(len(held) + draw.randint(0, 3))
        elif op == "view":
            view = held.view()
            self.views.append((view, described(view())))
        elif op == "reload":
            state = held.state()
            held.restore(state, EMBEDDING)
            assert same(held.state(), state)

    def sharp_now(self) -> set[int]:
        return {kept.source for kept in self.held.kept if len(kept.tokens)}

    def merge(self) -> None:
        """The cheapest pair becomes one, and the better of two representatives stands for it."""
        held = self.held
        before = {tuple(sorted(members(kept.note))): kept for kept in held.kept}
        costs = exact_costs(held)
        held.merge()
        after = {tuple(sorted(members(kept.note))): kept for kept in held.kept}
        (joined,) = after.keys() - before.keys()
        parts = list(before.keys() - after.keys())
        assert len(parts) == 2 and sorted(parts[0] + parts[1]) == list(joined)
        rows = [list(before).index(part) for part in parts]
        assert float(costs[rows[0], rows[1]]) <= float(costs.min()) * (1 + 1e-5) + 1e-6
        one, other = (self.finer[part] for part in parts)
        share = len(parts[0]) / len(joined)
        both = one is not None and other is not None
        self.finer[joined] = (
            one * share + other * (1 - share) if both else one if other is None else other
        )
        kept, row = after[joined], list(after).index(joined)
        old = [before[part] for part in parts]
        (mine,) = [o for o in old if o.source == kept.source]
        (other,) = [o for o in old if o.source != kept.source]
        assert kept.note == mine.note + other.note  # the representative's first
        assert torch.equal(kept.tokens, mine.tokens) and kept.grid == mine.grid
        far = [distance(held, row, o) for o in (mine, other)]
        assert far[0] <= far[1]
        if far[0] == far[1] == math.inf:
            assert len(members(mine.note)) >= len(members(other.note))
        start, end = sorted([(mine.start, mine.end), (other.start, other.end)])
        if end[0] - start[1] <= GAP:
            assert (kept.start, kept.end) == (start[0], max(start[1], end[1]))
        else:
            assert (kept.start, kept.end) == (mine.start, mine.end)

    def check(self) -> None:
        held, parts = self.held, self.partition()
        assert len(held) == len(parts) <= held.room
        # Every frame is in one cluster, once.
        assert sorted(n for part in parts for n in part) == sorted(self.frames)
        slots = {slot.source: slot for slot in held.view()()}
        assert len(slots) == len(parts)
        for kept, part in zip(held.kept, parts, strict=True):
            slot, frames = slots[kept.source], [self.frames[n] for n in part]
            times = sorted(f.time for f in frames)
            assert kept.source == part[0] and slot.time == self.frames[part[0]].time
            assert (slot.weight, slot.first, slot.last) == (len(part), times[0], times[-1])
            run = [t for t in times if slot.start <= t <= slot.end]
            assert run[0] == slot.start and run[-1] == slot.end and slot.time in run
            assert all(b - a <= GAP for a, b in zip(run, run[1:], strict=False))
            sharp = kept.source in self.sharp
            assert (slot.level == "detail") == sharp == (slot.synopsis is not None)
            if sharp:
                assert torch.equal(slot.tokens, self.frames[kept.source].tokens)
                assert slot.grid == self.frames[kept.source].grid
            mean = slot.synopsis if slot.synopsis is not None else slot.tokens
            finer = self.finer[tuple(sorted(part))]
            if finer is None:
                check_mean(mean, frames, held.gist)
                assert sharp or slot.level == ("synopsis" if held.grid == held.gist else "gist")
            else:
                check_close(mean, finer, frames)
                assert sharp or slot.level == "synopsis"
            norm = kept.embedding.float().norm()
            assert abs(float(norm) - 1) < 5e-3
        for gist, part in zip(held._columns["gist"], parts, strict=False):
            check_mean(gist, [self.frames[n] for n in part], held.gist)
        self.check_arrays()

    def check_arrays(self) -> None:
        held, count = self.held, len(self.held)
        exact, columns = exact_costs(held), held._columns
        for row in range(count):
            cost, cheapest = float(columns["cost"][row]), float(exact[row].min())
            assert cost <= cheapest * (1 + 1e-5) + 1e-6  # a bound at least
            if columns["known"][row] and count > 1:
                assert cost == pytest.approx(cheapest, rel=1e-5, abs=1e-6)
                told = float(exact[row, columns["nearest"][row]])
                assert told == pytest.approx(cheapest, rel=1e-5, abs=1e-6)
        for name, empty in held._empty(1).items():
            assert torch.equal(columns[name][count:], empty.expand_as(columns[name])[count:])
        assert held.synopsis_bytes == sum(synopsis.nbytes for synopsis in held.synopses)
        assert held.detail_bytes == sum(kept.tokens.nbytes for kept in held.kept)
        assert held.kept_bytes == sum(
            kept.tokens.nbytes + 2 * EMBEDDING + len(kept.note) + OVERHEAD for kept in held.kept
        )
        arrays = [*columns.values(), *held.synopses]
        assert held.nbytes == held.kept_bytes + sum(array.nbytes for array in arrays)

    def check_views(self) -> None:
        for view, before in self.views:
            assert described(view()) == before

    def run(self, ops: Iterable[str], seed: int, every: int = 1) -> None:
        draw = random.Random(seed)
        for number, op in enumerate(ops):
            self.partition_before = self.partition()
            self.do(op, draw)
            if number % every == 0:
                self.check()
        self.check()
        self.check_views()


def described(slots: list[Slot]) -> list[Any]:
    def plain(value: Any) -> Any:
        return value.tolist() if isinstance(value, Tensor) else value

    return [{name: plain(getattr(slot, name)) for name in Slot.__slots__} for slot in slots]


def exact_costs(held: WardClusters) -> Tensor:
    """All pairs from scratch, by the readable rule."""
    count = len(held)
    weight = held._columns["weight"][:count].double()
    limit = held.mass_limit
    mass = weight if limit == math.inf else limit * weight / (weight + limit - 1)
    keys = held._columns["gist"][:count].flatten(1)
    rows = [reference.merge_costs(keys, mass, keys[n], mass[n]) for n in range(count)]
    matrix = torch.stack(rows) if rows else torch.empty(0, 0)
    return matrix.fill_diagonal_(torch.inf) if count else matrix


def check_mean(mean: Tensor, frames: list[Observation], grid: tuple[int, int]) -> None:
    exact = torch.stack([pool_grid(f.tokens.double(), f.grid, grid) for f in frames])
    check_close(mean, exact.mean(0), frames)


def check_close(mean: Tensor, exact: Tensor, frames: list[Observation]) -> None:
    """Every merge rounds to float16 once, and later merges shrink what it rounded."""
    most = max(float(f.tokens.abs().max()) for f in frames)
    error = float((mean.double() - exact).abs().max())
    assert error <= 2**-11 * (1 + len(frames) ** 0.5) * most


def distance(held: WardClusters, row: int, observation: Observation) -> float:
    if not len(observation.tokens):
        return math.inf
    finer = len(held.synopses[row]) > 0
    mean = held.synopses[row] if finer else held._columns["gist"][row]
    own = pool_grid(observation.tokens, observation.grid, held.grid if finer else held.gist)
    return float((own.float() - mean.float()).square().sum())


OPS = (
    ["add"] * 6 + ["merge"] * 3 + ["blur"] * 2 + ["condense", "forget", "resize", "view", "reload"]
)
LIMITS = [1.0, 4.0, math.inf]


@settings(max_examples=60, derandomize=True)
@given(
    ops=st.lists(st.sampled_from(OPS), max_size=60),
    limit=st.sampled_from(LIMITS),
    shape=st.sampled_from(
        [((2, 2), (1, 1)), ((4, 4), (2, 2)), ((1, 7), (1, 2)), ((3, 5), (2, 2)), ((1, 1), (1, 1))]
    ),
    seed=st.integers(0, 5),
)
def test_the_books_are_true_whatever_is_done(
    ops: list[str], limit: float, shape: tuple[tuple[int, int], tuple[int, int]], seed: int
) -> None:
    held = clusters(*shape, mass_limit=limit)
    Books(held, seed).run(ops, seed)


@pytest.mark.parametrize("limit", LIMITS)
def test_the_books_are_true_after_hundreds_of_changes(limit: float) -> None:
    draw = random.Random(3)
    often = (
        ["add"] * 40
        + ["merge"] * 34
        + ["blur"] * 10
        + ["condense"] * 9
        + ["resize", "view", "reload", "forget"]
    )
    books = Books(clusters((4, 4), (2, 2), mass_limit=limit), seed=1)
    books.run(draw.choices(often, k=700), seed=1, every=25)
    assert books.number > 250 and max(map(len, books.partition())) > 5


def fed(held: WardClusters, count: int, room: int, seed: int = 0) -> WardClusters:
    held.resize(room)
    for number in range(count):
        if len(held) == room:
            held.merge()
        held.add(frame(number, seed))
    return held


def test_one_mass_for_all_and_plain_ward() -> None:
    """Two light clusters and two heavy ones, the heavy ones nearer: who is merged?"""

    def weights_after(limit: float) -> list[int]:
        held = clusters((1, 1), mass_limit=limit)
        held.resize(80)
        places = [0.0] * 30 + [0.9] * 30 + [5.0, 6.0]
        for number, place in enumerate(places):
            tokens = torch.full((1, DIM), place).half()
            held.add(Observation(0.0, 0, 0, number, tokens, (1, 1), torch.ones(3).half(), b""))
        while len(held) > 3:
            held.merge()
        return sorted(held._columns["weight"][:3].tolist())

    assert weights_after(1.0) == [1, 1, 60]  # distance alone
    assert weights_after(math.inf) == [2, 30, 30]
    assert weights_after(4.0) == [2, 30, 30]


@pytest.mark.parametrize("limit", [1.0, 4.0, 9.0])
def test_the_mass_of_a_cluster_ends_at_its_limit(limit: float) -> None:
    held = clusters((1, 1), mass_limit=limit)
    held.resize(2)
    for weights, mass in (((1, 1), 0.5), ((10**6, 10**6), limit / 2)):
        held.reset()
        held.resize(2)
        for number, place in enumerate((0.0, 1.0)):
            tokens = torch.full((1, DIM), place).half()
            held.add(Observation(0, 0, 0, number, tokens, (1, 1), torch.ones(3).half(), b""))
        held._columns["weight"][:2] = torch.tensor(weights)
        assert float(held._costs(0)[1]) == pytest.approx(mass * DIM, rel=1e-4)


def test_redundancy_is_the_cheapest_merge_in_squared_norms() -> None:
    held = clusters((1, 1))
    held.resize(4)
    assert held.redundancy() == math.inf
    for number, place in enumerate([10.0, 11.0, 30.0]):
        held.add(frame_at(number, torch.full((1, DIM), place).half()))
        if not number:
            assert held.redundancy() == math.inf
    cost = 0.5 * DIM  # of 10 and 11, each of mass 1
    assert held.redundancy() in (
        pytest.approx(cost / (DIM * 10.0**2)),
        pytest.approx(cost / (DIM * 11.0**2)),
    )
    held.merge()
    assert held.redundancy() > 0.2


def test_a_synopsis_that_one_of_two_has_speaks_for_both() -> None:
    held = clusters((2, 2))
    held.resize(2)
    frames = [frame(number) for number in range(2)]
    held.add(frames[0])
    held.condense()
    assert held.synopsis_bytes == 0
    held.add(frames[1])
    exact = pool_grid(frames[1].tokens, frames[1].grid, (2, 2))
    held.merge()
    assert torch.equal(held.synopses[0], exact) and held.synopsis_bytes == exact.nbytes


def test_blur_takes_the_most_alike_or_the_lightest() -> None:
    def held() -> WardClusters:
        made = clusters((1, 1))
        made.resize(9)
        for number, place in enumerate([0.0, 0.0, 0.0, 4.0, 4.1, 9.0, 20.0]):
            tokens = torch.full((1, DIM), place).half()
            made.add(frame_at(number, tokens))
        made.merge()
        made.merge()  # the three at 0 are one, of source 0 or 1 or 2
        return made

    alike = held()
    alike.blur()
    assert {k.source for k in alike.kept if not len(k.tokens)} <= {3, 4}
    light = held()
    heavy = {k.source for k, w in zip(light.kept, light._columns["weight"], strict=False) if w > 1}
    order = []
    for _ in range(5):
        before = {k.source for k in light.kept if len(k.tokens)}
        light.blur(lightest=True)
        order += before - {k.source for k in light.kept if len(k.tokens)}
    assert not light.detail_bytes
    last_row = light.kept[-1].source
    assert order[-1] == last_row  # the row that was added last gives up last of all
    assert order[-2] in heavy


def frame_at(number: int, tokens: Tensor) -> Observation:
    note = number.to_bytes(2, "big")
    embedding = torch.tensor([1.0, 0, 0]).half()
    return Observation(number, number, number, number, tokens, (1, 1), embedding, note)


def test_a_representative_without_tokens_gives_way_to_a_sharp_one() -> None:
    held = clusters((1, 1))
    held.resize(3)
    for number in range(2):
        held.add(frame_at(number, torch.zeros(1, DIM).half()))
    held.merge()
    held.blur()
    held.add(frame_at(2, torch.ones(1, DIM).half()))
    held.merge()
    (kept,) = held.kept
    assert kept.source == 2 and len(kept.tokens) == 1
    assert members(kept.note) == [2, 0, 1]


def test_the_note_of_the_representative_stays_where_none_is_joined() -> None:
    held = fed(clusters(join_notes=None), 40, 5)
    for kept in held.kept:
        assert members(kept.note) == [kept.source]


def test_an_empty_note_is_never_joined() -> None:
    def never(*_: object) -> bytes:
        raise AssertionError("asked to join nothing")

    held = clusters((1, 1), join_notes=never)
    held.resize(2)
    for number in range(2):
        made = frame_at(number, torch.zeros(1, DIM).half())
        held.add(
            made if number else Observation(0, 0, 0, 0, made.tokens, (1, 1), made.embedding, b"")
        )
    held.merge()
    assert len(held) == 1


def test_a_view_costs_no_array_and_one_copy_when_it_is_written_over() -> None:
    held = fed(clusters(), 30, 12)
    columns = held._columns
    views = [held.view() for _ in range(20)]
    assert held._columns is columns  # shared
    first = described(views[0]())
    held.merge()
    copied = held._columns
    assert copied is not columns
    held.add(frame(50))
    held.merge()
    assert held._columns is copied  # nobody reads it: no copy a change
    assert all(described(view()) == first for view in views)


@pytest.mark.parametrize("what", ["reset", "forget", "restore", "resize", "add", "blur"])
def test_a_view_outlives_everything(what: str) -> None:
    held = fed(clusters(), 30, 12)
    state = fed(clusters(), 20, 9, seed=3).state()
    view = held.view()
    before = described(held.view()())
    if what == "reset":
        held.reset()
        held.resize(4)
        held.add(frame(0, seed=9))
    elif what == "forget":
        assert held.forget(-math.inf, math.inf) == 12
        held.add(frame(0, seed=9))
    elif what == "restore":
        held.restore(state, EMBEDDING)
        held.merge()
    elif what == "resize":
        held.resize(20)
        held.add(frame(31, seed=9))
    elif what == "add":
        held.merge()
        held.add(frame(31, seed=9))
    else:
        while held.detail_bytes:
            held.blur()
    assert described(view()) == before


def test_what_is_forgotten_is_wiped() -> None:
    held = fed(clusters((4, 4), (2, 2)), 30, 12)
    held.forget(-math.inf, math.inf)
    assert len(held) == 0 and held.kept == [] and held.kept_bytes == held.detail_bytes == 0
    assert held.synopses == [] and held.synopsis_bytes == 0
    for name, empty in held._empty(1).items():
        assert torch.equal(held._columns[name], empty.expand_as(held._columns[name]))


@settings(max_examples=30, derandomize=True)
@given(count=st.integers(0, 12), seed=st.integers(0, 9))
def test_observations_come_back_from_their_state(count: int, seed: int) -> None:
    held = [frame(n, seed) for n in range(count)]
    back = observations_from(observations_state(held), DIM, EMBEDDING)
    assert len(back) == count
    for one, other in zip(held, back, strict=True):
        for name in Observation.__slots__:
            a, b = getattr(one, name), getattr(other, name)
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
        assert other.nbytes == one.nbytes


@pytest.mark.parametrize(
    "other",
    [
        {"mass_limit": 1.0},
        {"mass_limit": math.inf},
        {"grid": (1, 2)},
        {"gist": (2, 1)},
    ],
)
def test_a_state_of_another_rule_is_refused_and_changes_nothing(other: dict[str, Any]) -> None:
    state = fed(clusters(), 30, 12).state()
    held = fed(clusters(**other), 9, 5)
    before = held.state()
    with pytest.raises((ValueError, KeyError)):
        held.restore(state, EMBEDDING)
    assert same(held.state(), before)
