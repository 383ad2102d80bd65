"""Position ids of recalled tokens, and a language model that takes both."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vismem.memory.base import Recall
from vismem.memory.policies import POLICIES, make_bank
from vismem.memory.positions import mrope_positions
from vismem.memory.slots import cell_positions

DIM, WIDTH, WORDS = 6, 32, 50

# A time in seconds, rows and columns.
Group = tuple[float, int, int]


def recalled(groups: Sequence[Group]) -> Recall:
    """Tokens of observations of many times and grids."""
    counts = torch.tensor([rows * columns for _, rows, columns in groups], dtype=torch.int64)
    times = torch.tensor([time for time, _, _ in groups], dtype=torch.float64)
    total = int(counts.sum())
    cells = [cell_positions((rows, columns)) for _, rows, columns in groups]
    return Recall(
        tokens=torch.zeros(total, DIM).half(),
        times=times.repeat_interleave(counts),
        weights=torch.ones(total, dtype=torch.int64),
        scores=torch.zeros(total),
        sources=torch.arange(len(groups)).repeat_interleave(counts),
        positions=torch.cat(cells or [torch.empty(0, 2)]),
    )


grids = st.tuples(
    st.floats(0, 1e9) | st.sampled_from([1.0, 2.0]), st.integers(1, 9), st.integers(1, 9)
)


@settings(max_examples=100)
@given(st.lists(grids, max_size=40), st.integers(0, 10_000))
def test_ids_follow_the_order_of_time_and_never_pass_the_question(
    groups: list[Group], start: int
) -> None:
    groups = sorted(groups)
    ids, after = mrope_positions(recalled(groups), start)
    order = sorted({time for time, _, _ in groups})
    expected = [
        (start + order.index(time), start + row, start + column)
        for time, rows, columns in groups
        for row in range(rows)
        for column in range(columns)
    ]
    assert ids.dtype == torch.int64 and ids.shape == (3, len(expected))
    assert list(map(tuple, ids.T.tolist())) == expected
    assert after == max((max(triple) for triple in expected), default=start - 1) + 1


def test_a_day_takes_as_many_ids_as_it_has_observations() -> None:
    """Where ids count seconds, those of a long video pass the question's."""
    ids, after = mrope_positions(recalled([(60.0 * minute, 4, 4) for minute in range(1440)]), 7)
    assert ids[0].max() == 7 + 1439 and after == 7 + 1440
    assert ids.amin() == 7 and int(ids[1:].max()) == 7 + 3


def test_positions_are_needed() -> None:
    one = torch.ones(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="no positions"):
        mrope_positions(Recall(torch.ones(1, DIM), one.double(), one, one.float(), one))


# --------------------------------------------------------------------------- language models


@pytest.fixture
def memory() -> Recall:
    """What a bank of coarse and sharp frames gives of two minutes."""
    draw = torch.Generator().manual_seed(0)
    bank = make_bank("flash", 12_000, token_dim=DIM)
    for second in range(120):
        tokens = torch.randn(16, DIM, generator=draw) + 3 * (second // 20)
        bank.write(tokens, float(second), grid=(4, 4))
    recall = bank.read(tokens=200)
    assert len({len(tokens) for _, _, tokens in recall.frames()}) > 1, "two resolutions"
    return recall


def projector() -> torch.nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Linear(DIM, WIDTH)


def model(kind: str) -> torch.nn.Module:
    """A model of random weights; nothing is downloaded."""
    sizes = {
        "vocab_size": WORDS,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "qwen2":
            made = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes))
        else:
            from transformers.models.qwen2_vl import modeling_qwen2_vl

            rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0}
            config = transformers.models.qwen2_vl.configuration_qwen2_vl.Qwen2VLTextConfig(
                **sizes, rope_parameters=rope
            )
            made = modeling_qwen2_vl.Qwen2VLTextModel(config)
    return made.eval()


def words(text: str) -> Tensor:
    """The letters of a text as tokens."""
    return torch.tensor([[ord(letter) % WORDS for letter in text]])


def test_a_language_model_reads_each_observation_behind_its_time(memory: Recall) -> None:
    qwen, bridge = model("qwen2"), projector()
    embed = qwen.get_input_embeddings()
    parts = []
    for time, _, tokens in memory.frames():
        parts += [embed(words(f"<{time:.1f} seconds>")), bridge(tokens.float())[None]]
    parts.append(embed(words("what happened?")))
    assert len(parts) == 2 * len(memory.sources.unique()) + 1
    assert sum(part.shape[1] for part in parts[1::2]) == len(memory.tokens)
    with torch.inference_mode():
        given = torch.cat(parts, 1)
        logits = qwen(inputs_embeds=given).logits
        parts[1] = parts[1] + 1.0  # the oldest of the memory
        other = qwen(inputs_embeds=torch.cat(parts, 1)).logits
    assert logits.shape == (1, given.shape[1], WORDS) and bool(torch.isfinite(logits).all())
    assert not torch.allclose(logits[:, -1], other[:, -1]), "the memory is part of the answer"


def test_a_model_with_multimodal_positions_takes_the_ids(memory: Recall) -> None:
    qwen, bridge = model("qwen2-vl"), projector()
    before, question = words("a film: "), words("what happened?")
    ids, after = mrope_positions(memory, before.shape[1])
    embed = qwen.get_input_embeddings()
    given = torch.cat([embed(before), bridge(memory.tokens.float())[None], embed(question)], 1)
    text = [torch.arange(before.shape[1]), torch.arange(question.shape[1]) + after]
    positions = torch.cat([text[0].expand(3, -1), ids, text[1].expand(3, -1)], 1)[:, None]
    assert int(ids.max()) < int(text[1][0])
    with torch.inference_mode():
        state = qwen(inputs_embeds=given, position_ids=positions).last_hidden_state
        flat = torch.arange(given.shape[1]).expand(3, 1, -1)
        other = qwen(inputs_embeds=given, position_ids=flat).last_hidden_state
    assert state.shape == given.shape and bool(torch.isfinite(state).all())
    assert not torch.allclose(state[:, -1], other[:, -1]), "the ids are part of the answer"


@pytest.mark.parametrize("policy", POLICIES)
def test_ids_of_what_every_bank_gives(policy: str) -> None:
    bank = make_bank(policy, 3_000, token_dim=DIM)
    for second in range(300):
        bank.write(torch.eye(DIM) + second % 7, 10.0 * second, grid=(2, 3))
    recall = bank.read()
    ids, after = mrope_positions(recall, 3)
    times = recall.times[ids[0].argsort(stable=True)]
    assert bool((times.diff() >= 0).all()) and after <= 3 + max(3, len(recall.times.unique()))
    assert int(ids[1].max()) <= 4 and int(ids[2].max()) <= 5 and int(ids.min()) == 3
