"""What a training lowers: losses as sums with the number of their targets."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from allyouneed.data.labelled import IGNORE_INDEX, LabelledBatch
from allyouneed.nn import linear_cross_entropy

Batch = Any
"""A tensor, or a tuple, list or mapping of tensors, whose first axes are the batch."""


class Loss(NamedTuple):
    """A loss as a sum and the number of targets it is summed over, so that parts of a batch add up to the whole."""

    total: Float[Tensor, ""]
    targets: Int[Tensor, ""] | int


LossFunction = Callable[[Any, Batch], Loss]


@runtime_checkable
class LanguageModel(Protocol):
    """What predicts tokens from those before them: every `Decoder`, and models that are built otherwise."""

    @property
    def output_weight(self) -> Float[Tensor, "vocabulary width"]:
        """The output projection, from vectors to logits."""
        ...

    def hidden(self, tokens: Int[Tensor, "batch length"], /) -> Float[Tensor, "batch length width"]:
        """Give the vectors from which logits come."""
        ...


def next_token_loss(model: LanguageModel, batch: Int[Tensor, "batch window"] | LabelledBatch) -> Loss:
    """Sum the cross-entropies, in nats, of each token given those before it in its row.

    Of a `LabelledBatch` only labels other than `IGNORE_INDEX` (-100) are targets: the loss is that of the rows without
    their padding, and prompts that are masked are read and not learned. A row without labels adds nothing; a training
    refuses a batch without any.

    Args:
        model: gives the vectors. For a labelled batch with padding its `hidden` must take `present`, as that of every
            decoder here does.
        batch: windows of a text, or rows with labels.

    Raises:
        ValueError: a token or a label that is not in the model's vocabulary.
    """
    if not isinstance(batch, LabelledBatch):
        weight = model.output_weight
        _check_known(batch, weight, "token")
        hidden = model.hidden(batch[:, :-1])
        return Loss(linear_cross_entropy(hidden, weight, batch[:, 1:]), batch[:, 1:].numel())
    weight, targets = model.output_weight, batch.labels[:, 1:]
    _check_known(batch.tokens, weight, "token")
    reads: Any = model.hidden
    present = batch.present[:, :-1]
    # Without padding there is nothing to say, and attention takes its faster path.
    hidden = reads(batch.tokens[:, :-1]) if bool(present.all()) else reads(batch.tokens[:, :-1], present=present)
    counted = targets != IGNORE_INDEX
    _check_known(targets[counted], weight, f"label that is not {IGNORE_INDEX}")
    # What has no label needs no logits, which cost more than the rest of a small model.
    return Loss(linear_cross_entropy(hidden[counted], weight, targets[counted]), counted.sum())


def _check_known(tokens: Tensor, weight: Tensor, what: str) -> None:
    """Refuse what a model has no embedding for."""
    if tokens.numel() == 0:
        return
    for token in map(int, tokens.aminmax()):
        if not 0 <= token < len(weight):
            raise ValueError(f"a {what} is {token}: the model's vocabulary has 0 to {len(weight) - 1}")
