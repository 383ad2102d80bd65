"""Encoders from the Hugging Face hub: SigLIP, SigLIP 2 and CLIP through transformers.

Sources: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
(CLIP), 2021 (https://arxiv.org/abs/2103.00020); Zhai et al., "Sigmoid Loss for Language Image
Pre-Training" (SigLIP), 2023 (https://arxiv.org/abs/2303.15343); Tschannen et al., "SigLIP 2", 2025
(https://arxiv.org/abs/2502.14786).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor

from vismem.checkpoint import best_device, find_checkpoint, first_line, weights_sha256
from vismem.encoders.base import Encoding, Query, cell_centres, pool_map
from vismem.errors import UsageError, require

__all__ = ["NULL_PROMPTS", "SHORT_NAMES", "HubEncoder"]

SHORT_NAMES = {
    "siglip2": "google/siglip2-base-patch16-224",
    "clip": "openai/clip-vit-base-patch32",
}
FAMILIES = ("siglip", "siglip2", "clip")
INSTEAD = "use --encoder embedded"

# What a CLIP query has to beat: sentences that fit any picture. Changing them changes what
# `HubEncoder.probability` means, so they are part of the identity.
NULL_PROMPTS = (
    "a photo",
    "a picture of something",
    "an indoor scene",
    "an outdoor scene",
    "a room with furniture",
    "a street with buildings",
    "a landscape with sky",
    "a close-up of an object",
    "a blurry picture",
    "an empty background",
)


class HubEncoder:
    """A dual encoder of the hub behind the encoder protocol.

    CLIP's processor crops the centre square, so a CLIP encoder sees nothing at the sides of a wide
    picture, and the positions of its tokens say so. SigLIP sees the whole picture.

    Args:
        name: ``"siglip2"``, ``"clip"``, any SigLIP, SigLIP 2 or CLIP model of the hub, or a folder
            that ``save_pretrained`` wrote.
        device: Where the model runs; CUDA if there is one, else MPS, else the CPU by default. What
            comes out lies on the CPU always.
        dtype: Number format of the model; float16 on CUDA and float32 elsewhere by default.
        revision: Commit, tag or branch of the hub's repository.
        max_tokens: Tokens of a picture; a finer grid of patches is averaged down to this many.

    Attributes:
        identity: Model, revision, sha256 of the weights' files and configuration.
        label_names: Empty; the models name nothing.

    Raises:
        UsageError: If transformers is not installed, or the name is no model of these families.
        SourceError: If the hub cannot be reached and the model is not in its local cache.

    Example:
        >>> encoder = HubEncoder("siglip2")  # doctest: +SKIP
        >>> frame = np.zeros((360, 640, 3), np.uint8)  # doctest: +SKIP
        >>> encoder.probability(  # doctest: +SKIP
        ...     encoder.query("a dog"), encoder.encode([frame])[0].embedding[None]
        ... )
        tensor([0.0001])
    """

    label_names: Sequence[str] = ()
    things = 0

    def __init__(
        self,
        name: str,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        max_tokens: int = 64,
    ) -> None:
        if max_tokens < 1:
            raise UsageError(f"max_tokens must be 1 or more, not {max_tokens}")
        transformers = require("transformers", extra="hub")
        name = SHORT_NAMES.get(name, name)
        folder, commit = find_checkpoint(name, revision, instead=INSTEAD)
        self.device = torch.device(device) if device is not None else best_device()
        default = torch.float16 if self.device.type == "cuda" else torch.float32
        try:
            config = transformers.AutoConfig.from_pretrained(folder)
            if config.model_type not in FAMILIES:
                raise ValueError(f"it is a {config.model_type} model, not {' or '.join(FAMILIES)}")
            self._images = transformers.AutoImageProcessor.from_pretrained(folder)
            self._words = transformers.AutoTokenizer.from_pretrained(folder)
            model, loaded = transformers.AutoModel.from_pretrained(
                folder, dtype=dtype or default, output_loading_info=True
            )
            if missing := sorted(loaded["missing_keys"]):  # transformers would draw them at random
                raise ValueError(f"its weights lack {missing[0]} and {len(missing) - 1} more")
        except (ImportError, KeyError, OSError, RuntimeError, SafetensorError, ValueError) as error:
            raise UsageError(
                f"{name} cannot be loaded: {first_line(error)}; name another model or {INSTEAD}"
            ) from error
        self._model = model.to(self.device).eval().requires_grad_(False)
        self._config = config
        self.max_tokens = max_tokens
        self.token_dim = int(config.vision_config.hidden_size)
        self.identity = {
            "model": name if folder != Path(name) else folder.resolve().name,
            "revision": commit,
            "weights": weights_sha256(folder),
            "config": f"{config.model_type}, tokens {max_tokens}, rule 1",
        }
        self._nulls = self._read(NULL_PROMPTS) if config.model_type == "clip" else None
        self.embedding_dim = len(self._read(["a photo"])[0])

    @torch.no_grad()
    def encode(self, images: Sequence[np.ndarray]) -> list[Encoding]:
        """Encode pictures in one batch.

        Args:
            images: Pictures of any sizes, each ``(H, W, 3)`` uint8 RGB.

        Returns:
            An encoding for each: patch tokens of the last layer, averaged to at most ``max_tokens``
            cells, and the picture's vector; no detail and no labels.
        """
        if not images:
            return []
        planes = [torch.from_numpy(np.ascontiguousarray(i)).permute(2, 0, 1) for i in images]
        inputs = self._images(planes, return_tensors="pt", input_data_format="channels_first")
        inputs = inputs.to(self.device)
        pixels = inputs["pixel_values"].to(self._model.dtype)
        if "spatial_shapes" in inputs:  # patches of the picture's own shape (NaFlex), padded
            shapes = inputs["spatial_shapes"]
            seen = self._model.vision_model(pixels, inputs["pixel_attention_mask"], shapes)
            grids = [(int(rows), int(columns)) for rows, columns in shapes.tolist()]
        else:
            seen = self._model.vision_model(pixels)
            patch = self._config.vision_config.patch_size
            grids = [(pixels.shape[-2] // patch, pixels.shape[-1] // patch)] * len(images)
        vectors, hidden = seen.pooler_output, seen.last_hidden_state
        if self._config.model_type == "clip":
            vectors = self._model.visual_projection(vectors)
            hidden = hidden[:, 1:]  # the class token has no place in the picture
        vectors = F.normalize(vectors.float(), dim=-1).cpu()
        found = []
        for image, grid, tokens, vector in zip(images, grids, hidden.float(), vectors, strict=True):
            patches = rearrange(tokens[: grid[0] * grid[1]], "(h w) d -> d h w", h=grid[0])
            pooled, cells = pool_map(patches, self.max_tokens)
            positions = cell_centres(*cells, *self._visible(*image.shape[:2]))
            found.append(Encoding(pooled.half().cpu(), positions, vector))
        return found

    @torch.no_grad()
    def query(self, text: str) -> Query:
        """Read a sentence, as it is: no prompt is put around it."""
        return Query(text, self._read([text])[0])

    @torch.no_grad()
    def probability(self, query: Query, embeddings: Tensor) -> Tensor:
        """How likely each picture shows what is asked.

        SigLIP is trained on this very question: ``sigmoid(scale * cosine + bias)``. CLIP is trained
        to rank and has no absolute score: its figure is the share of the query in a softmax against
        `NULL_PROMPTS`, which orders pictures well and is calibrated only roughly.

        Args:
            query: What `query` returned.
            embeddings: Pictures, ``(M, E)``, unit length.

        Returns:
            Probabilities, ``(M,)`` float32.
        """
        embeddings = embeddings.float()
        cosines = embeddings @ query.vector.to(embeddings.device)
        scale = self._model.logit_scale.float().exp().to(embeddings.device)
        if self._nulls is None:
            bias = self._model.logit_bias.float().to(embeddings.device)
            return torch.sigmoid(scale * cosines + bias)
        nulls = embeddings @ self._nulls.to(embeddings.device).T
        return (scale * torch.cat([cosines[:, None], nulls], 1)).softmax(-1)[:, 0]

    @torch.no_grad()
    def _read(self, texts: Sequence[str]) -> Tensor:
        """Vectors of sentences, ``(T, E)`` float32, unit length."""
        length = self._config.text_config.max_position_embeddings
        options: dict[str, Any] = {"max_length": length, "padding": "max_length"}
        options |= {"truncation": True, "return_tensors": "pt"}
        if self._config.model_type == "clip":
            inputs = self._words(list(texts), **options).to(self.device)
            read = self._model.text_model(inputs["input_ids"], inputs["attention_mask"])
            vectors = self._model.text_projection(read.pooler_output)
        else:
            # SigLIP was trained on lower case and attends to its padding, so no mask is given.
            inputs = self._words([text.lower() for text in texts], **options).to(self.device)
            vectors = self._model.text_model(inputs["input_ids"]).pooler_output
        return F.normalize(vectors.float(), dim=-1).cpu()

    def _visible(self, height: int, width: int) -> tuple[float, float]:
        """Shares of a picture's height and width that the processor leaves of it."""
        if not getattr(self._images, "do_center_crop", False):
            return 1.0, 1.0
        size, crop = self._images.size, self._images.crop_size
        edge = size.get("shortest_edge")
        scale = edge / min(height, width) if edge else None
        high = height * scale if scale else size["height"]
        wide = width * scale if scale else size["width"]
        return min(1.0, crop["height"] / high), min(1.0, crop["width"] / wide)
