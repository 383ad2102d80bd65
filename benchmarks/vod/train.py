"""Train the detector of digits: `python benchmarks/vod/train.py` writes its weights.

Ten minutes or so on one thread. Every step sees frames that were never seen before,
made of the training split alone. Heads with a memory are trained in `heads.py`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from detector import GRID, STRIDE, WEIGHTS, Detector, centres
from generate import SIDE, Videos, overlap, stream
from safetensors.torch import save_file
from torch import Tensor

FRAMES = 12
BATCH = 32
RADIUS = 8.0  # pixels around a centre in which a cell learns the box and the class of an object
SEED = 1  # of the stream of videos; tests use others


def targets(boxes: Tensor, visible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What each cell has to say.

    Args:
        boxes: ``(B, O, 4)``.
        visible: ``(B, O)``.

    Returns:
        Which cell holds a centre ``(B, 144)``; which are near one ``(B, 144)``; whose ``(B, 144)``.
    """
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    apart = (centre[:, None] - centres()[:, None]).abs().amax(-1)
    apart = apart.masked_fill(~visible[:, None], torch.inf)
    distance, owner = apart.min(2)
    cell = (centre / STRIDE).long().clamp(0, GRID - 1)
    holds = torch.zeros(distance.shape, dtype=torch.bool)
    rows = torch.arange(len(boxes))[:, None].expand(visible.shape)[visible]
    holds[rows, (cell[..., 1] * GRID + cell[..., 0])[visible]] = True
    return holds, distance < RADIUS, owner


def loss(detector: Detector, images: Tensor, boxes: Tensor, visible: Tensor, labels: Tensor):
    """Of a batch: objectness, box and class together."""
    tokens, objectness, found = detector(images)
    holds, near, owner = targets(boxes, visible)
    sure = holds | ~near  # cells beside the one with the centre may say either
    wanted = holds.float()
    each = F.binary_cross_entropy_with_logits(objectness, wanted, reduction="none")
    weight = (objectness.sigmoid() - wanted).abs().detach() ** 2  # focal, arXiv 1708.02002
    objects = holds.sum().clamp(min=1)
    present = (each * weight * sure).sum() / objects
    true = boxes.gather(1, owner[..., None].expand(-1, -1, 4))[near]
    placed = found[near]
    box = (placed - true).abs().mean() / STRIDE + (1 - overlap(placed, true)).mean()
    named = F.cross_entropy(detector.classify(tokens[near]), labels.gather(1, owner)[near])
    return present + box + named


def train(steps: int, report: int = 100, videos: int = 40) -> Detector:
    """Train a detector from its beginning; equal steps give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        detector = Detector().train()
    draw = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(detector.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    source = stream("train", SEED, videos, FRAMES)
    began, done = time.perf_counter(), 0
    while done < steps:
        for batch in batches(next(source), draw):
            if done == steps:
                break
            value = loss(detector, *batch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            done += 1
            if done % report == 0:
                seconds = time.perf_counter() - began
                print(f"step {done} of {steps}: loss {value:.3f}, {seconds:.0f} s", flush=True)
    return detector.eval()


def batches(videos: Videos, draw: torch.Generator) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The frames of some videos, in a random order."""
    images, boxes = videos.images.flatten(0, 1), videos.boxes.flatten(0, 1)
    visible = videos.visible.flatten(0, 1)
    labels = videos.labels[:, None].expand(-1, videos.visible.shape[1], -1).flatten(0, 1)
    order = torch.randperm(len(images), generator=draw).split(BATCH)
    return [(images[i], boxes[i], visible[i], labels[i]) for i in order if len(i) == BATCH]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    detector = train(options.steps)
    save_file({k: v.contiguous() for k, v in detector.state_dict().items()}, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB, frames of {SIDE} pixels")


if __name__ == "__main__":
    main()
