from __future__ import annotations

import pytest
import torch

from vismem.memory.base import Budget, check_write


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (0, 0),
        (17, 17),
        ("17", 17),
        ("64MB", 64_000_000),
        ("64 mb", 64_000_000),
        ("1.5GB", 1_500_000_000),
        ("512KiB", 524_288),
        ("2MiB", 2**21),
        ("1GiB", 2**30),
        (Budget(5), 5),
    ],
)
def test_sizes(text: int | str | Budget, size: int) -> None:
    assert Budget.parse(text) == Budget(size)


@pytest.mark.parametrize("text", ["", "MB", "64TB", "64 mega", "-3MB", "1e6", "6 4MB", "ki", "4k"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 64MB"):
        Budget.parse(text)


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be negative, got -1 bytes"):
        Budget.parse(-1)


@pytest.mark.parametrize(
    ("shape", "time", "message"),
    [
        ((2, 3), 0.0, r"\(N, 4\), not \(2, 3\)"),
        ((4,), 0.0, r"\(N, 4\), not \(4,\)"),
        ((0, 4), 0.0, "1 to 2 tokens, not 0"),
        ((3, 4), 0.0, "1 to 2 tokens, not 3"),
        ((2, 4), float("nan"), "finite seconds, not nan"),
        ((2, 4), 4.0, "backwards, from 5.000 s to 4.000 s"),
    ],
)
def test_a_refused_write_names_what_is_wrong(
    shape: tuple[int, ...], time: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_write(torch.zeros(shape), time, dim=4, most=2, last=5.0)


def test_a_write_at_the_same_time_is_fine() -> None:
    check_write(torch.zeros(2, 4), 5.0, dim=4, most=2, last=5.0)
