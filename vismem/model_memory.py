"""`ModelMemory`: what a video language model remembers of each stream, beside its moments."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vismem.errors import UsageError
from vismem.frame import Frame, as_rgb
from vismem.kv_store import DurableKV
from vismem.kv_store.sizes import DiskSizes
from vismem.memory.base import Budget
from vismem.memory.kv.config import KVConfig
from vismem.memory.kv.memory import KVMemory
from vismem.memory.kv.quantize import Precision
from vismem.memory.kv.retrieval import Retrieval
from vismem.store import Durability
from vismem.stream_memory import LATE

if TYPE_CHECKING:
    from vismem.models.video_llm import VideoAnswer, VideoLLM, VideoStream

__all__ = ["ModelMemory", "ModelSettings", "model_stores"]

FOLDER = "model"  # in the directory of a memory
WORDS = 64  # tokens of a frame beside its picture: when it was seen


@dataclass(frozen=True)
class ModelSettings:
    """How a video language model looks at streams and is asked about them.

    Args:
        name: Of a model of the hub, or a folder that ``save_pretrained`` wrote; kept as an absolute
            path, so that it is found from anywhere.
        fps: Frames a second of each stream that it looks at.
        budget: Bytes in RAM for each stream.
        disk: Bytes on disk for each stream of a memory that has a directory.
        precision: What keys and values are stored in.
        window: Newest tokens that a frame is encoded with in view.
        blocks: Blocks that a question reads in each layer.
        drop: Cosine with what was last kept at a place above which a visual token is left out;
            ``None`` keeps all.
        answer: Most tokens of an answer.

    Raises:
        ValueError: If a number is out of range.
    """

    name: str
    fps: float = 0.5
    budget: int | str = "2GB"
    disk: int | str = "32GB"
    precision: Precision = "int8"
    window: int = 4096
    blocks: int = 64
    drop: float | None = 0.5
    answer: int = 128

    def __post_init__(self) -> None:
        if not (self.fps > 0 and math.isfinite(self.fps)):
            raise ValueError(f"a model looks at more than 0 frames a second, not {self.fps}")
        if self.precision not in ("model", "int8", "int4"):
            raise ValueError(f"precision is model, int8 or int4, not {self.precision}")
        if min(self.window, self.blocks, self.answer) < 1:
            raise ValueError("window, blocks and answer are at least one")
        Budget.parse(self.budget)
        Budget.parse(self.disk)
        if os.path.isdir(self.name):
            object.__setattr__(self, "name", os.path.abspath(self.name))


class ModelMemory:
    """The memories that a video language model has of the streams, one for each.

    The model is loaded when it is first needed. One thread writes; any thread may ask.

    Args:
        settings: Of the model.
        path: Directory of the memory that it belongs to; without one, all lives in RAM.
        llm: The loaded model, if it is at hand.
        read_only: Whether it is only asked.
        retain: Age in seconds beyond which what was seen is forgotten; ``None`` keeps all.
        durability: What a frame that was looked at survives, where there is a directory.

    Attributes:
        settings: As given.
    """

    def __init__(
        self,
        settings: ModelSettings,
        path: Path | None = None,
        *,
        llm: VideoLLM | None = None,
        read_only: bool = False,
        retain: float | None = None,
        durability: Durability = "process",
    ) -> None:
        self.settings, self._path, self._read_only = settings, path, read_only
        self._retain, self._durability = retain, durability
        self._lock = threading.RLock()  # held while the model is loaded or a memory is opened
        self._llm = llm
        self._streams: dict[str, VideoStream] = {}
        self._memories: dict[str, KVMemory | DurableKV] = {}

    @property
    def llm(self) -> VideoLLM:
        """The model.

        Raises:
            SourceError: If the hub cannot be reached.
            UsageError: If it cannot be had: not installed, damaged, of no supported family.
        """
        from vismem.models.video_llm import VideoLLM

        with self._lock:
            if self._llm is None:
                self._llm = VideoLLM.load(self.settings.name)
            return self._llm

    def check(self, embedding: int) -> None:
        """Refuse what could not work with any frame, before anything begins.

        Args:
            embedding: Width of a frame's embedding.

        Raises:
            SourceError: See `llm`.
            UsageError: See `llm`; if a budget has no room for a stream.
        """
        config = self._config(embedding)
        prompt = len(self.llm.family.init_ids) * config.token_bytes
        least = max(4 * prompt, 2 * config.max_tokens * config.token_bytes)
        if Budget.parse(self.settings.budget).bytes < least:
            raise UsageError(
                f"{self.settings.budget} in RAM has no room for a frame of {self.settings.name}: "
                f"give the model a budget of at least {least} bytes (--model-budget)"
            )
        least = DiskSizes(config).least(prompt)
        if self._path is not None and Budget.parse(self.settings.disk).bytes < least:
            raise UsageError(
                f"{self.settings.disk} on disk has no room for a window of {self.settings.name}: "
                f"give the model at least {least} bytes (--model-disk), or a smaller window"
            )

    def _config(self, embedding: int) -> KVConfig:
        return self.llm.config(
            precision=self.settings.precision,
            window=self.settings.window,
            max_tokens=self.llm.family.most_tokens + WORDS,
            embedding_dim=embedding,
        )

    # ------------------------------------------------------------------ writing

    def write(self, stream: str, frame: Frame, time: float, embedding: Tensor) -> bool:
        """Look at a frame, if it is time for one, and forget what is too old.

        Args:
            stream: Of the frame.
            frame: Its picture.
            time: Of the stream, in seconds.
            embedding: Of the frame by the pipeline's encoder, ``(E,)``.

        Returns:
            Whether it was looked at; a frame that was before is not again.

        Raises:
            StoreError: If the disk is full or fails; nothing is lost, call it again.
            ValueError: If the frame cannot be taken.
        """
        image = torch.from_numpy(as_rgb(frame.image))[None]
        with self._lock:
            held = self._find(stream) or self._begin(stream, len(embedding))
        memory = self._memories[stream]
        kept = memory.memory if isinstance(memory, DurableKV) else memory
        if self._retain is not None and kept.oldest < time - LATE * self._retain:
            held.forget(-math.inf, time - self._retain)
        # As if on a grid, so that rounding of times leaves no frame out.
        if time < kept.last_time + 0.999 / self.settings.fps:
            return False
        held.write(image, [time], embeddings=embedding[None].float())
        return True

    def _find(self, stream: str) -> VideoStream | None:
        """The memory of a stream, opened if it lies on disk; ``None`` if there is none yet."""
        path = self._folder(stream)
        if stream not in self._streams and path and (path / "manifest.json").exists():
            self._open(stream, path)
        return self._streams.get(stream)

    def _begin(self, stream: str, embedding: int) -> VideoStream:
        path, config = self._folder(stream), self._config(embedding)
        memory: KVMemory | DurableKV
        if path is None:
            device = self.llm.family.device
            memory = KVMemory(config, self.settings.budget, device=device)
        else:
            memory = self._create(stream, path, config)
        return self._hold(stream, memory)

    def _create(self, stream: str, path: Path, config: KVConfig) -> DurableKV:
        return DurableKV(
            path,
            config,
            self.settings.budget,
            self.settings.disk,
            device=self.llm.family.device,
            identity=self._identity(stream),
            durability=self._durability,
        )

    def _open(self, stream: str, path: Path) -> None:
        memory = DurableKV.open(
            path,
            device=self.llm.family.device,
            identity=self._identity(stream),
            read_only=self._read_only,
        )
        if self._read_only and not memory.memory.seen:
            memory.close()  # its writer has not looked at anything yet
        else:
            self._hold(stream, memory)

    def _hold(self, stream: str, memory: KVMemory | DurableKV) -> VideoStream:
        from vismem.models.frame_drop import FrameDrop

        settings = self.settings
        try:
            held = self.llm.stream(
                memory,
                retrieval=Retrieval(settings.blocks, source="fused"),
                drop=None if settings.drop is None else FrameDrop(settings.drop),
                chunk=1,
            )
        except BaseException:
            if isinstance(memory, DurableKV):
                memory.close()  # it can be opened again
            raise
        self._streams[stream], self._memories[stream] = held, memory
        return held

    def _folder(self, stream: str) -> Path | None:
        if self._path is None:
            return None
        return self._path / FOLDER / hashlib.sha256(stream.encode()).hexdigest()[:16]

    def _identity(self, stream: str) -> dict[str, str]:
        return {**self.llm.family.identity, "stream": stream}

    # ------------------------------------------------------------------ asking

    def ask(
        self, question: str, streams: Iterable[str], vector: Tensor, before: float | None = None
    ) -> dict[str, VideoAnswer]:
        """Ask the model about streams.

        Args:
            question: As it is asked.
            streams: Their names; those that it never looked at are left out.
            vector: The question in the space of the frames' embeddings, ``(E,)``.
            before: Nothing that was seen later than this second is read.

        Raises:
            StoreError: If what is stored is damaged, or of another model.
        """
        answers = {}
        for name in streams:
            with self._lock:
                held = self._find(name)
            if held:
                answers[name] = held.ask(
                    question,
                    max_new_tokens=self.settings.answer,
                    before=before,
                    embedding=vector,
                )
        return answers

    # ------------------------------------------------------------------ forgetting, saving

    def forget(self, start: float, end: float, streams: Iterable[str]) -> int:
        """Give up what touches a span of time; how many blocks and frames are gone.

        Raises:
            StoreError: If the disk is full; call it again, or the disk goes on holding them.
        """
        gone = 0
        for name in streams:
            path = self._folder(name)
            with self._lock:
                if name in self._streams:
                    gone += self._streams[name].forget(start, end)
                elif path and (path / "manifest.json").exists():
                    with DurableKV.open(path) as memory:  # without the model: nobody asks anything
                        gone += memory.forget(start, end)
        return gone

    def save(self, path: Path) -> None:
        """Give what lives in RAM a home in the directory of a memory, for good.

        Raises:
            StoreError: If the disk is full or fails; call it again.
        """
        with self._lock:
            self._path = path
            for name, memory in list(self._memories.items()):
                folder = self._folder(name)
                if isinstance(memory, KVMemory) and folder is not None:
                    self._hold(name, self._adopted(name, folder, memory))

    def _adopted(self, name: str, folder: Path, memory: KVMemory) -> DurableKV:
        durable = self._create(name, folder, memory.config)
        try:
            durable.adopt(memory)
        except BaseException:
            durable.close()
            shutil.rmtree(folder, ignore_errors=True)  # the next try begins anew
            raise
        return durable

    def held(self) -> dict[str, dict[str, int]]:
        """Bytes by stream and place; see `KVMemory.held`."""
        return {name: memory.held() for name, memory in self._memories.items()}

    def close(self) -> None:
        """Let go of all directories."""
        for memory in self._memories.values():
            if isinstance(memory, DurableKV):
                memory.close()


def model_stores(path: Path) -> list[Path]:
    """Directories of what a model remembers in a stored memory, one for each stream."""
    folder = path / FOLDER
    return sorted(store for store in folder.glob("*") if store.is_dir())
