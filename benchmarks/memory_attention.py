"""What SAM 2's memory attention costs on one processor thread, beside the module of transformers.

One object, 64 x 64 cells, random weights; processor time, medians of turns that alternate.
Run: ``python benchmarks/memory_attention.py [--memories 7] [--turns 3]``; about a minute.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers import Sam2VideoConfig
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoMemoryAttention

from vismem.models.memory_attention import MemoryAttention
from vismem.models.sam2_names import from_transformers

SIDE, POINTERS = 64, 64


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memories", type=int, default=7)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    draws = torch.Generator().manual_seed(0)
    stock = Sam2VideoMemoryAttention(Sam2VideoConfig(memory_attention_rope_feat_sizes=[SIDE] * 2))
    for weight in stock.eval().parameters():
        weight.copy_(torch.randn(weight.shape, generator=draws) * 0.05)
    ours = MemoryAttention().eval()
    ours.load_state_dict(from_transformers(stock.state_dict()))
    x, place = torch.randn(2, 1, SIDE**2, 256, generator=draws)
    count = options.memories * SIDE**2 + POINTERS
    memory, memory_place = torch.randn(2, 1, count, 64, generator=draws)
    flat = [part.transpose(0, 1) for part in (x, memory, place, memory_place)]
    told = {"grid": (SIDE, SIDE), "position": place, "memory_position": memory_place}
    forms = {
        "transformers": lambda: stock(*flat, POINTERS).reshape(SIDE**2, 256),
        "ours": lambda: ours(x, memory, pointers=POINTERS, **told)[0],
    }
    found = {name: form() for name, form in forms.items()}
    spent: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.turns):
        for name, form in forms.items():
            began = time.process_time()
            form()
            spent[name].append(time.process_time() - began)
    cost = {name: statistics.median(each) for name, each in spent.items()}
    for name, seconds in cost.items():
        share = seconds / cost["transformers"]
        print(f"{name:14}{1e3 * seconds:8.0f} CPU ms a read, {share:.2f} of transformers' time")
    print(f"largest difference {float((found['ours'] - found['transformers']).abs().max()):.1e}")


if __name__ == "__main__":
    main()
