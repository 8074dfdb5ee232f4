"""How a model's weights are named in published checkpoints: one list of names, read both ways."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import WeightsError


@dataclass(frozen=True)
class Name:
    """One stored tensor and the parameters of ours that it holds; made by `same`, `transposed` or `stacked`.

    Attributes:
        ours: names as in `model.named_parameters()`, in the order in which they are stacked.
        theirs: the stored tensor's name.
        dim: the dimension along which ours are stacked, counted in our layout (0 is a linear layer's outputs).
        transposed: whether the stored matrix has our layout transposed, as linear layers in GPT-2's checkpoints have.
    """

    ours: tuple[str, ...]
    theirs: str
    dim: int = 0
    transposed: bool = False

    def __post_init__(self) -> None:
        if not self.ours:
            raise ValueError(f"{self.theirs} must hold at least one parameter of ours")

    def stored_shape(self, shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Give the shape that the stored tensor must have for parameters of these shapes.

        Raises:
            WeightsError: parameters that cannot be stacked or transposed so.
        """
        first = tuple(shapes[0])
        rests = {(*shape[: self.dim], *shape[self.dim + 1 :]) for shape in map(tuple, shapes)}
        if len(rests) > 1 or (len(self.ours) > 1 and self.dim >= len(first)):
            raise WeightsError(f"{', '.join(self.ours)} of shapes {list(shapes)} cannot be stacked along {self.dim}")
        if self.transposed and len(first) != 2:
            raise WeightsError(f"{', '.join(self.ours)} must be matrices to be stored transposed, not {list(shapes)}")
        whole = first
        if len(shapes) > 1:
            whole = (*first[: self.dim], sum(shape[self.dim] for shape in shapes), *first[self.dim + 1 :])
        return whole[::-1] if self.transposed else whole

    def split(self, stored: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """Take the stored tensor apart into our parameters, each in memory of its own, in any layout.

        Args:
            stored: of the shape `stored_shape(shapes)`; it is used up.
            shapes: our parameters' shapes.

        Raises:
            WeightsError: a stored tensor of another shape.
        """
        expected = self.stored_shape(shapes)
        if tuple(stored.shape) != expected:
            raise WeightsError(f"{self.theirs} has the shape {tuple(stored.shape)}; the model needs {expected}")
        whole = stored.t() if self.transposed else stored
        if len(self.ours) == 1:
            return [whole]
        parts = whole.split([shape[self.dim] for shape in shapes], self.dim)
        return [part.clone(memory_format=torch.contiguous_format) for part in parts]

    def join(self, parameters: Sequence[Tensor]) -> Tensor:
        """Put our parameters together into the stored tensor: the inverse of `split`."""
        self.stored_shape([parameter.shape for parameter in parameters])
        whole = parameters[0] if len(parameters) == 1 else torch.cat(list(parameters), self.dim)
        return (whole.t() if self.transposed else whole).contiguous()


def same(ours: str, theirs: str) -> Name:
    """Name a tensor that is stored as we hold it."""
    return Name((ours,), theirs)


def transposed(ours: str, theirs: str) -> Name:
    """Name a matrix that is stored with inputs as rows and outputs as columns, as in GPT-2's checkpoints."""
    return Name((ours,), theirs, transposed=True)


def stacked(ours: Sequence[str], theirs: str, *, dim: int = 0, transposed: bool = False) -> Name:
    """Name several parameters that are stored as one tensor, such as the query, key and value projections.

    Args:
        ours: the parameters, in their order in the stored tensor.
        theirs: the stored tensor.
        dim: along which they are stacked, counted in our layout: 0, outputs, for both weights and biases.
        transposed: whether the stored matrix is the transpose of ours stacked.
    """
    return Name(tuple(ours), theirs, dim, transposed)
