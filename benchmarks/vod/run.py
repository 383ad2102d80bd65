"""DigitVOD: does a memory make a video object detector better? `python benchmarks/vod/run.py`.

The detector is small, trained once (`train.py`) and frozen; heads are trained here. Test videos,
digits and photographs are none of training's. Everything is compared on the same boxes.

Columns: AP50 with the interval that holds 95 % of resampled videos and training seeds; by speed of
the objects (FGFA's thresholds; false positives count in each, so they lie below "all"); AP50:95;
share of found objects named rightly, clean and degraded; kB that the memory of one video holds;
milliseconds of processor time per frame of one video, the detector's apart; and whether the first
half of a video is answered the same whatever follows, as measured.

What has to hold was fixed before the first run, see `CRITERIA`; the last lines say what does.
`--quick` takes under ten minutes on two cores; `--full` is the table of `benchmarks/README.md`.
It ranks mechanisms on made videos with a small detector; it predicts no other data set.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from arms import BOTH, CONTROLS, DURABLE, ROWS, SINGLE, SWEEP, TRACK, WRONG, Arm, Outcome, slots
from detector import Detector, Found, find, load_detector
from evaluate import SPEEDS, Judge, interval, match, resampled, resamples
from generate import CHUNK, SCENARIOS, Videos, generate, stream
from heads import Head, train_head, truth_of
from torch import Tensor

CLIP_SEED, TEST_SEED, FRAMES = 7_000, 9_000, 12
COLUMNS = [column.name for column in fields(Found)]
SHUFFLED = ", shuffled"
GAIN = 8.0  # AP50 that ours with tracks has to win over a single frame


@dataclass(frozen=True)
class Settings:
    """How much is run."""

    clips: int = 2000
    videos: int = 150
    frames: int = 24
    steps: int = 1000
    seeds: int = 3
    resamples: int = 300
    tracks: tuple[str, ...] = (
        "plain" + SHUFFLED, "low rate", "low rate" + SHUFFLED, "returning", "crossing",
        "camera trap", "ambiguous",
    )  # fmt: skip


QUICK = Settings(clips=800, videos=48, steps=600, seeds=2, resamples=200)


@dataclass
class Result:
    """One row of a table; AP and shares in percent."""

    track: str
    arm: str
    ap50: float
    interval: tuple[float, float]
    speeds: dict[str, float]
    ap: float
    clean: float
    degraded: float
    kilobytes: float
    resampled: np.ndarray = field(repr=False)
    milliseconds: float = float("nan")
    causal: bool | None = None

    def row(self) -> str:
        """A line of the table."""
        low, high = self.interval
        speeds = " | ".join(f"{self.speeds[name]:.1f}" for name in SPEEDS)
        return (
            f"| {self.arm} | {self.ap50:.1f} ({low:.1f} to {high:.1f}) | {speeds} | {self.ap:.1f} "
            f"| {self.clean:.1f} | {self.degraded:.1f} | {self.kilobytes:.1f} "
            f"| {self.milliseconds:.2f} | {CAUSAL[self.causal]} |"
        )


CAUSAL = {True: "yes", False: "no", None: "-"}
HEADER = (
    f"| arm | AP50 | {' | '.join(SPEEDS)} | AP50:95 | clean | degraded | kB | ms | causal |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def is_causal(arm: Arm, found: Found, heads: Sequence[Head]) -> bool:
    """Whether an arm says the same of the first half of a video whatever comes afterwards."""
    half = found.times.shape[1] // 2
    other = Found(
        *(v.clone() for v in (found.tokens, found.boxes, found.objectness, found.logits)),
        found.times,
    )
    for values in (other.tokens, other.boxes, other.objectness, other.logits):
        values[:, half:] = values[:, half:].roll(1, 0)
    before, after = (arm.run(given, heads).probabilities for given in (found, other))
    return all(
        torch.equal(one[:, :half], two[:, :half]) for one, two in zip(before, after, strict=True)
    )


def milliseconds(arm: Arm, found: Found, heads: Sequence[Head]) -> float:
    """Processor time per frame of a single video, the median of three."""
    costs = []
    for video in range(3):
        began = time.process_time()
        arm.run(found[video : video + 1], heads)
        costs.append((time.process_time() - began) / found.times.shape[1])
    return 1e3 * statistics.median(costs)


def score(track: str, name: str, outcome: Outcome, judge: Judge, weights: np.ndarray) -> Result:
    """Score what an arm said; figures are means over training seeds."""
    said = outcome.probabilities
    matched = [match(judge.found, judge.videos, values) for values in said]
    drawn = 100 * resampled(matched, weights)
    ap50, ap = np.mean([judge.average_precision(values) for values in said], 0).tolist()
    clean, degraded = np.mean([judge.accuracy(values) for values in said], 0).tolist()
    speeds = {
        name: float(np.mean([judge.average_precision(values, name)[0] for values in said]))
        for name in SPEEDS
    }
    nbytes = outcome.nbytes / 1e3
    return Result(track, name, ap50, interval(drawn), speeds, ap, clean, degraded, nbytes, drawn)


def training_clips(count: int, detector: Detector) -> tuple[Found, Tensor]:
    """What the detector found in clips of the training split, and the classes it should be."""
    parts = []
    for videos in stream("train", CLIP_SEED, CHUNK, FRAMES):
        found = find(detector, videos)
        parts.append((found, truth_of(found, videos)))
        if len(parts) * CHUNK >= count:
            break
    columns = (torch.cat([getattr(f, name) for f, _ in parts])[:count] for name in COLUMNS)
    return Found(*columns), torch.cat([truth for _, truth in parts])[:count]


def test_set(track: str, settings: Settings, detector: Detector) -> tuple[Videos, Found]:
    """The videos of a track and what the detector found in them."""
    name = track.removesuffix(SHUFFLED)
    seed = TEST_SEED + list(SCENARIOS).index(name)
    videos = generate(SCENARIOS[name], settings.videos, settings.frames, "test", seed)
    found = find(detector, videos)
    if track == name:
        return videos, found
    draw = torch.Generator().manual_seed(seed)
    order = torch.rand(found.times.shape, generator=draw).argsort(1)
    return videos.reordered(order), found.reordered(order)


# ---------------------------------------------------------------------------- what has to hold


def paired(results: dict[str, Result], one: str, other: str) -> tuple[float, float, float]:
    """Difference of two arms in AP50 and its 95 % interval, both in the same resamples."""
    apart = results[one].resampled - results[other].resampled
    return (results[one].ap50 - results[other].ap50, *interval(apart))


CRITERIA = (
    # claim, one arm, other arm, least difference, whether the interval has to lie above it too
    ("ours + track beats the track mean", BOTH, TRACK, 0.0, True),
    (f"ours + track beats a single frame by {GAIN:.0f}", BOTH, SINGLE, GAIN, False),
    ("another video's memory is worse than none", SINGLE, WRONG, 0.0, True),
    ("by score beats at random, 16 rows", slots("score", 16), slots("random", 16), 0.0, True),
    (
        "by score beats the oldest out, 16 rows",
        slots("score", 16),
        slots("fifo", 16),
        0.0,
        True,
    ),
)


def verdicts(results: dict[str, Result]) -> list[str]:
    """Which of the criteria hold."""
    lines = []
    for claim, one, other, least, surely in CRITERIA:
        apart, low, high = paired(results, one, other)
        holds = apart >= least and (low > least or not surely)
        said = "holds" if holds else "DOES NOT HOLD"
        lines.append(f"* {claim}: {said}, {apart:+.1f} ({low:+.1f} to {high:+.1f})")
    return lines


def table(
    track: str,
    arms: Sequence[Arm],
    heads: dict[str, list[Head]],
    settings: Settings,
    detector: Detector,
) -> dict[str, Result]:
    """Print the table of a track, row by row."""
    videos, found = test_set(track, settings, detector)
    judge = Judge(videos, found)
    weights = resamples(settings.videos, settings.resamples)
    seen = int(videos.visible.sum())
    print(f"\n## {track}: {settings.videos} videos, {seen} boxes\n\n{HEADER}", flush=True)
    results = {}
    few = found[:4]
    for arm in arms:
        mine = heads.get(arm.head, [])
        result = score(track, arm.name, arm.run(found, mine), judge, weights)
        result.milliseconds = milliseconds(arm, few, mine[:1])
        result.causal = is_causal(arm, few, mine[:1])
        results[arm.name] = result
        print(result.row(), flush=True)
    known = score(track, "oracle class", Outcome([judge.oracle()]), judge, weights)
    print(known.row(), flush=True)
    return results | {known.arm: known}


def run(settings: Settings, detector: Detector) -> list[Result]:
    """Train the heads and print all tables."""
    began = time.perf_counter()
    found, truth = training_clips(settings.clips, detector)
    print(f"{settings.clips} clips: {time.perf_counter() - began:.0f} s", flush=True)
    kinds = {arm.head for arm in DURABLE + CONTROLS + SWEEP} - {""}
    heads = {}
    for kind in sorted(kinds):
        heads[kind] = [
            train_head(kind, detector, found, truth, settings.steps, seed)
            for seed in range(settings.seeds)
        ]
        print(f"trained {kind!r}: {time.perf_counter() - began:.0f} s", flush=True)
    results = table("plain", DURABLE + CONTROLS + SWEEP, heads, settings, detector)
    lines = verdicts(results)
    every = list(results.values())
    for track in settings.tracks:
        every += table(track, DURABLE, heads, settings, detector).values()
    print("\n## What had to hold, and what does\n")
    print("\n".join(lines), flush=True)
    print(f"\n{settings}, {ROWS} rows, {time.perf_counter() - began:.0f} s")
    return every


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="under ten minutes")
    size.add_argument("--full", action="store_true", help="the default")
    parser.add_argument("--json", type=Path, help="where all figures go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = run(QUICK if options.quick else Settings(), load_detector())
    if options.json:
        rows = [{k: v for k, v in asdict(r).items() if k != "resampled"} for r in results]
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
