"""Bugs that the tests of aggregation have to find: file, what stands there, what is planted."""

TESTS = ["tests/kernels/test_aggregate.py", "tests/kernels/test_aggregate_triton.py"]
KERNEL = "kernels/cross_attention/triton.py"
PYTORCH = "kernels/aggregate/cpu.py"
PLANTED = [
    (PYTORCH, "hidden = None if mask is None else mask[b, h]", "hidden = None"),
    (PYTORCH, "masked_fill_(~hidden, -math.inf)", "masked_fill_(hidden, -math.inf)"),
    (PYTORCH, "attend(q[b, h], k[b, h], v[b, h]", "attend(q[b, h], k[b, h], v[b, 0]"),
    (KERNEL, "return row, row >= 0", "return tl.maximum(row, 0), inside"),
    (KERNEL, "product += tl.load(bias + at, inside, 0.0).to(tl.float32) * _LOG2E",
     "product += tl.load(bias + at, inside, 0.0).to(tl.float32)"),
    (KERNEL, "seen = seen * fade[:, None]", "seen = seen * 1.0"),
    (KERNEL, "total = total * fade + tl.sum(weights, 1)", "total = total + tl.sum(weights, 1)"),
    (KERNEL, "seen += weight[:, None] * part", "seen += part"),
    (KERNEL, "ds = weights * (tl.dot(dy, tl.trans(v), input_precision=\"ieee\") - mean[:, None])",
     "ds = weights * tl.dot(dy, tl.trans(v), input_precision=\"ieee\")"),
    (KERNEL, "(dq * scale)", "(dq * 1.0)"),
    (KERNEL, "(dk * scale)", "(dk * scale * scale)"),
    (KERNEL, "index.long() + rows * torch", "index.long() + 0 * torch"),
    (KERNEL, "total += tl.load(places", "total = tl.load(places"),
    (KERNEL, "is not None and bias.shape[2] == 1", "is not None"),
    (KERNEL, "bias.expand(batch, heads, queries, rows).stride()", "bias.stride()"),
    (KERNEL, "part.stride(0) if len(part) > 1 else 0, part.stride(1)",
     "part.stride(0) if len(part) > 1 else 0, part.shape[2] * part.shape[3]"),
    (PYTORCH, "return seen if some is None else seen.where(some, 0.0)", "return seen"),
    (PYTORCH, "mask.masked_fill(~shown, -math.inf)", "mask"),
    (PYTORCH, "and there.all()", "and there.any()"),
]  # fmt: skip
