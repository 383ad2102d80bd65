"""One stream's time: never backwards, whatever the source's clock does."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["REORDER", "StreamClock"]

REORDER = 1.0  # seconds back that are a frame out of order; more is a clock that was set back


@dataclass
class StreamClock:
    """Turns the timestamps of a source into time that never runs backwards.

    A frame a little older than the newest came late and is left out. A clock that jumps back
    further was set: time goes on from where it was, one usual step later, and the difference is
    kept for all frames after. Jumps forward are pauses and are taken as they are.

    Args:
        offset: Seconds to add to the source's clock.
        last_raw: The newest timestamp of the source, seconds.
        last: The newest time given out, seconds.
        step: The usual time between frames, seconds.

    Example:
        >>> clock = StreamClock()
        >>> for raw in (7200.0, 7200.5, 3600.0, 3600.5):
        ...     at = clock.time_of(raw)
        ...     _ = clock.accept(raw, at)
        ...     print(at)
        7200.0
        7200.5
        7201.0
        7201.5
    """

    offset: float = 0.0
    last_raw: float | None = None
    last: float | None = None
    step: float = 0.0

    def time_of(self, raw: float) -> float | None:
        """The time of a frame, seconds; ``None`` if it came late. Changes nothing."""
        at = raw + self.offset
        if self.last is None or at >= self.last:
            return at
        if self.last - at <= REORDER:
            return None
        return self.last + self.step

    def accept(self, raw: float, at: float) -> bool:
        """Take note of a frame that was kept.

        Args:
            raw: Its timestamp.
            at: What `time_of` said.

        Returns:
            Whether the clock had been set back.
        """
        jumped = at != raw + self.offset
        if self.last is not None and not jumped:
            self.step = min(at - self.last, REORDER)
        if jumped:
            self.offset = at - raw
        self.last_raw, self.last = raw, at
        return jumped
