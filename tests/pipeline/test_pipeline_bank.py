"""A visual memory with a bank of pictures beside its moments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_memory import (
    QUESTIONS,
    STEP,
    bytes_on_disk,
    crash,
    every_policy,
    fill,
    frame,
    picture,
    replies,
    slots_of,
    state_of,
    thumbnails,
)

import vismem as vm
from vismem.errors import StoreError, UsageError
from vismem.frame import Frame
from vismem.heads.answer import answer
from vismem.scenes import thumbnail_of
from vismem.store import verify


@every_policy
def test_a_bank_and_moments_hold_one_budget(policy: str, make) -> None:
    for budget in (0, 200, 3_000, 20_000):
        memory = make(budget, policy=policy)
        for number in range(30):
            for stream in ("door", "yard")[: 1 + (number > 12)]:
                fill(memory, range(number, number + 1), stream=stream)
                assert memory.nbytes == memory.describe()["bytes"] <= budget
                for held in memory._streams.values():
                    assert held.nbytes <= budget // len(memory._streams)
        held = slots_of(memory, "door")
        assert len(held) > 2 if budget == 20_000 else budget or not held
        assert set(memory.visual()) == {"door", "yard"}


@every_policy
def test_a_bank_goes_on_after_a_crash_bit_for_bit(
    policy: str, make, path: Path, tiny, seal_often: None
) -> None:
    memory, in_ram = make(16_000, policy=policy, path=path), make(16_000, policy=policy)

    def write(memory: vm.VisualMemory, numbers: range) -> vm.VisualMemory:
        for number in numbers:
            for stream in ("door", "yard")[: 1 + (number > 10)]:
                assert memory.write(frame(number, stream=stream))
        memory.flush()
        return memory

    write(memory, range(25)), write(in_ram, range(60))
    crash(memory)
    again = vm.VisualMemory.open(path, encoder=tiny)
    assert again.policy == policy and 0 < again._journal.store.records < 8
    write(again, range(25, 47))
    again.close()
    with vm.VisualMemory.open(path, encoder=tiny) as again:
        write(again, range(47, 60))
        assert state_of(again) == state_of(in_ram) and replies(again) == replies(in_ram)
        assert any(name.startswith("door: bank.") for name in state_of(again))
        assert torch.equal(
            again.recall("a cat", stream="yard").tokens,
            in_ram.recall("a cat", stream="yard").tokens,
        )
    assert verify(path).ok


def test_a_memory_of_before_there_were_policies_holds_moments(make, path: Path, tiny) -> None:
    memory = make()
    del memory.config["policy"]
    fill(memory, range(30)).save(path)
    memory.close()
    with vm.VisualMemory.open(path, encoder=tiny) as again:
        assert again.policy == "moments" and again.visual() == {}
        assert state_of(fill(again, range(30, 40))) == state_of(fill(make(), range(40)))


def test_a_stored_policy_that_is_not_known_is_told(make, path: Path, tiny) -> None:
    memory = fill(make(), range(3))
    memory.config["policy"] = "flesh"
    memory.save(path)
    memory.close()
    with pytest.raises(StoreError, match="policy is moments, flash, star, pyramid; not flesh"):
        vm.VisualMemory.open(path, encoder=tiny)


@pytest.mark.parametrize("sealed", [True, False])
@every_policy
def test_a_bank_forgets_without_a_trace(policy: str, sealed: bool, make, path: Path, tiny) -> None:
    memory = fill(make("200KB", policy=policy, path=path), range(60))
    if sealed:
        memory.save()
    inside = [slot for slot in slots_of(memory) if slot.first <= 18.0 and slot.last >= 9.0]
    assert len(inside) > 3
    gone = thumbnails(range(18, 37))
    kept = {thumbnail_of(s, memory.sizes) for s in slots_of(memory) if s.last < 9 or s.first > 18}
    assert sum(picture in bytes_on_disk(path) for picture in gone) > 3
    before = len(slots_of(memory)) + len(memory.snapshots()["camera"])
    count = memory.forget(9.0, 18.0)

    def look(memory: vm.VisualMemory) -> None:
        on_disk = bytes_on_disk(path)
        assert not any(picture in on_disk for picture in gone)
        held = slots_of(memory)
        assert not any(slot.first <= 18.0 and slot.last >= 9.0 for slot in held)
        assert kept == {thumbnail_of(slot, memory.sizes) for slot in held} and b"" not in kept
        in_memory = b"".join(state[2] for state in state_of(memory).values() if len(state) == 3)
        assert not any(picture in in_memory for picture in gone)
        assert any(picture in in_memory for picture in kept)
        assert before - len(held) - len(memory.snapshots()["camera"]) == count
        for question in QUESTIONS:
            told = memory.ask(question, threshold=0.01).moments
            assert not any(m.start <= 18.0 and m.end >= 9.0 for m in told)
        times = memory.recall("a cat").times
        assert len(times) and not bool(((times >= 9.0) & (times <= 18.0)).any())
        if policy == "star":
            assert len(memory._streams["camera"].bank.abstract) == 0

    look(memory)
    crash(memory)
    with vm.VisualMemory.open(path, encoder=tiny) as again:
        look(again)


def test_what_a_bank_only_sums_up_is_forgotten_on_disk_too(make, path: Path, tiny) -> None:
    """There is room for no moment and no scene, but for a token of all frames."""
    memory = fill(make(800, policy="star", path=path), range(20))
    memory.save()
    assert not slots_of(memory) and len(memory.snapshots()["camera"]) == 0
    assert len(memory._streams["camera"].bank.abstract) == 1
    assert memory.forget(2.0, 3.0) == 0
    crash(memory)
    with vm.VisualMemory.open(path, encoder=tiny) as again:
        assert len(again._streams["camera"].bank.abstract) == 0


@every_policy
def test_a_bank_forgets_by_age(policy: str, make, path: Path) -> None:
    memory = make("200KB", policy=policy, path=path, retain=10.0)
    for number in range(80):
        fill(memory, range(number, number + 1))
        assert memory._streams["camera"].bank.oldest >= number * STEP - 1.05 * 10.0
    assert len(slots_of(memory)) > 3
    old = thumbnails(range(round((79 * STEP - 15) / STEP)))
    assert not any(picture in bytes_on_disk(path) for picture in old)


def coming_back(number: int) -> Frame:
    """Eight scenes of three seconds in turn; a cat in the fourth."""
    image = picture(number // 6 % 8 * 6, 0)
    image[:, 8:] ^= np.random.default_rng(number).integers(0, 8, (12, 8, 3), np.uint8)
    image[0, 0, 0] = number // 6 % 8 == 3
    return Frame(image, number * STEP)


@every_policy
def test_a_bank_knows_what_the_moments_had_to_merge_away(policy: str, make) -> None:
    memory = make(12_000, policy=policy)
    for number in range(480):
        memory.write(coming_back(number))
    found = memory.ask("a cat")
    assert answer("a cat", memory.snapshots(), memory.encoder).abstained
    assert not found.abstained and memory.nbytes <= 12_000
    for moment in found.moments:
        assert round(moment.time / STEP) // 6 % 8 == 3, "a time at which it was seen"
        assert moment.start <= moment.time <= moment.end
    for absent in ("a dog", "people"):
        assert memory.ask(absent).abstained


@every_policy
def test_recall_gives_true_times_in_order_within_its_tokens(policy: str, make) -> None:
    memory = make(40_000, policy=policy)
    for number in range(300):
        memory.write(coming_back(number))
    memory.flush()
    true = {number * STEP for number in range(300)}
    sizes = []
    for tokens in (0, 1, 2, 3, 7, 30, 8192):
        for question in (None, "a cat"):
            for before in (None, -1.0, 0.0, 60.2, 149.5, 1e9):
                recall = memory.recall(question, tokens=tokens, before=before)
                times = recall.times
                assert len(recall.tokens) == len(times) <= tokens
                assert recall.tokens.dtype == torch.float16 and recall.tokens.shape[1] == 4
                assert bool((times.diff() >= 0).all()) and set(times.tolist()) <= true
                if before is not None:
                    assert not len(times) or float(times.max()) <= before
                sizes.append(len(times))
        if tokens >= 2:
            assert float(memory.recall("a cat", tokens=tokens).times[-1]) == 149.5
    assert max(sizes) > 6 and memory.recall().times[-1] == 149.5
    asked, asked_not = memory.recall("a cat"), memory.recall()
    assert bool((asked.scores != 0).any()) and not bool(asked_not.scores.any())


def test_recall_says_what_is_missing(make) -> None:
    for memory in (make(), fill(make(), range(2))):
        with pytest.raises(UsageError, match="keeps no visual tokens; make it with policy="):
            memory.recall("a cat")
    memory = make(policy="flash")
    with pytest.raises(UsageError, match="name one of the streams: none yet"):
        memory.recall()
    fill(memory, range(3), stream="door")
    assert len(memory.recall().times) == len(memory.recall(stream="door").times) == 6
    with pytest.raises(UsageError, match="name one of the streams: door"):
        memory.recall(stream="attic")
    fill(memory, range(5), stream="yard")
    with pytest.raises(UsageError, match="name one of the streams: door, yard"):
        memory.recall("a cat")
    assert len(memory.recall(stream="yard").times) == 10
