"""Loading takes little more memory than the weights that it leaves, measured in a fresh process."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from gguf import GGMLQuantizationType

from allyouneed.hub import open_model, write_model

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are measured through /proc")


@pytest.fixture(scope="module")
def measure() -> Callable[..., dict[str, float]]:
    path = Path(__file__).parents[2] / "benchmarks" / "loading.py"
    spec = importlib.util.spec_from_file_location("loading_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.measure


def test_peaks(measure: Callable[..., dict[str, float]], maker: ModuleType, chat_file: Path, tmp_path: Path) -> None:
    """A GGUF file in 16 bits and a folder in bfloat16, both loaded in 32 bits: twice what is stored."""
    path = tmp_path / "a.gguf"
    sizes = {"width": 512, "hidden": 2048, "layers": 6, "heads": 8, "vocabulary": 300}
    maker.write_chat_model(path, kind=GGMLQuantizationType.F16, **sizes)
    stored = open_model(path)
    tensors = ((name, stored.read(name, torch.bfloat16)) for name in stored.names())
    write_model(tmp_path / "folder", stored.config, tensors, tokenizer=stored.tokenizer())
    for source in (path, tmp_path / "folder"):
        found = measure(source, chat_file, dtype="float32")
        assert found["weights"] > 90e6
        assert found["peak"] > 0.9 * found["weights"]  # Or nothing was measured.
        assert found["peak"] < 1.3 * found["weights"], source


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_peaks_in_few_bits(
    measure: Callable[..., dict[str, float]], maker: ModuleType, chat_file: Path, tmp_path: Path, kind: str
) -> None:
    """What is held in the end has each layer twice: as it is stored, and as the kernel reads it."""
    path = tmp_path / "a.gguf"
    sizes = {"width": 512, "hidden": 2048, "layers": 20, "heads": 8, "vocabulary": 300}
    maker.write_chat_model(path, kind=GGMLQuantizationType.Q4_1, **sizes)
    found = measure(path, chat_file, quantize=kind)
    assert found["weights"] > 90e6
    assert found["peak"] > 0.9 * found["weights"]
    assert found["peak"] < 1.3 * found["weights"]
