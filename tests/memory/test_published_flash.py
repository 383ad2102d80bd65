from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from contract import MemoryContract, Observation, copied, same
from torch import Tensor

from vismem.memory.published.flash import PublishedFlash, PublishedFlashConfig, compress_video
from vismem.memory.published.positions import pool_rows

CONFIG = PublishedFlashConfig(token_dim=6, synopsis_slots=10, detail_slots=4)
GRID = (4, 8)
PLENTY = 10**9


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
        return PublishedFlash(
            PublishedFlashConfig(token_dim=6, synopsis_slots=9, detail_slots=4), budget
        )

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
        for number in range(40):
            report = memory.write(**self.observation(number))
            assert report.nbytes == memory.nbytes == self.held(memory)

    def held(self, memory: PublishedFlash) -> int:
        state = memory.state_dict()
        names = ("high", "low", "times", "synopsis", "weights", "timestamps", "detail")
        return sum(state[name].nbytes for name in names)

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
        assert len(reports) == 1
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
        memory = self.write(self.make(PLENTY), range(35))
        snapshot, recall = memory.snapshot(), memory.read(self.query())
        assert snapshot.detail_positions.tolist() != sorted(snapshot.detail_positions.tolist())
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

    # ------------------------------------------------------------------ state

    def test_both_generators_are_part_of_the_state(self) -> None:
        memory, other = self.make(PLENTY), self.make(PLENTY)
        torch.randperm(9, generator=memory.generator)
        memory.coins.randint(0, 9)
        other.load_state_dict(copied(memory.state_dict()))
        assert other.coins.getstate() == memory.coins.getstate()
        assert torch.equal(other.generator.get_state(), memory.generator.get_state())

    def test_what_was_loaded_may_be_changed_afterwards(self) -> None:
        memory, other = self.write(self.make(PLENTY), range(40)), self.make(PLENTY)
        state = copied(memory.state_dict())
        other.load_state_dict(state)
        for tensor in state.values():
            tensor.zero_()
        assert same(other.state_dict(), memory.state_dict())

    def test_the_history_lies_in_the_same_blocks_after_loading(self) -> None:
        """Else products of matrices would be rounded otherwise."""
        memory, by_clip, loaded = (self.make(PLENTY) for _ in range(3))
        self.write(memory, range(70))
        clip = torch.stack([self.observation(number)["tokens"] for number in range(70)])
        by_clip.write_many(clip, range(70), [{"grid": GRID}] * 70)
        loaded.load_state_dict(memory.state_dict())
        for one in (memory, by_clip, loaded):
            assert [len(block) for block in one._low] == [32, 32, 6]

    def test_a_state_of_other_shapes_is_refused(self) -> None:
        state = self.write(self.make(PLENTY), range(20)).state_dict()
        memory = self.write(self.make(PLENTY), range(5), seed=1)
        before = copied(memory.state_dict())
        for name in state:
            for wrong in (state[name][1:], state[name][None], state[name].double().half()):
                with pytest.raises(ValueError):
                    memory.load_state_dict(state | {name: wrong})
                    pytest.fail(f"taken: {name} {tuple(wrong.shape)}")
                assert same(memory.state_dict(), before)

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
        config = PublishedFlashConfig(6, slots, detail, method=method)
        memory = PublishedFlash(config, PLENTY)
        for number in range(5):
            memory.write(**self.observation(number))
            snapshot = memory.snapshot()
            chosen = detail if number < detail or method == "sample" else min(slots, detail)
            assert len(snapshot.detail) == min(number + 1, chosen)
            assert len(snapshot.synopsis) == slots
            assert memory.nbytes == self.held(memory)
            assert len(memory.read().tokens) == 32 * len(snapshot.detail) + 8 * slots
            assert snapshot.positions().shape[1] == len(memory.read().tokens) // 4
