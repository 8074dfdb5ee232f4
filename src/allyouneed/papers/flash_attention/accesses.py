"""Slow memory whose accesses are counted, and standard attention, which is compared by them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass
class SlowMemory:
    """Counts the numbers that an algorithm moves between slow memory and fast, where it says "load" and "write".

    The tensors themselves lie where they always do. What is set to zero at the start is not counted, as in the paper's
    proofs.

    Attributes:
        read: numbers loaded so far.
        written: numbers written so far.
        on_chip: the most numbers that blocks in fast memory held at once, over all heads of the batch.
    """

    read: int = 0
    written: int = 0
    on_chip: int = 0

    @property
    def accesses(self) -> int:
        """Reads and writes together."""
        return self.read + self.written

    def load(self, *blocks: Tensor) -> list[Tensor]:
        """Bring blocks into fast memory, where they are computed with in 32 bits or more."""
        self.read += sum(block.numel() for block in blocks)
        return [block.to(torch.promote_types(block.dtype, torch.float32)) for block in blocks]

    def write(self, place: Tensor, block: Tensor) -> None:
        """Put a block back into its place in slow memory."""
        self.written += block.numel()
        place.copy_(block)

    def hold(self, *blocks: Tensor) -> None:
        """Note what is in fast memory at its fullest."""
        self.on_chip = max(self.on_chip, sum(block.numel() for block in blocks))


def standard_attention(
    query: Float[Tensor, "*axes queries head_width"],
    key: Float[Tensor, "*axes keys head_width"],
    value: Float[Tensor, "*axes keys value_width"],
    memory: SlowMemory,
) -> tuple[Float[Tensor, "*axes queries value_width"], Float[Tensor, "*axes queries keys"]]:
    """Give softmax(QKᵀ)V and the softmax, with every matrix written to slow memory (Algorithm 0).

    Args:
        query: Q, already multiplied by the scale.
        key: K.
        value: V.
        memory: counts.
    """
    scores = query.new_empty(*query.shape[:-1], key.shape[-2])
    probabilities, output = torch.empty_like(scores), query.new_empty(*query.shape[:-1], value.shape[-1])
    query, key = memory.load(query, key)
    memory.write(scores, query @ key.mT)
    (scores,) = memory.load(scores)
    memory.write(probabilities, scores.softmax(-1))
    weights, value = memory.load(probabilities, value)
    memory.write(output, weights @ value)
    return output, probabilities


def standard_attention_backward(
    query: Float[Tensor, "*axes queries head_width"],
    key: Float[Tensor, "*axes keys head_width"],
    value: Float[Tensor, "*axes keys value_width"],
    probabilities: Float[Tensor, "*axes queries keys"],
    output_gradient: Float[Tensor, "*axes queries value_width"],
    memory: SlowMemory,
) -> tuple[
    Float[Tensor, "*axes queries head_width"],
    Float[Tensor, "*axes keys head_width"],
    Float[Tensor, "*axes keys value_width"],
]:
    """Give the gradients dQ, dK and dV, with dP and dS written to slow memory (Algorithm 3)."""
    query_gradient, key_gradient, value_gradient = map(torch.empty_like, (query, key, value))
    weights_gradient, scores_gradient = torch.empty_like(probabilities), torch.empty_like(probabilities)
    weights, upstream = memory.load(probabilities, output_gradient)
    memory.write(value_gradient, weights.mT @ upstream)
    upstream, loaded = memory.load(output_gradient, value)
    memory.write(weights_gradient, upstream @ loaded.mT)
    weights, upstream = memory.load(probabilities, weights_gradient)
    memory.write(scores_gradient, weights * (upstream - (weights * upstream).sum(-1, keepdim=True)))
    upstream, loaded = memory.load(scores_gradient, key)
    memory.write(query_gradient, upstream @ loaded)
    upstream, loaded = memory.load(scores_gradient, query)
    memory.write(key_gradient, upstream.mT @ loaded)
    return query_gradient, key_gradient, value_gradient
