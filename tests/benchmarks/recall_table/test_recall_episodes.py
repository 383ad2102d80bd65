"""No covered frame tells what is hidden, and answers are dealt evenly."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

NAMES = "put_back reopen rearrange find_hidden update swap sweep absent".split()


@pytest.fixture(scope="module")
def data(recall):
    return recall.episodes.generate(recall.tasks.FAMILIES["find_hidden"], 10, seed=3, clip=40)


def test_all_families_are_tested(recall):
    assert [*recall.tasks.FAMILIES] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_twins_that_differ_in_what_is_hidden_look_the_same(recall, name):
    family = recall.tasks.FAMILIES[name]
    for seed in range(2):
        compared, differ = recall.episodes.twin(family, seed)
        assert compared >= 6 and differ == 0


@pytest.mark.parametrize("name", NAMES)
def test_twins_have_different_answers_and_the_cue_tells_them_apart(recall, name, monkeypatch):
    monkeypatch.setattr(recall.episodes, "HIDDEN_LABELS", ("cue",))
    compared, differ = recall.episodes.twin(recall.tasks.FAMILIES[name], 0)
    # A sweep looks at slots that are empty in both.
    assert compared >= 4 and differ >= (1 if name == "sweep" else 4)


def leaky(recall, kind):
    """A family with a leak that was put in on purpose."""
    base = recall.tasks.FindHidden

    class Leaky(base):
        def cover(self, table):
            super().cover(table)
            if kind == "cup ajar":
                for slot in range(9):
                    x, y, z = table.slots[slot]
                    table.carry_cup(slot, (x, y, z + 0.05))

        def play(self, table, content):
            for step in super().play(table, content):
                if kind == "button" and step.label == "rest":
                    table.press(content.answer % 2 == 0)
                yield step

        def eye(self, table, label, number, content):
            shift = content.answer * 1e-4 if kind == "camera" else 0.0
            return super().eye(table, label, number, content) + shift

    return Leaky()


@pytest.mark.parametrize("kind", ["cup ajar", "button", "camera"])
def test_a_leak_turns_the_twin_test_red(recall, kind):
    assert recall.episodes.twin(leaky(recall, kind), 0)[1] > 0


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_dealt_evenly_and_the_query_does_not_tell_them(recall, name):
    family = recall.tasks.FAMILIES[name]
    drawn = [family.draw([0, i], i % family.answers) for i in range(60 * family.answers)]
    assert {*Counter(c.answer for c in drawn).values()} == {60}
    assert all(c.answer not in c.stale for c in drawn)
    for colour in {c.query for c in drawn}:
        asked = Counter(c.answer for c in drawn if c.query == colour)
        assert max(asked.values()) < 3 * sum(asked.values()) / family.answers


def test_the_hidden_things_are_where_the_answer_says(recall):
    rng = np.random.default_rng(0)
    for name in ("find_hidden", "update", "swap", "sweep", "absent"):
        family = recall.tasks.FAMILIES[name]
        with family.table() as table:
            # Few pairs of swaps depend on their order.
            for _ in range(60 if name == "swap" else 6):
                answer = int(rng.integers(family.answers))
                content = family.draw([5, int(rng.integers(1000))], answer)
                table.reset()
                for _step in family.play(table, content):
                    pass
                found = table.truth().get(recall.tasks.HUES[content.query])
                wanted = family.answer_at(table, answer)
                if np.isnan(wanted).any():
                    assert found is None
                else:
                    np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(recall, data):
    family = recall.tasks.FAMILIES["find_hidden"]
    again = recall.episodes.generate(family, 10, seed=3, clip=40)
    other = recall.episodes.generate(family, 10, seed=4, clip=40)
    for name in ("pictures", "positions", "poses", "signatures"):
        assert (getattr(again, name) == getattr(data, name)).all()
        assert (getattr(other, name) != getattr(data, name)).any()
    assert (again.timeline(2, 8)[0] == data.timeline(2, 8)[0]).all()


def test_a_timeline_is_a_cue_and_so_many_covered_frames_after_it(recall, data):
    begins = set()
    for number in range(10):
        for delay in (0, 8, 32):
            frames, cue = data.timeline(number, delay)
            assert cue.sum() == 4 and not cue[-1]
            last = np.flatnonzero(cue)[-1]
            # The frames after it: two, the delay and the one with the question.
            assert len(frames) - 1 - last == recall.tasks.AFTER + delay + 1
            after, windowed = frames[last + 1 : -1], 2 + delay
            assert np.isin(after, data.clips["rest"]).all()
            # The delay is a window of the clip: no frame of it twice.
            assert len({*after[2:windowed].tolist()}) == delay
            begins.add(int(np.flatnonzero(cue)[0]))
    assert min(begins) == 0 and len(begins) > 3


def test_cells_lie_where_depth_and_pose_say(data):
    cells = data.positions[data.clips["rest"][0]]
    assert np.isfinite(cells).all()
    # Cups stand on a table 0.4 m high; around it is the floor.
    assert -0.01 < cells[:, 2].min() and 0.45 < cells[:, 2].max() < 0.53
