"""From sentences to translations: a vocabulary shared by both languages, the loss of a batch, and the search."""

from collections.abc import Sequence
from typing import Protocol

from jaxtyping import Bool, Float, Int
from torch import Tensor

from allyouneed.text import BytePairTokenizer, Tokenizer, Translator, beam_search
from allyouneed.training import Loss

from .transformer import label_smoothed_cross_entropy

PADDING, BEGIN, END = SPECIAL_TOKENS = ("<padding>", "<begin>", "<end>")


class TranslationModel(Translator, Protocol):
    """What the loss asks of a model: `nn.EncoderDecoder` and `nn.RecurrentEncoderDecoder` both have it."""

    @property
    def output_weight(self) -> Float[Tensor, "vocabulary width"]:
        """The output projection, from a target token's vector to logits."""
        ...

    def hidden(
        self,
        source: Int[Tensor, "batch source_length"],
        target: Int[Tensor, "batch length"],
        *,
        present: Bool[Tensor, "batch source_length"] | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """Give each target token's vector before the output projection; what is not present is padding."""
        ...


def shared_tokenizer(pairs: Sequence[tuple[str, str]], vocabulary: int) -> BytePairTokenizer:
    """Learn one byte-pair vocabulary from both languages together (section 5.1), with the three special tokens."""
    return BytePairTokenizer.train([text for pair in pairs for text in pair], vocabulary, SPECIAL_TOKENS)


def encoded_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> tuple[list[list[int]], list[list[int]]]:
    """Give sources, each with the token that ends it, and targets, with those that begin and end them.

    Raises:
        ValueError: an empty text.
    """
    begin, end = tokenizer.special_tokens[BEGIN], tokenizer.special_tokens[END]
    sources = _sources(tokenizer, [source for source, _ in pairs])
    targets = [[begin, *tokenizer.encode(target), end] for _, target in pairs]
    return sources, targets


def translation_loss(
    model: TranslationModel,
    batch: tuple[Int[Tensor, "batch _"], ...],
    *,
    padding: int,
    smoothing: float = 0.0,
) -> Loss:
    """Sum the cross-entropies, in nats, of each target token given the source and the target tokens before it.

    Args:
        model: gives the vectors.
        batch: sources and targets, with padding on the right.
        padding: the token that fills them up, which is no target.
        smoothing: ε, as in `label_smoothed_cross_entropy`.
    """
    source, target = batch
    present = source != padding
    following = target[:, 1:]
    counted = following != padding
    hidden = model.hidden(source, target[:, :-1], present=None if bool(present.all()) else present)
    total = label_smoothed_cross_entropy(hidden[counted], model.output_weight, following[counted], smoothing)
    return Loss(total, counted.sum())


def translate(
    model: Translator, tokenizer: Tokenizer, texts: Sequence[str], *, beam: int = 4, alpha: float = 0.6
) -> list[str]:
    """Translate texts by beam search, with the paper's beam and length penalty (section 6.1).

    Args:
        model: trained with the tokenizer.
        tokenizer: has the special tokens.
        texts: in the source language.
        beam: beginnings kept of each translation; 1 is greedy.
        alpha: exponent of the length penalty.

    Raises:
        ValueError: an empty text, or what `beam_search` refuses.
    """
    begin, end = tokenizer.special_tokens[BEGIN], tokenizer.special_tokens[END]
    found = beam_search(model, _sources(tokenizer, texts), begin=begin, end=end, beam=beam, alpha=alpha)
    special = set(tokenizer.special_tokens.values())
    return [
        tokenizer.decode([token for token in hypothesis.tokens if token not in special]).strip() for hypothesis in found
    ]


def _sources(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    for number, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"text {number} is empty: there is nothing to translate")
    end = tokenizer.special_tokens[END]
    return [[*tokenizer.encode(text), end] for text in texts]
