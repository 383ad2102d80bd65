from __future__ import annotations

import json

import numpy as np
import pytest
import skimage.data
import torch

from vismem.encoders import lite0, load_encoder, person, sentence
from vismem.encoders.base import Encoder, Encoding
from vismem.encoders.color import COLORS
from vismem.encoders.embedded import EmbeddedEncoder
from vismem.encoders.lexicon import FIRST_COLOR, PERSON
from vismem.encoders.sentence import SentenceEncoder
from vismem.frame import as_rgb
from vismem.memory.episodic import EpisodicConfig, EpisodicMemory


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 255, (height, width, 3), np.uint8)


def same(one: Encoding, other: Encoding) -> bool:
    pairs = [(one.tokens, other.tokens), (one.positions, other.positions)]
    pairs += [(one.embedding, other.embedding), (one.detail, other.detail)]
    pairs += [
        (getattr(one.labels, name), getattr(other.labels, name))
        for name in ("ids", "scores", "boxes", "colors", "counts")
    ]
    return all(torch.equal(a, b) for a, b in pairs)


def names_of(encoder: EmbeddedEncoder, encoding: Encoding, least: float = 0.0) -> set[str]:
    held = encoding.labels
    return {
        encoder.label_names[i]
        for i, score in zip(held.ids.tolist(), held.scores.tolist(), strict=True)
        if score >= least
    }


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 2000), (4000, 3), (2, 2), (31, 700), (640, 360), (360, 640)]
)
def test_pictures_of_any_size(size: tuple[int, int], embedded: EmbeddedEncoder) -> None:
    encoding = embedded.encode([noise(*size)])[0]
    count = len(encoding.tokens)
    assert 1 <= count <= embedded.max_tokens
    assert encoding.tokens.shape == (count, 320) and encoding.tokens.dtype == torch.float16
    assert encoding.positions.shape == (count, 2) and encoding.positions.dtype == torch.float32
    assert encoding.embedding.shape == (384,)
    assert float(encoding.embedding.norm()) == pytest.approx(1.0, abs=1e-4)
    assert encoding.detail.ndim == 2 and encoding.detail.shape[1] == 112
    centres = encoding.positions
    assert 0 < float(centres.min()) and float(centres.max()) < 1
    assert torch.allclose(centres.mean(0), torch.tensor([0.5, 0.5]), atol=1e-5)
    labels = encoding.labels
    rows = len(labels.ids)
    assert len(set(labels.ids.tolist())) == rows <= embedded.labels + 1 + len(COLORS)
    assert labels.scores.shape == labels.counts.shape == (rows,)
    assert labels.boxes.shape == (rows, 4) and labels.colors.shape == (rows, len(COLORS))
    for values in (encoding.tokens, *(getattr(labels, n) for n in ("scores", "boxes", "colors"))):
        assert bool(torch.isfinite(values).all())
    assert bool(((labels.scores >= 0) & (labels.scores <= 1)).all())
    assert bool(((labels.boxes >= 0) & (labels.boxes <= 1)).all())
    assert bool((labels.boxes[:, :2] < labels.boxes[:, 2:]).all())
    assert bool(((labels.colors >= 0) & (labels.colors <= 1 + 1e-5)).all())
    assert labels.counts.dtype == torch.int64 and bool((labels.counts >= 1).all())
    assert 0 <= int(labels.ids.min()) and int(labels.ids.max()) < len(embedded.label_names)
    # And a memory of the sizes that the encoder names takes it.
    memory = EpisodicMemory(EpisodicConfig(320, 384, max_tokens=embedded.max_tokens), "1MB")
    memory.write(encoding.tokens, 0.0, embedding=encoding.embedding, positions=centres)


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 2000), (4000, 3), (640, 360), (1080, 1920), (8, 100_000)]
)
def test_pictures_are_resized_to_about_the_same_area(
    height: int, width: int, embedded: EmbeddedEncoder
) -> None:
    rows, columns = embedded.size(height, width)
    assert rows % 32 == columns % 32 == 0 and rows >= 32 and columns >= 32
    assert 0.75 * embedded.area <= rows * columns <= 1.25 * embedded.area
    if 0.3 < height / width < 3:
        assert rows / columns == pytest.approx(height / width, rel=0.15)


def test_what_is_in_known_photographs(embedded: EmbeddedEncoder) -> None:
    cat, coffee, astronaut = embedded.encode(
        [skimage.data.chelsea(), skimage.data.coffee(), skimage.data.astronaut()]
    )
    assert names_of(embedded, cat, 0.3) & {"Egyptian cat", "tabby", "tiger cat"}
    assert names_of(embedded, coffee, 0.3) & {"espresso", "coffee mug", "cup"}
    held = astronaut.labels
    (row,) = torch.nonzero(held.ids == PERSON)[:, 0].tolist()
    assert float(held.scores[row]) > 0.8
    assert bool(((held.boxes[row, :2] + held.boxes[row, 2:]) / 2 < 0.6).all())  # left of the middle
    assert "person" not in names_of(embedded, cat) | names_of(embedded, coffee)
    # The astronaut's suit.
    assert "orange" in names_of(embedded, astronaut)


def test_one_large_person_is_counted_once(embedded: EmbeddedEncoder) -> None:
    held = embedded.encode([skimage.data.astronaut()])[0].labels
    assert int(held.counts[held.ids == PERSON]) == 1


def test_pictures_one_by_one_are_as_pictures_together(embedded: EmbeddedEncoder) -> None:
    pictures = [skimage.data.chelsea(), noise(40, 90), noise(200, 60)]
    together = embedded.encode(pictures)
    again = [embedded.encode([picture])[0] for picture in pictures]
    assert all(map(same, together, again))
    assert not same(together[0], together[1])
    assert embedded.encode([]) == []


def test_gray_is_encoded_as_its_rgb(embedded: EmbeddedEncoder) -> None:
    gray = skimage.data.camera()
    encoding = embedded.encode([as_rgb(gray)])[0]
    assert same(encoding, embedded.encode([np.stack([gray] * 3, -1)])[0])
    assert not names_of(embedded, encoding) & set(COLORS)


def test_the_picture_is_not_changed(embedded: EmbeddedEncoder) -> None:
    picture = noise(288, 512)  # the size at which nothing is resized
    before = picture.copy()
    picture.setflags(write=False)
    embedded.encode([picture])
    assert np.array_equal(picture, before)


def test_colours_of_regions(embedded: EmbeddedEncoder) -> None:
    picture = np.full((360, 640, 3), 128, np.uint8)
    picture[200:, 400:] = (20, 40, 220)
    held = embedded.encode([picture])[0].labels
    (row,) = torch.nonzero(held.ids >= FIRST_COLOR)[:, 0].tolist()
    assert embedded.label_names[int(held.ids[row])] == "blue"
    assert float(held.scores[row]) > 0.9
    x0, y0, x1, y1 = held.boxes[row].tolist()
    assert x0 > 0.55 and y0 > 0.45
    assert float(held.colors[row, COLORS.index("blue")]) > 0.9


def test_alike_pictures_are_near(embedded: EmbeddedEncoder) -> None:
    cat, flipped, coffee = (
        one.embedding
        for one in embedded.encode(
            [
                skimage.data.chelsea(),
                np.ascontiguousarray(skimage.data.chelsea()[:, ::-1]),
                skimage.data.coffee(),
            ]
        )
    )
    assert float(cat @ flipped) > 0.9 > 0.6 > float(cat @ coffee)


# --------------------------------------------------------------------------- questions


def test_a_question_becomes_terms(embedded: EmbeddedEncoder) -> None:
    query = embedded.query("where is the blue coffee mug?")
    assert query.text == "where is the blue coffee mug?" and query.unknown == ()
    assert query.vector.shape == (384,) and query.vector.dtype == torch.float32
    assert float(query.vector.norm()) == pytest.approx(1.0, abs=1e-5)
    (term,) = query.terms
    assert term.text == "blue coffee mug" and term.ids.tolist() == [504]
    assert term.weights.tolist() == [1.0] and not term.several
    assert [COLORS[n] for n in torch.nonzero(term.colors)[:, 0].tolist()] == ["blue"]


def test_people_colours_and_classes_are_calibrated_apart(embedded: EmbeddedEncoder) -> None:
    terms = [embedded.query(text).terms[0] for text in ("people", "something red", "a cat")]
    assert len({term.calibration for term in terms}) == 3
    assert [term.several for term in terms] == [True, False, False]


def test_an_unknown_word_stays(embedded: EmbeddedEncoder) -> None:
    query = embedded.query("a quokka")
    assert query.terms == () and query.unknown == ("quokka",)


def test_probability_grows_with_likeness(embedded: EmbeddedEncoder) -> None:
    query = embedded.query("a cat")
    far, near = -query.vector, query.vector
    found = embedded.probability(query, torch.stack([far, near, near]).half())
    assert found.shape == (3,) and found.dtype == torch.float32
    assert float(found[0]) < 0.01 and float(found[1]) > 0.99
    assert embedded.probability(query, torch.empty(0, 384)).shape == (0,)


# --------------------------------------------------------------------------- the encoder itself


def test_it_is_an_encoder(embedded: EmbeddedEncoder) -> None:
    assert isinstance(embedded, Encoder) and isinstance(load_encoder("embedded"), EmbeddedEncoder)
    assert len(embedded.label_names) == 1000 + 1 + len(COLORS)
    assert embedded.label_names[embedded.things - 1] == "person"
    assert embedded.label_names[embedded.things] == COLORS[0]


def test_the_identity_is_stable_and_names_what_matters(embedded: EmbeddedEncoder) -> None:
    """Memories on disk are bound to it: changing a rule must change it, nothing else may."""
    assert embedded.identity == EmbeddedEncoder().identity
    assert embedded.identity["model"] == "embedded"
    for digest in (lite0.WEIGHTS_SHA256, person.WEIGHTS_SHA256, sentence.MODEL_SHA256):
        assert digest in embedded.identity["weights"]
    assert json.loads(json.dumps(embedded.identity)) == embedded.identity
    for option in ({"area": 64 * 64}, {"max_tokens": 4}, {"labels": 9}):
        assert EmbeddedEncoder(**option).identity != embedded.identity


def test_fewer_tokens_and_labels() -> None:
    encoder = EmbeddedEncoder(area=128 * 128, max_tokens=3, labels=5)
    encoding = encoder.encode([skimage.data.chelsea()])[0]
    assert len(encoding.tokens) <= 3
    assert int((encoding.labels.ids < PERSON).sum()) <= 5


def test_sentences_become_unit_vectors_that_mean_something() -> None:
    sentences = SentenceEncoder()
    vectors = sentences(
        ["a dog plays in the park", "a puppy runs on the grass", "the stock market fell"]
    )
    assert vectors.shape == (3, 384) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert vectors[0] @ vectors[1] > 0.3 > 0.2 > vectors[0] @ vectors[2]
    assert np.array_equal(vectors[1:2], sentences(["a puppy runs on the grass"]))
    assert np.isfinite(sentences(["", "word " * 5000, "\x00 \U0001f600"])).all()


def test_the_type_of_the_convolutions_holds_for_both_networks() -> None:
    encoder = EmbeddedEncoder(dtype=torch.float32)
    assert encoder._model.stem.weight.dtype == torch.float32
    assert encoder._people.dtype == torch.float32
