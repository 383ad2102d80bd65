"""What moves before a camera that stands still, or that knows where it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from moving_film import FPS, SIZE, carried, film, wall

from vismem.encoders.base import Labels
from vismem.encoders.color import COLORS
from vismem.encoders.objects import LOOK_DIM, MOST_LABELS
from vismem.frame import Frame
from vismem.heads.moving import MotionWatch, Moving


def watched(frames) -> list[Moving | None]:
    watch = MotionWatch()
    return [watch.step(frame) for frame in frames]


def test_a_thing_that_moves_is_one_region_that_follows_it() -> None:
    found = watched(film())
    before, after = found[5:15], found[18:]
    assert found[0] is None and all(one is not None and not len(one) for one in before)
    assert all(len(one) == 1 for one in after)
    assert len({int(one.ids[0]) for one in after}) == 1
    for n, one in enumerate(after, 18):
        x = (10 + 20 * (n / FPS - 3)) / SIZE[0]
        low, top, high, bottom = one.boxes[0].tolist()
        # Within two cells, and one that it has just left.
        assert low == pytest.approx(x, abs=0.08) and high == pytest.approx(x + 20 / 160, abs=0.06)
        assert top == pytest.approx(50 / 120, abs=0.06)
        assert bottom == pytest.approx(80 / 120, abs=0.06)
        assert 0.5 < float(one.scores[0]) <= 1 and bool(one.positions.isnan().all())


def test_noise_alone_moves_nothing() -> None:
    found = watched(film(10.0, begin=np.inf))
    assert all(one is not None and not len(one) for one in found[6:])


def test_what_came_to_rest_becomes_background_and_what_it_hid_is_known() -> None:
    found = watched(film(14.0, end=5.0))
    times = [n / FPS for n, one in enumerate(found) if one is not None and len(one)]
    assert min(times) <= 3.6 and 5.0 <= max(times) <= 10.0
    away = watched([*film(6.0), *(f for f in film(9.0, begin=np.inf) if f.timestamp >= 6.0)])
    assert not any(len(one) for one in away[32:])  # the wall is where it was


def test_a_lamp_that_flickers_is_background_after_a_while() -> None:
    def blinking() -> Iterator[Frame]:
        for n, frame in enumerate(film(20.0, begin=np.inf)):
            picture = frame.image.copy()
            if n % 4 < 2:
                picture[20:50, 60:100] = (250, 240, 180)
            yield Frame(picture, frame.timestamp, "door")

    found = watched(blinking())
    assert not any(len(one) for one in found[-25:])


def test_nothing_is_claimed_of_a_camera_that_moves() -> None:
    def panned() -> Iterator[Frame]:
        for n, frame in enumerate(film(8.0)):
            shift = 2 * max(0, n - 20)
            yield Frame(np.roll(frame.image, shift, 1), frame.timestamp, "door")

    found = watched(panned())
    assert all(one is None for one in found[22:])
    still = watched([*panned(), *(Frame(wall(), 8.0 + n / FPS, "door") for n in range(15))])
    assert still[-1] is not None and not len(still[-1])  # and it is watched again


def test_a_light_that_is_switched_on_is_no_thing() -> None:
    def lit() -> Iterator[Frame]:
        for frame in film(8.0, begin=np.inf):
            image = frame.image // 2 if frame.timestamp < 4 else frame.image
            yield Frame(image, frame.timestamp, "door")

    assert not any(one is not None and len(one) for one in watched(lit()))


def test_two_things_are_two_regions() -> None:
    def both() -> Iterator[Frame]:
        for frame in film():
            picture = frame.image.copy()
            if frame.timestamp >= 3:
                x = round(130 - 20 * (frame.timestamp - 3))
                picture[5:30, x : x + 20] = (20, 20, 220)
            yield Frame(picture, frame.timestamp, "door")

    found = watched(both())
    assert all(len(one) == 2 for one in found[18:])
    assert len({number for one in found[18:] for number in one.ids.tolist()}) == 2
    reds = found[-1].looks[found[-1].boxes[:, 1].argmax()]
    blues = found[-1].looks[found[-1].boxes[:, 1].argmin()]
    assert float(reds.float() @ blues.float()) < 0.5


def test_streams_have_backgrounds_of_their_own_and_the_same_film_gives_the_same() -> None:
    watch, alone = MotionWatch(), watched(film())
    for mine, other, expected in zip(film(), film(begin=1.0), alone, strict=True):
        found = watch.step(mine)
        watch.step(Frame(np.rot90(other.image).copy(), other.timestamp, "yard"))
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert torch.equal(found.boxes, expected.boxes)
            assert torch.equal(found.ids, expected.ids)


def test_another_size_and_a_clock_set_back_begin_anew() -> None:
    watch = MotionWatch()
    for frame in film():
        watch.step(frame)
    assert watch.step(Frame(np.zeros((90, 160, 3), np.uint8), 8.0, "door")) is None
    assert watch.step(Frame(wall(), 1.0, "door")) is None
    assert watch.step(Frame(wall(), 1.0, "door")) is None  # a frame that comes twice


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_odd_pictures_are_taken(size: tuple[int, int]) -> None:
    grays = (40 * (n % 2) for n in range(12))
    found = watched(
        Frame(np.full((*size, 3), gray, np.uint8), n / FPS, "door") for n, gray in enumerate(grays)
    )
    assert not any(one is not None and len(one) for one in found)  # the light, no thing


def test_what_it_is_called_is_what_an_encoder_saw_there() -> None:
    moving = watched(film())[-1]
    assert moving is not None
    box = moving.boxes[0]
    boxes = torch.stack([box, torch.tensor([0.0, 0.0, 0.1, 0.1])])
    labels = Labels(
        torch.tensor([7, 8]), torch.tensor([0.6, 0.9]), boxes, torch.zeros(2, len(COLORS)),
        torch.ones(2, dtype=torch.int64),
    )  # fmt: skip
    tensors = moving.tensors(labels)
    assert tensors["label"].tolist() == [[7] + [-1] * (MOST_LABELS - 1)]
    assert tensors["look"].shape == (1, LOOK_DIM)
    assert moving.tensors(None)["label"].tolist() == [[-1] * MOST_LABELS]


# --------------------------------------------------------------------------- with depth and pose


def test_a_camera_with_depth_may_move() -> None:
    found = watched(carried())
    assert not any(len(one) for one in found[5:20] if one is not None)
    after = [(n / FPS, one) for n, one in enumerate(found) if n >= 24]
    seen = [(time, one) for time, one in after if one is not None and len(one) == 1]
    assert len(seen) >= 0.8 * len(after)
    for time, one in seen:
        x, y, z = one.positions[0].tolist()
        assert x == pytest.approx(-0.8 + 0.3 * (time - 4), abs=0.2)
        assert y == pytest.approx(-0.3, abs=0.2) and 0 < z < 0.5
    assert len({int(one.ids[0]) for _, one in seen}) == 1


def test_depth_that_is_missing_is_no_depth() -> None:
    """The camera stands still, so that its pictures tell."""
    frames = [
        Frame(f.image, f.timestamp, "door", pose=np.eye(4), depth=np.zeros((120, 160), np.float32),
              intrinsics=np.array([[150.0, 0, 79.5], [0, 150, 59.5], [0, 0, 1]]))
        for f in film()
    ]  # fmt: skip
    assert all(len(one) == 1 for one in watched(frames)[18:])


@pytest.mark.parametrize("frames", [film, carried])
def test_a_frame_that_came_late_tells_nothing_and_costs_nothing(frames) -> None:
    watch, told = MotionWatch(), watched(frames())
    for n, frame in enumerate(frames()):
        found = watch.step(frame)
        assert (found is None) == (told[n] is None)
        if found is not None and told[n] is not None:
            assert torch.equal(found.boxes, told[n].boxes)
        if n:
            late = frame.timestamp - 0.5 / FPS
            assert watch.step(replace(frame, timestamp=late)) is None
    assert len(found) == 1


@pytest.mark.parametrize(
    "wrong", [np.diag([0.0, 1, 1]), np.array([[150, 9.0, 80], [0, 150, 60], [0, 0, 1]])]
)
def test_intrinsics_that_no_map_takes_leave_the_picture(wrong: np.ndarray) -> None:
    """A memory would lose the frame if motion refused it."""
    for frame in list(carried())[:5]:
        MotionWatch().step(replace(frame, intrinsics=wrong))
    frames = (
        replace(f, pose=np.eye(4), depth=np.full((120, 160), 2.0, np.float32), intrinsics=wrong)
        for f in film()
    )
    assert len(watched(frames)[-1]) == 1
