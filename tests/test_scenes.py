"""Notes of scenes: written, joined, and read back as moments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vismem.encoders.base import Encoder, Term, cell_centres
from vismem.heads.answer import term_scores
from vismem.memory.episodic import EpisodicConfig
from vismem.memory.slots import Slot
from vismem.scenes import (
    AS_GOOD,
    LEAST_FRAMES,
    grid_of,
    join_notes,
    largest_note,
    scene_label,
    scene_moments,
    thumbnail_of,
    write_note,
)

CONFIG = EpisodicConfig(token_dim=4, embedding_dim=6, max_labels=3, colors=2, max_thumbnail=9)
Scores = dict[int, float]


def seen(scores: Scores, picture: bytes = b"", pose: float | None = None) -> dict[str, Tensor]:
    """A frame as the log holds it: box, colour and count of a label follow from its number."""
    ids = torch.tensor(list(scores), dtype=torch.int16)
    tensors = {"thumbnail": torch.tensor(list(picture), dtype=torch.uint8)}
    if pose is not None:
        tensors["pose"] = torch.full((4, 4), pose)
    return tensors | {
        "label.id": ids,
        "label.score": torch.tensor(list(scores.values()), dtype=torch.float16),
        "label.box": (ids[:, None] / 8 + torch.arange(4) / 32).half(),
        "label.color": (ids[:, None] / 8 * torch.tensor([1.0, 0.5])).half(),
        "label.count": ids + 1,
    }


def note(time: float, scores: Scores, picture: bytes = b"", pose: float | None = None) -> bytes:
    return write_note(seen(scores, picture, pose), time, CONFIG)


def slot(text: bytes, time: float = 0.0, weight: int = 1, **other: object) -> Slot:
    values: dict = {"start": time, "end": time, "first": time, "last": time, "source": 0}
    values |= {"tokens": torch.zeros(1, 4), "grid": (1, 1), "embedding": torch.ones(6).half()}
    return Slot(time, note=text, weight=weight, level="detail", **(values | other))


def labels(text: bytes, column: str = "label_sum", weight: int = 3) -> dict[int, float]:
    """One column of a note by label."""
    held = scene_moments([slot(text, weight=weight)], CONFIG)
    ids, values = held.column("label")[0].tolist(), held.column(column)[0].tolist()
    return {label: value for label, value in zip(ids, values, strict=True) if label >= 0}


def test_a_note_gives_back_what_was_written() -> None:
    text = note(7.25, {5: 0.5, 2: 0.75}, b"jpeg", pose=2.5)
    held = scene_moments(
        [
            slot(
                text,
                7.25,
                weight=4,
                start=6.0,
                end=9.0,
                source=11,
                embedding=torch.eye(6).half()[2],
            )
        ],
        CONFIG,
    )
    assert len(held) == 1 and held.thumbnail(0) == b"jpeg" == thumbnail_of(slot(text), CONFIG)
    numbers = {name: held.column(name).tolist() for name in ("start", "end", "peak", "frames")}
    assert numbers == {"start": [6.0], "end": [9.0], "peak": [7.25], "frames": [4]}
    assert held.column("source").tolist() == [11]
    assert torch.equal(held.column("embedding")[0].float(), torch.eye(6)[2])
    assert torch.equal(held.column("pose")[0], torch.full((4, 4), 2.5))
    for row, (label, score) in enumerate([(2, 0.75), (5, 0.5)]):
        found = {name: held.column(name)[0, row] for name in CONFIG.columns() if "label" in name}
        assert (int(found["label"]), float(found["label_time"])) == (label, 7.25)
        assert float(found["label_max"]) == float(found["label_sum"]) == score
        assert found["label_box"].tolist() == [label / 8 + n / 32 for n in range(4)]
        assert found["label_color"].tolist() == [label / 8, label / 16]
        assert int(found["label_count"]) == label + 1
    assert held.column("label")[0].tolist() == [2, 5, -1]
    for name, (dtype, shape) in CONFIG.columns().items():
        if name not in ("tokens", "positions"):
            assert (held.column(name).dtype, held.column(name).shape[1:]) == (dtype, shape)


@pytest.mark.parametrize("named", [True, False])
def test_a_note_of_nothing(named: bool) -> None:
    tensors = seen({}) if named else {"thumbnail": torch.empty(0, dtype=torch.uint8)}
    held = scene_moments([slot(write_note(tensors, 1.0, CONFIG))], CONFIG)
    assert held.thumbnail(0) == b"" and held.column("label").tolist() == [[-1, -1, -1]]
    assert bool(held.column("pose").isnan().all())


def test_slots_without_a_note_are_no_moments() -> None:
    assert len(scene_moments([], CONFIG)) == len(scene_moments([slot(b"")], CONFIG)) == 0
    assert len(scene_moments([slot(b""), slot(note(1.0, {}))], CONFIG)) == 1
    assert thumbnail_of(slot(b""), CONFIG) == b""
    assert scene_label(slot(b""), CONFIG, ["a"], 1, 0.1) == ""


def test_the_best_labels_are_kept() -> None:
    text = note(0.0, {label: label / 8 for label in range(1, 8)})
    assert labels(text) == {7: 0.875, 6: 0.75, 5: 0.625}


def test_a_join_adds_up_and_the_representative_lends_what_cannot_be_added() -> None:
    one = note(1.0, {1: 0.5, 2: 0.25}, b"one", pose=1.0)
    other = note(2.0, {2: 0.875, 3: 0.125}, b"other", pose=2.0)
    join = join_notes(CONFIG)
    both = join(one, 1, other, 5)
    assert labels(both) == {2: 1.125, 1: 0.5, 3: 0.125}
    assert labels(both, "label_time") == {1: 1.0, 2: 2.0, 3: 2.0}  # where it was seen far better
    assert labels(both, "label_max") == {1: 0.5, 2: 0.875, 3: 0.125}
    held = scene_moments([slot(both)], CONFIG)
    assert held.thumbnail(0) == b"one" and float(held.column("pose")[0, 0, 0]) == 1.0
    about_as_well = join(note(1.0, {2: 0.5}), 1, note(2.0, {2: 0.9375}), 1)
    assert 0.5 > AS_GOOD * 0.9375
    assert labels(about_as_well, "label_time") == {2: 1.0}
    unposed = join(note(1.0, {}), 1, other, 1)
    assert bool(scene_moments([slot(unposed)], CONFIG).column("pose").isnan().all())


# Sixteenths: their sums are exact in float32, whatever the order.
frames = st.lists(
    st.dictionaries(st.integers(0, 2), st.integers(1, 16).map(lambda n: n / 16), max_size=3),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60)
@given(frames, st.randoms(use_true_random=False))
def test_however_notes_are_joined_the_sums_are_those_of_the_frames(films, dice) -> None:
    join = join_notes(CONFIG)
    notes = [(note(float(n), scores, bytes([n])), 1) for n, scores in enumerate(films)]
    while len(notes) > 1:
        (one, a), (other, b) = (notes.pop(dice.randrange(len(notes))) for _ in range(2))
        notes.append((join(one, a, other, b), a + b))
    ((text, weight),) = notes
    expected = {
        label: sum(scores.get(label, 0.0) for scores in films)
        for label in {label for scores in films for label in scores}
    }
    assert weight == len(films) and labels(text) == expected
    times, bests = labels(text, "label_time"), labels(text, "label_max")
    for label, time in times.items():  # what is told of a label is of one true frame
        assert films[int(time)][label] == bests[label]
    assert thumbnail_of(slot(text), CONFIG) in {bytes([n]) for n in range(len(films))}


@settings(max_examples=60)
@given(st.lists(st.sets(st.integers(0, 30), max_size=8), min_size=1, max_size=8))
def test_no_note_is_larger_than_the_largest(sights) -> None:
    join = join_notes(CONFIG)
    text = note(0.0, {}, bytes(9), pose=1.0)
    for time, ids in enumerate(sights):
        fresh = note(float(time), {label: (label + 1) / 32 for label in ids}, bytes(9), pose=1.0)
        assert len(fresh) <= largest_note(CONFIG)
        text = join(text, 1, fresh, 1)
        assert len(text) <= largest_note(CONFIG) and len(labels(text)) <= CONFIG.max_labels
    full = note(0.0, {1: 0.5, 2: 0.5, 3: 0.5}, bytes(9), pose=1.0)
    assert len(full) == largest_note(CONFIG)


def test_the_label_of_a_scene_is_its_surest_thing() -> None:
    names = ["cat", "dog", "red"]
    text = join_notes(CONFIG)(note(0.0, {0: 0.5, 1: 0.625, 2: 1.0}), 1, note(1.0, {0: 0.5}), 1)
    # 0.5 * 1.0 above 0.625 * 0.625
    assert scene_label(slot(text), CONFIG, names, 2, 0.1) == "cat"
    colour = slot(note(0.0, {2: 1.0}))  # is no thing
    assert scene_label(colour, CONFIG, names, 2, 0.1) == ""


def test_a_label_of_one_frame_is_doubted() -> None:
    """As if it had been missed in two more frames: one lucky frame claims less than a moment."""
    term = Term("dog", torch.tensor([1]), torch.ones(1))  # calibrated as it is
    text = note(0.0, {1: 0.75})

    def score(text: bytes, weight: int) -> float:
        return float(term_scores(scene_moments([slot(text, weight=weight)], CONFIG), term)[0])

    def odds(value: float) -> float:
        return 1 / (1 + 1 / value)  # the logistic of its logarithm

    assert LEAST_FRAMES == 3
    assert score(text, 1) == pytest.approx(odds(0.75 / math.sqrt(3)), rel=1e-4)
    thrice = join_notes(CONFIG)(join_notes(CONFIG)(text, 1, text, 1), 2, text, 1)
    assert score(thrice, 3) == pytest.approx(odds(0.75), rel=1e-4)
    assert score(text, 12) == pytest.approx(odds(0.75 / math.sqrt(12)), rel=1e-4)


@settings(max_examples=80)
@given(st.integers(1, 31), st.integers(1, 31), st.booleans())
def test_the_grid_is_read_from_the_centres_of_its_cells(rows: int, columns: int, half: bool):
    positions = cell_centres(rows, columns)
    assert grid_of(positions.half() if half else positions) == (rows, columns)


def test_positions_that_are_no_grid_are_one_row() -> None:
    assert grid_of(torch.tensor([[0.5, 0.5]])) == (1, 1)
    assert grid_of(torch.tensor([[0.1, 0.2], [0.3, 0.2], [0.1, 0.9]])) == (1, 3)
    assert grid_of(torch.zeros(4, 2)) == (1, 4)


def test_the_grids_of_the_real_encoder(embedded: Encoder) -> None:
    for shape in ((36, 64, 3), (64, 36, 3), (48, 48, 3), (9, 90, 3)):
        (encoding,) = embedded.encode([np.zeros(shape, np.uint8)])
        rows, columns = grid_of(encoding.positions.half())
        assert rows * columns == len(encoding.tokens)
        assert (rows <= columns) == (shape[0] <= shape[1])
        assert torch.allclose(cell_centres(rows, columns), encoding.positions)


def test_a_scene_is_named_only_if_its_label_is_sure_enough() -> None:
    seen = slot(note(0.0, {0: 0.5}))  # in one frame of as if three: 0.5 / sqrt(3)
    assert scene_label(seen, CONFIG, ["cat"], 1, 0.28) == "cat"
    assert scene_label(seen, CONFIG, ["cat"], 1, 0.30) == ""
