"""Banks hold what policies keep at equal bytes, the reader reads them, the table tells failures."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def frames(recall):
    data = recall.episodes.generate(recall.tasks.FAMILIES["find_hidden"], 12, seed=1, clip=64)
    return recall.train.Frames(data, torch.device("cpu"))


def test_every_policy_holds_the_same_bytes_and_what_it_should(recall, frames):
    numbers, delays = np.arange(6), np.full(6, 32)
    banks = {name: frames.fill(name, numbers, delays) for name in recall.policies.POLICIES}
    assert len({bank.nbytes for name, bank in banks.items() if name != "last frame"}) == 1
    for i in numbers:
        timeline, cue = frames.data.timeline(i, 32)
        assert banks["last frame"].shots[i].tolist() == [timeline[-1]]
        assert banks["FIFO"].shots[i].tolist() == timeline[-4:].tolist()
        assert banks["first + last"].shots[i].tolist() == [timeline[0], *timeline[-3:]]
        held = banks["novelty"].shots[i]
        assert np.isin(held[held >= 0], timeline).all() and np.isin(held, timeline[cue]).any()
    assert banks["novelty"].cue == banks["fine novelty"].cue == 1.0 and banks["FIFO"].cue == 0.0
    every = frames.fill(recall.policies.ALL_FRAMES, numbers, delays)
    for i in numbers:
        timeline, _ = frames.data.timeline(i, 32)
        assert every.shots[i][: len(timeline)].tolist() == timeline.tolist()


def test_what_the_reader_is_given_is_what_the_memory_holds(recall, frames):
    data, policies = frames.data, recall.policies
    timeline, _ = data.timeline(3, 8)
    memory = policies.SpatialMemory("1MB", policies.config_for(data, "novelty"))
    policies.feed(memory, data, frames.tokens_cpu, timeline)
    for view in memory.snapshot().views():
        frame = timeline[view.source]
        assert torch.equal(view.tokens, frames.tokens[frame])
        assert torch.equal(view.positions, frames.positions[frame])
    picture = frames.tokens[5].view(8, 8, 4, 4, 3).transpose(1, 2).reshape(32, 32, 3)
    assert torch.equal((picture.float() * 255).round().byte(), torch.from_numpy(data.pictures[5]))


@pytest.mark.parametrize("policy", ["last frame", "FIFO", "first + last", "stride", "reservoir"])
def test_a_policy_that_looks_at_nothing_keeps_the_same_frames_of_any_episode(
    recall, frames, policy
):
    """So working it out once for each length is the same as feeding every episode."""
    data, policies = frames.data, recall.policies
    assert policy in policies.BLIND
    numbers = np.arange(12)
    bank = frames.fill(policy, numbers, np.full(12, 8), seed=1)
    for i in numbers:
        timeline, _ = data.timeline(i, 8)
        config = policies.config_for(data, policy, policies.DRAWS + int(i) % policies.DRAWS)
        memory = policies.SpatialMemory(4 * 10_400, config)
        policies.feed(memory, data, frames.tokens_cpu, timeline)
        kept = timeline[[view.source for view in memory.snapshot().views()]]
        held = bank.shots[i]
        assert held[held >= 0].tolist() == kept.tolist()


def test_foreign_memory_is_never_ones_own(recall, frames):
    bank = frames.fill("FIFO", np.arange(12), np.full(12, 8))
    foreign = bank.foreign(0)
    assert sorted(map(tuple, foreign.shots.tolist())) == sorted(map(tuple, bank.shots.tolist()))
    assert (foreign.shots != bank.shots).any(1).all()


@pytest.fixture(scope="module")
def reader(recall):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return recall.model.Reader(9).eval()


def ask(reader, tokens, positions, held=None, query=0):
    held = torch.ones(tokens.shape[:2], dtype=torch.bool) if held is None else held
    with torch.no_grad():
        return reader(tokens, positions, held, torch.full((len(tokens),), query)).logits


def test_a_view_that_is_not_held_is_not_read(reader):
    draw = torch.Generator().manual_seed(1)
    tokens = torch.rand(2, 5, 64, 48, generator=draw)
    positions = torch.rand(2, 5, 64, 3, generator=draw) - 0.5
    held = torch.tensor([[True, True, True, False, False]] * 2)
    short = ask(reader, tokens[:, :3], positions[:, :3])
    torch.testing.assert_close(ask(reader, tokens, positions, held), short, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ask(reader, tokens, positions), short, atol=1e-3)


def test_heads_prefer_the_newest_or_the_oldest_view_that_matters(recall, reader):
    """With gates wide open, only the outermost views are read."""
    draw = torch.Generator().manual_seed(2)
    tokens = torch.rand(1, 4, 64, 48, generator=draw)
    positions = torch.rand(1, 4, 64, 3, generator=draw) - 0.5
    closed = reader.doubt.detach().clone()
    try:
        reader.doubt.data.fill_(30.0)
        before = ask(reader, tokens, positions)
        tokens[:, 1:3] = torch.rand(1, 2, 64, 48, generator=draw)
        torch.testing.assert_close(ask(reader, tokens, positions), before, atol=1e-6, rtol=0)
        for end in (0, 3):
            moved = positions.clone()
            moved[:, end] = 0.1
            assert not torch.allclose(ask(reader, tokens, moved), before, atol=1e-3)
    finally:
        reader.doubt.data.copy_(closed)


def test_the_value_of_a_cell_is_where_it_is(reader):
    """Cells that change places in the picture but not in the world read the same, but for edges."""
    positions = torch.zeros(1, 1, 64, 3)
    positions[..., 0] = 0.2
    tokens = torch.full((1, 1, 64, 48), 0.5)
    here = ask(reader, tokens, positions)
    assert torch.equal(ask(reader, tokens, positions.flip(2)), here)
    positions[..., 0] = -0.2
    assert not torch.allclose(ask(reader, tokens, positions), here, atol=1e-3)


def test_the_loss_learns_a_place_only_where_there_is_one(recall):
    answer = recall.model.Answer(
        torch.zeros(2, 3, requires_grad=True),
        torch.zeros(2, 3, requires_grad=True),
        torch.zeros(2, requires_grad=True),
    )
    xyz = torch.tensor([[0.1, 0.2, 0.3], [float("nan")] * 3])
    loss = answer.loss(torch.tensor([0, 2]), xyz)
    loss.backward()
    assert loss.isfinite() and answer.xyz.grad.isfinite().all()
    assert (answer.xyz.grad[1] == 0).all() and (answer.xyz.grad[0] != 0).all()


# ---------------------------------------------------------------------- the table


def result(recall, name="find_hidden", **right):
    """A family's counts, 1000 questions each, chance where nothing else is said."""
    report, policies = recall.report, recall.policies
    chance = 1 / recall.tasks.FAMILIES[name].answers
    cells = {}
    for policy in (*policies.POLICIES, policies.GRU, policies.ALL_FRAMES):
        for delay in (0, 32, 128):
            hit = round(1000 * right.get(policy.replace(" ", "_"), chance))
            cell = report.Cell(
                n=1000, right=hit, foreign=round(1000 * chance), by_seed=[hit / 1000], writes=[1.0]
            )
            cells[f"{name}|{policy}|{delay}"] = asdict(cell)
    low = {"chance": chance, "majority": chance, "constant place": chance}
    return {"cells": cells, "floors": low, "family": name, "seed": 0, "twins": 9}


def test_a_good_table_has_nothing_to_own_up_to(recall):
    lines = recall.report.verdicts([result(recall, novelty=0.99, all_frames=1.0)])
    assert all(line.startswith("claim") and ": yes (0.990)" in line for line in lines)
    assert len(lines) == 3


@pytest.mark.parametrize("floor", ["last_frame", "FIFO", "majority", "constant place"])
def test_a_family_that_needs_no_memory_is_rejected(recall, floor):
    if floor in ("last_frame", "FIFO"):
        bad = result(recall, novelty=0.99, **{floor: 0.16})
    else:
        bad = result(recall, novelty=0.99)
        bad["floors"][floor] = 0.16
    lines = recall.report.verdicts([bad])
    assert [line for line in lines if line.startswith("REJECTED: find_hidden")]


def test_losses_failures_and_suspects_are_said(recall):
    told = "\n".join(recall.report.verdicts([result(recall, novelty=0.5, reservoir=0.8)]))
    assert "LOSES: find_hidden at delay 32: novelty 0.50, but reservoir 0.80" in told
    assert "FAILS: find_hidden" in told and "at least .95: NO (0.500)" in told
    bad = result(recall, "absent", novelty=0.95)
    bad["cells"]["absent|novelty|32"] |= {"gone": 100, "both": 40}
    assert "FAILS: absent: novelty says of 0.40" in "\n".join(recall.report.verdicts([bad]))
    bad = result(recall, novelty=0.99)
    bad["cells"]["find_hidden|novelty|32"]["foreign"] = 300
    assert "SUSPECT" in "\n".join(recall.report.verdicts([bad]))


def test_seeds_add_up_and_the_worst_floor_counts(recall):
    one, two = result(recall, novelty=0.9), result(recall, novelty=1.0)
    two["floors"]["majority"] = 0.13
    cells, worst = recall.report.merge([one, two])
    cell = cells["find_hidden", "novelty", 32]
    assert (cell.n, cell.right, cell.by_seed) == (2000, 1900, [0.9, 1.0])
    assert worst["find_hidden"]["majority"] == 0.13
    assert "0.950" in recall.report.report([one, two])


def test_the_interval_is_wilsons(recall):
    assert recall.report.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert recall.report.wilson(0, 0) == (0.0, 1.0)


def test_a_constant_place_is_found_where_answers_cluster(recall, frames):
    low = recall.run.floors(frames.data, range(9))
    assert low == pytest.approx({"chance": 1 / 9, "majority": 1 / 9, "constant place": 1 / 9})
    low = recall.run.floors(frames.data, [0, 0, 0, 1])
    assert low["majority"] == low["constant place"] == 0.75


# ---------------------------------------------------------------------- acting, and the whole


@pytest.mark.parametrize("name", ["put_back", "find_hidden"])
def test_the_gantry_does_what_the_answer_says_and_the_simulator_judges(recall, name):
    from vismem.heads.act import Target

    family = recall.tasks.FAMILIES[name]
    with recall.gantry.Gantry(family) as gantry:
        for i in range(3):
            content = family.draw([9, i], i * 2)
            right = family.answer_at(gantry.table, content.answer) + (0.015, -0.01, 0.0)
            wrong = family.answer_at(gantry.table, (content.answer + 1) % family.answers)
            assert recall.gantry.act(gantry, family, content, Target(tuple(right))) == (True, "")
            # Another cup has another thing under it, or none.
            assert recall.gantry.act(gantry, family, content, Target(tuple(wrong))) == (False, "")
            done, refused = recall.gantry.act(gantry, family, content, Target(tuple(right), 0.1))
            assert not done and "10.0 cm" in refused


def test_a_whole_small_run_prints_a_table_and_writes_its_counts(recall, tmp_path):
    run = recall.run
    short = run.Effort(episodes=18, epochs=1, gru_epochs=1)
    tiny = run.Settings(1, 1, short, {0: 9, 32: 9}, {32: 10}, acts=1, clip=40)
    results = [run.run_family(name, 0, tiny, "cpu") for name in ("put_back", "absent")]
    (tmp_path / "out.json").write_text(json.dumps(results))
    told = recall.report.report(json.loads((tmp_path / "out.json").read_text()))
    for text in ("put_back:", "absent:", "fine novelty", "GRU", "refusals", "gantry", "claim:"):
        assert text in told
    cell = results[0]["cells"]["put_back|novelty|32"]
    assert cell["n"] == 9 and cell["acts"] == 1 and cell["nbytes"] > 0
    assert results[1]["cells"]["absent|novelty|32"]["gone"] == 1
