"""Choose tile sizes by the clock, out of those that are worth a try."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from math import log
from statistics import mean
from typing import Any

from case import Case
from clock import GpuClock, HostClock
from gate import comparable

from kernels.tuning import Config, Key, trying

__all__ = ["tune"]


def tune(
    cases: list[Case], clock: GpuClock | HostClock, left: Callable[[], float]
) -> dict[str, dict[str, Any]]:
    """Time the shortlists of an operator.

    One shortlist is gone through after the other, each with what was chosen from those before. A
    size that cannot be compiled or gives a wrong result is passed over; one that serves several
    cases is judged by the mean of its logarithmic times.

    Args:
        cases: Of one operator.
        clock: Of the device.
        left: Seconds until the end; nothing is chosen that could not be tried in full.

    Returns:
        The chosen sizes by operator and name, as a file of tuned sizes keeps them.
    """
    users: dict[Key, tuple[list[Config], list[Case]]] = {}
    for case in cases:
        with suppress(Exception), trying({}) as asked:
            case.ours(*case.inputs(clock.device, 1))
        for key, shortlist in asked.items():
            users.setdefault(key, (shortlist, []))[1].append(case)
    chosen: dict[Key, Config] = {}
    for key, (shortlist, asking) in users.items():
        times: dict[int, float] = {}
        for number, config in enumerate(shortlist):
            if left() < 0:
                return _as_json(chosen)
            with trying({**chosen, key: config}):
                logs = [_log_us(case, clock) for case in asking]
            if None not in logs:
                times[number] = mean(us for us in logs if us is not None)
        if times:
            chosen[key] = shortlist[min(times, key=times.__getitem__)]
    return _as_json(chosen)


def _log_us(case: Case, clock: GpuClock | HostClock) -> float | None:
    try:
        if comparable(case, clock.device, case.ours):
            return None
        return log(clock.time(case.ours, clock.sets(case)).us)
    except Exception:
        return None


def _as_json(chosen: dict[Key, Config]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for (op, name), config in chosen.items():
        found.setdefault(op, {})[name] = config.as_json()
    return found
