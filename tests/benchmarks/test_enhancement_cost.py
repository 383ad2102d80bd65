"""Only equal enhancement may be timed, and every contestant must be in the table."""

from __future__ import annotations

import json
from types import ModuleType

import pytest
import torch
from torch import Tensor

from vismem.models.enhancement import GroupedValueAttention


@pytest.fixture
def enhancement(script) -> ModuleType:
    return script("enhancement")


def test_the_table_has_all_rows(
    enhancement: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    enhancement.main(["--quick"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("--quick: sizes are not the published ones")
    forms = (enhancement.CODED, enhancement.OURS + "  ", enhancement.CACHED)
    for form in forms:
        assert sum(line.startswith(form) for line in lines) == 2, form
    for form in (enhancement.SCORED + "  ", enhancement.PLACED):
        assert sum(line.startswith(form) for line in lines) == 1, form
    assert lines[-1].startswith("at the pixel level")


def test_json_has_what_the_table_has(
    enhancement: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    enhancement.main(["--quick", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert [row["level"] for row in report["rows"]] == ["pixels"] * 3 + ["instances"] * 5
    assert all(row["ms"] > 0 for row in report["rows"])


def test_the_code_is_timed_on_what_is_published(enhancement: ModuleType) -> None:
    geo = GroupedValueAttention(8, 2)
    torch.nn.init.normal_(geo.value.weight)
    coded = enhancement.GeoAsCoded(geo)
    x, keys = torch.randn(5, 8), torch.randn(7, 8)
    averages = []
    coded.value.register_forward_pre_hook(lambda module, given: averages.append(given[0]))
    assert torch.allclose(coded(x, keys), geo(x, keys), atol=1e-5)
    assert averages[0].shape == (5, 2 * 8, 1, 1) and coded.value.groups == 2


def test_forms_that_disagree_end_the_run(
    enhancement: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = GroupedValueAttention.forward

    def off(self: GroupedValueAttention, x: Tensor, keys: Tensor) -> Tensor:
        return honest(self, x, keys) + 1e-2

    monkeypatch.setattr(GroupedValueAttention, "forward", off)
    with pytest.raises(SystemExit, match="must agree"):
        enhancement.rows(enhancement.QUICK, "cpu")
    for other in (torch.ones(1), torch.tensor([1.0, 1.1])):
        with pytest.raises(SystemExit, match="but x differ"):
            enhancement.agree(torch.ones(2), other, "x")


@pytest.mark.parametrize(("cost", "verdict"), [(25.0, "cheaper holds"), (26.0, "does not hold")])
def test_the_claim_is_computed(enhancement: ModuleType, cost: float, verdict: str) -> None:
    rows = [
        enhancement.Row("instances", enhancement.CODED, 1e9),
        enhancement.Row("instances", enhancement.OURS, 1.0),
        enhancement.Row("pixels", enhancement.CODED, 100.0),
        enhancement.Row("pixels", enhancement.OURS, cost),
    ]
    assert verdict in enhancement.claim(rows)


def test_contestants_take_turns(enhancement: ModuleType) -> None:
    taken: list[str] = []
    calls = [lambda name=name: taken.append(name) for name in "abc"]
    costs = enhancement.in_turns(calls, 3, "cpu")
    assert len(costs) == 3 and "".join(taken) == "abc" + "abcbcacab"
