"""Make the small stand-in for the Brown corpus: sentences of Jane Austen's in its format, with guessed tags.

    python tests/standins/make_brown.py

No word of the corpus is in it, so that its terms do not concern this repository.
"""

import re
from pathlib import Path

from allyouneed.data import austen
from allyouneed.data.brown import IMAGINATIVE, INFORMATIVE

SENTENCES = 40
LONGEST = 30
TAGS = {
    "the": "at",
    "a": "at",
    "and": "cc",
    "of": "in",
    "to": "to",
    "in": "in",
    "was": "bedz",
    "her": "pp$",
    "not": "*",
}
ENDINGS = {"ing": "vbg", "ed": "vbd", "ly": "rb", "s": "nns"}


def tag(word: str) -> str:
    """Guess a tag by a word's ending; capitals are names."""
    if not word[0].isalnum():
        return word
    if word.lower() in TAGS:
        return TAGS[word.lower()]
    if word[0].isupper():
        return "np-tl"
    return next((name for ending, name in ENDINGS.items() if word.endswith(ending)), "nn")


def sentences(text: str) -> list[list[str]]:
    """Cut a text into sentences of words and marks, short ones, of ASCII alone."""
    found = [re.findall(r"[A-Za-z]+|[.,;!?]", one + ".") for one in re.split(r"[.!?]\s", text) if one.isascii()]
    return [words for words in found if 4 <= len(words) <= LONGEST]


def write(folder: Path) -> None:
    """Write a file for each genre."""
    folder.mkdir(exist_ok=True)
    pool = sentences(austen("train"))
    genres = (*INFORMATIVE, *IMAGINATIVE)
    step = len(pool) // len(genres)
    for number, genre in enumerate(genres):
        chosen = pool[number * step : number * step + SENTENCES]
        lines = ["\t" + " ".join(f"{word}/{tag(word)}" for word in words) + "\n" for words in chosen]
        (folder / f"{genre}.txt").write_text("\n\n" + "\n\n".join(lines) + "\n", encoding="ascii")


if __name__ == "__main__":
    write(Path(__file__).parent / "brown")
