"""Our preprocessing against the stock processors of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny import frames, tiny_family
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from vismem.models.preprocess import (
    PixelScale,
    check_frames,
    normalise,
    patches,
    resize,
    smart_size,
)

SIZES = [(84, 84), (240, 320), (97, 61), (40, 200)]
LEVEL = 2 / 255  # one level of 256, where pixels go from -1 to 1
QWEN = {"qwen2_5_vl": (14, "Qwen2VLVideoProcessor"), "qwen3_vl": (16, "Qwen3VLVideoProcessor")}


def stock(name: str, shown: Tensor, **options: Any) -> dict[str, Tensor]:
    """What a stock video processor makes of frames, none of them skipped."""
    processor = getattr(transformers, name)(do_sample_frames=False, **options)
    return processor([shown.permute(0, 3, 1, 2)], return_tensors="pt")


@pytest.mark.parametrize("size", SIZES)
def test_llava_onevision_pixels_are_the_stock_ones(size: tuple[int, int]) -> None:
    shown, half = frames(2, *size), [0.5, 0.5, 0.5]
    theirs = stock(
        "LlavaOnevisionVideoProcessor",
        shown,
        size={"height": 84, "width": 84},
        image_mean=half,
        image_std=half,
    )["pixel_values_videos"][0]
    ours = tiny_family("llava_onevision").pixels(shown)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", QWEN)
def test_qwen_patches_are_the_stock_ones(name: str, size: tuple[int, int]) -> None:
    family, (patch, processor) = tiny_family(name), QWEN[name]
    shown, (low, high) = frames(3, *size), family.frame_tokens
    twice = shown.repeat_interleave(2, dim=0)  # a frame is paired with itself
    count = len(twice) if name == "qwen3_vl" else 1  # whose bounds are those of the whole video
    area = (2 * patch) ** 2 * count
    theirs = stock(
        processor,
        twice,
        size={"shortest_edge": low * area, "longest_edge": high * area},
        cap_pixels_per_frame=False,
    )
    rows, columns = family.grid(*size)
    assert theirs["video_grid_thw"].tolist() == [[3, 2 * rows, 2 * columns]]
    ours = family.pixels(shown)
    torch.testing.assert_close(ours, theirs["pixel_values_videos"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_smolvlm_pixels_are_near_the_stock_ones(size: tuple[int, int]) -> None:
    """The stock processor resizes twice, by Lanczos: first as large as it goes, then to a square.

    Ours resizes once, bicubically: the more a frame is stretched, the further they are apart.
    """
    shown = frames(2, *size)
    theirs = stock(
        "SmolVLMVideoProcessor",
        shown,
        size={"longest_edge": 84},
        max_image_size={"longest_edge": 84},
    )["pixel_values"][0]
    apart = (tiny_family("smolvlm").pixels(shown) - theirs).abs()
    assert apart.mean() < 2.5 * LEVEL and apart.max() < 16 * LEVEL


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    factor=st.sampled_from([28, 32]),
    low=st.integers(1, 300),
    more=st.integers(0, 900),
)
def test_smart_size_is_the_published_rule_within_a_hard_bound(
    height: int, width: int, factor: int, low: int, more: int
) -> None:
    assume(max(height, width) <= 200 * min(height, width))
    found = smart_size(height, width, factor, (low, low + more))
    pixels = {"min_pixels": low * factor**2, "max_pixels": (low + more) * factor**2}
    stock_size = smart_resize(height, width, factor, **pixels)
    tokens = found[0] // factor * (found[1] // factor)
    assert 1 <= tokens <= low + more and not (found[0] % factor or found[1] % factor)
    if stock_size[0] * stock_size[1] <= pixels["max_pixels"]:
        assert found == tuple(stock_size)


def test_frames_too_narrow_are_refused() -> None:
    assert smart_size(1, 200, 28, (1, 99)) == (28, 420)
    with pytest.raises(ValueError, match="201 pixels is too elongated"):
        smart_size(1, 201, 28, (1, 99))


def test_patches_that_merge_lie_together() -> None:
    planes = torch.arange(3 * 8 * 8).view(1, 3, 8, 8)
    rows = patches(planes, 2, 2, 3).view(16, 3, 3, 2, 2)
    assert all(torch.equal(rows[:, :, 0], rows[:, :, step]) for step in (1, 2))
    corners = rows[:, 0, 0, 0, 0]
    assert corners[:8].tolist() == [0, 2, 16, 18, 4, 6, 20, 22]


def test_a_frame_of_the_right_size_is_not_touched() -> None:
    shown = frames(1, 12, 20)
    assert torch.equal(resize(shown, 12, 20), shown.permute(0, 3, 1, 2))


def test_plain_colours_stay_plain() -> None:
    for level in (0, 1, 128, 255):
        shown = torch.full((1, 33, 47, 3), level, dtype=torch.uint8)
        assert (resize(shown, 20, 90) == level).all()
    scale = PixelScale((0.5, 0.25, 0), (0.5, 1, 2))
    white = normalise(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8), scale)
    assert white[0, :, 0, 0].tolist() == pytest.approx([1, 0.75, 0.5])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", SIZES)
def test_a_gpu_resizes_as_the_cpu_does(size: tuple[int, int]) -> None:
    shown = frames(2, *size)
    apart = resize(shown.cuda(), 64, 96).cpu().int() - resize(shown, 64, 96).int()
    assert apart.abs().max() <= 1


def test_views_and_read_only_arrays_are_taken() -> None:
    shown = frames(2, 30, 40)
    mirrored = check_frames(shown.flip(2))
    assert torch.equal(resize(mirrored, 20, 20), resize(mirrored.clone(), 20, 20))
    assert torch.equal(check_frames(shown.numpy()), shown)


@pytest.mark.parametrize(
    ("file", "nested"),
    [
        ("video_preprocessor_config.json", None),
        ("preprocessor_config.json", None),
        ("processor_config.json", "video_processor"),
        ("processor_config.json", "image_processor"),
    ],
)
def test_a_checkpoint_says_how_its_pixels_are_scaled(
    tmp_path: Path, file: str, nested: str | None
) -> None:
    assert PixelScale.read(tmp_path) is None
    scale = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}
    (tmp_path / file).write_text(json.dumps({nested: scale} if nested else scale))
    assert PixelScale.read(tmp_path) == PixelScale((0.1, 0.2, 0.3), (1, 2, 3))


def test_what_is_said_of_videos_wins(tmp_path: Path) -> None:
    for name, mean in (("preprocessor_config", 0.1), ("video_preprocessor_config", 0.2)):
        scale = {"image_mean": [mean] * 3, "image_std": [1] * 3}
        (tmp_path / f"{name}.json").write_text(json.dumps(scale))
    assert PixelScale.read(tmp_path) == PixelScale((0.2, 0.2, 0.2), (1, 1, 1))
