"""The three texts that come with the package: novels, addresses, and verses in two languages.

Each is cut into training, validation and test parts by whole works, whole presidents, or blocks of consecutive verses,
so that no part shares a passage with another. `files/PROVENANCE.md` tells where the texts come from. Nothing is
downloaded.
"""

import hashlib
import lzma
import re
from functools import cache
from importlib.resources import files

from .assets import AssetError
from .splits import ROWS_IN_A_BLOCK, Split, check_split, split_of_block, without_repeats

_SHA256 = {
    "austen.txt.xz": "8023f1de28da328434126509ba351f24db3e6dd1abf985a75c8b490126b70a9f",
    "state_of_the_union.txt.xz": "5421ae3a8c232e3f6a67354187b3cc176c8e87b62b134807f8be0faaddb3a3df",
    "verses.en-es.tsv.xz": "2f00afdd654163dfb968ccee8b90a540257e002bd6904f29c055c65d9fda3318",
}

# Between documents, wherever several stand in one string.
_GAP = "\n\n\n"

_HELD_OUT_NOVELS: dict[str, Split] = {"NORTHANGER ABBEY": "validation", "Persuasion": "test"}
_TITLES = ("SENSE AND SENSIBILITY", "PRIDE AND PREJUDICE", "MANSFIELD PARK", "EMMA", *_HELD_OUT_NOVELS)
_NOVEL_BEGINS = re.compile(rf"^(?=(?:{'|'.join(_TITLES)})\n\n+(?:\(\d+\)\n\n+)?[Bb]y\s+Jane Austen)", re.MULTILINE)

# Printers' and editors' words inside the novels. The last is a modern publisher's note on its edition.
_EDITORS_WORDS = re.compile(
    r"\n+\[At this point in the first and second editions, Volume \w+ end(?:s|ed)\.\]"
    r"|\n+ *\[End volume one of this edition\.[^]]*\]"
    r"|\n+A NOTE ON THE TEXT\n.*?British usage\.",
    re.DOTALL,
)

# One address a year, without 1933, and with two where one president left and the next came.
_ADDRESS_YEARS = sorted([*(year for year in range(1790, 2022) if year != 1933), 1953, 1961])
_FIRST_VALIDATION_YEAR = 1993
_FIRST_TEST_YEAR = 2009


def austen(split: Split) -> str:
    """Return novels of Jane Austen, with the lines as they were printed and `_` around words in italics.

    Validation is Northanger Abbey, the test is Persuasion; training is Sense and Sensibility, Pride and Prejudice,
    Mansfield Park and Emma: 3.1, 0.4 and 0.5 million characters. Three marks of where a volume ended in an old edition,
    and the note on its edition that a modern publisher put after Northanger Abbey, are left out.

    Raises:
        ValueError: There is no such split.
    """
    return _GAP.join(novels(split))


def state_of_the_union(split: Split) -> str:
    """Return the addresses of presidents of the United States on the state of the Union, in order of year.

    Training is 1790 to 1992, validation 1993 to 2008 (Clinton and George W. Bush), the test 2009 to 2021 (Obama, Trump
    and Biden): 9.7, 0.6 and 0.5 million characters. No president is in two splits. The parts differ in period as well,
    so a model trained on the first meets words in the others that it has not seen. A line is an address.

    Raises:
        ValueError: There is no such split.
    """
    return _GAP.join(addresses(split))


def corpus(split: Split) -> str:
    """Return the novels and the addresses of a split in one string: the usual corpus for pre-training here.

    Two blank lines stand between documents. The novels, which come first, also hold such gaps between their chapters,
    so take `documents` where the borders matter.

    Raises:
        ValueError: There is no such split.
    """
    return _GAP.join(documents(split))


def documents(split: Split) -> list[str]:
    """Return the novels and then the addresses of a split, each a string.

    Raises:
        ValueError: There is no such split.
    """
    return [*novels(split), *addresses(split)]


def novels(split: Split) -> list[str]:
    """Return the novels that `austen` joins, each with its title at its head.

    Raises:
        ValueError: There is no such split.
    """
    check_split(split)
    return [novel for title, novel in _novels() if _HELD_OUT_NOVELS.get(title, "train") == split]


def addresses(split: Split) -> list[str]:
    """Return the addresses that `state_of_the_union` joins, in order of year.

    Raises:
        ValueError: There is no such split.
    """
    check_split(split)
    return [address for year, address in _addresses() if _split_of_year(year) == split]


def verses(split: Split) -> list[tuple[str, str]]:
    """Return pairs of the same Bible verse in English (World English Bible) and Spanish (Reina-Valera 1909).

    The verses are in canonical order and neighbours are alike, so they are cut into blocks of 50: of every 20 blocks
    the 10th is validation, the 20th is the test, the others are training. Some sentences come again far away, word for
    word (parallel books, formulas). A pair whose English or Spanish stands in the test is left out of the other splits,
    and one whose English or Spanish stands in validation is left out of training, so that no held-out sentence was
    seen. Near-copies remain: about one held-out English verse in 20 has 60 characters in a row that training has too.
    The first word of a Spanish chapter is in capitals, as it was printed.

    Raises:
        ValueError: There is no such split.
    """
    return list(_verses()[check_split(split)])


def _read(name: str) -> str:
    packed = files("allyouneed.data").joinpath("files", name).read_bytes()
    found = hashlib.sha256(packed).hexdigest()
    if found != _SHA256[name]:
        raise AssetError(f"{name} in the installed package has the sha256 {found}, not {_SHA256[name]}: reinstall it")
    return lzma.decompress(packed).decode("utf-8")


@cache
def _novels() -> tuple[tuple[str, str], ...]:
    text = _EDITORS_WORDS.sub("", _read("austen.txt.xz"))
    texts = [novel.strip() for novel in _NOVEL_BEGINS.split(text) if novel]
    return tuple((novel.partition("\n")[0], novel) for novel in texts)


@cache
def _addresses() -> tuple[tuple[int, str], ...]:
    texts = _read("state_of_the_union.txt.xz").strip().split("\n\n\n")
    return tuple(zip(_ADDRESS_YEARS, texts, strict=True))


def _split_of_year(year: int) -> Split:
    if year >= _FIRST_TEST_YEAR:
        return "test"
    return "validation" if year >= _FIRST_VALIDATION_YEAR else "train"


@cache
def _verses() -> dict[Split, tuple[tuple[str, str], ...]]:
    rows: dict[Split, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
    for number, line in enumerate(_read("verses.en-es.tsv.xz").splitlines()):
        english, spanish = line.split("\t")
        rows[split_of_block(number // ROWS_IN_A_BLOCK)].append((english, spanish))
    return without_repeats(rows, lambda pair: pair)
