"""Checkpoints are written whole, and what was there before stays until the new one stands."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from allyouneed.hub import open_model, write_model
from allyouneed.text import ByteTokenizer

WEIGHTS = {name: torch.full((4,), float(place)) for place, name in enumerate("abc")}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def values(folder: Path) -> dict[str, float]:
    model = open_model(folder)
    return {name: float(model.read(name)[0]) for name in model.names()}


def test_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    write_model(folder, {"é": 1}, WEIGHTS.items(), tokenizer=ByteTokenizer(), chat_template="{{ x }}")
    assert files(folder) == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert load_file(folder / "model.safetensors")["b"][0] == 1
    assert json.loads((folder / "config.json").read_text(encoding="utf-8")) == {"é": 1}
    assert open_model(folder).chat_template == "{{ x }}"
    assert isinstance(open_model(folder).tokenizer(), ByteTokenizer)
    other = folder / "other"
    other.touch()
    assert (folder / "model.safetensors").stat().st_mode == other.stat().st_mode


def test_shards_and_their_index(tmp_path: Path) -> None:
    write_model(tmp_path, {}, WEIGHTS.items(), shard_bytes=32)
    assert files(tmp_path) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 48}
    assert index["weight_map"]["c"] == "model-00002-of-00002.safetensors"
    assert values(tmp_path) == {"a": 0, "b": 1, "c": 2}


@pytest.mark.parametrize("before", [1, 32, 1 << 30])
@pytest.mark.parametrize("after", [1, 32, 1 << 30])
def test_a_new_generation_leaves_nothing_of_the_old(tmp_path: Path, before: int, after: int) -> None:
    (tmp_path / "README.md").write_text("kept")
    write_model(tmp_path, {"g": 1}, WEIGHTS.items(), shard_bytes=before)
    write_model(tmp_path, {"g": 2}, {name: value + 10 for name, value in WEIGHTS.items()}.items(), shard_bytes=after)
    assert values(tmp_path) == {"a": 10, "b": 11, "c": 12}
    assert open_model(tmp_path).config == {"g": 2}
    assert (tmp_path / "README.md").read_text() == "kept"
    expected = {1: 3, 32: 2, 1 << 30: 1}[after]
    assert len(list(tmp_path.glob("*.safetensors"))) == expected
    assert (tmp_path / "model.safetensors.index.json").exists() == (expected > 1)
    assert not list(tmp_path.glob(".partial*"))


@pytest.mark.parametrize("shard_bytes", [1, 1 << 30])
def test_a_failure_leaves_the_old_one(tmp_path: Path, shard_bytes: int) -> None:
    write_model(tmp_path, {"g": 1}, WEIGHTS.items(), shard_bytes=shard_bytes)
    before = files(tmp_path)

    def failing() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.full((4,), 7.0)
        yield "b", torch.full((4,), 7.0)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        write_model(tmp_path, {"g": 2}, failing(), shard_bytes=shard_bytes)
    assert files(tmp_path) == before
    assert values(tmp_path) == {"a": 0, "b": 1, "c": 2}
    assert open_model(tmp_path).config == {"g": 1}


def test_a_death_between_the_renames_leaves_one_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each rename in turn the process stops; what is there then is all old or all new."""
    rename = Path.replace
    for last in range(12):
        folder = tmp_path / str(last)
        write_model(folder, {}, WEIGHTS.items(), shard_bytes=1)
        left = [last]

        def stopping(path: Path, target: Path, left: list[int] = left) -> Path:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return rename(path, target)

        monkeypatch.setattr(Path, "replace", stopping)
        new = [(name, value + 10) for name, value in WEIGHTS.items()]
        try:
            write_model(folder, {}, new, shard_bytes=1)
        except KeyboardInterrupt:
            assert values(folder) in ({"a": 0, "b": 1, "c": 2}, {"a": 10, "b": 11, "c": 12})
        else:
            assert last == 5  # Three shards, the index and the configuration.
            return
        finally:
            monkeypatch.undo()
    pytest.fail("it never finished")


def test_shared_memory_is_written_twice(tmp_path: Path) -> None:
    value = torch.arange(6.0)
    write_model(tmp_path, {}, [("a", value), ("b", value), ("c", value[::2])])
    model = open_model(tmp_path)
    assert torch.equal(model.read("b"), value)
    assert torch.equal(model.read("c"), value[::2])


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one tensor"):
        write_model(tmp_path, {}, [])
    with pytest.raises(ValueError, match="a is given twice"):
        write_model(tmp_path, {}, [("a", torch.zeros(1)), ("a", torch.zeros(1))], shard_bytes=1)
    with pytest.raises(ValueError, match="shard_bytes is 0"):
        write_model(tmp_path, {}, WEIGHTS.items(), shard_bytes=0)
    assert files(tmp_path) == []

    class Failing(ByteTokenizer):
        def save(self, folder: Path | str) -> None:
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        write_model(tmp_path, {}, WEIGHTS.items(), tokenizer=Failing())
    assert files(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_model(tmp_path / "file", {}, WEIGHTS.items())
