"""What a training changes: the weights that learn, with 32-bit copies of those that are stored in 16 bits."""

from typing import Any

import torch
from torch import Tensor, nn

from allyouneed.nn.quantized import QuantizedLinear

from .names import listed, plain_name

_HALVES = (torch.float16, torch.bfloat16)


def frozen_weights(model: nn.Module) -> tuple[str, ...]:
    """Name what a training of this model leaves as it is: frozen parameters and quantised layers.

    Raises:
        ValueError: nothing is left to train, or the model has quantised layers and nothing in it was frozen, so that
            whoever trains it may believe that they learn.
    """
    parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    quantised = [plain_name(name) for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
    if len(frozen) == len(parameters):
        why = "it has no parameters"
        if frozen:
            why = f"all its parameters are frozen (requires_grad is False): {listed(frozen)}"
        elif quantised:
            why = f"all its weights are quantised, and such weights cannot be trained: {listed(quantised)}"
        raise ValueError(f"there is nothing to train in this {type(model).__name__}: {why}")
    if quantised and not frozen:
        raise ValueError(
            f"{len(quantised)} layers are quantised, and quantised weights cannot be trained: {listed(quantised)}. "
            "Load the model without quantising it; or, to train adapters beside them, freeze the rest of the model "
            "first with model.requires_grad_(False)"
        )
    return (*frozen, *quantised)


class Weights:
    """The parameters of a model that learn, and what the optimiser updates in their place.

    An update smaller than 1/256 of a bfloat16 weight (1/2048 of a float16 one) is rounded away. So weights in 16 bits
    are updated in 32-bit copies, from which the model's are rounded after each step; and the gradients of a step's
    parts are added up in 32 bits (Micikevicius et al. 2018, section 3.1). Other weights are updated themselves.

    Args:
        model: as it will be trained, on its device and in its precision.

    Attributes:
        trained: the model's parameters that learn, by name.
        masters: the copies of those that are in 16 bits, by the same names.

    Raises:
        ValueError: a weight in fewer than 16 bits, for which there is no arithmetic; it is named.
    """

    def __init__(self, model: nn.Module):
        named = {plain_name(name): parameter for name, parameter in model.named_parameters()}
        self.trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        narrow = [f"{name} ({p.dtype})" for name, p in self.trained.items() if p.is_floating_point() and p.itemsize < 2]
        if narrow:
            raise ValueError(f"weights in fewer than 16 bits cannot be trained: {listed(narrow)}")
        self.masters = {
            name: nn.Parameter(parameter.detach().float())
            for name, parameter in self.trained.items()
            if parameter.dtype in _HALVES
        }
        for name in self.masters:
            # The optimiser, which clears gradients before a step, does not know of these.
            self.trained[name].grad = None

    @property
    def updated(self) -> dict[str, nn.Parameter]:
        """What the optimiser updates, by the names of the model's parameters."""
        return self.trained | self.masters

    @property
    def need_scaling(self) -> bool:
        """Whether small gradients would be lost: in float16 they are zero below 6e-8."""
        return any(parameter.dtype == torch.float16 for parameter in self.trained.values())

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Give the optimiser's groups: decay matrices; leave vectors (biases, gains of norms) alone."""
        updated = self.updated.items()
        groups: list[dict[str, Any]] = [
            {"params": [(name, p) for name, p in updated if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [(name, p) for name, p in updated if p.dim() < 2], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def take_gradients(self) -> None:
        """Add the gradients of weights in 16 bits to those of their copies, and clear them."""
        for name, master in self.masters.items():
            gradient = self.trained[name].grad
            if gradient is not None:
                master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)
                self.trained[name].grad = None

    @torch.no_grad()
    def give_back(self) -> None:
        """Round the copies to the model's weights."""
        for name, master in self.masters.items():
            self.trained[name].copy_(master)

    def state(self) -> dict[str, Tensor]:
        """Give the copies for a checkpoint."""
        return {f"master.{name}": master for name, master in self.masters.items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Take the copies from a checkpoint."""
        for name, master in self.masters.items():
            master.copy_(state[f"master.{name}"])
