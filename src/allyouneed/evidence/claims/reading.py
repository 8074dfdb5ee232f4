"""Reading what is compared out of trials, and saying what is missing."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from .finding import TrialResult
from .words import number, trial_name

LARGEST = 1e150
"""A value beyond this is a diverged trial's: sums over it overflow, so it counts as missing, as infinity does."""


class Place(NamedTuple):
    """A metric, or a cost, of an arm."""

    arm: str
    metric: str


def read(
    places: Sequence[Place], trials: Iterable[TrialResult], seeds: Sequence[int]
) -> tuple[dict[tuple[Place, int], float], list[str]]:
    """Give the value at each place, of every seed that there is, and say which of `places` × `seeds` have none.

    Raises:
        ValueError: no trial of the arms reports a metric, two trials are of one arm and seed, or the seeds are none or
            not distinct.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be one or more, each once, got {list(seeds)}")
    arms = list(dict.fromkeys(place.arm for place in places))
    results: dict[tuple[str, int], TrialResult] = {}
    for trial in trials:
        if trial.arm in arms:
            if (trial.arm, trial.seed) in results:
                raise ValueError(f"two results for {trial_name(trial.arm, trial.seed)}; a trial is judged once")
            results[trial.arm, trial.seed] = trial
    reported = {key: {**trial.costs, **trial.metrics} for key, trial in results.items()}
    known = sorted({name for names in reported.values() for name in names})
    for metric in dict.fromkeys(place.metric for place in places):
        if results and metric not in known:
            raise ValueError(
                f"no trial of {', '.join(arms)} reports {metric!r}; "
                f"known metrics and costs: {', '.join(known) or 'none'}"
            )
    values, missing = {}, []
    for place in places:
        for seed in seeds:
            if (place.arm, seed) not in results:
                missing.append(trial_name(place.arm, seed))
            elif place.metric not in reported[place.arm, seed]:
                missing.append(f"{trial_name(place.arm, seed)}: no {place.metric}")
        for (arm, seed), names in reported.items():
            if arm == place.arm and place.metric in names:
                values[place, seed] = float(names[place.metric])
    return values, list(dict.fromkeys(missing))


def complete_rows(
    places: Sequence[Place],
    positive: Collection[Place],
    trials: Iterable[TrialResult],
    seeds: Sequence[int],
) -> tuple[dict[int, dict[Place, float]], list[str]]:
    """Give the values at the places by seed, for each of `seeds` that has them all; and what is missing.

    The values at the places in `positive` must be above 0.

    Raises:
        ValueError: as `read`.
    """
    values, missing = read(places, trials, seeds)
    usable: dict[tuple[Place, int], float] = {}
    for place in places:
        for seed in seeds:
            value = values.get((place, seed))
            if value is None:
                continue
            where = f"{trial_name(place.arm, seed)}: {place.metric} is {number(value)}"
            if not abs(value) <= LARGEST:
                missing.append(where)
            elif place in positive and value <= 0:
                missing.append(f"{where}, not above 0")
            else:
                usable[place, seed] = value
    rows = {
        seed: {place: usable[place, seed] for place in places}
        for seed in seeds
        if all((place, seed) in usable for place in places)
    }
    return rows, missing
