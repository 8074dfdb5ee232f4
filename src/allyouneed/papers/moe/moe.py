"""The sparsely-gated mixture of experts: a noisy gate picks a few for each token, and two losses balance them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allyouneed.nn import Experts, Mixture, initialise_xavier, mix, segment_linear, sort_routes
from allyouneed.nn.mixture import is_mixture

# Below any noise that matters, and above zero, by which the margin is divided.
_LEAST_DEVIATION = 1e-6


class Gating(NamedTuple):
    """What a gate decides about a batch of tokens.

    Attributes:
        experts: those that each token is sent to.
        weights: the gate values of these, G(x); all others are zero.
        importance: of each expert, the sum of its gate values (equation 6).
        load: of each expert, the smooth estimate of how many tokens it is sent (equation 10).
    """

    experts: Int[Tensor, "tokens choices"]
    weights: Float[Tensor, "tokens choices"]
    importance: Float[Tensor, " experts"]
    load: Float[Tensor, " experts"]


def noisy_top_k(
    clean: Float[Tensor, "tokens experts"], deviation: Float[Tensor, "tokens experts"] | None, k: int
) -> tuple[Int[Tensor, "tokens k"], Float[Tensor, "tokens k"], Float[Tensor, "tokens experts"]]:
    """Add noise to the scores, keep the best k of each token, and normalise over those.

    Source: Shazeer et al. 2017, equations 3 to 5; the probabilities are equation 9.

    Args:
        clean: x · W_g.
        deviation: of the noise, softplus(x · W_noise); none is drawn where None.
        k: experts for each token.

    Returns:
        The experts, best first; their gate values; and the probability that each expert is among the best k if its own
        noise were drawn anew and that of the others stayed. Without noise it is 0 or 1.
    """
    experts = clean.shape[1]
    noisy = clean
    if deviation is not None:
        deviation = deviation.clamp(min=_LEAST_DEVIATION)
        noisy = clean + torch.randn_like(clean) * deviation
    best, order = noisy.topk(min(k + 1, experts), dim=1)
    chosen = order[:, :k]
    weights = best[:, :k].softmax(1)
    among = torch.zeros_like(noisy, dtype=torch.bool).scatter(1, chosen, True)
    if deviation is None or k == experts:
        return chosen, weights, among.to(clean.dtype)
    # The k-th best of the others: for one that was chosen itself, that is the next.
    to_beat = best[:, k:].where(among, best[:, k - 1 : k])
    return chosen, weights, torch.special.ndtr((clean - to_beat) / deviation)


class NoisyTopKGate(nn.Module):
    """G(x) = softmax(KeepTopK(H(x), k)) with H(x) = x · W_g + ε · softplus(x · W_noise).

    Noise is drawn in training only. Both matrices begin at zero, so that all experts are equally likely at first.
    Source: Shazeer et al. 2017, section 2.1 and appendix A. Scores are computed in 32 bits or more.

    Args:
        width: of a token's vector.
        experts: to choose from, n.
        k: chosen for each token. With k = 1 the gate value is always 1 and the gate has no gradient but the load's.

    Raises:
        ValueError: k below 1 or beyond the number of experts.
    """

    def __init__(self, width: int, experts: int, k: int):
        super().__init__()
        check_choices(k, experts)
        self.experts = experts
        self.k = k
        # Not linear layers, which a model may initialise alike.
        self.score = nn.Parameter(torch.zeros(experts, width))
        self.noise = nn.Parameter(torch.zeros(experts, width))

    def forward(self, tokens: Float[Tensor, "tokens width"]) -> Gating:
        """Choose each token's experts."""
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = tokens.to(self.score.dtype)
            clean = F.linear(tokens, self.score)
            deviation = F.softplus(F.linear(tokens, self.noise)) if self.training else None
            chosen, weights, probability = noisy_top_k(clean, deviation, self.k)
        importance = weights.new_zeros(self.experts).index_add(0, chosen.flatten(), weights.flatten())
        return Gating(chosen, weights, importance, probability.sum(0))


class HierarchicalGate(nn.Module):
    """A gate over groups of experts, and in each group a gate over its experts.

    Source: Shazeer et al. 2017, appendix B: gate values are products of the two levels' (equation 12), so is their
    importance (13); the load is that of the group times the share of the group's tokens that the expert gets (14).

    Args:
        width: of a token's vector.
        groups: a, what the primary gate chooses from.
        size: experts in a group, b.
        k: groups for each token, and experts in each of these.

    Raises:
        ValueError: k below 1 or beyond the number of groups or of experts in one.
    """

    def __init__(self, width: int, groups: int, size: int, k: int):
        super().__init__()
        check_choices(k, size)
        self.primary = NoisyTopKGate(width, groups, k)
        self.experts = groups * size
        self.size = size
        self.k = k
        self.score = nn.ParameterList(torch.zeros(size, width) for _ in range(groups))
        self.noise = nn.ParameterList(torch.zeros(size, width) for _ in range(groups))

    def forward(self, tokens: Float[Tensor, "tokens width"]) -> Gating:
        """Choose each token's groups, and its experts in these."""
        primary = self.primary(tokens)
        routes = sort_routes(primary.experts, primary.weights, len(self.score))
        with torch.autocast(tokens.device.type, enabled=False):
            rows = tokens.to(self.score[0].dtype)[routes.tokens]
            clean = segment_linear(rows, routes.counts, list(self.score))
            deviation = None
            if self.training:
                deviation = F.softplus(segment_linear(rows, routes.counts, list(self.noise)))
            within, secondary, probability = noisy_top_k(clean, deviation, self.k)
        counts = torch.tensor(routes.counts, device=tokens.device)
        group = torch.arange(len(counts), device=tokens.device).repeat_interleave(counts)
        # A group of no tokens has no load to share out.
        sizes = counts.clamp(min=1)[:, None]
        shares = probability.new_zeros(len(counts), self.size).index_add(0, group, probability) / sizes
        load = (primary.load[:, None] * shares).flatten()
        # Back from the groups' order to that of the tokens.
        unsorted = routes.places.argsort()
        chosen = (group[:, None] * self.size + within)[unsorted].reshape(len(tokens), self.k**2)
        weights = (routes.weights[:, None] * secondary)[unsorted].reshape(len(tokens), self.k**2)
        importance = weights.new_zeros(self.experts).index_add(0, chosen.flatten(), weights.flatten())
        return Gating(chosen, weights, importance, load)


class MixtureOfExperts(Mixture):
    """y = Σ G(x)_i E_i(x), computing only the experts whose gate value is not zero (equation 1).

    Takes the place of any position-wise layer: between LSTMs, or as a transformer's feed-forward layer.

    Args:
        gate: chooses; a `NoisyTopKGate` or a `HierarchicalGate`.
        experts: `Experts` or `GatedExperts`, as many as the gate chooses from.

    Attributes:
        gating: what the gate decided in the last call, padding left out, for the balancing losses and statistics.

    Raises:
        ValueError: a gate for another number of experts.
    """

    def __init__(self, gate: NoisyTopKGate | HierarchicalGate, experts: Experts):
        super().__init__()
        if gate.experts != experts.number:
            raise ValueError(f"the gate chooses from {gate.experts} experts, and there are {experts.number}")
        self.gate = gate
        self.experts = experts
        self.gating: Gating | None = None

    def mixed(self, tokens: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
        """Send each token through its experts."""
        self.gating = gating = self.gate(tokens)
        routes = sort_routes(gating.experts, gating.weights, self.experts.number)
        return mix(tokens, routes, self.experts)


def squared_variation(values: Float[Tensor, " experts"]) -> Float[Tensor, ""]:
    """Give CV²: the variance over the squared mean (of the values themselves, not of a sample of them)."""
    return values.var(correction=0) / values.mean().square().clamp(min=torch.finfo(values.dtype).tiny)


def balancing_loss(model: nn.Module, importance: float = 0.1, load: float = 0.1) -> Float[Tensor, ""] | float:
    """Sum over a model's mixtures w_importance · CV(Importance)² + w_load · CV(Load)² of their last call.

    Source: Shazeer et al. 2017, equations 7 and 11; both weights are 0.1 in appendix C.1.

    Args:
        model: whatever has mixtures in it.
        importance: the weight of the first loss.
        load: that of the second.

    Raises:
        ValueError: a negative weight, or a mixture that was not called yet.
    """
    if min(importance, load) < 0:
        raise ValueError(f"the weights of the losses are {importance} and {load}: they must not be negative")
    total: Any = 0.0
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            if module.gating is None:
                raise ValueError("a mixture was not called yet, so that there is nothing to balance")
            total = total + importance * squared_variation(module.gating.importance)
            total = total + load * squared_variation(module.gating.load)
    return total


def check_choices(k: int, experts: int) -> None:
    """Refuse to choose more experts than there are, or none."""
    if not 1 <= k <= experts:
        raise ValueError(f"k is {k}: of {experts} experts, 1 to {experts} can be chosen for each token")


class RecurrentMixture(nn.Module):
    """The paper's language model: embeddings, an LSTM, a position-wise layer, another LSTM, softmax.

    Each layer's input is added to its output, which dropout comes before; the middle layer's output passes a sigmoid.
    Source: Shazeer et al. 2017, appendix C.1.

    Args:
        vocabulary: number of tokens.
        width: of embeddings, LSTMs and the middle layer alike.
        middle: the layer between: a `MixtureOfExperts`, or a dense layer in its place.
        dropout: probability of dropping a coordinate of a layer's output in training.
    """

    def __init__(self, vocabulary: int, width: int, middle: nn.Module, dropout: float = 0.0):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.first = nn.LSTM(width, width, batch_first=True)
        self.middle = middle
        self.second = nn.LSTM(width, width, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocabulary, bias=False)
        initialise_xavier(self)

    def forward(
        self, tokens: Int[Tensor, "batch length"], *, present: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Give the logits of the token that follows each token; arguments as in `hidden`."""
        return self.head(self.hidden(tokens, present=present))

    def hidden(
        self, tokens: Int[Tensor, "batch length"], *, present: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length width"]:
        """Give each token's vector before the output projection.

        Args:
            tokens: token ids.
            present: False where a token is padding, on the right; all are present where None.

        Raises:
            ValueError: padding before a token, which an LSTM would read.
        """
        if present is not None and bool((present[:, 1:] > present[:, :-1]).any()):
            raise ValueError("padding stands before a token, and the LSTMs would read it: pad rows on the right")
        told = {"present": present} if is_mixture(self.middle) else {}
        hidden = self.dropout(self.embedding(tokens))
        layers: list[Callable[[Tensor], Tensor]] = [
            lambda given: self.first(given)[0],
            lambda given: self.middle(given, **told).sigmoid(),
            lambda given: self.second(given)[0],
        ]
        for layer in layers:
            hidden = hidden + self.dropout(layer(hidden))
        return hidden

    @property
    def output_weight(self) -> Float[Tensor, "vocabulary width"]:
        """The output projection."""
        return self.head.weight
