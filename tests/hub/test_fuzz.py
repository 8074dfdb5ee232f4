"""Files that were cut, flipped or forged: a clear error or a sound checkpoint, and never more memory than the file."""

import json
import random
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from allyouneed.hub import CheckpointFormatError, UnsupportedError, open_model

# The file itself, what Python keeps for its header's strings and numbers, and the library's own needs.
_MOST = 3_000_000
_FORGED = [0, 1, 255, 1 << 16, (1 << 31) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]


def mutations(content: bytes, header: int, count: int, seed: int) -> Iterator[bytes]:
    """Cut a file everywhere in its header and at some places behind it, flip bytes, and forge counts and lengths."""
    chance = random.Random(seed)
    for end in chance.sample(range(header), min(header, count)):
        yield content[:end]
    for end in (header, header + 1, len(content) - 1):
        yield content[:end]
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(chance.choice((1, 1, 1, 4, 40))):
            changed[chance.randrange(header)] = chance.randrange(256)
        yield bytes(changed)
    for _ in range(count):
        changed = bytearray(content)
        width = chance.choice(("<I", "<Q"))
        size = struct.calcsize(width)
        place = chance.randrange(header - size)
        struct.pack_into(width, changed, place, chance.choice(_FORGED) % (1 << 8 * size))
        yield bytes(changed)
    for _ in range(count // 4):
        start = chance.randrange(header)
        yield content[:start] + chance.randbytes(chance.randrange(1, 20)) + content[start:]


def read_all(path: Path) -> bool:
    """Read everything, and tell whether it was sound; any other error than ours is a failure."""
    try:
        model = open_model(path)
        for name in model.names():
            model.read(name)
            model.blocks(name)
        if path.is_file():
            model.tokenizer()
    except (CheckpointFormatError, UnsupportedError):
        return False
    return True


@pytest.fixture
def allocated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give a list that is filled with the bytes of every tensor that is made to be read into."""
    sizes: list[int] = []
    empty = torch.empty

    def counting(*shape: Any, **options: Any) -> torch.Tensor:
        result = empty(*shape, **options)
        sizes.append(result.nbytes)
        return result

    monkeypatch.setattr(torch, "empty", counting)
    return sizes


def check(path: Path, folder: Path, contents: Iterator[bytes], allocated: list[int]) -> None:
    sound = refused = 0
    for content in contents:
        path.write_bytes(content)
        tracemalloc.start()
        if read_all(folder):
            sound += 1
        else:
            refused += 1
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # Eight times: what 4-bit weights take in 32 bits.
        assert sum(allocated) <= 8 * len(content)
        allocated.clear()
        assert peak < _MOST + 8 * len(content), f"{peak} bytes for a file of {len(content)}"
    assert refused > sound


def test_gguf(chat_file: Path, tmp_path: Path, allocated: list[int]) -> None:
    content = chat_file.read_bytes()
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    assert read_all(path)
    allocated.clear()
    # Metadata, the infos of the tensors, and the beginning: what stands around the vocabulary, which is most of it.
    start = content.index(b"blk.0.attn_norm.weight") - 60
    check(path, path, mutations(content, 700, 16, 0), allocated)
    infos = (content[:start] + changed for changed in mutations(content[start:], 1100, 24, 1))
    check(path, path, infos, allocated)


def test_safetensors(tmp_path: Path, allocated: list[int]) -> None:
    (tmp_path / "config.json").write_text("{}")
    tensors = {"a": torch.ones(3, 4), "b": torch.zeros((), dtype=torch.bfloat16), "c": torch.ones(5, dtype=torch.int8)}
    content = save(tensors)
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert read_all(tmp_path)
    allocated.clear()
    (length,) = struct.unpack("<Q", content[:8])
    check(path, tmp_path, mutations(content, 8 + length, 150, 2), allocated)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [0, 1 << 62], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [0, (1 << 64) - 1], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 1 << 62]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2.5], "data_offsets": [0, 8]},
        {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2]},
        [],
        None,
    ],
)
def test_forged_safetensors_headers(tmp_path: Path, entry: object) -> None:
    (tmp_path / "config.json").write_text("{}")
    size = 0 if isinstance(entry, dict) and entry.get("data_offsets") == [0, 0] else 8
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    with pytest.raises(CheckpointFormatError, match=r"model\.safetensors"):
        open_model(tmp_path)


@pytest.mark.parametrize("length", [0, 3, 100, 1 << 27, 1 << 40, (1 << 64) - 1])
def test_forged_header_lengths(tmp_path: Path, length: int) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(CheckpointFormatError, match=r"model\.safetensors"):
        open_model(tmp_path)


def test_a_name_that_stands_twice_and_brackets_without_end(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    part = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    for header in (f"{{{part},{part}}}", "[" * 100_000, '{"a":' * 10_000):
        content = header.encode()
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(content)) + content + bytes(4))
        with pytest.raises(CheckpointFormatError, match=r"model\.safetensors"):
            open_model(tmp_path)
