"""Whether a form of an operator is right: nothing is timed that has not passed here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from case import Case, Inputs
from torch import Tensor

__all__ = ["check", "comparable", "expected", "mapped", "tensors"]

SLACK = 4.0  # times as much error as an operator may have, for what it is compared with


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change the tensors in a value; tuples, lists, mappings and dataclasses keep their form."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(mapped(part, change) for part in value)
    if isinstance(value, dict):
        return {key: mapped(part, change) for key, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        parts = {part.name: getattr(value, part.name) for part in fields(value) if part.init}
        return replace(value, **{name: mapped(part, change) for name, part in parts.items()})
    return value


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a value, in order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(value, note)
    return found


def expected(case: Case, inputs: Inputs) -> Any:
    """What the reference makes of arguments in float64; of their parts where the case has some."""
    exact = mapped(inputs, lambda part: part.double() if part.is_floating_point() else part)
    if case.parts is None:
        return case.reference(*exact)
    results = [case.reference(*part) for part in case.parts(exact)]
    if isinstance(results[0], Tensor):
        return torch.cat(results)
    return tuple(map(torch.cat, zip(*results, strict=True)))


def check(
    case: Case, device: str, form: Callable[..., Any], repeats: int = 25
) -> tuple[str | None, float]:
    """Compare a form of an operator with its reference, on fresh inputs of three seeds.

    What it allocates is filled with NaN and with the largest integers before, so that an output
    that is not written is wrong. The same arguments have to give the same bits every time.

    Args:
        case: The size.
        device: Where.
        form: Called as the operator is.
        repeats: Calls that must agree to the bit with the first.

    Returns:
        What is wrong, None if nothing is; and the largest relative error.
    """
    worst = 0.0
    for seed in range(1, 4):
        if seed == 1:
            inputs, wanted = _first(case, device)
        else:
            inputs = case.inputs(device, 1000 * seed)
            wanted = expected(case, inputs)
        with _poisoned():
            result = form(*inputs)
        complaint, error = _compare(case, result, wanted, case.tolerance)
        if complaint is None and len(tensors(result)) != len(tensors(wanted)):
            complaint = "results are left out"
        if complaint:
            return f"seed {seed}: {complaint}", worst
        worst = max(worst, error)
        for repeat in range(1, repeats + 1 if seed == 1 else 1):
            with _poisoned():
                again = form(*inputs)
            if not all(map(_same_bits, tensors(again), tensors(result))):
                return f"repeat {repeat} gives other bits", worst
    return None, worst


def comparable(case: Case, device: str, form: Callable[..., Any]) -> str | None:
    """Say why the speed of something may not be compared with an operator's, None if it may.

    Others may be a few times less exact, and may give the first results alone.
    """
    inputs, wanted = _first(case, device)
    return _compare(case, form(*inputs), wanted, SLACK * case.tolerance)[0]


@lru_cache(maxsize=1)
def _first(case: Case, device: str) -> tuple[Inputs, Any]:
    """Inputs of the first seed, and what the reference makes of them, for all forms of a case."""
    inputs = case.inputs(device, 1000)
    return inputs, expected(case, inputs)


def _compare(case: Case, result: Any, wanted: Any, tolerance: float) -> tuple[str | None, float]:
    """What is wrong and how large the error is, as far as there are results."""
    worst = 0.0
    if case.same is not None:
        return case.same(result, wanted), worst
    pairs = list(zip(tensors(result), tensors(wanted), strict=False))
    if not pairs:
        return "no result", worst
    for number, (one, other) in enumerate(pairs):
        if one.shape != other.shape:
            return f"result {number} has shape {tuple(one.shape)}, not {tuple(other.shape)}", worst
        if not other.is_floating_point():
            if not torch.equal(one.to(other.dtype), other):
                return f"result {number} differs", worst
            continue
        one, other = one.double(), other.double()
        wrong = torch.where(one == other, 0.0, one - other)  # equal infinities are equal
        size = torch.where(other.isfinite(), other, 0.0).norm().item()
        error = wrong.norm().item() / max(size, 1e-30)
        if not error <= tolerance:
            return f"result {number} is off by {error:.1e}, not {tolerance:.0e}", error
        worst = max(worst, error)
    return None, worst


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@contextmanager
def _poisoned() -> Iterator[None]:
    """Fill what is allocated in this block with NaN, integers with their largest."""
    before = torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn)
        torch.utils.deterministic.fill_uninitialized_memory = filled
