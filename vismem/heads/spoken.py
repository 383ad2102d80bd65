"""An answer in a video language model's words, with the moments that it looked at as evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch

from vismem.heads.answer import Answer, Moment
from vismem.memory.episodic import EpisodicSnapshot

__all__ = ["Reply", "spoken"]

MOST_LOOKED_AT = 3


class Reply(Protocol):
    """What a model said of a stream; `vismem.models.video_llm.VideoAnswer` is one."""

    @property
    def text(self) -> str:
        """In words."""

    @property
    def times(self) -> Mapping[float, int]:
        """When the frames that it chose to read were seen, and how many layers read each."""

    @property
    def rows(self) -> list[list[int]]:
        """The blocks that each layer read."""


def spoken(
    found: Answer, replies: Mapping[str, Reply], snapshots: Mapping[str, EpisodicSnapshot]
) -> Answer:
    """Put an answer into a model's words.

    The evidence stays what was recognised. Where nothing was, it is the moments that most layers of
    the model read, each with the share of layers as its score.

    Args:
        found: From the evidence alone.
        replies: What the model said, by stream; a stream that it said nothing of is left out.
        snapshots: The moments, by stream.

    Returns:
        The answer; as it was found if the model said nothing at all.
    """
    texts = {stream: _shown(reply.text) for stream, reply in replies.items()}
    said = {stream: replies[stream] for stream, text in texts.items() if text}
    if not said:
        return found
    lines = [f"{stream}: {texts[stream]}" for stream in said]
    text = "\n".join(lines) if len(lines) > 1 else texts[next(iter(said))]
    moments = list(found.moments)
    if not moments:
        for stream, reply in said.items():
            moments += _looked_at(stream, reply, snapshots[stream])
        moments.sort(key=lambda moment: -moment.score)
        moments = moments[:MOST_LOOKED_AT]
    return replace(found, text=text, moments=tuple(moments), abstained=False)


def _shown(text: str) -> str:
    """What a terminal may print: a model's words, not what steers the terminal."""
    return "".join(c for c in text if c.isprintable() or c == "\n").strip()


def _looked_at(stream: str, reply: Reply, snapshot: EpisodicSnapshot) -> list[Moment]:
    """The moments of the frames that most layers read, best first, each once."""
    if not len(snapshot):
        return []
    starts, ends = snapshot.column("start"), snapshot.column("end")
    told: dict[int, Moment] = {}
    for time, layers in sorted(reply.times.items(), key=lambda item: (-item[1], item[0])):
        inside = torch.nonzero((starts <= time) & (time <= ends))[:, 0]
        if len(inside) and int(inside[0]) not in told and len(told) < MOST_LOOKED_AT:
            place = int(inside[0])
            told[place] = Moment(
                start=float(starts[place]),
                end=float(ends[place]),
                score=layers / max(1, len(reply.rows)),
                label="looked at",
                stream=stream,
                time=time,
                thumbnail=snapshot.thumbnail(place),
            )
    return list(told.values())
