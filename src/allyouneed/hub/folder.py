"""Checkpoints in the usual layout: a folder with `config.json` and one or several safetensors files."""

import warnings
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from allyouneed.text import GenerationConfig, Tokenizer, load_tokenizer

from .errors import CheckpointFormatError, UnsupportedError
from .reading import read_json
from .safetensors_file import SafetensorsFile
from .stored import StoredModel
from .token_ids import read_folder, stated_roles

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TEMPLATE = "chat_template.jinja"


class SafetensorsFolder(StoredModel):
    """A folder in the usual layout, opened; its files stay open, and only their headers are read yet.

    Args:
        folder: with `config.json` and either `model.safetensors` or shards and their index.

    Raises:
        FileNotFoundError: a file is missing.
        CheckpointFormatError: a file is damaged, or the shards do not match their index.
        UnsupportedError: the weights are in another format, such as a pickle.
    """

    def __init__(self, folder: Path):
        self.source = str(folder)
        self._folder = folder
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(f"there is no model in {folder}: {CONFIG} is missing")
        self.config = read_json(folder / CONFIG)
        self.chat_template = _chat_template(folder)
        self._files: dict[str, SafetensorsFile] = {}
        for file in _opened(folder):
            for name in file.entries:
                if name in self._files:
                    raise CheckpointFormatError(f"{name} is in {self._files[name].path.name} and in {file.path.name}")
                self._files[name] = file

    def names(self) -> Sequence[str]:
        """Give the names of all stored tensors."""
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Give a tensor's shape."""
        return self._files[name].entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Give the type in which a tensor is stored."""
        return self._files[name].dtype(name)

    def tokenizer(self) -> Tokenizer:
        """Make the tokenizer that the folder's `tokenizer.json` describes.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged.
        """
        return self.with_roles(load_tokenizer(self._folder))

    @cached_property
    def generation(self) -> GenerationConfig:
        """Which tokens begin, end and pad texts, from wherever the folder states them; errors as in `StoredModel`."""
        return read_folder(self._folder, self.config)

    def _stated_roles(self) -> Collection[str]:
        return stated_roles(self._folder)

    def _portions(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        return self._files[name].portions(name)


def _opened(folder: Path) -> list[SafetensorsFile]:
    if (folder / WEIGHTS).is_file():
        return [SafetensorsFile(folder / WEIGHTS)]
    if not (folder / INDEX).is_file():
        others = sorted(
            path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".h5", ".msgpack")
        )
        if others:
            raise UnsupportedError(
                f"{folder} has its weights in {', '.join(others)}, which is never read since unpickling runs code; "
                f"it must have {WEIGHTS}, or {INDEX} with its shards"
            )
        raise FileNotFoundError(f"there are no weights in {folder}: neither {WEIGHTS} nor {INDEX} is there")
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise CheckpointFormatError(f"{folder / INDEX} has no weight_map from tensors' names to files")
    files = []
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise CheckpointFormatError(f"{folder / INDEX} names the file {name!r}, which is not in the same folder")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} lacks {name}, which {INDEX} names")
        files.append(SafetensorsFile(folder / name))
    held = {name: file.path.name for file in files for name in file.entries}
    wrong = sorted(name for name in held.keys() | places.keys() if held.get(name) != places.get(name))
    if wrong:
        raise CheckpointFormatError(
            f"{folder / INDEX} and its shards disagree about {len(wrong)} tensors, such as {', '.join(wrong[:3])}"
        )
    return files


def _chat_template(folder: Path) -> str | None:
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    path = folder / "tokenizer_config.json"
    template = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(template, list):  # Several, by name.
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        if "default" not in named:
            names = ", ".join(map(repr, named)) or "none"
            warnings.warn(
                f"{path}: chat_template has {names}, and none called 'default': the model has no template here",
                stacklevel=2,
            )
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise UnsupportedError(f"{path}: chat_template is {template!r:.60}; it must be a text, or a list of named ones")
    return template
