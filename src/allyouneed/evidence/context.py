"""What a trial, or a shared stage, is given beside its configuration."""

import json
import math
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allyouneed.training import Checkpoint

    from .stages import Stage
    from .trial import Task

_CURVE = "curve.jsonl"

EXHIBITS = "exhibits"
"""The folder, in a trial's, of what it leaves to look at."""


class Context:
    """What a trial is given beside its configuration.

    Attributes:
        seed: already given to every generator.
        fabric: device and precision.
        folder: for whatever the trial leaves.
        checkpoint: for `train`, which continues from it.
        costs: to be filled with what depends on the machine (seconds, bytes); everything else is a metric.
        stages: how many seconds each shared stage took to make, of those that were asked for.
    """

    def __init__(self, task: "Task"):
        from lightning_fabric import Fabric

        from allyouneed.training import Checkpoint

        self.seed = task.seed
        self.folder = task.folder
        self.fabric: Any = Fabric(accelerator=task.device, devices=1, precision=task.precision)  # pyright: ignore[reportArgumentType]
        self.checkpoint = Checkpoint(task.folder / "checkpoint.safetensors", task.checkpoint_seconds)
        self.costs: dict[str, float] = {}
        self.stages: dict[str, float] = {}
        self._task = task
        # Line by line, so that a killed trial leaves no half of a line before those that the next attempt adds.
        self._curve = (task.folder / _CURVE).open("a", encoding="utf-8", buffering=1)
        self._progress = task.folder / "progress.json"
        self._shown = 0.0
        self._began = time.perf_counter()
        self._elsewhere = 0.0
        self._before = _seconds_shown(self._progress)

    def log(self, step: int, steps: int, **values: float) -> None:
        """Add a point to the trial's curve, and show it as progress.

        A trial that is continued from a checkpoint logs some steps again; the later line is the one that counts.
        """
        self._curve.write(json.dumps({"step": step, "steps": steps, **values}) + "\n")
        now = time.monotonic()
        if now - self._shown > 0.5 or step == steps:
            self._shown = now
            shown = {"step": step, "steps": steps, "loss": values.get("loss"), "seconds": self.seconds}
            write_whole(self._progress, shown)

    def curve(self, name: str) -> dict[int, float]:
        """Read back a value of the trial's curve by step, with what an interrupted attempt logged of it."""
        lines = [json.loads(line) for line in (self.folder / _CURVE).read_text(encoding="utf-8").splitlines()]
        return {line["step"]: line[name] for line in lines if name in line}

    def further_checkpoint(self, name: str) -> "Checkpoint":
        """Give one more checkpoint, for a trial that trains more than once; it goes when the trial is finished.

        Args:
            name: of the training, part of a file's name.
        """
        path = self.checkpoint.path
        return type(self.checkpoint)(path.with_stem(f"{path.stem}-{name}"), self.checkpoint.every_seconds)

    def stage(self, stage: "Stage", config: Any, seed: int | None = None) -> Path:
        """Give the folder of a shared stage, which is made where it is not there yet.

        Args:
            stage: what is made.
            config: its configuration, a frozen dataclass.
            seed: the stage's; the trial's own where None.

        Raises:
            Exception: what making it failed of.
        """
        from .stages import prepare

        began = time.perf_counter()
        try:
            made = prepare(stage, config, self.seed if seed is None else seed, self._task)
        finally:
            self._elsewhere += time.perf_counter() - began
        self.stages |= made.seconds
        return made.folder

    def exhibit(self, name: str, text: str) -> None:
        """Leave something to look at beside the metrics, which is recorded with the first seed's trial.

        Args:
            name: of the file: `….md` for Markdown that the readme shows, `….svg` for a picture.
            text: its contents.

        Raises:
            ValueError: another kind of file.
        """
        if not name.endswith((".md", ".svg")) or Path(name).name != name:
            raise ValueError(f"exhibit {name!r} must be a plain file name that ends in .md or .svg")
        folder = self.folder / EXHIBITS
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")

    @property
    def seconds(self) -> float:
        """Time since the trial began, with that of interrupted attempts as far as they showed progress.

        Shared stages do not count: their time is told once, however many trials stand on them.
        """
        return self._before + time.perf_counter() - self._began - self._elsewhere

    def close(self) -> None:
        """Write out what is still held."""
        self._curve.close()


def _seconds_shown(progress: Path) -> float:
    """Read the time that earlier attempts took; what cannot be read counts as none, and is said."""
    try:
        seconds = float(json.loads(progress.read_text(encoding="utf-8"))["seconds"])
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
        raise ValueError(f"{seconds} seconds")
    except FileNotFoundError:
        return 0.0
    except (OSError, ValueError, TypeError, KeyError) as error:
        print(f"{progress.name} is damaged ({error!r}): the time of earlier attempts is not counted")
        return 0.0


def seed_everything(seed: int) -> None:
    """Give every generator a seed."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def write_whole(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees all of it or none."""
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
