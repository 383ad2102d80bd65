"""SAM 2's memory around a bank: condition the features of a frame on what was seen, and write it.

`MemoryHost` holds what SAM 2 learned for its memory: attention, encoder, temporal codes, codes of
pointers and of absence. It reads in two ways.

* `condition`, ours: any views that a bank kept (`vismem.memory.spatial`), of several objects at
  once, each with its own. A view that was not prompted takes the row of the temporal table of its
  true age, counted in frames of ``frame_seconds`` and rounded; all that are older than the table
  share its last row but one, and prompted views the last, as published. A pointer's age is in
  seconds too and ends at pi windows, where codes would begin to come back. Where the views are
  those that SAM 2 would have read, both ways agree.
* `condition_published`: what `vismem.memory.published.sam2.select_memories` selected, as published.

Source: Ravi et al., "SAM 2: Segment Anything in Images and Videos", https://arxiv.org/abs/2408.00714;
github.com/facebookresearch/sam2, class ``SAM2Base``, re-implemented from a description.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vismem.memory.published.sam2 import Selection
from vismem.memory.views import View
from vismem.models.key_cache import KeyCache
from vismem.models.memory_attention import MemoryAttention
from vismem.models.memory_encoder import STRIDE, MemoryEncoder, exclusive_masks, mask_signal
from vismem.models.sine import sine_map, sine_time

__all__ = ["Gathered", "HostConfig", "MemoryHost", "Written"]


@dataclass(frozen=True)
class HostConfig:
    """Sizes of SAM 2's memory; the defaults are those of all released models.

    Args:
        dim: Width ``C`` of features and of object pointers.
        memory_dim: Width ``E`` of memory maps; divides ``dim``.
        layers: Of the memory attention.
        hidden: Width of its two-layer networks.
        memories: Rows of the table of temporal codes; the last is for prompted frames.
        pointers: Frames that a window of object pointers is long.
        pointer_times: Whether pointers have a code of time; not in SAM 2.0.
        absent_code: Whether maps tell that the object was not there; not in SAM 2.0.
        frame_seconds: How long a frame is where ages are counted in frames; 24 a second are those
            of the videos that SAM 2 was trained on.
        dropout: In training.

    Raises:
        ValueError: If the widths or counts do not fit.
    """

    dim: int = 256
    memory_dim: int = 64
    layers: int = 4
    hidden: int = 2048
    memories: int = 7
    pointers: int = 16
    pointer_times: bool = True
    absent_code: bool = True
    frame_seconds: float = 1 / 24
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.memory_dim < 1 or self.dim % self.memory_dim:
            raise ValueError(f"a pointer of {self.dim} is no whole tokens of {self.memory_dim}")
        if self.memories < 2 or self.pointers < 2 or not self.frame_seconds > 0:
            raise ValueError("memories and pointers are 2 or more, frame_seconds above 0")


class Written(NamedTuple):
    """What a frame leaves of ``B`` objects.

    Args:
        tokens: ``(B, H * W, E)`` memory maps.
        grid: ``(H, W)``.
        pointer: ``(B, C)`` object pointers, if there are any.
    """

    tokens: Tensor
    grid: tuple[int, int]
    pointer: Tensor | None = None

    def writes(self) -> Iterator[dict[str, Any]]:
        """Arguments of `SpatialMemory.write` but for the time, object by object.

        Example:
            >>> written = Written(torch.zeros(2, 6, 4), (2, 3))
            >>> [(sorted(one), one["tokens"].shape) for one in written.writes()][1]
            (['grid', 'tokens'], torch.Size([6, 4]))
        """
        for number, tokens in enumerate(self.tokens.detach()):
            own = {} if self.pointer is None else {"pointer": self.pointer[number].detach()}
            yield {"tokens": tokens, "grid": self.grid, **own}


class Gathered(NamedTuple):
    """What the attention reads.

    Args:
        memory: ``(B, M, E)``: maps, then pointers cut into tokens.
        position: Their codes of place and time, ``(1, M, E)``.
        pointers: How many of the last are of pointers.
    """

    memory: Tensor
    position: Tensor
    pointers: int


class MemoryHost(nn.Module):
    """SAM 2's memory attention and encoder with all that stands between them and a bank.

    State dicts load after `vismem.models.sam2_names.from_official` or `from_transformers`.

    Args:
        config: Sizes.

    Example:
        >>> from vismem.memory.spatial import SpatialConfig, SpatialMemory
        >>> host = MemoryHost(HostConfig(dim=16, memory_dim=4, layers=1, hidden=32)).eval()
        >>> bank = SpatialMemory("1MB", SpatialConfig(token_dim=4, max_tokens=6))
        >>> features, logits = torch.randn(1, 16, 2, 3), torch.randn(1, 1, 32, 48)
        >>> with torch.no_grad():
        ...     for step in range(2):
        ...         views = bank.snapshot().views()
        ...         x = host.condition(features.flatten(2).mT, [views], step / 24, grid=(2, 3))
        ...         for write in host.encode(features, logits).writes():
        ...             report = bank.write(time=step / 24, **write)
        >>> x.shape
        torch.Size([1, 6, 16])
    """

    def __init__(self, config: HostConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or HostConfig()
        dim, memory_dim = config.dim, config.memory_dim
        self.attention = MemoryAttention(
            dim, memory_dim, config.layers, config.hidden, dropout=config.dropout
        )
        self.encoder = MemoryEncoder(dim, memory_dim)
        self.temporal = nn.Parameter(torch.empty(config.memories, memory_dim))
        self.no_memory, self.no_object = (nn.Parameter(torch.empty(dim)) for _ in range(2))
        self.absent = nn.Parameter(torch.empty(memory_dim)) if config.absent_code else None
        self.pointer_time = nn.Linear(dim, memory_dim) if config.pointer_times else None
        for code in (self.temporal, self.no_memory, self.no_object, self.absent):
            if code is not None:
                nn.init.trunc_normal_(code, std=0.02)

    # ------------------------------------------------------------------ reading

    def start(self, x: Tensor) -> Tensor:
        """Features ``(B, N, C)`` of an object of which nothing is remembered."""
        return x + self.no_memory

    def condition(
        self,
        x: Tensor,
        views: Sequence[Sequence[View]],
        time: float,
        *,
        grid: tuple[int, int],
        cache: KeyCache | None = None,
    ) -> Tensor:
        """Condition the features of a frame on the views that were kept of each object.

        Args:
            x: ``(B, H * W, C)`` features of ``B`` objects, or ``(1, H * W, C)`` that all share.
            views: Those of each object, in any number and order; their grid is that of ``x``.
            time: Now, in seconds.
            grid: ``(H, W)``.
            cache: Keeps the keys of views from read to read; one a stream, without gradients.

        Returns:
            ``(B, H * W, C)``; of an object without views that of `start`.

        Raises:
            ValueError: If shapes or grids do not fit, or a view is of the future.
        """
        if x.ndim != 3 or len(x) not in (1, len(views)) or not views:
            raise ValueError(
                f"features must be ({len(views)}, H * W, C), or one for all, one list of views an "
                f"object, not {tuple(x.shape)}"
            )
        x = x.expand(len(views), -1, -1)
        known = [number for number, own in enumerate(views) if own]
        out = self.start(x)
        if not known:
            return out
        which = torch.tensor(known, device=x.device)
        some = {number: tuple(views[number]) for number in known}
        return out.index_copy(0, which, self._attend(x[which], some, time, grid, cache))

    def _attend(
        self,
        x: Tensor,
        views: Mapping[int, Sequence[View]],
        time: float,
        grid: tuple[int, int],
        cache: KeyCache | None,
    ) -> Tensor:
        flat = [(number, view) for number, own in views.items() for view in own]
        self._check(flat, time, grid, x)
        tokens = torch.stack([view.tokens for _, view in flat]).to(x)
        rows = self._rows([view for _, view in flat], time).to(x.device)
        place = sine_map(*grid, self.config.memory_dim, dtype=x.dtype, device=x.device)
        if cache is None:
            keys = self.attention.keys(tokens + place + self.temporal[rows, None], grid)
        else:
            names = [(number, view.source) for number, view in flat]
            keys = cache.keys(self.attention, names, tokens, place, self.temporal, rows, grid)

        pointed = [(view.pointer, time - view.time) for _, view in flat if view.pointer is not None]
        pointers = torch.empty(0, self.config.dim // self.config.memory_dim, tokens.shape[2]).to(x)
        told = pointers
        if pointed:
            pointers = self._split(torch.stack([pointer for pointer, _ in pointed]).to(x))
            told = pointers + self._ages([ago for _, ago in pointed], x)[:, None]
        unplaced = self.attention.keys(told, grid, told.shape[1])

        counts = [len(own) for own in views.values()]
        with_pointer = [sum(v.pointer is not None for v in own) for own in views.values()]

        def arranged(maps: Tensor, rest: Tensor) -> Tensor:
            """Maps, then pointers, object by object."""
            parts = zip(maps.split(counts), rest.split(with_pointer), strict=True)
            return pad_sequence(
                [torch.cat([a.flatten(0, 1), b.flatten(0, 1)]) for a, b in parts], batch_first=True
            )

        lengths = None
        if len(set(counts)) > 1 or len(set(with_pointer)) > 1:
            maps, rest = torch.tensor(counts), torch.tensor(with_pointer)
            lengths = (maps * tokens.shape[1] + rest * pointers.shape[1]).to(x.device)
        layers = (arranged(a, b) for a, b in zip(keys, unplaced, strict=True))
        memory = arranged(tokens, pointers)
        position = self._position(grid, x)
        return self.attention.attend(
            x, layers, memory, grid=grid, position=position, lengths=lengths
        )

    def condition_published(
        self, x: Tensor, selection: Selection, written: Mapping[int, Written]
    ) -> Tensor:
        """Condition the features of a frame as published.

        Args:
            x: ``(B, H * W, C)``.
            selection: Of `select_memories`.
            written: What was written at each frame; all of one grid and of ``B`` objects.

        Returns:
            ``(B, H * W, C)``.

        Raises:
            ValueError: If nothing is selected, or shapes do not fit.
        """
        memory, position, pointers = self.gather(selection, written)
        grid = written[selection.maps[0][0]].grid
        return self.attention(
            x, memory.to(x), grid=grid, position=self._position(grid, x),
            memory_position=position.to(x), pointers=pointers,
        )  # fmt: skip

    def gather(self, selection: Selection, written: Mapping[int, Written]) -> Gathered:
        """Put selected memories and their codes into one row, as published.

        Raises:
            ValueError: If no map is selected.
        """
        if not selection.maps:
            raise ValueError("no memory map is selected; the first frame takes `start`")
        maps = [written[frame].tokens for frame, _ in selection.maps]
        like, grid = maps[0], written[selection.maps[0][0]].grid
        place = sine_map(*grid, self.config.memory_dim, dtype=like.dtype, device=like.device)
        position = [place + self.temporal[row] for _, row in selection.maps]
        pointers = 0
        given, ages = [], []
        for frame, ago in selection.pointers:
            if (pointer := written[frame].pointer) is not None:
                given.append(pointer)
                ages.append(ago)
        if given:
            tokens = self._split(torch.stack(given, 1))
            code = self._code(torch.tensor(ages).to(like) / selection.reach)
            maps.append(tokens.flatten(1, 2))
            position.append(code.repeat_interleave(tokens.shape[2], 0))
            pointers = tokens.shape[1] * tokens.shape[2]
        return Gathered(torch.cat(maps, 1), torch.cat(position)[None], pointers)

    def _rows(self, views: Sequence[View], time: float) -> Tensor:
        """The rows ``(S,)`` of the temporal table: by age, the last for prompted views."""
        ages = torch.tensor([time - view.time for view in views], dtype=torch.float64)
        rows = (ages / self.config.frame_seconds).round().clamp(1, self.config.memories - 1) - 1
        prompted = torch.tensor([view.prompted for view in views])
        return rows.long().masked_fill(prompted, self.config.memories - 1)

    def _ages(self, ages: Sequence[float], like: Tensor) -> Tensor:
        """Codes ``(S, E)`` of pointers of an age in seconds."""
        window = self.config.frame_seconds * (self.config.pointers - 1)
        return self._code((torch.tensor(ages, dtype=torch.float64) / window).clamp(max=math.pi)).to(
            like
        )

    def _code(self, ago: Tensor) -> Tensor:
        """Codes ``(S, E)`` of pointers so many windows ago, ``(S,)``."""
        if self.pointer_time is None:
            return self.temporal.new_zeros(len(ago), self.config.memory_dim)
        return self.pointer_time(sine_time(ago.to(self.temporal), self.config.dim))

    def _split(self, pointers: Tensor) -> Tensor:
        """Cut pointers ``(..., C)`` into tokens ``(..., C / E, E)``."""
        return pointers.unflatten(-1, (-1, self.config.memory_dim))

    def _position(self, grid: tuple[int, int], like: Tensor) -> Tensor:
        return sine_map(*grid, self.config.dim, dtype=like.dtype, device=like.device)

    def _check(
        self, views: Sequence[tuple[int, View]], time: float, grid: tuple[int, int], x: Tensor
    ) -> None:
        cells, config = grid[0] * grid[1], self.config
        if x.shape[1:] != (cells, config.dim):
            raise ValueError(
                f"features of {grid[0]} x {grid[1]} cells must be (B, {cells}, {config.dim}), "
                f"not {tuple(x.shape)}"
            )
        for number, view in views:
            name = f"view {view.source} of object {number}"
            if view.grid != tuple(grid) or view.tokens.shape != (cells, config.memory_dim):
                raise ValueError(
                    f"{name} has {tuple(view.tokens.shape)} tokens on a grid of {view.grid}, not "
                    f"({cells}, {config.memory_dim}) on {tuple(grid)}; write the maps of `encode`"
                )
            if view.pointer is not None and view.pointer.shape != (config.dim,):
                raise ValueError(f"{name} has a pointer of {len(view.pointer)}, not {config.dim}")
            if view.time > time:
                raise ValueError(f"{name} is of {view.time} s, later than now, {time} s")

    # ------------------------------------------------------------------ writing

    def encode(
        self,
        features: Tensor,
        logits: Tensor,
        *,
        pointer: Tensor | None = None,
        score: Tensor | None = None,
        binary: bool = False,
        exclusive: bool = False,
    ) -> Written:
        """Make of a frame what is to be remembered.

        Args:
            features: ``(B, C, H, W)``, as they were before they were conditioned on memories.
            logits: ``(B, 1, h, w)`` of the masks, in any resolution.
            pointer: ``(B, C)`` object pointers.
            score: ``(B, 1)`` logits of the objects' presence; without, all are there.
            binary: Whether the masks are all or nothing, as SAM 2 takes those of clicks.
            exclusive: Whether the objects share no pixel; see `exclusive_masks`.

        Returns:
            Maps, and pointers; those of absent objects as learned for them.

        Raises:
            ValueError: If the shapes do not fit.
        """
        height, width = features.shape[2:]
        if logits.shape[2:] != (STRIDE * height, STRIDE * width):
            size = (STRIDE * height, STRIDE * width)
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        if exclusive:
            logits = exclusive_masks(logits)
        tokens = self.encoder(features, mask_signal(logits, binary=binary)).flatten(2).mT
        if score is not None:
            there = (score > 0).to(tokens.dtype)
            if self.absent is not None:
                tokens = tokens + (1 - there)[..., None] * self.absent
            if pointer is not None:
                pointer = there * pointer + (1 - there) * self.no_object
        return Written(tokens, (height, width), pointer)
