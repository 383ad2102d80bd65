"""`EpisodicMemory`: what happened, moment by moment, in a fixed number of bytes.

A stream is cut into moments where its features surprise, as people cut experience into events.
Each moment keeps a span of time, an embedding, a few tokens, a pose, a thumbnail and what was
recognised. When the budget is full, the two neighbours that are most alike become one moment;
nothing is dropped while anything can be merged.

Closed moments live in immutable segments, so that readers share them with the writer and a store
can keep each as a file. Like the levels of a log-structured merge tree, neighbouring segments of
like size are joined as they come; keeping the budget rewrites one segment at a time.

Source of the boundaries: surprise, after Fountas et al., "Human-like Episodic Memory for Infinite
Context LLMs" (EM-LLM), 2024 (https://arxiv.org/abs/2407.09450), taken over from token likelihood
to feature distance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vismem.memory.base import Budget, Memory, WriteReport, check_write
from vismem.memory.moments import (
    EpisodicConfig,
    EpisodicSnapshot,
    Segment,
    join_segments,
    merge_neighbours,
)
from vismem.memory.open_moment import MomentFrame, OpenMoment, bytes_tensor

__all__ = ["EpisodicConfig", "EpisodicMemory", "EpisodicSnapshot", "Segment"]


class EpisodicMemory(Memory):
    """Moments of one stream within a hard budget of bytes; see the module.

    Args:
        config: Sizes and the boundary rule.
        budget: Bytes, or text such as ``"64MB"``.

    Example:
        >>> memory = EpisodicMemory(EpisodicConfig(token_dim=4, embedding_dim=4), budget="1MB")
        >>> _ = memory.write(torch.ones(1, 4), time=0.0, embedding=torch.ones(4))
        >>> len(memory.snapshot())
        1
    """

    def __init__(self, config: EpisodicConfig, budget: Budget | int | str):
        self.config = config
        self.budget = Budget.parse(budget)
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next write may be at any time."""
        self._segments: list[Segment] = []
        self._bytes = 0
        self._names = 0
        self._writes = 0
        self._last = -math.inf
        self._open: OpenMoment | None = None
        self._distances = np.empty(0)  # of the last `history` frames from their moment

    @property
    def nbytes(self) -> int:
        """Bytes of all rows and thumbnails, the open moment included."""
        return self._bytes + (self._open.nbytes if self._open else 0)

    @property
    def count(self) -> int:
        """How many moments are held, the open one included."""
        return sum(map(len, self._segments)) + (self._open is not None)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All closed moments, in time order."""
        return tuple(self._segments)

    @property
    def last_time(self) -> float:
        """Time of the newest write in seconds; minus infinity before the first."""
        return self._last

    @property
    def span(self) -> tuple[float, float] | None:
        """First and last second that is remembered; ``None`` if nothing is."""
        if self._segments:
            return float(self._segments[0].columns["start"][0]), self._last
        return (self._open.start, self._last) if self._open else None

    @property
    def oldest_end(self) -> float:
        """Last second of the oldest moment; infinity if there is none."""
        if self._segments:
            return float(self._segments[0].columns["end"][0])
        return self._open.end if self._open else math.inf

    def snapshot(self) -> EpisodicSnapshot:
        """Share the segments, and copy the moment that is still going on."""
        current = [self._open.segment("open")] if self._open else []
        return EpisodicSnapshot([*self._segments, *current], self.config)

    def write(  # type: ignore[override]  # names what it takes instead of any context
        self,
        tokens: Tensor,
        time: float,
        *,
        embedding: Tensor | None = None,
        positions: Tensor | None = None,
        pose: Tensor | None = None,
        thumbnail: bytes = b"",
        labels: Mapping[str, Tensor] | None = None,
    ) -> WriteReport:
        """Add one frame.

        Args:
            tokens: ``(N, D)``, ``1 <= N <= K``.
            time: Seconds, never earlier than the write before.
            embedding: ``(E,)``; the mean token where ``E == D`` and none is given.
            positions: ``(N, 2)`` centres as fractions of the picture.
            pose: ``(4, 4)`` camera-to-world.
            thumbnail: Encoded picture of at most ``max_thumbnail`` bytes.
            labels: ``id (n,)``, ``score (n,)``, ``box (n, 4)``, ``color (n, C)``, ``count (n,)``.

        Raises:
            ValueError: If anything does not fit or is not finite; the memory is then unchanged.
        """
        frame = self._checked(
            tokens,
            time,
            embedding=embedding,
            positions=positions,
            pose=pose,
            thumbnail=thumbnail,
            labels=labels,
        )
        boundary = self._is_boundary(frame)
        if boundary and self._open:
            self._append(self._open.segment(self._name()))
            self._open = None
        self._open = self._open or OpenMoment(self.config)
        self._open.add(frame)
        self._writes += 1
        self._last = frame.time
        merged, dropped = self._shrink()
        return WriteReport(self.nbytes, boundary, merged, dropped)

    def check(self, tokens: Tensor, time: float, **context: Any) -> None:
        """Refuse what `write` would refuse, and change nothing.

        A log that takes only what passes can always be replayed.

        Raises:
            ValueError: If anything does not fit or is not finite.
        """
        self._checked(tokens, time, **context)

    def _checked(self, tokens: Tensor, time: float, **context: Any) -> MomentFrame:
        last = self._last if self._writes else None
        check_write(tokens, time, self.config.token_dim, self.config.max_tokens, last)
        return MomentFrame.checked(self.config, self._writes, tokens, time, **context)

    def _is_boundary(self, frame: MomentFrame) -> bool:
        """Whether a frame begins a new moment."""
        current, config = self._open, self.config
        if current is None or frame.time - current.end > config.max_gap:
            return True
        distance = current.distance(frame)
        usual = 0.0
        if len(self._distances) > 1:
            usual = float(self._distances.mean() + config.surprise * self._distances.std())
        length = frame.time - current.start
        if length >= config.max_seconds or (
            length >= config.min_seconds and distance > max(usual, config.min_distance)
        ):
            return True
        self._distances = np.append(self._distances[-config.history + 1 :], distance)
        return False

    def _name(self) -> str:
        self._names += 1
        return f"{self._names:08d}"

    def skip_names(self, other: EpisodicMemory) -> None:
        """Never give a segment a name that another instance has given, a copy with its own fate."""
        self._names = max(self._names, other._names)

    def _replace(self, first: int, last: int, new: Sequence[Segment]) -> None:
        """Put ``new`` in the place of segments ``first`` to ``last - 1``."""
        self._bytes += sum(s.nbytes for s in new) - sum(
            s.nbytes for s in self._segments[first:last]
        )
        self._segments[first:last] = new

    @property
    def _segment_rows(self) -> int:
        """Moments of a full segment: a 64th of what the budget can hold, within reason."""
        return min(2048, max(16, self.budget.bytes // (64 * self.config.row_bytes)))

    def _append(self, segment: Segment) -> None:
        """Add closed moments, joining the last segments while they are of like size."""
        self._replace(len(self._segments), len(self._segments), [segment])
        while len(self._segments) > 1:
            before, last = map(len, self._segments[-2:])
            if before > last or before + last > self._segment_rows:
                return
            joined = join_segments(self._segments[-2:], self._name())
            self._replace(len(self._segments) - 2, len(self._segments), [joined])

    def _shrink(self) -> tuple[int, int]:
        """Merge, and where nothing is left to merge drop, until the budget holds."""
        merged = dropped = 0
        while self.nbytes > self.budget.bytes:
            costs = [s.merge_costs.min() if len(s) > 1 else math.inf for s in self._segments]
            if not costs:
                self._open, dropped = None, dropped + 1
            elif min(costs) < math.inf:
                cheapest = int(np.argmin(costs))
                segment = self._segments[cheapest]
                count = max(1, len(segment) // 16)
                smaller = merge_neighbours(segment, count, self.config, self._name())
                self._replace(cheapest, cheapest + 1, [smaller])
                self._join_around(cheapest)
                merged += count
            elif len(costs) > 1:
                self._replace(0, 2, [join_segments(self._segments[:2], self._name())])
            else:
                self._replace(0, 1, [])
                dropped += 1
        return merged, dropped

    def _join_around(self, number: int) -> None:
        """Join a segment that shrank with a neighbour, if both fit into half a segment."""
        for first in (number - 1, number):
            pair = self._segments[max(first, 0) : first + 2]
            if len(pair) == 2 and sum(map(len, pair)) <= self._segment_rows // 2:
                self._replace(first, first + 2, [join_segments(pair, self._name())])
                return

    def set_budget(self, budget: Budget | int | str) -> WriteReport:
        """Take another budget, at once; reports what that merged and dropped."""
        self.budget = Budget.parse(budget)
        merged, dropped = self._shrink()
        return WriteReport(self.nbytes, merged=merged, dropped=dropped)

    def forget(self, start: float, end: float) -> int:
        """Give up every moment that touches a span of time, whole.

        Args:
            start: First second of the span; minus infinity forgets by age.
            end: Last second of the span.

        Returns:
            How many moments are gone.
        """
        gone = 0
        for number in reversed(range(len(self._segments))):
            segment = self._segments[number]
            touched = (segment.columns["start"] <= end) & (segment.columns["end"] >= start)
            if not touched.any():
                continue
            gone += int(touched.sum())
            kept = torch.nonzero(~touched)[:, 0]
            columns = {name: column[kept] for name, column in segment.columns.items()}
            thumbnails = tuple(segment.thumbnails[row] for row in kept.tolist())
            left = [Segment(self._name(), columns, thumbnails)] if len(kept) else []
            self._replace(number, number + 1, left)
        if self._open and self._open.start <= end and self._open.end >= start:
            self._open, gone = None, gone + 1
        return gone

    # ------------------------------------------------------------------ state

    def working_state(self) -> dict[str, Tensor]:
        """All state beside `segments`, as tensors."""
        state = {
            "counters": torch.tensor([self._names, self._writes], dtype=torch.int64),
            "last": torch.tensor(self._last, dtype=torch.float64),
            "distances": torch.from_numpy(self._distances.copy()),
        }
        if self._open:
            state |= {f"open.{name}": value for name, value in self._open.state().items()}
        return state

    def restore(self, segments: Sequence[Segment], state: Mapping[str, Tensor]) -> None:
        """Go on from `segments` and `working_state` of another instance.

        Raises:
            ValueError: If they are of another configuration or incomplete.
        """
        try:
            names, writes = state["counters"].tolist()
            last, distances = float(state["last"]), state["distances"].numpy().copy()
            opened = {k[5:]: v for k, v in state.items() if k.startswith("open.")}
            current = OpenMoment.from_state(self.config, opened) if opened else None
        except KeyError as error:
            raise ValueError(f"the state holds no {error}; it is incomplete") from error
        for segment in [*segments, *([current.segment("open")] if current else [])]:
            for name, (dtype, shape) in self.config.columns().items():
                held = segment.columns.get(name)
                if held is None or held.dtype != dtype or tuple(held.shape[1:]) != shape:
                    raise ValueError(f"column {name} is missing or of another configuration")
        self.reset()
        self._names, self._writes, self._last, self._distances = names, writes, last, distances
        self._open = current
        self._segments = list(segments)
        self._bytes = sum(segment.nbytes for segment in segments)
        self._shrink()

    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors; loading it continues bit for bit."""
        state = self.working_state()
        for segment in self._segments:
            state |= {f"{segment.name}.{name}": value for name, value in segment.columns.items()}
            sizes = [0, *map(len, segment.thumbnails)]
            state[f"{segment.name}.thumbnail_offsets"] = torch.tensor(sizes).cumsum(0)
            state[f"{segment.name}.thumbnails"] = bytes_tensor(b"".join(segment.thumbnails))
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another instance; see `Memory.load_state_dict`."""
        columns = list(self.config.columns())
        names = dict.fromkeys(key.split(".")[0] for key in state if "." in key)
        segments = []
        for name in names:
            if name == "open":
                continue
            try:
                held = {column: state[f"{name}.{column}"].clone() for column in columns}
                data = state[f"{name}.thumbnails"].numpy().tobytes()
                ends = state[f"{name}.thumbnail_offsets"].tolist()
            except KeyError as error:
                raise ValueError(f"the state holds no {error}; it is incomplete") from error
            pictures = tuple(data[a:b] for a, b in zip(ends, ends[1:], strict=False))
            segments.append(Segment(name, held, pictures))
        segments.sort(key=lambda segment: float(segment.columns["start"][0]))
        self.restore(segments, state)
