import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allyouneed.evidence.claims import Better, Claim, ClaimTest, Equivalent, Exact, Resolution, TrialResult
from allyouneed.evidence.wording import (
    claim_rows,
    column,
    comparison,
    estimate,
    machine,
    minutes,
    number,
    outcome,
    resolution_rows,
    seed_count,
    verdict_counts,
)

SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def read(text: str) -> float:
    """The number that a text says."""
    digits, _, exponent = text.replace("−", "-").replace(",", "").partition("×10")
    return float(f"{digits}e{exponent.translate(SUPERSCRIPTS) or 0}")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-0.0, "0"),
        (5, "5"),
        (0.994, "0.994"),
        (-3.14159, "−3.142"),
        (0.99996, "1"),
        (9999.6, "10,000"),
        (12345.6, "12,346"),
        (1234567, "1,234,567"),
        (1e12, "1×10¹²"),
        (0.0001, "0.0001"),
        (0.00009, "9×10⁻⁵"),
        (9.99996e-5, "0.0001"),
        (-1.23456e-7, "−1.235×10⁻⁷"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (math.nan, "NaN"),
        (None, "–"),
    ],
)
def test_a_number(value: float | None, text: str):
    assert number(value) == text


@given(st.floats(-1e300, 1e300))
def test_a_number_is_right_to_four_digits(value: float):
    assert read(number(value)) == pytest.approx(value, rel=6e-4, abs=1e-323)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.994, 0.991, 0.997), "0.994 [0.991, 0.997]"),
        ((0.99421, 0.98, 1.0082), "0.994 [0.980, 1.008]"),
        ((-0.25, -0.2512, -0.2488), "−0.2500 [−0.2512, −0.2488]"),
        ((1234.5, 1200.2, 1268.8), "1,234 [1,200; 1,269]"),
        ((5.12, -20.33, 30.5), "5.1 [−20.3, 30.5]"),
        ((-2.3e-7, -3.1e-7, -1.5e-7), "−2.3 [−3.1, −1.5]×10⁻⁷"),
        ((12.345678, 12.345678, 12.345678), "12.35 [12.35, 12.35]"),
        ((0, 0, 0), "0 [0, 0]"),
    ],
)
def test_an_interval_has_the_decimals_of_its_width(values: tuple[float, float, float], text: str):
    assert estimate(*values) == text


def test_an_interval_that_misses_a_bound_does_not_read_as_touching_it():
    assert estimate(-0.0216, -0.0432, -0.00004) == "−0.0216 [−0.0432, 0.0000]"
    assert estimate(-0.0216, -0.0432, -0.00004, (None, 0.0)) == "−0.02160 [−0.04320, −0.00004]"
    assert estimate(0.75, 0.5, 1.0, (0.5, 1.0)) == "0.75 [0.50, 1.00]"


@given(st.lists(st.floats(-1e150, 1e150), min_size=3, max_size=3), st.none() | st.floats(-1e150, 1e150))
def test_an_interval_reads_in_order_and_near_its_numbers(values: list[float], bound: float | None):
    low, measured, high = sorted(values)
    text = estimate(measured, low, high, (bound, None))
    interval, _, power = text.partition("]")
    shown = [read(found.rstrip(",;") + power) for found in re.findall(r"[−\d.,]+", interval)]
    assert shown == pytest.approx([measured, low, high], abs=max(1e-2 * max(map(abs, values)), 1e-323))
    assert shown[1] <= shown[0] <= shown[2]


def test_a_column_has_one_number_of_decimals():
    assert column([5.66, 10.08, None, 9.956]) == ["5.660", "10.080", "–", "9.956"]
    assert column([1, 20, 0]) == ["1", "20", "0"]
    assert column([0.001234, 56.7, math.nan]) == ["0.001234", "56.7", "NaN"]
    assert column([0.001234, 56.7]) == ["0.001234", "56.7"]


def trials(**values: list[float]) -> list[TrialResult]:
    return [
        TrialResult(arm, seed, {}, {"loss": value}, {}, 30.0)
        for arm, row in values.items()
        for seed, value in enumerate(row)
        if not math.isnan(value)
    ]


def recorded(
    test: Better | Equivalent | Exact, seeds: int, paper_value: str | None = None, **values: list[float]
) -> dict[str, Any]:
    claim = Claim("a", "It falls.", "Table 1", test, "All.", paper_value)
    return claim.record(claim.judge(trials(**values), range(seeds)))


def test_the_outcome_says_which_interval_it_gives():
    better = recorded(Better("loss", "a", "b"), 3, a=[1.0, 1.1, 1.2], b=[2.0, 2.2, 2.4])
    assert outcome(better) == "−1.10 [−1.35, −0.85]"
    same = recorded(Equivalent("loss", "a", "b", 1.0), 3, a=[1.0, 1.1, 1.2], b=[1.1, 1.1, 1.1])
    assert outcome(same).endswith("] at 90 %")
    exact = recorded(Exact("loss", ("a",), at_most=2.0), 3, a=[1.0, 1.5, 1.25])
    assert outcome(exact) == "worst 1.5, all in [1.0, 1.5]"
    assert outcome(recorded(Exact("loss", ("a",), equals=7), 2, a=[7, 7])) == "7 in every trial"
    assert outcome(recorded(Better("loss", "a", 2.0), 1, a=[1.5])) == "−0.5"
    assert outcome(recorded(Better("loss", "a", "b"), 1, a=[1.5])) == "–"


def test_a_ratio_is_written_in_per_cent():
    ratio = recorded(Better("loss", "a", 2.0, relative=True), 3, a=[1.5, 1.0, 1.25])
    assert ratio["measured"] == pytest.approx((0.75 * 0.5 * 0.625) ** (1 / 3) - 1)
    assert outcome(recorded(Better("loss", "a", 2.0, relative=True), 1, a=[1.5])) == "−25 %"
    assert outcome(ratio) == "−38.3 [−62.8, 2.1] %"


def test_seeds_are_counted_that_have_everything():
    nan = math.nan
    assert seed_count(recorded(Better("loss", "a", "b"), 3, a=[1, 1, 1], b=[2, 2, 2])) == "3"
    assert seed_count(recorded(Better("loss", "a", "b"), 4, a=[1, 1, 1, nan], b=[2, 2, nan, 2])) == "2 of 4"
    assert seed_count(recorded(Exact("loss", ("a", "b"), at_most=3), 12, a=[1] * 12, b=[2] * 11)) == "11 of 12"
    assert seed_count(recorded(Better("loss", "a", "b"), 2, a=[1.0, 2.0])) == "0 of 2"


def test_rows_are_the_same_words_everywhere():
    claims = [
        recorded(Better("loss", "a", "b"), 3, "27.3", a=[1.0, 1.1, 1.2], b=[2.0, 2.2, 2.4]),
        recorded(Exact("loss", ("a",), at_most=1.0), 3, a=[1.0, 1.5, 1.25]),
    ]
    first, second = claim_rows({"claims": claims})
    assert (first.statement, first.paper, first.verdict, first.seeds) == ("It falls.", "27.3", "reproduced", "3")
    assert first.ours == outcome(claims[0])
    assert (second.paper, second.verdict) == ("–", "contradicted")


def test_verdicts_are_counted_in_one_order():
    claims = [{"verdict": verdict} for verdict in ("inconclusive", "reproduced", "contradicted", "reproduced")]
    assert verdict_counts(claims) == "2 reproduced, 1 contradicted, 1 inconclusive"
    assert verdict_counts(claims[1:2]) == "1 reproduced"
    assert verdict_counts([]) == "no claims"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [([90, 60], "2.5"), ([600, 30], "10"), ([597.5], "10"), ([2], "under 0.1"), ([72_000], "1,200")],
)
def test_minutes_are_the_sum_of_the_trials(seconds: list[float], text: str):
    assert minutes({"trials": [{"seconds": value} for value in seconds]}) == text


def test_what_was_compared_and_on_what():
    arms = [{"arm": arm, "seed": seed} for seed in (0, 1) for arm in ("alibi", "rotary", "none")]
    assert comparison({"scale": "gpu", "trials": arms}) == "alibi, rotary and none at the gpu scale, 2 seeds"
    assert comparison({"scale": "gpu", "trials": arms[:1]}) == "alibi at the gpu scale, 1 seed"
    environment = {"processor": "Ryzen", "cores": 2, "device": "cpu"}
    assert machine({"environment": environment}) == "Ryzen (2 cores)"
    assert machine({"environment": environment | {"cores": 1}}) == "Ryzen (1 core)"
    assert machine({"environment": environment | {"device": "H200"}}) == "H200, Ryzen (2 cores)"


def test_a_pilot_says_what_is_measured_finely_enough():
    def row(test: ClaimTest, **values: list[float]) -> tuple[str, ...]:
        tried = Claim("tried", "It is.", "Table 1", test, "All.")
        results = [
            TrialResult(arm, seed, {}, {"loss": value}, {}, 1.0)
            for arm, row in values.items()
            for seed, value in enumerate(row)
        ]
        [found] = resolution_rows([tried], {"tried": tried.judge(results, range(3))})
        return found

    # Half-widths of 0.248 (three samples 0.1 apart), with the bound at a distance of 1 and of 0.4.
    assert row(Better("loss", "a", 2.0), a=[0.9, 1.0, 1.1]) == ("tried", "−1", "0.2484", "1", "yes")
    assert row(Better("loss", "a", 1.4), a=[0.9, 1.0, 1.1]) == ("tried", "−0.4", "0.2484", "0.4", "no")
    assert row(Better("loss", "a", 2.0, relative=True), a=[0.9, 1.0, 1.1])[1].endswith(" %")
    assert row(Better("loss", "a", 2.0), a=[1.0, 1.0, 1.0]) == ("tried", "−1", "0", "1", "yes")
    assert row(Exact("loss", ("a",), at_most=2.0), a=[1.0, 1.0, 1.5])[2:] == ("–", "–", "–")


def test_what_a_claim_promised_stands_beside_its_interval():
    claim = Claim("a", "b", "c", Better("loss", "a", 2.0), "d", resolution=Resolution(0.2, 3, "pilot"))
    results = [TrialResult("a", seed, {}, {"loss": value}, {}, 1.0) for seed, value in enumerate([0.9, 1.0, 1.1])]
    assert outcome(claim.record(claim.judge(results, range(3)))) == "−1.00 [−1.25, −0.75] (±0.2 expected)"
    relative = replace(claim, test=Better("loss", "a", 2.0, relative=True))
    assert outcome(relative.record(relative.judge(results, range(3)))).endswith(" % (±20 % expected)")
