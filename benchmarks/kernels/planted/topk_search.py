"""Bugs that the tests of top-k search have to find: file, what stands there, what is planted."""

TESTS = ["tests/kernels/test_topk_search_triton.py", "tests/kernels/test_topk_search.py"]
KERNEL = "kernels/topk_search/triton.py"
TORCH = "kernels/topk_search/cpu.py"
KEYS = "kernels/best.py"
PLANTED = [
    (KERNEL, 'tl.where(there[None], scores, float("-inf"))', "scores"),
    (KERNEL, "tl.trans(rows), scores, input", "tl.trans(rows), input"),
    (KERNEL, "there, asked = row < count", "there, asked = row <= count"),
    (KERNEL, "bits ^ ((bits >> 31) & 0x7FFFFFFF)", "bits"),
    (KERNEL, "| (0x7FFFFFFF - place)", "| place"),
    (KERNEL, "tl.where(scores == 0.0, 0.0, scores)", "scores"),
    (KERNEL, "bits = tl.where(scores == scores, bits, 0x7FC00000)", "pass"),
    (
        KERNEL,
        "found = tl.where(there, _keys(scores, row), -0x7FFFFFFFFFFFFFFF)",
        "found = _keys(scores, row)",
    ),
    (KERNEL, "sums += rows * wanted[None]", "sums = rows * wanted[None]"),
    (
        KERNEL,
        "query.dtype if quantised or bank.dtype == query.dtype else torch.float32",
        "bank.dtype if not quantised else torch.float16",
    ),
    (KERNEL, "kept = min(k, groups)", "kept = min(max(1, k - 1), groups)"),
    (TORCH, "scores[:, -1] > last + error(last)", "scores[:, -1] > -torch.inf"),
    (TORCH, "scores[:, -1] > last + error(last)", "scores[:, -1] > last"),
    (KEYS, "scores[:, whole:].amax(1", "scores[:, :1].amax(1"),
    (TORCH, "found.append((scores, rows + start))", "found.append((scores, rows))"),
    (TORCH, "1 / (2 * LEVELS)", "1 / LEVELS"),
    (TORCH, "        scores *= scale[rows]\n", "        scores *= scale[0]\n"),
    (TORCH, "else scores.mul_(scale)", "else scores"),
    (KEYS, "torch.where(scores == 0, 0.0, scores)", "scores"),
    (KEYS, "torch.where(scores.isnan(), NAN, bits)", "bits"),
    (KEYS, "(LAST - places)\n\n\ndef places", "(places)\n\n\ndef places"),
]
