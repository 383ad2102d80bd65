"""How long a call takes, and what the machine could do at best."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from case import Case, Inputs
from gate import tensors

__all__ = ["Ceilings", "GpuClock", "HostClock", "Timing", "first_line", "side_by_side"]

Call = Callable[..., Any]
SMALL = 1000.0  # us; shorter calls are timed inside a CUDA graph, without the time to start them
MOST_SETS, MOST_BYTES = 32, 16e9  # inputs to rotate through


@dataclass(frozen=True)
class Ceilings:
    """What was measured of the machine: bytes copied and products in bfloat16, a second."""

    bandwidth: float
    flops: float

    def floor(self, case: Case) -> float:
        """Microseconds that no form of a case can go below."""
        return 1e6 * max(case.moved / self.bandwidth, case.flops / self.flops)


@dataclass(frozen=True)
class Timing:
    """Median microseconds of a call, how far two halves of the repeats are apart, and how timed."""

    us: float
    spread: float
    how: str


class GpuClock:
    """Times by events on the GPU, over inputs that its cache does not hold."""

    device = "cuda"

    def __init__(self) -> None:
        self.cache = torch.cuda.get_device_properties(0).L2_cache_size

    def ceilings(self) -> Ceilings:
        """Copy 4 GiB and multiply matrices of 8192, on random numbers."""
        draws = torch.Generator("cuda").manual_seed(0)
        source = torch.randn(2**30, generator=draws, device="cuda")
        target = torch.empty_like(source)
        copy = median(self._each(target.copy_, [(source,)], 20))
        a, b = (
            torch.randn(8192, 8192, generator=draws, device="cuda").bfloat16() for _ in range(2)
        )
        product = median(self._each(torch.mm, [(a, b)], 20))
        return Ceilings(2 * 4 * 2**30 / copy * 1e6, 2 * 8192**3 / product * 1e6)

    def sets(self, case: Case) -> list[Inputs]:
        """Inputs to rotate through, so that none is still in the cache when its turn comes."""
        first = case.inputs(self.device, 1)
        size = max(1, sum(part.nbytes for part in tensors(first)))
        count = min(MOST_SETS, max(2, -(-3 * self.cache // size)), max(1, int(MOST_BYTES / size)))
        return [first, *(case.inputs(self.device, seed) for seed in range(2, count + 1))]

    def time(self, call: Call, sets: list[Inputs]) -> Timing:
        """Median time of a call over the sets in turn."""
        for number in range(4):  # the first call may compile
            call(*sets[number % len(sets)])
        torch.cuda.synchronize()
        guess = median(self._each(call, sets, 5))
        size = sum(part.nbytes for part in tensors(sets))
        how = "cold" if size > 2 * self.cache else "warm"
        if guess < SMALL:
            stream = torch.cuda.current_stream()
            try:
                self._must_not_wait(call, sets[0])
                return self._timing(self._replayed(call, sets), f"graph, {how}")
            except Exception as error:
                torch.cuda.set_stream(stream)  # a recording that fails leaves its own behind
                torch.cuda.synchronize()
                how = f"{how}, no graph: {first_line(error)}"
        repeats = max(10, min(200, int(2e5 / guess)))
        return self._timing(self._each(call, sets, repeats), how)

    def _must_not_wait(self, call: Call, inputs: Inputs) -> None:
        """Raise if a call waits for the GPU: such a call cannot be recorded."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            call(*inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def _timing(self, each: list[float], how: str) -> Timing:
        middle = median(each)
        half = len(each) // 2
        return Timing(middle, abs(median(each[:half]) - median(each[half:])) / middle, how)

    def _each(self, call: Call, sets: list[Inputs], repeats: int) -> list[float]:
        """Microseconds of each call; all are queued before the first is waited for."""
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        torch.cuda.synchronize()
        for number, (begin, end) in enumerate(events):
            begin.record()
            call(*sets[number % len(sets)])
            end.record()
        torch.cuda.synchronize()
        return [1e3 * begin.elapsed_time(end) for begin, end in events]

    def _replayed(self, call: Call, sets: list[Inputs]) -> list[float]:
        """Microseconds of a call in each replay of a graph of many calls."""
        calls = len(sets) * max(1, -(-16 // len(sets)))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for inputs in sets[:3]:
                call(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for number in range(calls):
                call(*sets[number % len(sets)])
        graph.replay()
        each = self._each(graph.replay, [()], 20)
        return [us / calls for us in each]


class HostClock:
    """Stands in for a GPU's clock where there is none; what it says is no speed."""

    device = "cpu"

    def ceilings(self) -> Ceilings:
        """Any numbers."""
        return Ceilings(1e9, 1e9)

    def sets(self, case: Case) -> list[Inputs]:
        """Two inputs."""
        return [case.inputs(self.device, seed) for seed in (1, 2)]

    def time(self, call: Call, sets: list[Inputs]) -> Timing:
        """Time of one call."""
        began = time.perf_counter()
        call(*sets[0])
        return Timing(1e6 * (time.perf_counter() - began), 0.0, "interpreter")


def side_by_side(forms: dict[str, Call], inputs: Inputs, rounds: int = 9) -> dict[str, float]:
    """Milliseconds of processor time of each form, by turns, on the calling thread alone.

    Args:
        forms: By name.
        inputs: Of each.
        rounds: Turns of each; the median counts.
    """
    calls = {}
    for name, form in forms.items():
        form(*inputs)
        began = time.thread_time()
        form(*inputs)
        calls[name] = max(1, min(1000, int(0.02 / max(1e-9, time.thread_time() - began))))
    each: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(rounds):
        for name in list(forms)[:: 1 if turn % 2 else -1]:
            began = time.thread_time()
            for _ in range(calls[name]):
                forms[name](*inputs)
            each[name].append(1e3 * (time.thread_time() - began) / calls[name])
    return {name: median(times) for name, times in each.items()}


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:100]
