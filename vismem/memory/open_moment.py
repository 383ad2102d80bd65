"""`OpenMoment`: the moment of an episodic memory that is still going on, and its frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vismem.memory.moments import EpisodicConfig, Segment, merge_labels, unit

__all__ = ["MomentFrame", "OpenMoment", "bytes_tensor"]


def bytes_tensor(data: bytes) -> Tensor:
    """View bytes as a uint8 tensor, ``(n,)``."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0).byte()


@dataclass(frozen=True)
class MomentFrame:
    """One accepted write, in the types that a moment is made of."""

    time: float
    values: dict[str, np.ndarray]  # one row of the columns that a frame fills
    labels: dict[str, np.ndarray]  # label columns, (n, ...)
    direction: np.ndarray  # mean token of unit length, (D,): what surprise is measured on
    thumbnail: bytes

    @classmethod
    def checked(
        cls,
        config: EpisodicConfig,
        number: int,
        tokens: Tensor,
        time: float,
        *,
        embedding: Tensor | None = None,
        positions: Tensor | None = None,
        pose: Tensor | None = None,
        thumbnail: bytes = b"",
        labels: Mapping[str, Tensor] | None = None,
    ) -> MomentFrame:
        """Check everything before anything is changed."""
        count = tokens.shape[0]
        if embedding is None:
            if config.embedding_dim != config.token_dim:
                raise ValueError(f"an embedding of ({config.embedding_dim},) is needed")
            embedding = tokens.float().mean(0)
        if positions is None:
            positions = torch.zeros(count, 2)
        if pose is None:
            pose = torch.full((4, 4), torch.nan)
        elif not torch.isfinite(pose.float()).all():
            raise ValueError("the pose holds NaN or infinity; leave it out where it is unknown")
        if len(thumbnail) > config.max_thumbnail:
            raise ValueError(
                f"a thumbnail has at most {config.max_thumbnail} bytes, not {len(thumbnail)}"
            )
        empty = {"id": (), "score": (), "box": (4,), "color": (config.colors,), "count": ()}
        given = labels or {name: torch.empty(0, *shape) for name, shape in empty.items()}
        if set(given) != set(empty):
            raise ValueError(f"labels have {sorted(empty)}, not {sorted(given)}")
        rows = len(given["id"])
        shapes = {name: (rows, *shape) for name, shape in empty.items()}
        checks = [
            ("embedding", embedding, (config.embedding_dim,)),
            ("positions", positions, (count, 2)),
            ("pose", pose, (4, 4)),
            *((f"label {name}", given[name], shape) for name, shape in shapes.items()),
        ]
        for name, value, shape in checks:
            if tuple(value.shape) != shape:
                raise ValueError(f"{name} must be {shape}, not {tuple(value.shape)}")
            if name != "pose" and not torch.isfinite(value).all():
                raise ValueError(f"{name} holds NaN or infinity")
        # What is kept in float16 must be finite there, too.
        halves = [("tokens", tokens), ("positions", positions)]
        halves += [(f"label {name}", given[name]) for name in ("box", "color")]
        for name, value in halves:
            if not torch.isfinite(value.half()).all():
                raise ValueError(f"{name} must be within ±65504, the range of float16")
        time = float(time)
        padded = np.zeros((config.max_tokens, config.token_dim), np.float16)
        padded[:count] = tokens.half().numpy()
        centres = np.zeros((config.max_tokens, 2), np.float16)
        centres[:count] = positions.half().numpy()
        score = given["score"].float().numpy().copy()
        return cls(
            time=time,
            values={
                "peak": np.array(time),
                "source": np.array(number),
                "embedding": unit(embedding.double().numpy()),
                "pose": pose.float().numpy().copy(),
                "token_count": np.array(count),
                "tokens": padded,
                "positions": centres,
            },
            labels={
                "label": given["id"].numpy().astype(np.int64),
                "label_max": score,
                "label_sum": score,
                "label_time": np.full(rows, time),
                "label_box": given["box"].half().numpy().copy(),
                "label_color": given["color"].half().numpy().copy(),
                "label_count": given["count"].numpy().astype(np.int64),
            },
            direction=unit(tokens.double().mean(0).numpy()),
            thumbnail=thumbnail,
        )


class OpenMoment:
    """The moment that is still going on."""

    def __init__(self, config: EpisodicConfig):
        self.config = config
        self.frames = 0
        self.start = self.end = 0.0
        self.source = 0
        self.embedding = np.zeros(config.embedding_dim)  # sum of the frames'
        self.direction = np.zeros(config.token_dim)  # sum of the frames'
        self.kept: MomentFrame | None = None  # the frame nearest to the middle of the moment
        self.labels = merge_labels(
            config, {n: np.empty((0, *s[1:])) for n, (_, s) in _label_columns(config).items()}
        )

    @property
    def nbytes(self) -> int:
        """Bytes that it will hold as a row, its thumbnail at its largest."""
        return self.config.row_bytes + self.config.max_thumbnail

    def distance(self, frame: MomentFrame) -> float:
        """Cosine distance of a frame from the moment so far."""
        return 1.0 - float(unit(self.direction) @ frame.direction)

    def add(self, frame: MomentFrame) -> None:
        """Take one more frame."""
        if self.kept is None:
            self.start, self.source = frame.time, int(frame.values["source"])
        self.end = frame.time
        self.frames += 1
        self.embedding = self.embedding + frame.values["embedding"]
        self.direction = self.direction + frame.direction
        if self.kept is None or self.distance(frame) < self.distance(self.kept):
            self.kept = frame
        pooled = {n: np.concatenate([self.labels[n], frame.labels[n]]) for n in frame.labels}
        self.labels = merge_labels(self.config, pooled)

    def segment(self, name: str) -> Segment:
        """Give the moment as a segment of one row."""
        assert self.kept is not None
        row = dict(self.kept.values) | self.labels
        row["start"], row["end"] = np.array(self.start), np.array(self.end)
        row["frames"], row["source"] = np.array(self.frames), np.array(self.source)
        row["embedding"] = unit(self.embedding)
        columns = {
            column: torch.from_numpy(np.array(row[column])[None]).to(dtype)
            for column, (dtype, _) in self.config.columns().items()
        }
        return Segment(name, columns, (self.kept.thumbnail,))

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors."""
        assert self.kept is not None
        numbers = [self.start, self.end, self.kept.time]
        arrays = {
            "numbers": np.array(numbers),
            "counts": np.array([self.frames, self.source]),
            "embedding": self.embedding,
            "direction": self.direction,
            "kept.direction": self.kept.direction,
            **{f"kept.{name}": np.array(value) for name, value in self.kept.values.items()},
            **self.labels,
        }
        state = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
        return state | {"kept.thumbnail": bytes_tensor(self.kept.thumbnail)}

    @classmethod
    def from_state(cls, config: EpisodicConfig, state: Mapping[str, Tensor]) -> OpenMoment:
        """Inverse of `state`; raises KeyError where something is missing."""
        moment = cls(config)
        arrays = {name: value.numpy().copy() for name, value in state.items()}
        moment.start, moment.end, peak = arrays["numbers"].tolist()
        moment.frames, moment.source = arrays["counts"].tolist()
        moment.embedding, moment.direction = arrays["embedding"], arrays["direction"]
        moment.labels = {name: arrays[name] for name in moment.labels}
        names = ("peak", "source", "embedding", "pose", "token_count", "tokens", "positions")
        moment.kept = MomentFrame(
            peak,
            {name: arrays[f"kept.{name}"] for name in names},
            {},
            arrays["kept.direction"],
            arrays["kept.thumbnail"].tobytes(),
        )
        return moment


def _label_columns(config: EpisodicConfig) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: kind for name, kind in config.columns().items() if name.startswith("label")}
