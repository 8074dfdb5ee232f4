"""A trial: one arm with one seed, in a folder of its own, finished whole or to be continued."""

import ast
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import random
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock

from .claims import TrialResult
from .environment import environment

if TYPE_CHECKING:
    from allyouneed.training import Checkpoint

Status = Literal["finished", "failed"]


@dataclass(frozen=True)
class Task:
    """All that a worker needs to run a trial.

    Attributes:
        trial: the experiment's function.
        arm: the arm's name.
        seed: the seed.
        config: the arm's configuration.
        folder: the trial's folder.
        device: "cpu", "cuda", or what else Lightning Fabric accepts.
        precision: as Lightning Fabric names it, such as "32-true" or "bf16-mixed".
        checkpoint_seconds: the least time between two checkpoints.
    """

    trial: Callable[[Any, "Context"], Mapping[str, float]]
    arm: str
    seed: int
    config: Any
    folder: Path
    device: str = "cpu"
    precision: str = "32-true"
    checkpoint_seconds: float = 60.0

    @property
    def name(self) -> str:
        """How the trial is called in messages."""
        return f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class Record:
    """How a trial ended: with a result, or with an error and the log that tells more."""

    arm: str
    seed: int
    status: Status
    result: TrialResult | None = None
    error: str = ""
    log: Path | None = None
    reused: bool = False


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
    """

    def __init__(self, task: Task):
        from lightning_fabric import Fabric

        from allyouneed.training import Checkpoint

        self.seed = task.seed
        self.folder = task.folder
        self.fabric: Any = Fabric(accelerator=task.device, devices=1, precision=task.precision)  # pyright: ignore[reportArgumentType]
        self.checkpoint = Checkpoint(task.folder / "checkpoint.safetensors", task.checkpoint_seconds)
        self.costs: dict[str, float] = {}
        # Line by line, so that a killed trial leaves no half of a line before those that the next attempt adds.
        self._curve = (task.folder / _CURVE).open("a", encoding="utf-8", buffering=1)
        self._progress = task.folder / "progress.json"
        self._shown = 0.0
        self._began = time.perf_counter()
        self._before = json.loads(self._progress.read_text())["seconds"] if self._progress.exists() else 0.0

    def log(self, step: int, steps: int, **values: float) -> None:
        """Add a point to the trial's curve, and show it as progress.

        A trial that is continued from a checkpoint logs some steps again; the later line is the one that counts.
        """
        self._curve.write(json.dumps({"step": step, "steps": steps, **values}) + "\n")
        now = time.monotonic()
        if now - self._shown > 0.5 or step == steps:
            self._shown = now
            shown = {"step": step, "steps": steps, "loss": values.get("loss"), "seconds": self.seconds}
            _write_whole(self._progress, shown)

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
        """Time since the trial began, with that of interrupted attempts as far as they showed progress."""
        return self._before + time.perf_counter() - self._began

    def close(self) -> None:
        """Write out what is still held."""
        self._curve.close()


def run_trial(task: Task, fresh: bool = False) -> Record:
    """Run a trial, or take its result where it has one.

    Waits while another process runs the same trial. The result appears whole or not at all.

    Args:
        task: the trial.
        fresh: throw away what an earlier run left, unless it is being made now by another process.
    """
    import torch

    torch.set_num_threads(1)
    task.folder.parent.mkdir(parents=True, exist_ok=True)
    waited = time.time()
    with FileLock(task.folder.with_name(task.folder.name + ".lock")):
        result_path, log_path = task.folder / "result.json", task.folder / "log.txt"
        task.folder.mkdir(exist_ok=True)
        if fresh and not (result_path.exists() and result_path.stat().st_mtime > waited):
            shutil.rmtree(task.folder)
            task.folder.mkdir()
        if (result := _kept_result(result_path)) is not None:
            return Record(task.arm, task.seed, "finished", result, log=log_path, reused=True)
        try:
            config = {"arm": task.arm, "seed": task.seed, "config": as_json(task.config)}
            _write_whole(task.folder / "config.json", config)
            _write_whole(task.folder / "environment.json", environment(task.device))
            # Line by line, so that the log of a killed trial has all that it said.
            with (
                log_path.open("a", encoding="utf-8", buffering=1) as log,
                contextlib.redirect_stdout(log),
                contextlib.redirect_stderr(log),
            ):
                try:
                    result = _run(task)
                    _write_whole(result_path, dataclasses.asdict(result))
                except BaseException:
                    traceback.print_exc()
                    raise
        except (Exception, SystemExit) as error:
            return Record(task.arm, task.seed, "failed", error=f"{type(error).__name__}: {error}", log=log_path)
        for checkpoint in task.folder.glob("checkpoint*.safetensors"):
            checkpoint.unlink()
        return Record(task.arm, task.seed, "finished", result, log=log_path)


def _kept_result(path: Path) -> TrialResult | None:
    """Read an earlier result; None where there is none, or none that can be read."""
    try:
        return TrialResult(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _run(task: Task) -> TrialResult:
    _seed_everything(task.seed)
    context = Context(task)
    try:
        metrics = task.trial(task.config, context)
    finally:
        context.close()
    return TrialResult(
        arm=task.arm,
        seed=task.seed,
        config=as_json(task.config),
        metrics={name: float(value) for name, value in metrics.items()},
        costs={name: float(value) for name, value in context.costs.items()},
        seconds=context.seconds,
    )


def _seed_everything(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def as_json(config: Any) -> dict[str, Any]:
    """Give a configuration as plain values, nested dataclasses with the name of their class."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return {"class": type(value).__name__} | fields
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value if isinstance(value, (int, float, str, bool, type(None))) else repr(value)

    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def digest(task: Task) -> str:
    """Give what a trial's result depends on as one short text: configuration, code, torch, device and precision."""
    from importlib.metadata import version

    parts = [as_json(task.config), code_digest(task.trial.__module__), version("torch"), task.device, task.precision]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@cache
def code_digest(module: str) -> str:
    """Hash the source of a module and of everything of its package and of this project that it imports.

    `evidence` judges trials and takes no part in them, so of it only this file counts.

    Raises:
        ValueError: the module has no file, so that its results could not be told from those of other code.
    """
    packages = {name.split(".")[0] for name in (module, __name__)}
    skipped = __name__.rsplit(".", 1)[0]
    waiting, files = [module, __name__], {}
    while waiting:
        name = waiting.pop()
        if name in files or (name != __name__ and (name == skipped or name.startswith(skipped + "."))):
            continue
        source = _source(name)
        if source is None:
            if name == module:
                raise ValueError(
                    f"the code of {module} is in no file, so a change of it would go unseen: put it in one"
                )
            continue
        files[name] = source.read_bytes()
        # Importing a module runs the packages around it.
        waiting += [name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)]
        is_package = source.name == "__init__.py"
        for node in ast.walk(ast.parse(files[name])):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.split(".")[0] in packages]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parts = name.split(".")
                    parts = parts[: len(parts) - node.level + is_package]
                    base = ".".join([*parts, *([node.module] if node.module else [])])
                if base.split(".")[0] in packages:
                    waiting += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    return whole.hexdigest()


def _source(module: str) -> Path | None:
    """Find a module's file without running it; None for what is not a module (a class imported by name)."""
    loaded = sys.modules.get(module)
    if loaded is not None and getattr(loaded, "__file__", None):
        return Path(str(loaded.__file__))
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None
    return Path(found.origin) if found is not None and found.origin else None


def _write_whole(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees all of it or none."""
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
