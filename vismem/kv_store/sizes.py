"""What a `DurableKV` notes of its configuration, and what its parts take on disk at most."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vismem.errors import StoreError, UsageError
from vismem.memory.kv.config import KVConfig
from vismem.memory.kv.shape import KVShape

__all__ = ["DiskSizes", "as_stored", "facts"]

LEAST_LOG = 2**20  # bytes of log that are worth a seal, where a window has fewer
HEADER = 2**13  # bytes of names, shapes and checksums of a file
ENTRY = 2**11  # bytes of a segment in the manifest, which is there twice while it is replaced
ASIDE = 2**17  # bytes of everything else: the rest of the manifest, lock, the unused event index


@dataclass(frozen=True)
class DiskSizes:
    """Upper bounds in bytes.

    Args:
        config: Of the memory.
        limit: Bytes of log after which it is sealed; ``None`` for those of a full window, at least
            1 MiB.
    """

    config: KVConfig
    limit: int | None = None

    @property
    def seal_at(self) -> int:
        """Bytes of log that are not passed, but by a single write."""
        window = self.config.window * self.config.token_bytes
        return max(window, LEAST_LOG) if self.limit is None else self.limit

    @property
    def log(self) -> int:
        """The log at its longest."""
        config = self.config
        beside = 3 * 8 + 8 * config.shape.layers  # coords and saliency, as wide as they come
        write = config.max_tokens * (config.token_bytes + beside) + 8 * config.embedding_dim
        return HEADER + max(self.seal_at, write)

    def state(self, blocks: int, beside: int) -> int:
        """The state.

        Args:
            blocks: Blocks that it names.
            beside: Bytes of init prompt and companion.
        """
        config = self.config
        tokens = max(config.window, config.block) + config.max_tokens
        # A write has 40 bytes of facts and an embedding, and it may have a single token.
        token = config.token_bytes + 6 + 4 * config.shape.layers + 40 + 2 * config.embedding_dim
        return HEADER + tokens * token + 8 * blocks + beside

    @property
    def note(self) -> int:
        """What a block is found by, in RAM as on disk."""
        config, shape = self.config, self.config.shape
        notes = config.block * (8 + 6 + 8) + shape.layers * config.stored * (2 + 4)
        key = shape.layers * shape.kv_heads * shape.head_dim * 4
        return notes + key + 2 * config.embedding_dim + 64

    def segment(self, blocks: int) -> int:
        """A segment of so many blocks, with its line in the manifest; nothing if there are none."""
        row = self.config.record_bytes + self.note
        return blocks * row + (HEADER + ENTRY if blocks else 0)

    def blocks(self, tokens: int) -> int:
        """The most blocks that so many tokens can fill, with those that waited before them."""
        return (tokens + self.config.block - 1) // self.config.block

    def alone(self, payload: int, tokens: int, beside: int) -> int:
        """A directory that holds nothing but one write, and what is needed to seal it."""
        states = 2 * self.state(self.blocks(tokens), beside)
        return ASIDE + payload + states + self.segment(self.blocks(tokens))

    @property
    def cycle(self) -> int:
        """Blocks of one log."""
        return self.blocks(self.log // self.config.token_bytes)

    def least(self, beside: int = 0) -> int:
        """The smallest disk budget: a full log, what it becomes, and as much from before."""
        states = 2 * self.state(2 * self.cycle, beside)
        return ASIDE + self.log + beside + states + 2 * self.segment(self.cycle)


def facts(config: KVConfig) -> dict[str, Any]:
    """A configuration as JSON.

    Raises:
        UsageError: If a compression has no ``repr`` of its own, by which it is known again.
    """
    if config.compression and type(config.compression).__repr__ is object.__repr__:
        raise UsageError(
            f"{type(config.compression).__name__} could not be told from another when the memory "
            f"is opened again: give it a __repr__ that names its settings, as a dataclass has"
        )
    names = "precision", "block", "window", "max_tokens", "embedding_dim"
    return {
        **dataclasses.asdict(config.shape),
        "dtype": str(config.dtype).removeprefix("torch."),
        **{name: getattr(config, name) for name in names},
        "compression": repr(config.compression) if config.compression else None,
    }


def as_stored(path: object, stored: Mapping[str, Any], given: KVConfig | None) -> KVConfig:
    """The configuration that a memory was made with, which a given one must be.

    Raises:
        StoreError: If it is not, or cannot be known from the facts alone.
    """
    if given is not None:
        own = facts(given)
        differ = [name for name in stored if stored[name] != own.get(name)]
        if not differ:
            return given
        theirs, ours = (
            ", ".join(f"{name} {those.get(name)}" for name in differ) for those in (stored, own)
        )
        raise StoreError(
            f"{path} holds keys and values of {theirs}, this is {ours}: open it with the model and "
            f"configuration it was made with, or begin another memory"
        )
    if stored["compression"] is not None:
        raise StoreError(
            f"{path} was made with compression={stored['compression']}: give a config that has it"
        )
    sizes = {name: value for name, value in stored.items() if name != "compression"}
    shape = {field.name: sizes.pop(field.name) for field in dataclasses.fields(KVShape)}
    return KVConfig(KVShape(**shape), getattr(torch, sizes.pop("dtype")), **sizes)
