"""Answers in a model's words: what becomes of the evidence."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from vismem.heads.answer import Answer, Moment
from vismem.heads.spoken import spoken
from vismem.memory.episodic import EpisodicConfig, EpisodicMemory, EpisodicSnapshot

CONFIG = EpisodicConfig(token_dim=4, embedding_dim=6, max_tokens=2, max_labels=4, max_thumbnail=9)
FOUND = Answer("a dog?", "Dog: 0:01.", (Moment(1.0, 2.0, 0.9, "dog"),), False, {"bytes": 3})
NOTHING = Answer("a dog?", "Not seen: a dog.", (), True, {"bytes": 3})


@dataclass
class Said:
    text: str
    times: dict[float, int] = field(default_factory=dict)
    rows: list[list[int]] = field(default_factory=lambda: [[0]] * 4)


def film(seconds: int) -> EpisodicSnapshot:
    """A new moment every ten seconds."""
    memory = EpisodicMemory(CONFIG, "1MB")
    for second in range(seconds):
        look = torch.eye(6)[second // 10 % 6]
        memory.write(
            look[None, :4] + torch.eye(4)[second // 10 % 4] / 2,
            float(second),
            embedding=look,
            thumbnail=bytes([second // 10]),
        )
    return memory.snapshot()


def test_the_words_are_the_models_and_the_evidence_stays() -> None:
    answer = spoken(FOUND, {"camera": Said("It is a dog.", {15.0: 4})}, {"camera": film(40)})
    assert answer.text == "It is a dog." and not answer.abstained
    assert answer.moments == FOUND.moments and answer.memory == FOUND.memory


def test_where_nothing_was_recognised_the_moments_that_it_looked_at_are_given() -> None:
    times = {3.0: 1, 12.0: 2, 14.0: 4, 33.0: 3, 38.0: 1, 99.0: 4}
    answer = spoken(NOTHING, {"camera": Said("Yes.", times)}, {"camera": film(40)})
    assert not answer.abstained
    seen = [(moment.time, moment.score, moment.label) for moment in answer.moments]
    assert seen[:2] == [(14.0, 1.0, "looked at"), (33.0, 0.75, "looked at")]
    assert len({(m.start, m.end) for m in answer.moments}) == len(answer.moments) == 3
    assert all(m.start <= m.time <= m.end for m in answer.moments)
    assert answer.moments[0].thumbnail == bytes([1])


def test_what_would_steer_a_terminal_is_left_out() -> None:
    answer = spoken(NOTHING, {"camera": Said("\x1b[2JA dog\x07,\na café.\r")}, {"camera": film(5)})
    assert answer.text == "[2JA dog,\na café."
    assert spoken(NOTHING, {"camera": Said("\x1b\x00")}, {"camera": film(5)}) is NOTHING


def test_a_model_that_says_nothing_changes_nothing() -> None:
    assert spoken(NOTHING, {"camera": Said("")}, {"camera": film(5)}) is NOTHING
    assert spoken(FOUND, {}, {}) is FOUND


def test_several_streams_are_told_apart() -> None:
    replies = {"door": Said("A cat.", {2.0: 4}), "hall": Said(""), "yard": Said("A dog.", {2.0: 2})}
    films = {"door": film(20), "hall": film(20), "yard": film(0)}
    answer = spoken(NOTHING, replies, films)
    assert answer.text == "door: A cat.\nyard: A dog."
    assert [moment.stream for moment in answer.moments] == ["door"]
