"""The published path must be the published one, and every contestant must be in the tables."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

import kv_costs
import kv_needles
import kv_published
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


SIZES = kv_costs.QUICK
PLAN = kv_needles.Plan(frames=40, needles=3, blocks=4, seeds=2)
EVERYBODY = (kv_costs.PUBLISHED, kv_costs.COMPAT, kv_costs.SAME, kv_costs.DEFAULT)


def quiet(text: str) -> None:
    pass


@pytest.fixture
def kv(script, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark, without what takes processes of its own or a clip."""
    module = script("kv")
    monkeypatch.setattr(module, "QUICK_PLAN", PLAN)
    monkeypatch.setattr(module, "peaks", lambda quick: {name: 1 << 20 for name in EVERYBODY})
    monkeypatch.setattr(module, "kept_of", lambda fps: [1.0, 0.4, 0.1, 0.5])
    return module


def test_the_tables_have_all_rows(kv: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    kv.main(["--quick"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("sizes are not the published ones")
    for name in EVERYBODY:  # of costs and of peaks
        assert sum(line.startswith(name) for line in lines) == 2, name
    for policy in kv_needles.POLICIES:
        assert sum(line.startswith(policy.name + " ") for line in lines) >= 1, policy.name
    assert sum(line.startswith(("holds:", "FAILS:")) for line in lines) == 8


def test_json_has_what_the_tables_have(kv: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    kv.main(["--quick", "--json", "--layers", "1"])
    report = json.loads(capsys.readouterr().out)
    assert report["sizes"]["layers"] == 1
    assert [row["name"] for row in report["costs"]] == list(EVERYBODY)
    assert all(row[part] > 0 for row in report["costs"] for part in kv_costs.PARTS)
    hours = {row["name"]: row["gib"] for row in report["hours"]}
    half = hours["int4, drop in the gallery at 0.5 fps"] / hours["int4"]
    assert half == pytest.approx(0.5, abs=0.01)
    assert 18.84 < hours["fp16"] < 19.1
    assert hours["int4"] < hours["int8"] / 1.8 < hours["fp16"] / 3.4
    assert len(report["needles"]) == len(kv_needles.POLICIES) and report["claims"]


@pytest.mark.parametrize(
    ("broken", "says"),
    [("rotate", "same keys"), ("choose", "same blocks"), ("words", "say the same")],
)
def test_paths_that_disagree_end_the_run(
    broken: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken == "rotate":
        honest = kv_published.rotate
        off = lambda x, at, theta: honest(x, 2 * at, theta)  # noqa: E731
        monkeypatch.setattr(kv_published, "rotate", off)
    elif broken == "choose":
        monkeypatch.setattr(
            kv_published.LayerAsPublished, "choose", lambda self, *given: [0, 1, 2, 3]
        )
    else:
        answer = ReKVAsPublished.decode
        monkeypatch.setattr(ReKVAsPublished, "decode", lambda self, word: -answer(self, word))
    with pytest.raises(SystemExit, match=says):
        kv_costs.costs(SIZES, "cpu", quiet)


def test_the_context_of_ours_has_as_many_blocks() -> None:
    """Or its words would be cheap for another reason."""
    sizes = replace(SIZES, frames=30)
    family = kv_costs.build(sizes, "cpu", torch.float32)
    kv = [torch.randn(2, 2, 2, n, 16) for n in (sizes.sinks, *(sizes.frame,) * sizes.frames)]
    ours = kv_costs.Retrieval(sizes.blocks, tail=kv_costs.TAIL * sizes.frame)
    one = kv_costs.Contestant(family, sizes, kv[0], kv[1:], sizes.window, ours, False)
    rows = one.stream.ask_ids([1, 2], [3], max_new_tokens=1).rows
    assert sum(map(len, rows)) == sizes.layers * sizes.blocks


@pytest.mark.parametrize(("word", "size", "lost"), [(0.25, 1.9, 0.01), (0.26, 2.0, 0.02)])
def test_claims_are_computed(kv: ModuleType, word: float, size: float, lost: float) -> None:
    rows = [kv_costs.Cost(name, 1, 1.4, 1, 1, 1, word) for name in EVERYBODY]
    rows[0] = kv_costs.Cost(kv_costs.PUBLISHED, 1, 2.0, 1, 1, 1, 1.0)
    found = [kv_needles.Found(name, 1, 0, [], 1, 0, 1, lost, 0) for name in ("int4", "drop, int4")]
    hours = [kv.Hour("int4", 0.5, 0, 5.0), kv.Hour("drop", 0.5, 0.5, size)]
    verdicts = kv.claims(rows, [*hours, kv.Hour("other rate", 2, 0.5, 9.0)], found)
    wanted = "holds" if word == 0.25 else "FAILS"
    assert len(verdicts) == 7
    for line in verdicts:
        assert line.startswith("holds" if "a frame" in line else wanted), line


def test_needles_are_found_by_looking_alone() -> None:
    """Controls that do not look must neither find nor read: else something tells the answer."""
    plan = kv_needles.Plan(frames=80, needles=8, blocks=4, seeds=2)
    rows = {row.policy: row for row in kv_needles.needles(plan, kv_needles.POLICIES, quiet)}
    assert rows["fp16"].recall > 0.6 and rows["fp16"].read > 0.8
    for control in ("random blocks", "newest blocks"):
        assert rows[control].recall < 0.25 and rows[control].read < 0.5
    assert rows["drop, int4"].dropped > 0.6
    assert rows["drop, int4"].kilobytes < 0.4 * rows["int4"].kilobytes
    assert rows["int4"].kilobytes < 0.3 * rows["fp16"].kilobytes


def test_the_gpu_path_needs_no_video() -> None:
    code = "import sys, kv; print({'av', 'cv2', 'decord', 'gradio'} & set(sys.modules))"
    folder = Path(kv_costs.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.slow
def test_peaks_are_of_each_path(script) -> None:
    """Scores of a vocabulary of 500 are small beside a process; that numbers come is enough."""
    found = script("kv").peaks(quick=True)
    assert set(found) == {kv_costs.PUBLISHED, kv_costs.COMPAT, kv_costs.DEFAULT}
    assert all(0 < size < 1 << 30 for size in found.values())
