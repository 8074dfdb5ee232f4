"""Folders in the usual layout are read as they are, and what is wrong with one is said."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from allyouneed.hub import CheckpointFormatError, UnsupportedError, open_model, write_model
from allyouneed.hub import reading as hub_reading

KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"matrix": (7, 5), "vector": (11,), "scalar": (), "cube": (2, 3, 4), "empty": (0, 4)}
    return {
        f"{name}.{dtype}".replace("torch.", ""): (torch.randn(shape, generator=generator) * 9).to(dtype)
        for name, shape in shapes.items()
        for dtype in KINDS
    }


@pytest.mark.parametrize("portion", [1, 16, 4 << 20])
@pytest.mark.parametrize("shard_bytes", [1, 300, 1 << 30])
def test_tensors_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, portion: int, shard_bytes: int) -> None:
    monkeypatch.setattr(hub_reading, "_PORTION", portion)
    tensors = some_tensors()
    write_model(tmp_path, {"a": 1}, tensors.items(), shard_bytes=shard_bytes)
    model = open_model(tmp_path)
    assert model.config == {"a": 1}
    assert set(model.names()) == set(tensors)
    for name, value in tensors.items():
        assert model.shape(name) == tuple(value.shape)
        assert model.dtype(name) == value.dtype
        assert torch.equal(model.read(name), value)
        assert model.blocks(name) is None
    assert model.common_dtype() == torch.float64
    half = model.read("matrix.float32", torch.bfloat16)
    assert torch.equal(half, tensors["matrix.float32"].bfloat16())


@pytest.mark.parametrize(
    ("stored", "common"),
    [
        ([torch.bfloat16], torch.bfloat16),
        ([torch.float16, torch.int64], torch.float16),
        ([torch.bfloat16, torch.float16], torch.float32),
    ],
)
def test_the_narrowest_type_that_holds_all(
    write: Callable[..., Path], stored: list[torch.dtype], common: torch.dtype
) -> None:
    folder = write({str(place): torch.zeros(2, dtype=dtype) for place, dtype in enumerate(stored)})
    assert open_model(folder).common_dtype() == common


def test_a_model_without_floats_has_no_type(write: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedError, match="no tensor of floating-point"):
        open_model(write({"a": torch.zeros(2, dtype=torch.int32)})).common_dtype()


def test_other_types_are_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, dtype=torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match=r"a in .* is stored as F8_E4M3; these types are read: F64, F32"):
        open_model(tmp_path).read("a")


def test_an_open_checkpoint_outlives_its_replacement(write: Callable[..., Path]) -> None:
    old = open_model(write({"a": torch.zeros(3)}))
    new = open_model(write({"a": torch.ones(3)}))
    assert torch.equal(old.read("a"), torch.zeros(3))
    assert torch.equal(new.read("a"), torch.ones(3))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="there are no weights in"):
        open_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedError, match=r"pytorch_model\.bin, which is never read"):
        open_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"lacks one\.safetensors"):
        open_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"[" * 100_000, b'{"a": "\xff"}'])
def test_a_damaged_config(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointFormatError, match=r"config\.json"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({}, "no weight_map"),
        ({"weight_map": {"a": 3}}, "no weight_map"),
        ({"weight_map": {"a": "../secret.safetensors"}}, "not in the same folder"),
        ({"weight_map": {"a": "one.safetensors"}}, "disagree about 1 tensors, such as b"),
        ({"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "one.safetensors"}}, "such as c"),
    ],
)
def test_a_wrong_index(tmp_path: Path, index: object, said: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointFormatError, match=said):
        open_model(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for file, tensors in (("one", {"a": torch.zeros(1)}), ("two", {"a": torch.ones(1), "b": torch.ones(1)})):
        save_file(tensors, tmp_path / f"{file}.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointFormatError, match="a"):
        open_model(tmp_path)


def test_a_file_that_shrinks_after_it_was_opened(write: Callable[..., Path]) -> None:
    folder = write({"a": torch.zeros(100)})
    model = open_model(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(CheckpointFormatError, match=r"ends .* bytes before a does"):
        model.read("a")


def test_chat_templates(write: Callable[..., Path]) -> None:
    folder = write({"a": torch.zeros(1)})
    assert open_model(folder).chat_template is None
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({"chat_template": "one"}))
    assert open_model(folder).chat_template == "one"
    settings.write_text(json.dumps({"chat_template": [{"name": "default", "template": "two"}, {"name": "tool"}]}))
    assert open_model(folder).chat_template == "two"
    (folder / "chat_template.jinja").write_text("three")
    assert open_model(folder).chat_template == "three"


def test_the_published_layout_is_read(encoder_folder: Path) -> None:
    model = open_model(encoder_folder)
    reference = load_file(encoder_folder / "model.safetensors")
    assert model.config["model_type"] == "bert"
    assert sorted(model.names()) == sorted(reference)
    assert all(torch.equal(model.read(name), value) for name, value in reference.items())
