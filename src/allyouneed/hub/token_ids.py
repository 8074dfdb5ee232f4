"""Which tokens begin, end and pad texts, from wherever a folder states them."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from allyouneed.text import GenerationConfig, SpecialTokensMixin
from allyouneed.text.special_tokens import CONFIG_FILE, read_special_tokens

from .errors import CheckpointFormatError, UnsupportedError
from .reading import read_json

GENERATION = "generation_config.json"
KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Where the entries come from, which is not theirs to say.
_ORIGINS = ("_from_model_config", "transformers_version")


def read_generation(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None = None, named: Mapping[str, int] | None = None
) -> GenerationConfig:
    """Join what the files of a checkpoint state.

    Texts end at each of the ends in `generation_config.json`, or in `config.json` where that has none, and at the
    tokenizer's end. Of the other tokens there is one, and where files differ, `generation_config.json` goes before the
    tokenizer's files, and `config.json` is last.

    Args:
        config: of `config.json`.
        generation: of `generation_config.json`.
        named: the ids of the tokens that the tokenizer's files name, by role, such as `eos_token`.

    Raises:
        UnsupportedError: a value that is neither a token nor, for ends, a list of them.
    """
    generation, named = generation or {}, named or {}
    single: dict[str, int | None] = {}
    for role in ("bos_token", "pad_token"):
        key = f"{role}_id"
        stated = (_ids(generation, key, GENERATION), [named[role]] if role in named else [], _ids(config, key))
        single[key] = next((ids[0] for ids in stated if ids), None)
    ends = _ids(generation, "eos_token_id", GENERATION) or _ids(config, "eos_token_id")
    if "eos_token" in named:
        ends.append(named["eos_token"])
    other = {key: value for key, value in generation.items() if key not in (*KEYS, *_ORIGINS)}
    return GenerationConfig(eos_token_ids=tuple(dict.fromkeys(ends)), other=other, **single)


def read_folder(folder: Path, config: Mapping[str, Any]) -> GenerationConfig:
    """Read and join what a folder's files state, as `read_generation`.

    Raises:
        CheckpointFormatError: a file is damaged.
        UnsupportedError: a value that cannot be a token.
    """
    path = folder / GENERATION
    names = {role: name for role, name in stated_roles(folder).items() if name is not None}
    ids = _ids_of(folder, set(names.values()))
    named = {role: ids[name] for role, name in names.items() if name in ids}
    return read_generation(config, read_json(path) if path.is_file() else None, named)


def generation_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give those entries of a `config.json` that belong into `generation_config.json` too."""
    return {key: config[key] for key in (*KEYS, "decoder_start_token_id") if config.get(key) is not None}


def stated_roles(folder: Path) -> dict[str, str | None]:
    """Give the names of special tokens that a folder states, by role; None where it says that there is none.

    Raises:
        CheckpointFormatError: a file is damaged.
    """
    try:
        return read_special_tokens(folder)
    except ValueError as error:
        raise CheckpointFormatError(str(error)) from error


def complete_roles(tokenizer: SpecialTokensMixin, generation: GenerationConfig, stated: Collection[str] = ()) -> None:
    """Give special tokens the roles that only the model's files state, by their numbers.

    Args:
        tokenizer: is changed. A number that is no special token there gets no role.
        generation: what the model's files state.
        stated: roles that the tokenizer's own files settle.
    """
    names = {token: name for name, token in tokenizer.special_tokens.items()}
    roles = dict(tokenizer.special_tokens_map)
    for key, token in generation.token_ids().items():
        role = key.removesuffix("_id")
        first = token[0] if isinstance(token, list) else token
        if role not in stated and first in names:
            roles.setdefault(role, names[first])
    tokenizer.special_tokens_map = roles


def _ids(entries: Mapping[str, Any], key: str, file: str = "config.json") -> list[int]:
    stated = entries.get(key)
    several = stated if isinstance(stated, list) else [] if stated is None else [stated]
    if any(type(token) is not int for token in several) or (isinstance(stated, list) and key != "eos_token_id"):
        kind = "a token, a list of tokens" if key == "eos_token_id" else "a token"
        raise UnsupportedError(f"{file}: {key} is {stated!r}; it must be {kind}, or null")
    # Some files say by -1 that there is none.
    return [token for token in several if token >= 0]


def _ids_of(folder: Path, names: Collection[str]) -> dict[str, int]:
    """Look tokens up in a tokenizer's files, which are read only as far as is needed; unknown ones are left out."""
    found: dict[str, int] = {}
    for look in (_described, _in_tokenizer, _in_vocabulary):
        if len(found) < len(names):
            found = {name: token for name, token in look(folder).items() if name in names} | found
    return found


def _described(folder: Path) -> dict[str, int]:
    path = folder / CONFIG_FILE
    added = read_json(path).get("added_tokens_decoder") if path.is_file() else None
    if not isinstance(added, dict):
        return {}
    return {
        entry["content"]: int(token)
        for token, entry in added.items()
        if token.isdecimal() and isinstance(entry, dict) and isinstance(entry.get("content"), str)
    }


def _in_tokenizer(folder: Path) -> dict[str, int]:
    path = folder / "tokenizer.json"
    content = read_json(path) if path.is_file() else {}
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    found: dict[str, int] = {}
    if isinstance(vocabulary, list):
        pieces = [entry[0] if isinstance(entry, list) and entry else None for entry in vocabulary]
        found = {piece: token for token, piece in enumerate(pieces) if isinstance(piece, str)}
    elif isinstance(vocabulary, dict):
        found = {name: token for name, token in vocabulary.items() if type(token) is int}
    for entry in content.get("added_tokens") or ():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and type(entry.get("id")) is int:
            found[entry["content"]] = entry["id"]
    return found


def _in_vocabulary(folder: Path) -> dict[str, int]:
    """Read the files of vocabularies older than `tokenizer.json`."""
    found: dict[str, int] = {}
    if (folder / "vocab.txt").is_file():
        lines = (folder / "vocab.txt").read_text(encoding="utf-8", errors="replace").split("\n")
        found = {line.removesuffix("\r"): token for token, line in enumerate(lines)}
    for file in ("vocab.json", "encoder.json", "added_tokens.json"):
        if (folder / file).is_file():
            content: Any = read_json(folder / file)
            found |= {name: token for name, token in content.items() if type(token) is int}
    return found
