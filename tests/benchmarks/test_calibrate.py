"""Figures of a calibration, on numbers whose answer is known; and the table of what is where."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vismem.encoders.lexicon import Lexicon


@pytest.fixture(scope="module")
def calibrate(script) -> ModuleType:
    return script("calibrate")


@pytest.fixture
def pairs(calibrate: ModuleType) -> list:
    present = [(0.95, 0.9), (0.55, 0.06), (0.3, 0.02)]
    absent = [(0.55, 0.06), (0.31, 0.03), (0.1, 0.01), (0.02, 0.001)]
    return [
        calibrate.Pair("a.png", "opencv-doc", "cat", there, probability, score)
        for there, rows in ((True, present), (False, absent))
        for probability, score in rows
    ]


def test_rates_count_what_reaches_the_threshold(calibrate: ModuleType, pairs: list) -> None:
    assert calibrate.rates(pairs, 0.5) == (2 / 3, 1 / 4)
    assert calibrate.rates(pairs, 0.55) == (2 / 3, 1 / 4)  # reached, not passed
    recall, alarms = calibrate.rates(pairs[:3], 0.3)
    assert recall == 1.0 and math.isnan(alarms)


def test_auc_counts_a_tie_half(calibrate: ModuleType, pairs: list) -> None:
    # 4 for .95; 3 and a half for .55; 2 for .3; of 12.
    assert calibrate.auc(pairs) == pytest.approx(9.5 / 12)
    assert math.isnan(calibrate.auc(pairs[:3]))


def test_score_at_leaves_that_share_above(calibrate: ModuleType, pairs: list) -> None:
    assert calibrate.score_at(pairs, 0.0) == 0.06
    assert calibrate.score_at(pairs, 0.25) == 0.03
    assert calibrate.score_at(pairs, 0.49) == 0.03
    assert calibrate.score_at(pairs, 0.5) == 0.01


def test_reliability_counts_by_prediction(calibrate: ModuleType, pairs: list) -> None:
    bins = calibrate.reliability(pairs, 10)
    assert [(b.present, b.absent) for b in bins] == [
        (0, 1), (0, 1), (0, 0), (1, 1), (0, 0), (1, 1), (0, 0), (0, 0), (0, 0), (1, 0),
    ]  # fmt: skip
    certain = calibrate.Pair("a.png", "x", "cat", True, 1.0, None)
    assert calibrate.reliability([certain], 4)[-1] == calibrate.Bin(0.75, 1.0, 1, 0)


def test_tables_name_what_went_wrong(calibrate: ModuleType, pairs: list) -> None:
    text = calibrate.tables(pairs)
    assert "missed at 0.5: 1" in text and "false alarm at 0.5: 1" in text
    (row,) = [line for line in text.splitlines() if line.startswith("  threshold 0.5")]
    assert row.split()[2:5] == ["66.7", "/", "25.0"]


def test_the_table_uses_its_own_words(calibrate: ModuleType) -> None:
    words = {*calibrate.THINGS, *calibrate.ABSENT}
    assert len(words) == len(calibrate.THINGS) + len(calibrate.ABSENT)
    for source in calibrate.SOURCES:
        present, unclear = calibrate.listed(source.present), calibrate.listed(source.unclear)
        assert {*present, *unclear} <= words, source.file
        assert not {*present} & ({*unclear} | {*calibrate.ABSENT}), source.file
    shown = {t for s in calibrate.SOURCES for t in calibrate.listed(s.present)}
    assert shown == set(calibrate.THINGS)  # nothing is asked of all that is seen in none
    assert len({source.file for source in calibrate.SOURCES}) == len(calibrate.SOURCES)
    lexicon = Lexicon()
    assert all(len(lexicon.read(word)[0]) == 1 for word in words)


def test_the_unclear_is_left_out(calibrate: ModuleType) -> None:
    truth = calibrate.Source("opencv-doc", "a.png", "cat, dog", "lion, bird").truth()
    assert truth["cat"] and truth["dog"] and not truth["zebra"]
    assert "lion" not in truth and "bird" not in truth


@pytest.mark.parametrize("policy", ["moments", "flash"])
def test_label_scores_come_back_from_probabilities(
    calibrate: ModuleType, tmp_path: Path, policy: str
) -> None:
    import cv2

    picture = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    source = calibrate.Source("opencv-doc", "a.png", "cat", ", ".join(calibrate.ABSENT))
    encoder = calibrate.EmbeddedEncoder()
    found = {pair.thing: pair for pair in calibrate.ask_all(source, tmp_path, encoder, policy)}
    assert set(found) == set(calibrate.THINGS)
    assert found["cat"].present and not found["dog"].present
    assert found["person"].score is None  # has a detector and a calibration of its own
    labels = encoder.encode([picture])[0].labels
    query = encoder.query("dog").terms[0]
    expected = sum(
        weight * float(labels.scores[labels.ids == label].sum())
        for label, weight in zip(query.ids.tolist(), query.weights.tolist(), strict=True)
    )
    assert found["dog"].score == pytest.approx(max(expected, 1e-6), rel=0.05)
