"""Everything that is compared: one row of the table each.

An arm sees what the detector found, frame after frame, and says the class of every box. Boxes and
objectness are the detector's own in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from detector import DIM, PEAKS, Found
from heads import Head, Rows, present
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tracks import track_mean

from vismem.memory.feature import FeatureConfig, FeatureMemory, stack
from vismem.memory.published.mamba import PublishedMamba, PublishedMambaConfig

ROWS = 64  # of a memory, where nothing else is said
SIZES = (8, 16, 32, 64)
EVERYTHING = 10**6  # rows
SPREAD = 14  # frames that the published protocol looks at before it begins


@dataclass(frozen=True)
class Outcome:
    """What an arm said.

    Args:
        probabilities: ``(V, T, P, 10)``, one for each head that it was given.
        nbytes: The most that the memory of one video held.
    """

    probabilities: list[Tensor]
    nbytes: int = 0


Run = Callable[[Found, Sequence[Head]], Outcome]


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Args:
        name: What the table calls it.
        run: Says the classes.
        head: Which of `heads.ATTENTIONS` it is given; none if it needs no training.
    """

    name: str
    run: Run
    head: str = ""


# ---------------------------------------------------------------------------- without a memory


def single(found: Found, heads: Sequence[Head]) -> Outcome:
    """The detector's own classes, or those of heads that have no memory."""
    logits = [head(found.tokens, found.fractions, None) for head in heads] or [found.logits]
    return Outcome([values.softmax(-1) for values in logits])


def within_frame(found: Found, heads: Sequence[Head]) -> Outcome:
    """Attention of a frame to itself."""
    videos, frames = found.times.shape
    out: list[list[Tensor]] = [[] for _ in heads]
    for now in range(frames):
        rows = present(found, torch.full((videos, 1), now))
        for said, head in zip(out, heads, strict=True):
            said.append(head(found.tokens[:, now], found.fractions[:, now], rows).softmax(-1))
    return Outcome([torch.stack(said, 1) for said in out])


def tracked(run: Run, weigh: str = "equal") -> Run:
    """The same, averaged along tracks."""

    def run_tracked(found: Found, heads: Sequence[Head]) -> Outcome:
        outcome = run(found, heads)
        both = [track_mean(found, values, weigh) for values in outcome.probabilities]
        return Outcome([values for values, _ in both], outcome.nbytes + both[0][1])

    return run_tracked


# ---------------------------------------------------------------------------- with ours


@dataclass(frozen=True)
class Remember:
    """Read a `FeatureMemory` a video, then write what was found.

    Args:
        evict: Rule of retention.
        rows: Capacity.
        window: Frames back that are read; all by default.
        wrong: Whether each video is given the memory of the next one.
        sure: Objectness from which a box is written.
    """

    evict: str = "score"
    rows: int = ROWS
    window: int | None = None
    wrong: bool = False
    sure: float = 0.0

    def __call__(self, found: Found, heads: Sequence[Head]) -> Outcome:
        """Go through all videos at once, frame by frame; one memory serves all heads."""
        videos, frames = found.times.shape
        config = FeatureConfig(dim=DIM, evict=self.evict)
        budget = self.rows * config.row_bytes
        memories = [FeatureMemory(replace(config, seed=v), budget) for v in range(videos)]
        out: list[list[Tensor]] = [[] for _ in heads]
        most = 0
        for now in range(frames):
            rows = self.read(memories, found, now)
            for said, head in zip(out, heads, strict=True):
                said.append(head(found.tokens[:, now], found.fractions[:, now], rows).softmax(-1))
            del rows
            for video, memory in enumerate(memories):
                self.write(memory, found, video, now)
                most = max(most, memory.nbytes)
        if self.window is not None:
            most = self.window * PEAKS * config.row_bytes
        return Outcome([torch.stack(said, 1) for said in out], most)

    def read(self, memories: Sequence[FeatureMemory], found: Found, now: int) -> Rows:
        """What all memories hold before a frame is written."""
        held = stack([memory.snapshot() for memory in memories])
        mask = held.mask
        if self.window is not None:
            mask = mask & (held.sources >= now - self.window)
        columns = (held.tokens, held.boxes, held.scores, held.times, mask)
        if self.wrong:
            columns = tuple(column.roll(1, 0) for column in columns)
        return Rows(*columns, found.times[:, now])

    def write(self, memory: FeatureMemory, found: Found, video: int, now: int) -> None:
        """Write one frame of one video."""
        there = found.objectness[video, now] > self.sure
        time = float(found.times[video, now])
        if not there.any():
            memory.skip(time)
            return
        memory.write(
            found.tokens[video, now][there],
            time,
            scores=found.scores[video, now][there],
            boxes=found.fractions[video, now][there],
        )


# ---------------------------------------------------------------------------- as published


@dataclass(frozen=True)
class AsPublished:
    """MAMBA's instance level with its own bank: random keys, random eviction, enhanced rows.

    Its banks hold 20000 rows, which no video here fills; it is given as many as ours.

    Args:
        ahead: Its protocol: the frames after the first are shuffled, and the memory begins with 14
            frames spread over the whole video. Otherwise frames come in order and it begins empty.
        enhanced: Whether enhanced rows are written, as published, or raw ones.
        rows: Capacity, and the most keys of a read.
    """

    ahead: bool
    enhanced: bool = True
    rows: int = ROWS

    def __call__(self, found: Found, heads: Sequence[Head]) -> Outcome:
        """Go through all videos; each head writes a memory of its own."""
        outcomes = [self.one(found, head) for head in heads]
        return Outcome([said for said, _ in outcomes], max(most for _, most in outcomes))

    def one(self, found: Found, head: Head) -> tuple[Tensor, int]:
        """What one head says, ``(V, T, P, 10)``, and the most bytes that a bank held."""
        videos, frames = found.times.shape
        order, begin = torch.arange(frames), torch.tensor([0])
        if self.ahead:
            rest = torch.randperm(frames - 1, generator=torch.Generator().manual_seed(10))
            order = torch.cat([begin, 1 + rest])
            begin = torch.cat([torch.linspace(0, frames - 1, SPREAD).round().long(), begin])
        there = found.objectness > 0
        config = PublishedMambaConfig(DIM, self.rows, self.rows)
        banks = [PublishedMamba(replace(config, seed=video)) for video in range(videos)]
        for video, bank in enumerate(banks):
            bank.replace(found.tokens[video, begin][there[video, begin]])
        out, most = torch.empty_like(found.logits), 0
        for step, now in enumerate(order.tolist()):
            rows = padded([bank.sample() for bank in banks], found.times[:, now])
            tokens = head.enhance(found.tokens[:, now], found.fractions[:, now], rows)
            out[:, now] = head.classify(tokens).softmax(-1)
            for video, bank in enumerate(banks):
                written = tokens if self.enhanced else found.tokens[:, now]
                if step and there[video, now].any():
                    bank.update(written[video, there[video, now]])
            most = max(most, *(bank.nbytes for bank in banks))
        return out, most


def padded(rows: Sequence[Tensor], now: Tensor) -> Rows:
    """Rows of several videos side by side, of which nothing else is known."""
    tokens = pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(some) for some in rows])
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    nothing = torch.zeros(mask.shape)
    return Rows(tokens, torch.zeros(*mask.shape, 4), nothing, nothing, mask, now)


# ---------------------------------------------------------------------------- the rows


def slots(evict: str, rows: int) -> str:
    """Name of the arm that keeps so many rows by a rule."""
    return f"{evict}, {rows} rows"


SINGLE, TRACK, OURS = "single frame", "track mean", "ours"
BOTH, WRONG = "ours + track mean", "ours, another video's memory"

DURABLE = [  # what every track is asked
    Arm(SINGLE, single),
    Arm(TRACK, tracked(single)),
    Arm("MAMBA, causal", AsPublished(ahead=False), "published"),
    Arm("ours, appearance alone", Remember(), "appearance"),
    Arm(OURS, Remember(), "ours"),
    Arm(BOTH, tracked(Remember()), "ours"),
    Arm(WRONG, Remember(wrong=True), "ours"),
]
CONTROLS = [
    Arm("head fine-tuned, no memory", single, "no memory"),
    Arm("attention within the frame", within_frame, "within the frame"),
    Arm("track mean, weighed by score", tracked(single, "sure")),
    Arm("ours + track mean, weighed by score", tracked(Remember(), "sure"), "ours"),
    Arm("MAMBA, its protocol", AsPublished(ahead=True), "published"),
    Arm("MAMBA, causal, raw rows", AsPublished(ahead=False, enhanced=False), "published"),
    Arm("ours, appearance and score", Remember(), "score"),
    Arm("ours, no memory at test", single, "ours"),
    *(
        Arm(f"ours, window of {frames}", Remember("fifo", EVERYTHING, frames), "ours")
        for frames in (1, 2, 4, 8)
    ),
    Arm("ours, everything kept", Remember("fifo", EVERYTHING), "ours"),
]
SWEEP = [
    Arm(slots(evict, rows), Remember(evict, rows), "ours")
    for evict in ("score", "fifo", "random", "reservoir")
    for rows in SIZES
]
SWEEP.append(Arm("fifo of sure boxes, 16 rows", Remember("fifo", 16, sure=0.3), "ours"))
