"""The detector of DigitVOD."""

from __future__ import annotations

import pytest
import torch


def test_peaks_are_maxima_that_stand_apart(vod) -> None:
    objectness = torch.zeros(1, 144)
    objectness[0, [13, 14, 40, 100]] = torch.tensor([0.9, 0.8, 0.7, 0.6])
    boxes = torch.zeros(1, 144, 4)
    boxes[..., 2:] = 20
    boxes[0, 40] += 40  # alone; 100 lies on 13, and 14 beside it in the grid
    cells, values = vod.detector.peaks(objectness, boxes)
    assert cells[0, :2].tolist() == [13, 40] and values[0, :2].tolist() == pytest.approx([0.9, 0.7])
    assert not values[0, 2:].any()


def test_targets_name_the_cell_of_a_centre_and_its_object(vod) -> None:
    boxes = torch.tensor([[[0.0, 0, 24, 24], [60, 60, 90, 90], [30, 0, 54, 24]]])
    visible = torch.tensor([[True, True, False]])
    holds, near, owner = vod.train.targets(boxes, visible)
    assert holds[0].nonzero()[:, 0].tolist() == [13, 9 * 12 + 9]
    assert near[0, 13] and owner[0, 13] == 0 and owner[0, 117] == 1
    apart = (
        (vod.detector.centres() - 12)
        .abs()
        .amax(1)
        .minimum((vod.detector.centres() - 75).abs().amax(1))
    )
    assert torch.equal(near[0], apart < vod.train.RADIUS)


def test_training_the_detector_repeats_and_leaves_the_global_generator(vod) -> None:
    before = torch.get_rng_state()
    one, two = (vod.train.train(2, videos=4).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_weights_that_are_shipped_find_digits(vod) -> None:
    assert vod.detector.WEIGHTS.stat().st_size < 4e6
    videos = vod.generate.generate(vod.generate.SCENARIOS["plain"], 10, 6, "test", 77)
    found = vod.detector.find(vod.detector.load_detector(), videos)
    judge = vod.evaluate.Judge(videos, found)
    [said] = vod.arms.single(found, []).probabilities
    ap50, ap = judge.average_precision(said)
    assert 20 < ap < ap50 < judge.average_precision(judge.oracle())[0]
    clean, degraded = judge.accuracy(said)
    assert clean > degraded + 15


def test_missing_weights_are_named_with_what_makes_them(vod, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.py"):
        vod.detector.load_detector(tmp_path / "none.safetensors")
