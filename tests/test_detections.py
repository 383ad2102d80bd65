"""`Detections` and what they are turned into."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vismem.detections import Detections
from vismem.errors import UsageError

FINITE = st.floats(-1e4, 1e4, width=32)


@st.composite
def detections(draw: Any) -> Detections:
    count = draw(st.integers(0, 5))

    def rows(of: Any, *width: int) -> np.ndarray:
        size = count * int(np.prod(width, dtype=int))
        return np.array(draw(st.lists(of, min_size=size, max_size=size))).reshape(count, *width)

    ids = rows(st.integers(-1, 2**62)) if draw(st.booleans()) else None
    labels = rows(st.integers(-1, 2**62))
    time = draw(st.floats(-1e12, 1e12))
    scores = rows(st.floats(0, 1, width=32))
    return Detections(rows(FINITE, 4), scores, labels, ids, time, draw(st.text()))


def same(one: Detections, other: Detections) -> bool:
    arrays = ("boxes", "scores", "labels")
    return (
        all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)
        and (one.ids is None) == (other.ids is None)
        and (one.ids is None or np.array_equal(one.ids, other.ids))
        and (one.time, one.stream) == (other.time, other.stream)
    )


@settings(max_examples=60)
@given(detections())
def test_a_line_of_json_is_read_back_to_the_bit(found: Detections) -> None:
    line = found.to_json()
    assert "\n" not in line
    assert same(Detections.from_json(line), found)


@settings(max_examples=40)
@given(detections())
def test_supervision_and_back(found: Detections) -> None:
    pytest.importorskip("supervision", reason="supervision is not installed")
    other = found.to_supervision()
    assert len(other) == len(found)
    assert np.array_equal(other.xyxy, found.boxes)
    assert np.array_equal(other.confidence, found.scores)
    assert same(Detections.from_supervision(other), found)
    before = found.boxes.copy()
    other.xyxy += 1
    assert np.array_equal(found.boxes, before)  # nothing is shared


def test_what_supervision_does_not_say() -> None:
    sv = pytest.importorskip("supervision", reason="supervision is not installed")
    bare = sv.Detections(xyxy=np.ones((1, 4)))
    with pytest.raises(ValueError, match="no confidence and no class_id and no time"):
        Detections.from_supervision(bare)
    made = sv.Detections(np.ones((1, 4)), confidence=np.array([0.5]), class_id=np.array([3]))
    found = Detections.from_supervision(made, time=2.0, stream="door")
    assert (found.time, found.stream, found.ids) == (2.0, "door", None)
    assert len(Detections.from_supervision(made[:0], time=0.0)) == 0


def test_without_supervision_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UsageError, match="pip install supervision"):
        Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0)).to_supervision()


def test_coco_has_corner_and_size() -> None:
    found = Detections(
        np.array([[1, 2, 4, 8], [0, 0, 1, 1]]), np.array([0.5, 0.25]), np.array([7, 0])
    )
    results = found.to_coco(12)
    assert results == [
        {"image_id": 12, "category_id": 7, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.5},
        {"image_id": 12, "category_id": 0, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.25},
    ]
    json.dumps(results)


def test_some_of_them() -> None:
    found = Detections(
        np.arange(12).reshape(3, 4),
        np.array([0.1, 0.9, 0.5]),
        np.arange(3),
        np.arange(7, 10),
        1.0,
        "s",
    )
    for rows, ids in (
        (slice(1, None), [8, 9]),
        (found.scores > 0.3, [8, 9]),
        ([2, 0], [9, 7]),
        (1, [8]),
    ):
        part = found[rows]
        assert part.ids.tolist() == ids and part.boxes.shape == (len(ids), 4)
        assert (part.time, part.stream) == (1.0, "s")
        assert part.boxes[:, 0].tolist() == [4.0 * (n - 7) for n in ids]
    assert len(found[np.zeros(3, bool)]) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"boxes": np.zeros((3, 4))}, {"boxes": np.zeros((2, 5))}, {"boxes": np.zeros(8)},
        {"labels": np.zeros(3)}, {"ids": np.zeros(1)}, {"scores": np.zeros((2, 1))},
        {"scores": np.array([0.5, np.nan])}, {"boxes": np.full((2, 4), np.inf)},
        {"time": np.nan}, {"scores": 0.5},
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change: dict[str, Any]) -> None:
    good = {"boxes": np.zeros((2, 4)), "scores": np.zeros(2), "labels": np.zeros(2), "ids": None}
    Detections(**good)
    with pytest.raises(ValueError):
        Detections(**good | change)


@pytest.mark.parametrize(
    "line",
    ["", "{}", "[]", "nonsense", '{"boxes": []}', '{"boxes": [], "scores": [], "x": 1}', "3"],
)
def test_what_is_no_line_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        Detections.from_json(line)
