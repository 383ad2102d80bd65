"""Voxels in hashed blocks of 8 by 8 by 8, within a hard budget of bytes.

A voxel is eight bytes: its signed distance to the surface ahead of it, how many looks that is the
mean of, for how many looks it was seen through, for how long something has been there, and a
colour. Blocks are made where a camera looks; when the pool is full, those that were out of view
for longest are given up.

Source: Niessner et al., "Real-time 3D Reconstruction at Scale using Voxel Hashing", 2013.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from vismem.memory.base import Budget

__all__ = ["SIDE", "BlockPool", "Voxels", "find", "pack", "unpack"]

SIDE = 8  # voxels along a block's edge
VOXELS = SIDE**3
EMPTY = -1
BITS = 21  # of a key, for each axis
OFFSET = 1 << (BITS - 1)
VOXEL_BYTES = 8
ROOM = 1 / 16  # of the pool, made at once when it is full


class Voxels(NamedTuple):
    """What kernels see of a `BlockPool`: its hash table, and ``B`` blocks of 512 voxels.

    Args:
        keys: ``(T,)`` int64 block of each place of the table, `EMPTY` for none.
        slots: ``(T,)`` int32 row of that block.
        tsdf: ``(B, 512)`` int16, signed distance over the truncation, 32767 for 1.
        weight: ``(B, 512)`` uint8 looks that ``tsdf`` is the mean of; 0 is unknown.
        free: ``(B, 512)`` uint8 looks that went through.
        occupied: ``(B, 512)`` uint8 tenths of a second that something has been there.
        color: ``(B, 512, 3)`` uint8 RGB.
    """

    keys: np.ndarray
    slots: np.ndarray
    tsdf: np.ndarray
    weight: np.ndarray
    free: np.ndarray
    occupied: np.ndarray
    color: np.ndarray


@njit(cache=True)
def pack(x: int, y: int, z: int) -> int:
    """The key of a block: its three coordinates, 21 bits each."""
    return ((x + OFFSET) << 42) | ((y + OFFSET) << 21) | (z + OFFSET)


@njit(cache=True)
def _start(key: int, places: int) -> int:
    mixed = (key ^ (key >> 30)) * 0x3F58476D1CE4E5B9  # all bits have a say, as in splitmix64
    mixed = (mixed ^ (mixed >> 27)) * 0x14D049BB133111EB
    return (mixed ^ (mixed >> 31)) & (places - 1)


@njit(cache=True)
def find(keys: np.ndarray, slots: np.ndarray, key: int) -> int:
    """The row of a block, or -1."""
    place = _start(key, keys.size)
    while keys[place] != EMPTY:
        if keys[place] == key:
            return slots[place]
        place = (place + 1) & (keys.size - 1)
    return -1


@njit(cache=True)
def _insert_all(keys: np.ndarray, slots: np.ndarray, blocks: np.ndarray, first: int) -> None:
    for n in range(blocks.size):
        place = _start(blocks[n], keys.size)
        while keys[place] != EMPTY:
            place = (place + 1) & (keys.size - 1)
        keys[place] = blocks[n]
        slots[place] = first + n


@njit(cache=True)
def _find_all(keys: np.ndarray, slots: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    rows = np.empty(wanted.size, np.int64)
    for n in range(wanted.size):
        rows[n] = find(keys, slots, wanted[n])
    return rows


def unpack(keys: np.ndarray) -> np.ndarray:
    """Coordinates ``(N, 3)`` int64 of blocks, from their keys."""
    low = (1 << BITS) - 1
    return np.stack([(keys >> 42) & low, (keys >> 21) & low, keys & low], -1) - OFFSET


class BlockPool:
    """A bounded set of blocks; which one is given up depends on when it was last in view.

    Args:
        budget: Bytes, or text such as ``"64MB"``: of the blocks and their hash table together.

    Raises:
        ValueError: If not one block fits.

    Example:
        >>> pool = BlockPool("100kB")
        >>> rows, refused, given_up = pool.take(np.array([pack(0, 0, 0), pack(0, 0, 1)]), time=0.0)
        >>> len(pool), rows.tolist(), refused, given_up
        (2, [0, 1], 0, 0)
    """

    BLOCK_BYTES = VOXELS * VOXEL_BYTES + 16  # with its key and its time

    def __init__(self, budget: Budget | int | str):
        self.budget = Budget.parse(budget)
        size = self.budget.bytes
        self.most = size // (self.BLOCK_BYTES + 24)  # the table holds 1 in 2 or fewer
        while self.most > 0 and self.most * self.BLOCK_BYTES + self._places() * 12 > size:
            self.most -= max(1, self.most // 64)
        if self.most < 1:
            raise ValueError(f"{size} bytes hold not one block of {self.BLOCK_BYTES}")
        self.reset()

    def _places(self) -> int:
        return 1 << int(np.ceil(np.log2(max(2, self.most * 3 // 2))))

    def reset(self) -> None:
        """Give up everything."""
        rows, places = self.most, self._places()
        self.count = 0
        self.key = np.full(rows, EMPTY, np.int64)
        self.seen = np.full(rows, -np.inf)  # seconds
        self.voxels = Voxels(
            np.full(places, EMPTY, np.int64),
            np.zeros(places, np.int32),
            np.zeros((rows, VOXELS), np.int16),  # zeros take no memory until they are written
            np.zeros((rows, VOXELS), np.uint8),
            np.zeros((rows, VOXELS), np.uint8),
            np.zeros((rows, VOXELS), np.uint8),
            np.zeros((rows, VOXELS, 3), np.uint8),
        )

    def __len__(self) -> int:
        return self.count

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks held and of the table."""
        return self.count * self.BLOCK_BYTES + self.voxels.keys.size * 12

    def take(self, wanted: np.ndarray, time: float) -> tuple[np.ndarray, int, int]:
        """The rows of blocks that are in view now; those that are not there yet are made.

        Args:
            wanted: ``(N,)`` int64 keys, all different, the most wanted first.
            time: Now, in seconds.

        Returns:
            ``(M,)`` rows of the blocks; how many did not fit although all that is out of view was
            given up; and how many were given up.
        """
        rows = _find_all(self.voxels.keys, self.voxels.slots, wanted)
        new = int((rows < 0).sum())
        given_up = 0
        if new > self.most - self.count:
            self.seen[rows[rows >= 0]] = np.inf  # in view: not now
            given_up = self._give_up(new)
            rows = _find_all(self.voxels.keys, self.voxels.slots, wanted)
        made = wanted[rows < 0][: self.most - self.count]
        fresh = np.arange(self.count, self.count + len(made))
        _insert_all(self.voxels.keys, self.voxels.slots, made, self.count)
        self.key[fresh] = made
        self.count += len(made)
        rows = np.concatenate([rows[rows >= 0], fresh])
        self.seen[rows] = time
        return rows, len(wanted) - len(rows), given_up

    def _give_up(self, wanted: int) -> int:
        """Drop the blocks unseen longest until so many fit, and some more; gives how many went."""
        room = max(wanted - (self.most - self.count), int(ROOM * self.most))
        old = np.argsort(self.seen[: self.count], kind="stable")[:room]
        old = old[np.isfinite(self.seen[old])]
        keep = np.setdiff1d(np.arange(self.count), old)
        kept = len(keep)
        for column in self._columns().values():
            column[:kept] = column[keep]
            column[kept : self.count] = 0
        self.count = kept
        self._index()
        return len(old)

    def _index(self) -> None:
        self.voxels.keys[:] = EMPTY
        _insert_all(self.voxels.keys, self.voxels.slots, self.key[: self.count], 0)

    def _columns(self) -> dict[str, np.ndarray]:
        """All that is known of blocks, a row each."""
        named = zip(Voxels._fields[2:], self.voxels[2:], strict=True)
        return {"key": self.key, "seen": self.seen, **dict(named)}

    def state_dict(self) -> dict[str, Tensor]:
        """All blocks as tensors; `load_state_dict` takes them up bit for bit."""
        held = {name: column[: self.count].copy() for name, column in self._columns().items()}
        return {name: torch.from_numpy(column) for name, column in held.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave.

        Raises:
            ValueError: If it is incomplete, or holds more blocks than the budget.
        """
        columns = self._columns()
        missing = sorted(set(columns) - set(state))
        if missing:
            raise ValueError(f"the state holds no {missing}; it is incomplete")
        count = len(state["key"])
        if count > self.most:
            raise ValueError(f"{count} blocks are more than the {self.most} of the budget")
        for name, column in columns.items():
            given = state[name].numpy()
            if given.shape != (count, *column.shape[1:]) or given.dtype != column.dtype:
                raise ValueError(f"the state's {name} are {given.dtype} {given.shape}")
        self.reset()
        self.count = count
        for name, column in self._columns().items():
            column[:count] = state[name].numpy()
        self._index()
