"""Bugs that the tests of attention to memories have to find: file, what stands there, the bug."""

TESTS = ["tests/kernels/test_mem_xattn.py", "tests/kernels/test_mem_xattn_triton.py"]
KERNEL = "kernels/cross_attention/triton.py"
PYTORCH, AXIAL = "kernels/mem_xattn/cpu.py", "kernels/mem_xattn/axial.py"
FOLD = "kernels/mem_xattn/__init__.py"
PLANTED = [
    (KERNEL, "return tl.minimum(tl.load(lengths + b).to(tl.int32), rows)", "return rows"),
    (KERNEL, "split * share + share, count)", "split * share + share + 1, count)"),
    (KERNEL, "(column < WIDTH)[None]", "(column < (WIDTH // 16) * 16)[None]"),
    (KERNEL, "(split * (tl.num_programs(1) // heads) + b) * queries", "(split + b) * queries"),
    (KERNEL, "base + tl.log2(tl.where(some, total, 1.0))", "base"),
    (KERNEL, "for start in range(0, queries, BLOCK_M):", "for start in range(0, 1, BLOCK_M):"),
    (KERNEL, "to(dy.dtype), dy, dv", "to(dy.dtype), dy, 0 * dv"),
    (KERNEL, "min(processors // max(programs, 1), tiles // LEAST_TILES)", "processors"),
    ("kernels/mem_xattn/triton.py", "scale, None, lengths", "1.0, None, lengths"),
    (PYTORCH, "query[b, :, own], keys[b, :count, own]", "query[b, :, own], keys[0, :count, own]"),
    (PYTORCH, "to = slice(h * width, (h + 1) * width), slice(h", "to = slice(0, width), slice(h"),
    (PYTORCH, "device=keys.device) < lengths", "device=keys.device) <= lengths"),
    (PYTORCH, "return seen if some is None else seen.where(some, 0.0)", "return seen"),
    (AXIAL, "a * cos - b * sin, a * sin + b * cos", "a * cos + b * sin, b * cos - a * sin"),
    (AXIAL, "cell % width, cell // max(width, 1)", "cell // max(width, 1), cell % width"),
    (AXIAL, "placed = x.shape[1] - unrotated", "placed = x.shape[1] - unrotated // max(len(x), 1)"),
    (AXIAL, "dtype=torch.float64) / dim", "dtype=torch.float64) / (2 * dim)"),
    (FOLD, "output_weight @ value_bias + output_bias", "0 + output_bias"),
    (FOLD, '"dhc,hce->dhe"', '"dhc,hce->deh"'),
]  # fmt: skip
