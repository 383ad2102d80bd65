"""A soak and a kill of a KV memory must measure what they say."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def soak(script) -> ModuleType:
    return script("kv_soak")


@pytest.fixture(scope="module")
def crash(script) -> ModuleType:
    return script("kv_crash")


def test_quarters_are_medians_and_ends(soak: ModuleType) -> None:
    values = [9.0, 1.0, 1.0, 2.0, 2.0, 7.0, 3.0, 3.0, 3.0, 4.0, 8.0, 4.0]
    assert soak.quarters(values) == soak.quarters(np.array(values)) == [1.0, 2.0, 3.0, 4.0]
    assert soak.quarter_ends(values) == [1.0, 7.0, 3.0, 4.0]


def test_a_frame_is_like_its_scene_and_found_by_it(soak: ModuleType, tmp_path: Path) -> None:
    assert torch.equal(soak.frame(7), soak.frame(7))
    assert not torch.equal(soak.frame(7), soak.frame(8))
    memory = soak.DurableKV(tmp_path / "m", soak.CONFIG, "8MB", "32MB")
    for number in range(300):
        memory.write_kv(soak.frame(number), number / soak.FPS)
    rows, tensors, *seconds = soak.ask(memory.snapshot(), 47)
    assert all(len(set(layer.tolist()) & set(range(40, 60))) >= 15 for layer in rows)
    assert len(tensors) == 2 * len(rows) and tensors[0].shape[1] == 16 * len(rows[0])
    assert min(seconds) > 0.0
    memory.close()


def test_a_small_soak(soak: ModuleType, tmp_path: Path) -> None:
    report = soak.soak(tmp_path / "m", 800, 16, "1.5MB", "4MB")
    assert (report.budget, report.disk_budget) == (1_500_000, 4_000_000)
    assert 0.7 * report.budget < report.ram <= report.budget
    assert 0.5 * report.disk_budget < report.disk <= report.disk_budget
    assert len(report.writes) == 800 and (report.writes > 0).all()
    assert len(report.retrieve) == len(report.gather) == 16
    assert len(report.resident) == len(report.maps) == len(report.blocks) == soak.SAMPLES
    assert report.dropped == 800 - report.blocks[-1] > 0
    assert 0 < report.span <= 800 / soak.FPS
    lines = soak.table(report).splitlines()
    assert lines[0].startswith("frames                  800, 0.4 h of the stream, in ")
    assert f"{report.ram} of 1500000" in lines[1] and f"{report.disk} of 4000000" in lines[2]


def test_the_disk_is_watched_and_left_as_it_was(soak: ModuleType, tmp_path: Path) -> None:
    before = os.fsync, os.replace, os.unlink
    report = soak.Report(1, 1)
    with soak.watching(tmp_path, report):
        (tmp_path / "a").write_bytes(bytes(500))
        os.replace(tmp_path / "a", tmp_path / "b")
        (tmp_path / "a").write_bytes(bytes(300))
        os.unlink(tmp_path / "a")
    assert report.disk == 800 and before == (os.fsync, os.replace, os.unlink)


def test_kills_of_a_memory(crash: ModuleType, tmp_path: Path) -> None:
    results = crash.kills(tmp_path, 3, 60, 5_000, seed=1)
    assert len(results) == 3 and results[-1].found > 60
    assert all((r.lost, r.twice, r.different) == (0, 0, 0) for r in results)


def test_a_kill_that_costs_something_is_heard_of(
    crash: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory that forgets its log has lost what was acknowledged."""
    monkeypatch.setattr(crash.DurableKV, "_count", lambda *_: None)
    monkeypatch.setattr("vismem.store.MemoryStore.replay", lambda _: iter(()))
    assert sum(result.lost for result in crash.kills(tmp_path, 2, 30, 5_000, seed=1)) > 0


def test_answers_are_compared_bit_for_bit(crash: ModuleType) -> None:
    one = [[torch.tensor([0.0]), torch.tensor([1.0])], [torch.tensor([2])]]
    other = [[torch.tensor([0.0]), torch.tensor([1.0 + 1e-7])], [torch.tensor([2])]]
    assert crash.count_different(one, one) == 0
    assert crash.count_different(one, other) == 1
    assert crash.count_different(one, [one[0][:1], one[1]]) == 1


@pytest.mark.parametrize(
    "arguments", [["--frames", "1"], ["--asks", "1"], ["--budget", "much"], ["--disk", "1kB"]]
)
def test_wrong_arguments_end_in_one_line(
    soak: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        soak.main(arguments)
    assert exit_.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
