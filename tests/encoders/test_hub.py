"""Tiny random models of the real classes, saved and loaded as a user's folder or hub cache."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from vismem.checkpoint import find_checkpoint, weights_sha256
from vismem.encoders import hub
from vismem.encoders.base import Encoder
from vismem.encoders.hub import NULL_PROMPTS, HubEncoder
from vismem.errors import SourceError, UsageError

FAMILIES = ("siglip", "siglip2", "clip")
WORDS = sorted({word for prompt in NULL_PROMPTS for word in prompt.split()} | {"dog", "cat", "red"})
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def save_tokenizer(folder: Path) -> None:
    vocabulary = {"<unk>": 0, "<pad>": 1, **{word: n + 3 for n, word in enumerate(WORDS)}}
    vocabulary["</s>"] = 2
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 2)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(folder)


def save_model(family: str, folder: Path) -> Path:
    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    text = {"vocab_size": len(WORDS) + 3, "max_position_embeddings": 8, "hidden_size": 32, **small}
    vision = {"patch_size": 4, "hidden_size": 32, **small}
    torch.manual_seed(0)
    if family == "siglip":
        text["projection_size"] = 32
        config = transformers.SiglipConfig(
            text_config=text, vision_config={"image_size": 48, **vision}
        )
        model = transformers.SiglipModel(config)
        images = transformers.SiglipImageProcessor(size={"height": 48, "width": 48})
    elif family == "siglip2":
        text["projection_size"] = 32
        config = transformers.Siglip2Config(
            text_config=text, vision_config={"num_patches": 36, **vision}
        )
        model = transformers.Siglip2Model(config)
        images = transformers.Siglip2ImageProcessor(patch_size=4, max_num_patches=36)
    else:
        text |= {"eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0}
        vision["hidden_size"] = 40
        config = transformers.CLIPConfig(
            text_config=text, vision_config={"image_size": 24, **vision}, projection_dim=16
        )
        model = transformers.CLIPModel(config)
        crop = {"height": 24, "width": 24}
        images = transformers.CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=crop)
    if family != "clip":
        model.logit_scale.data.fill_(2.0)
        model.logit_bias.data.fill_(-0.5)
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: save_model(family, root / f"tiny-{family}") for family in FAMILIES}


@pytest.fixture(scope="module")
def encoders(folders: dict[str, Path]) -> dict[str, HubEncoder]:
    return {family: HubEncoder(str(folders[family]), device="cpu") for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def encoder(request: pytest.FixtureRequest, encoders: dict[str, HubEncoder]) -> HubEncoder:
    return encoders[request.param]


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((36, 64), (50, 50), (90, 40))]


def test_shapes_and_unit_length(encoder: HubEncoder) -> None:
    assert isinstance(encoder, Encoder)
    for encoding in encoder.encode(pictures()):
        count = len(encoding.tokens)
        assert 1 < count <= encoder.max_tokens
        assert encoding.tokens.shape == (count, encoder.token_dim)
        assert encoding.tokens.dtype == torch.float16
        assert encoding.positions.shape == (count, 2)
        assert encoding.positions.min() > 0 and encoding.positions.max() < 1
        assert encoding.embedding.shape == (encoder.embedding_dim,)
        assert encoding.embedding.norm() == pytest.approx(1, abs=1e-5)
        assert encoding.detail is None and encoding.labels is None
    query = encoder.query("a red dog")
    assert query.text == "a red dog" and query.vector.shape == (encoder.embedding_dim,)
    assert query.vector.norm() == pytest.approx(1, abs=1e-5)


def test_batch_equals_single(encoder: HubEncoder) -> None:
    images = pictures()
    for image, together in zip(images, encoder.encode(images), strict=True):
        alone = encoder.encode([image])[0]
        torch.testing.assert_close(alone.embedding, together.embedding, atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.tokens, together.tokens, atol=2e-3, rtol=1e-2)
        assert torch.equal(alone.positions, together.positions)


def test_nothing_in_nothing_out(encoder: HubEncoder) -> None:
    assert encoder.encode([]) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_model_called_directly(
    family: str, folders: dict[str, Path], encoders: dict[str, HubEncoder]
) -> None:
    """The whole model on the processors' own output gives the logits that cosines must give."""
    folder, encoder, text = folders[family], encoders[family], "A red dog"
    model = transformers.AutoModel.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    images = transformers.AutoImageProcessor.from_pretrained(folder)
    written = text if family == "clip" else text.lower()
    read = words([written], padding="max_length", max_length=8, return_tensors="pt")
    mask = {"attention_mask": read["attention_mask"]} if family == "clip" else {}
    with torch.no_grad():
        seen = images(pictures(), return_tensors="pt", input_data_format="channels_last")
        out = model(input_ids=read["input_ids"], **mask, **seen)
    query = encoder.query(text)
    embeddings = torch.stack([e.embedding for e in encoder.encode(pictures())])
    scale, bias = model.logit_scale.exp(), getattr(model, "logit_bias", 0)
    logits = scale * (embeddings @ query.vector) + bias
    torch.testing.assert_close(logits, out.logits_per_image[:, 0], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(query.vector, F.normalize(out.text_embeds, dim=-1)[0])
    if family != "clip":
        expected = out.logits_per_image[:, 0].sigmoid()
        torch.testing.assert_close(encoder.probability(query, embeddings), expected)


def test_tokens_are_the_models_patches(
    folders: dict[str, Path], encoders: dict[str, HubEncoder]
) -> None:
    model = transformers.AutoModel.from_pretrained(folders["siglip"]).eval()
    images = transformers.AutoImageProcessor.from_pretrained(folders["siglip"])
    seen = images(pictures()[:1], return_tensors="pt", input_data_format="channels_last")
    with torch.no_grad():
        patches = model.vision_model(**seen).last_hidden_state[0]  # (12 * 12, 32)
    encoding = encoders["siglip"].encode(pictures()[:1])[0]
    grid = patches.reshape(12, 12, 32)
    assert len(encoding.tokens) == 64
    # 12 patches to 8 cells: the first cell covers patches 0 and 1, the last 10 and 11.
    first, last = grid[:2, :2].mean((0, 1)), grid[10:, 10:].mean((0, 1))
    torch.testing.assert_close(encoding.tokens[0].float(), first, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(encoding.tokens[-1].float(), last, atol=2e-3, rtol=1e-3)
    assert encoding.positions[0].tolist() == [1 / 16, 1 / 16]
    assert encoding.positions[1].tolist() == [3 / 16, 1 / 16]  # x runs first


def test_naflex_keeps_the_pictures_shape(encoders: dict[str, HubEncoder]) -> None:
    wide, square, tall = encoders["siglip2"].encode(pictures())
    rows = [len(set(e.positions[:, 1].tolist())) for e in (wide, square, tall)]
    columns = [len(set(e.positions[:, 0].tolist())) for e in (wide, square, tall)]
    assert columns[0] > rows[0] and columns[1] == rows[1] and columns[2] < rows[2]


def test_clip_positions_stay_inside_the_crop(encoders: dict[str, HubEncoder]) -> None:
    """A marked spot of a wide picture moves the tokens that claim to lie there."""
    encoder, image = encoders["clip"], np.zeros((36, 72, 3), np.uint8)
    before = encoder.encode([image])[0]
    assert before.positions[:, 0].min() > 0.25 and before.positions[:, 0].max() < 0.75
    outside = image.copy()
    outside[:, :16] = 255
    torch.testing.assert_close(encoder.encode([outside])[0].tokens, before.tokens)
    marked = image.copy()
    marked[0:6, 18:24] = 255  # the crop's first patch: x 18 to 24 of 72
    moved = (encoder.encode([marked])[0].tokens - before.tokens).float().norm(dim=1)
    x, y = before.positions[moved.argmax()].tolist()
    assert (x * 72, y * 36) == (pytest.approx(21), pytest.approx(3))


@pytest.mark.parametrize("most", [1, 3, 7, 64])
def test_tokens_never_exceed_the_limit(folders: dict[str, Path], most: int) -> None:
    encoder = HubEncoder(str(folders["siglip2"]), device="cpu", max_tokens=most)
    strips = [np.zeros((4, 400, 3), np.uint8), np.zeros((400, 4, 3), np.uint8)]
    assert all(1 <= len(e.tokens) <= most for e in encoder.encode([*pictures(), *strips]))


def test_clip_probability_is_a_share_against_the_null_prompts(
    encoders: dict[str, HubEncoder],
) -> None:
    encoder = encoders["clip"]
    embeddings = torch.stack([e.embedding for e in encoder.encode(pictures())])
    shares = [encoder.probability(encoder.query(text), embeddings) for text in NULL_PROMPTS]
    # A null prompt shares with its own copy, so that all of them sum to less than one.
    assert torch.stack(shares).sum(0).max() < 1
    query = encoder.query("a red dog")
    nulls = torch.stack([encoder.query(text).vector for text in NULL_PROMPTS])
    scale = float(encoder._model.logit_scale.exp())
    logits = scale * embeddings @ torch.cat([query.vector[None], nulls]).T
    expected = logits.softmax(-1)[:, 0]
    torch.testing.assert_close(encoder.probability(query, embeddings), expected)


def test_identity_follows_the_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folders["clip"], tmp_path / "tiny-clip")
    original = HubEncoder(str(folders["clip"]), device="cpu").identity
    assert HubEncoder(str(copy), device="cpu").identity == original
    assert original["model"] == "tiny-clip" and len(original["weights"]) == 64
    model = transformers.AutoModel.from_pretrained(copy)
    model.text_projection.weight.data[0, 0] += 1
    model.save_pretrained(copy)
    assert HubEncoder(str(copy), device="cpu").identity["weights"] != original["weights"]
    assert (
        HubEncoder(str(copy), device="cpu", max_tokens=9).identity["config"] != original["config"]
    )


def test_weights_digest_covers_every_byte_of_every_part(tmp_path: Path) -> None:
    parts = [b"a" * 5_000_000, b"b" * 10]
    for number, part in enumerate(parts, start=1):
        (tmp_path / f"model-{number:05}-of-00002.safetensors").write_bytes(part)
    assert weights_sha256(tmp_path) == hashlib.sha256(b"".join(parts)).hexdigest()


def test_half_precision_agrees(folders: dict[str, Path], encoders: dict[str, HubEncoder]) -> None:
    low = HubEncoder(str(folders["siglip"]), device="cpu", dtype=torch.bfloat16)
    full = encoders["siglip"].encode(pictures())
    for a, b in zip(low.encode(pictures()), full, strict=True):
        assert a.embedding.dtype == torch.float32 and a.embedding @ b.embedding > 0.999


# Where models come from.


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hub that refuses every connection, and an empty local cache."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("offline", [False, True])
def test_unreachable_hub_names_the_way_on(
    no_hub: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(SourceError, match="google/siglip2-base.*--encoder embedded") as caught:
        HubEncoder("siglip2")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_local_cache_serves_without_the_hub(
    no_hub: Path, folders: dict[str, Path], weights: str
) -> None:
    repository = no_hub / "models--org--tiny"
    snapshot = shutil.copytree(folders["clip"], repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    if weights == "pytorch_model.bin":
        state = transformers.AutoModel.from_pretrained(snapshot).state_dict()
        torch.save(state, snapshot / weights)
        (snapshot / "model.safetensors").unlink()
    identity = HubEncoder("org/tiny", device="cpu").identity
    assert identity["model"] == "org/tiny" and identity["revision"] == COMMIT
    assert identity["weights"] == hashlib.sha256((snapshot / weights).read_bytes()).hexdigest()


@pytest.mark.parametrize("safe", [True, False])
def test_old_weights_are_fetched_only_where_there_are_no_safetensors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, safe: bool
) -> None:
    there = ["config.json", "vocab.txt", "pytorch_model.bin", "tf_model.h5"]
    there += ["model.safetensors"] * safe

    def download(name: str, *, allow_patterns: list[str], **options: object) -> str:
        assert name == "org/tiny" and options["revision"] == "v2"
        for file in there:
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    find_checkpoint("org/tiny", "v2", instead="use no model")
    weights = "model.safetensors" if safe else "pytorch_model.bin"
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "vocab.txt", weights}


def test_half_a_cache_is_named(no_hub: Path, folders: dict[str, Path]) -> None:
    repository = no_hub / "models--org--tiny"
    shutil.copytree(folders["clip"], repository / "snapshots" / COMMIT)
    (repository / "snapshots" / COMMIT / "model.safetensors").unlink()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    with pytest.raises(SourceError, match="org/tiny.*--encoder embedded"):
        HubEncoder("org/tiny")


class NoSuchModel(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def strict_hub(no_hub: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that is there and knows no model."""
    with HTTPServer(("127.0.0.1", 0), NoSuchModel) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        yield
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["org/no-such-model", "no such model", "a/b/c"])
def test_unknown_name_is_a_wrong_call(strict_hub: None, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is neither.*--encoder embedded") as caught:
        HubEncoder(name)
    assert "\n" not in str(caught.value)


def test_other_families_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="bert model, not siglip or siglip2 or clip"):
        HubEncoder(str(tmp_path))


def test_weights_that_are_not_all_there_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """The library underneath would draw the missing ones at random and only warn."""
    folder = shutil.copytree(folders["clip"], tmp_path / "model")
    model = transformers.AutoModel.from_pretrained(folder)
    state = {n: t for n, t in model.state_dict().items() if n != "visual_projection.weight"}
    model.save_pretrained(folder, state_dict=state)
    with pytest.raises(UsageError, match="lack visual_projection.weight and 0 more"):
        HubEncoder(str(folder))


@pytest.mark.parametrize("damage", ["truncate", "empty folder"])
def test_damaged_folders_are_named(folders: dict[str, Path], tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    if damage == "truncate":
        shutil.copytree(folders["clip"], folder)
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    else:
        folder.mkdir()
    with pytest.raises(UsageError, match="cannot be loaded.*--encoder embedded") as caught:
        HubEncoder(str(folder))
    assert "\n" not in str(caught.value)


def test_transformers_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str, *, extra: str) -> None:
        raise UsageError(f"{module} is needed: pip install 'vismem[{extra}]'")

    monkeypatch.setattr(hub, "require", absent)
    with pytest.raises(UsageError, match=r"transformers .*vismem\[hub\]"):
        HubEncoder("siglip2")


def test_max_tokens_must_be_positive() -> None:
    with pytest.raises(UsageError, match="max_tokens must be 1 or more"):
        HubEncoder("siglip2", max_tokens=0)
