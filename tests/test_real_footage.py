"""Footage nobody here made: the street of OpenCV's samples, as Debian's ``opencv-doc`` ships it."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

import pytest

import vismem as vm
from vismem.encoders.embedded import EmbeddedEncoder

SECONDS = 20.0
CLIP = next(Path("/usr/share/doc/opencv-doc").rglob("vtest.avi"), None)


@pytest.fixture(scope="module")
def street(embedded: EmbeddedEncoder) -> vm.VisualMemory:
    if CLIP is None:
        pytest.skip("vtest.avi is not installed; run: apt-get install opencv-doc")
    memory = vm.VisualMemory("1MB", encoder=embedded)
    for frame in takewhile(lambda frame: frame.timestamp < SECONDS, vm.open_stream(CLIP, fps=1)):
        memory.write(frame)
    memory.flush()
    return memory


@pytest.mark.parametrize("question", ["people", "when does a person appear?", "is a man there?"])
def test_people_are_found(question: str, street: vm.VisualMemory) -> None:
    reply = street.ask(question)
    assert not reply.abstained and reply.moments
    assert all(0 <= m.start <= m.time <= m.end < SECONDS for m in reply.moments)
    assert all(m.box is not None and m.score >= 0.5 for m in reply.moments)


def test_they_are_many(street: vm.VisualMemory) -> None:
    reply = street.ask("how many people are there?")
    assert max(moment.count for moment in reply.moments) >= 2


@pytest.mark.parametrize("question", ["an elephant", "a giraffe", "a red fire truck", "a piano"])
def test_what_is_not_there_is_not_found(question: str, street: vm.VisualMemory) -> None:
    reply = street.ask(question)
    assert reply.abstained and reply.moments == ()


def test_the_memory_knows_what_it_saw(street: vm.VisualMemory) -> None:
    facts = street.describe()
    assert facts["frames"] == SECONDS
    assert facts["span"][0] < 0.2 and SECONDS - 1.5 < facts["span"][1] < SECONDS
