from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given
from hypothesis import strategies as st

from vismem.encoders import person
from vismem.encoders.person import (
    PersonDetector,
    anchors,
    decode,
    fragments,
    join_halves,
    tile_bounds,
)
from vismem.errors import UsageError

SCRIPT = Path(__file__).parents[2] / "scripts" / "convert_person.py"


@pytest.fixture(scope="module")
def detector() -> PersonDetector:
    return PersonDetector(torch.float32)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_person", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_finds_the_astronaut_as_tensorflow_does(detector: PersonDetector) -> None:
    """Figures of TensorFlow 2.21 running the original graph on the picture resized to 300x300."""
    boxes, scores = detector.detect(skimage.data.astronaut())
    assert boxes.dtype == scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx([0.920], abs=0.002)
    assert boxes[0].tolist() == pytest.approx([0.0065, 0.0633, 0.7289, 0.9941], abs=0.002)


def test_bfloat16_agrees() -> None:
    boxes, scores = PersonDetector(torch.bfloat16).detect(skimage.data.astronaut())
    assert scores.tolist() == pytest.approx([0.920], abs=0.02)
    assert boxes[0].tolist() == pytest.approx([0.0065, 0.0633, 0.7289, 0.9941], abs=0.01)


def test_a_cat_is_no_person(detector: PersonDetector) -> None:
    boxes, scores = detector.detect(skimage.data.chelsea())
    assert boxes.shape == (0, 4) and scores.shape == (0,)


@pytest.mark.parametrize("colour", [(0, 0, 0), (0, 0, 12), (9, 9, 9), (255, 255, 255)])
def test_a_flat_picture_shows_nobody(detector: PersonDetector, colour: tuple[int, ...]) -> None:
    """The network alone gives pure black a score of 0.27."""
    flat = np.full((36, 64, 3), colour, np.uint8)
    assert len(detector.detect(flat, threshold=0.1)[1]) == 0
    assert len(detector.detect(flat, tiles=(1, 2), threshold=0.1)[1]) == 0


def test_tiles_put_boxes_where_the_people_are(detector: PersonDetector) -> None:
    wide = np.full((512, 1600, 3), 200, np.uint8)
    wide[:, 20:532] = skimage.data.astronaut()
    wide[:, 1060:1572] = skimage.data.astronaut()
    boxes, scores = detector.detect(wide, tiles=(1, 2))
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    left = boxes[:, [0, 2]].sort(dim=0).values * 1600
    truth = torch.tensor([[23.0, 393.0], [1063.0, 1433.0]])
    assert left.shape == truth.shape and (left - truth).abs().max() < 40


def test_threshold_is_kept(detector: PersonDetector) -> None:
    image = skimage.data.astronaut()
    assert len(detector.detect(image, threshold=0.95)[1]) == 0
    _, scores = detector.detect(image, threshold=0.02)
    assert len(scores) > 1 and scores.min() >= 0.02


def test_any_memory_layout_gives_the_same(detector: PersonDetector) -> None:
    image = skimage.data.astronaut()
    flipped = np.ascontiguousarray(image[:, :, ::-1])[:, :, ::-1]
    assert torch.equal(detector.detect(image)[0], detector.detect(flipped)[0])


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_refuses_what_is_no_picture(detector: PersonDetector, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8"):
        detector.detect(image)


@pytest.mark.parametrize(
    "options", [{"tiles": (0, 1)}, {"threshold": 1.5}, {"threshold": float("nan")}]
)
def test_refuses_options_out_of_range(detector: PersonDetector, options: dict) -> None:
    with pytest.raises(UsageError, match="tiles must be 1 or more"):
        detector.detect(np.zeros((4, 4, 3), np.uint8), **options)


def test_a_picture_smaller_than_its_tiles_is_refused(detector: PersonDetector) -> None:
    with pytest.raises(UsageError, match="fewer tiles"):
        detector.detect(np.zeros((2, 200, 3), np.uint8), tiles=(9, 1))


def test_anchors_are_the_graphs() -> None:
    """Rows of the graph's own anchor constant, as TensorFlow computes it."""
    boxes = decode(torch.zeros(1917, 4), anchors())
    assert len(boxes) == 1917
    first, last = [-0.02368, -0.02368, 0.07632, 0.07632], [0.01266, 0.01266, 0.98734, 0.98734]
    assert boxes[0].tolist() == pytest.approx(first, abs=1e-5)
    assert boxes[-1].tolist() == pytest.approx(last, abs=1e-5)
    wide = boxes[1, 2:] - boxes[1, :2]  # the second anchor of a place is wider than high
    assert wide.tolist() == pytest.approx([0.2 * 2**0.5, 0.2 / 2**0.5], abs=1e-5)


def test_box_code() -> None:
    """Centre in tenths of the anchor, size in fifths of a power of e."""
    anchor = torch.tensor([[0.5, 0.4, 0.2, 0.1]])  # y x h w
    box = decode(torch.tensor([[5.0, -5.0, 5.0, -5.0]]), anchor)[0]
    y, x, h, w = 0.5 + 0.5 * 0.2, 0.4 - 0.5 * 0.1, 0.2 * math.e, 0.1 / math.e
    truth = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    assert box.tolist() == pytest.approx(truth, abs=1e-6)


@given(st.integers(1, 12))
def test_tiles_cover_the_side_and_overlap(count: int) -> None:
    bounds = tile_bounds(count)
    assert len(bounds) == count
    assert bounds[0][0] == 0 and bounds[-1][1] == pytest.approx(1)
    for (start, end), (following, _) in zip(bounds[:-1], bounds[1:], strict=True):
        assert (end - following) / (end - start) == pytest.approx(0.2)


def test_only_cut_parts_of_whole_people_are_fragments() -> None:
    whole, legs, other = [0.1, 0.1, 0.3, 0.9], [0.1, 0.5, 0.3, 0.9], [0.6, 0.5, 0.8, 0.9]
    boxes = torch.tensor([whole, legs, legs, other])
    cut = torch.tensor([False, True, False, True])
    # Two whole people may stand before each other; a cut box away from every whole one stays.
    assert fragments(boxes, cut).tolist() == [False, True, False, False]
    assert not fragments(boxes[1:2], cut[1:2]).any()


def test_damaged_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(person, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(UsageError, match="damaged.*pip install --force-reinstall"):
        PersonDetector()


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(person.resources, "files", lambda package: tmp_path)
    with pytest.raises(UsageError, match="missing.*pip install --force-reinstall"):
        PersonDetector()


def message(number: int, value: bytes) -> bytes:
    assert len(value) < 2**14
    size = len(value)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return bytes([number << 3 | 2]) + length + value


def constant(name: str, array: np.ndarray) -> bytes:
    """A `Const` node of a GraphDef, written out by hand."""
    shape = b"".join(message(2, bytes([8, size])) for size in array.shape)
    tensor = bytes([8, 1]) + message(2, shape) + message(4, array.astype("<f4").tobytes())
    value = message(1, b"value") + message(2, message(8, tensor))
    node = message(1, name.encode()) + message(2, b"Const") + message(5, value)
    return message(1, node)


def test_converter_folds_the_batch_norm(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(1, 1, 3, 5)).astype("f4")
    gamma, beta, mean = rng.normal(size=(3, 5)).astype("f4")
    variance = rng.uniform(0.5, 2, 5).astype("f4")
    graph = constant("a/weights", weights)
    norm = {"gamma": gamma, "beta": beta, "moving_mean": mean, "moving_variance": variance}
    for name, array in norm.items():
        graph += constant(f"a/BatchNorm/{name}", array)
    weight, bias = script.convolution(script.constants(graph), "a")
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    plain = torch.nn.functional.conv2d(x, torch.tensor(weights.transpose(3, 2, 0, 1).copy()))
    tensors = [torch.tensor(a) for a in (mean, variance, gamma, beta)]
    expected = torch.nn.functional.batch_norm(plain, *tensors, eps=1e-3)
    torch.testing.assert_close(torch.nn.functional.conv2d(x, weight, bias), expected)


def test_converter_refuses_what_is_no_graph(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="no GraphDef"):
        script.constants(b"\x0b\x00")


def test_halves_that_agree_along_a_seam_are_one_person_and_strangers_stay_two():
    left, right = [0.03, 0.06, 0.55, 1.0], [0.45, 0.04, 0.99, 1.0]
    cut = torch.tensor([[False, False, True, False], [True, False, False, False]])
    boxes, scores, sides = join_halves(torch.tensor([left, right]), torch.tensor([0.9, 0.8]), cut)
    assert torch.allclose(boxes, torch.tensor([[0.03, 0.04, 0.99, 1.0]]))
    assert scores.tolist() == pytest.approx([0.9]) and not sides.any()
    short = [0.45, 0.6, 0.99, 1.0]  # somebody else, who is half as tall
    boxes, _, sides = join_halves(torch.tensor([left, short]), torch.tensor([0.9, 0.8]), cut)
    assert len(boxes) == 2 and sides.any(1).all()
    apart = [0.6, 0.06, 0.99, 1.0]  # the boxes do not meet
    assert len(join_halves(torch.tensor([left, apart]), torch.tensor([0.9, 0.8]), cut)[0]) == 2
