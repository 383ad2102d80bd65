"""What is asked of a memory that is stored: ``vismem ask | inspect | export | forget``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from vismem.errors import StoreError, UsageError, VismemError

__all__ = ["Ask", "Export", "Forget", "Inspect"]


@dataclass
class Ask:
    """Ask a memory what it saw; works while another process still writes it."""

    memory: Positional[Path]
    """Directory of the memory."""
    question: Positional[str]
    """Plain English: "when does the dog appear?"."""
    threshold: float | None = None
    """Least probability that is claimed."""
    words: bool = True
    """Let the video language model of the memory answer; --no-words for the evidence alone."""
    rephrase: bool = False
    """Let a small language model smooth the sentence; only faithful words pass (extra llm)."""
    json: bool = False
    """Print the answer with its evidence as JSON."""

    def __call__(self) -> int:
        """Do it; gives the exit code."""
        from vismem.heads.answer import THRESHOLD
        from vismem.pipeline import VisualMemory

        with VisualMemory.open(self.memory, read_only=True) as memory:
            threshold = THRESHOLD if self.threshold is None else self.threshold
            try:
                answer = memory.ask(self.question, threshold=threshold, words=self.words)
            except VismemError as error:
                if not (memory.model and self.words):
                    raise
                way = "--no-words answers from the evidence alone"
                raise type(error)(f"{error}; {way}") from error
            except ValueError as error:
                raise UsageError(str(error)) from error
        if self.rephrase:
            from vismem.heads.rephrase import Rephraser

            answer = Rephraser().rephrase(answer)
        print(json.dumps(answer.to_dict()) if self.json else answer.text)
        return 0


@dataclass
class Inspect:
    """Show what a memory holds; check every byte of it with --verify."""

    memory: Positional[Path]
    """Directory of the memory."""
    verify: bool = False
    """Read every file and check every digest."""
    picture: Path | None = None
    """Draw it on one page, to this file (.png)."""
    json: bool = False
    """Print it as JSON."""

    def __call__(self) -> int:
        """Do it; gives the exit code."""
        from vismem.export import export_picture, summary
        from vismem.model_memory import model_stores
        from vismem.store import verify

        report = None
        if self.verify:
            report = verify(self.memory)
            problems = [*report.problems]
            for store in model_stores(self.memory):
                problems += [f"{store.name}: {problem}" for problem in verify(store).problems]
            if problems:
                if self.json:
                    print(json.dumps({"verified": False, "problems": problems}))
                for problem in problems:
                    print(f"vismem: {problem}", file=sys.stderr)
                return StoreError.exit_code
        facts = summary(self.memory)
        if report:
            facts["verified"] = True
            facts["checked"] = {
                "segments": report.segments,
                "moments": report.rows,
                "records": report.records,
                "unfinished bytes": report.cut,
            }
        if self.picture:
            export_picture(self.memory, self.picture)
            facts["picture"] = str(self.picture)
        if self.json:
            print(json.dumps(facts))
            return 0
        for name, value in facts.items():
            if isinstance(value, dict):
                value = ", ".join(f"{k} {v}" for k, v in value.items())
            print(f"{name:<10} {value}")
        return 0


@dataclass
class Export:
    """Write a memory's moments for other programs."""

    memory: Positional[Path]
    """Directory of the memory."""
    out: Path
    """File to write; thumbnails of a JSON export go beside it."""
    format: Literal["json", "rerun"] = "json"
    """json, or a recording for the Rerun viewer (needs the extra rerun)."""

    def __call__(self) -> int:
        """Do it; gives the exit code."""
        from vismem.export import export_json, export_rerun

        write = export_json if self.format == "json" else export_rerun
        print(f"{self.out}: {write(self.memory, self.out)} moments")
        return 0


@dataclass
class Forget:
    """Forget a span of time, in memory and on disk."""

    memory: Positional[Path]
    """Directory of the memory."""
    start: Positional[float]
    """First second."""
    end: Positional[float]
    """Last second."""
    stream: str | None = None
    """Only of this stream."""

    def __call__(self) -> int:
        """Do it; gives the exit code."""
        from vismem.pipeline import VisualMemory

        with VisualMemory.open(self.memory) as memory:
            try:
                gone = memory.forget(self.start, self.end, stream=self.stream)
            except ValueError as error:
                raise UsageError(str(error)) from error
        print(f"{gone} moments forgotten")
        return 0
