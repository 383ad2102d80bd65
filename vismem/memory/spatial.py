"""`SpatialMemory`: views of a scene, from where they were taken, in a fixed number of bytes.

One mechanism serves all policies. A view that is no news beside those held is not taken, and what
it looks like is noted as seen again; and when the budget is full, the view of the least worth goes.
A policy says what is news and what a view is worth:

* ``novelty``: news differs from every view held, or is of a new place, or a witness of an object
  that no other view shows. Of the two views that are most alike, first within a place, the older
  goes.
* ``place``: news differs from every view of its place, and the place with the most views gives one
  up, so that each keeps its share; after Cho et al., "Spatially-Aware Transformers for Embodied
  Agents", 2024 (https://arxiv.org/abs/2402.15160).
* ``fifo``: the oldest goes: the window of Ravi et al., "SAM 2: Segment Anything in Images and
  Videos", 2024 (https://arxiv.org/abs/2408.00714), whose prompted frames stay, and of Fang et al.,
  "SAM2Act", 2025 (https://arxiv.org/abs/2501.18564), which has no such frames.
* ``first_last``, ``stride``, ``reservoir``, ``last``: the first view and the latest; every n-th,
  where n doubles when the budget is full; a uniform sample; the latest alone. What a sceptic tries.

Under every policy but ``last`` a prompted view stays while another can go, and under the first two
so does the only witness of a place or of an object. The budget wins over all of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from vismem.memory.base import Budget, Memory, WriteReport, check_write
from vismem.memory.new_view import UNKNOWN, NewView
from vismem.memory.views import SpatialConfig, SpatialSnapshot, View, differences

__all__ = ["SpatialConfig", "SpatialMemory", "SpatialSnapshot", "View"]


class SpatialMemory(Memory):
    """Views of one stream within a hard budget of bytes; see the module.

    Args:
        budget: Bytes, or text such as ``"64MB"``.
        config: Sizes and the policy.

    Example:
        >>> memory = SpatialMemory("1MB", SpatialConfig(token_dim=4, max_tokens=6))
        >>> red, blue = torch.eye(4)[[0] * 6], torch.eye(4)[[2] * 6]
        >>> for time, tokens in enumerate([red, red, blue, red]):
        ...     report = memory.write(tokens, float(time), grid=(2, 3))
        >>> [(view.time, view.seen, view.weight) for view in memory.snapshot().views()]
        [(0.0, 3.0, 3), (2.0, 2.0, 1)]
    """

    def __init__(self, budget: Budget | int | str, config: SpatialConfig):
        self.config = config
        self.budget = Budget.parse(budget)
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next write may be at any time."""
        self._rows = np.empty(0, self.config.row)
        self._signatures = np.empty((0, self.config.signature_width), np.float32)
        self._tokens: tuple[Tensor, ...] = ()
        self._positions: tuple[Tensor | None, ...] = ()
        self._objects: tuple[tuple[int, ...], ...] = ()
        self._writes = 0
        self._last = -math.inf
        self._generator = torch.Generator().manual_seed(self.config.seed)

    @property
    def nbytes(self) -> int:
        """Bytes of all views: tokens, positions, signatures and what else is known of them."""
        return self._bytes(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def snapshot(self) -> SpatialSnapshot:
        """Share the views; nothing that a snapshot holds is ever changed."""
        return SpatialSnapshot(
            self.config,
            self._rows,
            self._signatures,
            self._tokens,
            self._positions,
            self._objects,
        )

    # ------------------------------------------------------------------ writing

    def write(  # type: ignore[override]  # names what it takes instead of any context
        self,
        tokens: Tensor,
        time: float,
        *,
        grid: tuple[int, int] | None = None,
        pose: Tensor | np.ndarray | None = None,
        intrinsics: Tensor | np.ndarray | None = None,
        positions: Tensor | np.ndarray | None = None,
        signature: Tensor | np.ndarray | None = None,
        pointer: Tensor | None = None,
        prompted: bool = False,
        objects: Iterable[int] = (),
    ) -> WriteReport:
        """Add one view.

        Args:
            tokens: ``(N, D)``, ``1 <= N <= max_tokens``.
            time: Seconds, never earlier than the write before.
            grid: Rows and columns of the tokens, row after row.
            pose: ``(4, 4)`` camera-to-world in metres, OpenCV axes; left out where it is unknown.
            intrinsics: ``(3, 3)``.
            positions: Where each token lies, ``(N, 3)`` metres in the world, NaN where unknown.
            signature: ``(S,)``, if the config has a width for it.
            pointer: ``(P,)``, if the config has a width for it.
            prompted: Whether a person or a start gave it.
            objects: Numbers of the objects that it shows.

        Returns:
            Bytes held; ``boundary`` where the view is held now; ``merged`` is 1 where it was no
            news, ``dropped`` how many views, itself included, the budget cost.

        Raises:
            ValueError: If anything does not fit or is not finite; the memory is then unchanged.
        """
        config, last = self.config, self._last if self._writes else None
        check_write(tokens, time, config.token_dim, config.max_tokens, last)
        new = NewView.checked(
            config,
            self._writes,
            tokens,
            time,
            grid=grid,
            pose=pose,
            intrinsics=intrinsics,
            positions=positions,
            signature=signature,
            pointer=pointer,
            prompted=prompted,
            objects=objects,
        )
        if config.policy == "reservoir":
            draw = torch.rand((), dtype=torch.float64, generator=self._generator)
            new.row["draw"] = float(draw)
        self._writes, self._last = self._writes + 1, float(time)
        if not self._holds(new.row):
            return WriteReport(self.nbytes, dropped=1)
        rank = self._ranks(new.row, new.signature) if self._by_news else np.empty(0)
        alike = self._alike(new, rank)
        if alike.any():
            self._see_again(int(np.argmin(np.where(alike, rank, math.inf))), float(time))
            return WriteReport(self.nbytes, merged=1)
        self._add(new, rank)
        dropped = self._shrink()
        held = bool(len(self) and self._rows["source"][-1] == new.row["source"][0])
        return WriteReport(self.nbytes, boundary=held, dropped=dropped)

    @property
    def _by_news(self) -> bool:
        """Whether views are compared at all."""
        return self.config.policy in ("novelty", "place")

    def _bytes(self, rows: np.ndarray) -> int:
        """Bytes of views: their rows, their signatures and what is ragged."""
        signatures = len(rows) * self._signatures.itemsize * self._signatures.shape[1]
        return int(rows.nbytes + signatures + rows["bytes"].sum())

    def _holds(self, rows: np.ndarray) -> bool:
        """Whether views are within the limits."""
        limit = 1 if self.config.policy == "last" else self.config.max_views
        few = limit is None or len(rows) <= limit
        return few and self._bytes(rows) <= self.budget.bytes

    # ------------------------------------------------------------------ what is news

    def _ranks(self, row: np.ndarray, signature: np.ndarray) -> np.ndarray:
        """How far a view is from each view held, ``(V,)``: below 1 in its place, else from 1 to 2.

        ``d / (1 + d)`` keeps the order of the mean absolute difference ``d`` of the signatures.
        """
        away = differences(self._signatures, signature).astype(np.float64)
        return away / (1.0 + away) + (self._rows["place"] != row["place"]).any(1)

    def _alike(self, new: NewView, rank: np.ndarray) -> np.ndarray:
        """Beside which views held one is no news, ``(V,)`` bool; none if it is taken anyway."""
        same = rank < 1.0
        of_new_place = new.row["place"][0, 3] >= 0 and not same.any()
        of_new_object = not set(new.objects) <= set(chain.from_iterable(self._objects))
        if new.row["prompted"][0] or of_new_place or of_new_object:
            return np.zeros(len(rank), bool)
        alike = rank % 1.0 <= self.config.novelty / (1.0 + self.config.novelty)
        return alike & same if self.config.policy == "place" else alike

    def _see_again(self, number: int, time: float) -> None:
        """Note on a view that it was seen again, beside which another was no news."""
        self._rows = self._rows.copy()
        self._rows["seen"][number] = time
        self._rows["weight"][number] += 1

    def _add(self, new: NewView, rank: np.ndarray) -> None:
        """Hold a view, and let it and those held know their nearest."""
        self._rows = np.concatenate([self._rows, new.row])
        self._signatures = np.concatenate([self._signatures, new.signature[None]])
        if len(rank):
            # Of equals the newer is the nearest: it stays longer, and less is looked up again.
            closer = np.append(rank <= self._rows["rank"][:-1], False)
            self._rows["rank"][closer] = rank[closer[:-1]]
            self._rows["nearest"][closer] = new.row["source"]
            self._look_up(len(rank), rank)
        self._tokens += (new.tokens,)
        self._positions += (new.positions,)
        self._objects += (new.objects,)

    def _look_up(self, number: int, rank: np.ndarray) -> None:
        """Find the nearest of a view among others of given ranks, the newest of equals."""
        nearest = len(rank) - 1 - int(np.argmin(rank[::-1]))
        self._rows["rank"][number] = rank[nearest]
        self._rows["nearest"][number] = self._rows["source"][nearest]

    # ------------------------------------------------------------------ who goes

    def _shrink(self) -> int:
        """Give views up until the budget holds; how many."""
        dropped = 0
        while not self._holds(self._rows):
            number = self._least()
            # Without its nearest a view's rank is too low, but not too high: it matters only here.
            while self._by_news and self._rows["nearest"][number] == UNKNOWN and len(self) > 1:
                rank = self._ranks(self._rows[number : number + 1], self._signatures[number])
                rank[number] = math.inf
                self._look_up(number, rank)
                number = self._least()
            self._drop(number)
            dropped += 1
        return dropped

    def _least(self) -> int:
        """Number of the view that goes next: unprotected, of least worth, of equals the oldest."""
        rows, policy = self._rows, self.config.policy
        source = rows["source"]
        protected = 2 * rows["prompted"].astype(np.int64)
        if policy == "last":
            protected[:] = 0
        share = np.zeros(len(rows), np.int64)
        worth = source.astype(np.float64)
        if policy == "first_last":
            worth[0] = math.inf
        elif policy == "stride":  # how often the stride can double before it skips this write
            worth = np.where(source, source & -source, np.iinfo(np.int64).max).astype(np.float64)
        elif policy == "reservoir":
            worth = rows["draw"]
        elif self._by_news:
            worth = rows["rank"]
            protected += self._only_witnesses()
            if policy == "place":
                _, inverse, counts = np.unique(
                    rows["place"], axis=0, return_inverse=True, return_counts=True
                )
                share = -counts[inverse.ravel()]
        return int(np.lexsort((source, worth, share, protected))[0])

    def _only_witnesses(self) -> np.ndarray:
        """Whether each view is the only one of its place or of an object, ``(V,)`` bool."""
        places = self._rows["place"]
        _, inverse, counts = np.unique(places, axis=0, return_inverse=True, return_counts=True)
        only = (counts[inverse.ravel()] == 1) & (places[:, 3] >= 0)
        shown = np.fromiter(chain.from_iterable(self._objects), np.int64)
        _, inverse, counts = np.unique(shown, return_inverse=True, return_counts=True)
        owner = np.repeat(np.arange(len(only)), [len(numbers) for numbers in self._objects])
        only[owner[counts[inverse] == 1]] = True
        return only

    def _drop(self, number: int) -> None:
        """Give a view up."""
        gone = self._rows["source"][number]
        self._rows = np.delete(self._rows, number)
        self._signatures = np.delete(self._signatures, number, axis=0)
        for name in ("_tokens", "_positions", "_objects"):
            held = getattr(self, name)
            setattr(self, name, held[:number] + held[number + 1 :])
        self._rows["nearest"][self._rows["nearest"] == gone] = UNKNOWN

    def set_budget(self, budget: Budget | int | str) -> WriteReport:
        """Take another budget, at once; reports what that dropped."""
        self.budget = Budget.parse(budget)
        dropped = self._shrink()
        return WriteReport(self.nbytes, dropped=dropped)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors; loading it continues bit for bit."""
        config, known = self.config, [p for p in self._positions if p is not None]
        return {
            "config": config.fingerprint(),
            "writes": torch.tensor(self._writes),
            "last": torch.tensor(self._last, dtype=torch.float64),
            "generator": self._generator.get_state(),
            "rows": torch.from_numpy(np.frombuffer(self._rows.tobytes(), np.uint8).copy()),
            "signatures": torch.from_numpy(self._signatures.copy()),
            "tokens": torch.cat(
                [torch.empty(0, config.token_dim, dtype=config.torch_dtype), *self._tokens]
            ),
            "positions": torch.cat([torch.empty(0, 3), *known]),
            "located": torch.tensor([p is not None for p in self._positions], dtype=torch.bool),
            "objects": torch.tensor(list(chain.from_iterable(self._objects)), dtype=torch.int64),
            "object_counts": torch.tensor([len(o) for o in self._objects], dtype=torch.int64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another instance of the same configuration.

        Raises:
            ValueError: If it is of another configuration, incomplete or over the budget.
        """
        try:
            if not torch.equal(state["config"], self.config.fingerprint()):
                raise ValueError("the state is of another configuration")
            writes, last = int(state["writes"]), float(state["last"])
            generator = torch.Generator()
            generator.set_state(state["generator"])
            rows = np.frombuffer(state["rows"].numpy().tobytes(), self._rows.dtype).copy()
            signatures = state["signatures"].numpy().copy()
            counts = (rows["grid"][:, 0] * rows["grid"][:, 1]).tolist()
            located = state["located"].tolist()
            tokens = [part.clone() for part in state["tokens"].split(counts)]
            held = [count for count, known in zip(counts, located, strict=True) if known]
            points = iter([part.clone() for part in state["positions"].split(held)])
            objects = [
                tuple(part.tolist())
                for part in state["objects"].split(state["object_counts"].tolist())
            ]
        except KeyError as error:
            raise ValueError(f"the state holds no {error}; it is incomplete") from error
        except RuntimeError as error:
            raise ValueError(f"the state does not fit together: {error}") from error
        if not len(rows) == len(objects) or any(t.dtype != self.config.torch_dtype for t in tokens):
            raise ValueError("the state does not fit together")
        if signatures.shape != (len(rows), self.config.signature_width):
            raise ValueError("the state's signatures do not fit together")
        if not self._holds(rows):
            raise ValueError(f"the state's {len(rows)} views are over the budget")
        self._rows, self._signatures = rows, signatures
        self._writes, self._last, self._generator = writes, last, generator
        self._tokens, self._objects = tuple(tokens), tuple(objects)
        self._positions = tuple(next(points) if known else None for known in located)
