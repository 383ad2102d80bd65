"""Ask a clip its questions and count right answers: `python benchmarks/ask_reel.py [REEL]`.

REEL is a folder with a `questions.json`, or such a file itself; this repository's gallery by
default. The file names the `video` beside it and holds `questions`, each with what to `ask` and the
`spans` in seconds in which an answer may lie. A question is right if its best moment overlaps one
of its spans by half of the moment; where there are no spans, if the answer abstains.

Prints a row a question: right or wrong, the question, the best moment, its score, the answer. Below
it the score, and what a sceptic would score who never looks: always abstaining, always answering
with the whole clip, or answering with any moment of the memory at random (expected value).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vismem import VisualMemory, open_stream
from vismem.errors import SourceError, VismemError
from vismem.heads.answer import THRESHOLD

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
        moments: All moments of the memory, in seconds.
    """
    whole = (min(start for start, _ in moments), max(end for _, end in moments))
    at_random = sum(is_right(moment, spans) for moment in moments for spans in questions)
    return {
        "always abstain": sum(is_right(None, spans) for spans in questions),
        "always the whole clip": sum(is_right(whole, spans) for spans in questions),
        "a random moment, expected": at_random / len(moments),
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


def run(reel: Path, fps: float, threshold: float) -> dict[str, Any]:
    """Remember a reel with the default settings, and ask everything."""
    video, questions = read_questions(reel)
    rows = []
    with VisualMemory() as memory, open_stream(video, fps=fps) as stream:
        for frame in stream:
            memory.write(frame)
        for question in questions:
            answer = memory.ask(question["ask"], threshold=threshold)
            best = None if answer.abstained else answer.moments[0]
            moment = (best.start, best.end) if best else None
            rows.append(
                {
                    "right": is_right(moment, question["spans"]),
                    "ask": question["ask"],
                    "moment": moment,
                    "score": best.score if best else None,
                    "answer": answer.text,
                }
            )
        (snapshot,) = memory.snapshots().values()
        held = memory.describe()
    moments = list(
        zip(snapshot.column("start").tolist(), snapshot.column("end").tolist(), strict=True)
    )
    return {
        "video": video.name,
        "memory": {"frames": held["frames"], "bytes": held["bytes"], "moments": len(moments)},
        "threshold": threshold,
        "right": sum(row["right"] for row in rows),
        "questions": rows,
        "baselines": baselines([q["spans"] for q in questions], moments),
    }


def table(result: dict[str, Any]) -> str:
    """The result as aligned text."""
    rows, memory = result["questions"], result["memory"]
    width = max(len(row["ask"]) for row in rows)
    lines = [
        f"{result['video']}: {memory['frames']} frames, {memory['moments']} moments, "
        f"{memory['bytes'] / 1e6:.2f} MB; threshold {result['threshold']:g}",
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
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        result = run(options.reel, options.fps, options.threshold)
    except VismemError as error:
        parser.exit(error.exit_code, f"{error}\n")
    print(json.dumps(result, indent=1) if options.json else table(result))


if __name__ == "__main__":
    main()
