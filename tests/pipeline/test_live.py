"""What a live view shows of a memory."""

from __future__ import annotations

import re
import threading

import pytest
from tiny_memory import PATIENCE, every_policy, fill, frame, slots_of, thumbnails

from vismem.live import facts, moments, scenes, thumbnail
from vismem.scenes import thumbnail_of


@every_policy
def test_facts_are_what_is_held(policy: str, make) -> None:
    memory = make("12KB", policy=policy)
    assert (facts(memory).frames, facts(memory).span, facts(memory).moments) == (0, None, 0)
    for stream in ("door", "yard"):
        fill(memory, range(60), stream=stream)
    memory.write(frame(3, stream="door", timestamp=29.4))  # late
    with pytest.raises(ValueError):
        memory.write(frame(4, timestamp=float("nan")))
    memory.flush()
    now = facts(memory)
    assert (now.bytes, now.budget, now.policy) == (memory.nbytes, 12_000, policy)
    assert (now.frames, now.late, now.refused, now.dropped, now.waiting) == (120, 1, 1, 0, 0)
    assert now.span == (0.0, 29.5) and now.merged > 10 and now.problems == ()
    assert now.moments == len(moments(memory)) == sum(map(len, memory.snapshots().values()))
    assert (
        now.scenes == len(scenes(memory)) == sum(len(slots_of(memory, s)) for s in memory.visual())
    )
    gone = memory.forget(0.0, 10.0)
    after = facts(memory)
    assert gone and after.forgotten == now.forgotten + gone
    assert after.moments + after.scenes == now.moments + now.scenes - gone
    memory.change(policy="moments")
    assert (facts(memory).policy, facts(memory).scenes, scenes(memory)) == ("moments", 0, [])


def test_frames_that_wait_are_counted(make, tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    encode = tiny.encode
    monkeypatch.setattr(tiny, "encode", lambda images: go_on.wait(PATIENCE) and encode(images))
    memory = make(queue=4)
    taken = [memory.write(frame(number), block=False) for number in range(6)]
    assert taken == [True] * 4 + [False] * 2
    assert (facts(memory).waiting, facts(memory).dropped, facts(memory).frames) == (4, 2, 0)
    go_on.set()
    memory.flush()
    assert (facts(memory).waiting, facts(memory).frames) == (0, 4)


def test_moments_are_listed_with_what_they_show(make) -> None:
    memory = make("60KB")
    for number in range(60):
        fill(memory, range(number, number + 1), stream=("door", "yard")[number % 2])
    listed = moments(memory)
    assert [m.start for m in listed] == sorted(m.start for m in listed)
    assert {m.stream for m in listed} == {"door", "yard"} and sum(m.frames for m in listed) == 60
    assert len({m.id for m in listed}) == len(listed) > 8
    assert all(re.fullmatch(r"m[01]\.\d+", m.id) for m in listed)
    assert all(m.start <= m.time <= m.end for m in listed)
    # See `TinyEncoder`: scenes of six pictures show nothing, a cat, a dog, a person, nothing.
    shown = {m.label for m in listed}
    assert shown == {"", "cat", "dog", "person"}
    assert all(bool(m.label) == (m.score >= 0.6) for m in listed)
    first = [m for m in listed if m.start < 2.0]
    assert first and not any(m.label for m in first)
    newest = moments(memory, newest=2)
    for stream in ("door", "yard"):
        assert [m for m in newest if m.stream == stream] == [
            m for m in listed if m.stream == stream
        ][-2:]
    assert moments(memory, newest=0) == []


def test_an_id_finds_the_picture_while_the_moment_lives(make) -> None:
    memory, pictures = make("14KB"), set(thumbnails(range(150)))
    known: dict[str, tuple[float, float]] = {}
    for number in range(0, 150, 5):
        fill(memory, range(number, number + 5))
        listed = {m.id: m for m in moments(memory)}
        for id, (start, time) in known.items():
            if id in listed:
                assert listed[id].start == start
                assert listed[id].time == time or listed[id].frames > 1
        for id, moment in listed.items():
            assert (
                thumbnail(memory, id)
                == thumbnails(range(int(moment.time * 2), int(moment.time * 2) + 1))[0]
            )
        assert all(thumbnail(memory, id) is None for id in known if id not in listed)
        known = {id: (m.start, m.time) for id, m in listed.items()} | {
            id: at for id, at in known.items() if id not in listed
        }
    assert len(known) > len(moments(memory)) > 3
    ids = {m.id: m.time for m in moments(memory)}
    memory.change(policy="flash")
    assert {id for id in ids if thumbnail(memory, id)} == {m.id for m in moments(memory)}
    assert pictures >= {thumbnail(memory, m.id) for m in moments(memory)}


@every_policy
def test_scenes_are_listed_and_found(policy: str, make) -> None:
    memory = make("30KB", policy=policy)
    for stream in ("door", "yard"):
        fill(memory, range(80), stream=stream)
    listed = scenes(memory)
    assert [s.time for s in listed] == sorted(s.time for s in listed)
    for place, stream in enumerate(("door", "yard")):
        slots = {f"s{place}.{slot.source}": slot for slot in slots_of(memory, stream)}
        own = [s for s in listed if s.stream == stream]
        assert {s.id for s in own} == set(slots) and sum(s.weight for s in own) == 80
        for scene in own:
            slot = slots[scene.id]
            assert (scene.time, scene.first, scene.last) == (slot.time, slot.first, slot.last)
            assert scene.level == slot.level and scene.tokens >= len(slot.tokens)
            assert thumbnail(memory, scene.id) == thumbnail_of(slot, memory.sizes) != b""
    assert {s.label for s in listed} >= {"cat", ""}


@pytest.mark.parametrize(
    "id",
    ["", "m0.1", "s0.0", "m1.0", "m0.", "m-1.0", "m0.0/../x", "m0.0\n", "x0.0", "m٠.٠", "m0.99"]
    + ["m" + "9" * 5000 + ".0", "m0." + "9" * 40],
)
def test_what_is_no_id_finds_nothing(id: str, make) -> None:
    memory = fill(make(), range(2))
    assert thumbnail(memory, "m0.0") is not None
    assert thumbnail(memory, id) is None


def test_what_is_claimed_is_up_to_the_threshold(make) -> None:
    memory = fill(make(), range(12))
    best = max(moment.score for moment in memory.ask("a cat", threshold=0.01).moments)
    assert not memory.ask("a cat", threshold=best - 0.01).abstained
    assert memory.ask("a cat", threshold=best + 0.01).abstained
