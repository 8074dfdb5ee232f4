"""Linear layers in 32 bits on a CPU, stored and multiplied so that few tokens at a time pass quickly.

When a model writes a token, almost all time goes into reading weights. torch's product of one vector and a matrix that
is wider than it is high reads the matrix at nearly twice the speed where its columns are contiguous, as they are not in
`torch.nn.Linear`; for a few vectors, oneDNN's product is faster than the one torch takes for 32 bits.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .decoder import Decoder

_one_dnn: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def inference_linear(
    hidden: Float[Tensor, "... columns"],
    weight: Float[Tensor, "rows columns"],
    bias: Float[Tensor, " rows"] | None = None,
) -> Float[Tensor, "... rows"]:
    """Compute what `torch.nn.functional.linear` does, by the product that is fastest where no gradient is wanted."""
    if (
        _one_dnn is None
        or torch.is_grad_enabled()
        or hidden.dtype != torch.float32
        or weight.dtype != torch.float32
        or hidden.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or hidden.numel() <= hidden.shape[-1]
    ):
        return F.linear(hidden, weight, bias)
    return _one_dnn(hidden, weight, bias, "none", [], "")


class InferenceLinear(nn.Linear):
    """A linear layer that computes by `inference_linear`; with gradients it is `torch.nn.Linear`."""

    def forward(self, input: Float[Tensor, "... columns"]) -> Float[Tensor, "... rows"]:
        """Map each vector."""
        return inference_linear(input, self.weight, self.bias)


def arrange_for_inference(model: nn.Module) -> nn.Module:
    """Store linear layers and tied output projections as inference reads them fastest, in place; give the model back.

    Names, shapes and values of parameters stay as they are, and so does what training computes but for rounding. Those
    with at least as many rows as columns get contiguous columns: what needs contiguous rows, such as a writer of files,
    calls `contiguous`. Layers that are not in 32 bits on a CPU are left alone.
    """
    for name in set(stored_by_columns(model)):
        weight = model.get_parameter(name)
        if _concerns(weight):
            weight.data = weight.data.t().contiguous().t()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear and _concerns(child.weight):
                setattr(parent, name, _arranged(child))
        if isinstance(parent, Decoder) and _concerns(parent.output_weight):
            parent.project = inference_linear
    return model


def stored_by_columns(model: nn.Module) -> Iterator[str]:
    """Name the matrices whose columns `arrange_for_inference` makes contiguous, for readers that can read them so."""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, Decoder) and (module.head is None or isinstance(module.head, nn.Linear)):
            yield f"{prefix}{'embedding' if module.head is None else 'head'}.weight"
        elif type(module) is nn.Linear and module.out_features >= module.in_features:
            yield f"{prefix}weight"


def _concerns(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def _arranged(linear: nn.Linear) -> InferenceLinear:
    arranged = InferenceLinear.__new__(InferenceLinear)
    # The very same parameters, hooks and modes.
    arranged.__dict__ = linear.__dict__
    return arranged
