"""Recorded results: what a room keeps of a run, and the check that nobody wrote in it by hand."""

import dataclasses
import datetime
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

from .claims import TrialResult
from .context import EXHIBITS
from .digests import as_json
from .environment import environment
from .experiment import Experiment
from .runner import Run


class ResultsError(ValueError):
    """A results file that cannot be read, was changed by hand, or no longer follows from its trials."""


def record(run: Run, *, complete: bool = True) -> dict[str, Any]:
    """Give a run as the contents of a results file.

    Args:
        run: what was run.
        complete: whether every trial must be there.

    Raises:
        ResultsError: trials are missing, or ran on stand-ins for data.
    """
    if complete and os.environ.get("ALLYOUNEED_STANDINS"):
        raise ResultsError("a run on stand-ins for data is not recorded: unset ALLYOUNEED_STANDINS")
    if complete and run.is_pilot:
        raise ResultsError(f"a run with seeds {run.seeds[0]} to {run.seeds[-1]} is a pilot, and is not recorded")
    if complete and run.failures:
        names = ", ".join(f"{failure.arm}, seed {failure.seed}" for failure in run.failures)
        raise ResultsError(f"a run with missing trials is not recorded: {names}")
    findings = run.findings()
    contents = {
        "paper": run.experiment.paper,
        "scale": run.scale_name,
        "recorded": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "environment": environment(run.device),
        "claims": [claim.record(findings[claim.id]) for claim in run.experiment.claims],
        "trials": [dataclasses.asdict(trial) for trial in run.trials],
    }
    if shown := _exhibits(run):
        contents["exhibits"] = shown
    return contents | {"checksum": checksum(contents)}


def _exhibits(run: Run) -> dict[str, str]:
    """Give what the first seed's trials left to look at, by arm and name."""
    return {
        f"{record.arm}-{path.name}": path.read_text(encoding="utf-8")
        for record in run.records
        if record.seed == run.seeds[0] and record.log is not None
        for path in sorted((record.log.parent / EXHIBITS).glob("*"))
    }


def checksum(contents: dict[str, Any]) -> str:
    """Hash a results file's contents, its own checksum left out."""
    rest = {key: value for key, value in contents.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_results(path: Path, contents: dict[str, Any]) -> None:
    """Write a results file, whole or not at all.

    Raises:
        ResultsError: a number in it is not finite, which strict JSON cannot hold.
        OSError: it could not be written.
    """
    try:
        text = json.dumps(contents, indent=1, allow_nan=False) + "\n"
    except ValueError as error:
        names = ", ".join(_not_finite(contents))
        raise ResultsError(f"{path} cannot hold what is not finite: {names}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _not_finite(contents: dict[str, Any]) -> list[str]:
    return [
        f"{name} of {trial.arm}, seed {trial.seed}, is {value}"
        for trial in trials_of(contents)
        for name, value in [*trial.metrics.items(), *trial.costs.items()]
        if not math.isfinite(value)
    ]


def read_results(path: Path) -> dict[str, Any]:
    """Read a results file.

    Raises:
        FileNotFoundError: there is none.
        ResultsError: it is not one, or was changed after it was recorded.
    """
    again = f"run `allyouneed run {path.parent.parent.name} --scale {path.stem} --record` to record it anew"
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        recorded = contents["checksum"]
        trials_of(contents)
        for key in ("paper", "scale", "recorded", "environment", "claims"):
            contents[key]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ResultsError(f"{path} is not a results file ({error!r}); {again}") from error
    if recorded != checksum(contents):
        raise ResultsError(f"{path} was changed after it was recorded: its checksum does not fit; {again}")
    return contents


def trials_of(contents: dict[str, Any]) -> list[TrialResult]:
    """Give the trials of a results file."""
    return [TrialResult(**trial) for trial in contents["trials"]]


def judge_again(experiment: Experiment, contents: dict[str, Any]) -> dict[str, Any]:
    """Judge recorded trials anew, after a change of the statistics or of a claim's words; the trials stay as they are.

    Args:
        experiment: with the claims as they are now. A claim that was recorded may be gone.
        contents: of a results file.

    Raises:
        ResultsError: a claim is new, or its test is another than when it was recorded: that takes another run.
    """
    trials = trials_of(contents)
    seeds = range(experiment.scales[contents["scale"]].seeds)
    earlier = {claim["id"]: claim for claim in contents["claims"]}
    claims = [json.loads(json.dumps(claim.record(claim.judge(trials, seeds)))) for claim in experiment.claims]
    for claim in claims:
        then = earlier.get(claim["id"])
        if then is None:
            raise ResultsError(f"{contents['paper']}: claim {claim['id']} was not recorded: it needs a run of its own")
        for key in ("kind", "threshold", "bounds", "relative"):
            if claim[key] != then[key]:
                raise ResultsError(
                    f"{contents['paper']}: the {key} of claim {claim['id']} was {then[key]!r} and is {claim[key]!r}: "
                    "what is tested does not change after a run; give the claim another name, and record it"
                )
    changed = {**contents, "claims": claims, "trials": [dataclasses.asdict(trial) for trial in trials]}
    return changed | {"checksum": checksum(changed)}


def verify(experiment: Experiment, contents: dict[str, Any]) -> None:
    """Judge the recorded trials again and hold the recorded claims to what comes out.

    Raises:
        ResultsError: the trials are not those that the experiment declares, or a claim's wording, numbers or verdict
            differ from the experiment as it is written now.
    """
    trials = trials_of(contents)
    declared = experiment.scales[contents["scale"]]
    seeds = range(declared.seeds)
    there = {(trial.arm, trial.seed): trial.config for trial in trials}
    wanted = {(arm, seed): as_json(config) for seed in seeds for arm, config in declared.arms.items()}
    if other := sorted(key for key in wanted.keys() | there.keys() if wanted.get(key) != there.get(key)):
        names = ", ".join(f"{arm}, seed {seed}" for arm, seed in other)
        raise ResultsError(
            f"{contents['paper']} at {contents['scale']}: what was recorded of {names} is not what the experiment "
            "declares"
        )
    try:
        judged = json.loads(json.dumps([claim.record(claim.judge(trials, seeds)) for claim in experiment.claims]))
    except ValueError as error:
        raise ResultsError(f"{contents['paper']} at {contents['scale']} cannot be judged: {error}") from error
    for now, then in zip(judged, contents["claims"], strict=False):
        if now != then:
            changed = [key for key in now | then if now.get(key) != then.get(key)]
            raise ResultsError(
                f"{contents['paper']} at {contents['scale']}: claim {now['id']} was recorded with another "
                f"{', '.join(changed)} than it has now"
            )
    if len(judged) != len(contents["claims"]):
        raise ResultsError(
            f"{contents['paper']}: {len(contents['claims'])} claims are recorded, there are {len(judged)}"
        )
