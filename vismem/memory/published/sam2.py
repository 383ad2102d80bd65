"""Which memories SAM 2 attends to, to the number; a pure function of frame numbers.

What was written stays in two lists of an object: prompted frames (the published "conditioning"
frames, those a person clicked on) and tracked ones. A read takes all prompted frames, or the
nearest few, and a window of recent ones; each comes with a row of the learned table of temporal
codes. The object pointers of the same prompted frames and of a longer window are read beside them.

Kept as published: the age of a prompted frame is not told (all share the last row), a prompted
frame that was not selected may come back as a recent one, and nothing is ever thrown away. The bank
that is bounded is `vismem.memory.spatial`.

Source: Ravi et al., "SAM 2: Segment Anything in Images and Videos", https://arxiv.org/abs/2408.00714;
github.com/facebookresearch/sam2, class ``SAM2Base``, re-implemented from a description.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Selection", "nearest_prompted", "select_memories"]


class Selection(NamedTuple):
    """What one read attends to, in the order of the keys.

    Args:
        maps: ``(frame, row)`` of every memory map; the row is of the table of temporal codes.
        pointers: ``(frame, frames ago)`` of every object pointer; negative for frames to come.
        reach: The largest number of frames ago that a recent pointer may have; what the difference
            is divided by before it is encoded.
    """

    maps: tuple[tuple[int, int], ...]
    pointers: tuple[tuple[int, int], ...]
    reach: int


def nearest_prompted(frame: int, prompted: Iterable[int], most: int) -> tuple[int, ...]:
    """Choose prompted frames: the last before, the first from now on, then the nearest.

    Args:
        frame: The current frame.
        prompted: Frame numbers in the order they were prompted, which decides ties.
        most: How many at most; -1 for all, in their own order.

    Returns:
        The frames in the order they were chosen.

    Raises:
        ValueError: If ``most`` is 0, 1 or less than -1, which the published rule does not allow.

    Example:
        >>> nearest_prompted(10, [0, 4, 8, 13, 30], 3)
        (8, 13, 4)
    """
    if most != -1 and most < 2:
        raise ValueError(f"take 2 prompted frames or more, or -1 for all, not {most}")
    given = tuple(prompted)
    if most == -1 or len(given) <= most:
        return given
    before = max((t for t in given if t < frame), default=None)
    after = min((t for t in given if t >= frame), default=None)
    chosen = [t for t in (before, after) if t is not None]
    rest = sorted((t for t in given if t not in chosen), key=lambda t: abs(t - frame))
    return (*chosen, *rest[: most - len(chosen)])


def select_memories(
    frame: int,
    prompted: Iterable[int],
    tracked: Iterable[int],
    *,
    frames: int,
    memories: int = 7,
    pointers: int = 16,
    most_prompted: int = -1,
    stride: int = 1,
    reverse: bool = False,
    training: bool = False,
    past_only: bool = True,
    signed: bool = True,
) -> Selection:
    """Select what the current frame attends to.

    Args:
        frame: Number of the current frame.
        prompted: Numbers of the prompted frames, in the order they were prompted.
        tracked: Numbers of the frames that were tracked.
        frames: How long the video is; pointers are not looked for beyond it.
        memories: Maps of a full window, prompted one included; rows of the temporal table.
        pointers: Pointers of a full window, the current frame's place included.
        most_prompted: How many prompted frames at most; -1 for all.
        stride: Frames between recent maps, but for the last one; 1 in training.
        reverse: Whether the video is tracked backwards; then "ago" is later.
        training: Whether the network trains; then pointers of prompted frames to come are read too.
        past_only: Whether evaluation reads no pointers of prompted frames to come.
        signed: Whether the age of a prompted frame's pointer has a sign.

    Returns:
        Maps and pointers in the order of the keys. Frames that are not there are left out.

    Raises:
        ValueError: If a count or the stride is too small, or a frame is both prompted and tracked.

    Example:
        >>> select_memories(3, [0], [1, 2], frames=40)
        Selection(maps=((0, 6), (1, 1), (2, 0)), pointers=((0, 3), (2, 1), (1, 2)), reach=15)
    """
    if memories < 1 or pointers < 1 or stride < 1:
        raise ValueError(
            f"a window takes 1 or more, not {memories} maps, {pointers} pointers, stride {stride}"
        )
    prompted, there = tuple(prompted), set(tracked)
    if both := there.intersection(prompted):
        raise ValueError(
            f"frame {min(both)} is prompted and tracked; take it from the tracked ones"
        )
    chosen = nearest_prompted(frame, prompted, most_prompted)
    there |= set(prompted) - set(chosen)
    stride = 1 if training else stride
    back = -1 if reverse else 1

    def recent(ago: int) -> int:
        """The frame that stands for so many strides ago."""
        if ago == 1:
            return frame - back
        # Past the last frame only multiples of the stride count, nearest first.
        nearest = -(-(frame + 2) // stride) if reverse else (frame - 2) // stride
        return (nearest - back * (ago - 2)) * stride

    maps = [(t, memories - 1) for t in chosen]
    maps += [(recent(ago), ago - 1) for ago in range(memories - 1, 0, -1) if recent(ago) in there]

    aged = [(t, back * (frame - t)) for t in chosen]
    if past_only and not training:
        aged = [(t, ago) for t, ago in aged if ago >= 0]
    if not signed:
        aged = [(t, abs(ago)) for t, ago in aged]
    most = min(frames, pointers)
    window = [(frame - back * ago, ago) for ago in range(1, most)]
    aged += [(t, ago) for t, ago in window if 0 <= t < frames and t in there]
    return Selection(tuple(maps), tuple(aged), most - 1)
