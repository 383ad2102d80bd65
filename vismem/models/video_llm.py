"""A video language model over a memory of keys and values: frames go in, questions are answered.

After ReKV (https://arxiv.org/abs/2503.00540). One model serves any number of streams; all that
belongs to a stream is in its memory, so a stream goes on from a restored memory as if nothing had
happened.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vismem.errors import UsageError
from vismem.memory.base import WriteReport
from vismem.memory.kv.config import KVConfig
from vismem.memory.kv.retrieval import Retrieval
from vismem.memory.kv.snapshot import KVSnapshot
from vismem.models.answer import Question, VideoAnswer, external_scores
from vismem.models.families import Family, load
from vismem.models.frame_drop import FrameDrop
from vismem.models.kv_attention import Encoding, Plan, host
from vismem.models.kv_context import Context
from vismem.models.rekv import PublishedEncoding
from vismem.models.rope import frame_coords

__all__ = ["KVBank", "VideoAnswer", "VideoLLM", "VideoStream"]


class KVBank(Protocol):
    """What a stream needs of its memory: a `KVMemory` is one, a `DurableKV` too."""

    @property
    def config(self) -> KVConfig:
        """Sizes."""

    @property
    def companion(self) -> Mapping[str, Tensor]:
        """What was given with the newest write that gave any."""

    def start(self, kv: Tensor) -> None:
        """Keep the init prompt."""

    def write_kv(
        self,
        kv: Tensor,
        time: float,
        *,
        coords: Tensor | None = None,
        embedding: Tensor | None = None,
        companion: Mapping[str, Tensor] | None = None,
    ) -> WriteReport:
        """Add one frame."""

    def snapshot(self) -> KVSnapshot:
        """Give an immutable view."""

    def forget(self, start: float, end: float) -> int:
        """Give up all that touches a span of time."""


class VideoLLM:
    """A loaded video language model that can host memories; threads may share it.

    Args:
        family: The model behind the interface of its family, as from `families.load`. Its language
            model gets an attention of ours, which is that of ``sdpa`` for any other use.

    Example:
        >>> llm = VideoLLM.load("Qwen/Qwen2.5-VL-3B-Instruct")  # doctest: +SKIP
        >>> stream = llm.stream(KVMemory(llm.config(window=4096), "4GB"))  # doctest: +SKIP
        >>> stream.write(frames, times)  # doctest: +SKIP
        >>> stream.ask("when did the dog come in?").text  # doctest: +SKIP
        'At 12 seconds.'
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        host(family.model)

    @classmethod
    def load(cls, name: str, **options: Any) -> VideoLLM:
        """Load a model by name; see `families.load`."""
        return cls(load(name, **options))

    def config(self, **sizes: Any) -> KVConfig:
        """The configuration of a memory for this model; sizes as of `KVConfig`."""
        return KVConfig(self.family.shape, self.family.dtype, **sizes)

    def stream(self, memory: KVBank, **options: Any) -> VideoStream:
        """Begin a stream, or go on with the one that a memory holds; see `VideoStream`."""
        return VideoStream(self, memory, **options)


class VideoStream:
    """One stream of frames, remembered by a memory.

    One thread writes. Any thread may ask, also while frames are being encoded: a question reads the
    memory as it was when it was asked, and leaves nothing behind in the stream.

    Args:
        llm: The model.
        memory: Of `llm.config`; empty, or with what a stream of this model has written.
        retrieval: How the blocks that a question reads are chosen.
        timestamps: Whether the time of a frame is written before it, for the model to read.
        drop: Which visual tokens are left out before the language model sees them; none by default.
        chunk: Frames of one forward. It changes speed, not what is remembered.
        published: Whether to encode and to answer as ReKV does, to the number: without timestamps
            or drop, for frames of exactly one block.
        init_ids: Tokens that the stream begins with; those of the family by default.

    Raises:
        UsageError: If memory and model do not fit, or options contradict each other.
    """

    def __init__(
        self,
        llm: VideoLLM,
        memory: KVBank,
        *,
        retrieval: Retrieval | None = None,
        timestamps: bool = True,
        drop: FrameDrop | None = None,
        chunk: int = 8,
        published: bool = False,
        init_ids: Sequence[int] | None = None,
    ) -> None:
        family, config = llm.family, memory.config
        if config.shape != family.shape or config.dtype != family.dtype:
            raise UsageError(
                f"the memory is for {config.shape} in {config.dtype}, the model has {family.shape} "
                f"in {family.dtype}; make the memory with VideoLLM.config"
            )
        place = memory.snapshot().sinks.device
        if place.type != family.device.type:
            raise UsageError(
                f"the memory is on {place}, the model on {family.device}; make the memory with "
                f"device={str(family.device)!r}"
            )
        if chunk < 1:
            raise UsageError(f"a forward takes at least one frame, not {chunk}")
        if published and (drop or family.mrope):
            raise UsageError("the published mode drops no tokens and knows no M-RoPE")
        self.family, self.memory, self.drop, self.chunk = family, memory, drop, chunk
        self.published, self.timestamps = published, timestamps and not published
        self.retrieval = retrieval or (Retrieval.published() if published else Retrieval())
        # Held for as long as frames are handed over, not while they are encoded.
        self._lock = threading.Lock()
        if not self.snapshot().sinks.shape[3]:
            self._start(family.init_ids if init_ids is None else init_ids)

    def snapshot(self) -> KVSnapshot:
        """The memory as it is now, from any thread."""
        with self._lock:
            return self.memory.snapshot()

    def forget(self, start: float, end: float) -> int:
        """Give up blocks and frames that touch a span of seconds; how many there were."""
        with self._lock:
            return self.memory.forget(start, end)

    # ------------------------------------------------------------------ encoding

    def write(
        self,
        frames: Tensor | np.ndarray,
        times: Sequence[float],
        *,
        embeddings: Tensor | None = None,
    ) -> list[WriteReport]:
        """Encode frames and remember them.

        Args:
            frames: ``(F, H, W, 3)`` uint8 RGB.
            times: When each was seen, in seconds, ascending.
            embeddings: Of the frames by another encoder, ``(F, E)``, for a memory that keeps them.

        Returns:
            What the memory did with each frame.

        Raises:
            ValueError: If anything is refused. Where a forward or the memory fails, the frames of
                that forward are not remembered, or only those before the one that failed.
        """
        moments = [float(time) for time in times]
        if len(frames) != len(moments):
            raise ValueError(f"{len(frames)} frames need as many times, not {len(moments)}")
        if not moments:
            raise ValueError("there are no frames to write")
        if not all(map(math.isfinite, moments)):
            raise ValueError(f"times must be finite seconds, not {moments}")
        for before, after in zip([self.last_time, *moments], moments, strict=False):
            if after < before:
                raise ValueError(
                    f"time went backwards, from {before:.3f} s to {after:.3f} s; sort the stream"
                )
        if embeddings is not None and len(embeddings) != len(moments):
            raise ValueError(f"{len(moments)} frames need as many embeddings")
        vectors = [None] * len(moments) if embeddings is None else list(embeddings)
        reports = []
        for start in range(0, len(moments), self.chunk):
            part = slice(start, start + self.chunk)
            reports += self._encode(frames[part], moments[part], vectors[part])
        return reports

    @property
    def last_time(self) -> float:
        """When the newest frame that is still held was seen; minus infinity if there is none."""
        view = self.snapshot()
        if view.window:
            return view.window[-1].time
        return view.blocks[-1].last if view.blocks else -math.inf

    def _start(self, ids: Sequence[int]) -> None:
        """Encode the words that stand before all frames."""
        config, empty = self.memory.config, self.snapshot()
        if self.published and len(ids) > config.window:
            raise UsageError(f"a window of {config.window} tokens has no room for the init prompt")
        if not ids:
            raise UsageError("a stream begins with at least one token; give init_ids")
        words = torch.arange(len(ids))[:, None].expand(-1, 3)
        plan: Encoding | PublishedEncoding = (
            PublishedEncoding(self.family, empty, len(ids))
            if self.published
            else Encoding(self.family, empty.sinks, (), config.window, [words])
        )
        self._forward(self.family.embed_text(ids), plan)
        with self._lock:
            self.memory.start(torch.stack(plan.kv))

    def _encode(
        self,
        frames: Tensor | np.ndarray,
        times: Sequence[float],
        embeddings: Sequence[Tensor | None],
    ) -> list[WriteReport]:
        family, config, view = self.family, self.memory.config, self.snapshot()
        found = family.embed_frames(frames)
        state: Mapping[str, Tensor] = self.memory.companion
        kept = torch.ones(found.embeds.shape[:2], dtype=torch.bool)
        states: list[Mapping[str, Tensor] | None] = [None] * len(times)
        if self.drop:
            for n, tokens in enumerate(found.embeds):
                kept[n], state = self.drop(tokens, state)
                states[n] = state
        parts, coords, visual = [], [], []
        for n, time in enumerate(times):
            before, after = family.frame_ids(time if self.timestamps else None)
            shown = torch.zeros(len(before) + kept.shape[1] + len(after), dtype=torch.bool)
            shown[len(before) : len(before) + kept.shape[1]] = True
            there = torch.ones_like(shown)
            there[shown] = kept[n]
            coords.append(frame_coords(found.coords, len(before), len(after))[there])
            visual.append(shown[there])
            words = family.embed_text([*before, *after])
            seen = found.embeds[n, kept[n].to(words.device)]
            parts += [words[: len(before)], seen, words[len(before) :]]
        sizes = [len(part) for part in coords]
        if max(sizes) > config.max_tokens:
            raise ValueError(
                f"a frame has {max(sizes)} tokens, the memory takes {config.max_tokens}; "
                "make it with a larger max_tokens, or use smaller frames"
            )
        plan: Encoding | PublishedEncoding
        if self.published:
            if set(sizes) != {config.block}:
                raise ValueError(
                    f"as published a frame is one block: {sizes[0]}, not {config.block}"
                )
            plan = PublishedEncoding(family, view, sum(sizes))
        else:
            plan = Encoding(family, view.sinks, view.window, config.window, coords)
        deepstack = [part[kept.to(part.device)] for part in found.deepstack or ()] or None
        self._forward(torch.cat(parts), plan, visual=torch.cat(visual), deepstack=deepstack)
        made = torch.stack(plan.kv).split(sizes, 3)
        with self._lock:
            return [
                self.memory.write_kv(kv, time, coords=where, embedding=vector, companion=after)
                for kv, time, where, vector, after in zip(
                    made, times, coords, embeddings, states, strict=True
                )
            ]

    def _forward(self, embeds: Tensor, plan: Plan, **more: Any) -> None:
        """Run the language model for its keys and values; nobody needs what it would say."""
        still = torch.zeros(len(embeds), dtype=torch.int64)
        self.family.forward(embeds[None], positions=still, kvmem=plan, **more)

    # ------------------------------------------------------------------ questions

    def ask(
        self,
        question: str,
        *,
        prompt: str | None = None,
        max_new_tokens: int = 128,
        before: float | None = None,
        embedding: Tensor | None = None,
    ) -> VideoAnswer:
        """Answer a question, greedily.

        Args:
            question: It chooses what is read.
            prompt: What the model is asked, where that is more than the question: the choices, say.
            max_new_tokens: Most tokens of the answer.
            before: Answer as of this second; nothing that was seen later is read.
            embedding: Of the question by the encoder of the frames' embeddings, ``(E,)``, where
                ``retrieval.source`` asks for it.

        Raises:
            UsageError: If the model came without its tokenizer.
            ValueError: If something does not fit.
        """
        family = self.family
        return self.ask_ids(
            family.text_ids(question),
            family.question_ids(question if prompt is None else prompt),
            max_new_tokens=max_new_tokens,
            before=before,
            embedding=embedding,
        )

    def ask_ids(
        self,
        question: Sequence[int],
        prompt: Sequence[int],
        *,
        max_new_tokens: int = 128,
        before: float | None = None,
        embedding: Tensor | None = None,
        rows: Sequence[int] | None = None,
        stop_ids: frozenset[int] | None = None,
    ) -> VideoAnswer:
        """Answer a question given as tokens; see `ask`.

        Args:
            question: Tokens that choose what is read.
            prompt: Tokens that the answer follows.
            max_new_tokens: Most tokens of the answer.
            before: See `ask`.
            embedding: See `ask`.
            rows: Blocks to read in every layer instead of choosing any, as places among those held.
            stop_ids: Tokens that end the answer; those of the family by default.

        Raises:
            ValueError: If something does not fit.
        """
        if not len(question) or not len(prompt):
            raise ValueError("a question has at least one token, its prompt too")
        if max_new_tokens < 1:
            raise ValueError(f"an answer has at least one token, not {max_new_tokens}")
        context = Context(self.family, self.snapshot(), self.retrieval.tail, before)
        held = len(context.view.blocks)
        if rows is not None and any(not 0 <= row < held for row in rows):
            raise ValueError(f"rows are places among {held} blocks, not {list(rows)}")
        external = None
        if self.retrieval.source != "internal" and rows is None:
            width = self.memory.config.embedding_dim
            if embedding is None or embedding.shape != (width,) or not width:
                raise ValueError(f"{self.retrieval.source} retrieval needs an embedding ({width},)")
            external = external_scores(context.view.embeddings(), embedding)
        given = None if rows is None else sorted(rows)
        asked = Question(self.family, context, self.retrieval, external, given, self.published)
        stop = self.family.stop_ids if stop_ids is None else stop_ids
        return asked.answer(question, prompt, max_new_tokens, stop)
