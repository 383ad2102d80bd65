"""`PublishedStar` and `compress_video`: the STAR memory of Flash-VStream as its code has it.

After Zhang et al., "Flash-VStream: Memory-Based Real-Time Understanding for Long Video Streams",
2024 (https://arxiv.org/abs/2406.08085) and its code (https://github.com/IVGSZ/Flash-VStream,
Apache-2.0), in our own words. Four parts, read in this order: an abstract memory (attention), a
long memory (clusters of frames), key frames and the most recent frames. Its quirks are kept:

* Key frames are looked up by the number of a cluster as if it were the number of a frame, so all
  of them are among the first `long_slots` frames of the stream.
* In a stream every write clusters the long memory and the new frames anew, from a random
  beginning and with all weights one: old scenes are forgotten by chance.
* In a stream of single frames the abstract slots collapse to one moving average.
* No part knows when anything was seen.

One thing is not kept: the published code stores every frame for ever to look the key frames up
in. Only the first `long_slots` can be looked up, so no other is stored, and the result is equal.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vismem.kernels.kmeans import kmeans_assign
from vismem.memory.base import Budget, Memory, Recall, WriteReport, check_write
from vismem.memory.published.clustering import (
    NTMWeights,
    attention_feature,
    pooled_side,
    spatial_pool,
    weighted_kmeans,
)

__all__ = [
    "PublishedStar",
    "Star",
    "PublishedStarConfig",
    "StarSnapshot",
    "compress_video",
    "heaviest",
]


@dataclass(frozen=True)
class PublishedStarConfig:
    """Sizes of a STAR memory; the defaults are the published ones.

    Args:
        dim: Width ``D`` of the tokens.
        frame_side: Side of the square grid of tokens that the encoder gives of a frame.
        side: Side that every frame is pooled to first, and that key and recent frames keep.
        long_slots: Clusters of the long memory; with 0 there is none, and no key frame.
        long_side: Side of their grid.
        abstract_slots: Slots of the abstract memory; with 0 there is none.
        abstract_side: Side of their grid.
        key_frames: How many frames are looked up for the heaviest clusters.
        recent: How many of the newest frames are kept.
        update_ratio: Share of the new tokens in a write to the abstract memory.
        max_clip: Most frames of one write; a first clip is stored as it is, so it bounds bytes.
        dtype: Type of all state; the published code casts to ``torch.float16``.

    Raises:
        ValueError: If a number is negative, or a grid cannot be pooled.
    """

    dim: int = 1024
    frame_side: int = 16
    side: int = 8
    long_slots: int = 25
    long_side: int = 4
    abstract_slots: int = 25
    abstract_side: int = 1
    key_frames: int = 3
    recent: int = 1
    update_ratio: float = 0.2
    max_clip: int = 25
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        counts = (self.long_slots, self.abstract_slots, self.key_frames, self.recent)
        if min(self.dim, self.max_clip) < 1 or min(counts) < 0 or not 0 <= self.update_ratio <= 1:
            raise ValueError(f"sizes must be positive and the update ratio within 0 to 1: {self}")
        if not self.dtype.is_floating_point:
            raise ValueError(f"a memory of features cannot be of {self.dtype}")
        self.shapes()

    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Largest shape ``(frames, tokens, dim)`` of each part of the state of a stream."""
        side = pooled_side(self.frame_side, self.side)
        first, long, abstract = self.max_clip, self.long_slots, self.abstract_slots
        keys, recent = min(self.key_frames, long), min(self.recent, self.max_clip)
        parts = {
            "abstract": (max(abstract, first) if abstract else 0, self.abstract_side),
            "long": (max(long, first) if long else 0, self.long_side),
            "current": (keys + recent, side),
            "first_frames": (long, side),
        }
        return {n: (rows, pooled_side(side, s) ** 2, self.dim) for n, (rows, s) in parts.items()}

    def numbers(self) -> Tensor:
        """The configuration as one tensor, to know it by."""
        return torch.tensor([float(v) for v in vars(self).values() if v is not self.dtype]).double()


class Star(NamedTuple):
    """What a video is compressed to.

    Args:
        abstract: ``(A, P_a, D)``.
        long: ``(L, P_l, D)``, in the order of their clusters, not of time.
        current: ``(R + C, P, D)``: key frames, then the most recent frames.
        key_ids: Numbers of the frames that the key frames are, ``(R,)`` int64.
    """

    abstract: Tensor
    long: Tensor
    current: Tensor
    key_ids: Tensor

    def tokens(self) -> Tensor:
        """All tokens in the published order, abstract, long, key and recent: ``(N, D)``."""
        return torch.cat([part.flatten(0, 1) for part in self[:3]])


def heaviest(mass: Tensor, count: int) -> Tensor:
    """Numbers of the heaviest clusters, ``(min(K, count),)``; of equal ones the first is first."""
    return mass.argsort(descending=True, stable=True)[:count]


Order = Callable[[Tensor, int], Tensor]


def _key_ids(x: Tensor, centres: Tensor, rows: Tensor) -> Tensor:
    """The frame of ``x`` that is nearest to each of the centres in the rows that are named."""
    return kmeans_assign(centres[rows].flatten(1), x.flatten(1))[0]


def compress_video(
    video: Tensor,
    config: PublishedStarConfig,
    ntm: NTMWeights,
    permutations: torch.Generator,
    coins: random.Random,
    *,
    keys: Literal["published", "centroid"] = "published",
    order: Order = heaviest,
) -> Star:
    """Compress a whole video at once, as in training and in all published benchmarks.

    The recent frames enter neither the long nor the abstract memory.

    Args:
        video: ``(T, p * p, D)``, at least one frame.
        config: Sizes; ``frame_side`` and ``max_clip`` are not asked.
        ntm: Learned weights of the abstract memory.
        permutations: See :func:`vismem.memory.published.clustering.weighted_kmeans`.
        coins: See there.
        keys: What a key frame is nearest to: the frame that has the number of the cluster (the
            code), or the centroid of the cluster (the paper).
        order: Gives the heaviest clusters first.

    Raises:
        ValueError: If there is no frame, or the grid is not square.
    """
    if video.ndim != 3 or not len(video):
        raise ValueError(f"a video is (T >= 1, P, D), not {tuple(video.shape)}")
    video = spatial_pool(video.to(config.dtype), config.side)
    past = video[: max(0, len(video) - config.recent)]
    recent = video[len(past) :]
    long, abstract = spatial_pool(past, config.long_side), spatial_pool(past, config.abstract_side)
    ids = torch.empty(0, dtype=torch.int64)
    if config.long_slots and len(past):
        found = weighted_kmeans(long, config.long_slots, permutations, coins)
        centres = long if keys == "published" else found.centroids
        ids = _key_ids(long, centres, order(found.mass, config.key_frames))
        long = found.centroids
    if config.abstract_slots:
        abstract = attention_feature(abstract, config.abstract_slots, ntm, config.update_ratio)
    return Star(
        abstract if config.abstract_slots else abstract[:0],
        long if config.long_slots else long[:0],
        torch.cat([video[ids], recent]),
        ids,
    )


@dataclass(frozen=True)
class StarSnapshot:
    """A STAR memory as it was after a write."""

    star: Star
    time: float
    frames_seen: int

    def read(self, query: Tensor | None = None, **context: Any) -> Recall:
        """Give all tokens in the published order: abstract, long, key and recent.

        The published memory keeps neither times nor weights, and every write makes all of it anew.
        So a recall is one observation: as of the last write, it stands for all frames seen.
        `sources` is the number of the last frame. Tokens are of the memory's type.

        Args:
            query: Not asked: the published reading does not depend on the question.
            **context: Ignored, other banks take more.
        """
        tokens = self.star.tokens()
        count = len(tokens)
        return Recall(
            tokens=tokens,
            times=torch.full((count,), self.time, dtype=torch.float64),
            weights=torch.full((count,), self.frames_seen),
            scores=torch.zeros(count),
            sources=torch.full((count,), self.frames_seen - 1),
        )


class PublishedStar(Memory):
    """The streaming STAR memory, to the number; see the module for what that includes.

    Its budget follows from its configuration: the bytes of all tokens. Learned weights and the
    two generators, of constant size, are not counted.

    Args:
        config: Sizes.
        ntm: Learned weights of the abstract memory; untrained if none are given.
        permutations: Draws where clusters begin; seeded with 0 if none is given. A reset goes
            back to the state that it was given in.
        coins: Draws rows for empty clusters; likewise.
        order: Gives the heaviest clusters first, see :func:`heaviest`.

    Raises:
        ValueError: If the learned weights are for tokens of another width.

    Example:
        >>> memory = PublishedStar(PublishedStarConfig(dim=32))
        >>> for second in range(30):
        ...     _ = memory.write(torch.full((256, 32), 0.1 * second), time=second)
        >>> len(memory.read().tokens)  # 25 * 1 + 25 * 16 + (3 + 1) * 64
        681
    """

    def __init__(
        self,
        config: PublishedStarConfig,
        ntm: NTMWeights | None = None,
        *,
        permutations: torch.Generator | None = None,
        coins: random.Random | None = None,
        order: Order = heaviest,
    ):
        self.config = config
        self.ntm = (ntm or NTMWeights.random(config.dim)).to(config.dtype)
        if self.ntm.q_weight.shape[1] != config.dim:
            raise ValueError(f"the learned weights are not for tokens of {config.dim}")
        self._permutations = permutations or torch.Generator().manual_seed(0)
        self._coins = coins or random.Random(0)
        self._order = order
        self._beginning = self._permutations.get_state(), self._coins.getstate()
        tokens = sum(math.prod(shape) for shape in config.shapes().values())
        keys = min(config.key_frames, config.long_slots)
        self.budget = Budget(tokens * config.dtype.itemsize + keys * torch.int64.itemsize)
        self.reset()

    def reset(self) -> None:
        """Forget everything and draw from the beginning; the next write may be at any time."""
        self._permutations.set_state(self._beginning[0])
        self._coins.setstate(self._beginning[1])
        shapes, dtype = self.config.shapes(), self.config.dtype
        empty = {name: torch.empty(0, *shape[1:], dtype=dtype) for name, shape in shapes.items()}
        self._first_frames = empty.pop("first_frames")
        self._star = Star(**empty, key_ids=torch.empty(0, dtype=torch.int64))
        self.frames_seen = 0  # the published code holds as many frames
        self._last = -math.inf

    @property
    def nbytes(self) -> int:
        """Bytes of all tokens held, and of the numbers of the key frames."""
        return self._first_frames.nbytes + sum(part.nbytes for part in self._star)

    def write(  # type: ignore[override]  # names what it takes instead of any context
        self, tokens: Tensor, time: float, *, grid: tuple[int, int] | None = None
    ) -> WriteReport:
        """Add a clip of one frame.

        Args:
            tokens: ``(frame_side ** 2, D)``, row by row.
            time: Seconds, never earlier than the write before.
            grid: Rows and columns of the tokens; the published code knows squares alone.

        Raises:
            ValueError: If anything does not fit or is not finite; the memory is then unchanged.
        """
        return self.write_many(tokens[None], [time], [{"grid": grid}])[0]

    @torch.no_grad()
    def write_many(
        self, tokens: Tensor, times: Iterable[float], contexts: Iterable[Mapping[str, Any]] = ()
    ) -> list[WriteReport]:
        """Add one clip, which is not the same as its frames one by one.

        Args:
            tokens: ``(T, frame_side ** 2, D)`` with ``1 <= T <= max_clip``.
            times: ``T`` times in seconds.
            contexts: For each frame its ``grid``, or nothing at all.

        Returns:
            One report, since there was one write.

        Raises:
            ValueError: If a frame is refused; nothing of the clip is then written.
        """
        times = [float(time) for time in times]
        self._check(tokens, times, list(contexts))
        config, old, ratio = self.config, self._star, self.config.update_ratio
        frames = spatial_pool(tokens, config.side).to(config.dtype)
        room = config.long_slots - len(self._first_frames)
        first = torch.cat([self._first_frames, frames[:room]]) if room else self._first_frames
        recent = frames[max(0, len(frames) - config.recent) :]
        long = torch.cat([old.long, spatial_pool(frames, config.long_side)])
        abstract = torch.cat([old.abstract, spatial_pool(frames, config.abstract_side)])
        ids = old.key_ids[:0]
        if self.frames_seen and config.long_slots:
            found = weighted_kmeans(long, config.long_slots, self._permutations, self._coins)
            ids = _key_ids(long, long, self._order(found.mass, config.key_frames))
            long = found.centroids
        if self.frames_seen and config.abstract_slots:
            abstract = attention_feature(abstract, config.abstract_slots, self.ntm, ratio)
        self._star = Star(
            abstract if config.abstract_slots else old.abstract,
            long if config.long_slots else old.long,
            torch.cat([first[ids], recent]),
            ids,
        )
        self._first_frames = first
        self.frames_seen += len(frames)
        self._last = times[-1]
        return [WriteReport(self.nbytes)]

    def _check(self, tokens: Tensor, times: list[float], contexts: list[Mapping[str, Any]]) -> None:
        config, count = self.config, self.config.frame_side**2
        whole = tokens.ndim == 3 and tokens.shape[1] == count and tokens.is_floating_point()
        if not whole or not 0 < len(tokens) <= config.max_clip:
            want = f"floats ({{1..{config.max_clip}}}, {count}, {config.dim})"
            raise ValueError(f"a clip is {want}, not {tokens.dtype} {tuple(tokens.shape)}")
        given = len(times), len(contexts) or len(times)
        if given != (len(tokens), len(tokens)):
            raise ValueError(f"{len(tokens)} frames came with (times, contexts) of {given}")
        last = self._last if self.frames_seen else None
        for frame, time in zip(tokens, times, strict=True):
            check_write(frame, time, config.dim, count, last)
            last = time
        if not torch.isfinite(tokens.half()).all():
            raise ValueError("tokens must be within ±65504, the range of float16")
        for context in contexts:
            if set(context) - {"grid"}:
                raise ValueError(f"a frame comes with its grid alone, not {sorted(context)}")
            grid = context.get("grid")
            if grid is not None and tuple(grid) != (config.frame_side, config.frame_side):
                raise ValueError(f"the grid must be {config.frame_side} square, not {grid}")

    def snapshot(self) -> StarSnapshot:
        """Share the parts; a write replaces them and never changes them."""
        return StarSnapshot(self._star, self._last, self.frames_seen)

    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors, generators and learned weights included."""
        return {
            "config": self.config.numbers(),
            "frames_seen": torch.tensor([self.frames_seen]),
            "last": torch.tensor([self._last], dtype=torch.float64),
            "permutations": self._permutations.get_state(),
            "coins": torch.tensor(self._coins.getstate()[1]),
            **{f"ntm.{name}": value for name, value in vars(self.ntm).items()},
            **self._star._asdict(),
            "first_frames": self._first_frames,
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another instance; see `Memory.load_state_dict`."""
        most = {name: shape[0] for name, shape in self.config.shapes().items()}
        most["key_ids"] = self.config.key_frames
        for name, own in self.state_dict().items():
            given = state.get(name)
            if given is None:
                raise ValueError(f"the state holds no {name}; it is incomplete")
            rows = range(most[name] + 1) if name in most else (len(own),)
            fits = given.dtype == own.dtype and given.shape[1:] == own.shape[1:]
            if not fits or given.ndim != own.ndim or len(given) not in rows:
                raise ValueError(f"{name} of the state is of another configuration")
            if name == "config" and not torch.equal(given, own):
                raise ValueError("the state is of another configuration")
        held = {name: value.clone() for name, value in state.items()}
        version, _, spare = self._coins.getstate()
        self._permutations.set_state(held["permutations"])
        self._coins.setstate((version, tuple(held["coins"].tolist()), spare))
        self.ntm = NTMWeights(**{name: held[f"ntm.{name}"] for name in vars(self.ntm)})
        self._star = Star(**{name: held[name] for name in Star._fields})
        self._first_frames = held["first_frames"]
        self.frames_seen, self._last = int(held["frames_seen"]), float(held["last"])
