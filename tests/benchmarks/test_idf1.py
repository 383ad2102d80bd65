"""IDF1 on stories whose numbers are known by hand, and the videos that it is measured on."""

from __future__ import annotations

import numpy as np
import pytest

A, B = np.array([0.0, 0, 10, 10]), np.array([20.0, 0, 30, 10])


@pytest.fixture(scope="module")
def idf1(script):
    return script("idf1")


def test_everybody_followed_is_one(idf1) -> None:
    score = idf1.IdScore()
    for _ in range(4):
        score.frame({"ann": A, "bob": B}, np.stack([B, A]), [7, 3])
    score.close()
    assert (score.idf1, score.switches, score.people, score.ids, score.shared) == (1, 0, 2, 2, 0)


def test_a_split_costs_its_shorter_half_and_is_a_switch(idf1) -> None:
    score = idf1.IdScore()
    for who in (0, 0, 0, -1, 1, 1):
        score.frame({"ann": A}, A[None], [who])
    score.close()
    assert (score.switches, score.ids, score.shared, score.explained) == (1, 2, 0, 3)
    assert score.idf1 == pytest.approx(2 * 3 / (6 + 5))


def test_an_id_of_two_people_explains_only_one(idf1) -> None:
    score = idf1.IdScore()
    for box, name in ((A, "ann"), (A, "ann"), (B, "bob")):
        score.frame({name: box}, box[None], [0])
    score.close()
    assert (score.shared, score.switches, score.explained) == (1, 0, 2)


def test_false_and_missing_boxes_count_against_it(idf1) -> None:
    score = idf1.IdScore()
    score.frame({"ann": A}, np.stack([A, B]), [0, 1])
    score.frame({"ann": A}, (A + 8)[None], [0])  # beside her
    score.frame({}, A[None], [0])
    score.close()
    assert (score.visible, score.given, score.found, score.explained) == (2, 4, 1, 1)
    assert score.idf1 == pytest.approx(2 / 6)
    assert (score + score).idf1 == score.idf1 and (score + score).people == 2


def test_where_the_box_is_not_known_the_surest_counts(idf1) -> None:
    score = idf1.IdScore()
    score.frame({"ann": None}, np.stack([B, A]), [4, 5])
    score.frame({"ann": None}, np.zeros((0, 4)), [])
    assert score.close().pairs == {("ann", 4): 1} and score.visible == 2


def test_composed_people_are_where_it_says_and_the_nearer_one_is_in_front(script) -> None:
    composed = script("composed_people")
    pictures = {}
    for who, color in (("red", (1.0, 0, 0)), ("blue", (0, 0, 1.0))):
        picture = np.ones((90, 30, 4), np.float32)
        picture[..., :3] = color
        pictures[who] = [picture]
    scenes = composed.compose(pictures, 1)
    again = composed.compose(pictures, 1)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(scenes, again, strict=True))
    seen = {who: sum(who in scene.people for scene in scenes) for who in pictures}
    assert min(seen.values()) > 20
    for scene in scenes:
        for who, (left, top, right, bottom) in scene.people.items():
            assert 0 <= left < right <= 640 and 0 <= top < bottom <= 360
            inside = scene.image[int(top) + 2 : int(bottom) - 2, int(left) + 2 : int(right) - 2]
            if len(scene.people) == 1 and inside.size:
                assert (inside[..., 0 if who == "red" else 2] > 250).mean() > 0.2
