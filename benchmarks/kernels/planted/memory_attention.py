"""Bugs that the tests of attention over pages have to find."""

TESTS = [
    "tests/kernels/test_memory_attention.py",
    "tests/kernels/test_memory_attention_triton.py",
]
KERNEL = "kernels/memory_attention/triton.py"
CPU = "kernels/memory_attention/cpu.py"
WALK = "kernels/memory_attention/walk.py"
PLANTED = [
    (KERNEL, "first = (wide_one * c + wide_two * s)", "first = (wide_one * c - wide_two * s)"),
    (KERNEL, "(age >= 0) & (age < window)", "(age >= 0) & (age <= window)"),
    (KERNEL, "tl.where(entry < far, 0, age)", "tl.where(entry <= far, 0, age)"),
    (KERNEL, "mixed = mixed * faded[:, None]\n        mixed = tl.dot", "mixed = tl.dot"),
    (KERNEL, "tl.minimum((tile + 1) // per_entry", "tl.minimum(tile // per_entry"),
    (KERNEL, "token, head = row // ROWS,", "token, head = row % count,"),
    (KERNEL, "tl.minimum(begin + share, tiles)", "begin + share"),
    (KERNEL, "tl.where(entry < turns, LOW, 0)", "LOW"),
    (KERNEL, "total = total * faded + weight", "total = total + weight"),
    (KERNEL, "channel < LOW, channel < D - LOW", "channel < D // 2, channel < D - LOW"),
    (KERNEL, "numbered = counted + column", "numbered = counted + start + column"),
    (KERNEL, "scale * LOG2_E.value", "scale"),
    (CPU, "one * cos - two * sin", "one * cos + two * sin"),
    (CPU, ".nan_to_num(0.0)", ""),
    (WALK, "age + count <= self._window", "age < self._window"),
    (WALK, "begin + count == first", "begin <= first"),
]
