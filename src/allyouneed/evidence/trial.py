"""A trial: one arm with one seed, in a folder of its own, finished whole or to be continued."""

import contextlib
import dataclasses
import hashlib
import json
import secrets
import shutil
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from .claims import TrialResult
from .context import Context, seed_everything, write_whole
from .digests import as_json
from .environment import environment

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
        stages: the folder of shared stages; `stages` beside the trial's where None.
    """

    trial: Callable[[Any, Context], Mapping[str, float]]
    arm: str
    seed: int
    config: Any
    folder: Path
    device: str = "cpu"
    precision: str = "32-true"
    checkpoint_seconds: float = 60.0
    stages: Path | None = None

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


def run_trial(task: Task, fresh: bool = False) -> Record:
    """Run a trial, or take its result where it has one.

    Waits while another process runs the same trial. The result appears whole or not at all.

    Args:
        task: the trial.
        fresh: throw away what an earlier run left, unless another process makes it meanwhile.
    """
    import torch

    torch.set_num_threads(1)
    task.folder.parent.mkdir(parents=True, exist_ok=True)
    result_path, log_path = task.folder / "result.json", task.folder / "log.txt"
    # Clocks can be set back; that the result is another attempt's than before the wait cannot be mistaken.
    before = _attempt(result_path)
    with FileLock(task.folder.with_name(task.folder.name + ".lock")):
        task.folder.mkdir(exist_ok=True)
        if fresh and _attempt(result_path) == before:
            shutil.rmtree(task.folder)
            task.folder.mkdir()
        if (result := _kept_result(task)) is not None:
            return Record(task.arm, task.seed, "finished", result, log=log_path, reused=True)
        try:
            config = {"arm": task.arm, "seed": task.seed, "config": as_json(task.config)}
            write_whole(task.folder / "config.json", config)
            write_whole(task.folder / "environment.json", environment(task.device))
            # Line by line, so that the log of a killed trial has all that it said.
            with (
                log_path.open("a", encoding="utf-8", buffering=1) as log,
                contextlib.redirect_stdout(log),
                contextlib.redirect_stderr(log),
            ):
                try:
                    result = _run(task)
                    _keep_result(result_path, result)
                except BaseException:
                    traceback.print_exc()
                    raise
        except (Exception, SystemExit) as error:
            return Record(task.arm, task.seed, "failed", error=f"{type(error).__name__}: {error}", log=log_path)
        for checkpoint in task.folder.glob("checkpoint*.safetensors"):
            checkpoint.unlink()
        return Record(task.arm, task.seed, "finished", result, log=log_path)


def _keep_result(path: Path, result: TrialResult) -> None:
    contents = dataclasses.asdict(result) | {"attempt": secrets.token_hex(8)}
    write_whole(path, contents | {"checksum": _checksum(contents)})


def _attempt(path: Path) -> str | None:
    """Say which attempt a result is of; None where there is none that says."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["attempt"]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _kept_result(task: Task) -> TrialResult | None:
    """Read an earlier result; None where there is none, or it is damaged, was changed, or is another trial's."""
    try:
        contents = json.loads((task.folder / "result.json").read_text(encoding="utf-8"))
        if contents.pop("checksum") != _checksum(contents):
            return None
        del contents["attempt"]
        result = TrialResult(**contents)
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None
    # As JSON has them, in which a tuple is a list.
    config = json.loads(json.dumps(as_json(task.config)))
    return result if (result.arm, result.seed, result.config) == (task.arm, task.seed, config) else None


def _checksum(contents: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def _run(task: Task) -> TrialResult:
    seed_everything(task.seed)
    context = Context(task)
    try:
        metrics = task.trial(task.config, context)
    finally:
        context.close()
    return TrialResult(
        arm=task.arm,
        seed=task.seed,
        config=as_json(task.config),
        metrics={name: _number(name, value) for name, value in metrics.items()},
        costs={name: _number(name, value) for name, value in context.costs.items()},
        seconds=context.seconds,
        stages=context.stages,
    )


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {value!r} of type {type(value).__name__}, which is no number") from error
