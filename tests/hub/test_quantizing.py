"""Linear layers run in few bits as they are stored, and everything else stays as it was."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from torch import nn

from allyouneed.hub import Name, Pretrained, UnsupportedError, open_model, same, stacked, write_model
from allyouneed.nn import Attention, Block, Decoder, GatedFeedForward, Int4Linear, Int8Linear, PreNorm
from allyouneed.nn import PositionScheme as NoPositions

_THEIRS = {
    "attention.norm.weight": "input_layernorm.weight",
    "feed_forward.norm.weight": "post_attention_layernorm.weight",
    **{
        f"attention.sublayer.{ours}.weight": f"self_attn.{ours[0]}_proj.weight"
        for ours in ("query", "key", "value", "output")
    },
    **{
        f"feed_forward.sublayer.{ours}.weight": f"mlp.{theirs}_proj.weight"
        for ours, theirs in (("gate", "gate"), ("inner", "up"), ("output", "down"))
    },
}


class Small(Pretrained, Decoder):
    """What reads the stand-in, but for its rotary positions."""

    architectures: ClassVar[tuple[str, ...]] = ("LlamaForCausalLM",)

    def __init__(self, config: Mapping[str, Any]):
        width, heads = config["hidden_size"], config["num_attention_heads"]
        blocks = [
            Block(
                PreNorm(
                    Attention(width, heads, key_value_heads=config["num_key_value_heads"], bias=False),
                    nn.RMSNorm(width),
                ),
                PreNorm(GatedFeedForward(width, config["intermediate_size"]), nn.RMSNorm(width)),
            )
            for _ in range(config["num_hidden_layers"])
        ]
        tied = config["tie_word_embeddings"]
        super().__init__(
            config["vocab_size"], width, blocks, positions=NoPositions(), norm=nn.RMSNorm(width), tied=tied
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Small":
        return cls(config)

    def weight_names(self) -> Sequence[Name]:
        names = [same("embedding.weight", "model.embed_tokens.weight"), same("norm.weight", "model.norm.weight")]
        names += [] if self.head is None else [same("head.weight", "lm_head.weight")]
        return names + [
            same(f"blocks.{layer}.{ours}", f"model.layers.{layer}.{theirs}")
            for layer in range(len(self.blocks))
            for ours, theirs in _THEIRS.items()
        ]


@pytest.fixture(scope="module")
def make(maker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def write(**sizes: Any) -> Path:
        path = tmp_path_factory.mktemp("gguf") / "a.gguf"
        maker.write_chat_model(path, vocabulary=300, layers=1, **sizes)
        return path

    return write


def layers(model: nn.Module) -> dict[str, int]:
    kinds = [type(module).__name__ for module in model.modules()]
    return {kind: kinds.count(kind) for kind in ("Linear", "Int4Linear", "Int8Linear")}


def relative_difference(model: nn.Module, other: nn.Module) -> float:
    tokens = torch.arange(2 * 7).view(2, 7) * 5
    with torch.no_grad():
        expected = other(tokens)
        return float((model(tokens) - expected).norm() / expected.norm())


@pytest.mark.parametrize("tied", [True, False])
def test_int4_runs_the_stored_groups(make: Callable[..., Path], tied: bool) -> None:
    path = make(tied=tied)
    model, whole = Small.from_pretrained(path, quantize="int4"), Small.from_pretrained(path)
    assert isinstance(model.blocks[0].feed_forward.sublayer.output, Int4Linear)
    # Only what is not a linear layer is left as parameters: norms, and the table where it is no output projection.
    assert {name for name, _ in model.named_parameters()} == {
        name for name, _ in whole.named_parameters() if "norm" in name or (name == "embedding.weight" and not tied)
    }
    stored = open_model(path)
    down = stored.read("model.layers.0.mlp.down_proj.weight")
    assert torch.equal(model.blocks[0].feed_forward.sublayer.output.weight, down)
    head = model.head
    assert isinstance(head, Int8Linear if tied else Int4Linear)
    assert torch.equal(head.weight, stored.read("model.embed_tokens.weight" if tied else "lm_head.weight"))
    assert relative_difference(model, whole) < 0.02  # Products are rounded to bfloat16.


@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0])
def test_int8(make: Callable[..., Path], kind: Kind) -> None:
    path = make(kind=kind)
    model, whole = Small.from_pretrained(path, quantize="int8"), Small.from_pretrained(path)
    down = model.blocks[0].feed_forward.sublayer.output
    assert isinstance(down, Int8Linear)
    if kind == Kind.Q8_0:
        assert torch.equal(down.weight, open_model(path).read("model.layers.0.mlp.down_proj.weight"))
    assert not model.training
    assert relative_difference(model, whole) < 0.03


def test_int4_needs_four_bits(make: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedError, match="no linear layer in groups of 4 bits"):
        Small.from_pretrained(make(kind=Kind.Q8_0), quantize="int4")


def test_what_was_quantised_cannot_be_saved(make: Callable[..., Path], tmp_path: Path) -> None:
    model = Small.from_pretrained(make(), quantize="int8")
    with pytest.raises(ValueError, match="since the model was quantised"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_maps_with_biases_that_are_stored_as_one(tmp_path: Path) -> None:
    class Pair(Pretrained, nn.Module):
        architectures: ClassVar[tuple[str, ...]] = ("Pair",)

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 4), nn.Linear(32, 8)

        @classmethod
        def from_config(cls, config: Mapping[str, Any]) -> "Pair":
            return cls()

        def weight_names(self) -> Sequence[Name]:
            # The weight comes before the bias that its quantised linear layer is made with.
            parts = ("first", "second")
            kinds = {"weight": True, "bias": False}
            return [stacked([f"{part}.{kind}" for part in parts], kind, transposed=t) for kind, t in kinds.items()]

    torch.manual_seed(0)
    weight, bias = torch.randn(32, 12), torch.randn(12)
    write_model(tmp_path, {"architectures": ["Pair"]}, {"weight": weight, "bias": bias}.items())
    model = Pair.from_pretrained(tmp_path, quantize="int8")
    assert layers(model) == {"Linear": 0, "Int4Linear": 0, "Int8Linear": 2}
    vector = torch.randn(3, 32)
    with torch.no_grad():
        mapped = torch.cat((model.first(vector), model.second(vector)), -1)
    assert torch.allclose(mapped, vector @ weight + bias, atol=0.2)
    assert torch.equal(model.first.bias, bias[:4])
