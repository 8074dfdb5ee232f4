"""What shows that a claim can fail: trials of a broken room, and whether they turn the claim's verdict."""

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from allyouneed import catalog
from allyouneed.evidence import Experiment, Finding, Scale, TrialResult, read_results, run, trials_of
from allyouneed.library import experiment_of

Sabotage = Callable[[list[TrialResult]], list[TrialResult]]
"""Gives a broken room's trials, made of those that were recorded."""
Breakage = Callable[[], tuple[list[TrialResult], list[TrialResult]]]
"""Runs small trials for real, and gives those of the whole room and those of the broken one."""


def room(name: str) -> tuple[Experiment, list[TrialResult]]:
    """Give a room's experiment, and the trials that it recorded at the laptop scale."""
    paper = next(paper for paper in catalog.papers() if paper.room == name)
    return experiment_of(paper), trials_of(read_results(paper.results("laptop")))


def judged(experiment: Experiment, claim_id: str, trials: list[TrialResult]) -> Finding:
    """Put trials, of whatever seeds, to the test of one claim."""
    claim = next(claim for claim in experiment.claims if claim.id == claim_id)
    return claim.judge(trials, sorted({trial.seed for trial in trials}))


def check_turns(experiment: Experiment, claim_id: str, whole: list[TrialResult], broken: list[TrialResult]) -> None:
    """Check that what is broken turns a claim's verdict: what held no longer does, what did not hold is another thing.

    Raises:
        AssertionError: the verdict is the same.
    """
    before, after = judged(experiment, claim_id, whole), judged(experiment, claim_id, broken)
    assert not before.missing and not after.missing, (before.missing, after.missing)
    assert before.verdict != after.verdict, f"{claim_id} is {after.verdict}, broken as it is: {after.measured}"


def tried(experiment: Experiment, arms: Mapping[str, Any], seeds: int) -> list[TrialResult]:
    """Run some arms for real, in this process, with configurations small enough for a test.

    A test that breaks the room patches its parts before it calls this.
    """
    small = dataclasses.replace(experiment, scales={**experiment.scales, "smoke": Scale(dict(arms), seeds)}, claims=())
    with tempfile.TemporaryDirectory() as folder:
        done = run(small, "smoke", folder=Path(folder), in_process=True)
    assert not done.failures, [failure.error for failure in done.failures]
    return done.trials


def exchanged(first: str, second: str) -> Sabotage:
    """Exchange what two arms gave: the method becomes the baseline."""
    names = {first: second, second: first}

    def sabotage(trials: list[TrialResult]) -> list[TrialResult]:
        assert {first, second} <= {trial.arm for trial in trials}
        return [dataclasses.replace(trial, arm=names.get(trial.arm, trial.arm)) for trial in trials]

    return sabotage


def as_if(arm: str, other: str) -> Sabotage:
    """Give an arm what another gave, as if both did the same."""

    def sabotage(trials: list[TrialResult]) -> list[TrialResult]:
        assert {arm, other} <= {trial.arm for trial in trials}
        kept = [trial for trial in trials if trial.arm != arm]
        return [*kept, *(dataclasses.replace(trial, arm=arm) for trial in kept if trial.arm == other)]

    return sabotage


def in_turn(*sabotages: Sabotage) -> Sabotage:
    """Do one after the other."""

    def sabotage(trials: list[TrialResult]) -> list[TrialResult]:
        for one in sabotages:
            trials = one(trials)
        return trials

    return sabotage


def multiplied(arm: str, name: str, factor: float) -> Sabotage:
    """Multiply one of an arm's metrics or costs."""

    def sabotage(trials: list[TrialResult]) -> list[TrialResult]:
        return [
            _with(trial, {name: factor * {**trial.metrics, **trial.costs}[name]}) if trial.arm == arm else trial
            for trial in trials
        ]

    return sabotage


def given(arm: str, **values: float | str) -> Sabotage:
    """Give an arm's metrics or costs other values: a number, or another metric or cost of the same trial, by name."""

    def sabotage(trials: list[TrialResult]) -> list[TrialResult]:
        assert arm in {trial.arm for trial in trials}
        return [_with(trial, values) if trial.arm == arm else trial for trial in trials]

    return sabotage


def _with(trial: TrialResult, values: Mapping[str, float | str]) -> TrialResult:
    there = {**trial.metrics, **trial.costs}
    assert values.keys() <= there.keys(), f"{values.keys() - there.keys()} is not in {trial.arm}"
    new = {name: there[value] if isinstance(value, str) else value for name, value in values.items()}
    return dataclasses.replace(
        trial,
        metrics={name: new.get(name, value) for name, value in trial.metrics.items()},
        costs={name: new.get(name, value) for name, value in trial.costs.items()},
    )
