"""Expert-choice routing: not the tokens choose their experts, the experts choose their tokens."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from allyouneed.nn import Experts, Mixture, Routes, mix

from .routing import TopKRouter, expert_capacity


class ExpertChoice(Mixture):
    """Each expert takes the tokens of a batch that score best for it, as many as its capacity; none is ever overfull.

    A token may get many experts or none. Which, depends on the whole batch, later tokens included: in a causal model
    this lets the future in, so it belongs in encoders.
    Source: Zhou et al. 2022, section 3.2: the softmax is over experts, the choice over tokens.

    Args:
        router: its matrix scores; how many it would choose itself does not matter.
        experts: as many as it scores.
        capacity_factor: experts that a token has on average.

    Raises:
        ValueError: a router for another number of experts, or a factor that is not above 0.
    """

    def __init__(self, router: TopKRouter, experts: Experts, capacity_factor: float = 2.0):
        super().__init__()
        if router.experts != experts.number:
            raise ValueError(f"the router scores {router.experts} experts, and there are {experts.number}")
        expert_capacity(1, 1, capacity_factor)
        self.router = router
        self.experts = experts
        self.capacity_factor = capacity_factor

    def mixed(self, tokens: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
        """Let each expert compute the tokens that it takes."""
        return mix(tokens, self.routes(tokens), self.experts)

    def routes(self, tokens: Float[Tensor, "tokens width"]) -> Routes:
        """Let each expert choose."""
        experts = self.experts.number
        capacity = min(len(tokens), expert_capacity(len(tokens), experts, self.capacity_factor))
        with torch.autocast(tokens.device.type, enabled=False):
            weight = self.router.weight
            scores = F.linear(tokens.to(weight.dtype), weight).softmax(1)
        weights, taken = scores.t().topk(capacity, dim=1)
        places = (taken * experts + torch.arange(experts, device=taken.device)[:, None]).flatten()
        return Routes(taken.flatten(), weights.flatten(), (capacity,) * experts, places)
