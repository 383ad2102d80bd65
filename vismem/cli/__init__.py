"""The command line: ``vismem run | ask | detect | track | map | demo | inspect``, and more.

Heavy imports stay inside the verbs, so that ``vismem --help`` is instant. Exit codes: 0; 2 wrong
usage; 3 the source is missing, unreachable or unreadable; 4 the store is damaged or unknown.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import tyro

from vismem.cli.demo import Demo
from vismem.cli.detect import Detect
from vismem.cli.machine import Bench, Info
from vismem.cli.map import Map
from vismem.cli.ros import Ros, parse_ros
from vismem.cli.run import Run, read_preset
from vismem.cli.stored import Ask, Export, Forget, Inspect
from vismem.cli.track import Track
from vismem.errors import VismemError

__all__ = ["main"]

_VERBS: dict[str, type] = {
    "run": Run,
    "ask": Ask,
    "detect": Detect,
    "track": Track,
    "map": Map,
    "demo": Demo,
    "ros": Ros,
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
    | Annotated[Track, tyro.conf.subcommand("track")]
    | Annotated[Map, tyro.conf.subcommand("map")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Ros, tyro.conf.subcommand("ros")]
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
        return _parse(words)()
    except VismemError as error:
        print(f"vismem: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130


def _parse(words: list[str]) -> Callable[[], int]:
    if words[:1] == ["run"] and "--config" in words:
        place = words.index("--config") + 1
        preset = read_preset(words[place]) if place < len(words) else {}
        default = Run(**{"source": tyro.MISSING, **preset})
        return tyro.cli(Run, args=words[1:], prog="vismem run", default=default)
    if words[:1] == ["ros"]:
        return parse_ros(words[1:])
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
