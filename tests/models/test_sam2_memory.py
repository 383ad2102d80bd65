"""A bank's views around SAM 2's memory: what it would have read itself, and what it never could."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from scattered import noise, scatter
from torch import Tensor

from vismem.memory.published.sam2 import select_memories
from vismem.memory.spatial import SpatialConfig, SpatialMemory
from vismem.memory.views import View
from vismem.models.key_cache import KeyCache
from vismem.models.sam2_memory import HostConfig, MemoryHost, Written
from vismem.models.sam2_names import from_official, from_transformers

GRID = (3, 4)
CELLS = 12
SMALL = HostConfig(dim=16, memory_dim=4, layers=2, hidden=24, frame_seconds=0.1)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def host(**changed: Any) -> MemoryHost:
    made = MemoryHost(dataclasses.replace(SMALL, **changed)).eval()
    scatter(made.parameters(), 0.4)
    return made


def view(frame: int, *, seed: int = 0, pointed: bool = True, prompted: bool = False) -> View:
    """A view of a frame of a tenth of a second."""
    return View(
        time=frame * 0.1, source=frame, tokens=noise(CELLS, 4, seed=100 * seed + frame), grid=GRID,
        positions=None, pose=None, intrinsics=None, signature=torch.zeros(1),
        pointer=noise(16, seed=100 * seed + frame + 50) if pointed else None,
        prompted=prompted, place=None, objects=(), seen=frame * 0.1, weight=1,
    )  # fmt: skip


def features(batch: int = 1) -> Tensor:
    return noise(batch, CELLS, 16, seed=9)


# --------------------------------------------------------------------------- ours


@pytest.mark.parametrize("frame", [1, 4, 7])
def test_views_that_sam2_would_have_read_give_what_it_gives(frame: int) -> None:
    """The prompted frame and a window of recent ones: both ways of reading agree."""
    made = host()
    views = [view(t, prompted=t == 0) for t in range(frame)]
    assert frame <= SMALL.memories
    written = {
        v.source: Written(v.tokens[None], GRID, v.pointer[None])
        for v in views
        if v.pointer is not None
    }
    selection = select_memories(frame, [0], range(1, frame), frames=40)
    with torch.no_grad():
        expected = made.condition_published(features(), selection, written)
        found = made.condition(features(), [views], frame * 0.1, grid=GRID)
        back = made.condition(features(), [views[::-1]], frame * 0.1, grid=GRID)
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(back, expected, **CLOSE)


def test_ages_are_true() -> None:
    """Frames of a tenth of a second: rows by age, then the last but one; prompted the last."""
    made = host()
    views = [view(t, prompted=t == 3) for t in (0, 3, 92, 94, 97, 99)]
    assert made._rows(views, 10.0).tolist() == [5, 6, 5, 5, 2, 0]
    late = dataclasses.replace(views[-1], time=9.95)
    assert made._rows([late], 10.0).tolist() == [0]
    assert made._rows([dataclasses.replace(late, time=9.84)], 10.0).tolist() == [1]


def test_a_pointer_tells_its_age_in_seconds_up_to_an_end() -> None:
    """Far ages are all the same, near ones are not; a moved clock changes nothing."""
    made = host()
    window = 15 * SMALL.frame_seconds
    code = made._ages([1.0, 2.0, 3.2 * window, 1000.0], features())
    assert not torch.allclose(code[0], code[1])
    assert torch.equal(code[2], code[3])
    views = [view(t) for t in (2, 5)]
    moved = [dataclasses.replace(v, time=v.time + 64) for v in views]
    with torch.no_grad():
        one = made.condition(features(), [views], 1.0, grid=GRID)
        other = made.condition(features(), [moved], 65.0, grid=GRID)
        later = made.condition(features(), [views], 2.0, grid=GRID)
    torch.testing.assert_close(other, one, **CLOSE)
    assert not torch.allclose(later, one, **CLOSE)


def objects() -> list[list[View]]:
    """Many views, none, one, some without pointers."""
    return [
        [view(t, prompted=t == 0) for t in (0, 3, 4, 7)],
        [],
        [view(5, seed=1, pointed=False)],
        [view(t, seed=2, pointed=t % 2 == 0) for t in range(6)],
    ]


@pytest.mark.parametrize("shared", [False, True])
def test_objects_together_are_objects_apart(shared: bool) -> None:
    made, x, views = host(), features(1 if shared else 4), objects()
    with torch.no_grad():
        found = made.condition(x, views, 0.8, grid=GRID)
        assert found.shape == (4, CELLS, 16)
        for b, own in enumerate(views):
            one = x if shared else x[b, None]
            alone = made.condition(one, [own], 0.8, grid=GRID)
            torch.testing.assert_close(found[b, None], alone, **CLOSE)
        torch.testing.assert_close(found[1, None], made.start(x[:1] if shared else x[1, None]))


def test_gradients_reach_everything_that_was_learned() -> None:
    made = host().train()
    for module in made.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    tokens = noise(1, 16, *GRID, seed=3)
    logits, score = noise(2, 1, 48, 64, seed=4), torch.tensor([[1.0], [-1.0]])
    written = made.encode(tokens.expand(2, -1, -1, -1), logits, pointer=noise(2, 16), score=score)
    assert written.pointer is not None
    views = [
        [dataclasses.replace(view(t), tokens=written.tokens[t], pointer=written.pointer[t])]
        for t in range(2)
    ]
    made.condition(features(3), [*views, []], 0.5, grid=GRID).square().sum().backward()
    missing = [name for name, p in made.named_parameters() if p.grad is None]
    assert not missing
    assert made.temporal.grad is not None and made.temporal.grad.abs().sum() > 0


# --------------------------------------------------------------------------- kept keys


def test_kept_keys_give_what_new_ones_give() -> None:
    """Read by read while views come and go; no more is held than the last read had."""
    made, cache = host(), KeyCache()
    sizes = []
    with torch.no_grad():
        for now in range(1, 9):
            first = [view(t, prompted=t == 0) for t in range(max(0, now - 4), now)]
            views = [first, [view(t, seed=1) for t in range(0, now, 3)]]
            expected = made.condition(features(), views, now * 0.1, grid=GRID)
            found = made.condition(features(), views, now * 0.1, grid=GRID, cache=cache)
            torch.testing.assert_close(found, expected, **CLOSE)
            assert len(cache) == len(views[0]) + len(views[1])
            sizes.append(cache.nbytes / (len(cache) + SMALL.memories))
    layer = 4 * CELLS * SMALL.dim
    assert set(sizes) == {SMALL.layers * layer}


def test_kept_keys_are_used_and_never_stale() -> None:
    made, cache = host(), KeyCache()
    views = [[view(0), view(1)]]
    calls: list[int] = []
    original = made.attention.keys

    def counted(memory: Tensor, *rest: Any) -> Any:
        calls.append(len(memory))
        return original(memory, *rest)

    made.attention.keys = counted  # type: ignore[method-assign]

    def read(views: list[list[View]], time: float = 0.3) -> Tensor:
        calls.clear()
        with torch.no_grad():
            return made.condition(features(), views, time, grid=GRID, cache=cache)

    read(views)
    assert calls[0] == 2, "both were made"
    first = read(views)
    assert calls == [2], "pointers alone were made"
    assert not torch.allclose(read(views, 5.0), first), "ages are told anew"
    other = [[view(0), dataclasses.replace(view(1), tokens=view(7).tokens)]]
    assert not torch.allclose(read(other), first), "the same number, another view"
    assert calls[0] == 1
    with torch.no_grad():
        made.attention.layers[1].cross_attention.key.weight.mul_(2)
    changed = read(views)
    assert calls[0] == 2
    with torch.no_grad():
        torch.testing.assert_close(
            changed, made.condition(features(), views, 0.3, grid=GRID), **CLOSE
        )
    cache.clear()
    assert cache.nbytes == len(cache) == 0
    with pytest.raises(ValueError, match="no gradients; read under"):
        made.condition(features(), views, 0.3, grid=GRID, cache=cache)


# --------------------------------------------------------------------------- writing, banks


def test_a_bank_keeps_what_is_written() -> None:
    """Through a bank of half precision, as SAM 2 stores; what is read changes by under 1 %."""
    made = host()
    config = SpatialConfig(
        token_dim=4, max_tokens=CELLS, pointer_dim=16, policy="fifo", max_views=3, dtype="bfloat16"
    )
    bank = SpatialMemory("1MB", config)
    exact: list[View] = []
    with torch.no_grad():
        for frame in range(5):
            maps = noise(1, 16, *GRID, seed=frame)
            written = made.encode(maps, noise(1, 1, 12, 16, seed=frame), pointer=noise(1, 16))
            [write] = written.writes()
            bank.write(time=frame * 0.1, prompted=frame == 2, **write)
            full = dataclasses.replace(view(frame), tokens=written.tokens[0])
            exact.append(dataclasses.replace(full, pointer=noise(16), prompted=frame == 2))
        views = bank.snapshot().views()
        assert [v.source for v in views] == [2, 3, 4] and views[0].tokens.dtype == torch.bfloat16
        found = made.condition(features(), [views], 0.5, grid=GRID)
        same = [dataclasses.replace(exact[v.source], pointer=v.pointer) for v in views]
        expected = made.condition(features(), [same], 0.5, grid=GRID)
    assert 0 < (found - expected).norm() / expected.norm() < 1e-2


def test_encode_brings_masks_to_size_and_marks_the_absent() -> None:
    made, maps = host(), noise(2, 16, *GRID)
    logits, pointer = noise(2, 1, 12, 16, seed=1), noise(2, 16, seed=2)
    large = torch.nn.functional.interpolate(logits, (48, 64), mode="bilinear")
    with torch.no_grad():
        plain = made.encode(maps, large)
        score = torch.tensor([[0.5], [0.0]])
        found = made.encode(maps, logits, pointer=pointer, score=score)
        difference = found.tokens - plain.tokens
        bare = host(absent_code=False).encode(maps, logits, pointer=pointer, score=score)
    assert plain.pointer is None and found.pointer is not None
    torch.testing.assert_close(difference[0], torch.zeros(CELLS, 4))
    torch.testing.assert_close(difference[1], made.absent.expand(CELLS, 4), **CLOSE)
    torch.testing.assert_close(found.pointer, torch.stack([pointer[0], made.no_object]))
    assert bare.tokens.shape == found.tokens.shape


def test_without_a_code_of_time_all_pointers_are_alike() -> None:
    """SAM 2.0."""
    made = host(pointer_times=False)
    assert made.pointer_time is None
    assert made._ages([0.1, 3.0], features()).abs().sum() == 0


# --------------------------------------------------------------------------- loading, refusals


def test_loads_a_whole_model_of_transformers() -> None:
    """All that is memory, and nothing else."""
    modeling = pytest.importorskip("transformers.models.sam2_video.modeling_sam2_video")
    from transformers import Sam2VideoConfig

    config = Sam2VideoConfig(
        enable_temporal_pos_encoding_for_object_pointers=True,
        enable_occlusion_spatial_embedding=True,
    )
    with torch.device("meta"):
        theirs = modeling.Sam2VideoModel(config)
    state = {
        name: torch.full(p.shape, float(number % 97)) for number, (name, p) in
        enumerate(theirs.state_dict().items())
    }  # fmt: skip
    ours = MemoryHost()
    ours.load_state_dict(from_transformers(state))
    assert torch.equal(ours.temporal, state["memory_temporal_positional_encoding"].view(7, 64))
    with pytest.raises(ValueError, match="the memory of the published SAM 2"):
        from_official(state)


def test_refuses_what_does_not_fit() -> None:
    made, views = host(), [[view(0), view(1)]]
    for message, arguments in {
        r"one list of views an object": {"x": features(2)},
        r"\(B, 12, 16\)": {"x": features()[:, :6]},
        "view 0 of object 0 has .* write the maps of `encode`": {"grid": (4, 3)},
        "view 1 of object 0 is of 0.1 s, later than now": {"time": 0.05},
        "has a pointer of 3, not 16": {
            "views": [[dataclasses.replace(view(0), pointer=torch.zeros(3))]]
        },
        "must be": {"views": []},
    }.items():
        given = {"x": features(), "views": views, "time": 1.0, "grid": GRID, **arguments}
        with pytest.raises(ValueError, match=message):
            made.condition(**given)
    with pytest.raises(ValueError, match="no memory map is selected"):
        made.gather(select_memories(0, [], [], frames=3), {})
    with pytest.raises(ValueError, match="no whole tokens"):
        HostConfig(dim=18, memory_dim=4)
    with pytest.raises(ValueError, match="2 or more"):
        HostConfig(memories=1)
