"""Train a reader of banks, or the network without one, and ask them.

One reader serves all policies of a family: it learns from banks of ours and of all the others in
equal parts, so none is read by a stranger. Delays are 0, 8 and 32 frames in training, up to 512 in
the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from episodes import TRAIN_DELAYS, Data
from model import Answer, FrameGRU, Reader
from policies import ALL_FRAMES, POLICIES, Banks, fill, tokens_of
from torch import Tensor

__all__ = ["Effort", "Frames", "ask", "ask_gru", "train_gru", "train_reader"]

OURS_TOO = ("novelty", "fine novelty", "place-keyed")  # half of the banks that are trained on


@dataclass(frozen=True)
class Effort:
    """How long is trained.

    Args:
        episodes: Of training.
        epochs: Of the reader.
        gru_epochs: Of the network without a bank.
        batch: Episodes a step.
        rate: Highest learning rate.
    """

    episodes: int = 1000
    epochs: int = 12
    gru_epochs: int = 12
    batch: int = 32
    rate: float = 4e-3


@dataclass
class Frames:
    """A family's frames and labels as tensors on a device."""

    data: Data
    device: torch.device

    def __post_init__(self) -> None:
        episodes = self.data.episodes
        self.tokens_cpu = tokens_of(self.data)
        self.tokens = self.tokens_cpu.to(self.device)
        self.positions = torch.from_numpy(self.data.positions).to(self.device)
        self.query = torch.tensor([e.content.query for e in episodes]).to(self.device)
        self.answer = torch.tensor([e.content.answer for e in episodes]).to(self.device)
        self.xyz = torch.tensor(np.stack([e.xyz for e in episodes])).float().to(self.device)

    def fill(self, policy: str, numbers: np.ndarray, delays: np.ndarray, seed: int = 0) -> Banks:
        """See `policies.fill`."""
        return fill(self.data, self.tokens_cpu, policy, numbers, delays, seed)

    def read(self, reader: Reader, shots: Tensor, query: Tensor, blank: bool = False) -> Answer:
        """Let a reader answer from frames `(B, V)`, -1 where there is none."""
        shots = shots.to(self.device)
        shots = shots[:, : int((shots >= 0).sum(1).max())]
        tokens = self.tokens[shots.clamp(min=0)]
        positions = self.positions[shots.clamp(min=0)]
        if blank:  # where cells lie tells a little of what stands there
            tokens, positions = torch.zeros_like(tokens), torch.zeros_like(positions)
        return reader(tokens, positions, shots >= 0, query)


def _steps(
    model: torch.nn.Module, effort: Effort, epochs: int, count: int, seed: int
) -> Iterator[np.ndarray]:
    """Batches of episode numbers; a step is taken with the gradients the caller leaves."""
    rng = np.random.default_rng([seed, 21])
    optimiser = torch.optim.AdamW(model.parameters(), effort.rate, weight_decay=1e-2)
    total = epochs * -(-count // effort.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, effort.rate, total, pct_start=0.2)
    for _ in range(epochs):
        order = rng.permutation(count)
        for start in range(0, count, effort.batch):
            optimiser.zero_grad(set_to_none=True)
            yield order[start : start + effort.batch]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()


def train_reader(frames: Frames, effort: Effort, seed: int) -> Reader:
    """Train on a mixture of banks: each episode has one of ours and one of another policy."""
    rng = np.random.default_rng([seed, 22])
    count = len(frames.data.episodes)
    delays = rng.choice(TRAIN_DELAYS, count)
    others = [name for name in POLICIES if name not in OURS_TOO]
    banks = []
    for names in (OURS_TOO, others):
        dealt = rng.integers(len(names), size=count)
        shots = torch.full((count, frames.data.family.views), -1)
        for i, name in enumerate(names):
            numbers = np.flatnonzero(dealt == i)
            if len(numbers):
                held = frames.fill(name, numbers, delays[numbers], seed).shots
                shots[numbers, : held.shape[1]] = held
        banks.append(shots)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Reader(frames.data.family.answers).to(frames.device)
    for numbers in _steps(reader, effort, effort.epochs, count, seed):
        picked = rng.integers(2, size=len(numbers))
        shots = torch.stack([banks[p][n] for p, n in zip(picked, numbers, strict=True)])
        answer = frames.read(reader, shots, frames.query[numbers])
        answer.loss(frames.answer[numbers], frames.xyz[numbers]).backward()
    return reader.eval()


@torch.no_grad()
def _watch(frames: Frames, reader: Reader, shots: Tensor, numbers: np.ndarray) -> Tensor:
    """What a reader sees in every frame `(E, T)`: maps and gates, `(E, T, H * (M + 1))`."""
    parts = []
    for i, row in zip(numbers.tolist(), shots.clamp(min=0).to(frames.device), strict=True):
        unique, back = row.unique(return_inverse=True)
        heat, gate = reader.maps(
            frames.tokens[unique][None], frames.positions[unique][None], frames.query[i : i + 1]
        )
        parts.append(torch.cat([heat, gate.sigmoid()[..., None]], 3)[0, back].flatten(1))
    return torch.stack(parts)


def train_gru(frames: Frames, reader: Reader, effort: Effort, seed: int) -> FrameGRU:
    """Train the network without a bank on every frame, as a trained reader sees them."""
    rng = np.random.default_rng([seed, 23])
    count = len(frames.data.episodes)
    every = np.arange(count)
    shots = frames.fill(ALL_FRAMES, every, rng.choice(TRAIN_DELAYS, count)).shots
    maps = _watch(frames, reader, shots, every).half()
    lengths = (shots >= 0).sum(1).to(frames.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FrameGRU(frames.data.family.answers).to(frames.device)
    for numbers in _steps(model, effort, effort.gru_epochs, count, seed):
        answer = model(maps[numbers].float(), lengths[numbers])
        answer.loss(frames.answer[numbers], frames.xyz[numbers]).backward()
    return model.eval()


@torch.no_grad()
def ask(
    frames: Frames, reader: Reader, shots: Tensor, numbers: np.ndarray, blank: bool = False
) -> Answer:
    """Answers of a reader from banks `(E, V)` of the episodes `numbers`; `blank` zeroes them."""
    batch = max(1, 512 // shots.shape[1])
    parts = [
        frames.read(reader, shots[i : i + batch], frames.query[numbers[i : i + batch]], blank)
        for i in range(0, len(numbers), batch)
    ]
    return Answer(*map(torch.cat, zip(*parts, strict=True)))


@torch.no_grad()
def ask_gru(
    frames: Frames, reader: Reader, model: FrameGRU, shots: Tensor, numbers: np.ndarray
) -> Answer:
    """Answers of the network without a bank after all frames `(E, T)`."""
    parts = []
    for i in range(0, len(numbers), 16):
        part = shots[i : i + 16]
        lengths = (part >= 0).sum(1).to(frames.device)
        parts.append(model(_watch(frames, reader, part, numbers[i : i + 16]), lengths))
    return Answer(*map(torch.cat, zip(*parts, strict=True)))
