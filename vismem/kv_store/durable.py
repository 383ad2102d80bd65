"""`DurableKV`: a `KVMemory` that survives a crash, and that keeps on disk what RAM has no room for.

Every write is appended to a log, exactly as it was given, before the memory takes it. Now and then
the memory is sealed: blocks that are new become a segment, an immutable pair of files that is
mapped, so that their copies in RAM may leave; everything else becomes the state; the log begins
anew. What the directory holds has a bound of its own: the oldest whole segments go first.

When to seal and what to give up follows from what is on disk alone, so a memory that was killed and
opened again goes on, bit for bit, as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from vismem.closeable import Closeable
from vismem.errors import StoreError, UsageError
from vismem.kv_store.segments import KVSegments
from vismem.kv_store.sizes import DiskSizes, as_stored, facts
from vismem.memory.base import Budget, Recall, WriteReport
from vismem.memory.kv.block import Block
from vismem.memory.kv.config import KVConfig
from vismem.memory.kv.memory import KVMemory
from vismem.memory.kv.snapshot import KVSnapshot
from vismem.memory.kv.window import KVContext
from vismem.store import Durability, MemoryStore, pack, unpack

__all__ = ["DurableKV"]

UNSEALED_SHARE = 0.25  # of the RAM budget, for blocks that are in RAM alone


class DurableKV(Closeable):
    """Keys and values of one stream, in RAM and in a directory; see the module.

    One thread writes; `snapshot` and `read` may be called from any.

    Args:
        path: Directory of a memory to begin; `open` goes on with one.
        config: Sizes; see `KVConfig`.
        budget: Bytes in RAM, see `KVMemory`.
        disk: Bytes that the directory may hold, at any time; a hard limit.
        hot: Bytes of blocks kept dequantised on the device, beside the budget.
        device: Where sinks and window are kept and blocks are read to.
        identity: Whose keys and values these are: name of the model, digest of its weights.
        durability: ``"process"`` survives a crash of the program, ``"power"`` one of the machine.
        log: Bytes of log after which it is sealed; by default those of a full window, at least
            1 MiB. A restart replays at most these.

    Attributes:
        memory: The memory itself; write through this class only.
        lost: What the medium lost and opening had to leave behind, one line each.
        problems: What did not work and can wait, one line each.

    Raises:
        StoreError: If there is something at ``path`` already, or it cannot be written.
        UsageError: If ``disk`` has no room for window and log; says how much is needed. If a
            compression has no ``repr`` of its own to be known again by.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from vismem.memory.kv.shape import KVShape
        >>> path = Path(tempfile.mkdtemp()) / "lobby.kv"
        >>> config = KVConfig(KVShape(2, 2, 1, 4), torch.float32, "model", block=3, window=6)
        >>> with DurableKV(path, config, "1MB", "8MB", identity={"model": "tiny"}) as memory:
        ...     _ = memory.write_kv(torch.randn(2, 2, 1, 3, 4), 0.5)
        >>> with DurableKV.open(path, identity={"model": "tiny"}) as memory:
        ...     [(block.first, block.last) for block in memory.blocks]
        [(0.5, 0.5)]
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: KVConfig,
        budget: Budget | int | str = "2GB",
        disk: Budget | int | str = "32GB",
        *,
        hot: Budget | int | str = 0,
        device: torch.device | str = "cpu",
        identity: Mapping[str, str] | None = None,
        durability: Durability = "process",
        log: int | None = None,
    ) -> None:
        settings = {
            "kv": facts(config),
            "budget": Budget.parse(budget).bytes,
            "disk": Budget.parse(disk).bytes,
            "log": log,
            # Always 19 digits: when to seal goes by the bytes of the log, which must not be chance.
            "stream": 2**61 + secrets.randbits(61),
        }
        self._set_up(config, settings, hot, device)
        store = MemoryStore.create(
            path, encoder=identity or {}, config=settings, durability=durability
        )
        self._live_in(store, read_only=False)

    def _set_up(
        self,
        config: KVConfig,
        settings: Mapping[str, Any],
        hot: Budget | int | str,
        device: torch.device | str,
    ) -> None:
        """Make the memory, if its settings can work."""
        self.config = config
        self.disk = Budget(settings["disk"])
        self.memory = KVMemory(config, settings["budget"], hot=hot, device=device)
        self._stream = int(settings["stream"])
        self._sizes = DiskSizes(config, settings["log"])
        self._check_room(self._sizes.least())

    def _live_in(self, store: MemoryStore, read_only: bool) -> None:
        self._store, self._read_only = store, read_only
        self._segments = KVSegments(store, self.memory, self._sizes, self.disk.bytes, self._stream)
        self.lost: tuple[str, ...] = store.lost
        self.problems: tuple[str, ...] = ()
        self._logged = self._tokens = 0  # bytes and tokens of the log
        self._lock = threading.RLock()  # held for the moment of a change or a snapshot
        self._behind = False  # the log may hold a write that the memory has not taken
        self._due = False  # something was given up that has to leave the disk

    def _check_room(self, least: int) -> None:
        if least > self.disk.bytes:
            raise UsageError(
                f"a disk budget of {self.disk.bytes} bytes has no room for window, log and blocks: "
                f"give at least {least}, or make window, max_tokens or log smaller"
            )

    def _check_prompt(self, nbytes: int) -> None:
        """Refuse a budget in RAM that the init prompt takes more than a quarter of."""
        if 4 * nbytes > self.budget.bytes:
            raise UsageError(
                f"a budget of {self.budget.bytes} bytes in RAM has no room for an init prompt of "
                f"{nbytes} bytes: give at least {4 * nbytes}"
            )

    # ------------------------------------------------------------------ opening and closing

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        config: KVConfig | None = None,
        *,
        budget: Budget | int | str | None = None,
        disk: Budget | int | str | None = None,
        hot: Budget | int | str = 0,
        device: torch.device | str = "cpu",
        identity: Mapping[str, str] | None = None,
        read_only: bool = False,
        salvage: bool = False,
    ) -> DurableKV:
        """Go on with a memory, or look into it.

        Args:
            path: Its directory.
            config: Of the model that is to use it, to be checked; needed where a compression of
                one's own is used.
            budget: Bytes in RAM from now on; as it was made with by default.
            disk: Bytes on disk from now on; likewise.
            hot: Bytes of blocks kept dequantised on the device.
            device: Where sinks and window are kept and blocks are read to.
            identity: Of the model that is to use it, to be checked.
            read_only: Only read; works while another process writes, and shows what was
                acknowledged until now.
            salvage: Check every byte and go on without the segments that are damaged; `lost` says
                what that cost.

        Raises:
            StoreError: If there is no memory, it is damaged, of another model or configuration, or
                in use by another writer.
            UsageError: If ``disk`` has no room for window and log, or ``budget`` none for the init
                prompt; says how much is needed.
        """
        given = {"budget": budget, "disk": disk}
        asked = {name: Budget.parse(size).bytes for name, size in given.items() if size is not None}
        store = MemoryStore.open(path, read_only=read_only, salvage=salvage)
        try:
            self = cls.__new__(cls)
            settings = dict(store.config)
            if "kv" not in settings:
                raise StoreError(f"{path} is a memory of another kind: give that of a DurableKV")
            settings |= asked
            if identity is not None and dict(identity) != store.encoder:
                raise StoreError(
                    f"{path} holds keys and values of {store.encoder}, this is {dict(identity)}: "
                    f"open it with the model it was made with, or begin another memory"
                )
            self._set_up(as_stored(path, settings["kv"], config), settings, hot, device)
            self._live_in(store, read_only)
            self._restore(salvage)
            if budget is not None:
                self._check_prompt(self.memory.sinks.nbytes)
                self.memory.set_budget(budget)
        except (KeyError, TypeError, ValueError) as error:
            store.close()
            raise StoreError(
                f"{path}: settings or state of this memory are damaged, or of another stream "
                f"({error}); open it with salvage=True to go on with what is whole"
            ) from error
        except BaseException:
            store.close()
            raise
        return self

    def _restore(self, salvage: bool) -> None:
        """Take up the last seal, then replay what was acknowledged since."""
        if missing := self._segments.restore(salvage):
            self.lost += (f"{missing} blocks",)
            self._due = True
        for _, payload in self._store.replay():
            tensors, meta = unpack(payload)
            self._segments.own(torch.tensor(meta["stream"]), "a record")
            self._take(tensors, meta)
            self._count(payload, tensors)
        if self._due:
            self._seal()

    def close(self) -> None:
        """Let go of the directory; nothing needs to be saved, for every write is in the log."""
        self._store.close()

    # ------------------------------------------------------------------ writing

    def start(self, kv: Tensor) -> None:
        """Keep the init prompt, before the first write; see `KVMemory.start`.

        Raises:
            StoreError: If the disk is full or fails; it was not kept, call it again.
            UsageError: If the memory is open for reading only, or the disk budget has no room.
            ValueError: If it does not fit, or something was written before.
        """
        self._check_writable()
        tensors = {"kv": kv.detach().to(self.config.dtype)}
        with self._lock:
            self.memory.start(kv)  # the check; taken back if it cannot be logged
        try:
            self._check_room(self._sizes.least(tensors["kv"].nbytes))
            self._log(tensors, {}, tensors["kv"].nbytes)
        except BaseException:
            with self._lock:
                self.memory.reset()
            raise
        self._behind = False

    def write_kv(self, kv: Tensor, time: float, **context: Unpack[KVContext]) -> WriteReport:
        """Add the keys and values of one frame; when this returns, they survive a crash.

        Args:
            kv: Keys, not rotated, and values of all layers, ``(L, 2, G, N, D)``.
            time: When it was seen, in seconds, never earlier than the write before.
            **context: See `KVContext`.

        Raises:
            StoreError: If the disk is full or fails; the write was not taken and nothing is lost:
                call it again when there is room.
            UsageError: If the memory is closed or open for reading only.
            ValueError: If anything does not fit or is not finite; nothing has changed.
        """
        self._check_writable()
        self.memory.check_kv(kv, time, **context)  # what is logged can be replayed
        given = {name: context.get(name) for name in ("coords", "embedding", "saliency")}
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        companion = context.get("companion")
        beside = {f"companion.{name}": value for name, value in (companion or {}).items()}
        tensors |= {"kv": kv.detach().to(self.config.dtype), **beside}
        meta = {"time": float(time), "companion": companion is not None}
        dropped = self._log(tensors, meta, sum(value.nbytes for value in beside.values()))
        report = self._take(tensors, meta)
        self._behind = False
        return dataclasses.replace(report, dropped=report.dropped + dropped)

    def _log(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], beside: int) -> int:
        """Append a record, after a seal where one is due.

        Args:
            tensors: What it holds.
            meta: Likewise.
            beside: Bytes of it that every state will hold as well: init prompt, companion.

        Returns:
            How many blocks the seal gave up.
        """
        payload = pack(tensors, {**meta, "stream": self._stream})
        if not self._store.records:
            self._logged = self._tokens = 0
        tokens = tensors["kv"].shape[3]
        least = self._sizes.alone(len(payload), tokens, self._segments.beside(beside))
        if least > self.disk.bytes:
            raise StoreError(
                f"{self._store.path} may hold {self.disk.bytes} bytes, and this write alone needs "
                f"{least}: open it with a larger disk budget, or write less at once"
            )
        dropped = 0
        unsealed = self._sizes.blocks(self._tokens + tokens) * self.config.record_bytes
        if self._store.records and (
            self._due
            or self._logged + len(payload) > self._sizes.seal_at
            or unsealed > UNSEALED_SHARE * self.memory.budget.bytes
            or self._peak(len(payload), tokens, beside) > self.disk.bytes
        ):
            # Sealing comes first: if it fails, the write is tried again and must not be there yet.
            dropped = self._seal(beside)
        # However this ends, Ctrl-C included, the log may now hold what the memory does not.
        self._behind = True
        try:
            self._store.append(payload)
        except (StoreError, UsageError):
            self._behind = False
            raise
        self._count(payload, tensors)
        return dropped

    def _count(self, payload: bytes, tensors: Mapping[str, Tensor]) -> None:
        self._logged += len(payload) + 8
        self._tokens += tensors["kv"].shape[3]

    def _take(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> WriteReport:
        """Let the memory have what a record holds."""
        kv = tensors["kv"]
        with self._lock:
            if "time" not in meta:
                self._check_prompt(kv.nbytes)
                self.memory.start(kv)
                return WriteReport(nbytes=self.memory.nbytes)
            context: KVContext = {
                "coords": tensors.get("coords"),
                "embedding": tensors.get("embedding"),
                "saliency": tensors.get("saliency"),
            }
            if meta["companion"]:
                given = {k: v for k, v in tensors.items() if k.startswith("companion.")}
                context["companion"] = {k.removeprefix("companion."): v for k, v in given.items()}
            return self.memory.write_kv(kv, meta["time"], **context)

    def _check_writable(self) -> None:
        if self._read_only:
            raise UsageError(f"{self._store.path} was opened read-only: open it for writing")
        if self._behind:
            raise StoreError(
                f"{self._store.path}: a write was interrupted when it was in the log and not yet "
                f"in the memory: open it again, nothing is lost"
            )

    # ------------------------------------------------------------------ sealing and forgetting

    def _peak(self, payload: int, tokens: int, beside: int) -> int:
        """The most that the directory holds until the next seal is done, if this is logged."""
        sizes, segments = self._sizes, self._segments
        blocks = sizes.blocks(self._tokens + tokens)
        sealed = sum(map(len, segments.numbers.values()))
        state = sizes.state(sealed + blocks, segments.beside(beside))
        return segments.held + self._logged + payload + state + sizes.segment(blocks)

    def seal(self) -> int:
        """Put what the log holds into its place now, instead of when it is long enough.

        Returns:
            How many blocks were given up to make room for what comes next.

        Raises:
            StoreError: If the disk is full or fails; nothing is lost, call it again.
            UsageError: If the memory is open for reading only.
        """
        self._check_writable()
        return self._seal()

    def _seal(self, more: int = 0, room: int = 0) -> int:
        """Seal; ``more`` bytes beside the usual come with the next write, ``room`` stay free."""
        with self._lock:
            self._segments.hand_over()  # of a seal that was interrupted
        try:
            gone, report = self._segments.commit(more, self._due, room)
        except StoreError:
            with self._lock:
                self._segments.hand_over()  # where it failed when all was in its place
            raise
        with self._lock:
            self.memory.drop(gone)
            self._segments.hand_over()
        self.problems = report.problems
        self._logged = self._tokens = 0
        self._due = False
        return len(gone)

    def forget(self, start: float, end: float) -> int:
        """Give up all blocks and writes that touch a span of time, in memory and on disk.

        Args:
            start: First second.
            end: Last second.

        Returns:
            How many blocks and writes of the window are gone.

        Raises:
            StoreError: If the disk is full; they are gone from memory, call `seal` again.
            UsageError: If the memory is open for reading only.
        """
        self._check_writable()
        if (again := self._segments.again(start, end)) and (
            self._peak(again, 0, 0) > self.disk.bytes
        ):
            self._seal(room=again)  # gives up the oldest, so that the rest can be written again
        with self._lock:
            gone = self.memory.forget(start, end)
        self._due = True
        self._seal()
        return gone

    def adopt(self, memory: KVMemory) -> int:
        """Take over all that a memory in RAM holds, at once; before the first write.

        Args:
            memory: Of the same configuration.

        Returns:
            How many blocks were given up for want of room on disk.

        Raises:
            StoreError: If the disk is full or fails; call it again.
            UsageError: If something was written before, or the memory is open for reading only.
            ValueError: If it is of another configuration.
        """
        self._check_writable()
        if self.memory.seen or self._store.records:
            raise UsageError(f"{self._store.path} holds a stream already; begin another memory")
        with self._lock:
            self.memory.load_state_dict(memory.state_dict())
        try:
            return self._seal()
        except BaseException:
            with self._lock:
                self.memory.reset()
            raise

    def held(self) -> dict[str, int]:
        """Bytes by place, see `KVMemory.held`; ``disk`` those of the directory."""
        return {**self.memory.held(), "disk": self.disk_bytes}

    # ------------------------------------------------------------------ reading

    def snapshot(self) -> KVSnapshot:
        """Give an immutable view; readers never wait for the disk."""
        with self._lock:
            return self.memory.snapshot()

    def read(self, query: Tensor | None = None, **context: Any) -> Recall:
        """Read from what is held now; see `KVSnapshot.read`."""
        return self.snapshot().read(query, **context)

    @property
    def budget(self) -> Budget:
        """Bytes in RAM, a hard limit."""
        return self.memory.budget

    @property
    def nbytes(self) -> int:
        """Bytes in RAM."""
        return self.memory.nbytes

    @property
    def disk_bytes(self) -> int:
        """Bytes in the directory; at most ``disk.bytes`` at any time."""
        return sum(self._store.nbytes.values())

    @property
    def logged(self) -> int:
        """Writes that only the log holds, and the memory in RAM."""
        return self._store.records

    @property
    def blocks(self) -> Sequence[Block]:
        """What is in blocks, oldest first."""
        return self.memory.blocks

    @property
    def companion(self) -> dict[str, Tensor]:
        """Small tensors that whoever writes needs to go on from here."""
        return self.memory.companion

    @property
    def identity(self) -> dict[str, str]:
        """Whose keys and values these are."""
        return self._store.encoder
