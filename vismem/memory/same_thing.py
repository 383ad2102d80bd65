"""Which thing of a frame is which of those held: by volume, and of what moved by look alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vismem.memory.assignment import assign
from vismem.memory.remembered import ObjectConfig, likeness
from vismem.memory.volumes import OCCLUDED, PRESENT, THROUGH, inside, overlap
from vismem.sightings import Sightings

__all__ = ["Pairs", "find_replaced", "match", "new_things", "only_fit"]

FAR = 1e6  # cost of a pair that is none
Held = Mapping[str, Tensor]  # columns of `ObjectConfig`


@dataclass(frozen=True, slots=True)
class Pairs:
    """Which of a frame's things are which of those held; rows and things ``(P,)`` int64."""

    rows: Tensor
    things: Tensor


def match(held: Held, seen: Sightings, config: ObjectConfig) -> Pairs:
    """Pair things with what takes up the same volume, at the least distance in all."""
    place = held["position"]
    apart = torch.cdist(seen.position, place)
    shared = overlap(
        seen.position, seen.extent.double(), place, held["extent"].double(), config.pad
    )
    alike = likeness(seen.look, held["looks"])
    possible = (apart <= config.near) & (shared >= config.overlap) & (alike >= config.alike)
    rows = torch.nonzero(possible.any(0))[:, 0]
    costs = torch.where(possible, apart + 0.1 * (1 - alike), FAR)[:, rows]
    things, columns = (torch.from_numpy(part) for part in assign(costs.double().numpy()))
    good = possible[things, rows[columns]]
    return Pairs(rows[columns][good], things[good])


def find_replaced(
    told: Tensor, pairs: Pairs, held: Held, seen: Sightings, config: ObjectConfig
) -> None:
    """Tell, in ``told``, where something else stands: large enough to hide a thing, or instead."""
    size, place = held["extent"].double(), held["position"]
    own = inside(place, size, seen.position, seen.extent.double())
    own[pairs.rows] = 0
    theirs = inside(seen.position, seen.extent.double(), place, size).T
    # A neighbour that was known beside it did not take its place.
    since = torch.full((len(seen),), torch.inf, dtype=torch.float64)
    since[pairs.things] = held["first"][pairs.rows]
    theirs = theirs.masked_fill(since <= held["last"][:, None], 0)
    other = likeness(seen.look, held["looks"]).T < config.alike
    hidden = (own >= 0.5).any(1) & (told == PRESENT)
    taken = ((theirs >= 0.5) & (own < 0.5) & other).any(1) & (told == PRESENT)
    told[hidden] = OCCLUDED
    told[taken & ~hidden] = THROUGH


def new_things(pairs: Pairs, held: Held, seen: Sightings, config: ObjectConfig) -> Tensor:
    """Give things that are none of those held, nor a part of one that was matched already."""
    new = torch.ones(len(seen), dtype=torch.bool)
    new[pairs.things] = False
    place, size = held["position"][pairs.rows], held["extent"][pairs.rows].double()
    part = inside(seen.position, seen.extent.double(), place, size)
    same = likeness(seen.look, held["looks"][pairs.rows]) >= config.alike
    return torch.nonzero(new & ~((part >= 0.5) & same).any(1))[:, 0]


def only_fit(held: Held, row: int, config: ObjectConfig) -> int:
    """Give the row of the one thing that may be this one at another place.

    Of the two one is gone, and the other was seen only after that; they look alike, are about as
    large, and nothing else comes near.

    Returns:
        -1 if none or several may.
    """
    gone = bool(held["gone"][row])
    fits = held["gone"] != gone
    if gone:
        fits &= held["first"] > held["last"][row]
    else:
        fits &= held["first"][row] > held["last"]
    fits &= held["views"] >= 2
    size = held["extent"].norm(dim=1)
    ratio = size / size[row].clamp_min(1e-6)
    fits &= (ratio <= config.size_ratio) & (ratio >= 1 / config.size_ratio)
    rows = fits.nonzero()[:, 0]
    if not len(rows):
        return -1
    own = held["looks"][row][held["look_count"][row] > 0]
    alike = likeness(own, held["looks"][rows]).amax(0)
    alike -= 0.2 * (held["shape"][rows] - held["shape"][row]).abs().sum(1) / 2
    order = alike.argsort(descending=True, stable=True)
    best = alike[order]
    if best[0] < config.same_look or (len(best) > 1 and best[0] - best[1] < config.margin):
        return -1
    return int(rows[order[0]])
