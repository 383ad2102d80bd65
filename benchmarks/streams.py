"""Streams of natural pictures with events planted at known ages.

A frame lies between two views of its scene (`scenes.py`), plus the noise that consecutive frames of
a real clip show, so that a stream of any length costs little. The clock is simulated: a camera that
gives a frame every so many seconds, and one every two while an event is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scenes import Scene, Studio, apart, collages, dusk, lit, mounted, paste
from torch import Tensor

AGES = ((60.0, "<1 min"), (600.0, "1-10 min"), (3600.0, "10-60 min"), (21600.0, "1-6 h"))
AGES = (*AGES, (86400.0, "6-24 h"))  # upper end in seconds
# How many of a stream's events fall into each age, of those that it is long enough for.
SHARES = (1, 5, 7, 7, 7)
EVENT_STEP = 2.0  # seconds between frames while an event is seen


@dataclass(frozen=True)
class Event:
    """A short appearance of a scene that occurs nowhere else in its stream.

    Args:
        scene: Number of the scene.
        times: When it was seen, in seconds, sorted.
    """

    scene: int
    times: np.ndarray


@dataclass(frozen=True)
class Stream:
    """Encoded frames, and what they show.

    Args:
        name: Its kind.
        tokens: ``(T, 16, D)`` float16.
        embeddings: ``(T, E)`` float32, unit length.
        times: ``(T,)`` float64 seconds, sorted.
        shown: Scene of every frame, ``(T,)`` int64.
        events: What was planted.
        references: Views of all scenes, shown or not, ``(S, V, 16, D)`` float32.
        queries: Embedding of every scene's first view, ``(S, E)`` float32.
    """

    name: str
    tokens: Tensor
    embeddings: Tensor
    times: np.ndarray
    shown: np.ndarray
    events: tuple[Event, ...]
    references: Tensor
    queries: Tensor

    @property
    def scenes(self) -> int:
        """How many different scenes were shown."""
        return len(np.unique(self.shown))

    def age(self, event: Event) -> float:
        """Seconds from the last sight of an event to the end."""
        return float(self.times[-1] - event.times[-1])


def age_bin(age: float) -> str:
    """Name of the bin that an age in seconds falls into."""
    return next(name for end, name in AGES if age < end)


def plan(seconds: float, count: int, random: np.random.Generator) -> list[np.ndarray]:
    """Frame times of events of 2 to 10 s, spread over the ages that a stream has room for.

    Raises:
        ValueError: If so many events do not fit.
    """
    starts = [0.0, *(end for end, _ in AGES)]
    bins = [b for b in range(len(AGES)) if starts[b] < seconds]
    shares = np.array([SHARES[b] for b in bins], float)
    counts = np.maximum(1, np.floor(shares / shares.sum() * count)).astype(int)
    while counts.sum() > count:
        counts[counts.argmax()] -= 1
    planned: list[tuple[float, float]] = []
    for b, wanted in zip(bins, counts, strict=True):
        low, high = max(4.0, starts[b]), min(starts[b + 1], seconds) * 0.97
        placed = 0
        for _ in range(2000):
            if placed == wanted:
                break
            last = seconds - np.exp(random.uniform(np.log(low), np.log(high)))
            first = last - EVENT_STEP * random.integers(0, 5)
            if first > 0 and all(last + 4 < a or first - 4 > z for a, z in planned):
                planned.append((first, last))
                placed += 1
        else:
            raise ValueError(f"{wanted} events do not fit into the age up to {high:.0f} s")
    planned.sort()
    return [np.arange(first, last + EVENT_STEP / 2, EVENT_STEP) for first, last in planned]


@dataclass(frozen=True)
class Script:
    """What a stream shows between its events.

    Args:
        name: Kind of stream.
        scenes: All scenes, shown or not.
        background: Numbers of the scenes shown in turn.
        events: Numbers of the scenes that events show.
        seconds: Length of the stream.
        period: Seconds between frames outside events; a camera that wakes for an event.
        dwell: Seconds before the next scene of the background.
        motion: ``(visit, progress, frame) -> (view, next view, share of the next)``, all of
            ``(T,)``; `None` pans from one view at random to another during each visit.
    """

    name: str
    scenes: Sequence[Scene]
    background: Sequence[int]
    events: Sequence[int]
    seconds: float
    period: float
    dwell: float
    motion: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None


def film(script: Script, noise: float, seed: int) -> Stream:
    """Make the frames of a script."""
    random = np.random.default_rng([seed, *script.name.encode()])
    planned = plan(script.seconds, len(script.events), random)
    cast = random.permutation(script.events)[: len(planned)]
    events = tuple(Event(int(s), t) for s, t in zip(cast, planned, strict=True))

    times = np.arange(0.0, script.seconds, script.period)
    for event in events:
        around = (times > event.times[0] - 1) & (times < event.times[-1] + 1)
        times = times[~around]
    visit = np.floor(times / script.dwell).astype(int)
    progress = times / script.dwell - visit
    shown = np.asarray(script.background)[visit % len(script.background)]
    views = len(script.scenes[0].tokens)
    ends = random.integers(0, views, (2, visit.max() + 1))
    here, there, share = ends[0][visit], ends[1][visit], progress
    if script.motion:
        here, there, share = script.motion(visit, times / script.seconds, np.arange(len(times)))

    columns = [[times, shown, here, there, share]]
    for event in events:
        n = len(event.times)
        a, b = random.integers(0, views, 2)
        columns.append(
            [event.times, np.full(n, event.scene), np.full(n, a), np.full(n, b), np.arange(n) / n]
        )
    times, shown, here, there, share = map(np.concatenate, zip(*columns, strict=True))
    order = np.argsort(times, kind="stable")
    times, shown, here, there, share = (c[order] for c in (times, shown, here, there, share))

    references = torch.stack([scene.tokens for scene in script.scenes])
    known = torch.stack([scene.embeddings for scene in script.scenes])
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.empty(len(times), *references.shape[2:], dtype=torch.float16)
    embeddings = torch.empty(len(times), known.shape[-1])
    for start in range(0, len(times), 512):
        part = slice(start, start + 512)
        w = torch.from_numpy(share[part]).float()[:, None, None]
        a, b = references[shown[part], here[part]], references[shown[part], there[part]]
        mixed = torch.lerp(a, b, w)
        mixed += noise * torch.randn(mixed.shape, generator=generator)
        tokens[part] = mixed.half()
        one, other = known[shown[part], here[part]], known[shown[part], there[part]]
        embeddings[part] = F.normalize(torch.lerp(one, other, w[:, 0]), dim=-1)
    queries = known[:, 0]
    return Stream(script.name, tokens, embeddings, times, shown, events, references, queries)


def shuffled(stream: Stream, seed: int) -> Stream:
    """The same frames in another order: what the order of a stream was worth."""
    order = np.random.default_rng([seed, 1]).permutation(len(stream.times))
    shown = stream.shown[order]
    events = tuple(replace(e, times=stream.times[shown == e.scene]) for e in stream.events)
    rows = torch.from_numpy(order)
    return replace(
        stream,
        name=f"{stream.name}, shuffled",
        tokens=stream.tokens[rows],
        embeddings=stream.embeddings[rows],
        shown=shown,
        events=events,
    )


# ---------------------------------------------------------------------------- the kinds

HOUR, DAY = 3600.0, 86400.0
KINDS = ("patrol", "static", "drift", "near-duplicates", "flicker", "all new", "day")
KINDS = (*KINDS, "shuffled")  # the patrol's frames in another order


@dataclass(frozen=True)
class Casting:
    """Which scenes play what; the streams of a kind share backgrounds and not events.

    Args:
        studio: Encodes special views.
        scenes: The library, in random order.
        seeds: How many streams of each kind there will be.
        background: How many scenes a patrol visits.
        events: How many events a stream has at most.
        period: Seconds between frames in the streams of an hour.
        day_period: Seconds between frames in the stream of a day.
    """

    studio: Studio
    scenes: Sequence[Scene]
    seeds: int
    background: int
    events: int
    period: float
    day_period: float

    def stream(self, kind: str, seed: int, noise: float) -> Stream:
        """One of `KINDS`."""
        if kind == "shuffled":
            return shuffled(self.stream("patrol", seed, noise), seed)
        makers = {
            "static": self._static,
            "drift": self._drift,
            "near-duplicates": self._near_duplicates,
            "flicker": self._flicker,
            "all new": self._all_new,
        }
        script = makers[kind](seed) if kind in makers else self._patrol(seed, kind == "day")
        return film(replace(script, name=kind), noise, seed)

    def _patrol(self, seed: int, day: bool = False) -> Script:
        """A round through the background, again and again."""
        period = self.day_period if day else self.period
        dwell = (1.5 if day else 2.0) * period
        turn = np.random.default_rng([seed, 2]).permutation(self.background).tolist()
        room = (len(self.scenes) - self.background) // self.seeds
        count = min(self.events, room)
        first = self.background + seed * count
        events = range(first, first + count)
        return Script("", self.scenes, turn, events, DAY if day else HOUR, period, dwell)

    def _watch(self, seed: int, see: Callable[..., Sequence[np.ndarray]]) -> Script:
        """One scene of the background for the whole hour, seen in a way of its own."""
        script = self._patrol(seed)
        place = script.background[0]
        scenes = list(self.scenes)
        old = scenes[place]
        assert old.picture is not None
        scenes[place] = self.studio.scene(old.name, old.picture, see)
        return replace(script, scenes=scenes, background=[place], dwell=HOUR)

    def _static(self, seed: int) -> Script:
        """Nothing moves."""

        def motion(visit, progress, frame):  # noqa: ANN001, ANN202
            zero = np.zeros(len(frame), int)
            return zero, zero, progress * 0

        return replace(self._watch(seed, mounted), motion=motion)

    def _drift(self, seed: int) -> Script:
        """It slowly gets dark."""

        def motion(visit, progress, frame):  # noqa: ANN001, ANN202
            place = progress * (self.studio.views - 1)
            here = np.minimum(place.astype(int), self.studio.views - 2)
            return here, here + 1, place - here

        return replace(self._watch(seed, dusk), motion=motion)

    def _flicker(self, seed: int) -> Script:
        """Two lamps take turns, frame by frame."""

        def motion(visit, progress, frame):  # noqa: ANN001, ANN202
            return frame % 2, frame % 2, progress * 0

        return replace(self._watch(seed, lit), motion=motion)

    def _near_duplicates(self, seed: int) -> Script:
        """A patrol of mounted cameras; an event is a place of it with one thing added."""
        without, added = near_duplicates(self.studio, self.scenes, self.background)
        pairs = len(without)
        count = min(self.events, pairs // self.seeds)
        first = pairs + seed * count
        turn = np.random.default_rng([seed, 3]).permutation(pairs).tolist()
        events = range(first, first + count)
        return replace(
            self._patrol(seed), scenes=[*without, *added], background=turn, events=events
        )

    def _all_new(self, seed: int) -> Script:
        """No scene ever comes back."""
        dwell = 2 * self.period
        shown = int(HOUR / dwell) + 1
        count = self.events
        random = np.random.default_rng([seed, 4])
        scenes = collages(self.scenes, shown + 2 * count, random)  # as many are never shown
        events = range(shown, shown + count)
        return Script("", scenes, range(shown), events, HOUR, self.period, dwell)


def near_duplicates(
    studio: Studio, scenes: Sequence[Scene], most: int
) -> tuple[list[Scene], list[Scene]]:
    """Scenes by a mounted camera without and with one thing, clearly apart even so."""
    random = np.random.default_rng(5)
    without: list[Scene] = []
    added: list[Scene] = []
    for number, scene in enumerate(scenes):
        if len(without) == most:
            break
        thing = scenes[number - 1].picture
        assert scene.picture is not None and thing is not None
        empty = studio.scene(scene.name, scene.picture, mounted)
        full = studio.scene(f"{scene.name} +", paste(scene.picture, thing, random), mounted)
        if apart(full, [empty]) and apart(full, added):
            without.append(empty)
            added.append(full)
    return without, added
