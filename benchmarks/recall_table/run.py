"""RecallTable: what must be remembered to answer, and which memory still holds it.

    MUJOCO_GL=osmesa python benchmarks/recall_table/run.py --quick      # two cores, no GPU
    python benchmarks/recall_table/run.py --full --out recall.json     # uses cuda if there

Eight families of tasks on a simulated table (`tasks.py`), none of which one picture answers; seven
policies of `SpatialMemory` at equal bytes (`policies.py`) under one reader a family that learned
from all of their banks alike, a GRU over all frames as that reader sees them, and the reader over
all frames, which no budget allows. The oracle map, the simulator's state, is always right.

Columns: share of right answers with 32 frames of delay and its 95 % interval (Wilson), and from
seed to seed; with the memory of another episode (`foreign`), which must bring a memory that is used
to chance, and with a blank one (`zero`); at each delay; `5 cm`: the place is that near;
`stale`: what was true before is answered, where something changed; `cue`: the cue is still held;
bytes; writes a second and milliseconds a question (one thread). Chance, the most frequent answer
and the best constant place are floors. A family on which a floor without memory (those, the last
frame, the window of a FIFO that the delay has emptied) beats chance by more than 3 points, and by
more than luck, is rejected.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import numpy as np
import torch
from episodes import DELAYS, Data, Episode, generate, twin
from gantry import Gantry, act
from policies import ALL_FRAMES, GRU, OURS, POLICIES, Banks
from report import SAW, SHOWN, Cell, Key, report
from tasks import FAMILIES
from train import Effort, Frames, ask, ask_gru, train_gru, train_reader

from vismem.heads.act import Target

__all__ = ["Settings", "floors", "main", "run_family"]

TEST_SEED = 1_000_000
NEAR = 0.05  # metres


@dataclass(frozen=True)
class Settings:
    """How much is run."""

    seeds: int
    others: int  # seeds of the families beside `SAW`
    effort: Effort
    test: dict[int, int]  # episodes at each delay
    test_others: dict[int, int]
    acts: int = 40
    ceiling: int = 60  # episodes whose frames are all read, at each delay
    clip: int = 1200


QUICK = Settings(
    3, 1, Effort(episodes=640, epochs=12, gru_epochs=8),
    {0: 160, 8: 160, 32: 240, 128: 100, 512: 20}, {32: 240, 128: 60},
)  # fmt: skip
FULL = Settings(
    3, 3, Effort(episodes=4000, epochs=20, gru_epochs=20), dict.fromkeys(DELAYS, 1000),
    dict.fromkeys(DELAYS, 1000), acts=200, ceiling=400, clip=4000,
)  # fmt: skip


def floors(data: Data, numbers: Iterable[int]) -> dict[str, float]:
    """What is right without a look: chance, the most frequent answer, the best constant place."""
    episodes: list[Episode] = [data.episodes[i] for i in numbers]
    answers = np.bincount([e.content.answer for e in episodes], minlength=data.family.answers)
    places = np.stack([e.xyz for e in episodes])
    guesses = np.concatenate([np.unique(places, axis=0), np.nanmean(places, axis=0)[None]])
    near = np.linalg.norm(places[None] - guesses[:, None], axis=2) <= NEAR
    return {
        "chance": 1 / data.family.answers,
        "majority": float(answers.max() / len(episodes)),
        "constant place": float(near.mean(1).max()),
    }


def run_family(name: str, seed: int, settings: Settings, device: str) -> dict:
    """Generate, train and test one family with one seed of data and training."""
    torch.set_num_threads(1)
    started = time.time()
    family = FAMILIES[name]
    frames, leaks = twin(family, seed)
    if leaks:
        raise RuntimeError(f"{name} leaks: {leaks} of {frames} covered frames tell twins apart")
    sizes = settings.test if name in SAW else settings.test_others
    on = torch.device(device)
    taught = Frames(generate(family, settings.effort.episodes, seed, settings.clip), on)
    reader = train_reader(taught, settings.effort, seed)
    gru = train_gru(taught, reader, settings.effort, seed)
    test = Frames(generate(family, max(sizes.values()), TEST_SEED + seed, settings.clip), on)
    cells: dict[Key, Cell] = {}
    for delay, asked in sizes.items():
        for policy in (*POLICIES, ALL_FRAMES):
            # All frames of a long delay are dear to read, and only a ceiling.
            count = min(asked, settings.ceiling) if policy == ALL_FRAMES else asked
            numbers = np.arange(count)
            banks = test.fill(policy, numbers, np.full(count, delay), seed)
            cell = cells[name, policy, delay] = Cell(
                n=count, cue=round(banks.cue * count), nbytes=banks.nbytes, writes=[banks.writes]
            )
            answer = ask(test, reader, banks.shots, numbers)
            _judge(cell, test, numbers, answer)
            if delay != SHOWN:
                continue
            foreign = ask(test, reader, banks.foreign(seed).shots, numbers)
            cell.foreign = _right(test, numbers, foreign)
            cell.zero = _right(test, numbers, ask(test, reader, banks.shots, numbers, blank=True))
            once, few = time.process_time(), min(10, count)
            for i in range(few):
                ask(test, reader, banks.shots[i : i + 1], numbers[i : i + 1])
            cell.read_ms = [(time.process_time() - once) * 1000 / few]
            if name in SAW and policy in (OURS, "FIFO"):
                _act(cell, test, answer, min(settings.acts, count))
        numbers = np.arange(asked)
        every = test.fill(ALL_FRAMES, numbers, np.full(asked, delay)).shots
        cell = cells[name, GRU, delay] = Cell(n=asked)
        _judge(cell, test, numbers, ask_gru(test, reader, gru, every, numbers))
        if delay == SHOWN:
            wrong = Banks(every, 0.0).foreign(seed).shots
            cell.foreign = _right(test, numbers, ask_gru(test, reader, gru, wrong, numbers))
    return {
        "cells": {"|".join(map(str, key)): asdict(cell) for key, cell in cells.items()},
        "floors": floors(test.data, range(max(sizes.values()))),
        "family": name,
        "seed": seed,
        "twins": frames,
        "seconds": time.time() - started,
    }


def _right(test: Frames, numbers: np.ndarray, answer) -> int:
    return int((answer.logits.argmax(1) == test.answer[numbers]).sum())


def _judge(cell: Cell, test: Frames, numbers: np.ndarray, answer) -> None:
    said = answer.logits.argmax(1).cpu().numpy()
    off = (answer.xyz - test.xyz[numbers]).norm(dim=1).cpu().numpy()
    gone = getattr(test.data.family, "gone", -1)
    for i, guess, error in zip(numbers.tolist(), said.tolist(), off.tolist(), strict=True):
        content = test.data.episodes[i].content
        cell.right += guess == content.answer
        cell.placed += not math.isnan(error)
        cell.near += error <= NEAR
        cell.changed += bool(content.stale)
        cell.stale += guess in content.stale
        cell.gone += content.answer == gone
        cell.said_gone += guess == gone
        cell.both += guess == content.answer == gone
    cell.by_seed = [cell.right / cell.n]


def _act(cell: Cell, test: Frames, answer, count: int) -> None:
    family = test.data.family
    with Gantry(family) as gantry:
        for i in range(count):
            target = Target(tuple(answer.xyz[i].tolist()), float(answer.log_sigma[i].exp()))
            done, refused = act(gantry, family, test.data.episodes[i].content, target)
            cell.acts += 1
            cell.done += done
            cell.refused += bool(refused)


def _job(job: tuple[str, int, Settings, str]) -> dict:
    return run_family(*job)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="under 15 minutes on two idle cores")
    size.add_argument("--full", action="store_true", help="all seeds, delays and 1000 episodes")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, help="JSON of all counts")
    options = parser.parse_args(arguments)
    settings = FULL if options.full else QUICK
    device = "cuda" if options.full and torch.cuda.is_available() else "cpu"
    jobs = [
        (name, seed, settings, device)
        for seed in range(max(settings.seeds, settings.others))
        for name in sorted(options.families, key=lambda name: name not in SAW)
        if seed < (settings.seeds if name in SAW else settings.others)
    ]
    started, results = time.time(), []
    # Spawned: a forked process would share the renderer.
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        for result in pool.imap(_job, jobs):
            results.append(result)
            done = f"{result['family']} seed {result['seed']}: {result['seconds']:.0f} s"
            print(done, file=sys.stderr, flush=True)
            if options.out:
                options.out.write_text(json.dumps(results, indent=1))
    print(report(results))
    print(f"\n{time.time() - started:.0f} s with {options.workers} worker(s) on {device}")


if __name__ == "__main__":
    main()
