"""A small world of boxes, spheres and cans on a floor, rendered by casting a ray for each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vismem.frame import Frame
from vismem.geometry import pixel_rays

__all__ = ["COLORS", "Thing", "World", "camera", "looking_at"]

COLORS = {
    "red": (200, 30, 30),
    "green": (40, 160, 50),
    "blue": (40, 60, 200),
    "yellow": (225, 200, 30),
    "purple": (130, 40, 160),
    "orange": (235, 120, 20),
    "white": (235, 235, 235),
    "gray": (120, 120, 120),
}
LIGHT = np.array([0.3, -0.4, 0.87])


@dataclass(frozen=True)
class Thing:
    """A shape of a colour at a place: its centre and its whole size, in metres."""

    shape: str  # box, ball or can
    color: str
    at: tuple[float, float, float]
    size: tuple[float, float, float] = (0.05, 0.05, 0.05)
    turn: float = 0.0  # about the vertical, radians

    def moved(self, *at: float) -> Thing:
        return replace(self, at=at)


def camera(width: int = 160, height: int = 120, focal: float = 150.0) -> np.ndarray:
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])


def looking_at(eye: Sequence[float], target: Sequence[float]) -> np.ndarray:
    """Camera-to-world of a camera at ``eye`` that looks at ``target``, the world's z up."""
    eye, target = np.asarray(eye, float), np.asarray(target, float)
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, (0, 0, 1.0))
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = eye
    return pose


@dataclass(frozen=True)
class World:
    """A floor at z = 0 and what stands on it, with a wavy pattern of so many levels on all."""

    things: tuple[Thing, ...] = ()
    floor: str = "gray"
    pattern: float = 0.0

    def render(
        self,
        pose: np.ndarray,
        timestamp: float = 0.0,
        *,
        size: tuple[int, int] = (160, 120),
        focal: float = 150.0,
        noise: float = 0.0,
        seed: int = 0,
    ) -> Frame:
        """The frame that a camera takes; ``noise`` of depth in metres, one standard deviation."""
        matrix = camera(*size, focal)
        rays = pixel_rays(*size, matrix) @ pose[:3, :3].T
        depth, normal, color = _floor(rays, pose[:3, 3], COLORS[self.floor])
        color = color + self.pattern * _waves(pose[:3, 3] + rays * depth[..., None])
        for thing in self.things:
            hit, facing = _hit(thing, rays, pose[:3, 3])
            nearer = hit < depth
            depth = np.where(nearer, hit, depth)
            normal = np.where(nearer[..., None], facing, normal)
            places = _own(pose[:3, 3] + rays * np.where(nearer, hit, 0)[..., None], thing)
            own = COLORS[thing.color] + self.pattern * _waves(places)
            color = np.where(nearer[..., None], own, color)
        shade = 0.55 + 0.45 * np.clip(normal @ LIGHT, 0, 1)
        image = np.clip(color * shade[..., None], 0, 255).astype(np.uint8)
        depth = np.where(np.isfinite(depth), depth, 0.0)
        if noise:
            generator = np.random.default_rng(seed)
            depth = np.where(depth > 0, depth + generator.normal(0, noise, depth.shape), 0.0)
        return Frame(image, timestamp, pose=pose, depth=depth.astype(np.float32), intrinsics=matrix)


def _waves(places: np.ndarray) -> np.ndarray:
    """Some waves, 20 to 50 cm long, of three colours."""
    pitch = np.array([[21.0, 13, 17], [-12, 25, 9], [16, -8, 30]])
    return np.sin(np.where(np.isfinite(places), places, 0) @ pitch.T + [0, 1, 2])


def _own(points: np.ndarray, thing: Thing) -> np.ndarray:
    """Points in a thing's own axes."""
    c, s = np.cos(thing.turn), np.sin(thing.turn)
    return (points - thing.at) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _floor(rays: np.ndarray, eye: np.ndarray, color: tuple[int, int, int]) -> tuple:
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = -eye[2] / rays[..., 2]
    depth = np.where(depth > 0, depth, np.inf)
    normal = np.broadcast_to((0.0, 0.0, 1.0), rays.shape)
    return depth, normal, np.broadcast_to(np.array(color, float), rays.shape)


def _hit(thing: Thing, rays: np.ndarray, eye: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth at which each ray meets a thing, infinite where it does not, and the surface's way."""
    c, s = np.cos(thing.turn), np.sin(thing.turn)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    d, o = rays @ turn, (eye - thing.at) @ turn
    half = np.array(thing.size) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        if thing.shape == "box":
            one, other = (-half - o) / d, (half - o) / d
            near, far = np.minimum(one, other), np.maximum(one, other)
            enter = near.max(-1)
            hit = np.where((enter <= far.min(-1)) & (enter > 0), enter, np.inf)
            normal = -np.sign(d) * (near == enter[..., None])
        else:
            axes = 3 if thing.shape == "ball" else 2
            a, b = (d[..., :axes] ** 2).sum(-1), d[..., :axes] @ o[:axes]
            root = b**2 - a * ((o[:axes] ** 2).sum() - half[0] ** 2)
            hit = (-b - np.sqrt(np.where(root >= 0, root, np.nan))) / a
            hit = np.where(hit > 0, hit, np.inf)
            at = o + d * np.where(np.isfinite(hit), hit, 0)[..., None]
            normal = at / half[0]
            if thing.shape == "can":
                normal[..., 2] = 0
                hit = np.where(np.abs(at[..., 2]) <= half[2], hit, np.inf)
                lid = (half[2] - o[2]) / d[..., 2]
                at = o + d * lid[..., None]
                inside = (at[..., :2] ** 2).sum(-1) <= half[0] ** 2
                better = inside & (lid > 0) & (lid < hit)
                hit = np.where(better, lid, hit)
                normal = np.where(better[..., None], (0.0, 0.0, 1.0), normal)
    return hit, normal @ turn.T
