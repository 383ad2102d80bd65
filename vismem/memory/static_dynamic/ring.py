"""The dynamic layer: what moves, as it was seen, for as long as there is room.

Nothing is merged. A token knows its track and how fast it went, so that it can be read where it
has got to; the oldest goes first.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["Ring"]


class Ring:
    """Tokens in the order of their times. A column, once made, is never changed.

    Args:
        token_dim: Width D.
        axes: Of positions; 0 where there are none.

    Example:
        >>> ring = Ring(token_dim=4, axes=2)
        >>> ring.add(torch.ones(3, 4), torch.zeros(3, 2), torch.ones(3, 2), 0.5, 0, torch.arange(3))
        >>> ring.shrink(2), len(ring), ring.at(2.5)[0].tolist()
        (1, 2, [2.0, 2.0])
    """

    def __init__(self, token_dim: int, axes: int):
        self.held: dict[str, Tensor] = self.columns(0, token_dim, axes)

    @staticmethod
    def columns(rows: int, token_dim: int, axes: int) -> dict[str, Tensor]:
        """Columns of a number of tokens."""
        return {
            "feature": torch.zeros(rows, token_dim),
            "position": torch.zeros(rows, axes),
            "velocity": torch.zeros(rows, axes),  # units a second
            "time": torch.zeros(rows, dtype=torch.float64),
            "source": torch.zeros(rows, dtype=torch.int32),
            "track": torch.zeros(rows, dtype=torch.int64),
        }

    def __len__(self) -> int:
        return len(self.held["time"])

    @property
    def nbytes(self) -> int:
        """Bytes of all tokens."""
        return sum(column.nbytes for column in self.held.values())

    def at(self, time: float) -> Tensor:
        """Where each token has got to, ``(n, axes)``, if it went on as it was going."""
        passed = (time - self.held["time"]).float()[:, None]
        return self.held["position"] + passed * self.held["velocity"]

    def add(
        self,
        features: Tensor,
        positions: Tensor,
        velocities: Tensor,
        time: float,
        source: int,
        tracks: Tensor,
    ) -> None:
        """Take the moving tokens of one write, the surest last.

        Args:
            features: ``(N, D)``.
            positions: ``(N, axes)``.
            velocities: ``(N, axes)`` units a second.
            time: Seconds.
            source: Running number of the write.
            tracks: ``(N,)`` numbers of their tracks.
        """
        count = len(features)
        new = {
            "feature": features,
            "position": positions,
            "velocity": velocities,
            "time": torch.full((count,), time, dtype=torch.float64),
            "source": torch.full((count,), source, dtype=torch.int32),
            "track": tracks,
        }
        self.held = {name: torch.cat([column, new[name]]) for name, column in self.held.items()}

    def take(self, rows: Tensor) -> Mapping[str, Tensor]:
        """Give tokens away: those of a mask ``(n,)`` bool."""
        taken = {name: column[rows] for name, column in self.held.items()}
        self.held = {name: column[~rows] for name, column in self.held.items()}
        return taken

    def shrink(self, most: int) -> int:
        """Drop the oldest until no more than a number is left; how many."""
        over = max(0, len(self) - most)
        if over:
            self.held = {name: column[over:].clone() for name, column in self.held.items()}
        return over
