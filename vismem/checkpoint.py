"""Where a model of the Hugging Face hub lies on this machine, and what tells it from others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from vismem.errors import SourceError, UsageError, require

__all__ = ["best_device", "find_checkpoint", "first_line", "weights_sha256"]

CONFIGURATION = ("*.json", "*.txt", "*.model", "*.jinja")
HUB_TIMEOUT = 5.0  # seconds that the hub may take to answer before the local cache is used


def find_checkpoint(
    name: str, revision: str | None = None, *, instead: str, extra: str = "hub"
) -> tuple[Path, str]:
    """The folder that holds a model, from the hub if need be, and its commit.

    Args:
        name: Of the hub's repository, or a folder.
        revision: Commit, tag or branch of the repository.
        instead: What a user can do without the hub; ends the errors.
        extra: The extra of vismem that brings the hub's client.

    Raises:
        UsageError: If the name is no model, or the client is not installed.
        SourceError: If the hub cannot be reached and the model is not in its local cache.
    """
    if Path(name).is_dir():
        return Path(name), "local"
    hub = require("huggingface_hub", extra=extra)
    errors = hub.errors

    def fetch(patterns: Sequence[str]) -> Path:
        # Answers from the local cache by itself where the hub is out of reach or offline is set.
        return Path(
            hub.snapshot_download(
                name, revision=revision, allow_patterns=list(patterns), etag_timeout=HUB_TIMEOUT
            )
        )

    try:
        folder = fetch([*CONFIGURATION, "model*.safetensors"])
        if not _weights(folder):
            folder = fetch([*CONFIGURATION, "pytorch_model*.bin"])  # repositories of before 2023
    except (
        errors.HFValidationError,
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
    ) as error:
        raise UsageError(
            f"{name} is neither a folder nor a model that the hub gives out "
            f"({first_line(error)}); check name and revision, or {instead}"
        ) from error
    except Exception as error:  # every version of the hub's client fails in its own ways
        raise SourceError(
            f"the hub cannot be reached and {name} is not in its local cache "
            f"({first_line(error)}); {instead}, which needs no hub, or name a folder that "
            "holds the model"
        ) from error
    if not _weights(folder):
        raise SourceError(
            f"the local cache of {name} holds no weights; reach the hub once to complete it, or "
            f"{instead}, which needs no hub"
        )
    return folder, folder.name


def _weights(folder: Path) -> list[Path]:
    """The files of weights that transformers would load."""
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def weights_sha256(folder: Path) -> str:
    """Digest of the weights: of the file as the hub shows it, or of all parts in order."""
    digest = hashlib.sha256()
    for path in _weights(folder):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def best_device() -> torch.device:
    """CUDA, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def first_line(error: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
