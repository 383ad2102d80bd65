"""The small keyframe policy: it learns a task that only memory solves, with any bank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scattered import noise
from torch import Tensor

from vismem.memory.spatial import SpatialConfig, SpatialMemory
from vismem.models.keyframe_policy import (
    ConvexUpsampler,
    KeyframePolicy,
    PolicyConfig,
    peak_signal,
)
from vismem.models.waypoint import heat_loss, heat_target, orthographic_pixels, waypoint

SMALL = PolicyConfig(size=(16, 24), dim=16, memory_dim=8, ages=4, keyframe_seconds=0.5)


def policy(config: PolicyConfig = SMALL) -> KeyframePolicy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return KeyframePolicy(config).eval()


def bank(policy_name: str, **how: Any) -> SpatialMemory:
    config = SpatialConfig(
        token_dim=8, max_tokens=18, policy=policy_name, dtype="float32", novelty=0.0, **how
    )  # type: ignore[arg-type]
    return SpatialMemory("1MB", config)


# --------------------------------------------------------------------------- learning

SIDE = (32, 32)
SLOTS = torch.cat(
    [torch.cartesian_prod(*[torch.tensor([-0.6, 0.0, 0.6])] * 2), torch.full((9, 1), -0.5)], 1
)


def episodes(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A block is seen once, in one of nine places; then it is gone, and is to be put back twice.

    Returns:
        Pictures ``(count, 3, 3, 3, H, W)``, the pixels ``(count, 3, 2)`` and number of the place.
    """
    generator = torch.Generator().manual_seed(seed)
    place = torch.randint(9, (count,), generator=generator)
    pixels = orthographic_pixels(SLOTS[place], SIDE).transpose(0, 1)
    pictures = 0.1 * torch.rand(count, 3, 3, 3, *SIDE, generator=generator)
    pictures[:, 0, :, 0] += 25 * heat_target(pixels, SIDE, 2.0)
    return pictures, pixels, place


def trained(last: int | None, steps: int = 100) -> KeyframePolicy:
    made = policy(PolicyConfig(size=SIDE)).train()
    optimizer = torch.optim.AdamW(made.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-3, total_steps=steps, pct_start=0.1
    )
    for step in range(steps):
        pictures, pixels, _ = episodes(16, 1000 + step)
        loss = heat_loss(made(pictures, last=last), pixels[:, None].expand(-1, 3, -1, -1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return made.eval()


def reached(heat: Tensor, place: Tensor) -> list[float]:
    """The share of episodes in which each step goes to the right place; chance is a ninth."""
    pixels = orthographic_pixels(SLOTS, SIDE)
    shares = []
    for step in heat.unbind(1):
        there = waypoint(step.flatten(2).softmax(2).view_as(step), SLOTS, pixels)
        shares.append((there == SLOTS[place]).all(1).float().mean().item())
    return shares


@pytest.mark.slow
def test_learns_to_go_where_the_block_was() -> None:
    """With its memory; without, it finds what it sees and guesses what it saw. Foreign memory too.

    About 30 seconds on one core with memory, 20 without.
    """
    pictures, _, place = episodes(128, 7)
    made, twin = trained(None), trained(0)
    assert sum(p.numel() for p in made.parameters()) == pytest.approx(1e6, rel=0.15)
    with torch.no_grad():
        own = reached(made(pictures), place)
        none = reached(twin(pictures, last=0), place)
        foreign = pictures.clone()
        foreign[:, 0] = pictures[:, 0].roll(1, 0)
        other = reached(made(foreign), place)[1:]
        banks = [bank_of(made, one) for one in pictures[:16]]
    assert min(own) > 0.95
    assert none[0] > 0.95 and max(none[1:]) < 0.3
    assert max(other) < 0.3
    assert reached(torch.stack(banks)[:, None], place[:16])[0] > 0.9


def bank_of(made: KeyframePolicy, pictures: Tensor) -> Tensor:
    """The last heat map of an episode that went through a bank of half precision."""
    kept = SpatialMemory("1MB", SpatialConfig(token_dim=64, max_tokens=48))
    for step, seen in enumerate(pictures):
        heat = made.act(seen, kept, float(step)).heat
    return heat


# --------------------------------------------------------------------------- a stream


@pytest.mark.parametrize("last", [1, 2, 5])
def test_a_stream_through_a_bank_is_the_sequence(last: int) -> None:
    """The last few keyframes of a bank, step by step, against a sequence at once."""
    made, pictures = policy(), noise(1, 5, 3, 3, 16, 24)
    kept = bank("fifo", max_views=last)
    with torch.no_grad():
        expected = made(pictures, last=last)
        for step in range(5):
            action = made.act(pictures[0, step], kept, 10 + step * 0.5)
            assert action.kept == min(step, last)
            torch.testing.assert_close(action.heat, expected[0, step], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(made(pictures, last=0)[0, 4], expected[0, 4], atol=1e-5)


@pytest.mark.parametrize("name", ["novelty", "first_last", "reservoir"])
def test_any_keyframes_may_be_kept(name: str) -> None:
    made, kept = policy(), bank(name, max_views=3)
    for step in range(12):
        action = made.act(noise(3, 3, 16, 24, seed=step), kept, step * 0.5, prompted=step == 0)
        assert action.heat.isfinite().all() and action.kept == min(step, 3)
    views = kept.snapshot().views()
    assert views[0].grid == (6, 3) and views[0].tokens.shape == (18, 8)


def test_ages_are_powers_of_two() -> None:
    """Rows for 1, 2, 4 and 8 keyframes ago; what is older shares the last."""
    made, x, tokens = policy(), noise(1, 3, 6, 16), noise(1, 3, 6, 8)

    def read(*ages: float) -> Tensor:
        with torch.no_grad():
            return made.read(x, [tokens] * len(ages), ages)

    with torch.no_grad():
        made.temporal.mul_(30)
    rows = [read(age) for age in (1, 2, 4, 8)]
    assert not any(torch.allclose(a, b) for a, b in zip(rows, rows[1:], strict=False))
    for age, row in {1.2: 0, 1.6: 1, 2.5: 1, 3: 2, 5: 2, 6: 3, 100: 3, 0.2: 0}.items():
        assert torch.equal(read(age), rows[row])
    torch.testing.assert_close(read(1, 4), read(4, 1))


# --------------------------------------------------------------------------- repairs


def test_the_first_keyframe_takes_the_same_way() -> None:
    """It attends to the token that stands for nothing, and is normalised as all others."""
    made, x = policy(), noise(1, 3, 6, 16)
    with torch.no_grad():
        seen = made.read(x, [], [])
        assert seen.mean(-1).abs().max() < 1e-5 and not torch.allclose(seen, x)
        made.nothing.add_(3)
        assert not torch.allclose(made.read(x, [], []), seen)


def test_a_constant_in_a_heat_map_is_not_remembered() -> None:
    made, x, heat = policy(), noise(1, 3, 6, 16), 5 * noise(1, 3, 16, 24)
    with torch.no_grad():
        one, two = (made.write(x, heat + c) for c in (0, 5))
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(made.write(x, 2 * heat), one, atol=1e-5)
    signal = peak_signal(heat)
    assert signal.amax((2, 3)).eq(10).all() and signal.min() >= -10


def test_views_look_across_but_remember_apart() -> None:
    made, x, kept = policy(), noise(1, 3, 6, 16), noise(1, 3, 6, 8)
    other = kept.clone()
    other[:, 1] += 1
    with torch.no_grad():
        one, two = (made.read(x, [tokens], [1]) for tokens in (kept, other))
        assert torch.equal(one[:, [0, 2]], two[:, [0, 2]])
        assert not torch.allclose(one[:, 1], two[:, 1])
        pictures = noise(1, 3, 3, 16, 24)
        changed = pictures.clone()
        changed[:, 2] += 1
        assert not torch.allclose(made.encode(pictures)[:, 0], made.encode(changed)[:, 0])


def test_gradients_flow_through_the_memory() -> None:
    made, pictures = policy().train(), noise(1, 3, 3, 3, 16, 24).requires_grad_()
    made(pictures)[:, 2].square().sum().backward()
    assert pictures.grad is not None
    assert (pictures.grad.abs().sum((0, 2, 3, 4, 5)) > 0).all()
    missing = [name for name, p in made.named_parameters() if p.grad is None]
    assert not missing


def test_pixels_are_means_of_the_coarse_ones_around() -> None:
    """All weight on the middle is each pixel larger; on a corner, the one beside."""
    made = ConvexUpsampler(4, 2)
    with torch.no_grad():
        made.weight.weight.zero_()
        made.weight.bias.zero_()
        bias = made.weight.bias.view(9, 2, 2)
        bias[4] = 1e4
        bias[4, 1, 0], bias[0, 1, 0] = 0, 1e4
        x = noise(2, 4, 3, 5)
        coarse = made.value(F.gelu(made.mix(x)))[:, 0]
        fine = made(x)
        shifted = F.pad(coarse[:, None], (1, 0, 1, 0), "replicate")[:, 0, :-1, :-1]
        torch.testing.assert_close(fine[:, ::2, ::2], coarse)
        torch.testing.assert_close(fine[:, ::2, 1::2], coarse)
        torch.testing.assert_close(fine[:, 1::2, 1::2], coarse)
        torch.testing.assert_close(fine[:, 1::2, ::2], shifted)


def test_context_is_told() -> None:
    made = policy(PolicyConfig(size=(16, 24), dim=16, memory_dim=8, context=2))
    pictures = noise(1, 2, 3, 3, 16, 24)
    with torch.no_grad():
        one, two = (made(pictures, noise(1, 2, 2, seed=s)) for s in (1, 2))
        assert not torch.allclose(one, two)
        made.act(pictures[0, 0], bank("fifo"), 0.0, context=noise(2))
    with pytest.raises(ValueError, match=r"context must be \(1, 2\), not None"):
        made.encode(pictures[:, 0])


def test_refuses_what_does_not_fit() -> None:
    made, x = policy(), noise(1, 3, 6, 16)
    with pytest.raises(ValueError, match=r"\(B, 3, 3, 16, 24\)"):
        made.encode(noise(1, 3, 3, 24, 16))
    with pytest.raises(ValueError, match=r"context must be"):
        made.encode(noise(1, 3, 3, 16, 24), noise(1, 2))
    for ages in ([], [0.0], [-1.0], [float("nan")], [1, 2]):
        with pytest.raises(ValueError, match="ages above 0"):
            made.read(x, [noise(1, 3, 6, 8)], ages)
    wrong: list[dict[str, Any]] = [
        {"patch": 6}, {"patch": 1}, {"size": (20, 24)}, {"dim": 18}, {"memory_dim": 6}, {"ages": 0},
        {"keyframe_seconds": 0.0},
    ]  # fmt: skip
    for one in wrong:
        with pytest.raises(ValueError):
            PolicyConfig(**one)
