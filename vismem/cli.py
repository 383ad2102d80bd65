"""The command line: ``vismem run | ask | detect | inspect | export | forget | info | bench``.

Heavy imports stay inside the verbs, so that ``vismem --help`` is instant. Exit codes: 0; 2 wrong
usage; 3 the source is missing, unreachable or unreadable; 4 the store is damaged or unknown.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from vismem.errors import StoreError, UsageError, VismemError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vismem.pipeline import VisualMemory
    from vismem.streams import Stream

__all__ = ["main"]


@dataclass
class Run:
    """Watch a source and remember it: a video, a camera, a folder of pictures, a ROS bag."""

    source: Positional[str]
    """File, folder, bag, webcam number or rtsp:// or http:// address."""
    out: Path | None = None
    """Directory of the memory; the source's name with .mem by default."""
    fps: float | None = 2.0
    """Frames a second to look at; None for every frame."""
    budget: str = "64MB"
    """What the memory may hold, like 64MB or 1GiB."""
    policy: Literal["moments", "flash", "star", "pyramid"] = "moments"
    """What remembers pictures beside the moments, in half of the budget."""
    encoder: str = "embedded"
    """embedded (no hub needed), siglip2, clip, or a model's name on the hub."""
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


@dataclass
class Detect:
    """Find the people in every frame of a source; more often, and by id, with --memory."""

    source: Positional[str]
    """File, folder, bag, webcam number or rtsp:// or http:// address."""
    memory: bool = False
    """Let what was seen before help: ids, and boxes that one frame alone is not sure of."""
    out: Path | None = None
    """File to write; standard output by default."""
    format: Literal["jsonl", "coco", "video"] = "jsonl"
    """A line of JSON a frame, results as the COCO evaluation takes them, or an annotated video."""
    fps: float | None = None
    """Frames a second to look at; every frame by default."""
    threshold: float = 0.5
    """Score from which one frame alone is enough."""
    seconds: float | None = None
    """Stop after this much time of the stream."""
    threads: int = 1
    """Threads a picture is looked at with."""


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


@dataclass
class Export:
    """Write a memory's moments for other programs."""

    memory: Positional[Path]
    """Directory of the memory."""
    out: Path
    """File to write; thumbnails of a JSON export go beside it."""
    format: Literal["json", "rerun"] = "json"
    """json, or a recording for the Rerun viewer (needs the extra rerun)."""


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


@dataclass
class Info:
    """Show versions, what the machine can do, encoders and presets."""


@dataclass
class Bench:
    """Measure what decoding, encoding and the whole pipeline cost on a clip."""

    source: Positional[str | None] = None
    """Any source; the gallery clip by default."""
    frames: int = 200
    """How many frames to measure."""
    fps: float | None = None
    """Frames a second to look at; all by default."""
    threads: int = 1
    """Threads a picture is encoded with."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the convolutions; the processor's fastest by default."""


_VERBS: dict[str, type] = {
    "run": Run,
    "ask": Ask,
    "detect": Detect,
    "inspect": Inspect,
    "export": Export,
    "forget": Forget,
    "info": Info,
    "bench": Bench,
}
_Verb = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Ask, tyro.conf.subcommand("ask")]
    | Annotated[Detect, tyro.conf.subcommand("detect")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Forget, tyro.conf.subcommand("forget")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words of the command; those of the process by default.

    Returns:
        The exit code, see the module.
    """
    words = sys.argv[1:] if arguments is None else arguments
    try:
        verb = _parse(words)
        return _HANDLERS[type(verb)](verb)
    except VismemError as error:
        print(f"vismem: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130


def _parse(words: list[str]) -> Any:
    if words[:1] == ["run"] and "--config" in words:
        place = words.index("--config") + 1
        preset = _preset(words[place]) if place < len(words) else {}
        default = Run(**{"source": tyro.MISSING, **preset})
        return tyro.cli(Run, args=words[1:], prog="vismem run", default=default)
    if words[:1] and words[0] in _VERBS:
        return tyro.cli(_VERBS[words[0]], args=words[1:], prog=f"vismem {words[0]}")
    if words[:1] == ["--version"]:
        from vismem import __version__

        print(__version__)
        raise SystemExit(0)
    return tyro.cli(
        _Verb,
        args=words,
        prog="vismem",
        description="A camera stream goes in, a memory of fixed size comes out, and it answers.",
    )


def _preset(name: str) -> dict[str, Any]:
    """Read the defaults of ``run`` from a YAML file or a preset of vismem."""
    from importlib.resources import files

    import yaml

    shipped = files("vismem.configs") / f"{name}.yaml"
    place = shipped if shipped.is_file() else Path(name)
    try:
        values = yaml.safe_load(place.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(
            f"preset {name} cannot be read ({error}); presets that ship: {', '.join(_presets())}"
        ) from error
    known = {field.name for field in dataclasses.fields(Run)} - {"config"}
    if not isinstance(values, dict) or not set(values) <= known:
        strange = sorted(set(values) - known) if isinstance(values, dict) else [type(values)]
        raise UsageError(f"preset {name} sets {strange}; it may set: {', '.join(sorted(known))}")
    return values


def _presets() -> list[str]:
    from importlib.resources import files

    names = [file.name for file in files("vismem.configs").iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


# ----------------------------------------------------------------------------------- run


def _run(verb: Run) -> int:
    from vismem.streams import open_stream

    with open_stream(verb.source, fps=verb.fps) as stream:
        out = verb.out or Path(f"{stream.name}.mem")
        memory = _open_to_write(verb, out)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        began = time.monotonic()
        stopped = ""
        try:
            _ingest(verb, stream, memory)
        except KeyboardInterrupt:
            stopped = f'stopped; go on with: vismem run "{verb.source}" --out {out} --resume'
        except StoreError as error:
            with contextlib.suppress(StoreError):
                memory.close()
            raise StoreError(
                f'{error}; then go on with: vismem run "{verb.source}" --out {out} --resume'
            ) from error
        memory.close()
        _report(verb, stream, memory, out, time.monotonic() - began, stopped)
    return 0


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
            verb.budget,
            policy=verb.policy,
            path=out,
            encoder=verb.encoder,
            model=settings or None,
            durability=verb.durability,
            retain=verb.retain,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _resumed(verb: Run, memory: VisualMemory) -> VisualMemory:
    """Refuse another model than the memory was begun with, instead of leaving it out."""
    from vismem.model_memory import ModelSettings

    begun = memory.model.settings.name if memory.model else None
    if verb.model is not None and ModelSettings(verb.model).name != begun:
        memory.close()
        raise UsageError(
            f"this memory was begun with {begun or 'no video language model'}, not {verb.model}; "
            f"resume without --model, or give another --out"
        )
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


# ----------------------------------------------------------------------------------- the others


def _ask(verb: Ask) -> int:
    from vismem.heads.answer import THRESHOLD
    from vismem.pipeline import VisualMemory

    with VisualMemory.open(verb.memory, read_only=True) as memory:
        threshold = THRESHOLD if verb.threshold is None else verb.threshold
        try:
            answer = memory.ask(verb.question, threshold=threshold, words=verb.words)
        except VismemError as error:
            if not (memory.model and verb.words):
                raise
            way = "--no-words answers from the evidence alone"
            raise type(error)(f"{error}; {way}") from error
        except ValueError as error:
            raise UsageError(str(error)) from error
    if verb.rephrase:
        from vismem.heads.rephrase import Rephraser

        answer = Rephraser().rephrase(answer)
    print(json.dumps(answer.to_dict()) if verb.json else answer.text)
    return 0


def _detect(verb: Detect) -> int:
    import torch

    from vismem.heads.detect import DetectConfig, Detector
    from vismem.heads.detections_out import open_detections
    from vismem.streams import open_stream

    if verb.threads < 1:
        raise UsageError(f"--threads is 1 or more, not {verb.threads}")
    torch.set_num_threads(verb.threads)
    detector = Detector(memory=verb.memory, config=DetectConfig(threshold=verb.threshold))
    frames = found = refused = 0
    people: set[int] = set()
    stopped = ""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        open_stream(verb.source, fps=verb.fps) as stream,
        open_detections(verb.format, verb.out) as write,
    ):
        first, began = None, time.monotonic()
        try:
            for frame in stream:
                first = frame.timestamp if first is None else first
                if verb.seconds is not None and frame.timestamp - first >= verb.seconds:
                    break
                try:
                    boxes = detector.step(frame)
                except ValueError:
                    refused += 1
                    continue
                write(frame, boxes)
                frames, found = frames + 1, found + (len(boxes) > 0)
                people.update([] if boxes.ids is None else boxes.ids.tolist())
        except KeyboardInterrupt:
            stopped = "; stopped"
        rate = frames / max(time.monotonic() - began, 1e-9)
    who = f", {len(people - {-1})} different" if verb.memory else ""
    print(
        f"{frames} frames, {found} with somebody{who}; {rate:.1f} frames a second{stopped}",
        file=sys.stderr,
    )
    counts = {"dropped": stream.stats.dropped, "late": stream.stats.late, "refused": refused}
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    if told:
        print(f"left out: {told}", file=sys.stderr)
    for problem in stream.stats.problems:
        print(f"note: {problem}", file=sys.stderr)
    return 0


def _inspect(verb: Inspect) -> int:
    from vismem.export import export_picture, summary
    from vismem.model_memory import model_stores
    from vismem.store import verify

    report = None
    if verb.verify:
        report = verify(verb.memory)
        problems = [*report.problems]
        for store in model_stores(verb.memory):
            problems += [f"{store.name}: {problem}" for problem in verify(store).problems]
        if problems:
            if verb.json:
                print(json.dumps({"verified": False, "problems": problems}))
            for problem in problems:
                print(f"vismem: {problem}", file=sys.stderr)
            return StoreError.exit_code
    facts = summary(verb.memory)
    if report:
        facts["verified"] = True
        facts["checked"] = {
            "segments": report.segments,
            "moments": report.rows,
            "records": report.records,
            "unfinished bytes": report.cut,
        }
    if verb.picture:
        export_picture(verb.memory, verb.picture)
        facts["picture"] = str(verb.picture)
    if verb.json:
        print(json.dumps(facts))
        return 0
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        print(f"{name:<10} {value}")
    return 0


def _export(verb: Export) -> int:
    from vismem.export import export_json, export_rerun

    write = export_json if verb.format == "json" else export_rerun
    print(f"{verb.out}: {write(verb.memory, verb.out)} moments")
    return 0


def _forget(verb: Forget) -> int:
    from vismem.pipeline import VisualMemory

    with VisualMemory.open(verb.memory) as memory:
        try:
            gone = memory.forget(verb.start, verb.end, stream=verb.stream)
        except ValueError as error:
            raise UsageError(str(error)) from error
    print(f"{gone} moments forgotten")
    return 0


def _info(verb: Info) -> int:
    from vismem.bench import machine

    for name, value in (machine() | {"presets": ", ".join(_presets())}).items():
        print(f"{name:<14} {value}")
    return 0


def _bench(verb: Bench) -> int:
    from importlib.resources import as_file, files

    from vismem.bench import measure

    with as_file(files("vismem.data") / "gallery.mp4") as gallery:
        source = verb.source or str(gallery)
        lines = measure(
            source, fps=verb.fps, frames=verb.frames, threads=verb.threads, dtype=verb.dtype
        )
        for line in lines:
            print(line)
    return 0


_HANDLERS: dict[type, Callable[[Any], int]] = {
    Run: _run,
    Ask: _ask,
    Detect: _detect,
    Inspect: _inspect,
    Export: _export,
    Forget: _forget,
    Info: _info,
    Bench: _bench,
}

if __name__ == "__main__":
    sys.exit(main())
