"""How a node fares: rates, latencies, counters, and what of it deserves a warning."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["ERROR", "OK", "WARN", "Health", "Spread"]

OK, WARN, ERROR = 0, 1, 2  # as diagnostic_msgs/DiagnosticStatus numbers them
WINDOW = 5.0  # seconds that a rate is taken over


class Spread:
    """The newest of many durations, and how they spread.

    Example:
        >>> spread = Spread()
        >>> for value in range(101): spread.add(float(value))
        >>> spread.at(0.5), spread.at(0.99)
        (50.0, 99.0)
    """

    def __init__(self, most: int = 1000):
        self._values: deque[float] = deque(maxlen=most)

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float) -> None:
        """Take one."""
        self._values.append(value)

    def at(self, share: float) -> float:
        """The value that a share of them does not exceed; 0 if there is none."""
        ordered = sorted(tuple(self._values))
        return ordered[round(share * (len(ordered) - 1))] if ordered else 0.0


class Rate:
    """How often something happens."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=2000)

    def tick(self, now: float) -> None:
        """It happened at a second of a steady clock."""
        self._times.append(now)

    def at(self, now: float) -> float:
        """Times a second over the last seconds."""
        return sum(now - time <= WINDOW for time in tuple(self._times)) / WINDOW


@dataclass
class Health:
    """What a node counts.

    Args:
        max_age: Seconds old from which a picture counts as late.
        min_rate: Pictures a second below which is warned.

    Attributes:
        counts: By name, for good.
        notes: Reasons by kind, the newest example each.
        latency: Seconds from a picture's arrival to its detections.
    """

    max_age: float = 1.0
    min_rate: float = 1.0
    counts: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    latency: Spread = field(default_factory=Spread)
    age: Spread = field(default_factory=Spread)
    images: Rate = field(default_factory=Rate)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _warned: dict[str, int] = field(default_factory=dict, repr=False)
    _began: float | None = field(default=None, repr=False)

    def count(self, name: str, by: int = 1) -> None:
        """Count something."""
        with self._lock:
            self.counts[name] = self.counts.get(name, 0) + by

    def note(self, reason: str, example: str = "") -> None:
        """Count a problem and keep its newest example."""
        self.count(reason)
        self.notes[reason] = example

    def arrived(self, age: float, now: float) -> None:
        """A picture of an age in seconds came at a second of a steady clock."""
        self._began = now if self._began is None else self._began
        self.count("received")
        self.images.tick(now)
        self.age.add(age)
        if age > self.max_age:
            self.count("late")

    def report(
        self, now: float, facts: Mapping[str, float | int | str], *, active: bool = True
    ) -> tuple[int, str, dict[str, str]]:
        """Put a diagnostic status together.

        Args:
            now: Second of the steady clock.
            facts: More to tell: ``bytes`` and ``budget`` are compared.
            active: Whether pictures are expected.

        Returns:
            Level, a line, and values by name.
        """
        rate = self.images.at(now)
        with self._lock:
            counts = dict(self.counts)
        new = {name: n - self._warned.get(name, 0) for name, n in counts.items()}
        self._warned = counts
        level, told = OK, []
        if active and rate < self.min_rate and (self._began is None or now - self._began > WINDOW):
            level = WARN
            told.append(
                f"{rate:.1f} pictures a second" if counts.get("received") else "no pictures"
            )
        for name, count in new.items():
            if count and name not in ("received", "remembered", "detected", "skipped", "asked"):
                level = max(level, ERROR if name == "failed" else WARN)
                told.append(f"{count} {name}")
        values: dict[str, float | int | str] = {
            "rate": f"{rate:.1f}",
            "age p50 ms": f"{1000 * self.age.at(0.5):.1f}",
            "latency p50 ms": f"{1000 * self.latency.at(0.5):.1f}",
            "latency p99 ms": f"{1000 * self.latency.at(0.99):.1f}",
            **counts,
            **facts,
            **{f"note: {reason}": example for reason, example in self.notes.items() if example},
        }
        return level, "; ".join(told) or "remembers", {k: str(v) for k, v in values.items()}
