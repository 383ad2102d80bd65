"""People found by a detector with a memory, on scripted proposals and looks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vismem.encoders.person import PersonDetector
from vismem.errors import UsageError
from vismem.frame import Frame
from vismem.heads.detect import MOST_WINDOWS, PERSON, DetectConfig, Detector, windows
from vismem.heads.looks import LOOK_DIM, person_looks

PLACE = (0.4, 0.1, 0.6, 0.9)
ELSEWHERE = (0.7, 0.1, 0.9, 0.9)
ANN, BOB = np.eye(8)[:2]
Sight = tuple[tuple[float, ...], float, np.ndarray]  # box, score, look


class Script:
    """Plays frames of given sights: what is proposed, and what each box looks like."""

    def __init__(self, **options):
        self.now: list[Sight] = []
        config = DetectConfig(**{"settle": 0.0} | options)
        self.single = Detector(config=config, propose=self.propose)
        self.memory = Detector(memory=True, config=config, propose=self.propose, look=self.look)

    def propose(self, image: np.ndarray, least: float) -> tuple[Tensor, Tensor]:
        some = [sight for sight in self.now if sight[1] >= least]
        boxes = torch.tensor([box for box, _, _ in some], dtype=torch.float32).reshape(-1, 4)
        return boxes, torch.tensor([score for _, score, _ in some], dtype=torch.float32)

    def look(self, image: np.ndarray, boxes: Tensor) -> Tensor:
        near = [
            min(self.now, key=lambda s: np.abs(np.array(s[0]) - b).sum()) for b in boxes.numpy()
        ]
        looks = np.stack([look for _, _, look in near]) if near else np.zeros((0, 8))
        return torch.from_numpy(looks).float()

    def __call__(self, time: float, *sights: Sight, stream: str = "camera"):
        self.now = list(sights)
        return self.memory.step(Frame(np.zeros((10, 20, 3), np.uint8), time, stream))


def ids(found) -> list[int]:
    return found.ids.tolist()


def test_without_a_memory_only_sure_boxes_count():
    play = Script()
    play.now = [(PLACE, 0.8, ANN), (ELSEWHERE, 0.3, BOB)]
    found = play.single.step(Frame(np.zeros((10, 20, 3), np.uint8), 2.0, "door"))
    assert found.ids is None and found.labels.tolist() == [PERSON]
    assert found.boxes.tolist() == [pytest.approx([8.0, 1.0, 12.0, 9.0])]
    assert (found.time, found.stream) == (2.0, "door") and play.single.streams == ()


def test_somebody_seen_with_certainty_is_found_again_at_a_low_score():
    play = Script()
    assert ids(play(0.0, (PLACE, 0.8, ANN))) == [0]
    found = play(0.5, (PLACE, 0.2, ANN))
    assert ids(found) == [0]
    assert found.scores[0] == pytest.approx(0.5)  # the mean along the track


@pytest.mark.parametrize(
    "sight",
    [(PLACE, 0.2, BOB), (PLACE, 0.05, ANN), (ELSEWHERE, 0.2, 0.7 * ANN + 0.7 * BOB)],
    ids=["another look", "too weak", "another place and only a little alike"],
)
def test_a_weak_box_without_support_is_not_found(sight):
    play = Script()
    play(0.0, (PLACE, 0.8, ANN))
    assert len(play(0.5, sight)) == 0


def test_a_little_alike_is_enough_only_where_and_while_a_track_goes_on():
    turned = 0.76 * ANN + 0.65 * BOB
    play = Script()
    play(0.0, (PLACE, 0.8, ANN))
    assert ids(play(1.0, (PLACE, 0.2, turned))) == [0]
    assert len(play(9.0, (PLACE, 0.2, turned))) == 0


def test_a_mistake_does_not_feed_on_itself():
    """Looks drift by steps, each alike the one before; only sure sights may vouch."""
    play = Script()
    play(0.0, (PLACE, 0.8, ANN))
    angles = np.linspace(0, np.pi / 2, 12)
    found = [
        len(play(0.2 * n, (PLACE, 0.2, np.cos(a) * ANN + np.sin(a) * BOB)))
        for n, a in enumerate(angles, 1)
    ]
    assert found == sorted(found, reverse=True) and found[0] == 1 and found[-1] == 0


def test_who_comes_back_after_a_gap_has_the_same_id_though_the_box_is_weak():
    play = Script()
    play(0.0, (PLACE, 0.8, ANN), (ELSEWHERE, 0.9, BOB))
    for second in range(1, 60):
        assert len(play(float(second))) == 0
    assert ids(play(60.0, (ELSEWHERE, 0.2, ANN))) == [1]
    assert ids(play(61.0, (PLACE, 0.9, BOB))) == [0]


def test_of_two_weak_boxes_that_look_like_one_person_only_one_is_found():
    play = Script()
    play(0.0, (PLACE, 0.8, ANN))
    found = play(0.5, (ELSEWHERE, 0.3, ANN), (PLACE, 0.2, ANN))
    assert ids(found) == [0] and found.boxes[0, 0] == pytest.approx(8.0)


def test_a_weak_part_of_a_surer_box_is_the_same_person():
    play = Script()
    play(0.0, (PLACE, 0.8, ANN), (ELSEWHERE, 0.8, BOB))
    part = (0.4, 0.1, 0.55, 0.6)
    for look in (ANN, BOB):
        assert len(play(0.5, (PLACE, 0.8, ANN), (part, 0.3, look))) == 1


def test_where_a_track_goes_on_only_the_look_of_that_person_counts():
    play = Script()
    play(0.0, (PLACE, 0.8, ANN), (ELSEWHERE, 0.8, BOB))
    like_bob = 0.76 * BOB + 0.66 * np.eye(8)[2]
    assert len(play(0.5, (PLACE, 0.3, like_bob))) == 0
    assert ids(play(0.5, (ELSEWHERE, 0.3, like_bob))) == [1]


def test_a_sure_part_of_a_surer_box_stays_but_is_nobody_new():
    play = Script()
    part = (0.4, 0.1, 0.55, 0.6)
    assert ids(play(0.0, (PLACE, 0.8, ANN), (part, 0.6, BOB))) == [0, -1]
    play(1.0, (PLACE, 0.8, ANN), (ELSEWHERE, 0.8, BOB))
    # Somebody known who is half hidden keeps the id.
    assert ids(play(2.0, (PLACE, 0.8, ANN), (part, 0.6, BOB))) == [0, 1]


def test_streams_are_apart_and_a_reset_forgets():
    play = Script()
    play(5.0, (PLACE, 0.8, ANN), stream="a")
    assert len(play(1.0, (PLACE, 0.2, ANN), stream="b")) == 0
    assert ids(play(1.5, (PLACE, 0.8, BOB), stream="b")) == [0]
    assert ids(play(6.0, (PLACE, 0.2, ANN), stream="a")) == [0]
    with pytest.raises(ValueError, match="backwards"):
        play(0.0, (PLACE, 0.8, ANN), stream="a")
    play.memory.reset("a")
    assert play.memory.streams == ("b",)
    assert len(play(0.0, (PLACE, 0.2, ANN), stream="a")) == 0
    play.memory.reset()
    assert play.memory.streams == () and play.memory.nbytes == 0


def test_ten_thousand_boxes_stay_found_and_memory_stays_bounded():
    places = [(n / 20000, 0.1, n / 20000 + 0.001, 0.9) for n in range(10_000)]
    detector = Detector(
        memory=True,
        config=DetectConfig(most=16, budget="20kB", identities=8),
        propose=lambda image, least: (torch.tensor(places), torch.linspace(0, 1, 10_000)),
        look=lambda image, boxes: torch.ones(len(boxes), 8),
    )
    for time in range(3):
        found = detector.step(Frame(np.zeros((10, 20, 3), np.uint8), float(time)))
        assert len(found) == 5_000 and (np.diff(found.scores) <= 0).all()
        assert len(set(found.ids[found.ids >= 0])) == (found.ids >= 0).sum() <= 8
    assert detector.nbytes < 30_000


@settings(max_examples=40)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.sampled_from([PLACE, ELSEWHERE, (0.1, 0.1, 0.3, 0.9), (0.35, 0.1, 0.6, 0.8)]),
                st.sampled_from([0.05, 0.15, 0.4, 0.6, 0.9]),
                st.sampled_from([ANN, BOB, 0.8 * ANN + 0.6 * BOB]),
            ),
            max_size=4,
            unique_by=lambda sight: sight[0],
        ),
        max_size=8,
    )
)
def test_never_invents_never_loses_and_looks_only_back(frames):
    play, again = Script(), Script()
    for time, sights in enumerate(frames):
        found = play(float(time), *sights)
        image = np.zeros((10, 20, 3), np.uint8)
        play.single._propose.__self__.now = list(sights)
        alone = play.single.step(Frame(image, float(time)))
        proposed = {tuple(np.float32(s[0]) * np.float32([20, 10, 20, 10])) for s in sights}
        boxes = {tuple(box) for box in found.boxes}
        assert {tuple(box) for box in alone.boxes} <= boxes <= proposed
        known = found.ids[found.ids >= 0].tolist()
        assert len(set(known)) == len(known) and len(found) <= len(sights)
        # Another run that ends here gives the same: deterministic, and nothing from later.
        same = again(float(time), *sights)
        assert same.to_json() == found.to_json()


def test_a_picture_of_one_pixel_and_boxes_without_area():
    detector = Detector(memory=True)
    for n, shape in enumerate([(1, 1, 3), (1, 40, 3), (40, 1, 3)]):
        assert len(detector.step(Frame(np.full(shape, 90, np.uint8), float(n)))) == 0
    boxes = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    looks = person_looks()(np.full((1, 1, 3), 90, np.uint8), boxes)
    assert looks.shape == (3, LOOK_DIM) and torch.isfinite(looks).all()
    assert person_looks()(np.zeros((4, 4, 3), np.uint8), boxes[:0]).shape == (0, LOOK_DIM)


def test_settings_out_of_range_are_refused():
    for options in ({"threshold": 0.0}, {"threshold": 1.5}, {"weak": -1.0}, {"most": 0}):
        with pytest.raises(UsageError):
            DetectConfig(**options)


def test_the_person_detector_proposes_by_default():
    image = np.zeros((64, 96, 3), np.uint8)
    image[:, ::2] = 255
    boxes, scores = PersonDetector().detect(image, tiles=(1, 2), threshold=0.5)
    found = Detector().step(Frame(image, 0.0))
    assert len(found) == len(scores) == len(boxes)


# --------------------------------------------------------------------------- who gets which id


def test_an_id_has_to_be_earned_by_a_second_sight():
    play = Script(settle=0.4)
    assert ids(play(0.0, (PLACE, 0.8, ANN))) == [-1]
    assert ids(play(0.3, (PLACE, 0.8, ANN))) == [-1]  # too soon
    assert ids(play(0.5, (PLACE, 0.8, ANN))) == [0]
    assert ids(play(0.6, (PLACE, 0.2, ANN))) == [0]


def test_who_was_seen_once_and_is_gone_takes_no_number_and_no_room():
    play = Script(settle=0.4, gap=2.0)
    assert ids(play(0.0, (PLACE, 0.8, ANN))) == [-1]
    assert len(play(3.0)) == 0
    assert ids(play(4.0, (PLACE, 0.8, BOB))) == [-1]
    assert ids(play(5.0, (PLACE, 0.8, BOB))) == [0]
    assert len(play.memory._seen["camera"].identities) == 1


TURNED = 0.6 * ANN + 0.8 * np.eye(8)[3]  # not like Ann at first sight


@pytest.mark.parametrize(("same", "who"), [(0.62, 0), (0.7, 1)])
def test_later_views_tell_that_somebody_new_is_who_had_left(same, who):
    play = Script(settle=0.4, same=same)
    for n in range(3):
        play(0.5 * n, (PLACE, 0.8, ANN))
    assert ids(play(9.0, (ELSEWHERE, 0.8, TURNED))) == [-1]
    more = 0.8 * ANN + 0.6 * np.eye(8)[3]
    assert ids(play(9.5, (ELSEWHERE, 0.8, more))) == [who]
    assert len(play.memory._seen["camera"].identities) == 1 + who


def test_two_people_seen_side_by_side_are_never_joined():
    play = Script(settle=0.4, same=0.5)
    near = 0.7 * ANN + 0.72 * BOB
    for n in range(3):  # she is known when the other comes
        play(-0.6 + 0.2 * n, (PLACE, 0.8, ANN))
    for n in range(6):
        found = play(0.2 * n, (PLACE, 0.8, ANN), (ELSEWHERE, 0.8, near))
    assert sorted(ids(found)) == [0, 1]


# --------------------------------------------------------------------------- state and limits


def test_a_detector_that_is_saved_and_loaded_goes_on_with_the_same_ids(tmp_path):
    play = Script(settle=0.4)
    for n in range(4):
        play(0.5 * n, (PLACE, 0.8, ANN), (ELSEWHERE, 0.7, BOB))
        play(0.5 * n, (PLACE, 0.8, BOB), stream="door/2")
    play(2.0, (ELSEWHERE, 0.8, TURNED))  # somebody without an id yet
    torch.save(play.memory.state_dict(), tmp_path / "detector.pt")
    again = Script(settle=0.4)
    again.memory.load_state_dict(torch.load(tmp_path / "detector.pt", weights_only=True))
    assert again.memory.streams == play.memory.streams == ("door/2", "camera")
    assert again.memory.nbytes == play.memory.nbytes
    for n in range(5, 30):
        sights = [(PLACE, 0.2, BOB), (ELSEWHERE, 0.9, (ANN, TURNED)[n % 2])][: n % 3]
        for stream in ("camera", "door/2"):
            one = play(0.5 * n, *sights, stream=stream)
            assert one.to_json() == again(0.5 * n, *sights, stream=stream).to_json()


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing():
    play = Script()
    play(0.0, (PLACE, 0.8, ANN))
    state = play.memory.state_dict()
    before = play.memory.streams
    missing = {key: value for key, value in state["camera"].items() if key != "tracks"}
    others = {**state["camera"], "tracks": torch.zeros(0, 4, dtype=torch.float64)}
    for bad, says in ((missing, "tracks"), (others, "tracks")):
        with pytest.raises(ValueError, match=says):
            play.memory.load_state_dict({"other": state["camera"], "camera": bad})
        assert play.memory.streams == before
    with pytest.raises(ValueError, match="configuration"):
        Script(gap=3.0).memory.load_state_dict(state)
    with pytest.raises(ValueError, match="2 streams"):
        Script(streams=1).memory.load_state_dict({"a": state["camera"], "b": state["camera"]})
    with pytest.raises(ValueError, match="no memory"):
        play.single.load_state_dict(state)


def test_the_stream_unseen_for_longest_is_forgotten_beyond_the_limit():
    play = Script(streams=2)
    for time, stream in enumerate("abac"):
        play(float(time), (PLACE, 0.8, ANN), stream=stream)
    assert play.memory.streams == ("a", "c")
    assert ids(play(0.0, (PLACE, 0.8, BOB), stream="b")) == [0]  # begun anew, even in its time
    for number in range(500):
        play(0.0, (PLACE, 0.8, ANN), stream=str(number))
    assert play.memory.streams == ("498", "499")


@pytest.mark.parametrize("what", ["look", "box", "score", "far", "few"])
@pytest.mark.parametrize("memory", [True, False])
def test_what_is_not_finite_or_does_not_fit_is_refused_and_changes_nothing(what, memory):
    bad = torch.tensor([[*PLACE], [*ELSEWHERE]]), torch.tensor([0.9, 0.3]), torch.ones(2, 8)
    now = [part.clone() for part in bad]
    detector = Detector(
        memory=memory,
        propose=lambda image, least: (now[0], now[1]),
        look=lambda image, boxes: now[2],
    )
    frame = Frame(np.zeros((10, 20, 3), np.uint8), 0.0)
    detector.step(frame)
    before = detector.state_dict()
    if what in ("look", "box", "score"):
        now[("box", "score", "look").index(what)].view(-1)[-1] = torch.nan
    elif what == "far":
        now[2][0] = 1e30
    else:
        now[2] = now[2][:1]
    if memory or what in ("box", "score"):
        with pytest.raises(ValueError, match="finite"):
            detector.step(Frame(frame.image, 1.0))
    after = detector.state_dict()
    assert after.keys() == before.keys()
    for stream in before:
        assert all(torch.equal(before[stream][key], after[stream][key]) for key in before[stream])


# --------------------------------------------------------------------------- looked at from near


class Regions:
    """Says what moves as it is told to."""

    def __init__(self, *boxes: tuple[float, ...]) -> None:
        self.boxes = torch.tensor(boxes).reshape(-1, 4)

    def step(self, frame: Frame):
        return self if len(self.boxes) else None


WIDE = Frame(np.zeros((600, 800, 3), np.uint8), 0.0)


def brightest(image: np.ndarray, least: float) -> tuple[Tensor, Tensor]:
    """A detector that finds white, where it fills a hundredth of what it is shown."""
    y, x = np.nonzero(image[..., 0])
    if len(y) < 0.01 * image[..., 0].size:
        return torch.zeros(0, 4), torch.zeros(0)
    height, width = image.shape[:2]
    box = x.min() / width, y.min() / height, (x.max() + 1) / width, (y.max() + 1) / height
    return torch.tensor([box]).float(), torch.tensor([0.9])


def test_what_is_too_small_is_found_where_it_moves() -> None:
    image = WIDE.image.copy()
    image[300:340, 500:520] = 255
    frame = Frame(image, 0.0)
    place = 490 / 800, 290 / 600, 530 / 800, 350 / 600
    assert not len(Detector(propose=brightest).step(frame))
    found = Detector(propose=brightest, moving=Regions(place)).step(frame)
    assert found.boxes.tolist() == [pytest.approx([500, 300, 520, 340], abs=1)]
    assert not len(Detector(propose=brightest, moving=Regions()).step(frame))
    assert not len(Detector(propose=brightest, moving=Regions((0.0, 0.0, 0.1, 0.1))).step(frame))


def test_one_person_seen_in_the_picture_and_from_near_is_one_box() -> None:
    image = WIDE.image.copy()
    image[200:400, 300:420] = 255
    place = 290 / 800, 190 / 600, 430 / 800, 410 / 600
    found = Detector(propose=brightest, moving=Regions(place, place)).step(Frame(image, 0.0))
    assert found.boxes.tolist() == [pytest.approx([300, 200, 420, 400], abs=2)]


def test_what_an_inner_edge_of_a_window_cuts_is_left_to_others() -> None:
    image = WIDE.image.copy()
    image[300:340, 0:600] = 255  # reaches out of any window around its middle
    found = Detector(propose=brightest, moving=Regions((0.45, 0.5, 0.5, 0.56))).step(
        Frame(image, 0.0)
    )
    assert found.boxes.tolist() == [pytest.approx([0, 300, 600, 340], abs=1)]


box = st.tuples(*[st.floats(0, 1)] * 4).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)


@given(st.lists(box, max_size=30), st.integers(1, 900), st.integers(1, 900))
@settings(max_examples=100, derandomize=True)
def test_windows_lie_in_the_picture_and_are_few(boxes, width: int, height: int) -> None:
    frame = Frame(np.zeros((height, width, 3), np.uint8), 0.0)
    found = windows(frame, torch.tensor(boxes).reshape(-1, 4))
    assert len(found) <= MOST_WINDOWS and (len(found) > 0) == (len(boxes) > 0)
    for x, y, side in found:
        assert 0 < side and 0 <= x <= width - side and 0 <= y <= height - side


def test_a_row_of_people_is_covered_by_several_windows() -> None:
    row = 0.1, 0.4, 0.9, 0.55  # 640 by 90 pixels
    found = windows(WIDE, torch.tensor([row]))
    covered = np.zeros(800, bool)
    for x, y, side in found:
        assert y <= 240 and y + side >= 330 and side < 300
        covered[x : x + side] = True
    assert len(found) > 2 and covered[80:720].all()
    assert len(windows(WIDE, torch.tensor([row, (0.3, 0.42, 0.34, 0.52)]))) == len(found)
