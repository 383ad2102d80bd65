"""From a frame with depth and pose to the things that stand in it, as places in the world.

The planes that things stand on are taken away (see `vismem.encoders.regions`); what is left is cut
into things, and each gets a box, a look, colours and a shape. No weights take part; labels are
those that the frame's encoder found anyway.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from vismem.encoders.base import Labels
from vismem.encoders.color import COLORS, name_colors
from vismem.encoders.regions import find_planes, find_regions
from vismem.frame import Frame
from vismem.geometry import check_intrinsics, depth_sigma, is_pose, transform, unproject
from vismem.sightings import Sightings

__all__ = ["LOOK_DIM", "MOST_LABELS", "MOST_THINGS", "find_objects", "labels_at", "look_of"]

WORK_WIDTH = 320  # pixels that a picture is cut down to
NEAR_WIDTH = 80  # cells of the coarse depth picture
MOST_THINGS = 24  # of a frame; the largest in the picture are kept
MOST_LABELS = 3
LEAST_POINTS = 30
SIDES = (0.01, 0.6)  # metres: the largest side of a thing
HUES = 12
LOOK_DIM = HUES + 3  # and black, gray, white
POSE_SIGMA = 0.005  # metres; what a pose is trusted to
STANDS = 0.02  # metres above a plane that the lowest point of what stands on it may be
RIM = 0.1  # metres that the edge of a table is thick at most
SURROUNDED = 0.6  # of the outline of what stands on a plane and is seen from above
BALL_RESIDUAL = 0.05  # of its radius: how far the points of a ball are from a sphere at most
LEAST_TINT = 0.2  # chroma over brightness below which a colour counts as gray by half


def find_objects(frame: Frame, labels: Labels | None = None) -> Sightings | None:
    """Find the things that a frame shows.

    Args:
        frame: With depth, intrinsics and pose.
        labels: What an encoder recognised in the frame.

    Returns:
        The things; ``None`` if the frame has no depth, no intrinsics or no finite rigid pose, or
        if they are wrong.
    """
    if frame.depth is None or frame.intrinsics is None or not is_pose(frame.pose):
        return None
    height, width = frame.depth.shape
    try:
        intrinsics = check_intrinsics(frame.intrinsics, width, height)
    except ValueError:
        return None
    step = max(1, round(width / WORK_WIDTH))
    scale = np.diag([1 / step, 1 / step, 1.0])
    depth, image = frame.depth[::step, ::step], np.ascontiguousarray(frame.image[::step, ::step])
    points = unproject(depth, scale @ intrinsics)
    planes = find_planes(points)
    free = np.isfinite(points[..., 2])
    for _, pixels in planes:
        free &= ~pixels
    regions = find_regions(points, image, free)
    things: list[dict] = []
    sizes = np.bincount(regions[regions >= 0]) if (regions >= 0).any() else np.zeros(0, int)
    for number in np.argsort(-sizes, kind="stable"):
        if sizes[number] < LEAST_POINTS or len(things) == MOST_THINGS:
            break
        thing = _measure(regions == number, points, image, planes)
        if thing is not None:
            things.append(thing)
    # Of a picture of width and height 1, whose first pixel reaches from 0 to 1 / width.
    unit = np.diag([1 / width, 1 / height, 1.0]) @ (
        intrinsics + [[0, 0, 0.5], [0, 0, 0.5], [0] * 3]
    )
    pose = np.asarray(frame.pose, np.float64)
    return _gather(things, labels, _near(frame.depth), pose, unit)


def _gather(
    things: list[dict], labels: Labels | None, near: Tensor, pose: np.ndarray, unit: np.ndarray
) -> Sightings:
    count = len(things)

    def column(name: str, width: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        values = np.array([thing[name] for thing in things]).reshape(count, *width)
        return torch.from_numpy(values).to(dtype)

    corners = column("corners", (8, 3), torch.float64).numpy()
    corners = transform(corners, pose)
    box = column("box", (4,), torch.float32)
    ids, scores = labels_at(box, labels)
    return Sightings(
        look=column("look", (LOOK_DIM,), torch.float16),
        position=torch.from_numpy(corners.mean(1)),
        sigma=column("sigma", (), torch.float32),
        extent=torch.from_numpy(np.ptp(corners, axis=1)).float(),
        box=box,
        color=column("color", (len(COLORS),), torch.float32),
        shape=column("shape", (3,), torch.float32),
        label=ids,
        label_score=scores,
        cut=column("cut", (), torch.bool),
        near=near,
        pose=torch.from_numpy(pose.copy()),
        intrinsics=torch.from_numpy(unit),
    )


def _near(depth: np.ndarray) -> Tensor:
    """Least known depth of each cell, in millimetres."""
    height, width = depth.shape
    cell = max(1, round(width / NEAR_WIDTH))
    rows, columns = -(-height // cell), -(-width // cell)
    known = np.isfinite(depth) & (depth > 0)
    least = np.full((rows * cell, columns * cell), np.inf)
    least[:height, :width] = np.where(known, depth, np.inf)
    least = least.reshape(rows, cell, columns, cell).min((1, 3))
    metres = np.where(np.isfinite(least), least, 0.0)
    return torch.from_numpy(np.clip(np.rint(metres * 1000), 0, 2**15 - 1).astype(np.int16))


def _measure(
    mask: np.ndarray,
    points: np.ndarray,
    image: np.ndarray,
    planes: list[tuple[np.ndarray, np.ndarray]],
) -> dict | None:
    """Everything about one thing, in the camera's axes; ``None`` if it is none."""
    own = points[mask]
    depth = float(np.median(own[:, 2]))
    own = own[np.abs(own[:, 2] - depth) <= SIDES[1]]
    outline = _dilated(mask.astype(np.uint8)).astype(bool) & ~mask
    around = [float(pixels[outline].mean()) if outline.any() else 0.0 for _, pixels in planes]
    corners, ball, rectangular = _box(own, planes, around)
    sides = np.linalg.norm(corners[[1, 2, 4]] - corners[0], axis=1)
    if any(_is_rim(own, plane) for plane, _ in planes):
        return None
    if not SIDES[0] <= sides.max() <= SIDES[1] or len(own) < LEAST_POINTS:
        return None
    rows, columns = np.nonzero(mask)
    high, wide = mask.shape
    covered = _covered(mask, outline, points[..., 2], depth)
    at_edge = bool(rows.min() == 0 or columns.min() == 0)
    at_edge |= bool(rows.max() == high - 1 or columns.max() == wide - 1)
    doubt = 0.05 * sides.max() + (covered + 0.5 * at_edge) * sides.max() / 2
    sigma = np.sqrt(depth_sigma(depth) ** 2 + POSE_SIGMA**2 + doubt**2)
    shares = _lit(image[mask])
    return {
        "corners": corners,
        "sigma": float(sigma),
        "box": (
            columns.min() / wide,
            rows.min() / high,
            (columns.max() + 1) / wide,
            (rows.max() + 1) / high,
        ),
        "look": look_of(shares),
        "color": np.bincount(name_colors(shares[None])[0], minlength=len(COLORS)) / len(shares),
        "shape": ((1 - ball) * rectangular, ball, (1 - ball) * (1 - rectangular)),
        "cut": at_edge or covered > 0.2,
    }


def _is_rim(points: np.ndarray, plane: np.ndarray) -> bool:
    """Whether this lies just below a plane and reaches up to it: the edge of a table."""
    low, high = np.percentile(points @ plane[:3] + plane[3], (5, 95))
    return bool(-RIM < low < high < SIDES[0] and high > -STANDS)


def _dilated(picture: np.ndarray) -> np.ndarray:
    return cv2.dilate(picture, np.ones((5, 5), np.uint8))


def _covered(mask: np.ndarray, ring: np.ndarray, depth: np.ndarray, own: float) -> float:
    """Share of a thing's outline, the ring around it, along which something nearer stands."""
    # Compared with the thing beside it, for what lies before it on a table is nearer as well.
    beside = _dilated(np.where(mask, depth, 0).astype(np.float32))
    around = np.nan_to_num(depth[ring], nan=own)
    return float((around < beside[ring] - 0.03).mean()) if ring.any() else 0.0


# --------------------------------------------------------------------------- volume


def _box(
    points: np.ndarray, planes: list[tuple[np.ndarray, np.ndarray]], around: list[float]
) -> tuple[np.ndarray, float, float]:
    """The box around a thing, of which one side or two and perhaps the top are seen.

    Args:
        points: ``(N, 3)``, in the camera's axes.
        planes: What it may stand on.
        around: Share of its outline that each of them is.

    Returns:
        Corners ``(8, 3)``, how much it is a ball, and how much what is not is a block, both from 0
        to 1.
    """
    centre, radius, residual = _fit_ball(points)
    up, low = _support(points, planes, around)
    height = points @ up
    top = float(np.percentile(height, 98))
    bottom = low if low is not None else float(np.percentile(height, 2))
    flat = np.stack(_across(up))
    span = np.ptp(np.percentile(points, (2, 98), axis=0), axis=0)
    round_enough = radius < span.max() and span[2] > radius / 2  # of which half is seen
    ball = _logistic((BALL_RESIDUAL - residual) / 0.012) if round_enough else 0.0
    if ball > 0.5:
        axes = np.stack([*flat, up])
        return centre + radius * _CORNERS @ axes, ball, 0.5
    ground = points @ flat.T
    (x, y), (a, b), angle = cv2.minAreaRect(ground.astype(np.float32))
    turn = np.radians(angle)
    axes2 = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    sides, middle = np.array([a, b]), np.array([x, y])
    middle, sides = _behind(middle, sides, axes2)
    axes = np.stack([axes2[0] @ flat, axes2[1] @ flat, up])
    volume = np.array([*sides, top - bottom])
    place = middle @ flat + up * (top + bottom) / 2
    return place + (_CORNERS * volume / 2) @ axes, ball, _rectangular(ground)


_CORNERS = np.stack(np.meshgrid((-1, 1), (-1, 1), (-1, 1), indexing="ij"), -1).reshape(8, 3)


def _behind(
    middle: np.ndarray, sides: np.ndarray, axes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Give a face that is seen from the front alone the depth that it is wide."""
    thin = int(sides.argmin())
    ahead = np.linalg.norm(middle)
    if ahead and sides[thin] < sides[1 - thin] / 3 and abs(axes[thin] @ middle) > 0.7 * ahead:
        grown = sides[1 - thin] - sides[thin]
        middle = middle + axes[thin] * np.sign(axes[thin] @ middle) * grown / 2
        sides = np.full(2, sides.max())
    return middle, sides


def _support(
    points: np.ndarray, planes: list[tuple[np.ndarray, np.ndarray]], around: list[float]
) -> tuple[np.ndarray, float | None]:
    """Which way is up for a thing, and how far up along it the plane lies that it stands on.

    It stands on what it reaches down to. Seen from above no side of it tells; then it stands on
    what is all around it, if it is not far higher than wide.
    """
    wide = np.ptp(np.percentile(points, (2, 98), axis=0), axis=0).max()
    for (plane, _), share in zip(planes, around, strict=True):
        low, high = np.percentile(points @ plane[:3] + plane[3], (5, 95))
        if high > 0 and (-STANDS < low < STANDS or (share > SURROUNDED and 0 < high < 2 * wide)):
            return plane[:3], -float(plane[3])
    if planes:  # on something else, and upright like that
        return planes[0][0][:3], None
    return np.array([0.0, -1.0, 0.0]), None


def _across(up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two directions at right angles to one and to each other."""
    other = np.eye(3)[np.abs(up).argmin()]
    one = np.cross(up, other)
    one /= np.linalg.norm(one)
    return one, np.cross(up, one)


def _fit_ball(points: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Sphere of least squares: centre, radius, and mean distance from it over the radius.

    What the camera's noise alone would give is taken off.
    """
    origin = points.mean(0)
    own = points - origin
    rows = np.concatenate([2 * own, np.ones((len(own), 1))], 1)
    solved = np.linalg.lstsq(rows, (own**2).sum(1), rcond=None)[0]
    radius = float(np.sqrt(max(solved[3] + solved[:3] @ solved[:3], 1e-12)))
    away = np.linalg.norm(own - solved[:3], axis=1) - radius
    noise = float(depth_sigma(np.median(points[:, 2]))) ** 2
    return origin + solved[:3], radius, math.sqrt(max((away**2).mean() - noise, 0)) / radius


def _rectangular(ground: np.ndarray) -> float:
    """From 0 to 1 how much a thing seen from above is a rectangle and no disc.

    An outline tells, until depth is missing along it; so do the points in the corners, where those
    of upright sides gather.
    """
    outline = cv2.convexHull(ground.astype(np.float32))
    middle, (a, b), angle = cv2.minAreaRect(outline)
    if a * b <= 0:
        return 0.5
    turn = np.radians(angle)
    axes = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    local = (ground - middle) @ axes.T / (a / 2, b / 2)
    corners = float((np.linalg.norm(local, axis=1) > 1.05).mean())
    filled = cv2.contourArea(outline) / (a * b)  # a disc fills 0.785 of its square
    return _logistic((filled - 0.87) / 0.04 + (corners - 0.13) / 0.02)


def _logistic(value: float) -> float:
    return float(1 / (1 + np.exp(-np.clip(value, -30, 30))))


# --------------------------------------------------------------------------- looks


def _lit(pixels: np.ndarray) -> np.ndarray:
    """Pixels of a thing as bright as its brightest side: shade is no colour, ``(N, 3)`` uint8."""
    value = pixels.max(1).astype(np.float32)
    gain = np.clip(np.percentile(value, 90) / np.maximum(value, 1), 1.0, 2.0)
    return np.clip(pixels * gain[:, None], 0, 255).astype(np.uint8)


def look_of(pixels: np.ndarray) -> np.ndarray:
    """How a thing looks, whatever its size, shape and light: its hues, blacks, grays and whites.

    Args:
        pixels: ``(N, 3)`` uint8 RGB, lit evenly.

    Returns:
        ``(LOOK_DIM,)`` float32 of unit length: roots of shares, so that the cosine of two looks is
        the Bhattacharyya coefficient of their colours.
    """
    color = pixels.astype(np.float32) / 255
    most, least = color.max(1), color.min(1)
    chroma = most - least
    hue = np.degrees(
        np.arctan2(np.sqrt(3) * (color[:, 1] - color[:, 2]), 2 * color[:, 0] - color[:, 1:].sum(1))
    )
    tint = chroma / (most + 0.1)  # the tint of what is almost black is noise
    tinted = tint**2 / (tint**2 + LEAST_TINT**2)
    place = (hue % 360) / 360 * HUES
    low, share = np.floor(place).astype(int) % HUES, place % 1
    shares = np.bincount(low, tinted * (1 - share), HUES)
    shares += np.bincount((low + 1) % HUES, tinted * share, HUES)
    level = np.clip(most, 0, 1) * 2  # from black over gray to white
    grays = [np.clip(1 - np.abs(level - n), 0, 1) @ (1 - tinted) for n in range(3)]
    look = np.sqrt(np.concatenate([shares, grays]))
    return (look / np.linalg.norm(look)).astype(np.float32)


def labels_at(box: Tensor, labels: Labels | None) -> tuple[Tensor, Tensor]:
    """The surest labels whose middle lies in each box.

    Args:
        box: ``(N, 4)`` fractions of the picture.
        labels: What an encoder recognised in it.

    Returns:
        Numbers ``(N, MOST_LABELS)`` int16, -1 for none, and scores ``(N, MOST_LABELS)``.
    """
    ids = torch.full((len(box), MOST_LABELS), -1, dtype=torch.int16)
    scores = torch.zeros(len(box), MOST_LABELS)
    if labels is None or not len(labels.ids) or not len(box):
        return ids, scores
    middle = (labels.boxes[:, :2] + labels.boxes[:, 2:]) / 2
    inside = (middle >= box[:, None, :2]).all(-1) & (middle <= box[:, None, 2:]).all(-1)
    each = torch.where(inside, labels.scores, torch.zeros(()))
    count = min(MOST_LABELS, each.shape[1])
    best = each.topk(count)
    found = best.values > 0
    ids[:, :count] = torch.where(found, labels.ids[best.indices], -1).to(torch.int16)
    scores[:, :count] = best.values
    return ids, scores
