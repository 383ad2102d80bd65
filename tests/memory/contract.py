"""The lines that every memory keeps; a bank's test inherits them all and adds its own."""

from __future__ import annotations

import contextlib
import io
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vismem.memory.base import Memory, Recall

State = Mapping[str, Tensor]
Observation = dict[str, Any]  # the arguments of one write: tokens, time and what a bank takes

_settings = settings(
    max_examples=20,
    derandomize=True,
    # A line is inherited by the test of every bank.
    suppress_health_check=[HealthCheck.differing_executors],
)


def same(one: State, other: State) -> bool:
    """Whether two states are equal bit for bit; NaN is equal to itself."""
    return set(one) == set(other) and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].numpy().tobytes() == other[name].numpy().tobytes()
        for name in one
    )


def copied(state: State) -> State:
    """The state as another process would read it from a file."""
    file = io.BytesIO()
    torch.save(dict(state), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def recalled(recall: Recall) -> State:
    """Everything that a read gave, to be compared."""
    return {
        name: getattr(recall, name).clone()
        for name in Recall.__slots__
        if getattr(recall, name) is not None
    }


class Work(TorchDispatchMode):
    """What is done inside ``with``: lines of this library run, elements of tensors touched."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = self.elements = 0

    def __enter__(self) -> Work:
        self._before = sys.gettrace()
        sys.settrace(self._called)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        sys.settrace(self._before)

    def _called(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._ran if frame.f_globals.get("__name__", "").startswith("vismem.") else None

    def _ran(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.lines += event == "line"
        return self._ran

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None):
        result = operator(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, Tensor):
                self.elements += value.numel()
        return result


class MemoryContract(ABC):
    """Inherit as ``class TestMyBank(MemoryContract)``; say how it is made and what it is fed.

    A line that a bank cannot keep is named in `cannot` with the reason, which shows as a skip.
    """

    small: int  # bytes: the budget that 200 observations do not fit into
    large: int  # bytes: the budget that 200 observations fit into
    max_tokens: int
    axes: ClassVar[int] = 2  # of a token's position: 2 in the picture, 3 in the world
    cannot: ClassVar[Mapping[str, str]] = {}  # name of a line -> why this bank cannot keep it

    @pytest.fixture(autouse=True)
    def leave_out_what_the_bank_cannot_keep(self, request: pytest.FixtureRequest) -> None:
        if reason := self.cannot.get(request.function.__name__):
            pytest.skip(reason)

    def test_what_cannot_be_kept_is_a_line_of_the_contract(self) -> None:
        assert all(hasattr(MemoryContract, line) and why for line, why in self.cannot.items())

    @abstractmethod
    def make(self, budget: int) -> Memory:
        """A new, empty instance, each of the same configuration."""

    @abstractmethod
    def make_other(self, budget: int) -> Memory:
        """A new instance of another configuration, whose state does not fit."""

    @abstractmethod
    def observation(self, number: int, seed: int = 0) -> Observation:
        """The arguments of a write; a function of its own, with times that never go back."""

    @abstractmethod
    def query(self) -> Tensor:
        """Something to read with."""

    def hostile(self, good: Observation) -> Mapping[str, Observation]:
        """What else the bank must refuse, by name; made of an observation that it would take."""
        return {}

    # ------------------------------------------------------------------ shorthands

    def write(self, memory: Memory, numbers: range, seed: int = 0) -> Memory:
        for number in numbers:
            memory.write(**self.observation(number, seed))
        return memory

    # ------------------------------------------------------------------ the budget

    @_settings
    @given(st.one_of(st.sampled_from([0, 1, 2, 3]), st.integers(0, 1_000_000)))
    def test_the_budget_holds_after_every_write(self, drawn: int) -> None:
        budget = drawn % (self.small + 1)
        memory = self.make(budget)
        assert memory.nbytes == 0
        for number in range(60):
            report = memory.write(**self.observation(number))
            assert report.nbytes == memory.nbytes <= budget == memory.budget.bytes
        self.check_recall(memory, 60)

    def test_the_small_budget_is_really_small(self) -> None:
        """Else the lines above and below say nothing."""
        tight, loose = self.make(self.small), self.make(self.large)
        assert self.write(loose, range(200)).nbytes > self.small
        assert 0 < self.write(tight, range(200)).nbytes <= self.small

    # ------------------------------------------------------------------ repeatability

    def test_the_same_input_twice_gives_the_same(self) -> None:
        one, other = (self.write(self.make(self.small), range(200)) for _ in range(2))
        assert same(one.state_dict(), other.state_dict())

    def test_frame_by_frame_is_as_many_at_once(self) -> None:
        given = [self.observation(n) for n in range(150)]
        by_frame, at_once = self.make(self.small), self.make(self.small)
        reports = [by_frame.write(**observation) for observation in given]
        tokens = torch.stack([observation.pop("tokens") for observation in given])
        times = [observation.pop("time") for observation in given]
        assert at_once.write_many(tokens, times, given) == reports
        assert same(by_frame.state_dict(), at_once.state_dict())

    def test_streams_together_are_as_streams_apart(self) -> None:
        seeds = range(3)
        apart = [self.write(self.make(self.small), range(120), seed) for seed in seeds]
        together = [self.make(self.small) for _ in seeds]
        for number in range(120):
            for seed in seeds:
                together[seed].write(**self.observation(number, seed))
        for one, other in zip(apart, together, strict=True):
            assert same(one.state_dict(), other.state_dict())
        assert not same(together[0].state_dict(), together[1].state_dict())

    def test_global_generators_are_neither_used_nor_moved(self) -> None:
        states = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
            before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
            memory = self.write(self.make(self.small), range(120))
            memory.read(self.query())
            after = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
            assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
            states.append(memory.state_dict())
        assert same(*states)

    @_settings
    @given(st.integers(0, 160), st.booleans())
    def test_save_kill_load_continue_is_bit_equal(self, cut: int, tight: bool) -> None:
        budget = self.small if tight else self.large
        whole = self._uninterrupted(budget)
        before = self.write(self.make(budget), range(cut))
        state = copied(before.state_dict())
        after = self.make(budget)
        after.load_state_dict(state)
        assert same(after.state_dict(), before.state_dict()) and after.nbytes == before.nbytes
        self.write(after, range(cut, 160))
        assert same(after.state_dict(), whole.state_dict()) and after.nbytes == whole.nbytes
        assert same(recalled(after.read(self.query())), recalled(whole.read(self.query())))

    def _uninterrupted(self, budget: int) -> Any:
        """One that was never saved, made once a test."""
        made = vars(self).setdefault("_made", {})
        if budget not in made:
            made[budget] = self.write(self.make(budget), range(160))
        return made[budget]

    def test_an_incomplete_state_is_refused(self) -> None:
        state = self.write(self.make(self.small), range(100)).state_dict()
        memory = self.write(self.make(self.small), range(10), seed=1)
        before = copied(memory.state_dict())
        for name in state:
            with pytest.raises(ValueError):
                memory.load_state_dict({k: v for k, v in state.items() if k != name})
                pytest.fail(f"a state without {name} was taken")
            assert same(memory.state_dict(), before), f"a state without {name} left traces"

    @pytest.mark.parametrize("writes", [1, 100])
    def test_the_state_of_another_configuration_is_refused(self, writes: int) -> None:
        state = self.write(self.make(self.large), range(writes)).state_dict()
        other = self.make_other(self.large)
        before = copied(other.state_dict())
        with pytest.raises(ValueError):
            other.load_state_dict(state)
        assert same(other.state_dict(), before)

    def test_reset_is_a_new_beginning(self) -> None:
        memory = self.write(self.make(self.small), range(50, 200))
        memory.reset()
        assert memory.nbytes == 0 and len(memory.read().tokens) == 0
        assert same(memory.state_dict(), self.make(self.small).state_dict())
        self.write(memory, range(40))  # earlier than what was forgotten
        assert same(memory.state_dict(), self.write(self.make(self.small), range(40)).state_dict())

    # ------------------------------------------------------------------ reading

    def check_recall(self, memory: Memory, writes: int) -> None:
        written = [self.observation(number)["time"] for number in range(writes)]
        for query in (None, self.query()):
            recall = memory.read(query)
            count = len(recall.tokens)
            times, sources = recall.times.tolist(), recall.sources.tolist()
            assert times == sorted(times) and set(times) <= set(written)
            assert all(0 <= source < writes for source in sources)
            assert all(written[s] <= at for s, at in zip(sources, times, strict=True))
            assert recall.times.dtype == torch.float64
            assert recall.weights.dtype == recall.sources.dtype == torch.int64
            assert recall.weights.shape == recall.scores.shape == (count,)
            assert bool((recall.weights > 0).all()) and bool(torch.isfinite(recall.tokens).all())
            weight_of = dict(zip(sources, recall.weights.tolist(), strict=True))
            assert sum(weight_of.values()) <= writes
            if recall.positions is not None:
                assert recall.positions.shape == (count, self.axes)
            if query is None:
                assert not recall.scores.any()

    @pytest.mark.parametrize("tight", [True, False])
    def test_what_is_read_is_true(self, tight: bool) -> None:
        memory = self.make(self.small if tight else self.large)
        self.check_recall(memory, 0)
        for number in range(120):
            memory.write(**self.observation(number))
            if number % 17 == 0:
                self.check_recall(memory, number + 1)

    def test_weights_sum_to_the_writes_where_all_fit(self) -> None:
        recall = self.write(self.make(self.large), range(120)).read(k=120)
        weight_of = dict(zip(recall.sources.tolist(), recall.weights.tolist(), strict=True))
        assert sum(weight_of.values()) == 120

    def test_reading_changes_nothing(self) -> None:
        memory = self.write(self.make(self.small), range(100))
        before = copied(memory.state_dict())
        for query in (None, self.query()):
            memory.read(query)
            memory.snapshot().read(query)
        assert same(memory.state_dict(), before)

    def test_a_snapshot_never_changes(self) -> None:
        memory = self.write(self.make(self.small), range(101))
        snapshot = memory.snapshot()
        before = [recalled(snapshot.read(query, k=1000)) for query in (None, self.query())]
        self.write(memory, range(101, 301))
        after = [recalled(snapshot.read(query, k=1000)) for query in (None, self.query())]
        assert all(map(same, before, after))
        now = recalled(memory.read(k=1000))
        assert not same(before[0], now)

    # ------------------------------------------------------------------ hostile writes

    def all_hostile(self, good: Observation) -> dict[str, Observation]:
        tokens: Tensor = good["tokens"]
        broken: dict[str, Callable[[Tensor], Tensor]] = {
            "NaN": lambda t: t.index_fill(0, torch.tensor([0]), torch.nan),
            "infinity": lambda t: t.index_fill(0, torch.tensor([0]), -torch.inf),
            "beyond float16": lambda t: t.float().index_fill(0, torch.tensor([0]), 1e6),
            "too wide": lambda t: torch.cat([t, t[:, :1]], 1),
            "too narrow": lambda t: t[:, 1:],
            "one dimension": lambda t: t[0],
            "three dimensions": lambda t: t[None],
            "empty": lambda t: t[:0],
            "too many": lambda t: t[:1].expand(self.max_tokens + 1, -1),
        }
        cases = {f"tokens: {what}": good | {"tokens": do(tokens)} for what, do in broken.items()}
        times = {"NaN": np.nan, "infinity": np.inf, "backwards": good["time"] - 1e3}
        return (
            cases
            | {f"time: {what}": good | {"time": value} for what, value in times.items()}
            | dict(self.hostile(good))
        )

    def test_a_hostile_write_is_refused_and_changes_nothing(self) -> None:
        memory, spared = self.make(self.small), self.make(self.small)
        for number in (0, 50, 90):
            self.write(memory, range(number, number + 9))
            self.write(spared, range(number, number + 9))
            before = copied(memory.state_dict())
            for what, observation in self.all_hostile(self.observation(number + 9)).items():
                with pytest.raises(ValueError):
                    memory.write(**observation)
                    pytest.fail(f"taken: {what}")
                assert same(memory.state_dict(), before), f"left traces: {what}"
        self.write(memory, range(100, 130))
        assert same(memory.state_dict(), self.write(spared, range(100, 130)).state_dict())

    def test_what_was_handed_over_may_be_changed_afterwards(self) -> None:
        memory = self.make(self.large)
        for number in range(30):
            observation = self.observation(number)
            memory.write(**observation)
            for value in observation.values():
                for tensor in value.values() if isinstance(value, dict) else [value]:
                    if isinstance(tensor, Tensor):
                        tensor.zero_()
        assert same(memory.state_dict(), self.write(self.make(self.large), range(30)).state_dict())

    # ------------------------------------------------------------------ for ever

    @pytest.mark.slow
    def test_fifty_thousand_writes_keep_bytes_and_cost_flat(self) -> None:
        memory = self.make(self.small)
        given = [self.observation(number) for number in range(1000)]
        length = given[-1]["time"] - given[0]["time"] + 1.0
        early, late = Work(), Work()
        sizes = []
        for turn in range(50):
            # Counted, not timed: the same on every machine, whatever else it does.
            with {2: early, 49: late}.get(turn, contextlib.nullcontext()):
                for observation in given:
                    memory.write(**observation | {"time": observation["time"] + turn * length})
                    sizes.append(memory.nbytes)
        assert max(sizes) <= self.small
        assert min(sizes[1000:]) > self.small / 2  # used, too
        state = sum(tensor.nbytes for tensor in memory.state_dict().values())
        assert state < 2 * self.small
        assert early.lines > 10_000 and early.elements > 100_000  # the counting itself works
        assert late.lines < 1.2 * early.lines, "writes run through more and more lines"
        assert late.elements < 1.2 * early.elements, "writes touch more and more elements"
