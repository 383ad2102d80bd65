"""The memory of things: the contract, and what makes a thing the same, moved or gone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from memory.contract import MemoryContract, Observation
from torch import Tensor

from vismem.memory.objects import ObjectConfig, ObjectMemory

DIM = 15
CONFIG = ObjectConfig(look_dim=DIM)
ROOM = CONFIG.row_bytes


def look(number: int) -> Tensor:
    return torch.eye(DIM)[number % DIM]


def seen(
    *things: tuple[int, tuple[float, float, float]],
    wall: float = 3.0,
    eye: tuple[float, float, float] = (0.0, 0.0, -1.0),
    size: float = 0.06,
    sigma: float = 0.005,
    cut: bool = False,
) -> dict[str, Tensor]:
    """What a camera at ``eye`` that looks along z sees: things by look and place, and a wall.

    The wall is at z = ``wall`` and 0 is none; each thing stands in front of it.
    """
    count = len(things)
    at = torch.tensor([p for _, p in things], dtype=torch.float64).reshape(-1, 3)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = torch.tensor(eye)
    camera = torch.tensor([[1.0, 0, 0.5], [0, 1.0, 0.5], [0, 0, 1]], dtype=torch.float64)
    near = torch.full((60, 80), (wall - eye[2]) if wall else 0.0)
    for x, y, z in at.tolist():
        depth = z - size / 2 - eye[2]
        row, column = ((torch.arange(n) + 0.5) / n - 0.5 for n in (60, 80))
        inside = ((row * depth - (y - eye[1])).abs() <= size / 2)[:, None]
        inside = inside & ((column * depth - (x - eye[0])).abs() <= size / 2)[None]
        near = torch.where(inside & ((near == 0) | (near > depth)), depth, near)
    color = torch.zeros(count, 11)
    for n, (number, _) in enumerate(things):
        color[n, number % 11] = 1
    return {
        "tokens": torch.stack([look(number) for number, _ in things])
        if count
        else torch.empty(0, DIM),
        "position": at,
        "sigma": torch.full((count,), sigma),
        "extent": torch.full((count, 3), size),
        "box": torch.tensor([[0.4, 0.4, 0.6, 0.6]]).expand(count, 4).clone(),
        "color": color,
        "shape": torch.tensor([[1.0, 0, 0]]).expand(count, 3).clone(),
        "label": torch.full((count, 3), -1, dtype=torch.int16),
        "label_score": torch.zeros(count, 3),
        "cut": torch.full((count,), cut),
        "near": (near * 1000).to(torch.int16),
        "pose": pose,
        "intrinsics": camera,
    }


class TestObjectMemory(MemoryContract):
    small = 20 * ROOM + 7
    large = 400 * ROOM
    max_tokens = CONFIG.max_things

    def make(self, budget: int) -> ObjectMemory:
        return ObjectMemory(budget, CONFIG)

    def make_other(self, budget: int) -> ObjectMemory:
        return ObjectMemory(budget, ObjectConfig(look_dim=DIM + 1))

    def observation(self, number: int, seed: int = 0) -> Observation:
        thing = number * 7 % 60
        place = (thing % 10 - 5.0, thing // 10 - 3.0, 5.0 + seed)
        return {"time": number * 0.5, **seen((thing, place), wall=0.0)}

    def query(self) -> Tensor:
        return look(3)

    def all_hostile(self, good: Observation) -> dict[str, Observation]:
        cases = super().all_hostile(good)
        # A frame that shows no thing is taken: it tells what is gone.
        return {name: case for name, case in cases.items() if name != "tokens: empty"}

    def hostile(self, good: Observation) -> Mapping[str, Observation]:
        fields = {"position", "sigma", "extent", "box", "color", "shape", "pose", "intrinsics"}
        return (
            {f"no {name}": {k: v for k, v in good.items() if k != name} for name in fields}
            | {f"NaN in {name}": good | {name: good[name] * torch.nan} for name in fields}
            | {f"two {name}": good | {name: good[name].repeat(2, 1)} for name in ("box", "color")}
            | {"no sigma at all": good | {"sigma": good["sigma"] * 0}}
            | {"strange": good | {"mood": torch.zeros(1)}}
        )
