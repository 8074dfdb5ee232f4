"""GGUF files are read as gguf's own reader reads them, and believed in nothing."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from allyouneed.hub import CheckpointFormatError, UnsupportedError, reading
from allyouneed.hub.gguf_file import GGUFFile

READ = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]


def blocks(kind: Kind, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Make the stored bytes of a tensor: any bytes, but scales that are ordinary numbers."""
    random = np.random.default_rng(seed)
    if kind in (Kind.F32, Kind.F16):
        return random.normal(size=shape).astype(np.float32 if kind == Kind.F32 else np.float16)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows = (*shape[:-1], shape[-1] // block, size)
    stored = random.integers(0, 256, rows, np.uint8)
    if kind != Kind.BF16:
        halves = random.normal(size=(*rows[:-1], 2)).astype(np.float16).view(np.uint8)
        place = slice(-2, None) if kind == Kind.Q6_K else slice(0, 4 if kind.name.endswith(("1", "4_K", "5_K")) else 2)
        stored[..., place] = halves[..., : stored[..., place].shape[-1]]
    else:
        stored = (random.normal(size=shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return stored.reshape(*shape[:-1], -1)


def write(path: Path, tensors: dict[str, tuple[np.ndarray, Kind]], **metadata: Any) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        kind = gguf.GGUFValueType.ARRAY if isinstance(value, list) else gguf.GGUFValueType.get_type(value)
        writer.add_key_value(key, value, kind)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("portion", [1, 5000, 4 << 20])
def test_every_type_is_read_as_gguf_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, portion: int) -> None:
    monkeypatch.setattr(reading, "_PORTION", portion)
    shapes = {"vector": (512,), "matrix": (5, 256), "cube": (2, 3, 512)}
    tensors = {
        f"{name}.{kind}": (blocks(Kind[kind], shape), Kind[kind]) for kind in READ for name, shape in shapes.items()
    }
    path = write(tmp_path / "a.gguf", tensors)
    file = GGUFFile(path)
    reference = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert list(file.tensors) == list(reference)
    for name, tensor in file.tensors.items():
        expected = gguf.quants.dequantize(reference[name].data, reference[name].tensor_type)
        found = torch.empty(tensor.shape, dtype=file.dtype(name))
        for place, values in file.portions(name):
            found[place] = values
        assert found.shape == shapes[name.split(".")[0]]
        assert torch.equal(found.float(), torch.from_numpy(np.array(expected)).view(found.shape)), name
        assert found.dtype == {"F16": torch.float16, "BF16": torch.bfloat16}.get(tensor.kind, torch.float32)


def test_metadata_of_every_type(tmp_path: Path) -> None:
    values = {"text": "é\n", "flag": True, "whole": 7, "real": 0.5, "words": ["a", ""], "numbers": [1, -2]}
    path = write(tmp_path / "a.gguf", {"a": (blocks(Kind.F32, (2, 2)), Kind.F32)}, **values)
    found = GGUFFile(path).metadata
    assert found["general.architecture"] == "llama"
    assert {key: value for key, value in found.items() if key in values and key != "numbers"} == {
        key: value for key, value in values.items() if key != "numbers"
    }
    assert found["numbers"].tolist() == [1, -2]


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def info(name: bytes = b"a", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file_of(
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    entries: tuple[bytes, ...] = (),
    infos: tuple[bytes, ...] = (info(),),
    data: int = 64,
) -> bytes:
    tensors, values = counts or (len(infos), len(entries))
    header = magic + struct.pack("<IQQ", version, tensors, values) + b"".join(entries) + b"".join(infos)
    return header + bytes(-len(header) % 32) + bytes(data)


HUGE = 1 << 62


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the magic number takes 4 bytes, and the file has 0"),
        (file_of(magic=b"GGML"), "begins with b'GGML'"),
        (file_of(counts=(HUGE, 0)), "a sound GGUF file"),
        (file_of(counts=(1, HUGE)), "a sound GGUF file"),
        (file_of(entries=(entry(b"k", 8, text(b"\xff")),)), "is not UTF-8"),
        (file_of(entries=(entry(b"k", 8, struct.pack("<Q", HUGE)),)), f"a string takes {HUGE} bytes"),
        (file_of(entries=(struct.pack("<Q", HUGE),)), f"a name of {HUGE} bytes"),
        (file_of(entries=(entry(b"k", 77, b""),)), "unknown type 77"),
        (file_of(entries=(entry(b"k", 9, struct.pack("<IQ", 8, HUGE)),)), f"k promises {HUGE} strings"),
        (file_of(entries=(entry(b"k", 9, struct.pack("<IQ", 5, HUGE)),)), "k takes"),
        (file_of(entries=(entry(b"k", 9, struct.pack("<IQ", 9, 1)),)), "array of arrays"),
        (file_of(entries=(entry(b"k", 9, struct.pack("<IQ", 66, 1)),)), "unknown type 66"),
        (file_of(entries=(entry(b"k", 7, b"\1"),) * 2), "the key k stands twice"),
        (file_of(entries=(entry(b"general.alignment", 4, struct.pack("<I", 0)),)), "general.alignment is 0"),
        (file_of(entries=(entry(b"general.alignment", 4, struct.pack("<I", 12)),)), "general.alignment is 12"),
        (file_of(entries=(entry(b"general.alignment", 8, text(b"x")),)), "general.alignment is 'x'"),
        (file_of(infos=(info(shape=()),)), "a has 0 dimensions"),
        (file_of(infos=(info(shape=(1,) * 5),)), "a has 5 dimensions"),
        (file_of(infos=(info(shape=(4, 0)),)), r"a has the shape \(0, 4\)"),
        (file_of(infos=(info(shape=(1 << 32, 1 << 32)),)), "a has the shape"),
        (file_of(infos=(info(shape=(1 << 40,)),)), "a is said to be the bytes"),
        (file_of(infos=(info(kind=999),)), "unknown type 999"),
        (file_of(infos=(info(shape=(33,), kind=2),)), "rows of 33, which Q4_0 blocks of 32"),
        (file_of(infos=(info(offset=1),)), "aligned to 32"),
        (file_of(infos=(info(offset=HUGE),)), "a is said to be the bytes"),
        (file_of(infos=(info(), info())), "the tensor a stands twice"),
        (file_of(infos=(info(), info(b"b"))), "a and b overlap"),
        (file_of(data=8), "a is said to be the bytes"),
    ],
)
def test_damage_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointFormatError, match=said):
        GGUFFile(path)


def test_a_sound_file_made_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(file_of(version=2, entries=(entry(b"general.alignment", 4, struct.pack("<I", 32)),)))
    assert GGUFFile(path).tensors["a"].shape == (4,)


@pytest.mark.parametrize(("version", "said"), [(1, "of version 1"), (3 << 24, "big-endian"), (9, "of version 9")])
def test_versions_that_are_not_read(tmp_path: Path, version: int, said: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(file_of(version=version))
    with pytest.raises(UnsupportedError, match=f"{said}; little-endian files of versions 2 and 3"):
        GGUFFile(path)


def test_other_types_are_named_when_they_are_read(tmp_path: Path) -> None:
    file = GGUFFile(write(tmp_path / "a.gguf", {"a": (blocks(Kind.Q2_K, (2, 256)), Kind.Q2_K)}))
    with pytest.raises(UnsupportedError, match=r"a in .* is stored as Q2_K; these types are read: F32"):
        file.dtype("a")


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", {"a": (blocks(Kind.F32, (64, 512)), Kind.F32)})
    file = GGUFFile(path)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 100)
    with pytest.raises(CheckpointFormatError, match=r"ends .* bytes before a does"):
        list(file.portions("a"))


def test_reading_is_lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.gguf", {"a": (blocks(Kind.F32, (4, 32)), Kind.F32)})
    read: Callable[..., bytearray] = reading.read_exactly
    sizes: list[int] = []

    def counting(file: Any, start: int, size: int, what: str) -> bytearray:
        sizes.append(size)
        return read(file, start, size, what)

    monkeypatch.setattr("allyouneed.hub.gguf_file.read_exactly", counting)
    file = GGUFFile(path)
    assert sizes == []
    list(file.portions("a"))
    assert sum(sizes) == 4 * 32 * 4
