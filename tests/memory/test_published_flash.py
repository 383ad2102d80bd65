from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
import torch
from contract import MemoryContract, Observation, copied, same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vismem.memory.published.flash import FlashConfig, PublishedFlash, compress_video
from vismem.memory.published.flash_rule import compress, kmeans_ordered, retrieve_detail
from vismem.memory.published.positions import pool_rows

CONFIG = FlashConfig(token_dim=6, synopsis_slots=10, detail_slots=4)
GRID = (4, 8)
PLENTY = 10**9


def draws(seed: int = 0) -> tuple[torch.Generator, random.Random]:
    return torch.Generator().manual_seed(seed), random.Random(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestPublishedFlash(MemoryContract):
    small = PLENTY
    large = PLENTY
    max_tokens = GRID[0] * GRID[1]
    cannot = dict.fromkeys(
        (
            "test_the_budget_holds_after_every_write",
            "test_the_small_budget_is_really_small",
            "test_fifty_thousand_writes_keep_bytes_and_cost_flat",
        ),
        "the rule searches all that was ever seen, so a budget ends the stream instead",
    ) | {
        "test_frame_by_frame_is_as_many_at_once": "a clip is compressed once, as published",
        "test_what_is_read_is_true": "the detail is in order of weight, and the synopsis keeps no "
        "times but numbers of slots",
        "test_weights_sum_to_the_writes_where_all_fit": "the detail repeats what the synopsis "
        "counts; the weights of the synopsis alone are tested below",
    }

    def make(self, budget: int) -> PublishedFlash:
        return PublishedFlash(CONFIG, budget)

    def make_other(self, budget: int) -> PublishedFlash:
        return PublishedFlash(FlashConfig(token_dim=6, synopsis_slots=9, detail_slots=4), budget)

    def observation(self, number: int, seed: int = 0) -> Observation:
        scene = noise(1, 6, seed=number // 6 + 100 * seed)
        return {
            "tokens": scene + 0.3 * noise(32, 6, seed=1000 * seed + number),
            "time": 5.0 + 0.5 * number,
            "grid": GRID,
        }

    def query(self) -> Tensor:
        return torch.ones(6)

    def hostile(self, good: Observation) -> Mapping[str, Observation]:
        tokens: Tensor = good["tokens"]
        low = torch.zeros(8, 6)
        return {
            "tokens: fewer than the grid": good | {"tokens": tokens[:16]},
            "grid: of another shape": good | {"grid": (8, 4)},
            "grid: no multiple of four": good | {"grid": (2, 16)},
            "grid: negative": good | {"grid": (-4, -8)},
            "low: too few": good | {"low": low[:7]},
            "low: too wide": good | {"low": torch.zeros(8, 7)},
            "low: NaN": good | {"low": low * torch.nan},
            "low: beyond float16": good | {"low": low + 1e6},
        }

    # ------------------------------------------------------------------ budget

    def test_bytes_are_those_of_the_state(self) -> None:
        memory = self.make(PLENTY)
        held = ("high", "low", "times", "synopsis", "weights", "timestamps", "detail")
        for number in range(40):
            report = memory.write(**self.observation(number))
            state = memory.state_dict()
            assert report.nbytes == memory.nbytes == sum(state[name].nbytes for name in held)

    def test_the_write_that_would_pass_the_budget_is_refused_and_changes_nothing(self) -> None:
        loose = self.write(self.make(PLENTY), range(25))
        memory = self.write(self.make(loose.nbytes), range(25))
        before = copied(memory.state_dict())
        with pytest.raises(ValueError, match="larger budget.*reset.*FlashMemory"):
            memory.write(**self.observation(25))
        assert same(memory.state_dict(), before)
        tight = self.write(self.make(loose.nbytes - 1), range(24))
        with pytest.raises(ValueError, match="larger budget"):
            tight.write(**self.observation(24))
        with pytest.raises(ValueError, match="holds more than"):
            tight.load_state_dict(before)
        memory.reset()
        self.write(memory, range(25))

    @pytest.mark.parametrize("budget", [0, 1, 2_000])
    def test_a_budget_too_small_for_anything_holds_nothing(self, budget: int) -> None:
        memory = self.make(budget)
        for number in range(9):
            with pytest.raises(ValueError, match="larger budget"):
                self.write(memory, range(number, number + 9))
            assert memory.nbytes <= budget
        assert same(memory.state_dict(), self.make(0).state_dict()) or len(memory)

    # ------------------------------------------------------------------ the rule

    def test_weights_begin_anew_while_all_fits_and_then_count_all(self) -> None:
        memory = self.make(PLENTY)
        for number in range(60):
            report = memory.write(**self.observation(number))
            snapshot = memory.snapshot()
            assert report.merged == (number >= 10)
            assert snapshot.weights.sum() == number + 1
            if number < 10:
                assert snapshot.weights.tolist() == [1.0] * (number + 1)
                assert snapshot.timestamps.tolist() == list(range(number + 1))
            assert len(snapshot.synopsis) == min(number + 1, 10)
            assert len(snapshot.detail) == min(number + 1, 4)
        assert snapshot.timestamps.max() <= 10  # numbers of slots, not of patches
        assert snapshot.detail_positions.max() > 20

    def test_a_clip_is_compressed_once(self) -> None:
        given = [self.observation(number) for number in range(30)]
        memory = self.make(PLENTY)
        reports = memory.write_many(
            torch.stack([g["tokens"] for g in given]),
            [g["time"] for g in given],
            [{"grid": GRID}] * 30,
        )
        assert len(reports) == 30 and set(reports) == {reports[0]}
        assert reports[0].merged == 20 and reports[0].nbytes == memory.nbytes
        whole = compress_video(torch.stack([g["tokens"] for g in given]), CONFIG, GRID)
        assert torch.equal(memory.snapshot().rows(), whole.rows())
        assert torch.equal(memory.snapshot().positions(), whole.positions())
        assert memory.snapshot().times.tolist() == [5.0 + 0.5 * t for t in whole.times.tolist()]

    def test_a_clip_with_one_bad_patch_changes_nothing(self) -> None:
        memory = self.write(self.make(PLENTY), range(12))
        before = copied(memory.state_dict())
        clip = torch.stack([self.observation(number)["tokens"] for number in (12, 13, 14)])
        for times in ([12.0, 13.0, 12.5], [12.0, 13.0, float("nan")]):
            with pytest.raises(ValueError):
                memory.write_many(clip, times)
            assert same(memory.state_dict(), before)
        clip[2, 0, 0] = torch.inf
        with pytest.raises(ValueError):
            memory.write_many(clip, [12.0, 13.0, 14.0])
        with pytest.raises(ValueError):
            memory.write_many(clip[:2], [12.0])
        assert same(memory.state_dict(), before)
        assert memory.write_many(clip[:0], []) == []

    def test_the_grid_is_a_square_or_the_one_before(self) -> None:
        memory = PublishedFlash(CONFIG, PLENTY)
        with pytest.raises(ValueError):
            memory.write(torch.ones(32, 6), 0.0)
        memory.write(torch.ones(32, 6), 0.0, grid=GRID)
        memory.write(torch.ones(32, 6), 1.0)
        assert memory.snapshot().grid == GRID
        memory.reset()
        memory.write(torch.ones(16, 6), 0.0)
        assert memory.snapshot().grid == (4, 4)

    def test_low_is_the_mean_of_the_tokens_where_it_is_not_given(self) -> None:
        tokens = self.observation(0)["tokens"]
        by_mean, given, other = (self.make(PLENTY) for _ in range(3))
        by_mean.write(tokens, 0.0, grid=GRID)
        given.write(tokens, 0.0, grid=GRID, low=pool_rows(tokens[None], GRID)[0])
        other.write(tokens, 0.0, grid=GRID, low=torch.zeros(8, 6))
        assert same(by_mean.state_dict(), given.state_dict())
        assert not other.snapshot().synopsis.any()

    def test_a_recall_is_the_rows_in_published_order(self) -> None:
        memory = self.write(self.make(PLENTY), range(37))
        snapshot, recall = memory.snapshot(), memory.read(self.query())
        assert torch.equal(recall.tokens, snapshot.rows().half())
        detail = snapshot.detail_positions.repeat_interleave(32)
        named = snapshot.timestamps.round().long().repeat_interleave(8)
        assert recall.sources.tolist() == detail.tolist() + named.tolist()
        assert recall.times.tolist() == [5.0 + 0.5 * source for source in recall.sources.tolist()]
        assert recall.weights[:128].tolist() == [1] * 128
        assert recall.weights[128:].tolist() == snapshot.weights.repeat_interleave(8).tolist()
        assert not recall.scores.any() and len(recall.scores) == len(recall.tokens)
        for patch, features in zip(snapshot.detail_positions, snapshot.detail, strict=True):
            assert torch.equal(features, self.observation(int(patch))["tokens"])

    def test_where_the_rule_divides_by_zero_the_write_is_refused(self) -> None:
        """Frames that are far off and almost alike: the expanded distance cancels to NaN."""
        memory = self.make(PLENTY)
        refused = 0
        for number in range(40):
            before = copied(memory.state_dict())
            try:
                memory.write(100.0 + 1e-4 * noise(32, 6, seed=number), float(number), grid=GRID)
            except ValueError as error:
                assert "without a row" in str(error)
                assert same(memory.state_dict(), before)
                refused += 1
        assert refused

    @pytest.mark.parametrize("slots", [0, 1])
    @pytest.mark.parametrize("method", ["klarge_retrieve", "nearest", "sample"])
    @pytest.mark.parametrize("detail", [0, 1, 3])
    def test_small_sizes(self, slots: int, method: str, detail: int) -> None:
        config = FlashConfig(6, slots, detail, method=method)
        memory = PublishedFlash(config, PLENTY)
        for number in range(5):
            memory.write(**self.observation(number))
            snapshot = memory.snapshot()
            chosen = detail if number < detail or method == "sample" else min(slots, detail)
            assert len(snapshot.detail) == min(number + 1, chosen)
            assert len(snapshot.synopsis) == slots
            assert len(memory.read().tokens) == 32 * len(snapshot.detail) + 8 * slots
            assert snapshot.positions().shape[1] == len(memory.read().tokens) // 4


def test_a_config_without_sense_is_refused() -> None:
    for wrong in ({"token_dim": 0}, {"pool": 0}, {"synopsis_slots": -1}, {"method": "merge"}):
        with pytest.raises(ValueError):
            FlashConfig(**wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- clustering


@st.composite
def rows_and_slots(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Rows of small whole numbers, where all distances are exact, often repeated."""
    count = draw(st.integers(2, 14))
    values = draw(st.lists(st.integers(-3, 3), min_size=2 * count, max_size=2 * count))
    weights = draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    slots = draw(st.integers(1, count - 1))
    return torch.tensor(values).float().reshape(count, 2, 1), torch.tensor(weights).float(), slots


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows_and_slots(), st.integers(0, 99))
def test_clusters_hold_every_row_once_in_order(
    given_: tuple[Tensor, Tensor, int], seed: int
) -> None:
    x, weights, slots = given_
    try:
        clusters = kmeans_ordered(x, slots, weights, *draws(seed))
    except ValueError:
        return  # the published rule divides by zero
    assert len(clusters.slots) == len(clusters.weights) == len(clusters.timestamps) == slots
    pad, members = clusters.prepended, clusters.members()
    distinct = len(torch.unique(x.flatten(1), dim=0))
    assert pad == max(0, slots - distinct)
    assert members[:pad] == [[row] for row in range(pad)]
    assert torch.equal(clusters.slots[:pad], x[:pad])
    assert clusters.timestamps[:pad].tolist() == list(range(pad))
    assert sorted(sum(members[pad:], [])) == list(range(len(x)))
    ordered = clusters.timestamps[pad:].tolist()
    assert ordered == sorted(ordered)
    assert ordered == [pytest.approx(sum(rows) / len(rows)) for rows in members[pad:]]
    if pad:
        assert clusters.weights.tolist() == [1.0] * slots
        for rows, slot in zip(members, clusters.slots, strict=True):
            assert all(torch.equal(x[row], slot) for row in rows)
    else:
        assert clusters.weights.tolist() == [float(weights[rows].sum()) for rows in members]


def test_times_of_repeated_rows_follow_the_injected_order() -> None:
    x = torch.tensor([5.0, 1.0, 5.0, 1.0, 3.0]).reshape(5, 1, 1)
    orders = []

    def last_first(values: Tensor, descending: bool) -> Tensor:
        assert not descending
        orders.append(values.sort(stable=True).indices.flip(0))
        return orders[-1]

    clusters = kmeans_ordered(x, 3, torch.ones(5), *draws(), last_first)
    assert clusters.timestamps.tolist() == sorted(clusters.timestamps.tolist(), reverse=True)
    assert len(orders) == 1
    assert {tuple(rows) for rows in clusters.members()} == {(0, 2), (1, 3), (4,)}


def test_rows_that_fit_stay_as_they_are() -> None:
    x, weights = noise(4, 2, 3), torch.tensor([1.0, 5.0, 2.0, 1.0])
    for slots in (4, 5):
        clusters = kmeans_ordered(x, slots, weights, *draws())
        assert torch.equal(clusters.slots, x) and torch.equal(clusters.weights, weights)
        assert clusters.members() == [[0], [1], [2], [3]]
        assert clusters.timestamps.tolist() == [0.0, 1.0, 2.0, 3.0]
    begun_anew = compress(CONFIG, x, weights, *draws())
    assert begun_anew[1].tolist() == [1.0] * 4 and begun_anew[2].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_a_clustering_with_one_left_over_row_merges_one_pair() -> None:
    x = noise(11, 3, 4)
    slots, weights, timestamps = compress(CONFIG, x, torch.ones(11), *draws())
    assert sorted(weights.tolist()) == [1.0] * 9 + [2.0]
    two = int(weights.argmax())
    pairs = [(a, b) for a in range(11) for b in range(a) if (a + b) / 2 == timestamps[two]]
    assert any(torch.allclose(slots[two], (x[a] + x[b]) / 2) for a, b in pairs)


# ---------------------------------------------------------------------- search


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 99))
def test_search_in_blocks_is_search_in_all(patches: int, block: int, seed: int) -> None:
    low, slots = noise(patches, 2, 3, seed=seed), noise(5, 2, 3, seed=seed + 1)
    weights = torch.tensor([2.0, 9.0, 4.0, 4.0, 1.0])
    found = retrieve_detail(low.split(block), slots, weights, weights, 3)
    if patches <= 3:
        assert found.tolist() == list(range(patches))
        return
    distances = (slots[[1, 2, 3], None] - low).square().sum((2, 3))
    assert found.tolist() == distances.argmin(1).tolist()


def test_a_nearest_patch_in_a_later_block_needs_to_be_nearer() -> None:
    low = torch.tensor([3.0, 0.0, 9.0, 0.0, 9.0]).reshape(5, 1, 1)
    slots = torch.tensor([9.0, 0.0]).reshape(2, 1, 1)
    for block in (1, 2, 3, 5):
        found = retrieve_detail(low.split(block), slots, torch.tensor([1.0, 2.0]), slots, 2)
        assert found.tolist() == [1, 2]


def test_other_ways_to_choose() -> None:
    low, slots = torch.zeros(10, 1, 1), torch.zeros(3, 1, 1)
    weights, timestamps = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0.5, 2.5, 7.4])
    chosen = {
        method: retrieve_detail([low], slots, weights, timestamps, 3, method).tolist()  # type: ignore[arg-type]
        for method in ("nearest", "sample")
    }
    assert chosen == {"nearest": [2, 7, 0], "sample": [0, 4, 9]}  # halves go to even
