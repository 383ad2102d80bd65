"""What became of the frames."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Stats"]


@dataclass
class Stats:
    """What became of the frames, counted since the memory was made or opened.

    Args:
        written: Frames in the memory, each acknowledged.
        dropped: Frames of a live source that came while the queue was full.
        late: Frames older than one before, left out.
        clock_jumps: How often a clock was set back and the stream's time carried on.
        refused: Frames that could not be taken: no time, no picture.
        merged: Moments and scenes merged into another to keep the budget.
        forgotten: Moments and scenes given up: by age, on request, or because nothing was left to
            merge.
        encode_seconds: Processor time of encoding.
    """

    written: int = 0
    dropped: int = 0
    late: int = 0
    clock_jumps: int = 0
    refused: int = 0
    merged: int = 0
    forgotten: int = 0
    encode_seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def note(self, problem: str) -> None:
        """Keep what went wrong, each once, the first 20."""
        if problem not in self.problems and len(self.problems) < 20:
            self.problems.append(problem)
