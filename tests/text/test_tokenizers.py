import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from allyouneed.data.texts import austen
from allyouneed.text import BytePairTokenizer, ByteTokenizer, Tokenizer
from allyouneed.text import byte_pairs as module

TEXT = austen("test")[:60_000]
# The second is, by its characters, also a spelling of bytes.
SPECIAL = ("<|end|>", "<|é|>")
TEXTS = [TEXT[:30_000], TEXT[30_000:], "a   b\n\n\nc \n\n  d" * 1000]
BYTE_PAIRS = BytePairTokenizer.train(TEXTS, 600, SPECIAL)
BYTES = ByteTokenizer()

# What a text is likely to trip over: white space of all kinds, scripts without spaces, names of special tokens.
ANY_TEXT = st.text() | st.lists(
    st.sampled_from(
        [
            "a",
            "été",
            "'s",
            "12",
            "²",
            "_",
            ".",
            " ",
            "   ",
            "\n",
            "\n\n",
            "\r\n",
            "\t",
            "\x1c",
            "\u3000",
            "終り",
            *SPECIAL,
        ]
    )
).map("".join)

either = pytest.mark.parametrize("tokenizer", [BYTES, BYTE_PAIRS], ids=["bytes", "byte pairs"])


@either
@given(text=ANY_TEXT)
def test_any_text_comes_back(tokenizer: Tokenizer, text: str):
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert all(0 <= token < tokenizer.vocabulary for token in tokens)
    assert tokenizer.encode_to_tensor(text).tolist() == tokens


@either
def test_both_are_tokenizers(tokenizer: Tokenizer):
    assert isinstance(tokenizer, Tokenizer)


@either
def test_saved_tokenizers_load_as_they_were(tokenizer: Tokenizer, tmp_path: Path):
    folder = tmp_path / "new" / "folder"
    tokenizer.save(folder)
    tokenizer.save(str(folder))
    loaded = type(tokenizer).load(str(folder))
    assert loaded.vocabulary == tokenizer.vocabulary
    assert loaded.special_tokens == tokenizer.special_tokens
    text = TEXT[:2000] + SPECIAL[0]
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(range(loaded.vocabulary)) == tokenizer.decode(range(tokenizer.vocabulary))
    assert {path.name for path in folder.iterdir()} - {"tokenizer_config.json"} == {"tokenizer.json"}


@either
def test_a_missing_or_damaged_file_is_told(tokenizer: Tokenizer, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        type(tokenizer).load(tmp_path)
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\xff" + whole, b"{}", b"[]", b'{"model": null}'):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"tokenizer\.json does not describe a tokenizer"):
            type(tokenizer).load(tmp_path)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path):
    BYTES.save(tmp_path / "bytes")
    BYTE_PAIRS.save(tmp_path / "pairs")
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="type 'BPE'; a byte tokenizer's type is 'Bytes'"):
        ByteTokenizer.load(tmp_path / "pairs")
    with pytest.raises(ValueError, match=r"does not describe a tokenizer"):
        BytePairTokenizer.load(tmp_path / "bytes")
    with pytest.raises(ValueError, match=r"tokenizer\.json: a tokenizer of WordLevel"):
        BytePairTokenizer.load(tmp_path)


@either
def test_text_without_utf8_is_refused(tokenizer: Tokenizer):
    for encode in (tokenizer.encode, tokenizer.encode_to_tensor):
        with pytest.raises(ValueError, match=r"character 2 of the text, '\\ud800', is half of a surrogate pair"):
            encode("ab\ud800")


@either
@pytest.mark.parametrize("outside", [-1, 600])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer, outside: int):
    with pytest.raises(ValueError, match=rf"token {outside} .* 0 to {tokenizer.vocabulary - 1}"):
        tokenizer.decode([1, outside, -5])


@either
def test_broken_utf8_is_replaced(tokenizer: Tokenizer):
    tokens = tokenizer.encode("終")
    assert len(tokens) == 3
    assert tokenizer.decode(tokens[:2]) == "�"


def test_bytes_are_those_of_utf8_and_stored_as_such():
    assert BYTES.vocabulary == 256
    assert BYTES.encode("aé") == [0x61, 0xC3, 0xA9]
    stored = BYTES.encode_to_tensor("aé" * 1_000_000)
    assert stored.dtype == torch.uint8
    assert stored.shape == (3_000_000,)
    stored[0] = 7


def test_byte_pairs_are_fewer_than_bytes_and_stored_in_32_bits():
    stored = BYTE_PAIRS.encode_to_tensor(TEXT)
    assert stored.dtype == torch.int32
    assert len(stored) < 0.6 * len(TEXT)


def test_the_vocabulary_is_bytes_then_merges_then_special_tokens():
    assert BYTE_PAIRS.vocabulary == 600
    assert BYTE_PAIRS.special_tokens == {SPECIAL[0]: 598, SPECIAL[1]: 599}
    assert BYTE_PAIRS.encode("!") == [0]
    assert all(token < 256 for byte in range(128) for token in BYTE_PAIRS.encode(chr(byte)))
    assert all(len(BYTE_PAIRS.decode([token])) >= 2 for token in range(256, 598))


def test_white_space_is_merged_so_that_cutting_it_would_show():
    assert len(BYTE_PAIRS.encode("a    b")) < len("a    b")
    assert len(BYTE_PAIRS.encode("a\n\n\nb")) < len("a\n\n\nb")


def test_the_first_merge_is_of_the_commonest_pair():
    trained = BytePairTokenizer.train(["xyxyxyxy", "xy zw zw"], 257)
    assert trained.decode([256]) == "xy"
    assert trained.encode("xyz") == [256, *trained.encode("z")]


def test_text_never_gives_special_tokens_and_special_tokens_give_their_names():
    text = f"a{SPECIAL[0]}b{SPECIAL[1]}"
    tokens = BYTE_PAIRS.encode(text)
    assert not set(BYTE_PAIRS.special_tokens.values()) & set(tokens)
    end, other = BYTE_PAIRS.special_tokens.values()
    assert BYTE_PAIRS.decode([end, *BYTE_PAIRS.encode("aé"), other, other, end]) == (
        f"{SPECIAL[0]}aé{SPECIAL[1]}{SPECIAL[1]}{SPECIAL[0]}"
    )


def test_training_twice_gives_the_same_tokenizer_in_any_process(tmp_path: Path):
    program = (
        "import sys; from allyouneed.text import BytePairTokenizer\n"
        f"BytePairTokenizer.train({TEXTS!r}, 600, {SPECIAL!r}).save(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "other")], check=True)
    BYTE_PAIRS.save(tmp_path)
    assert (tmp_path / "other" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("texts", "vocabulary", "special", "message"),
    [
        ([TEXT], 255, (), "vocabulary of 255 has no room .* at least 256"),
        ([TEXT], 257, SPECIAL, "vocabulary of 257 has no room .* 2 special tokens: it must be at least 258"),
        (["abab"], 1000, ("<|end|>",), "pairs for a vocabulary of 258, special tokens included, not for 1000"),
        ([TEXT], 300, ("", "<|end|>"), "must have names"),
        ([TEXT], 300, ("<|end|>", "<|end|>"), "each its own"),
        ([TEXT], 300, ("a", "<|end|>"), r"\['a'\] are ordinary tokens"),
        (["hello"] * 9, 261, ("hello",), r"\['hello'\] are ordinary tokens"),
        ("hello", 300, (), r"one string of 5 characters; it must be several texts, as \[text\]"),
        (["fine", "\udcff"], 256, (), "half of a surrogate pair"),
    ],
)
def test_training_that_cannot_be_is_refused(texts: list[str], vocabulary: int, special: tuple[str, ...], message: str):
    with pytest.raises(ValueError, match=message):
        BytePairTokenizer.train(texts, vocabulary, special)


def test_no_text_gives_the_bytes_alone():
    assert BytePairTokenizer.train([], 256).decode(range(33)).startswith("!")


@given(text=ANY_TEXT, size=st.integers(1, 5))
def test_a_long_text_in_pieces_has_the_tokens_of_the_whole(text: str, size: int):
    whole = tokenizers.Tokenizer.from_str(BYTE_PAIRS._tokenizer.to_str())
    whole.encode_special_tokens = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE_CHARACTERS", size)
        assert "".join(module._pieces(text)) == text
        assert BYTE_PAIRS.encode(text) == whole.encode(text, add_special_tokens=False).ids


def test_a_long_text_is_cut_into_pieces(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_PIECE_CHARACTERS", 1000)
    pieces = list(module._pieces(TEXT))
    assert len(pieces) > 50
    assert max(map(len, pieces)) < 1100
    whole = BYTE_PAIRS._tokenizer.encode(TEXT, add_special_tokens=False).ids
    assert BYTE_PAIRS.encode_to_tensor(TEXT).tolist() == whole


def test_a_text_is_left_whole_where_cutting_it_could_change_its_tokens(monkeypatch: pytest.MonkeyPatch):
    library = tokenizers.Tokenizer.from_str(BYTE_PAIRS._tokenizer.to_str())
    # With a space before each piece, and with words that run across line breaks.
    for splitter in (pre_tokenizers.ByteLevel(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)):
        library.pre_tokenizer = splitter
        expected = library.encode(TEXT[:5000], add_special_tokens=False).ids
        with monkeypatch.context() as patch:
            patch.setattr(module, "_PIECE_CHARACTERS", 10)
            assert BytePairTokenizer(library).encode(TEXT[:5000]) == expected


def test_a_published_file_is_read_without_its_additions_to_text(tmp_path: Path):
    library = tokenizers.Tokenizer.from_str(BYTE_PAIRS._tokenizer.to_str())
    library.enable_truncation(4)
    library.enable_padding(length=9)
    library.post_processor = tokenizers.processors.TemplateProcessing("<|end|> $A", None, [("<|end|>", 598)])
    library.add_tokens(["ordinary addition"])
    library.save(str(tmp_path / "tokenizer.json"))
    loaded = BytePairTokenizer.load(tmp_path)
    assert loaded.encode(TEXT[:500]) == BYTE_PAIRS.encode(TEXT[:500])
    assert loaded.vocabulary == 601
    assert loaded.special_tokens == BYTE_PAIRS.special_tokens
    assert loaded.decode(loaded.encode("an ordinary addition")) == "an ordinary addition"


def test_ids_with_gaps_count_up_to_the_last():
    vocabulary = {symbol: 2 * number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    assert BytePairTokenizer(library).vocabulary == 511


def test_the_file_is_that_of_the_library(tmp_path: Path):
    BYTE_PAIRS.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["type"] == "BPE"
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("The ").ids == BYTE_PAIRS.encode(
        "The "
    )
