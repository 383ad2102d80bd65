"""The scripts of RecallTable."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks" / "recall_table"
NAMES = "mjcf scene tasks episodes policies model train gantry report run".split()


@pytest.fixture(scope="module")
def recall():
    """The scripts, which import each other by name; the names are too plain to stay."""
    # Not imported to find out: `scene` has to load Triton before it.
    if importlib.util.find_spec("mujoco") is None:
        pytest.skip("RecallTable is drawn by MuJoCo: vismem[sim]")
    sys.path.insert(0, str(FOLDER))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    sys.path.remove(str(FOLDER))
    for name in NAMES:
        del sys.modules[name]
