"""A visual memory that watches for what moves: asked, sealed, replayed, forgotten, bounded."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from moving_film import carried, film
from tiny_memory import crash, state_of

import vismem as vm
from vismem.cli import main
from vismem.frame import Frame
from vismem.stream_memory import MOST_MOVE_BYTES, MOVE_SHARE
from vismem.streams.rgbd import write_rgbd


def written(memory: vm.VisualMemory, frames) -> vm.VisualMemory:
    for frame in frames:
        assert memory.write(frame)
    memory.flush()
    return memory


def moved(memory: vm.VisualMemory) -> dict[str, dict[str, bytes]]:
    return {
        name: {k: v.numpy().tobytes() for k, v in stream.moves.state_dict().items()}
        for name, stream in memory._streams.items()
        if stream.moves is not None
    }


def test_what_moved_is_told_with_its_time_and_place(make) -> None:
    memory = written(make(), film())
    answer = memory.ask("what moved?")
    assert not answer.abstained
    (one,) = answer.movements
    assert 3.0 <= one.start <= 3.7 and one.end == pytest.approx(7.8)
    assert memory.ask("did anything move before 0:02?").abstained
    assert not memory.ask("did anything move after 0:04?").abstained
    assert memory.ask("what moved on the left?").movements
    assert memory.movements()["door"].movements()[0].first.box[0] < 0.3
    assert memory.ask("cat").movements is None  # asked for no movement


def test_a_still_scene_abstains_and_one_that_was_not_watched_says_so(make) -> None:
    still = written(make(), film(begin=np.inf)).ask("did anything move?")
    assert still.abstained and "not known" not in still.text
    for memory in (make(motion=False), make()):
        frames = list(film())[: 3 if memory.config["motion"] else None]  # too few to tell
        blind = written(memory, frames).ask("did anything move?")
        assert blind.abstained and "not known" in blind.text


def test_with_depth_it_has_places_in_the_world(make) -> None:
    memory = written(make("2MB"), carried())
    movements = memory.movements()["camera"].movements()
    longest = max(movements, key=lambda one: one.end - one.start)
    x = longest.last.position[0] - longest.first.position[0]
    assert x == pytest.approx(0.3 * (longest.end - longest.start), abs=0.15)
    answer = memory.ask("what moved?")
    assert not answer.abstained and " m" in answer.text


@pytest.mark.usefixtures("seal_often")
def test_a_crash_loses_no_movement(make, path: Path) -> None:
    frames = list(film())
    memory = written(make(path=path), frames[:33])
    before = moved(memory), state_of(memory), memory.nbytes
    crash(memory)
    again = vm.VisualMemory.open(path, encoder=memory.encoder)
    assert (moved(again), state_of(again), again.nbytes) == before and before[0]
    assert moved(written(make(), frames[:33])) == before[0]
    # The background is learned anew, so that for a second nothing is told; then it goes on.
    written(again, (Frame(f.image, f.timestamp + 10, "door") for f in film()))
    assert len(again.movements()["door"].movements()) > 1
    again.close()


def test_sealed_and_opened_it_is_the_same(make, path: Path) -> None:
    memory = written(make(), film())
    before = moved(memory), memory.nbytes
    memory.save(path)
    memory.close()
    again = vm.VisualMemory.open(path, read_only=True, encoder=memory.encoder)
    assert (moved(again), again.nbytes) == before
    assert not again.ask("what moved?").abstained
    again.close()


def test_forgetting_a_span_forgets_its_movements(make, path: Path) -> None:
    memory = written(make(path=path), film())
    memory.forget(0, 10)
    assert memory.ask("what moved?").abstained
    memory.close()
    again = vm.VisualMemory.open(path, encoder=memory.encoder)
    assert again.ask("what moved?").abstained
    again.close()


def test_what_is_too_old_goes(make) -> None:
    memory = written(make(retain=5.0), film())
    assert memory.movements()["door"].movements()
    written(memory, (Frame(f.image, f.timestamp + 20, "door") for f in film(6.0, begin=np.inf)))
    assert not memory.movements()["door"].movements()


@pytest.mark.parametrize("budget", [0, 1, 3000, 50_000])
def test_movements_are_within_the_budget(make, budget: int) -> None:
    memory = make(budget)
    for frame in film():
        memory.write(frame)
        memory.flush()
        assert memory.nbytes <= budget
    moves = memory._streams["door"].moves
    assert moves.budget.bytes == min(int(MOVE_SHARE * budget), MOST_MOVE_BYTES)


def test_nothing_is_set_aside_before_something_moved(make) -> None:
    memory = written(make(), film(begin=np.inf))
    stream = memory._streams["door"]
    assert stream.moves.budget.bytes == 0 and stream.moments.budget.bytes == 1_000_000
    written(memory, (Frame(f.image, f.timestamp + 8, "door") for f in film()))
    assert stream.moves.budget.bytes + stream.moments.budget.bytes == 1_000_000
    assert stream.moves.budget.bytes == int(MOVE_SHARE * 1_000_000)


@pytest.mark.parametrize("policy", ["moments", "flash"])
def test_another_budget_or_policy_keeps_the_movements(make, policy: str) -> None:
    memory = written(make(), film())
    before = memory.movements()["door"].movements()
    memory.change(budget="500kB", policy=policy)
    after = memory.movements()["door"].movements()
    assert [(m.id, m.start, m.end) for m in after] == [(m.id, m.start, m.end) for m in before]
    assert memory._streams["door"].moves.budget.bytes <= 500_000 * MOVE_SHARE
    written(memory, (Frame(f.image, f.timestamp + 8, "door") for f in film(2.0)))


def test_a_memory_of_before_there_was_motion_goes_on_without(make, path: Path) -> None:
    memory = written(make(path=path, motion=False), islice(film(), 10))
    del memory.config["motion"]
    memory.close()
    again = vm.VisualMemory.open(path, encoder=memory.encoder)
    written(again, (Frame(f.image, f.timestamp + 2, "door") for f in film()))
    assert not again.movements() and "not known" in again.ask("what moved?").text
    again.close()


def test_movements_that_the_memory_refuses_are_not_logged(make, path: Path, monkeypatch) -> None:
    memory = written(make(path=path), islice(film(), 20))
    step = memory._watch.step

    def broken(frame):
        found = step(frame)
        if found is not None and len(found):
            found.boxes[:] = torch.nan
        return found

    monkeypatch.setattr(memory._watch, "step", broken)
    for frame in islice(film(), 20, 24):
        memory.write(frame)
    memory.flush()
    assert memory.stats.refused == 4
    crash(memory)
    again = vm.VisualMemory.open(path, encoder=memory.encoder)
    assert again._streams.frames == 20
    again.close()


def test_the_command_line_asks_what_moved(tmp_path: Path, capsys) -> None:
    write_rgbd(tmp_path / "table", carried(8.0))
    out = str(tmp_path / "table.mem")
    assert main(["run", str(tmp_path / "table"), "--out", out, "--fps", "5"]) == 0
    capsys.readouterr()
    assert main(["ask", out, "what moved?", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["movements"] and not told["abstained"]
    assert main(["inspect", out, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    count = len(vm.VisualMemory.open(out, read_only=True).movements()["table"].movements())
    assert facts["table, motion"].startswith(f"{count} movements, 0:0") and count > 0
    assert facts["things"].endswith("with a place in the world")
    assert main(["run", str(tmp_path / "table"), "--out", out, "--resume", "--no-motion"]) == 2
    assert "motion" in capsys.readouterr().err
