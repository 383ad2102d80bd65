"""SAM 2's memory encoder: that of transformers, and what it says on any grid."""

from __future__ import annotations

import pytest
import torch
from scattered import noise, scatter
from torch import Tensor

from vismem.models.memory_encoder import MemoryEncoder, exclusive_masks, mask_signal
from vismem.models.sam2_names import from_transformers
from vismem.models.sine import sine_map, sine_time


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("grid", [(8, 8), (3, 5)])
def test_is_the_module_of_transformers(grid: tuple[int, int], batch: int) -> None:
    """The position code too."""
    modeling = pytest.importorskip("transformers.models.sam2_video.modeling_sam2_video")
    from transformers import Sam2VideoConfig

    theirs = modeling.Sam2VideoMemoryEncoder(Sam2VideoConfig()).eval()
    scatter(theirs.parameters(), 0.05)
    ours = MemoryEncoder().eval()
    ours.load_state_dict(from_transformers(theirs.state_dict()))
    features = noise(batch, 256, *grid, seed=5)
    mask = mask_signal(3 * noise(batch, 1, 16 * grid[0], 16 * grid[1], seed=6))
    with torch.no_grad():
        expected, position = theirs(features, mask)
        found = ours(features, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    code = sine_map(*grid, 64).T.unflatten(1, grid).expand_as(position)
    torch.testing.assert_close(code, position, rtol=0, atol=2e-6)


def windows(x: Tensor, side: int, stride: int, pad: int) -> Tensor:
    """The windows ``(B, C, H', W', side, side)`` that a convolution sees."""
    batch, channels, height, width = x.shape
    wide = x.new_zeros(batch, channels, height + 2 * pad, width + 2 * pad)
    wide[:, :, pad : pad + height, pad : pad + width] = x
    return wide.unfold(2, side, stride).unfold(3, side, stride)


def slow(module: MemoryEncoder, features: Tensor, mask: Tensor) -> Tensor:
    """The encoder with every convolution a sum over windows."""
    w = {name: p.detach().to(features) for name, p in module.named_parameters()}

    def norm(name: str, x: Tensor) -> Tensor:
        x = x - x.mean(1, keepdim=True)
        x = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return x * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def gelu(x: Tensor) -> Tensor:
        return x * (1 + torch.erf(x / 2**0.5)) / 2

    def mix(name: str, x: Tensor) -> Tensor:
        weight = w[f"{name}.weight"].flatten(1)
        return torch.einsum("bchw,oc->bohw", x, weight) + w[f"{name}.bias"][:, None, None]

    for stage in range(4):
        name = f"mask.stages.{stage}"
        mask = torch.einsum("bchwij,ocij->bohw", windows(mask, 3, 2, 1), w[f"{name}.conv.weight"])
        mask = gelu(norm(f"{name}.norm", mask + w[f"{name}.conv.bias"][:, None, None]))
    x = mix("features", features) + mix("mask.output", mask)
    for block in range(len(module.blocks)):
        name = f"blocks.{block}"
        weight = w[f"{name}.depthwise.weight"][:, 0]
        y = torch.einsum("bchwij,cij->bchw", windows(x, 7, 1, 3), weight)
        y = norm(f"{name}.norm", y + w[f"{name}.depthwise.bias"][:, None, None])
        y = mix(f"{name}.narrow", gelu(mix(f"{name}.widen", y)))
        x = x + w[f"{name}.scale"][:, None, None] * y
    return mix("output", x)


@pytest.mark.parametrize("grid", [(2, 5), (5, 2), (1, 1)])
def test_is_what_the_paper_says_on_any_grid(grid: tuple[int, int]) -> None:
    module = MemoryEncoder(8, 4).double()
    scatter(module.parameters(), 0.3)
    features = noise(2, 8, *grid).double()
    mask = mask_signal(3 * noise(2, 1, 16 * grid[0], 16 * grid[1], seed=1).double())
    with torch.no_grad():
        expected = slow(module, features, mask)
        torch.testing.assert_close(module(features, mask), expected, rtol=1e-9, atol=1e-9)


def test_signal_of_a_mask() -> None:
    logits = torch.tensor([-3.0, 0.0, 1.0])
    assert mask_signal(logits, binary=True).tolist() == [-10, -10, 10]
    torch.testing.assert_close(mask_signal(logits), 20 * logits.sigmoid() - 10)


def test_pixels_go_to_one_object() -> None:
    logits = 20 * noise(3, 1, 4, 5)
    found = exclusive_masks(logits)
    best = logits.argmax(0)
    for b in range(3):
        mine = (best == b)[0]
        assert torch.equal(found[b, 0][mine], logits[b, 0][mine])
        assert (found[b, 0][~mine] <= -10).all()
        low = ~mine & (logits[b, 0] < -10)
        assert torch.equal(found[b, 0][low], logits[b, 0][low])
    assert exclusive_masks(logits[:1]) is not None
    assert torch.equal(exclusive_masks(logits[:1]), logits[:1])


def test_refuses_what_does_not_fit() -> None:
    module = MemoryEncoder(8, 4)
    with pytest.raises(ValueError, match=r"\(1, 1, 32, 48\), 16 times .* F\.interpolate"):
        module(noise(1, 8, 2, 3), noise(1, 1, 48, 32))
    with pytest.raises(ValueError, match=r"\(2, 1, 32, 48\)"):
        module(noise(2, 8, 2, 3), noise(1, 1, 32, 48))
    with pytest.raises(ValueError, match=r"\(B, 8, H, W\)"):
        module(noise(1, 6, 8), noise(1, 1, 32, 48))
    with pytest.raises(ValueError, match="multiple of 4"):
        sine_map(2, 2, 6)
    with pytest.raises(ValueError, match="even"):
        sine_time(torch.zeros(1), 3)
