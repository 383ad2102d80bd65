"""One visit: what it watches, remembers, answers and forgets, and that nothing of it stays."""

from __future__ import annotations

import gc
import io
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from scripted import Scripted, every, until
from vismem.apps.demo.session import LONGEST_QUESTION, TURNS, Models, Session
from vismem.apps.demo.settings import DemoSettings
from vismem.apps.demo.webcam import PushedStream

from vismem.errors import SourceError, StoreError, UsageError
from vismem.frame import Frame


def test_the_memory_gets_two_frames_a_second_and_the_eye_all(session: Session) -> None:
    session.watch(lambda: Scripted(every(0.05, 31)))
    until(lambda: session.player and session.player.ended)
    session.memory.flush()
    assert session.memory.describe()["frames"] == 4  # at 0, 0.5, 1 and 1.5 s
    assert session.picture.number + session.player.dropped == 31
    assert session.picture.jpeg[:2] == b"\xff\xd8"


def fill(session: Session, times: list[float], seen: int) -> None:
    for at in times:
        image = np.full((36, 64, 3), 40, np.uint8)
        image[0, 0] = seen, 1, 0
        session.memory.write(Frame(image, at))
    session.memory.flush()


def test_forgetting_takes_the_moment_from_memory_chat_and_pictures(session: Session) -> None:
    fill(session, every(0.5, 20), 1)
    turn = session.ask("a cat")
    assert turn.answer.moments and session.thumbnail("a1.0")[:2] == b"\xff\xd8"
    assert session.thumbnail("m0.0")
    assert session.forget(0.0, 20.0) > 0
    assert session.turns[0].answer.moments == () and "0:0" not in session.turns[0].answer.text
    assert session.thumbnail("a1.0") == session.thumbnail("m0.0") == b""
    assert session.ask("a cat").answer.abstained


def test_an_answer_in_the_making_loses_what_is_forgotten_meanwhile(session: Session) -> None:
    fill(session, every(0.5, 20), 1)
    answer = session.memory.ask

    def slow(question: str, **how: object) -> object:
        found = answer(question, **how)
        session.forget(0.0, 20.0)
        return found

    session.memory.ask = slow  # type: ignore[method-assign]
    assert session.ask("a cat").answer.moments == ()


def test_forgetting_only_touches_its_span(session: Session) -> None:
    fill(session, every(0.5, 20), 1)
    fill(session, [30.0 + at for at in every(0.5, 10)], 2)
    cat, dog = session.ask("a cat"), session.ask("a dog")
    assert cat.answer.moments and dog.answer.moments
    session.forget(0.0, 15.0)
    assert session.turns[0].answer.moments == ()
    assert session.turns[1].answer == dog.answer


@pytest.mark.parametrize("key", ["", "m", "m0", "m9.0", "a1.0", "a-1.0", "../x", "m0.0/../..", "é"])
def test_no_strange_key_finds_a_picture(session: Session, key: str) -> None:
    fill(session, [0.0], 1)
    assert session.thumbnail(key) == b""


def test_questions_are_limited_and_old_turns_go(session: Session) -> None:
    for question in ("", "   ", "x" * (LONGEST_QUESTION + 1)):
        with pytest.raises(UsageError):
            session.ask(question)
    for _ in range(TURNS + 3):
        session.ask("a cat")
    assert len(session.turns) == TURNS
    assert [turn.number for turn in session.turns] == list(range(4, TURNS + 4))


def test_a_source_that_cannot_be_opened_changes_nothing(session: Session) -> None:
    session.watch(lambda: Scripted(every(0.5, 100)))
    memory, player = session.memory, session.player

    def broken() -> Scripted:
        raise SourceError("no such camera")

    with pytest.raises(SourceError):
        session.watch(broken)
    assert (session.memory, session.player) == (memory, player)
    assert player is not None and not player.ended


def test_a_new_source_begins_a_new_memory(session: Session) -> None:
    fill(session, [0.0, 1.0], 1)
    session.ask("a cat")
    before = session.number
    session.watch(lambda: Scripted([0.0], seen=2))
    assert session.turns == [] and session.number == before + 1
    assert session.ask("a cat").answer.abstained


def test_dials_take_effect_at_once_and_stay(session: Session) -> None:
    fill(session, every(0.5, 60), 1)
    session.change(budget="100kB", policy="flash")
    assert session.memory.budget.bytes == 100_000 and session.memory.policy == "flash"
    assert session.memory.nbytes <= 100_000
    session.watch(lambda: Scripted([0.0]))
    assert session.memory.budget.bytes == 100_000 and session.memory.policy == "flash"


def test_a_memory_goes_out_and_comes_back(session: Session, models: Models) -> None:
    fill(session, every(0.5, 20), 1)
    archive = b"".join(session.pack())
    assert [entry.name for entry in session.folder.iterdir()] == []  # no copy stays
    with Session("other", DemoSettings(), models) as other:
        path = other.folder / "upload"
        for _ in range(2):  # the folder of the first goes with it
            path.write_bytes(archive)
            other.load(path)
        assert other.ask("a cat").answer.moments == session.ask("a cat").answer.moments
        assert len(list(other.folder.glob("loaded-*"))) == 1
        other.forget(0.0, 99.0)
        assert other.ask("a cat").answer.abstained


@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_damaged_archive_changes_nothing(session: Session, damage: str) -> None:
    fill(session, every(0.5, 10), 1)
    archive = b"".join(session.pack())
    wrong = {"cut": archive[:-2000], "noise": b"\0" * 5000, "empty": b""}[damage]
    (session.folder / "upload").write_bytes(wrong)
    memory = session.memory
    with pytest.raises(StoreError):
        session.load(session.folder / "upload")
    assert session.memory is memory and list(session.folder.glob("loaded-*")) == []


def test_a_loaded_memory_keeps_within_what_a_visitor_may_have(models: Models) -> None:
    with Session("rich", DemoSettings(), models) as rich:
        rich.memory.change(budget="1GB")
        archive = b"".join(rich.pack())
    with Session("token", DemoSettings(), models) as session:
        (session.folder / "upload").write_bytes(archive)
        session.load(session.folder / "upload")
        assert session.memory.budget.bytes == 64_000_000


def test_closing_leaves_no_thread_no_file_no_memory(settings: DemoSettings, models: Models) -> None:
    before = set(threading.enumerate())
    session = Session("token", settings, models)
    session.watch(lambda: Scripted(every(0.05, 200)), again=True)
    until(lambda: session.picture.number > 3)
    (session.folder / "upload").write_bytes(b"a clip")
    memory, folder = weakref.ref(session.memory), session.folder
    session.close()
    session.close()  # once is enough
    assert set(threading.enumerate()) == before
    assert not Path(folder).exists() and session.picture.jpeg == b""
    with pytest.raises(UsageError):
        session.ask("a cat")
    with pytest.raises(UsageError):
        session.watch(lambda: Scripted([0.0]))
    session = None  # type: ignore[assignment]
    gc.collect()
    assert memory() is None


def test_a_source_opened_too_late_is_closed(settings: DemoSettings, models: Models) -> None:
    session, streams = Session("token", settings, models), []

    def slow() -> Scripted:
        session.close()  # the tab goes while the camera is being opened
        streams.append(Scripted([0.0]))
        return streams[0]

    with pytest.raises(UsageError):
        session.watch(slow)
    assert list(streams[0]) == []


def test_boxes_cost_at_most_half_of_the_time(models: Models, settings: DemoSettings) -> None:
    import time

    looked = []

    def slow(image: np.ndarray, least: float) -> object:
        looked.append(time.sleep(0.1))
        return models.propose(image, least)

    with Session("token", settings, Models(models.encoder, slow, models.look)) as session:  # type: ignore[arg-type]
        stream = PushedStream("webcam", pixels=10**6)
        session.watch(lambda: stream)
        jpeg = io.BytesIO()
        from PIL import Image

        Image.new("RGB", (64, 36)).save(jpeg, "JPEG")
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            stream.push(jpeg.getvalue())
            time.sleep(0.02)
        assert 0 < len(looked) <= 9  # of 15 that would fit in if every frame were looked at
