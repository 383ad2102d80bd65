"""CTVIS's association of instances against the published code's own numbers."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from arrays import Case, golden

from vismem.memory.published.ctvis import (
    PublishedBank,
    PublishedTracker,
    PublishedTrackerConfig,
)

ALL = golden("ctvis", "*.npz")
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-5}
KINDS = ["last", "momentum", "similarity_guided", "temporally_weighted_softmax"]


def with_array(name: str) -> Any:
    """The cases whose file holds an array; what kind a file is shows in that."""
    found = [param for param in ALL if param.values[0] is None or name in param.values[0]]
    return pytest.mark.parametrize("case", found)


def config(case: Case) -> PublishedTrackerConfig:
    settings = {
        name: case.value(f"cfg_{name}") for name in (f.name for f in fields(PublishedTrackerConfig))
    }
    return PublishedTrackerConfig(**settings | {"frame_weight": bool(settings["frame_weight"])})


@with_array("in_logits")
def test_golden_ctvis_tracker(case: Case) -> None:
    """Ids, queries and the memory after every frame, then the sequences."""
    logits, masks, embeddings = (
        case.tensor(f"in_{name}") for name in ("logits", "masks", "embeds")
    )
    tracker = PublishedTracker(settings := config(case))
    counts, held = (case.array(name).tolist() for name in ("out_count", "out_bank_count"))
    expected = [case.tensor(name).split(counts) for name in ("out_ids", "out_query")]
    bank = [
        case.tensor(f"out_bank_{name}").split(held) for name in ("ids", "embeds", "exist_frames")
    ]
    assert len(counts) == len(held) == len(logits)
    for frame, given in enumerate(zip(logits, masks, embeddings, strict=True)):
        ids, queries = tracker.step(*given)
        where = f"frame {frame}"
        assert [ids, queries] == [part[frame].tolist() for part in expected], where
        assert tracker.bank.ids == bank[0][frame].tolist(), where
        assert tracker.bank.seen == bank[2][frame].tolist(), where
        if tracker.bank.ids:
            rows = tracker.bank.embeddings(settings.embed_type)
            torch.testing.assert_close(rows, bank[1][frame], **CLOSE)
    _, final_logits, final_masks = tracker.sequences()
    torch.testing.assert_close(final_logits, case.tensor("out_final_logits"), **CLOSE)
    torch.testing.assert_close(final_masks, case.tensor("out_final_masks"), **CLOSE)


@with_array("in_present")
def test_golden_ctvis_memory_bank(case: Case) -> None:
    """The four embeddings of every living id after every frame."""
    bank = PublishedBank(case.value("cfg_num_dead_frames"), case.value("cfg_maximum_cache"))
    scores, embeddings = case.tensor("in_scores"), case.tensor("in_embeds")
    counts = case.array("out_count").tolist()
    ids, seen = (case.tensor(f"out_{name}").split(counts) for name in ("ids", "exist_frames"))
    rows = {kind: case.tensor(f"out_embeds_{kind}").split(counts) for kind in KINDS}
    for frame, present in enumerate(case.tensor("in_present")):
        here = torch.nonzero(present)[:, 0]
        bank.update(here.tolist(), scores[frame, here], embeddings[frame, here], frame)
        assert bank.ids == ids[frame].tolist() and bank.seen == seen[frame].tolist()
        for kind in KINDS if bank.ids else []:
            torch.testing.assert_close(bank.embeddings(kind), rows[kind][frame], **CLOSE)
