"""The heads of DigitVOD, and what they are trained on."""

from __future__ import annotations

import torch
from small_vod import HERE, THERE, random_found, scene, seen


def test_a_head_starts_as_the_detector(vod) -> None:
    detector, found = vod.detector.Detector(), random_found(vod)
    logits = detector.classify(found.tokens[:, 3])
    rows = vod.heads.rows_of(
        found, torch.tensor([[0, 1]] * 4), torch.ones(4, 2).bool(), found.times[:, 3]
    )
    for kind in ("ours", "score", "appearance", "no memory"):
        head = vod.heads.Head(detector, vod.heads.ATTENTIONS[kind]())
        assert torch.equal(head(found.tokens[:, 3], found.fractions[:, 3], rows), logits)


def test_training_reads_what_was_found_before_and_nothing_else(vod) -> None:
    found = random_found(vod, 20, 12)
    draw = torch.Generator().manual_seed(0)
    counts, nothing = set(), 0
    for _ in range(40):
        frames = 1 + torch.randint(11, (20, 1), generator=draw)
        rows = vod.heads.past(found, frames, draw)
        if rows is None:
            nothing += 1
            continue
        assert (rows.ages[rows.mask] > 0).all()
        for video in range(20):
            mine = rows.mask[video]
            times = rows.times[video][mine].unique()
            counts.add(len(times))
            at = rows.times[video].long() * 8 + torch.arange(8).repeat(rows.mask.shape[1] // 8)
            every = found.tokens[video].flatten(0, 1)
            assert torch.equal(rows.tokens[video][mine], every[at[mine]])
            assert (rows.scores[video][mine] > 0).all()
    assert counts == set(range(1, 9)) and 4 <= nothing <= 18


def test_the_published_training_looks_to_both_sides(vod) -> None:
    found = random_found(vod, 20, 12)
    frames = torch.full((20, 1), 5)
    rows = vod.heads.around(found, frames, torch.Generator().manual_seed(0))
    ages = rows.ages[:, ::8]
    assert (ages[:, 0] > 0).all() and (ages[:, 1] < 0).all() and len(ages.unique()) > 6
    last = vod.heads.around(found, torch.full((20, 1), 11), torch.Generator().manual_seed(0))
    assert (last.ages[:, 8] == 0).all()  # there is nothing after the end


def test_training_a_head_repeats_and_learns(vod) -> None:
    detector, found = vod.detector.Detector(), random_found(vod, 30, 8)
    truth = torch.randint(10, (30, 1, 1), generator=torch.Generator().manual_seed(0))
    truth = truth.expand(30, 8, 8)
    found.tokens[:, ::2] += 4 * torch.nn.functional.one_hot(truth[:, ::2], 128).float()
    before = torch.get_rng_state()
    heads = [vod.heads.train_head("ours", detector, found, truth, 30, 0) for _ in range(2)]
    one, two = (head.state_dict() for head in heads)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert one["attention.output.weight"].abs().sum() > 0
    other = vod.heads.train_head("ours", detector, found, truth, 30, 1).state_dict()
    assert not torch.equal(one["classify.weight"], other["classify.weight"])


def test_the_class_of_a_box_is_that_of_the_object_it_shows(vod) -> None:
    videos = scene(vod, [[HERE, THERE]], [3, 5], visible=[[True, False]])
    found = seen(vod, [[HERE, THERE, [0, 0, 20, 9], HERE]], [[0.9, 0.8, 0.7, 0.0]])
    assert vod.heads.truth_of(found, videos).tolist() == [[[3, -1, -1, -1]]]
