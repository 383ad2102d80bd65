"""Compile every kernel for Ampere and Hopper without a GPU, and look at what came out.

``python benchmarks/kernels/aot.py`` compiles all cases through the launchers that a GPU would run,
prints a table of registers, shared memory, loads and tensor-core instructions, and exits with 1 if
a line is red: spilled registers, more shared memory than a block may have, narrower loads than the
table in ``docs/kernels.md`` allows, no tensor cores where a case means them. ``--write`` renews
that table.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from case import Case, load_cases
from tables import DOCS, markdown, put, taken

from kernels.launch import Capability, Compiled, compiling
from kernels.tuning import trying

HERE = Path(__file__).parent
SHARED = {(8, 0): 163 * 1024, (9, 0): 227 * 1024}  # bytes that one block may have
PRODUCTS = {"HGMMA": "wgmma", "IGMMA": "wgmma", "HMMA": "mma", "IMMA": "mma", "DMMA": "mma"}
MARK = "ahead of time"
COLUMNS = [
    "kernel", "size", "sm", "warps", "stages", "registers", "shared KiB", "wide", "narrow",
    "products", "verdict",
]  # fmt: skip


@dataclass
class Line:
    """What became of one kernel; see the table for the names."""

    op: str
    kernel: str
    size: str
    target: Capability
    warps: int = 0
    stages: int = 0
    registers: int = 0
    stack: int = 0
    local: int = 0  # loads from and stores to local memory, which is where spilled registers go
    shared: int = 0
    wide: int = 0  # global loads of 128 bits, bulk copies among them
    narrow: int = 0  # all others
    products: dict[str, int] = field(default_factory=dict)
    made: str = ""  # what it was compiled from, source and types and constants, as one number
    means: str | None = None
    complaints: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, str]:
        """What finds it in the table again."""
        return f"{self.op} `{self.kernel}`", self.size, "{}{}".format(*self.target)

    @property
    def cells(self) -> list[str]:
        """Its row of the table."""
        products = ", ".join(f"{count} {name}" for name, count in sorted(self.products.items()))
        figures = self.warps, self.stages, self.registers, round(self.shared / 1024, 1)
        verdict = "; ".join(self.complaints) or "ok"
        return [*self.key, *map(str, (*figures, self.wide, self.narrow, products or "-")), verdict]

    def judge(self, known: tuple[int, int] | None, same: bool) -> None:
        """Say what is wrong with it.

        Args:
            known: Wide and narrow loads in the table; None if it has no such row.
            same: Whether the table is of this version of Triton. Versions differ in how many
                threads load a number that all need, so of another's only wide loads are missed.
        """
        if self.stack or self.local:
            self.complaints.append(f"spills: stack {self.stack}, {self.local} local accesses")
        if self.shared > SHARED[self.target]:
            self.complaints.append(f"more shared memory than {SHARED[self.target] // 1024} KiB")
        found = {PRODUCTS[name] for name in self.products}
        meant = "mma" if self.means and self.target < (9, 0) else self.means
        if meant and meant not in found:
            self.complaints.append(f"no {meant} instruction")
        if known is None:
            self.complaints.append("not in the table")
        elif same and self.narrow > known[1]:
            self.complaints.append(f"{self.narrow} narrow loads, not {known[1]}")
        elif known[0] and not self.wide:
            self.complaints.append(f"no wide loads, not {known[0]}")


class Stub:
    """A driver that says which GPU there is, and has none."""

    def __init__(self, target: Capability):
        from triton.backends.compiler import GPUTarget

        self.arch = target[0] * 10 + target[1]
        self.target = GPUTarget("cuda", self.arch, 32)

    def get_current_target(self) -> Any:
        """What to compile for."""
        return self.target

    def get_current_device(self) -> int:
        """Kernels are kept by device: each target is one of its own."""
        return self.arch

    def get_current_stream(self, device: int) -> int:
        """Ask for nothing."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Name the device of tensors without data."""
        return torch.device("meta")


def compiled(case: Case, target: Capability, shortlists: bool = False) -> Iterator[Compiled]:
    """Compile a case through its launcher.

    Args:
        case: Its inputs are made without data.
        target: Capability of the GPU.
        shortlists: Whether every size that is worth a try is compiled, not the chosen ones alone.
    """
    from triton.runtime.driver import driver

    assert os.environ.get("TRITON_INTERPRET") != "1", "the interpreter compiles nothing"
    driver.set_active(Stub(target))
    with compiling(target), trying({}) as asked:
        case.ours(*case.inputs("meta", 0))
        rest = [(key, config) for key, listed in asked.items() for config in listed[1:]]
    for key, config in [(None, None), *(rest if shortlists else [])]:
        with compiling(target) as made, trying({key: config} if key else {}):
            case.ours(*case.inputs("meta", 0))
        yield from made


def lines(folder: Path, number: int, target: Capability, shortlists: bool = False) -> list[Line]:
    """Compile one case and read what came out.

    Args:
        folder: Where the cases are.
        number: Of the case.
        target: Capability of the GPU.
        shortlists: As `compiled` takes it.
    """
    case = load_cases(folder)[number]
    found = {}
    try:
        for name, made in compiled(case, target, shortlists):
            line = _read(case, name, made, target)
            found.setdefault(line.made, line)
    except Exception as error:
        broken = Line(case.op, "?", case.name, target, made=f"{case.op} {case.name}")
        broken.complaints.append(
            f"{type(error).__name__}: {error}".splitlines()[0][:100].replace("|", "/")
        )
        return [*found.values(), broken]
    return list(found.values())


def precompile(folder: Path, number: int, target: Capability, shortlists: bool) -> None:
    """Compile one case into Triton's cache, for a program that will run it; see `lines`."""
    with suppress(Exception):  # that program will meet the error again, and tell it
        for _ in compiled(load_cases(folder)[number], target, shortlists):
            pass


def _read(case: Case, name: str, made: Any, target: Capability) -> Line:
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__path__[0]) / "bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(made.asm["cubin"])
        cubin.flush()
        dumped = [
            subprocess.run([tool, flag, cubin.name], capture_output=True, text=True, check=True)
            for flag in ("--dump-resource-usage", "--dump-sass")
        ]
    usage, sass = (run.stdout for run in dumped)
    resources = {key: int(value) for key, value in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    counts = Counter(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\S+\s+)?([A-Z][\w.]*)", sass, re.M))
    products, loads, local = Counter(), Counter(), 0
    for instruction, count in counts.items():
        kind, *marks = instruction.split(".")
        if kind in PRODUCTS:
            products[kind] += count
        elif kind in ("LDG", "LDGSTS"):
            loads["wide" if "128" in marks else "narrow"] += count
        elif kind in ("UTMALDG", "UBLKCP"):
            loads["wide"] += count
        elif kind in ("LDL", "STL"):
            local += count
    return Line(
        case.op, name, case.name, target, made.metadata.num_warps, made.metadata.num_stages,
        resources["REG"], resources["STACK"], local, made.metadata.shared,
        loads["wide"], loads["narrow"], dict(products), made.hash,
        case.tensor_cores.get(name),
    )  # fmt: skip


def loads(table: Path) -> dict[tuple[str, ...], tuple[int, int]]:
    """Wide and narrow loads of each row of a table."""
    wide, narrow = COLUMNS.index("wide"), COLUMNS.index("narrow")
    return {tuple(row[:3]): (int(row[wide]), int(row[narrow])) for row in taken(table, MARK)}


def as_table(found: list[Line]) -> str:
    """Lines in Markdown."""
    table = markdown(COLUMNS, [line.cells for line in found])
    return f"{_version()}, by `python benchmarks/kernels/aot.py`:\n\n{table}"


def _version() -> str:
    import triton

    return f"Triton {triton.__version__}"


def main() -> int:
    """Print the table; 1 if a line of it is red."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="name of one operator")
    parser.add_argument("--sm", type=int, nargs="*", default=[80, 90], choices=[80, 90])
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile")
    parser.add_argument("--shortlists", action="store_true", help="all sizes worth a try, unjudged")
    parser.add_argument("--cases", type=Path, default=HERE / "cases", help="a folder of cases")
    parser.add_argument("--table", type=Path, default=DOCS, help="file that holds the table")
    parser.add_argument("--write", action="store_true", help="renew the table in that file")
    options = parser.parse_args()
    if options.write and (options.only or options.shortlists or options.sm != [80, 90]):
        parser.error("--write renews the whole table: leave --only, --sm and --shortlists away")
    os.environ.pop("TRITON_INTERPRET", None)

    cases = load_cases(options.cases)
    work = [
        (number, divmod(sm, 10))
        for number, case in enumerate(cases)
        for sm in options.sm
        if options.only in (None, case.op) and not case.small
    ]
    numbers, targets = [number for number, _ in work], [target for _, target in work]
    jobs = repeat(options.cases), numbers, targets, repeat(options.shortlists)
    if options.jobs > 1:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.jobs, mp_context=spawn) as pool:
            made = list(pool.map(lines, *jobs))
    else:
        made = list(map(lines, *jobs))
    # A kernel that several sizes share is told once.
    told: dict[tuple[Capability, str], Line] = {}
    for line in chain.from_iterable(made):
        told.setdefault((line.target, line.made), line)
    found = list(told.values())
    unjudged = options.write or options.shortlists
    known = loads(options.table)
    same = options.table.exists() and f"{_version()}," in options.table.read_text()
    for line in found:
        line.judge((line.wide, line.narrow) if unjudged else known.get(line.key), same)
    print(as_table(found))
    red = sum(bool(line.complaints) for line in found)
    print(f"\n{len(found) - red} of {len(found)} kernels are as they should be")
    if options.write:
        put(options.table, MARK, as_table(found))
    return int(red > 0)


if __name__ == "__main__":
    sys.exit(main())
