"""Checkpoints of a training under way: one safetensors file with all that the next step depends on."""

import contextlib
import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from .names import listed, plain_name


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or does not fit what it is to be loaded into."""


@dataclass
class Checkpoint:
    """Where a training keeps its state, and how often.

    Attributes:
        path: the file, as a path or a string; written beside itself and moved into place, so that it is always whole.
        every_seconds: the least time between two saves; 0 saves after every step.

    Raises:
        ValueError: a time below 0, or that is no number.
    """

    path: Path
    every_seconds: float = 60.0
    _last: float = field(default_factory=time.monotonic, repr=False)

    def __post_init__(self) -> None:
        if not self.every_seconds >= 0:
            raise ValueError(f"every_seconds is {self.every_seconds}: it must be 0 or more")
        self.path = Path(self.path)

    @property
    def due(self) -> bool:
        """Whether enough time has passed since the last save or since construction."""
        return time.monotonic() - self._last >= self.every_seconds

    def save(self, model: nn.Module, optimizer: Optimizer, progress: dict[str, Any]) -> None:
        """Write model, optimiser, every random state and `progress` (plain JSON values and tensors).

        Weights have the names that they have without `torch.compile`, whichever modules are compiled.

        Raises:
            CheckpointError: the file could not be written (a full disk); the one before it is untouched.
        """
        tensors = {f"model.{plain_name(name)}": value for name, value in model.state_dict().items()}
        state = optimizer.state_dict()
        scalars: dict[str, dict[str, Any]] = {}
        for index, values in state["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
                else:
                    scalars.setdefault(str(index), {})[key] = value
        random_tensors, random_plain = _random_state()
        tensors |= {f"random.{name}": value for name, value in random_tensors.items()}
        tensors |= {f"progress.{name}": value for name, value in progress.items() if isinstance(value, Tensor)}
        plain = {
            "optimizer": type(optimizer).__name__,
            "optimizer_groups": state["param_groups"],
            "optimizer_scalars": scalars,
            "random": random_plain,
            "progress": {name: value for name, value in progress.items() if not isinstance(value, Tensor)},
        }
        # Tied weights are one storage under two names, which the format refuses: each gets its own copy.
        tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
        temporary = self.path.with_name(self.path.name + ".new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, temporary, metadata={"state": json.dumps(plain)})
            temporary.replace(self.path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            megabytes = sum(value.nbytes for value in tensors.values()) / 1e6
            kept = "the checkpoint before it is kept" if self.path.exists() else "there is none before it"
            raise CheckpointError(
                f"could not write the checkpoint {self.path} ({megabytes:.0f} MB): {error}; {kept}. "
                "Make room, then run again to continue"
            ) from error
        self._last = time.monotonic()

    def load(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Any] | None:
        """Restore everything and return `progress`; None where there is no checkpoint.

        The optimiser keeps the settings that it was made with (learning rate, weight decay, betas and the like); its
        moments come from the file.

        Raises:
            CheckpointError: the file is damaged; or of another model, of weights in another precision, of another
                optimiser, or of one over other weights. Nothing was restored then.
        """
        if not self.path.exists():
            return None
        if self.path.is_dir():
            raise CheckpointError(
                f"{self.path} is a folder: a checkpoint is one file, such as {self.path / 'state.safetensors'}"
            )
        try:
            with safe_open(self.path, framework="pt") as file:
                plain = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path} is not a readable checkpoint: {error}. Delete it to start anew"
            ) from error
        groups = _groups(tensors)
        names = {plain_name(name): name for name in model.state_dict()}
        try:
            self._check(model, optimizer, groups["model"], plain)
            model.load_state_dict({names.get(name, name): value for name, value in groups["model"].items()})
            state: dict[int, dict[str, Any]] = {}
            for name, value in groups["optimizer"].items():
                index, key = name.split(".", 1)
                state.setdefault(int(index), {})[key] = value
            for index, values in plain["optimizer_scalars"].items():
                state.setdefault(int(index), {}).update(values)
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self.path} does not fit this model: {error}. Delete it to start anew") from error
        _restore_random_state(groups["random"], plain["random"])
        return plain["progress"] | groups["progress"]

    def _check(self, model: nn.Module, optimizer: Optimizer, saved: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Hold a file to the model and the optimiser that it is to be loaded into.

        Raises:
            ValueError: they differ.
        """
        own = {plain_name(name): value for name, value in model.state_dict().items()}
        if missing := sorted(own.keys() ^ saved.keys()):
            raise ValueError(f"one has weights that the other has not: {listed(missing)}")
        for name, value in own.items():
            if value.shape != saved[name].shape:
                raise ValueError(f"{name} is {tuple(saved[name].shape)} there and {tuple(value.shape)} here")
            if value.dtype != saved[name].dtype:
                raise ValueError(
                    f"{name} is in {saved[name].dtype} there and in {value.dtype} here; a training goes on in the "
                    "precision in which it began"
                )
        if plain["optimizer"] != type(optimizer).__name__:
            raise ValueError(f"it is of the optimiser {plain['optimizer']}, and this is {type(optimizer).__name__}")
        pairs = [(group["params"], group.get("param_names")) for group in plain["optimizer_groups"]]
        now = [(group["params"], group.get("param_names")) for group in optimizer.state_dict()["param_groups"]]
        if pairs != now:
            there, here = ({name for _, names in groups for name in names or ()} for groups in (pairs, now))
            raise ValueError(
                f"other weights were trained than are now: {listed(sorted(there ^ here)) or 'in other groups'}"
            )


def _groups(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort tensors by the word before the first dot of their names."""
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "random": {}, "progress": {}}
    for name, value in tensors.items():
        group, rest = name.split(".", 1)
        groups[group][rest] = value
    return groups


def _random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Take the states of Python's, NumPy's and torch's global generators, on every device."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    tensors = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
    }
    if torch.cuda.is_available():
        tensors |= {f"cuda{index}": value for index, value in enumerate(torch.cuda.get_rng_state_all())}
    plain = {
        "python": [version, gauss],
        "numpy": [int(position), int(has_gauss), float(cached)],
    }
    return tensors, plain


def _restore_random_state(tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    torch.set_rng_state(tensors["torch"])
    version, gauss = plain["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    position, has_gauss, cached = plain["numpy"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, cached))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if (state := tensors.get(f"cuda{index}")) is not None:
                torch.cuda.set_rng_state(state, index)
