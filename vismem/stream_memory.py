"""`StreamMemory`: all that is remembered of one stream.

The moments, a bank of visual tokens, and from when on something was seen to move, the movements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vismem.clock import StreamClock
from vismem.encoders.objects import LOOK_DIM, MOST_LABELS
from vismem.memory.bank import SlotMemory
from vismem.memory.base import WriteReport
from vismem.memory.episodic import EpisodicConfig, EpisodicMemory, Segment
from vismem.memory.movements import MovementConfig, MovementMemory
from vismem.memory.policies import make_bank
from vismem.observation import arguments
from vismem.scenes import grid_of, join_notes, largest_note, write_note

__all__ = ["BANK_SHARE", "StreamMemory"]

BANK_SHARE = 0.5  # of a stream's budget for the bank, where there is one
MOVE_SHARE = 1 / 16  # for the movements, once there was one
MOST_MOVE_BYTES = 1_000_000  # some thousands
MOVES = MovementConfig(look_dim=LOOK_DIM, labels=MOST_LABELS)
MOVE = "move."  # of the tensors of a frame in a log, there where it could be told what moves
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
        self.moves: MovementMemory | None = None  # nothing before a frame that motion was sought in
        self._moved = False
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
        """Bytes of moments, bank and movements."""
        moves = 0 if self.moves is None else self.moves.nbytes
        return self.moments.nbytes + (self.bank.nbytes if self.bank else 0) + moves

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
        if seen := _moving(tensors):
            look = seen.pop("look")
            if len(look):
                (MovementMemory(0, MOVES) if self.moves is None else self.moves).check(
                    look, time, seen
                )

    def begin(self, tensors: Mapping[str, Tensor]) -> bool:
        """Take note that motion is sought; whether just now the first was found, and takes room."""
        if not (seen := _moving(tensors)):
            return False
        if self.moves is None:
            self.moves = MovementMemory(0, MOVES)
        first, self._moved = not self._moved and len(seen["look"]) > 0, self._moved
        self._moved = self._moved or first
        return first

    def write(self, time: float, tensors: Mapping[str, Tensor]) -> WriteReport:
        """Remember one frame.

        Args:
            time: Seconds, never earlier than the write before.
            tensors: What `vismem.observation.observation` gave, or a log gives back.
        """
        report = self.moments.write(time=time, **arguments(tensors))
        seen = _moving(tensors)
        if self.moves is not None and seen and len(seen["look"]):
            self.moves.write(seen.pop("look"), time, **seen)
        if not self.bank:
            return WriteReport(self.nbytes, report.boundary, report.merged, report.dropped)
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
        if self.moves is not None and self._moved:
            share = min(int(MOVE_SHARE * budget), MOST_MOVE_BYTES)
            self.moves.set_budget(share)
            budget -= share
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
        if self.moves is not None:
            other.moves, other._moved = MovementMemory(self.moves.budget, MOVES), self._moved
            other.moves.load_state_dict(self.moves.state_dict())
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
        if self.moves is not None:
            self.moves.forget(start, end)  # of moments that are counted
        return self.moments.forget(start, end) + scenes

    def expire(self, age: float) -> int:
        """Give up what is older than an age in seconds; how much is gone."""
        latest = self.moments.last_time - age
        banks = [bank.oldest for bank in (self.bank, self.moves) if bank is not None]
        oldest = min(self.moments.oldest_end, *banks, math.inf)
        if oldest >= self.moments.last_time - LATE * age:
            return 0
        return self.forget(-math.inf, latest)

    def working_state(self) -> dict[str, Tensor]:
        """All state beside the segments of the moments, as tensors."""
        state = self.moments.working_state()
        if self.bank:
            state |= {f"bank.{name}": value for name, value in self.bank.state_dict().items()}
        if self.moves is not None:
            state |= {MOVE + name: value for name, value in self.moves.state_dict().items()}
            state[MOVE + "begun"] = torch.tensor(self._moved)
        return state

    def restore(self, segments: Sequence[Segment], state: Mapping[str, Tensor]) -> None:
        """Go on from the segments and the working state of another instance.

        Raises:
            ValueError: If they are of another configuration or incomplete.
        """
        held = {k.removeprefix("bank."): v for k, v in state.items() if k.startswith("bank.")}
        own = {n: value for n, value in state.items() if not n.startswith(("bank.", MOVE))}
        if moves := _moving(state):
            self._moved = bool(moves.pop("begun"))
            self.moves = MovementMemory(
                self.moments.budget, MOVES
            )  # its share is set by the caller
            self.moves.load_state_dict(moves)
        self.moments.restore(segments, own)
        if self.bank:
            self.bank.load_state_dict(held)


def _moving(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(MOVE): value for n, value in tensors.items() if n.startswith(MOVE)}
