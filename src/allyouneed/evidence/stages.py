"""Shared stages: costly steps that several trials need, made once and read by all of them, in whatever room."""

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from .context import Context, seed_everything, write_whole
from .digests import as_json, digest_of
from .trial import Task

_CARD = "stage.json"


@dataclass(frozen=True)
class Stage:
    """A step such as a pre-trained model, a tokenizer, an index, or the answers of a model.

    Attributes:
        name: a name in [a-z0-9_], by which results tell of it.
        make: writes whatever it makes into its context's folder. A module-level function, whose code, with all that it
            imports, decides together with configuration and seed which stage it is. It may train with the context's
            checkpoints, and ask for further stages.

    Raises:
        ValueError: the name has other characters.
    """

    name: str
    make: Callable[[Any, Context], None]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]+", self.name):
            raise ValueError(f"a stage's name is made of a-z, 0-9 and _, got {self.name!r}")


@dataclass(frozen=True)
class Made:
    """A stage that is there.

    Attributes:
        folder: with its files; they are read, and never changed.
        seconds: how long it, and what it stands on in turn, took to make, by name and digest.
    """

    folder: Path
    seconds: Mapping[str, float]


def prepare(stage: Stage, config: Any, seed: int, task: Task) -> Made:
    """Give a stage, and make it where it is not there; waits while another process makes it.

    A process that dies leaves its checkpoints, from which the next goes on. The folder appears whole or not at all.

    Args:
        stage: what is made.
        config: its configuration, a frozen dataclass.
        seed: of all generators.
        task: the trial that needs it: device and precision are the same, and `stages` says where it is kept.

    Raises:
        Exception: what making it failed of.
    """
    root = task.stages or task.folder.parent / "stages"
    root.mkdir(parents=True, exist_ok=True)
    name = f"{stage.name}-seed{seed}-{digest_of(config, stage.make.__module__, task)}"
    folder, working = root / name, root / f"{name}.making"
    with FileLock(root / f"{name}.lock"):
        card = _read_card(folder)
        if card is None:
            # What was damaged is made anew, whole.
            shutil.rmtree(folder, ignore_errors=True)
            working.mkdir(exist_ok=True)
            _make(stage, config, dataclasses.replace(task, seed=seed, config=config, folder=working, stages=root), name)
            working.replace(folder)
            card = json.loads((folder / _CARD).read_text(encoding="utf-8"))
    return Made(folder, card["seconds"])


def _make(stage: Stage, config: Any, task: Task, name: str) -> None:
    with _generators_kept():
        seed_everything(task.seed)
        context = Context(task)
        try:
            stage.make(config, context)
        finally:
            context.close()
    for checkpoint in task.folder.glob("checkpoint*.safetensors"):
        checkpoint.unlink()
    files = {path.relative_to(task.folder).as_posix(): _sha256(path) for path in _files(task.folder)}
    card = {
        "stage": stage.name,
        "seed": task.seed,
        "config": as_json(config),
        "seconds": {**context.stages, name: context.seconds},
        "files": files,
    }
    write_whole(task.folder / _CARD, card)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _CARD)


@cache
def _intact(folder: Path, card: str) -> bool:
    """Compare a stage's files with their checksums, once in a process."""
    files = json.loads(card)["files"]
    there = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    return there.keys() == files.keys() and all(_sha256(path) == files[name] for name, path in there.items())


def _read_card(folder: Path) -> dict[str, Any] | None:
    """Read what a finished stage says of itself; None where there is none, or its files are not what it says."""
    try:
        text = (folder / _CARD).read_text(encoding="utf-8")
        card = json.loads(text)
        sound = _intact(folder, text) and all(seconds >= 0 for seconds in card["seconds"].values())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        sound, card = False, None
    if not sound:
        print(f"{folder.name} is damaged, or was changed: it is made anew")
    return card if sound else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _generators_kept() -> Any:
    """Leave the generators as they were: a trial draws the same, whether it made the stage or found it."""
    import random

    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
