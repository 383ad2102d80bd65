"""Costs must be those of rules that do the same, and every contestant must be in the table."""

from __future__ import annotations

import json
from dataclasses import replace
from types import ModuleType

import as_coded
import pytest
import torch

TINY = {
    "flash_side": 4,
    "flash_dim": 8,
    "flash_slots": 6,
    "flash_detail": 3,
    "flash_history": 20,
    "flash_rounds": 4,
    "star_dim": 8,
    "star_slots": 5,
    "star_history": 12,
    "star_rounds": 4,
    "default_history": 20,
    "flat_marks": (20, 40, 80),
}


@pytest.fixture
def update_cost(script, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = script("update_cost")
    monkeypatch.setattr(module, "QUICK", replace(module.QUICK, **TINY))
    return module


def test_the_table_has_all_rows(
    update_cost: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    update_cost.main(["--quick"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("--quick: sizes are not the published ones")
    for start in (update_cost.CODED, update_cost.VECTORISED, update_cost.DEFAULT + "  "):
        assert sum(line.startswith(start) for line in lines) == 2, start
    for start in ("Flash Memory, 2025", "STAR, 2024", "FlashMemory", "StarMemory"):
        assert sum(line.startswith(start) for line in lines) == 1, start
    assert "20" in lines[-3] and "80" in lines[-3]


def test_json_has_what_the_table_has(
    update_cost: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    update_cost.main(["--quick", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert len(report["rows"]) == 6 and len(report["flat"]) == 6
    assert all(row["cpu_ms"] > 0 for row in report["rows"] + report["flat"])
    held = {(row["system"][:4], row["rule"]): row["nbytes"] for row in report["rows"]}
    patches = 24 * (16 + 4) * 8 * 4  # of 4 bytes, both resolutions
    assert held["Flas", update_cost.CODED] > patches
    assert patches < held["Flas", update_cost.VECTORISED] < patches + 24 * 8 + 1_000
    budget = 2 * 8 * (6 * 4 + 3 * 16)
    assert held["Flas", update_cost.DEFAULT] <= budget
    assert [flat["frames"] for flat in report["flat"]] == [20, 40, 80] * 2
    assert all(flat["nbytes"] <= 200_000 for flat in report["flat"])


@pytest.mark.parametrize("rows", ["flash_rows", "star_rows"])
def test_forms_that_disagree_end_the_run(
    update_cost: ModuleType, monkeypatch: pytest.MonkeyPatch, rows: str
) -> None:
    honest = as_coded.cluster_as_coded

    def off(*arguments) -> tuple:
        centroids, mass, members = honest(*arguments)
        return 1.1 * centroids, mass, members

    monkeypatch.setattr(as_coded, "cluster_as_coded", off)
    with pytest.raises(SystemExit, match="must agree"):
        getattr(update_cost, rows)(update_cost.QUICK)


def test_agreement_is_of_shapes_and_values(update_cost: ModuleType) -> None:
    update_cost.agree(torch.ones(2), torch.ones(2) + 1e-5, "x")
    for other in (torch.ones(1), torch.tensor([1.0, 1.1])):
        with pytest.raises(SystemExit, match="their x differ"):
            update_cost.agree(torch.ones(2), other, "x")


def test_contestants_take_every_frame_in_changing_order(update_cost: ModuleType) -> None:
    taken: list[tuple[str, int]] = []
    updates = [lambda n, name=name: taken.append((name, n)) for name in "abc"]
    checks: list[int] = []
    costs = update_cost.in_turns(updates, range(3, 6), lambda: checks.append(len(taken)))
    assert len(costs) == 3 and checks == [3, 6, 9]
    assert "".join(name for name, _ in taken) == "abcbcacab"
    assert [number for _, number in taken] == [3, 3, 3, 4, 4, 4, 5, 5, 5]


@pytest.mark.parametrize(("cost", "verdict"), [(1.0, "code holds"), (1.1, "does not hold")])
def test_the_claim_is_computed(update_cost: ModuleType, cost: float, verdict: str) -> None:
    costs = {update_cost.CODED: 30.0, update_cost.VECTORISED: 10.0, update_cost.DEFAULT: cost}
    rows = [update_cost.Row("Flash Memory, 2025", rule, ms, 1, "") for rule, ms in costs.items()]
    rows.append(update_cost.Row("STAR, 2024", update_cost.CODED, 1e9, 1, ""))
    assert verdict in update_cost.claim(rows)
