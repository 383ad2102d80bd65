from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import ClassVar

import pytest
import torch
from contract import MemoryContract, Observation, copied, recalled, same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vismem.kernels.kmeans import kmeans_assign

from vismem.memory.published.clustering import (
    NTMWeights,
    attention_feature,
    spatial_pool,
    weighted_kmeans,
)
from vismem.memory.published.star import (
    PublishedStar,
    PublishedStarConfig,
    compress_video,
    heaviest,
)

SMALL = PublishedStarConfig(
    dim=6,
    frame_side=4,
    side=2,
    long_slots=5,
    long_side=1,
    abstract_slots=4,
    abstract_side=1,
    max_clip=3,
)


def changed(**changes: object) -> PublishedStarConfig:
    return PublishedStarConfig(**(vars(SMALL) | changes))  # type: ignore[arg-type]


def video(frames: int, seed: int = 0, config: PublishedStarConfig = SMALL) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(frames, config.frame_side**2, config.dim, generator=draws)


WIDE = changed(dim=96)  # so that tokens are most of the state, and not the two generators


class TestPublishedStar(MemoryContract):
    large = PublishedStar(WIDE).budget.bytes
    small = large
    max_tokens = WIDE.frame_side**2
    cannot: ClassVar[Mapping[str, str]] = {
        "test_the_budget_holds_after_every_write": "the published sizes fix the bytes held",
        "test_the_small_budget_is_really_small": "the published sizes fix the bytes held",
        "test_frame_by_frame_is_as_many_at_once": "a published clip is clustered in one go",
    }

    def make(self, budget: int) -> PublishedStar:
        return PublishedStar(WIDE, NTMWeights.random(96, hidden=2))

    def make_other(self, budget: int) -> PublishedStar:
        return PublishedStar(changed(dim=96, update_ratio=0.3), NTMWeights.random(96, hidden=2))

    def observation(self, number: int, seed: int = 0) -> Observation:
        return {"tokens": video(1, 1000 * seed + number, WIDE)[0], "time": 10.0 + number / 2}

    def query(self) -> Tensor:
        return torch.ones(96)

    def hostile(self, good: Observation) -> Mapping[str, Observation]:
        return {
            "grid: not square": good | {"grid": (2, 8)},
            "grid: of another size": good | {"grid": (5, 5)},
            "tokens: too few": good | {"tokens": good["tokens"][:9]},
            "tokens: whole numbers": good | {"tokens": good["tokens"].long()},
        }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": torch.float16},
        {"dtype": torch.float64},
        {"long_slots": 0},
        {"abstract_slots": 0},
        {"long_slots": 1, "abstract_slots": 1},
        {"key_frames": 0},
        {"recent": 0},
        {"recent": 2, "key_frames": 9},
        {"max_clip": 9},
        {"frame_side": 7, "side": 3, "long_side": 2},
        {"frame_side": 5, "side": 3},  # which the published pooling leaves at 5
    ],
)
def test_the_budget_is_what_a_full_memory_holds(changes: dict[str, object]) -> None:
    config = changed(**changes)
    memory, clip = PublishedStar(config), config.max_clip
    most = 0
    for step in range(12):
        report = memory.write_many(video(clip, step, config), [float(step)] * clip)[0]
        assert report.nbytes == memory.nbytes <= memory.budget.bytes
        most = max(most, memory.nbytes)
        assert memory.read().tokens.dtype == config.dtype
    full = max(config.abstract_slots, config.long_slots) >= clip
    assert most == memory.budget.bytes or not full
    held = [getattr(memory.snapshot().star, name) for name in ("abstract", "long", "current")]
    shapes = config.shapes()
    slots = (config.abstract_slots, config.long_slots, shapes["current"][0])
    assert [tuple(part.shape) for part in held] == [
        (count, *shapes[name][1:])
        for count, name in zip(slots, ("abstract", "long", "current"), strict=True)
    ]


def with_all_frames(clips: list[Tensor], config: PublishedStarConfig) -> Tensor:
    """The published rule with the buffer that grows for ever, as the description has it."""
    draws, coins = torch.Generator().manual_seed(0), random.Random(0)
    ntm = NTMWeights.random(config.dim)
    buffer = long = abstract = current = torch.empty(0)
    for step, clip in enumerate(clips):
        new = spatial_pool(clip, config.side)
        buffer = torch.cat([buffer, new]) if step else new
        pooled = spatial_pool(new, config.long_side), spatial_pool(new, config.abstract_side)
        current = new[-config.recent :]
        if not step:
            long, abstract = pooled
            continue
        joined = torch.cat([long, pooled[0]])
        found = weighted_kmeans(joined, config.long_slots, draws, coins)
        centres = joined[found.mass.argsort(descending=True, stable=True)[: config.key_frames]]
        nearest, _ = kmeans_assign(centres.flatten(1), joined.flatten(1))
        current, long = torch.cat([buffer[nearest], current]), found.centroids
        abstract = attention_feature(
            torch.cat([abstract, pooled[1]]), config.abstract_slots, ntm, config.update_ratio
        )
    return torch.cat([part.flatten(0, 1) for part in (abstract, long, current)])


@settings(max_examples=60, derandomize=True)
@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=12),
    st.integers(1, 6),
    st.integers(0, 4),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_the_frames_that_are_not_kept_are_never_looked_up(
    sizes: list[int], slots: int, keys: int, recent: int, levels: int
) -> None:
    """Few levels make equal frames: ties, and clusters that stay empty."""
    config = changed(long_slots=slots, key_frames=keys, recent=recent, max_clip=7, side=1)
    draws = torch.Generator().manual_seed(sum(sizes))
    clips = [
        torch.randint(levels, (size, 1, 1), generator=draws).float().expand(-1, 16, 6)
        for size in sizes
    ]
    memory = PublishedStar(config)
    for number, clip in enumerate(clips):
        memory.write_many(clip, [float(number)] * len(clip))
    assert torch.equal(memory.read().tokens, with_all_frames(clips, config))
    assert memory.frames_seen == sum(sizes)
    assert bool((memory.snapshot().star.key_ids < slots).all())


def test_what_is_read_is_one_observation_as_of_the_last_write() -> None:
    memory = PublishedStar(SMALL)
    memory.write_many(video(3), [1.0, 2.0, 3.0])
    memory.write(video(1, 1)[0], 7.5, grid=(4, 4))
    ((time, weight, tokens),) = memory.read().frames()
    assert (time, weight) == (7.5, 4) and torch.equal(tokens, memory.snapshot().star.tokens())
    assert set(memory.read().sources.tolist()) == {3}


def test_a_clip_is_one_write() -> None:
    clips = PublishedStar(SMALL), PublishedStar(SMALL)
    for step in range(6):
        reports = clips[0].write_many(video(3, step), [3.0 * step] * 3, [{"grid": (4, 4)}] * 3)
        assert len(reports) == 1
        for frame in video(3, step):
            clips[1].write(frame, 3.0 * step)
    assert clips[0].frames_seen == clips[1].frames_seen == 18
    assert not same(clips[0].state_dict(), clips[1].state_dict())


def test_time_goes_on_from_the_end_of_a_clip() -> None:
    memory = PublishedStar(SMALL)
    memory.write_many(video(3), [1.0, 2.0, 3.0])
    assert set(memory.read().times.tolist()) == {3.0}
    with pytest.raises(ValueError, match="backwards"):
        memory.write(video(1)[0], 2.5)


def test_a_clip_that_needs_no_pooling_is_copied() -> None:
    memory, clip = PublishedStar(changed(side=4, long_side=4)), video(3)
    memory.write_many(clip, [1.0, 2.0, 3.0])
    before = copied(memory.state_dict())
    clip.zero_()
    assert same(memory.state_dict(), before)


def test_rows_for_empty_clusters_are_drawn_on_after_a_load() -> None:
    def repeats(memory: PublishedStar, steps: range) -> PublishedStar:
        for step in steps:
            memory.write(video(1, step % 3)[0], float(step))
        return memory

    whole, before, after = (PublishedStar(SMALL) for _ in range(3))
    after.load_state_dict(copied(repeats(before, range(12)).state_dict()))
    assert not torch.equal(before.state_dict()["coins"], whole.state_dict()["coins"])
    repeats(after, range(12, 24))
    assert same(after.state_dict(), repeats(whole, range(24)).state_dict())


@pytest.mark.parametrize("name", ["abstract", "long", "current", "first_frames", "key_ids"])
def test_a_state_of_more_than_the_budget_is_refused(name: str) -> None:
    memory = PublishedStar(SMALL)
    state = memory.state_dict()
    rows = SMALL.shapes()[name][0] if name in SMALL.shapes() else SMALL.key_frames
    for more, taken in ((rows, True), (rows + 1, False)):
        full = state | {name: state[name].new_zeros(more, *state[name].shape[1:])}
        if taken:
            PublishedStar(SMALL).load_state_dict(full)
        else:
            with pytest.raises(ValueError, match=name):
                memory.load_state_dict(full)


@pytest.mark.parametrize(
    ("tokens", "times", "contexts"),
    [
        (video(4), [1.0] * 4, []),  # longer than a clip may be
        (video(0), [], []),
        (video(2), [1.0], []),
        (video(2), [1.0, 0.5], []),
        (video(2), [1.0, math.nan], []),
        (video(2), [1.0, 2.0], [{}]),
        (video(2), [1.0, 2.0], [{}, {"grid": (2, 8)}]),
        (video(2), [1.0, 2.0], [{}, {"pose": torch.eye(4)}]),
        (torch.cat([video(1), video(1) * math.nan]), [1.0, 2.0], []),
    ],
)
def test_a_clip_is_taken_whole_or_not_at_all(
    tokens: Tensor, times: list[float], contexts: list[dict[str, object]]
) -> None:
    memory = PublishedStar(SMALL)
    for step in range(4):
        memory.write(video(1, step)[0], 0.0)
    before = copied(memory.state_dict())
    with pytest.raises(ValueError):
        memory.write_many(tokens, times, contexts)
    assert same(memory.state_dict(), before)


def test_reset_goes_back_to_the_generators_that_were_given() -> None:
    draws, coins = torch.Generator().manual_seed(4), random.Random(5)
    memory = PublishedStar(SMALL, permutations=draws, coins=coins)
    runs = []
    for _ in range(2):
        for step in range(12):
            memory.write(video(1, step % 3)[0], float(step))  # repeats leave clusters empty
        runs.append(copied(memory.state_dict()))
        memory.reset()
    assert same(*runs)
    other = PublishedStar(SMALL)
    assert not torch.equal(other.state_dict()["permutations"], memory.state_dict()["permutations"])
    assert not torch.equal(other.state_dict()["coins"], memory.state_dict()["coins"])


def test_learned_weights_are_copied_and_travel_with_the_state() -> None:
    ntm = NTMWeights.random(6, hidden=8, seed=3)
    one, other = PublishedStar(SMALL, ntm), PublishedStar(SMALL, NTMWeights.random(6, 8, seed=4))
    untrained = PublishedStar(SMALL, NTMWeights.random(6, 9))
    ntm.q_weight.zero_()
    for step in range(9):
        one.write_many(video(2, step), [float(step)] * 2)
    assert same(
        copied(one.state_dict())
        | {f"ntm.{k}": v for k, v in vars(NTMWeights.random(6, hidden=8, seed=3)).items()},
        one.state_dict(),
    )
    other.load_state_dict(copied(one.state_dict()))
    for step in range(9, 15):
        for memory in (one, other):
            memory.write_many(video(2, step), [float(step)] * 2)
    assert same(recalled(one.read()), recalled(other.read()))
    with pytest.raises(ValueError):
        untrained.load_state_dict(one.state_dict())
    with pytest.raises(ValueError):
        PublishedStar(SMALL, NTMWeights.random(7))


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 0},
        {"max_clip": 0},
        {"recent": -1},
        {"key_frames": -1},
        {"long_slots": -1},
        {"abstract_slots": -1},
        {"update_ratio": 1.5},
        {"side": 5},
        {"long_side": 3},
        {"abstract_side": 0},
        {"dtype": torch.int64},
    ],
)
def test_sizes_that_make_no_memory_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        changed(**changes)


def test_single_frames_make_all_abstract_slots_alike() -> None:
    """A defect of the published rule: one new token moves every slot alike."""
    memory = PublishedStar(SMALL)
    spread = []
    for step in range(60):
        memory.write(video(1, step)[0], float(step))
        spread.append(float(memory.snapshot().star.abstract.std(0, correction=0).mean()))
    assert spread[4] > 0.1
    assert spread[24] == pytest.approx(spread[4] * 0.8**20, rel=1e-3)


# ---------------------------------------------------------------------- whole videos


def draws() -> tuple[torch.Generator, random.Random]:
    return torch.Generator().manual_seed(0), random.Random(0)


def test_a_published_key_frame_is_among_the_first_and_a_centroid_is_anywhere() -> None:
    config = changed(frame_side=2, recent=1, long_slots=3, key_frames=3, long_side=2)
    ntm = NTMWeights.random(6)
    scenes = torch.arange(3.0).repeat_interleave(8)[:, None, None] * 10
    frames = scenes + 0.1 * video(24, config=config)
    published = compress_video(frames, config, ntm, *draws())
    assert bool((published.key_ids < 3).all())
    paper = compress_video(frames, config, ntm, *draws(), keys="centroid")
    assert torch.equal(published.long, paper.long)
    assert torch.equal(published.abstract, paper.abstract)
    assert torch.equal(paper.current, frames[[*paper.key_ids.tolist(), 23]])
    found = weighted_kmeans(frames[:-1], 3, *draws())
    distance = torch.cdist(found.centroids.flatten(1), frames[:-1].flatten(1))
    assert paper.key_ids.tolist() == distance.argmin(1)[heaviest(found.mass, 3)].tolist()
    assert int(paper.key_ids.max()) >= 3


@pytest.mark.parametrize("frames", [1, 2, 5, 6, 7, 20])
@pytest.mark.parametrize("recent", [0, 1, 3])
def test_a_video_has_as_many_tokens_as_its_parts(frames: int, recent: int) -> None:
    config = changed(frame_side=2, recent=recent)
    star = compress_video(video(frames, config=config), config, NTMWeights.random(6), *draws())
    past = max(0, frames - recent)
    assert len(star.abstract) == min(past, 4) and len(star.long) == min(past, 5)
    assert len(star.current) == min(past, 3) + min(frames, recent)
    assert len(star.tokens()) == len(star.abstract) + len(star.long) + 4 * len(star.current)


def test_no_slots_leave_the_part_out() -> None:
    config = changed(frame_side=2, long_slots=0, abstract_slots=0)
    frames = video(9, config=config)
    star = compress_video(frames, config, NTMWeights.random(6), *draws())
    assert torch.equal(star.tokens(), frames[-1]) and len(star.key_ids) == 0


def test_a_video_of_no_frames_is_refused() -> None:
    for nothing in (video(0), video(1)[0]):
        with pytest.raises(ValueError):
            compress_video(nothing, SMALL, NTMWeights.random(6), *draws())
