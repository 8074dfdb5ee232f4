"""The embedded texts: their splits are what the docstrings say, complete, and do not leak."""

import hashlib
import lzma
import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from itertools import pairwise

import pytest

from allyouneed.data import (
    SPLITS,
    AssetError,
    addresses,
    austen,
    check_split,
    corpus,
    documents,
    novels,
    state_of_the_union,
    texts,
    verses,
)

FOLDER = files("allyouneed.data").joinpath("files")


def raw(name: str) -> str:
    return lzma.decompress(FOLDER.joinpath(name).read_bytes()).decode()


def windows(text: str, width: int, count: int) -> Iterator[str]:
    step = (len(text) - width) // count
    return (text[start : start + width] for start in range(step // 2, len(text) - width, step))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("read", "split", "size", "sha256"),
    [
        (austen, "train", 3_124_405, "2d94b360ac333df2"),
        (austen, "validation", 432_977, "aefa520645abc5e3"),
        (austen, "test", 466_853, "726513a6c18bb678"),
        (state_of_the_union, "train", 9_695_221, "e1e4c16bce4e35eb"),
        (state_of_the_union, "validation", 581_179, "fbb01fba4434079c"),
        (state_of_the_union, "test", 484_077, "964746d956d1c5b3"),
    ],
)
def test_the_splits_never_change(read: Callable, split: str, size: int, sha256: str) -> None:
    text = read(split)
    assert (len(text), digest(text)) == (size, sha256)


@pytest.mark.parametrize(
    ("split", "size", "sha256"),
    [
        ("train", 27_299, "9c443950ad8538d4"),
        ("validation", 1_499, "507fd39f869890d5"),
        ("test", 1_500, "85db3aa6675fff41"),
    ],
)
def test_the_splits_of_the_verses_never_change(split: str, size: int, sha256: str) -> None:
    pairs = verses(split)
    assert (len(pairs), digest("\n".join(map("\t".join, pairs)))) == (size, sha256)


def test_every_novel_is_in_one_split() -> None:
    heads = {split: [novel.split("\n", 1)[0] for novel in novels(split)] for split in SPLITS}
    assert heads == {
        "train": ["SENSE AND SENSIBILITY", "PRIDE AND PREJUDICE", "MANSFIELD PARK", "EMMA"],
        "validation": ["NORTHANGER ABBEY"],
        "test": ["Persuasion"],
    }
    heroes = {"Dashwood": 0, "Darcy": 1, "Bertram": 2, "Knightley": 3, "Tilney": 4, "Wentworth": 5}
    everything = [novel for split in SPLITS for novel in novels(split)]
    for hero, number in heroes.items():
        assert [novel.count(hero) > 20 for novel in everything] == [place == number for place in range(6)], hero


def test_only_editors_words_are_left_out_of_the_novels() -> None:
    kept = [paragraph.strip() for split in SPLITS for novel in novels(split) for paragraph in novel.split("\n\n")]
    given = [paragraph.strip() for paragraph in raw("austen.txt.xz").split("\n\n")]
    distinct = set(kept)
    left_out = [paragraph for paragraph in given if paragraph not in distinct]
    assert [paragraph[:20] for paragraph in left_out] == [
        "[At this point in th",
        "[At this point in th",
        "[End volume one of t",
        "A NOTE ON THE TEXT",
        "Northanger Abbey was",
    ]
    assert [paragraph for paragraph in given if paragraph and paragraph not in left_out] == list(filter(None, kept))


def test_the_addresses_are_complete_and_in_order() -> None:
    everything = [address for split in SPLITS for address in addresses(split)]
    assert "\n\n\n".join(everything) == raw("state_of_the_union.txt.xz").strip()
    assert [len(addresses(split)) for split in SPLITS] == [204, 16, 13]
    assert len(set(everything)) == 233


@pytest.mark.parametrize(
    ("year", "words"),
    [
        (1823, "the American continents"),  # Monroe's doctrine
        (1862, "the last best hope of earth"),
        (1941, "freedom from want"),
        (1946, "the fiscal year 1947"),
        (1964, "unconditional war on poverty"),
        (1992, "By the grace of God, America won the cold war"),
        (1993, "BTU"),
        (1996, "era of big government is over"),
        (2002, "axis of evil"),
        (2009, "day of reckoning has arrived"),
        (2021, "Madam Vice President"),
    ],
)
def test_years_are_those_of_famous_words(year: int, words: str) -> None:
    said = [when for when, address in texts._addresses() if words.lower() in address.lower()]
    assert year in said
    split = "train" if year <= 1992 else "validation" if year <= 2008 else "test"
    assert words.lower() in state_of_the_union(split).lower()


def test_the_years_of_the_addresses() -> None:
    years = [year for year, _ in texts._addresses()]
    assert (years[0], years[-1], len(years)) == (1790, 2021, 233)
    assert [year for before, year in pairwise(years) if year == before] == [1953, 1961]
    assert set(range(1790, 2022)) - set(years) == {1933}


def test_held_out_addresses_are_about_a_twentieth_each() -> None:
    sizes = {split: len(state_of_the_union(split)) for split in SPLITS}
    for split in ("validation", "test"):
        assert 0.04 < sizes[split] / sum(sizes.values()) < 0.06


@pytest.mark.parametrize("read", [austen, state_of_the_union, corpus])
def test_no_passage_of_a_held_out_split_stands_in_another(read: Callable) -> None:
    for held_out, others in (("validation", ("train", "test")), ("test", ("train",))):
        for other in others:
            text = read(other)
            shared = [window for window in windows(read(held_out), 200, 120) if window in text]
            assert not shared, (held_out, other, shared[0])


def test_the_search_for_shared_passages_finds_them() -> None:
    leaky = austen("validation") + austen("train")[1_000_000:1_010_000]
    text = austen("train")
    assert any(window in text for window in windows(leaky, 200, 120))


def blocks() -> list[list[tuple[str, str]]]:
    pairs = [tuple(line.split("\t")) for line in raw("verses.en-es.tsv.xz").strip("\n").split("\n")]
    return [pairs[start : start + 50] for start in range(0, len(pairs), 50)]


def test_verses_are_cut_by_blocks_and_complete() -> None:
    given = blocks()
    parts = {
        "validation": [pair for block in given[9::20] for pair in block],
        "test": [pair for block in given[19::20] for pair in block],
        "train": [pair for number, block in enumerate(given) if number % 20 not in (9, 19) for pair in block],
    }
    sentences = {split: {sentence for pair in pairs for sentence in pair} for split, pairs in parts.items()}
    held_out = {"test": set(), "validation": sentences["test"], "train": sentences["test"] | sentences["validation"]}
    for split, pairs in parts.items():
        kept = set(verses(split))
        left_out = [pair for pair in pairs if pair not in kept]
        assert [pair for pair in pairs if pair in kept] == verses(split)
        assert all(held_out[split] & set(pair) for pair in left_out)
        assert len(left_out) == {"test": 0, "validation": 1, "train": 46}[split]


def test_no_held_out_verse_stands_in_another_split() -> None:
    seen: set[str] = set()
    for split in SPLITS:
        sentences = {sentence for pair in verses(split) for sentence in pair}
        assert not seen & sentences
        seen |= sentences


def test_few_held_out_verses_are_near_copies() -> None:
    def runs(sentence: str) -> Iterator[str]:
        return (sentence[start : start + 60] for start in range(len(sentence) - 59))

    seen = {run for english, _ in verses("train") for run in runs(english)}
    held_out = [english for split in ("validation", "test") for english, _ in verses(split) if len(english) >= 60]
    near = sum(any(run in seen for run in runs(english)) for english in held_out)
    assert (near, len(held_out)) == (137, 2_790)


def test_the_two_languages_are_not_swapped() -> None:
    for split in SPLITS:
        for english, spanish in verses(split)[::50]:
            assert english
            assert not re.search("[áéíóúñ¿¡]", english)
            assert spanish
            assert not re.search(r"\b(the|and|of)\b", spanish)


def test_the_corpus_is_the_documents() -> None:
    for split in SPLITS:
        assert documents(split) == novels(split) + addresses(split)
        assert corpus(split) == austen(split) + "\n\n\n" + state_of_the_union(split)
        assert all(document == document.strip() for document in documents(split))


def test_what_is_returned_is_the_callers() -> None:
    verses("test").clear()
    documents("test").clear()
    addresses("test").clear()
    assert len(verses("test")) == 1_500
    assert len(documents("test")) == 14
    assert len(addresses("test")) == 13


@pytest.mark.parametrize("read", [austen, state_of_the_union, verses, corpus, documents, novels, addresses])
def test_an_unknown_split_is_refused(read: Callable) -> None:
    # A type checker at run time refuses it before the function does.
    with pytest.raises((ValueError, TypeError), match=r"(?s)'dev'.*'train', 'validation', 'test'"):
        read("dev")


def test_a_known_split_is_accepted() -> None:
    assert [check_split(split) for split in SPLITS] == ["train", "validation", "test"]
    with pytest.raises(ValueError, match="''"):
        check_split("")


def test_a_damaged_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(texts._SHA256, "austen.txt.xz", "0" * 64)
    with pytest.raises(AssetError, match=r"austen\.txt\.xz.*8023f1de.*reinstall"):
        texts._read("austen.txt.xz")


def test_the_provenance_names_every_file_and_its_sum() -> None:
    rows = re.findall(
        r"^\| `(\S+)` \| `([0-9a-f]{64})` \|$", FOLDER.joinpath("PROVENANCE.md").read_text(), re.MULTILINE
    )
    packed = {path.name: path for path in FOLDER.iterdir() if path.name.endswith(".xz")}
    assert dict(rows) == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in packed.items()}
