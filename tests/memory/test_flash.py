"""`FlashMemory` keeps the contract, scenes and the newest frames."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import torch
from contract import Observation, copied, recalled, same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slot_contract import DIM, EMBEDDING, SlotContract, noise

from vismem.memory.flash import RECENT_SHARE, FlashConfig, FlashMemory
from vismem.memory.slots import JoinNotes, Slot, pool_grid

TOKENS = 9
SIZES: dict[str, Any] = {
    "token_dim": DIM,
    "max_tokens": TOKENS,
    "embedding_dim": EMBEDDING,
    "max_note": 40,
}
GRIDS = [(1, 1), (1, 7), (7, 1), (3, 3), (2, 4), (1, 2), (3, 1)]

few = settings(
    max_examples=30,
    derandomize=True,
    # StarMemory's test inherits what FlashMemory's has.
    suppress_health_check=[HealthCheck.differing_executors],
)


class TestFlashMemory(SlotContract):
    small, large, max_tokens = 12_000, 400_000, TOKENS

    def bank(self, budget: int, join_notes: JoinNotes | None = None, **sizes: Any) -> FlashMemory:
        """The bank under test, of any sizes."""
        return FlashMemory(FlashConfig(**SIZES | sizes), budget, join_notes)

    def make(self, budget: int) -> FlashMemory:
        return self.bank(budget)

    def make_other(self, budget: int) -> FlashMemory:
        return FlashMemory(FlashConfig(token_dim=DIM, max_tokens=TOKENS, synopsis=(1, 2)), budget)

    # ------------------------------------------------------------------ true books

    def odd(self, number: int, seed: int = 0) -> Observation:
        """An observation of another grid every time; its note is its number."""
        given = self.observation(number, seed)
        rows, columns = GRIDS[(number + seed) % len(GRIDS)]
        changed = {"tokens": given["tokens"][: rows * columns], "grid": (rows, columns)}
        return given | changed | {"note": number.to_bytes(2, "big")}

    @few
    @given(
        ops=st.lists(
            st.sampled_from(["write"] * 12 + ["budget", "forget", "reload", "read"]), max_size=90
        ),
        budget=st.integers(0, 9000),
        sizes=st.sampled_from(
            [
                {},
                {"synopsis": (1, 1), "mass_limit": 1.0},
                {"synopsis": (3, 3), "gist": (2, 2), "mass_limit": math.inf},
                {"synopsis": (1, 7), "recent": 0, "detail": 0.0},
                {"synopsis": (5, 1), "coarse": 1.0, "recent": 1, "detail": 1.0, "max_slots": 6},
            ]
        ),
        seed=st.integers(0, 9),
    )
    def test_the_books_are_true_whatever_is_done(
        self, ops: list[str], budget: int, sizes: dict[str, Any], seed: int
    ) -> None:
        draw = random.Random(seed)
        memory = self.bank(budget, joined, **sizes)
        alive: dict[int, Observation] = {}
        number, lost = 0, False
        for op in ops:
            if op == "write":
                alive[number] = self.odd(number, seed)
                lost |= memory.write(**alive[number]).dropped > 0
                number += 1
            elif op == "budget":
                report = memory.set_budget(draw.choice([0, 300, 900, 3000, 9000, 40_000]))
                lost |= report.dropped > 0
                assert report.nbytes == memory.nbytes
            elif op == "forget":
                start = draw.uniform(-1, 0.5 * number + 1)
                self.check_forget(memory, start, start + draw.expovariate(0.5))
                left = {n for slot in memory.snapshot().slots() for n in members(slot.note)}
                alive = {n: given for n, given in alive.items() if n in left}
            elif op == "reload":
                state = copied(memory.state_dict())
                memory = self.bank(memory.budget.bytes, joined, **sizes)
                memory.load_state_dict(state)
                assert same(memory.state_dict(), state)
            else:
                self.check_reads(memory, draw)
            self.check_books(memory, alive, lost)

    def check_books(self, memory: FlashMemory, alive: dict[int, Observation], lost: bool) -> None:
        assert memory.nbytes <= memory.budget.bytes
        assert memory._recent_bytes == sum(held.nbytes for held in memory._recent)
        slots = memory.snapshot().slots()
        assert [s.time for s in slots] == sorted(s.time for s in slots)
        numbers = [n for slot in slots for n in members(slot.note)]
        assert len(numbers) == len(set(numbers)) and set(numbers) <= set(alive)
        if not lost:
            assert set(numbers) == set(alive)
        times = [alive[n]["time"] for n in numbers]
        self.check_oldest(memory, min(times, default=math.inf))
        for slot in slots:
            own = members(slot.note)
            seen = [alive[n]["time"] for n in own]
            assert (slot.weight, slot.source) == (len(own), own[0])
            assert (slot.first, slot.last, slot.time) == (min(seen), max(seen), seen[0])
            assert slot.first <= slot.start <= slot.time <= slot.end <= slot.last
            if slot.level in ("recent", "detail"):
                assert torch.equal(slot.tokens, alive[slot.source]["tokens"].half())
                assert slot.grid == alive[slot.source]["grid"]
            coarse, grid = slot.coarse(), memory.config.gist
            if slot.level != "recent" and coarse.grid == grid != memory.config.synopsis:
                frames = [alive[n] for n in own]
                exact = torch.stack(
                    [pool_grid(f["tokens"].half().float(), f["grid"], grid) for f in frames]
                )
                bound = 2**-11 * (1 + len(own) ** 0.5) * float(exact.abs().max())
                assert float((coarse.tokens.float() - exact.mean(0)).abs().max()) <= bound
        recent = [slot.source for slot in slots if slot.level == "recent"]
        assert recent == sorted(numbers)[len(numbers) - len(recent) :]
        assert len(recent) <= memory.config.recent

    def check_oldest(self, memory: FlashMemory, first: float) -> None:
        assert memory.oldest == first

    def check_forget(self, memory: FlashMemory, start: float, end: float) -> None:
        before = memory.snapshot().slots()
        kept = [slot for slot in before if slot.last < start or slot.first > end]
        assert memory.forget(start, end) == len(before) - len(kept)
        after = memory.snapshot().slots()
        assert [slot.source for slot in after] == [slot.source for slot in kept]

    def check_reads(self, memory: FlashMemory, draw: random.Random) -> None:
        most = len(memory.read().tokens)
        for tokens in {0, 1, most - 1, most, draw.randint(0, most)}:
            recall = memory.read(draw.choice([None, self.query()]), tokens=max(0, tokens))
            assert len(recall.tokens) <= max(0, tokens)
            groups = list(recall.frames())
            assert sum(len(tokens) for *_, tokens in groups) == len(recall.tokens)
            assert len(groups) == len(set(recall.sources.tolist()))
        before = draw.uniform(-1, memory._last + 1) if memory._writes else 0.0
        assert not (memory.read(before=before).times > before).any()

    # ------------------------------------------------------------------ shares of the budget

    @pytest.mark.parametrize("budget", [2_000, 12_000, 60_000])
    @pytest.mark.parametrize("recent", [0, 1, 4, 9])
    def test_the_newest_frames_are_kept_whole(self, budget: int, recent: int) -> None:
        memory = self.bank(budget, recent=recent)
        for number in range(80):
            memory.write(**self.observation(number) | {"note": b""})
            frame = 2 * DIM * TOKENS + 2 * EMBEDDING + 64
            fit = min(recent, number + 1, int(RECENT_SHARE * budget / frame))
            slots = memory.snapshot().slots()
            held = [slot.source for slot in slots if slot.level == "recent"]
            assert held == list(range(number + 1 - fit, number + 1))

    def test_details_give_way_down_to_their_share_and_then_scenes_are_merged(self) -> None:
        memory = self.bank(self.small, detail=0.1, alike=0.0)
        blurred = merged = False
        for number in range(200):
            merged |= self.write_one(memory, number).merged > 0
            slots = memory.snapshot().slots()
            blurred |= any(slot.level == "synopsis" for slot in slots)
            assert blurred or not merged
        assert merged
        share = sum(slot.tokens.nbytes for slot in slots if slot.level == "detail") / self.small
        assert 0.05 < share < 0.25

    def test_frames_that_are_alike_are_merged_before_anything_gives_way(self) -> None:
        """Eleven scenes fit whole into a budget that their two hundred frames do not fit into."""
        memory = self.bank(self.small)
        for number in range(200):
            self.write_one(memory, number)
        slots = memory.snapshot().slots()
        assert {slot.level for slot in slots} <= {"recent", "detail"}
        assert 11 <= len(slots) < 100
        eager = self.bank(self.small, alike=0.0)
        for number in range(200):
            self.write_one(eager, number)
        assert any(slot.level == "gist" for slot in eager.snapshot().slots())
        roomy = self.bank(self.large)
        assert not any(self.write_one(roomy, number).merged for number in range(200))

    def test_details_give_way_first_then_synopses_each_to_its_floor(self) -> None:
        memory = self.bank(20_000, detail=0.3, coarse=0.2, recent=0, synopsis=(2, 2))
        orders = []
        for number in range(300):  # each like nothing else
            tokens = noise(TOKENS, DIM, seed=number) + 3 * noise(1, DIM, seed=9000 + number)
            memory.write(tokens, float(number), embedding=torch.ones(EMBEDDING))
            past = memory._past
            orders.append((past.detail_bytes / 20_000, past.synopsis_bytes / 20_000, len(past)))
        synopses_went = next(n for n in range(299) if orders[n + 1][1] < orders[n][1])
        assert orders[synopses_went][0] < 0.3 + 0.02  # details were at their floor by then
        assert 0.25 < orders[-1][0] < 0.35 and 0.15 < orders[-1][1] < 0.25
        levels = [slot.level for slot in memory.snapshot().slots()]
        assert {"gist", "synopsis", "detail"} == set(levels)

    def write_one(self, memory: FlashMemory, number: int) -> Any:
        return memory.write(**self.observation(number))

    def test_scenes_are_at_most_as_many_as_told(self) -> None:
        memory = self.bank(self.large, max_slots=5, recent=2)
        for number in range(60):
            self.write_one(memory, number)
        slots = memory.snapshot().slots()
        assert len(slots) == 7 and sum(slot.weight for slot in slots) == 60
        assert all(slot.level != "synopsis" for slot in slots)  # bytes go into details

    def test_a_state_of_more_scenes_than_told_is_taken_and_goes_on(self) -> None:
        state = self.write(self.bank(self.large), range(60)).state_dict()
        memory = self.bank(self.large, max_slots=5)
        memory.load_state_dict(state)
        self.write(memory, range(60, 120))
        assert sum(slot.weight for slot in memory.snapshot().slots()) == 120

    def test_budgets_go_down_up_and_back(self) -> None:
        memory = self.write(self.bank(self.large), range(150))
        whole = memory.nbytes
        for budget in (self.small, 3000, 1000, 300, 40, 0):
            report = memory.set_budget(budget)
            assert report.nbytes == memory.nbytes <= budget == memory.budget.bytes
            self.check_recall(memory, 150)
        assert memory.read().tokens.shape == (0, DIM) and memory.oldest == math.inf
        assert self.write_one(memory, 150).dropped == 1
        memory.set_budget("400kB")
        self.write(memory, range(151, 300))
        assert sum(slot.weight for slot in memory.snapshot().slots()) == 149
        assert self.small < memory.nbytes < 2 * whole

    def test_the_same_budget_again_changes_nothing(self) -> None:
        memory = self.write(self.make(self.small), range(120))
        before = copied(memory.state_dict())
        report = memory.set_budget(self.small)
        assert (report.merged, report.dropped) == (0, 0)
        assert same(memory.state_dict(), before)

    @pytest.mark.parametrize("budget", [0, 250, 700, 2_000, 6_000, 11_000, 100_000])
    def test_a_state_in_a_smaller_memory_is_as_if_the_budget_had_been_lowered(
        self, budget: int
    ) -> None:
        memory = self.write(self.make(self.large), range(150))
        state = copied(memory.state_dict())
        memory.set_budget(budget)
        used = self.write(self.make(budget), range(90), seed=4)
        for other in (self.make(budget), used):
            other.load_state_dict(state)
            assert other.nbytes <= budget
            assert same(other.state_dict(), memory.state_dict())

    def test_a_full_state_comes_back_whole_into_a_used_memory(self) -> None:
        """What was held before must not weigh on what is loaded."""
        for budget in range(self.small - 2000, self.small, 217):
            state = self.write(self.make(budget), range(60)).state_dict()
            used = self.write(self.make(budget), range(100), seed=5)
            used.load_state_dict(copied(state))
            assert same(used.state_dict(), state)

    @pytest.mark.parametrize("sizes", [{"mass_limit": 1.0}, {"gist": (2, 1)}])
    def test_costs_of_another_rule_are_refused(self, sizes: dict[str, Any]) -> None:
        state = self.write(self.make(self.small), range(50)).state_dict()
        other = self.bank(self.small, **sizes)
        with pytest.raises(ValueError, match="another"):
            other.load_state_dict(state)

    # ------------------------------------------------------------------ notes

    def test_notes_that_grow_cannot_break_the_budget(self) -> None:
        def double(note: bytes, weight: int, other: bytes, other_weight: int) -> bytes:
            return 2 * (note + other)

        memory = self.bank(self.small, double)
        for number in range(200):
            memory.write(**self.observation(number) | {"note": bytes(30)})
            assert memory.nbytes <= self.small
        assert memory.snapshot().slots()

    def test_joined_notes_are_stored_and_counted(self) -> None:
        def longer(note: bytes, weight: int, other: bytes, other_weight: int) -> bytes:
            return bytes(weight + other_weight)

        sizes = {"max_slots": 4, "recent": 0}
        plain, joining = self.bank(self.large, **sizes), self.bank(self.large, longer, **sizes)
        for number in range(50):
            given = self.observation(number) | {"note": b"x"}
            plain.write(**given)
            joining.write(**given)
        weights = [slot.weight for slot in plain.snapshot().slots()]
        slots = joining.snapshot().slots()
        assert [slot.weight for slot in slots] == weights
        assert all(len(s.note) == s.weight for s in slots if s.weight > 1)
        assert joining.nbytes - plain.nbytes == sum(weights) - len(weights)

    # ------------------------------------------------------------------ reading

    @pytest.mark.parametrize("number", range(6))
    def test_a_query_finds_its_scene(self, number: int) -> None:
        memory = self.bank(self.small, recent=0)
        for frame in range(120):
            scene = frame // 20
            given = self.observation(frame) | {"embedding": torch.eye(EMBEDDING)[scene]}
            tokens = 5.0 * torch.eye(DIM)[scene] + 0.1 * noise(TOKENS, DIM, seed=frame)
            memory.write(**given | {"tokens": tokens})
        recall = memory.read(torch.eye(EMBEDDING)[number], k=1)
        ((time, _, tokens),) = recall.frames()
        assert 10 * number <= time < 10 * number + 10
        assert set(tokens.argmax(1).tolist()) == {number}
        assert float(recall.scores.min()) > 0.99

    def test_every_number_of_tokens_is_kept_to_and_the_newest_come_first(self) -> None:
        memory = self.write(self.bank(self.small), range(150))
        recent = [s for s in memory.snapshot().slots() if s.level == "recent"]
        assert len(recent) == 4
        for tokens, query in itertools.product(range(120), (None, self.query())):
            recall = memory.read(query, tokens=tokens)
            assert len(recall.tokens) <= tokens
            fit = min(4, tokens // TOKENS)
            assert {s.source for s in recent[4 - fit :]} <= set(recall.sources.tolist())

    def test_a_snapshot_is_kept_through_everything(self) -> None:
        memory = self.write(self.make(self.small), range(100))
        state = copied(self.write(self.make(self.small), range(70), seed=3).state_dict())
        snapshot, never_read = memory.snapshot(), memory.snapshot()
        before = recalled(snapshot.read(self.query()))
        self.write(memory, range(100, 1100))
        memory.forget(0.0, 1e9)
        memory.load_state_dict(state)
        memory.set_budget(1000)
        memory.reset()
        self.write(memory, range(50))
        assert same(recalled(snapshot.read(self.query())), before)
        assert same(recalled(never_read.read(self.query())), before)

    # ------------------------------------------------------------------ forgetting

    def test_nothing_of_a_forgotten_span_is_left(self) -> None:
        memory = self.bank(self.small, joined)
        for number in range(120):
            given = self.observation(number) | {"note": number.to_bytes(2, "big")}
            if 40 <= number < 60:  # 20 s to 29.5 s
                given["tokens"] = torch.full((TOKENS, DIM), 77.0) + number
            memory.write(**given)
        assert memory.forget(20.0, 29.9) > 0
        slots = memory.snapshot().slots()
        assert slots and not {n for s in slots for n in members(s.note)} & set(range(40, 60))
        held = [t.tokens for t in slots] + [t.synopsis for t in slots if t.synopsis is not None]
        assert max(float(t.max()) for t in held) < 20
        for tensor in memory.state_dict().values():
            assert (
                not tensor.is_floating_point()
                or tensor.dtype != torch.float16
                or not ((tensor > 20).any())
            )
        assert memory.forget(20.0, 29.9) == 0

    def test_all_is_forgotten_by_age(self) -> None:
        memory = self.write(self.make(self.small), range(120))
        count = len(memory.snapshot().slots())
        assert memory.forget(-math.inf, math.inf) == count
        assert memory.oldest == math.inf and memory.read().tokens.shape == (0, DIM)
        again = self.make(self.small)
        again.load_state_dict(copied(memory.state_dict()))
        assert memory.nbytes == again.nbytes  # the bytes of recent frames are given back, too
        with pytest.raises(ValueError, match="time went backwards"):
            memory.write(**self.observation(3))  # what was seen is forgotten, not the clock
        self.write(memory, range(120, 130))

    # ------------------------------------------------------------------ tensors of all kinds

    def test_modes_and_types_of_the_input_do_not_matter(self) -> None:
        given = [self.observation(n) for n in range(120)]
        for one in given:
            one["tokens"] = one["tokens"].bfloat16().float()
        plain, mixed = self.make(self.small), self.make(self.small)
        for number, one in enumerate(given):
            plain.write(**one)
            tokens = one["tokens"]
            forms = [
                tokens.bfloat16(),
                tokens.T.contiguous().T,
                tokens.double(),
                tokens.clone().requires_grad_() * 1.0,
                torch.stack([tokens, tokens], 1)[:, 0],
            ]
            changed = one | {"tokens": forms[number % len(forms)]}
            changed["embedding"] = one["embedding"].clone().requires_grad_() * 1.0
            with torch.inference_mode(number % 3 == 0):
                if number % 3 == 0:
                    changed["tokens"] = changed["tokens"].clone()
                mixed.write(**changed)
            if number == 60:
                with torch.inference_mode():
                    mixed.set_budget(self.small)
                    mixed.load_state_dict(mixed.state_dict())
                    mixed.forget(1e8, 1e9)
        assert same(mixed.state_dict(), plain.state_dict())
        assert not any(v.requires_grad or v.is_inference() for v in mixed.state_dict().values())
        tokens = mixed.snapshot().slots()[0].tokens.float()
        weight = torch.ones(DIM, requires_grad=True)
        (tokens @ weight).sum().backward()  # a reader may train on what it read

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_frames_may_come_from_a_gpu(self) -> None:
        plain, other = self.make(self.small), self.make(self.small)
        for number in range(60):
            given = self.observation(number)
            plain.write(**given)
            other.write(**given | {k: given[k].cuda() for k in ("tokens", "embedding")})
        assert same(plain.state_dict(), other.state_dict())
        other.read(self.query().cuda())

    @pytest.mark.parametrize(
        "sizes",
        [
            {"token_dim": 0},
            {"max_tokens": 0},
            {"synopsis": (0, 2)},
            {"gist": (1, 0)},
            {"recent": -1},
            {"detail": 1.1},
            {"detail": -0.1},
            {"mass_limit": 0.5},
            {"mass_limit": math.nan},
            {"max_slots": 1},
        ],
    )
    def test_sizes_that_make_no_sense_are_refused(self, sizes: dict[str, Any]) -> None:
        with pytest.raises(ValueError):
            self.bank(1000, **sizes)


def joined(note: bytes, weight: int, other: bytes, other_weight: int) -> bytes:
    """A note is the list of the members, the representative's first."""
    assert (weight, other_weight) == (len(members(note)), len(members(other)))
    return note + other


def members(note: bytes) -> list[int]:
    return [int.from_bytes(note[n : n + 2], "big") for n in range(0, len(note), 2)]


# --------------------------------------------------------------------------- why masses saturate


def events_kept(mass_limit: float, seed: int) -> int:
    """How many of 20 events of 3 s in a static hour still have a slot of their own."""
    width, spread, frames, events = 16, 0.5, 3600, 20
    gen = torch.Generator().manual_seed(seed)
    scenes = torch.randn(events + 1, 4, width, generator=gen)
    starts = random.Random(seed).sample(range(20, frames - 20, 10), events)
    scene_at = {start + n: scene for scene, start in enumerate(starts, 1) for n in range(3)}
    config = FlashConfig(token_dim=width, mass_limit=mass_limit, max_slots=22)
    memory = FlashMemory(config, "100kB")
    for n in range(frames):
        frame = scenes[scene_at.get(n, 0)] + spread * torch.randn(4, width, generator=gen)
        memory.write(frame, float(n))
    slots: list[Slot] = [s for s in memory.snapshot().slots() if s.level != "recent"]
    assert len(slots) == 22  # hardly more than there are scenes
    means = torch.stack([slot.coarse().tokens.float().flatten() for slot in slots])
    nearest = torch.cdist(scenes[1:].flatten(1), means).amin(1) / (4 * width) ** 0.5
    return int((nearest < 1.2 * spread).sum())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_short_events_outlive_a_static_hour_and_by_plain_ward_they_do_not(seed: int) -> None:
    assert events_kept(FlashConfig(token_dim=1).mass_limit, seed) >= 18
    assert events_kept(math.inf, seed) < 5
