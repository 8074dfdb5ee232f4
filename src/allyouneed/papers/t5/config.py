"""The numbers of a T5, the paper's sizes, and how checkpoints write them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from allyouneed.hub import UnsupportedError, canonical, refuse_unless, required
from allyouneed.nn import ACTIVATIONS

GATE = "gated-"
"""What the names of the gated feed-forward layers of version 1.1 and its relatives begin with."""


@dataclass(frozen=True)
class T5Config:
    """The numbers of a T5; the defaults are the paper's baseline (section 3.1.1).

    Attributes:
        vocabulary: number of tokens. The paper's 32,000 and 100 sentinels are rounded up to a multiple of 128.
        width: d_model.
        head_width: d_kv, of keys, queries and values; the heads together may be wider or narrower than the model.
        hidden: d_ff, inner width of the feed-forward layers.
        layers: blocks of the encoder.
        decoder_layers: blocks of the decoder; as many as the encoder has where None.
        heads: of each attention.
        buckets: of relative positions, in each direction or both (section 2.1).
        furthest: the distance from which on all share a bucket.
        dropout: probability wherever dropout is applied.
        feed_forward: "relu" in version 1.0, "gated-gelu" in 1.1; any name in `nn.ACTIVATIONS`, with or without a gate.
        activation: of the feed-forward layers, where it is not the one that their name says; there "gated-gelu" stands
            for the approximation by tanh that version 1.1 was trained with.
        tied: whether the output layer is the embedding table: version 1.0. In 1.1 it is a linear layer of its own.
        scaled: whether vectors are multiplied by 1/√width before the output layer; where it is tied if None, as in both
            versions.
        epsilon: of the norms.
        padding: the token that fills up rows, and begins every target.
        end: the token that ends inputs and targets.
        deviation: what the standard deviations of the initial weights are multiplied by.
    """

    vocabulary: int = 32_128
    width: int = 768
    head_width: int = 64
    hidden: int = 3072
    layers: int = 12
    decoder_layers: int | None = None
    heads: int = 12
    buckets: int = 32
    furthest: int = 128
    dropout: float = 0.1
    feed_forward: str = "relu"
    tied: bool = True
    epsilon: float = 1e-6
    padding: int = 0
    end: int = 1
    activation: str | None = None
    deviation: float = 1.0
    scaled: bool | None = None

    def __post_init__(self) -> None:
        for name in (self.feed_forward.removeprefix(GATE), self.activation_name):
            if name not in ACTIVATIONS:
                raise ValueError(f"feed_forward or activation is {name!r}; known are {', '.join(ACTIVATIONS)}")
        for name in ("vocabulary", "width", "head_width", "hidden", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.decoder_layers is not None and self.decoder_layers < 1:
            raise ValueError(f"decoder_layers is {self.decoder_layers}: it must be at least 1, or None")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}: it must be at least 0 and below 1")

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layers have a gate."""
        return self.feed_forward.startswith(GATE)

    @property
    def scales_output(self) -> bool:
        """Whether vectors are multiplied by 1/√width before the output layer."""
        return self.tied if self.scaled is None else self.scaled

    @property
    def activation_name(self) -> str:
        """The activation of the feed-forward layers, a name in `nn.ACTIVATIONS`."""
        usual = "gelu_new" if self.feed_forward == "gated-gelu" else self.feed_forward.removeprefix(GATE)
        return self.activation or usual


SIZES: Mapping[str, T5Config] = MappingProxyType(
    {
        "small": T5Config(width=512, hidden=2048, layers=6, heads=8),
        "base": T5Config(),
        "large": T5Config(width=1024, hidden=4096, layers=24, heads=16),
        "3b": T5Config(width=1024, head_width=128, hidden=16_384, layers=24, heads=32),
        "11b": T5Config(width=1024, head_width=128, hidden=65_536, layers=24, heads=128),
    }
)
"""The models of section 3.7."""

KEYS = {
    "vocabulary": "vocab_size",
    "width": "d_model",
    "head_width": "d_kv",
    "hidden": "d_ff",
    "layers": "num_layers",
    "heads": "num_heads",
    "buckets": "relative_attention_num_buckets",
    "furthest": "relative_attention_max_distance",
    "dropout": "dropout_rate",
    "feed_forward": "feed_forward_proj",
    "epsilon": "layer_norm_epsilon",
    "padding": "pad_token_id",
    "end": "eos_token_id",
    "deviation": "initializer_factor",
}
"""What the fields of `T5Config` are called in `config.json`."""
_ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
}


def read_config(config: Mapping[str, Any]) -> T5Config:
    """Read the numbers of a `config.json`, as any version of transformers writes it.

    Raises:
        UnsupportedError: a key that is missing, or a value that would need other code than this: it is named.
        ValueError: numbers out of range.
    """
    refuse_unless(config, "model_type", ("t5",))
    config = canonical(config, _ALIASES)
    refuse_unless(config, "feed_forward_proj", (*ACTIVATIONS, *(GATE + name for name in ACTIVATIONS)), absent="relu")
    refuse_unless(config, "dense_act_fn", (None, *ACTIVATIONS))
    refuse_unless(config, "is_encoder_decoder", (True,), absent=True)
    defaults: dict[str, Any] = {"vocabulary": 32_128, "width": 512, "hidden": 2048, "layers": 6, "heads": 8}
    values: dict[str, Any] = {}
    ends = config.get("eos_token_id")
    if isinstance(ends, list) and ends:
        # The first ends inputs and targets; generation of text stops at any of them.
        config = {**config, "eos_token_id": ends[0]}
    for field, key in KEYS.items():
        default = defaults.get(field, getattr(T5Config, field))
        values[field] = required(config, key, type(default), default)
    begin = required(config, "decoder_start_token_id", int, values["padding"])
    if begin != values["padding"]:
        raise UnsupportedError(
            f"config.json: decoder_start_token_id is {begin}; targets begin with pad_token_id, {values['padding']}"
        )
    tied = required(config, "tie_word_embeddings", bool, True)
    # Newer versions of transformers write `tie_word_embeddings` as true for both, and tell them apart by this.
    tied = required(config, "scale_decoder_outputs", bool, tied)
    count = config.get("num_decoder_layers")
    layers = None if count is None else required(config, "num_decoder_layers", int)
    numbers = T5Config(**values, decoder_layers=layers, tied=tied)
    # Written beside the name that they follow from, and changed by hand now and then.
    refuse_unless(config, "is_gated_act", (None, numbers.gated))
    activation = config.get("dense_act_fn")
    return numbers if activation in (None, numbers.activation_name) else replace(numbers, activation=activation)
