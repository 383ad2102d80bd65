"""``vismem run``: watch a source and remember it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from vismem.errors import StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vismem.pipeline import VisualMemory
    from vismem.streams import Stream

__all__ = ["Run", "presets", "read_preset"]


@dataclass
class Run:
    """Watch a source and remember it: a video, a camera, a folder of pictures, a ROS bag."""

    source: Positional[str]
    """File, folder, bag, webcam number or rtsp:// or http:// address."""
    out: Path | None = None
    """Directory of the memory; the source's name with .mem by default."""
    fps: float | None = 2.0
    """Frames a second to look at; None for every frame."""
    budget: str | None = None
    """What the memory may hold, like 1GiB; 64MB, or with --resume as before."""
    policy: Literal["moments", "flash", "star", "pyramid"] | None = None
    """What remembers pictures beside the moments, in half of the budget; moments, or as before."""
    encoder: str = "embedded"
    """embedded (no hub needed), siglip2, clip, or a model's name on the hub; not with --resume."""
    model: str | None = None
    """A video language model that looks as well and answers in words: a hub's name or a folder."""
    model_fps: float = 0.5
    """Frames a second that the model looks at."""
    model_budget: str = "2GB"
    """What its keys and values may take in RAM, for each stream."""
    model_disk: str = "32GB"
    """What they may take on disk, for each stream."""
    model_precision: Literal["model", "int8", "int4"] = "int8"
    """What they are stored in."""
    motion: bool = True
    """Seek what moves, where the camera stands still or gives depth and poses; or as before."""
    resume: bool = False
    """Go on with a memory that exists, after its last frame."""
    retain: float | None = None
    """Forget what is older than this many seconds."""
    durability: Literal["process", "power"] = "process"
    """What an acknowledged frame survives: a crash of the program, or a loss of power."""
    seconds: float | None = None
    """Stop after this much time of the stream."""
    threads: int = 1
    """Threads a picture is encoded with; more than one hurts on a busy machine."""
    json: bool = False
    """Print the outcome as JSON."""
    config: str | None = None
    """Preset to take defaults from: a YAML file, or one of vismem's (see vismem info)."""

    def __call__(self) -> int:
        """Do it; gives the exit code."""
        from vismem.streams import open_stream

        with open_stream(self.source, fps=self.fps) as stream:
            out = self.out or Path(f"{stream.name}.mem")
            memory = _open_to_write(self, out)
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            began = time.monotonic()
            stopped = ""
            try:
                _ingest(self, stream, memory)
            except KeyboardInterrupt:
                stopped = f'stopped; go on with: vismem run "{self.source}" --out {out} --resume'
            except StoreError as error:
                with contextlib.suppress(StoreError):
                    memory.close()
                raise StoreError(
                    f'{error}; then go on with: vismem run "{self.source}" --out {out} --resume'
                ) from error
            memory.close()
            _report(self, stream, memory, out, time.monotonic() - began, stopped)
        return 0


def read_preset(name: str) -> dict[str, Any]:
    """Read the defaults of ``run`` from a YAML file or a preset of vismem."""
    from importlib.resources import files

    import yaml

    shipped = files("vismem.configs") / f"{name}.yaml"
    place = shipped if shipped.is_file() else Path(name)
    try:
        values = yaml.safe_load(place.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(
            f"preset {name} cannot be read ({error}); presets that ship: {', '.join(presets())}"
        ) from error
    known = {field.name for field in dataclasses.fields(Run)} - {"config"}
    if not isinstance(values, dict) or not set(values) <= known:
        strange = sorted(set(values) - known) if isinstance(values, dict) else [type(values)]
        raise UsageError(f"preset {name} sets {strange}; it may set: {', '.join(sorted(known))}")
    return values


def presets() -> list[str]:
    """Names of the presets that ship."""
    from importlib.resources import files

    names = [file.name for file in files("vismem.configs").iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def _open_to_write(verb: Run, out: Path) -> VisualMemory:
    import torch

    from vismem.model_memory import ModelSettings
    from vismem.pipeline import VisualMemory

    if verb.threads < 1:
        raise UsageError(f"--threads is 1 or more, not {verb.threads}")
    torch.set_num_threads(verb.threads)
    if (out / "manifest.json").exists():
        if not verb.resume:
            raise UsageError(f"{out} exists; add --resume to go on with it, or give another --out")
        return _resumed(verb, VisualMemory.open(out))
    try:
        settings = verb.model and ModelSettings(
            verb.model,
            fps=verb.model_fps,
            budget=verb.model_budget,
            disk=verb.model_disk,
            precision=verb.model_precision,
        )
        return VisualMemory(
            verb.budget or "64MB",
            policy=verb.policy or "moments",
            path=out,
            encoder=verb.encoder,
            model=settings or None,
            durability=verb.durability,
            retain=verb.retain,
            motion=verb.motion,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _resumed(verb: Run, memory: VisualMemory) -> VisualMemory:
    """Take another budget or policy; refuse another model, instead of leaving it out."""
    from vismem.model_memory import ModelSettings

    begun = memory.model.settings.name if memory.model else None
    if verb.model is not None and ModelSettings(verb.model).name != begun:
        memory.close()
        raise UsageError(
            f"this memory was begun with {begun or 'no video language model'}, not {verb.model}; "
            f"resume without --model, or give another --out"
        )
    if not verb.motion and memory.config.get("motion", False):
        memory.close()
        raise UsageError(
            "this memory seeks what moves; resume without --no-motion, or give another --out"
        )
    try:
        if verb.budget is not None or verb.policy is not None:
            memory.change(budget=verb.budget, policy=verb.policy)
    except ValueError as error:
        memory.close()
        raise UsageError(str(error)) from error
    except BaseException:
        memory.close()
        raise
    return memory


def _ingest(verb: Run, stream: Stream, memory: VisualMemory) -> None:
    """Hand every frame to the memory, and show how it goes."""
    seen = None if stream.live else memory.last_timestamp(stream.name)
    first = None
    with _progress(stream) as show:
        for frame in stream:
            if seen is not None and frame.timestamp <= seen:
                continue
            first = frame.timestamp if first is None else first
            if verb.seconds is not None and frame.timestamp - first >= verb.seconds:
                break
            try:
                memory.write(frame, block=not stream.live)
            except ValueError:
                continue  # counted as refused, and told at the end
            show(frame.timestamp, memory)
        memory.flush()
        show(None, memory)


@contextlib.contextmanager
def _progress(stream: Stream) -> Iterator[Callable[[float | None, VisualMemory], None]]:
    """A bar on a terminal, a line every five seconds elsewhere."""
    from vismem.heads.answer import clock

    def line(at: float | None, memory: VisualMemory) -> str:
        facts = memory.describe()
        when = f"{clock(at)} " if at is not None and not stream.live else ""
        dropped = f", {memory.stats.dropped} dropped" if memory.stats.dropped else ""
        return f"{when}{facts['frames']} frames, {_size(facts['bytes'])} held{dropped}"

    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        columns = (
            SpinnerColumn(),
            TextColumn(stream.name),
            BarColumn(),
            TextColumn("{task.fields[facts]}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=stream.duration, facts="")
            yield lambda at, memory: bar.update(task, completed=at, facts=line(at, memory))
        return
    told = time.monotonic()

    def show(at: float | None, memory: VisualMemory) -> None:
        nonlocal told
        if time.monotonic() - told >= 5.0:
            told = time.monotonic()
            print(line(at, memory), file=sys.stderr, flush=True)

    yield show


def _report(
    verb: Run, stream: Stream, memory: VisualMemory, out: Path, seconds: float, stopped: str
) -> None:
    from vismem.heads.answer import clock

    facts, stats, source = memory.describe(), memory.stats, stream.stats
    counts = {
        "dropped": stats.dropped + source.dropped,
        "late": stats.late + source.late,
        "refused": stats.refused,
        "clock jumps": stats.clock_jumps,
        "reconnects": source.reconnects,
    }
    problems = [*source.problems, *stats.problems]
    if verb.json:
        result = {
            "memory": facts | {"path": str(out)},
            "written": stats.written,
            "fps": round(stats.written / max(seconds, 1e-9), 2),
            "counts": counts,
            "problems": problems,
            "stopped": bool(stopped),
        }
        print(json.dumps(result))
        return
    span = facts["span"]
    when = f", {clock(span[0])} to {clock(span[1])}" if span and not stream.live else ""
    print(
        f"{out}: {facts['frames']} frames{when}, {_size(facts['bytes'])} of "
        f"{_size(facts['budget'])}; {stats.written / max(seconds, 1e-9):.1f} frames a second"
    )
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    if told:
        print(f"left out: {told}")
    for problem in problems:
        print(f"note: {problem}")
    print(stopped or f'ask it: vismem ask {out} "what did you see?"')


def _size(count: float) -> str:
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.2f} GB"
