"""Bugs that the tests of attention by tiles have to find: file, what stands there, the bug."""

TESTS = [
    "tests/kernels/test_tiled.py",
    "tests/kernels/test_memory_attention.py",
    "tests/kernels/test_mem_xattn.py",
]
TILED, PRODUCT = "kernels/tiled.py", "kernels/product.py"
FOLDED, CHOICE = "kernels/memory_attention/folded.py", "kernels/mem_xattn/cpu.py"
PLANTED = [
    (TILED, "seen.mul_(fade).add_(", "seen.add_("),
    (TILED, "total.mul_(fade).add_(", "total.add_("),
    (TILED, "weights += mask[:, columns]", "weights += 0 * mask[:, columns]"),
    (TILED, "None if mask is None else mask[rows]", "None if mask is None else mask[: len(some)]"),
    (TILED, "lowest = torch.finfo(query.dtype).min", "lowest = -torch.inf"),
    (TILED, "total.clamp_min_(torch.finfo(query.dtype).tiny)", "total"),
    (TILED, "torch.maximum(highest, weights.amax(1, keepdim=True))", "highest.clone()"),
    (TILED, "        highest = now\n", ""),
    (TILED, ".contiguous() * scale", ".contiguous()"),
    (TILED, "torch.bfloat16 and not multiplies", "torch.bfloat16 or not multiplies"),
    (TILED, "rows < FEW_ROWS or columns < FEW_COLUMNS", "rows < FEW_ROWS"),
    (TILED, "if torch.is_grad_enabled() and any", "if any"),
    (PRODUCT, "zeros if bias is None else zeros + bias", "zeros"),
    (FOLDED, "attend(rows[group], keys[group]", "attend(rows[group], keys[0]"),
    (FOLDED, "values[group], scale, mask)", "values[group], scale)"),
    (CHOICE, "pays(query.shape[1], keys.shape[1]", "not pays(query.shape[1], 0"),
]  # fmt: skip
