from __future__ import annotations

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vismem.memory.token_drop import TokenDrop, keep_mask, keep_pixel_mask, pixel_patches


def drift(frames: int = 200, places: int = 16, neighbour: float = 0.993) -> Tensor:
    """A slow turn under a little noise: neighbours 0.993 alike, first and last 0.52.

    Noise has an axis of its own in every frame, so both cosines are exact.
    """
    turn = torch.linspace(0, math.acos(0.52 / neighbour), frames)
    tokens = torch.zeros(frames, places, 2 + frames)
    tokens[..., 0] = (math.sqrt(neighbour) * turn.cos())[:, None]
    tokens[..., 1] = (math.sqrt(neighbour) * turn.sin())[:, None]
    tokens[torch.arange(frames), :, 2 + torch.arange(frames)] = math.sqrt(1 - neighbour)
    return tokens


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.95])
def test_slow_drift_is_seen_by_ours_and_missed_by_the_published_rule(threshold: float) -> None:
    stream = drift()
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(stream[:-1], stream[1:], dim=-1).mean() == pytest.approx(0.993, abs=1e-3)
    assert cosine(stream[0], stream[-1], dim=-1).mean() == pytest.approx(0.52, abs=1e-3)
    ours, published = TokenDrop(threshold), TokenDrop(threshold, reference="previous")
    kept = torch.stack([ours(frame) for frame in stream])
    missed = torch.stack([published(frame) for frame in stream])
    assert missed[0].all() and not missed[1:].any()
    assert not keep_mask(stream[:-1], stream[1:], threshold).any()
    assert kept[1:].any(0).all()  # at every place
    assert kept.float().mean() < 0.1  # and still nearly all is dropped


@settings(max_examples=40, derandomize=True)
@given(st.integers(0, 10**6), st.floats(-1, 1), st.integers(1, 5), st.integers(1, 8))
def test_what_is_dropped_is_near_the_last_kept_token(
    seed: int, threshold: float, places: int, width: int
) -> None:
    stream = noise(12, places, width, seed=seed).cumsum(0)
    drop = TokenDrop(threshold)
    last_kept = torch.zeros(places, width)
    for number, frame in enumerate(stream):
        keep = drop(frame)
        cosine = torch.nn.functional.cosine_similarity(last_kept, frame, dim=-1)
        if number:
            assert torch.equal(keep, cosine <= threshold)
            assert drop.drop_ratio == pytest.approx(1 - keep.float().mean().item())
            assert drop.surprise == pytest.approx(1 - cosine.mean().item(), abs=1e-5)
        else:
            assert keep.all()
        last_kept = torch.where(keep[:, None], frame, last_kept)


@settings(max_examples=40, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(1, 9))
def test_the_relative_form_drops_the_most_alike(seed: int, share: float, places: int) -> None:
    before, now = noise(3, places, 4, seed=seed), noise(3, places, 4, seed=seed + 1)
    keep = keep_mask(before, now, share, absolute=False)
    assert ((~keep).sum(-1) == int(places * share)).all()
    cosine = torch.nn.functional.cosine_similarity(before, now, dim=-1)
    for values, kept in zip(cosine, keep, strict=True):
        if kept.any() and not kept.all():
            assert values[kept].max() <= values[~kept].min()
    difference = (before - now).abs().mean(-1)
    keep = keep_pixel_mask(before, now, share, absolute=False)
    assert ((~keep).sum(-1) == int(places * share)).all()
    for values, kept in zip(difference, keep, strict=True):
        if kept.any() and not kept.all():
            assert values[kept].min() >= values[~kept].max()


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_of_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        keep_mask(noise(2, 3), noise(2, 3), share, absolute=False)


def test_the_edge_of_a_threshold_is_kept() -> None:
    """Feature: dropped only above it; pixel: dropped only below it."""
    half = torch.tensor([[1.0, 0.0]])
    assert keep_mask(half, half, 1.0).all()
    assert keep_pixel_mask(torch.zeros(1, 2), torch.full((1, 2), 0.25), 0.25).all()


def test_squares_are_cut_row_by_row_with_all_channels() -> None:
    image = torch.arange(3 * 4 * 6).reshape(1, 3, 4, 6)
    squares = pixel_patches(image, 2)
    assert squares.shape == (1, 6, 12)
    assert torch.equal(squares[0, 1].reshape(3, 2, 2), image[0, :, 0:2, 2:4])
    assert torch.equal(squares[0, 3].reshape(3, 2, 2), image[0, :, 2:4, 0:2])
    with pytest.raises(ValueError, match="multiples of 4"):
        pixel_patches(image, 4)


def test_another_number_of_tokens_begins_anew() -> None:
    drop = TokenDrop(0.5)
    frame = noise(4, 6)
    assert (drop.drop_ratio, drop.surprise) == (0.0, 0.0)
    assert drop(frame).all() and drop.surprise == 2.0 and drop.drop_ratio == 0.0
    assert not drop(frame).any() and drop.drop_ratio == 1.0
    assert drop.surprise == pytest.approx(0.0, abs=1e-6)
    assert drop(frame[:3]).all()
    assert drop(frame).all()
    drop.reset()
    assert drop(frame).all()


def test_restart_goes_on_bit_for_bit() -> None:
    stream = noise(30, 5, 8).cumsum(0)
    whole, first, second = TokenDrop(0.9), TokenDrop(0.9), TokenDrop(0.9)
    expected = [whole(frame) for frame in stream]
    for frame in stream[:11]:
        first(frame)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert (second.drop_ratio, second.surprise) == (first.drop_ratio, first.surprise)
    for frame, keep in zip(stream[11:], expected[11:], strict=True):
        assert torch.equal(second(frame), keep)
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in second.state_dict().items())


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    drop = TokenDrop(0.9)
    drop(noise(3, 4))
    state = drop.state_dict()
    broken = [{k: v for k, v in state.items() if k != name} for name in state]
    for bad in [*broken, state | {"similarity": torch.zeros(2)}]:
        with pytest.raises(ValueError):
            drop.load_state_dict(bad)
        assert all(torch.equal(v, state[k]) for k, v in drop.state_dict().items())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_frame_that_is_not_finite_is_refused_and_changes_nothing(value: float) -> None:
    drop = TokenDrop(0.9)
    drop(noise(3, 4))
    before = drop.state_dict()
    bad = noise(3, 4)
    bad[1, 2] = value
    for frame in (bad, noise(3), noise(0, 4)):
        with pytest.raises(ValueError):
            drop(frame)
        assert all(torch.equal(v, before[k]) for k, v in drop.state_dict().items())


def test_what_was_handed_over_may_be_changed_afterwards() -> None:
    drop, frame = TokenDrop(0.9), noise(3, 4)
    drop(frame)
    given = frame.clone()
    frame.zero_()
    assert not drop(given).any()
    state = drop.state_dict()
    state["reference"].zero_()
    assert not drop(given).any()


@pytest.mark.parametrize("wrong", [{"threshold": 1.5}, {"reference": "first"}])
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError):
        TokenDrop(**wrong)
