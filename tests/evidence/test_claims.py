import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from allyouneed.evidence.claims import (
    Better,
    Claim,
    ClaimTest,
    Equivalent,
    Exact,
    Finding,
    Reading,
    Resolution,
    Trend,
    TrialResult,
)
from allyouneed.evidence.statistics import Interval, detectable, mean_interval

FINITE = st.floats(-1e6, 1e6)
# Values that a broken or diverged trial may report.
ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True)


def trial(arm: str, seed: int, value: float, metric: str = "loss", **costs: float) -> TrialResult:
    return TrialResult(arm=arm, seed=seed, config={}, metrics={metric: value}, costs=costs, seconds=1.0)


def results(**values: Sequence[float]) -> list[TrialResult]:
    """Trials by arm: the n-th value is seed n's."""
    return [trial(arm, seed, value) for arm, row in values.items() for seed, value in enumerate(row)]


def judge(test: ClaimTest, seeds: int = 3, /, **values: Sequence[float]) -> Finding:
    return test.judge(results(**values), range(seeds))


def strict(finding: Finding) -> dict[str, Any]:
    return json.loads(json.dumps(finding.to_json(), allow_nan=False))


# Better


def test_better_known_answer():
    finding = judge(Better("loss", "a", "b"), a=[1.0, 2.0, 3.0], b=[3.0, 5.0, 7.0])
    # Differences −2, −3, −4: mean −3, standard error 1/√3, t(0.975; 2) = 4.302653.
    half = 4.302652729749462 / math.sqrt(3)
    assert finding.samples == {0: -2.0, 1: -3.0, 2: -4.0}
    assert finding.measured == -3.0
    assert finding.interval is not None
    assert (finding.interval.low, finding.interval.high) == pytest.approx((-3 - half, -3 + half))
    assert finding.interval.confidence == 0.95
    assert finding.verdict == "reproduced"
    assert finding.bounds == (None, 0.0)
    assert finding.threshold == "a − b on loss < 0"
    assert finding.missing == ()
    assert finding.note == ""


@pytest.mark.parametrize(
    ("test", "verdict", "bounds", "threshold"),
    [
        (Better("loss", "a", "b"), "reproduced", (None, 0.0), "a − b on loss < 0"),
        (Better("loss", "a", "b", margin=0.5), "reproduced", (None, -0.5), "a − b on loss < −0.5"),
        (Better("loss", "a", "b", margin=1.0), "inconclusive", (None, -1.0), "a − b on loss < −1"),
        (Better("loss", "a", "b", margin=1.5), "contradicted", (None, -1.5), "a − b on loss < −1.5"),
        (Better("loss", "a", "b", direction="higher"), "contradicted", (0.0, None), "a − b on loss > 0"),
        (Better("loss", "a", "b", direction="higher", margin=-1.5), "reproduced", (-1.5, None), "a − b on loss > −1.5"),
        (Better("loss", "b", "a"), "contradicted", (None, 0.0), "b − a on loss < 0"),
        (Better("loss", "b", "a", margin=-1.5), "reproduced", (None, 1.5), "b − a on loss < 1.5"),
        (Better("loss", "b", "a", direction="higher", margin=0.5), "reproduced", (0.5, None), "b − a on loss > 0.5"),
        (Better("loss", "a", 3.5), "reproduced", (None, 0.0), "a − 3.5 on loss < 0"),
        (Better("loss", "a", 2.5, margin=0.25), "contradicted", (None, -0.25), "a − 2.5 on loss < −0.25"),
        (Better("loss", "a", "b", margin=0.2, relative=True), "reproduced", (None, -0.2), "a / b − 1 on loss < −0.2"),
        (Better("loss", "a", "b", margin=0.3, relative=True), "contradicted", (None, -0.3), "a / b − 1 on loss < −0.3"),
        (Better("loss", "a", 4, margin=0.2, relative=True), "reproduced", (None, -0.2), "a / 4 − 1 on loss < −0.2"),
    ],
)
def test_better_verdicts(test: Better, verdict: str, bounds: tuple[float | None, float | None], threshold: str):
    # a is 1 below b, a quarter of it; every seed nearly alike.
    finding = judge(test, a=[2.999, 3.0, 3.001], b=[4.001, 4.0, 3.999])
    assert (finding.verdict, finding.bounds, finding.threshold) == (verdict, bounds, threshold)


def test_relative_samples_are_ratios():
    finding = judge(Better("loss", "a", "b", relative=True), a=[1.0, 3.0, 9.0], b=[2.0, 4.0, 6.0])
    assert finding.samples == pytest.approx({0: -0.5, 1: -0.25, 2: 0.5})
    # The geometric mean, with Student's interval of the logarithms.
    logarithms = [math.log(0.5), math.log(0.75), math.log(1.5)]
    expected = mean_interval(logarithms)
    assert finding.measured == pytest.approx((0.5 * 0.75 * 1.5) ** (1 / 3) - 1)
    assert finding.interval is not None
    assert finding.interval.low == pytest.approx(math.expm1(expected.low))
    assert finding.interval.high == pytest.approx(math.expm1(expected.high))


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
def test_a_ratio_of_arms_that_are_alike_is_no_advantage(noise: float):
    # The mean of a / b − 1 would be above 0 for either order of the arms, the more so the more noise there is.
    generator = np.random.default_rng(0)
    repeats, wrong = 2_000, 0
    for a, b in np.exp(noise * generator.standard_normal((repeats, 2, 5))).tolist():
        findings = [
            judge(Better("loss", *order, direction="higher", relative=True), 5, a=a, b=b) for order in ("ab", "ba")
        ]
        wrong += sum(finding.verdict == "reproduced" for finding in findings)
        assert findings[0].measured is not None and findings[1].measured is not None
        assert (1 + findings[0].measured) * (1 + findings[1].measured) == pytest.approx(1)
    # 2.5 % on either side, within four standard errors.
    assert wrong / repeats == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / repeats))


def test_a_ratio_below_nothing_is_refused():
    with pytest.raises(ValueError, match=r"margin 1\.5 is too large"):
        Better("loss", "a", "b", margin=1.5, relative=True)
    with pytest.raises(ValueError, match=r"relative tolerance must be below 1, got 1\.0"):
        Equivalent("loss", "a", "b", tolerance=1.0, relative=True)


def test_pairing_matters():
    # The seeds differ far more than the arms do.
    baseline = [1.0, 5.0, 9.0, 13.0, 17.0]
    ours = [value - 0.1 + 0.01 * (-1) ** place for place, value in enumerate(baseline)]
    unpaired = stats.ttest_ind(ours, baseline)
    assert unpaired.pvalue > 0.9  # pyright: ignore[reportAttributeAccessIssue]
    assert judge(Better("loss", "a", "b"), 5, a=ours, b=baseline).verdict == "reproduced"
    # The same values, matched with other seeds.
    shuffled = judge(Better("loss", "a", "b"), 5, a=ours[1:] + ours[:1], b=baseline)
    assert shuffled.verdict == "inconclusive"


def test_pairs_are_found_by_seed_not_by_order():
    trials = results(a=[1.0, 2.0, 3.0], b=[1.5, 2.6, 3.7])
    finding = Better("loss", "a", "b").judge(trials[::-1], [2, 0, 1])
    assert finding.samples == pytest.approx({2: -0.7, 0: -0.5, 1: -0.6})


def test_an_undecided_finding_says_what_it_would_have_decided():
    finding = judge(Better("loss", "a", "b"), 3, a=[1.0, 2.0, 3.0], b=[2.0, 1.9, 1.0])
    assert finding.verdict == "inconclusive"
    found = re.fullmatch(
        r"3 seeds with this spread decide a distance of ([\d.]+) from the bound in 80 % of runs", finding.note
    )
    assert found is not None
    assert float(found[1]) == pytest.approx(detectable(list(finding.samples.values())), rel=0.05)


@settings(deadline=None)
@given(
    st.lists(FINITE, min_size=3, max_size=11),
    st.sampled_from(["lower", "higher"]),
    st.floats(0, 1e6),
)
def test_a_broken_method_is_never_better(values: list[float], direction: Any, margin: float):
    test = Better("loss", "a", "b", margin=margin, direction=direction)
    finding = judge(test, len(values), a=values, b=values)
    assert finding.measured == 0.0
    assert finding.verdict == ("inconclusive" if margin == 0 else finding.verdict)
    assert finding.verdict != "reproduced"


@given(st.lists(FINITE, min_size=3, max_size=9), st.lists(FINITE, min_size=9, max_size=9), st.floats(-10, 10))
def test_the_two_directions_mirror_each_other(ours: list[float], theirs: list[float], margin: float):
    theirs = theirs[: len(ours)]
    lower = judge(Better("loss", "a", "b", margin=margin), len(ours), a=ours, b=theirs)
    higher = judge(Better("loss", "b", "a", margin=margin, direction="higher"), len(ours), a=ours, b=theirs)
    assert lower.verdict == higher.verdict
    # Contradicting a claim at some margin is reproducing its opposite.
    opposite = judge(Better("loss", "a", "b", margin=0.0 - margin, direction="higher"), len(ours), a=ours, b=theirs)
    flipped = {"reproduced": "contradicted", "contradicted": "reproduced", "inconclusive": "inconclusive"}
    assert opposite.verdict == flipped[lower.verdict]


@pytest.mark.parametrize("margin", [0.05, -0.05, 0.0, 0.1])
@pytest.mark.parametrize("relative", [False, True])
def test_an_interval_at_the_boundary_is_inconclusive(margin: float, relative: bool):
    # Every seed alike and exactly on the margin in decimals, though not in binary: as floats, 0.35 − 0.3 < 0.05.
    for reference in (0.3, 1.0, 7.0):
        ours = reference * (1 + margin) if relative else round(reference + margin, 2)
        finding = judge(
            Better("loss", "a", "b", margin=margin, direction="higher", relative=relative),
            a=[ours] * 3,
            b=[reference] * 3,
        )
        assert finding.verdict == "inconclusive"
        assert finding.deterministic
        assert finding.interval is None


def test_what_every_seed_repeats_is_deterministic():
    finding = judge(Better("loss", "a", "b"), a=[1.0] * 3, b=[2.0] * 3)
    assert (finding.verdict, finding.deterministic, finding.interval, finding.half_width) == (
        "reproduced",
        True,
        None,
        0.0,
    )
    assert not judge(Better("loss", "a", "b"), a=[1.0, 1.0, 1.1], b=[2.0] * 3).deterministic


def test_an_interval_just_inside_the_boundary_is_conclusive():
    for margin, verdict in ((1 - 1e-12, "reproduced"), (1 + 1e-12, "contradicted")):
        assert judge(Better("loss", "a", "b", margin=margin), a=[1.0] * 3, b=[2.0] * 3).verdict == verdict


# Equivalent


def test_equivalent_known_answer():
    # Differences −0.1, 0, 0.1: standard error 0.1/√3, t(0.95; 2) = 2.919986, so the half width is 0.168585.
    ours, theirs = [0.9, 1.0, 1.1], [1.0, 1.0, 1.0]
    finding = judge(Equivalent("loss", "a", "b", tolerance=0.1686), a=ours, b=theirs)
    assert finding.verdict == "reproduced"
    assert finding.interval is not None
    assert finding.interval.confidence == 0.90
    assert finding.interval.high == pytest.approx(0.16858545, abs=1e-8)
    assert finding.bounds == (-0.1686, 0.1686)
    assert finding.threshold == "|a − b| on loss < 0.1686"
    assert judge(Equivalent("loss", "a", "b", tolerance=0.1685), a=ours, b=theirs).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("shift", "verdict"),
    [
        (0.0, "reproduced"),
        (0.9, "reproduced"),
        (1.0, "inconclusive"),
        (1.1, "contradicted"),
        (-1.0, "inconclusive"),
        (-1.1, "contradicted"),
    ],
)
def test_equivalent_on_both_sides(shift: float, verdict: str):
    theirs = [1.0, 2.0, 3.0]
    ours = [value + shift for value in theirs]
    assert judge(Equivalent("loss", "a", "b", tolerance=1.0), a=ours, b=theirs).verdict == verdict


def test_equivalent_to_a_fixed_value_and_relative():
    values = [9.99, 10.0, 10.01]
    assert judge(Equivalent("loss", "a", 10.0, tolerance=0.05), a=values).verdict == "reproduced"
    relative = judge(Equivalent("loss", "a", 10, tolerance=0.005, relative=True), a=values)
    assert relative.verdict == "reproduced"
    assert relative.threshold == "|a / 10 − 1| on loss < 0.005"
    assert relative.samples == pytest.approx({0: -0.001, 1: 0.0, 2: 0.001})


def one_sided(differences: Sequence[float], tolerance: float) -> tuple[float, float]:
    """The p-values of the two one-sided tests: that the mean is at most −tolerance, that it is at least tolerance."""
    above: Any = stats.ttest_1samp(differences, -tolerance, alternative="greater")
    below: Any = stats.ttest_1samp(differences, tolerance, alternative="less")
    return float(above.pvalue), float(below.pvalue)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(3, 9),
    st.floats(-3, 3),
    st.floats(0.01, 3),
    st.floats(0.1, 4),
    st.integers(0, 2**32),
)
def test_equivalent_decides_as_two_one_sided_tests(
    count: int, shift: float, spread: float, tolerance: float, seed: int
):
    generator = np.random.default_rng(seed)
    theirs = generator.normal(5.0, 10.0, size=count)
    ours = theirs + generator.normal(shift, spread, size=count)
    p_above, p_below = one_sided((ours - theirs).tolist(), tolerance)
    # At the very boundary, rounding decides either side.
    assume(all(abs(p - 0.05) > 1e-6 and abs(p - 0.95) > 1e-6 for p in (p_above, p_below)))
    finding = judge(Equivalent("loss", "a", "b", tolerance), count, a=ours.tolist(), b=theirs.tolist())
    assert (finding.verdict == "reproduced") == (p_above < 0.05 and p_below < 0.05)
    assert (finding.verdict == "contradicted") == (p_above > 0.95 or p_below > 0.95)


def test_equivalent_is_judged_at_ninety_percent():
    differences = np.random.default_rng(1).normal(size=12).tolist()
    finding = judge(Equivalent("loss", "a", 0.0, tolerance=5.0), 12, a=differences)
    assert finding.interval == mean_interval(differences, 0.90)


# Trend


def power_law_rows(exponent: float, noise: float, seeds: int) -> dict[str, list[float]]:
    generator = np.random.default_rng(3)
    return {
        arm: [5.0 * x**exponent * math.exp(generator.normal(0, noise)) for _ in range(seeds)]
        for arm, x in SIZES.items()
    }


SIZES = {"small": 1.0, "medium": 4.0, "large": 16.0, "huge": 64.0}


def test_power_law_trend_recovers_its_exponent():
    finding = judge(
        Trend("loss", SIZES, "power", above=-0.8, below=-0.6, least_r_squared=0.9),
        5,
        **power_law_rows(-0.7, 0.03, 5),
    )
    assert finding.verdict == "reproduced"
    assert finding.interval is not None
    assert finding.interval.low <= -0.7 <= finding.interval.high
    assert finding.interval.confidence == 0.95
    assert finding.bounds == (-0.8, -0.6)
    assert finding.threshold == "−0.8 < exponent of loss as a power of x < −0.6"
    assert finding.note == "R² 1 (of the mean over seeds)"


def test_linear_and_logarithmic_slopes():
    x = {"a": 1.0, "b": 2.0, "c": 4.0}
    rows = {arm: [3.0 * value + seed for seed in range(3)] for arm, value in x.items()}
    linear = judge(Trend("loss", x, "linear", above=2.9, below=3.1), **rows)
    assert linear.samples == pytest.approx({0: 3.0, 1: 3.0, 2: 3.0})
    assert (linear.verdict, linear.note) == ("reproduced", "R² 1 (of the mean over seeds)")
    assert linear.threshold == "2.9 < slope of loss on x < 3.1"
    rows = {arm: [2.0 * math.log(value) - seed for seed in range(3)] for arm, value in x.items()}
    logarithmic = judge(Trend("loss", x, "logarithmic", below=0.0), **rows)
    assert logarithmic.samples == pytest.approx({0: 2.0, 1: 2.0, 2: 2.0})
    assert logarithmic.verdict == "contradicted"
    assert logarithmic.threshold == "slope of loss on ln x < 0"
    assert logarithmic.bounds == (None, 0.0)


def test_a_gap_over_training_is_a_trend():
    # Both arms fall; the lead of one falls as 1 / step.
    steps = (100, 200, 400, 800)
    trials = [
        TrialResult(
            arm,
            seed,
            {},
            {f"loss_at_{step}": 5 - math.log(step) / 7 + 0.01 * seed + lead * 40 / step for step in steps},
            {},
            1.0,
        )
        for arm, lead in (("late", 1.0), ("early", 0.0))
        for seed in range(3)
    ]
    at = {Reading("late", minus="early", metric=f"loss_at_{step}"): float(step) for step in steps}
    closes = Trend("loss", at, "power", above=-1.1, below=-0.9)
    assert closes.arms == ("late", "early")
    finding = closes.judge(trials, range(3))
    assert finding.samples == pytest.approx({0: -1.0, 1: -1.0, 2: -1.0})
    assert finding.verdict == "reproduced"
    assert finding.threshold == "−1.1 < exponent of gap in loss as a power of x < −0.9"
    # A gap that changes its sign follows no power law.
    crossed = {Reading("early", minus="late", metric=f"loss_at_{step}"): float(step) for step in steps}
    finding = replace(closes, arms_at=crossed).judge(trials, range(3))
    assert finding.verdict == "inconclusive"
    assert finding.missing[0].startswith("seed 0: a gap is −0.4")


def test_order_of_arms_is_that_of_their_x():
    # Listed in another order than the trials come in.
    x = {"c": 4.0, "a": 1.0, "b": 2.0}
    finding = judge(Trend("loss", x, "linear", above=0.0), a=[1, 1.1, 1.2], b=[2, 2.1, 2.2], c=[4, 4.1, 4.2])
    assert finding.samples == pytest.approx({0: 1.0, 1: 1.0, 2: 1.0})
    assert finding.threshold == "slope of loss on x > 0"


def test_a_law_that_does_not_fit_is_inconclusive():
    # Slope 0.25 through residuals that dwarf it: R² = 2 · 0.25² / 51.17.
    rows = {"a": [0.0, 0.01, 0.02], "b": [9.0, 9.01, 9.02], "c": [0.5, 0.51, 0.52]}
    x = {"a": 0.0, "b": 1.0, "c": 2.0}
    assert judge(Trend("loss", x, "linear", above=0.1, least_r_squared=0.0), **rows).verdict == "reproduced"
    assert judge(Trend("loss", x, "linear", above=0.1), **rows).verdict == "inconclusive"
    finding = judge(Trend("loss", x, "linear", above=0.1, least_r_squared=0.5), **rows)
    assert finding.verdict == "inconclusive"
    assert finding.note == ("R² 0.00244 (of the mean over seeds) is below 0.5: a linear law does not describe loss")


@pytest.mark.parametrize("law", ["linear", "logarithmic", "power"])
@given(value=st.floats(1e-3, 1e3))
def test_a_level_metric_has_no_trend(law: Any, value: float):
    x = {"a": 1.0, "b": 2.0, "c": 3.0}
    for bound in ({"above": 0.0}, {"below": 0.0}):
        finding = judge(Trend("loss", x, law, **bound), a=[value] * 3, b=[value] * 3, c=[value] * 3)
        assert finding.measured == 0.0
        assert finding.verdict == "inconclusive"
    assert (
        judge(Trend("loss", x, law, above=0.1), a=[value] * 3, b=[value] * 3, c=[value] * 3).verdict == "contradicted"
    )


@pytest.mark.parametrize("law", ["linear", "logarithmic", "power"])
@given(slope=st.floats(0.1, 10), offset=st.floats(-100, 100))
def test_a_trend_exactly_on_its_bound_is_inconclusive(law: Any, slope: float, offset: float):
    x = {"a": 0.3, "b": 0.7, "c": 1.1, "d": 7.0}
    values = {
        "linear": lambda at: slope * at + offset,
        "logarithmic": lambda at: slope * math.log(at) + offset,
        "power": lambda at: 3.0 * at**slope,
    }[law]
    rows = {arm: [values(at)] * 3 for arm, at in x.items()}
    assert judge(Trend("loss", x, law, above=slope), **rows).verdict == "inconclusive"
    assert judge(Trend("loss", x, law, above=slope - 0.001), **rows).verdict == "reproduced"


def test_a_seed_that_lacks_an_arm_is_not_fitted():
    trials = [*results(a=[1.0, 1.0, 1.0, 1.0], b=[2.0, 2.1, 2.2, 2.3], c=[3.0, 3.1, 3.2])]
    finding = Trend("loss", {"a": 1.0, "b": 2.0, "c": 3.0}, "linear", above=0.0).judge(trials, range(4))
    assert finding.verdict == "inconclusive"
    assert finding.missing == ("c, seed 3",)
    assert set(finding.samples) == {0, 1, 2}
    assert finding.measured == pytest.approx(1.05)
    assert "R²" in finding.note


def test_a_power_law_of_a_value_without_logarithm_is_missing():
    rows = {"a": [1.0, 1.0, 1.0], "b": [2.0, 2.1, 0.0], "c": [4.0, 4.1, 4.2]}
    finding = judge(Trend("loss", {"a": 1.0, "b": 2.0, "c": 4.0}, "power", above=0.0), **rows)
    assert finding.verdict == "inconclusive"
    assert finding.missing == ("b, seed 2: loss is 0, not above 0",)


# Exact


@pytest.mark.parametrize(
    ("bounds", "value", "holds"),
    [
        ({"at_most": 3}, 3.0, True),
        ({"at_most": 3}, math.nextafter(3.0, 4.0), False),
        ({"at_least": 3}, 3.0, True),
        ({"at_least": 3}, math.nextafter(3.0, 2.0), False),
        ({"equals": 3}, 3.0, True),
        ({"equals": 3}, math.nextafter(3.0, 4.0), False),
        ({"equals": 3}, math.nextafter(3.0, 2.0), False),
        ({"at_least": 2, "at_most": 3}, 2.0, True),
        ({"at_least": 2, "at_most": 3}, 3.0, True),
        ({"at_least": 2, "at_most": 3}, 1.9, False),
        ({"at_least": 2, "at_most": 3}, 3.1, False),
        ({"at_most": 0.0}, 5e-324, False),
    ],
)
def test_exact_includes_its_boundaries(bounds: dict[str, float], value: float, holds: bool):
    finding = judge(Exact("loss", ("a",), **bounds), 1, a=[value])
    assert finding.verdict == ("reproduced" if holds else "contradicted")
    assert finding.measured == value
    assert finding.interval == Interval(value, value, 1.0)
    assert finding.samples == {"a, seed 0": value}


@pytest.mark.parametrize(
    ("bounds", "worst", "threshold", "region"),
    [
        ({"at_most": 0.5}, 4.0, "loss of a, b ≤ 0.5", (None, 0.5)),
        ({"at_least": 0.5}, -1.0, "loss of a, b ≥ 0.5", (0.5, None)),
        ({"equals": 0.5}, 4.0, "loss of a, b = 0.5", (0.5, 0.5)),
        ({"at_least": 1.6, "at_most": 4.1}, -1.0, "1.6 ≤ loss of a, b ≤ 4.1", (1.6, 4.1)),
    ],
)
def test_exact_measures_the_worst_value(
    bounds: dict[str, float], worst: float, threshold: str, region: tuple[float | None, float | None]
):
    finding = judge(Exact("loss", ("a", "b"), **bounds), 2, a=[1.0, 4.0], b=[2.0, -1.0], other=[9.0, 9.0])
    assert finding.verdict == "contradicted"
    assert finding.measured == worst
    assert finding.interval == Interval(-1.0, 4.0, 1.0)
    assert finding.threshold == threshold
    assert finding.bounds == region
    assert finding.samples == {"a, seed 0": 1.0, "a, seed 1": 4.0, "b, seed 0": 2.0, "b, seed 1": -1.0}


def test_one_violation_contradicts_even_with_trials_missing():
    test = Exact("loss", ("a", "b"), at_most=1.0)
    violated = test.judge(results(a=[0.5, 2.0]), range(3))
    assert violated.verdict == "contradicted"
    assert violated.missing == ("a, seed 2", "b, seed 0", "b, seed 1", "b, seed 2")
    assert violated.note == "violated by 1 of 2: a, seed 1 is 2"
    unviolated = test.judge(results(a=[0.5, 0.6]), range(2))
    assert unviolated.verdict == "inconclusive"
    assert unviolated.missing == ("b, seed 0", "b, seed 1")
    assert unviolated.measured == 0.6


def test_exact_judges_trials_of_other_seeds_too():
    assert judge(Exact("loss", ("a",), at_most=1.0), 1, a=[0.5, 2.0]).verdict == "contradicted"


@pytest.mark.parametrize("bounds", [{"at_most": 1.0}, {"at_least": -1.0}, {"equals": 0.0}])
def test_not_a_number_violates(bounds: dict[str, float]):
    finding = judge(Exact("loss", ("a",), **bounds), 2, a=[0.0, math.nan])
    assert finding.verdict == "contradicted"
    assert finding.note == "violated by 1 of 2: a, seed 1 is nan"
    assert finding.measured == 0.0
    assert strict(finding)["samples"] == {"a, seed 0": 0.0}
    alone = judge(Exact("loss", ("a",), **bounds), 1, a=[math.nan])
    assert (alone.verdict, alone.measured, alone.interval) == ("contradicted", None, None)


def test_infinity_violates_on_one_side_and_is_missing_on_the_other():
    assert judge(Exact("loss", ("a",), at_most=1.0), 1, a=[math.inf]).verdict == "contradicted"
    finding = judge(Exact("loss", ("a",), at_least=1.0), 1, a=[math.inf])
    assert (finding.verdict, finding.missing) == ("inconclusive", ("a, seed 0: loss is inf",))


# What is missing


PAIRED = [
    Better("loss", "a", "b"),
    Better("loss", "a", "b", relative=True),
    Equivalent("loss", "a", "b", tolerance=10.0),
    Trend("loss", {"a": 1.0, "b": 2.0, "c": 3.0}, "linear", above=0.0),
]
FULL = {"a": [1.0, 1.01, 1.02, 1.03], "b": [2.0, 2.0, 2.0, 2.0], "c": [3.0, 3.0, 3.0, 3.0]}


@pytest.mark.parametrize("test", PAIRED, ids=lambda test: test.kind)
def test_nothing_missing_is_reproduced(test: ClaimTest):
    assert judge(test, 4, **FULL).verdict == "reproduced"


@pytest.mark.parametrize("test", PAIRED, ids=lambda test: test.kind)
def test_a_missing_trial_is_inconclusive_and_the_rest_reported(test: ClaimTest):
    trials = [result for result in results(**FULL) if (result.arm, result.seed) != ("b", 1)]
    finding = test.judge(trials, range(4))
    assert finding.verdict == "inconclusive"
    assert finding.missing == ("b, seed 1",)
    assert set(finding.samples) == {0, 2, 3}
    complete = test.judge(results(**FULL), range(4)).samples
    kept = np.array([complete[seed] for seed in (0, 2, 3)])
    relative = getattr(test, "relative", False)
    assert finding.measured == pytest.approx(np.expm1(np.log1p(kept).mean()) if relative else kept.mean())


@pytest.mark.parametrize("test", PAIRED, ids=lambda test: test.kind)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e200])
def test_a_diverged_value_is_missing(test: ClaimTest, value: float):
    finding = judge(test, 4, **{**FULL, "a": [1.0, 1.01, 1.02, value]})
    assert finding.verdict == "inconclusive"
    assert finding.missing == (f"a, seed 3: loss is {value}".replace("-", "−"),)
    assert set(finding.samples) == {0, 1, 2}


@pytest.mark.parametrize("test", PAIRED, ids=lambda test: test.kind)
def test_a_result_without_the_metric_is_missing(test: ClaimTest):
    trials = results(**FULL)
    trials[5] = replace(trials[5], metrics={"accuracy": 0.5})
    finding = test.judge(trials, range(4))
    assert finding.verdict == "inconclusive"
    assert finding.missing == ("b, seed 1: no loss",)


@pytest.mark.parametrize("test", PAIRED, ids=lambda test: test.kind)
@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_draw_no_verdict(test: ClaimTest, seeds: int):
    finding = judge(test, seeds, **FULL)
    assert finding.verdict == "inconclusive"
    assert finding.missing == ()
    assert f"a verdict needs 3 seeds with every arm, there are {seeds}" in finding.note
    assert finding.measured is not None
    assert (finding.interval is None) == (seeds == 1)


@pytest.mark.parametrize("test", [*PAIRED, Exact("loss", ("a", "b"), at_most=9.0)], ids=lambda test: test.kind)
def test_no_results_at_all(test: ClaimTest):
    finding = test.judge([], [0, 1, 2])
    assert (finding.verdict, finding.measured, finding.interval) == ("inconclusive", None, None)
    assert finding.missing == tuple(f"{arm}, seed {seed}" for arm in test.arms for seed in range(3))
    assert strict(finding)["measured"] is None


def test_a_ratio_to_nothing_is_missing():
    finding = judge(Better("loss", "a", "b", relative=True), a=[1, 1, 1], b=[2, 0, -2])
    assert finding.missing == ("b, seed 1: loss is 0, not above 0", "b, seed 2: loss is −2, not above 0")
    assert finding.samples == pytest.approx({0: -0.5})


def test_an_overflowing_ratio_is_missing():
    finding = judge(Better("loss", "a", "b", relative=True), a=[1e150, 1, 1], b=[1e-300, 2, 2])
    assert finding.missing == ("seed 0: the ratio’s logarithm is 1036.16329185",)
    assert set(finding.samples) == {1, 2}


@pytest.mark.parametrize("test", [*PAIRED, Exact("loss", ("a", "b"), at_most=9.0)], ids=lambda test: test.kind)
def test_an_unknown_metric_is_an_error_that_names_the_known(test: ClaimTest):
    misspelt = replace(test, metric="los")
    trials = [trial(arm, seed, 1.0, seconds=2.0) for arm in "abc" for seed in range(3)]
    with pytest.raises(ValueError, match=r"'los'; known metrics and costs: loss, seconds"):
        misspelt.judge(trials, range(3))


def test_a_name_is_a_metric_or_a_cost():
    with pytest.raises(ValueError, match=r"a, seed 0: \['loss'\] are metrics and costs"):
        TrialResult("a", 0, {}, {"loss": 1.0}, {"loss": 50.0, "bytes": 7.0}, 1.0)


def test_trials_of_other_seeds_and_arms_are_left_aside():
    trials = [*results(a=[1.0, 2.0, 3.0, 99.0], b=[2.0, 3.1, 4.2, 0.0]), trial("other", 0, math.nan)]
    assert set(Better("loss", "a", "b").judge(trials, [0, 1, 2]).samples) == {0, 1, 2}


@pytest.mark.parametrize("seeds", [[], [0, 0, 1]])
def test_seeds_that_are_none_or_repeated_are_refused(seeds: list[int]):
    for test in (Better("loss", "a", 1.0), Exact("loss", ("a",), at_most=9.0)):
        with pytest.raises(ValueError, match="each once"):
            test.judge(results(a=[1.0, 2.0]), seeds)


def test_two_results_of_one_trial_are_refused():
    with pytest.raises(ValueError, match="two results for a, seed 1"):
        Better("loss", "a", 1.0).judge([*results(a=[1.0, 2.0, 3.0]), trial("a", 1, 5.0)], range(3))


# Arguments


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Better("", "a", "b"), "metric"),
        (lambda: Better("loss", "", "b"), "arm"),
        (lambda: Better("loss", "a", " "), "than"),
        (lambda: Better("loss", "a", "a"), "'a'"),
        (lambda: Better("loss", "a", math.nan), "than must be a finite number, got nan"),
        (lambda: Better("loss", "a", "b", margin=math.nan), "margin must be a finite number, got nan"),
        (lambda: Better("loss", "a", "b", margin=math.inf), "margin must be a finite number, got inf"),
        (lambda: Better("loss", "a", "b", direction="down"), "'lower', 'higher', got 'down'"),  # pyright: ignore[reportArgumentType]
        (lambda: Better("loss", "a", 0.0, relative=True), "above 0, got 0.0"),
        (lambda: Equivalent("loss", "a", "b", tolerance=-0.1), "above 0, got -0.1"),
        (lambda: Equivalent("loss", "a", "b", tolerance=0.0), "above 0, got 0.0"),
        (lambda: Equivalent("loss", "a", "b", tolerance=math.nan), "tolerance must be a finite number, got nan"),
        (lambda: Equivalent("loss", "a", "a", tolerance=1.0), "'a'"),
        (lambda: Equivalent("loss", "a", -1.0, tolerance=1.0, relative=True), "above 0, got -1.0"),
        (lambda: Trend("loss", {"a": 1, "b": 2}, "linear", above=0), "3 or more different x"),
        (lambda: Trend("loss", {"a": 1, "b": 2, "c": 2}, "linear", above=0), "3 or more different x"),
        (lambda: Trend("loss", {"a": 0, "b": 1, "c": 2}, "power", above=0), "'a' must be above 0 for a power law"),
        (lambda: Trend("loss", {"a": 1, "b": math.inf, "c": 2}, "linear", above=0), "'b' must be a finite number"),
        (lambda: Trend("loss", SIZES, "cubic", above=0), "got 'cubic'"),  # pyright: ignore[reportArgumentType]
        (lambda: Trend("loss", SIZES, "linear"), "one of above and below"),
        (lambda: Trend("loss", SIZES, "linear", above=2, below=1), "above 2 is above below 1"),
        (lambda: Trend("loss", SIZES, "linear", above=1, below=1), "nothing is above 1"),
        (lambda: Trend("loss", SIZES, "linear", above=math.nan), "above must be a finite number, got nan"),
        (lambda: Trend("loss", SIZES, "linear", above=0, least_r_squared=1.5), "got 1.5"),
        (lambda: Exact("loss", (), at_most=1), r"got \(\)"),
        (lambda: Exact("loss", "ab", at_most=1), "got 'ab'"),  # pyright: ignore[reportArgumentType]
        (lambda: Exact("loss", ("a", "a"), at_most=1), "different names"),
        (lambda: Exact("loss", ("a",)), "one of at_least and at_most"),
        (lambda: Exact("loss", ("a",), equals=1, at_most=2), "equals stands alone"),
        (lambda: Exact("loss", ("a",), at_least=2, at_most=1), "at_least 2 is above at_most 1"),
        (lambda: Exact("loss", ("a",), at_most=math.inf), "at_most must be a finite number, got inf"),
        (lambda: Exact("loss", ("a",), equals=math.nan), "equals must be a finite number, got nan"),
        (lambda: trial("a", 0, "0.5"), "a, seed 0: 'loss' must be a real number, got '0.5' of type str"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_bad_arguments_are_named(make: Any, named: str):
    with pytest.raises(ValueError, match=named):
        make()


def test_arms_are_those_that_a_test_needs():
    assert Better("loss", "a", "b").arms == ("a", "b")
    assert Better("loss", "a", 1.0).arms == ("a",)
    assert Equivalent("loss", "a", "b", tolerance=1.0).arms == ("a", "b")
    assert Trend("loss", SIZES, "linear", above=0).arms == tuple(SIZES)
    assert Exact("loss", ("b", "a"), at_most=1).arms == ("b", "a")
    assert [test.kind for test in (Better, Equivalent, Trend, Exact)] == ["better", "equivalent", "trend", "exact"]


# Claims and JSON


CLAIM = Claim(
    id="extrapolates_x16",
    statement="ALiBi keeps its perplexity at sixteen times the training length; sinusoidal positions do not.",
    source="Figure 4",
    test=Better("loss", "a", "b", margin=0.5),
    scale_gap="A small model on a small corpus.",
    paper_value="18.3 against 30.1",
    resolution=Resolution(0.02, 3, "pilot on seeds 1000 to 1002"),
    sabotage="no bias",
)


def test_a_claim_judges_by_its_test():
    trials = results(a=[1.0, 1.1, 1.2], b=[2.0, 2.2, 2.4])
    assert CLAIM.judge(trials, range(3)) == CLAIM.test.judge(trials, range(3))


def test_the_record_of_a_claim():
    record = CLAIM.record(CLAIM.judge(results(a=[1.0, 2.0, 3.0], b=[2.0, 3.0, 4.0]), range(3)))
    assert record == {
        "id": "extrapolates_x16",
        "kind": "better",
        "statement": CLAIM.statement,
        "source": "Figure 4",
        "paper_value": "18.3 against 30.1",
        "measured": -1.0,
        "interval": None,
        "confidence": None,
        "deterministic": True,
        "verdict": "reproduced",
        "threshold": "a − b on loss < −0.5",
        "samples": {"0": -1.0, "1": -1.0, "2": -1.0},
        "bounds": [None, -0.5],
        "missing": [],
        "note": "",
        "relative": False,
        "resolution": {"half_width": 0.02, "seeds": 3, "source": "pilot on seeds 1000 to 1002"},
        "sabotage": "no bias",
        "scale_gap": CLAIM.scale_gap,
    }
    assert json.loads(json.dumps(record, allow_nan=False)) == record


@pytest.mark.parametrize("bad", ["", "Figure-4", "x y", "é", "a\n"])
def test_an_id_that_is_no_slug_is_refused(bad: str):
    with pytest.raises(ValueError, match="id is made of"):
        replace(CLAIM, id=bad)


@pytest.mark.parametrize("name", ["statement", "source", "scale_gap", "paper_value", "sabotage"])
def test_an_empty_text_is_refused(name: str):
    with pytest.raises(ValueError, match=f"{name} of claim 'extrapolates_x16' must not be empty"):
        replace(CLAIM, **{name: "  "})


EVERY_TEST = [
    *PAIRED,
    Better("loss", "a", 1e-300, relative=True),
    Equivalent("loss", "a", "b", tolerance=0.9, relative=True),
    Trend("loss", {"a": 1.0, "b": 2.0, "c": 3.0}, "power", below=1.0, least_r_squared=0.5),
    Trend("loss", {"a": 1.0, "b": 2.0, "c": 3.0}, "logarithmic", below=1.0),
    Exact("loss", ("a", "b"), at_most=1.0),
    Exact("loss", ("a", "b"), at_least=1.0),
    Exact("loss", ("a",), equals=0.0),
]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), st.lists(ANY_FLOAT, min_size=1, max_size=5), min_size=1))
def test_whatever_the_trials_report_the_finding_is_strict_json(values: Mapping[str, list[float]]):
    for test in EVERY_TEST:
        finding = judge(test, 4, **values)
        record = strict(finding)
        assert record["verdict"] in ("reproduced", "contradicted", "inconclusive")
        if finding.missing:
            assert finding.verdict == "inconclusive" or (test.kind, finding.verdict) == ("exact", "contradicted")
        if finding.verdict == "reproduced":
            assert finding.deterministic or finding.interval is not None
        if finding.verdict == "reproduced" and finding.interval is not None:
            low, high = finding.bounds
            assert low is None or finding.interval.low >= low
            assert high is None or finding.interval.high <= high


@settings(max_examples=30, deadline=None)
@given(st.lists(ANY_FLOAT, min_size=10, max_size=12))
def test_strict_json_of_many_seeds(values: list[float]):
    for test in (Better("loss", "a", 0.0), Equivalent("loss", "a", 0.0, tolerance=1.0)):
        assert strict(judge(test, len(values), a=values))["bounds"] == list(judge(test, 1, a=values).bounds)


def test_numpy_numbers_become_json():
    trials = [trial("a", int(seed), np.float32(0.5)) for seed in range(3)]  # pyright: ignore[reportArgumentType]
    test = Better("loss", "a", np.float64(1.0), margin=np.float32(0.25))  # pyright: ignore[reportArgumentType]
    assert strict(test.judge(trials, np.arange(3).tolist()))["samples"] == {"0": -0.5, "1": -0.5, "2": -0.5}
    exact = Exact("loss", ("a",), at_most=np.float32(1.0))  # pyright: ignore[reportArgumentType]
    assert strict(exact.judge(trials, range(3)))["bounds"] == [None, 1.0]


def test_a_finding_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="nan"):
        Finding("inconclusive", math.nan, None, "", {}, (), (None, None))
    with pytest.raises(ValueError, match="inf"):
        Finding("inconclusive", 0.0, None, "", {0: math.inf}, (), (None, None))
    with pytest.raises(ValueError, match="'perhaps'"):
        Finding("perhaps", 0.0, None, "", {}, (), (None, None))  # pyright: ignore[reportArgumentType]


def test_judging_does_not_need_torch():
    program = "import sys, allyouneed.evidence.claims; sys.exit('torch' in sys.modules or 'scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
