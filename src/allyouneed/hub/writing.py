"""Writing checkpoints in the usual layout, so that a reader finds the old one or the new one, never a mixture."""

import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from allyouneed.text import Tokenizer

from .folder import CONFIG, INDEX, TEMPLATE, WEIGHTS
from .token_ids import GENERATION

_SHARD = re.compile(r"model-[0-9a-f]{8}-\d{5}-of-\d{5}\.safetensors|model-\d{5}-of-\d{5}\.safetensors")
SHARD_BYTES = 5_000_000_000


def write_model(
    folder: str | Path,
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, Tensor]],
    *,
    tokenizer: Tokenizer | None = None,
    chat_template: str | None = None,
    generation: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a checkpoint into a folder, which is made where it is missing; files of other names stay.

    All is written and flushed in a folder `.partial-…` inside and moved into place at the end. A process that is killed
    before leaves the folder as it was, but for that one.

    Args:
        folder: where to.
        config: becomes `config.json`.
        tensors: names and values, taken one after another; one shard of them is in memory at a time.
        tokenizer: saved too where one is given.
        chat_template: becomes `chat_template.jinja` where one is given.
        generation: becomes `generation_config.json` where there are entries, or a file that they replace.
        shard_bytes: the most that one file holds, but for a tensor that is larger alone.

    Raises:
        ValueError: no folder's name, no tensors, two of the same name, or a shard of no size.
        NotADirectoryError: a file stands where the folder should be.
        OSError: the folder cannot be written; what was there is untouched.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes is {shard_bytes}; it must be at least 1")
    if not isinstance(folder, str | Path) or not str(folder):
        raise ValueError(f"a model is written into a folder, got {folder!r:.60}")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"a model is written into a folder, and {error.filename} is a file, or lies under one"
        ) from error
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as scratch_name:
        scratch = Path(scratch_name)
        shards = [_save(shard, scratch / str(place)) for place, shard in enumerate(_shards(tensors, shard_bytes))]
        moves, index = _places(folder, shards)
        texts = {CONFIG: json.dumps(dict(config), indent=2, ensure_ascii=False)}
        if index is not None:
            texts[INDEX] = json.dumps(index, indent=2)
        if generation or (folder / GENERATION).is_file():
            texts[GENERATION] = json.dumps(dict(generation or {}), indent=2, ensure_ascii=False)
        if chat_template is not None:
            texts[TEMPLATE] = chat_template
        moves += [(_written(scratch / name, content), folder / name) for name, content in texts.items()]
        if tokenizer is not None:
            tokenizer.save(scratch / "tokenizer")
            moves += [(path, folder / path.name) for path in (scratch / "tokenizer").iterdir()]
        old = [path for path in folder.iterdir() if _SHARD.fullmatch(path.name) or path.name in (WEIGHTS, INDEX)]
        for source, place in moves:
            source.replace(place)
        new = {place for _, place in moves}
        for path in old:
            if path not in new:
                path.unlink()


def _shards(tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    names: set[str] = set()
    places: set[int] = set()
    size = 0
    for name, value in tensors:
        if name in names:
            raise ValueError(f"the tensor {name} is given twice")
        names.add(name)
        if shard and size + value.nbytes > shard_bytes:
            yield shard
            shard, size, places = {}, 0, set()
        value = value.detach().cpu().contiguous()
        # The format's library refuses tensors that share memory.
        place = value.untyped_storage().data_ptr()
        shard[name] = value.clone() if place in places else value
        places.add(place)
        size += value.nbytes
    if not names:
        raise ValueError("a checkpoint needs at least one tensor")
    yield shard


@dataclass(frozen=True)
class _Shard:
    path: Path
    names: tuple[str, ...]
    size: int


def _save(tensors: dict[str, Tensor], path: Path) -> _Shard:
    # The library lets only the owner read what it writes; a checkpoint is as readable as other files.
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"could not write the weights into {path.parent.parent}: {error}") from error
    path.chmod(mode)
    _flush(path)
    return _Shard(path, tuple(tensors), sum(value.nbytes for value in tensors.values()))


def _places(folder: Path, shards: list[_Shard]) -> tuple[list[tuple[Path, Path]], dict[str, Any] | None]:
    """Choose the files' names, and make the index where there are several."""
    if len(shards) == 1:
        return [(shards[0].path, folder / WEIGHTS)], None
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    if any((folder / name).exists() for name in names):
        # Until the index is replaced, the shards that it names must stay as they are.
        generation = secrets.token_hex(4)
        names = [name.replace("model-", f"model-{generation}-", 1) for name in names]
    index = {
        "metadata": {"total_size": sum(shard.size for shard in shards)},
        "weight_map": {name: file for file, shard in zip(names, shards, strict=True) for name in shard.names},
    }
    return [(shard.path, folder / name) for name, shard in zip(names, shards, strict=True)], index


def _written(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    _flush(path)
    return path


def _flush(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())
