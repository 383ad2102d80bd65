"""`StreamMemory`: all that is remembered of one stream, the moments and a bank of visual tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from vismem.clock import StreamClock
from vismem.memory.bank import SlotMemory
from vismem.memory.base import WriteReport
from vismem.memory.episodic import EpisodicConfig, EpisodicMemory, Segment
from vismem.memory.policies import make_bank
from vismem.observation import arguments
from vismem.scenes import grid_of, join_notes, largest_note, write_note

__all__ = ["BANK_SHARE", "StreamMemory"]

BANK_SHARE = 0.5  # of a stream's budget for the bank, where there is one
LATE = 1.05  # of the age to forget by: what is a little older waits, so that not each frame forgets


class StreamMemory:
    """The writer's side of one stream.

    Args:
        name: Of the stream.
        sizes: Of its moments.
        policy: Name of the bank of visual tokens; ``"moments"`` for none.
        clock: Where the stream's clock stood, to go on with.
    """

    def __init__(
        self, name: str, sizes: EpisodicConfig, policy: str, clock: StreamClock | None = None
    ):
        self.name, self.sizes, self.policy = name, sizes, policy
        self.clock = clock or StreamClock()
        self.moments = EpisodicMemory(sizes, 0)
        self.bank: SlotMemory | None = None
        if policy != "moments":
            self.bank = make_bank(
                policy,
                0,
                join_notes(sizes),
                token_dim=sizes.token_dim,
                max_tokens=sizes.max_tokens,
                embedding_dim=sizes.embedding_dim,
                max_note=largest_note(sizes),
            )

    @property
    def nbytes(self) -> int:
        """Bytes of moments and bank."""
        return self.moments.nbytes + (self.bank.nbytes if self.bank else 0)

    @property
    def span(self) -> tuple[float, float] | None:
        """First and last second that is remembered; ``None`` if nothing is."""
        held, oldest = self.moments.span, self.bank.oldest if self.bank else math.inf
        if held is None:
            return (oldest, self.moments.last_time) if oldest < math.inf else None
        return min(held[0], oldest), held[1]

    def check(self, time: float, tensors: Mapping[str, Tensor]) -> None:
        """Refuse what `write` would refuse, and change nothing.

        Raises:
            ValueError: If anything does not fit or is not finite.
        """
        self.moments.check(time=time, **arguments(tensors))
        if self.bank:
            embedding, grid = tensors["embedding"], grid_of(tensors["positions"])
            self.bank.check(tensors["tokens"], time, grid=grid, embedding=embedding)

    def write(self, time: float, tensors: Mapping[str, Tensor]) -> WriteReport:
        """Remember one frame.

        Args:
            time: Seconds, never earlier than the write before.
            tensors: What `vismem.observation.observation` gave, or a log gives back.
        """
        report = self.moments.write(time=time, **arguments(tensors))
        if not self.bank:
            return report
        scenes = self.bank.write(
            tensors["tokens"],
            time,
            grid=grid_of(tensors["positions"]),
            embedding=tensors["embedding"],
            note=write_note(tensors, time, self.sizes),
        )
        return self._of_both(report, scenes)

    def _of_both(self, moments: WriteReport, scenes: WriteReport) -> WriteReport:
        """What was done to moments and scenes, as one report."""
        merged, dropped = moments.merged + scenes.merged, moments.dropped + scenes.dropped
        return WriteReport(self.nbytes, moments.boundary, merged, dropped)

    def set_budget(self, budget: int) -> WriteReport:
        """Take another budget in bytes, at once; reports what that merged and dropped."""
        if not self.bank:
            return self.moments.set_budget(budget)
        share = int(BANK_SHARE * budget)
        scenes = self.bank.set_budget(share)
        return self._of_both(self.moments.set_budget(budget - share), scenes)

    def changed(self, budget: int, policy: str) -> tuple[StreamMemory, WriteReport]:
        """A copy with another budget or policy; this one stays as it is and can go on.

        The copy holds the same moments, and of another policy the scenes that this bank holds; see
        `SlotMemory.take_over`. Without a bank here the other begins empty.

        Args:
            budget: Bytes.
            policy: As of the class.

        Returns:
            The copy, and what the change merged and dropped of moments and scenes.
        """
        other = StreamMemory(self.name, self.sizes, policy, replace(self.clock))
        other.moments.set_budget(self.moments.budget)
        other.moments.restore(self.moments.segments, self.moments.working_state())
        if self.bank and other.bank and policy == self.policy:
            other.bank.set_budget(self.bank.budget)
            other.bank.load_state_dict(self.bank.state_dict())
        report = other.set_budget(budget)
        self.moments.skip_names(other.moments)
        if self.bank and policy != self.policy:
            scenes = WriteReport(0, dropped=self.bank.count)
            if other.bank:
                scenes = other.bank.take_over(self.bank)
            report = other._of_both(report, scenes)
        return other, report

    def forget(self, start: float, end: float) -> int:
        """Give up everything that touches a span of time; how many moments and scenes are gone."""
        scenes = self.bank.forget(start, end) if self.bank else 0
        return self.moments.forget(start, end) + scenes

    def expire(self, age: float) -> int:
        """Give up what is older than an age in seconds; how much is gone."""
        latest = self.moments.last_time - age
        oldest = min(self.moments.oldest_end, self.bank.oldest if self.bank else math.inf)
        if oldest >= self.moments.last_time - LATE * age:
            return 0
        return self.forget(-math.inf, latest)

    def working_state(self) -> dict[str, Tensor]:
        """All state beside the segments of the moments, as tensors."""
        state = self.moments.working_state()
        if self.bank:
            state |= {f"bank.{name}": value for name, value in self.bank.state_dict().items()}
        return state

    def restore(self, segments: Sequence[Segment], state: Mapping[str, Tensor]) -> None:
        """Go on from the segments and the working state of another instance.

        Raises:
            ValueError: If they are of another configuration or incomplete.
        """
        held = {k.removeprefix("bank."): v for k, v in state.items() if k.startswith("bank.")}
        own = {name: value for name, value in state.items() if not name.startswith("bank.")}
        self.moments.restore(segments, own)
        if self.bank:
            self.bank.load_state_dict(held)
