"""`VisualMemory`: frames go in, answers come out, nothing grows and nothing is lost.

One writer thread encodes frames and feeds the memory; a bounded queue stands between it and the
source. Readers take snapshots: a question never stops the camera. With a path, every frame is
appended to the log before it is acknowledged, so a crash loses nothing that was.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vismem.asking import ask
from vismem.closeable import Closeable
from vismem.encoders import load_encoder
from vismem.encoders.base import Encoder, Encoding
from vismem.engine import Writer
from vismem.errors import StoreError, UsageError
from vismem.frame import Frame
from vismem.heads.answer import THRESHOLD, Answer
from vismem.heads.moving import MotionWatch, Moving
from vismem.journal import Journal, opened, write_copy
from vismem.memory.base import Budget, Recall, WriteReport
from vismem.memory.episodic import EpisodicConfig, EpisodicSnapshot
from vismem.memory.movements import MovementSnapshot
from vismem.memory.objects import ObjectSnapshot
from vismem.memory.slots import SlotSnapshot
from vismem.model_memory import ModelMemory, ModelSettings
from vismem.observation import observation
from vismem.settings import check_policy
from vismem.stats import Stats
from vismem.store import Durability, MemoryStore, VectorIndex
from vismem.stream_set import StreamSet

if TYPE_CHECKING:
    from vismem.models.video_llm import VideoLLM

__all__ = ["VisualMemory"]

Encoded = tuple[Encoding, Moving | None]  # what is made of a frame before it is stored


class VisualMemory(Closeable):
    """A bounded visual memory over one or more streams; see the module.

    Args:
        budget: Bytes that the memory may hold, ``"64MB"``; several streams share it evenly.
        model: A video language model that looks at the streams as well and puts answers into words:
            its name on a hub, the folder of one, or `ModelSettings`. What it remembers has budgets
            of its own.
        llm: That model, if it is loaded already.
        policy: What remembers pictures beside the moments: ``"flash"``, ``"star"`` or
            ``"pyramid"``, which take half of the budget, or ``"moments"`` for nothing.
        path: Directory of a durable memory to begin; without one the memory lives in RAM until
            :meth:`save`. Use :meth:`open` to go on with one.
        encoder: Name of an encoder (``"embedded"``, ``"siglip2"``, a model of a hub) or an encoder.
        durability: ``"process"`` survives a crash of the program, ``"power"`` one of the machine.
        retain: Age in seconds beyond which moments are forgotten, for privacy; ``None`` keeps all.
        motion: Whether to seek what moves, where the camera stands still or gives depth and poses.
        queue: Frames that may wait for the encoder.
        moments: Settings of `EpisodicConfig` beside the sizes that the encoder gives.

    Raises:
        StoreError: If there is something at ``path`` already, or it cannot be written.
        UsageError: If the encoder cannot be had.
        ValueError: If a setting is out of range.

    Example:
        >>> import numpy as np
        >>> with VisualMemory(budget="1MB") as memory:
        ...     _ = memory.write(Frame(np.zeros((36, 64, 3), np.uint8), timestamp=0.0))
        ...     memory.ask("a dog").abstained
        True
    """

    def __init__(
        self,
        budget: Budget | int | str = "64MB",
        *,
        policy: str = "moments",
        path: str | os.PathLike[str] | None = None,
        encoder: str | Encoder = "embedded",
        model: str | ModelSettings | None = None,
        llm: VideoLLM | None = None,
        durability: Durability = "process",
        retain: float | None = None,
        motion: bool = True,
        queue: int = 8,
        moments: Mapping[str, Any] | None = None,
    ):
        size = Budget.parse(budget)
        if retain is not None and not retain > 0:
            raise ValueError(f"retain is an age in seconds above 0, not {retain}")
        if queue < 1:
            raise ValueError(f"the queue needs room for at least one frame, not {queue}")
        name = encoder if isinstance(encoder, str) else encoder.identity["model"]
        check_policy(policy)
        self.encoder = load_encoder(encoder) if isinstance(encoder, str) else encoder
        self.config = {
            "encoder": name,
            "budget": size.bytes,
            "policy": policy,
            "retain": retain,
            "motion": bool(motion),
            "moments": dict(moments or {}),
        }
        settings = ModelSettings(model) if isinstance(model, str) else model
        if settings:
            self.config["model"] = asdict(settings)
        self.sizes = EpisodicConfig(
            token_dim=self.encoder.token_dim,
            embedding_dim=self.encoder.embedding_dim,
            **{"max_tokens": self.encoder.max_tokens, **dict(moments or {})},
        )
        self.stats = Stats()
        self._retain, self._durability = retain, durability
        self._read_only = self._closed = False
        self._watch = MotionWatch() if motion else None
        self._streams = StreamSet(size.bytes, self.sizes, policy, self.stats)
        self._store_lock = threading.RLock()  # held by whoever changes what is on disk
        self._writer = Writer(self._encode, self._take, self._refuse, queue)
        self._journal: Journal | None = None  # of a memory that has a directory
        self._index: VectorIndex | None = None  # of one too large to compare with in full
        self.model: ModelMemory | None = None
        if settings:
            place = Path(path) if path is not None else None
            self.model = ModelMemory(settings, place, llm=llm, retain=retain, durability=durability)
            self.model.check(self.sizes.embedding_dim)  # if it cannot work, nothing is begun
        if path is not None:
            self._journal = self._begin_journal(path)

    def _begin_journal(self, path: str | os.PathLike[str]) -> Journal:
        identity = self.encoder.identity
        store = MemoryStore.create(
            path, encoder=identity, config=self.config, durability=self._durability
        )
        return Journal(store, self.encoder)

    # ------------------------------------------------------------------ opening and closing

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        encoder: Encoder | None = None,
        llm: VideoLLM | None = None,
        salvage: bool = False,
        queue: int = 8,
    ) -> VisualMemory:
        """Go on with a stored memory, or look into it.

        Args:
            path: Its directory.
            read_only: Only ask; works while another process writes.
            encoder: The encoder that it was made with, if it is at hand; loaded by name otherwise.
            llm: The video language model that it was made with, likewise; it is not loaded before
                it is needed.
            salvage: Go on without what is damaged; ``stats.problems`` says what that cost.
            queue: Frames that may wait for the encoder.

        Raises:
            StoreError: If there is no memory, it is damaged, of another encoder or format, or in
                use by another writer.
            UsageError: If its encoder cannot be had.
        """
        with opened(path, read_only=read_only, salvage=salvage) as store:
            config = store.config
            self = cls(
                config["budget"],
                encoder=encoder or config["encoder"],
                policy=config.get("policy", "moments"),
                retain=config["retain"],
                motion=config.get("motion", False),
                durability=store.durability,
                queue=queue,
                moments=config["moments"],
            )
            if dict(self.encoder.identity) != store.encoder:
                raise StoreError(
                    f"{path} was written by {store.encoder}, this is {self.encoder.identity}; "
                    "embeddings of different models never mix"
                )
            self._read_only = read_only
            self.config = dict(config)  # sealed again with every commit
            if config.get("model"):
                settings = ModelSettings(**config["model"])
                self.model = ModelMemory(
                    settings,
                    store.path,
                    llm=llm,
                    read_only=read_only,
                    retain=self._retain,
                    durability=store.durability,
                )
            self._restore(store)
        return self

    def _restore(self, store: MemoryStore) -> None:
        """Take up the last commit, then replay what was acknowledged since."""
        self.stats.problems += store.lost
        self._streams.restore(store)
        if self._read_only:
            self._index = store.vector_index()
        self._journal = Journal(store, self.encoder)
        self._journal.replay(self._streams)

    def save(self, path: str | os.PathLike[str] | None = None) -> None:
        """Seal everything that was written.

        Args:
            path: Where to, for a memory that lives in RAM; it is durable there from then on.

        Raises:
            StoreError: If there is something at ``path`` already, or it cannot be written.
            UsageError: If a path is needed, or the memory already has another.
        """
        self.flush()
        with self._store_lock:
            if self._journal is None:
                if path is None:
                    raise UsageError('this memory lives in RAM; give a path: save("clip.mem")')
                self._journal = self._begin_journal(path)
            home = self._journal.store.path
            if path is not None and Path(path).resolve() != home.resolve():
                raise UsageError(f"this memory lives at {home}; copy that directory")
            self._seal()

    def copy(self, path: str | os.PathLike[str]) -> None:
        """Write what is held now to a directory; this memory goes on where it lives.

        What a video language model remembers is not copied.

        Args:
            path: Of the copy; see `open`, and `vismem.store.pack_memory` for one file of it.

        Raises:
            StoreError: If there is something at ``path`` already, or it cannot be written.
        """
        if not (self._read_only or self._closed):
            self.flush()
        with self._store_lock:
            contents = self._streams.contents()
            config = {key: value for key, value in self.config.items() if key != "model"}
        write_copy(path, contents, encoder=self.encoder.identity, config=config)

    def close(self) -> None:
        """Write what waits, seal, and stop; a memory in RAM that was not saved is gone.

        Raises:
            StoreError: If frames that wait cannot be stored; what was acknowledged is safe.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._writer.flush()
            if self._journal and not self._read_only:
                with self._store_lock:
                    self._seal()
                    self._journal.store.vector_index()  # made now, when no camera waits for it
        finally:
            left = self._writer.close()
            if left:
                self.stats.note(f"{left} frames that waited could not be stored")
            if self.model:
                self.model.close()
            if self._journal:
                self._journal.store.close()

    # ------------------------------------------------------------------ writing

    def write(self, frame: Frame, *, block: bool = True) -> bool:
        """Hand over one frame.

        Args:
            frame: Picture in any form that `as_rgb` takes, and a time.
            block: Whether to wait for room; a live source passes ``False`` and the frame is
                dropped and counted while the writer is behind.

        Returns:
            Whether the frame was taken.

        Raises:
            StoreError: If an earlier frame could not be stored (a full disk): it is kept, and
                stored when there is room again; this frame was not taken, hand it over again.
            UsageError: If the memory is open for reading only, or closed.
            ValueError: If the frame holds no picture or no time, or its pose is not ``(4, 4)``.
        """
        self._check_writable("write")
        if self.model:
            _ = self.model.llm  # loaded here, where the caller learns what is wrong with it
        try:
            owned = frame.owned()
        except ValueError:
            self.stats.refused += 1
            raise
        for name in ("depth", "intrinsics"):
            if getattr(frame, name) is not None and getattr(owned, name) is None:
                self.stats.note(f"{frame.stream}: {name} left out, wrong shape or numbers")
        frame = owned
        if self._writer.put(frame, block=block):
            return True
        self.stats.dropped += 1
        return False

    def _check_writable(self, to: str) -> None:
        if self._read_only or self._closed:
            raise UsageError(f"this memory is closed or open for reading only; open it to {to}")

    def flush(self) -> None:
        """Wait until every frame handed over so far is in the memory, and on disk if it has one.

        Raises:
            StoreError: If a frame could not be stored; it is kept, call again when there is room.
        """
        self._writer.flush()

    def _encode(self, frame: Frame) -> Encoded:
        began = time.thread_time()
        encoding = self.encoder.encode([frame.image])[0]
        moving = self._watch.step(frame) if self._watch else None
        self.stats.encode_seconds += time.thread_time() - began
        return encoding, moving

    def _refuse(self, frame: Frame, error: Exception) -> None:
        self.stats.refused += 1
        self.stats.note(f"a frame was left out: {type(error).__name__}: {error}")

    def _take(self, frame: Frame, encoded: Encoded) -> None:
        """Store one encoded frame, then remember it."""
        with self._store_lock:
            # Sealing comes first: if it fails, the frame is tried again and must not be there yet.
            if self._journal and self._journal.due(self.budget.bytes):
                self._seal()
            self._append(frame, *encoded)

    def _append(self, frame: Frame, encoding: Encoding, moving: Moving | None) -> None:
        stream = self._streams.take(frame.stream)
        at = stream.clock.time_of(frame.timestamp)
        if at is None:
            self.stats.late += 1
            return
        tensors = observation(frame, encoding, self.sizes.max_thumbnail, moving)
        stream.check(at, tensors)  # what is logged can be replayed
        self._streams.world.check(at, tensors)
        if self.model:  # first, for a frame that comes again is not looked at twice
            self.model.write(stream.name, frame, at, encoding.embedding)
        if self._journal:
            self._journal.log(stream.name, at, frame.timestamp, tensors)
        if stream.clock.accept(frame.timestamp, at):
            self.stats.clock_jumps += 1
            self.stats.note(
                f"{stream.name}: the clock was set back; time was carried on at {at:.1f} s"
            )
        self._streams.remember(stream.name, at, tensors)
        self.stats.written += 1
        if self._retain is not None and self._streams.expire(self._retain) and self._journal:
            self._journal.stale = True  # the next seal takes it from the disk as well

    # ------------------------------------------------------------------ changing

    @property
    def budget(self) -> Budget:
        """What all streams together may hold."""
        return Budget(self._streams.budget)

    @property
    def policy(self) -> str:
        """What remembers pictures beside the moments; ``"moments"`` for nothing."""
        return self._streams.policy

    def change(
        self, *, budget: Budget | int | str | None = None, policy: str | None = None
    ) -> WriteReport:
        """Take another budget or another policy, at once, and for good where there is a directory.

        When this returns, the memory holds no more than the new budget, and what it gave up is gone
        from the disk as well. It is done on a copy, which then takes the memory's place: questions
        are answered meanwhile, frames wait, and for that long the bank of pictures is held twice. A
        crash finds the memory as it was before or as it is after. What a video language model
        remembers has its own budgets and stays as it is.

        Moments are kept, whatever the policy; beside a bank they have half of the budget. A bank
        takes over what the one before it holds: the scenes in time order, with their true times,
        weights, notes and thumbnails. What is gone for good stays gone: no bank can give back
        tokens that another had averaged or given up, or tell apart what it had merged. The abstract
        memory of ``"star"`` is summed up anew from the scenes, and lost to the others. After
        ``"moments"`` a bank begins empty, for thumbnails are no frames; back to ``"moments"``, the
        scenes are given up.

        Args:
            budget: Bytes, or text such as ``"64MB"``; as before if ``None``.
            policy: See the class; as before if ``None``.

        Returns:
            Bytes held now, and how many moments and scenes were merged and given up for it.

        Raises:
            StoreError: If the disk is full or fails; nothing is changed, call it again.
            UsageError: If the memory is open for reading only, or closed.
            ValueError: If the budget is no size, or there is no such policy; nothing is changed.

        Example:
            >>> import numpy as np
            >>> with VisualMemory("1MB") as memory:
            ...     _ = memory.write(Frame(np.zeros((36, 64, 3), np.uint8), timestamp=0.0))
            ...     _ = memory.change(budget="200KB", policy="flash")
            ...     memory.budget.bytes, memory.policy, memory.nbytes <= 200_000
            (200000, 'flash', True)
        """
        self._check_writable("change it")
        with self._store_lock:
            size = self.budget if budget is None else Budget.parse(budget)
            policy = self.policy if policy is None else policy
            check_policy(policy)
            config = {**self.config, "budget": size.bytes, "policy": policy}
            streams, report = self._streams.changed(size.bytes, policy)
            if self._journal:
                self._seal(streams, config)
            self._streams, self.config = streams, config
            streams.count(report)
        return report

    # ------------------------------------------------------------------ forgetting and sealing

    def forget(self, start: float, end: float, *, stream: str | None = None) -> int:
        """Forget every moment that touches a span of time, in memory and on disk.

        Args:
            start: First second.
            end: Last second.
            stream: Only of this stream; of all by default.

        Returns:
            How many moments are gone.

        Raises:
            StoreError: If the disk is full; call it again, or the disk goes on holding them.
            UsageError: If the memory is open for reading only.
            ValueError: If the span ends before it starts.
        """
        self._check_writable("forget")
        if not start <= end:
            raise ValueError(f"a span goes from its start to its end, not {start} to {end}")
        self.flush()
        with self._store_lock:
            gone = self._streams.forget(start, end, stream)
            if self.model:
                self.model.forget(start, end, [s for s in self._streams if stream in (None, s)])
            # Also where nothing counts as gone: the log may hold frames of the span whose moment
            # was given up before, and a bank what it sums up of all frames.
            if self._journal:
                self._seal()
        return gone

    def _seal(
        self, streams: StreamSet | None = None, config: Mapping[str, Any] | None = None
    ) -> None:
        """Seal the memory as it is now, or as it shall be."""
        assert self._journal is not None
        if self.model:
            self.model.save(self._journal.store.path)
        streams = self._streams if streams is None else streams
        for problem in self._journal.seal(streams, self.config if config is None else config):
            self.stats.note(problem)

    # ------------------------------------------------------------------ reading

    def snapshots(self) -> dict[str, EpisodicSnapshot]:
        """Immutable views of the moments of all streams, by name."""
        return self._streams.snapshots()

    def visual(self) -> dict[str, SlotSnapshot]:
        """Immutable views of the banks of visual tokens, by stream; none for ``"moments"``."""
        return self._streams.visual()

    def things(self) -> ObjectSnapshot | None:
        """An immutable view of the things in the world; ``None`` before depth showed any place."""
        streams = self._streams
        with streams.lock:
            return streams.world.snapshot()

    def movements(self) -> dict[str, MovementSnapshot]:
        """Immutable views of what moved, of the streams in which that could be told."""
        return self._streams.movements()

    def recall(
        self,
        question: str | None = None,
        *,
        tokens: int = 8192,
        stream: str | None = None,
        before: float | None = None,
    ) -> Recall:
        """Give visual tokens for a video language model, in time order with true times.

        See `Recall.frames` for a prompt with a timestamp before each observation, and
        `vismem.memory.positions.mrope_positions` for the ids of multimodal rotary positions.

        Args:
            question: What they should be about; the newest frames come first in any case.
            tokens: The most that the model takes.
            stream: Whose; the only one by default.
            before: Nothing that was seen later than this second is read.

        Raises:
            UsageError: If the memory keeps no visual tokens, or there is no such stream.

        Example:
            >>> import numpy as np
            >>> with VisualMemory("1MB", policy="flash") as memory:
            ...     _ = memory.write(Frame(np.zeros((36, 64, 3), np.uint8), timestamp=2.5))
            ...     memory.flush()
            ...     [(time, len(tokens)) for time, _, tokens in memory.recall("a dog").frames()]
            [(2.5, 15)]
        """
        streams = self._streams  # of one policy, if it is changed meanwhile
        if streams.policy == "moments":
            raise UsageError("this memory keeps no visual tokens; make it with policy='flash'")
        views = streams.visual()
        if stream is None and len(views) == 1:
            (stream,) = views
        if stream not in views:
            raise UsageError(f"name one of the streams: {', '.join(views) or 'none yet'}")
        query = self.encoder.query(question).vector if question else None
        return views[stream].read(query, tokens=tokens, before=before)

    def ask(
        self,
        question: str,
        *,
        wait: bool = True,
        threshold: float = THRESHOLD,
        words: bool = True,
    ) -> Answer:
        """Answer a question from what was seen.

        Args:
            question: Plain English; see :func:`vismem.heads.answer.answer`.
            wait: Whether frames that were handed over before, a queue full at most, must be in the
                memory first; a live view passes ``False``.
            threshold: Least score that is claimed.
            words: Whether the video language model, if there is one, puts the answer into words.

        Raises:
            SourceError: If the model cannot be loaded because its hub is out of reach.
            StoreError: If a frame could not be stored and ``wait`` is set.
            UsageError: If the model cannot be had.
            ValueError: If the question is empty.
        """
        if wait and not self._read_only:
            self.flush()
        return ask(
            question,
            self._streams,
            self.encoder,
            threshold=threshold,
            index=self._index,
            model=self.model if words else None,
        )

    def describe(self) -> dict[str, Any]:
        """Bytes held, the budget, frames and the span of time, as `ask` reports them."""
        return self._streams.describe()

    def counts(self) -> dict[str, int]:
        """How many ``moments`` and ``scenes`` are held, and how many frames are ``waiting``."""
        return self._streams.counts() | {"waiting": self._writer.waiting}

    @property
    def nbytes(self) -> int:
        """Bytes held in memory, all streams together."""
        return self._streams.nbytes

    def last_timestamp(self, stream: str) -> float | None:
        """Newest timestamp of a stream by its source's clock, where a resumed run goes on."""
        held = self._streams.get(stream)
        return held.clock.last_raw if held else None
