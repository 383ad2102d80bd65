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
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
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
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    encode()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident


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


def dropped(fps: float) -> float:
    """Share of tokens that show nothing new in the gallery, by the embedded encoder's features."""
    from vismem import open_stream
    from vismem.encoders.embedded import EmbeddedEncoder
    from vismem.memory.token_drop import TokenDrop

    encoder, drop, kept = EmbeddedEncoder(max_tokens=196), TokenDrop(), []
    for frame in open_stream(str(GALLERY), fps=fps):
        kept.append(drop(encoder.encode([frame.image])[0].tokens).float().mean().item())
    return 1 - statistics.mean(kept)


def hours(clips: dict[str, float]) -> dict[str, float]:
    """GiB an hour of the 7B geometry at half a frame a second, of records really made."""
    draw = torch.Generator().manual_seed(0)
    shape = LARGE.shape
    kv = torch.randn((shape.layers, 2, shape.kv_heads, 196, shape.head_dim), generator=draw).half()
    rows = {}
    for precision in ("model", "int8", "int4"):
        config = KVConfig(shape, torch.float16, precision, block=196, window=196)
        memory = KVMemory(config, "2GB")
        for time_ in range(3):
            memory.write_kv(kv, float(time_))
        (block,) = memory.blocks[:1]
        index = memory.snapshot().representatives(0)[0].nbytes * shape.layers
        hour = 1800 * (block.packed.nbytes + block.note_bytes + index) / 2**30
        rows["fp16" if precision == "model" else precision] = hour
    for clip, share in clips.items():
        rows[f"int4, {share:.0%} dropped: {clip}"] = rows["int4"] * (1 - share)
    return rows


# ------------------------------------------------------------------ all of it


def claims(rows: Sequence[Cost], hour: dict[str, float], found: Sequence[Found]) -> list[str]:
    """What the tables say of what was to be shown; failures as well."""
    cost = {row.name: row for row in rows}
    base, lines = cost[PUBLISHED], []

    def say(what: str, value: float, most: float) -> None:
        lines.append(f"{'holds' if value <= most else 'FAILS'}: {what}: {value:.2f} <= {most:.2f}")

    for name in (SAME, DEFAULT):
        say(f"a word of {name}, of published", cost[name].decode / base.decode, DECODE_CLAIM)
        say(f"a frame of {name}, of published", cost[name].encode / base.encode, ENCODE_CLAIM)
    for name, size in hour.items():
        if "dropped" in name:
            say(f"GiB an hour, {name}", size, HOUR_CLAIM)
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
    hour = hours({"as published": 0.72, **{f"gallery, {fps} fps": dropped(fps) for fps in rates}})
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
    print(f"\nGiB an hour of {LARGE.shape}, 196 tokens a frame, 0.5 frames a second")
    print("\n".join(f"  {name:<44}{size:>8.2f}" for name, size in hour.items()))
    print("\n" + needle_table(found, plan))
    print("\n" + "\n".join(verdicts))


if __name__ == "__main__":
    main()
