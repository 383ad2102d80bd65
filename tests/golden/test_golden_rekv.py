"""ReKV (LLaVA-OneVision) against the published code's own numbers, every output of every file."""

from __future__ import annotations

import functools

import pytest
import torch
import transformers
from arrays import ROOT, Case, golden
from torch import Tensor

from vismem.memory.kv.memory import KVMemory
from vismem.memory.kv.retrieval import Retrieval
from vismem.models.answer import VideoAnswer
from vismem.models.families import Family, family_of
from vismem.models.video_llm import VideoLLM, VideoStream

FILES = golden("rekv", "*.npz")
WEIGHTS = {
    case.values[0].path.name: case.values[0]
    for case in golden("rekv", "weights_*.npz")
    if case.values[0] is not None
}
CASES = pytest.mark.parametrize(
    "case", [case for case in FILES if case.values[0] is None or "ops" in case.values[0]]
)
STOP, MOST = 1, 6  # the token that ends an answer, and the most tokens of one
INIT, ENCODE, QUESTION, PROMPT, STEP = range(5)


def family_for(case: Case) -> Family:
    """The model of a scenario: of its sizes; if several are, the one that read the first words."""
    hidden, layers = case.value("p_hidden"), case.value("p_layers")
    heads = case.value("p_heads"), case.value("p_kv_heads")
    fitting = [
        model_of(path, *heads)
        for path, weights in WEIGHTS.items()
        if sizes_of(weights, heads[0]) == (hidden, layers, *heads)
    ]
    assert fitting, "no file of weights has this scenario's sizes"
    words = case.tensor("init_prompt_ids").long()
    first = case.tensor("logits")[: len(words)]

    def error(family: Family) -> float:
        embeds, there = family.embed_text(words)[None], family.text_positions(len(words))
        logits = family.logits(family.forward(embeds, positions=there))[0]
        return float((logits - first).abs().max())

    return min(fitting, key=error)


def sizes_of(weights: Case, heads: int) -> tuple[int, int, int, int]:
    """Hidden width, layers, heads and key heads of a file of weights."""
    layer = "model.language_model.layers.{}.self_attn.k_proj.weight"
    hidden = weights.array(layer.format(0)).shape[1]
    layers = sum(layer.format(n) in weights.arrays for n in range(1000))
    width = hidden // heads
    return hidden, layers, heads, weights.array(layer.format(0)).shape[0] // width


@functools.cache
def model_of(path: str, heads: int, kv_heads: int) -> Family:
    weights = WEIGHTS[path]
    hidden, layers, _, _ = sizes_of(weights, heads)
    names = weights.array("names_v5").tolist()
    config = transformers.LlavaOnevisionConfig(
        text_config=transformers.Qwen2Config(
            vocab_size=101, hidden_size=hidden, intermediate_size=96, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            bos_token_id=None, eos_token_id=STOP, pad_token_id=None,
        ),
        vision_config=transformers.SiglipVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            image_size=84, patch_size=14, vision_use_head=False,
        ),
        image_token_id=100, video_token_id=99, tie_word_embeddings=False,
        vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        model = transformers.LlavaOnevisionForConditionalGeneration(config).float()
    wanted = model.state_dict()
    assert set(wanted) == set(names), set(wanted) ^ set(names)
    model.load_state_dict({name: weights.tensor(name) for name in names}, strict=True)
    return family_of(model)


class Recording:
    """A scenario played through the public interface, every forward listened to."""

    def __init__(self, case: Case) -> None:
        self.case, self.family = case, family_for(case)
        self.logits: list[Tensor] = []
        self.inputs: list[Tensor] = []
        self.answers: dict[int, VideoAnswer] = {}
        self.pools: dict[int, list[list[int]] | None] = {}
        llm = VideoLLM(self.family)
        block, layers = case.value("p_block"), case.value("p_layers")
        config = llm.config(precision="model", block=block, window=case.value("p_n_local"))
        pair = 2 * config.shape.kv_heads * block * config.shape.head_dim * 4
        hot = case.value("p_max_cached") * layers * pair
        self.memory = KVMemory(config, "1GB", hot=hot)
        self.play(llm)

    def play(self, llm: VideoLLM) -> None:
        case, forward = self.case, self.family.forward

        def listen(embeds: Tensor, **more: object) -> Tensor:
            hidden = forward(embeds, **more)
            self.inputs.append(embeds[0])
            self.logits.append(self.family.logits(hidden)[0])
            return hidden

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.family, "forward", listen)
            self.stream = VideoStream(
                llm,
                self.memory,
                retrieval=Retrieval.published(case.value("p_topk"), case.value("p_chunk")),
                chunk=case.value("p_encode_chunk"),
                published=True,
                init_ids=case.array("init_prompt_ids").tolist(),
            )
            shown = 0
            for number, (kind, count) in enumerate(case.array("ops").tolist()):
                if kind == 0:
                    frames = case.tensor("frames")[shown : shown + count]
                    self.stream.write(frames, [float(shown + n) for n in range(count)])
                    shown += count
                else:
                    self.ask(number)

    def ask(self, number: int) -> None:
        case, name = self.case, f"op{number}_"
        rows = None
        if case.value(f"{name}external"):
            given = case.array(f"{name}retrieved")[0].tolist()
            rows = [row for row in given if row >= 0]
        used = self.offloaded()
        tiers = self.memory._tiers
        self.answers[number] = self.stream.ask_ids(
            case.array(f"{name}question_ids").tolist(),
            case.array(f"{name}prompt_ids").tolist(),
            max_new_tokens=MOST,
            rows=rows,
            stop_ids=frozenset([STOP]),
        )
        layers = range(self.family.shape.layers)
        self.pools[number] = [tiers.hot_blocks(layer) for layer in layers] if used else None

    def offloaded(self) -> bool:
        """Whether the published code would have blocks: all first words have left the window.

        Ours has them from the first frame on.
        """
        view = self.memory.snapshot()
        return view.seen - view.sinks.shape[3] >= self.case.value("p_n_local")

    def local(self, which: int) -> list[Tensor]:
        """Local keys (0) or values (1) of each layer, ``(G, n, D)``."""
        view = self.memory.snapshot()
        kv = torch.cat([view.sinks, *(chunk.kv for chunk in view.window)], 3)
        return list(kv[:, which, :, max(0, kv.shape[3] - self.case.value("p_n_local")) :])


def lists(array: object) -> list[list[int]]:
    return [[value for value in row if value >= 0] for row in array.tolist()]  # type: ignore[attr-defined]


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


@pytest.mark.skipif(not WEIGHTS, reason=f"no rekv/weights_*.npz in {ROOT}; set VISMEM_GOLDEN")
def test_golden_rekv_names_of_weights_follow_the_documented_rule() -> None:
    rule = {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.vision_model.": "model.vision_tower.",
        "": "model.",
    }
    for weights in WEIGHTS.values():
        names = (weights.array(key).tolist() for key in ("names_v5", "names_reference"))
        for new, old in zip(*names, strict=True):
            theirs = next(start for start in rule if old.startswith(start))
            assert new == rule[theirs] + old.removeprefix(theirs)


@CASES
def test_golden_rekv(case: Case) -> None:
    played = Recording(case)
    forwards = case.array("forwards").tolist()

    # every forward
    assert [len(logits) for logits in played.logits] == [count for _, _, count in forwards]
    close(torch.cat(played.logits), case.tensor("logits"), 1e-4)
    seen = [x for x, (kind, _, _) in zip(played.inputs, forwards, strict=True) if kind == ENCODE]
    close(torch.cat(seen), case.tensor("vision_tokens"), 1e-5)

    # every question
    for number, answer in played.answers.items():
        name = f"op{number}_"
        assert answer.rows == lists(case.array(f"{name}retrieved"))
        assert answer.ids == case.array(f"{name}answer_ids").tolist()
        pool = case.array(f"{name}pool_blocks")
        assert (played.pools[number] is None) == bool((pool < 0).all())
        if played.pools[number] is not None:
            assert played.pools[number] == lists(pool)

    # what is held at the end
    view = played.memory.snapshot()
    layers, block = case.value("p_layers"), case.value("p_block")
    count = len(view.blocks) if played.offloaded() else 0
    assert [count] * layers == case.array("n_blocks").tolist()
    assert [part.shape[1] for part in played.local(0)] == case.array("local_len").tolist()
    last = case.tensor("local_k_last9").shape[2]
    for which, key in enumerate(("local_k_last9", "local_v_last9")):
        close(
            torch.stack([part[:, -last:] for part in played.local(which)]), case.tensor(key), 1e-5
        )
    assert ("reps" in case) == (count > 0)
    if count:
        means = torch.stack([view.representatives(layer) for layer in range(layers)])
        expanded = means.repeat_interleave(case.value("p_heads") // means.shape[2], 2)
        close(expanded.flatten(2), case.tensor("reps"), 1e-5)
        for place, row in (("first", 0), ("last", count - 1)):
            pairs = [view.gather(layer, [row], 0) for layer in range(layers)]
            for which, kind in enumerate("kv"):
                stored = torch.stack([pair[which] for pair in pairs])
                assert stored.shape[2] == block
                close(stored, case.tensor(f"block_{place}_{kind}"), 1e-5)
