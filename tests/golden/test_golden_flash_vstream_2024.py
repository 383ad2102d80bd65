"""The published STAR memory and its operators, against numbers computed with its own code."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from arrays import Case, golden
from torch import Tensor

from vismem.memory.published import clustering
from vismem.memory.published.clustering import NTMWeights, Slots

GROUP = "flash_vstream_2024"


class Coins(random.Random):
    """A generator that writes down what it gave."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.given: list[int] = []

    def randint(self, a: int, b: int) -> int:
        self.given.append(super().randint(a, b))
        return self.given[-1]


def draws(case: Case) -> tuple[torch.Generator, Coins]:
    return (
        torch.Generator().manual_seed(case.value("torch_seed")),
        Coins(case.value("py_seed")),
    )


def check_permutation(case: Case, frames: int) -> None:
    """A seeded generator of its own draws what the published code drew, or nothing at all."""
    drawn, expected = draws(case)[0], case.tensor("init_perm").long()
    assert len(expected) in (0, frames)
    if len(expected):
        assert torch.equal(torch.randperm(frames, generator=drawn), expected)


def close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    assert got.shape == expected.shape
    torch.testing.assert_close(got.float(), expected.float(), rtol=0, atol=tolerance)


def ntm(case: Case, dtype: torch.dtype = torch.float32) -> NTMWeights:
    return NTMWeights(*(case.tensor(name).to(dtype) for name in ("q_w", "q_b", "k_w", "k_b")))


@pytest.mark.parametrize("case", golden(GROUP, "weighted_kmeans*.npz"))
def test_golden_flash_vstream_2024_weighted_kmeans(case: Case) -> None:
    x, slots = case.tensor("X"), case.value("K")
    weights = case.tensor("weights_in") if case.value("weights_given") else None
    permutations, coins = draws(case)
    before = permutations.get_state()
    found = clustering.weighted_kmeans(x, slots, permutations, coins, weights)
    assert found.labels.tolist() == case.array("labels").tolist()
    assert coins.given == case.array("reseed_draws").tolist()
    close(found.centroids, case.tensor("centroids"), 3e-5)
    close(found.mass, case.tensor("weights_out"), 3e-5)
    check_permutation(case, len(x))
    drawn = len(case.array("init_perm")) > 0
    assert torch.equal(permutations.get_state(), before) != drawn


@pytest.mark.parametrize("case", golden(GROUP, "ntm_write*.npz"))
def test_golden_flash_vstream_2024_ntm_write(case: Case) -> None:
    memory, new, weights = case.tensor("M"), case.tensor("N"), ntm(case)
    close(weights.attention(memory, new), case.tensor("softmax"), 1e-5)
    out = clustering.ntm_write(memory, new, weights, case.value("alpha"))
    close(out, case.tensor("out"), 1e-5)


@pytest.mark.parametrize("case", golden(GROUP, "abstract_memory*.npz"))
def test_golden_flash_vstream_2024_abstract_memory(case: Case) -> None:
    alpha = case.value("alpha")
    out = clustering.attention_feature(case.tensor("X"), case.value("K"), ntm(case), alpha)
    close(out, case.tensor("out"), 1e-5)


@pytest.mark.parametrize("case", golden(GROUP, "spatial_pool*.npz"))
def test_golden_flash_vstream_2024_spatial_pool(case: Case) -> None:
    out = clustering.spatial_pool(case.tensor("X"), case.value("size"))
    close(out, case.tensor("out"), 1e-6)


def sequence(case: Case, frames: int) -> tuple[Slots, Coins]:
    """The operator that the case is named for, over the first frames of the case."""
    x, slots = case.tensor("X")[:frames], case.value("K")
    permutations, coins = draws(case)
    if case.name.startswith("kmeans"):
        found = clustering.kmeans(x, slots, permutations, coins)
        return Slots(found.centroids, found.labels), coins
    if case.name.startswith("drop"):
        return clustering.drop(x, slots, coins), coins
    if case.name.startswith("k_drop"):
        return clustering.k_drop(x, slots, coins), coins
    if case.name.startswith("merge"):
        return clustering.merge(x, slots), coins
    assert case.name.startswith("k_merge"), f"no operator for {case.name}"
    return clustering.k_merge(x, slots), coins


def members(found: Slots) -> list[list[int]]:
    labels = found.labels.numpy()
    return [np.flatnonzero(labels == slot).tolist() for slot in range(len(found.frames))]


@pytest.mark.parametrize("case", golden(GROUP, "sequence_ops*.npz"))
def test_golden_flash_vstream_2024_sequence_ops(case: Case) -> None:
    frames = len(case.array("X"))
    found, coins = sequence(case, frames)
    assert members(found) == [sorted(slot) for slot in case.lists("members")]
    close(found.frames, case.tensor("out"), 3e-5)
    if "coins" in case:
        assert coins.given == case.array("coins").tolist()
    assert (found.similarity is not None) == bool(case.value("has_sim"))
    if found.similarity is not None:
        close(found.similarity, case.tensor("sim"), 3e-5)
    if "init_perm" in case:
        check_permutation(case, frames)
    # Each rule takes one frame after the other, so a step is what a shorter video gives.
    for key, of in (("kept_per_step", min), ("slot_newest_per_step", max)):
        if key in case:
            steps = case.array(key).tolist()
            first = frames - len(steps) + 1
            given = [members(sequence(case, first + step)[0]) for step in range(len(steps))]
            assert [[of(slot) for slot in slots] for slots in given] == steps
            if of is min:
                assert all(len(slot) == 1 for slots in given for slot in slots)
