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
from .digests import digest
from .experiment import Experiment, Scale, ScaleName
from .trial import Record, Task, run_trial

# A worker that dies takes the pool with it, and innocent trials too. Those that had begun are tried again by
# themselves, and one that dies then is to blame.
_ATTEMPTS = 2
# What tells the libraries of numerics how many threads they may have.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

PILOT_SEEDS_FROM = 1_000
"""The first seed of pilots, which no recorded run has."""


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
    def is_pilot(self) -> bool:
        """Whether the seeds are others than a recorded run's."""
        return self.seeds[0] >= PILOT_SEEDS_FROM

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
                done += 0.99 * shown[0]
                loss = shown[1]
        return done, total, loss


def _read_progress(folder: Path) -> tuple[float, float | None] | None:
    """Read how much of a trial is done, and its latest loss; None where nothing can be read."""
    try:
        shown = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        return min(1.0, max(0.0, shown["step"] / shown["steps"])), shown["loss"]
    except (OSError, ValueError, TypeError, KeyError, ZeroDivisionError):
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
    stages: Path | None = None,
) -> list[Task]:
    """Give every trial of a run, each with a folder that no other configuration or code shares.

    Seeds are the outer loop, so that an interrupted run has every arm.
    """
    tasks = []
    for seed in seeds:
        for arm, config in arms.items():
            task = Task(experiment.trial, arm, seed, config, folder, device, precision, checkpoint_seconds, stages)
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
    pilot: bool = False,
    in_process: bool = False,
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
        pilot: try the arms on other seeds than those of recorded runs, to see how fine the claims' tests measure.
        in_process: run the trials one after the other in this process, whose death they would share.
        watch: called at the start and whenever a trial ends.

    Raises:
        SettingError: as `Experiment.configured` says.
        ValueError: fewer than one seed or worker, or a time between checkpoints that is negative.
    """
    scale = experiment.configured(scale_name, settings or {})
    device, precision = device or scale.device, precision or scale.precision
    count = scale.seeds if seeds is None else seeds
    workers = (usable_cores() if device == "cpu" else 1) if workers is None else workers
    if count < 1 or workers < 1:
        raise ValueError(f"{count} seeds with {workers} workers: there must be at least one of each")
    if not checkpoint_seconds >= 0:
        raise ValueError(f"checkpoint_seconds is {checkpoint_seconds}: it must be at least 0")
    all_seeds = tuple(range(PILOT_SEEDS_FROM, PILOT_SEEDS_FROM + count) if pilot else range(count))
    root = folder or runs_folder()
    own = root / experiment.paper / scale_name
    tasks = plan(
        experiment,
        scale.arms,
        all_seeds,
        own,
        device=device,
        precision=precision,
        checkpoint_seconds=checkpoint_seconds,
        stages=root / "stages",
    )
    progress = Progress(tasks)
    if watch is not None:
        watch(progress)
    with contextlib.closing(_run_all(tasks, min(workers, len(tasks)), fresh, in_process)) as records:
        for record in records:
            progress.records.append(record)
            if watch is not None:
                watch(progress)
    return Run(experiment, scale_name, scale, all_seeds, tuple(progress.records), device, own)


def _run_all(tasks: list[Task], workers: int, fresh: bool, in_process: bool) -> Generator[Record, None, None]:
    """Run trials in processes; yield each as it ends, and survive the death of a worker."""
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    if in_process:
        yield from (run_trial(task, fresh) for task in tasks)
        return
    waiting = {task.name: task for task in tasks}
    deaths = dict.fromkeys(waiting, 0)
    while waiting:
        suspects = [task for name, task in waiting.items() if deaths[name]]
        now = [task for name, task in waiting.items() if not deaths[name]] or suspects[:1]
        begun_before = {task.name: _begun_at(task) for task in now}
        # What died had begun: it continues from its checkpoint, also under `fresh`.
        freshly = [fresh and not deaths[task.name] for task in now]
        try:
            for record in _in_processes(now, freshly, workers):
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


def _in_processes(tasks: list[Task], fresh: list[bool], workers: int) -> Generator[Record, None, None]:
    """Run trials in so many processes of one thread each, also where it is one; yield each as it ends.

    Raises:
        TerminatedWorkerError: a process died; the others' trials have been given up too.
    """
    from joblib.externals.loky import ProcessPoolExecutor, as_completed

    # Processes of this call alone: those of an earlier one would have the code of then.
    executor = ProcessPoolExecutor(workers, env=dict.fromkeys(_THREADS, "1"))
    try:
        futures = [executor.submit(run_trial, *given) for given in zip(tasks, fresh, strict=True)]
        for future in as_completed(futures):
            yield future.result()
    except BaseException:
        executor.shutdown(wait=False, kill_workers=True)
        raise
    executor.shutdown()


def _begun_at(task: Task) -> int | None:
    """Give when a trial last began, in nanoseconds of its folder's clock; None where it never did."""
    try:
        return (task.folder / "environment.json").stat().st_mtime_ns
    except FileNotFoundError:
        return None
