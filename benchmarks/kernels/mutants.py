"""Plant bugs in the operators, one at a time, and see whether the tests find each.

Every bug of ``planted/*.py`` goes into a copy of ``kernels/``; the checkout is not touched. Run:
``python benchmarks/kernels/mutants.py [--only OP]``. Exits with 1 if any bug survives.
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
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
LONGEST = 600.0  # seconds; a bug that hangs the tests is found


def main() -> int:
    """Print a line for each bug, and how many survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="name of one file of planted/")
    only = parser.parse_args().only
    survivors = bugs = 0
    for path in sorted((Path(__file__).parent / "planted").glob("*.py")):
        if only and path.stem != only:
            continue
        plan = _load(path)
        found, seconds = _tests(plan.TESTS)
        if found:
            print(f"{path.stem}: its tests are red without any bug ({found})")
            return 1
        print(f"{path.stem}: tests green without a bug, {seconds:.0f} s")
        for number, (file, there, planted) in enumerate(plan.PLANTED, 1):
            bugs += 1
            found, seconds = _tests(plan.TESTS, (file, there, planted))
            survivors += not found
            verdict = f"found by {found}" if found else "SURVIVED"
            first = (planted.strip() or f"without {there.strip()}").splitlines()[0]
            print(f"  {number:2} {file}: {first[:60]!r}: {verdict}, {seconds:.0f} s", flush=True)
    print(f"{bugs - survivors} of {bugs} planted bugs found")
    return int(survivors > 0)


def _tests(tests: list[str], bug: tuple[str, str, str] | None = None) -> tuple[str, float]:
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
                [*command, "-rfE", *tests],
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
