"""`Detections`: the boxes of one frame, the one thing that detectors hand to everything else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from vismem.errors import require

__all__ = ["Detections"]


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What was found in one frame; the arrays are of one length.

    Args:
        boxes: ``(N, 4)`` float32, ``x0 y0 x1 y1`` in pixels of the picture.
        scores: ``(N,)`` float32 from 0 to 1.
        labels: ``(N,)`` int64 numbers of classes, as the detector counts them.
        ids: ``(N,)`` int64, the same for one thing in all frames, or None.
        time: When the frame was taken, in seconds of its stream's clock.
        stream: Name of the stream.

    Raises:
        ValueError: If the arrays do not fit each other or hold what is not a number.

    Example:
        >>> found = Detections(np.array([[0, 0, 4, 2]]), np.array([0.5]), np.array([7]), time=1.5)
        >>> len(found), found.boxes.dtype.name
        (1, 'float32')
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    ids: np.ndarray | None = None
    time: float = 0.0
    stream: str = "camera"

    def __post_init__(self) -> None:
        count = np.shape(self.scores)[:1]
        columns: dict[str, type[np.generic]] = {"boxes": np.float32, "scores": np.float32}
        columns |= {"labels": np.int64} | ({} if self.ids is None else {"ids": np.int64})
        for name, dtype in columns.items():
            column: np.ndarray = np.asarray(getattr(self, name), dtype)
            shape = (*count, 4) if name == "boxes" else count
            if column.shape != shape:
                raise ValueError(f"{name} must be {shape}, not {column.shape}")
            if not np.isfinite(column).all():
                raise ValueError(f"{name} must be finite")
            object.__setattr__(self, name, column)
        if not np.isfinite(self.time):
            raise ValueError(f"a time is a number of seconds, not {self.time}")

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: Any) -> Detections:
        """Some of them: a slice, a mask ``(N,)`` or numbers ``(M,)``.

        Example:
            >>> found = Detections(np.zeros((2, 4)), np.array([0.5, 0.9]), np.array([1, 2]))
            >>> found[found.scores > 0.6].labels.tolist()
            [2]
        """
        rows = rows if isinstance(rows, slice) else np.atleast_1d(rows)
        ids = None if self.ids is None else self.ids[rows]
        part = self.boxes[rows], self.scores[rows], self.labels[rows], ids
        return Detections(*part, self.time, self.stream)

    # ------------------------------------------------------------------ to and from others

    def to_supervision(self) -> Any:
        """Give ``supervision.Detections``; time and stream become its metadata.

        Raises:
            UsageError: If supervision is not installed.
        """
        return require("supervision").Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.labels.copy(),
            tracker_id=None if self.ids is None else self.ids.copy(),
            metadata={"time": self.time, "stream": self.stream},
        )

    @classmethod
    def from_supervision(
        cls, found: Any, *, time: float | None = None, stream: str | None = None
    ) -> Detections:
        """Take ``supervision.Detections``.

        Args:
            found: With confidence and class; masks and further data are left out.
            time: Seconds; by default as its metadata says.
            stream: By default as its metadata says.

        Raises:
            ValueError: If confidence, class or time is missing.
        """
        known = dict(getattr(found, "metadata", None) or {})
        at: Any = known.get("time") if time is None else time
        stream = known.get("stream", "camera") if stream is None else stream
        parts = {"confidence": found.confidence, "class_id": found.class_id, "time": at}
        if missing := [name for name, part in parts.items() if part is None]:
            raise ValueError(f"these detections have no {' and no '.join(missing)}")
        return cls(found.xyxy, found.confidence, found.class_id, found.tracker_id, at, stream)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Give results as the COCO evaluation takes them: ``x y width height`` boxes.

        Args:
            image_id: Of the frame in the ground truth. Labels go out as category ids unchanged.

        Example:
            >>> found = Detections(np.array([[1, 1, 4, 2]]), np.array([0.5]), np.array([7]))
            >>> found.to_coco(3)
            [{'image_id': 3, 'category_id': 7, 'bbox': [1.0, 1.0, 3.0, 1.0], 'score': 0.5}]
        """
        low, high = self.boxes[:, :2], self.boxes[:, 2:]
        rows = zip(
            self.labels.tolist(),
            np.concatenate([low, high - low], 1).tolist(),
            self.scores.tolist(),
            strict=True,
        )
        return [
            {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
            for label, box, score in rows
        ]

    def to_json(self) -> str:
        """Give one line of JSON; `from_json` reads it back to the bit.

        Example:
            >>> Detections(np.zeros((1, 4)), np.array([0.5]), np.array([7]), time=2.0).to_json()
            '{"time": 2.0, "stream": "camera", "boxes": [[0.0, 0.0, 0.0, 0.0]], \
"scores": [0.5], "labels": [7]}'
        """
        line: dict[str, Any] = {"time": self.time, "stream": self.stream}
        names = ("boxes", "scores", "labels") + (() if self.ids is None else ("ids",))
        return json.dumps(line | {name: getattr(self, name).tolist() for name in names})

    @classmethod
    def from_json(cls, line: str) -> Detections:
        """Read what `to_json` wrote.

        Raises:
            ValueError: If the line is not such a one.

        Example:
            >>> empty = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0), time=1.0)
            >>> len(Detections.from_json(empty.to_json()))
            0
        """
        try:
            parts = dict(json.loads(line))
            boxes = np.asarray(parts.pop("boxes"), np.float32).reshape(-1, 4)
            return cls(boxes, **parts)
        except TypeError as error:
            raise ValueError(f"no line of detections: {error}") from error
        except KeyError as error:
            raise ValueError(f"no line of detections: it holds no {error}") from error
