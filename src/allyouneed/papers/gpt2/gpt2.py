"""GPT-2: a pre-norm decoder with learned positions, its initial weights, and its published checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from torch import nn

from allyouneed.hub import Name, Pretrained, StoredModel, canonical, refuse_unless, required, same, stacked, transposed
from allyouneed.nn import ACTIVATIONS, Attention, Block, Decoder, FeedForward, LearnedPositions, PreNorm
from allyouneed.text import Tokenizer

from .byte_pairs import ByteLevelBPE

gelu = ACTIVATIONS["gelu_new"]
"""The approximation that GPT-2 was trained with; the exact GELU differs from it by up to 5e-4."""

STANDARD_DEVIATION = 0.02
"""Of initial weights (Radford et al. 2018, section 4.1, whose details section 2.3 of this paper keeps)."""


@dataclass(frozen=True)
class GPT2Config:
    """The numbers of a GPT-2; the defaults are the smallest of the four published models.

    Attributes:
        vocabulary: number of tokens; 50,257 (section 2.3).
        positions: the longest sequence, in tokens; 1,024 (section 2.3).
        width: of the residual stream (Table 2).
        layers: number of blocks (Table 2).
        heads: number of attention heads. The published models have heads of width 64; the paper does not say.
        hidden: inner width of the feed-forward layers; four times the width where None.
        embedding_dropout: probability of dropping a coordinate of the sum of embeddings, in training.
        attention_dropout: of dropping an attention weight.
        residual_dropout: of dropping a coordinate of what a sublayer adds.
        epsilon: added to the variance in layer norms.
        tied: whether the output projection is the embedding table, as in all published models.
        activation: of the feed-forward layers, a name in `nn.ACTIVATIONS`; the approximation of GELU in all published
            models.
        deviation: standard deviation of the initial weights, but for those that account for the depth.
    """

    vocabulary: int = 50_257
    positions: int = 1024
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int | None = None
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.1
    residual_dropout: float = 0.1
    epsilon: float = 1e-5
    tied: bool = True
    activation: str = "gelu_new"
    deviation: float = STANDARD_DEVIATION


_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}

SIZES: Mapping[str, GPT2Config] = MappingProxyType(
    {
        "117M": GPT2Config(),
        "345M": GPT2Config(width=1024, layers=24, heads=16),
        "762M": GPT2Config(width=1280, layers=36, heads=20),
        "1542M": GPT2Config(width=1600, layers=48, heads=25),
    }
)
"""Table 2, under the paper's counts of parameters; the models have 124, 355, 774 and 1,558 million."""


class GPT2(Pretrained, Decoder):
    """The language model of Radford et al. 2019, section 2.3.

    GPT with each layer norm moved to the input of its sublayer, one more behind the last block, and initial weights
    that account for the depth. Reads and writes the checkpoints of Hugging Face transformers.

    Args:
        config: its numbers.

    Raises:
        ValueError: heads that do not divide the width, no tokens, or no layers.
    """

    model_types: ClassVar[tuple[str, ...]] = ("gpt2",)
    # The language model under another head can be read without that.
    architectures: ClassVar[tuple[str, ...]] = (
        "GPT2LMHeadModel",
        "GPT2Model",
        "GPT2ForSequenceClassification",
        "GPT2ForTokenClassification",
        "GPT2DoubleHeadsModel",
    )
    prefix: ClassVar[str] = "transformer."
    # Causal masks, which early checkpoints hold as buffers, and other heads.
    ignored: ClassVar[tuple[str, ...]] = (
        r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",
        r"score\..*",
        r"classifier\..*",
        r"multiple_choice_head\..*",
    )

    def __init__(self, config: GPT2Config):
        norm = partial(nn.LayerNorm, config.width, eps=config.epsilon)
        blocks = [
            Block(
                PreNorm(
                    Attention(config.width, config.heads, dropout=config.attention_dropout),
                    norm(),
                    config.residual_dropout,
                ),
                PreNorm(
                    FeedForward(config.width, config.hidden, ACTIVATIONS[config.activation]),
                    norm(),
                    config.residual_dropout,
                ),
            )
            for _ in range(config.layers)
        ]
        super().__init__(
            config.vocabulary,
            config.width,
            blocks,
            positions=LearnedPositions(config.positions, config.width),
            norm=norm(),
            tied=config.tied,
            dropout=config.embedding_dropout,
        )
        self.config = config
        initialise(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "GPT2":
        """Build the model that a `config.json` of transformers describes, with new weights.

        Raises:
            UnsupportedError: a value that is not supported, named.
        """
        refuse_unless(config, "model_type", ["gpt2"])
        config = canonical(config, _ALIASES)
        refuse_unless(config, "activation_function", tuple(ACTIVATIONS))
        refuse_unless(config, "scale_attn_weights", [True], absent=True)
        refuse_unless(config, "scale_attn_by_inverse_layer_idx", [False], absent=False)
        refuse_unless(config, "add_cross_attention", [False], absent=False)
        return cls(
            GPT2Config(
                vocabulary=required(config, "vocab_size", int),
                positions=required(config, "n_positions", int, 1024),
                width=required(config, "n_embd", int),
                layers=required(config, "n_layer", int),
                heads=required(config, "n_head", int),
                hidden=None if config.get("n_inner") is None else required(config, "n_inner", int),
                embedding_dropout=required(config, "embd_pdrop", float, 0.1),
                attention_dropout=required(config, "attn_pdrop", float, 0.1),
                residual_dropout=required(config, "resid_pdrop", float, 0.1),
                epsilon=required(config, "layer_norm_epsilon", float, 1e-5),
                tied=required(config, "tie_word_embeddings", bool, True),
                activation=required(config, "activation_function", str, "gelu_new"),
                deviation=required(config, "initializer_range", float, STANDARD_DEVIATION),
            )
        )

    def to_config(self) -> dict[str, Any]:
        """Give the `config.json` by which transformers builds the same model."""
        config = self.config
        return {
            "architectures": [self.architectures[0]],
            "model_type": "gpt2",
            "vocab_size": config.vocabulary,
            "n_positions": config.positions,
            "n_embd": config.width,
            "n_layer": config.layers,
            "n_head": config.heads,
            "n_inner": config.hidden,
            "activation_function": config.activation,
            "embd_pdrop": config.embedding_dropout,
            "attn_pdrop": config.attention_dropout,
            "resid_pdrop": config.residual_dropout,
            "layer_norm_epsilon": config.epsilon,
            "initializer_range": config.deviation,
            "tie_word_embeddings": config.tied,
        }

    def weight_names(self) -> Sequence[Name]:
        """Name every parameter: linear layers are stored transposed, and those of query, key and value as one."""
        names = [
            same("embedding.weight", "transformer.wte.weight"),
            same("positions.table.weight", "transformer.wpe.weight"),
        ]
        if not self.config.tied:
            names.append(same("head.weight", "lm_head.weight"))
        for part, linear in (("weight", transposed), ("bias", same)):
            names.append(same(f"norm.{part}", f"transformer.ln_f.{part}"))
            for index in range(self.config.layers):
                attention, feed_forward = f"blocks.{index}.attention", f"blocks.{index}.feed_forward"
                layer = f"transformer.h.{index}"
                projections = [f"{attention}.sublayer.{name}.{part}" for name in ("query", "key", "value")]
                names += [
                    same(f"{attention}.norm.{part}", f"{layer}.ln_1.{part}"),
                    stacked(projections, f"{layer}.attn.c_attn.{part}", transposed=part == "weight"),
                    linear(f"{attention}.sublayer.output.{part}", f"{layer}.attn.c_proj.{part}"),
                    same(f"{feed_forward}.norm.{part}", f"{layer}.ln_2.{part}"),
                    linear(f"{feed_forward}.sublayer.inner.{part}", f"{layer}.mlp.c_fc.{part}"),
                    linear(f"{feed_forward}.sublayer.output.{part}", f"{layer}.mlp.c_proj.{part}"),
                ]
        return names

    @classmethod
    def read_tokenizer(cls, stored: StoredModel) -> Tokenizer:
        """Make the tokenizer of an opened checkpoint: that of its `tokenizer.json`, or of GPT-2's own two files."""
        try:
            return super().read_tokenizer(stored)
        except FileNotFoundError:
            return stored.with_roles(ByteLevelBPE.load(stored.source))

    def copies(self) -> Mapping[str, str]:
        """Give the name under which some checkpoints hold the tied table again."""
        return {"lm_head.weight": "transformer.wte.weight"} if self.config.tied else {}


def initialise(model: GPT2) -> None:
    """Draw weights from N(0, 0.02²), of projections that add to the residual path from N(0, 0.02² / N); biases are 0.

    N is the number of residual layers, two in each block: without the factor the variance on the residual path would
    grow with the depth.

    Source: Radford et al. 2019, section 2.3.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=model.config.deviation)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    residual_layers = 2 * len(model.blocks)
    for block in model.blocks:
        for name in ("attention.sublayer.output.weight", "feed_forward.sublayer.output.weight"):
            nn.init.normal_(block.get_parameter(name), std=model.config.deviation / residual_layers**0.5)
