"""Finding a checkpoint by name: an asset, a folder, a GGUF file, or a repository on the hub."""

import os
import re
from pathlib import Path

from allyouneed.data import ASSETS, fetch

from .errors import UnsupportedError
from .folder import CONFIG, INDEX, TEMPLATE, SafetensorsFolder
from .gguf_model import GGUFModel
from .stored import StoredModel
from .token_ids import GENERATION

_GGUF = ".gguf"
_WANTED = (
    CONFIG,
    GENERATION,
    "*.safetensors",
    INDEX,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    # A vocabulary of byte pairs from before there was `tokenizer.json`.
    "vocab.json",
    "merges.txt",
    TEMPLATE,
    # Vocabularies that rooms read themselves.
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    # Sentence encoders; theirs stand in folders of their own, and some have the encoder in one too.
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "[0-9]_*/*.json",
    "[0-9]_*/vocab.txt",
)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def open_model(name_or_folder: str | Path) -> StoredModel:
    """Open a checkpoint for reading; only headers are read yet.

    Args:
        name_or_folder: the name of an asset that is a model, which is fetched where it is not in the cache; a folder
            with `config.json` and safetensors files, or with one GGUF file; a GGUF file; or a repository on the
            Hugging Face hub, `owner/name`, whose configuration, tokenizer and safetensors files are downloaded into
            the hub client's own cache. A folder goes before a repository of the same name.

    Raises:
        ValueError: nothing of this name is known.
        FileNotFoundError: a path that does not exist, or a folder that lacks a file.
        CheckpointFormatError: a damaged file.
        UnsupportedError: a checkpoint of a kind that is not supported.
        AssetError: the asset could not be fetched.
    """
    path = model_path(name_or_folder)
    if path.is_file():
        if path.suffix in (".safetensors", ".json"):
            raise UnsupportedError(f"{path} is one file of a checkpoint: give the folder that it is in")
        return GGUFModel(path)
    ggufs = sorted(path.glob(f"*{_GGUF}"))
    if len(ggufs) == 1 and not (path / CONFIG).is_file():
        return GGUFModel(ggufs[0])
    return SafetensorsFolder(path)


def model_path(name_or_folder: str | Path) -> Path:
    """Find the files of a checkpoint, and bring them where they are not here yet; arguments as for `open_model`.

    Returns:
        A folder, or a GGUF file.

    Raises:
        ValueError: nothing of this name is known.
        FileNotFoundError: a path that does not exist.
        AssetError: the asset could not be fetched.
    """
    if not isinstance(name_or_folder, str | Path) or not str(name_or_folder).strip():
        raise ValueError(
            f"the name of a model is {name_or_folder!r:.60}; there are {', '.join(_models())}; or give a folder, a "
            "GGUF file, or a hub repository as owner/name"
        )
    path = Path(name_or_folder)
    if isinstance(name_or_folder, str) and name_or_folder in _models():
        path = fetch(name_or_folder)
    elif not path.exists():
        path = _downloaded(name_or_folder)
    return path


def _downloaded(name: str | Path) -> Path:
    """Bring a repository's files from the hub with its own client; offline, what that has kept is taken."""
    if isinstance(name, Path) or not _REPOSITORY.fullmatch(name) or name.startswith(".") or name.endswith(_GGUF):
        if isinstance(name, Path) or "/" in name or name.endswith(_GGUF):
            raise FileNotFoundError(f"there is no model in {name}: no such file or folder")
        raise ValueError(
            f"no model is called {name!r}: there are {', '.join(_models())}; or give a folder, a GGUF file, or a "
            "hub repository as owner/name"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FileNotFoundError(
            f"there is no folder {name}, and huggingface_hub is not installed to look for it on the hub"
        ) from error
    offline = os.environ.get("ALLYOUNEED_OFFLINE", "0") not in ("", "0")
    try:
        return Path(snapshot_download(name, allow_patterns=list(_WANTED), local_files_only=offline))
    except Exception as error:  # The hub's client has no common class for its errors.
        raise FileNotFoundError(
            f"there is no folder {name}, and the hub's client said: {type(error).__name__}: {error}"
        ) from error


def _models() -> list[str]:
    """Give the names of the assets that are models."""
    return sorted(
        asset.name for asset in ASSETS.values() if any(file == CONFIG or file.endswith(_GGUF) for file in asset.files())
    )
