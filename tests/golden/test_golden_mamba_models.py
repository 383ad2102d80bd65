"""MAMBA's enhancement, and its models around their banks, against the published code's numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from arrays import Case, golden
from torch import Tensor, nn

from vismem.memory.published.mamba import PublishedMamba, PublishedMambaConfig, PublishedPixels
from vismem.models.enhancement import GroupedValueAttention, SelsaAttention, enhance_map

CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-5}


def cases(pattern: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", golden("mamba", pattern))


def weights(case: Case, prefix: str = "") -> dict[str, Tensor]:
    """The published state dict, or the part of it behind a prefix."""
    head = f"w.{prefix}"
    return {
        name.removeprefix(head): case.tensor(name).float()
        for name in case.arrays
        if name.startswith(head)
    }


def loaded(case: Case, model: nn.Module, prefix: str = "") -> Any:
    """The model with the published weights, which must fit to the last name."""
    model.load_state_dict(weights(case, prefix))
    return model.eval()


def layers(case: Case, of: str) -> range:
    """The numbers of a list of layers."""
    numbers = {name.removeprefix(f"{of}.").split(".")[0] for name in weights(case) if of in name}
    return range(len(numbers))


def pieces(case: Case, rows: str, counts: list[int]) -> list[Tensor]:
    return list(case.tensor(rows).split(counts))


class Recorded(PublishedMamba):
    """A bank that notes its draws in a list, which it may share as it may share its generator."""

    draws: list[Tensor]

    def permutation(self, count: int) -> Tensor:
        drawn = super().permutation(count)
        self.draws.append(drawn)
        return drawn


def banks(case: Case, count: int, dim: int) -> list[Recorded]:
    """Banks that draw from one generator, as the published ones do from the global one."""
    config = PublishedMambaConfig(dim, case.value("cfg_max_length"), case.value("cfg_key_length"))
    generator = torch.Generator().manual_seed(case.value("cfg_seed"))
    draws: list[Tensor] = []
    made = [Recorded(config) for _ in range(count)]
    for bank in made:
        bank.generator, bank.draws = generator, draws
    return made


def check_draws(case: Case, draws: list[Tensor]) -> None:
    lengths = [n for n in case.array("out_perm_count").ravel().tolist() if n]
    assert [len(draw) for draw in draws] == lengths
    assert torch.equal(torch.cat([torch.empty(0), *draws]).long(), case.tensor("out_perm").long())


@cases("geo_*.npz")
def test_golden_mamba_geo(case: Case) -> None:
    query, key = case.tensor("in_query"), case.tensor("in_key")
    kind = case.value("cfg_output_type")
    assert kind in ("attention", "alignment")
    keep = case.value("cfg_query_weight") if kind == "alignment" else None
    geo = GroupedValueAttention(query.shape[1], case.value("cfg_heads"), keep=keep)
    loaded(case, geo)
    torch.testing.assert_close(geo(query, key), case.tensor("out_test"), **CLOSE)
    torch.testing.assert_close(geo.train()(query, key), case.tensor("out_train"), **CLOSE)
    # As a map of one row of cells, and with keys projected before.
    picture = query.T[None, :, None]
    enhanced = enhance_map(geo.eval(), picture, geo.project(key))
    torch.testing.assert_close(enhanced[0, :, 0].T, case.tensor("out_test"), **CLOSE)


@cases("aggregator_*.npz")
@torch.no_grad()
def test_golden_mamba_aggregator(case: Case) -> None:
    x, topk = case.tensor("in_x"), case.value("cfg_topk")
    attention = loaded(case, SelsaAttention(x.shape[2], case.value("cfg_heads")))
    (bank,) = banks(case, 1, x.shape[2])
    held = pieces(case, "out_feat_rows", case.array("out_feat_count").tolist())
    for step, rows in enumerate(x):
        if step == 0:
            bank.replace(case.tensor("in_ref"))
        y = attention(rows, bank.rows if step == 0 else bank.sample())
        torch.testing.assert_close(y, case.tensor("out_y")[step], **CLOSE)
        if step:
            bank.update((rows + y)[:topk])
        torch.testing.assert_close(bank.rows, held[step], **CLOSE)
    check_draws(case, bank.draws)


@cases("two_fc_*.npz")
@torch.no_grad()
def test_golden_mamba_two_layers_with_a_bank_each(case: Case) -> None:
    """The released model: enhanced rows are written, before they are rectified."""
    dim, heads, topk = (case.value(f"cfg_{name}") for name in ("fc_dim", "heads", "topk"))
    numbers = layers(case, "shared_fcs")
    wide = [case.value("cfg_in_dim"), *[dim] * (len(numbers) - 1)]
    model = nn.ModuleDict(
        {
            "shared_fcs": nn.ModuleList([nn.Linear(width, dim) for width in wide]),
            "aggregator": nn.ModuleList([SelsaAttention(dim, heads) for _ in numbers]),
            "fc_cls": nn.Linear(dim, case.array("out_cls_score").shape[2]),
            "fc_reg": nn.Linear(dim, case.array("out_bbox_pred").shape[2]),
        }
    )
    loaded(case, model)
    memories = banks(case, len(numbers), dim)
    counts = case.array("out_feat_count")
    held = [pieces(case, f"out_feat{n}_rows", counts[:, n].tolist()) for n in numbers]
    for frame, first in enumerate(case.array("in_is_first").tolist()):
        x, refs = case.tensor("in_x")[frame], case.tensor("in_ref")
        for number in numbers:
            fc, attention, bank = (
                part[number] for part in (model["shared_fcs"], model["aggregator"], memories)
            )
            x = fc(x)
            if first:
                refs = fc(refs)
                bank.replace(refs)
                x = x + attention(x, refs)
                refs = refs.relu()
            else:
                x = x + attention(x, bank.sample())
                bank.update(x[:topk])
            x = x.relu()
            torch.testing.assert_close(bank.rows, held[number][frame], **CLOSE)
        torch.testing.assert_close(model["fc_cls"](x), case.tensor("out_cls_score")[frame], **CLOSE)
        torch.testing.assert_close(model["fc_reg"](x), case.tensor("out_bbox_pred")[frame], **CLOSE)
    check_draws(case, memories[0].draws)


@cases("core_instance_*.npz")
@torch.no_grad()
def test_golden_mamba_two_layers_with_one_bank(case: Case) -> None:
    """The earlier code: raw rows are written, and projected anew for the second layer."""
    dim, heads, topk = (case.value(f"cfg_{name}") for name in ("fc_dim", "heads", "topk"))
    first, second = nn.Linear(case.value("cfg_in_dim"), dim), nn.Linear(dim, dim)
    geos = nn.ModuleList([GroupedValueAttention(dim, heads) for _ in range(2)])
    memory = nn.ModuleDict({"geos": geos})
    loaded(case, nn.ModuleDict({"fcs": nn.ModuleList([first, second]), "ins_mem": memory}))
    (bank,) = banks(case, 1, dim)
    for rows in case.tensor("in_init"):
        bank.update(first(rows[:topk]).relu())
    assert len(bank) == case.value("out_init_count")
    held = pieces(case, "out_feat_rows", case.array("out_feat_count").tolist())
    for frame, x in enumerate(case.tensor("in_x")):
        raw = first(x).relu()
        keys = bank.sample()
        keys = keys if len(keys) else raw
        x = second(geos[0](raw, keys)).relu()
        x = geos[1](x, second(keys).relu())
        bank.update(raw[:topk])
        torch.testing.assert_close(x, case.tensor("out_x")[frame], **CLOSE)
        torch.testing.assert_close(bank.rows, held[frame], **CLOSE)
    check_draws(case, bank.draws)


@cases("pixel_*.npz")
@torch.no_grad()
def test_golden_mamba_maps_enhanced(case: Case) -> None:
    """The pixel level, read and enhanced by the module; what is written has a test of its own."""
    maps, boxes, scores = (case.tensor(f"in_{name}") for name in ("map", "boxes", "scores"))
    dim, seed = maps.shape[1], case.value("cfg_seed")
    geo = loaded(case, GroupedValueAttention(dim, case.value("cfg_heads")), "geos.0.")
    config = PublishedMambaConfig(dim, case.value("cfg_max_num"), case.value("cfg_key_num"))
    stride, score = case.value("cfg_stride"), case.value("cfg_score_thresh")
    memory = PublishedPixels(config, stride=stride, score=score, seed=seed)
    memory.objects.generator.manual_seed(seed)
    for number, count in enumerate(case.array("in_num_boxes").tolist()):
        keys = memory.keys()
        enhanced = enhance_map(
            geo, maps[number, None], keys if len(keys) else maps[number].flatten(1).T
        )[0]
        enhanced = enhanced.relu() if case.value("cfg_use_relu") else enhanced
        torch.testing.assert_close(enhanced, case.tensor("out_map")[number], **CLOSE)
        memory.write(enhanced, boxes[number, :count], scores[number, :count])
        assert len(memory.objects) == case.array("out_feat_count")[number]
        others = case.array("out_irr_count")[number]
        assert others == (-1 if memory.others is None else len(memory.others))
