"""What each memory still holds when the question comes.

Every policy is `SpatialMemory` with another `SpatialConfig.policy`, at equal bytes (and so, as all
views weigh the same, at equal count), fed frame by frame. A view stores the picture itself: 8 x 8
tokens of 4 x 4 pixels, float16, with where each lies in the world, and block means as signature.
Nothing in it is learned, so no policy is helped by its encoder.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from episodes import BLOCKS, CELLS, PATCH, SIDE, Data
from torch import Tensor

from vismem.memory.spatial import SpatialConfig, SpatialMemory

__all__ = ["ALL_FRAMES", "GRU", "OURS", "POLICIES", "Banks", "fill", "tokens_of"]

POLICIES: dict[str, dict] = {
    "last frame": {"policy": "last"},
    "FIFO": {"policy": "fifo"},
    "first + last": {"policy": "first_last"},
    "stride": {"policy": "stride"},
    "reservoir": {"policy": "reservoir"},
    "place-keyed": {"policy": "place"},
    "novelty": {"policy": "novelty"},  # as the library has it
    "fine novelty": {"policy": "novelty", "novelty": 0.004},  # a third of its threshold
}
# These look at no frame: which they keep is worked out once for each length and draw.
BLIND = ("last frame", "FIFO", "first + last", "stride", "reservoir")
DRAWS = 8  # of the reservoir, for each seed
OURS = "novelty"
ALL_FRAMES, GRU = "all frames", "GRU"
WIDTH = PATCH * PATCH * 3


@dataclass
class Banks:
    """Which frames of each episode are held.

    Args:
        shots: Frame numbers in time order, `(E, V)`; -1 where there are fewer.
        cue: Share of episodes that hold a cue frame.
        nbytes: Bytes of the fullest bank.
        writes: Writes a second.
    """

    shots: Tensor
    cue: float
    nbytes: int = 0
    writes: float = 0.0

    def foreign(self, seed: int) -> Banks:
        """Give every episode the memory of another."""
        order = np.random.default_rng([seed, 5]).permutation(len(self.shots))
        shots = torch.empty_like(self.shots)
        shots[order] = self.shots[np.roll(order, 1)]
        return Banks(shots, self.cue)


def tokens_of(data: Data) -> Tensor:
    """Tokens of all frames, `(F, 64, 48)` float16 on `[0, 1]`: patches of 4 x 4 pixels."""
    frames = len(data.pictures)
    patches = torch.from_numpy(data.pictures).view(frames, CELLS, PATCH, CELLS, PATCH, 3)
    return (patches.transpose(2, 3).reshape(frames, CELLS**2, WIDTH).float() / 255).half()


def config_for(data: Data, policy: str, seed: int = 0) -> SpatialConfig:
    """What a policy's memory is."""
    return SpatialConfig(
        token_dim=WIDTH, max_tokens=CELLS**2, signature_dim=3 * BLOCKS**2,
        place=data.family.place, seed=seed, **POLICIES[policy],
    )  # fmt: skip


def feed(memory: SpatialMemory, data: Data, tokens: Tensor, frames: np.ndarray) -> None:
    """Write frames one by one, ten a second."""
    for at, frame in enumerate(frames.tolist()):
        memory.write(
            tokens[frame], at / 10, grid=(CELLS, CELLS), pose=data.poses[frame],
            intrinsics=data.intrinsics, positions=data.positions[frame],
            signature=data.signatures[frame],
        )  # fmt: skip


def fill(
    data: Data, tokens: Tensor, policy: str, numbers: np.ndarray, delays: np.ndarray, seed: int = 0
) -> Banks:
    """Feed episodes to a memory, or to none.

    Args:
        data: The episodes.
        tokens: Of `tokens_of`.
        policy: A name of `POLICIES`, or `ALL_FRAMES`.
        numbers: Which episodes, `(E,)`.
        delays: The delay of each, `(E,)`.
        seed: Of the reservoir.
    """
    held: list[np.ndarray] = []
    known: dict[tuple[int, int], np.ndarray] = {}
    seen = nbytes = writes = 0
    one = 0
    if policy != ALL_FRAMES:  # the bytes of a family's number of views
        memory = SpatialMemory("1MB", config_for(data, policy))
        feed(memory, data, tokens, np.zeros(1, np.int64))
        one = memory.nbytes
    started = time.process_time()
    for number, delay in zip(numbers.tolist(), delays.tolist(), strict=True):
        frames, cue = data.timeline(number, delay)
        draw = seed * DRAWS + number % DRAWS
        kept = known.get((len(frames), draw))
        if policy == ALL_FRAMES:
            kept = np.arange(len(frames))
        elif kept is None:
            memory = SpatialMemory(data.family.views * one, config_for(data, policy, draw))
            feed(memory, data, tokens, frames)
            kept = np.array([view.source for view in memory.snapshot().views()])
            nbytes, writes = max(nbytes, memory.nbytes), writes + len(frames)
            if policy in BLIND:
                known[len(frames), draw] = kept
        held.append(frames[kept])
        seen += bool(cue[kept].any())
    spent = time.process_time() - started
    shots = np.full((len(held), max(map(len, held))), -1)
    for row, frames in zip(shots, held, strict=True):
        row[: len(frames)] = frames
    return Banks(torch.from_numpy(shots), seen / len(held), nbytes, writes / max(spent, 1e-9))


assert SIDE == CELLS * PATCH
