"""An output layer for each kind of task, on the same encoder (Figures 1 and 4)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allyouneed.hub import PROBLEM_TYPES, Name, UnsupportedError, label_entries, read_labels, refuse_unless, same
from allyouneed.nn import ACTIVATIONS, linear_cross_entropy

from .bert import Bert, BertConfig, BertModel, initialise, read_config, weights_and_biases


class _Head(BertModel):
    """What models with a head have alike: the encoder, and how it is read and written.

    Attributes:
        pooled: whether the head reads the pooled vector.
        head_names: our parts with weights and biases beside the encoder, and what they are called outside.
    """

    prefix: ClassVar[str] = ""
    ignored: ClassVar[tuple[str, ...]] = (r"bert\.embeddings\.position_ids",)
    pooled: ClassVar[bool]
    head_names: ClassVar[Mapping[str, str]]
    bert: Bert

    def __init__(self, bert: Bert):
        super().__init__()
        if self.pooled and bert.pooler is None:
            raise ValueError(f"{type(self).__name__} needs an encoder with a pooler: build it with pooler=True")
        self.bert = bert
        if not self.pooled and bert.pooler is not None:
            # It would have no gradient, nor a place in a checkpoint.
            bert.pooler = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "_Head":
        """Build the model that a `config.json` describes, with new weights."""
        return cls(Bert(read_config(config), pooler=cls.pooled))

    def to_config(self) -> dict[str, Any]:
        """Give the `config.json` that describes this model."""
        return self.bert.described(self.architectures[0])

    def weight_names(self) -> list[Name]:
        """Name every parameter as published checkpoints do."""
        inner = [
            replace(name, ours=tuple(f"bert.{own}" for own in name.ours), theirs=f"bert.{name.theirs}")
            for name in self.bert.weight_names()
        ]
        return inner + weights_and_biases(self.head_names)


class _TiedOutput(nn.Module):
    """From a token's vector to logits: a linear layer, GELU, a norm, and the embedding table with a bias."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.transform = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.epsilon)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary))
        self.activation = ACTIVATIONS[config.activation]
        initialise(self, config.deviation)

    def forward(
        self, hidden: Float[Tensor, "*axes width"], table: Float[Tensor, "vocabulary width"]
    ) -> Float[Tensor, "*axes vocabulary"]:
        """Give the logits."""
        return F.linear(self.transformed(hidden), table, self.bias)

    def transformed(self, hidden: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes width"]:
        """Give what the table of embeddings is multiplied by."""
        return self.norm(self.activation(self.transform(hidden)))


_TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


class MaskedLanguageModel(_Head):
    """An encoder that says which tokens stood where (section 3.1, task 1).

    The output projection is the embedding table, after a linear layer, GELU and a norm that the paper does not mention.
    """

    architectures: ClassVar[tuple[str, ...]] = ("BertForMaskedLM",)
    # Checkpoints of models that were pre-trained on both tasks are labelled so too.
    ignored: ClassVar[tuple[str, ...]] = (*_Head.ignored, r"bert\.pooler\..*", r"cls\.seq_relationship\..*")
    pooled: ClassVar[bool] = False
    head_names: ClassVar[Mapping[str, str]] = {
        "head.transform": "cls.predictions.transform.dense",
        "head.norm": "cls.predictions.transform.LayerNorm",
    }

    def __init__(self, bert: Bert):
        super().__init__(bert)
        self.head = _TiedOutput(bert.config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "MaskedLanguageModel":
        """Build the model that a `config.json` describes, with new weights.

        Raises:
            UnsupportedError: a value that is not supported, named.
        """
        refuse_unless(config, "tie_word_embeddings", (True,))
        return cls(Bert(read_config(config), pooler=cls.pooled))

    def forward(
        self,
        tokens: Int[Tensor, "batch length"],
        segments: Int[Tensor, "batch length"] | None = None,
        *,
        present: Bool[Tensor, "batch length"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Give each place's logits over the vocabulary; arguments are those of `Bert.forward`."""
        return self.logits(self.bert(tokens, segments, present=present, causal=causal))

    def logits(self, hidden: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes vocabulary"]:
        """Give the logits of chosen tokens' vectors: those that are not asked about need none."""
        return self.head(hidden, self.bert.encoder.embedding.weight)

    def loss(self, hidden: Float[Tensor, "tokens width"], targets: Int[Tensor, " tokens"]) -> Float[Tensor, ""]:
        """Sum the cross-entropies, in nats, of these tokens' targets, without the whole matrix of their logits."""
        transformed = self.head.transformed(hidden)
        # The bias as one more coordinate.
        inputs = torch.cat((transformed, torch.ones_like(transformed[:, :1])), 1)
        table = torch.cat((self.bert.encoder.embedding.weight, self.head.bias[:, None]), 1)
        return linear_cross_entropy(inputs, table, targets)

    def weight_names(self) -> list[Name]:
        """Name every parameter as published checkpoints do."""
        return [*super().weight_names(), same("head.bias", "cls.predictions.bias")]

    def copies(self) -> Mapping[str, str]:
        """Say which stored tensors are others again."""
        return _TIED


class NextSentence(_Head):
    """An encoder that says whether sentence B follows A in its text (section 3.1, task 2): logit 0 yes, 1 no."""

    architectures: ClassVar[tuple[str, ...]] = ("BertForNextSentencePrediction",)
    ignored: ClassVar[tuple[str, ...]] = (*_Head.ignored, r"cls\.predictions\..*")
    pooled: ClassVar[bool] = True
    head_names: ClassVar[Mapping[str, str]] = {"next": "cls.seq_relationship"}

    def __init__(self, bert: Bert):
        super().__init__(bert)
        self.next = nn.Linear(bert.config.width, 2)
        initialise(self.next, bert.config.deviation)

    def forward(
        self,
        tokens: Int[Tensor, "batch length"],
        segments: Int[Tensor, "batch length"] | None = None,
        *,
        present: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch 2"]:
        """Give the logits of "B follows" and of "B is from elsewhere"."""
        return self.next(self.bert.pooled(self.bert(tokens, segments, present=present)))


class PreTraining(MaskedLanguageModel):
    """An encoder with both heads of pre-training (section 3.1)."""

    architectures: ClassVar[tuple[str, ...]] = ("BertForPreTraining",)
    ignored: ClassVar[tuple[str, ...]] = _Head.ignored
    pooled: ClassVar[bool] = True
    head_names: ClassVar[Mapping[str, str]] = {**MaskedLanguageModel.head_names, **NextSentence.head_names}

    def __init__(self, bert: Bert):
        super().__init__(bert)
        self.next = nn.Linear(bert.config.width, 2)
        initialise(self.next, bert.config.deviation)

    def next_logits(self, hidden: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch 2"]:
        """Give the logits of "B follows" and of "B is from elsewhere", from the vectors of rows."""
        return self.next(self.bert.pooled(hidden))


class _Labelled(_Head):
    """A head with a logit for each label.

    Attributes:
        problem_type: what a checkpoint says that the logits are for: one label of several, any number of them, or
            numbers; None where it says nothing. The logits are the same.
    """

    problem_type: str | None = None

    def __init__(self, bert: Bert, labels: Sequence[str]):
        super().__init__(bert)
        self.labels = tuple(labels)
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels {list(self.labels)} must be one or more, each once")
        dropped = bert.config.classifier_dropout
        self.dropout = nn.Dropout(bert.config.dropout if dropped is None else dropped)
        self.classifier = nn.Linear(bert.config.width, len(self.labels))
        initialise(self.classifier, bert.config.deviation)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "_Labelled":
        """Build the model that a `config.json` describes, with new weights; two labels where it names none."""
        refuse_unless(config, "problem_type", PROBLEM_TYPES)
        model = cls(Bert(read_config(config), pooler=cls.pooled), read_labels(config))
        model.problem_type = config.get("problem_type")
        return model

    def to_config(self) -> dict[str, Any]:
        """Give the `config.json` that describes this model."""
        return {**super().to_config(), **label_entries(self.labels, self.problem_type)}


class SentenceClassifier(_Labelled):
    """A label for each row, of one sentence or of two (section 4.1; Figure 4, a and b)."""

    architectures: ClassVar[tuple[str, ...]] = ("BertForSequenceClassification",)
    pooled: ClassVar[bool] = True
    head_names: ClassVar[Mapping[str, str]] = {"classifier": "classifier"}

    def forward(
        self,
        tokens: Int[Tensor, "batch length"],
        segments: Int[Tensor, "batch length"] | None = None,
        *,
        present: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch labels"]:
        """Give each row's logits over the labels."""
        return self.classifier(self.dropout(self.bert.pooled(self.bert(tokens, segments, present=present))))


class TokenClassifier(_Labelled):
    """A label for each token (section 5.3; Figure 4, d)."""

    architectures: ClassVar[tuple[str, ...]] = ("BertForTokenClassification",)
    pooled: ClassVar[bool] = False
    head_names: ClassVar[Mapping[str, str]] = {"classifier": "classifier"}

    def forward(
        self,
        tokens: Int[Tensor, "batch length"],
        segments: Int[Tensor, "batch length"] | None = None,
        *,
        present: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length labels"]:
        """Give each token's logits over the labels."""
        return self.classifier(self.dropout(self.bert(tokens, segments, present=present)))


class SpanFinder(_Head):
    """Where in a passage the answer stands: a score for beginning at each token, and for ending (section 4.2)."""

    architectures: ClassVar[tuple[str, ...]] = ("BertForQuestionAnswering",)
    pooled: ClassVar[bool] = False
    head_names: ClassVar[Mapping[str, str]] = {"ends": "qa_outputs"}

    def __init__(self, bert: Bert):
        super().__init__(bert)
        self.ends = nn.Linear(bert.config.width, 2)
        initialise(self.ends, bert.config.deviation)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "SpanFinder":
        """Build the model that a `config.json` describes, with new weights.

        Raises:
            UnsupportedError: a value that is not supported, named.
        """
        if len(read_labels(config)) != 2:
            raise UnsupportedError("config.json: num_labels (or id2label) must be 2: where an answer begins and ends")
        return cls(Bert(read_config(config), pooler=cls.pooled))

    def forward(
        self,
        tokens: Int[Tensor, "batch length"],
        segments: Int[Tensor, "batch length"] | None = None,
        *,
        present: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length"], Float[Tensor, "batch length"]]:
        """Give S·T and E·T: the scores of an answer that begins, and that ends, at each token."""
        first, last = self.ends(self.bert(tokens, segments, present=present)).unbind(-1)
        return first, last


def best_spans(
    first: Float[Tensor, "batch length"],
    last: Float[Tensor, "batch length"],
    allowed: Bool[Tensor, "batch length"],
    longest: int = 30,
) -> tuple[Int[Tensor, "batch 2"], Float[Tensor, " batch"]]:
    """Give the span i ≤ j with the highest S·T_i + E·T_j of each row, and that score (section 4.2).

    Where no answer may be the answer (section 4.3), compare the score with that of the first token, `[CLS]`, twice.

    Args:
        first: scores of beginning at each token.
        last: scores of ending there.
        allowed: the tokens that an answer may have, those of the passage.
        longest: the most tokens of an answer.

    Raises:
        ValueError: a row without allowed tokens, or answers of no tokens.
    """
    if longest < 1 or not bool(allowed.any(1).all()):
        raise ValueError(f"each row needs a token that may be the answer, and answers a token; longest is {longest}")
    scores = first[:, :, None] + last[:, None, :]
    length = first.shape[1]
    fits = torch.ones(length, length, dtype=torch.bool, device=first.device).triu().tril(longest - 1)
    possible = fits & allowed[:, :, None] & allowed[:, None, :]
    score, place = scores.masked_fill(~possible, -torch.inf).flatten(1).max(1)
    return torch.stack((place // length, place % length), 1), score
