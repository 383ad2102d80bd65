from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vismem.memory.published.ctvis import (
    PublishedBank,
    PublishedTracker,
    PublishedTrackerConfig,
    similarities,
    without_doubles,
)

SURE, UNSURE = [5.0, 0.0], [-6.0, 0.0]
X, Y, Z = torch.eye(3).tolist()


def frame(*queries: tuple[list[float], list[float]]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, masks without overlap and embeddings of queries (logits, look)."""
    logits, looks = (torch.tensor(part) for part in zip(*queries, strict=True))
    masks = torch.eye(4)[: len(queries), None] * 2 - 1
    return logits, masks, 9 * looks


def test_the_embeddings_of_a_tracklet() -> None:
    """Numbers computed with the published class: cache 3, scores 0.5, 0.6 … 0.9."""
    bank = PublishedBank(maximum_cache=3)
    for time in range(5):
        look = torch.randn(1, 4, generator=torch.Generator().manual_seed(10 + time))
        bank.update([7], torch.tensor([0.5 + 0.1 * time]), look, time)
    expected = {
        "last": [-1.01413, -0.37203, -0.7516, -0.86228],
        "momentum": [-0.78526, -0.53957, -0.3112, -0.38959],
        "similarity_guided": [-0.60139, -1.01221, -0.30227, -1.22769],
        "temporally_weighted_softmax": [-0.52535, -0.86613, 0.13272, 0.18883],
    }
    for kind, numbers in expected.items():
        held = bank.embeddings(kind)  # type: ignore[arg-type]
        torch.testing.assert_close(held, torch.tensor([numbers]), rtol=0, atol=1e-5)


def test_one_detection_and_one_tracklet_always_match_as_published() -> None:
    assert similarities(torch.tensor([X]), -torch.tensor([X]), "bisoftmax").item() == 1
    tracker = PublishedTracker(PublishedTrackerConfig())
    assert [tracker.step(*frame((SURE, look)))[0] for look in (X, Y, Z)] == [[0]] * 3
    cosine = PublishedTracker(PublishedTrackerConfig(match_metric="cosine"))
    assert [cosine.step(*frame((SURE, look)))[0] for look in (X, Y, X)] == [[0], [1], [0]]


@pytest.mark.parametrize("match_type", ["greedy", "hungarian"])
def test_ids_follow_what_a_query_shows_and_not_its_number(match_type: str) -> None:
    tracker = PublishedTracker(PublishedTrackerConfig(match_type=match_type))  # type: ignore
    assert tracker.step(*frame((SURE, X), (SURE, Y), (UNSURE, Z))) == ([0, 1], [0, 1])
    ids, queries = tracker.step(*frame((UNSURE, Z), (SURE, Y), (SURE, X)))
    assert dict(zip(queries, ids, strict=True)) == {1: 1, 2: 0}


def test_the_hungarian_choice_is_the_best_for_all() -> None:
    """Greedy gives the first detection its favourite, and the second what is left."""
    looks = torch.tensor([[1.0, 0.9, 0.0], [1.0, 0.0, 0.0]])
    held = torch.tensor([X, Y])
    found = {}
    for match_type in ("greedy", "hungarian"):
        config = PublishedTrackerConfig("cosine", match_type, 0.3, False)  # type: ignore
        tracker = PublishedTracker(config)
        tracker.bank.update([0, 1], torch.ones(2), held, 0)
        found[match_type] = tracker._associate(looks)
    assert found == {"greedy": [0, -1], "hungarian": [1, 0]}


def test_what_was_seen_often_is_preferred() -> None:
    found = []
    for weighted in (False, True):
        tracker = PublishedTracker(PublishedTrackerConfig("cosine", frame_weight=weighted))
        for time in range(3):
            tracker.bank.update([5], torch.ones(1), torch.tensor([X]), time)
        tracker.bank.update([6], torch.ones(1), torch.tensor([Y]), 3)
        found.append(tracker._associate(torch.tensor([[0.6, 0.8, 0.0]])))
    assert found == [[6], [5]]


def test_what_is_unlikely_is_not_matched_because_it_was_seen_often() -> None:
    tracker = PublishedTracker(PublishedTrackerConfig("cosine"))
    for time in range(30):
        tracker.bank.update([7], torch.ones(1), torch.tensor([Z]), time)
    for number, look in ((5, X), (6, Y)):
        tracker.bank.update([number], torch.ones(1), torch.tensor([look]), 30)
    assert tracker._associate(torch.tensor([[0.65, 0.7, 0.28]])) == [6]


def test_without_a_sure_query_the_best_one_is_taken_and_given_no_id() -> None:
    tracker = PublishedTracker(PublishedTrackerConfig())
    assert tracker.step(*frame((UNSURE, X), (UNSURE, Y))) == ([], [])
    assert tracker.step(*frame((SURE, X), (SURE, Y)))[0] == [0, 1]
    assert tracker.step(*frame((UNSURE, X), (UNSURE, Y))) == ([0], [0])


def test_doubles_go_by_their_masks() -> None:
    masks = torch.tensor([[1.0, 1, 1, -1], [1, 1, 1, 1], [-1, -1, -1, 1], [-1, -1, -1, -1]])
    assert without_doubles(masks[:, None], 0.6) == [0, 2, 3]
    assert without_doubles(masks[:, None], 0.8) == [0, 1, 2, 3]
    row = torch.arange(9)
    chain = torch.stack([(row >= 2 * n) & (row < 2 * n + 5) for n in range(3)]) * 2.0 - 1
    assert without_doubles(chain[:, None], 0.4) == [0, 2]  # what is removed removes nothing


def test_the_dead_are_forgotten_and_come_back_as_others() -> None:
    tracker = PublishedTracker(PublishedTrackerConfig("cosine", num_dead_frames=2))
    given = [X, Y, Y, X, Y, Y, Y, X]
    assert [tracker.step(*frame((SURE, look)))[0][0] for look in given] == [0, 1, 1, 0, 1, 1, 1, 2]
    tracker = PublishedTracker(PublishedTrackerConfig(num_dead_frames=0))
    tracker.step(*frame((SURE, X)))
    tracker.bank.update([], torch.empty(0), torch.empty(0, 3), 1)  # all are dead
    assert tracker.step(*frame((SURE, X)))[0] == [1]


def test_short_sequences_are_dropped_after_a_while() -> None:
    tracker = PublishedTracker(PublishedTrackerConfig("cosine", noise_frame_num=3))
    with pytest.raises(ValueError, match="no instance"):
        tracker.sequences()
    for number in range(4):
        tracker.step(*frame((SURE, X), *[(SURE, Y)] * (number < 2)))
    assert tracker.sequences()[0] == [0, 1]
    tracker.step(*frame((SURE, X)))
    ids, logits, masks = tracker.sequences()
    assert ids == [0] and logits.tolist() == [SURE] and masks.shape == (1, 5, 1, 4)
