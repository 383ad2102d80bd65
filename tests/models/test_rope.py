"""M-RoPE positions of frames, against a plain loop."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_family
from torch import Tensor

from vismem.models.rope import frame_coords, grid_positions

GRID = torch.cartesian_prod(torch.arange(1), torch.arange(2), torch.arange(3)).short()


def by_hand(frames: list[Tensor], start: int, step: int) -> tuple[list[list[int]], int]:
    """The rule word by word: a frame at a time, a token at a time."""
    found: list[list[int]] = []
    base, along, free, open_run = start, 0, start, False
    for coords in frames:
        plain = all(int(t) == 0 for t, _, _ in coords)
        if not (plain and open_run):
            base, along = free, 0
        for t, h, w in coords.tolist():
            found.append([base + along + t, base + h, base + w])
            free = max(free, *[place + 1 for place in found[-1]])
        along += step
        open_run = plain
    return found, free


def token_lists(draw: st.DrawFn) -> list[Tensor]:
    frames = []
    for _ in range(draw(st.integers(1, 6))):
        words = draw(st.sampled_from([(0, 0), (0, 0), (2, 0), (1, 3)]))
        coords = frame_coords(GRID, *words)
        keep = draw(st.lists(st.booleans(), min_size=len(coords), max_size=len(coords)))
        kept = coords[torch.tensor(keep)]
        frames.append(kept if len(kept) else coords[-1:])
    return frames


@given(st.composite(token_lists)(), st.integers(0, 50), st.integers(1, 4))
def test_positions_are_those_of_the_plain_loop(frames: list[Tensor], start: int, step: int) -> None:
    origin = torch.cat([torch.full((len(part),), 5 * n) for n, part in enumerate(frames)])
    positions, free = grid_positions(torch.cat(frames), origin, start=start, step=step)
    theirs, their_free = by_hand(frames, start, step)
    assert positions.T.tolist() == theirs and free == their_free
    assert positions.min() >= start and positions.max() == free - 1
    moved, _ = grid_positions(torch.cat(frames), origin, start=start + 9, step=step)
    assert torch.equal(moved, positions + 9)


def test_frames_without_words_are_one_run_and_words_end_it() -> None:
    timed, plain = frame_coords(GRID, 2, 0), frame_coords(GRID, 0, 0)
    coords = torch.cat([plain, plain, timed, plain])
    origin = torch.tensor([0] * 6 + [1] * 6 + [2] * 8 + [3] * 6)
    positions, free = grid_positions(coords, origin, start=10)
    first = [part[0] for part in positions.T.split([6, 6, 8, 6])]
    assert [place.tolist() for place in first] == [
        [10, 10, 10],
        [11, 10, 10],
        [13, 13, 13],
        [18, 18, 18],
    ]
    assert free == 21


def test_nothing_takes_no_place() -> None:
    for name in ("qwen2_5_vl", "smolvlm"):
        family = tiny_family(name)
        empty = torch.zeros(0, 3, dtype=torch.int16)
        positions, free = family.context_positions(empty, torch.zeros(0), start=7)
        assert positions.shape[-1] == 0 and positions.dtype == torch.int64 and free == 7


def test_single_numbers_count_up_whatever_was_dropped() -> None:
    family = tiny_family("smolvlm")
    coords = torch.tensor([[0, 0, 0], [4, 4, 4], [8, 8, 8]])
    positions, free = family.context_positions(coords, torch.tensor([0, 3, 3]), start=4)
    assert positions.tolist() == [4, 5, 6] and free == 7
    assert family.text_positions(3, free).tolist() == [7, 8, 9]


def test_text_counts_up_in_all_rows() -> None:
    assert tiny_family("qwen3_vl").text_positions(2, 5).tolist() == [[5, 6]] * 3
