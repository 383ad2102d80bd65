"""The static/dynamic memory: the contract in its three modes, and what each layer owes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from contract import MemoryContract, Observation, copied, recalled, same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vismem.memory.base import Budget
from vismem.memory.static_dynamic.memory import StaticDynamicConfig, StaticDynamicMemory
from vismem.memory.static_dynamic.motion_cue import View, filtered, hides_what_was_seen, noise_of

DIM = 6
PLENTY = 10**8


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------ the contract, three times


class Contract(MemoryContract):
    large = PLENTY
    max_tokens = 5
    sizes: ClassVar[dict[str, Any]]

    def config(self, **changes: Any) -> StaticDynamicConfig:
        return StaticDynamicConfig(DIM, max_tokens=5, **self.sizes | changes)

    def make(self, budget: int) -> StaticDynamicMemory:
        return StaticDynamicMemory(budget, self.config())

    def make_other(self, budget: int) -> StaticDynamicMemory:
        return StaticDynamicMemory(budget, self.config(rest_seconds=2.0))

    def query(self) -> Tensor:
        return noise(7, 3, DIM)

    @pytest.mark.parametrize(("cut", "tight"), [(0, True), (61, True), (117, False), (160, True)])
    def test_save_kill_load_continue_is_bit_equal(self, cut: int, tight: bool) -> None:
        """With a few cuts in place of twenty: a write of these banks is much work."""
        line: Any = MemoryContract.test_save_kill_load_continue_is_bit_equal
        line.hypothesis.inner_test(self, cut, tight)

    def hostile(self, good: Observation) -> Mapping[str, Observation]:
        one = torch.ones(1)
        axes = self.config().axes
        cases = {
            "motion: above 1": good | {"motion": one * 1.1},
            "motion: below 0": good | {"motion": -one},
            "motion: NaN": good | {"motion": one * torch.nan},
            "motion: too many": good | {"motion": torch.ones(2)},
            "confidence: 0": good | {"confidence": one * 0},
            "confidence: infinity": good | {"confidence": one * torch.inf},
            "confidence: a column": good | {"confidence": torch.ones(1, 1)},
            "positions: of another space": good | {"positions": torch.zeros(1, (axes + 1) % 4)},
        }
        if axes:
            cases |= {
                "positions: none": {k: v for k, v in good.items() if k != "positions"},
                "positions: NaN": good | {"positions": good["positions"] * torch.nan},
                "positions: beyond the world": good | {"positions": good["positions"] + 1e7},
            }
        if axes != 3:
            cases["a view"] = good | {"view": camera(np.full((4, 4), 2.0))}
        return cases


class TestWorld(Contract):
    small = 4_000
    axes = 3
    sizes: ClassVar = {"axes": 3}

    def observation(self, number: int, seed: int = 0) -> Observation:
        at = 1000 * seed + number
        place = uniform(at, 1, 3) * torch.tensor([5.0, 5.0, 2.5]) - 1.0
        moving = number % 4 == 1
        if moving:  # one thing that walks, and stands for a while
            place = torch.tensor([[0.05 * min(number % 100, 60), 0.0, 1.0]])
        given: Observation = {
            "tokens": noise(at, 1, DIM),
            "time": 10.0 + 0.1 * number,
            "positions": place,
            "motion": torch.tensor([float(moving)]),
        }
        if number % 3 == 0:
            given["confidence"] = torch.tensor([0.5])
        return given


class TestPicture(Contract):
    small = 1_200
    sizes: ClassVar = {"axes": 2, "voxel": 0.05, "noise": 0.05}

    def observation(self, number: int, seed: int = 0) -> Observation:
        place = 1000 * seed + number // 14
        look = noise(2 * place + number % 14 // 7, 1, DIM)
        given: Observation = {
            "tokens": look + 0.03 * noise(1000 * seed + number, 1, DIM),
            "time": 0.7 * number,
            "positions": uniform(place, 1, 2),
        }
        if number % 5 == 4:
            given["motion"] = torch.tensor([0.3])
        return given


class TestPlaceless(Contract):
    small = 1_200
    sizes: ClassVar = {"axes": 0}

    def observation(self, number: int, seed: int = 0) -> Observation:
        look = noise(1000 * seed + number // 6, 1, DIM)
        return {
            "tokens": look + 0.03 * noise(1000 * seed + number, 1, DIM),
            "time": 0.7 * number,
        }


# ------------------------------------------------------------------ what holds in every mode

MODES = {
    3: StaticDynamicConfig(DIM, voxel=0.2),
    2: StaticDynamicConfig(DIM, axes=2, voxel=0.1, noise=0.1),
    0: StaticDynamicConfig(DIM, axes=0),
}


def stream(axes: int, frames: int, count: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Things that stand, and four that walk."""
    still, looks = uniform(seed, count, axes), noise(seed + 1, count, DIM)
    given = []
    for n in range(frames):
        motion = (torch.arange(count) < 4).float()
        place = still + 0.02 * n * motion[:, None]
        look = looks + 0.02 * noise(seed + n + 2, count, DIM) + 0.3 * n * motion[:, None]
        one: dict[str, Any] = {"tokens": look, "time": 0.1 * n, "motion": motion}
        if axes:
            one["positions"] = place
        given.append(one)
    return given


def held(memory: StaticDynamicMemory) -> dict[str, Tensor]:
    return {name: c for name, c in memory.state_dict().items() if name.startswith("static.")}


@pytest.mark.parametrize("axes", [3, 2, 0])
@pytest.mark.parametrize("budget", [2_000, PLENTY])
def test_the_order_of_tokens_does_not_matter(axes: int, budget: int) -> None:
    one, other = (StaticDynamicMemory(budget, MODES[axes]) for _ in range(2))
    for n, observation in enumerate(stream(axes, 40)):
        turn = torch.randperm(12, generator=torch.Generator().manual_seed(n))
        one.write(**observation)
        other.write(**{k: v[turn] if isinstance(v, Tensor) else v for k, v in observation.items()})
        assert torch.equal(one.motion[turn], other.motion)
    assert same(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("axes", [3, 2, 0])
def test_a_static_stream_written_twice_doubles_the_counts(axes: int) -> None:
    memory = StaticDynamicMemory(PLENTY, MODES[axes])
    place = {"positions": uniform(1, 20, axes)} if axes else {}
    looks = noise(0, 20, DIM)
    states = []
    for n in range(10):
        memory.write(looks, 0.1 * n, motion=torch.zeros(20), **place)
        states.append(held(memory))
    one, two = states[4], states[9]
    assert torch.equal(two["static.count"], 2 * one["static.count"])
    torch.testing.assert_close(two["static.mass"], 2 * one["static.mass"])
    for name in ("static.feature", "static.position"):
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-6)
    assert int(two["static.count"].sum()) == 200 and not len(memory.read(layer="dynamic").tokens)


@pytest.mark.parametrize("axes", [3, 2, 0])
def test_no_token_is_in_both_layers_and_none_is_lost(axes: int) -> None:
    memory = StaticDynamicMemory(PLENTY, MODES[axes])
    for n, observation in enumerate(stream(axes, 60)):
        memory.write(**observation)
        static, dynamic = (memory.read(layer=layer) for layer in ("static", "dynamic"))
        assert int(static.weights.sum()) + int(dynamic.weights.sum()) == 12 * (n + 1)
        assert int(memory.read().weights.sum()) == 12 * (n + 1)
    assert len(static.tokens) and len(dynamic.tokens)


@pytest.mark.parametrize("axes", [3, 2, 0])
@settings(max_examples=15, derandomize=True)
@given(st.integers(2, 400), st.integers(0, 10**6))
def test_coarsening_keeps_sums(axes: int, count: int, seed: int) -> None:
    memory = StaticDynamicMemory(PLENTY, MODES[axes])
    place = {"positions": 3 * uniform(seed, count, axes)} if axes else {}
    weight = 0.1 + uniform(seed + 1, count)
    memory.write(
        noise(seed, count, DIM), 0.0, confidence=weight, motion=torch.zeros(count), **place
    )
    store = memory._static
    rows, names = len(store), ("feature", "position")

    def sums() -> list[Tensor]:
        mass = store.held["mass"].double()
        return [mass.sum(), store.held["count"].sum().double()] + [
            (mass[:, None] * store.held[name].double()).sum(0) for name in names
        ]

    before = sums()
    assert store.shrink(max(8, rows // 3)) == 0
    assert len(store) <= max(8, rows // 3)
    for one, other in zip(before, sums(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("axes", [3, 2, 0])
@pytest.mark.parametrize("budget", [0, 1, 77, 333, 1_001, 20_011])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_frame_of_many_tokens_keeps_to_the_budget(axes: int, budget: int, share: float) -> None:
    memory = StaticDynamicMemory(budget, replace(MODES[axes], dynamic_share=share))
    for n, observation in enumerate(stream(axes, 12, 200)):
        if share == 1.0:
            observation["motion"][:] = 1.0
        report = memory.write(**observation)
        assert report.nbytes == memory.nbytes <= budget
        assert len(memory.motion) == 200
        recall = memory.read()
        assert int(recall.weights.sum()) <= 200 * (n + 1)


@pytest.mark.parametrize("axes", [3, 2, 0])
def test_an_empty_memory_gives_the_query_back(axes: int) -> None:
    memory, query = StaticDynamicMemory(PLENTY, MODES[axes]), noise(0, 5, DIM)
    place = torch.zeros(5, axes) if axes else None
    for gate in ("soft", "hard"):
        for motion in (None, torch.linspace(0, 1, 5)):
            out = memory.fuse(query, positions=place, time=0.0, motion=motion, gate=gate)
            assert torch.equal(out, query)
    if axes:
        assert not memory.fuse(positions=place, time=0.0).any()
    assert len(memory.read(query).tokens) == 0 and len(memory.kv(0.0).keys) == 0


@pytest.mark.parametrize("axes", [3, 2, 0])
def test_flat_attention_over_thousands_gives_the_mean(axes: int) -> None:
    """A threshold on shares would leave 0/0 here."""
    config = StaticDynamicConfig(DIM, axes=axes, voxel=1e-3, noise=1e-4, cosine=0.999999)
    memory = StaticDynamicMemory(PLENTY, config)
    looks = noise(0, 3000, DIM)
    place = {"positions": uniform(1, 3000, axes)} if axes else {}
    memory.write(looks, 0.0, motion=torch.zeros(3000), **place)
    far = {"positions": torch.full((2, axes), 1e4)} if axes else {}
    out = memory.fuse(1e4 * torch.ones(2, DIM), time=1e6, k=3000, **far)
    assert torch.isfinite(out).all()
    for motion in (torch.zeros(2), torch.ones(2)):
        for gate in ("soft", "hard"):
            out = memory.fuse(noise(3, 2, DIM), time=0.0, motion=motion, gate=gate, **far)
            assert torch.isfinite(out).all()


@pytest.mark.parametrize("axes", [3, 2, 0])
def test_a_snapshot_reads_all_as_the_memory_did(axes: int) -> None:
    memory, given = StaticDynamicMemory(3_000, MODES[axes]), stream(axes, 40)
    for observation in given[:20]:
        memory.write(**observation)
    place = uniform(5, 4, axes) if axes else None
    snapshot, query = memory.snapshot(), noise(9, 4, DIM)

    def readings(of: Any) -> list[Any]:
        keys = of.kv(2.5)
        fused = of.fuse(query, positions=place, time=2.5, motion=torch.full((4,), 0.3))
        read = recalled(of.read(query, positions=place, time=2.5))
        return [fused, keys.keys, keys.bias, keys.positions, keys.dynamic, *read.values()]

    before = [value.clone() for value in readings(memory)]
    for observation in given[20:]:
        memory.write(**observation)
    assert all(map(torch.equal, before, readings(snapshot)))
    assert not all(a.shape == b.shape and torch.equal(a, b)
                   for a, b in zip(before, readings(memory), strict=True))  # fmt: skip


@pytest.mark.parametrize("axes", [3, 2, 0])
def test_a_loaded_memory_goes_on_with_many_tokens_bit_for_bit(axes: int) -> None:
    given = stream(axes, 60)
    whole, before, after = (StaticDynamicMemory(3_000, MODES[axes]) for _ in range(3))
    for observation in given:
        whole.write(**observation)
    for observation in given[:31]:
        before.write(**observation)
    after.load_state_dict(copied(before.state_dict()))
    for observation in given[31:]:
        after.write(**observation)
    assert same(after.state_dict(), whole.state_dict()) and torch.equal(after.motion, whole.motion)


def test_counts_go_beyond_two_bytes() -> None:
    memory = StaticDynamicMemory(PLENTY, MODES[3])
    tokens, place = torch.ones(1000, DIM), torch.zeros(1000, 3)
    for n in range(70):
        memory.write(tokens, 0.1 * n, positions=place, motion=torch.zeros(1000))
    recall = memory.read()
    assert recall.weights.tolist() == [70_000] and recall.sources.tolist() == [0]
    torch.testing.assert_close(recall.tokens, torch.ones(1, DIM).half())
    memory.write(tokens[:50] * 3, 8.0, positions=place[:50], motion=torch.zeros(50))
    # 50 of 250: the mean follows as if no more than 200 had been there.
    torch.testing.assert_close(memory.read().tokens, torch.full((1, DIM), 1.4).half())


# ------------------------------------------------------------------ the world


def camera(depth: np.ndarray, focal: float = 40.0) -> View:
    """At the origin, along z; the picture's middle is its axis."""
    height, width = depth.shape
    matrix = np.array([[focal, 0, width // 2], [0, focal, height // 2], [0, 0, 1.0]])
    return View(depth, matrix, np.eye(4))


def test_the_ring_is_in_order_of_time_and_the_oldest_goes_first() -> None:
    memory = StaticDynamicMemory(20_000, MODES[3])
    for n in range(80):
        walk = torch.tensor([[0.1 * n, y, 0.0] for y in (0.0, 0.05, 0.1)])
        memory.write(noise(n, 3, DIM), 0.1 * n, positions=walk, motion=torch.ones(3))
        times = memory.read(layer="dynamic").times
        assert torch.equal(times, times.sort().values)
        assert times[-1] == 0.1 * n
    assert 4_000 - memory._ring_row < memory._ring.nbytes <= 4_000
    assert times[0] == pytest.approx(0.1 * (79 - (len(times) - 1) // 3))


def test_a_moving_token_is_read_where_it_has_got_to() -> None:
    memory = StaticDynamicMemory(PLENTY, MODES[3])
    for n in range(30):
        place = torch.tensor([[0.1 * n, 0.0, 1.0]])
        memory.write(torch.eye(DIM)[:1], 0.1 * n, positions=place, motion=torch.ones(1))
    kv = memory.kv(3.9)
    assert kv.dynamic.all() and kv.positions[-1].tolist() == pytest.approx([3.9, 0, 1], abs=1e-2)
    assert kv.bias[-1] > kv.bias[0]
    near = memory.read(positions=torch.tensor([[3.9, 0, 1.0]]), time=3.9, k=1)
    assert near.times.tolist() == [pytest.approx(2.9)]


def test_what_rests_goes_over_to_the_static_layer_and_comes_back_when_it_walks() -> None:
    memory = StaticDynamicMemory(PLENTY, MODES[3])
    looks = noise(0, 4, DIM)

    def write(n: int, x: float) -> None:
        place = torch.tensor([[x, 0.05 * i, 1.0] for i in range(4)])
        memory.write(looks, 0.1 * n, positions=place, motion=torch.ones(4))

    for n in range(20):
        write(n, 0.1 * n)
    for n in range(20, 45):
        write(n, 2.0)
        assert not len(memory.read(layer="static").tokens) and bool((memory.motion > 0.5).all())
    for n in range(45, 60):
        write(n, 2.0)
    assert bool((memory.motion < 0.5).all())
    assert not len(memory.read(layer="dynamic").tokens)
    assert int(memory.read(layer="static").weights.sum()) == 240
    for n in range(60, 65):
        write(n, 2.0 + 0.2 * (n - 59))
    assert bool((memory.motion > 0.5).all()) and len(memory.read(layer="dynamic").tokens)


def test_what_a_camera_sees_through_is_gone_and_nothing_else() -> None:
    memory = StaticDynamicMemory(PLENTY, StaticDynamicConfig(DIM))
    # In front of a wall at 4 m, behind one at 1 m, beside a hole, on an edge, out of the picture.
    places = {"free": (0.0, 0.0, 2.0), "hidden": (-0.5, 0.0, 2.0), "unknown": (0.5, 0.0, 2.0),
              "edge": (0.25, 0.5, 2.0), "behind": (0.0, 0.0, -2.0), "beside": (9.0, 0.0, 2.0),
              "surface": (0.0, -0.8, 3.92)}  # fmt: skip
    depth = np.full((60, 60), 4.0)
    depth[:, :25] = 1.0
    depth[:30:, 38:] = 0.0
    depth[30 + 10, 30 + 6] = 2.05  # one of the nine pixels is not behind it
    where, looks = torch.tensor(list(places.values())), torch.eye(7)[:, :DIM] + 0.1
    for n in range(20):
        memory.write(looks, 0.1 * n, positions=where, motion=torch.zeros(7))
    aside = torch.tensor([[50.0, 50.0, 50.0]])
    left = []
    for n in range(8):
        memory.write(looks[:1], 2.0 + 0.1 * n, positions=aside, view=camera(depth))
        held = memory.read(layer="static").positions
        left.append({name for name, at in places.items()
                     if bool(((held - torch.tensor(at)).norm(dim=1) < 1e-3).any())})  # fmt: skip
    assert left[2] == set(places) and left[-1] == set(places) - {"free"}
    depth[30 + 10, 30 + 6] = 4.0
    for n in range(8, 16):
        memory.write(looks[:1], 2.0 + 0.1 * n, positions=aside, view=camera(depth))
    held = memory.read(layer="static").positions
    assert not bool(((held - torch.tensor(places["edge"])).norm(dim=1) < 1e-3).any())


def test_what_hides_a_wall_seen_just_now_moves_and_a_new_wall_does_not() -> None:
    grid = torch.cartesian_prod(torch.arange(-9, 10) * 0.1, torch.arange(-9, 10) * 0.1)
    wall = torch.cat([grid, torch.full((len(grid), 1), 3.0)], 1)
    memory = StaticDynamicMemory(PLENTY, StaticDynamicConfig(DIM))
    view = camera(np.full((80, 80), 3.0))
    for n in range(10):
        memory.write(noise(0, len(wall), DIM), 0.1 * n, positions=wall, view=view)
        assert bool((memory.motion < 0.5).all())
    ball = torch.tensor([[0.0, 0.0, 1.5], [0.05, 0.05, 1.5]])
    beside = torch.tensor([[4.0, 0.0, 2.0], [-2.5, 0.0, 3.0]])
    memory.write(noise(1, 4, DIM), 1.0, positions=torch.cat([ball, beside]), view=view)
    assert (memory.motion > 0.5).tolist() == [True, True, False, False]
    assert len(memory.read(layer="dynamic").tokens) == 2


def test_a_point_at_a_proven_voxel_is_part_of_it_though_it_hides_a_wall() -> None:
    static = torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.05, 1.0], [0.0, 0.0, 2.0]])
    points, view = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 2.0]]), camera(np.full((40, 40), 3.0))
    mass, seen = torch.tensor([50.0, 50.0, 2.0]), torch.ones(3).double()
    assert hides_what_was_seen(points, static, mass, seen, 1.5, view, 0.08).tolist() == [
        False,
        True,
    ]
    assert not hides_what_was_seen(points, static, mass, seen, 3.5, view, 0.08).any()


def test_the_filter_goes_by_seconds() -> None:
    sure, nothing = torch.tensor([3.0]), torch.zeros(1)
    once = filtered(sure, nothing, 0.5)
    for _ in range(5):
        sure = filtered(sure, nothing, 0.1)
    torch.testing.assert_close(once, sure)


def test_without_a_word_and_a_view_everything_is_static() -> None:
    memory = StaticDynamicMemory(PLENTY, MODES[3])
    for n in range(5):
        memory.write(noise(n, 9, DIM), 0.1 * n, positions=uniform(n, 9, 3))
    assert bool((memory.motion < 0.1).all()) and not len(memory.read(layer="dynamic").tokens)


def test_one_wrong_word_does_not_make_a_thing_move_for_long() -> None:
    memory = StaticDynamicMemory(PLENTY, MODES[3])
    said = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    heard = []
    for n, one in enumerate(said):
        memory.write(torch.ones(1, DIM), 0.1 * n, positions=torch.zeros(1, 3),
                     motion=torch.tensor([one]))  # fmt: skip
        heard.append(float(memory.motion))
    assert heard[2] < 0.1 and 0.4 < heard[3] < 0.6 and heard[4] < 0.2 and heard[5] < 0.1


def test_the_gate_follows_motion_and_distance() -> None:
    memory = StaticDynamicMemory(PLENTY, StaticDynamicConfig(DIM))
    still, walker = torch.eye(DIM)[0], torch.eye(DIM)[1]
    where = torch.tensor([[0.0, 0, 0], [0.5, 0, 0]])
    memory.write(torch.stack([still, walker]), 0.0, positions=where, motion=torch.tensor([0.0, 1]))

    def share(x: float, **how: Any) -> float:
        out = memory.fuse(positions=torch.tensor([[x, 0.0, 0.0]]), time=0.0, **how)
        return float(out[0, 1])

    assert share(0.0) < 0.01 and share(0.5) > 0.99  # by distance alone
    middle = [share(0.3, motion=torch.tensor([p])) for p in (0.01, 0.5, 0.99)]
    assert middle[0] < middle[1] < middle[2]
    assert share(0.0, motion=torch.tensor([0.9]), gate="hard") == 1.0
    assert share(0.5, motion=torch.tensor([0.1]), gate="hard") == 0.0
    one = memory.read(positions=where, k=1, motion=torch.tensor([1.0, 1.0]), layer="static")
    assert one.sources.tolist() == [0] and len(one.tokens) == 1


# ------------------------------------------------------------------ a fixed camera

WIDE, HIGH, CHANNELS = 24, 16, 8


class Street:
    """Cells of a fixed camera: a lamp that flickers, a walker, a car that parks and leaves."""

    def __init__(self, seed: int = 0, fps: float = 10.0, sigma: float = 0.03):
        self.fps, self.sigma, self.seed = fps, sigma, seed
        self.street = uniform(seed, HIGH, WIDE, CHANNELS)
        self.walker, self.lamp, self.car = uniform(seed + 1, 3, CHANNELS)
        y, x = torch.meshgrid(
            (torch.arange(HIGH) + 0.5) / HIGH, (torch.arange(WIDE) + 0.5) / WIDE, indexing="ij"
        )
        self.positions = torch.stack([x, y], -1).reshape(-1, 2)

    def frame(self, number: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The arguments of a write, and masks ``(N,)`` of what is what."""
        second = number / self.fps
        looks, masks = self.street.clone(), {}

        def put(name: str, look: Tensor, rows: slice, columns: slice, there: bool = True) -> None:
            mask = torch.zeros(HIGH, WIDE, dtype=torch.bool)
            mask[rows, columns] = there
            looks[mask] = look
            masks[name] = mask.reshape(-1)

        put("lamp", self.lamp, slice(0, 3), slice(0, 3), int(second / 0.7) % 2 == 1)
        put("car", self.car, slice(11, 15), slice(16, 22), 12.0 <= second < 24.0)
        at = int(3 * second) % (WIDE + 8) - 4
        put("walker", self.walker, slice(4, 9), slice(max(0, at), max(0, at + 3)))
        tokens = looks.reshape(-1, CHANNELS)
        tokens = tokens + self.sigma * noise(self.seed + number + 9, *tokens.shape)
        return {"tokens": tokens, "time": second, "positions": self.positions}, masks


def street_memory(street: Street, budget: int = 400_000) -> StaticDynamicMemory:
    still = torch.stack([street.frame(n)[0]["tokens"] for n in range(20)])
    config = StaticDynamicConfig(CHANNELS, axes=2, voxel=1 / 24, noise=noise_of(still))
    assert 0.8 * street.sigma < config.noise < 1.3 * street.sigma
    return StaticDynamicMemory(budget, config)


@pytest.mark.parametrize(("seed", "fps"), [(0, 10.0), (3, 10.0), (6, 3.0)])
def test_a_fixed_camera_tells_what_moves(seed: int, fps: float) -> None:
    street = Street(seed, fps)
    memory = street_memory(street)
    found = missed = alarms = quiet = 0
    for n in range(int(30 * fps)):
        given, masks = street.frame(n)
        memory.write(**given)
        second, moving = n / fps, memory.motion > 0.5
        lamp = torch.zeros(HIGH, WIDE, dtype=torch.bool)
        lamp[:3, :3] = True
        lamp = lamp.reshape(-1)
        elsewhere = ~(masks["walker"] | masks["car"] | lamp)
        if second < 2 / fps:
            continue  # what is there at the start is background
        found += int((moving & masks["walker"] & ~lamp).sum())
        missed += int((~moving & masks["walker"] & ~lamp).sum())
        alarms += int((moving & elsewhere).sum())
        quiet += int(elsewhere.sum())
        if 12.5 <= second < 14.0:
            assert moving[masks["car"]].all(), second  # it has just come
        if 16.0 <= second < 24.0:
            assert not moving[masks["car"]].any(), second  # it is part of the street
        if second > 8.0:
            assert not moving[lamp & ~masks["walker"]].any(), second
    assert missed < 0.03 * (found + missed), (found, missed)
    assert alarms < 0.002 * quiet, (alarms, quiet)
    # The uncovered street was never forgotten; the car that left is still known.
    assert memory._static.grown == 0
    known = memory.read(layer="static")
    assert int(known.weights.max()) > 20 * fps


def test_the_uncovered_street_is_known_at_once() -> None:
    street = Street()
    memory = street_memory(street)
    for n in range(245):
        given, masks = street.frame(n)
        memory.write(**given)
        if n == 239:
            car = masks["car"]
        if n >= 240:
            assert not (memory.motion > 0.5)[car].any()
    assert bool(car.any()) and not bool(masks["car"].any())


def test_a_still_street_is_still_whatever_its_noise() -> None:
    """A frame is never scaled by its own largest residual."""
    street = Street(sigma=0.1)
    memory = street_memory(street)
    calm = street.street.reshape(-1, CHANNELS)
    for n in range(60):
        tokens = calm + 0.1 * noise(n, *calm.shape)
        memory.write(tokens, 0.1 * n, positions=street.positions)
        assert float((memory.motion > 0.5).float().mean()) < 0.002
    assert float(memory.motion.mean()) < 0.06


def test_a_tight_budget_makes_the_cells_of_a_picture_grow() -> None:
    street = Street()
    memory = street_memory(street, 12_000)
    for n in range(40):
        memory.write(**street.frame(n)[0])
        assert memory.nbytes <= 12_000
    assert memory._static.grown > 0 and memory._static.nbytes > 6_000
    look = memory.fuse(positions=street.positions, time=4.0)
    assert torch.isfinite(look).all()


def test_a_full_memory_of_a_picture_still_takes_in_what_parks() -> None:
    street = Street()
    config = StaticDynamicConfig(CHANNELS, axes=2, voxel=1 / 24, noise=0.03)
    memory = StaticDynamicMemory(36_000, config)
    for n in range(10):
        memory.write(**street.frame(n)[0])
    proven = memory._static.held["count"] > 0
    assert int(proven.sum()) == WIDE * HIGH and not memory._static.grown
    memory.budget = Budget(memory._static.nbytes * 3 // 2 + 8_000)  # the ring's share aside
    for n in range(100, 170):
        given, masks = street.frame(n)
        memory.write(**given)
        if 122 <= n < 140:
            assert memory.motion[masks["car"]].mean() > 0.6
    assert memory.motion[masks["car"]].mean() < 0.4


@pytest.mark.parametrize("axes", [3, 2, 0])
def test_a_reading_that_does_not_fit_is_refused(axes: int) -> None:
    memory = StaticDynamicMemory(PLENTY, MODES[axes])
    memory.write(**stream(axes, 1)[0])
    query, where = noise(0, 3, DIM), torch.zeros(3, axes) if axes else None
    good: dict[str, Any] = {"positions": where, "motion": torch.zeros(3), "k": 2}
    assert memory.fuse(query, **good).shape == (3, DIM) and len(memory.read(query, **good).tokens)
    for wrong in (
        {"positions": torch.zeros(3, 1)},
        {"positions": torch.full((3, axes), torch.nan) if axes else torch.zeros(3, 3)},
        {"motion": torch.zeros(2)},
        {"k": 0},
    ):
        for reading in (memory.fuse, memory.read):
            with pytest.raises(ValueError):
                reading(query, **good | wrong)
    with pytest.raises(ValueError, match="layer"):
        memory.read(layer="moving")
    with pytest.raises(ValueError, match="gate"):
        memory.fuse(query, **good, gate="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs"):
        memory.fuse(None if not axes else query)


def test_what_was_there_long_enough_is_static_without_positions() -> None:
    memory = StaticDynamicMemory(PLENTY, StaticDynamicConfig(DIM, axes=0))
    room, guest = torch.eye(DIM)[:3], torch.eye(DIM)[4:5]
    for n in range(60):
        tokens = torch.cat([room, guest]) if n >= 10 else room
        memory.write(tokens + 0.01 * noise(n, *tokens.shape), 0.1 * n)
        if n >= 10:
            assert bool((memory.motion[:3] < 0.1).all())
            if not 34 <= n <= 40:  # three seconds, softly
                assert (float(memory.motion[3]) > 0.5) == (n < 34), n
    assert not len(memory.read(layer="dynamic").tokens)
    assert sorted(memory.read(layer="static").weights.tolist()) == [50, 60, 60, 60]
