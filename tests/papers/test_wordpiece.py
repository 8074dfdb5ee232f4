"""WordPiece against Hugging Face's tokenizers: every character, ten thousand strings, and what is learned."""

import math
import random
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from allyouneed.data import austen, is_present
from allyouneed.data.assets import asset_folder
from allyouneed.papers.bert import SPECIAL_TOKENS, WordPieceTokenizer
from allyouneed.papers.bert.pieces import CONTINUES, learn_pieces
from allyouneed.papers.bert.wordpiece import IDEOGRAPHS, words
from allyouneed.text import Tokenizer

MINILM = "all-minilm-l6-v2"
SCRIPTS = (
    "Привет, мир! Ёлка",
    "Ελληνικά: ΌΧΙ ΣΑΣ",
    "日本語のテキスト。漢字かな交じり文",
    "中文字符，没有空格",
    "한국어 문장입니다",
    "שלום עולם",
    "مرحبا بالعالم، كيف الحال؟",
    "नमस्ते दुनिया।",
    "สวัสดีชาวโลก",
    "Tiếng Việt Ấp ế",
    "İstanbul ığdır ŞĞÜ",
    "naïve café Ångström ﬁ ﬀ ǅ",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ☃",
    "a\u0301e\u0308 o\u0327\u0323",
    "tab\tnew\nline\r\nnull\0bell\x07\x7f\x85\u200b\u200e\ufeff\ufffd",
    "\u00a0\u2003\u2028\u3000spaces",
    "[CLS] [MASK] [SEP] [PAD] [UNK] ##ing # ## ###",
    "$3.50 + 20% ^_^ `x` ~y~ a|b <tag> {x}",
    "don't stop-me it's e.g. U.S.A...",
)
EDGES = tuple(range(code - 2, code + 3) for block in IDEOGRAPHS for code in block)


@pytest.fixture(scope="module")
def pieces() -> tuple[str, ...]:
    """Give MiniLM's vocabulary where it is in the cache, and a small one that is learned here elsewhere."""
    if is_present(MINILM) and (asset_folder(MINILM) / "vocab.txt").is_file():
        return WordPieceTokenizer.load(asset_folder(MINILM)).pieces
    characters = {character: 1 for text in SCRIPTS for character in "".join(words(text))}
    counts = Counter(word for word in words(austen("train")[:100_000]) if word)
    return (*SPECIAL_TOKENS, *learn_pieces({**characters, **counts}, 1500))


def reference(pieces: tuple[str, ...], lowercase: bool) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(
        models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def their_words(text: str, lowercase: bool) -> list[str]:
    normal = normalizers.BertNormalizer(lowercase=lowercase).normalize_str(text)
    return [word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normal)]


def our_words(text: str, lowercase: bool) -> list[str]:
    return [word for word in words(text, lowercase=lowercase) if word]


def differing(lowercase: bool) -> set[str]:
    """Give the characters that are cut or cleaned otherwise: theirs is an older table of Unicode.

    Many characters at once, and one by one only where the many differ. Of the long blocks of ideographs and syllables,
    and of what is not assigned or private, every 97th stands for the others.
    """
    found = set()
    every = []
    for code in range(0x110000):
        character = chr(code)
        category = unicodedata.category(character)
        many = category in ("Cn", "Co") or (category == "Lo" and code >= 0x3400)
        if category != "Cs" and (not many or code % 97 == 0 or any(code in edge for edge in EDGES)):
            every.append(character)
    for start in range(0, len(every), 64):
        some = every[start : start + 64]
        text = "".join(f"a{character}b " for character in some)
        if our_words(text, lowercase) != their_words(text, lowercase):
            found |= {
                character
                for character in some
                if our_words(f"a{character}b", lowercase) != their_words(f"a{character}b", lowercase)
            }
    return found


@pytest.fixture(scope="module")
def younger() -> set[str]:
    return differing(True) | differing(False)


def test_every_character_that_is_not_younger_than_their_table_is_treated_alike(younger: set[str]) -> None:
    assert len(younger) < 1000
    # Four were given another category since.
    old = {character for character in younger if unicodedata.ucd_3_2_0.category(character) != "Cn"}
    assert old <= {"\u166d", "\u1734", "\u1885", "\u1886"}


def test_ten_thousand_strings_have_the_ids_of_the_reference(pieces: tuple[str, ...], younger: set[str]) -> None:
    draw = random.Random(0)
    novel = austen("test")
    plain = [piece for piece in pieces if piece not in SPECIAL_TOKENS]

    def character() -> str:
        while True:
            found = chr(draw.choice((draw.randrange(0x250), draw.randrange(0x3100), draw.randrange(0x110000))))
            if not 0xD800 <= ord(found) < 0xE000 and found not in younger:
                return found

    def text() -> str:
        kind = draw.randrange(6)
        if kind == 0:
            return "".join(character() for _ in range(draw.randrange(30)))
        if kind == 1:
            start = draw.randrange(len(novel) - 200)
            return novel[start : start + draw.randrange(200)]
        if kind == 2:
            return draw.choice(SCRIPTS) + draw.choice(("", " ", "\n")) + draw.choice(SCRIPTS)
        if kind == 3:
            return "".join(draw.choice(plain).removeprefix(CONTINUES) for _ in range(draw.randrange(12)))
        if kind == 4:
            return "".join(
                draw.choice(("a", "Z", "é", "##", " ", "'", "1", "字", "́")) for _ in range(draw.randrange(40))
            )
        return " ".join(draw.choice(plain) for _ in range(draw.randrange(10)))

    edges = ["", " ", "\0", "a" * 99, "a" * 100, "a" * 101, "é" * 100, "x" * 5000, "ab " * 5000, "字" * 500]
    texts = [*edges, *SCRIPTS, *(text() for _ in range(10_000 - len(edges) - len(SCRIPTS)))]
    for lowercase in (True, False):
        some = texts if lowercase else texts[::5]
        ours = WordPieceTokenizer(pieces, lowercase=lowercase)
        theirs = [found.ids for found in reference(pieces, lowercase).encode_batch(some, add_special_tokens=False)]
        for one, expected in zip(some, theirs, strict=True):
            assert ours.encode(one) == expected, repr(one)


def test_a_published_tokenizer_gives_the_same() -> None:
    if not is_present(MINILM):
        pytest.skip(f"{MINILM} is not in the cache: allyouneed fetch {MINILM}")
    folder = asset_folder(MINILM)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.no_truncation()
    theirs.no_padding()
    theirs.encode_special_tokens = True
    ours = WordPieceTokenizer.load(folder)
    assert ours.vocabulary == theirs.get_vocab_size() == 30_522
    assert dict(ours.special_tokens) == {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
    for text in (*SCRIPTS, austen("test")[:20_000]):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


SMALL = [*SPECIAL_TOKENS, "un", "##aff", "##able", "##a", "##b", "a", "aff", "b", "!", "##un"]


class TestEncoding:
    def test_the_longest_match_comes_first(self) -> None:
        tokenizer = WordPieceTokenizer(SMALL)
        found = [tokenizer.pieces[token] for token in tokenizer.encode("UNaffable!")]
        assert found == ["un", "##aff", "##able", "!"]

    def test_the_longest_piece_of_all_is_found_at_the_beginning_and_within(self) -> None:
        parts = [*"abcdefghij", *(f"##{letter}" for letter in "abcdefghij"), "abcd", "##efghij"]
        for longest in ("abcdefghij", "##bcdefghij", "##cdefghij"):
            tokenizer = WordPieceTokenizer([*SPECIAL_TOKENS, *parts[:20], longest])
            assert tokenizer.pieces[tokenizer.encode("abcdefghij")[-1]] == longest
        tokenizer = WordPieceTokenizer([*SPECIAL_TOKENS, *parts])
        assert [tokenizer.pieces[token] for token in tokenizer.encode("abcdefghij")] == ["abcd", "##efghij"]

    def test_a_word_that_cannot_be_spelled_is_unknown_as_a_whole(self) -> None:
        tokenizer = WordPieceTokenizer(SMALL)
        assert tokenizer.encode("unaffablez b") == [tokenizer.unknown, tokenizer.ids["b"]]

    def test_a_special_tokens_name_is_text(self) -> None:
        tokenizer = WordPieceTokenizer(SMALL)
        assert not set(tokenizer.encode("[CLS] [MASK] [SEP] [PAD]")) & {0, 2, 3, 4}

    def test_a_tensor_has_the_same_tokens(self) -> None:
        tokenizer = WordPieceTokenizer(SMALL)
        assert tokenizer.encode_to_tensor("un a b").tolist() == tokenizer.encode("un a b")
        assert tokenizer.encode_to_tensor("").tolist() == []

    def test_decoding_joins_pieces_into_words(self) -> None:
        tokenizer = WordPieceTokenizer(SMALL)
        assert tokenizer.decode([2, *tokenizer.encode("Unaffable b!"), 3]) == "[CLS] unaffable b ! [SEP]"
        with pytest.raises(ValueError, match="token 15 is not in the vocabulary: ids are 0 to 14"):
            tokenizer.decode([15])

    def test_half_of_a_surrogate_pair_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"character 1 of the text, '\\ud800'"):
            WordPieceTokenizer(SMALL).encode("a\ud800")

    def test_it_is_a_tokenizer(self) -> None:
        assert isinstance(WordPieceTokenizer(SMALL), Tokenizer)


class TestVocabulary:
    @pytest.mark.parametrize(
        ("pieces", "message"), [(SMALL[1:], r"lacks .*\[PAD\]"), ([*SMALL, "un"], "more than once")]
    )
    def test_a_wrong_one_is_refused(self, pieces: list[str], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            WordPieceTokenizer(pieces)

    @pytest.mark.parametrize("lowercase", [True, False])
    def test_comes_back_from_a_folder(self, lowercase: bool, tmp_path: Path) -> None:
        tokenizer = WordPieceTokenizer([*SMALL, "\u2028", "\u0085"[:0] + "é"], lowercase=lowercase)
        with pytest.raises(ValueError, match="must be one line"):
            tokenizer.save(tmp_path)
        tokenizer = WordPieceTokenizer([*SMALL, "é"], lowercase=lowercase)
        tokenizer.save(tmp_path)
        again = WordPieceTokenizer.load(tmp_path)
        assert (again.pieces, again.lowercase) == (tokenizer.pieces, lowercase)

    def test_transformers_reads_it(self, tmp_path: Path) -> None:
        ours = WordPieceTokenizer(SMALL)
        ours.save(tmp_path)
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        for text in ("Unaffable, a b!", "UN b", ""):
            assert theirs(text).input_ids == [ours.begin, *ours.encode(text), ours.separator]

    def test_a_missing_or_damaged_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"vocab\.txt is missing"):
            WordPieceTokenizer.load(tmp_path)
        (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
        with pytest.raises(ValueError, match=r"vocab\.txt is not a vocabulary"):
            WordPieceTokenizer.load(tmp_path)
        WordPieceTokenizer(SMALL).save(tmp_path)
        (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true, "strip_accents": false}')
        with pytest.raises(ValueError, match="strip_accents False"):
            WordPieceTokenizer.load(tmp_path)
        (tmp_path / "tokenizer_config.json").write_text("[")
        with pytest.raises(ValueError, match=r"tokenizer_config\.json is not"):
            WordPieceTokenizer.load(tmp_path)


def slow_pieces(counts: dict[str, int], vocabulary: int) -> list[str]:
    """Learn pieces by trying every pair and working out the whole text's likelihood."""

    def likelihood(rows: list[list[str]]) -> float:
        found: Counter[str] = Counter()
        for row, count in zip(rows, counts.values(), strict=True):
            found.update({piece: row.count(piece) * count for piece in set(row)})
        total = sum(found.values())
        return sum(count * math.log(count / total) for count in found.values())

    def joined(row: list[str], first: str, second: str) -> list[str]:
        new, place = [], 0
        while place < len(row):
            both = row[place : place + 2] == [first, second]
            new.append(first + second.removeprefix(CONTINUES) if both else row[place])
            place += 2 if both else 1
        return new

    rows = [[word[0], *(CONTINUES + character for character in word[1:])] for word in counts]
    pieces = sorted({piece for row in rows for piece in row})
    while len(pieces) < vocabulary:
        pairs = {pair for row in rows for pair in pairwise(row)}
        best = max(pairs, key=lambda pair: likelihood([joined(row, *pair) for row in rows]))
        rows = [joined(row, *best) for row in rows]
        piece = best[0] + best[1].removeprefix(CONTINUES)
        if piece not in pieces:
            pieces.append(piece)
    return pieces


class TestLearning:
    @pytest.mark.parametrize("seed", range(5))
    def test_joins_the_pair_that_makes_the_text_likeliest(self, seed: int) -> None:
        draw = random.Random(seed)
        # Counts so uneven that, of these seeds, no two pairs gain the same.
        counts = {
            "".join(draw.choices("abcd", (5, 4, 2, 1), k=draw.randrange(1, 7))): draw.randrange(1, 10_000)
            for _ in range(25)
        }
        expected = slow_pieces(counts, 20)
        assert learn_pieces(counts, 20) == expected
        assert len(expected) == len(set(expected)) == 20

    def test_looking_at_few_pairs_finds_the_same_as_looking_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        counts = Counter(word for word in words(austen("train")[:20_000]) if word)
        quick = learn_pieces(counts, 300)
        monkeypatch.setattr("allyouneed.papers.bert.pieces._least_count", lambda floor, total: 2)
        assert learn_pieces(counts, 300) == quick

    def test_spells_the_text_without_unknown_words(self) -> None:
        text = austen("train")[:20_000]
        tokenizer = WordPieceTokenizer.train([text], 400)
        tokens = tokenizer.encode(text)
        assert tokenizer.vocabulary == 400 and tokenizer.unknown not in tokens
        assert tokenizer.decode(tokens).split() == our_words(text, True)
        assert len(tokens) < 0.6 * len(text)

    def test_a_size_out_of_range_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no room for the 3 characters"):
            WordPieceTokenizer.train(["abc"], 7)
        with pytest.raises(ValueError, match="not 95: ask for no more"):
            WordPieceTokenizer.train(["abc abc"], 100)
