"""What a retention benchmark measures must be so, on streams whose answer is known."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vismem.encoders.base import Encoding

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = ("retention", "scenes", "streams", "baselines", "banks", "curves")
D, E = 12, 6


@pytest.fixture(scope="module")
def bench():
    """The scripts, which import each other by name."""
    sys.path.insert(0, str(FOLDER))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    sys.path.remove(str(FOLDER))


class ColorEncoder:
    """Cells by their colours and edges, in place of a network."""

    identity = {"model": "colours"}

    def encode(self, images):
        weights = torch.randn(48, D, generator=torch.Generator().manual_seed(1))
        mixing = torch.randn(D, E, generator=torch.Generator().manual_seed(2))
        encodings = []
        for image in images:
            pixels = torch.from_numpy(image).float().permute(2, 0, 1)[None] / 64 - 2
            cells = F.adaptive_avg_pool2d(pixels, 16)[0].unfold(1, 4, 4).unfold(2, 4, 4)
            tokens = cells.permute(1, 2, 0, 3, 4).reshape(16, 48) @ weights
            embedding = F.normalize(tokens.mean(0) @ mixing, dim=0)
            encodings.append(Encoding(tokens.half(), torch.zeros(16, 2), embedding))
        return encodings


def scene(bench, number: int, spread: float = 0.1):
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randn(1, 16, D, generator=generator)
    tokens = tokens + spread * torch.randn(3, 16, D, generator=generator)
    embeddings = F.normalize(torch.randn(3, E, generator=generator), dim=1)
    return bench.scenes.Scene(f"{number}", None, tokens, embeddings)


@pytest.fixture(scope="module")
def script(bench):
    """Scenes 0 to 3 in turn, 4 to 15 as events, 16 to 19 never shown."""
    cast = [scene(bench, n) for n in range(20)]
    return bench.streams.Script("patrol", cast, [0, 1, 2, 3], range(4, 16), 3600.0, 10.0, 60.0)


@pytest.fixture(scope="module")
def stream(bench, script):
    return bench.streams.film(script, 0.05, seed=3)


# ---------------------------------------------------------------------------- baselines


def frames(count: int):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 16, D, generator=generator).half()


def held(policy) -> list[float]:
    return [entry.time for entry in policy.entries()]


def fill(policy, tokens):
    for number, frame in enumerate(tokens):
        policy.write(frame, float(number), torch.zeros(E))
    return policy


ROW = 16 * D * 2 + 8


def test_fifo_and_last_four_hold_the_newest(bench) -> None:
    b = bench.baselines
    assert held(fill(b.Fifo(6 * ROW, 4, D, 0), frames(20))) == [14, 15, 16, 17, 18, 19]
    assert held(fill(b.LastFour(6 * ROW, 4, D, 0), frames(20))) == [16, 17, 18, 19]
    assert held(fill(b.LastFour(2 * ROW, 4, D, 0), frames(20))) == [18, 19]


def test_uniform_doubles_its_stride(bench) -> None:
    uniform = bench.baselines.Uniform(4 * ROW, 4, D, 0)
    seen = []
    for number, frame in enumerate(frames(18)):
        uniform.write(frame, float(number), torch.zeros(E))
        seen.append(held(uniform))
    assert seen[3] == [0, 1, 2, 3] and seen[4] == [0, 2, 4] and seen[6] == [0, 2, 4, 6]
    assert seen[8] == [0, 4, 8] and seen[17] == [0, 8, 16]


def test_a_reservoir_is_a_fair_sample(bench) -> None:
    count = np.zeros(20)
    for seed in range(400):
        for when in held(fill(bench.baselines.Reservoir(5 * ROW, 4, D, seed), frames(20))):
            count[int(when)] += 1
    assert count.sum() == 5 * 400
    assert np.abs(count / 400 - 0.25).max() < 0.09  # four standard deviations


def test_adjacent_merge_joins_the_most_alike_by_weight(bench) -> None:
    directions = torch.eye(D)
    order = [0, 0, 0, 1, 2]
    tokens = torch.stack([directions[n].expand(16, D) for n in order]).half()
    merged = fill(bench.baselines.Adjacent(3 * ROW, 4, D, 0), tokens)
    assert held(merged) == [1, 3, 4] and merged.weights == [3, 1, 1]
    merged.write((directions[2] * 2).expand(16, D).half(), 5.0, torch.zeros(E))
    assert held(merged) == [1, 3, 4.5]
    assert torch.allclose(merged.entries()[2].tokens.float(), directions[2] * 1.5)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["Fifo", "LastFour", "Uniform", "Reservoir", "Adjacent"]),
    side=st.sampled_from([1, 2, 4]),
    budget=st.integers(0, 12 * ROW),
    count=st.integers(0, 40),
)
def test_baselines_keep_the_budget(bench, kind, side, budget, count) -> None:
    policy = getattr(bench.baselines, kind)(budget, side, D, 0)
    for number, frame in enumerate(frames(count)):
        policy.write(frame, float(number), torch.zeros(E))
        entries = policy.entries()
        assert policy.nbytes == len(entries) * (side * side * D * 2 + 8) <= budget
        assert len(entries) <= policy.slots
        assert all(tuple(entry.tokens.shape) == (side * side, D) for entry in entries)
    times = held(policy)
    assert len(times) == len(set(times)) and (times == sorted(times) or kind == "Reservoir")
    if policy.slots:
        assert len(times) >= min(count, policy.slots) // 2


def test_pooling_averages_cells(bench) -> None:
    grid = torch.arange(16.0).reshape(1, 16, 1).expand(2, 16, 3)
    assert bench.baselines.pool(grid, 4) is grid
    assert bench.baselines.pool(grid, 2)[1, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert bench.baselines.pool(grid, 1).tolist() == [[[7.5] * 3]] * 2


def test_search_is_best_first_within_its_tokens(bench) -> None:
    b = bench.baselines
    entries = [b.Entry(float(n), torch.eye(D)[n].expand(4, D).half()) for n in range(3)]
    asked = torch.stack([torch.eye(D)[1] + 0.5 * torch.eye(D)[2], torch.eye(D)[0]])[:, None]
    answers = b.search(entries, asked, 8)
    assert [entry.time for entry in answers[0]] == [1, 2]
    assert [entry.time for entry in answers[1]] == [0, 1]
    assert b.search(entries, asked, 3) == [[], []] == b.search([], asked, 8)


# ---------------------------------------------------------------------------- streams


def test_events_are_short_apart_and_spread_over_ages(bench) -> None:
    random = np.random.default_rng(0)
    planned = bench.streams.plan(86400.0, 27, random)
    assert all(0 <= t[-1] - t[0] <= 8 and np.allclose(np.diff(t), 2) for t in planned)
    ends, starts = [t[-1] for t in planned], [t[0] for t in planned]
    assert all(b - a > 4 for a, b in zip(ends, starts[1:], strict=False))
    bins = [bench.streams.age_bin(86400 - t[-1]) for t in planned]
    assert [bins.count(name) for _, name in bench.streams.AGES] == [1, 5, 7, 7, 7]
    assert [len(bench.streams.plan(86400.0, n, random)) for n in (0, 3, 6)] == [0, 3, 5]
    with pytest.raises(ValueError, match="do not fit"):
        bench.streams.plan(100.0, 60, random)


def test_an_event_is_shown_at_its_times_and_never_else(stream) -> None:
    assert (np.diff(stream.times) > 0).all() and len(stream.events) == 11  # shares of 12
    for event in stream.events:
        assert stream.times[stream.shown == event.scene].tolist() == event.times.tolist()
        others = stream.times[stream.shown != event.scene]
        assert np.abs(others[:, None] - event.times).min() >= 1
    background = stream.times[stream.shown < 4]
    assert (stream.shown[stream.shown < 4] == (background // 60).astype(int) % 4).all()
    assert stream.scenes == 4 + 11


def test_frames_lie_between_two_views(bench, script, stream) -> None:
    still = bench.streams.film(script, 0.0, seed=3)
    views = still.references[still.shown]
    pairs = torch.cdist(still.tokens.float().flatten(1)[:, None], views.flatten(2))[:, 0]
    apart = torch.cdist(views.flatten(2), views.flatten(2)).amax((1, 2))
    assert (pairs.min(1).values <= apart / 2 + 0.05).all()
    noise = (stream.tokens.float() - still.tokens.float()).square().mean().sqrt()
    assert float(noise) == pytest.approx(0.05, rel=0.05)
    assert torch.allclose(stream.embeddings.norm(dim=1), torch.ones(len(stream.times)))


def test_shuffling_keeps_frames_and_knows_where_events_went(bench, stream) -> None:
    other = bench.streams.shuffled(stream, 0)
    assert (other.times == stream.times).all() and (other.shown != stream.shown).any()
    row = int(np.flatnonzero(other.times == other.events[0].times[0])[0])
    assert other.shown[row] == other.events[0].scene
    sums = [s.tokens.double().sum((1, 2)).sort().values for s in (stream, other)]
    assert torch.equal(*sums)


# ---------------------------------------------------------------------------- the measure


def test_the_judge_knows_events_at_every_resolution(bench, stream) -> None:
    judge, pool = bench.retention.Judge(stream), bench.baselines.pool
    event, other = stream.events[0].scene, stream.events[1].scene
    entries = [
        bench.baselines.Entry(0.0, pool(stream.references[n, view], side))
        for side in (1, 4, 2)
        for n in (event, 0, other, 19)
        for view in (0, 2)
    ]
    expected = [n for n in (event, -1, other, -1) for _ in range(2)] * 3
    assert judge.scenes(entries).tolist() == expected
    assert judge.scenes([]).tolist() == []
    with pytest.raises(ValueError, match="square"):
        judge.scenes([bench.baselines.Entry(0.0, torch.zeros(6, D))])


def test_half_way_to_another_scene_is_too_far(bench, stream) -> None:
    judge = bench.retention.Judge(stream)
    event = stream.events[0].scene
    start = stream.references[event, 0]
    flat, reach = judge.views(4)
    away = torch.randn(16, D, generator=torch.Generator().manual_seed(9))
    away *= float(reach[event]) / away.norm()
    near, far = (bench.baselines.Entry(0.0, start + share * away) for share in (0.9, 1.1))
    # Away from every view: the first stays the nearest.
    assert torch.cdist((start + 1.1 * away).flatten()[None], flat).argmin() // 3 == event
    assert judge.scenes([near, far]).tolist() == [event, -1]
    others = torch.cat([flat[: event * 3], flat[event * 3 + 3 :]])
    own = flat[event * 3 : event * 3 + 3]
    assert float(reach[event]) == pytest.approx(float(torch.cdist(own, others).min()) / 2, rel=1e-4)


def test_a_time_is_true_within_a_step(bench) -> None:
    event = bench.streams.Event(7, np.array([100.0, 102.0]))
    times, shown = [98.9, 99.0, 103.0, 103.2, math.nan], [7, 7, 7, 7, 7]
    entries = [bench.baselines.Entry(t, torch.zeros(1, D)) for t in times]
    one = [
        bench.retention.is_timed([e], np.array([s]), event)
        for e, s in zip(entries, shown, strict=True)
    ]
    assert one == [False, True, True, False, False]
    assert not bench.retention.is_timed(entries, np.array([1, 2, -1, 3, 7]), event)


@pytest.fixture(scope="module")
def judges(bench, script, stream):
    """Two seeds that share a background and not an event."""
    more = [scene(bench, 100 + n) for n in range(12)]
    cast = [*script.scenes, *more]
    first = bench.streams.replace(script, scenes=cast)
    second = bench.streams.replace(script, scenes=cast, events=range(20, 32))
    films = [bench.streams.film(s, 0.05, n) for n, s in enumerate((first, second))]
    return [bench.retention.Judge(film) for film in films]


def test_everything_is_kept_by_all_frames_and_nothing_old_by_the_last(bench, judges) -> None:
    b, r = bench.baselines, bench.retention
    row = r.measure(judges, "all", 10**6, lambda seed: b.AllFrames(0, 4, D, seed))
    assert len(row.results) == 22
    assert all(x.kept and x.timed and x.found and x.cells == 16 for x in row.results)
    assert not any(x.wrong for x in row.results)
    assert row.scenes == 15 and row.frames == max(len(j.stream.times) for j in judges)
    row = r.measure(judges, "last", 64, lambda seed: b.LastFour(10**6, 2, D, seed))
    assert not any(x.kept or x.found for x in row.results if x.age > 60)
    assert {x.cells for x in row.results} <= {0, 4}
    assert row.slots == 4 and row.nbytes == 4 * (4 * D * 2 + 8)


def test_a_wrong_memory_is_caught_where_it_knows_the_event(bench, judges) -> None:
    row = bench.retention.measure(
        [judges[0], judges[0]], "same", 10**6, lambda seed: bench.baselines.AllFrames(0, 4, D, seed)
    )
    assert all(x.wrong for x in row.results)


def test_wilson(bench) -> None:
    assert bench.retention.wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-3)
    assert bench.retention.wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    assert bench.retention.wilson(0, 0) == (0.0, 1.0)


def made(bench, policy: str, kept: list[bool], slots: int, stream: str = "patrol"):
    ages = np.linspace(700, 3000, len(kept)).tolist()
    results = tuple(
        bench.retention.Result(age, k, 4 * k, k, k, False)
        for age, k in zip(ages, kept, strict=True)
    )
    return bench.retention.Row(stream, 256, policy, results, 1000, 30, 60, slots, 1, 0, 0.1)


def test_claims_are_computed(bench) -> None:
    r = bench.retention
    good, bad = [True] * 40, [True] * 20 + [False] * 20
    rows = [
        made(bench, "flash", good, 30),
        made(bench, "star", bad, 30),
        made(bench, "pyramid", bad, 29),
        made(bench, "fifo 1x1", bad, 30),
        made(bench, "published star", [False] * 40, 30),
        made(bench, r.UNBOUNDED, good, 30),
    ]
    lines = list(r.claim_kept(rows))
    assert "flash, a slot for each scene: holds in 1 rows; 10-60 min 40/40 (>= 91 %)" in lines
    assert any(x.startswith("star, a slot for each scene: DOES NOT HOLD") for x in lines)
    assert any(x.startswith("pyramid, a slot for each scene: cannot be tested") for x in lines)
    assert any(x.startswith("flash, a slot for each visit: cannot be tested") for x in lines)
    flash, star, _ = r.claim_better(rows)
    assert flash.startswith("patrol, flash: 256 better +50 [") and "(fifo 1x1)" in flash
    assert star.startswith("patrol, star: 256 equal +0 [+0, +0]")
    worse = list(r.claim_better([made(bench, "flash", bad, 9), made(bench, "fifo 1x1", good, 9)]))
    assert worse[0].startswith("patrol, flash: 256 worse -50 [")


def test_curves_are_drawn_and_broken(bench) -> None:
    c = bench.curves
    values = {"thick": [1.0, 0.5, 0.0, math.nan], "thin": [0.5, math.nan, 0.25, math.nan]}
    styles = {"thick": c.Style("#111111", 3.0), "thin": c.Style("#222222", 1.0, "5 3")}
    text = c.draw({"a & b": values, "c": {"thin": [0.0, 1.0, 1.0, 1.0]}}, "wxyz", "title", styles)
    root = ElementTree.fromstring(text)
    paths = [p for p in root.iter("{http://www.w3.org/2000/svg}path") if not p.get("class")]
    assert [p.get("stroke") for p in paths] == ["#111111", "#222222", "#222222"]  # thin is above
    thick, thin, other = (p.get("d") for p in paths)
    assert (thin.count("M"), thin.count("L"), thick.count("L"), other.count("L")) == (2, 0, 2, 3)
    left, top = (float(x) for x in thick[1:].split("L")[0].split())
    assert left == c.LEFT and f"L{left + c.WIDTH / 2:.1f} {top + c.HEIGHT / 2:.1f}" in thick
    assert thick.endswith(f"L{left + c.WIDTH:.1f} {top + c.HEIGHT:.1f}")  # no room for what is not
    assert other.startswith(f"M{left + c.WIDTH + c.GAP_X:.1f} {top + c.HEIGHT:.1f}")
    assert [p.get("stroke-dasharray") for p in paths] == [None, "5 3", "5 3"]


# ---------------------------------------------------------------------------- all of it


@pytest.fixture
def photographs(bench, monkeypatch: pytest.MonkeyPatch):
    """Forty pictures of large patches, and an encoder that takes no time."""
    random = np.random.default_rng(0)
    pictures = [
        np.kron(random.integers(0, 256, (6, 6, 3)), np.ones((40, 40, 1))).astype(np.uint8)
        for _ in range(40)
    ]
    pairs = [(f"{n}.png", picture) for n, picture in enumerate(pictures)]
    monkeypatch.setattr(bench.scenes, "photographs", lambda folder: iter(pairs))
    return pictures


def test_views_are_encoded_once(bench, tmp_path: Path, photographs) -> None:
    calls = []

    class Counting(ColorEncoder):
        def encode(self, images):
            calls.append(len(images))
            return super().encode(images)

    studio = bench.scenes.Studio(Counting(), 3, tmp_path)
    panned = bench.scenes.panned
    first = studio.scene("a", photographs[0], panned)
    again = bench.scenes.Studio(Counting(), 3, tmp_path).scene("a", photographs[0], panned)
    assert calls == [3] and torch.equal(first.tokens, again.tokens)
    assert tuple(first.tokens.shape) == (3, 16, D) and first.radius > 0
    studio.scene("b", photographs[1], panned)
    assert calls == [3, 3]
    assert not bench.scenes.apart(first, [first])


def test_scenes_are_apart_only_if_twice_their_radius_is(bench) -> None:
    def at(place: float):
        views = place + torch.tensor([0.0, 1.0, -1.0])[:, None, None]
        return bench.scenes.Scene("", None, views, torch.zeros(3, E))

    assert at(0).radius == 1
    # The nearest views are two nearer than the middles.
    assert bench.scenes.apart(at(4.2), [at(0)]) and not bench.scenes.apart(at(3.9), [at(0)])
    assert not bench.scenes.apart(at(3.9), [at(-9), at(0), at(19)])


def test_published_flash_gives_frames_back_as_they_came(bench) -> None:
    policy = fill(bench.banks.Flash(256, D, 0), frames(3))
    details, synopses = policy.entries()[:3], policy.entries()[3:]
    for frame, detail, synopsis in zip(frames(3), details, synopses, strict=True):
        assert torch.equal(detail.tokens, frame.float())
        pooled = bench.baselines.pool(frame.float(), 2)
        assert torch.allclose(synopsis.tokens.float(), pooled, atol=1e-2)


def test_library_takes_no_scene_twice(bench, tmp_path: Path, photographs, monkeypatch) -> None:
    pairs = [("a", photographs[0]), ("copy", photographs[0]), ("b", photographs[1])]
    monkeypatch.setattr(bench.scenes, "photographs", lambda folder: iter(pairs))
    studio = bench.scenes.Studio(ColorEncoder(), 3, tmp_path)
    assert [s.name for s in bench.scenes.library(studio, 9)] == ["a centre", "b centre"]
    assert len(bench.scenes.library(studio, 1)) == 1


def test_published_banks_run_at_their_sizes_only(bench) -> None:
    r = bench.retention
    for size, there in ((64, True), (128, False)):
        together = r.entrants(r.Settings(published_sizes=(64,)), size, D, E)
        names = [name for entrants in together for name in entrants]
        assert (set(r.PUBLISHED) <= set(names)) == there
        for entrants in together:
            for name, make in entrants.items():
                policy = fill(make(0), frames(6))
                assert policy.slots and policy.nbytes <= size * D * 2, name


def test_the_whole_table(bench, tmp_path: Path, photographs, monkeypatch, capsys) -> None:
    r = bench.retention
    quick = r.Settings(
        seeds=2, sizes=(128,), published_sizes=(128,), views=3, scenes=30, background=8,
        events=6, period=90.0, day_period=3600.0,
    )  # fmt: skip
    monkeypatch.setattr(r, "QUICK", quick)
    monkeypatch.setattr(r, "EmbeddedEncoder", ColorEncoder)
    monkeypatch.setattr(r, "Studio", lambda e, views: bench.scenes.Studio(e, views, tmp_path))
    plot, data = tmp_path / "plot.svg", tmp_path / "rows.json"
    r.main(["--quick", "--plot", str(plot), "--json", str(data)])
    text = capsys.readouterr().out
    rows = json.loads(data.read_text())
    kinds = ["patrol, shuffled" if k == "shuffled" else k for k in bench.streams.KINDS]
    assert list(dict.fromkeys(row["stream"] for row in rows)) == kinds
    banks = [*r.OURS, *r.VARIANTS, *r.PUBLISHED]
    for kind in kinds:
        names = [x["policy"] for x in rows if (x["stream"], x["size"]) == (kind, 128)]
        assert names[:-5] == banks
        assert [n.rsplit(" ", 1)[0] for n in names[-5:]] == list(r.BASELINES)
        (all_,) = [x for x in rows if x["stream"] == kind and x["policy"] == r.UNBOUNDED]
        assert all(x["kept"] for x in all_["results"]), kind
    for row in rows:
        if row["policy"] != r.UNBOUNDED:
            assert row["nbytes"] <= row["size"] * D * 2, row["policy"]
        if row["policy"] == "published star":
            assert not any(x["timed"] for x in row["results"]) and row["beside"]
    ElementTree.parse(plot)
    lines = text.splitlines()
    assert sum("kept, %" in x for x in lines) == len(kinds)
    assert sum(x.startswith("  ") and " a slot for each " in x for x in lines) == 6
    assert sum(x.startswith("  ") and "(" in x and ", flash: " in x for x in lines) == len(kinds)
