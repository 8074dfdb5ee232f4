"""Small checkpoints to read, and a model small enough to be seen through."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from allyouneed.hub import Name, Pretrained, refuse_unless, required, same, stacked, transposed, write_model

STANDINS = Path(__file__).parents[1] / "standins"


class Tiny(Pretrained, nn.Module):
    """An embedding, a linear layer stored transposed, and three stored as one."""

    architectures: ClassVar[tuple[str, ...]] = ("TinyModel",)
    ignored: ClassVar[tuple[str, ...]] = (r"(tiny\.)?mask",)
    prefix: ClassVar[str] = "tiny."

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.table = nn.Embedding(5, width)
        self.inner = nn.Linear(width, 2 * width)
        self.query, self.key, self.value = (nn.Linear(width, size) for size in (width, 2, 2))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Tiny":
        refuse_unless(config, "act", ("relu",))
        return cls(required(config, "width", int))

    def to_config(self) -> dict[str, Any]:
        return {"architectures": ["TinyModel"], "model_type": "tiny", "width": self.width}

    def weight_names(self) -> Sequence[Name]:
        parts = ("query", "key", "value")
        return [
            same("table.weight", "tiny.wte.weight"),
            transposed("inner.weight", "tiny.inner.weight"),
            same("inner.bias", "tiny.inner.bias"),
            stacked([f"{part}.weight" for part in parts], "tiny.attn.weight", transposed=True),
            stacked([f"{part}.bias" for part in parts], "tiny.attn.bias"),
        ]

    def copies(self) -> Mapping[str, str]:
        return {"head.weight": "tiny.wte.weight"}


@pytest.fixture
def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny(4)


@pytest.fixture
def stored(tiny: Tiny) -> dict[str, torch.Tensor]:
    """Give Tiny's weights under their stored names."""
    parameters = dict(tiny.named_parameters())
    return {name.theirs: name.join([parameters[ours].data for ours in name.ours]) for name in tiny.weight_names()}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Give a function that writes tensors as a checkpoint of Tiny."""

    def write_tensors(tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
        folder = tmp_path / "model"
        write_model(folder, {"architectures": ["TinyModel"], "width": 4, **config}, tensors.items())
        return folder

    return write_tensors


@pytest.fixture(scope="session")
def maker() -> ModuleType:
    """Give the script that makes the stand-ins, whose functions make other sizes too."""
    spec = importlib.util.spec_from_file_location("make_checkpoints", STANDINS / "make_checkpoints.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def chat_file() -> Path:
    return STANDINS / "smollm2-135m-instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def encoder_folder() -> Path:
    return STANDINS / "all-minilm-l6-v2"
