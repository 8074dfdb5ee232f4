"""The texts of the experiment: stretches of novels and addresses to learn, and kinds of text that are never seen."""

import importlib.util
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Literal

from allyouneed.data import corpus, verses
from allyouneed.data.brown import brown

SEEN = ("train", "test")
"""Stretches of the novels and addresses that were trained on, and stretches of the same that were not."""
UNSEEN = ("brown", "verses", "manual", "code", "spanish")
"""Kinds of text that no stretch of the training text is."""
STRETCH = 16_384
"""Characters of a stretch; one in sixteen is held out."""

CODE = (
    "argparse",
    "bisect",
    "calendar",
    "cmd",
    "colorsys",
    "configparser",
    "csv",
    "difflib",
    "filecmp",
    "fractions",
    "gettext",
    "graphlib",
    "heapq",
    "html.parser",
    "json.decoder",
    "json.encoder",
    "mailbox",
    "optparse",
    "pprint",
    "queue",
    "sched",
    "shlex",
    "string",
    "textwrap",
    "wave",
)
"""Modules of Python's standard library that change little from version to version."""


@cache
def stretches(split: Literal["train", "test"]) -> tuple[str, ...]:
    """Give the training novels and addresses in stretches; one in sixteen is held out.

    The held-out ones come from the same works, so that they are of the kind that is trained on, as WebText's are.
    """
    text = corpus("train")
    whole = [text[start : start + STRETCH] for start in range(0, len(text), STRETCH)]
    return tuple(piece for place, piece in enumerate(whole) if (place % 16 == 8) == (split == "test"))


def spread(pieces: Sequence[str], count: int | None) -> list[str]:
    """Choose pieces that are evenly spaced; all where there are no more than the count."""
    if count is None or count >= len(pieces):
        return list(pieces)
    return [pieces[place * len(pieces) // count] for place in range(count)]


@cache
def training_text(count: int | None) -> str:
    """Give the stretches that are trained on, joined."""
    return "".join(spread(stretches("train"), count))


@cache
def library_code() -> str:
    """Give the source of some modules of the running Python's standard library."""
    sources = []
    for module in CODE:
        found = importlib.util.find_spec(module)
        if found is None or found.origin is None:
            raise FileNotFoundError(f"the source of the standard library's module {module} is not installed")
        sources.append(Path(found.origin).read_text(encoding="utf-8"))
    return "\n\n".join(sources)


@cache
def prose() -> str:
    """Give held-out texts of the Brown corpus as they were printed: its tokens, joined (section 3.1 does the same)."""
    texts = ("\n".join(" ".join(words) for words in text.words) for text in brown("test"))
    joined = "\n\n".join(texts).replace("`` ", '"').replace(" ''", '"')
    return re.sub(r" ([.,;:?!)\]])", r"\1", re.sub(r"([(\[]) ", r"\1", joined))


@cache
def manual() -> str:
    """Give the chapters of the language reference that come with the running Python."""
    return "\n\n".join(chapter for _, chapter in sorted(topics.items()))


@cache
def evaluated_text(kind: str, trained_on: int | None, characters: int) -> str:
    """Give the text of a kind that models are scored on.

    Args:
        kind: one of `SEEN` or `UNSEEN`.
        trained_on: stretches that the models were trained on.
        characters: about how many.
    """
    if kind == "train":
        whole = training_text(trained_on)
    elif kind == "test":
        whole = "".join(stretches("test"))
    elif kind == "brown":
        whole = prose()
    elif kind == "manual":
        whole = manual()
    elif kind == "code":
        whole = library_code()
    else:
        whole = "\n".join(pair[kind == "spanish"] for pair in verses("test"))
    size = min(STRETCH, characters)
    pieces = [whole[start : start + size] for start in range(0, len(whole) - size + 1, size)]
    return "".join(spread(pieces, characters // size))
