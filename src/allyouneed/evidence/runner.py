"""The runner: trials as processes, with one thread each, shown while they run."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .claims import Finding, TrialResult
from .experiment import Experiment, Scale, ScaleName
from .trial import Record, Task, digest, run_trial

# A worker that dies takes the pool with it, and innocent trials too. Those that had begun are tried again by
# themselves, and one that dies then is to blame.
_ATTEMPTS = 2


@dataclass(frozen=True)
class Run:
    """What a run of an experiment gave.

    Attributes:
        experiment: what was run.
        scale_name: at which scale.
        scale: the configurations that were run, settings included.
        seeds: the seeds of every arm.
        records: how each trial ended.
        device: on what.
        folder: where the trials are.
    """

    experiment: Experiment
    scale_name: ScaleName
    scale: Scale
    seeds: tuple[int, ...]
    records: tuple[Record, ...]
    device: str
    folder: Path

    @property
    def trials(self) -> list[TrialResult]:
        """The results of the trials that finished, by arm in their order and by seed."""
        order = list(self.scale.arms)
        results = [record.result for record in self.records if record.result is not None]
        return sorted(results, key=lambda result: (order.index(result.arm), result.seed))

    @property
    def failures(self) -> list[Record]:
        """The trials that did not finish."""
        return [record for record in self.records if record.status == "failed"]

    def findings(self) -> dict[str, Finding]:
        """Judge every claim."""
        return {claim.id: claim.judge(self.trials, self.seeds) for claim in self.experiment.claims}


@dataclass
class Progress:
    """How far the trials are, for whoever shows it.

    Attributes:
        tasks: all trials of the run.
        records: those that ended.
    """

    tasks: list[Task]
    records: list[Record] = field(default_factory=list)

    def of_arm(self, arm: str) -> tuple[float, int, float | None]:
        """Give how many of an arm's trials are done (in fractions), of how many, and the latest loss."""
        ended = {(record.arm, record.seed) for record in self.records}
        done, total, loss = 0.0, 0, None
        for task in self.tasks:
            if task.arm != arm:
                continue
            total += 1
            if (task.arm, task.seed) in ended:
                done += 1
            elif (shown := _read_progress(task.folder)) is not None:
                done += 0.99 * shown["step"] / shown["steps"]
                loss = shown["loss"]
        return done, total, loss


def _read_progress(folder: Path) -> Mapping[str, Any] | None:
    try:
        return json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def runs_folder() -> Path:
    """Give the folder of all runs: $ALLYOUNEED_RUNS, or `runs` in the working directory."""
    return Path(os.environ.get("ALLYOUNEED_RUNS") or "runs").resolve()


def usable_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan(
    experiment: Experiment,
    arms: Mapping[str, Any],
    seeds: tuple[int, ...],
    folder: Path,
    *,
    device: str = "cpu",
    precision: str = "32-true",
    checkpoint_seconds: float = 60.0,
) -> list[Task]:
    """Give every trial of a run, each with a folder that no other configuration or code shares.

    Seeds are the outer loop, so that an interrupted run has every arm.
    """
    tasks = []
    for seed in seeds:
        for arm, config in arms.items():
            task = Task(experiment.trial, arm, seed, config, folder, device, precision, checkpoint_seconds)
            tasks.append(dataclasses.replace(task, folder=folder / arm / f"seed{seed}-{digest(task)}"))
    return tasks


def run(
    experiment: Experiment,
    scale_name: ScaleName = "laptop",
    *,
    seeds: int | None = None,
    settings: Mapping[str, str] | None = None,
    workers: int | None = None,
    device: str | None = None,
    precision: str | None = None,
    fresh: bool = False,
    folder: Path | None = None,
    checkpoint_seconds: float = 60.0,
    watch: Callable[[Progress], None] | None = None,
) -> Run:
    """Run every trial that has no result yet, and return all of them.

    Args:
        experiment: what to run.
        scale_name: at which scale.
        seeds: how many seeds; the scale's own number where None.
        settings: changes to every arm's configuration, as text.
        workers: processes at a time; as many as usable cores where None, one on a GPU.
        device: "cpu", "cuda", or what else Lightning Fabric accepts; the scale's own where None.
        precision: as Lightning Fabric names it; the scale's own where None.
        fresh: throw away earlier results of these trials.
        folder: where runs are kept; `runs_folder()` where None.
        checkpoint_seconds: the least time between two checkpoints of a trial.
        watch: called at the start and whenever a trial ends.

    Raises:
        SettingError: as `Experiment.configured` says.
        ValueError: fewer than one seed or worker.
    """
    scale = experiment.configured(scale_name, settings or {})
    device, precision = device or scale.device, precision or scale.precision
    count = scale.seeds if seeds is None else seeds
    workers = (usable_cores() if device == "cpu" else 1) if workers is None else workers
    if count < 1 or workers < 1:
        raise ValueError(f"{count} seeds with {workers} workers: there must be at least one of each")
    all_seeds = tuple(range(count))
    own = (folder or runs_folder()) / experiment.paper / scale_name
    tasks = plan(
        experiment,
        scale.arms,
        all_seeds,
        own,
        device=device,
        precision=precision,
        checkpoint_seconds=checkpoint_seconds,
    )
    progress = Progress(tasks)
    if watch is not None:
        watch(progress)
    with contextlib.closing(_run_all(tasks, min(workers, len(tasks)), fresh)) as records:
        for record in records:
            progress.records.append(record)
            if watch is not None:
                watch(progress)
    return Run(experiment, scale_name, scale, all_seeds, tuple(progress.records), device, own)


def _run_all(tasks: list[Task], workers: int, fresh: bool) -> Generator[Record, None, None]:
    """Run trials in processes; yield each as it ends, and survive the death of a worker."""
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    waiting = {task.name: task for task in tasks}
    deaths = dict.fromkeys(waiting, 0)
    while waiting:
        suspects = [task for name, task in waiting.items() if deaths[name]]
        now = [task for name, task in waiting.items() if not deaths[name]] or suspects[:1]
        begun_before = {task.name: _begun_at(task) for task in now}
        try:
            with parallel_config(backend="loky", inner_max_num_threads=1):
                parallel: Any = Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch="all")
                # What died had begun: it continues from its checkpoint, also under `fresh`.
                for record in parallel(delayed(run_trial)(task, fresh and not deaths[task.name]) for task in now):
                    del waiting[f"{record.arm}, seed {record.seed}"]
                    yield record
        except TerminatedWorkerError as error:
            left = [task for task in now if task.name in waiting]
            # Where none had begun, a worker died of what it was given.
            for task in [task for task in left if _begun_at(task) not in (None, begun_before[task.name])] or left:
                deaths[task.name] += 1
                if deaths[task.name] >= _ATTEMPTS:
                    del waiting[task.name]
                    reason = str(error).splitlines()[0]
                    log = task.folder / "log.txt"
                    yield Record(task.arm, task.seed, "failed", error=f"its process died: {reason}", log=log)
        except BaseException:
            pool = get_reusable_executor(reuse=True)  # pyright: ignore[reportArgumentType]
            pool.shutdown(wait=False, kill_workers=True)
            raise


def _begun_at(task: Task) -> int | None:
    """Give when a trial last began, in nanoseconds of its folder's clock; None where it never did."""
    try:
        return (task.folder / "environment.json").stat().st_mtime_ns
    except FileNotFoundError:
        return None
