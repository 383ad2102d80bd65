"""Both layers together are worth more than either alone, at equal bytes, in a room that is drawn.

The room's motion is told as it truly is: what a detector adds in mistakes the benchmark says.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from moving_room.codes import Tokens, patch_tokens
from moving_room.scene import MovingRoom
from torch import Tensor

from vismem.memory.static_dynamic.memory import StaticDynamicConfig, StaticDynamicMemory

BACK = 100  # frames; what was seen so long ago is asked for again


def tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).float()


def errors(frames: list[Tokens], split: str) -> tuple[float, float, float]:
    """Mean ``1 - cos`` of what stands, what moves, and what stood and was seen long ago."""
    rules = {
        "both": StaticDynamicConfig(80),
        "static": StaticDynamicConfig(80, dynamic_share=0.0, max_tracks=0),
        "ring": StaticDynamicConfig(80, dynamic_share=1.0, max_tracks=0),
    }
    memory = StaticDynamicMemory(128 * 360, rules[split])

    def ask(seen: Tokens, which: np.ndarray) -> Tensor:
        motion = tensor(seen.moving[which]) if split == "both" else None
        where = tensor(seen.positions[which])
        told = memory.fuse(positions=where, time=memory.snapshot()._time, motion=motion)
        return 1 - torch.cosine_similarity(told, tensor(seen.features[which]))

    still, moving, again = [], [], []
    for n, seen in enumerate(frames):
        given = ~seen.hidden
        truth = tensor(seen.moving[given])
        motion = {"both": truth, "static": truth * 0, "ring": truth * 0 + 1}[split]
        memory.write(tensor(seen.features[given]), seen.time,
                     positions=tensor(seen.positions[given]), motion=motion)  # fmt: skip
        assert memory.nbytes <= 128 * 360
        if n < 20:
            continue
        error, walks = ask(seen, seen.hidden), torch.from_numpy(seen.moving[seen.hidden])
        still.append(error[~walks])
        moving.append(error[walks])
        if n >= BACK:
            before = frames[n - BACK]
            again.append(ask(before, before.hidden & ~before.moving))
    return tuple(float(torch.cat(part).mean()) for part in (still, moving, again))  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_layers_are_better_than_one_of_the_same_bytes(seed: int) -> None:
    room = MovingRoom(seed, size=(160, 120), seconds=14.0)
    # A third of a look is noise, so that a look has to be summed up to be known well.
    frames = [patch_tokens(room.frame(n), seed=seed, noise=0.316) for n in range(room.frames)]
    both, static, ring = (errors(frames, split) for split in ("both", "static", "ring"))
    print(f"seed {seed}: both {both}, static {static}, ring {ring}")
    assert both[1] < 0.8 * static[1] and both[0] < 1.2 * static[0]
    assert both[1] < 0.97 * ring[1] and both[2] < 0.6 * ring[2]
