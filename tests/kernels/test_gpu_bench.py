"""The benchmark of the kernels: wrong ones are found and get no speed, and a dry run goes through.

Nothing here needs a GPU; what a GPU alone can show is not tested.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import gpu_bench
import pytest
import torch
import tune
from case import Case, load_cases, normal
from clock import Ceilings, GpuClock, Timing, side_by_side
from gate import check, comparable, mapped, tensors
from torch import Tensor

from kernels.tuning import Config, config_for

ROOT = Path(__file__).parents[2]


def case(**changes) -> Case:
    """Doubling of 8 x 4 numbers."""

    def double(x: Tensor) -> Tensor:
        return 2 * x

    def inputs(device: str, seed: int) -> tuple:
        return (normal(device, seed, 8, 4),)

    parts = {"inputs": inputs, "ours": double, "reference": double, "torch": double}
    return Case(**{"op": "double", "name": "8 x 4", **parts, **changes})


def test_what_is_right_passes() -> None:
    complaint, error = check(case(), "cpu", lambda x: x + x)
    assert complaint is None and error < 1e-7


def test_an_output_that_is_not_written_is_found() -> None:
    def forgets(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        out[:-1] = 2 * x[:-1]
        return out

    assert "off by nan" in str(check(case(), "cpu", forgets)[0])
    assert torch.are_deterministic_algorithms_enabled() is False


def test_a_count_that_is_not_written_is_found() -> None:
    def rows(x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.int64)

    def forgets(x: Tensor) -> Tensor:
        return torch.empty(len(x), dtype=torch.int32)

    assert check(case(reference=rows), "cpu", rows)[0] is None
    assert "result 0 differs" in str(check(case(reference=rows), "cpu", forgets)[0])


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (lambda x: 2.0001 * x, "off by"),
        (lambda x: 2 * x[:-1], "shape"),
        (lambda x: (), "no result"),
        (lambda x: torch.where(x > 0, torch.inf, 2 * x), "off by inf"),
    ],
)
def test_what_is_wrong_is_found(wrong, complaint: str) -> None:
    assert complaint in str(check(case(), "cpu", wrong)[0])
    assert complaint in str(comparable(case(), "cpu", wrong))


def test_a_wrong_result_of_a_later_seed_is_found() -> None:
    first = case().inputs("cpu", 1000)[0]
    assert "seed 2" in str(check(case(), "cpu", lambda x: 2 * x if torch.equal(x, first) else x)[0])


def test_bits_that_change_from_call_to_call_are_found() -> None:
    calls = []

    def moving(x: Tensor) -> Tensor:
        calls.append(x)
        return 2 * x * (1 + 1e-6 * (len(calls) == 20))

    assert check(case(), "cpu", moving)[0] == "repeat 19 gives other bits"


def test_results_that_are_left_out_are_missed_of_an_operator_alone() -> None:
    two = case(reference=lambda x: (2 * x, x))
    assert check(two, "cpu", lambda x: (2 * x,))[0] == "seed 1: results are left out"
    assert comparable(two, "cpu", lambda x: 2 * x) is None


def test_equal_infinities_are_equal() -> None:
    def unseen(x: Tensor) -> Tensor:
        return (2 * x).index_fill(0, torch.tensor([0]), -torch.inf)

    assert check(case(reference=unseen), "cpu", unseen)[0] is None
    assert "off by inf" in str(check(case(reference=unseen), "cpu", lambda x: 2 * x)[0])


def test_parts_of_a_reference_are_put_together() -> None:
    asked = []

    def reference(x: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(len(x))
        return 2 * x, x.sum(1)

    both = case(reference=reference, parts=lambda inputs: [(p,) for p in inputs[0].split(3)])
    assert check(both, "cpu", lambda x: (2 * x, x.sum(1)), repeats=0)[0] is None
    assert asked == 3 * [3, 3, 2]


def test_a_case_may_compare_by_itself() -> None:
    lax = case(same=lambda result, wanted: None if len(result) == len(wanted) else "count")
    assert check(lax, "cpu", lambda x: x)[0] is None
    assert "count" in str(check(lax, "cpu", lambda x: x[1:])[0])


@dataclass(frozen=True)
class Plan:
    numbers: Tensor
    rest: dict
    count: int = 3


def test_tensors_are_found_wherever_they_are() -> None:
    value = (torch.ones(2), [Plan(torch.zeros(3), {"a": torch.ones(1)})], None, 4)
    changed = mapped(value, Tensor.double)
    assert [len(part) for part in tensors(changed)] == [2, 3, 1]
    assert all(part.dtype == torch.float64 for part in tensors(changed))
    assert changed[1][0].count == 3 and changed[2:] == (None, 4)


class Clock:
    """Says how long a call takes by the tile it was given."""

    device = "cpu"

    def sets(self, case: Case) -> list[tuple]:
        return [case.inputs("cpu", 1)]

    def time(self, call, sets: list[tuple]) -> Timing:
        call(*sets[0])
        return Timing(float(self.last), 0.0, "cold")


def test_the_fastest_size_that_is_right_is_chosen() -> None:
    clock = Clock()
    shortlist = [Config({"BLOCK": size}) for size in (64, 8, 16, 32)]

    def ours(x: Tensor) -> Tensor:
        clock.last = config_for("double", "wide", shortlist).tiles["BLOCK"]
        if clock.last == 16:
            raise RuntimeError("does not compile")
        return (1 if clock.last == 8 else 2) * x

    chosen = tune.tune([case(ours=ours)], clock, lambda: 1.0)
    assert chosen == {"double": {"wide": shortlist[3].as_json()}}
    assert tune.tune([case(ours=ours)], clock, lambda: -1.0) == {}


def test_no_speed_is_told_of_what_is_wrong() -> None:
    clock = Clock()
    clock.last = 12345
    best = Ceilings(1e12, 1e12)
    wrong = gpu_bench.measure(case(ours=lambda x: x), clock, best, lambda: 100.0)
    broken = gpu_bench.measure(case(ours=lambda x: x @ x), clock, best, lambda: 100.0)
    fine = gpu_bench.measure(
        case(moved=1e6, baselines={"off": lambda x: x, "fails": lambda x: x @ x}),
        clock,
        best,
        lambda: 99.0,
    )
    table = gpu_bench.as_table([wrong, broken, fine], processor=False).splitlines()[2:]
    assert "FAIL seed 1" in table[0] and "FAIL RuntimeError" in table[1]
    assert not any("12345" in row or "%" in row for row in table[:2])
    assert "| 12345.0 | 1.0 | 0% | cold | PyTorch's form 1.00, off 1.00*, fails: - |" in table[2]


def test_nothing_is_begun_when_time_is_nearly_spent() -> None:
    clock = Clock()
    clock.last = 7
    entry = gpu_bench.measure(case(), clock, Ceilings(1, 1), lambda: 1.0)
    assert entry["us"] == 7 and entry["others"][gpu_bench.FORM] == {"left_out": "no time left"}
    options = SimpleNamespace(interpret=True, tune=False, ceilings=[1, 1])
    entries = gpu_bench.all_of_them(options, lambda: 1.0)
    assert entries and all(entry["left_out"] == "no time left" for entry in entries)


def test_forms_are_timed_by_turns() -> None:
    order = []

    def form(name: str):
        def call(x: Tensor) -> None:
            order.append(name)
            (x @ x).sum()

        return call

    times = side_by_side({"a": form("a"), "b": form("b")}, (torch.ones(64, 64),), rounds=3)
    assert set(times) == {"a", "b"} and min(times.values()) > 0
    turns = "".join(name for name, _ in groupby(order))
    assert turns == "ababa"  # once each, then b a, a b, b a


class FakeEvent:
    """Reads a clock of the host in place of one of a GPU."""

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1e3 * (end.at - self.at)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the clock of a GPU asks of one, without a GPU; notes how it was asked."""
    noted = SimpleNamespace(debug="default", stream="main", graphs=0, replays=0)
    stream = SimpleNamespace(wait_stream=lambda other: None)

    class Graph:
        def replay(self) -> None:
            noted.replays += 1
            time.sleep(1e-3)

    @contextmanager
    def recording(graph: Graph):
        noted.graphs += 1
        yield

    fakes = {
        "Event": FakeEvent,
        "synchronize": lambda: None,
        "CUDAGraph": Graph,
        "graph": recording,
        "stream": lambda side: nullcontext(),
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "set_stream": lambda chosen: setattr(noted, "stream", chosen),
        "set_sync_debug_mode": lambda mode: setattr(noted, "debug", mode),
        "get_device_properties": lambda number: SimpleNamespace(L2_cache_size=1000),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(GpuClock, "device", "cpu")
    return noted


def test_short_calls_are_timed_in_a_graph_over_inputs_that_no_cache_holds(
    gpu: SimpleNamespace,
) -> None:
    clock, asked = GpuClock(), []
    sets = clock.sets(case())
    assert len(sets) == 24 and not torch.equal(sets[0][0], sets[1][0])  # 128 bytes each
    timing = clock.time(lambda x: asked.append(x), sets)
    assert timing.how == "graph, cold" and gpu.graphs == 1 and gpu.replays == 21
    assert 1000 / 24 <= timing.us < 1000 and len(asked) == 4 + 5 + 1 + 3 + 24
    assert gpu.debug == "default"


def test_a_call_that_waits_is_timed_without_a_graph(gpu: SimpleNamespace) -> None:
    def waits(x: Tensor) -> None:
        if gpu.debug == "error":
            raise RuntimeError("called a synchronizing CUDA operation\nsomewhere")

    timing = GpuClock().time(waits, [(torch.ones(4),)])
    assert timing.how == "warm, no graph: called a synchronizing CUDA operation"
    assert gpu.graphs == 0 and gpu.debug == "default" and timing.us > 0


def test_long_calls_are_timed_one_by_one(gpu: SimpleNamespace) -> None:
    timing = GpuClock().time(lambda x: time.sleep(0.02), [(torch.ones(1000),)] * 2)
    assert timing.how == "cold" and 2e4 <= timing.us < 1e5 and gpu.graphs == 0


def bench(root: Path, out: Path, *options: str) -> tuple[int, str, list[dict]]:
    """A dry run from a folder: exit status, what it printed, entries."""
    out.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    made = subprocess.run(
        [sys.executable, str(root / "benchmarks/kernels/gpu_bench.py"), "--interpret", *options],
        env={**environment, "OUT": str(out)},
        cwd=out,
        capture_output=True,
        text=True,
        timeout=900,
    )
    kept = out / "interpreter.json"
    assert kept.exists(), made.stdout + made.stderr
    return made.returncode, made.stdout, json.loads(kept.read_text())["cases"]


def test_a_planted_sign_is_found_by_a_dry_run_from_a_bare_checkout(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    for folder in ("kernels", "benchmarks/kernels"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "tests/kernels").mkdir(parents=True)
    shutil.copy(ROOT / "tests/kernels/interpreter.py", tmp_path / "tests/kernels")
    source = tmp_path / "kernels/ward/triton.py"
    text = source.read_text()
    assert text.count("many - one[None]") == 1
    source.write_text(text.replace("many - one[None]", "many + one[None]"))
    status, said, entries = bench(tmp_path, tmp_path / "out", "--only", "merge_costs")
    assert status == 1 and "FAIL seed 1: result 0 is off by" in said and len(entries) == 1
    assert "us" not in entries[0] and "1 of 1 cases are wrong" in said
    source.write_text(text)
    status, said, entries = bench(tmp_path, tmp_path / "out", "--only", "merge_costs", "--tune")
    assert status == 0 and "0 of 1 cases are wrong" in said and entries[0]["us"] > 0
    tuned = json.loads((tmp_path / "out/tuned_interpreter.json").read_text())
    assert list(tuned) == ["merge_costs"] and not list(tmp_path.glob("kernels/tuned/*"))


@pytest.mark.slow
def test_a_dry_run_goes_through_every_operator(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    status, said, entries = bench(ROOT, tmp_path, "--budget", "600")
    assert status == 0, said
    assert {entry["op"] for entry in entries} == {case.op for case in load_cases()}
    assert all(entry["us"] > 0 for entry in entries)


# What is said where a form of attention is forced, or gradients flow, and there is no GPU.
ONLY_A_GPU = "No available kernel", "CUDA driver", "No CUDA", "hasPrimaryContext"


def of_each_kind() -> list[Case]:
    """The first case of each operator and set of alternatives that is for a GPU."""
    cases = [case for case in load_cases() if not (case.processor or case.small)]
    return list({(case.op, *case.baselines): case for case in reversed(cases)}.values())


@pytest.mark.parametrize("case", of_each_kind(), ids=lambda case: f"{case.op}-{case.name}")
def test_what_is_compared_on_a_gpu_stays_there(case: Case) -> None:
    """Shapes alone, on a device that is not here: no number is computed."""
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensorMode,
    )

    unknown = DataDependentOutputException, DynamicOutputShapeException
    with FakeTensorMode(), torch.compiler.set_stance("force_eager"):
        inputs = mapped(
            case.inputs("meta", 0),
            lambda part: torch.empty_strided(
                part.shape, part.stride(), dtype=part.dtype, device="cuda"
            ),
        )
        exact = mapped(inputs, lambda part: part.double() if part.is_floating_point() else part)
        calls = {"reference": (case.reference, exact), "torch": (case.torch, inputs)}
        calls |= {name: (form, inputs) for name, form in case.baselines.items()}
        for name, (form, given) in calls.items():
            try:
                results = tensors(form(*given))
            except unknown:
                continue
            except RuntimeError as error:
                if not any(sign in str(error) for sign in ONLY_A_GPU):
                    raise
                continue
            assert {result.device.type for result in results} == {"cuda"}, name
