"""The memory of things: the contract, and what makes a thing the same, moved or gone."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from contract import MemoryContract, Observation, copied, same
from seen_things import CONFIG, DIM, FAR, ROOM, A, B, blind, look, memory_of, seen
from torch import Tensor

from vismem.memory.objects import ObjectConfig, ObjectMemory
from vismem.memory.volumes import OCCLUDED, OUT_OF_VIEW, PRESENT, THROUGH, UNKNOWN


class TestObjectMemory(MemoryContract):
    small = 20 * ROOM + 7
    large = 400 * ROOM
    max_tokens = CONFIG.max_things

    def make(self, budget: int) -> ObjectMemory:
        return ObjectMemory(budget, CONFIG)

    def make_other(self, budget: int) -> ObjectMemory:
        return ObjectMemory(budget, ObjectConfig(look_dim=DIM + 1))

    def observation(self, number: int, seed: int = 0) -> Observation:
        thing = number * 7 % 60
        place = (thing % 10 - 5.0, thing // 10 - 3.0, 5.0 + seed)
        return {"time": number * 0.5, **seen((thing, place), wall=0.0)}

    def query(self) -> Tensor:
        return look(3)

    def all_hostile(self, good: Observation) -> dict[str, Observation]:
        cases = super().all_hostile(good)
        # A frame that shows no thing is taken: it tells what is gone.
        return {name: case for name, case in cases.items() if name != "tokens: empty"}

    def hostile(self, good: Observation) -> Mapping[str, Observation]:
        fields = {"position", "sigma", "extent", "box", "color", "shape", "pose", "intrinsics"}
        return (
            {f"no {name}": {k: v for k, v in good.items() if k != name} for name in fields}
            | {f"NaN in {name}": good | {name: good[name] * torch.nan} for name in fields}
            | {f"two {name}": good | {name: good[name].repeat(2, 1)} for name in ("box", "color")}
            | {"no sigma at all": good | {"sigma": good["sigma"] * 0}}
            | {"strange": good | {"mood": torch.zeros(1)}}
        )


# ------------------------------------------------------------------ what is the same thing


def held(memory: ObjectMemory):
    return memory.snapshot().objects()


def told(memory: ObjectMemory) -> list[int]:
    return [thing.told for thing in held(memory)]


def test_a_thing_seen_again_is_one_and_surer() -> None:
    jitter = torch.Generator().manual_seed(0)
    noise = (0.005 * torch.randn(40, 3, generator=jitter)).tolist()
    memory = memory_of(*(seen((1, (x, y, 0.5 + z))) for x, y, z in noise))
    (thing,) = held(memory)
    assert thing.views == 40 and thing.established and not thing.gone
    assert thing.position == pytest.approx(A, abs=0.004)
    assert CONFIG.least_sigma <= thing.sigma < 0.005
    assert (thing.first, thing.since, thing.last) == (0, 0, 39) and thing.places == ()


def test_the_surer_sighting_counts_more() -> None:
    memory = memory_of(seen((1, A), sigma=0.02), seen((1, (0.03, 0.0, 0.5)), sigma=0.005))
    assert held(memory)[0].position[0] == pytest.approx(0.03 * 16 / 17, abs=1e-4)


def test_established_after_three_sightings_or_two_viewpoints() -> None:
    assert [held(memory_of(*[seen((1, A))] * n))[0].established for n in (1, 2, 3)] == [
        False, False, True,
    ]  # fmt: skip
    around, near = (0.5, 0.0, -1.0), (0.02, 0.0, -1.0)
    assert held(memory_of(seen((1, A)), seen((1, A), eye=around)))[0].established
    assert not held(memory_of(seen((1, A)), seen((1, A), eye=near)))[0].established


def test_two_alike_stay_two_even_side_by_side() -> None:
    both = seen((1, A), (1, (0.06, 0.0, 0.5)))
    memory = memory_of(*[both] * 5)
    assert [t.views for t in held(memory)] == [5, 5]
    assert sorted(t.position[0] for t in held(memory)) == pytest.approx([0, 0.06])


def test_another_look_at_the_same_place_is_another_thing() -> None:
    memory = memory_of(*[seen((1, A))] * 3, *[seen((2, A), size=0.12)] * 3)
    first, second = held(memory)
    assert (first.views, second.views) == (3, 3)
    assert first.told == OCCLUDED and not first.gone  # what is larger may hide it


def test_what_is_in_its_stead_and_too_small_to_hide_it_votes() -> None:
    large = seen((1, A), size=0.12)
    memory = memory_of(*[large] * 3, *[seen((2, A), size=0.06)] * 2)
    assert [t.gone for t in held(memory)] == [True, False]


def test_a_part_of_a_thing_is_no_new_thing() -> None:
    whole = seen((1, A), size=0.12)
    parts = seen((1, A), (1, (0.02, 0.0, 0.5)))
    parts["extent"] = torch.tensor([[0.12] * 3, [0.05] * 3])
    assert len(memory_of(whole, whole, parts)) == 1


def test_a_label_never_decides() -> None:
    frames = [seen((1, A)) for _ in range(3)]
    for number, frame in enumerate(frames):
        frame["label"][0, 0] = number
        frame["label_score"][0, 0] = 0.5 + number / 10
    (thing,) = held(memory_of(*frames))
    assert thing.views == 3
    assert thing.labels == pytest.approx({0: 0.5, 1: 0.6, 2: 0.7})


def test_looks_are_kept_where_they_are_new() -> None:
    turned = seen((1, A))
    turned["tokens"] = torch.nn.functional.normalize(look(1) + look(2), dim=0)[None]
    (thing,) = held(memory_of(seen((1, A)), turned, turned, seen((1, A))))
    assert len(thing.looks) == 2
    recall = memory_of(seen((1, A)), turned, turned, seen((1, A))).read()
    assert recall.weights.tolist() == [2, 2] and recall.sources.tolist() == [1, 0]


# ------------------------------------------------------------------ absence


def test_two_frames_that_see_through_a_place_say_gone() -> None:
    memory = memory_of(*[seen((1, A))] * 3, seen())
    assert told(memory) == [THROUGH] and not held(memory)[0].gone
    memory.write(time=4.0, **seen())
    assert held(memory)[0].gone
    memory.write(time=5.0, **seen((1, A)))  # and it is back
    assert not held(memory)[0].gone and held(memory)[0].id == 0


def test_a_vote_is_taken_back_when_the_thing_is_seen() -> None:
    once = [seen(), seen((1, A))]
    assert not held(memory_of(*[seen((1, A))] * 3, *once, *once, *once))[0].gone


def test_a_vote_is_taken_back_where_the_depth_is_its_own() -> None:
    """Also where no thing was made out: the place is not empty."""
    there = blind(seen(), 1480)
    assert not held(memory_of(*[seen((1, A))] * 3, seen(), there, seen(), there))[0].gone


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (blind(seen(), 0), UNKNOWN),  # no depth
        (blind(seen(), 900), OCCLUDED),  # a board at 0.9 m, the thing at 1.5 m
        (blind(seen(), 1480), PRESENT),  # something at its depth
        (blind(seen(), 1500), PRESENT),  # its own middle
        (blind(seen(), 1540), THROUGH),
        (seen(eye=(2.0, 0.0, -1.0)), OUT_OF_VIEW),
        (seen(eye=(0.0, 0.0, 1.0)), OUT_OF_VIEW),  # behind the camera
    ],
)
def test_only_what_was_seen_through_votes(frame: dict[str, Tensor], expected: int) -> None:
    memory = memory_of(*[seen((1, A))] * 3, *[frame] * 5)
    assert told(memory) == [expected]
    assert held(memory)[0].gone == (expected == THROUGH)
    assert held(memory)[0].last == 2


def test_one_sample_that_is_not_behind_keeps_a_thing() -> None:
    frame = seen()
    frame["near"][30, 40] = 1500  # the middle of where it is
    assert told(memory_of(*[seen((1, A))] * 3, frame)) == [PRESENT]


def test_what_was_never_confirmed_and_is_not_there_was_nothing() -> None:
    assert len(memory_of(seen((1, A)), seen(), seen())) == 0


# ------------------------------------------------------------------ what moved


def test_what_moved_in_view_keeps_its_number_and_its_old_place() -> None:
    memory = memory_of(*[seen((1, A))] * 3, *[seen((1, B))] * 3)
    (thing,) = held(memory)
    assert (thing.id, thing.views, thing.gone) == (0, 6, False)
    assert thing.position == pytest.approx(B) and (thing.since, thing.last) == (3, 5)
    (place,) = thing.places
    assert place.position == pytest.approx(A) and (place.first, place.last) == (0, 2)


def test_what_was_pushed_a_little_moves_at_once() -> None:
    memory = memory_of(*[seen((1, A))] * 3, seen((1, (0.05, 0.0, 0.5))))
    (thing,) = held(memory)
    assert thing.position == pytest.approx((0.05, 0, 0.5)) and thing.since == 3
    assert thing.places[0].position == pytest.approx(A)


def test_where_the_old_place_was_not_seen_both_are_kept() -> None:
    away = blind(seen((1, B)), 0)
    memory = memory_of(*[seen((1, A))] * 3, *[away] * 4)
    assert [t.gone for t in held(memory)] == [False, False] and len(memory) == 2
    for number in (7, 8):  # and joined as soon as it is seen empty
        memory.write(time=float(number), **seen((1, B)))
    (thing,) = held(memory)
    assert thing.id == 0 and thing.position == pytest.approx(B) and len(thing.places) == 1


@pytest.mark.parametrize("other", ["look", "size", "before"])
def test_what_does_not_fit_did_not_move(other: str) -> None:
    new = seen((2 if other == "look" else 1, B), size=0.15 if other == "size" else 0.06)
    first = [seen((1, A))] * 3
    if other == "before":  # seen beside it: a twin
        first = [seen((1, A), (1, B))] * 3
    memory = memory_of(*first, *[new] * 4)
    assert [t.gone for t in held(memory)] == [True, False]


def test_of_two_that_fit_neither_is_taken() -> None:
    both = seen((1, B), (1, FAR))
    memory = memory_of(*[seen((1, A))] * 3, *[both] * 4)
    assert [t.gone for t in held(memory)] == [True, False, False]


def test_old_places_are_bounded() -> None:
    frames = []
    for n in range(30):
        frames += [seen((1, (0.1 * (n % 3), 0.1 * (n // 3 % 2), 0.5)))] * 3
    (thing,) = held(memory_of(*frames))
    assert len(thing.places) == CONFIG.places
    assert [p.last for p in thing.places] == sorted((p.last for p in thing.places), reverse=True)


# ------------------------------------------------------------------ bounds and forgetting


def test_the_unconfirmed_go_first_then_the_gone_then_the_old_of_a_crowd() -> None:
    def at(n: int, x: float) -> tuple[int, tuple[float, float, float]]:
        return (n, (x, 0.0, 0.5))

    crowd = [at(1, 0.1), at(2, 0.4), at(3, 0.7)]
    lonely, lost, chance = at(4, 5.2), at(5, 9.0), at(6, 20.0)
    memory = memory_of(
        *[blind(seen(lonely), 0)] * 3,
        *[seen(lost, eye=(9.0, 0, -1.0))] * 3,
        *[seen(eye=(9.0, 0, -1.0))] * 2,
        *[blind(seen(*crowd), 0)] * 3,
        *[blind(seen(*crowd[1:]), 0)] * 2,
        blind(seen(chance), 0),
    )
    order = []
    before = {t.position[0] for t in held(memory)}
    while len(memory):
        memory.set_budget((len(memory) - 1) * ROOM)
        after = {t.position[0] for t in held(memory)}
        order += [round(x, 1) for x in before - after]
        before = after
    assert order[:4] == [20.0, 9.0, 0.1, 0.4]


def test_forgetting_a_span_takes_all_that_it_may_have_shown() -> None:
    memory = memory_of(*[seen((1, A), (2, B))] * 3, *[blind(seen((2, B)), 0)] * 5)
    assert memory.forget(3.5, 4.5) == 1
    assert [t.id for t in held(memory)] == [0]
    assert memory.forget(100, 200) == 0 and memory.forget(-1, 0) == 1


def test_what_is_old_expires_and_the_rest_knows_nothing_of_that_time() -> None:
    memory = memory_of(*[seen((1, A), (2, FAR))] * 3, *[seen((1, B), eye=(0.2, 0, -1))] * 6)
    snapshot = memory.snapshot()
    assert memory.oldest == 0
    assert memory.expire(5.5) == 2
    (thing,) = held(memory)
    assert (thing.first, thing.since, thing.last, thing.places) == (5.5, 5.5, 8, ())
    assert memory.oldest == 5.5
    assert len(snapshot.objects()) == 2 and snapshot.objects()[0].first == 0  # as it was


def test_states_go_on_where_things_move_and_vanish() -> None:
    frames = [*[seen((1, A), (2, FAR))] * 3, *[seen((1, B))] * 3, seen(), seen((2, FAR)), seen()]
    whole = memory_of(*frames)
    for cut in range(len(frames)):
        memory = ObjectMemory(100 * ROOM, CONFIG)
        memory.load_state_dict(copied(memory_of(*frames[:cut]).state_dict()))
        for number in range(cut, len(frames)):
            memory.write(time=float(number), **frames[number])
        assert same(memory.state_dict(), whole.state_dict())
