"""Flash-VStream 2025 as published: a synopsis by k-means, a detail by search in all that was seen.

Every step re-clusters the slots of the synopsis and the new patches from a random start, then looks
the patches nearest to the heaviest slots up in the whole history and gives their high-resolution
features. The quirks are part of the rule: weights and timestamps begin anew while the history is no
larger than the synopsis; afterwards timestamps are means of row numbers, not times; the detail
comes in order of weight, with repetitions; nothing is ever forgotten, so a budget ends the stream.

Source: Zhang et al., "Flash-VStream: Efficient Real-Time Understanding for Long Video Streams",
ICCV 2025 (https://arxiv.org/abs/2506.23825; https://github.com/IVGSZ/Flash-VStream, folder
``Flash-VStream-Qwen``), re-implemented from a description.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast, get_args

import torch
from torch import Tensor

from vismem.memory.base import Budget, Memory, WriteReport, check_write
from vismem.memory.published.flash_rule import (
    Argsort,
    FlashSnapshot,
    Method,
    PublishedFlashConfig,
    compress,
    compress_video,
    kmeans_ordered,
    retrieve_detail,
    stable_argsort,
)
from vismem.memory.published.positions import pool_rows

__all__ = [
    "PublishedFlashConfig",
    "FlashSnapshot",
    "PublishedFlash",
    "compress_video",
    "kmeans_ordered",
    "retrieve_detail",
]

_BLOCK = 32  # patches searched at once: large enough for a product of matrices, small to append to
_HALF = torch.finfo(torch.float16).max


class PublishedFlash(Memory):
    """The published memory of a stream; see the module.

    Its rule searches everything that was ever seen. All of it is therefore held and counted, and a
    write that would pass the budget is refused.

    Args:
        config: Sizes and seed.
        budget: Bytes, or text such as ``"2GB"``.
        argsort: Sorts weights and timestamps.

    Attributes:
        generator: Draws where a clustering begins.
        coins: Draws rows for empty clusters.

    Example:
        >>> memory = PublishedFlash(PublishedFlashConfig(token_dim=8), budget="1MB")
        >>> _ = memory.write(torch.ones(16, 8), time=0.0)
        >>> memory.snapshot().rows().shape
        torch.Size([20, 8])
    """

    def __init__(
        self,
        config: PublishedFlashConfig,
        budget: Budget | int | str,
        argsort: Argsort = stable_argsort,
    ):
        self.config = config
        self.budget = Budget.parse(budget)
        self.argsort = argsort
        self.reset()

    def reset(self) -> None:
        """Forget everything and seed both generators anew."""
        config = self.config
        self.generator = torch.Generator().manual_seed(config.seed)
        self.coins = random.Random(config.seed)
        self._grid = (0, 0)
        self._high: list[Tensor] = []  # (h*w, D) each
        self._low: list[Tensor] = []  # blocks (n, h*w / pool**2, D)
        self._times = torch.empty(0, dtype=torch.float64)
        self._synopsis = torch.empty(0, 0, config.token_dim)
        self._weights = torch.empty(0)
        self._timestamps = torch.empty(0)
        self._detail = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        """Patches seen, all of which are held."""
        return len(self._times)

    @property
    def nbytes(self) -> int:
        """Bytes of the history and of the synopsis."""
        return self._bytes(len(self), self._grid)

    def _bytes(self, patches: int, grid: tuple[int, int]) -> int:
        high = grid[0] * grid[1] * self.config.token_dim * 4
        low = high // self.config.pool**2
        slots, detail = self._counts(patches)
        return patches * (high + low + 8) + slots * (low + 8) + detail * 8

    def _counts(self, patches: int) -> tuple[int, int]:
        """How many slots and details there are of so many patches."""
        config = self.config
        slots, detail = min(patches, config.synopsis_slots), min(patches, config.detail_slots)
        if detail < patches and config.method != "sample":
            detail = min(slots, detail)
        return slots, detail

    def write(  # type: ignore[override]  # names what it takes instead of any context
        self,
        tokens: Tensor,
        time: float,
        *,
        grid: tuple[int, int] | None = None,
        low: Tensor | None = None,
    ) -> WriteReport:
        """Add one temporal patch.

        Args:
            tokens: ``(h*w, D)`` high-resolution rows ordered ``(h/2, w/2, 2, 2)``.
            time: Seconds, never earlier than the write before.
            grid: ``(h, w)``, multiples of ``2 * pool`` and the same in every write; a square where
                none is given.
            low: ``(h*w / pool**2, D)`` rows of the low-resolution branch, in the same order on its
                own grid; means of the tokens where none are given.

        Raises:
            ValueError: If anything does not fit or is not finite, the budget would be passed, or
                the published rule divides by zero; the memory is then unchanged.
        """
        return self.write_many([tokens], [time], [{"grid": grid, "low": low}])[0]

    def write_many(
        self,
        tokens: Tensor | Sequence[Tensor],
        times: Iterable[float],
        contexts: Iterable[Mapping[str, Any]] = (),
    ) -> list[WriteReport]:
        """Add a clip, ``(T, h*w, D)``, which the published rule compresses once, not ``T`` times.

        Returns:
            One report, since there was one write; none of an empty clip.

        Raises:
            ValueError: If one of them is refused; the memory is then unchanged.
        """
        given = list(contexts) or [{} for _ in range(len(tokens))]
        times = list(times)
        grid, last = self._grid if len(self) else None, self._last
        high, low = [], []
        for patch, time, context in zip(tokens, times, given, strict=True):
            grid, fine, coarse = self._checked(patch, time, last, grid, **context)
            last = time
            high.append(fine)
            low.append(coarse)
        if not high:
            return []
        assert grid is not None
        needed = self._bytes(len(self) + len(high), grid)
        if needed > self.budget.bytes:
            raise ValueError(
                f"the published rule keeps every frame, which would take {needed} bytes of "
                f"{self.budget.bytes}; give it a larger budget, end the stream with `reset`, or "
                "use vismem.memory.flash.FlashMemory, which is bounded"
            )
        merged = self._update(grid, high, torch.stack(low), times)
        return [WriteReport(self.nbytes, merged=merged)]

    @property
    def _last(self) -> float | None:
        return float(self._times[-1]) if len(self) else None

    def _checked(
        self,
        tokens: Tensor,
        time: float,
        last: float | None,
        held: tuple[int, int] | None,
        grid: tuple[int, int] | None = None,
        low: Tensor | None = None,
    ) -> tuple[tuple[int, int], Tensor, Tensor]:
        """The grid and own copies of both resolutions of a patch that can be taken."""
        config = self.config
        if grid is None:
            side = math.isqrt(tokens.shape[0]) if tokens.ndim else 0
            grid = held or (side, side)
        h, w = (int(side) for side in grid)
        if held and held != (h, w):
            raise ValueError(f"the grid of a stream stays {held}, not {(h, w)}; reset before")
        check_write(tokens, time, config.token_dim, h * w, last)
        fine = _own(tokens)
        coarse = pool_rows(fine[None], (h, w), config.pool)[0]
        if low is not None:
            if low.shape != coarse.shape:
                raise ValueError(f"low must be {tuple(coarse.shape)}, not {tuple(low.shape)}")
            coarse = _own(low)
        return (h, w), fine, coarse

    def _update(
        self, grid: tuple[int, int], high: list[Tensor], low: Tensor, times: list[float]
    ) -> int:
        """Take a clip that passed all checks; gives how many slots were merged."""
        config = self.config
        slots = torch.cat([self._synopsis.reshape(-1, *low.shape[1:]), low])
        weights = torch.cat([self._weights, torch.ones(len(low))])
        draws = self.generator.get_state(), self.coins.getstate()
        try:
            slots, weights, timestamps = compress(
                config, slots, weights, self.generator, self.coins, self.argsort
            )
        except ValueError:
            self.generator.set_state(draws[0])
            self.coins.setstate(draws[1])
            raise
        merged = len(self._synopsis) + len(low) - len(slots)
        self._grid = grid
        self._synopsis, self._weights, self._timestamps = slots, weights, timestamps
        self._high += high
        self._times = torch.cat([self._times, torch.tensor(times, dtype=torch.float64)])
        if self._low and len(self._low[-1]) < _BLOCK:
            low = torch.cat([self._low.pop(), low])
        self._low += [block.clone() for block in low.split(_BLOCK)]
        self._detail = retrieve_detail(
            self._low, slots, weights, timestamps, config.detail_slots, config.method, self.argsort
        )
        return merged

    def snapshot(self) -> FlashSnapshot:
        """Share what the memory gives now; nothing that is shared is ever changed."""
        named = torch.cat([self._detail, self._timestamps.round().long()])
        return FlashSnapshot(
            self._grid,
            self.config.pool,
            tuple(self._high[patch] for patch in self._detail.tolist()),
            self._detail,
            self._synopsis,
            self._weights,
            self._timestamps,
            self._times[named],
        )

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Tensor]:
        """Give all state as tensors, the whole history too; loading it continues bit for bit."""
        empty = torch.empty(0, 0, self.config.token_dim)
        return {
            "sizes": self._sizes(),
            "grid": torch.tensor(self._grid),
            "high": torch.stack(self._high) if self._high else empty,
            "low": torch.cat(self._low) if self._low else empty,
            "times": self._times.clone(),
            "synopsis": self._synopsis.clone(),
            "weights": self._weights.clone(),
            "timestamps": self._timestamps.clone(),
            "detail": self._detail.clone(),
            "generator": self.generator.get_state(),
            "coins": torch.tensor(self.coins.getstate()[1]),
        }

    def _sizes(self) -> Tensor:
        config = self.config
        method = get_args(Method).index(config.method)
        return torch.tensor(
            [config.token_dim, config.synopsis_slots, config.detail_slots, config.pool, method]
        )

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of another instance; see `Memory.load_state_dict`."""
        own = self.state_dict()
        if set(state) != set(own):
            raise ValueError(f"a state has {sorted(own)}, not {sorted(state)}")
        if any(state[name].dtype != own[name].dtype for name in own):
            raise ValueError("the state has other types than this memory's")
        if not torch.equal(state["sizes"], self._sizes()):
            raise ValueError("the state is of another configuration")
        patches, dim = len(state["times"]), self.config.token_dim
        h, w = grid = cast(tuple[int, int], tuple(state["grid"].tolist()))
        few = h * w // self.config.pool**2
        slots, detail = self._counts(patches)
        shapes = {
            "times": (patches,),
            "high": (patches, h * w, dim),
            "low": (patches, few, dim),
            "synopsis": (slots, few, dim),
            "weights": (slots,),
            "timestamps": (slots,),
            "detail": (detail,),
            "generator": tuple(own["generator"].shape),
            "coins": tuple(own["coins"].shape),
        }
        for name, shape in shapes.items():
            if tuple(state[name].shape) != shape:
                raise ValueError(f"{name} must be {shape}, not {tuple(state[name].shape)}")
        if self._bytes(patches, grid) > self.budget.bytes:
            raise ValueError(f"the state holds more than {self.budget.bytes} bytes")
        self.generator.set_state(state["generator"])
        self.coins.setstate((3, tuple(state["coins"].tolist()), None))
        self._grid = grid
        self._high = list(state["high"].clone())
        self._low = [block.clone() for block in state["low"].split(_BLOCK)] if patches else []
        self._times, self._synopsis = state["times"].clone(), state["synopsis"].clone()
        self._weights, self._timestamps = state["weights"].clone(), state["timestamps"].clone()
        self._detail = state["detail"].clone()


def _own(features: Tensor) -> Tensor:
    """A copy in float32; refuses what float16, in which it will be recalled, cannot hold."""
    own = features.detach().to("cpu", torch.float32, copy=True)
    if not bool((own.abs() <= _HALF).all()):
        raise ValueError(f"features must be finite and at most {_HALF:.0f}; scale the encoder's")
    return own
