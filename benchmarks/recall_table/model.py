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
from policies import WIDTH
from tasks import BLOCKS, CELLS, HUES
from torch import Tensor, nn

__all__ = ["Answer", "FrameGRU", "Reader"]

REACH, BINS = 0.42, 14  # the workspace is this far from its middle, in bins of 6 cm


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
        self.head = _Head(heads * (BINS**2 + 2), answers)

    def cells(self, tokens: Tensor) -> Tensor:
        """Features of all cells of views: `(F, 64, 48)` to `(F, 64, width)`."""
        x = F.gelu(self.patch(tokens.float() * 2 - 1))
        square = x.transpose(1, 2).unflatten(2, (CELLS, CELLS))
        return x + F.gelu(self.context(square)).flatten(2).transpose(1, 2)

    def forward(self, tokens: Tensor, positions: Tensor, held: Tensor, query: Tensor) -> Answer:
        """Answer from what a bank holds.

        Args:
            tokens: `(B, V, 64, 48)` in time order.
            positions: `(B, V, 64, 3)` metres.
            held: `(B, V)`, False where there is no view.
            query: `(B,)`, the colour that is asked for.
        """
        b, v, n, _ = tokens.shape
        x = self.cells(tokens.flatten(0, 1)).unflatten(0, (b, v))
        key = self.key(x).unflatten(3, (self.heads, -1))
        asked = self.query(query).unflatten(1, (self.heads, -1))
        logits = torch.einsum("bvnhd,bhd->bvhn", key, asked) / key.shape[-1] ** 0.5
        # A cell that is not there takes what matches nothing: its logit is 0.
        within = F.softmax(F.pad(logits, (0, 1)), dim=3)
        matched = logits.logsumexp(3)
        gate = self.gate(x.mean(2)) + self.match * matched + self.doubt
        gate = torch.where(held[..., None], gate, -30.0)
        taken, left = F.logsigmoid(gate), F.logsigmoid(-gate)
        half = self.heads // 2
        newer = left.flip(1).cumsum(1).flip(1) - left
        older = left.cumsum(1) - left
        share = (taken + torch.cat([newer[..., :half], older[..., half:]], 2)).exp()
        weight = share[..., None] * within  # (B, V, H, 65)
        heat = weight.new_zeros(b, self.heads, BINS**2 + 2)
        where = _bins(positions)[:, :, None].expand(-1, -1, self.heads, -1)
        where = F.pad(where, (0, 1), value=BINS**2 + 1)
        heat.scatter_add_(2, where.transpose(1, 2).flatten(2), weight.transpose(1, 2).flatten(2))
        return self.head(heat.flatten(1))


def _bins(positions: Tensor) -> Tensor:
    """In which bin of the workspace each point lies, `(...)` int64; `BINS**2` outside of it."""
    at = ((positions[..., :2] + REACH) / (2 * REACH) * BINS).floor()
    inside = ((at >= 0) & (at < BINS)).all(-1)
    at = torch.where(inside[..., None], at, 0.0).long()
    return torch.where(inside, at[..., 1] * BINS + at[..., 0], BINS**2)


class FrameGRU(nn.Module):
    """No bank: a recurrent state over block means of every frame."""

    def __init__(self, answers: int, width: int = 128):
        super().__init__()
        self.frame = nn.Linear(3 * BLOCKS**2, width)
        self.state = nn.GRU(width, width, batch_first=True)
        self.query = nn.Embedding(len(HUES), width)
        self.head = _Head(2 * width, answers)

    def forward(self, frames: Tensor, lengths: Tensor, query: Tensor) -> Answer:
        """Answer after frames `(B, T, 768)` of which `(B,)` are there."""
        out, _ = self.state(F.gelu(self.frame(frames * 2 - 1)))
        last = out[torch.arange(len(out), device=out.device), lengths - 1]
        return self.head(torch.cat([last, self.query(query)], 1))
