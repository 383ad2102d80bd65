"""Show what an abstention threshold costs: `python benchmarks/calibrate.py`.

Pictures and clips whose content was looked up by eye (the table below) are remembered, and every
thing is asked of every one of them; the score is the probability of the best moment. Used are the
gallery of this repository and what is installed of scikit-image's and scikit-learn's wheels and of
Debian's opencv-doc (another folder of those files: `--opencv-doc`). A picture is a stream of one
frame. Pairs of source and thing that two people could disagree about are left out; so is
opencv-doc's `vtest.avi`, so that reels which hold it can be used for testing.

Prints, by kind of source: recall of present things and false alarms of absent ones at thresholds
0.1 to 0.9, and the area under the curve (AUC); the misses and false alarms at the default
threshold; how often a predicted probability came true, as it is and "balanced", as if there were as
many present as absent things; and the label score that a given share of absent things exceeds,
beside the score that `CLASS_CALIBRATION` makes a probability of one half.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch

from vismem import Frame, VisualMemory, open_stream
from vismem.encoders.embedded import CLASS_CALIBRATION, EmbeddedEncoder
from vismem.heads.answer import THRESHOLD, score_moments
from vismem.memory.policies import POLICIES
from vismem.scenes import scene_moments

DATA = Path(__file__).resolve().parents[1] / "data"
OPENCV_DOC = Path("/usr/share/doc/opencv-doc/examples/data")
FPS = 2.0  # of clips
RATES = (0.02, 0.05, 0.10)  # of absent things taken for present


def listed(text: str) -> tuple[str, ...]:
    """Split text at its commas."""
    return tuple(" ".join(part.split()) for part in text.split(",") if part.strip())


THINGS = listed(
    """person, cat, dog, monkey, squirrel, butterfly, bird, motorcycle, wheel, car, rocket, cup,
    coffee, spoon, glass, candle, table, pot, box, book, computer, keyboard, monitor, camera,
    tripod, helmet, ball, lighter, puzzle, flower, fruit, apple, orange, lemon, building, house,
    tower, temple"""
)
ABSENT = listed(
    """elephant, zebra, lion, bear, penguin, snake, spider, shark, turtle, frog, sheep, pig, rabbit,
    duck, owl, crab, camel, bus, truck, train, airplane, bicycle, tractor, ambulance, submarine,
    sailboat, piano, guitar, violin, drum, sofa, bed, bathtub, refrigerator, washing machine,
    toaster, umbrella, parachute, pizza, hamburger, hot dog, ice cream, banana, strawberry,
    broccoli, mushroom, pineapple, hammer, screwdriver, shopping cart, volcano, tent,
    sewing machine, stethoscope, cannon, teddy bear"""
)


@dataclass(frozen=True)
class Source:
    """A picture or a clip, and what is in it.

    Args:
        origin: Where it comes from; a key of what `origins` gives.
        file: Its name, or a pattern of names of pictures that make a clip, a second each.
        present: Things that are in it.
        unclear: Things that two people could disagree about.
    """

    origin: str
    file: str
    present: str = ""
    unclear: str = ""

    @property
    def is_clip(self) -> bool:
        """Whether it is more than one picture."""
        return "*" in self.file or self.file.endswith((".avi", ".mp4"))

    @property
    def kind(self) -> str:
        """Group that its figures are counted in: clips, or the origin of a picture."""
        return "clips" if self.is_clip else self.origin

    def truth(self) -> dict[str, bool]:
        """Whether each thing is in it; without those that are unclear."""
        present, unclear = listed(self.present), listed(self.unclear)
        return {t: t in present for t in (*THINGS, *ABSENT) if t not in unclear}


SKI, SKL, CVD, OWN = "scikit-image", "scikit-learn", "opencv-doc", "gallery"
SOURCES = (
    Source(SKI, "astronaut.png", "person, helmet", "rocket, airplane"),
    Source(SKI, "brick.png", "", "building, house"),
    Source(SKI, "camera.png", "person, camera, tripod", "building, house, tower"),
    Source(SKI, "cell.png"),
    Source(SKI, "chelsea.png", "cat"),
    Source(SKI, "coffee.png", "cup, coffee, spoon, table"),
    Source(SKI, "coins.png"),
    Source(SKI, "grass.png"),
    Source(SKI, "gravel.png"),
    Source(SKI, "hubble_deep_field.jpg"),
    Source(SKI, "ihc.png"),
    Source(SKI, "moon.png"),
    Source(SKI, "motorcycle_left.png", "motorcycle, wheel, box", "bicycle, table, sofa"),
    Source(SKI, "page.png", "", "book"),
    Source(SKI, "retina.jpg"),
    Source(SKI, "rocket.jpg", "rocket, tower", "building"),
    Source(SKI, "text.png", "", "book, puzzle"),
    Source(SKL, "china.jpg", "temple, building, tower", "house, sailboat"),
    Source(SKL, "flower.jpg", "flower"),
    Source(CVD, "aero1.jpg", "building, house", "tower, car, bus, truck, train"),
    Source(CVD, "aloeL.jpg", "pot", "flower"),
    Source(CVD, "apple.jpg", "apple, fruit", "table"),
    Source(CVD, "baboon.jpg", "monkey"),
    Source(CVD, "basketball1.png", "person, ball", "table, camera"),
    Source(CVD, "blox.jpg", "", "box, table, puzzle"),
    Source(CVD, "board.jpg", "", "computer"),
    Source(CVD, "box.png", "box", "book"),
    Source(CVD, "box_in_scene.png", "box, book"),
    Source(CVD, "building.jpg", "building", "car, house, pot, flower"),
    Source(CVD, "butterfly.jpg", "butterfly", "flower"),
    Source(CVD, "chicky_512.png", "dog"),
    Source(CVD, "ela_original.jpg", "", "book, table"),
    Source(CVD, "fruits.jpg", "fruit, orange, lemon", "apple, banana"),
    Source(CVD, "home.jpg", "building, tower, bird", "house, temple"),
    Source(CVD, "left.jpg", "book", "box, table"),
    Source(CVD, "leuvenA.jpg", "building, house", "tower"),
    Source(CVD, "licenseplate_motion.jpg", "car", "wheel"),
    Source(CVD, "messi5.jpg", "person, ball"),
    Source(CVD, "orange.jpg", "orange, fruit", "lemon, table"),
    Source(CVD, "rubberwhale1.png", "", "ball, box, bird, fruit"),
    Source(CVD, "smarties.png", "", "ball"),
    Source(CVD, "squirrel_cls.jpg", "squirrel"),
    Source(CVD, "stuff.jpg", "lighter", "table"),
    Source(CVD, "sudoku.png", "puzzle", "book"),
    Source(CVD, "left[01]*.jpg", "computer, keyboard, monitor, person", "table, puzzle, box"),
    Source(CVD, "tree.avi", "", "person, building, house, flower"),
    Source(CVD, "Megamind.avi", "person, glass, candle, table", "cup, spoon, bird"),
    Source(
        OWN,
        "gallery.mp4",
        "cat, cup, coffee, spoon, table, rocket, tower, person, helmet, flower, temple, building, "
        "tripod, camera",
        "house, airplane, sailboat",
    ),
)


@dataclass(frozen=True)
class Pair:
    """One thing asked of one source.

    Args:
        source: Its file.
        kind: Its kind.
        thing: What was asked.
        present: Whether it is there.
        probability: Of the best moment.
        score: Label score behind it; `None` for a thing that is not seen by classes alone.
    """

    source: str
    kind: str
    thing: str
    present: bool
    probability: float
    score: float | None


def origins(opencv_doc: Path) -> dict[str, Path]:
    """The folder of each origin that is installed."""
    found = {OWN: DATA, CVD: opencv_doc}
    for origin, package, inside in (
        (SKI, "skimage", "data"),
        (SKL, "sklearn", "datasets/images"),
    ):
        spec = importlib.util.find_spec(package)  # found, not imported
        if spec is not None and spec.submodule_search_locations:
            found[origin] = Path(spec.submodule_search_locations[0]) / inside
    return {origin: folder for origin, folder in found.items() if folder.is_dir()}


def frames(source: Source, folder: Path) -> Iterator[Frame]:
    """The frames of a source."""
    if source.is_clip and "*" not in source.file:
        with open_stream(folder / source.file, fps=FPS) as stream:
            yield from stream
        return
    for number, path in enumerate(sorted(folder.glob(source.file))):
        with av.open(str(path)) as container:
            image = next(container.decode(video=0)).to_ndarray(format="rgb24")
        yield Frame(image, float(number))


def ask_all(source: Source, folder: Path, encoder: EmbeddedEncoder, policy: str) -> list[Pair]:
    """Remember a source and ask it for everything that is clear."""
    with VisualMemory(encoder=encoder, policy=policy) as memory:
        for frame in frames(source, folder):
            memory.write(frame)
        memory.flush()
        snapshots = [*memory.snapshots().values()]
        views = memory.visual().values()
        snapshots += [scene_moments(view.slots(), memory.sizes) for view in views]
    pairs = []
    for thing, present in source.truth().items():
        query = encoder.query(thing)
        scores = [score_moments(snapshot, query, encoder)[0] for snapshot in snapshots]
        probability = float(torch.cat(scores).max())
        score = None
        if len(query.terms) == 1 and query.terms[0].calibration == CLASS_CALIBRATION:
            slope, offset = query.terms[0].calibration
            score = math.exp((math.log(probability / (1 - probability)) - offset) / slope)
        pairs.append(Pair(source.file, source.kind, thing, present, probability, score))
    return pairs


def rates(pairs: Sequence[Pair], threshold: float) -> tuple[float, float]:
    """Share of present things, and of absent things, that reach a threshold."""
    shares = []
    for present in (True, False):
        reached = [p.probability >= threshold for p in pairs if p.present == present]
        shares.append(sum(reached) / len(reached) if reached else math.nan)
    return shares[0], shares[1]


def auc(pairs: Sequence[Pair]) -> float:
    """How likely a present thing scores above an absent one; a tie counts half."""
    present, absent = (
        np.array([p.probability for p in pairs if p.present == there]) for there in (True, False)
    )
    if not len(present) or not len(absent):
        return math.nan
    difference = present[:, None] - absent[None]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def score_at(pairs: Sequence[Pair], rate: float) -> float:
    """The least label score that no more than this share of absent things lies above."""
    scores = sorted((p.score for p in pairs if not p.present and p.score is not None), reverse=True)
    return scores[math.floor(rate * len(scores))] if scores else math.nan


@dataclass(frozen=True)
class Bin:
    """The pairs whose probability lies in `[low, high)`: how many are present and absent."""

    low: float
    high: float
    present: int
    absent: int


def reliability(pairs: Sequence[Pair], bins: int = 10) -> list[Bin]:
    """Count present and absent things by their predicted probability."""
    held = [[0, 0] for _ in range(bins)]
    for pair in pairs:
        held[min(bins - 1, int(pair.probability * bins))][not pair.present] += 1
    return [Bin(n / bins, (n + 1) / bins, *counts) for n, counts in enumerate(held)]


def tables(pairs: Sequence[Pair]) -> str:
    """Everything that the module promises, as aligned text."""
    kinds = {"all": list(pairs)}
    for pair in pairs:
        kinds.setdefault(pair.kind, []).append(pair)
    lines = [f"{'recall / false alarms, %':24}" + "".join(f"{kind:>16}" for kind in kinds)]
    for number in range(1, 10):
        row = f"  threshold {number / 10:.1f}         "
        for held in kinds.values():
            recall, alarms = rates(held, number / 10)
            row += f"{recall * 100:8.1f} / {alarms * 100:5.1f}"
        lines.append(row)
    counts = [(sum(p.present for p in held), len(held)) for held in kinds.values()]
    lines.append(f"{'  AUC':24}" + "".join(f"{auc(held):16.3f}" for held in kinds.values()))
    lines.append(f"{'  present / absent':24}" + "".join(f"{p:8} / {n - p:5}" for p, n in counts))

    lines += ["", f"{'label score exceeded by':24}" + "".join(f"{kind:>16}" for kind in kinds)]
    for rate in RATES:
        row = "".join(f"{score_at(held, rate):16.3f}" for held in kinds.values())
        lines.append(f"  {rate:4.0%} of absent things {row}")
    slope, offset = CLASS_CALIBRATION
    lines.append(f"  probability 0.5 is given at {math.exp(-offset / slope):.3f}")

    lines += ["", f"{'predicted':12}{'present':>8}{'absent':>8}{'fraction':>10}{'balanced':>10}"]
    there, gone = counts[0][0], counts[0][1] - counts[0][0]
    for b in reliability(pairs):
        fraction = even = math.nan
        if b.present + b.absent:
            fraction = b.present / (b.present + b.absent)
            shares = (b.present / max(1, there), b.absent / max(1, gone))
            even = shares[0] / sum(shares)
        span = f"{b.low:.1f} to {b.high:.1f}"
        lines.append(f"{span:12}{b.present:8}{b.absent:8}{fraction:10.2f}{even:10.2f}")

    for name, wrong in (
        ("missed", [p for p in pairs if p.present and p.probability < THRESHOLD]),
        ("false alarm", [p for p in pairs if not p.present and p.probability >= THRESHOLD]),
    ):
        lines += ["", f"{name} at {THRESHOLD:g}: {len(wrong)}"]
        for pair in sorted(wrong, key=lambda p: (p.kind, p.source, -p.probability)):
            lines.append(f"  {pair.source:24}{pair.thing:20}{pair.probability:.2f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--opencv-doc", type=Path, default=OPENCV_DOC, metavar="FOLDER")
    parser.add_argument("--policy", default="moments", choices=["moments", *POLICIES])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    folders = origins(options.opencv_doc)
    encoder = EmbeddedEncoder()
    # A word without a label can only be refused, whatever the threshold.
    unlabelled = [t for t in (*THINGS, *ABSENT) if not encoder.query(t).terms]
    if unlabelled:
        parser.exit(2, f"the encoder has no label for {', '.join(unlabelled)}; ask for others\n")
    pairs: list[Pair] = []
    left_out = []
    for source in SOURCES:
        if source.origin in folders and any(folders[source.origin].glob(source.file)):
            pairs += ask_all(source, folders[source.origin], encoder, options.policy)
        else:
            left_out.append(f"{source.file} ({source.origin})")
    print(f"{len({p.source for p in pairs})} sources, {len(THINGS) + len(ABSENT)} things")
    if left_out:
        print(f"not installed: {', '.join(left_out)}")
    print(tables(pairs))


if __name__ == "__main__":
    main()
