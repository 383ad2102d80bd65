"""Bugs that the tests of scoring and choosing blocks have to find."""

TESTS = ["tests/kernels/test_block_topk.py", "tests/kernels/test_block_topk_triton.py"]
KERNEL = "kernels/block_topk/triton.py"
CPU = "kernels/block_topk/cpu.py"
PLANTED = [
    (KERNEL, "total += tl.sum", "total = tl.sum"),
    (KERNEL, "tl.maximum(product, most", "tl.minimum(product, most"),
    (KERNEL, "base[:, None] + width + column", "base[:, None] + column"),
    (KERNEL, "(row ^ LAST)", "row"),
    (KERNEL, "tl.where(bits < 0, bits ^ LAST, bits)", "bits"),
    (KERNEL, "descending=True", "descending=False"),
    (KERNEL, "tl.program_id(0) * K + place", "tl.program_id(0) * (K - 1) + place"),
    (KERNEL, "(batch * count + row.to(tl.int64))", "(row.to(tl.int64))"),
    (KERNEL, "rows.masked_fill(none, -1)", "rows"),
    (CPU, "most @ up + least @ down", "least @ up + most @ down"),
    ("kernels/best.py", "<< 32) | (LAST - places)", "<< 32) | places"),
    (CPU, 'masked_fill(found == float("-inf"), -1)', "masked_fill(found == 0, -1)"),
]
