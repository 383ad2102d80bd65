"""A visual memory that is given depth and poses: things with places, sealed and forgotten."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ray_scene import Thing, World, looking_at
from tiny_memory import crash, fill, state_of

import vismem as vm
from vismem import observation
from vismem.cli import main
from vismem.encoders.objects import find_objects
from vismem.frame import Frame
from vismem.memory.volumes import OCCLUDED
from vismem.streams.rgbd import write_rgbd
from vismem.world import MOST_BYTES, OBJECT_SHARE

RED = Thing("box", "red", (0, 0, 0.03), (0.06,) * 3)
BALL = Thing("ball", "green", (-0.2, 0.1, 0.035), (0.07,) * 3)
WORLD = World((RED, BALL))
LID = Thing("box", "white", (0, 0, 0.06), (0.12,) * 3)


def view(number: int, world: World = WORLD, **other) -> Frame:
    pose = looking_at((0.3 * np.sin(number), -0.7, 0.6), (-0.05, 0, 0))
    frame = world.render(pose, 0.5 * number, size=(160, 120), focal=150)
    return replace(frame, **other)


def written(memory: vm.VisualMemory, numbers: range, **other) -> vm.VisualMemory:
    for number in numbers:
        assert memory.write(view(number, **other))
    memory.flush()
    return memory


def things(memory: vm.VisualMemory) -> dict:
    return {name: value.numpy().tobytes() for name, value in memory._streams.world.state().items()}


def test_where_things_are(make) -> None:
    memory = written(make(), range(5))
    for question, thing in {"red block": RED, "green ball": BALL}.items():
        answer = memory.ask(f"where is the {question}?")
        (place,) = answer.places
        assert place.position == pytest.approx(thing.at, abs=0.01) and place.state == "there"
        assert question in answer.text.lower() and not answer.abstained
    assert memory.ask("where was the blue block?").abstained
    assert memory.ask("red?").places is None  # asked for no place


def test_hidden_by_a_lid(make) -> None:
    memory = written(make(), range(5))
    written(memory, range(5, 9), world=World((LID, BALL)))
    (place,) = memory.ask("where was the red block?").places
    assert place.position == pytest.approx(RED.at, abs=0.01) and place.state == "occluded"
    assert memory._streams.world.snapshot().objects()[0].told in (0, OCCLUDED)


def test_a_crash_loses_nothing(make, path: Path) -> None:
    memory = written(make(path=path), range(3))
    memory.save()
    written(memory, range(3, 7))
    before = things(memory), state_of(memory)
    crash(memory)
    again = vm.VisualMemory.open(path, encoder=memory.encoder)
    assert (things(again), state_of(again)) == before
    whole = written(make(), range(7))
    assert things(whole) == before[0]
    again.close()


def test_what_the_world_refuses_is_not_logged(make, path: Path, monkeypatch) -> None:
    memory = written(make(path=path), range(2))
    before = things(memory), state_of(memory)

    def spoilt(frame: Frame, labels: object) -> object:
        found = find_objects(frame, labels)
        return replace(found, position=found.position * torch.nan)

    monkeypatch.setattr(observation, "find_objects", spoilt)
    memory.write(view(2))
    memory.flush()
    assert memory.stats.refused == 1 and (things(memory), state_of(memory)) == before
    crash(memory)
    with vm.VisualMemory.open(path, encoder=memory.encoder) as again:
        assert (things(again), state_of(again)) == before


def test_sealed_copied_and_opened_to_read(make, path: Path, tmp_path: Path) -> None:
    memory = written(make(path=path), range(5))
    reply = memory.ask("where is the red block?").to_dict()["places"]
    memory.copy(tmp_path / "copy")
    memory.close()
    for place in (path, tmp_path / "copy"):
        with vm.VisualMemory.open(place, encoder=memory.encoder, read_only=True) as stored:
            assert stored.ask("where is the red block?").to_dict()["places"] == reply


def test_without_depth_nothing_changes(make) -> None:
    plain, flat = fill(make(), range(12)), make()
    for number, missing in enumerate(("depth", "intrinsics", "pose")):
        written(flat, range(number, number + 1), **{missing: None})
    assert plain._streams.world.objects is None and things(plain) == {}
    assert plain._streams["camera"].moments.budget.bytes == plain.budget.bytes
    assert not any("object" in name for name in plain._streams.contents()[1])
    assert flat._streams.world.objects is None
    assert flat.ask("where is the red block?").places is None


@pytest.mark.parametrize(
    ("spoilt", "told"),
    [
        ({"depth": np.ones((3, 4), np.float32)}, "depth left out"),
        ({"depth": np.ones((120, 160), np.int32)}, "depth left out"),
        ({"intrinsics": np.zeros((3, 3))}, "intrinsics left out"),
        ({"intrinsics": np.eye(4)}, "intrinsics left out"),
        ({"intrinsics": "none"}, "intrinsics left out"),
    ],
)
def test_bad_depth_is_dropped_and_told_and_the_frame_kept(make, spoilt: dict, told: str) -> None:
    memory = written(make(), range(2), **spoilt)
    assert memory.stats.written == 2 and memory.stats.refused == 0
    assert any(told in problem for problem in memory.stats.problems)
    assert memory._streams.world.objects is None


def test_poses_that_are_none_leave_the_place_out(make) -> None:
    for pose in (np.full((4, 4), np.nan), np.zeros((4, 4)), 2 * np.eye(4)):
        memory = written(make(), range(2), pose=pose)
        assert memory.stats.written == 2 and memory._streams.world.objects is None


def test_what_the_source_changes_later_does_not_matter() -> None:
    frame = view(0)
    owned = frame.owned()
    for name in ("depth", "intrinsics", "pose"):
        before = getattr(owned, name).copy()
        getattr(frame, name)[:] = 7
        assert np.array_equal(getattr(owned, name), before)


def test_the_budget_holds_with_things_in_it(make) -> None:
    memory = written(make(budget=60_000), range(4))
    streams = memory._streams
    assert streams.world.budget == OBJECT_SHARE * 60_000 > 0
    assert streams["camera"].moments.budget.bytes == 60_000 - streams.world.budget
    assert 0 < streams.world.nbytes <= streams.world.budget and memory.nbytes <= 60_000
    assert written(make(budget=10**9), range(1))._streams.world.budget == MOST_BYTES
    memory.change(budget=20_000)
    assert memory._streams.world.budget == 2500 and memory.nbytes <= 20_000
    assert memory._streams.world.snapshot().objects()


def test_a_change_that_fails_or_succeeds_keeps_the_things(make, path: Path) -> None:
    memory = written(make(path=path), range(5))
    before = things(memory)
    memory.change(policy="flash")
    assert things(memory) == before
    memory.close()
    with vm.VisualMemory.open(path, encoder=memory.encoder) as again:
        assert things(again) == before


def test_forgetting_a_span_forgets_its_things(make, path: Path) -> None:
    memory = written(make(path=path), range(5))
    memory.forget(1.0, 1.2)
    assert memory.ask("where was the red block?").abstained
    memory.close()
    with vm.VisualMemory.open(path, encoder=memory.encoder, read_only=True) as again:
        assert again.ask("where was the red block?").abstained


def test_things_are_retained_as_long_as_moments(make) -> None:
    memory = written(make(retain=3.0), range(4))
    written(memory, range(4, 30), world=World((BALL,)))
    assert memory.ask("where was the red block?").abstained
    (ball,) = memory.ask("where was the green ball?").places
    assert ball.first > 10


def test_two_cameras_see_one_world(make) -> None:
    memory = make()
    for number in range(6):
        clock = {"stream": f"eye {number % 2}", "timestamp": number % 2 * 50.0 + number}
        memory.write(view(number, **clock))
    (place,) = memory.ask("where is the red block?").places
    assert place.views == 6 and place.position == pytest.approx(RED.at, abs=0.01)


def test_the_command_line(tmp_path: Path, capsys) -> None:
    scene, out = tmp_path / "scene", tmp_path / "scene.mem"
    frames = [view(n) for n in range(4)]
    write_rgbd(scene, frames)
    assert main(["run", str(scene), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
    assert main(["ask", str(out), "where was the red block?", "--json"]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert reply["places"][0]["position"] == pytest.approx(RED.at, abs=0.01)
    assert main(["ask", str(out), "where was the purple ball?", "--json"]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert (reply["abstained"], reply["places"], reply["moments"]) == (True, [], [])
