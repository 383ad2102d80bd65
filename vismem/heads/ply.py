"""Points and faces as PLY, which every viewer of meshes and point clouds reads."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from vismem.store.disk import write_file

__all__ = ["write_ply"]


def write_ply(
    path: str | os.PathLike[str],
    points: np.ndarray,
    colors: np.ndarray,
    normals: np.ndarray | None = None,
    faces: np.ndarray | None = None,
) -> None:
    """Write points, and faces between them, as binary PLY.

    Args:
        path: File to write.
        points: ``(N, 3)`` metres.
        colors: ``(N, 3)`` uint8 RGB.
        normals: ``(N, 3)``.
        faces: ``(F, 4)`` points of each quad.

    Raises:
        OSError: If it cannot be written whole; a file of that name then stays as it was.
    """
    columns = [(axis, "<f4") for axis in "xyz"]
    columns += [(f"n{axis}", "<f4") for axis in "xyz"] if normals is not None else []
    columns += [(name, "u1") for name in ("red", "green", "blue")]
    rows = np.empty(len(points), columns)
    wide = [points, *([] if normals is None else [normals]), colors]
    for (name, _), column in zip(columns, np.concatenate(wide, 1).T, strict=True):
        rows[name] = column
    kinds = {"<f4": "float", "u1": "uchar"}
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property {kinds[kind]} {name}" for name, kind in columns]
    quads = b""
    if faces is not None:
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        listed = np.empty(len(faces), [("count", "u1"), ("points", "<i4", 4)])
        listed["count"], listed["points"] = 4, faces
        quads = listed.tobytes()
    text = "\n".join([*header, "end_header", ""])
    write_file(Path(path), [text.encode("ascii"), rows.tobytes(), quads])
