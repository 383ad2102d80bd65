"""Whether a camera stands still, by where corners of the picture went.

Source of the tracking: Lucas and Kanade, "An Iterative Image Registration Technique with an
Application to Stereo Vision", IJCAI 1981, in pyramids, as of OpenCV.
"""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["Steady"]

TILES = (3, 4)  # rows and columns that each give their own corners: one thing may have the sharpest
CORNERS = 10  # of a tile
LEAST_CORNERS = 12  # below which a picture without texture is taken to stand still
FLAT = 2.0  # spread of gray values below which a tile shows nothing but noise
SHIFT = 0.75  # pixels that the corners must have gone in the middle, of a picture 192 wide
FAR = 2.5  # pixels that noise moves no corner
SHARE = 0.5  # of the corners that moved far or are lost; of fewer, things move before the camera
RENEW = 2.0  # seconds after which a picture is compared with a newer one


class Steady:
    """Compares each small picture of a stream with one of shortly before.

    Example:
        >>> steady, noise = Steady(), np.random.default_rng(0).integers(0, 255, (90, 192, 3))
        >>> picture = cv2.GaussianBlur(noise.astype(np.uint8), (9, 9), 2)
        >>> steady.step(picture, 0.0), steady.step(picture, 0.1)
        (True, True)
        >>> steady.step(np.roll(picture, 3, 1), 0.2)
        False
    """

    def __init__(self) -> None:
        self._gray: np.ndarray | None = None
        self._corners = np.empty((0, 1, 2), np.float32)
        self._time = 0.0

    def step(self, small: np.ndarray, time: float) -> bool:
        """Take the next picture.

        Args:
            small: ``(H, W, 3)`` uint8 RGB, of the same size each time.
            time: Seconds.

        Returns:
            Whether the camera stood still since the picture that this one was compared with.
        """
        gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        still = self._is_still(gray)
        if not still or self._gray is None or not 0 <= time - self._time < RENEW:
            self._gray, self._time = gray, time
            self._corners = _corners(gray)
        return still

    def _is_still(self, gray: np.ndarray) -> bool:
        if self._gray is None:
            return True
        if self._gray.shape != gray.shape:
            return False
        if len(self._corners) < LEAST_CORNERS:
            return True
        went, found, _ = cv2.calcOpticalFlowPyrLK(
            self._gray,
            gray,
            self._corners,
            np.empty_like(self._corners),
            winSize=(11, 11),
            maxLevel=1,
        )
        shift = (went - self._corners)[found[:, 0] > 0, 0]
        far = (np.linalg.norm(shift, axis=1) > FAR).sum() + (len(self._corners) - len(shift))
        if far > SHARE * len(self._corners):  # another picture altogether, too
            return False
        return bool(np.linalg.norm(np.median(shift, axis=0)) <= SHIFT)


def _corners(gray: np.ndarray) -> np.ndarray:
    """Corners all over a picture, ``(N, 1, 2)`` float32 ``x y``."""
    found = []
    rows, columns = (
        np.linspace(0, side, n + 1, dtype=int) for side, n in zip(gray.shape, TILES, strict=True)
    )
    for top, bottom in zip(rows[:-1], rows[1:], strict=True):
        for left, right in zip(columns[:-1], columns[1:], strict=True):
            tile = gray[top:bottom, left:right]
            if tile.size and tile.std() >= FLAT:
                corners = cv2.goodFeaturesToTrack(tile, CORNERS, 0.05, 4)
                if corners is not None:
                    found.append(corners + np.array([left, top], np.float32))
    return np.concatenate(found) if found else np.empty((0, 1, 2), np.float32)
