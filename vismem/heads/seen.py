"""What a detector remembers of one stream: who was there, how they look, and how sure that was.

`FeatureMemory` holds the looks of people seen with certainty, and only those, so that a mistake
does not feed on itself; `Identities` says who is who. Somebody new gets an id once seen for a
moment, and not before it was asked, with all views of that moment, whether it is somebody who left:
one look at half a person at the edge of the picture tells too little.

Source of ids that have to be earned: Wojke et al., "Simple Online and Realtime Tracking with a Deep
Association Metric", ICIP 2017 (https://arxiv.org/abs/1703.07402).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.errors import UsageError
from vismem.memory.feature import FeatureConfig, FeatureMemory
from vismem.memory.feature_rows import overlaps
from vismem.memory.identities import Identities, IdentityConfig

__all__ = ["DetectConfig", "Seen"]


@dataclass(frozen=True)
class DetectConfig:
    """What counts as found, and what a memory may add.

    Args:
        threshold: Score from which one frame alone is enough.
        weak: Score from which a box is worth a second look.
        most: Boxes of one frame that are looked at, the surest; further ones get no id.
        alike: Cosine with a sure sight of the same person that a weak box needs where it goes on.
        known: The same where it comes back after a gap or elsewhere.
        overlap: Intersection over union with the last box from which a box goes on.
        gap: Seconds unseen after which nobody goes on, but comes back.
        share: Part of the smaller of two boxes inside the other from which a weak one is the same
            person as a surer one.
        settle: Seconds from the first to the last of two sights or more of somebody new, from which
            there is an id; 0 for an id at first sight.
        same: Likeness of the views by then to those of somebody who had left, from which it is the
            same person.
        frames: Length of the mean of scores along a track.
        budget: Bytes of each stream's remembered looks.
        identities: People held of each stream.
        streams: Streams remembered; beyond it the one unseen for longest is forgotten.

    Raises:
        UsageError: If a number is out of its range.
    """

    threshold: float = 0.5
    weak: float = 0.1
    most: int = 32
    alike: float = 0.7
    known: float = 0.85
    overlap: float = 0.4
    gap: float = 2.0
    share: float = 0.6
    settle: float = 0.4
    same: float = 0.85
    frames: int = 10
    budget: str = "1MB"
    identities: int = 256
    streams: int = 64

    def __post_init__(self) -> None:
        if not (0 < self.threshold <= 1 and 0 <= self.weak):
            raise UsageError(f"a threshold is above 0 and at most 1, not {self.threshold}")
        if min(self.most, self.frames, self.streams) < 1 or self.identities < 0:
            raise UsageError("most, frames and streams are 1 or more, identities 0 or more")
        if not (self.settle >= 0 and self.gap >= 0):
            raise UsageError("settle and gap are 0 seconds or more")


@dataclass
class Track:
    """What is told of somebody."""

    mean: float = 0.0  # of scores
    count: int = 0  # of how many
    id: int = -1  # none yet


class Seen:
    """What is remembered of one stream."""

    def __init__(self, config: DetectConfig, dim: int) -> None:
        self.config = config
        self.looks = FeatureMemory(FeatureConfig(dim, max_tokens=config.most), config.budget)
        self.identities = Identities(
            IdentityConfig(
                dim,
                most=config.identities,
                max_tokens=config.most,
                alike=config.known,
                place=config.known - config.alike + 0.2,
                motion=config.gap / 2,
                birth=config.threshold,
            )
        )
        self._tracks: dict[int, Track] = {}  # by number in `identities`
        self._given = 0  # ids

    @property
    def nbytes(self) -> int:
        """Bytes of all that is remembered."""
        return self.looks.nbytes + self.identities.nbytes + 32 * len(self._tracks)

    def update(
        self, looks: Tensor, boxes: Tensor, scores: Tensor, time: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read, decide, and only then write.

        Returns:
            Rows that are accepted ``(K,)``, their ids ``(K,)`` and the mean score of each track.
        """
        sure = scores >= self.config.threshold
        wanted = sure | self._supported(looks, boxes, time)
        rows, parts = self._without_parts(boxes, sure, wanted)
        births = scores[rows].masked_fill(parts, 0.0)  # part of a person is nobody new
        ids = self.identities.update(looks[rows], time, boxes=boxes[rows], scores=births)
        accepted = sure[rows] | (ids >= 0)
        rows, ids = rows[accepted], ids[accepted]
        certain = sure[rows] & (ids >= 0)
        if certain.any():
            new = rows[certain]
            facts = {"scores": scores[new], "boxes": boxes[new], "labels": ids[certain]}
            self.looks.write(looks[new], time, **facts)
        else:
            self.looks.skip(time)
        self._follow(ids, scores[rows])
        now = self._settle(time)
        tracks = [self._tracks.get(now.get(who, who), Track()) for who in ids.tolist()]
        given = torch.tensor([track.id for track in tracks], dtype=torch.int64)
        return rows, given, torch.tensor([track.mean for track in tracks], dtype=torch.float32)

    def _supported(self, looks: Tensor, boxes: Tensor, time: float) -> Tensor:
        """Which boxes look like a person seen with certainty who goes on here or comes back."""
        config, remembered = self.config, self.looks.snapshot()
        ids, last = self.identities.held("ids"), self.identities.held("last")
        whose = torch.searchsorted(ids, remembered.labels)
        held = torch.isin(remembered.labels, ids)  # others were forgotten
        bank = F.normalize(remembered.tokens.float(), dim=1)[held]
        cosines = F.normalize(looks.float(), dim=1) @ bank.T
        likeness = torch.full((len(looks), len(ids)), -1.0)
        likeness.scatter_reduce_(1, whose[held].expand(len(looks), -1), cosines, "amax")
        near = overlaps(boxes, self.identities.held("boxes")) >= config.overlap
        goes_on = near & (time - last <= config.gap) & (likeness >= config.alike)
        return (goes_on | (likeness >= config.known)).any(1)

    def _without_parts(self, boxes: Tensor, sure: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Rows that are wanted, without weak boxes of a person who has a surer one already.

        Returns:
            The rows ``(K,)``, and which of them, although sure, are such boxes, ``(K,)`` bool.
        """
        low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        shared = (high - low).clamp_min(0).prod(-1)
        same = shared > self.config.share * torch.minimum(areas[:, None], areas)
        taken: list[int] = []
        parts: list[bool] = []
        for row in torch.nonzero(wanted)[:, 0].tolist():  # surest first
            part = bool(same[row, taken].any())
            if sure[row] or not part:
                taken.append(row)
                parts.append(part)
        return torch.tensor(taken, dtype=torch.int64), torch.tensor(parts, dtype=torch.bool)

    def _follow(self, who: Tensor, scores: Tensor) -> None:
        """Take the scores into the mean along each track."""
        for number, score in zip(who.tolist(), scores.tolist(), strict=True):
            if number >= 0:
                track = self._tracks.setdefault(number, Track())
                track.count = min(track.count + 1, self.config.frames)
                track.mean += (score - track.mean) / track.count

    def _settle(self, time: float) -> dict[int, int]:
        """Give an id to those seen for long enough; forget those who were not and are gone.

        Returns:
            Who of them turned out to be somebody known, and whom.
        """
        numbers, first, last = map(self.identities.held, ("ids", "first", "last"))
        named = torch.tensor([self._tracks[n].id >= 0 for n in numbers.tolist()], dtype=torch.bool)
        settled = last - first >= self.config.settle
        joined: dict[int, int] = {}
        for row in torch.nonzero(settled & ~named)[:, 0].tolist():
            number, track = int(numbers[row]), self._tracks[int(numbers[row])]
            gone = numbers[named & (last < first[row])]  # never seen beside this one
            gone = gone[~torch.isin(gone, torch.tensor(list(joined.values()), dtype=torch.int64))]
            alike = self.identities.likeness(number, gone)
            if len(gone) and alike.max() >= self.config.same:
                old = int(gone[alike.argmax()])
                self.identities.join(number, old)
                joined[number] = old
                track.id = self._tracks[old].id
                self._tracks[old] = track
            else:
                track.id, self._given = self._given, self._given + 1
        self.identities.forget(numbers[~settled & ~named & (time - last > self.config.gap)])
        held = set(self.identities.held("ids").tolist())
        self._tracks = {number: self._tracks[number] for number in self._tracks if number in held}
        return joined

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors; loading it continues bit for bit."""
        rows = [(number, t.mean, t.count, t.id) for number, t in self._tracks.items()]
        state = {
            "tracks": torch.tensor(rows, dtype=torch.float64).reshape(-1, 4),
            "given": torch.tensor(self._given),
        }
        for name, part in (("looks", self.looks), ("identities", self.identities)):
            state |= {f"{name}.{key}": value for key, value in part.state_dict().items()}
        return state

    @classmethod
    def from_state(cls, config: DetectConfig, state: Mapping[str, Tensor]) -> Seen:
        """Make again what `state_dict` told of.

        Raises:
            ValueError: If it is of another configuration or incomplete.
        """
        try:
            seen = cls(config, state["looks.tokens"].shape[1])
            for name, part in (("looks", seen.looks), ("identities", seen.identities)):
                start = f"{name}."
                part.load_state_dict(
                    {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
                )
            rows, seen._given = state["tracks"].tolist(), int(state["given"])
        except KeyError as error:
            raise ValueError(f"the state holds no {error}; it is incomplete") from error
        seen._tracks = {int(n): Track(mean, int(count), int(id)) for n, mean, count, id in rows}
        if set(seen._tracks) != set(seen.identities.held("ids").tolist()):
            raise ValueError("the state's tracks are not of its identities")
        return seen
