"""Kill the writer of a KV memory again and again: `python benchmarks/kv_crash.py [--kills 100]`.

A child process writes frames into a `DurableKV` and says through a pipe what was acknowledged; it
is killed with SIGKILL at a random moment, and the memory is opened again. Whatever was acknowledged
has to be there, once, and questions must give the same rows and the same keys and values, bit for
bit, as a memory that got the same frames and was never killed. Budgets are tight, so that segments
are sealed, mapped and given up all the while. ``kill -9`` does not test power loss: the page cache
survives it.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from crash import said_before_kill
from kv_soak import CONFIG, FPS, TOKENS, ask, frame, prompt
from torch import Tensor

from vismem.errors import VismemError
from vismem.kv_store import DurableKV
from vismem.store import verify

BUDGET, DISK, LOG = "3MB", "4MB", 60_000  # a seal about every six frames
IDENTITY = {"model": "made up"}


@dataclass
class Kill:
    """What one kill cost.

    Args:
        acknowledged: Frames that the writer had heard were safe.
        found: Frames that the memory had seen when it was opened again.
        lost: Acknowledged frames that are not there.
        twice: Frames of which there are more tokens than were written.
        different: Answers that are not those of the memory that was never killed.
        seconds: How long opening took.
    """

    acknowledged: int
    found: int
    lost: int
    twice: int
    different: int
    seconds: float


def answers(memory: DurableKV) -> list[list[Tensor]]:
    """Rows, keys and values of three questions, and everything in the window."""
    snapshot = memory.snapshot()
    found = []
    for number in (0, 333, 4_444):
        rows, pairs, *_ = ask(snapshot, number)
        found.append([*rows, *pairs])
    return [*found, [snapshot.sinks, *(chunk.kv for chunk in snapshot.window)]]


def count_different(one: Sequence[Sequence[Tensor]], other: Sequence[Sequence[Tensor]]) -> int:
    """How many answers are not the same, bit for bit."""
    return sum(
        len(a) != len(b) or not all(map(torch.equal, a, b)) for a, b in zip(one, other, strict=True)
    )


def write_frames(path: Path, pipe: int, frames: int) -> None:
    """The child: go on where the memory is, and say what is safe."""
    with DurableKV.open(path, CONFIG, identity=IDENTITY) as memory:
        os.write(pipe, b"\0" * 8)  # open; from now on it may die
        for number in range(seen(memory), frames):
            memory.write_kv(frame(number), number / FPS)
            os.write(pipe, (number + 1).to_bytes(8, "little"))


def seen(memory: DurableKV) -> int:
    """Frames that a memory has seen."""
    return (memory.memory.seen - prompt().shape[3]) // TOKENS


def kill(path: Path, other: DurableKV, after: float, frames: int, known: int) -> Kill:
    """Let a child write, kill it some time after it has opened the memory, and compare.

    Args:
        path: The memory.
        other: One that is never killed; it is brought to where this one is.
        after: Seconds.
        frames: The last frame that is written.
        known: Frames that were acknowledged before.
    """
    said = said_before_kill(lambda pipe: write_frames(path, pipe, frames), after)
    acknowledged = max(known, int.from_bytes(said[-8:], "little"))
    began = time.perf_counter()
    with DurableKV.open(path, CONFIG, identity=IDENTITY) as memory:
        seconds = time.perf_counter() - began
        found = seen(memory)
        for number in range(seen(other), found):
            other.write_kv(frame(number), number / FPS)
        if other.logged and not memory.logged:
            other.seal()  # as this one did for a write that it did not live to log
        sources = memory.read().sources
        newest = sources.unique()
        different = count_different(answers(memory), answers(other))
        different += [b.number for b in memory.blocks] != [b.number for b in other.blocks]
    if problems := verify(path).problems:
        raise VismemError(f"left behind: {problems}")
    held = newest[-1] - newest[0] + 1 - len(newest) if len(newest) else 0  # gaps
    twice = int((sources.bincount() > TOKENS).sum())
    return Kill(
        acknowledged, found, max(0, acknowledged - found) + int(held), twice, different, seconds
    )


def kills(directory: Path, count: int, filled: int, frames: int, seed: int) -> list[Kill]:
    """Kill the writers of one memory, one after the other.

    Args:
        directory: Where it lives.
        count: How many.
        filled: Frames that are there before the first.
        frames: The last that is written.
        seed: Of the moments.
    """
    path, dice = directory / "killed.kv", random.Random(seed)
    sizes = {"budget": BUDGET, "disk": DISK, "log": LOG, "identity": IDENTITY}
    with (
        DurableKV(path, CONFIG, **sizes) as memory,
        DurableKV(directory / "spared.kv", CONFIG, **sizes) as other,
    ):
        for each in (memory, other):
            each.start(prompt())
            for number in range(min(filled, frames)):
                each.write_kv(frame(number), number / FPS)
        memory.close()
        results: list[Kill] = []
        for _ in range(count):
            known = results[-1].acknowledged if results else 0
            results.append(kill(path, other, dice.uniform(0.0, 0.2), frames, known))
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--filled", type=int, default=600, help="frames before the first kill")
    parser.add_argument("--frames", type=int, default=100_000, help="the last that is written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, help="on the medium to test; default: temporary")
    options = parser.parse_args(arguments)
    if options.kills < 1 or options.frames < 1:
        parser.exit(2, "--kills and --frames are at least 1\n")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vismem-kv-", dir=options.store) as directory:
        results = kills(
            Path(directory), options.kills, options.filled, options.frames, options.seed
        )
    lost, twice, different = (
        sum(getattr(result, name) for result in results) for name in ("lost", "twice", "different")
    )
    times = [result.seconds for result in results]
    print(
        f"kill -9   {len(results)} kills, {results[-1].acknowledged} frames acknowledged, "
        f"{lost} lost, {twice} twice, {different} answers different; "
        f"reopen median {statistics.median(times):.3f} s, worst {max(times):.3f} s"
    )
    if lost or twice or different:
        parser.exit(1)


if __name__ == "__main__":
    main()
