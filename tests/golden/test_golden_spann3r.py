"""Spann3R's spatial memory against the published code's own numbers."""

from __future__ import annotations

import pytest
import torch
from arrays import Case, golden
from torch import Tensor, nn

from vismem.memory.published.spann3r import PublishedSpann3R, PublishedSpann3RConfig

MEMORIES = pytest.mark.parametrize("case", golden("spann3r", "memory_*.npz"))
CLOSE = {"rtol": 0.0, "atol": 1e-5}


class Replayed(PublishedSpann3R):
    """A memory whose order among equal weights is the published one."""

    orders: list[Tensor]

    def order(self) -> Tensor:
        own, published = super().order(), self.orders.pop(0)
        assert torch.equal(own.sort(1).values, published.sort(1).values)
        return published


def norm(case: Case, name: str) -> nn.LayerNorm:
    weight = case.tensor(f"w.norm_{name}.weight")
    layer = nn.LayerNorm(len(weight))
    layer.load_state_dict({"weight": weight, "bias": case.tensor(f"w.norm_{name}.bias")})
    return layer


@MEMORIES
@torch.no_grad()
def test_golden_spann3r_memory(case: Case) -> None:
    """Every frame: what is read, whether it is written, the counters, and some whole states."""
    config = PublishedSpann3RConfig(
        case.value("cfg_work_mem_size"),
        case.value("cfg_long_mem_size"),
        case.value("cfg_attn_thresh"),
        case.value("cfg_sim_thresh"),
    )
    memory = Replayed(*(norm(case, name) for name in "qkv"), config)
    memory.orders = list(case.tensor("out_prune_index"))
    pruned, wanted = [], case.array("out_prune_frame").tolist()
    keys, values, queries = (case.tensor(f"in_{name}") for name in "kvq")
    for frame, (key, value) in enumerate(zip(keys, values, strict=True)):
        if frame:
            read = memory.read(queries[frame])
            torch.testing.assert_close(read, case.tensor("out_read")[frame - 1], **CLOSE)
        left = len(memory.orders)
        assert memory.write(key, value) == bool(case.array("out_written")[frame])
        pruned += [frame] * (left - len(memory.orders))
        counters = memory.keys.shape[1], memory.frames, memory.long
        names = "out_num_tokens", "out_work_frames", "out_long_tokens"
        assert counters == tuple(int(case.array(name)[frame]) for name in names)
        if frame in case.array("in_state_frames"):
            assert torch.equal(memory.keys, case.tensor(f"out_state_k_{frame}"))
            assert torch.equal(memory.age, case.tensor(f"out_state_age_{frame}"))
            torch.testing.assert_close(
                memory.attention, case.tensor(f"out_state_attn_{frame}"), **CLOSE
            )
    assert pruned == wanted


def test_golden_spann3r_is_not_read_before_it_is_written() -> None:
    memory = PublishedSpann3R(*(nn.LayerNorm(4) for _ in range(3)))
    with pytest.raises(ValueError, match="nothing was written"):
        memory.read(torch.zeros(1, 2, 4))


@pytest.mark.parametrize("repeated", [0, 1])
def test_golden_spann3r_one_that_is_alike_holds_up_all(repeated: int) -> None:
    memory = PublishedSpann3R(*(nn.LayerNorm(4) for _ in range(3)))
    draws = torch.Generator().manual_seed(0)
    one, other = (torch.randn(2, 3, 4, generator=draws) for _ in range(2))
    other[repeated] = one[repeated]
    assert memory.write(one, one) and not memory.write(other, other)
