"""CUT3R's persistent state, and TTT3R's gate: a fixed number of tokens that a stream is written in.

State and picture look at each other in two decoders, layer by layer and at the same time: each
layer of one reads what the other was before that layer. The new state takes the place of the old
one, whole as published, or as far as a gate lets it. Beside it a small memory of poses is read
before, and written after, every picture.

The gate of TTT3R is the mean over layers, heads and tokens of the logits of the state's attention
to the picture. Here it is a product with the mean key, which is the same, and no logits are kept.

Sources: Wang et al., "Continuous 3D Perception Model with Persistent State", 2025
(https://arxiv.org/abs/2501.12387), github.com/CUT3R/CUT3R; Chen et al., "TTT3R: 3D Reconstruction
as Test-Time Training", 2025 (https://arxiv.org/abs/2509.26645), github.com/Inception3D/TTT3R.
Encoder and heads are left out: this is the memory. Names of parameters are the published ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PersistentState", "RecurrentDecoder"]

_BASE = 100.0


def _turn(x: Tensor, positions: Tensor | None) -> Tensor:
    """Rotate ``(B, H, N, D)`` by rows and columns ``(B, N, 2)``, half of the channels by each."""
    if positions is None:
        return x
    quarter = x.shape[3] // 4
    speed = _BASE ** -(torch.arange(quarter, dtype=x.dtype, device=x.device) / quarter)
    turned = []
    for axis, part in enumerate(x.chunk(2, 3)):
        angle = (positions[..., axis, None] * speed).repeat(1, 1, 2)[:, None]
        one, two = part.chunk(2, 3)
        turned.append(part * angle.cos() + torch.cat([-two, one], 3) * angle.sin())
    return torch.cat(turned, 3)


class _SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, positions: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(_turn(q, positions), _turn(k, positions), v)
        return self.proj(seen.transpose(1, 2).flatten(2))


class _CrossAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projq, self.projk = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.projv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, y: Tensor, positions: Tensor | None, others: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What was seen, and the mean of each query's logits over heads and keys, ``(B, N)``."""
        q, k, v = (
            layer(part).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, part in ((self.projq, x), (self.projk, y), (self.projv, y))
        )
        q, k = _turn(q, positions), _turn(k, others)
        seen = F.scaled_dot_product_attention(q, k, v)
        logits = (q @ k.mean(2, keepdim=True).mT)[..., 0].mean(1) * q.shape[3] ** -0.5
        return self.proj(seen.transpose(1, 2).flatten(2)), logits


class _Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    """Self-attention, attention to the other side, and a network of two layers."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3, self.norm_y = (
            nn.LayerNorm(dim, eps=1e-6) for _ in range(4)
        )
        self.attn, self.cross_attn = _SelfAttention(dim, heads), _CrossAttention(dim, heads)
        self.mlp = _Mlp(dim)

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        positions: Tensor | None = None,
        others: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        x = x + self.attn(self.norm1(x), positions)
        seen, logits = self.cross_attn(self.norm2(x), self.norm_y(y), positions, others)
        x = x + seen
        return x + self.mlp(self.norm3(x)), logits


class _PoseMemory(nn.Module):
    """Tokens that a pose is read from, by the mean feature of a picture, and written to."""

    def __init__(self, features: int, dim: int, heads: int, size: int, depth: int) -> None:
        super().__init__()
        self.proj_q = nn.Linear(features, dim)
        self.masked_token = nn.Parameter(torch.randn(1, 1, dim) * 0.2)
        self.mem = nn.Parameter(torch.randn(1, size, 2 * dim) * 0.2)
        self.read_blocks = nn.ModuleList(_Block(2 * dim, heads) for _ in range(depth))
        self.write_blocks = nn.ModuleList(_Block(2 * dim, heads) for _ in range(depth))

    def read(self, memory: Tensor, mean: Tensor) -> Tensor:
        """A pose token ``(B, 1, C)`` for the mean feature ``(B, 1, F)`` of a picture."""
        x = torch.cat([self.proj_q(mean), self.masked_token.expand(len(mean), -1, -1)], 2)
        for block in self.read_blocks:
            x = block(x, memory)[0]
        return x.chunk(2, 2)[1]

    def write(self, memory: Tensor, mean: Tensor, pose: Tensor) -> Tensor:
        """The memory ``(B, S, 2C)`` after a picture and its pose token."""
        token = torch.cat([self.proj_q(mean), pose], 2)
        for block in self.write_blocks:
            memory = block(memory, token)[0]
        return memory


@dataclass(frozen=True)
class PersistentState:
    """What a stream leaves behind: bytes that never grow.

    Args:
        tokens: ``(B, S, C)``.
        poses: ``(B, M, 2C)``.
        seen: Whether a picture was ever written since the last reset; the first is read without
            the memory of poses and never gated.
    """

    tokens: Tensor
    poses: Tensor
    seen: bool = False


class RecurrentDecoder(nn.Module):
    """The two decoders and the memory of poses.

    Args:
        features: Width of a picture's features.
        dim: Width ``C`` of both decoders.
        heads: Of all attention.
        depth: Layers.
        pose_tokens: Tokens of the memory of poses.
        pose_depth: Layers that read it, and that write it.

    Example:
        >>> decoder = RecurrentDecoder(features=12, dim=16, heads=2, depth=1, pose_tokens=3)
        >>> places = torch.cartesian_prod(torch.arange(2), torch.arange(3))[None]
        >>> state = decoder.start(torch.randn(1, 4, 16))
        >>> tokens, state = decoder(torch.randn(1, 6, 12), places, state, places[:, :4])
        >>> tokens.shape, state.tokens.shape
        (torch.Size([1, 7, 16]), torch.Size([1, 4, 16]))
    """

    def __init__(
        self,
        features: int = 1024,
        dim: int = 768,
        heads: int = 12,
        depth: int = 12,
        pose_tokens: int = 256,
        pose_depth: int = 2,
    ) -> None:
        super().__init__()
        self.decoder_embed = nn.Linear(features, dim)
        self.pose_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.dec_blocks = nn.ModuleList(_Block(dim, heads) for _ in range(depth))
        self.dec_blocks_state = nn.ModuleList(_Block(dim, heads) for _ in range(depth))
        self.dec_norm, self.dec_norm_state = (nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.pose_retriever = _PoseMemory(features, dim, heads, pose_tokens, pose_depth)

    def start(self, tokens: Tensor) -> PersistentState:
        """The state before the first picture, from its initial tokens ``(B, S, C)``."""
        return PersistentState(tokens, self.pose_retriever.mem.expand(len(tokens), -1, -1))

    def forward(
        self,
        features: Tensor,
        positions: Tensor,
        state: PersistentState,
        state_positions: Tensor,
        *,
        write: Tensor | None = None,
        gated: bool = False,
    ) -> tuple[Tensor, PersistentState]:
        """Read and write the state with one picture.

        Args:
            features: ``(B, N, F)``.
            positions: Row and column of each, ``(B, N, 2)`` or ``(1, N, 2)``.
            state: Before the picture.
            state_positions: Of the state's tokens, ``(B, S, 2)`` or ``(1, S, 2)``.
            write: Whether each batch element is written, ``(B,)`` bool; all by default.
            gated: Whether the gate of TTT3R holds the state back, from the second picture on.

        Returns:
            Tokens of the picture with its pose token first, ``(B, 1 + N, C)``, and the state after.
        """
        batch, mean = len(features), features.mean(1, keepdim=True)
        if state.seen:
            pose = self.pose_retriever.read(state.poses, mean)
        else:
            pose = self.pose_token.expand(batch, -1, -1)
        image = torch.cat([pose, self.decoder_embed(features)], 1)
        nowhere = positions.new_full((len(positions), 1, 2), -1)
        places = torch.cat([nowhere, positions], 1)
        tokens, logits = state.tokens, []
        for own, other in zip(self.dec_blocks_state, self.dec_blocks, strict=True):
            (now, asked), (image, _) = (
                own(tokens, image, state_positions, places),
                other(image, tokens, places, state_positions),
            )
            tokens = cast(Tensor, now)
            logits.append(asked)
        image, tokens = self.dec_norm(image), self.dec_norm_state(tokens)
        poses = self.pose_retriever.write(state.poses, mean, image[:, :1])
        share = features.new_ones(batch) if write is None else write.to(features)
        share = share[:, None, None]
        kept = share
        if gated and state.seen:
            kept = share * torch.stack(logits).mean(0).sigmoid()[..., None]
        return image, PersistentState(
            tokens * kept + state.tokens * (1 - kept),
            poses * share + state.poses * (1 - share),
            seen=True,
        )
