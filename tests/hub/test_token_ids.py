"""End, begin and padding tokens are found wherever a folder states them, and what cannot be a token is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allyouneed.hub import CheckpointFormatError, UnsupportedError, open_model
from allyouneed.hub.gguf_tokenizer import tokenizer_from
from allyouneed.text import BytePairTokenizer, GenerationConfig, load_tokenizer

NAMES = ["<s>", "</s>", "<turn>", "<pad>"]
BEGIN, END, TURN, PAD = range(257, 261)


@pytest.fixture
def tokenizer() -> BytePairTokenizer:
    return BytePairTokenizer.train(["to be or not to be"], 261, NAMES)


@pytest.fixture
def folder(tokenizer: BytePairTokenizer, write: Callable[..., Path]) -> Callable[..., Path]:
    """Give a function that writes a folder with a tokenizer and what its files state."""

    def make(**files: Any) -> Path:
        path = write({"tiny.wte.weight": torch.zeros(5, 4)}, **files.pop("config", {}))
        tokenizer.save(path)
        (path / "tokenizer_config.json").unlink()
        for name, content in files.items():
            (path / f"{name}.json").write_text(json.dumps(content))
        return path

    return make


@pytest.mark.parametrize(
    ("files", "begin", "ends", "pad"),
    [
        ({}, None, (), None),
        ({"config": {"bos_token_id": BEGIN, "eos_token_id": END}}, BEGIN, (END,), None),
        ({"config": {"eos_token_id": [TURN, END, TURN], "pad_token_id": -1}}, None, (TURN, END), None),
        ({"generation_config": {"eos_token_id": [END, TURN], "pad_token_id": PAD}}, None, (END, TURN), PAD),
        # What generation goes by comes before what the model was trained with.
        (
            {"config": {"eos_token_id": END, "bos_token_id": 0}, "generation_config": {"eos_token_id": TURN}},
            0,
            (TURN,),
            None,
        ),
        ({"tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>"}}, BEGIN, (END,), None),
        ({"tokenizer_config": {"eos_token": {"content": "<turn>", "lstrip": False}}}, None, (TURN,), None),
        ({"special_tokens_map": {"eos_token": "</s>", "pad_token": {"content": "<pad>"}}}, None, (END,), PAD),
        # The newer file goes before the older, and saying that there is none is saying something.
        (
            {
                "tokenizer_config": {"bos_token": None, "eos_token": "<turn>"},
                "special_tokens_map": {"bos_token": "<s>", "eos_token": "</s>"},
            },
            None,
            (TURN,),
            None,
        ),
        # A tokenizer's end is one more.
        (
            {"generation_config": {"eos_token_id": [TURN]}, "tokenizer_config": {"eos_token": "</s>"}},
            None,
            (TURN, END),
            None,
        ),
        ({"tokenizer_config": {"eos_token": "<unheard of>", "pad_token": ""}}, None, (), None),
        (
            {"tokenizer_config": {"eos_token": "<x>", "added_tokens_decoder": {"900": {"content": "<x>"}}}},
            None,
            (900,),
            None,
        ),
    ],
)
def test_from_wherever_a_folder_states_them(
    folder: Callable[..., Path], files: dict[str, Any], begin: int | None, ends: tuple[int, ...], pad: int | None
) -> None:
    found = open_model(folder(**files)).generation
    assert (found.bos_token_id, found.eos_token_ids, found.pad_token_id) == (begin, ends, pad)


@pytest.mark.parametrize(
    ("files", "begin", "ends"),
    [
        ({"tokenizer_config": {"bos_token": "<s>", "eos_token": "</s>"}}, BEGIN, (END,)),
        ({"config": {"bos_token_id": BEGIN, "eos_token_id": [TURN, END]}}, BEGIN, (TURN,)),
        ({"generation_config": {"eos_token_id": TURN}}, None, (TURN,)),
        # That there is none is the tokenizer's to say.
        ({"config": {"bos_token_id": BEGIN}, "tokenizer_config": {"bos_token": None}}, None, ()),
        # A number that is an ordinary token, as where a class's default was written for another vocabulary.
        ({"config": {"bos_token_id": 1, "eos_token_id": 2}}, None, ()),
        ({"tokenizer_config": {"eos_token": "<unheard of>"}}, None, ()),
    ],
)
def test_tokenizers_say_them_too(
    folder: Callable[..., Path], files: dict[str, Any], begin: int | None, ends: tuple[int, ...], tmp_path: Path
) -> None:
    tokenizer = open_model(folder(**files)).tokenizer()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (begin, ends)
    tokenizer.save(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again.special_tokens_map == tokenizer.special_tokens_map
    assert (again.bos_token_id, again.eos_token_ids) == (begin, ends)


def test_unigram_and_older_vocabularies(folder: Callable[..., Path]) -> None:
    path = folder(tokenizer_config={"eos_token": "</s>", "pad_token": "[PAD]"})
    vocabulary = {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["</s>", -1.0]]}}
    (path / "tokenizer.json").write_text(json.dumps(vocabulary))
    (path / "vocab.txt").write_text("a\nb\n[PAD]\n")
    found = open_model(path).generation
    assert (found.eos_token_ids, found.pad_token_id) == ((1,), 2)


def test_what_is_not_used_is_kept(folder: Callable[..., Path], tiny: Any, tmp_path: Path) -> None:
    entries = {"eos_token_id": [END, TURN], "temperature": 0.6, "transformers_version": "4.1", "top_p": 0.9}
    stored = open_model(folder(generation_config=entries))
    assert stored.generation.other == {"temperature": 0.6, "top_p": 0.9}
    tiny.generation = stored.generation
    tiny.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert again == {"eos_token_id": [END, TURN], "temperature": 0.6, "top_p": 0.9}
    # What was stated before does not stay behind.
    tiny.generation = GenerationConfig()
    tiny.save_pretrained(tmp_path / "again")
    assert open_model(tmp_path / "again").generation == GenerationConfig()


@pytest.mark.parametrize(
    ("files", "error", "said"),
    [
        (
            {"config": {"eos_token_id": "2"}},
            UnsupportedError,
            r"config\.json: eos_token_id is '2'; .* a list of tokens",
        ),
        ({"config": {"eos_token_id": [2, None]}}, UnsupportedError, r"eos_token_id is \[2, None\]"),
        ({"config": {"bos_token_id": True}}, UnsupportedError, "bos_token_id is True; it must be a token, or null"),
        ({"generation_config": {"pad_token_id": [0]}}, UnsupportedError, r"generation_config\.json: pad_token_id"),
        ({"generation_config": [2]}, CheckpointFormatError, "holds a list, not an object"),
        ({"tokenizer_config": {"eos_token": 2}}, CheckpointFormatError, "eos_token is 2; it must be a name"),
        ({"special_tokens_map": []}, CheckpointFormatError, "holds a list, not an object"),
    ],
)
def test_what_cannot_be_a_token_is_named(
    folder: Callable[..., Path], files: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        _ = open_model(folder(**files)).generation


def test_roles_are_checked(tokenizer: BytePairTokenizer) -> None:
    tokenizer.special_tokens_map = {"eos_token": "</s>"}
    assert tokenizer.eos_token_ids == (END,)
    with pytest.raises(ValueError, match="'end' is no role of a special token: there are bos_token"):
        tokenizer.special_tokens_map = {"end": "</s>"}
    with pytest.raises(ValueError, match="the eos_token '<x>' is no token of this tokenizer"):
        tokenizer.special_tokens_map = {"eos_token": "<x>"}
    assert tokenizer.special_tokens_map == {"eos_token": "</s>"}
    # What has a role is special, and no text becomes it.
    merged = tokenizer.encode("be")
    name = tokenizer._tokenizer.id_to_token(merged[0])
    assert merged == [256]
    tokenizer.special_tokens_map = {"eos_token": name}
    assert tokenizer.special_tokens[name] == 256
    with pytest.raises(ValueError, match="eos_token_ids has the token -1"):
        GenerationConfig(eos_token_ids=(-1,))


def test_gguf_metadata_names_them_by_number() -> None:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["<s>", "a", "b", "ab", "</s>"],
        "tokenizer.ggml.token_type": np.array([3, 1, 1, 1, 3], np.int32),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 4,
        "tokenizer.ggml.padding_token_id": 4,
        "tokenizer.ggml.unknown_token_id": 99,
        "tokenizer.ggml.mask_token_id": ["a", "b"],
    }
    tokenizer = tokenizer_from(metadata, "a.gguf")
    assert tokenizer.special_tokens_map == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids, tokenizer.pad_token_id) == (0, (4,), 4)


def test_of_a_gguf_file(chat_file: Path) -> None:
    stored = open_model(chat_file)
    assert stored.generation == GenerationConfig(bos_token_id=1, eos_token_ids=(2,), pad_token_id=2)
    assert stored.tokenizer().eos_token_ids == (2,)
