"""Bugs that the tests of k-means have to find: file, what stands there, what is planted."""

TESTS = ["tests/kernels/test_kmeans_triton.py", "tests/kernels/test_kmeans.py"]
KERNEL = "kernels/kmeans/triton.py"
TORCH = "kernels/kmeans/cpu.py"
PLANTED = [
    (KERNEL, "here, there = row < count, cluster < clusters", "here, there = row < count, row < 0"),
    (KERNEL, "norm[None] - 2.0 * product", "norm[None] - product"),
    (KERNEL, "row_norm += tl.sum(a * a, 1)", "row_norm = tl.sum(a * a, 1)"),
    (KERNEL, "norm += tl.sum(b * b, 1)\n    at", "norm = tl.sum(b * b, 1)\n    at"),
    (KERNEL, "(score - error > limit) == 0", "score - error <= limit"),
    (KERNEL, "share = 2.0 * (width + 8)", "share = 0.0 * (width + 8)"),
    (KERNEL, "cluster > one), cluster, clusters", "cluster >= one), cluster, clusters"),
    (KERNEL, "less = (root < best)", "less = (square < least)"),
    (KERNEL, "less = (root < best)", "less = (root <= best)"),
    (KERNEL, " | (label < 0)", " | (label < -1)"),
    (KERNEL, "(root != root) & (best == best)", "(root != root)"),
    (KERNEL, "begin = tl.load(ends + cluster - 1, cluster > 0, 0)", "begin = 0"),
    (KERNEL, "sums += weight[:, None] * rows", "sums += rows"),
    (KERNEL, "place < end", "place <= end"),
    (KERNEL, "tl.where(all_weight == 0.0, 1.0, all_weight)", "all_weight"),
    (KERNEL, "rows = x[start : start + size]", "rows = x[: start + size][:size]"),
    (TORCH, "error = share * (2 * norms[label]", "error = 0 * (2 * norms[label]"),
    (TORCH, "error += 2.01 * rounded", "error += 0 * rounded"),
    (TORCH, "~(lower > (least + error)[:, None])", "lower <= (least + error)[:, None]"),
    (
        TORCH,
        "torch.cat(measured)\n    labels = squares.sqrt()",
        "torch.cat(measured)\n    labels = squares",
    ),
    (TORCH, "several + start", "several"),
    (TORCH, "rows - centre, compared", "rows, compared"),
]
