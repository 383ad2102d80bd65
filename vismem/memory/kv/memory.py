"""`KVMemory`: the keys and values of an endless stream in a fixed number of bytes.

After ReKV, "Streaming Video Question-Answering with In-context Video KV-Cache Retrieval", 2025
(https://arxiv.org/abs/2503.00540): frames are encoded once, with the newest tokens in view; keys,
not rotated, and values are cut into blocks; a question reads the few blocks that it needs. Other
than there, all has a bound, blocks are stored packed, and the state survives a restart.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor
from typing_extensions import Unpack

from vismem.memory.base import Budget, Memory, WriteReport
from vismem.memory.kv.block import Block, columns_of, find_blocks, pack
from vismem.memory.kv.config import KVConfig
from vismem.memory.kv.index import Table
from vismem.memory.kv.snapshot import KVSnapshot
from vismem.memory.kv.tiers import Tiers
from vismem.memory.kv.window import Chunk, KVContext, checked, chunks_from, make_chunk, state_of

__all__ = ["KVMemory"]

WINDOW_SHARE = 0.5  # of the budget, at most, for the window


class KVMemory(Memory):
    """Keys and values of one stream in a hard budget of bytes.

    One token is what all layers keep of one token of the language model, ``L * 2 * G * D`` numbers.
    Tokens go into blocks in the order that they are written in, and the newest stay in the window
    as well. Where the budget is reached, sealed records leave RAM, the least recently used first
    (see `seal`); then the oldest blocks are given up, then the oldest of the window.

    Args:
        config: Sizes.
        budget: Bytes in RAM, or text such as ``"2GB"``: sinks, window, index and packed blocks.
            Half of it at most goes to the window.
        hot: Bytes of blocks that are kept dequantised on the device, beside the budget.
        device: Where sinks and window are kept and blocks are read to.

    Attributes:
        companion: Small tensors that whoever writes needs to go on from here, kept with the state.

    Example:
        >>> from vismem.memory.kv.shape import KVShape
        >>> config = KVConfig(KVShape(2, 2, 1, 4), torch.float32, "model", block=3, window=6)
        >>> memory = KVMemory(config, "1MB")
        >>> for time in range(4):
        ...     _ = memory.write(torch.randn(2, config.shape.width), float(time))
        >>> [(block.first, block.last) for block in memory.blocks]
        [(0.0, 1.0), (1.0, 2.0)]
    """

    def __init__(
        self,
        config: KVConfig,
        budget: Budget | int | str,
        *,
        hot: Budget | int | str = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.budget = Budget.parse(budget)
        self.device = torch.device(device)
        self._tiers = Tiers(
            config.shape,
            config.stored,
            config.precision,
            config.dtype,
            self.device,
            Budget.parse(hot).bytes,
        )
        self._blocks: list[Block] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything, the init prompt too."""
        shape = self.config.shape
        for block in self._blocks:
            self._tiers.drop(block)
        self._blocks = []
        self._sinks = self._empty(0)
        self._window: deque[Chunk] = deque()
        self._keys = Table((shape.layers, shape.kv_heads, shape.head_dim), torch.float32)
        self._embeddings = Table((1, self.config.embedding_dim), torch.float16)
        self._seen = self._packed = self._writes = self._next = 0
        self._last = -math.inf
        self._block_notes = self._window_bytes = self._window_tokens = 0
        self.companion: dict[str, Tensor] = {}

    def _empty(self, tokens: int) -> Tensor:
        shape = self.config.shape
        size = shape.layers, 2, shape.kv_heads, tokens, shape.head_dim
        return torch.empty(size, dtype=self.config.dtype, device=self.device)

    # ------------------------------------------------------------------ writing

    def start(self, kv: Tensor) -> None:
        """Keep the init prompt, before the first write.

        Args:
            kv: Its keys, not rotated, and values, ``(L, 2, G, n0, D)``.

        Raises:
            ValueError: If it does not fit, or something was written before.
        """
        if self._seen:
            raise ValueError("the init prompt comes before the first write; reset the memory")
        held = checked(kv, self.config, self.device)
        if held.nbytes > self.budget.bytes // 4:
            raise ValueError(
                f"an init prompt of {held.nbytes} bytes is more than a quarter of the budget of "
                f"{self.budget.bytes} bytes; give more"
            )
        self._sinks = held
        self._seen = self._packed = held.shape[3]

    def write(  # type: ignore[override]  # names what it takes instead of any context
        self, tokens: Tensor, time: float, **context: Unpack[KVContext]
    ) -> WriteReport:
        """Add the keys and values of one frame, ``(N, L * 2 * G * D)``; see `write_kv`."""
        shape = self.config.shape
        if tokens.ndim != 2 or tokens.shape[1] != shape.width:
            raise ValueError(f"tokens must be (N, {shape.width}), not {tuple(tokens.shape)}")
        parts = tokens.unflatten(1, (shape.layers, 2, shape.kv_heads, shape.head_dim))
        return self.write_kv(rearrange(parts, "n l two g d -> l two g n d"), time, **context)

    def check_kv(self, kv: Tensor, time: float, **context: Unpack[KVContext]) -> None:
        """Refuse what `write_kv` would refuse, and change nothing.

        Raises:
            ValueError: If anything does not fit or is not finite.
        """
        self._chunk(kv, time, **context)

    def write_kv(self, kv: Tensor, time: float, **context: Unpack[KVContext]) -> WriteReport:
        """Add the keys and values of one frame.

        Args:
            kv: Keys, not rotated, and values of all layers, ``(L, 2, G, N, D)``.
            time: When it was seen, in seconds, never earlier than the write before.
            **context: See `KVContext`.

        Raises:
            ValueError: If anything does not fit or is not finite; the memory is then unchanged.
        """
        chunk = self._chunk(kv, time, **context)
        self._append(chunk)
        self._seen, self._last, self._writes = chunk.end, chunk.time, self._writes + 1
        companion = context.get("companion")
        if companion is not None:
            self.companion = {name: value.detach().clone() for name, value in companion.items()}
        while self._unpacked() >= self.config.block:
            self._pack()
        dropped = self._fit()
        return WriteReport(nbytes=self.nbytes, dropped=dropped)

    def _chunk(self, kv: Tensor, time: float, **context: Unpack[KVContext]) -> Chunk:
        place = self._writes, self._seen, self._last
        return make_chunk(self.config, self.device, kv, time, place, **context)

    def _append(self, chunk: Chunk) -> None:
        self._window.append(chunk)
        self._window_bytes += chunk.nbytes
        self._window_tokens += len(chunk)

    def _unpacked(self) -> int:
        return sum(len(chunk) - max(0, self._packed - chunk.first) for chunk in self._unread())

    def _unread(self) -> list[Chunk]:
        """The newest writes, those that no block has to the end."""
        found: list[Chunk] = []
        for chunk in reversed(self._window):
            if chunk.end <= self._packed:
                break
            found.append(chunk)
        return found[::-1]

    def _pack(self) -> None:
        """Make a block of the oldest tokens that are in none."""
        left = self.config.block
        parts: list[tuple[Chunk, slice]] = []
        for chunk in self._unread():
            start = max(0, self._packed - chunk.first)
            parts.append((chunk, slice(start, min(len(chunk), start + left))))
            left -= parts[-1][1].stop - start
            if not left:
                break
        block, keys, embedding = pack(parts, self.config, self._next, self._keys.next)
        self._keys.add(keys)
        self._embeddings.add(embedding[None])
        self._hold(block)
        self._next += 1
        self._packed = parts[-1][0].first + parts[-1][1].stop

    def _hold(self, block: Block) -> None:
        self._blocks.append(block)
        self._block_notes += block.note_bytes
        self._tiers.admit(block)

    # ------------------------------------------------------------------ the budget

    def _fit(self) -> int:
        """Come within the budget; how many blocks that cost."""
        config, most = self.config, self.budget.bytes
        share = int(WINDOW_SHARE * most)
        window = self._window
        while window and window[0].end <= self._packed:
            rest = self._window_tokens - len(window[0])
            if rest < config.window and self._window_bytes <= share:
                break
            self._trim()
        dropped = 0
        while self._blocks and self._needed() > most:
            self._let_go(self._blocks.pop(0))
            dropped += 1
        while window and self._needed() > most:
            self._trim()
        if self._needed() > most:
            self.companion = {}
        self._tiers.shrink(most - self._held_beside())
        return dropped

    def _trim(self) -> None:
        chunk = self._window.popleft()
        self._window_bytes -= chunk.nbytes
        self._window_tokens -= len(chunk)

    def _held_beside(self) -> int:
        """Bytes of everything but the records."""
        tables = self._keys.nbytes + self._embeddings.nbytes
        companion = sum(value.nbytes for value in self.companion.values())
        return self._sinks.nbytes + self._window_bytes + tables + self._block_notes + companion

    def _needed(self) -> int:
        return self._held_beside() + self._tiers.fixed_bytes

    def _give_up(self, blocks: Sequence[Block]) -> None:
        """Give up blocks anywhere, in one pass over all there are."""
        gone = set(blocks)
        self._blocks = [block for block in self._blocks if block not in gone]
        for block in blocks:
            self._let_go(block)

    def _let_go(self, block: Block) -> None:
        self._block_notes -= block.note_bytes
        self._keys.drop(block.row)
        self._embeddings.drop(block.row)
        self._tiers.drop(block)

    @property
    def nbytes(self) -> int:
        """Bytes in RAM: sinks, window, index and packed blocks."""
        return self._held_beside() + self._tiers.ram_bytes

    def held(self) -> dict[str, int]:
        """Bytes by place: ``window`` with sinks, ``index``, ``ram``, ``hot``, ``cold``."""
        cold = sum(block.cold.nbytes for block in self._blocks if block.cold is not None)
        window = self._sinks.nbytes + self._window_bytes
        return {
            "window": window,
            "index": self._held_beside() - window,
            "ram": self._tiers.ram_bytes,
            "hot": self._tiers.hot_bytes,
            "cold": cold,
        }

    def set_budget(self, budget: Budget | int | str) -> WriteReport:
        """Take another budget, at once.

        Raises:
            ValueError: If the init prompt alone is more.
        """
        budget = Budget.parse(budget)
        if self._sinks.nbytes > budget.bytes:
            raise ValueError(f"the init prompt alone has {self._sinks.nbytes} bytes; give more")
        self.budget = budget
        dropped = self._fit()
        return WriteReport(nbytes=self.nbytes, dropped=dropped)

    # ------------------------------------------------------------------ reading

    @property
    def blocks(self) -> Sequence[Block]:
        """What is in blocks, oldest first."""
        return tuple(self._blocks)

    @property
    def sinks(self) -> Tensor:
        """Keys and values of the init prompt, ``(L, 2, G, n0, D)``."""
        return self._sinks

    @property
    def seen(self) -> int:
        """Tokens seen so far, the init prompt included."""
        return self._seen

    @property
    def last_time(self) -> float:
        """Time of the newest write; minus infinity before the first."""
        return self._last

    @property
    def oldest(self) -> float:
        """When the oldest token still held was seen; infinity if nothing is held."""
        times = [block.first for block in self._blocks[:1]] + [c.time for c in [*self._window][:1]]
        return min(times, default=math.inf)

    def snapshot(self) -> KVSnapshot:
        """Give an immutable view."""
        rows = [block.row for block in self._blocks]
        return KVSnapshot(
            self.config,
            self._sinks,
            self._window,
            self._blocks,
            self._packed,
            self._seen,
            self._keys.view(rows),
            self._embeddings.view(rows),
            self._tiers,
        )

    # ------------------------------------------------------------------ forgetting and sealing

    def forget(self, start: float, end: float) -> int:
        """Give up all blocks and writes that touch a span of time.

        What was encoded later was encoded with them in view, and stays.

        Args:
            start: First second.
            end: Last second.

        Returns:
            How many blocks and writes of the window are gone.
        """
        gone = [block for block in self._blocks if block.first <= end and block.last >= start]
        self._give_up(gone)
        kept = [chunk for chunk in self._window if not start <= chunk.time <= end]
        count = len(gone) + len(self._window) - len(kept)
        self._window.clear()
        self._window_bytes = self._window_tokens = 0
        for chunk in kept:
            self._append(chunk)
        if count:
            self.companion = {}
        self._fit()
        return count

    def drop(self, numbers: Iterable[int]) -> int:
        """Give up blocks by number; how many there were."""
        wanted = set(numbers)
        gone = [block for block in self._blocks if block.number in wanted]
        self._give_up(gone)
        self._fit()
        return len(gone)

    def unsealed(self) -> list[Block]:
        """Blocks whose record is nowhere but in RAM, oldest first."""
        return [block for block in self._blocks if block.cold is None]

    def seal(self, cold: Mapping[int, Tensor]) -> None:
        """Take note of who keeps which record from now on, so that it may leave RAM.

        Args:
            cold: Records by block number, uint8, memory-mapped as a rule.

        Raises:
            ValueError: If one is not the record of its block.
        """
        for block in self._blocks:
            if block.number in cold:
                self._tiers.seal(block, cold[block.number])
        self._fit()

    # ------------------------------------------------------------------ state

    def columns(self, blocks: Sequence[Block]) -> dict[str, Tensor]:
        """Blocks as tensors, the first dimension the blocks, their records left out."""
        columns = columns_of(blocks)
        rows = [block.row for block in blocks]
        keys, embeddings = self._keys.view(rows), self._embeddings.view(rows)
        layers = range(self.config.shape.layers)
        columns["keys"] = torch.stack([keys.layer(layer) for layer in layers], 1)
        columns["embedding"] = embeddings.layer(0)
        return columns

    def working_state(self) -> dict[str, Tensor]:
        """All state beside the blocks, and which blocks there are, as tensors."""
        numbers = [self._seen, self._packed, self._writes, self._next, self._keys.next]
        names = ",".join(sorted(self.companion)).encode()
        state = {
            "config": self.config.fingerprint(),
            "numbers": torch.tensor(numbers),
            "last": torch.tensor(self._last, dtype=torch.float64),
            "sinks": self._sinks.clone(),
            "blocks": torch.tensor([block.number for block in self._blocks], dtype=torch.int64),
            "companion": torch.tensor(list(names), dtype=torch.uint8),
        }
        companion = {f"companion.{name}": value for name, value in self.companion.items()}
        return state | companion | state_of(self._window, self._empty(0))

    def restore(
        self, parts: Iterable[tuple[Mapping[str, Tensor], bool]], state: Mapping[str, Tensor]
    ) -> None:
        """Go on from the blocks and the working state of another instance.

        Args:
            parts: Blocks as of `columns` with their records, ``record (n, bytes)``, and whether
                these stay where they are (cold) instead of being taken into RAM. Blocks that the
                state does not name are left out.
            state: As of `working_state`.

        Raises:
            ValueError: If they are of another configuration or incomplete.
        """
        try:
            self._restore(parts, state)
        except (KeyError, RuntimeError, IndexError) as error:
            raise ValueError(
                f"this is no state of a KV memory, or not all of it: {error}"
            ) from error

    def _restore(
        self, parts: Iterable[tuple[Mapping[str, Tensor], bool]], state: Mapping[str, Tensor]
    ) -> None:
        if not torch.equal(state["config"], self.config.fingerprint()):
            raise ValueError(
                f"a KV memory of another model or configuration: {state['config'].tolist()} "
                f"instead of {self.config.fingerprint().tolist()} (layers, heads, key heads, "
                f"head width, block, window, dtype, precision, stored, max_tokens, embedding)"
            )
        window = chunks_from(state, self.device)
        seen, packed, writes, following, row = state["numbers"].tolist()
        last, sinks = float(state["last"]), state["sinks"].to(self.device, copy=True)
        names = [name for name in bytes(state["companion"].tolist()).decode().split(",") if name]
        companion = {name: state[f"companion.{name}"].clone() for name in names}
        found = find_blocks(parts, state["blocks"].tolist(), self.config.record_bytes)
        # From here on nothing can fail: what was held before is given up.
        self.reset()
        for block, key, vector in found:
            self._keys.add(key, block.row)
            self._embeddings.add(vector[None], block.row)
            self._hold(block)
        self._keys.next = self._embeddings.next = row
        for chunk in window:
            self._append(chunk)
        self._sinks, self._last, self.companion = sinks, last, companion
        self._seen, self._packed, self._writes, self._next = seen, packed, writes, following
        self._tiers.shrink(self.budget.bytes - self._held_beside())

    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors; loading it continues bit for bit."""
        state = self.working_state()
        if self._blocks:
            state |= {f"block.{k}": v for k, v in self.columns(self._blocks).items()}
            state["block.record"] = torch.stack([block.packed for block in self._blocks])
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another instance of the same configuration.

        Raises:
            ValueError: If the state is of another configuration or incomplete.
        """
        columns = {k.removeprefix("block."): v for k, v in state.items() if k.startswith("block.")}
        self.restore([(columns, False)] if columns else [], state)
