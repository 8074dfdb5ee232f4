"""A T5 whose weights are stored so that AdamW's steps suit them."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from allyouneed.nn import Attention, PositionScheme, fused_attention

from .structures import LanguageModel


class Amplified(PositionScheme):
    """Multiply a scheme's biases.

    Args:
        scheme: gives the biases.
        factor: what they are multiplied by.
    """

    def __init__(self, scheme: PositionScheme, factor: float):
        super().__init__()
        self.scheme = scheme
        self.factor = factor

    def bias(
        self, query_positions: Int[Tensor, " queries"], key_positions: Int[Tensor, " keys"]
    ) -> Float[Tensor, "heads queries keys"] | None:
        """Give what is added to the score of each query and key."""
        biases = self.scheme.bias(query_positions, key_positions)
        return None if biases is None else biases * self.factor


def stored_for_adamw(model: nn.Module) -> nn.Module:
    """Store a model's embeddings and position biases divided by √width, query projections multiplied by √head_width.

    AdaFactor, with which the paper trains, takes steps relative to what they change; AdamW's are of one size. At a rate
    that most layers can bear, embeddings of deviation 1 would hardly move, the small query projections of unscaled
    attention would be thrown about, and biases would take thousands of steps to tell near from far. Stored so, all
    begin with 1/√width or less. What the model computes is the same; it is changed in place, and can no longer be
    saved as a T5.

    Args:
        model: version 1.0 of any structure, with new weights.

    Raises:
        ValueError: a model whose output projection is not its table of embeddings.
    """
    whole: Any = model
    decoder = whole.decoder
    if decoder.head is not None:
        raise ValueError("only models whose output projection is the table of embeddings can be stored so: version 1.0")
    root = decoder.embedding.embedding_dim**0.5
    with torch.no_grad():
        # The stacks have one table.
        decoder.embedding.weight.div_(root)
        decoder.norm[-1].factor *= root
        for stack in [decoder] if isinstance(model, LanguageModel) else [whole.encoder, decoder]:
            stack.embedding_scale = root
            stack.positions.table.weight.div_(root)
            stack.positions = Amplified(stack.positions, root)
        for module in model.modules():
            if isinstance(module, Attention):
                module.query.weight.mul_(module.head_width**0.5)
                module.kernel = fused_attention
    return model
