"""Ask whether a bounded memory still holds what it saw, by age: `python benchmarks/retention.py`.

Long streams of natural pictures (`streams.py`) with planted events, short appearances of a scene
that occurs nowhere else, go through every memory at equal bytes; at the end each event is looked
for. An entry of a memory counts for an event if, compared at the entry's own resolution, its
nearest view among all scenes of the stream, shown or not, is one of the event's, and nearer than
half of the way from the event to its nearest other scene. Sizes are bytes of so many float16
tokens: ours pay times, weights, embeddings and cached costs from them, the baselines
(`baselines.py`) a time an entry, the published banks nothing but tokens; what their code keeps
beside those has a column of its own.

Columns: share of events kept, by age (the event's last frame to the end of the stream); of all,
with its 95 % interval (Wilson); `time`: kept with a true time, which published banks that keep no
times cannot; `found`: an entry of it is among the three best answers to its picture, within a
quarter of the tokens (ours by embedding, the others by mean token); `cells`: median tokens of the
finest entry of a kept event, of 16: what is left of the picture; `wrong`: kept, according to
a memory of another seed that saw the same backgrounds and none of these events; `scenes` shown and
`slots` that the memory had for the past; kB held and beside; milliseconds of processor time per
write.
Baselines show the resolution that keeps most. `shuffled` is the patrol in another order.

The slow published banks run at the smaller sizes only. On one idle core `--quick` takes about a
minute, the default a quarter of an hour, `--full` (longer streams, more seeds and sizes) hours.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from banks import OURS, PUBLISHED, VARIANTS
from baselines import BASELINES, AllFrames, Entry, Policy, pool
from calibrate import OPENCV_DOC
from curves import Style, draw
from scenes import SIDE, Studio, library
from streams import AGES, EVENT_STEP, KINDS, Casting, Event, Stream, age_bin
from torch import Tensor

from vismem.encoders.embedded import EmbeddedEncoder

FEW = 3  # answers that are looked at
CLAIM = 0.95
OLD = 600.0  # seconds; beyond it an age is old
UNBOUNDED = "all frames"
AGE_NAMES = tuple(name for _, name in AGES)


@dataclass(frozen=True)
class Settings:
    """How much is run."""

    seeds: int = 3
    sizes: tuple[int, ...] = (256, 1024, 4096)
    published_sizes: tuple[int, ...] = (256,)
    kinds: tuple[str, ...] = KINDS
    views: int = 8
    scenes: int = 200
    background: int = 36
    events: int = 40
    period: float = 3.0
    day_period: float = 30.0


QUICK = Settings(
    seeds=2, sizes=(256,), published_sizes=(256,), views=4, scenes=40, background=12, events=13,
    period=6.0, day_period=150.0,
)  # fmt: skip
FULL = Settings(
    seeds=5, sizes=(256, 1024, 4096, 8192), published_sizes=(256, 1024), events=30,
    period=1.0, day_period=5.0,
)  # fmt: skip


# ---------------------------------------------------------------------------- the measure


class Judge:
    """Says which event of a stream an entry shows, if any.

    Args:
        stream: The stream.
    """

    def __init__(self, stream: Stream):
        self.stream = stream
        self._views: dict[int, tuple[Tensor, Tensor]] = {}

    def views(self, side: int) -> tuple[Tensor, Tensor]:
        """At a resolution: all views ``(S * V, n * D)``, and half the way to others ``(S,)``."""
        if side not in self._views:
            references = self.stream.references
            scenes, views = references.shape[:2]
            flat = pool(references, side).flatten(2).flatten(0, 1)
            reach = torch.full((scenes,), torch.nan)
            for event in self.stream.events:
                own = slice(event.scene * views, (event.scene + 1) * views)
                distances = torch.cdist(flat[own], flat)
                distances[:, own] = torch.inf
                reach[event.scene] = distances.min() / 2
            self._views[side] = flat, reach
        return self._views[side]

    def scenes(self, entries: Sequence[Entry]) -> np.ndarray:
        """The event's scene that each entry counts for, ``(M,)``; -1 where there is none."""
        shown = np.full(len(entries), -1)
        sides = np.array([math.isqrt(len(entry.tokens)) for entry in entries])
        for side in np.unique(sides).tolist():
            rows = np.flatnonzero(sides == side)
            if any(len(entries[row].tokens) != side * side for row in rows):
                raise ValueError("an entry is no square grid of tokens")
            flat, reach = self.views(side)
            held = torch.stack([entries[row].tokens.flatten() for row in rows]).float()
            distances = torch.cdist(held, flat, compute_mode="use_mm_for_euclid_dist")
            nearest, view = distances.min(1)
            scene = view // self.stream.references.shape[1]
            counts = nearest < reach[scene]  # never where the scene is no event's
            shown[rows] = torch.where(counts, scene, -1).numpy()
        return shown


@dataclass(frozen=True)
class Result:
    """What one memory did with one event.

    Args:
        age: In seconds.
        kept: Whether an entry shows it.
        cells: Tokens of the finest that does; 0 if none.
        timed: Whether one does at a true time.
        found: Whether a query gives one.
        wrong: Whether another seed's memory seems to hold it.
    """

    age: float
    kept: bool
    cells: int
    timed: bool
    found: bool
    wrong: bool


@dataclass(frozen=True)
class Row:
    """All events of all seeds of one kind of stream, by one policy at one size.

    Args:
        stream: Kind of stream.
        size: Tokens.
        policy: Its name.
        results: One an event and seed, in the same order for all policies.
        frames: The most frames that a seed had.
        scenes: The most scenes that a seed showed.
        visits: How often it went from one to the next.
        slots: The fewest entries that a seed's memory had room for.
        nbytes: The most that was held.
        beside: The most that was held beside it.
        milliseconds: Processor time of a write.
    """

    stream: str
    size: int
    policy: str
    results: tuple[Result, ...]
    frames: int
    scenes: int
    visits: int
    slots: int
    nbytes: int
    beside: int
    milliseconds: float

    def kept(self, name: str | None = None) -> list[bool]:
        """Whether each event is kept; those of an age alone, if given."""
        return [r.kept for r in self.results if name is None or age_bin(r.age) == name]


def is_timed(entries: Sequence[Entry], scenes: np.ndarray, event: Event) -> bool:
    """Whether an entry that shows an event says when it was seen."""
    times = np.array([entries[n].time for n in np.flatnonzero(scenes == event.scene)])
    return bool((np.abs(times[:, None] - event.times) <= EVENT_STEP / 2 + 1e-6).any())


def measure(judges: Sequence[Judge], name: str, size: int, make: Callable[[int], Policy]) -> Row:
    """Put every seed's stream through a memory of its own, and look for its events."""
    policies, spent, frames = [], 0.0, 0
    for seed, judge in enumerate(judges):
        policy, stream = make(seed), judge.stream
        begun = time.process_time()
        for tokens, when, embedding in zip(
            stream.tokens, stream.times.tolist(), stream.embeddings, strict=True
        ):
            policy.write(tokens, when, embedding)
        spent += time.process_time() - begun
        frames += len(stream.times)
        policies.append(policy)
    results = []
    for seed, judge in enumerate(judges):
        stream = judge.stream
        entries = policies[seed].entries()
        shown = judge.scenes(entries)
        strange = judge.scenes(policies[(seed + 1) % len(policies)].entries())
        cast = [event.scene for event in stream.events]
        answers = policies[seed].find(stream.references[cast, 0], stream.queries[cast], size // 4)
        few = [entry for answer in answers for entry in answer[:FEW]]
        asked = np.repeat(cast, [len(answer[:FEW]) for answer in answers])
        found = set(asked[judge.scenes(few) == asked].tolist())
        for event in stream.events:
            rows = np.flatnonzero(shown == event.scene)
            results.append(
                Result(
                    stream.age(event),
                    len(rows) > 0,
                    max((len(entries[row].tokens) for row in rows), default=0),
                    is_timed(entries, shown, event),
                    event.scene in found,
                    bool((strange == event.scene).any()),
                )
            )
    return Row(
        judges[0].stream.name,
        size,
        name,
        tuple(results),
        max(len(judge.stream.times) for judge in judges),
        max(judge.stream.scenes for judge in judges),
        max(int((np.diff(judge.stream.shown) != 0).sum()) + 1 for judge in judges),
        min(policy.slots for policy in policies),
        max(policy.nbytes for policy in policies),
        max(policy.beside for policy in policies),
        1000 * spent / frames,
    )


Entrants = dict[str, Callable[[int], Policy]]  # name: seed to a memory


def entrants(settings: Settings, size: int, width: int, embedding: int) -> list[Entrants]:
    """Who runs at a size; of those that come together only the best is shown."""
    banks = OURS | VARIANTS | (PUBLISHED if size in settings.published_sizes else {})
    alone: list[Entrants] = [
        {name: partial(make, size, width, embedding)} for name, make in banks.items()
    ]
    budget = size * width * 2
    sides = (SIDE, SIDE // 2, 1)
    return alone + [
        {f"{name} {side}x{side}": partial(policy, budget, side, width) for side in sides}
        for name, policy in BASELINES.items()
    ]


def run(settings: Settings, casting: Casting, noise: float) -> Iterator[Row]:
    """Measure everything, stream by stream."""
    for kind in settings.kinds:
        judges = [Judge(casting.stream(kind, seed, noise)) for seed in range(settings.seeds)]
        stream = judges[0].stream
        width, embedding = stream.tokens.shape[-1], stream.embeddings.shape[-1]
        yield measure(judges, UNBOUNDED, 2**40, partial(AllFrames, 0, SIDE, width))
        for size in settings.sizes:
            for together in entrants(settings, size, width, embedding):
                found = [measure(judges, name, size, make) for name, make in together.items()]
                yield max(found, key=lambda row: sum(row.kept()))


# ---------------------------------------------------------------------------- the report


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    if total == 0:
        return 0.0, 1.0
    z, share = 1.96, count / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total**2))
    half /= 1 + z * z / total
    return max(0.0, middle - half), min(1.0, middle + half)


def percent(shares: Sequence[bool]) -> str:
    """A share in per cent; a dash of nothing."""
    return f"{100 * sum(shares) / len(shares):.0f}" if shares else "-"


HEADER = (
    f"{'tokens':>6}  {'policy':20}"
    + "".join(f"{name:>10}" for name in AGE_NAMES)
    + f"{'all [95 %]':>16}{'time':>6}{'found':>6}{'cells':>6}{'wrong':>6}{'scenes':>7}{'slots':>7}"
    + f"{'kB':>7}{'beside':>8}{'ms':>8}"
)


def line(row: Row) -> str:
    """A row of the table."""
    kept = row.kept()
    low, high = wilson(sum(kept), len(kept))
    interval = f"{percent(kept)} [{100 * low:.0f}, {100 * high:.0f}]"
    cells = [result.cells for result in row.results if result.kept]
    others = (
        [r.timed for r in row.results],
        [r.found for r in row.results],
        [r.wrong for r in row.results],
    )
    timed, found, wrong = map(percent, others)
    unbounded = row.policy == UNBOUNDED
    return (
        f"{'' if unbounded else row.size:>6}  {row.policy:20}"
        + "".join(f"{percent(row.kept(name)):>10}" for name in AGE_NAMES)
        + f"{interval:>16}{timed:>6}{found:>6}{np.median(cells) if cells else 0:>6.0f}{wrong:>6}"
        + f"{row.scenes:>7}{'-' if unbounded else row.slots:>7}"
        + f"{row.nbytes / 1000:>7.0f}{row.beside / 1000:>8.0f}{row.milliseconds:>8.2f}"
    )


def claim_kept(rows: Sequence[Row]) -> Iterator[str]:
    """Whether ours keep what they should, wherever they have a slot for each scene, or visit."""
    for name in OURS:
        for what in ("scene", "visit"):
            allowed = [
                row
                for row in rows
                if row.policy == name
                and (row.scenes if what == "scene" else row.visits) <= row.slots
            ]
            parts, holds = [], bool(allowed)
            for age in AGE_NAMES:
                kept = [held for row in allowed for held in row.kept(age)]
                if kept:
                    low, _ = wilson(sum(kept), len(kept))
                    parts.append(f"{age} {sum(kept)}/{len(kept)} (>= {100 * low:.0f} %)")
                    holds &= sum(kept) >= CLAIM * len(kept)
            verdict = "holds" if holds else "DOES NOT HOLD" if allowed else "cannot be tested"
            yield f"{name}, a slot for each {what}: {verdict} in {len(allowed)} rows; " + (
                ", ".join(parts) or "none allows it"
            )


def difference(ours: Row, other: Row) -> tuple[float, float, float]:
    """How much more is kept of old events, and its 95 % interval (bootstrap over events)."""
    pairs = zip(ours.results, other.results, strict=True)
    gain = np.array([int(a.kept) - int(b.kept) for a, b in pairs if a.age > OLD], float)
    draws = np.random.default_rng(0).integers(0, len(gain), (4000, len(gain)))
    low, high = np.quantile(gain[draws].mean(1), (0.025, 0.975))
    return float(gain.mean()), float(low), float(high)


def claim_better(rows: Sequence[Row]) -> Iterator[str]:
    """Ours against the best of all others at equal bytes, on events older than ten minutes."""
    mine = {*OURS, *VARIANTS, UNBOUNDED}
    for stream in dict.fromkeys(row.stream for row in rows):
        for name in OURS:
            parts = []
            for ours in (r for r in rows if r.policy == name and r.stream == stream):
                others = [
                    r
                    for r in rows
                    if (r.stream, r.size) == (stream, ours.size) and r.policy not in mine
                ]
                best = max(others, key=lambda row: sum(r.kept for r in row.results if r.age > OLD))
                gain, low, high = (100 * share for share in difference(ours, best))
                verdict = "better" if low > 0 else "worse" if high < 0 else "equal"
                parts.append(
                    f"{ours.size} {verdict} {gain:+.0f} [{low:+.0f}, {high:+.0f}] ({best.policy})"
                )
            yield f"{stream}, {name}: {'; '.join(parts)}"


# Told apart by the colour-blind (Okabe and Ito); what is published is dashed like what it became.
STYLES = {
    "flash": Style("#0072b2", 2.2),
    "star": Style("#009e73", 4.5),
    "pyramid": Style("#d55e00", 2.2),
    "adjacent merge": Style("#e3afcb", 7.0),
    "published flash": Style("#0072b2", 1.2, "5 3"),
    "published star": Style("#009e73", 1.2, "5 3"),
    "published pyramid": Style("#d55e00", 1.2, "5 3"),
    "reservoir": Style("#e69f00"),
    "uniform": Style("#999999"),
    "fifo": Style("#000000"),
}


def chart(rows: Sequence[Row]) -> str:
    """Kept by age, a panel for each stream, at the size at which room is scarcest."""
    size = min(row.size for row in rows)
    panels: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        # A baseline's name goes on with its resolution.
        names = (n for n in STYLES if row.policy == n or row.policy.startswith(n + " "))
        name = next(names, None)
        if name is None or row.policy in VARIANTS or row.size != size:
            continue
        values = [float(np.mean(kept)) if (kept := row.kept(a)) else math.nan for a in AGE_NAMES]
        panels.setdefault(row.stream, {})[name] = values
    title = f"Share of planted events still held, by age; each memory has {size} tokens' bytes"
    return draw(panels, AGE_NAMES, title, STYLES)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="under a minute")
    length.add_argument("--full", action="store_true", help="hours")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all rows")
    parser.add_argument(
        "--plot", type=Path, metavar="PATH", nargs="?", const=Path("retention.svg"),
        help="draw what is kept by age (default: retention.svg)",
    )  # fmt: skip
    parser.add_argument("--opencv-doc", type=Path, default=OPENCV_DOC, metavar="FOLDER")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    settings = QUICK if options.quick else FULL if options.full else Settings()
    studio = Studio(EmbeddedEncoder(), settings.views)
    noise = studio.frame_noise()
    scenes = library(studio, settings.scenes, options.opencv_doc)
    order = np.random.default_rng(0).permutation(len(scenes))
    casting = Casting(
        studio, [scenes[n] for n in order], settings.seeds, settings.background, settings.events,
        settings.period, settings.day_period,
    )  # fmt: skip
    print(f"{len(scenes)} scenes of {settings.views} views, frame noise {noise:.2f}")
    rows: list[Row] = []
    for row in run(settings, casting, noise):
        if not rows or rows[-1].stream != row.stream:
            print(f"\n{row.stream}: {row.frames} frames, {row.visits} visits; kept, %\n{HEADER}")
        print(line(row), flush=True)
        rows.append(row)
    print(f"\nat least {CLAIM:.0%} kept at every age where the budget allows")
    print("\n".join(f"  {text}" for text in claim_kept(rows)))
    print("\nolder than ten minutes, against the best other at equal bytes, points [95 %]")
    print("\n".join(f"  {text}" for text in claim_better(rows)))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")
    if options.plot:
        options.plot.write_text(chart(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
