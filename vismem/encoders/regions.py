"""Split a depth picture: the large planes that things stand on, and the things.

Nothing here knows what is up, and nothing is learned. A plane is a support or a wall where it is
larger than any thing; what is left falls apart where depth jumps and where the colour changes.

Source of the search for planes: Fischler and Bolles, "Random Sample Consensus", CACM 24(6), 1981.
"""

from __future__ import annotations

import cv2
import numpy as np

from vismem.geometry import depth_sigma

__all__ = ["MOST_PLANES", "chromaticity", "find_planes", "find_regions"]

MOST_PLANES = 4
PLANE_SHARE = 0.06  # of the known pixels that make a plane worth taking away
PLANE_SIDE = 0.6  # metres; what is flat and longer is no thing
BORDER_SHARE = 0.15  # of the picture's border that makes a plane a background, however small
FLAT = (0.006, 0.025)  # metres from a plane that still are the plane, near and far
SAME_TILT = 0.9  # cosine
HYPOTHESES = 192
SAMPLES = 1500
LEAST_PIXELS = 24  # of a region; smaller ones are taken in by a neighbour or given up
GAP = 0.01  # metres between neighbouring pixels of one surface
TINT = 0.09  # distance of chromaticity between pixels of one colour
ENCLOSED = 0.55  # share of a region's border along another that makes it a part of that one


def chromaticity(image: np.ndarray) -> np.ndarray:
    """Colour without brightness, the same on the lit and the shaded side of a thing.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.

    Returns:
        ``(H, W, 2)`` float32, shares of red and green; dark pixels are drawn towards gray, for
        theirs are noise.
    """
    color = image.astype(np.float32) + 12.0
    return color[..., :2] / color.sum(-1, keepdims=True)


def find_planes(points: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Find the planes of a picture that are too large to be a thing, the largest first.

    Args:
        points: ``(H, W, 3)`` metres in the camera's axes, NaN where the depth is unknown.

    Returns:
        For each the normal with the offset, ``(4,)`` float64, so that ``n p + d`` is the height of
        a point on the camera's side, and its pixels, ``(H, W)`` bool.
    """
    generator = np.random.default_rng(0)  # the same picture, the same planes
    left = np.isfinite(points[..., 2])
    known = int(left.sum())
    found: list[tuple[np.ndarray, np.ndarray]] = []
    reach = np.clip(3 * depth_sigma(np.nan_to_num(points[..., 2])), *FLAT)
    while len(found) < MOST_PLANES and left.sum() > max(PLANE_SHARE * known, 3 * LEAST_PIXELS):
        plane = _best_plane(points, left, reach, generator)
        if plane is None:
            break
        height = points @ plane[:3] + plane[3]
        inside = left & (np.abs(height) <= reach)
        if inside.sum() < PLANE_SHARE * known:
            break
        if _is_background(points, _largest_part(inside)):
            # All of the plane, also what an earlier one had not taken: the edges between them.
            every = np.isfinite(height) & (np.abs(height) <= reach)
            found.append((plane, _without_slices(points, every, plane[:3])))
        left &= ~inside
    return found


def _best_plane(
    points: np.ndarray, left: np.ndarray, reach: np.ndarray, generator: np.random.Generator
) -> np.ndarray | None:
    height, width = left.shape
    rows, columns = np.nonzero(left)
    pick = generator.integers(0, len(rows), HYPOTHESES)
    # Three pixels of a neighbourhood lie on one surface far more often than three of the picture.
    step = generator.integers(3, max(4, min(height, width) // 6), (2, HYPOTHESES))
    one = points[rows[pick], columns[pick]]
    across = points[rows[pick], (columns[pick] + step[0]) % width]
    down = points[(rows[pick] + step[1]) % height, columns[pick]]
    normals = np.cross(across - one, down - one)
    size = np.linalg.norm(normals, axis=1)
    good = np.isfinite(size) & (size > 1e-9)
    if not good.any():
        return None
    normals, one = normals[good] / size[good, None], one[good]
    some = generator.integers(0, len(rows), min(SAMPLES, len(rows)))
    sample, near = points[rows[some], columns[some]], reach[rows[some], columns[some]]
    away = np.abs(sample @ normals.T - (one * normals).sum(1))
    best = int((away <= near[:, None]).sum(0).argmax())
    plane = np.append(normals[best], -one[best] @ normals[best])
    all_points, all_near = points[left], reach[left]
    for _ in range(3):
        inside = all_points[np.abs(all_points @ plane[:3] + plane[3]) <= all_near]
        if len(inside) < 3:
            return None
        centre = inside.mean(0)
        normal = np.linalg.eigh(np.cov((inside - centre).T))[1][:, 0]
        plane = np.append(normal, -centre @ normal)
    return plane if plane[3] > 0 else -plane


def _largest_part(inside: np.ndarray) -> np.ndarray:
    """The pixels of a plane that hang together; the level tops of several things do not."""
    _, label, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=4)
    best = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    return label == best


def _without_slices(points: np.ndarray, inside: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Give back what a plane, drawn on for ever, cuts out of things: its parts tilted otherwise."""
    count, label = cv2.connectedComponents(inside.astype(np.uint8), connectivity=4)
    sizes = np.bincount(label.ravel(), minlength=count)
    kept = np.ones(count, bool)
    kept[0] = False
    for number in 1 + np.flatnonzero(sizes[1:] >= LEAST_PIXELS):
        part = points[label == number]
        tilt = np.linalg.eigh(np.cov((part - part.mean(0)).T))[1][:, 0]
        kept[number] = abs(tilt @ normal) > SAME_TILT
    return kept[label]


def _is_background(points: np.ndarray, inside: np.ndarray) -> bool:
    if inside.mean() < PLANE_SHARE / 2:
        return False
    border = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
    if border.mean() >= BORDER_SHARE:
        return True
    span = np.ptp(np.percentile(points[inside], (2, 98), axis=0), axis=0)
    return bool(np.linalg.norm(span) >= PLANE_SIDE)


def find_regions(points: np.ndarray, image: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Split what is no plane into surfaces of one colour that hang together.

    Args:
        points: ``(H, W, 3)`` metres, NaN where the depth is unknown.
        image: ``(H, W, 3)`` uint8 RGB.
        free: Pixels to split, ``(H, W)`` bool.

    Returns:
        Number of the region of each pixel from 0 on, ``(H, W)`` int64; -1 for none.
    """
    tint = chromaticity(cv2.medianBlur(image, 3))
    joined = []
    for axis in (0, 1):
        step = np.linalg.norm(np.diff(points, axis=axis), axis=-1)
        depth = np.nan_to_num(np.minimum(*_pairs(points[..., 2], axis)))
        pixel = np.linalg.norm(np.diff(points[..., :2], axis=axis), axis=-1)
        near = step <= np.maximum(np.maximum(GAP, 5 * depth_sigma(depth)), 2 * pixel)
        both = np.logical_and(*_pairs(free, axis))
        joined.append(near & both)
    same = [
        link & (np.abs(np.diff(tint, axis=axis)).sum(-1) <= TINT / 2)
        for axis, link in enumerate(joined)
    ]
    labels = np.where(free, _connected(same), -1)
    labels = _grow(_drop_small(labels), joined)
    return _number(_merge(labels, tint, joined))


def _pairs(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel and its neighbour below or to the right."""
    return (values[:-1], values[1:]) if axis == 0 else (values[:, :-1], values[:, 1:])


def _connected(links: list[np.ndarray]) -> np.ndarray:
    """Number of the component of each pixel, given which neighbours are joined."""
    shape = (links[0].shape[0] + 1, links[0].shape[1])
    label = np.arange(shape[0] * shape[1]).reshape(shape)
    while True:
        before = label.copy()
        for axis, link in enumerate(links):
            one, other = _pairs(label, axis)
            least = np.where(link, np.minimum(one, other), label.size)
            np.minimum(one, least, out=one)  # in place: both are views of the labels
            np.minimum(other, least, out=other)
        label = label.ravel()[label]  # as far as the one it points to has come
        if np.array_equal(label, before):
            return label


def _drop_small(labels: np.ndarray) -> np.ndarray:
    names, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    small = counts[inverse].reshape(labels.shape) < LEAST_PIXELS
    return np.where(small & (labels >= 0), -2, labels)  # free, and nobody's


def _grow(labels: np.ndarray, joined: list[np.ndarray]) -> np.ndarray:
    """Give crumbs, the mixed pixels along edges and highlights, to the region they hang on."""
    while True:
        before = labels.copy()
        for axis, link in enumerate(joined):
            one, other = _pairs(before, axis)
            give = link & (one == -2) & (other >= 0)
            _pairs(labels, axis)[0][give] = other[give]
            give = link & (other == -2) & (one >= 0)
            _pairs(labels, axis)[1][give] = one[give]
        if np.array_equal(labels, before):
            return np.where(labels == -2, -1, labels)


def _merge(labels: np.ndarray, tint: np.ndarray, joined: list[np.ndarray]) -> np.ndarray:
    """Join regions of one colour that touch, and what another encloses, to that one."""
    while True:
        names, flat = np.unique(labels, return_inverse=True)
        flat = flat.reshape(labels.shape)
        count = len(names)
        mean = (
            np.stack(
                [
                    np.bincount(flat.ravel(), tint[..., c].ravel().astype(np.float64), count)
                    for c in (0, 1)
                ],
                1,
            )
            / np.bincount(flat.ravel(), minlength=count)[:, None]
        )
        touch, border = np.zeros((count, count)), np.zeros(count)
        for axis, link in enumerate(joined):
            one, other = _pairs(flat, axis)
            differ = one != other
            np.add.at(border, one[differ], 1)
            np.add.at(border, other[differ], 1)
            np.add.at(touch, (one[differ & link], other[differ & link]), 1)
        touch += touch.T
        if names[0] == -1:
            touch[0] = touch[:, 0] = 0
        alike = np.abs(mean[:, None] - mean[None]).sum(-1) <= TINT
        part = touch >= ENCLOSED * np.maximum(border, 1)[:, None]
        pairs = np.argwhere((touch >= 3) & (alike | part))
        if not len(pairs):
            return labels
        best = pairs[touch[tuple(pairs.T)].argmax()]
        labels = np.where(labels == names[best[0]], names[best[1]], labels)


def _number(labels: np.ndarray) -> np.ndarray:
    names = np.unique(labels)
    names = names[names >= 0]
    return np.where(labels >= 0, np.searchsorted(names, labels), -1)
