"""VideoChat-Online's pyramid bank against the published code's own numbers."""

from __future__ import annotations

import math

import pytest
import torch
from arrays import Case, golden
from torch import Tensor

from vismem.memory.published.pyramid import PublishedPyramid, PublishedPyramidConfig

CASES = pytest.mark.parametrize("case", golden("pyramid", "memory_bank*.npz"))


def frames_of(case: Case) -> Tensor:
    """The frames row by row, ``(T, N, C)``."""
    frames = case.tensor(case.value("frames_key"))[: case.value("n_frames")]
    return frames.flatten(2).transpose(1, 2)


def make(case: Case) -> PublishedPyramid:
    capacities, sizes, intervals = (
        tuple(case.array(name).tolist()) for name in ("capacities", "level_tokens", "intervals")
    )
    width = frames_of(case).shape[2]
    config = PublishedPyramidConfig(width, capacities, sizes, intervals)
    return PublishedPyramid(config, budget="1GB" if 0 in capacities else None)


def written(case: Case, memory: PublishedPyramid) -> PublishedPyramid:
    for number, tokens in enumerate(frames_of(case)):
        memory.write(tokens, time=float(number))
    return memory


@CASES
def test_golden_pyramid_trace(case: Case) -> None:
    """Which frames each level holds after every single frame, in order of insertion."""
    memory, trace = make(case), case.array("trace")
    ratios, sizes = case.array("pool_ratio").tolist(), case.array("level_tokens").tolist()
    for number, tokens in enumerate(frames_of(case)):
        memory.write(tokens, time=float(number))
        held = memory.level_sources
        for level, sources in enumerate(held):
            expected = [source for source in trace[number, level].tolist() if source >= 0]
            assert sources[: trace.shape[2]] == expected, f"frame {number}, level {level}"
        entered = next(level for level, sources in enumerate(held) if number in sources)
        side, finest = math.isqrt(sizes[entered]), math.isqrt(len(tokens))
        assert side == finest // ratios[number]


@CASES
def test_golden_pyramid_levels(case: Case) -> None:
    assert written(case, make(case)).level_sources == case.lists("level_ids")


@CASES
def test_golden_pyramid_read_out(case: Case) -> None:
    recall = written(case, make(case)).read()
    sources, counts = torch.unique_consecutive(recall.sources, return_counts=True)
    assert sources.tolist() == case.array("order").tolist()
    assert recall.times.tolist() == recall.sources.tolist()
    assert counts.tolist() == case.array("tokens_per_frame").tolist()
    torch.testing.assert_close(recall.tokens, case.tensor("tokens"), rtol=0, atol=1e-5)


@CASES
def test_golden_pyramid_restart(case: Case) -> None:
    """Stopped half way and gone on in another instance, it is still the published bank."""
    first, second = make(case), make(case)
    frames = frames_of(case)
    half = len(frames) // 2
    first.write_many(frames[:half], map(float, range(half)))
    second.load_state_dict(first.state_dict())
    second.write_many(frames[half:], map(float, range(half, len(frames))))
    assert second.level_sources == case.lists("level_ids")
    torch.testing.assert_close(second.read().tokens, case.tensor("tokens"), rtol=0, atol=1e-5)
