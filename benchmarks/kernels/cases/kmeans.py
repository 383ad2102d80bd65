"""Sizes of a step of k-means: the features of frames meet the centroids of a memory."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from case import Case, Inputs, normal
from torch import Tensor

from kernels.kmeans import cpu, reference


def _parts(inputs: Inputs) -> Iterable[Inputs]:
    x, centroids = inputs
    return [(rows, centroids) for rows in x.split(_rows(x))]


def _rows(x: Tensor) -> int:
    """Of the reference at once: what stays in cache, or keeps a GPU busy."""
    return 512 if x.is_cuda else 4


def _nearest(result: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> str | None:
    """Another label is right where its distance is the same to the rounding of float32."""
    if result[0].shape != wanted[0].shape:
        return f"{len(result[0])} labels, not {len(wanted[0])}"
    far = (result[1].double() - wanted[1].double()).abs() > 1e-5 * wanted[1].double()
    if bool(far.any()):
        return f"{int(far.sum())} of {len(far)} distances are not the least"
    unequal = int((result[0] != wanted[0]).sum())
    return f"{unequal} of {len(far)} labels differ" if unequal > len(far) // 1000 + 1 else None


def _cdist(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    distances, labels = torch.cdist(x.float(), centroids.float()).min(1)
    return labels, distances.square()


def _expanded(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    product = x @ centroids.T
    squares, labels = ((x**2).sum(1, keepdim=True) + (centroids**2).sum(1) - 2 * product).min(1)
    return labels, squares


def _measured(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    return cpu.kmeans_assign(x, centroids, expanded=False)


def _assign(
    rows: int,
    width: int,
    clusters: int,
    dtype: torch.dtype,
    *,
    processor: bool = False,
    small: bool = False,
) -> Case:
    def inputs(device: str, seed: int) -> Inputs:
        x = normal(device, seed, rows, width, dtype=dtype)
        return x, normal(device, seed + 1, clusters, width, dtype=dtype)

    def run(*parts: Tensor) -> tuple[Tensor, Tensor]:
        from kernels.kmeans import triton

        return triton.run(*parts)

    half = dtype != torch.float32
    return Case(
        "kmeans_assign",
        f"{rows} x {width}, {clusters}, {str(dtype)[6:]}",
        inputs,
        run,
        reference.kmeans_assign,
        _measured,
        {"cdist": _cdist, "expanded": _expanded},
        moved=float(dtype.itemsize * width * (rows + clusters)),
        flops=2.0 * rows * width * clusters,
        processor=processor,
        small=small,
        same=_nearest,
        tensor_cores={"_bounds": "wgmma"} if half and not small else {},
        parts=_parts,
    )


def _update(rows: int, width: int, clusters: int, dtype: torch.dtype, **kind: bool) -> Case:
    def inputs(device: str, seed: int) -> Inputs:
        x = normal(device, seed, rows, width, dtype=dtype)
        labels = (normal(device, seed + 1, rows).abs() * 1e4).to(torch.int64) % clusters
        return x, normal(device, seed + 2, rows).abs(), labels, clusters

    def run(*parts: Tensor) -> tuple[Tensor, Tensor]:
        from kernels.kmeans import triton

        return triton.run_update(*parts)

    def one_hot(x: Tensor, weights: Tensor, labels: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
        hot = torch.nn.functional.one_hot(labels, clusters).T * weights
        mass = hot.sum(1)
        return (hot.to(x.dtype) @ x) / mass.clamp_min(1e-30)[:, None], mass

    return Case(
        "kmeans_update",
        f"{rows} x {width}, {clusters}, {str(dtype)[6:]}",
        inputs,
        run,
        reference.kmeans_update,
        cpu.kmeans_update,
        {"one-hot product": one_hot},
        moved=float(dtype.itemsize * width * (rows + clusters)),
        flops=2.0 * rows * width,
        tolerance=1e-5 if dtype == torch.float32 else 1e-2,
        **kind,
    )


def _step(rows: int, width: int, clusters: int, dtype: torch.dtype, *, small: bool = False) -> Case:
    """A whole step, as k-means repeats it."""
    assign = _assign(rows, width, clusters, dtype, small=small)

    def run(*parts: Tensor) -> tuple[Tensor, Tensor]:
        from kernels.kmeans import triton

        labels, squares = triton.run(*parts)
        return triton.run_update(parts[0], torch.ones_like(squares), labels, len(parts[1]))

    def spread(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
        labels, squares = torch.cat(
            [torch.stack(reference.kmeans_assign(part, centroids)) for part in x.split(_rows(x))], 1
        )
        return reference.kmeans_update(x, torch.ones_like(squares), labels.long(), len(centroids))

    def pytorch(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
        labels, squares = _measured(x, centroids)
        return cpu.kmeans_update(x, torch.ones_like(squares), labels, len(centroids))

    def cdist(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
        labels = torch.cdist(x.float(), centroids.float()).argmin(1)
        sums = torch.zeros(centroids.shape, device=x.device).index_add_(0, labels, x.float())
        mass = torch.bincount(labels, minlength=len(centroids)).float()
        return sums / mass.clamp_min(1)[:, None], mass

    return Case(
        "kmeans_step",
        assign.name,
        assign.inputs,
        run,
        spread,
        pytorch,
        {"cdist, argmin, index_add": cdist},
        moved=assign.moved,
        flops=assign.flops,
        # One label that differs where two centroids are equally far moves two means.
        tolerance=1e-2,
        small=small,
        tensor_cores=assign.tensor_cores,
    )


CASES = [
    _assign(4096, 1024, 256, torch.bfloat16),
    _assign(4096, 1024, 256, torch.float32),
    _update(4096, 1024, 256, torch.bfloat16),
    _step(4096, 1024, 256, torch.bfloat16),
    _step(64 * 4096, 1024, 256, torch.bfloat16),
    _assign(4096, 1024, 256, torch.float32, processor=True),
    _assign(4096, 1024, 256, torch.bfloat16, processor=True),
    _update(4096, 1024, 256, torch.float32, processor=True),
    _assign(20, 40, 5, torch.float32, small=True),
    _assign(20, 40, 5, torch.bfloat16, small=True),
    _update(20, 40, 5, torch.float32, small=True),
    _step(20, 40, 5, torch.bfloat16, small=True),
]
