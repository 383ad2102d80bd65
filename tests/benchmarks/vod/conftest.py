"""The scripts of DigitVOD, and a few of its videos."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks" / "vod"
NAMES = "arms detector evaluate generate heads render run tracks train".split()


@pytest.fixture(scope="module")
def vod():
    """The scripts, which import each other by name; the names are too plain to stay."""
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    pytest.importorskip("skimage", reason="photographs are scikit-image's")
    pytest.importorskip("hotcoco", reason="the average precision is hotcoco's")
    sys.path.insert(0, str(FOLDER))
    for name in NAMES:  # a folder of tests may have been taken for a package of that name
        sys.modules.pop(name, None)
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    sys.path.remove(str(FOLDER))
    for name in NAMES:
        del sys.modules[name]


@pytest.fixture(scope="module")
def plain(vod):
    return vod.generate.generate(vod.generate.SCENARIOS["plain"], 6, 12, "test", 1)
