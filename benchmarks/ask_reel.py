"""Ask a clip its questions and count right answers: `python benchmarks/ask_reel.py [REEL]`.

REEL is a folder with a `questions.json`, or such a file itself; this repository's gallery by
default. The file names the `video` beside it and holds `questions`, each with what to `ask` and the
`spans` in seconds in which an answer may lie. A question is right if its best moment overlaps one
of its spans by half of the moment; where there are no spans, if the answer abstains.

With `--policy flash` (star, pyramid) a bank of visual tokens takes half of the budget, and the same
questions are asked of moments alone as well. `--loop 7200` plays the reel again and again for two
hours, `--budget 1MB` leaves no room for all of it: what is right is then what survived.

Prints a row a question: right or wrong, the question, the best moment, its score, the answer. Below
it the score, and what a sceptic would score who never looks: always abstaining, always answering
with the whole clip, or answering with any moment of the memory at random (expected value).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vismem import Frame, VisualMemory, open_stream
from vismem.encoders import load_encoder
from vismem.encoders.base import Encoder, Encoding
from vismem.errors import SourceError, VismemError
from vismem.heads.answer import THRESHOLD
from vismem.memory.policies import POLICIES

GALLERY = Path(__file__).resolve().parents[1] / "data" / "gallery.json"

Span = Sequence[float]


def is_right(moment: Span | None, spans: Sequence[Span]) -> bool:
    """Judge an answer.

    Args:
        moment: Start and end of its best moment in seconds; `None` if it abstained.
        spans: Where an answer may lie; none if the thing is never seen.
    """
    if moment is None or not spans:
        return moment is None and not spans
    start, end = moment
    return any(min(end, b) - max(start, a) >= (end - start) / 2 for a, b in spans)


def baselines(questions: Sequence[Sequence[Span]], moments: Sequence[Span]) -> dict[str, float]:
    """What three ways of never looking score.

    Args:
        questions: The spans of each question.
        moments: All moments of the memory, in seconds; none if there was no room for any.
    """
    whole = (
        min((start for start, _ in moments), default=math.nan),  # never right
        max((end for _, end in moments), default=math.nan),
    )
    at_random = sum(is_right(moment, spans) for moment in moments for spans in questions)
    return {
        "always abstain": sum(is_right(None, spans) for spans in questions),
        "always the whole clip": sum(is_right(whole, spans) for spans in questions),
        "a random moment, expected": at_random / max(len(moments), 1),
    }


def read_questions(reel: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The clip and the questions of a reel.

    Raises:
        SourceError: If there is no such file, or it is not of the format.
    """
    path = reel / "questions.json" if reel.is_dir() else reel
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        video, questions = path.parent / held["video"], held["questions"]
        well_formed = bool(questions) and all(
            q["ask"].strip() and all(a <= b for a, b in q["spans"]) for q in questions
        )
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}; give a folder with questions.json") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise SourceError(f"{path} is no list of questions ({what}); see --help") from error
    if not well_formed:
        raise SourceError(
            f"{path}: every question needs words, every span ends after it starts; correct it"
        )
    return video, questions


class Remembering:
    """An encoder that encodes equal pictures once; a loop shows the same ones again and again."""

    def __init__(self, encoder: Encoder):
        self._encoder = encoder
        self._known: dict[bytes, Encoding] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, images: Sequence[np.ndarray]) -> list[Encoding]:
        """Encode pictures, see `Encoder.encode`."""
        keys = [hashlib.sha1(np.ascontiguousarray(image)).digest() for image in images]
        for key, image in zip(keys, images, strict=True):
            if key not in self._known:
                self._known[key] = self._encoder.encode([image])[0]
        return [self._known[key] for key in keys]


def frames(video: Path, fps: float, loop: float) -> Iterator[tuple[float, Frame]]:
    """The frames of a video, over and over until it has played for `loop` seconds.

    Yields:
        When its turn began, in seconds, and a frame with its time since the first turn began.
    """
    start = 0.0
    while start == 0.0 or start < loop:
        last = start
        with open_stream(video, fps=fps) as stream:
            for frame in stream:
                last = start + frame.timestamp
                yield start, replace(frame, timestamp=last)
            # Its length may be the time of its last frame, which is shown for a while as well.
            start = max(start + (stream.duration or 0.0), last + 1 / fps)


def run(
    reel: Path,
    fps: float,
    threshold: float,
    *,
    policy: str = "moments",
    budget: str = "64MB",
    loop: float = 0.0,
    encoder: Encoder | str = "embedded",
) -> dict[str, Any]:
    """Remember a reel, and ask everything."""
    video, questions = read_questions(reel)
    rows, turns = [], {0.0}
    with VisualMemory(budget, policy=policy, encoder=encoder) as memory:
        for start, frame in frames(video, fps, loop):
            turns.add(start)
            memory.write(frame)
        for question in questions:
            spans = [(a + t, b + t) for t in sorted(turns) for a, b in question["spans"]]
            answer = memory.ask(question["ask"], threshold=threshold)
            best = None if answer.abstained else answer.moments[0]
            moment = (best.start, best.end) if best else None
            rows.append(
                {
                    "right": is_right(moment, spans),
                    "ask": question["ask"],
                    "spans": spans,
                    "moment": moment,
                    "score": best.score if best else None,
                    "answer": answer.text,
                }
            )
        (snapshot,) = memory.snapshots().values()
        held = memory.describe()
        scenes = sum(len(view.slots()) for view in memory.visual().values())
    moments = list(
        zip(snapshot.column("start").tolist(), snapshot.column("end").tolist(), strict=True)
    )
    every = baselines([row.pop("spans") for row in rows], moments)
    return {
        "video": video.name,
        "policy": policy,
        "memory": {
            "frames": held["frames"],
            "bytes": held["bytes"],
            "budget": held["budget"],
            "moments": len(moments),
            "scenes": scenes,
        },
        "threshold": threshold,
        "right": sum(row["right"] for row in rows),
        "questions": rows,
        "baselines": every,
    }


def table(result: dict[str, Any]) -> str:
    """The result as aligned text."""
    rows, memory = result["questions"], result["memory"]
    width = max(len(row["ask"]) for row in rows)
    lines = [
        f"{result['video']}, {result['policy']}: {memory['frames']} frames, "
        f"{memory['moments']} moments, {memory['scenes']} scenes, {memory['bytes'] / 1e6:.2f} of "
        f"{memory['budget'] / 1e6:g} MB; threshold {result['threshold']:g}",
        f"{'':5}  {'question':{width}}  {'best moment':13}  score  answer",
    ]
    for row in rows:
        verdict = "right" if row["right"] else "WRONG"
        span, score = "-", "-"
        if row["moment"]:
            span = "-".join(f"{second:.1f}" for second in row["moment"])
            score = f"{row['score']:.2f}"
        lines.append(f"{verdict}  {row['ask']:{width}}  {span:13}  {score:>5}  {row['answer']}")
    lines.append(f"{result['right']}/{len(rows)} right")
    for name, value in result["baselines"].items():
        lines.append(f"  {name:26} {value:4.1f}/{len(rows)}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reel", nargs="?", type=Path, default=GALLERY, metavar="REEL")
    parser.add_argument("--fps", type=float, default=2.0, help="frames a second (2)")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help=f"({THRESHOLD})")
    parser.add_argument("--policy", default="moments", choices=["moments", *POLICIES])
    parser.add_argument("--budget", default="64MB", help="of the whole memory (64MB)")
    parser.add_argument(
        "--loop", type=float, default=0.0, help="seconds to play the reel for (once)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    encoder = Remembering(load_encoder("embedded"))
    policies = dict.fromkeys(["moments", options.policy])
    try:
        results = [
            run(
                options.reel,
                options.fps,
                options.threshold,
                policy=policy,
                budget=options.budget,
                loop=options.loop,
                encoder=encoder,
            )
            for policy in policies
        ]
    except VismemError as error:
        parser.exit(error.exit_code, f"{error}\n")
    if options.json:
        print(json.dumps(results if len(results) > 1 else results[0], indent=1))
        return
    print("\n\n".join(table(result) for result in results))
    if len(results) > 1:
        told = ", ".join(f"{result['policy']} {result['right']}" for result in results)
        print(f"\nright of {len(results[0]['questions'])}: {told}")


if __name__ == "__main__":
    main()
