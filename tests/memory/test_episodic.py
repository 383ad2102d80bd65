from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from contract import MemoryContract, Observation, copied, recalled, same
from torch import Tensor

from vismem.memory.episodic import EpisodicConfig, EpisodicMemory, EpisodicSnapshot
from vismem.memory.moments import merge_labels

CONFIG = EpisodicConfig(
    token_dim=6, embedding_dim=5, max_tokens=3, max_labels=4, colors=3, max_thumbnail=40
)
PLENTY = 10**9


def axis(number: int, size: int) -> Tensor:
    return torch.eye(size)[number % size]


def labels(*rows: tuple[int, float]) -> dict[str, Tensor]:
    """Labels and their scores; box, colour and count follow from the label."""
    ids = torch.tensor([label for label, _ in rows], dtype=torch.int64)
    return {
        "id": ids,
        "score": torch.tensor([score for _, score in rows]),
        "box": torch.tensor([[label / 16, 0.0, 1.0, 1.0] for label, _ in rows]).reshape(-1, 4),
        "color": torch.eye(3)[ids % 3],
        "count": ids + 1,
    }


class TestEpisodicMemory(MemoryContract):
    small = 6_000
    large = PLENTY
    max_tokens = CONFIG.max_tokens

    def make(self, budget: int) -> EpisodicMemory:
        return EpisodicMemory(CONFIG, budget)

    def make_other(self, budget: int) -> EpisodicMemory:
        wider = EpisodicConfig(
            token_dim=8, embedding_dim=5, max_tokens=3, max_labels=4, colors=3, max_thumbnail=40
        )
        return EpisodicMemory(wider, budget)

    def observation(self, number: int, seed: int = 0) -> Observation:
        noise = torch.Generator().manual_seed(1000 * seed + number)
        scene = number // 5 + seed
        given: Observation = {
            # The first write has one token, since `write_many` takes as many of each.
            "tokens": axis(scene, 6) + 0.05 * torch.randn(2, 6, generator=noise),
            "time": 100.0 + number * 0.4,
            "embedding": axis(scene, 5) + 0.05 * torch.randn(5, generator=noise),
            "positions": torch.rand(2, 2, generator=noise),
            "thumbnail": bytes([number % 256]) * (number % 40),
            "labels": labels((scene % 7, 0.5), (number % 5, 0.3 + 0.01 * (number % 50))),
        }
        if number % 3:
            given["pose"] = torch.eye(4) * (1 + number)
        return given

    def query(self) -> Tensor:
        return axis(2, 5)

    def hostile(self, good: Observation) -> Mapping[str, Observation]:
        def with_labels(**changes: Tensor) -> Observation:
            return good | {"labels": good["labels"] | changes}

        bad = torch.tensor(torch.nan)
        return {
            "embedding: NaN": good | {"embedding": good["embedding"] * bad},
            "embedding: infinity": good | {"embedding": torch.full((5,), torch.inf)},
            "embedding: missing": good | {"embedding": None},
            "embedding: wrong width": good | {"embedding": torch.ones(6)},
            "embedding: two dimensions": good | {"embedding": torch.ones(1, 5)},
            "positions: NaN": good | {"positions": good["positions"] * bad},
            "positions: beyond float16": good | {"positions": good["positions"] + 1e6},
            "positions: too few": good | {"positions": torch.zeros(1, 2)},
            "pose: NaN": good | {"pose": torch.eye(4) * bad},
            "pose: beyond float32": good | {"pose": torch.eye(4).double() * 1e300},
            "pose: three rows": good | {"pose": torch.eye(4)[:3]},
            "thumbnail: too large": good | {"thumbnail": bytes(41)},
            "labels: a column is missing": good | {"labels": {"id": torch.tensor([1])}},
            "labels: one too many columns": with_labels(depth=torch.zeros(2)),
            "labels: NaN": with_labels(score=good["labels"]["score"] * bad),
            "labels: lengths differ": with_labels(count=torch.tensor([1])),
            "labels: wrong colours": with_labels(color=torch.zeros(2, 4)),
            "labels: box beyond float16": with_labels(box=torch.full((2, 4), 1e6)),
        }


# --------------------------------------------------------------------------- building streams


def plain(memory: EpisodicMemory, scene: int, time: float, **context: object) -> bool:
    """Write a frame of one of 5 scenes that have nothing in common; whether a moment began."""
    report = memory.write(
        axis(scene, 6)[None],
        time,
        embedding=axis(scene, 5),
        **context,  # type: ignore[arg-type]
    )
    return report.boundary


def starts(memory: EpisodicMemory) -> list[float]:
    return memory.snapshot().column("start").tolist()


def moments_apart(count: int, budget: int = PLENTY) -> EpisodicMemory:
    """One moment of one frame every 10 s, its scene by number."""
    memory = EpisodicMemory(CONFIG, budget)
    for number in range(count):
        plain(memory, number, 10.0 * number, thumbnail=bytes([number]) * 3)
    return memory


def held(snapshot: EpisodicSnapshot) -> int:
    """Bytes of all rows and thumbnails, counted by hand."""
    rows = sum(snapshot.column(name).nbytes for name in snapshot.config.columns())
    return rows + sum(len(snapshot.thumbnail(moment)) for moment in range(len(snapshot)))


# --------------------------------------------------------------------------- moments


def test_a_moment_begins_where_the_scene_changes() -> None:
    memory = EpisodicMemory(CONFIG, PLENTY)
    scenes = [0] * 6 + [1] * 8 + [0] * 5 + [2] * 9
    began = [n * 0.5 for n, s in enumerate(scenes) if plain(memory, s, n * 0.5)]
    assert began == [0.0, 3.0, 7.0, 9.5] == starts(memory)
    assert memory.snapshot().column("end").tolist() == [2.5, 6.5, 9.0, 13.5]
    assert memory.snapshot().column("frames").tolist() == [6, 8, 5, 9]


def test_no_moment_is_shorter_than_the_least() -> None:
    memory = EpisodicMemory(CONFIG, PLENTY)
    scenes = [0] * 8 + [1, 2, 3, 4] + [4] * 8
    began = [n * 0.25 for n, scene in enumerate(scenes) if plain(memory, scene, n * 0.25)]
    assert began[:2] == [0.0, 2.0]  # 2.25, 2.5 and 2.75 show something new, too
    assert min(np.diff(began)) >= CONFIG.min_seconds


def test_no_moment_is_longer_than_the_most() -> None:
    memory = EpisodicMemory(CONFIG, PLENTY)
    began = [n * 0.5 for n in range(31) if plain(memory, 0, n * 0.5)]
    assert began == [0.0, 5.0, 10.0, 15.0]


def test_a_pause_ends_a_moment() -> None:
    memory = EpisodicMemory(CONFIG, PLENTY)
    times = [0.0, 0.5, 5.5, 11.0]  # a pause of the longest allowed, and a longer one
    config_says = [True, False, True, True]  # 5.5: the moment is as long as it may be
    assert [plain(memory, 0, at) for at in times] == config_says
    patient = EpisodicMemory(EpisodicConfig(6, 5, max_seconds=60.0), PLENTY)
    assert [plain(patient, 0, at) for at in times] == [True, False, False, True]


def test_small_changes_are_no_surprise() -> None:
    """Below `min_distance` nothing ends a moment, however calm it was before."""
    memory = EpisodicMemory(CONFIG, PLENTY)
    for n in range(8):
        plain(memory, 0, n * 0.2)
    tilted = (axis(0, 6) + 0.3 * axis(1, 6))[None]  # cosine distance 0.04
    assert not memory.write(tilted, 2.0, embedding=axis(0, 5)).boundary
    tilted = (axis(0, 6) + 0.8 * axis(1, 6))[None]  # 0.22
    assert memory.write(tilted, 2.2, embedding=axis(0, 5)).boundary


def test_restless_scenes_raise_the_bar() -> None:
    """The same change is a surprise after calm, and none where all frames differ as much."""

    def last_is_boundary(swing: float) -> bool:
        memory = EpisodicMemory(EpisodicConfig(6, 5, min_seconds=2.0, max_seconds=100), PLENTY)
        for n in range(20):
            tokens = (axis(0, 6) + (-1) ** n * swing * axis(1, 6))[None]
            memory.write(tokens, n * 0.1, embedding=axis(0, 5))
        tokens = (axis(0, 6) + 0.8 * axis(1, 6))[None]
        return memory.write(tokens, 2.5, embedding=axis(0, 5)).boundary

    assert last_is_boundary(0.0) and not last_is_boundary(0.8)


def test_a_moment_keeps_its_middle_frame() -> None:
    memory = EpisodicMemory(CONFIG, PLENTY)
    tilts = [0.9, 0.0, 0.0, 0.0, -0.9]
    for n, tilt in enumerate(tilts):
        tokens = (axis(0, 6) + tilt * axis(1, 6))[None]
        memory.write(tokens, n * 0.1, embedding=axis(n, 5), thumbnail=bytes([n]))
    snapshot = memory.snapshot()
    kept = snapshot.thumbnail(0)[0]
    assert kept in (1, 2, 3) and snapshot.column("peak").tolist() == [pytest.approx(kept * 0.1)]
    assert torch.equal(
        snapshot.column("tokens")[0, 0],
        (axis(0, 6) + tilts[kept] * axis(1, 6)).half(),
    )
    # The embedding is the mean of all, of unit length.
    assert torch.allclose(snapshot.column("embedding")[0].float(), torch.full((5,), 5**-0.5), 1e-3)


def test_the_open_moment_is_readable_and_costs_its_largest_size() -> None:
    memory = moments_apart(3)
    assert len(memory.segments) > 0 and sum(map(len, memory.segments)) == 2
    assert len(memory.snapshot()) == 3
    assert memory.nbytes == held(memory.snapshot()) - 3 + CONFIG.max_thumbnail


# --------------------------------------------------------------------------- merging


def test_bytes_are_what_is_held() -> None:
    memory = EpisodicMemory(CONFIG, 30_000)
    feed = TestEpisodicMemory()
    for number in range(400):
        memory.write(**feed.observation(number))
        closed = sum(segment.nbytes for segment in memory.segments)
        assert memory.nbytes == closed + CONFIG.row_bytes + CONFIG.max_thumbnail
        assert held(memory.snapshot()) <= memory.nbytes <= 30_000


def test_frames_are_conserved_and_spans_cover_all_times() -> None:
    memory = EpisodicMemory(CONFIG, 12_000)
    feed = TestEpisodicMemory()
    merged = dropped = 0
    for number in range(500):
        report = memory.write(**feed.observation(number))
        merged, dropped = merged + report.merged, dropped + report.dropped
        if number % 50 == 49:
            snapshot = memory.snapshot()
            assert int(snapshot.column("frames").sum()) == number + 1
            start, end = snapshot.column("start"), snapshot.column("end")
            assert memory.span == (start[0], end[-1]) == (100.0, feed.observation(number)["time"])
            assert bool((start <= end).all()) and bool((end[:-1] < start[1:]).all())
            peak = snapshot.column("peak")
            assert bool((start <= peak).all()) and bool((peak <= end).all())
            written = [feed.observation(n)["time"] for n in range(number + 1)]
            covered = sum(
                bool(((start <= at) & (at <= end)).any())
                for at in torch.tensor(written, dtype=torch.float64)
            )
            assert covered == len(written)
    assert merged > 50 and dropped == 0


def test_the_most_alike_neighbours_merge_first() -> None:
    memory = EpisodicMemory(CONFIG, PLENTY)
    angles = [0.0, 1.0, 2.0, 2.1, 3.1, 4.1, 4.15, 5.1]  # two pairs of neighbours are alike
    for number, angle in enumerate(angles):
        embedding = torch.tensor([math.cos(angle), math.sin(angle), 0.0, 0.0, 0.0])
        memory.write(axis(number, 6)[None], 10.0 * number, embedding=embedding)
    memory.write(axis(0, 6)[None], 80.0, embedding=axis(4, 5))  # the open moment
    everything = memory.nbytes
    memory.set_budget(everything - 1)
    assert starts(memory) == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 70.0, 80.0]
    memory.set_budget(memory.nbytes - 1)
    assert starts(memory) == [0.0, 10.0, 20.0, 40.0, 50.0, 70.0, 80.0]
    snapshot = memory.snapshot()
    assert snapshot.column("end").tolist() == [0.0, 10.0, 30.0, 40.0, 60.0, 70.0, 80.0]
    assert snapshot.column("frames").tolist() == [1, 1, 2, 1, 2, 1, 1]
    assert snapshot.column("source").tolist() == [0, 1, 2, 4, 5, 7, 8]


def test_moments_far_apart_in_time_merge_last() -> None:
    """An hour in which nothing was seen weighs a tenth of a right angle's distance."""

    def merged_pair(pause: float) -> list[float]:
        memory = EpisodicMemory(CONFIG, PLENTY)
        for at, tilt in ((0.0, 0.0), (10.0, 0.4), (10.0 + pause, 0.4), (20.0 + pause, 2.0)):
            embedding = torch.tensor([math.cos(tilt), math.sin(tilt), 0.0, 0.0, 0.0])
            memory.write(axis(0, 6)[None], at, embedding=embedding)
        plain(memory, 4, 30.0 + pause)
        memory.set_budget(memory.nbytes - 1)
        return starts(memory)[:2]

    assert merged_pair(10.0) == [0.0, 10.0]  # the two that are equal became one
    assert merged_pair(3600.0) == [0.0, 3610.0]  # cos 0.4 is nearer than an hour


def test_merging_keeps_the_picture_of_the_longer() -> None:
    memory = EpisodicMemory(CONFIG, PLENTY)
    plain(memory, 0, 0.0, thumbnail=b"short", pose=torch.eye(4))
    for n in range(3):
        plain(memory, 0, 10.0 + n, thumbnail=b"long", pose=2 * torch.eye(4))
    plain(memory, 1, 30.0)
    memory.set_budget(memory.nbytes - 1)
    snapshot = memory.snapshot()
    assert len(snapshot) == 2 and snapshot.thumbnail(0) == b"long"
    assert torch.equal(snapshot.column("pose")[0], 2 * torch.eye(4))
    assert snapshot.column("peak")[0] >= 10.0


def test_labels_of_a_moment_keep_the_best_row_and_sum_the_scores() -> None:
    memory = EpisodicMemory(CONFIG, PLENTY)
    plain(memory, 0, 0.0, labels=labels((1, 0.25), (2, 0.5)))
    second = labels((1, 0.75), (3, 0.125))
    second["box"][0] = torch.tensor([0.0, 0.0, 0.25, 0.25])
    second["count"][0] = 7
    plain(memory, 0, 0.5, labels=second)
    plain(memory, 0, 0.9)
    snapshot = memory.snapshot()

    def row(name: str) -> list:
        return snapshot.column(name)[0].tolist()

    assert row("label") == [1, 2, 3, -1]  # best first
    assert row("label_max") == [0.75, 0.5, 0.125, 0.0]
    assert row("label_sum") == [1.0, 0.5, 0.125, 0.0]
    assert row("label_time")[:3] == [0.5, 0.0, 0.5]
    assert row("label_box")[0] == [0.0, 0.0, 0.25, 0.25]
    assert row("label_count") == [7, 3, 4, 0]


def test_labels_survive_the_merging_of_moments() -> None:
    memory = EpisodicMemory(CONFIG, PLENTY)
    plain(memory, 0, 0.0, labels=labels((1, 0.25), (2, 0.5)))
    plain(memory, 0, 10.0, labels=labels((1, 0.75), (3, 0.125)))
    plain(memory, 1, 20.0)
    memory.set_budget(memory.nbytes - 1)
    snapshot = memory.snapshot()
    assert len(snapshot) == 2
    assert snapshot.column("label")[0].tolist() == [1, 2, 3, -1]
    assert snapshot.column("label_max")[0].tolist() == [0.75, 0.5, 0.125, 0.0]
    assert snapshot.column("label_sum")[0].tolist() == [1.0, 0.5, 0.125, 0.0]
    assert snapshot.column("label_time")[0].tolist()[:3] == [10.0, 0.0, 10.0]


def test_the_best_labels_are_kept_where_there_are_too_many() -> None:
    rows = {
        "label": np.arange(9),
        "label_max": np.linspace(0.1, 0.9, 9),
        "label_sum": np.ones(9),
        "label_time": np.zeros(9),
        "label_box": np.zeros((9, 4)),
        "label_color": np.zeros((9, 3)),
        "label_count": np.ones(9),
    }
    assert merge_labels(CONFIG, rows)["label"].tolist() == [8, 7, 6, 5]


def test_colours_of_a_label_are_weighted_by_how_sure_it_was() -> None:
    memory = EpisodicMemory(CONFIG, PLENTY)
    for n, (score, color) in enumerate([(0.75, 0), (0.25, 1)]):
        seen = labels((1, score))
        seen["color"] = torch.eye(3)[color : color + 1]
        plain(memory, 0, n * 0.5, labels=seen)
    assert memory.snapshot().column("label_color")[0, 0].tolist() == [0.75, 0.25, 0.0]


def test_nothing_is_dropped_while_anything_can_be_merged() -> None:
    memory = moments_apart(60)
    one = CONFIG.row_bytes + CONFIG.max_thumbnail
    memory.set_budget(one + CONFIG.row_bytes + 3)  # the open moment, and one more
    assert memory.snapshot().column("frames").tolist() == [59, 1]
    memory.set_budget(one)
    assert memory.snapshot().column("frames").tolist() == [1]
    memory.set_budget(one - 1)
    assert len(memory.snapshot()) == 0 and memory.nbytes == 0 and memory.span is None
    plain(memory, 0, 600.0)
    assert len(memory.snapshot()) == 0


def test_what_is_merged_and_dropped_is_reported() -> None:
    memory = moments_apart(20)
    memory.set_budget(memory.nbytes)
    assert plain(memory, 20, 200.0)
    before = len(memory.snapshot())
    report = memory.write(axis(1, 6)[None], 210.0, embedding=axis(1, 5))
    assert report.merged > 0 and report.dropped == 0 and report.boundary
    assert len(memory.snapshot()) == before + 1 - report.merged
    nothing = EpisodicMemory(CONFIG, 0)
    assert nothing.write(axis(1, 6)[None], 0.0, embedding=axis(1, 5)).dropped == 1


def test_segments_are_few_and_never_change() -> None:
    memory = EpisodicMemory(CONFIG, 40_000)
    feed = TestEpisodicMemory()
    seen: dict[str, tuple] = {}
    for number in range(600):
        memory.write(**feed.observation(number))
        for segment in memory.segments:
            content = {name: column.clone() for name, column in segment.columns.items()}
            known = seen.setdefault(segment.name, (content, tuple(segment.thumbnails)))
            if number % 20 == 0:
                assert same(known[0], content) and known[1] == tuple(segment.thumbnails)
    assert len(seen) > 100
    rows = sum(map(len, memory.segments))
    assert len(memory.segments) < rows / 3


# --------------------------------------------------------------------------- reading


def test_a_query_finds_the_planted_moment() -> None:
    memory = EpisodicMemory(CONFIG, PLENTY)
    for number in range(40):
        plain(memory, 0 if number != 17 else 3, 10.0 * number)
    recall = memory.read(axis(3, 5), k=1)
    assert recall.times.tolist() == [170.0] and recall.sources.tolist() == [17]
    assert recall.scores.tolist() == pytest.approx([1.0], abs=1e-3)
    assert torch.equal(recall.tokens, axis(3, 6)[None].half())
    many = memory.read(axis(3, 5), k=6)
    assert 170.0 in many.times.tolist() and many.times.tolist() == sorted(many.times.tolist())
    assert int(many.scores.argmax()) == many.times.tolist().index(170.0)


def test_without_a_query_the_latest_are_read() -> None:
    memory = moments_apart(12)
    assert memory.read(k=3).times.tolist() == [90.0, 100.0, 110.0]
    assert len(memory.read(k=100).times) == 12


@pytest.mark.parametrize("query", [None, axis(0, 5)])
def test_as_of_a_time_nothing_later_is_read(query: Tensor | None) -> None:
    memory = moments_apart(12)
    assert memory.read(query, k=100, before=45.0).times.tolist() == [0.0, 10.0, 20.0, 30.0, 40.0]
    assert memory.read(query, before=-1.0).times.tolist() == []
    assert memory.read(query, k=100, before=40.0).times.tolist()[-1] == 40.0


def test_a_moment_gives_all_its_tokens() -> None:
    memory = EpisodicMemory(CONFIG, PLENTY)
    tokens, positions = torch.randn(3, 6).half(), torch.rand(3, 2)
    memory.write(tokens, 0.0, embedding=axis(0, 5), positions=positions)
    plain(memory, 1, 0.2)
    plain(memory, 1, 10.0)
    recall = memory.read()
    assert torch.equal(recall.tokens[:3], tokens)
    assert torch.equal(recall.positions[:3], positions.half().float())
    assert recall.weights.tolist() == [2, 2, 2, 1] and recall.sources.tolist() == [0, 0, 0, 2]


def test_a_query_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(5,\), not \(6,\)"):
        moments_apart(2).read(torch.ones(6))


def test_moments_are_numbered_over_all_segments() -> None:
    memory = EpisodicMemory(CONFIG, 40_000)
    for number in range(100):
        plain(memory, number, 10.0 * number, thumbnail=bytes([number]))
    snapshot = memory.snapshot()
    assert len(snapshot.segments) > 2
    for moment in range(len(snapshot)):
        segment, row = snapshot.locate(moment)
        assert segment.columns["start"][row] == snapshot.column("start")[moment]
        assert snapshot.thumbnail(moment)[0] * 10.0 == snapshot.column("peak")[moment]
    for outside in (-1, len(snapshot)):
        with pytest.raises(IndexError, match=f"{len(snapshot)} moments"):
            snapshot.locate(outside)


def test_columns_of_an_empty_snapshot_have_their_shape() -> None:
    snapshot = EpisodicMemory(CONFIG, PLENTY).snapshot()
    for name, (dtype, shape) in CONFIG.columns().items():
        assert snapshot.column(name).dtype == dtype and snapshot.column(name).shape == (0, *shape)


def test_all_columns_of_a_snapshot_stay() -> None:
    memory = moments_apart(50, budget=30_000)
    snapshot = memory.snapshot()
    before = {name: snapshot.column(name).clone() for name in CONFIG.columns()}
    pictures = [snapshot.thumbnail(moment) for moment in range(len(snapshot))]
    plain(memory, 49, 490.5)  # the open moment goes on
    for number in range(50, 250):
        plain(memory, number, 10.0 * number)
    memory.forget(-math.inf, math.inf)
    assert same(before, {name: snapshot.column(name) for name in CONFIG.columns()})
    assert pictures == [snapshot.thumbnail(moment) for moment in range(len(snapshot))]


# --------------------------------------------------------------------------- forgetting


@pytest.mark.parametrize("budget", [PLENTY, 30_000])
def test_forgetting_takes_every_moment_that_touches_the_span(budget: int) -> None:
    memory = moments_apart(60, budget)
    snapshot = memory.snapshot()
    start, end = snapshot.column("start"), snapshot.column("end")
    touched = (start <= 330.0) & (end >= 205.0)
    assert memory.forget(205.0, 330.0) == int(touched.sum()) > 5
    after = memory.snapshot()
    assert torch.equal(after.column("start"), start[~touched])
    assert torch.equal(after.column("end"), end[~touched])
    left = [snapshot.thumbnail(m) for m in range(len(snapshot)) if not touched[m]]
    assert [after.thumbnail(m) for m in range(len(after))] == left
    assert memory.nbytes == held(after) - 3 + CONFIG.max_thumbnail
    assert memory.forget(205.0, 330.0) == 0
    plain(memory, 0, 600.0)
    assert memory.snapshot().column("start")[-1] == 600.0


def test_the_open_moment_can_be_forgotten() -> None:
    memory = moments_apart(3)
    assert memory.forget(20.0, 20.0) == 1 and starts(memory) == [0.0, 10.0]
    assert plain(memory, 2, 20.1)  # a new moment, and time still does not go back
    with pytest.raises(ValueError, match="time went backwards"):
        plain(memory, 2, 19.0)
    assert memory.forget(-math.inf, math.inf) == 3
    assert memory.nbytes == 0 and memory.span is None and memory.oldest_end == math.inf


def test_what_was_forgotten_does_not_come_back_with_the_state() -> None:
    memory = moments_apart(20)
    memory.forget(50.0, 80.0)
    memory.forget(190.0, 190.0)
    again = EpisodicMemory(CONFIG, PLENTY)
    again.load_state_dict(copied(memory.state_dict()))
    assert starts(again) == starts(memory) and len(starts(again)) == 15


def test_a_smaller_budget_holds_at_once_and_a_larger_one_is_used() -> None:
    memory = moments_apart(60)
    for budget in (20_000, 5_000, 800):
        memory.set_budget(budget)
        assert 0 < memory.nbytes <= budget == memory.budget.bytes
    assert int(memory.snapshot().column("frames").sum()) == 60
    memory.set_budget("1MB")
    for number in range(60, 90):
        plain(memory, number, 10.0 * number)
    assert len(memory.snapshot()) >= 30


# --------------------------------------------------------------------------- restoring


def test_segments_and_working_state_are_all_there_is() -> None:
    feed = TestEpisodicMemory()
    memory = feed.write(feed.make(feed.small), range(130))
    again = feed.make(feed.small)
    again.restore(memory.segments, copied(memory.working_state()))
    assert same(again.state_dict(), memory.state_dict())
    assert same(recalled(again.read(k=99)), recalled(memory.read(k=99)))
    feed.write(memory, range(130, 160)), feed.write(again, range(130, 160))
    assert same(again.state_dict(), memory.state_dict())


def test_a_restored_memory_keeps_its_own_budget() -> None:
    state = moments_apart(60).state_dict()
    smaller = EpisodicMemory(CONFIG, 5_000)
    smaller.load_state_dict(state)
    assert 0 < smaller.nbytes <= 5_000
    assert int(smaller.snapshot().column("frames").sum()) == 60


def test_without_an_embedding_the_mean_token_stands_in() -> None:
    memory = EpisodicMemory(EpisodicConfig(token_dim=3, embedding_dim=3), PLENTY)
    memory.write(torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 2.0]]), 0.0)
    expected = torch.tensor([0.5**0.5, 0.0, 0.5**0.5])
    assert torch.allclose(memory.snapshot().column("embedding")[0].float(), expected, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_type_is_taken(dtype: torch.dtype) -> None:
    memory = EpisodicMemory(CONFIG, PLENTY)
    memory.write(
        torch.ones(1, 6, dtype=dtype),
        0.0,
        embedding=torch.ones(5, dtype=dtype),
        positions=torch.ones(1, 2, dtype=dtype),
        pose=torch.eye(4, dtype=dtype),
    )
    assert torch.equal(memory.read().tokens, torch.ones(1, 6).half())
