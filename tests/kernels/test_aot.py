"""Every kernel compiles for Ampere and Hopper without spilling; bad ones are told from good ones.

By the installed Triton, and by the oldest that is supported, which is put into a folder of its own
and compiles for Hopper alone, to save time.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
pytest.importorskip("triton")
HERE = Path(__file__).parent
AOT = HERE.parents[1] / "benchmarks/kernels/aot.py"
OLDEST = "3.6.0"
LONGEST = 900  # seconds


@pytest.fixture(scope="module", params=["installed", OLDEST])
def triton(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What to put before the path of modules to get a version of Triton."""
    if request.param == "installed":
        return ""
    folder = tmp_path_factory.mktemp("triton")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    made = subprocess.run(
        [*command, f"triton=={OLDEST}"], capture_output=True, text=True, timeout=LONGEST
    )
    if made.returncode:
        pytest.skip(f"triton {OLDEST} cannot be installed: {made.stderr.strip()[-300:]}")
    return str(folder)


def aot(triton: str, *options: str) -> tuple[int, dict[tuple[str, str], str]]:
    """Exit status, and the verdict by size and capability."""
    path = os.pathsep.join(filter(None, [triton, os.environ.get("PYTHONPATH")]))
    made = subprocess.run(
        [sys.executable, str(AOT), *options],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=LONGEST,
    )
    assert "Triton" in made.stdout, made.stderr
    if triton:
        assert f"Triton {OLDEST}," in made.stdout
    print(made.stdout)
    rows = [row.strip("|").split(" | ") for row in made.stdout.splitlines() if row[:1] == "|"]
    return made.returncode, {(row[1], row[2]): row[-1].strip() for row in rows[2:]}


def test_every_kernel_is_as_it_should_be(triton: str) -> None:
    status, verdicts = aot(triton, "--jobs", "2", *(["--sm", "90"] if triton else []))
    assert status == 0 and verdicts and set(verdicts.values()) == {"ok"}


def test_bad_kernels_are_told_from_good_ones(triton: str, tmp_path: Path) -> None:
    options = "--cases", str(HERE / "controls"), "--table", str(tmp_path / "table.md")
    status, verdicts = aot(triton, *options)
    assert status == 1 and all("not in the table" in verdict for verdict in verdicts.values())
    status, verdicts = aot(triton, *options, "--write")
    assert status == 1
    for (size, target), verdict in verdicts.items():
        limit = {"80": "163 KiB", "90": "227 KiB"}[target]
        reason = {"spilling": "spills: stack", "large": limit, "exact": "mma instruction"}
        assert reason.get(size, "ok") in verdict
    # A table that knows only wide loads, as if a stride had become odd since.
    table = (tmp_path / "table.md").read_text()
    (tmp_path / "table.md").write_text(re.sub(r"\| 0 \| \d+ \|", "| 0 | 0 |", table))
    verdicts = aot(triton, *options)[1]
    for target in ("80", "90"):
        assert verdicts["good", target] == "ok"
        assert re.fullmatch(r"\d+ narrow loads, not 0", verdicts["misaligned", target])
    # A table of another version that had wide loads there.
    table = re.sub(r"Triton [\d.]+", "Triton 0", table)
    table = re.sub(r"(\| misaligned .*?) \| 0 \| \d+ \|", r"\1 | 16 | 0 |", table)
    (tmp_path / "table.md").write_text(table)
    verdicts = aot(triton, *options)[1]
    for target in ("80", "90"):
        assert verdicts["good", target] == "ok"
        assert verdicts["misaligned", target] == "no wide loads, not 16"
