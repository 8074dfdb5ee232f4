"""Outrageously Large Neural Networks: The Sparsely-Gated Mixture-of-Experts Layer (Shazeer et al. 2017)."""

from .moe import (
    Gating,
    HierarchicalGate,
    MixtureOfExperts,
    NoisyTopKGate,
    RecurrentMixture,
    balancing_loss,
    check_choices,
    noisy_top_k,
    squared_variation,
)

__all__ = [
    "Gating",
    "HierarchicalGate",
    "MixtureOfExperts",
    "NoisyTopKGate",
    "RecurrentMixture",
    "balancing_loss",
    "check_choices",
    "noisy_top_k",
    "squared_variation",
]
