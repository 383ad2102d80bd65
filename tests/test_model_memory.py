"""A video language model beside the moments: written, asked, restarted, told to forget."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_family, tiny_model, tiny_tokenizer
from tiny_encoder import TinyEncoder

from vismem.cli import main
from vismem.errors import SourceError, StoreError, UsageError
from vismem.frame import Frame
from vismem.kv_store import DurableKV
from vismem.model_memory import ModelSettings
from vismem.models.video_llm import VideoLLM
from vismem.pipeline import VisualMemory
from vismem.store import Durability

SETTINGS = ModelSettings(
    "tiny", fps=1.0, budget="4MB", disk="40MB", window=64, blocks=4, answer=6, drop=None
)


@pytest.fixture(scope="module")
def llm() -> VideoLLM:
    family = tiny_family("llava_onevision")
    family.identity = {"model": "tiny", "weights": "0"}
    return VideoLLM(family)


def frame(number: int, stream: str = "camera", step: float = 0.5) -> Frame:
    image = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
    image[0, 0] = number % 3 + 1, 1, 0
    return Frame(image, number * step, stream)


def begin(llm: VideoLLM, path: Path | None = None, **settings) -> VisualMemory:
    return VisualMemory(
        "1MB",
        encoder=TinyEncoder(),
        model=replace(SETTINGS, **settings),
        llm=llm,
        path=path,
    )


def reopen(llm: VideoLLM, path: Path, **more) -> VisualMemory:
    return VisualMemory.open(path, encoder=TinyEncoder(), llm=llm, **more)


def fill(memory: VisualMemory, numbers: range, stream: str = "camera") -> VisualMemory:
    for number in numbers:
        memory.write(frame(number, stream))
    memory.flush()
    return memory


@pytest.fixture
def memory(llm: VideoLLM) -> Iterator[VisualMemory]:
    with fill(begin(llm), range(80)) as memory:
        yield memory


def seen(memory: VisualMemory, stream: str = "camera") -> list[float]:
    assert memory.model
    held = memory.model._streams[stream].snapshot()
    return sorted(
        {t for b in held.blocks for t in b.times.tolist()} | {c.time for c in held.window}
    )


def test_the_model_looks_at_its_own_pace_and_answers_in_words(memory: VisualMemory) -> None:
    assert seen(memory) == [float(second) for second in range(40)]
    answer = memory.ask("what is there?")
    assert answer.text and answer.text != memory.ask("what is there?", words=False).text
    assert answer.moments and not answer.abstained
    assert memory.ask("a dog").moments == memory.ask("a dog", words=False).moments


def test_the_pace_survives_rounded_times(llm: VideoLLM) -> None:
    with begin(llm, fps=3.0) as memory:
        for number in range(30):
            memory.write(frame(number, step=1 / 3))
        memory.flush()
        assert len(seen(memory)) == 30


def test_a_question_about_an_earlier_time_reads_nothing_later(llm: VideoLLM) -> None:
    with fill(begin(llm), range(40)) as memory:
        then = memory.ask("what was there before 0:19.5?").text
        fill(memory, range(40, 80))
        assert memory.ask("what was there before 0:19.5?").text == then


def test_streams_have_memories_of_their_own(llm: VideoLLM) -> None:
    with begin(llm) as memory:
        for number in range(30):
            memory.write(frame(number, "door"))
            memory.write(frame(number + 100, "yard"))
        memory.flush()
        lines = memory.ask("what?").text.splitlines()
        assert [line.partition(":")[0] for line in lines] == ["door", "yard"]
        with fill(begin(llm), range(30), "door") as alone:
            assert lines[0] == "door: " + alone.ask("what?").text


def test_a_memory_that_was_closed_goes_on_as_if_it_had_not(llm: VideoLLM, tmp_path: Path) -> None:
    with fill(begin(llm, drop=0.5), range(80)) as whole:
        expected = whole.ask("what is there?")
    with fill(begin(llm, tmp_path / "a.mem", drop=0.5), range(33)):
        pass
    with fill(reopen(llm, tmp_path / "a.mem"), range(30, 80)) as again:  # some frames come twice
        assert again.ask("what is there?").text == expected.text
    with reopen(llm, tmp_path / "a.mem", read_only=True) as reader:
        assert reader.ask("what is there?").text == expected.text


def test_a_memory_in_ram_is_saved_with_what_the_model_remembers(
    llm: VideoLLM, tmp_path: Path
) -> None:
    with fill(begin(llm), range(40)) as memory:
        memory.save(tmp_path / "a.mem")
        fill(memory, range(40, 60))
        expected = memory.ask("what is there?").text
    with reopen(llm, tmp_path / "a.mem", read_only=True) as reader:
        assert reader.ask("what is there?").text == expected


@pytest.mark.parametrize("durable", [False, True])
def test_what_is_forgotten_the_model_forgets(llm: VideoLLM, tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a.mem" if durable else None
    with fill(begin(llm, path), range(60)) as memory:
        memory.forget(5.0, 9.0)
        assert not [time for time in seen(memory) if 5 <= time <= 9] and len(seen(memory)) > 15
    if path:
        with VisualMemory.open(path, encoder=TinyEncoder()) as again:  # without the model
            again.forget(15.0, 16.0)
        with reopen(llm, path, read_only=True) as reader:
            reader.ask("what?")
            assert not [time for time in seen(reader) if 5 <= time <= 9 or 15 <= time <= 16]


def test_a_store_that_was_made_and_never_written_is_no_memory_yet(
    llm: VideoLLM, tmp_path: Path
) -> None:
    with fill(begin(llm, tmp_path / "a.mem"), range(4)) as memory:
        assert memory.model
        folder, config = memory.model._folder("camera"), memory.model._memories["camera"].config
    assert folder
    shutil.rmtree(folder)
    identity = {**llm.family.identity, "stream": "camera"}
    DurableKV(folder, config, "4MB", "40MB", identity=identity).close()
    with reopen(llm, tmp_path / "a.mem", read_only=True) as reader:
        assert reader.ask("a dog").text == reader.ask("a dog", words=False).text
    with fill(reopen(llm, tmp_path / "a.mem"), range(4, 8)) as again:
        assert seen(again) == [2.0, 3.0]


def test_what_is_too_old_the_model_forgets(llm: VideoLLM) -> None:
    memory = VisualMemory("1MB", encoder=TinyEncoder(), model=SETTINGS, llm=llm, retain=10.0)
    with fill(memory, range(80)):
        assert min(seen(memory)) >= 39.5 - 1.05 * 10 - 1


def test_another_model_is_refused(llm: VideoLLM, tmp_path: Path) -> None:
    with fill(begin(llm, tmp_path / "a.mem"), range(20)):
        pass
    family = tiny_family("llava_onevision", seed=1)
    family.identity = {"model": "tiny", "weights": "1"}
    with reopen(VideoLLM(family), tmp_path / "a.mem", read_only=True) as memory:
        with pytest.raises(StoreError, match="the model it was made with"):
            memory.ask("what?")
        assert memory.ask("a dog", words=False).moments


def test_the_memory_of_another_stream_is_refused(llm: VideoLLM, tmp_path: Path) -> None:
    with begin(llm, tmp_path / "a.mem") as memory:
        fill(memory, range(20), "door")
        fill(memory, range(20), "yard")
        assert memory.model
        door, yard = memory.model._folder("door"), memory.model._folder("yard")
    assert door and yard
    door.rename(tmp_path / "kept")
    yard.rename(door)
    with reopen(llm, tmp_path / "a.mem", read_only=True) as again:
        with pytest.raises(StoreError, match="yard"):
            again.ask("what?")


@pytest.mark.parametrize("budget", ["15kB", "1MB"])
def test_what_is_too_old_the_model_forgets_whatever_is_held_of_moments(
    llm: VideoLLM, budget: str
) -> None:
    """Moments that left for want of room, or that last to this day, are never too old."""
    memory = VisualMemory(budget, encoder=TinyEncoder(), model=SETTINGS, llm=llm, retain=30.0)
    with memory:
        for number in range(160):
            memory.write(replace(frame(7), timestamp=number / 2))
        memory.flush()
        assert min(seen(memory)) >= 79.5 - 1.05 * 30 - 1


def test_a_full_disk_while_the_model_forgets_counts_no_frame_twice(
    llm: VideoLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = VisualMemory(
        "1MB", encoder=TinyEncoder(), model=SETTINGS, llm=llm, retain=8.0, path=tmp_path / "a.mem"
    )

    def full(*_: object) -> int:
        raise StoreError("the disk is full")

    with memory:
        fails = 0
        for number in range(40):
            memory.write(frame(number))
            with monkeypatch.context() as patch:
                if not fails:
                    patch.setattr(DurableKV, "forget", full)
                try:
                    memory.flush()
                except StoreError:
                    fails += 1
            memory.flush()
        assert fails == 1 and memory.stats.written == memory.describe()["frames"] == 40
    with reopen(llm, tmp_path / "a.mem", read_only=True) as again:
        assert again.describe()["frames"] == 40


def test_a_disk_that_was_full_when_it_was_saved(
    llm: VideoLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise StoreError("the disk is full")

    with fill(begin(llm), range(40)) as memory:
        expected = memory.ask("what is there?").text
        with monkeypatch.context() as patch:
            patch.setattr(DurableKV, "adopt", full)
            with pytest.raises(StoreError, match="full"):
                memory.save(tmp_path / "a.mem")
        memory.save()
        assert memory.ask("what is there?").text == expected
    with reopen(llm, tmp_path / "a.mem", read_only=True) as reader:
        assert reader.ask("what is there?").text == expected


def test_what_a_full_disk_kept_is_forgotten_when_told_again(
    llm: VideoLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise StoreError("the disk is full")

    with begin(llm, tmp_path / "a.mem") as memory:
        for stream in "door", "yard":
            fill(memory, range(40), stream)
        with monkeypatch.context() as patch:
            patch.setattr(DurableKV, "_seal", full)
            with pytest.raises(StoreError, match="full"):
                memory.forget(5.0, 9.0)
        memory.forget(5.0, 9.0)
    with reopen(llm, tmp_path / "a.mem", read_only=True) as reader:
        reader.ask("what?")
        for stream in "door", "yard":
            assert not [time for time in seen(reader, stream) if 5 <= time <= 9]


def test_questions_may_come_while_a_memory_is_opened(llm: VideoLLM, tmp_path: Path) -> None:
    with fill(begin(llm, tmp_path / "a.mem"), range(30)):
        pass
    problems: list[Exception] = []

    def ask() -> None:
        try:
            again.ask("what?", wait=False)
        except StoreError as error:
            problems.append(error)

    with reopen(llm, tmp_path / "a.mem") as again:
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        fill(again, range(30, 32))
        for thread in threads:
            thread.join()
    assert not problems


def test_frames_may_become_larger(tmp_path: Path) -> None:
    family = tiny_family("qwen2_5_vl")
    family.frame_tokens = 4, 100
    family.identity = {"model": "tiny", "weights": "0"}
    with begin(VideoLLM(family), drop=0.5) as memory:
        for number, side in enumerate([60, 60, 400, 400, 60, 900, 60]):
            image = np.random.default_rng(number).integers(0, 255, (side, side, 3), np.uint8)
            image[0, 0] = 1, 1, 0
            memory.write(Frame(image, float(number)))
        memory.flush()
        assert seen(memory) == [float(number) for number in range(7)] and not memory.stats.refused


@pytest.mark.parametrize("durability", ["process", "power"])
def test_what_the_model_remembers_survives_what_the_moments_do(
    llm: VideoLLM, tmp_path: Path, durability: Durability
) -> None:
    settings = {"encoder": TinyEncoder(), "model": SETTINGS, "llm": llm, "durability": durability}
    with fill(VisualMemory("1MB", path=tmp_path / "a.mem", **settings), range(4)):
        pass
    with fill(reopen(llm, tmp_path / "a.mem"), range(4), "yard"):
        pass
    with fill(VisualMemory("1MB", **settings), range(4)) as memory:
        memory.save(tmp_path / "b.mem")
    manifests = sorted(tmp_path.rglob("manifest.json"))
    assert [json.loads(file.read_text())["durability"] for file in manifests] == [durability] * 5


@pytest.mark.parametrize("wrong", [{"budget": "60kB"}, {"disk": "200kB"}])
def test_budgets_without_room_are_refused_before_anything_begins(
    llm: VideoLLM, tmp_path: Path, wrong: dict
) -> None:
    with pytest.raises(UsageError, match=f"--model-{'disk' if 'disk' in wrong else 'budget'}"):
        begin(llm, tmp_path / "a.mem", **wrong)
    assert not (tmp_path / "a.mem").exists()


def test_a_memory_that_does_not_fit_the_model_is_let_go(llm: VideoLLM, tmp_path: Path) -> None:
    """Said each time, instead of once and then that the memory is in use."""
    with fill(begin(llm, tmp_path / "a.mem"), range(4)):
        pass
    family = tiny_family("llava_onevision")
    family.model.to(torch.bfloat16)
    family.identity = llm.family.identity
    with reopen(VideoLLM(family), tmp_path / "a.mem") as memory:
        for _ in range(2):
            with pytest.raises(UsageError, match="bfloat16"):
                memory.ask("what?")


@pytest.mark.parametrize(
    "wrong", [{"fps": 0.0}, {"precision": "int3"}, {"blocks": 0}, {"budget": "much"}]
)
def test_settings_that_cannot_be_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError):
        replace(SETTINGS, **wrong)


def test_a_model_that_cannot_be_had_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises((UsageError, SourceError)):
        VisualMemory(path=tmp_path / "a.mem", encoder=TinyEncoder(), model=str(tmp_path / "empty"))
    assert not (tmp_path / "a.mem").exists()


# --------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llava")
    tiny_model("llava_onevision").save_pretrained(folder)
    tiny_tokenizer("llava_onevision").save_pretrained(folder)
    return folder


def test_run_and_ask_with_a_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib.resources import files

    out = str(tmp_path / "clip.mem")
    clip = str(files("vismem.data") / "gallery.mp4")
    words = ["run", clip, "--out", out, "--fps", "1", "--seconds", "8", "--model", str(folder)]
    assert main([*words, "--model-fps", "1", "--model-disk", "200MB"]) == 0
    capsys.readouterr()
    assert main(["ask", out, "when does the cat appear?", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert main(["ask", out, "when does the cat appear?", "--no-words", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["answer"].startswith("Cat: 0:0") and told["answer"] != found["answer"]
    assert told["moments"] == found["moments"]
    assert main(["inspect", out, "--verify"]) == 0
    shown = capsys.readouterr().out
    assert "verified" in shown and "blocks of keys and values" in shown and folder.name in shown
    folder.rename(folder.with_name("gone"))
    try:
        assert main(["ask", out, "a cat"]) in (2, 3)
        assert "--no-words" in capsys.readouterr().err
        assert main(["ask", out, "a cat", "--no-words"]) == 0
    finally:
        folder.with_name("gone").rename(folder)
    (record,) = Path(out, "model").glob("*/tail_*.log")
    written = bytearray(record.read_bytes())
    written[200] ^= 1
    record.write_bytes(written)
    assert main(["inspect", out, "--verify"]) == 4
    assert record.parent.name in capsys.readouterr().err


def test_a_model_is_found_from_anywhere_and_is_not_swapped(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from PIL import Image

    pictures, out, plain = tmp_path / "pictures", tmp_path / "a.mem", tmp_path / "b.mem"
    pictures.mkdir()
    for number in range(3):
        Image.effect_noise((64, 48), 80).convert("RGB").save(pictures / f"{number}.png")
    monkeypatch.chdir(folder.parent)
    run = ["run", str(pictures), "--out"]
    assert main([*run, str(out), "--model", folder.name, "--model-disk", "200MB"]) == 0
    assert main([*run, str(plain)]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["ask", str(out), "what is there?"]) == 0
    assert main([*run, str(out), "--resume", "--model", str(folder)]) == 0
    (out / "model" / "note.txt").touch()  # a stranger's file is no memory
    capsys.readouterr()
    assert main(["inspect", str(out), "--verify"]) == 0
    assert "0 blocks of keys and values, 0:00 to 0:00" in capsys.readouterr().out
    for memory in out, plain:
        assert main([*run, str(memory), "--resume", "--model", "org/other"]) == 2
        assert "org/other" in capsys.readouterr().err


def test_a_hub_out_of_reach_is_told_before_anything_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "pictures"
    folder.mkdir()
    from PIL import Image

    Image.new("RGB", (64, 48)).save(folder / "0.png")
    out = tmp_path / "a.mem"
    assert main(["run", str(folder), "--out", str(out), "--model", "org/model"]) == 3
    told = capsys.readouterr().err
    assert "org/model" in told and "embedded" in told and not out.exists()
