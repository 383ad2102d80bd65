"""The tracker of CTVIS as published: identities of instances from a memory of embeddings.

Per frame the surest queries are taken, doubles removed by their masks, and each compared with the
tracklets in memory. What matches none becomes a new tracklet; a tracklet unseen for too long is
forgotten. Kept as it is: with one detection and one tracklet the bi-softmax is always 1, so that
they match whatever they look like, and masks of all frames are kept for the end.

Source: Ying et al., "CTVIS: Consistent Training for Online Video Instance Segmentation", ICCV 2023
(https://arxiv.org/abs/2307.12616); classes ``SimpleTracker``, ``Tracklet`` and ``MemoryBank`` of
KainingYing/CTVIS. Identities without these quirks and within a bound are
`vismem.memory.identities.Identities`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.memory.assignment import assign

__all__ = ["PublishedBank", "PublishedTracker", "PublishedTrackerConfig", "similarities"]

EmbedType = Literal["last", "momentum", "similarity_guided", "temporally_weighted_softmax"]
_MOMENTUM = 0.75  # share of the newest embedding


@dataclass(frozen=True)
class PublishedTrackerConfig:
    """Settings under their published names.

    Args:
        match_metric: ``"bisoftmax"`` or ``"cosine"``.
        match_type: ``"greedy"`` in order of score, or ``"hungarian"``.
        match_score_thr: Above which a detection is a tracklet seen again.
        frame_weight: Prefer tracklets seen often where several are above the threshold.
        inference_select_thr: Class probability above which a query is a detection.
        init_score_thr: Class probability above which an unmatched one is a new tracklet.
        mask_nms_thr: Intersection over union above which the less sure mask is a double.
        num_dead_frames: A tracklet unseen for more frames is forgotten.
        embed_type: How the embeddings of a tracklet become one.
        maximum_cache: Embeddings kept of a tracklet.
        temporal_score_type: Class scores of a sequence: ``"mean"`` or ``"max"`` over frames.
        noise_frame_num: Frames after which short sequences are dropped.
        none_frame_num: Empty frames at the end that a dropped one has at least.
        suppress_frame_num: Frames that a dropped one was seen in are fewer.
    """

    match_metric: Literal["bisoftmax", "cosine"] = "bisoftmax"
    match_type: Literal["greedy", "hungarian"] = "greedy"
    match_score_thr: float = 0.3
    frame_weight: bool = True
    inference_select_thr: float = 0.01
    init_score_thr: float = 0.01
    mask_nms_thr: float = 0.6
    num_dead_frames: int = 20
    embed_type: EmbedType = "similarity_guided"
    maximum_cache: int = 10
    temporal_score_type: Literal["mean", "max"] = "mean"
    noise_frame_num: int = 8
    none_frame_num: int = 2
    suppress_frame_num: int = 3


class _Tracklet:
    """The embeddings of one instance."""

    def __init__(self, cache: int) -> None:
        self.cache = cache
        self.scores: list[float] = []
        self.embeddings: list[Tensor] = []
        self.momentum = self.guided = torch.empty(0)
        self.seen = 0  # frames
        self.last = -1

    def update(self, score: float, embedding: Tensor, frame: int) -> None:
        if self.embeddings:
            alike = F.cosine_similarity(torch.stack(self.embeddings), embedding[None])
            share = alike.mean().clamp_min(0)
            self.guided = (1 - share) * self.guided + share * embedding
            self.momentum = (1 - _MOMENTUM) * self.momentum + _MOMENTUM * embedding
        else:
            self.guided = self.momentum = embedding
        self.scores = [*self.scores, score][-self.cache :]
        self.embeddings = [*self.embeddings, embedding][-self.cache :]
        self.seen, self.last = self.seen + 1, frame

    def embedding(self, kind: EmbedType) -> Tensor:
        if kind == "last":
            return self.embeddings[-1]
        if kind == "momentum":
            return self.momentum
        if kind == "similarity_guided":
            return self.guided
        count = len(self.scores)
        weights = torch.tensor(self.scores) + torch.arange(1, count + 1) / count
        return (weights[:, None] * torch.stack(self.embeddings)).sum(0) / weights.sum()


class PublishedBank:
    """The tracklets that are alive, in order of their birth.

    Args:
        num_dead_frames: A tracklet unseen for more frames is forgotten.
        maximum_cache: Embeddings kept of a tracklet.
    """

    def __init__(self, num_dead_frames: int = 20, maximum_cache: int = 10) -> None:
        self.num_dead_frames, self.maximum_cache = num_dead_frames, maximum_cache
        self._tracklets: dict[int, _Tracklet] = {}

    @property
    def ids(self) -> list[int]:
        """Their ids."""
        return list(self._tracklets)

    @property
    def seen(self) -> list[int]:
        """In how many frames each was seen."""
        return [tracklet.seen for tracklet in self._tracklets.values()]

    def embeddings(self, kind: EmbedType) -> Tensor:
        """One embedding of each, ``(M, C)``."""
        return torch.stack([tracklet.embedding(kind) for tracklet in self._tracklets.values()])

    def update(self, ids: list[int], scores: Tensor, embeddings: Tensor, frame: int) -> None:
        """Add what was seen in a frame, ``(n,)`` and ``(n, C)``, then forget the dead."""
        for number, score, embedding in zip(ids, scores.tolist(), embeddings, strict=True):
            tracklet = self._tracklets.setdefault(number, _Tracklet(self.maximum_cache))
            tracklet.update(score, embedding, frame)
        self._tracklets = {
            number: tracklet
            for number, tracklet in self._tracklets.items()
            if frame - tracklet.last <= self.num_dead_frames
        }


def similarities(
    detections: Tensor, tracklets: Tensor, metric: Literal["bisoftmax", "cosine"]
) -> Tensor:
    """Compare embeddings ``(N, C)`` with ``(M, C)``, ``(N, M)``.

    The bi-softmax is the mean of the softmax over tracklets and the softmax over detections.
    """
    if metric == "cosine":
        return F.normalize(detections, dim=1) @ F.normalize(tracklets, dim=1).T
    products = detections @ tracklets.T
    return (products.softmax(1) + products.softmax(0)) / 2


def without_doubles(masks: Tensor, threshold: float) -> list[int]:
    """Numbers of the masks ``(N, H, W)``, best first, that no better one covers.

    Args:
        masks: Logits; a pixel belongs to a mask above 0.
        threshold: Intersection over union above which two are the same.
    """
    inside = (masks > 0).flatten(1).float()
    both = inside @ inside.T
    areas = inside.sum(1)
    same = both / (areas[:, None] + areas - both).clamp_min(1e-6) > threshold
    kept: list[int] = []
    for number in range(len(masks)):
        if not same[number, kept].any():
            kept.append(number)
    return kept


@dataclass
class _Sequence:
    """What is given out of one instance at the end."""

    logits: list[Tensor] = field(default_factory=list)
    masks: dict[int, Tensor] = field(default_factory=dict)


class PublishedTracker:
    """Follows instances through one clip, frame by frame; see the module.

    A baseline to measure against: it keeps every mask, as published, and has no state to save.

    Args:
        config: Settings.

    Example:
        >>> tracker = PublishedTracker(PublishedTrackerConfig())
        >>> logits, masks = torch.tensor([[4.0, 0.0]]), torch.ones(1, 2, 2)
        >>> for look in (torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])):
        ...     print(tracker.step(logits, masks, look))  # nothing alike, and matched all the same
        ([0], [0])
        ([0], [0])
    """

    def __init__(self, config: PublishedTrackerConfig) -> None:
        self.config = config
        self.bank = PublishedBank(config.num_dead_frames, config.maximum_cache)
        self._sequences: dict[int, _Sequence] = {}
        self._frame = self._ids = 0

    def step(
        self, logits: Tensor, masks: Tensor, embeddings: Tensor
    ) -> tuple[list[int], list[int]]:
        """Take the next frame.

        Args:
            logits: ``(Q, K + 1)``, the last class is no object.
            masks: ``(Q, H, W)`` logits.
            embeddings: ``(Q, C)``.

        Returns:
            Ids of the instances seen and the query of each, surest first.
        """
        config, frame = self.config, self._frame
        scores = logits.softmax(1)[:, :-1].amax(1)
        order = scores.argsort(descending=True, stable=True)
        order = order[: max(1, int((scores > config.inference_select_thr).sum()))]
        order = order[without_doubles(masks[order], config.mask_nms_thr)]
        ids = self._associate(embeddings[order])
        for place, query in enumerate(order.tolist()):
            if ids[place] < 0 and scores[query] > config.init_score_thr:
                ids[place], self._ids = self._ids, self._ids + 1
        named = [place for place, number in enumerate(ids) if number >= 0]
        ids, order = [ids[place] for place in named], order[named]
        self.bank.update(ids, scores[order], embeddings[order], frame)
        for number, query in zip(ids, order.tolist(), strict=True):
            sequence = self._sequences.setdefault(number, _Sequence())
            sequence.logits.append(logits[query])
            sequence.masks[frame] = masks[query]
        self._drop_noise()
        self._frame += 1
        return ids, order.tolist()

    def sequences(self) -> tuple[list[int], Tensor, Tensor]:
        """Give all instances up to now, in order of their first frame.

        Returns:
            Their ids, class logits ``(n, K + 1)``, and mask logits ``(n, T, H, W)``, zero where
            an instance was not seen.

        Raises:
            ValueError: If there are none.
        """
        if not self._sequences:
            raise ValueError("no instance was seen")
        scores, masks = [], []
        for sequence in self._sequences.values():
            logits = torch.stack(sequence.logits)
            mean = self.config.temporal_score_type == "mean"
            scores.append(logits.mean(0) if mean else logits.amax(0))
            sample = next(iter(sequence.masks.values()))
            picture = sample.new_zeros(self._frame, *sample.shape)
            for frame, mask in sequence.masks.items():
                picture[frame] = mask
            masks.append(picture)
        return list(self._sequences), torch.stack(scores), torch.stack(masks)

    def _associate(self, embeddings: Tensor) -> list[int]:
        """The id of each detection, best first; -1 for none."""
        config, known = self.config, self.bank.ids
        ids = [-1] * len(embeddings)
        if not known:
            return ids
        values = similarities(
            embeddings, self.bank.embeddings(config.embed_type), config.match_metric
        )
        seen = torch.tensor(self.bank.seen, dtype=values.dtype)
        if config.match_type == "hungarian":
            for row, column in zip(*assign(-values.numpy()), strict=True):
                if values[row, column] > config.match_score_thr:
                    ids[row] = known[column]
            return ids
        for row in range(len(ids)):
            weighted, likely = values[row], values[row] > config.match_score_thr
            if config.frame_weight and likely.sum() > 1:
                weighted = weighted * torch.where(likely, seen, seen[likely].mean())
            column = int(weighted.argmax())
            if weighted[column] > config.match_score_thr:
                ids[row] = known[column]
                values[row + 1 :, column] = 0
        return ids

    def _drop_noise(self) -> None:
        """Forget sequences that were seen a few times early and not lately."""
        config, frame = self.config, self._frame
        if frame <= config.noise_frame_num:
            return
        for number, sequence in list(self._sequences.items()):
            empty = frame - max(sequence.masks)
            if empty >= config.none_frame_num and len(sequence.masks) < config.suppress_frame_num:
                del self._sequences[number]
