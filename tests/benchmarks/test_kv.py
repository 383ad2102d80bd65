"""The published path must be the published one, and every contestant must be in the tables."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from kv_published import ReKVAsPublished, Settings
from transformers import Qwen2Config, Qwen2ForCausalLM

sys.path.append(str(Path(__file__).parents[1] / "golden"))
from arrays import ROOT, Case, golden  # noqa: E402


@cache
def model(path: Path, heads: int, kv_heads: int) -> Qwen2ForCausalLM:
    """The language model that the recorded numbers are of."""
    with np.load(path) as file:
        names = [name for name in file.files if "language_model" in name or "lm_head" in name]
        weights = {name: torch.from_numpy(file[name]) for name in names}
    weights = {name.replace("model.language_model", "model"): w for name, w in weights.items()}
    layers = {name.split(".")[2] for name in weights if ".layers." in name}
    vocabulary, hidden = weights["lm_head.weight"].shape
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=len(weights["model.layers.0.mlp.up_proj.weight"]),
        num_hidden_layers=len(layers),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    built = Qwen2ForCausalLM(config).eval()
    built.load_state_dict(weights)
    return built


@pytest.mark.parametrize("case", golden("rekv", "[!w]*.npz"))
def test_the_published_path_computes_golden_rekv(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of every forward, what was retrieved, answered and kept in the end."""
    window, block, blocks, chunk, heads, kv_heads = (
        case.value(f"p_{name}")
        for name in ("n_local", "block", "topk", "chunk", "heads", "kv_heads")
    )
    init = case.tensor("init_prompt_ids").long()
    lm = model(next((ROOT / "rekv").glob("weights_*.npz")), heads, kv_heads)
    rekv = ReKVAsPublished(lm, Settings(window, block, blocks, chunk, len(init)))
    made: list[torch.Tensor] = []
    forward = rekv.forward
    monkeypatch.setattr(rekv, "forward", lambda *given: made.append(forward(*given)) or made[-1])
    rekv.encode(lm.model.embed_tokens(init).detach())
    frames = case.tensor("vision_tokens").unflatten(0, (-1, block))
    for op, (kind, count) in enumerate(case.array("ops").tolist()):
        if kind == 0:
            for part in frames[:count].split(case.value("p_encode_chunk")):
                rekv.encode(part.flatten(0, 1))
            frames = frames[count:]
            continue
        if case.value(f"op{op}_external"):
            pytest.skip("the published path of the benchmark chooses blocks itself")
        ids = (case.tensor(f"op{op}_{name}_ids").long() for name in ("question", "prompt"))
        assert rekv.ask(*ids, tokens=6, stop=1) == case.array(f"op{op}_answer_ids").tolist()
        rows = case.array(f"op{op}_retrieved").tolist()
        assert [layer.chosen for layer in rekv.layers] == [[r for r in x if r >= 0] for x in rows]
    assert [len(logits) for logits in made] == case.array("forwards")[:, 2].tolist()
    assert (torch.cat(made) - case.tensor("logits")).abs().max() < 1e-4
    assert [len(layer.blocks) for layer in rekv.layers] == case.array("n_blocks").tolist()
    assert [len(layer.local[0][0]) for layer in rekv.layers] == case.array("local_len").tolist()
    if "reps" in case:
        reps = torch.stack([torch.stack(layer.reps) for layer in rekv.layers])
        assert torch.allclose(reps, case.tensor("reps"), atol=1e-5)
