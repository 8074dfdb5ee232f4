"""Filling a model that was built without memory from an opened checkpoint, with every name accounted for."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from allyouneed.nn.inference import stored_by_columns

from .errors import WeightsError
from .names import Name
from .stored import StoredModel

_SHOWN = 8


@dataclass(frozen=True)
class Filling:
    """One stored tensor and where it goes.

    Attributes:
        name: how it is taken apart.
        stored: its name in this checkpoint.
        shapes: of the parameters that it holds.
    """

    name: Name
    stored: str
    shapes: tuple[tuple[int, ...], ...]


def plan(
    model: nn.Module,
    stored: StoredModel,
    names: Sequence[Name],
    *,
    ignored: Iterable[str] = (),
    copies: Mapping[str, str] | None = None,
    prefix: str = "",
) -> list[Filling]:
    """Match a model's parameters with a checkpoint's tensors, reading none of them.

    Args:
        model: what is to be filled.
        stored: the checkpoint.
        names: every parameter of the model once.
        ignored: regular expressions of whole stored names that carry nothing.
        copies: stored names that may be there as copies of others, with which they are compared later.
        prefix: stored names are found with and without it.

    Raises:
        WeightsError: tensors that are missing, left over, of another shape or not of floating point; named.
        ValueError: `names` does not have every parameter of the model once, which is a mistake in the model.
    """
    parameters = _distinct(model)
    _check_complete(parameters, names)
    present = set(stored.names())
    fillings, missing, misshapen = [], [], []
    for name in names:
        found = find(name.theirs, present, prefix)
        if found is None:
            missing.append(name.theirs)
            continue
        shapes = tuple(tuple(parameters[ours].shape) for ours in name.ours)
        if stored.shape(found) != name.stored_shape(shapes):
            misshapen.append(f"{found} has {stored.shape(found)}, the model {name.stored_shape(shapes)}")
        elif not stored.dtype(found).is_floating_point:
            misshapen.append(f"{found} has numbers of type {stored.dtype(found)}, the model floating-point ones")
        fillings.append(Filling(name, found, shapes))
    expected = {filling.stored for filling in fillings}
    expected |= {found for copy in copies or {} if (found := find(copy, present, prefix)) is not None}
    patterns = [re.compile(pattern) for pattern in ignored]
    left_over = [
        name
        for name in stored.names()
        if name not in expected and not any(pattern.fullmatch(name) for pattern in patterns)
    ]
    faults = [
        f"{len(wrong)} {what}: {', '.join(wrong[:_SHOWN])}{', …' if len(wrong) > _SHOWN else ''}"
        for what, wrong in (
            ("are missing", missing),
            ("are left over, which the model has no place for", left_over),
            ("do not fit", misshapen),
        )
        if wrong
    ]
    if faults:
        raise WeightsError(
            f"the weights in {stored.source} are not those of {type(model).__name__}: {'; '.join(faults)}"
            f"{_cause(stored, missing, misshapen, prefix)}"
        )
    return fillings


def _cause(stored: StoredModel, missing: Sequence[str], misshapen: Sequence[str], prefix: str) -> str:
    """Say what two frequent faults come from."""
    if missing and prefix and not any(name.startswith(prefix) for name in missing):
        return "; it was saved without its output layer, which its configuration does not tie to the embeddings"
    vocabulary = stored.config.get("vocab_size")
    if any(f"the model ({vocabulary}, " in fault for fault in misshapen):
        return f"; config.json: vocab_size is {vocabulary}"
    return ""


def find(name: str, present: Iterable[str], prefix: str) -> str | None:
    """Find a name among those stored, with or without the prefix; None where it is in neither form."""
    choices = [name]
    if prefix:
        choices.append(name.removeprefix(prefix) if name.startswith(prefix) else prefix + name)
    return next((choice for choice in choices if choice in present), None)


def fill(
    model: nn.Module,
    stored: StoredModel,
    fillings: Iterable[Filling],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> None:
    """Give a model that was built on the meta device its weights, one stored tensor at a time.

    Raises:
        CheckpointFormatError: a tensor's file has ended early.
    """
    turned = set(stored_by_columns(model)) if dtype == torch.float32 and torch.device(device).type == "cpu" else set()
    # The largest first: what is needed beside a tensor while it is read is then small beside what stands already.
    for filling in sorted(fillings, key=lambda filling: -sum(map(prod, filling.shapes))):
        by_columns = turned.issuperset(filling.name.ours) != filling.name.transposed
        parts = filling.name.split(stored.read(filling.stored, dtype, by_columns=by_columns), filling.shapes)
        for ours, part in zip(filling.name.ours, parts, strict=True):
            part = part.t().contiguous().t() if ours in turned else part.contiguous()
            replace_parameter(model, ours, part.to(device))


def check_filled(model: nn.Module) -> None:
    """Make sure that nothing was left without values.

    Raises:
        ValueError: a buffer that the model makes when it is constructed, which it must not.
    """
    unfilled = [
        name for name, value in (*model.named_parameters(), *model.named_buffers()) if value.device.type == "meta"
    ]
    if unfilled:
        raise ValueError(f"{type(model).__name__} is built with values that no checkpoint gives: {', '.join(unfilled)}")


def check_copies(stored: StoredModel, copies: Mapping[str, str], prefix: str) -> None:
    """Compare tensors that should be copies of others, row by row.

    Raises:
        WeightsError: one differs from what it should equal.
    """
    present = set(stored.names())
    for copy, original in copies.items():
        found, other = find(copy, present, prefix), find(original, present, prefix)
        if found is None or other is None or found == other:
            continue
        if stored.shape(found) != stored.shape(other) or not torch.equal(stored.read(found), stored.read(other)):
            raise WeightsError(
                f"{stored.source}: {found} must equal {other}, since the configuration ties them, and it does not"
            )


def replace_parameter(model: nn.Module, name: str, value: torch.Tensor) -> None:
    """Put a value in the place of a parameter, wherever the same parameter stands in the model."""
    old = model.get_parameter(name)
    new = nn.Parameter(value, requires_grad=old.requires_grad)
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter is old:
                module.register_parameter(key, new)


def _distinct(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


def _check_complete(parameters: Mapping[str, nn.Parameter], names: Sequence[Name]) -> None:
    """Hold a model to naming every parameter once, and nothing else."""
    named = [ours for name in names for ours in name.ours]
    unknown = [ours for ours in named if ours not in parameters]
    taken = [id(parameters[ours]) for ours in named if ours in parameters]
    unnamed = [ours for ours, parameter in parameters.items() if id(parameter) not in set(taken)]
    stored = [name.theirs for name in names]
    twice = len(set(taken)) < len(taken) or len(set(stored)) < len(stored)
    if unknown or unnamed or twice:
        raise ValueError(
            f"weight_names must name every parameter once: unknown {unknown}, left out {unnamed}, repeated: {twice}"
        )
