"""Detect better by what was seen before: a feature memory for detectors of other libraries.

    from transformers import RTDetrForObjectDetection

    model = RTDetrForObjectDetection.from_pretrained("PekingU/rtdetr_r18vd")
    detector = MemoryDetector.wrap(model)
    for frame in vm.open_stream("clip.mp4"):
        found = detector.step(frame.image, frame.timestamp)

Before a frame's instances are judged, their features attend to rows of the memory; afterwards the
frame's own rows, best first, are written. The class branch alone is touched, so boxes stay what
they were, to the bit; and until the enhancement is trained (`forward_train`), so does all else. The
rows written are raw, with the score that the detector gives them without any memory: what is held
never depends on what was read, and cannot feed on itself. A frame never sees itself, a stream never
another, and nothing is read from the future.

The idea is MAMBA's (https://arxiv.org/abs/2401.09923); its released code writes enhanced rows, and
its numbers see frames from the whole video, ours does neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vismem.detections import Detections
from vismem.memory.base import Budget
from vismem.memory.feature import FeatureConfig, FeatureMemory, Projections, stack
from vismem.memory.feature_rows import Read
from vismem.models.detectors import Adapter, adapter_of, as_tensor
from vismem.models.detectors.forward import Forward, Keys, evaluating
from vismem.models.enhancement import GeneralizedEnhancement, Projected

__all__ = ["MemoryDetector"]

MOST = torch.finfo(torch.float16).max  # what memory can hold


class MemoryDetector:
    """A detector and one memory for each stream that it watches. Use it from one thread.

    Args:
        adapter: Of the detector.
        enhancement: Reads the memory; as wide as the detector's features.
        config: Of each memory.
        budget: Bytes of each memory.
        keys: The most rows that a frame attends to; all by default.
        read: Which rows if there are more: see `vismem.memory.feature.FeatureSnapshot.keys`.
        min_score: Instances below it are not written.
        threshold: Detections below it are not given out.
        without: Share of training steps without any memory, so that the detector stays able to do
            without.
        streams: Streams remembered; beyond it the one not stepped for longest is forgotten.

    Raises:
        ValueError: If the enhancement, the memory and the detector differ in width, or there is
            room for no stream.
    """

    def __init__(
        self,
        adapter: Adapter,
        enhancement: GeneralizedEnhancement,
        config: FeatureConfig,
        budget: Budget | int | str,
        *,
        keys: int | None = None,
        read: Read = "score",
        min_score: float = 0.0,
        threshold: float = 0.0,
        without: float = 0.25,
        streams: int = 64,
    ) -> None:
        widths = {adapter.class_layer.in_features, enhancement.dim, config.dim}
        if len(widths) > 1:
            raise ValueError(f"detector, enhancement and memory differ in width: {sorted(widths)}")
        if streams < 1:
            raise ValueError(f"streams is 1 or more, not {streams}")
        self.most_streams = streams
        self.adapter, self.enhancement = adapter, enhancement
        self.config, self.budget = config, Budget.parse(budget)
        self.keys, self.read = keys, read
        self.min_score, self.threshold, self.without = min_score, threshold, without
        self.generator = torch.Generator().manual_seed(config.seed)
        self._memories: dict[str, FeatureMemory] = {}  # the one unseen for longest first
        self._projections: dict[str, Projections] = {}
        self._now: Forward | None = None
        hook = adapter.class_layer.register_forward_pre_hook(self._enhance)
        self._hooks = [*adapter.watch(), hook]

    @classmethod
    def wrap(
        cls,
        model: nn.Module,
        memory: FeatureConfig | None = None,
        *,
        budget: Budget | int | str = "512kB",
        enhancement: GeneralizedEnhancement | None = None,
        adapter: Adapter | None = None,
        **options: Any,
    ) -> MemoryDetector:
        """Give a detector a memory. The model itself stays as it is; `remove` undoes it.

        Args:
            model: RT-DETR v1 or v2 or D-FINE of transformers, Faster R-CNN of torchvision.
            memory: Configuration of each stream's memory; by default the best rows by score.
            budget: Bytes of each stream's memory.
            enhancement: Trained before; by default a new one, which changes nothing.
            adapter: For a detector of another kind.
            **options: Of the class, such as ``keys`` and ``threshold``.

        Raises:
            UsageError: If there is no adapter for the model.

        Example:
            >>> import numpy as np
            >>> from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
            >>> model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
            >>> detector = MemoryDetector.wrap(model)
            >>> found = detector.step(np.zeros((48, 64, 3), np.uint8), time=0.0, stream="door")
            >>> found.stream, detector.streams
            ('door', ('door',))
        """
        adapter = adapter_of(model) if adapter is None else adapter
        dim = adapter.class_layer.in_features
        if enhancement is None:
            enhancement = GeneralizedEnhancement(dim)
        config = FeatureConfig(dim) if memory is None else memory
        enhancement.to(adapter.like.device)
        return cls(adapter, enhancement, config, budget, **options)

    def remove(self) -> None:
        """Take all hooks off the model, which is then as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    # ------------------------------------------------------------------ detecting

    def step(self, image: Any, time: float, stream: str = "camera") -> Detections:
        """Detect in the next frame of a stream, and remember it.

        Args:
            image: ``(H, W, 3)`` uint8 RGB, a `vismem.frame.Frame`, or ``(3, H, W)`` floating point
                made ready by the model's own processor.
            time: Seconds, never earlier than the stream's frame before.
            stream: Whose memory; a new name begins a new one.

        Returns:
            Boxes in pixels of ``image``, best first.

        Raises:
            ValueError: If the frame is refused; nothing is then remembered of it.
        """
        return self.step_batch([image], [time], [stream])[0]

    @torch.no_grad()
    def step_batch(
        self, images: Sequence[Any], times: Sequence[float], streams: Sequence[str]
    ) -> list[Detections]:
        """Detect in one frame of each of several streams at once; see `step`.

        Raises:
            ValueError: If any frame is refused, a stream is named twice, or there are more than are
                remembered; nothing is then remembered of any of them.
        """
        if not len(images) == len(times) == len(streams) or len(set(streams)) < len(streams):
            raise ValueError("each picture needs a time and a stream of its own")
        if len(streams) > self.most_streams:
            raise ValueError(f"{len(streams)} streams at once, {self.most_streams} are remembered")
        if not images:
            return []
        pictures = [as_tensor(image) for image in images]
        memories = [self._memory_at(*at) for at in zip(streams, times, strict=True)]
        now = Forward(self._keys(memories, times, streams))
        with evaluating(self.adapter.model), evaluating(self.enhancement):
            outputs = self._run(now, self.adapter.prepare(pictures))
        sizes = [(picture.shape[1], picture.shape[2]) for picture in pictures]
        found = [
            self._detections(*one, time, stream)
            for one, time, stream in zip(
                self.adapter.found(outputs, sizes), times, streams, strict=True
            )
        ]
        for stream, memory in zip(streams, memories, strict=True):  # from here on nothing fails
            self._hold(stream, memory)
        for n, (memory, time) in enumerate(zip(memories, times, strict=True)):
            self._write(memory, time, now, n)
        return found

    def _memory_at(self, stream: str, time: float) -> FeatureMemory:
        """The stream's memory, or a new one; refused before anything is done if time goes back."""
        memory = self._memories.get(stream)
        if memory is None:
            memory = FeatureMemory(self.config, self.budget)
        if not -math.inf < time < math.inf or time < memory.last:
            raise ValueError(
                f"stream {stream!r} is at {memory.last} s, {time} s cannot follow; "
                f"reset({stream!r}) begins it anew"
            )
        return memory

    def _hold(self, stream: str, memory: FeatureMemory) -> None:
        """Make a stream the one seen last; forget the one unseen for longest if there is no room.

        What was projected of its rows goes with it.
        """
        self._memories.pop(stream, None)
        self._memories[stream] = memory
        if len(self._memories) > self.most_streams:
            self.reset(next(iter(self._memories)))

    def _keys(
        self, memories: Sequence[FeatureMemory], times: Sequence[float], streams: Sequence[str]
    ) -> Keys | None:
        """What the frames of a batch attend to; each row is projected once while it is held."""
        which = "all" if self.keys is None else self.read
        parts = [memory.snapshot().keys(self.keys, which, self.generator) for memory in memories]
        batch, like = stack(parts), self.enhancement.key.weight
        if not batch.mask.any():
            return None
        tables, index, rows = [], [], 0
        for part, stream in zip(parts, streams, strict=True):
            kept = self._projections.setdefault(stream, Projections())
            tables.append(kept(part, self._project, self.enhancement.version))
            index.append(part.slots + rows)
            rows += len(tables[-1])
        table = tables[0] if len(tables) == 1 else torch.cat(tables)
        ages = torch.tensor(times, dtype=torch.float64)[:, None] - batch.times
        return Keys(
            Projected(*table.chunk(2, dim=-1)),
            batch.boxes.to(like.device),
            batch.scores.to(like.device),
            ages.to(like.device, torch.float32),
            pad_sequence(index, batch_first=True, padding_value=-1).to(like.device),
        )

    def _project(self, rows: Tensor) -> Tensor:
        return torch.cat(self.enhancement.project(rows.to(self.enhancement.key.weight)), -1)

    def _write(self, memory: FeatureMemory, time: float, now: Forward, n: int) -> None:
        """Remember the surest instances of a picture of the batch."""
        if not now.mask.numel():  # none in any picture, or the model did not even judge
            memory.skip(time)
            return
        numbers, good = now.best(self.config.max_tokens, self.min_score)
        rows = numbers[n][good[n]]
        if not len(rows):
            memory.skip(time)
            return
        parts = (part[n][rows] for part in (now.scores, now.boxes, now.labels))
        scores, boxes, labels = parts
        memory.write(now.tokens[n][rows], time, scores=scores, boxes=boxes, labels=labels)

    def _detections(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, time: float, stream: str
    ) -> Detections:
        sure = scores >= self.threshold
        boxes, scores, labels = (part[sure].cpu() for part in (boxes, scores, labels))
        return Detections(
            boxes.float().numpy(), scores.float().numpy(), labels.numpy(), None, time, stream
        )

    # ------------------------------------------------------------------ inside the model

    def _run(self, now: Forward, inputs: Any, targets: Any = None) -> Any:
        if not self._hooks:
            raise ValueError("the memory was removed from this detector; wrap it again")
        self._now = now
        try:
            return self.adapter.run(inputs, targets)
        finally:
            self._now = None

    def _enhance(self, layer: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        """Take the features that are about to be judged; nothing, where no frame is stepped."""
        now = self._now
        if now is None:
            return None
        (features,) = arguments
        now.boxes, now.mask = self.adapter.boxes()
        now.tokens = self.adapter.spread(features, now.mask)
        with torch.no_grad():
            judged = self.adapter.class_layer.forward(now.tokens.detach())
            now.scores, now.labels = self.adapter.confidence(judged)
        small = (now.tokens.detach().abs() <= MOST).all()
        if not small or not now.boxes.isfinite().all() or not now.scores.isfinite().all():
            raise ValueError(
                "the detector's features, boxes or scores are not finite, or beyond float16: the "
                "picture or its weights are broken; nothing was remembered"
            )
        if now.keys is None:
            return None
        x = now.tokens.to(self.enhancement.key.weight.dtype)
        enhanced = self.enhancement(
            x,
            now.keys.rows,
            boxes=now.boxes.to(x),
            key_boxes=now.keys.boxes.to(x),
            key_scores=now.keys.scores,
            ages=now.keys.ages,
            index=now.keys.index,
        )
        if not enhanced.isfinite().all():
            raise ValueError(
                "enhanced features are not finite: the enhancement's weights are broken"
            )
        return (self.adapter.gather(enhanced.to(features.dtype), now.mask, features),)

    # ------------------------------------------------------------------ training

    def forward_train(
        self, key: Sequence[Any], refs: Sequence[Sequence[Any]], ages: Tensor, targets: Any
    ) -> Any:
        """Run the detector on key frames with earlier frames of their clips as memory.

        The earlier frames are looked at as `step` would, without gradients, and what is read of
        them is what the detector found there: true boxes of them would give the answer away. Each
        clip reads a random number of its frames, in a share of `without` none. No stream's memory
        is read or written. Which parameters learn is the optimiser's: ``enhancement.parameters()``
        for a frozen detector, the model's as well for both.

        Args:
            key: ``B`` pictures, as `step` takes them.
            refs: ``R`` earlier pictures of each, ``B`` lists of equal length.
            ages: ``(B, R)`` how many seconds before the key frame, not negative.
            targets: As the detector's own training takes them.

        Returns:
            What the detector gives for the key frames: with its loss or losses.

        Raises:
            ValueError: If the numbers of pictures and ages do not fit, or an age is negative.
        """
        flat = [as_tensor(picture) for clip in refs for picture in clip]
        if not flat or len(refs) != len(key) or {*map(len, refs)} != {ages.shape[-1]}:
            raise ValueError("every key frame needs as many earlier frames as there are ages")
        if ages.shape != (len(key), ages.shape[-1]) or not (ages >= 0).all():
            raise ValueError("ages must be (B, R) and not negative: no frame sees the future")
        now = Forward(self._training_keys(flat, ages))
        return self._run(now, self.adapter.prepare([as_tensor(one) for one in key]), targets)

    def _training_keys(self, pictures: Sequence[Tensor], ages: Tensor) -> Keys:
        """The best instances of earlier frames, of a random choice of frames."""
        before, count = Forward(None), self.config.max_tokens
        with torch.no_grad(), evaluating(self.adapter.model):
            self._run(before, self.adapter.prepare(pictures))
        if self.config.evict == "score":
            count = min(count, self.config.quota)
        numbers, good = before.best(count, self.min_score)
        mask = good & self._chosen_frames(*ages.shape).view(-1, 1).to(good.device)
        mask = mask.view(len(ages), -1)

        def rows(part: Tensor) -> Tensor:
            chosen = part[torch.arange(len(part), device=part.device)[:, None], numbers]
            return chosen.reshape(len(ages), -1, *part.shape[2:])

        return Keys(
            rows(before.tokens).to(self.enhancement.key.weight),
            rows(before.boxes),
            rows(before.scores),
            rows(ages.to(mask.device, torch.float32).reshape(-1, 1).expand_as(before.scores)),
            torch.where(mask, torch.arange(mask.shape[1], device=mask.device), -1),
        )

    def _chosen_frames(self, clips: int, frames: int) -> Tensor:
        """Which earlier frames each clip reads, ``(clips, frames)`` bool: 1 to all, or none."""
        order = torch.rand(clips, frames, generator=self.generator).argsort(1).argsort(1)
        some = torch.randint(1, frames + 1, (clips, 1), generator=self.generator)
        none = torch.rand(clips, 1, generator=self.generator) < self.without
        return (order < some) & ~none

    # ------------------------------------------------------------------ streams

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams that have a memory."""
        return tuple(self._memories)

    def memory(self, stream: str = "camera") -> FeatureMemory:
        """The memory of a stream, to look at.

        Raises:
            KeyError: If the stream has none.
        """
        return self._memories[stream]

    def reset(self, stream: str = "camera") -> None:
        """Forget a stream: at a cut, or where another video begins under its name."""
        self._memories.pop(stream, None)
        self._projections.pop(stream, None)

    def state_dict(self, stream: str = "camera") -> dict[str, Tensor]:
        """Give all state of a stream's memory; weights are the modules' own affair.

        Raises:
            KeyError: If the stream has none.
        """
        return self._memories[stream].state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor], stream: str = "camera") -> None:
        """Continue a stream bit for bit.

        Raises:
            ValueError: If the state is of another configuration; nothing is then changed.
        """
        memory = FeatureMemory(self.config, self.budget)
        memory.load_state_dict(state)
        self.reset(stream)
        self._hold(stream, memory)
