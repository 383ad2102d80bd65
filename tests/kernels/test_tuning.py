"""Which tile sizes a kernel gets: tried ones, else measured ones, else the first of its list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from vismem.kernels import tuning
from vismem.kernels.tuning import FOLDER, Config, config_for, trying

SHORTLIST = [Config({"BLOCK": 16}), Config({"BLOCK": 32}, warps=8, stages=3)]


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A device with a file of measured sizes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Hx/200")
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    tuning.device_key.cache_clear()
    tuning._tuned.cache_clear()
    path = tmp_path / "nvidia_hx_200.json"
    path.write_text(json.dumps({"op": {"wide": Config({"BLOCK": 64}, 2, 1).as_json()}}))
    yield path
    tuning.device_key.cache_clear()
    tuning._tuned.cache_clear()


def test_options_are_what_a_launch_takes() -> None:
    assert SHORTLIST[1].options == {"BLOCK": 32, "num_warps": 8, "num_stages": 3}
    assert Config(**json.loads(json.dumps(SHORTLIST[1].as_json()))) == SHORTLIST[1]


def test_without_a_device_the_first_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert config_for("op", "wide", SHORTLIST) is SHORTLIST[0]


def test_what_was_measured_on_the_device_is_taken(measured: Path) -> None:
    assert config_for("op", "wide", SHORTLIST) == Config({"BLOCK": 64}, 2, 1)
    assert config_for("op", "narrow", SHORTLIST) is SHORTLIST[0]
    assert config_for("other", "wide", SHORTLIST) is SHORTLIST[0]


def test_a_device_without_a_file_takes_the_first(measured: Path) -> None:
    measured.unlink()
    assert config_for("op", "wide", SHORTLIST) is SHORTLIST[0]


def test_tried_sizes_come_before_measured_ones(measured: Path) -> None:
    with trying({("op", "wide"): SHORTLIST[1]}) as asked:
        assert config_for("op", "wide", SHORTLIST) is SHORTLIST[1]
        assert config_for("op", "narrow", SHORTLIST[1:]) is SHORTLIST[1]
        with trying({}) as inner:
            assert config_for("op", "wide", SHORTLIST) == Config({"BLOCK": 64}, 2, 1)
        assert inner == {("op", "wide"): SHORTLIST}
        assert config_for("op", "wide", SHORTLIST) is SHORTLIST[1]
    assert asked == {("op", "wide"): SHORTLIST, ("op", "narrow"): SHORTLIST[1:]}
    assert config_for("op", "wide", SHORTLIST) == Config({"BLOCK": 64}, 2, 1)


def test_kept_files_hold_sizes() -> None:
    for path in FOLDER.glob("*.json"):
        for cases in json.loads(path.read_text()).values():
            for name, sizes in cases.items():
                assert name and Config(**sizes).options
