"""Models saved and loaded as a user's folder, and what goes wrong when they are."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from tiny import FAMILY_NAMES, frames, tiny_model, tiny_tokenizer

from vismem.errors import SourceError, UsageError
from vismem.models.families import Family, load, loading
from vismem.models.preprocess import PixelScale

SCALE = {"image_mean": [0.41, 0.42, 0.43], "image_std": [0.3, 0.3, 0.3]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save(name, tmp_path_factory.mktemp(name)) for name in FAMILY_NAMES}


def save(name: str, folder: Path) -> Path:
    tiny_model(name).to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer(name).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SCALE))
    return folder


def shown(family: Family) -> torch.Tensor:
    embeds = family.embed_frames(frames(1)).embeds
    return family.forward(embeds, positions=family.text_positions(embeds.shape[1]))


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_a_saved_model_is_loaded_as_it_was(folders: dict[str, Path], name: str) -> None:
    options = {"frame_tokens": (4, 16)} if name.startswith("qwen") else {}
    family = load(str(folders[name]), device="cpu", **options)
    assert family.dtype == torch.float32 and family.model_type == name
    assert family.scale == PixelScale((0.41, 0.42, 0.43), (0.3, 0.3, 0.3))
    scale = {"scale": family.scale} | options
    model = tiny_model(name)
    for weight in model.parameters():
        weight.copy_(weight.bfloat16())
    torch.testing.assert_close(
        shown(family), shown(loading.family_of(model, **scale)), atol=1e-5, rtol=1e-5
    )
    words = loading.family_of(model, tiny_tokenizer(name))
    assert family.init_ids == words.init_ids and family.stop_ids == words.stop_ids
    assert family.question_ids("what?") == words.question_ids("what?")
    assert not family.model.training
    assert not any(weight.requires_grad for weight in family.model.parameters())


def test_dtype_and_scale_can_be_chosen(folders: dict[str, Path]) -> None:
    given = PixelScale((0.1, 0.1, 0.1))
    family = load(str(folders["smolvlm"]), device="cpu", dtype=torch.float16, scale=given)
    assert family.dtype == torch.float16 and family.scale == given


def test_identity_follows_the_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["smolvlm"], tmp_path / "tiny")
    first = load(str(folder), device="cpu").identity
    assert first["model"] == "tiny" and first["revision"] == "local" and len(first["weights"]) == 64
    tiny_model("smolvlm", seed=1).save_pretrained(folder)
    assert load(str(folder), device="cpu").identity["weights"] != first["weights"]


@pytest.mark.parametrize("offline", [False, True])
def test_an_unreachable_hub_names_the_way_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: bool
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(SourceError, match="org/model.*use the embedded profile.*folder") as caught:
        load("org/model")
    assert "\n" not in str(caught.value)


def test_transformers_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str, *, extra: str) -> None:
        raise UsageError(f"{module} is needed: pip install 'vismem[{extra}]'")

    monkeypatch.setattr(loading, "require", absent)
    with pytest.raises(UsageError, match=r"transformers .*vismem\[video\]"):
        load("org/model")


@pytest.mark.parametrize("version", ["4.57.1", "5.9.0.dev0"])
def test_an_old_transformers_is_named(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    with pytest.raises(UsageError, match=rf"5\.\d+ or newer, not {version}.*vismem\[video\]"):
        load("org/model")


def test_other_models_are_refused_before_their_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="bert is no supported.*llava_onevision"):
        load(str(tmp_path))


def test_weights_that_are_not_all_there_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["llava_onevision"], tmp_path / "tiny")
    model = tiny_model("llava_onevision")
    lost = "model.multi_modal_projector.linear_1.bias"
    state = {name: value for name, value in model.state_dict().items() if name != lost}
    model.save_pretrained(folder, state_dict=state)
    with pytest.raises(UsageError, match="lack .*linear_1.bias and 0 more.*embedded profile"):
        load(str(folder))


@pytest.mark.parametrize("damage", ["truncated", "empty", "no tokenizer", "broken scale"])
def test_damaged_folders_are_named(folders: dict[str, Path], tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "tiny"
    if damage == "empty":
        folder.mkdir()
    else:
        shutil.copytree(folders["smolvlm"], folder)
    if damage == "truncated":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    if damage == "no tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    if damage == "broken scale":
        (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be loaded.*embedded profile") as caught:
        load(str(folder), device="cpu")
    assert "\n" not in str(caught.value)
