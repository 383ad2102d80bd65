"""Bugs that the tests of Ward's cost have to find: file, what stands there, what is planted."""

TESTS = ["tests/kernels/test_merge_costs_triton.py", "tests/kernels/test_merge_costs.py"]
KERNEL = "kernels/ward/triton.py"
PLANTED = [
    (KERNEL, "there = row < count", "there = row <= count - 1 - (count > 4)"),
    (KERNEL, "inside = column < width", "inside = column < (width // 16) * 16"),
    (KERNEL, "difference * difference", "tl.abs(difference)"),
    (KERNEL, "a * b / (a + b) * squares", "a * b / (a + b + 1) * squares"),
    (KERNEL, "squares += tl.sum", "squares = tl.sum"),
    (KERNEL, "program_id(0) * BLOCK_K", "program_id(0)"),
    (KERNEL, "to(tl.int64) * width", "to(tl.int64) * BLOCK_S"),
    (KERNEL, "keys.contiguous()", "keys"),
    ("kernels/ward/cpu.py", "difference.square_()", "difference.abs()"),
]
