"""The reader of a bank, and the network that has none.

The value of a cell is where it is, not what it looks like: a reader adds up how much attention
falls on each part of the workspace and answers from that map. (A general cross-attention reader,
whose values are features, stays at chance here for as long as this one takes to be right.) Between
views each head lets either the newest or the oldest view that matters take what it wants and hands
on the rest, so the latest sighting wins however many views are held, and no clock is learned by
heart.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from episodes import CELLS
from policies import WIDTH
from tasks import HUES
from torch import Tensor, nn

__all__ = ["Answer", "FrameGRU", "Reader"]

REACH, BINS = 0.42, 14  # the workspace is this far from its middle, in bins of 6 cm
MAP = BINS**2 + 2  # the bins, outside of them, and no match at all


class Answer(NamedTuple):
    """What is asked of every model.

    Args:
        logits: One an answer, `(B, A)`.
        xyz: Where it is, `(B, 3)` metres.
        log_sigma: Logarithm of one standard deviation of each axis, `(B,)` metres.
    """

    logits: Tensor
    xyz: Tensor
    log_sigma: Tensor

    def loss(self, answer: Tensor, xyz: Tensor) -> Tensor:
        """Cross entropy, and the likelihood of the place where there is one."""
        known = ~xyz[:, 0].isnan()
        error = (self.xyz[known] - xyz[known]).square().sum(1)
        sigma = self.log_sigma[known]
        place = (error / (2 * (2 * sigma).exp()) + 3 * sigma).mean()
        return F.cross_entropy(self.logits, answer) + 0.3 * place


class _Head(nn.Module):
    """From a summary to an answer."""

    def __init__(self, width: int, answers: int, hidden: int = 128):
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, answers + 4)
        self.answers = answers

    def forward(self, summary: Tensor) -> Answer:
        out = self.out(F.gelu(self.hidden(summary)))
        logits, xyz, log_sigma = out.split([self.answers, 3, 1], dim=1)
        # Metres are small numbers; the table's top is 0.4 m high.
        shift = torch.tensor([0.0, 0.0, 0.4], device=xyz.device)
        return Answer(logits, 0.1 * xyz + shift, log_sigma[:, 0].clamp(-3, 3) * 1.5 - 2)


class Reader(nn.Module):
    """Attention over the views of a bank, summed by where in the world it falls.

    Args:
        answers: How many there are to choose from.
        heads: Half of them prefer the newest view that matters, half the oldest.
        width: Of a cell's features.
    """

    def __init__(self, answers: int, heads: int = 4, width: int = 32):
        super().__init__()
        self.heads = heads
        self.patch = nn.Linear(WIDTH, width)
        self.context = nn.Conv2d(width, width, 3, padding=1)
        self.key = nn.Linear(width, heads * width)
        self.query = nn.Embedding(len(HUES), heads * width)
        self.gate = nn.Linear(width, heads)
        self.match = nn.Parameter(torch.full((heads,), 0.5))
        self.doubt = nn.Parameter(torch.full((heads,), -1.5))
        self.head = _Head(heads * MAP, answers)

    def cells(self, tokens: Tensor) -> Tensor:
        """Features of all cells of views: `(F, 64, 48)` to `(F, 64, width)`."""
        x = F.gelu(self.patch(tokens.float() * 2 - 1))
        square = x.transpose(1, 2).unflatten(2, (CELLS, CELLS))
        return x + F.gelu(self.context(square)).flatten(2).transpose(1, 2)

    def maps(self, tokens: Tensor, positions: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """What each view says by itself.

        Args:
            tokens: `(B, V, 64, 48)`.
            positions: `(B, V, 64, 3)` metres.
            query: `(B,)`, the colour that is asked for.

        Returns:
            Where the attention of each head falls, `(B, V, H, M)`, and how much the view matters to
            it, `(B, V, H)` logits.
        """
        b, v, _, _ = tokens.shape
        x = self.cells(tokens.flatten(0, 1)).unflatten(0, (b, v))
        key = self.key(x).unflatten(3, (self.heads, -1))
        asked = self.query(query).unflatten(1, (self.heads, -1))
        logits = torch.einsum("bvnhd,bhd->bvhn", key, asked) / key.shape[-1] ** 0.5
        # What matches nothing falls beside the map: a cell that is not there, of logit 0.
        within = F.softmax(F.pad(logits, (0, 1)), dim=3)
        gate = self.gate(x.mean(2)) + self.match * logits.logsumexp(3) + self.doubt
        where = F.pad(_bins(positions), (0, 1), value=BINS**2 + 1)
        heat = within.new_zeros(b, v, self.heads, MAP)
        heat.scatter_add_(3, where[:, :, None].expand_as(within), within)
        return heat, gate

    def forward(self, tokens: Tensor, positions: Tensor, held: Tensor, query: Tensor) -> Answer:
        """Answer from the views of a bank, in time order, where `held` `(B, V)`; see `maps`."""
        heat, gate = self.maps(tokens, positions, query)
        gate = torch.where(held[..., None], gate, -30.0)
        taken, left = F.logsigmoid(gate), F.logsigmoid(-gate)
        half = self.heads // 2
        newer = left.flip(1).cumsum(1).flip(1) - left
        older = left.cumsum(1) - left
        share = (taken + torch.cat([newer[..., :half], older[..., half:]], 2)).exp()
        return self.head(torch.einsum("bvh,bvhm->bhm", share, heat).flatten(1))


def _bins(positions: Tensor) -> Tensor:
    """In which bin of the workspace each point lies, `(...)` int64; `BINS**2` outside of it."""
    at = ((positions[..., :2] + REACH) / (2 * REACH) * BINS).floor()
    inside = ((at >= 0) & (at < BINS)).all(-1)
    at = torch.where(inside[..., None], at, 0.0).long()
    return torch.where(inside, at[..., 1] * BINS + at[..., 0], BINS**2)


class FrameGRU(nn.Module):
    """No bank: a recurrent state over what a trained reader sees in every frame.

    It is given more than a bank is: the question before the first frame.

    Args:
        answers: How many there are to choose from.
        heads: Of the reader.
        width: Of the state.
    """

    def __init__(self, answers: int, heads: int = 4, width: int = 128):
        super().__init__()
        self.frame = nn.Linear(heads * (MAP + 1), width)
        self.state = nn.GRU(width, width, batch_first=True)
        self.head = _Head(width, answers)

    def forward(self, maps: Tensor, lengths: Tensor) -> Answer:
        """Answer after maps and gates `(B, T, H * (M + 1))` of which `(B,)` are there."""
        out, _ = self.state(F.gelu(self.frame(maps)))
        return self.head(out[torch.arange(len(out), device=out.device), lengths - 1])
