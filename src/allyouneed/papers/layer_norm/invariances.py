"""Table 1: what may be done to weights and data without a normalised layer noticing."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from .baselines import BatchNorm, weight_norm
from .layer_norm import layer_norm

Weight = Float[Tensor, "units inputs"]
Cases = Float[Tensor, "cases inputs"]


def _layer(weight: Weight, cases: Cases) -> Float[Tensor, "cases units"]:
    return layer_norm(cases @ weight.T, epsilon=0.0)


def _batch(weight: Weight, cases: Cases) -> Float[Tensor, "cases units"]:
    # In training, where the batch is the whole data set: the expectations of equation 2. PyTorch wants some epsilon.
    return BatchNorm(len(weight), epsilon=torch.finfo(cases.dtype).tiny).to(cases.dtype)(cases @ weight.T).detach()


def _weight(weight: Weight, cases: Cases) -> Float[Tensor, "cases units"]:
    return cases @ weight_norm(weight).T


NORMS: Mapping[str, Callable[[Weight, Cases], Float[Tensor, "cases units"]]] = {
    "batch": _batch,
    "weight": _weight,
    "layer": _layer,
}
"""A layer's normalised summed inputs under each norm, without epsilon."""

TABLE_1: Mapping[str, frozenset[str]] = {
    "batch": frozenset({"weight_matrix_scaled", "weight_vector_scaled", "data_scaled", "data_shifted"}),
    "weight": frozenset({"weight_matrix_scaled", "weight_vector_scaled"}),
    "layer": frozenset({"weight_matrix_scaled", "weight_matrix_shifted", "data_scaled", "case_scaled"}),
}
"""The changes to which the paper's Table 1 calls each norm invariant."""


def changes(weight: Weight, cases: Cases, generator: torch.Generator) -> dict[str, tuple[Weight, Cases]]:
    """Give weights and data after each change of Table 1, one for each of its columns.

    Factors are positive, as they must be: a negative one turns the sign of what layer and batch norm return. They lie
    between 2 and 4 or between 1/4 and 1/2, and shifts are standard normal.

    Args:
        weight: a row for each unit.
        cases: the data set, a row for each case.
        generator: draws the factors, the shifts, and which unit or case is scaled.
    """

    def factor() -> float:
        doublings = 1.0 + torch.rand((), generator=generator).item()
        return 2.0 ** (doublings if torch.rand((), generator=generator) < 0.5 else -doublings)

    def shift() -> Tensor:
        return torch.randn(weight.shape[1], generator=generator, dtype=weight.dtype)

    def one_scaled(rows: Tensor) -> Tensor:
        factors = torch.ones(len(rows), 1, dtype=rows.dtype)
        factors[torch.randint(len(rows), (), generator=generator)] = factor()
        return factors * rows

    return {
        "weight_matrix_scaled": (factor() * weight, cases),
        "weight_matrix_shifted": (weight + shift(), cases),
        "weight_vector_scaled": (one_scaled(weight), cases),
        "data_scaled": (weight, factor() * cases),
        "data_shifted": (weight, cases + shift()),
        "case_scaled": (weight, one_scaled(cases)),
    }


def deviations(norm: str, seed: int, *, units: int = 24, inputs: int = 16, cases: int = 32) -> dict[str, float]:
    """Measure how far each change moves a layer's normalised summed inputs, for one draw of weights and data.

    What comes after (gain, bias, an element-wise function) cannot tell apart what is equal here. In 64 bits.

    Args:
        norm: "batch", "weight" or "layer".
        seed: of weights, data and changes.
        units: of the layer.
        inputs: to the layer.
        cases: in the data set.

    Returns:
        For each column of Table 1, the largest absolute difference over all cases and units.

    Raises:
        ValueError: there is no such norm.
    """
    if norm not in NORMS:
        raise ValueError(f"there is no norm {norm!r} in Table 1; it has {', '.join(NORMS)}")
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(units, inputs, generator=generator, dtype=torch.float64)
    # Not centred and not of one scale, lest an invariance hold for the data's sake.
    spread = torch.rand(cases, 1, generator=generator, dtype=torch.float64) + 0.5
    data = torch.randn(cases, inputs, generator=generator, dtype=torch.float64) * spread + 0.5
    before = NORMS[norm](weight, data)
    return {
        name: (NORMS[norm](*changed) - before).abs().max().item()
        for name, changed in changes(weight, data, generator).items()
    }
