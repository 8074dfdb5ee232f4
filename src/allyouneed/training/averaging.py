"""Averages of the weights that a model had at several steps of its training."""

import contextlib
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .checkpoint import CheckpointError
from .names import plain_name


class Snapshots:
    """The weights of a model at chosen steps, one file for each.

    Files are whole or not there. A training that continues from a checkpoint takes some of its steps again, and with
    them the snapshots, which come out the same.

    Args:
        folder: where the files are; made where it is missing.
        steps: when to take one, in optimiser steps taken.
    """

    def __init__(self, folder: Path, steps: Collection[int]):
        self.folder = folder
        self.steps = sorted(set(steps))

    def path(self, step: int) -> Path:
        """Say where the weights after a step are."""
        return self.folder / f"step-{step:07d}.safetensors"

    def take(self, model: nn.Module, step: int) -> None:
        """Write the weights if this is one of the steps: to be called after each.

        Raises:
            CheckpointError: the file could not be written (a full disk).
        """
        if step not in self.steps:
            return
        # Tied weights are one storage under two names, which the format refuses: each gets its own copy.
        weights = {
            plain_name(name): value.detach().to("cpu", copy=True).contiguous()
            for name, value in model.state_dict().items()
        }
        path = self.path(step)
        temporary = path.with_name(path.name + ".new")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, temporary)
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise CheckpointError(f"could not write the snapshot {path}: {error}") from error

    def load(self, *steps: int) -> dict[str, Tensor]:
        """Give the weights after a step, or the average of those after several.

        Raises:
            CheckpointError: a snapshot is missing or damaged.
            ValueError: no steps.
        """
        states = []
        for step in steps:
            try:
                states.append(load_file(self.path(step)))
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{self.path(step)} is not a readable snapshot: {error}") from error
        return average(states)

    def remove(self) -> None:
        """Delete the files, and the folder if nothing else is in it."""
        for step in self.steps:
            self.path(step).unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def average(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Give the mean of each weight over several state dictionaries of one model, computed in 64 bits.

    Averaging the last checkpoints does what a lower learning rate at the end would (Vaswani et al. 2017, section 6.1:
    the last 5 of the base model, the last 20 of the big one). What is not a floating-point number is taken from the
    last.

    Raises:
        ValueError: no states, or states of different names or shapes.
    """
    if not states:
        raise ValueError("there is nothing to average: no states were given")
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in states]
    for number, shape in enumerate(shapes):
        if shape != shapes[0]:
            differing = sorted(
                name for name in shape.keys() | shapes[0].keys() if shape.get(name) != shapes[0].get(name)
            )
            raise ValueError(f"state {number} is of another model than state 0: they differ in {', '.join(differing)}")
    averaged = {}
    for name, last in states[-1].items():
        if not last.is_floating_point():
            averaged[name] = last
            continue
        total = torch.zeros(last.shape, dtype=torch.float64)
        for state in states:
            total += state[name].double()
        averaged[name] = (total / len(states)).to(last.dtype)
    return averaged
