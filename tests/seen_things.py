"""Things as a camera sees them that looks along z, and memories of what it saw."""

from __future__ import annotations

import torch
from torch import Tensor

from vismem.memory.objects import ObjectConfig, ObjectMemory

DIM = 15
CONFIG = ObjectConfig(look_dim=DIM)
ROOM = CONFIG.row_bytes
A, B, FAR = (0.0, 0.0, 0.5), (0.3, 0.0, 0.5), (0.3, 0.3, 0.5)


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


def blind(frame: dict[str, Tensor], value: int) -> dict[str, Tensor]:
    return frame | {"near": torch.full_like(frame["near"], value)}


def memory_of(*frames: dict[str, Tensor], start: int = 0) -> ObjectMemory:
    memory = ObjectMemory(100 * ROOM, CONFIG)
    for number, frame in enumerate(frames, start):
        memory.write(time=float(number), **frame)
    return memory
