"""The tokenizer of a GGUF file is the one that its model was trained with, or the error says why not."""

import io
import json
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.integrations.gguf import gguf_tokenizer_mapping

from allyouneed.data import addresses
from allyouneed.hub import CheckpointFormatError, UnsupportedError, open_model
from allyouneed.hub.gguf_tokenizer import tokenizer_from
from allyouneed.text import BytePairTokenizer, PublishedTokenizer, load_tokenizer


def metadata(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": ["<end>", "a", "b", "ab", "Ġ", "1", "2", "12", "<user>"],
        "token_type": np.array([3, 1, 1, 1, 1, 1, 1, 1, 4], np.int32),
        "merges": ["a b", "1 2"],
    }
    values |= changes
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


def make(**changes: Any) -> BytePairTokenizer:
    tokenizer = tokenizer_from(metadata(**changes), "a.gguf")
    assert isinstance(tokenizer, BytePairTokenizer)
    return tokenizer


def test_ids_and_special_tokens() -> None:
    tokenizer = make()
    assert tokenizer.encode("ab ab12") == [3, 4, 3, 7]
    assert tokenizer.special_tokens == {"<end>": 0}
    assert tokenizer.vocabulary == 9
    assert tokenizer.decode([0, 3, 4, 8]) == "<end>ab <user>"


def test_smollm_splits_digits() -> None:
    assert make(pre="smollm").encode("ab12") == [3, 5, 6]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"model": None}, CheckpointFormatError, "has no tokenizer"),
        ({"model": "bert"}, UnsupportedError, "kind 'bert'; of those in GGUF files, 'gpt2' and 'llama' are read"),
        ({"model": "llama"}, CheckpointFormatError, r"tokenizer\.ggml\.scores must be 9 numbers"),
        (
            {"pre": "tekken"},
            UnsupportedError,
            "the way called 'tekken'; these are known: gpt-2, smollm, llama-bpe, qwen2",
        ),
        ({"pre": None}, UnsupportedError, "the way called None"),
        ({"tokens": None}, CheckpointFormatError, r"tokenizer\.ggml\.tokens must be strings"),
        ({"merges": np.zeros(2)}, CheckpointFormatError, r"tokenizer\.ggml\.merges must be strings"),
        ({"tokens": ["a"] * 9}, CheckpointFormatError, "a token twice"),
        ({"token_type": np.ones(3)}, CheckpointFormatError, "must have 9 numbers"),
        ({"merges": ["a x"]}, CheckpointFormatError, "the merge 'a x' joins or makes tokens that there are not"),
        ({"merges": ["ab"]}, CheckpointFormatError, "the merge 'ab'"),
        ({"add_bos_token": True, "bos_token_id": 9}, CheckpointFormatError, "bos_token_id is 9, of 9 tokens"),
        ({"add_bos_token": True, "bos_token_id": -1}, CheckpointFormatError, "bos_token_id is -1, of 9 tokens"),
        ({"add_eos_token": True}, CheckpointFormatError, "eos_token_id is None"),
    ],
)
def test_what_cannot_be_a_tokenizer(changes: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        make(**changes)


STRINGS = st.text(
    st.one_of(
        st.sampled_from(list("abeinorst ABT0123456789'.,!?-\n\r\t\u3000éñ漢字🙂👍🏽")),
        st.characters(exclude_categories=("Cs",)),
    ),
    max_size=40,
)


@cache
def learned() -> tuple[list[str], list[str]]:
    """Byte pairs of English texts: tokens and merges."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text[:20_000] for text in addresses("train")[:5]], trainer)
    content = json.loads(tokenizer.to_str())["model"]
    return sorted(content["vocab"], key=content["vocab"].__getitem__), [" ".join(pair) for pair in content["merges"]]


@cache
def both(split: str) -> tuple[Any, Any]:
    """Ours of a file's metadata, and what transformers makes of the same."""
    tokens, merges = learned()
    tokens = [*tokens, "<|end|>", "<user>"]
    kinds = np.array([1] * (len(tokens) - 2) + [3, 4], np.int32)
    ours = make(pre=split, tokens=tokens, merges=merges, token_type=kinds)
    theirs, _ = gguf_tokenizer_mapping.convert_gguf_tokenizer(
        "qwen2",
        {
            "tokenizer_type": "gpt2",
            "pre_tokenizer_type": split,
            "tokens": tokens,
            "merges": merges,
            "token_type": kinds.tolist(),
        },
    )
    return ours, theirs


@given(text=STRINGS)
@pytest.mark.parametrize("split", ["gpt-2", "llama-bpe", "qwen2"])
def test_ids_of_byte_pairs_equal_those_of_transformers(split: str, text: str) -> None:
    ours, theirs = both(split)
    if split == "qwen2":
        # As Qwen's own tokenizer has it, and transformers' reader of these files has not.
        text = unicodedata.normalize("NFC", text)
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ours.encode(text)) == text


def test_qwen_normalises() -> None:
    ours, _ = both("qwen2")
    assert (
        ours.encode("e\u0301") == ours.encode("é")
        and both("llama-bpe")[0].decode(both("llama-bpe")[0].encode("e\u0301")) == "e\u0301"
    )


def test_a_word_of_llama_that_is_a_token_is_not_paired() -> None:
    """As its own tokenizer and llama.cpp have it: merges are not asked for whole words."""
    tokens, merges = learned()
    tokens = [*tokens, "zqz"]
    tokenizer = make(pre="llama-bpe", tokens=tokens, merges=merges, token_type=None)
    assert tokenizer.encode("zqz") == [len(tokens) - 1]
    assert len(make(pre="qwen2", tokens=tokens, merges=merges, token_type=None).encode("zqz")) == 3


def test_llama_begins_texts_unless_the_file_says_otherwise() -> None:
    usual = {"pre": "llama-bpe", "bos_token_id": 0}
    assert make(**usual).encode_prompt("ab") == [0, 3] and make(**usual).encode("ab") == [3]
    assert make(**usual, add_bos_token=False).encode_prompt("ab") == [3]
    assert make(pre="qwen2", bos_token_id=0).encode_prompt("ab") == [3]


@cache
def pieces(fallback: bool = True) -> tuple[Any, dict[str, Any]]:
    """A SentencePiece model of byte pairs, and the metadata of a GGUF file that has its pieces and scores."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in addresses("train")[:5] for line in text[:20_000].split(". ") if line]),
        model_writer=model,
        model_type="bpe",
        vocab_size=900,
        byte_fallback=fallback,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    reference: Any = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    places = range(reference.get_piece_size())
    kinds = [
        2 if reference.is_unknown(place) else 3 if reference.is_control(place) else 6 if reference.is_byte(place) else 1
        for place in places
    ]
    return reference, metadata(
        model="llama",
        pre="default",
        tokens=[reference.id_to_piece(place) for place in places],
        scores=np.array([reference.get_score(place) for place in places], np.float32),
        token_type=np.array(kinds, np.int32),
        merges=None,
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
    )


@given(text=STRINGS)
@example(text="  two spaces first")
@example(text=" ")
def test_ids_of_sentence_pieces_equal_those_of_sentencepiece(text: str) -> None:
    reference, ours = pieces()[0], of_pieces()
    # It takes no NUL and has a meaning of its own for the mark of spaces.
    text = text.replace("\0", "").replace("▁", "")
    assert ours.encode(text) == reference.encode(text)
    assert ours.decode(ours.encode(text)) == text
    assert ours.encode_prompt(text) == [1, *reference.encode(text)]


@cache
def of_pieces() -> PublishedTokenizer:
    tokenizer = tokenizer_from(pieces()[1], "a.gguf")
    assert isinstance(tokenizer, PublishedTokenizer)
    return tokenizer


def test_sentence_pieces_without_the_first_space() -> None:
    values = {**pieces()[1], "tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    tokenizer = tokenizer_from(values, "a.gguf")
    with_space = of_pieces()
    assert tokenizer.encode("the") != with_space.encode("the") == tokenizer.encode(" the")
    assert tokenizer.encode_prompt("the") == tokenizer.encode("the")
    assert tokenizer.decode(tokenizer.encode(" the")) == " the" and tokenizer.special_tokens_map["bos_token"] == "<s>"


def test_sentence_pieces_come_back_from_a_folder(tmp_path: Path) -> None:
    tokenizer = of_pieces()
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    text = " In the beginning 2026\n é 漢"
    assert again.encode_prompt(text) == tokenizer.encode_prompt(text) and again.decode(again.encode(text)) == text


def test_a_model_with_its_tokenizer_comes_back(chat_file: Path, tmp_path: Path) -> None:
    tokenizer = open_model(chat_file).tokenizer()
    tokenizer.save(tmp_path)
    again = BytePairTokenizer.load(tmp_path)
    text = "In the beginning 2026\n<|im_end|> é 漢"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.decode(again.encode(text)) == text
    assert again.special_tokens == tokenizer.special_tokens
