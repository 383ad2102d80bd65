"""Write which English nouns name which ImageNet classes, and what the classes mean as vectors.

Run: ``apt-get install wordnet-base && python scripts/make_lexicon.py``

Writes ``data/lexicon.json`` (nouns to classes, nouns for people) and
``data/class_vectors.safetensors`` (MiniLM vectors of the classes, for words that are not listed).

ImageNet's 1000 classes are WordNet 3.0 noun synsets in ascending order of their file offset, so the
class names of torchvision find their synsets again by a longest ascending match; the two names that
torchvision disambiguated by hand are given here. A noun then names every class below any of its
senses, earlier senses weighing more. A common noun that names none counts half for the classes of
its parent, if these are few: a kettle is a kind of pot, as teapots are.
"""

from __future__ import annotations

import argparse
import json
from bisect import bisect_left
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torchvision.models._meta import _IMAGENET_CATEGORIES as CLASS_NAMES

RENAMED = {"crane bird": "crane", "maillot tank suit": "maillot"}
PHYSICAL = "00001930"  # the synset "physical entity"
PERSON = "00007846"  # the synset "person"
# Senses above this many classes ("artifact", "organism") would match nearly anything.
MOST_CLASSES = 450
MOST_KIN = 12  # a parent with more classes says too little about its other children
# Nouns of groups of people, which WordNet does not put under "person".
PEOPLE = "people crowd folk family couple team audience kids guys pedestrians staff crew".split()


def read_synsets(folder: Path) -> dict[str, tuple[list[str], list[str], str, list[str]]]:
    """Read ``{offset: (words, hypernyms, gloss, part holonyms)}`` of all noun synsets."""
    synsets = {}
    for line in (folder / "data.noun").read_text().splitlines():
        if line.startswith("  "):
            continue
        body, gloss = line.split(" | ", 1)
        fields = body.split()
        count = int(fields[3], 16)
        words = [fields[4 + 2 * i].replace("_", " ") for i in range(count)]
        rest = fields[5 + 2 * count :]
        pointers = [rest[i : i + 4] for i in range(0, len(rest) - 3, 4)]
        parents = [offset for symbol, offset, part, _ in pointers if symbol == "@" and part == "n"]
        wholes = [offset for symbol, offset, part, _ in pointers if symbol == "#p"]
        synsets[fields[0]] = (words, parents, gloss.split(";")[0].strip(), wholes)
    return synsets


def read_senses(folder: Path) -> dict[str, list[str]]:
    """Read ``{lemma: offsets, most frequent sense first}``."""
    senses = {}
    for line in (folder / "index.noun").read_text().splitlines():
        if not line.startswith("  "):
            fields = line.split()
            senses[fields[0].replace("_", " ")] = fields[-int(fields[2]) :]
    return senses


def match_classes(senses: dict[str, list[str]]) -> list[str]:
    """Find the synset of every class by the longest ascending choice among its name's senses."""
    nodes: list[tuple[int, str, int]] = []
    tails: list[str] = []
    last: list[int] = []
    for number, name in enumerate(CLASS_NAMES):
        for offset in sorted(senses[RENAMED.get(name, name).lower()], reverse=True):
            place = bisect_left(tails, offset)
            nodes.append((number, offset, last[place - 1] if place else -1))
            tails[place : place + 1] = [offset]
            last[place : place + 1] = [len(nodes) - 1]
    chosen = {}
    node = last[-1]
    while node >= 0:
        number, offset, node = nodes[node]
        chosen[number] = offset
    assert len(chosen) == len(CLASS_NAMES), "a class found no synset"
    return [chosen[number] for number in range(len(CLASS_NAMES))]


# ILSVRC's own synsets, where the name fits several between its neighbours.
OWN = """278 02119789 281 02123045 345 02403003 408 02704792 438 02815834 443 02834397 446 02840245
456 02879718 458 02892201 471 02950826 501 03045698 502 03047690 549 03291819 553 03337140
562 03388043 581 03459775 586 03478589 600 03532672 610 03595614 624 03661043 664 03782006
666 03786901 714 03929660 718 03933933 723 03944341 727 03956157 738 03991062 742 04004767
766 04111531 778 04141975 782 04152593 800 04243546 801 04251144 813 04270147 815 04275548
816 04277352 844 04372370 847 04389033 914 04612504 980 09472597 982 10148035 987 12144580
990 12768682"""
# Classes named after a system and photographed as its receiver.
RECEIVERS = {754: "04043733", 851: "04405907"}


def ranges(numbers: set[int]) -> list[list[int]]:
    """Write a set of numbers as ``[first, last]`` runs."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return runs


def main(wordnet: Path, out: Path) -> None:
    synsets, senses = read_synsets(wordnet), read_senses(wordnet)
    ancestors: dict[str, set[str]] = {}

    def above(offset: str) -> set[str]:
        if offset not in ancestors:
            parents = synsets[offset][1]
            ancestors[offset] = {offset}.union(*(above(parent) for parent in parents))
        return ancestors[offset]

    classes = match_classes(senses)
    own = OWN.split()
    by_number = dict(zip(own[::2], own[1::2], strict=True))
    classes = [by_number.get(str(number), offset) for number, offset in enumerate(classes)]
    assert classes == sorted(classes), (
        "ImageNet's classes stand in ascending order of their synsets"
    )
    classes = [RECEIVERS.get(number, offset) for number, offset in enumerate(classes)]
    below: dict[str, set[int]] = {}
    for number, offset in enumerate(classes):
        for ancestor in above(offset):
            below.setdefault(ancestor, set()).add(number)

    common = set((out / "bert_vocab.txt").read_text().split())
    parts: dict[str, set[int]] = {}  # classes that are parts of a synset: a grille shows a car
    for number, offset in enumerate(classes):
        for whole in synsets[offset][3]:
            parts.setdefault(whole, set()).add(number)

    words: dict[str, list] = {}
    people: set[str] = set(PEOPLE)
    for lemma, offsets in senses.items():
        physical = [o for o in offsets if PHYSICAL in above(o) and len(above(o)) > 1]
        named = [
            [round(1 / (1 + rank), 3), ranges(below[offset])]
            for rank, offset in enumerate(physical[:4])
            if 0 < len(below.get(offset, ())) <= MOST_CLASSES
        ]
        seen = {n for _, runs in named for first, last in runs for n in range(first, last + 1)}
        persons = below[PERSON]
        # A "hot dog" may be a daredevil, but is asked for as food.
        if PERSON in above(offsets[0]) and seen <= persons:
            people.add(lemma)
        heads = {
            number
            for number, offset in enumerate(classes)
            if above(offset).intersection(physical)
            and any(f" {name.lower()}".endswith(f" {lemma}") for name in synsets[offset][0])
        }
        if heads:  # "mug" is the head of "coffee mug", whatever its most frequent sense
            named.insert(0, [1.0, ranges(heads)])
        if physical and physical[0] in parts:
            named.append([0.7, ranges(parts[physical[0]])])
        if not named and physical[:1] == offsets[:1] and lemma in common and lemma not in people:
            kin = set().union(*(below.get(p, set()) for p in synsets[physical[0]][1]))
            if 0 < len(kin) <= MOST_KIN:
                named.append([0.5, ranges(kin)])
        led = {
            number
            for number, offset in enumerate(classes)
            if any(name.lower().startswith(f"{lemma} ") for name in synsets[offset][0])
        }
        if led and physical and lemma not in people:
            named.append([0.5, ranges(led)])  # a coffee mug speaks for coffee
        if named:
            words[lemma] = named
    irregular = {}
    for line in (wordnet / "noun.exc").read_text().splitlines():
        plural, singular = line.replace("_", " ").split()[:2]
        if singular in words or singular in people:
            irregular[plural] = singular
    lexicon = {
        "classes": [synsets[offset][0] for offset in classes],
        "words": words,
        "people": sorted(w for w in people if w.replace(" ", "").isalpha()),
        "plurals": irregular,
    }
    target = out / "lexicon.json"
    target.write_text(json.dumps(lexicon, separators=(",", ":"), sort_keys=True))
    print(f"{target}: {len(words)} nouns, {target.stat().st_size / 1e3:.0f} kB")

    from vismem.encoders.sentence import SentenceEncoder

    encode = SentenceEncoder()
    vectors = []
    for offset in classes:
        lemmas, parents, gloss, _ = synsets[offset]
        above_it = [synsets[p][0][0] for p in parents]
        texts = [*lemmas, f"{', '.join(lemmas)}; {', '.join(above_it)}", f"{lemmas[0]}: {gloss}"]
        parts = encode(texts)
        vector = parts[: len(lemmas)].mean(0) + parts[-2] + parts[-1]
        vectors.append(vector / np.linalg.norm(vector))
    target = out / "class_vectors.safetensors"
    save_file({"vectors": torch.from_numpy(np.stack(vectors)).half()}, target)
    print(f"{target}: {target.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--out", type=Path, default=Path("data"))
    main(**vars(parser.parse_args()))
