"""Check and time every operator on a GPU, in one call of less than eight minutes.

``python benchmarks/kernels/gpu_bench.py --budget 420`` measures what the machine can do at best,
compares every case with its reference, times it beside what PyTorch offers, prints a table and
writes ``results/<device>.json`` (into the folder ``$OUT`` where that is set). It exits with 1 if
a case is wrong, and prints no speed of such a case. Each operator runs in a process of its own:
a kernel that crashes takes no other with it. It needs torch, triton and numpy alone.

``--tune`` times the sizes that are worth a try first, and writes ``kernels/tuned/<device>.json``.
``--cpu`` compares PyTorch's forms with the alternatives on one thread of a processor; ``--write``
puts that table into ``docs/kernels.md``. ``--interpret`` goes through the whole of it in Triton's
interpreter, on tiny sizes, where the times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from aot import precompile
from case import Case, load_cases
from clock import Ceilings, GpuClock, HostClock, first_line, side_by_side
from gate import check, comparable
from tables import DOCS, markdown, put
from tune import tune

from kernels.tuning import FOLDER, device_key

HERE = Path(__file__).parent
FIRST = ["mem_xattn", "memory_attention", "topk_search", "aggregate", "kmeans_assign"]
RESERVE = 20.0  # seconds without which nothing more is started
FORM = "PyTorch's form"
Entry = dict[str, Any]
Clock = GpuClock | HostClock


def measure(case: Case, clock: Clock, best: Ceilings, left: Callable[[], float]) -> Entry:
    """Check a case, then time it and what it is compared with.

    Args:
        case: The size.
        clock: Of the device.
        best: What the device can do.
        left: Seconds until the end.
    """
    entry: Entry = {"op": case.op, "size": case.name, "others": {}}
    many = isinstance(clock, GpuClock)
    try:
        repeats = 25 if many else 1
        complaint, error = check(case, clock.device, case.ours, repeats=repeats)
        entry |= {"wrong": complaint, "error": error}
        if complaint:
            return entry
        sets = clock.sets(case)
        timing = clock.time(case.ours, sets)
    except Exception as error:
        return entry | {"wrong": f"{type(error).__name__}: {first_line(error)}"}
    floor = best.floor(case)
    entry |= {**asdict(timing), "floor_us": floor, "of_floor": floor / timing.us}
    for name, form in {FORM: case.torch, **case.baselines}.items():
        if left() < RESERVE:
            entry["others"][name] = {"left_out": "no time left"}
            continue
        try:
            differs = comparable(case, clock.device, form)
            other = clock.time(form, sets)
            told = {**asdict(other), "ratio": other.us / timing.us, "differs": differs}
            entry["others"][name] = told
        except Exception as error:
            entry["others"][name] = {"left_out": f"{type(error).__name__}: {first_line(error)}"}
    return entry


def one(op: str, options: argparse.Namespace, left: Callable[[], float]) -> list[Entry]:
    """Check and time the cases of one operator, and keep what is known after each."""
    clock: Clock = HostClock() if options.interpret else GpuClock()
    best = Ceilings(*options.ceilings) if options.ceilings else clock.ceilings()
    cases = [case for case in load_cases() if case.op == op and _wanted(case, options)]
    if options.tune:
        chosen = tune(cases, clock, lambda: left() - RESERVE)
        if chosen and not options.interpret:
            _keep(FOLDER / f"{device_key()}.json", chosen)
        if chosen and "OUT" in os.environ:
            _keep(Path(os.environ["OUT"]) / f"tuned_{_device(options)}.json", chosen)
    entries = []
    for case in cases:
        if left() < RESERVE:
            entries.append({"op": op, "size": case.name, "left_out": "no time left"})
        else:
            entries.append(measure(case, clock, best, left))
            print(f"  {op} {case.name}: {_verdict(entries[-1])}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(entries))
        if not options.interpret:
            torch.cuda.empty_cache()
    return entries


def all_of_them(options: argparse.Namespace, left: Callable[[], float]) -> list[Entry]:
    """Give each operator a process of its own."""
    cases = load_cases()
    ops = {case.op: None for case in cases if _wanted(case, options)}
    order = sorted(ops, key=lambda op: FIRST.index(op) if op in FIRST else len(FIRST))
    forward = [flag for flag in ("tune", "interpret") if getattr(options, flag)]
    command = [sys.executable, str(HERE / "gpu_bench.py"), *(f"--{flag}" for flag in forward)]
    command += ["--ceilings", *map(str, options.ceilings)]
    entries: list[Entry] = []
    for op in order:
        if left() < RESERVE:
            entries.append({"op": op, "size": "all", "left_out": "no time left"})
            continue
        with tempfile.TemporaryDirectory() as folder:
            known = Path(folder) / "entries.json"
            rest = ["--only", op, "--budget", f"{left():.0f}", "--json", str(known)]
            try:
                status = subprocess.run([*command, *rest], timeout=left() + RESERVE).returncode
                why = f"its process ended with {status}"
            except subprocess.TimeoutExpired:
                status, why = None, "its process did not end"
            entries += json.loads(known.read_text()) if known.exists() else []
            if status not in (0, 1) or not known.exists():
                entries.append({"op": op, "size": "next", "wrong": why})
    return entries


def compile_first(options: argparse.Namespace, left: Callable[[], float]) -> None:
    """Fill Triton's cache by as many processes as there are cores."""
    target, folder = torch.cuda.get_device_capability(), HERE / "cases"
    cases = enumerate(load_cases())
    work = [(folder, n, target, options.tune) for n, case in cases if _wanted(case, options)]
    with multiprocessing.get_context("spawn").Pool(min(16, os.cpu_count() or 1)) as pool:
        pool.starmap_async(precompile, work, chunksize=1).wait(left() / 3)


def on_a_processor(options: argparse.Namespace) -> list[Entry]:
    """Time PyTorch's forms beside the alternatives, on one thread."""
    entries = []
    for case in load_cases():
        if case.processor and options.only in (None, case.op):
            entries.append(_on_a_processor(case))
            print(f"  {case.op} {case.name}: {_verdict(entries[-1])}", flush=True)
    return entries


def _on_a_processor(case: Case) -> Entry:
    entry: Entry = {"op": case.op, "size": case.name, "others": {}}
    try:
        entry["wrong"], entry["error"] = check(case, "cpu", case.torch, repeats=2)
    except Exception as error:
        entry["wrong"] = f"{type(error).__name__}: {first_line(error)}"
    if entry["wrong"]:
        return entry
    forms, differs = {FORM: case.torch}, {}
    for name, form in case.baselines.items():
        try:
            differs[name] = comparable(case, "cpu", form)
            forms[name] = form
        except Exception as error:
            entry["others"][name] = {"left_out": first_line(error)}
    times = side_by_side(forms, case.inputs("cpu", 1))
    entry["us"] = 1e3 * times.pop(FORM)
    for name, ms in times.items():
        told = {"us": 1e3 * ms, "ratio": 1e3 * ms / entry["us"], "differs": differs[name]}
        entry["others"][name] = told
    return entry


def as_table(entries: list[Entry], processor: bool) -> str:
    """Entries in Markdown; no speed of what is wrong."""
    head = ["operator", "size", "ms" if processor else "us"]
    head += [] if processor else ["floor us", "of floor", "timed"]
    rows = []
    for entry in entries:
        row = [entry["op"], entry["size"]]
        if "us" in entry:
            row.append(f"{entry['us'] / 1e3:.3g}" if processor else f"{entry['us']:.1f}")
            if not processor:
                row += [f"{entry['floor_us']:.1f}", f"{entry['of_floor']:.0%}", entry["how"]]
            row += [_others(entry["others"]), f"{entry['error']:.0e}"]
        else:
            row += ["-"] * (len(head) - 1) + [_verdict(entry)]
        rows.append([cell.replace("|", "/") for cell in row])
    table = markdown([*head, "others, and how many times as long they take", "error"], rows)
    return f"{table}\n\n\\* gives another result, or one several times less exact"


def _others(others: dict[str, Entry]) -> str:
    told = [
        f"{name} {other['ratio']:.2f}{'*' if other['differs'] else ''}"
        for name, other in others.items()
        if "ratio" in other
    ]
    return ", ".join([*told, *(f"{name}: -" for name, o in others.items() if "left_out" in o)])


def _verdict(entry: Entry) -> str:
    if entry.get("wrong"):
        return f"FAIL {entry['wrong']}"
    if "left_out" in entry:
        return f"left out, {entry['left_out']}"
    share = f", {entry['of_floor']:.0%} of floor" if "of_floor" in entry else ""
    return f"{entry['us']:.1f} us{share}; {_others(entry['others'])}"


def _wanted(case: Case, options: argparse.Namespace) -> bool:
    return case.small if options.interpret else not (case.small or case.processor)


def _device(options: argparse.Namespace) -> str:
    return "interpreter" if options.interpret else device_key()


def _keep(path: Path, chosen: dict[str, dict[str, Any]]) -> None:
    """Put chosen sizes into a file, beside those of other operators."""
    known = json.loads(path.read_text()) if path.exists() else {}
    for op, cases in chosen.items():
        known.setdefault(op, {}).update(cases)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def main() -> int:
    """Print the table; 1 if a case is wrong."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=420, help="seconds after which to stop")
    parser.add_argument("--only", help="name of one operator")
    parser.add_argument("--tune", action="store_true", help="choose the sizes first")
    parser.add_argument("--cpu", action="store_true", help="compare on one thread of a processor")
    parser.add_argument("--write", action="store_true", help="with --cpu: into docs/kernels.md")
    parser.add_argument("--interpret", action="store_true", help="a dry run without a GPU")
    parser.add_argument("--ceilings", type=float, nargs=2, help="bytes/s and FLOP/s, if known")
    parser.add_argument("--json", type=Path, help="file for the entries as they come")
    options = parser.parse_args()

    def left() -> float:
        return options.budget - (time.monotonic() - began)

    torch.set_grad_enabled(False)
    if options.cpu:
        torch.set_num_threads(1)
        entries = on_a_processor(options)
        table = as_table(entries, processor=True)
        print(table)
        if options.write:
            put(DOCS, "processor", table)
        return int(any(entry["wrong"] for entry in entries))
    if options.interpret:
        _interpret()
    elif not torch.cuda.is_available():
        print("there is no GPU here; --cpu and --interpret need none", file=sys.stderr)
        return 2
    else:
        os.environ.pop("TRITON_INTERPRET", None)
    if options.only and options.json:  # called by `all_of_them`
        return int(any(entry.get("wrong") for entry in one(options.only, options, left)))
    return _report(options, left)


def _interpret() -> None:
    """Run Triton in its interpreter, and what would be compiled as it stands."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")
    sys.path.insert(1, str(HERE.parents[1] / "tests/kernels"))
    from interpreter import install

    install()


def _report(options: argparse.Namespace, left: Callable[[], float]) -> int:
    """Do all of it, print what came out and keep it."""
    import triton

    clock: Clock = HostClock() if options.interpret else GpuClock()
    best = Ceilings(*options.ceilings) if options.ceilings else clock.ceilings()
    options.ceilings = [best.bandwidth, best.flops]
    device = _device(options)
    print(f"{device}: torch {torch.__version__}, triton {triton.__version__}", flush=True)
    print(f"{best.bandwidth / 1e12:.2f} TB/s copied, {best.flops / 1e12:.0f} TFLOP/s in bfloat16")
    if options.only:
        entries = one(options.only, options, left)
    else:
        if not options.interpret:
            torch.cuda.empty_cache()
            compile_first(options, left)
            print(f"compiled; {left():.0f} s left", flush=True)
        entries = all_of_them(options, left)
    folder = Path(os.environ.get("OUT", HERE / "results"))
    if not options.interpret or "OUT" in os.environ:
        folder.mkdir(exist_ok=True)
        versions = {"torch": torch.__version__, "triton": triton.__version__}
        found = {"device": device, **versions, "ceilings": asdict(best), "cases": entries}
        (folder / f"{device}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n{as_table(entries, processor=False)}\n")
    red = [entry for entry in entries if entry.get("wrong")]
    print(f"{len(red)} of {len(entries)} cases are wrong; {left():.0f} s left")
    return int(bool(red) or not entries)


if __name__ == "__main__":
    sys.exit(main())
