from __future__ import annotations

import json
from typing import Any

import hotcoco.mask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vismem.heads.draw_masks import draw_masks
from vismem.masks import Masks, decode_mask, encode_mask

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def coco(mask: np.ndarray) -> dict[str, Any]:
    code = hotcoco.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(code["size"]), "counts": bytes(code["counts"]).decode()}


@settings(max_examples=150, derandomize=True)
@given(arrays.arrays(bool, shapes, fill=st.booleans()))
def test_the_code_is_the_one_of_coco_and_goes_back(mask: np.ndarray) -> None:
    code = encode_mask(mask)
    assert code == coco(mask)
    assert np.array_equal(decode_mask(json.loads(json.dumps(code))), mask)


def test_long_runs_take_several_letters() -> None:
    mask = np.zeros((700, 900), bool)
    mask[100:650, 5:880] = True
    mask[300:310, 400:410] = False
    code = encode_mask(mask)
    assert code == coco(mask)
    assert np.array_equal(decode_mask(code), mask)


def found() -> Masks:
    masks = np.zeros((3, 6, 8), bool)
    masks[0, 1:4, 2:7] = masks[2, 2, 2] = True
    return Masks(masks, np.array([0.75, 0.9, 0.25]), np.array([4, 5, 6]), 1.5, 30)


def test_a_line_says_where_each_object_is_and_whether() -> None:
    line = json.loads(found().to_json())
    assert (line["time"], line["frame"]) == (1.5, 30)
    first, empty, unsure = line["objects"]
    assert (first["id"], first["score"], first["seen"]) == (4, 0.75, True)
    assert first["box"] == [2, 1, 7, 4] and decode_mask(first["mask"])[1:4, 2:7].all()
    assert (empty["seen"], empty["box"]) == (False, [0, 0, 0, 0])
    assert (unsure["seen"], unsure["box"]) == (False, [2, 2, 3, 3])


def test_arrays_of_another_length_are_refused() -> None:
    for wrong in (np.zeros((2, 6, 8), bool), np.zeros((6, 8), bool)):
        with pytest.raises(ValueError):
            Masks(wrong, np.zeros(1), np.array([1]))


def test_what_is_seen_is_tinted_and_nothing_else() -> None:
    image = np.full((60, 80, 3), 100, np.uint8)
    masks = np.zeros((2, 60, 80), bool)
    masks[0, 10:50, 20:60] = masks[1, :, 70:] = True
    drawn = draw_masks(image, Masks(masks, np.array([0.9, 0.1]), np.array([0, 1])))
    assert drawn[40, 40].tolist() == [177, 75, 75] and (image == 100).all()
    assert (drawn[52:] == 100).all() and (drawn[:, 68:] == 100).all()
