"""The tokenizer of a GGUF file is the one that its model was trained with, or the error says why not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from allyouneed.hub import CheckpointFormatError, UnsupportedError, open_model
from allyouneed.hub.gguf_tokenizer import tokenizer_from
from allyouneed.text import BytePairTokenizer


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
    return tokenizer_from(metadata(**changes), "a.gguf")


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
        ({"model": "llama"}, UnsupportedError, "kind 'llama'; of those in GGUF files, 'gpt2' is read"),
        ({"pre": "qwen2"}, UnsupportedError, "the way called 'qwen2'; these are known: gpt-2, smollm"),
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


def test_a_model_with_its_tokenizer_comes_back(chat_file: Path, tmp_path: Path) -> None:
    tokenizer = open_model(chat_file).tokenizer()
    tokenizer.save(tmp_path)
    again = BytePairTokenizer.load(tmp_path)
    text = "In the beginning 2026\n<|im_end|> é 漢"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.decode(again.encode(text)) == text
    assert again.special_tokens == tokenizer.special_tokens
