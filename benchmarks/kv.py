"""What the memory of a video language model costs and finds: `python benchmarks/kv.py`.

Side by side in one run: ReKV's published path told plainly (`kv_published.py`), our `published`
mode, which must come to the same keys, blocks and words, or this ends with an error, and our
default. The language model has the real geometry of LLaVA-OneVision-0.5B and random weights; frames
come as embeddings, so the vision part, the same for all, is in no figure. Prints

* processor time (one thread, medians) of encoding a frame with a full window, and of retrieval,
  gathering, prefill and one word of an answer from the published number of blocks;
* how much resident memory encoding takes at its peak, in a process of its own (Linux);
* bytes an hour at the geometry of the 7B model, of real records, and how many tokens are dropped;
* how often planted needles are found and read (`kv_needles.py`), by age, precision, compression.

`--layers 4` shrinks the model, `--quick` everything; both say so. `--gpu` times the 7B geometry in
float16 on a GPU, by wall clock, and nothing else; it needs torch, transformers and this repository.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kv_costs import (
    COMPAT,
    DEFAULT,
    LARGE,
    PUBLISHED,
    QUICK,
    SAME,
    Contestant,
    Cost,
    Sizes,
    as_published,
    build,
    cost_table,
    costs,
)
from kv_needles import POLICIES, Found, Plan, needles
from kv_needles import table as needle_table

from vismem.memory.kv.config import KVConfig
from vismem.memory.kv.memory import KVMemory
from vismem.memory.kv.retrieval import Retrieval

DECODE_CLAIM, ENCODE_CLAIM, HOUR_CLAIM = 1 / 4, 0.7, 1.9  # of published, of published, GiB
GALLERY = Path(__file__).resolve().parents[1] / "data" / "gallery.mp4"
QUICK_PLAN = Plan(frames=60, needles=4, blocks=6, seeds=2)


# ------------------------------------------------------------------ memory while encoding


def peak(sizes: Sizes, name: str) -> int:
    """Bytes by which resident memory is highest while eight frames are encoded at once."""
    sizes = replace(sizes, layers=2, window=sizes.default_window, chunk=8)
    family = build(sizes, "cpu", torch.float32)
    init = torch.zeros(2, 2, sizes.kv_heads, sizes.sinks, sizes.head_dim)
    encode: Callable[[], Any]
    if name == PUBLISHED:
        rekv = as_published(family, sizes, init, [init[..., :0, :]])
        encode = partial(rekv.encode, family.given[:8].flatten(0, 1))
    else:
        retrieval = Retrieval(sizes.blocks)
        ours = Contestant(family, sizes, init, [], sizes.window, retrieval, name == COMPAT)
        encode = partial(ours.encode, torch.arange(8)[:, None, None, None])
    resident = from_status("VmRSS")
    encode()
    return from_status("VmHWM") - resident


def from_status(name: str) -> int:
    """Bytes of a line of this process's status; `getrusage` would tell the parent's peak, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def peaks(quick: bool) -> dict[str, int]:
    """`peak` of everybody, each in a process of its own."""
    found = {}
    for name in (PUBLISHED, COMPAT, DEFAULT):
        command = [sys.executable, __file__, "--peak", name, *(["--quick"] if quick else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"measuring the peak of {name} failed:\n{done.stderr}")
        found[name] = int(done.stdout)
    return found


# ------------------------------------------------------------------ bytes an hour


def kept_of(fps: float) -> list[float]:
    """Share of tokens that show anything new in each frame of the gallery.

    Told by the embedded encoder's features: there is no projector of a language model here.
    """
    from vismem import open_stream
    from vismem.encoders.embedded import EmbeddedEncoder
    from vismem.memory.token_drop import TokenDrop

    encoder, drop = EmbeddedEncoder(max_tokens=196), TokenDrop()
    frames = open_stream(str(GALLERY), fps=fps)
    return [drop(encoder.encode([f.image])[0].tokens).float().mean().item() for f in frames]


@dataclass(frozen=True)
class Hour:
    """What one way of storing comes to at the geometry of the 7B model."""

    name: str
    fps: float
    dropped: float  # share of tokens
    gib: float  # an hour: records, notes and index of blocks


def hours(clips: Sequence[tuple[str, float, Sequence[float]]]) -> list[Hour]:
    """Write frames of 196 tokens, or of what is left of them, and weigh the blocks they become.

    Args:
        clips: Name, frames a second, and share of tokens kept of each frame, for int4 with drop.
    """
    draw, shape, tokens = torch.Generator().manual_seed(0), LARGE.shape, LARGE.frame
    kv = torch.randn(shape.layers, 2, shape.kv_heads, tokens, shape.head_dim, generator=draw).half()
    whole = [(name, 0.5, [1.0] * 2) for name in ("model", "int8", "int4")]
    rows = []
    for name, fps, kept in [*whole, *clips]:
        precision: Any = name if name in ("model", "int8") else "int4"
        memory = KVMemory(KVConfig(shape, torch.float16, precision, window=tokens), "8GB")
        for number, share in enumerate(kept):
            memory.write_kv(kv[..., : max(1, round(share * tokens)), :], float(number))
        index = memory.snapshot().representatives(0)[0].nbytes
        weight = sum(b.packed.nbytes + b.note_bytes + index * shape.layers for b in memory.blocks)
        share = statistics.mean(kept)
        hour = 3600 * fps * share * weight / len(memory.blocks) / 2**30
        rows.append(Hour("fp16" if name == "model" else name, fps, 1 - share, hour))
    return rows


# ------------------------------------------------------------------ all of it


def claims(rows: Sequence[Cost], hour: Sequence[Hour], found: Sequence[Found]) -> list[str]:
    """What the tables say of what was to be shown; failures as well."""
    cost = {row.name: row for row in rows}
    base, lines = cost[PUBLISHED], []

    def say(what: str, value: float, most: float) -> None:
        lines.append(f"{'holds' if value <= most else 'FAILS'}: {what}: {value:.2f} <= {most:.2f}")

    for name in (SAME, DEFAULT):
        say(f"a word of {name}, of published", cost[name].decode / base.decode, DECODE_CLAIM)
        say(f"a frame of {name}, of published", cost[name].encode / base.encode, ENCODE_CLAIM)
    for row in hour:
        if row.dropped and row.fps == 0.5:
            say(f"GiB an hour, {row.name} at 0.5 fps", row.gib, HOUR_CLAIM)
    by = {row.policy: row for row in found}
    for name in ("int4", "drop, int4"):
        say(f"recall lost to fp16 by {name}", by[name].loss, 0.01)
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, help="of the language model, in place of all")
    parser.add_argument("--quick", action="store_true", help="small sizes, seconds")
    parser.add_argument("--gpu", action="store_true", help="time the 7B geometry on a GPU")
    parser.add_argument("--json", action="store_true", help="print one object in place of tables")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes = QUICK if options.quick else LARGE if options.gpu else Sizes()
    if options.layers:
        sizes = replace(sizes, layers=options.layers)
    if options.peak:
        print(peak(sizes, options.peak))
        return

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    rows = costs(sizes, "cuda" if options.gpu else "cpu", say)
    if options.gpu:
        print(json.dumps(rows, default=asdict) if options.json else cost_table(rows, sizes))
        return
    plan = QUICK_PLAN if options.quick else Plan()
    high = peaks(options.quick)
    say("peaks are measured")
    rates = (0.5,) if options.quick else (0.5, 2)
    clips = [("int4, drop as published", 0.5, [0.28] * 8)]
    clips += [(f"int4, drop in the gallery at {fps} fps", fps, kept_of(fps)) for fps in rates]
    hour = hours(clips)
    found = needles(plan, POLICIES, say)
    verdicts = claims(rows, hour, found)
    if options.json:
        report = {"sizes": sizes, "costs": rows, "peaks": high, "hours": hour, "needles": found}
        print(json.dumps(report | {"claims": verdicts}, default=asdict, indent=1))
        return
    if options.quick or options.layers:
        print("sizes are not the published ones, and no claim is about these")
    print(cost_table(rows, sizes))
    logits = 8 * sizes.frame * sizes.vocabulary * 4 / 2**20
    print(
        "\nresident memory above the start while 8 frames are encoded at once, 2 layers, MiB; "
        f"scores of the vocabulary alone are {logits:.0f}"
    )
    print("\n".join(f"  {name:<22}{size / 2**20:>10.0f}" for name, size in high.items()))
    print(f"\nGiB an hour of {LARGE.shape}, 196 tokens a frame")
    for row in hour:
        print(f"  {row.name:<36}{row.fps:>5} fps{row.dropped:>8.0%} dropped{row.gib:>9.2f}")
    print("\n" + needle_table(found, plan))
    print("\n" + "\n".join(verdicts))


if __name__ == "__main__":
    main()
