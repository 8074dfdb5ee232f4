"""A small experiment whose trials do what a test of the runner needs: learn, fail, exit, die or wait.

It is a module of its own, found on `sys.path`, because the runner's workers are processes that import it.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from allyouneed.evidence import Better, Claim, Context, Experiment, Scale, TrialResult, curves_figure
from allyouneed.training import Loss, TrainingConfig, train

PAUSE = "SAMPLE_PAUSE"
"""Names the variable with the seconds that a training rests after each step, which changes nothing in its result."""


@dataclass(frozen=True)
class SampleConfig:
    """What a trial does.

    Attributes:
        behaviour: "count" is done at once, "learn" trains a network, "wait" takes some seconds.
        size: any number; the "size" metric.
        steps: of the training.
        python_noise: whether Python's own generator takes part. Not where runs with and without the checks of types
            are compared: the checks draw from it, to choose which item of a list they look at.
        seconds: of the waiting.
        marks: a file that is given a line by each trial that begins.
    """

    behaviour: Literal["count", "learn", "wait", "fail", "exit", "kill", "kill once"] = "count"
    size: float = 1.0
    steps: int = 30
    python_noise: bool = False
    seconds: float = 0.0
    marks: str = ""


def trial(config: SampleConfig, context: Context) -> Mapping[str, float]:
    arm = context.folder.parent.name
    earlier = _mark(config, f"{arm} {context.seed} {os.getpid()}\n")
    print(f"{arm} says hello")
    if config.behaviour == "learn":
        return _learn(config, context)
    if config.behaviour == "wait":
        time.sleep(config.seconds)
    elif config.behaviour == "fail":
        raise ArithmeticError(f"size {config.size} is too much")
    elif config.behaviour == "exit":
        sys.exit("the trial wants to leave")
    elif config.behaviour == "kill" or (config.behaviour == "kill once" and not earlier):
        time.sleep(config.seconds)
        os.kill(os.getpid(), signal.SIGKILL)
    context.costs["process"] = os.getpid()
    return {
        "size": config.size + context.seed,
        "threads": torch.get_num_threads(),
        "threads_allowed": float(os.environ.get("OMP_NUM_THREADS", "nan")),
    } | _draws(config)


def _draws(config: SampleConfig) -> dict[str, float]:
    draws = {"torch_draw": float(torch.rand((), dtype=torch.float64)), "numpy_draw": float(np.random.random())}
    return draws | ({"python_draw": random.random()} if config.python_noise else {})


def _mark(config: SampleConfig, line: str) -> bool:
    """Add a line to the marks; say whether this trial had one."""
    if not config.marks:
        return False
    name = line.rsplit(" ", 1)[0]
    earlier = any(mark.rsplit(" ", 1)[0] == name for mark in marks(Path(config.marks)))
    with Path(config.marks).open("a") as file:
        file.write(line)
    return earlier


def marks(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _learn(config: SampleConfig, context: Context) -> Mapping[str, float]:
    """Train with dropout, and with noise of each global generator: a state that was not restored would show."""
    context.checkpoint.every_seconds = 0.0
    pause = float(os.environ.get(PAUSE, "0"))
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.GELU(), nn.Linear(16, 1))

    def loss(model: nn.Module, batch: Tensor) -> Loss:
        noise = torch.from_numpy(np.random.standard_normal(batch.shape)).float()
        if config.python_noise:
            noise += random.gauss()
        return Loss((model(batch + noise) - batch.sum(1, keepdim=True)).square().sum(), len(batch))

    def batches(step: int) -> Tensor:
        return torch.rand(4, 8, generator=torch.Generator().manual_seed(step))

    def log(step: int, steps: int, **values: float) -> None:
        context.log(step, steps, **values)
        time.sleep(pause)

    result = train(
        model,
        batches,
        loss,
        TrainingConfig(config.steps, 0.01),
        fabric=context.fabric,
        checkpoint=context.checkpoint,
        log=log,
    )
    return {
        "loss": float(result.losses[-1]),
        "losses": float(result.losses.double().sum()),
        "weights": sum(float(p.detach().double().sum()) for p in model.parameters()),
    } | _draws(config)


def steps_logged(folder: Path) -> list[int]:
    """Give the steps in a trial's curve, in the order in which they were taken."""
    path = folder / "curve.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def figure(trials: Sequence[TrialResult]) -> Any:
    return curves_figure(
        trials,
        lambda result: {1.0: result.metrics["size"], 2.0: 2 * result.metrics["size"]},
        names={arm: arm for arm in dict.fromkeys(result.arm for result in trials)},
        horizontal="times",
        vertical="size",
    )


SMALLER = Claim(
    id="small_is_smaller",
    statement="What is small [/is] smaller than what is large.",
    source="Section 1",
    test=Better("size", arm="small", than="large"),
    scale_gap="None.",
)
TWO_ARMS = {"small": SampleConfig(size=1.0), "large": SampleConfig(size=2.0)}


def experiment(arms: Mapping[str, SampleConfig], seeds: int = 1, claims: tuple[Claim, ...] = ()) -> Experiment:
    """Give an experiment that has the same arms at every scale."""
    scale = Scale(arms, seeds)
    return Experiment("sample", trial, claims, {"smoke": scale, "laptop": scale, "gpu": scale}, figure)


def command_line(arms: Mapping[str, SampleConfig], *arguments: str, seeds: int = 1) -> None:
    """Run the command line with an experiment of these arms in the place of every room's."""
    from allyouneed import cli, library

    library.experiment_of = lambda paper: experiment(arms, seeds)
    sys.argv = ["allyouneed", *arguments]
    cli.main()


def start_command_line(
    arms: Mapping[str, SampleConfig], *arguments: str, runs: Path, seeds: int = 1, pause: float = 0.0
) -> subprocess.Popen[str]:
    """Start `command_line` as a process that leads a group of its own, as a terminal would."""
    places = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sample; from sample import SampleConfig; "
            f"sample.command_line({dict(arms)!r}, *{arguments!r}, seeds={seeds})",
        ],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(filter(None, places)), "ALLYOUNEED_RUNS": str(runs), PAUSE: str(pause)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def is_running(process: int) -> bool:
    """Say whether there is such a process, and it is no zombie."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
