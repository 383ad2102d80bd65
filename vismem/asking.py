"""From a question to the heads that answer it, over all that is held at one instant."""

from __future__ import annotations

from vismem.encoders.base import Encoder
from vismem.heads.answer import THRESHOLD, Answer, answer, asked_span
from vismem.heads.locate import asks_where, with_places
from vismem.heads.moved import asks_moved, with_movements
from vismem.heads.nearest import nearest_by
from vismem.heads.spoken import spoken
from vismem.model_memory import ModelMemory
from vismem.scenes import scene_moments
from vismem.store import VectorIndex
from vismem.stream_set import StreamSet

__all__ = ["ask"]


def ask(
    question: str,
    streams: StreamSet,
    encoder: Encoder,
    *,
    threshold: float = THRESHOLD,
    index: VectorIndex | None = None,
    model: ModelMemory | None = None,
) -> Answer:
    """Answer a question; the writer waits only while the memories are looked up.

    Moments and scenes give the evidence. For a question that asks where, things in space are added;
    for one of what moved, movements, which then are the answer; any other is put into words by the
    video language model, if there is one.

    Args:
        question: Plain English; see :func:`vismem.heads.answer.answer`.
        streams: What is held.
        encoder: That the memory was made with.
        threshold: Least score that is claimed.
        index: Of the store, where there are too many moments to compare with in full.
        model: What a video language model remembers.

    Raises:
        SourceError: If the model cannot be loaded because its hub is out of reach.
        UsageError: If the model cannot be had.
        ValueError: If the question is empty.
    """
    with streams.lock:  # all of the same instant
        moments, views, facts = streams.snapshots(), streams.visual(), streams.describe()
        things, movements = streams.world.snapshot(), streams.movements()
    found = answer(
        question,
        moments,
        encoder,
        scenes={name: scene_moments(view.slots(), streams.sizes) for name, view in views.items()},
        threshold=threshold,
        memory=facts,
        nearest={name: nearest_by(index, place) for place, name in enumerate(moments)}
        if index
        else None,
    )
    if asks_where(question):
        found = with_places(found, things, encoder, threshold=threshold)
    if asks_moved(question):
        return with_movements(found, movements, things, moments, encoder, threshold=threshold)
    if model is None:
        return found
    newest = facts["span"][1] if facts["span"] else 0.0
    until = asked_span(question, newest)[1]
    vector = encoder.query(question).vector
    replies = model.ask(question, moments, vector, until if until < newest else None)
    return spoken(found, replies, moments)
