"""MAMBA's memory banks against the published code's own numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from arrays import Case, golden
from torch import Tensor

from vismem.memory.published.mamba import (
    PublishedMamba,
    PublishedMambaConfig,
    PublishedPixels,
)

BANKS = pytest.mark.parametrize("case", golden("mamba", "bank_*.npz"))
PIXELS = pytest.mark.parametrize("case", golden("mamba", "pixel_*.npz"))
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-5}


def pieces(case: Case, rows: str, count: str) -> list[Tensor]:
    """The per-step tensors of "rows + count"; a negative count is no rows."""
    counts = np.maximum(case.array(count), 0).tolist()
    return list(case.tensor(rows).split(counts))


class Recorded(PublishedMamba):
    """A bank that notes its draws."""

    draws: list[list[int]]

    def permutation(self, count: int) -> Tensor:
        drawn = super().permutation(count)
        self.draws.append(drawn.tolist())
        return drawn


@BANKS
def test_golden_mamba_bank(case: Case) -> None:
    """Every step: contents, samples and draws, exactly; also where they empty a full bank."""
    rows = case.tensor("in_rows")
    bank = Recorded(
        PublishedMambaConfig(
            rows.shape[1], case.value("cfg_max_length"), case.value("cfg_key_length")
        )
    )
    bank.draws = []
    held = pieces(case, "out_feat_rows", "out_feat_count")
    samples = pieces(case, "out_sample_rows", "out_sample_count")
    draws = pieces(case, "out_perm", "out_perm_count")
    steps = zip(
        *(case.array(name).tolist() for name in ("in_op", "in_row_start", "in_row_count")),
        *(case.array(name).tolist() for name in ("in_seed", "out_sample_count")),
        strict=True,
    )
    for number, (op, start, count, seed, sampled) in enumerate(steps):
        given = rows[start : start + count]
        if op == 0:  # contents only: the published generator is global and runs on
            state = bank.generator.get_state()
            bank.reset()
            bank.generator.set_state(state)
        if seed >= 0:
            bank.generator.manual_seed(seed)
        bank.draws.clear()
        if op == 1:
            bank.replace(given)
        elif op == 2:
            bank.update(given)
        elif op == 3:
            assert torch.equal(bank.sample(), samples[number]), f"sample of step {number}"
            assert (len(samples[number]) == 0) == (sampled in (-2, 0))
        assert (op == 3) == (sampled != -1)
        assert torch.equal(bank.rows, held[number]), f"contents after step {number}"
        assert sum(bank.draws, []) == draws[number].long().tolist(), f"draws of step {number}"


def geo(case: Case, query: Tensor, keys: Tensor) -> Tensor:
    """The published enhancement, ``(Q, C)``, in the plainest form: head by head."""
    heads, width = case.value("cfg_heads"), query.shape[1]
    weight = {
        name.split("geos.0.")[1]: case.tensor(name)
        for name in case.arrays
        if name.startswith("w.geos.0.")
    }
    q = (query @ weight["wq.weight"].T + weight["wq.bias"]).view(-1, heads, width // heads)
    k = (keys @ weight["wk.weight"].T + weight["wk.bias"]).view(-1, heads, width // heads)
    logits = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(width // heads)
    mixed = logits.softmax(-1) @ keys
    value = weight["wv.weight"].reshape(heads, width // heads, width)
    out = torch.einsum("hqc,hdc->qhd", mixed, value).reshape(len(query), width)
    enhanced = query + out + weight["wv.bias"]
    return enhanced.relu() if case.value("cfg_use_relu") else enhanced


class RecordedPixels(PublishedPixels):
    """A pixel memory that notes what it chose from, and what."""

    choices: list[tuple[np.ndarray, np.ndarray]]

    def choice(self, cells: np.ndarray) -> np.ndarray:
        chosen = super().choice(cells)
        self.choices.append((cells, chosen))
        return chosen

    def drawn(self) -> list[list[int]]:
        """What was drawn since the last call: cells of boxes, then places in the background."""
        *boxes, background = self.choices or [(np.empty(0), np.empty(0))]
        drawn = [*boxes, (background[0], np.searchsorted(*background))]
        self.choices = []
        return [chosen.tolist() for cells, chosen in drawn if len(cells) > self.cells]


@PIXELS
def test_golden_mamba_pixels(case: Case) -> None:
    """Read, enhance and write frame by frame: maps, both memories, and all draws."""
    maps, boxes, scores = (case.tensor(f"in_{name}") for name in ("map", "boxes", "scores"))
    width, seed = maps.shape[1], case.value("cfg_seed")
    config = PublishedMambaConfig(width, case.value("cfg_max_num"), case.value("cfg_key_num"))
    memory = RecordedPixels(
        config, stride=case.value("cfg_stride"), score=case.value("cfg_score_thresh"), seed=seed
    )
    memory.objects = bank = Recorded(config)
    bank.generator.manual_seed(seed)
    memory.choices, bank.draws = [], []
    chosen: list[int] = []
    feat = pieces(case, "out_feat_rows", "out_feat_count")
    others = pieces(case, "out_irr_rows", "out_irr_count")
    calls = []
    for number, count in enumerate(case.array("in_num_boxes").tolist()):
        before = len(bank.draws)
        rows = maps[number].flatten(1).T
        keys = memory.keys()
        rows = geo(case, rows, keys if len(keys) else rows)
        enhanced = rows.T.reshape(maps[number].shape)
        torch.testing.assert_close(enhanced, case.tensor("out_map")[number], **CLOSE)
        memory.write(enhanced, boxes[number, :count], scores[number, :count])
        torch.testing.assert_close(bank.rows, feat[number], **CLOSE)
        if case.array("out_irr_count")[number] < 0:
            assert memory.others is None
        else:
            assert memory.others is not None
            torch.testing.assert_close(memory.others, others[number], **CLOSE)
        calls.append(len(bank.draws) - before)
        expected = [n for n in case.array("out_choice_count")[number].tolist() if n]
        drawn = memory.drawn()
        assert [len(draw) for draw in drawn] == expected
        chosen += sum(drawn, [])
    assert chosen == case.array("out_choice").tolist()
    assert calls == case.array("out_perm_calls").tolist()
    assert [len(draw) for draw in bank.draws] == case.array("out_perm_len").tolist()
    assert sum(bank.draws, []) == case.array("out_perm").tolist()
