"""Plant bugs in the operators, one at a time, and see whether the tests find each.

Every bug of ``planted/*.py`` goes into a copy of ``kernels/``; the checkout is not touched. A bug
that the quick tests miss meets those that compile as well. Run:
``python benchmarks/kernels/mutants.py [--only OP ...] [--jobs N]``; it takes half an hour or more.
Exits with 1 if any bug survives.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
QUICK = "not compile and not promise"
LONGEST = 600.0  # seconds; a bug that hangs the tests is found


def main() -> int:
    """Print a line for each bug, and how many survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="names of files of planted/", default=())
    parser.add_argument("--jobs", type=int, default=1, help="bugs at a time")
    options = parser.parse_args()
    survivors = bugs = 0
    for path in sorted((Path(__file__).parent / "planted").glob("*.py")):
        if options.only and path.stem not in options.only:
            continue
        plan = _load(path)
        found, seconds = _tests(plan.TESTS)
        if found:
            print(f"{path.stem}: its tests are red without any bug ({found})")
            return 1
        print(f"{path.stem}: tests green without a bug, {seconds:.0f} s", flush=True)
        with ThreadPoolExecutor(options.jobs) as pool:
            results = pool.map(partial(_hunt, plan.TESTS), plan.PLANTED)
            for number, (bug, (found, seconds)) in enumerate(
                zip(plan.PLANTED, results, strict=True), 1
            ):
                bugs += 1
                survivors += not found
                verdict = f"found by {found}" if found else "SURVIVED"
                first = (bug[2].strip() or f"without {bug[1].strip()}").splitlines()[0]
                print(
                    f"  {number:2} {bug[0]}: {first[:60]!r}: {verdict}, {seconds:.0f} s", flush=True
                )
    print(f"{bugs - survivors} of {bugs} planted bugs found")
    return int(survivors > 0)


def _hunt(tests: list[str], bug: tuple[str, str, str]) -> tuple[str, float]:
    """What finds a bug: the quick tests, or else all of them."""
    found, seconds = _tests(tests, bug, "-k", QUICK)
    if found:
        return found, seconds
    found, more = _tests(tests, bug)
    return found, seconds + more


def _tests(
    tests: list[str], bug: tuple[str, str, str] | None = None, *more: str
) -> tuple[str, float]:
    """Name of the first test that fails in a copy with a bug, empty if none does, and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        (copy / "vismem").mkdir()
        (copy / "vismem/__init__.py").touch()
        shutil.copytree(ROOT / "kernels", copy / "kernels")
        shutil.copytree(ROOT / "tests/kernels", copy / "tests/kernels")
        (copy / "vismem/kernels").symlink_to(copy / "kernels")
        if bug:
            file, there, planted = bug
            text = (copy / file).read_text()
            if text.count(there) != 1:
                raise SystemExit(f"{there!r} stands {text.count(there)} times in {file}, not once")
            (copy / file).write_text(text.replace(there, planted))
        environment = {**os.environ, "PYTHONPATH": folder, "TRITON_INTERPRET": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        began = time.perf_counter()
        try:
            run = subprocess.run(
                [*command, "-rfE", *tests, *more],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=LONGEST,
            )
        except subprocess.TimeoutExpired:
            return "time running out", LONGEST
        seconds = time.perf_counter() - began
        if run.returncode == 0:
            return "", seconds
        if run.returncode < 0:
            return "a crash", seconds
        name = re.search(r"^(?:FAILED|ERROR) \S+?\.py(?:::(\S+))?", run.stdout, re.MULTILINE)
        if run.returncode != 1 or not name:
            raise SystemExit(f"pytest could not run:\n{run.stdout[-3000:]}{run.stderr[-3000:]}")
        return name[1] or "an error", seconds


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"planted_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
