"""On Layer Normalization in the Transformer Architecture (Xiong et al. 2020)."""

from .pre_layer_norm import gradient_norms, initialise_gaussian, post_norm_block, pre_norm_block

__all__ = ["gradient_norms", "initialise_gaussian", "post_norm_block", "pre_norm_block"]
