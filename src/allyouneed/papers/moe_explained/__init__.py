"""Mixture of Experts Explained (Sanseviero et al. 2023): how experts work in transformers."""

from .expert_choice import ExpertChoice
from .mixtral import Mixtral, MixtralConfig, mixtral_block
from .parallel import ExpertParallel, local_experts
from .routing import (
    Choice,
    Routing,
    SparseFeedForward,
    TopKRouter,
    balancing_loss,
    expert_capacity,
    router_loss,
    router_statistics,
    routings,
    within_capacity,
    z_loss,
)
from .upcycling import mixture_of_copies, upcycle

__all__ = [
    "Choice",
    "ExpertChoice",
    "ExpertParallel",
    "Mixtral",
    "MixtralConfig",
    "Routing",
    "SparseFeedForward",
    "TopKRouter",
    "balancing_loss",
    "expert_capacity",
    "local_experts",
    "mixtral_block",
    "mixture_of_copies",
    "router_loss",
    "router_statistics",
    "routings",
    "upcycle",
    "within_capacity",
    "z_loss",
]
