"""A day of keys and values into one directory, with questions: `python benchmarks/kv_soak.py`.

Frames of a made stream, 0.5 a second of its own clock, are written into a `DurableKV` of a small
geometry whose budgets hold a few hours, so that most of the day is spent at the bounds: records
leave RAM, and the oldest segments the disk. Every so many frames a question scores all blocks in
all layers and gathers the best. Nothing is encoded: this measures the memory and its store. Linux
only: it reads `/proc`.

Prints bytes in RAM and on disk against their budgets (the most at any write; for the disk at any
time that a file of it changed), resident memory, mapped files, the processor time of a write and a
question by quarters of the day, and how long a restart takes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from soak import slope
from torch import Tensor

from vismem.errors import UsageError, VismemError
from vismem.kv_store import DurableKV
from vismem.memory.base import Budget
from vismem.memory.kv.config import KVConfig
from vismem.memory.kv.retrieval import Retrieval, choose, layer_scores
from vismem.memory.kv.shape import KVShape
from vismem.memory.kv.snapshot import KVSnapshot

SHAPE = KVShape(layers=4, heads=4, kv_heads=2, head_dim=16)
TOKENS = 16  # of a frame; a block is as large
CONFIG = KVConfig(SHAPE, torch.float16, "int8", block=TOKENS, window=512, max_tokens=TOKENS)
FPS = 0.5
SAMPLES = 96  # looks at the process, evenly spread
RETRIEVAL = Retrieval(blocks=32)


def prompt() -> Tensor:
    """Keys and values of an init prompt of 4 tokens."""
    return torch.randn(4, 2, 2, 4, 16, generator=torch.Generator().manual_seed(1 << 40))


def frame(number: int) -> Tensor:
    """Keys and values of a frame: its own scene, which lasts for 20 frames, and noise."""
    scene = torch.Generator().manual_seed(number // 20)
    noise = torch.Generator().manual_seed((1 << 32) + number)
    kv = torch.randn(4, 2, 2, 1, 16, generator=scene)
    return kv + 0.3 * torch.randn(4, 2, 2, TOKENS, 16, generator=noise)


def ask(snapshot: KVSnapshot, number: int) -> tuple[list[Tensor], list[Tensor], float, float]:
    """Ask for the scene of a frame; rows, keys and values by layer, CPU seconds of both steps."""
    query = frame(number)[:, 0].mean(2)  # (L, G, D)
    began = time.thread_time()
    layers = range(SHAPE.layers)
    reps = [snapshot.representatives(layer) for layer in layers]
    scores = torch.stack([layer_scores(query[layer], reps[layer]) for layer in layers])
    rows = choose(scores, RETRIEVAL)
    chosen = time.thread_time()
    tick = snapshot.tick()
    pairs = [snapshot.gather(layer, rows[layer], tick) for layer in layers]
    gathered = [tensor for pair in pairs for tensor in pair]
    return rows, gathered, chosen - began, time.thread_time() - chosen


@dataclass
class Report:
    """What a soak found.

    Args:
        budget: Bytes allowed in RAM.
        disk_budget: Bytes allowed on disk.
        ram: The most bytes that were held after a write.
        disk: The most bytes that the directory ever held.
        resident: Bytes of resident memory, at `SAMPLES` times.
        anonymous: The part of it that is not a file mapped into memory.
        maps: Mapped regions.
        files: Open files.
        blocks: Blocks held.
        writes: Processor seconds of each write.
        retrieve: Processor seconds of each question's choice of blocks.
        gather: Processor seconds of each question's reading of them.
        dropped: Blocks given up.
        span: Seconds of the stream that blocks and window cover at the end.
        reopened: Seconds of a restart.
        seconds: How long all took.
    """

    budget: int
    disk_budget: int
    ram: int = 0
    disk: int = 0
    resident: list[int] = field(default_factory=list)
    anonymous: list[int] = field(default_factory=list)
    maps: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    writes: np.ndarray = field(default_factory=lambda: np.empty(0))
    retrieve: list[float] = field(default_factory=list)
    gather: list[float] = field(default_factory=list)
    dropped: int = 0
    span: float = 0.0
    reopened: float = 0.0
    seconds: float = 0.0

    def sample(self, memory: DurableKV) -> None:
        """Look at the process and the memory as they are now."""
        lines = Path("/proc/self/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        self.resident.append(int(status["VmRSS"].split()[0]) * 1024)
        self.anonymous.append(int(status["RssAnon"].split()[0]) * 1024)
        self.maps.append(Path("/proc/self/maps").read_text().count("\n"))
        self.files.append(len(os.listdir("/proc/self/fd")))
        self.blocks.append(len(memory.blocks))


def size_of(directory: Path) -> int:
    """Bytes of all files in a directory."""
    return sum(entry.stat().st_size for entry in os.scandir(directory))


@contextmanager
def watching(directory: Path, report: Report):  # noqa: ANN201
    """Look at the directory whenever a file in it is complete, replaced or removed."""
    real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink")}

    def looking(call: Callable[..., Any]) -> Callable[..., Any]:
        def look(*given: Any, **more: Any) -> Any:
            report.disk = max(report.disk, size_of(directory))
            return call(*given, **more)

        return look

    try:
        for name, call in real.items():
            setattr(os, name, looking(call))
        yield
    finally:
        for name, call in real.items():
            setattr(os, name, call)


def soak(directory: Path, frames: int, asks: int, budget: str, disk: str) -> Report:
    """Write frames and ask, evenly spread.

    Args:
        directory: Where the memory is to live.
        frames: How many.
        asks: How many questions.
        budget: Bytes in RAM, as text.
        disk: Bytes on disk, as text.
    """
    identity = {"model": "made up"}
    with DurableKV(directory, CONFIG, budget, disk, identity=identity) as memory:
        # The costs have their room beforehand, so that nothing here grows.
        report = Report(memory.budget.bytes, memory.disk.bytes, writes=np.zeros(frames))
        memory.start(prompt())
        began = time.perf_counter()
        with watching(directory, report):
            for number in range(frames):
                kv = frame(number)
                used = time.thread_time()
                written = memory.write_kv(kv, number / FPS)
                report.writes[number] = time.thread_time() - used
                report.ram = max(report.ram, written.nbytes, memory.nbytes)
                report.dropped += written.dropped
                if (number + 1) * asks // frames > number * asks // frames:
                    oldest = memory.blocks[0].sources[0] if memory.blocks else 0
                    scene = int(oldest) + (number * 7919) % (number + 1 - int(oldest))
                    *_, retrieve, gather = ask(memory.snapshot(), scene)
                    report.retrieve.append(retrieve)
                    report.gather.append(gather)
                    report.ram = max(report.ram, memory.nbytes)
                if (number + 1) * SAMPLES // frames > number * SAMPLES // frames:
                    report.sample(memory)
        report.disk = max(report.disk, size_of(directory))
        report.seconds = time.perf_counter() - began
        report.span = memory.memory.last_time - memory.memory.oldest
    began = time.perf_counter()
    with DurableKV.open(directory, CONFIG, identity=identity) as memory:
        report.reopened = time.perf_counter() - began
        if len(memory.blocks) != report.blocks[-1]:
            raise VismemError("a restart does not give the same blocks")
    return report


def quarters(values: Sequence[float] | np.ndarray) -> list[float]:
    """Median of each quarter."""
    cuts = [round(n * len(values) / 4) for n in range(5)]
    parts = [values[start:end] for start, end in zip(cuts, cuts[1:], strict=False)]
    return [float(np.median(part)) for part in parts]


def table(report: Report) -> str:
    """The report as aligned text."""
    hours = len(report.writes) / FPS / 3600

    def points(values: Sequence[float], unit: float, decimals: int) -> str:
        shown = quarter_ends(values)
        return "  ".join(f"{value / unit:8.{decimals}f}" for value in (*shown, max(values)))

    def costs(values: Sequence[float] | np.ndarray) -> str:
        worst = f"{max(values) * 1e3:8.2f}"
        return "  ".join([*(f"{value * 1e3:8.2f}" for value in quarters(values)), worst])

    questions = [a + b for a, b in zip(report.retrieve, report.gather, strict=True)]
    asked = quarters(questions)
    return "\n".join(
        [
            f"frames                  {len(report.writes)}, {hours:.1f} h of the stream, in "
            f"{report.seconds:.0f} s; {report.dropped} blocks given up",
            f"RAM, most ever          {report.ram} of {report.budget} "
            f"({report.ram / report.budget:.1%})",
            f"disk, most ever         {report.disk} of {report.disk_budget} "
            f"({report.disk / report.disk_budget:.1%})",
            f"remembered at the end   {report.blocks[-1]} blocks, the last "
            f"{report.span / 3600:.2f} h",
            f"restart                 {report.reopened:.2f} s",
            f"{'':24}{'1st':>8}  {'2nd':>8}  {'3rd':>8}  {'4th':>8}  {'most':>8}  (at the end of "
            f"each quarter)",
            f"blocks                  {points(report.blocks, 1, 0)}",
            f"resident, MB            {points(report.resident, 1e6, 1)}",
            f"  not of files, MB      {points(report.anonymous, 1e6, 1)}",
            f"mapped regions          {points(report.maps, 1, 0)}",
            f"open files              {points(report.files, 1, 0)}",
            f"{'':24}{'1st':>8}  {'2nd':>8}  {'3rd':>8}  {'4th':>8}  {'worst':>8}  (medians of "
            f"each quarter)",
            f"write, CPU ms           {costs(report.writes)}",
            f"retrieve, CPU ms        {costs(report.retrieve)}",
            f"gather, CPU ms          {costs(report.gather)}",
            f"resident, second half   not of files "
            f"{slope(report.anonymous) * SAMPLES / 24 / 1e3:+.1f} kB an hour of a day",
            f"question, 4th/2nd       {asked[3] / asked[1]:.2f} of {len(questions)} questions",
        ]
    )


def quarter_ends(values: Sequence[float]) -> list[float]:
    """The last value of each quarter."""
    return [values[round(n * len(values) / 4) - 1] for n in (1, 2, 3, 4)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=43_200, help="24 h at 0.5 a second")
    parser.add_argument("--asks", type=int, default=432, help="questions, evenly spread")
    parser.add_argument("--budget", default="32MB", help="bytes in RAM")
    parser.add_argument("--disk", default="48MB", help="bytes on disk")
    parser.add_argument("--store", type=Path, help="folder for the memory; default: temporary")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        if options.frames < SAMPLES or options.asks < 8:
            raise UsageError(f"--frames is at least {SAMPLES}, --asks at least 8")
        if not Path("/proc/self/status").exists():
            raise UsageError("this reads /proc; run it on Linux")
        Budget.parse(options.budget)
        with tempfile.TemporaryDirectory(prefix="vismem-kv-", dir=options.store) as directory:
            where = Path(directory) / "soak.kv"
            report = soak(where, options.frames, options.asks, options.budget, options.disk)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    except VismemError as error:
        parser.exit(error.exit_code, f"{error}\n")
    print(table(report))


if __name__ == "__main__":
    main()
