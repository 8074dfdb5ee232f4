"""Activations under the names that published configurations give them."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Activation = Callable[[Tensor], Tensor]


def quick_gelu(hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
    """Approximate GELU by x · σ(1.702 x), within 0.021 (Hendrycks & Gimpel 2016, section 2)."""
    return hidden * torch.sigmoid(1.702 * hidden)


def identity(hidden: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
    """Give what was given."""
    return hidden


_GELU_TANH = partial(F.gelu, approximate="tanh")

ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "gelu": F.gelu,
        # The approximation by tanh, of which the exact GELU differs by up to 5e-4.
        "gelu_new": _GELU_TANH,
        "gelu_fast": _GELU_TANH,
        "gelu_pytorch_tanh": _GELU_TANH,
        "linear": identity,
        "quick_gelu": quick_gelu,
        "relu": F.relu,
        "sigmoid": torch.sigmoid,
        "silu": F.silu,
        "swish": F.silu,
        "tanh": torch.tanh,
    }
)
"""What `hidden_act` and its like may say; several names of one function are different spellings of it."""
