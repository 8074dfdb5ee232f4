"""The Brown corpus (Francis & Kučera 1964): American prose of 1961 with the part of speech of each word, fetched."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from sys import intern

from .assets import ASSETS, AssetError, fetch
from .splits import Split, check_split

INFORMATIVE = (
    "news",
    "editorial",
    "reviews",
    "religion",
    "hobbies",
    "lore",
    "belles_lettres",
    "government",
    "learned",
)
"""Genres of the corpus's first part, informative prose."""
IMAGINATIVE = ("fiction", "mystery", "science_fiction", "adventure", "romance", "humor")
"""Genres of its second part, imaginative prose."""

_CYCLE: tuple[Split, ...] = ("train", "train", "train", "validation", "test")


@dataclass(frozen=True)
class TaggedText:
    """A text of the corpus: the beginning of a longer one, about 2,000 words, cut at the end of a sentence.

    Attributes:
        genre: of `INFORMATIVE` or `IMAGINATIVE`.
        words: of each sentence, marks of punctuation among them, as printed.
        tags: for each word its part of speech in the corpus's own set, such as `nn-tl` for a noun in a title.
    """

    genre: str
    words: tuple[tuple[str, ...], ...]
    tags: tuple[tuple[str, ...], ...]


def brown(split: Split, *, report: Callable[[str], None] | None = None) -> list[TaggedText]:
    """Return the texts of a split: three of every five for training, one each for validation and test.

    No text is in two splits. Of the 500 texts, 300, 100 and 100.

    Args:
        split: Which part.
        report: As in `fetch`.

    Raises:
        ValueError: There is no such split.
        AssetError: The corpus is not in the cache and could not be downloaded, or is damaged.
    """
    check_split(split)
    texts = _read(fetch("brown", report=report))
    return [text for place, text in enumerate(texts) if _CYCLE[place % len(_CYCLE)] == split]


def base_tag(tag: str) -> str:
    """Give a tag without what was added to it: `nn` for `nn-tl`, and the first of several, `ppss` of `ppss+bez`."""
    return tag.split("-")[0].split("+")[0] or tag


@cache
def _read(folder: Path) -> tuple[TaggedText, ...]:
    texts = []
    for genre in (*INFORMATIVE, *IMAGINATIVE):
        path = folder / f"{genre}.txt"
        try:
            content = path.read_bytes()
            for part in _parts(path.name, content):
                words, tags = zip(*_sentences(part.decode("ascii")), strict=True)
                texts.append(TaggedText(genre, words, tags))
        except (OSError, ValueError) as error:
            raise AssetError(
                f"{path} cannot be read as the Brown corpus ({error}): remove {folder}, then run "
                "`allyouneed fetch brown`"
            ) from error
    return tuple(texts)


def _parts(name: str, content: bytes) -> Iterator[bytes]:
    """Cut a file where it was joined of texts; a stand-in's is one text."""
    sizes = [member.size for member in ASSETS["brown"].files()[name]]
    if sum(sizes) != len(content):
        sizes = [len(content)]
    place = 0
    for size in sizes:
        yield content[place : place + size]
        place += size


def _sentences(content: str) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    found = False
    for line in content.splitlines():
        pairs = [pair.rpartition("/") for pair in line.split()]
        if not pairs:
            continue
        found = True
        if not all(word and tag for word, _, tag in pairs):
            raise ValueError(f"a word without its tag in {line.strip()!r:.60}")
        yield tuple(intern(word) for word, _, _ in pairs), tuple(intern(tag) for _, _, tag in pairs)
    if not found:
        raise ValueError("a text without sentences")
