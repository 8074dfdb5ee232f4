"""The Transformer: attention as section 3.2 writes it, and the model of figure 1 as a composition of shared parts."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allyouneed.nn import (
    Attention,
    Block,
    CrossBlock,
    Decoder,
    Encoder,
    EncoderDecoder,
    FeedForward,
    PositionScheme,
    PostNorm,
    SinusoidalPositions,
    linear_cross_entropy,
)


def scaled_dot_product_attention(
    query: Float[Tensor, "*axes queries key_width"],
    key: Float[Tensor, "*axes keys key_width"],
    value: Float[Tensor, "*axes keys value_width"],
    allowed: Bool[Tensor, "*#axes #queries keys"] | None = None,
) -> tuple[Float[Tensor, "*axes queries value_width"], Float[Tensor, "*axes queries keys"]]:
    """Give softmax(QKᵀ/√dₖ)V, and the weights that the softmax gave (equation 1).

    The products of two vectors of dₖ independent coordinates with variance 1 have variance dₖ (footnote 4). Divided by
    √dₖ they have variance 1 whatever dₖ is, and the softmax stays where it has a gradient.

    Args:
        query: Q, what looks.
        key: K, what is looked at.
        value: V, what is averaged.
        allowed: False where a query may not look: the score becomes -∞ (section 3.2.3). None lets all look everywhere.
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    weights = scores.softmax(-1)
    return weights @ value, weights


class MultiHeadAttention(nn.Module):
    """Concat(head₁ … headₕ)Wᴼ, where headᵢ = Attention(QWᵢQ, KWᵢK, VWᵢV) (section 3.2.2), one head after the other.

    To be read beside the paper: its parameters have the paper's names and shapes, and no biases. `nn.Attention`
    computes the same with all heads in one matrix, which a test holds it to.

    Args:
        width: d_model.
        heads: h.
        key_width: dₖ; d_model / h where None.
        value_width: dᵥ; d_model / h where None.

    Raises:
        ValueError: a width that the heads do not divide, where none is given for keys or values.
    """

    def __init__(self, width: int, heads: int, key_width: int | None = None, value_width: int | None = None):
        super().__init__()
        if (key_width is None or value_width is None) and (heads < 1 or width % heads):
            raise ValueError(f"width {width} cannot be divided among {heads} heads: it must be a multiple of them")
        key_width = width // heads if key_width is None else key_width
        value_width = width // heads if value_width is None else value_width
        self.w_query = nn.Parameter(torch.empty(heads, width, key_width))
        self.w_key = nn.Parameter(torch.empty(heads, width, key_width))
        self.w_value = nn.Parameter(torch.empty(heads, width, value_width))
        self.w_output = nn.Parameter(torch.empty(heads * value_width, width))
        for matrices in (self.w_query, self.w_key, self.w_value, self.w_output[None]):
            for matrix in matrices:
                nn.init.xavier_uniform_(matrix)

    def forward(
        self,
        query: Float[Tensor, "batch queries width"],
        key: Float[Tensor, "batch keys width"],
        value: Float[Tensor, "batch keys width"],
        allowed: Bool[Tensor, "#batch #queries keys"] | None = None,
    ) -> Float[Tensor, "batch queries width"]:
        """Let each head attend in projections of its own, and project what they found back."""
        heads = [
            scaled_dot_product_attention(query @ w_query, key @ w_key, value @ w_value, allowed)[0]
            for w_query, w_key, w_value in zip(self.w_query, self.w_key, self.w_value, strict=True)
        ]
        return torch.cat(heads, dim=-1) @ self.w_output


def transformer(
    vocabulary: int,
    *,
    target_vocabulary: int | None = None,
    width: int = 512,
    layers: int = 6,
    heads: int = 8,
    hidden: int | None = None,
    dropout: float = 0.1,
    positions: Callable[[int], PositionScheme] = SinusoidalPositions,
    shared: bool = True,
) -> EncoderDecoder:
    """Compose the model of figure 1; the defaults are the base model of table 3.

    Args:
        vocabulary: number of source tokens.
        target_vocabulary: number of target tokens; as many where None.
        width: d_model.
        layers: N, of the encoder and of the decoder.
        heads: h, in each attention.
        hidden: d_ff, inner width of the feed-forward layers; four times the width where None.
        dropout: P_drop, on the output of each sublayer and on embeddings with their positions (section 5.4).
        positions: makes the position scheme of a stack, given the width.
        shared: whether one matrix is source embedding, target embedding and output projection (section 3.4).

    Raises:
        ValueError: `shared` with vocabularies that differ, or heads that do not divide the width.
    """

    def attention() -> PostNorm:
        return PostNorm(Attention(width, heads), nn.LayerNorm(width), dropout)

    def feed_forward() -> PostNorm:
        return PostNorm(FeedForward(width, hidden, F.relu), nn.LayerNorm(width), dropout)

    encoder = Encoder(
        vocabulary,
        width,
        [Block(attention(), feed_forward()) for _ in range(layers)],
        positions=positions(width),
        embedding_scale=math.sqrt(width),
        dropout=dropout,
    )
    decoder = Decoder(
        vocabulary if target_vocabulary is None else target_vocabulary,
        width,
        [CrossBlock(attention(), attention(), feed_forward()) for _ in range(layers)],
        positions=positions(width),
        embedding_scale=math.sqrt(width),
        dropout=dropout,
    )
    return EncoderDecoder(encoder, decoder, shared=shared)


def peak_learning_rate(width: int, warmup: int) -> float:
    """Give the highest learning rate of equation 3, d_model^-0.5 · warmup^-0.5, which step number `warmup` has.

    Times the factor of `training.InverseSquareRoot(warmup)` it is the equation at every step.
    """
    return width**-0.5 * warmup**-0.5


def label_smoothed_cross_entropy(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocabulary width"],
    targets: Int[Tensor, " tokens"],
    smoothing: float,
) -> Float[Tensor, ""]:
    """Sum the cross-entropies, in nats, of targets of which a part is spread evenly over the vocabulary (section 5.4).

    The target is the token with probability 1 - ε and any token with ε (Szegedy et al. 2016, section 7). With logits z
    the loss of token t is ln Σ exp(z) - (1 - ε)·zₜ - ε·mean(z): the plain one plus ε·(zₜ - mean(z)), and the mean of
    the logits is the product with the mean row of the output projection. So smoothing needs no logits of its own.

    Args:
        hidden: the vectors before the output projection.
        weight: the output projection.
        targets: the right token of each vector.
        smoothing: ε.

    Raises:
        ValueError: ε below 0, or 1 and above.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"label smoothing {smoothing} is out of range: it must be at least 0 and below 1")
    total = linear_cross_entropy(hidden, weight, targets)
    if smoothing:
        total = total + smoothing * (hidden * (weight[targets] - weight.mean(0))).sum()
    return total


@torch.no_grad()
def cross_attention_weights(
    model: EncoderDecoder, source: Int[Tensor, "batch source_length"], target: Int[Tensor, "batch length"]
) -> Float[Tensor, "layers batch heads length source_length"]:
    """Give how much each head of each layer, at each target token, looks at each source token.

    The model runs with attention as equation 1 has it in place of the fused kernel, which keeps no weights.
    """
    seen: list[Tensor] = []

    def kernel(query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None, **_: object) -> Tensor:
        mixed, weights = scaled_dot_product_attention(query, key, value, attn_mask)
        seen.append(weights)
        return mixed

    blocks: list[Any] = list(model.decoder.blocks)
    attentions: list[Attention] = [block.cross_attention.sublayer for block in blocks]
    kernels = [attention.kernel for attention in attentions]
    training = model.training
    model.eval()
    try:
        for attention in attentions:
            attention.kernel = kernel
        model.hidden(source, target)
    finally:
        for attention, before in zip(attentions, kernels, strict=True):
            attention.kernel = before
        model.train(training)
    return torch.stack(seen)
