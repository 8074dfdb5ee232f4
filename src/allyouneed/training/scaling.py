"""Loss scaling: gradients in float16 are kept above what it rounds to zero, and below what overflows."""

from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor


class LossScaling:
    """Multiplies the loss by a power of two that halves when gradients overflow and doubles after long calm.

    A step whose gradient overflowed changes nothing. Source: Micikevicius et al. 2018, sections 3.2 and 3.3.
    What scales is Fabric's own scaler where its precision brings one ("16-mixed"); where the weights themselves are in
    float16, which Fabric's precisions do not scale for, one of ours.

    Args:
        fabric: whose precision may have a scaler.
        needed: whether one is needed where it has none.
    """

    def __init__(self, fabric: Fabric, needed: bool):
        theirs: Any = getattr(fabric.strategy.precision, "scaler", None)
        if theirs is not None and not theirs.is_enabled():
            theirs = None
        self._ours: Any = torch.amp.GradScaler(fabric.device.type) if needed and theirs is None else None
        self._scaler: Any = theirs or self._ours

    @property
    def active(self) -> bool:
        """Whether anything is scaled."""
        return self._scaler is not None

    @property
    def factor(self) -> float:
        """What the loss is multiplied by."""
        return self._scaler.get_scale() if self.active else 1.0

    def scaled(self, loss: Tensor) -> Tensor:
        """Multiply a loss, where Fabric does not do so on its way back."""
        return loss if self._ours is None else self._ours.scale(loss)

    def unscale(self, optimizer: Any) -> None:
        """Divide gradients by the factor, where Fabric does not do so before it clips them."""
        if self._ours is not None:
            self._ours.unscale_(optimizer.optimizer)

    def step(self, optimizer: Any) -> None:
        """Update the weights unless a gradient overflowed, and fit the factor."""
        if self._ours is None:
            optimizer.step()
            return
        self._ours.step(optimizer.optimizer)
        self._ours.update()

    def state(self) -> dict[str, Any]:
        """Give the factor, and how long it has been calm, for a checkpoint."""
        return {"scaler": self._scaler.state_dict()} if self.active else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take them from a checkpoint; of one that scaled nothing there is none, and scaling begins anew."""
        if self.active and "scaler" in state:
            self._scaler.load_state_dict(state["scaler"])
