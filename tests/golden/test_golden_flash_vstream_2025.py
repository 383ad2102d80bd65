"""Flash Memory against numbers of the published code."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from arrays import Case, golden
from torch import Tensor

from vismem.memory.published.flash import PublishedFlash, PublishedFlashConfig, compress_video
from vismem.memory.published.flash_rule import (
    Argsort,
    FlashSnapshot,
    kmeans_ordered,
    retrieve_detail,
    stable_argsort,
)
from vismem.memory.published.positions import (
    Grid,
    am_rope,
    memory_positions,
    pixel_pool,
    real_grids,
)

GROUP = "flash_vstream_2025"
PLENTY = 10**12
DECIDED = 1e-4  # a nearest patch whose margin is smaller is decided by rounding


def close(ours: Tensor, published: Tensor, tolerance: float = 3e-5) -> None:
    assert ours.shape == published.shape
    assert torch.allclose(ours.double(), published.double(), rtol=tolerance, atol=tolerance)


def equal(ours: Tensor, published: Tensor) -> None:
    assert ours.tolist() == published.tolist()


def grid_of(case: Case, key: str) -> Grid:
    return Grid(*case.array(key).tolist())


def config_of(case: Case, dim: int, method: str = "klarge_retrieve") -> PublishedFlashConfig:
    return PublishedFlashConfig(dim, case.value("K_csm"), case.value("K_dam"), method=method)


def draws_of(case: Case) -> tuple[torch.Generator, random.Random]:
    seeds = case.value("torch_seed"), case.value("py_seed")
    return torch.Generator().manual_seed(seeds[0]), random.Random(seeds[1])


class Recorder(random.Random):
    """Remembers which rows were drawn."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.drawn: list[int] = []

    def randint(self, a: int, b: int) -> int:
        self.drawn.append(super().randint(a, b))
        return self.drawn[-1]


def sorted_by(order: Tensor, values: Tensor, descending: bool, case: Case) -> Tensor:
    """The recorded order, which must sort the values, and of equal ones keep the first first."""
    assert sorted(order.tolist()) == list(range(len(values)))
    assert torch.equal(values[order], values.sort(descending=descending).values)
    native = "native_ties" in case.path.stem
    if case.value("ties_stable") if "ties_stable" in case else not native:
        assert order.tolist() == stable_argsort(values, descending).tolist()
    return order


def same_patches(ours: Tensor, case: Case, prefix: str = "", step: int | None = None) -> None:
    """Positions are equal, or the second best where rounding decides between the two."""

    def row(key: str) -> list[float]:
        array = case.array(prefix + key)
        return (array if step is None else array[step]).tolist()

    wanted = [position for position in row("positions") if position >= 0]
    assert len(ours) == len(wanted)
    rows = zip(ours.tolist(), wanted, row("second"), row("margin"), strict=False)
    for number, (got, best, second, margin) in enumerate(rows):
        allowed = {best, second} if abs(margin) < DECIDED else {best}
        assert got in allowed, f"detail {number}: patch {got}, not of {allowed}"


# ---------------------------------------------------------------------- the rules


@pytest.mark.parametrize("case", golden(GROUP, "csm_kmeans_ordered*.npz"))
def test_golden_flash_vstream_2025_kmeans_ordered(case: Case) -> None:
    generator, _ = draws_of(case)
    coins = Recorder(case.value("py_seed"))
    x, weights = case.tensor("X"), case.tensor("weights_in")
    if not case.value("weights_given"):
        weights = torch.ones(len(x))
    distinct = case.value("n_unique")
    assert len(torch.unique(x.flatten(1), dim=0)) == distinct
    expected = torch.Generator().set_state(generator.get_state())
    clusters = kmeans_ordered(x, case.value("K"), weights, generator, coins)
    permutation = case.array("init_perm").tolist()
    drawn = distinct if len(x) > case.value("K") <= distinct else 0
    assert len(permutation) == drawn
    if permutation:
        assert torch.randperm(distinct, generator=expected).tolist() == permutation
    assert torch.equal(generator.get_state(), expected.get_state())
    assert coins.drawn == case.array("reseed_draws").tolist()
    assert clusters.members() == case.lists("members")
    close(clusters.slots, case.tensor("slots"))
    close(clusters.weights, case.tensor("weights_out"))
    close(clusters.timestamps, case.tensor("timestamps"))


@pytest.mark.parametrize("case", golden(GROUP, "dam_retrieve*.npz"))
def test_golden_flash_vstream_2025_retrieve(case: Case) -> None:
    weights, order = case.tensor("weights"), case.tensor("order").long()
    calls = []

    def argsort(values: Tensor, descending: bool) -> Tensor:
        assert descending and torch.equal(values, weights)
        calls.append(sorted_by(order, values, descending, case))
        return order

    low = case.tensor("bank_lo")
    for blocks in ([low], low.split(3)):
        chosen = retrieve_detail(
            blocks,
            case.tensor("csm"),
            weights,
            case.tensor("csm_timestamps"),
            case.value("K_dam"),
            case.value("method"),
            argsort,
        )
        same_patches(chosen, case)
    assert len(calls) == (2 if len(order) else 0)
    video = grid_of(case, "thw")
    synopsis, detail = real_grids(video, case.value("K_csm"), case.value("K_dam"))
    assert synopsis == grid_of(case, "csm_thw")
    assert detail == grid_of(case, "dam_thw") == Grid(len(chosen), *video[1:])
    agreed = chosen == case.tensor("positions")
    detail_rows = case.tensor("bank_hi")[chosen]
    assert detail_rows.shape == case.tensor("dam").shape
    assert torch.equal(detail_rows[agreed], case.tensor("dam")[agreed])


# ---------------------------------------------------------------------- positions


@pytest.mark.parametrize("case", golden(GROUP, "pixel_pool*.npz"))
def test_golden_flash_vstream_2025_pixel_pool(case: Case) -> None:
    pooled, grid = pixel_pool(case.tensor("rows").float() / 256, grid_of(case, "thw"))
    assert grid == grid_of(case, "out_thw")
    close(pooled, case.tensor("out"), 1e-6)


@pytest.mark.parametrize("case", golden(GROUP, "grids*.npz"))
def test_golden_flash_vstream_2025_grids(case: Case) -> None:
    for row in case.array("table").tolist():
        synopsis, detail = real_grids(Grid(*row[2:5]), row[0], row[1])
        assert [*synopsis, *detail] == row[5:], row[:5]


@pytest.mark.parametrize("case", golden(GROUP, "am_rope*.npz"))
def test_golden_flash_vstream_2025_am_rope(case: Case) -> None:
    visual = case.tensor("visual_index")
    assert int((visual >= 0).int().argmax()) == case.value("prefix_len")
    memory = memory_positions(
        grid_of(case, "csm_thw"),
        case.tensor("csm_timestamps"),
        grid_of(case, "dam_thw"),
        case.tensor("dam_positions"),
    )
    positions = case.tensor("positions_in")
    equal(am_rope(positions, visual, memory), case.tensor("positions_out"))
    equal(positions, case.tensor("positions_in"))  # the input is not touched


# ---------------------------------------------------------------------- a whole video


@pytest.mark.parametrize("case", golden(GROUP, "offline_memory*.npz"))
def test_golden_flash_vstream_2025_offline(case: Case) -> None:
    video = grid_of(case, "thw")
    dim = case.array("hi").shape[1]
    high, low = (case.tensor(key).reshape(video.t, -1, dim) for key in ("hi", "lo"))
    config = config_of(case, dim)
    generator, coins = draws_of(case)
    weight_order, calls = case.tensor("weight_order").long(), []

    def argsort(values: Tensor, descending: bool) -> Tensor:
        if not descending:
            return stable_argsort(values, descending)
        calls.append(sorted_by(weight_order, values, descending, case))
        return weight_order

    expected = torch.Generator().set_state(generator.get_state())
    memory = compress_video(high, config, video[1:], low, argsort, generator=generator, coins=coins)
    if permutation := case.array("init_perm").tolist():
        assert torch.randperm(len(permutation), generator=expected).tolist() == permutation
    assert torch.equal(generator.get_state(), expected.get_state())
    assert len(calls) == (1 if len(weight_order) else 0)
    same_patches(memory.detail_positions, case, "dam_")
    assert memory.synopsis_grid == grid_of(case, "csm_thw")
    assert memory.detail_grid == grid_of(case, "dam_thw")
    grids = real_grids(video, config.synopsis_slots, config.detail_slots)
    assert grids == (memory.synopsis_grid, memory.detail_grid)
    rows, positions = memory.rows(), memory.positions()
    tokens = case.value("n_tokens")
    assert len(rows) == 4 * tokens and positions.shape == (3, tokens)
    fine = case.value("n_dam_tokens")
    assert fine == video.h * video.w // 4 * len(memory.detail)
    visual = case.tensor("visual_index")
    assert int((visual >= 0).int().argmax()) == case.value("prefix_len")
    given = am_rope(case.tensor("positions_in"), visual, positions)
    agreed = memory.detail_positions == case.tensor("dam_positions")
    check_rows(memory, agreed, rows, case.tensor("rows_out"))
    check_positions(agreed, positions.shape[1], fine, visual, given, case.tensor("positions_out"))


def check_rows(memory: FlashSnapshot, agreed: Tensor, ours: Tensor, published: Tensor) -> None:
    """Rows are equal but those of patches that rounding may choose otherwise."""
    h, w = memory.grid
    same = torch.cat([agreed.repeat_interleave(h * w), torch.ones(len(ours)).bool()])[: len(ours)]
    assert ours.shape == published.shape
    close(ours[same], published[same])


def check_positions(
    agreed: Tensor, tokens: int, fine: int, visual: Tensor, ours: Tensor, published: Tensor
) -> None:
    """Ids are equal but the times of patches that rounding may choose otherwise."""
    assert ours.shape == published.shape
    same_token = torch.ones(tokens).bool()
    same_token[:fine] = agreed.repeat_interleave(fine // max(1, len(agreed)))
    same = torch.ones(len(visual)).bool()
    same[visual >= 0] = same_token[visual[visual >= 0].long()]
    equal(ours[:, same], published[:, same])
    equal(ours[1:], published[1:])


# ---------------------------------------------------------------------- a stream


class Orders:
    """The recorded order of the step that is going on; each must sort what it is given."""

    def __init__(self, case: Case):
        self.case, self.step, self.used = case, 0, [0, 0]

    def __call__(self, values: Tensor, descending: bool) -> Tensor:
        key = "weight_order" if descending else "time_order"
        recorded = self.case.tensor(key)[self.step].long()
        order = recorded[recorded >= 0]
        self.used[descending] += 1
        return sorted_by(order, values, descending, self.case)


def clips(case: Case) -> Iterator[tuple[int, int, int]]:
    """Step, first patch and end of each clip."""
    ends = [0, *case.array("clip_sizes").cumsum().tolist()]
    yield from ((step, *ends[step : step + 2]) for step in range(len(ends) - 1))


@pytest.mark.parametrize("case", golden(GROUP, "realtime_*.npz"))
def test_golden_flash_vstream_2025_realtime(case: Case) -> None:
    high, low = case.tensor("hi"), case.tensor("lo")
    grid = tuple(case.array("grid_hw").tolist())
    config = config_of(case, high.shape[2])
    orders: Argsort = Orders(case)
    memory = PublishedFlash(config, PLENTY, orders)
    memory.generator, _ = draws_of(case)
    memory.coins = Recorder(case.value("py_seed"))
    reseeded = case.lists("reseed")
    for step, first, end in clips(case):
        orders.step, orders.used = step, [0, 0]
        memory.coins.drawn.clear()
        expected = torch.Generator().set_state(memory.generator.get_state())
        memory.write_many(
            high[first:end],
            [float(patch) for patch in range(first, end)],
            [{"grid": grid, "low": patch} for patch in low[first:end]],
        )
        permutation = [row for row in case.array("init_perm")[step].tolist() if row >= 0]
        check_draws(memory, step, expected, permutation)
        assert memory.coins.drawn == reseeded[step]
        for used, key in zip(orders.used, ("time_order", "weight_order"), strict=True):
            assert used == bool((case.array(key)[step] >= 0).any()), key
        check_step(memory, case, step, end)


def check_draws(
    memory: PublishedFlash, step: int, expected: torch.Generator, permutation: list[int]
) -> None:
    """The same permutation was drawn, or none; of a longer one the file has the beginning."""
    if torch.equal(memory.generator.get_state(), expected.get_state()):
        assert not permutation
        return
    now = memory.generator.get_state()
    for count in range(max(1, len(permutation)), len(memory) + 1):
        trial = torch.Generator().set_state(expected.get_state())
        drawn = torch.randperm(count, generator=trial)
        if (
            torch.equal(trial.get_state(), now)
            and drawn[: len(permutation)].tolist() == permutation
        ):
            return
    raise AssertionError(f"step {step} drew another permutation than {permutation}")


def check_step(memory: PublishedFlash, case: Case, step: int, patches: int) -> None:
    snapshot = memory.snapshot()
    rows = snapshot.rows()
    counts = [len(snapshot.synopsis), len(snapshot.detail), len(memory), len(rows)]
    assert counts == case.array("counts")[step].tolist()
    assert len(memory) == patches
    slots = counts[0]
    close(snapshot.weights, case.tensor("weights")[step][:slots])
    close(snapshot.timestamps, case.tensor("timestamps")[step][:slots])
    same_patches(snapshot.detail_positions, case, "dam_", step)
    key = f"step{step}"
    if step not in case.array("snap_steps"):
        return
    close(snapshot.synopsis, case.tensor(f"{key}.csm"))
    wanted = case.tensor("dam_positions")[step][: len(snapshot.detail)]
    agreed = snapshot.detail_positions == wanted
    close(torch.stack(snapshot.detail)[agreed], case.tensor(f"{key}.dam")[agreed])
    check_rows(snapshot, agreed, rows, case.tensor(f"{key}.rows"))
    prefix, suffix = case.value("prefix_len"), case.value("suffix_len")
    tokens = len(rows) // 4
    visual = torch.full((prefix + tokens + suffix,), -1)
    visual[prefix : prefix + tokens] = torch.arange(tokens)
    prompt = torch.arange(len(visual)).expand(3, -1)
    ours = am_rope(prompt, visual, snapshot.positions())
    fine = len(snapshot.detail) * snapshot.grid[0] * snapshot.grid[1] // 4
    check_positions(agreed, tokens, fine, visual, ours, case.tensor(f"{key}.positions"))
