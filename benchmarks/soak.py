"""Write and ask for long, and see whether anything grows: `python benchmarks/soak.py [CLIP]`.

Frames of a clip (this repository's gallery by default) are encoded once and then written again and
again, time running on, into a durable memory; so what is measured is the memory and its store. With
`--encode` every frame is really encoded. Linux only: it reads `/proc`.

Prints bytes held against the budget; processor time of the writer's thread for each write, without
encoding, and the ratio of the last thousand writes to the second (where others use the machine as
well it wanders; the same ratio of looking up, always the same work, tells how far); resident memory
and its slope; bytes on disk, open files, threads; and how long `ask` takes from another thread,
while the writer runs flat out and while it rests.
"""

from __future__ import annotations

import argparse
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from vismem import Budget, Frame, VisualMemory, open_stream
from vismem.encoders.base import Encoding
from vismem.encoders.embedded import EmbeddedEncoder
from vismem.errors import UsageError, VismemError

GALLERY = Path(__file__).resolve().parents[1] / "data" / "gallery.mp4"
BLOCK = 1000  # writes that one median is taken over
SAMPLE = 125  # writes between looks at the process; commits come every so many, so more often
QUESTIONS = (
    "a cat",
    "when does the rocket appear?",
    "how many people are there?",
    "a red cup of coffee",
    "was there an elephant in the last 60 seconds?",
    "a person next to a tripod",
    "what happened between 0:10 and 0:40?",
    "an orange flower",
)


class LoopEncoder(EmbeddedEncoder):
    """Looks encodings up instead of making them, in a loop, and takes the time of every write.

    One thread encodes and writes, frame after frame; so what that thread uses between two calls is
    what one write costs.

    Args:
        noise: Standard deviation of the noise on looked-up tokens, as a share of theirs.
        really: Whether to encode all the same.
        writes: How many costs are kept.
    """

    def __init__(self, *, noise: float, really: bool, writes: int):
        super().__init__()
        self.noise, self.really = noise, really
        # Processor seconds of each write, and of encoding its frame; filled beforehand, so that
        # nothing here grows.
        self.costs = np.full(writes, np.nan)
        self.encoding = np.full(writes, np.nan)
        self.written = 0  # how many of them are known: all but the newest
        self.after_write: Callable[[], None] = lambda: None
        self._loop: list[Encoding] = []
        self._turn = 0
        self._ended: float | None = None
        self._generator = torch.Generator().manual_seed(0)

    def learn(self, images: Sequence[np.ndarray]) -> None:
        """Encode the pictures of the loop."""
        self._loop = super().encode(images)

    def encode(self, images: Sequence[np.ndarray]) -> list[Encoding]:
        """Give the next encodings of the loop; see `Encoder.encode`."""
        if self._ended is not None:
            self.costs[self.written] = time.thread_time() - self._ended
            self.written += 1
            self.after_write()
        began = time.thread_time()
        encodings = super().encode(images) if self.really else [self._next() for _ in images]
        self._ended = time.thread_time()
        if self.written < len(self.encoding):
            self.encoding[self.written] = self._ended - began
        return encodings

    def _next(self) -> Encoding:
        held = self._loop[self._turn % len(self._loop)]
        self._turn += 1
        tokens = held.tokens.float()
        noise = torch.randn(tokens.shape, generator=self._generator) * tokens.std() * self.noise
        return Encoding(
            (tokens + noise).half(), held.positions, held.embedding, held.detail, held.labels
        )


class Asker:
    """Asks a memory one question after another from a thread of its own, whenever it is told to."""

    def __init__(self, memory: VisualMemory):
        self.seconds: list[float] = []
        self._memory = memory
        self._turns: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="asker", daemon=True)
        self._thread.start()

    def ask(self) -> None:
        """Have the next question asked."""
        self._turns.put(True)

    def finish(self) -> list[float]:
        """Wait for the questions that were to be asked; seconds that each took."""
        self._turns.put(False)
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self.seconds

    def _run(self) -> None:
        try:
            while self._turns.get():
                question = QUESTIONS[len(self.seconds) % len(QUESTIONS)]
                began = time.perf_counter()
                self._memory.ask(question, wait=False)
                self.seconds.append(time.perf_counter() - began)
        except BaseException as error:
            self._failure = error


@dataclass
class Report:
    """What a soak found.

    Args:
        budget: Bytes allowed.
        most: The most bytes that were ever held after a write.
        costs: Processor seconds of each write, ``(writes,)``.
        encoding: Processor seconds of encoding each frame, ``(writes,)``.
        resident: Bytes of resident memory, at the start and after every `SAMPLE` writes.
        anonymous: The part of it that is not a file mapped into memory.
        disk: Bytes of the directory, at the same times.
        files: Open files, at the same times.
        threads: Threads, at the same times.
        busy: Seconds of each question while the writer was at work.
        idle: Seconds of each question while it rested.
        moments: How many are held at the end.
        merged: How many were merged.
        seconds: How long all writes took.
    """

    budget: int
    most: int = 0
    costs: np.ndarray = field(default_factory=lambda: np.empty(0))
    encoding: np.ndarray = field(default_factory=lambda: np.empty(0))
    resident: list[int] = field(default_factory=list)
    anonymous: list[int] = field(default_factory=list)
    disk: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)
    moments: int = 0
    merged: int = 0
    seconds: float = 0.0

    def sample(self, directory: Path) -> None:
        """Look at the process and the directory as they are now."""
        status = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
        )
        self.resident.append(int(status["VmRSS"].split()[0]) * 1024)
        self.anonymous.append(int(status["RssAnon"].split()[0]) * 1024)
        self.disk.append(sum(p.stat().st_size for p in directory.rglob("*") if p.is_file()))
        self.files.append(len(os.listdir("/proc/self/fd")))
        self.threads.append(int(status["Threads"]))


def block_medians(costs: np.ndarray, block: int = BLOCK) -> list[float]:
    """Median of each whole block of writes."""
    whole = len(costs) // block
    return np.median(costs[: whole * block].reshape(whole, block), axis=1).tolist()


def last_to_second(medians: Sequence[float]) -> float:
    """Ratio of the last median to the second; the first holds the warming up."""
    return medians[-1] / medians[1]


def slope(values: Sequence[float]) -> float:
    """Least-squares slope of equally spaced values, over the second half of them."""
    tail = values[len(values) // 2 :]
    return float(np.polyfit(range(len(tail)), tail, 1)[0]) if len(tail) > 1 else 0.0


def read_loop(clip: Path, fps: float) -> list[np.ndarray]:
    """The pictures of a clip, `fps` a second."""
    with open_stream(clip, fps=fps) as stream:
        return [frame.image for frame in stream]


def soak(
    images: Sequence[np.ndarray],
    encoder: LoopEncoder,
    directory: Path,
    *,
    budget: str,
    fps: float,
    asks: int,
) -> Report:
    """Write the pictures again and again, and ask meanwhile.

    Args:
        images: The loop.
        encoder: Has learnt the loop, and keeps as many costs.
        directory: Where the memory is to live.
        budget: Of the memory, as text.
        fps: Frames a second of the stream's own clock.
        asks: Questions while writing, evenly spread, and as many again afterwards.
    """
    with VisualMemory(budget, path=directory, encoder=encoder) as memory:
        writes, report = len(encoder.costs), Report(memory.budget.bytes)

        def after_write() -> None:
            report.most = max(report.most, memory.nbytes)
            if encoder.written % SAMPLE == 0 or encoder.written == writes:
                report.sample(directory)

        for question in QUESTIONS:  # loads the encoder of sentences
            memory.ask(question)
        report.sample(directory)
        encoder.after_write = after_write
        asker = Asker(memory)
        began = time.perf_counter()
        for number in range(writes + 1):  # one more tells where the last one ended
            memory.write(Frame(images[number % len(images)], timestamp=number / fps))
            if (number + 1) * asks // writes > number * asks // writes:
                asker.ask()
        memory.flush()
        report.seconds = time.perf_counter() - began
        report.busy = asker.finish()
        asker = Asker(memory)
        for _ in range(asks):
            asker.ask()
        report.idle = asker.finish()
        report.costs, report.encoding = encoder.costs, encoder.encoding
        if memory.stats.refused:
            raise VismemError(f"frames were refused: {memory.stats.problems[0]}")
        report.merged = memory.stats.merged
        report.moments = sum(len(snapshot) for snapshot in memory.snapshots().values())
    return report


def table(report: Report) -> str:
    """The report as aligned text."""
    writes = len(report.costs)

    def points(values: Sequence[int], unit: float, decimals: int) -> str:
        last = len(values) - 1
        shown = [values[n] for n in (0, round(last / 4), round(last / 2), last)]
        return "  ".join(f"{value / unit:8.{decimals}f}" for value in (*shown, max(values)))

    def latency(seconds: Sequence[float]) -> str:
        p50, p99 = np.percentile(seconds, [50, 99]) * 1000
        return f"p50 {p50:.1f}  p99 {p99:.1f}  worst {max(seconds) * 1000:.1f}  (n {len(seconds)})"

    medians = block_medians(report.costs)
    a_thousand = 1000 / SAMPLE / 1e3  # bytes a sample to kB a thousand writes
    lines = [
        f"writes                  {writes} in {report.seconds:.1f} s; "
        f"{report.moments} moments held, {report.merged} merged",
        f"bytes, most ever        {report.most} of {report.budget} "
        f"({report.most / report.budget:.1%})",
        f"write, CPU ms           median {np.median(report.costs) * 1000:.3f}  "
        f"mean {report.costs.mean() * 1000:.3f}  worst {report.costs.max() * 1000:.1f}",
        f"encode, CPU ms          median {np.median(report.encoding) * 1000:.3f}",
        "medians of thousands    " + " ".join(f"{m * 1000:.2f}" for m in medians),
    ]
    if len(medians) > 2:  # else the last is the second
        lines.append(f"last/second thousand: {last_to_second(medians):.2f}")
        same = last_to_second(block_medians(report.encoding))
        lines.append(f"  of encoding alone, always the same work, so the machine's own: {same:.2f}")
    lines += [
        f"{'':24}{'start':>8}  {'quarter':>8}  {'half':>8}  {'end':>8}  {'most':>8}",
        f"resident, MB            {points(report.resident, 1e6, 1)}",
        f"  not of files, MB      {points(report.anonymous, 1e6, 1)}",
        f"on disk, MB             {points(report.disk, 1e6, 2)}",
        f"open files              {points(report.files, 1, 0)}",
        f"threads                 {points(report.threads, 1, 0)}",
        f"resident, second half   {slope(report.resident) * a_thousand:+.1f} kB a thousand writes; "
        f"not of files {slope(report.anonymous) * a_thousand:+.1f}",
    ]
    if report.busy:
        lines += [
            f"ask, writing, ms        {latency(report.busy)}",
            f"ask, idle, ms           {latency(report.idle)}",
        ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", nargs="?", type=Path, default=GALLERY, metavar="CLIP")
    parser.add_argument("--writes", type=int, default=20_000)
    parser.add_argument("--budget", default="8MB")
    parser.add_argument("--fps", type=float, default=4.0, help="frames taken of the clip, a second")
    parser.add_argument("--asks", type=int, default=400, help="questions, writing and idle")
    parser.add_argument(
        "--noise", type=float, default=0.05, help="on tokens, share of their spread"
    )
    parser.add_argument("--encode", action="store_true", help="really encode every frame")
    parser.add_argument("--store", type=Path, help="folder for the memory; default: temporary")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        if options.writes < 2 or options.asks < 0:
            raise UsageError("--writes must be at least 2, --asks at least 0")
        if not Path("/proc/self/status").exists():
            raise UsageError("this reads /proc; run it on Linux")
        Budget.parse(options.budget)  # a wrong one is refused before anything is encoded
        images = read_loop(options.clip, options.fps)
        encoder = LoopEncoder(noise=options.noise, really=options.encode, writes=options.writes)
        encoder.learn(images)
        with tempfile.TemporaryDirectory(prefix="vismem-soak-", dir=options.store) as directory:
            report = soak(
                images,
                encoder,
                Path(directory) / "soak.mem",
                budget=options.budget,
                fps=options.fps,
                asks=options.asks,
            )
    except (OSError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    except VismemError as error:
        parser.exit(error.exit_code, f"{error}\n")
    print(f"{options.clip.name}: a loop of {len(images)} frames, {options.fps:g} a second")
    print(table(report))


if __name__ == "__main__":
    main()
