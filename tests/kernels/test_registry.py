"""Which form of an operator runs: what is asked for, what is possible, what is said about it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from vismem.kernels import registry
from vismem.kernels.launch import capability, compiling, launch
from vismem.kernels.registry import Mode, uses_triton, using


class Elsewhere:
    """Stands in for a tensor on a device that is not here."""

    def __init__(self, kind: str):
        self.device = torch.device(kind)


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton as it is without a GPU, its interpreter at hand; what was said is said again."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    registry._tell.cache_clear()
    yield
    registry._tell.cache_clear()


HERE = torch.zeros(1)


@pytest.mark.parametrize(("mode", "runs"), [("auto", False), ("torch", False), ("triton", True)])
def test_each_mode_on_a_processor(mode: Mode, runs: bool) -> None:
    pytest.importorskip("triton")
    with using(mode):
        assert uses_triton("op", HERE) is runs


def test_a_block_ends_as_it_began() -> None:
    pytest.importorskip("triton")
    with using("triton"):
        with using("torch"):
            assert not uses_triton("op", HERE)
        assert uses_triton("op", HERE)
        with pytest.raises(KeyError), using("torch"):
            raise KeyError
        assert uses_triton("op", HERE)


def test_an_unknown_mode_is_refused() -> None:
    before = registry._mode
    with pytest.raises(ValueError, match="auto, torch, triton, not 'cuda'"), using("cuda"):
        pass
    assert registry._mode == before


def test_by_name_a_form_that_cannot_run_says_why() -> None:
    pytest.importorskip("triton")
    with using("triton"), pytest.raises(RuntimeError, match="op cannot run in Triton: too wide"):
        uses_triton("op", HERE, "too wide")
    with using("triton"), pytest.raises(RuntimeError, match="CUDA devices, not mps"):
        uses_triton("op", Elsewhere("mps"))


def test_without_the_interpreter_a_processor_runs_no_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with using("triton"), pytest.raises(RuntimeError, match="CUDA devices, not cpu"):
        uses_triton("op", HERE)


def test_without_triton_nothing_runs_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    with using("triton"), pytest.raises(RuntimeError, match="triton is not installed"):
        uses_triton("op", HERE)
    assert not uses_triton("op", HERE)


@pytest.mark.parametrize(
    ("found", "runs"), [((7, 5), False), ((8, 0), True), ((9, 0), True), ((10, 0), True)]
)
def test_a_device_needs_the_capability(
    found: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: found)
    monkeypatch.setattr(torch.version, "hip", None)
    assert uses_triton("op", Elsewhere("cuda")) is runs


def test_amd_devices_run_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 4))
    assert not uses_triton("op", Elsewhere("cuda"))


def test_falling_back_is_said_once_for_each_operator_and_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("triton")
    with caplog.at_level(logging.WARNING, registry.__name__):
        for _ in range(3):
            for op in ("one", "two"):
                assert not uses_triton(op, Elsewhere("mps"))
        said = [record.getMessage() for record in caplog.records]
    reason = "runs in PyTorch: its kernels are made for CUDA devices, not mps"
    assert said == [f"one {reason}", f"two {reason}"]


def test_a_processor_is_the_usual_place_and_nothing_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, registry.__name__):
        assert not uses_triton("op", HERE, "too wide")
        with using("torch"):
            assert not uses_triton("op", Elsewhere("mps"))
    assert not caplog.records


@pytest.mark.parametrize("mode", ["auto", "torch", "triton"])
def test_the_choice_is_made_while_a_graph_is_traced(mode: Mode) -> None:
    pytest.importorskip("triton")

    def choose(x: Tensor) -> Tensor:
        return x + 1 if uses_triton("op", x) else x + 2

    torch._dynamo.reset()
    with using(mode):
        compiled = torch.compile(choose, fullgraph=True, backend="eager")
        assert compiled(HERE).item() == choose(HERE).item() == (1 if mode == "triton" else 2)


class Kernel:
    """Notes how it is started, as a kernel of Triton is."""

    __name__ = "kernel"

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __getitem__(self, grid: tuple[int, ...]):
        return lambda *args, **options: self.calls.append(("run", grid, args, options))

    def warmup(self, *args, grid: tuple[int, ...], **options) -> str:
        self.calls.append(("compile", grid, args, options))
        return "made"


def test_a_kernel_is_run_unless_there_is_nothing_to_do() -> None:
    kernel = Kernel()
    launch(kernel, (0, 3), 1)
    assert not kernel.calls
    launch(kernel, (2, 3), 1, BLOCK=4, num_warps=8)
    assert kernel.calls == [("run", (2, 3), (1,), {"BLOCK": 4, "num_warps": 8})]


def test_while_compiling_nothing_is_run() -> None:
    kernel = Kernel()
    with compiling((9, 0)) as made:
        launch(kernel, (0,), 1, BLOCK=4)
        assert capability() == (9, 0)
        with compiling((8, 0)) as inner:
            assert capability() == (8, 0)
        assert not inner and capability() == (9, 0)
    assert made == [("kernel", "made")]
    assert kernel.calls == [("compile", (0,), (1,), {"BLOCK": 4})]
    launch(kernel, (1,))
    assert kernel.calls[-1][0] == "run"


def test_kernels_are_made_for_the_device_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert capability() == (8, 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (12, 0))
    assert capability() == (12, 0)


@pytest.mark.parametrize(("value", "runs"), [(None, "False"), ("triton", "True")])
def test_the_environment_decides_for_a_process(value: str | None, runs: str) -> None:
    pytest.importorskip("triton")
    made = _process("print(uses_triton('op', torch.zeros(1)))", value)
    assert made.stdout.strip() == runs, made.stderr


def test_a_wrong_word_in_the_environment_stops_the_process() -> None:
    made = _process("", "Triton")
    assert made.returncode and "VISMEM_KERNELS is one of auto, torch, triton" in made.stderr


def _process(code: str, value: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: here for name, here in os.environ.items() if name != "VISMEM_KERNELS"}
    if value is not None:
        environment["VISMEM_KERNELS"] = value
    code = f"import torch\nfrom vismem.kernels.registry import uses_triton\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600
    )
