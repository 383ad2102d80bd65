"""A stored memory for other programs: facts, JSON, a recording for the Rerun viewer."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vismem.errors import StoreError, UsageError, require
from vismem.heads.answer import LEAST_TOLD, clock
from vismem.kv_store import DurableKV
from vismem.memory.episodic import EpisodicSnapshot
from vismem.model_memory import model_stores
from vismem.observation import LEAST_EVENT
from vismem.picture import Held, draw
from vismem.pipeline import VisualMemory
from vismem.scenes import scene_label, thumbnail_of
from vismem.store import MemoryStore

__all__ = ["export_json", "export_picture", "export_rerun", "moments", "summary"]


def summary(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a memory holds, in a few lines.

    Raises:
        StoreError: If there is no memory, or it is damaged.
    """
    with MemoryStore.open(path, read_only=True) as store:
        facts: dict[str, Any] = {
            "encoder": store.encoder["model"],
            "settings": store.config,
            "disk": store.nbytes,
            "segments": len(store.segments()),
            "log": f"{store.records} frames since the last seal",
        }
    with VisualMemory.open(path, read_only=True) as memory:
        facts["memory"] = memory.describe()
        for name, snapshot in memory.snapshots().items():
            if len(snapshot):
                start, end = snapshot.column("start"), snapshot.column("end")
                span = f"{clock(float(start[0]))} to {clock(float(end.max()))}"
                facts[f"{name}"] = f"{len(snapshot)} moments, {span}; {_labels(memory, snapshot)}"
        for name, view in memory.visual().items():
            slots = view.slots()
            levels = Counter(slot.level for slot in slots)
            told = ", ".join(f"{count} {level}" for level, count in levels.items())
            facts[f"{name}, {memory.policy}"] = f"{len(slots)} scenes: {told or 'none'}"
        for name, moved in memory.movements().items():
            if seen := moved.movements():
                span = f"{clock(min(o.start for o in seen))} to {clock(max(o.end for o in seen))}"
                facts[f"{name}, motion"] = f"{len(seen)} movements, {span}"
        if (things := memory.things()) is not None:
            facts["things"] = f"{len(things.objects())} with a place in the world"
        if memory.model:
            facts["model"] = memory.model.settings.name
        for folder in model_stores(Path(path)):
            with DurableKV.open(folder, read_only=True) as held:
                there = held.snapshot()
                ends = [block.last for block in there.blocks[-1:]]
                ends += [chunk.time for chunk in there.window[-1:]]
                span = f"{clock(held.memory.oldest)} to {clock(max(ends))}" if ends else "nothing"
                facts[f"{held.identity['stream']}, model"] = (
                    f"{len(held.blocks)} blocks of keys and values, {span}; "
                    f"{held.nbytes} bytes in RAM, {held.disk_bytes} on disk"
                    + "".join(f"; lost: {what}" for what in held.lost)
                )
        if memory.stats.problems:
            facts["problems"] = "; ".join(memory.stats.problems)
    return facts


def _labels(memory: VisualMemory, snapshot: EpisodicSnapshot, most: int = 8) -> str:
    """The labels that were seen surest, with the number of moments that show them."""
    names = memory.encoder.label_names
    ids, scores = snapshot.column("label"), snapshot.column("label_max")
    seen = ids[scores >= 0.5]
    found, counts = torch.unique(seen, return_counts=True)
    best = counts.argsort(descending=True, stable=True)[:most]
    return ", ".join(f"{names[int(found[i])]} ({int(counts[i])})" for i in best) or "no labels"


def moments(memory: VisualMemory) -> Iterator[tuple[dict[str, Any], bytes]]:
    """All moments of a memory as plain values, each with its thumbnail as JPEG."""
    names = memory.encoder.label_names
    for stream, snapshot in memory.snapshots().items():
        for number in range(len(snapshot)):
            segment, row = snapshot.locate(number)
            columns = {name: column[row] for name, column in segment.columns.items()}
            pose = columns["pose"]
            shown = torch.nonzero(columns["label_max"] >= LEAST_EVENT)[:, 0].tolist()
            yield (
                {
                    "stream": stream,
                    "start": float(columns["start"]),
                    "end": float(columns["end"]),
                    "frames": int(columns["frames"]),
                    "time": float(columns["peak"]),
                    "pose": pose.tolist() if bool(torch.isfinite(pose).all()) else None,
                    "labels": [
                        {
                            "label": names[int(columns["label"][i])],
                            "score": round(float(columns["label_max"][i]), 4),
                            "time": float(columns["label_time"][i]),
                            "box": [round(x, 4) for x in columns["label_box"][i].tolist()],
                            "count": int(columns["label_count"][i]),
                        }
                        for i in shown
                        if int(columns["label"][i]) >= 0
                    ],
                },
                snapshot.thumbnail(number),
            )


def export_json(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> int:
    """Write all moments as one JSON file, and their thumbnails into a folder beside it.

    Args:
        path: Directory of the memory.
        out: File to write; ``clip.json`` puts the thumbnails into ``clip_thumbnails/``.

    Returns:
        How many moments were written.

    Raises:
        StoreError: If there is no memory, it is damaged, or ``out`` cannot be written.
    """
    out = Path(out)
    pictures = out.with_name(f"{out.stem}_thumbnails")
    try:
        with VisualMemory.open(path, read_only=True) as memory:
            facts, listed = memory.describe(), []
            for number, (values, picture) in enumerate(moments(memory)):
                if picture:
                    pictures.mkdir(parents=True, exist_ok=True)
                    (pictures / f"{number:06d}.jpg").write_bytes(picture)
                    values["thumbnail"] = f"{pictures.name}/{number:06d}.jpg"
                listed.append(values)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"memory": facts, "moments": listed}, indent=1))
    except OSError as error:
        raise StoreError(f"{out} cannot be written ({error.strerror}); choose another") from error
    return len(listed)


def export_picture(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Draw a memory on one page: what it saw when, what stands for it, and what that costs.

    Args:
        path: Directory of the memory.
        out: Picture to write, ``.png`` or any format that Pillow knows by its name.

    Raises:
        StoreError: If there is no memory, it is damaged, or ``out`` cannot be written.
        UsageError: If the name of ``out`` is of no known format.
    """
    with VisualMemory.open(path, read_only=True) as memory:
        views, encoder, sizes = memory.visual(), memory.encoder, memory.sizes
        streams = {}
        for name, snapshot in memory.snapshots().items():
            columns = (snapshot.column(column).tolist() for column in ("start", "end", "frames"))
            streams[name] = Held(
                views[name].slots() if name in views else [],
                lambda slot: thumbnail_of(slot, sizes),
                lambda slot: scene_label(
                    slot, sizes, encoder.label_names, encoder.things, LEAST_TOLD
                ),
                list(zip(*columns, strict=True)),
            )
        facts = memory.describe()
    page = draw(streams, title=Path(path).name, nbytes=facts["bytes"], budget=facts["budget"])
    try:
        page.save(out)
    except ValueError as error:
        raise UsageError(f"{out}: {error}; name it .png") from error
    except OSError as error:
        raise StoreError(f"{out} cannot be written ({error.strerror}); choose another") from error


def export_rerun(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> int:
    """Write all moments as a recording: thumbnails, boxes, labels and camera poses over time.

    Args:
        path: Directory of the memory.
        out: ``.rrd`` file to write; open it with ``rerun clip.rrd``.

    Returns:
        How many moments were written.

    Raises:
        StoreError: If there is no memory or it is damaged.
        UsageError: If the extra ``rerun`` is not installed.
    """
    rr = require("rerun", extra="rerun")
    recording = rr.RecordingStream("vismem")
    recording.save(str(out))
    count = 0
    with VisualMemory.open(path, read_only=True) as memory:
        for values, picture in moments(memory):
            count += 1
            place = f"streams/{values['stream']}"
            recording.set_time("stream", duration=values["time"])
            if picture:
                image = rr.EncodedImage(contents=picture, media_type="image/jpeg")
                recording.log(f"{place}/moment", image)
            best = values["labels"][:5]
            words = ", ".join(f"{x['label']} {x['score']:.2f}" for x in best)
            span = f"{clock(values['start'])}-{clock(values['end'])}"
            recording.log(f"{place}/log", rr.TextLog(f"{span}: {words}"))
            recording.log(f"{place}/frames", rr.Scalars(float(values["frames"])))
            if values["pose"] is not None:
                pose = torch.tensor(values["pose"])
                transform = rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3])
                recording.log(f"{place}/camera", transform)
    recording.flush()
    return count
