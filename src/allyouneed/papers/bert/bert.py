"""BERT: an encoder that reads both ways."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allyouneed.hub import Name, Pretrained, StoredModel, UnsupportedError, refuse_unless, required, same
from allyouneed.nn import ACTIVATIONS, Attention, Block, Encoder, FeedForward, LearnedPositions, PostNorm
from allyouneed.text import Tokenizer

from .wordpiece import WordPieceTokenizer


@dataclass(frozen=True)
class BertConfig:
    """The size of a model; as it stands, the paper's BERT base (section 3).

    Attributes:
        vocabulary: number of tokens.
        width: H, of the residual stream.
        layers: L, number of blocks.
        heads: A, of attention.
        hidden: inner width of the feed-forward layers; 4H in the paper.
        positions: the most tokens of a row.
        segments: kinds of sentences in a row, A and B.
        activation: a name in `nn.ACTIVATIONS`.
        dropout: of embeddings and sublayers' outputs (appendix A.2).
        attention_dropout: of attention weights.
        epsilon: of the norms.
        deviation: standard deviation of the initial weights.
        padding: the token that fills up rows.
        classifier_dropout: of what classifiers read; as `dropout` where None.
    """

    vocabulary: int = 30_522
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    positions: int = 512
    segments: int = 2
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    epsilon: float = 1e-12
    deviation: float = 0.02
    padding: int = 0
    classifier_dropout: float | None = None


_KEYS = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "positions": "max_position_embeddings",
    "segments": "type_vocab_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "epsilon": "layer_norm_eps",
    "deviation": "initializer_range",
    "padding": "pad_token_id",
}
"""What the fields of `BertConfig` are called in `config.json`."""


def read_config(config: Mapping[str, Any]) -> BertConfig:
    """Read the sizes in a `config.json`.

    Raises:
        UnsupportedError: a value that is missing, of another type, or not supported here, named.
    """
    refuse_unless(config, "position_embedding_type", ("absolute",))
    refuse_unless(config, "is_decoder", (False,))
    refuse_unless(config, "add_cross_attention", (False,))
    refuse_unless(config, "hidden_act", tuple(ACTIVATIONS))
    values: dict[str, Any] = {}
    for field in fields(BertConfig):
        if field.name in _KEYS:
            default: Any = field.default
            values[field.name] = required(config, _KEYS[field.name], type(default), default)
    dropped = config.get("classifier_dropout")
    return BertConfig(
        **values, classifier_dropout=None if dropped is None else required(config, "classifier_dropout", float)
    )


class BertModel(Pretrained):
    """What all models here have: their tokenizer."""

    model_types: ClassVar[tuple[str, ...]] = ("bert",)

    @classmethod
    def read_tokenizer(cls, stored: StoredModel) -> Tokenizer:
        """Make the tokenizer of an opened checkpoint: ours where it has a `vocab.txt`."""
        folder = Path(stored.source)
        return WordPieceTokenizer.load(folder) if (folder / "vocab.txt").is_file() else super().read_tokenizer(stored)


class Bert(BertModel):
    """The encoder: post-norm blocks over the sum of token, position and segment embeddings (Figures 1 and 2).

    Args:
        config: the size.
        pooler: whether there is a layer on the first token's vector that stands for the whole row; C in the paper is
            its output, though the text does not mention the layer.
    """

    # The encoder of any of them can be read without its head.
    architectures: ClassVar[tuple[str, ...]] = (
        "BertModel",
        "BertForPreTraining",
        "BertForMaskedLM",
        "BertForNextSentencePrediction",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
    )
    ignored: ClassVar[tuple[str, ...]] = (
        r"(bert\.)?embeddings\.position_ids",
        r"cls\..*",
        r"classifier\..*",
        r"qa_outputs\..*",
    )
    prefix: ClassVar[str] = "bert."

    def __init__(self, config: BertConfig, *, pooler: bool = True):
        super().__init__()
        self.config = config

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(config.width, eps=config.epsilon)

        def block() -> Block:
            attention = Attention(config.width, config.heads, dropout=config.attention_dropout)
            feed_forward = FeedForward(config.width, config.hidden, ACTIVATIONS[config.activation])
            return Block(
                PostNorm(attention, norm(), config.dropout),
                PostNorm(feed_forward, norm(), config.dropout),
            )

        self.encoder = Encoder(
            config.vocabulary,
            config.width,
            [block() for _ in range(config.layers)],
            positions=LearnedPositions(config.positions, config.width),
            embedding_norm=norm(),
            dropout=config.dropout,
        )
        self.segments = nn.Embedding(config.segments, config.width)
        self.pooler = nn.Linear(config.width, config.width) if pooler else None
        initialise(self, config.deviation)

    def forward(
        self,
        tokens: Int[Tensor, "batch length"],
        segments: Int[Tensor, "batch length"] | None = None,
        *,
        present: Bool[Tensor, "batch length"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "batch length width"]:
        """Give T, each token's vector after the last block.

        Args:
            tokens: `[CLS]` sentence A `[SEP]`, and where there is a sentence B, that and `[SEP]` again.
            segments: 0 where a token is of sentence A, 1 where it is of B; 0 throughout where None.
            present: False where a token is padding.
            causal: hide from each token those that follow it (the left-to-right model of section 5.1).
        """
        added = self._segments(tokens, segments)
        return self.encoder(tokens, present=present, added=added, causal=causal)

    def layers(
        self,
        tokens: Int[Tensor, "batch length"],
        segments: Int[Tensor, "batch length"] | None = None,
        *,
        present: Bool[Tensor, "batch length"] | None = None,
        causal: bool = False,
    ) -> Iterator[Tensor]:
        """Give the embeddings and then each block's output, as the feature-based approach takes them (section 5.3)."""
        added = self._segments(tokens, segments)
        return self.encoder.layers(tokens, present=present, added=added, causal=causal)

    def pooled(self, hidden: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch width"]:
        """Give C, the vector that stands for each row, from its first token's.

        Raises:
            ValueError: the model was built without the layer that this needs.
        """
        if self.pooler is None:
            raise ValueError("this model has no pooler: build it with pooler=True, or use the tokens' vectors")
        return torch.tanh(self.pooler(hidden[:, 0]))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Bert":
        """Build the model that a `config.json` describes; a pooler is left out where that architecture has none."""
        names = config.get("architectures") or ["BertModel"]
        without = ("BertForMaskedLM", "BertForTokenClassification", "BertForQuestionAnswering")
        return cls(read_config(config), pooler=names[0] not in without)

    @classmethod
    def for_stored(cls, stored: StoredModel) -> "Bert":
        """Build the model that a checkpoint holds; its pooler is left out where that has none."""
        pooler = any(name.endswith("pooler.dense.weight") for name in stored.names())
        return cls(read_config(stored.config), pooler=pooler)

    def to_config(self) -> dict[str, Any]:
        """Give the `config.json` that describes this model.

        Raises:
            UnsupportedError: a model without a pooler, which the usual layout has no place for.
        """
        if self.pooler is None:
            raise UnsupportedError(
                "a BertModel is stored with its pooler, and this one has none: save it with its head"
            )
        return self.described(self.architectures[0])

    def described(self, architecture: str) -> dict[str, Any]:
        """Give the `config.json` of this encoder under a head of an architecture."""
        sizes = {key: getattr(self.config, field) for field, key in _KEYS.items()}
        more = {"classifier_dropout": self.config.classifier_dropout}
        return {"architectures": [architecture], "model_type": "bert", **sizes, **more}

    def weight_names(self) -> list[Name]:
        """Name every parameter as published checkpoints do."""
        pairs = {
            "encoder.embedding": "embeddings.word_embeddings",
            "encoder.positions.table": "embeddings.position_embeddings",
            "segments": "embeddings.token_type_embeddings",
        }
        names = [same(f"{ours}.weight", f"{theirs}.weight") for ours, theirs in pairs.items()]
        pairs = {"encoder.embedding_norm": "embeddings.LayerNorm"}
        for index in range(self.config.layers):
            block, layer = f"encoder.blocks.{index}", f"encoder.layer.{index}"
            for part in ("query", "key", "value"):
                pairs[f"{block}.attention.sublayer.{part}"] = f"{layer}.attention.self.{part}"
            pairs[f"{block}.attention.sublayer.output"] = f"{layer}.attention.output.dense"
            pairs[f"{block}.attention.norm"] = f"{layer}.attention.output.LayerNorm"
            pairs[f"{block}.feed_forward.sublayer.inner"] = f"{layer}.intermediate.dense"
            pairs[f"{block}.feed_forward.sublayer.output"] = f"{layer}.output.dense"
            pairs[f"{block}.feed_forward.norm"] = f"{layer}.output.LayerNorm"
        if self.pooler is not None:
            pairs["pooler"] = "pooler.dense"
        return names + weights_and_biases(pairs)

    def _segments(self, tokens: Tensor, segments: Tensor | None) -> Tensor:
        return self.segments(torch.zeros_like(tokens) if segments is None else segments)


def initialise(model: nn.Module, deviation: float) -> None:
    """Draw matrices and embeddings from N(0, deviation²) and set biases to zero, as the released code does."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=deviation)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def weights_and_biases(pairs: Mapping[str, str]) -> list[Name]:
    """Name the weight and the bias of each of our parts by what that part is called outside."""
    return [same(f"{ours}.{kind}", f"{theirs}.{kind}") for ours, theirs in pairs.items() for kind in ("weight", "bias")]
