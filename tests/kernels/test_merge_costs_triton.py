"""Ward's cost in Triton is its reference, and works under torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from vismem.kernels.registry import using
from vismem.kernels.ward import merge_costs, reference

pytestmark = pytest.mark.usefixtures("in_triton")


def inputs(count: int, width: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    draws = torch.Generator().manual_seed(count * 1000 + width)
    keys = torch.randn(count, width, generator=draws).to(dtype)
    key = torch.randn(width, generator=draws).to(dtype)
    mass = 0.1 + 50 * torch.rand(count + 1, generator=draws)
    return tuple(part.to(device) for part in (keys, mass[:-1], key, mass[-1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("count", "width"), [(0, 5), (1, 1), (3, 17), (16, 512), (17, 513), (5, 1100), (4, 0)]
)
def test_is_the_reference(count: int, width: int, dtype: torch.dtype, device: str) -> None:
    parts = inputs(count, width, dtype, device)
    costs = merge_costs(*parts)
    assert costs.dtype == torch.float32 and costs.shape == (count,)
    torch.testing.assert_close(costs, reference.merge_costs(*parts), rtol=1e-5, atol=1e-6)


def test_strides_do_not_matter(device: str) -> None:
    keys, mass, key, one = inputs(9, 24, torch.float32, device)
    wide = torch.zeros(9, 48, device=device)
    wide[:, ::2] = keys
    costs = merge_costs(wide[:, ::2], mass, key, one)
    assert torch.equal(costs, merge_costs(keys, mass, key, one))


def test_float64_is_refused_by_name_and_falls_back_by_default(device: str) -> None:
    parts = inputs(3, 4, torch.float64, device)
    with pytest.raises(RuntimeError, match="float64"):
        merge_costs(*parts)
    with using("auto"):
        torch.testing.assert_close(merge_costs(*parts), reference.merge_costs(*parts))


@pytest.mark.parametrize("mode", ["torch", "triton"])
def test_compiles_whole(mode: str, device: str) -> None:
    parts = inputs(6, 20, torch.float32, device)
    with using(mode):
        compiled = torch.compile(merge_costs, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*parts), reference.merge_costs(*parts))


def test_custom_op_keeps_its_promises(device: str) -> None:
    torch.library.opcheck(torch.ops.vismem.merge_costs, inputs(3, 8, torch.float32, device))
