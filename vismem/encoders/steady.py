"""Whether a camera stands still, by where corners of the picture went.

Source of the tracking: Lucas and Kanade, "An Iterative Image Registration Technique with an
Application to Stereo Vision", IJCAI 1981, in pyramids, as of OpenCV.
"""

from __future__ import annotations

import cv2
import numpy as np

__all__ = ["Steady"]

CORNERS = 120
LEAST_CORNERS = 12  # below which a picture without texture is taken to stand still
SHIFT = 0.75  # pixels that a corner must have gone, of a picture some 200 wide
SHARE = 0.5  # of the corners that move with the camera; of fewer, things move before it
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
        self._corners: np.ndarray | None = None
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
            self._corners = cv2.goodFeaturesToTrack(gray, CORNERS, 0.01, 5)
        return still

    def _is_still(self, gray: np.ndarray) -> bool:
        if self._gray is None or self._corners is None or len(self._corners) < LEAST_CORNERS:
            return True
        if self._gray.shape != gray.shape:
            return False
        went, found, _ = cv2.calcOpticalFlowPyrLK(
            self._gray, gray, self._corners, None, winSize=(15, 15), maxLevel=3
        )
        shift = np.linalg.norm((went - self._corners)[found[:, 0] > 0, 0], axis=1)
        # A corner that is lost was covered, or the picture changed altogether.
        moved = (shift > SHIFT).sum() + (len(self._corners) - len(shift))
        return bool(moved <= SHARE * len(self._corners))
