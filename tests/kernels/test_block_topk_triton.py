"""Scores of blocks and the choice of the best in Triton are their references."""

from __future__ import annotations

import pytest
import torch
from pages import draws, error
from test_block_topk import blocks
from vismem.kernels.block_topk import block_scores, block_topk, reference
from vismem.kernels.registry import using

pytestmark = pytest.mark.usefixtures("in_triton")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Sorting a tile takes the interpreter long; small ones need more rounds as well."""
    from vismem.kernels.block_topk import configs
    from vismem.kernels.tuning import Config

    monkeypatch.setitem(configs.SHORTLIST, "select", [Config({"BLOCK_N": 16})])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", ["mean", "minmax"])
@pytest.mark.parametrize(
    ("count", "heads", "width", "k", "share"),
    [(70, 2, 80, 5, None), (33, 1, 3, 4, 0.5), (3, 2, 5, 7, None), (0, 1, 4, 2, None)]
    + [(9, 1, 2, 1, 0.0)],
)
def test_is_the_reference(count, heads, width, k, share, rule, dtype, device) -> None:
    query, reps = (part.to(device, dtype) for part in blocks(count, heads, width, rule))
    valid = None if share is None else torch.rand(count, generator=draws(1)).to(device) < share
    scores = block_scores(query, reps, rule)
    values, rows = block_topk(query, reps, k, rule, valid=valid)
    assert scores.dtype == values.dtype == torch.float32 and rows.dtype == torch.int64
    assert torch.equal(scores, reference.block_scores(query, reps, rule).float())
    wanted = reference.block_topk(query, reps, k, rule, valid)
    assert torch.equal(rows, wanted[1]) and torch.equal(values, wanted[0].float())


@pytest.mark.parametrize("rule", ["mean", "minmax"])
def test_layers_are_scored_at_once(rule: str, device: str) -> None:
    query, reps = (part.to(device) for part in blocks(37, 2, 5, rule, 3, 2))
    found = block_scores(query + 0.3, reps, rule)
    assert error(found, reference.block_scores(query + 0.3, reps, rule)) < 1e-6
    reps = reps.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert torch.equal(block_scores(query + 0.3, reps, rule), found)


def test_obstacles_are_refused_by_name_and_fall_back_by_default(device: str) -> None:
    query, reps = (part.to(device) for part in blocks(5, 1, 3, "mean"))
    for call, message in [
        (lambda: block_scores(query.double(), reps.double()), "float64"),
        (lambda: block_topk(query, reps, 1025)[1][:5], "at most 1024"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()
        with using("auto"):
            assert len(call()) == 5


@pytest.mark.parametrize("mode", ["torch", "triton"])
def test_compiles_whole(mode: str, device: str) -> None:
    query, reps = (part.to(device) for part in blocks(20, 2, 3, "mean"))
    with using(mode):
        whole = {"fullgraph": True, "backend": "aot_eager"}
        scores = torch.compile(block_scores, **whole)(query, reps)
        rows = torch.compile(block_topk, **whole)(query, reps, 3)[1]
    assert torch.equal(scores, reference.block_scores(query, reps).float())
    assert torch.equal(rows, reference.block_topk(query, reps, 3)[1])


def test_custom_ops_keep_their_promises(device: str) -> None:
    query, reps = (part.to(device) for part in blocks(9, 2, 3, "mean"))
    torch.library.opcheck(torch.ops.vismem.block_scores, (query[None], reps[None], False))
    torch.library.opcheck(torch.ops.vismem.block_topk, (query, reps, 3, False, None))
