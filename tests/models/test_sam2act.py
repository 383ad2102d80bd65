"""SAM2Act+'s keyframe memory as published: the last few, newest first, views apart."""

from __future__ import annotations

import pytest
import torch
from scattered import noise, scatter

from vismem.models.sam2act import KeyframeMemory, token_rows
from vismem.models.sine import sine_map

GRID = (2, 3)


def memory(keyframes: int = 3) -> KeyframeMemory:
    made = KeyframeMemory(16, 4, layers=2, hidden=24, keyframes=keyframes).eval()
    scatter(made.parameters(), 0.4)
    return made


def stored(count: int) -> list[torch.Tensor]:
    return [noise(3, 6, 4, seed=number) for number in range(count)]


def test_the_last_few_are_read_newest_first() -> None:
    """Keys in full: what stands further back changes nothing, what is read has its own code."""
    made, (x, position) = memory(), noise(2, 3, 6, 16)
    kept = stored(5)
    place = sine_map(*GRID, 4)
    with torch.no_grad():
        found = made.read(x, position, kept, grid=GRID)
        keys = torch.cat([kept[4], kept[3], kept[2]], 1)
        codes = torch.cat([place + made.temporal[row] for row in range(3)])
        expected = made.attention(x, keys, grid=GRID, position=position, memory_position=codes)
        assert torch.equal(found, expected)
        assert torch.equal(made.read(x, position, kept[2:], grid=GRID), found)
        assert not torch.allclose(made.read(x, position, kept[3:], grid=GRID), found)
        assert made.read(x, position, [], grid=GRID) is x


def test_views_are_apart() -> None:
    made, (x, position) = memory(), noise(2, 3, 6, 16)
    kept = stored(2)
    other = [tokens.clone() for tokens in kept]
    for tokens in other:
        tokens[1] += 1
    with torch.no_grad():
        one = made.read(x, position, kept, grid=GRID)
        two = made.read(x, position, other, grid=GRID)
    assert torch.equal(one[[0, 2]], two[[0, 2]]) and not torch.allclose(one[1], two[1])


def test_as_published_a_constant_in_a_heat_map_is_remembered() -> None:
    """The defect that `keyframe_policy.peak_signal` repairs."""
    made, x, heat = memory(), noise(3, 6, 16), noise(3, 8, 8)
    with torch.no_grad():
        one, two = (made.write(x, heat + c, grid=GRID) for c in (0, 5))
    assert one.shape == (3, 6, 4) and not torch.allclose(one, two, atol=1e-3)


@pytest.mark.parametrize(("cells", "views", "keyframes"), [(256, 3, 10), (5, 2, 3), (4, 1, 2)])
def test_scrambled_rows_are_the_table_read_in_another_shape(
    cells: int, views: int, keyframes: int
) -> None:
    table = torch.arange(views * cells)
    eval_rows = table.view(cells, views).T
    assert torch.equal(token_rows("eval", cells, views), eval_rows)
    train = table.repeat(keyframes).view(cells, keyframes, views)
    for number in range(keyframes):
        rows = token_rows("train", cells, views, keyframes, number)
        assert torch.equal(rows, train[:, number].T)
    assert torch.equal(token_rows("intended", cells, views).flatten(), table)


def test_next_to_no_token_gets_its_own_row() -> None:
    """The published sizes: 2 of 768 at test time; in training 128 rows of 256 a view."""
    meant, run = token_rows("intended", 256), token_rows("eval", 256)
    assert (meant == run).sum().item() == 2
    same = [(token_rows("train", 256, 3, 10, k) == run).sum().item() for k in range(10)]
    assert sum(same) / (10 * 768) == pytest.approx(0.0039, abs=1e-4)
    assert {len(set(token_rows("train", 256, 3, 10, 0)[v].tolist())) for v in range(3)} == {128}


def test_refuses_what_there_is_not() -> None:
    with pytest.raises(ValueError, match="there are intended, eval, train"):
        token_rows("test", 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keyframe 2 is none of a batch of 2"):
        token_rows("train", 4, 3, 2, 2)
