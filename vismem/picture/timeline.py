"""Where things go when a memory is drawn over time: axes, round times, lanes, what to show."""

from __future__ import annotations

import math
import time
from bisect import bisect, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vismem.heads.answer import WALL_CLOCK

if TYPE_CHECKING:
    from vismem.memory.slots import Slot

__all__ = ["Axis", "Span", "apart", "axes", "join", "packed", "span_of", "telling"]

Span = tuple[float, float]

MOST_TICKS = 9
STEPS = (
    *(0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30),
    *(60 * minutes for minutes in (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720)),
    *(86400 * days for days in (1, 2, 7, 14, 30, 90, 365, 1825, 7300)),
)
SHORTEST = 1.0  # seconds; a shorter axis would only enlarge the jitter of a clock
SPARSE = 2.0  # an axis so many times longer than all that is on it is not shared
LEAST_APART = 0.25  # of its worth is left to a slot that was seen at the time of one shown
ENOUGH = 0.98  # of the frames: slots that stand for so many tell the whole story


@dataclass(frozen=True, slots=True)
class Axis:
    """Seconds to pixels.

    Args:
        start: Second at the left end.
        end: Second at the right end, later than the start.
        left: Pixel of the left end.
        right: Pixel of the right end.

    Example:
        >>> axis = Axis(10.0, 20.0, left=100, right=300)
        >>> axis(15.0), axis.ticks()
        (200.0, ([10, 12, 14, 16, 18, 20], 2))
    """

    start: float
    end: float
    left: float
    right: float

    def __call__(self, seconds: float) -> float:
        """The pixel of a second."""
        share = (seconds - self.start) / (self.end - self.start)
        return self.left + (self.right - self.left) * share

    @property
    def wall_clock(self) -> bool:
        """Whether its seconds are since 1970 instead of the recording's own."""
        return self.start >= WALL_CLOCK

    def ticks(self) -> tuple[list[float], float]:
        """Times that are round to a person, by the local clock, and the seconds between them."""
        length = self.end - self.start
        step = next((s for s in STEPS if length <= s * MOST_TICKS), length)
        zone = time.localtime(self.start).tm_gmtoff if self.wall_clock else 0
        first = math.ceil((self.start + zone) / step)
        last = math.floor((self.end + zone) / step)
        return [round(number * step - zone, 3) for number in range(first, last + 1)], step


def join(spans: Sequence[Span]) -> Span:
    """The span from the first start to the last end."""
    return min(start for start, _ in spans), max(end for _, end in spans)


def span_of(slot: Slot) -> Span:
    """First and last second of a slot."""
    return min(slot.first, slot.start, slot.time), max(slot.last, slot.end, slot.time)


def axes(spans: Sequence[Span], left: float, right: float) -> list[Axis]:
    """One axis for each stream: the same for all, unless most of it would then be empty.

    Example:
        >>> [(axis.start, axis.end) for axis in axes([(0, 60), (50, 90)], 0, 100)]
        [(0, 90), (0, 90)]
        >>> [(axis.start, axis.end) for axis in axes([(0, 60), (7, 7)], 0, 100)]
        [(0, 60), (0, 60)]
        >>> [(axis.start, axis.end) for axis in axes([(0, 60), (5000, 5000)], 0, 100)]
        [(0, 60), (4999.5, 5000.5)]
    """
    longer: list[Span] = []
    for start, end in spans:
        grown = max(0.0, SHORTEST - (end - start)) / 2
        longer.append((start - grown, end + grown) if grown else (start, end))
    if longer:
        start, end = join(longer)
        if end - start <= SPARSE * sum(b - a for a, b in longer):
            longer = [(start, end)] * len(longer)
    return [Axis(start, end, left, right) for start, end in longer]


def packed(
    slots: Sequence[Slot], axis: Axis, lanes: int, radius: Callable[[Slot], float]
) -> list[tuple[Slot, int]]:
    """Put slots into lanes so that none overlaps another, the heaviest first and on top.

    Args:
        slots: In any order.
        axis: Where they lie.
        lanes: The most lanes.
        radius: Of the dot at a slot's time, in pixels.

    Returns:
        Slots with the number of their lane; those that found no place are missing.
    """
    taken: list[list[Span]] = [[] for _ in range(lanes)]
    placed: list[tuple[Slot, int]] = []
    for slot in sorted(slots, key=lambda slot: (-slot.weight, slot.time)):
        first, last = (axis(seconds) for seconds in span_of(slot))
        dot, around = axis(slot.time), radius(slot) + 1.5
        left, right = min(first - 2, dot - around), max(last + 2, dot + around)
        for number, lane in enumerate(taken):
            place = bisect(lane, (left, right))
            if (not place or lane[place - 1][1] <= left) and (
                place == len(lane) or right <= lane[place][0]
            ):
                insort(lane, (left, right))
                placed.append((slot, number))
                break
    return placed


def telling(slots: Sequence[Slot], axis: Axis, most: int, far: float) -> list[Slot]:
    """The slots to show in pictures: heavy ones, spread over time, no more than tell the story.

    Args:
        slots: In any order.
        axis: Where they lie.
        most: How many there is room for.
        far: Pixels beyond which it does not matter how far two are apart.

    Returns:
        Some of the slots, in the order of their times.
    """
    left = dict.fromkeys(range(len(slots)), far)  # number: pixels to the nearest that is shown
    frames = ENOUGH * sum(slot.weight for slot in slots)
    shown: list[Slot] = []

    def worth(number: int) -> float:
        spread = LEAST_APART + (1 - LEAST_APART) * min(1.0, left[number] / far)
        return spread * math.log1p(slots[number].weight)

    while left and len(shown) < most and frames > 0:
        best = max(left, key=lambda number: (worth(number), -slots[number].time))
        del left[best]
        shown.append(slots[best])
        frames -= slots[best].weight
        at = axis(slots[best].time)
        for number in left:
            left[number] = min(left[number], abs(axis(slots[number].time) - at))
    return sorted(shown, key=lambda slot: slot.time)


def apart(wanted: Sequence[float], width: float, start: float, end: float) -> list[float]:
    """Move sorted centres as little as possible until they are ``width`` apart.

    Least squares under that order, by pooling adjacent violators, then kept inside ``start..end``.

    Example:
        >>> apart([10, 12, 50], 10, 0, 100), apart([95, 96], 10, 0, 100.0)
        ([6.0, 16.0, 50.0], [90.0, 100.0])
    """
    pools: list[tuple[float, int]] = []  # the sum of where its members want it to begin, members
    for number, centre in enumerate(wanted):
        total, members = centre - number * width, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / members:
            before = pools.pop()
            total, members = total + before[0], members + before[1]
        pools.append((total, members))
    begins = [total / members for total, members in pools for _ in range(members)]
    highest = end - (len(wanted) - 1) * width
    return [max(min(begin, highest), start) + number * width for number, begin in enumerate(begins)]
