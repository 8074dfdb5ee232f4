"""Supervised fine-tuning: a linear layer on the last token's vector, the auxiliary loss, and what is transferred."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allyouneed.hub import (
    Name,
    Pretrained,
    UnsupportedError,
    label_entries,
    read_labels,
    refuse_unless,
    required,
    same,
)
from allyouneed.nn import linear_cross_entropy
from allyouneed.training import Loss

from .gpt1 import GPT1, described, read_config
from .inputs import PADDING
from .recurrent import RecurrentLanguageModel

Body = GPT1 | RecurrentLanguageModel
"""A language model that can be fine-tuned."""

AUXILIARY_WEIGHT = 0.5
"""λ (section 4.1)."""
IGNORED = -100
"""The target of a place that no token follows."""


def transfer(source: Body, target: Body, layers: int | None = None) -> None:
    """Copy the embeddings and the first layers of a pre-trained model into a new one; its other weights stay new.

    Source: Radford et al. 2018, section 5 (Figure 2, left).

    Args:
        source: pre-trained.
        target: of the same sizes, but for tokens that it may have more of, whose embeddings stay new.
        layers: blocks to copy, from the bottom; 0 copies embeddings and positions alone, None copies everything.

    Raises:
        ValueError: more layers than there are, or models of other sizes.
    """
    blocks = len(source.blocks) if isinstance(source, GPT1) else 0
    if layers is not None and not 0 <= layers <= blocks:
        raise ValueError(f"{layers} layers cannot be transferred: the pre-trained model has {blocks} blocks")
    left_out = tuple(f"blocks.{index}." for index in range(blocks if layers is None else layers, blocks))
    parameters = dict(target.named_parameters())
    for name, value in source.named_parameters():
        if name.startswith(left_out):
            continue
        own = parameters.get(name)
        longer = name == "embedding.weight" and own is not None and len(own) > len(value)
        if own is None or (own[: len(value)] if longer else own).shape != value.shape:
            found = "it is missing" if own is None else f"{tuple(own.shape)}"
            raise ValueError(f"{name} is {tuple(value.shape)} in the pre-trained model, in the other {found}")
        with torch.no_grad():
            own[: len(value)] = value


def with_new_tokens(model: GPT1, tokens: int = 3) -> GPT1:
    """Give a copy of a model with so many more tokens at the end of its vocabulary, whose embeddings are new."""
    extended = GPT1(replace(model.config, vocabulary=model.config.vocabulary + tokens))
    transfer(model, extended)
    return extended.to(model.embedding.weight)


class FineTuned(Pretrained):
    """What models with a head have alike: they read rows, and a linear layer reads each row's last vector.

    Args:
        body: the language model; its vocabulary has the added tokens.
        outputs: of the linear layer.
        bias: whether the layer has one.
        dropout: probability of dropping a coordinate of what the layer reads, in training.
        padding: the token that fills up rows on the right; the one before it is the row's last.
    """

    model_types: ClassVar[tuple[str, ...]] = GPT1.model_types
    prefix: ClassVar[str] = ""
    ignored: ClassVar[tuple[str, ...]] = GPT1.ignored[:2]
    head_name: ClassVar[str]

    def __init__(self, body: Body, outputs: int, *, bias: bool, dropout: float, padding: int):
        super().__init__()
        self.body = body
        self.padding = padding
        self.dropout = nn.Dropout(dropout)
        width = body.embedding.embedding_dim if isinstance(body, GPT1) else 3 * body.cells.hidden_size
        self.score = nn.Linear(width, outputs, bias=bias)
        nn.init.normal_(self.score.weight, std=body.config.deviation if isinstance(body, GPT1) else body.deviation)
        if bias:
            nn.init.zeros_(self.score.bias)

    def forward(self, tokens: Int[Tensor, "batch rows length"]) -> Float[Tensor, "batch outputs"]:
        """Give the logits of each example's rows."""
        return self.logits(self.hidden(tokens), tokens)

    def hidden(self, tokens: Int[Tensor, "batch rows length"]) -> Float[Tensor, "batch rows length width"]:
        """Give the vectors of all tokens, of an LSTM its cell's states; each row is read by itself."""
        flat = tokens.flatten(0, 1)
        found = self.body.hidden(flat) if isinstance(self.body, GPT1) else self.body.states(flat)
        return found.unflatten(0, tokens.shape[:2])

    def predicting(
        self, hidden: Float[Tensor, "batch rows length width"]
    ) -> Float[Tensor, "batch rows length embedding_width"]:
        """Give the vectors from which the next tokens' logits are read."""
        return hidden if isinstance(self.body, GPT1) else self.body.project(hidden)

    def read_out(
        self, hidden: Float[Tensor, "batch rows length width"], tokens: Int[Tensor, "batch rows length"]
    ) -> Float[Tensor, "batch rows read"]:
        """Give what the linear layer reads of each row: a transformer's last vector, and of an LSTM three.

        Those are the last state, the mean and the largest of each coordinate over the row (Howard & Ruder 2018, section
        3.3), since no state can look back at all the others as attention does.
        """
        last = self.last(hidden, tokens)
        if isinstance(self.body, GPT1):
            return last
        present = self.present(tokens)[..., None]
        mean = (hidden * present).sum(2) / present.sum(2).clamp(min=1)
        largest = hidden.masked_fill(~present, -torch.inf).amax(2)
        return torch.cat([last, mean, largest.masked_fill(~present.any(2), 0.0)], -1)

    def logits(
        self, hidden: Float[Tensor, "batch rows length width"], tokens: Int[Tensor, "batch rows length"]
    ) -> Float[Tensor, "batch outputs"]:
        """Give the logits from the vectors of all tokens."""
        raise NotImplementedError

    def present(self, tokens: Int[Tensor, "batch rows length"]) -> Bool[Tensor, "batch rows length"]:
        """Say which tokens are of a row: all up to the last that is not padding."""
        return (tokens != self.padding).flip(-1).cumsum(-1).flip(-1) > 0

    def last(
        self, hidden: Float[Tensor, "batch rows length width"], tokens: Int[Tensor, "batch rows length"]
    ) -> Float[Tensor, "batch rows width"]:
        """Give the vector of each row's last token; of a row of padding that of its first, which means nothing."""
        place = (self.present(tokens).sum(-1) - 1).clamp(min=0)
        return hidden.gather(2, place[..., None, None].expand(-1, -1, 1, hidden.shape[-1])).squeeze(2)

    def to_config(self) -> dict[str, Any]:
        """Give the `config.json` that describes this model.

        Raises:
            UnsupportedError: the body is an LSTM, which no layout has a place for.
        """
        return {
            **described(self._gpt().config, self.architectures[0]),
            "pad_token_id": self.padding if self.padding >= 0 else None,
            "summary_first_dropout": self.dropout.p,
        }

    def weight_names(self) -> list[Name]:
        """Name every parameter as published checkpoints do."""
        inner = [replace(name, ours=tuple(f"body.{own}" for own in name.ours)) for name in self._gpt().weight_names()]
        parts = ("weight",) if self.score.bias is None else ("weight", "bias")
        return [*inner, *(same(f"score.{part}", f"{self.head_name}.{part}") for part in parts)]

    def _gpt(self) -> GPT1:
        if isinstance(self.body, GPT1):
            return self.body
        raise UnsupportedError("a fine-tuned LSTM has no place in GPT's layout: keep its state_dict")


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read what is not in `GPT1Config`; without a padding token every row ends where the tensor does."""
    absent = config.get("pad_token_id") is None
    return {
        "padding": -1 if absent else required(config, "pad_token_id", int),
        "dropout": required(config, "summary_first_dropout", float, 0.1),
    }


class Classifier(FineTuned):
    """Labels for classification, entailment and similarity: the last vectors of an example's rows are added up.

    There is one row of a text or a pair, and for similarity one for each order.

    Args:
        body: the language model; its vocabulary has the added tokens.
        labels: names of the classes.
        dropout: as section 4.1 adds it to the classifier.
        padding: the token that fills up rows.

    Raises:
        ValueError: fewer than two labels, or one twice.
    """

    architectures: ClassVar[tuple[str, ...]] = ("OpenAIGPTForSequenceClassification",)
    head_name: ClassVar[str] = "score"

    def __init__(self, body: Body, labels: Sequence[str], *, dropout: float = 0.1, padding: int = PADDING):
        self_labels = tuple(labels)
        if len(self_labels) < 2 or len(set(self_labels)) < len(self_labels):
            raise ValueError(f"labels {list(self_labels)} must be two or more, each once")
        super().__init__(body, len(self_labels), bias=False, dropout=dropout, padding=padding)
        self.labels = self_labels

    def logits(
        self, hidden: Float[Tensor, "batch rows length width"], tokens: Int[Tensor, "batch rows length"]
    ) -> Float[Tensor, "batch labels"]:
        """Give the logits of the labels."""
        return self.score(self.dropout(self.read_out(hidden, tokens).sum(1)))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Classifier":
        """Build the model that a `config.json` describes, with new weights; two labels where it names none.

        Raises:
            UnsupportedError: a value that is not supported, named.
        """
        refuse_unless(config, "problem_type", (None, "single_label_classification"))
        return cls(GPT1(read_config(config)), read_labels(config, least=2), **_settings(config))

    def to_config(self) -> dict[str, Any]:
        """Give the `config.json` that describes this model."""
        return {**super().to_config(), **label_entries(self.labels)}


class Chooser(FineTuned):
    """Multiple choice: each option's row gives a score, and the softmax runs over the options.

    The layer has a bias, as in the released code; it changes nothing in the softmax.

    Args:
        body: the language model; its vocabulary has the added tokens.
        dropout: as section 4.1 adds it to the classifier.
        padding: the token that fills up rows; a row of nothing else is an option that the example does not have.
    """

    architectures: ClassVar[tuple[str, ...]] = ("OpenAIGPTDoubleHeadsModel",)
    head_name: ClassVar[str] = "multiple_choice_head.summary"

    def __init__(self, body: Body, *, dropout: float = 0.1, padding: int = PADDING):
        super().__init__(body, 1, bias=True, dropout=dropout, padding=padding)

    def logits(
        self, hidden: Float[Tensor, "batch rows length width"], tokens: Int[Tensor, "batch rows length"]
    ) -> Float[Tensor, "batch rows"]:
        """Give the scores of the options; -∞ for one that the example does not have."""
        scores = self.score(self.dropout(self.read_out(hidden, tokens))).squeeze(-1)
        return scores.masked_fill(~self.present(tokens).any(-1), -torch.inf)

    def weight_names(self) -> list[Name]:
        """Name every parameter; the tied table goes by the output projection's name, as in transformers."""
        table = "transformer.tokens_embed.weight"
        names = super().weight_names()
        return [replace(name, theirs="lm_head.weight") if name.theirs == table else name for name in names]

    def copies(self) -> Mapping[str, str]:
        """Give the name under which some checkpoints hold the tied table again."""
        return {"transformer.tokens_embed.weight": "lm_head.weight"}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Chooser":
        """Build the model that a `config.json` describes, with new weights.

        Raises:
            UnsupportedError: a value that is not supported, named.
        """
        refuse_unless(config, "summary_type", ("cls_index",), absent="cls_index")
        refuse_unless(config, "summary_use_proj", (True,), absent=True)
        refuse_unless(config, "summary_proj_to_labels", (True,), absent=True)
        refuse_unless(config, "summary_activation", (None,), absent=None)
        return cls(GPT1(read_config(config)), **_settings(config))


def fine_tuning_loss(model: FineTuned, batch: tuple[Tensor, Tensor], *, auxiliary: float = AUXILIARY_WEIGHT) -> Loss:
    """Sum the cross-entropies, in nats, of the labels, and for each example λ times the language model's mean.

    The language model's loss is averaged over the tokens, as in the released code; equation 5 has the sum.

    Source: Radford et al. 2018, section 3.2, equations 4 and 5.

    Args:
        model: any of the heads.
        batch: tokens of each example's rows, and the labels.
        auxiliary: λ; 0 leaves the language model's loss out.
    """
    tokens, labels = batch
    hidden = model.hidden(tokens)
    total = F.cross_entropy(model.logits(hidden, tokens).float(), labels, reduction="sum")
    if auxiliary:
        targets = tokens[..., 1:].masked_fill(~model.present(tokens)[..., 1:], IGNORED)
        read = model.predicting(hidden[..., :-1, :])
        words = linear_cross_entropy(read, model.body.output_weight, targets, IGNORED)
        total = total + auxiliary * len(labels) * words / (targets != IGNORED).sum()
    return Loss(total, len(labels))
