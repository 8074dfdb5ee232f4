"""T5's objectives by inversion, its mixtures and its packed rows."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allyouneed.papers.t5 import (
    T5,
    ConstantThenInverseSquareRoot,
    Mixture,
    Pair,
    T5Config,
    bert_style,
    deshuffle,
    drop_tokens,
    finished,
    iid_noise,
    mass_style,
    mixing_rates,
    one_of,
    pack_pairs,
    packed_hidden,
    packed_loss,
    replace_spans,
    restore_spans,
    span_noise,
    unpack_pairs,
)
from allyouneed.papers.t5.objectives import prefix_language_model
from allyouneed.papers.transformer import translation_loss
from allyouneed.training import Schedule, TrainingConfig, train

SENTINELS = tuple(range(199, 99, -1))
rows = st.lists(st.integers(0, 99), min_size=1, max_size=120)
longer_rows = st.lists(st.integers(0, 99), min_size=2, max_size=120)
rates = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**32)
# The paper's example, Figure 2 and Table 3, a token a word.
SENTENCE = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week", "."]
WORDS = {word: number for number, word in enumerate(SENTENCE)}
NAMES = {number: word for word, number in WORDS.items()} | {199: "<X>", 198: "<Y>", 197: "<Z>"}
NOISE = np.array([word in ("for", "inviting", "last") for word in SENTENCE])


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def words(tokens: Sequence[int]) -> str:
    return " ".join(NAMES[token] for token in tokens)


def spans_in(noise: np.ndarray) -> int:
    return int(noise[0]) + int((noise[1:] & ~noise[:-1]).sum())


class TestThePapersExample:
    def test_replaced_spans(self) -> None:
        pair = replace_spans(list(WORDS.values()), NOISE, sentinels=SENTINELS)
        assert words(pair.source) == "Thank you <X> me to your party <Y> week ."
        assert words(pair.target) == "<X> for inviting <Y> last <Z>"

    def test_dropped_tokens(self) -> None:
        pair = drop_tokens(list(WORDS.values()), NOISE)
        assert words(pair.source) == "Thank you me to your party week ."
        assert words(pair.target) == "for inviting last"

    def test_mass_style(self) -> None:
        pair = mass_style(list(WORDS.values()), NOISE, mask=199)
        assert words(pair.source) == "Thank you <X> <X> me to your party <X> week ."
        assert words(pair.target) == " ".join(SENTENCE)

    def test_the_share_of_a_long_row(self) -> None:
        """Section 3.3.4: of 500 tokens 75 in 25 spans; so 450 tokens are left to read and 101 to write."""
        noise = span_noise(500, generator())
        assert noise.sum() == 75 and spans_in(noise) == 25
        pair = replace_spans([0] * 500, noise, sentinels=SENTINELS)
        assert (len(pair.source), len(pair.target)) == (450, 101)


class TestInversion:
    @given(rows, rates, seeds)
    def test_of_tokens_replaced_independently(self, row: list[int], rate: float, seed: int) -> None:
        noise = iid_noise(len(row), generator(seed), rate=rate)
        pair = replace_spans(row, noise, sentinels=SENTINELS)
        assert restore_spans(pair, sentinels=SENTINELS) == row
        assert [token for token in pair.source if token < 100] == drop_tokens(row, noise).source
        assert [token for token in pair.target if token < 100] == drop_tokens(row, noise).target

    @given(longer_rows, rates, st.floats(1, 20), seeds)
    def test_of_spans_replaced(self, row: list[int], rate: float, mean_span: float, seed: int) -> None:
        noise = span_noise(len(row), generator(seed), rate=rate, mean_span=mean_span)
        pair = replace_spans(row, noise, sentinels=SENTINELS)
        assert restore_spans(pair, sentinels=SENTINELS) == row
        # No two spans touch, so that each has its sentinel.
        hidden = int(noise.sum())
        assert hidden == min(max(round(len(row) * rate), 1), len(row) - 1)
        spans = min(max(round(hidden / mean_span), 1), hidden, len(row) - hidden + 1)
        assert spans_in(noise) == spans
        assert (len(pair.source), len(pair.target)) == (len(row) - hidden + spans, hidden + spans + 1)

    @given(rows, rates, seeds)
    def test_of_rows_to_be_rebuilt(self, row: list[int], rate: float, seed: int) -> None:
        noise = iid_noise(len(row), generator(seed), rate=rate)
        for pair in (
            mass_style(row, noise, mask=199),
            bert_style(row, noise, generator(seed), mask=199, ordinary=range(100, 150)),
        ):
            assert pair.target == row
            left = [token for token, hidden in zip(row, noise, strict=True) if not hidden]
            assert [token for token, hidden in zip(pair.source, noise, strict=True) if not hidden] == left
            assert all(token >= 100 for token, hidden in zip(pair.source, noise, strict=True) if hidden)

    @given(rows, seeds)
    def test_of_shuffled_rows(self, row: list[int], seed: int) -> None:
        pair = deshuffle(row, generator(seed))
        assert pair.target == row and Counter(pair.source) == Counter(row)

    @given(longer_rows, seeds)
    def test_of_split_rows(self, row: list[int], seed: int) -> None:
        pair = prefix_language_model(row, generator(seed))
        assert pair.source + pair.target == row and pair.source and pair.target

    @given(st.lists(st.tuples(rows, rows), min_size=1, max_size=12), st.integers(120, 200), st.integers(120, 150))
    def test_of_packed_rows(self, sides: list[tuple[list[int], list[int]]], source: int, target: int) -> None:
        pairs = [Pair(*side) for side in sides]
        packed = pack_pairs(pairs, source_length=source, target_length=target, padding=0)
        assert sorted(unpack_pairs(packed)) == sorted(pairs)
        assert len(packed.source) <= len(pairs)
        # Nothing but padding where no pair is.
        assert (
            not packed.source[packed.source_numbers == 0].any() and not packed.target[packed.target_numbers == 0].any()
        )

    @pytest.mark.parametrize(
        ("source", "target"),
        [
            ([1, 199], [199, 2]),  # no last sentinel
            ([1, 199], [199, 2, 197]),  # another last one
            ([1, 198], [199, 2, 198]),
            ([1, 199, 198], [199, 2, 198]),
            ([199, 1, 198], [198, 2, 199, 3, 197]),  # out of order
            ([1, 199], [199, 2, 198, 3]),  # tokens after the last
            ([1], []),
            ([1, 199], [2, 199]),
        ],
    )
    def test_pairs_that_fit_nothing_are_refused(self, source: list[int], target: list[int]) -> None:
        with pytest.raises(ValueError, match="sentinel"):
            restore_spans(Pair(source, target), sentinels=SENTINELS)


class TestNoise:
    def test_is_drawn_as_often_as_said(self) -> None:
        draws = generator()
        independent = np.stack([iid_noise(50, draws) for _ in range(4000)])
        assert independent.mean(0) == pytest.approx(0.15, abs=0.03)
        assert independent.sum(1).std() == pytest.approx(math.sqrt(50 * 0.15 * 0.85), rel=0.05)
        spans = np.stack([span_noise(50, draws) for _ in range(4000)])
        assert set(spans.sum(1)) == {8} and {spans_in(noise) for noise in spans} == {3}
        # Everywhere in the row, the ends included.
        assert spans.mean(0).min() > 0.05 and abs(spans.mean(0)[:25].mean() - spans.mean(0)[25:].mean()) < 0.01

    def test_all_ways_to_place_spans_are_equally_likely(self) -> None:
        draws = generator()
        found = Counter(tuple(span_noise(6, draws, rate=0.5, mean_span=1.5).tolist()) for _ in range(6000))
        # Two spans of 1 and 2 tokens, in either order, with 3 tokens in three gaps; the middle one is not empty.
        assert len(found) == 2 * 6
        assert min(found.values()) > 0.8 * 6000 / 12

    def test_random_tokens_come_as_often_as_said(self) -> None:
        row = [0] * 20_000
        pair = bert_style(row, iid_noise(len(row), generator(1)), generator(2), mask=199, ordinary=[7, 8])
        counts = Counter(pair.source)
        assert set(counts) == {0, 199, 7, 8}
        assert counts[199] / 20_000 == pytest.approx(0.15 * 0.9, abs=0.01)
        assert counts[7] == pytest.approx(counts[8], rel=0.3)

    @pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, math.nan])
    def test_rates_out_of_range_are_refused(self, rate: float) -> None:
        for noise in (iid_noise, span_noise):
            with pytest.raises(ValueError, match=f"corruption rate {rate} is out of range: it must be above 0"):
                noise(10, generator(), rate=rate)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: iid_noise(0, generator()), "row of 0 tokens is empty"),
            (lambda: span_noise(1, generator()), "row of 1 token cannot have a part hidden"),
            (lambda: span_noise(9, generator(), mean_span=0.5), "mean_span 0.5 is out of range"),
            (lambda: replace_spans([], np.zeros(0, bool), sentinels=SENTINELS), "the row is empty"),
            (lambda: mass_style([], np.zeros(0, bool), mask=1), "the row is empty"),
            (lambda: deshuffle([], generator()), "the row is empty"),
            (lambda: prefix_language_model([4], generator()), "row of 1 tokens cannot be split"),
            (lambda: drop_tokens([1, 2], np.zeros(3, bool)), r"noise of shape \(3,\) is not for a row of 2"),
            (lambda: replace_spans([5, 199], NOISE[:2], sentinels=SENTINELS), "has the sentinel 199 in it already"),
            (
                lambda: replace_spans(list(WORDS.values()), NOISE, sentinels=(199, 198)),
                "2 sentinels are too few for 2 hidden spans, which need 3",
            ),
            (
                lambda: bert_style([1], np.ones(1, bool), generator(), mask=3, ordinary=range(5), random=2.0),
                "random 2.0 of 5 tokens",
            ),
            (lambda: bert_style([1], np.ones(1, bool), generator(), mask=3, ordinary=[]), "of 0 tokens"),
        ],
    )
    def test_other_bad_input_is_refused(self, call: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            call()


SIZES = {"small": 100, "large": 10_000, "text": math.inf}


class TestMixing:
    def test_in_proportion_to_examples_up_to_a_limit(self) -> None:
        assert mixing_rates(SIZES, limit=300) == pytest.approx({"small": 1 / 7, "large": 3 / 7, "text": 3 / 7})
        assert mixing_rates({"a": 1, "b": 3}) == {"a": 0.25, "b": 0.75}

    def test_temperature_brings_them_together(self) -> None:
        by_hand = {"a": 1**0.5, "b": 3**0.5}
        expected = {name: rate / sum(by_hand.values()) for name, rate in by_hand.items()}
        assert mixing_rates({"a": 1, "b": 3}, temperature=2) == pytest.approx(expected)
        found = [mixing_rates(SIZES, limit=2**14, temperature=heat)["small"] for heat in (1, 2, 4, 8, math.inf)]
        assert found == sorted(found) and found[-1] == pytest.approx(1 / 3)

    @given(st.dictionaries(st.text(max_size=3), st.floats(1, 1e9), min_size=1), st.floats(0.5, 100), st.floats(1, 1e6))
    def test_rates_are_probabilities_in_order_of_size(self, sizes: dict[str, float], heat: float, limit: float) -> None:
        found = mixing_rates(sizes, temperature=heat, limit=limit)
        assert sum(found.values()) == pytest.approx(1.0)
        ordered = sorted(sizes, key=lambda name: sizes[name])
        assert all(found[a] <= found[b] * (1 + 1e-9) for a, b in pairwise(ordered))

    def test_tasks_come_as_often_as_said(self) -> None:
        tasks = {name: one_of([Pair([number], [number])]) for number, name in enumerate("abc", start=2)}
        mixture = Mixture(tasks, {"a": 0.2, "c": 0.8}, batch=50, begin=0, end=1, seed=3)
        counts = Counter(pair.source[0] for step in range(100) for pair in mixture.pairs(step))
        assert set(counts) == {2, 4} and counts[2] / 5000 == pytest.approx(0.2, abs=0.02)

    def test_a_batch_follows_from_its_step(self) -> None:
        tasks = {"a": one_of([Pair([5, 6, 7], [8]), Pair([9], [5, 5])])}
        batches = [Mixture(tasks, {"a": 1.0}, batch=4, begin=0, end=1, seed=2) for _ in range(2)]
        _ = [batches[0](step) for step in range(3)]
        for first, second in zip(batches[0](7), batches[1](7), strict=True):
            assert torch.equal(first, second)
        source, target = batches[0](7)
        for one, other in zip(source.tolist(), target.tolist(), strict=True):
            assert (one, other) in [([5, 6, 7, 1], [0, 8, 1, 0]), ([9, 1, 0, 0], [0, 5, 5, 1])]

    def test_rows_are_begun_and_ended(self) -> None:
        assert finished([Pair([5], [6, 7])], begin=0, end=1) == ([[5, 1]], [[0, 6, 7, 1]])

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: mixing_rates({}), "no tasks to mix"),
            (lambda: mixing_rates({"a": 3, "b": 0}), "b has no examples"),
            (lambda: mixing_rates({"a": 3}, limit=0), "limit 0 is out of range"),
            (lambda: mixing_rates({"a": 3}, temperature=0), "temperature 0 is out of range"),
            (lambda: mixing_rates({"a": 3, "text": math.inf}), "text has no end: a mixture with it needs a limit"),
            (lambda: one_of([]), "a task without examples"),
            (lambda: mixture({"b": 1.0}), "rates for b, but only the tasks a"),
            (lambda: mixture({"a": 0.5}), "must be 0 or more and add up to 1"),
            (lambda: mixture({"a": 1.0}, batch=0), "batch 0 is out of range"),
            (lambda: mixture({"a": 1.0}, seed=-1), "seed -1 is out of range"),
        ],
    )
    def test_bad_input_is_refused(self, call: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            call()


def mixture(rates: dict[str, float], batch: int = 2, seed: int = 0) -> Mixture:
    return Mixture({"a": one_of([Pair([5], [6])])}, rates, batch=batch, begin=0, end=1, seed=seed)


PAIRS = [Pair([5, 6, 7, 1], [0, 8, 1]), Pair([9, 1], [0, 1]), Pair([7, 7, 1], [0, 5, 5, 5, 1]), Pair([4], [0, 6])]


class TestPacking:
    @pytest.mark.parametrize("tied", [True, False])
    def test_a_pair_is_as_if_it_were_alone(self, tied: bool) -> None:
        model = small_model(tied)
        packed = pack_pairs(PAIRS, source_length=9, target_length=9, padding=0)
        assert len(packed.source) == 2
        with torch.no_grad():
            hidden = packed_hidden(model, packed)
            for row in range(2):
                numbers = packed.target_numbers[row]
                for number in range(1, int(numbers.max()) + 1):
                    source = packed.source[row][packed.source_numbers[row] == number]
                    target = packed.target[row][numbers == number]
                    alone = model.hidden(source[None], target[None])[0]
                    torch.testing.assert_close(hidden[row][numbers == number], alone, rtol=1e-10, atol=1e-10)

    def test_the_loss_is_that_of_the_pairs(self) -> None:
        model = small_model(True)
        packed = pack_pairs(PAIRS, source_length=12, target_length=7, padding=0)
        total, count = packed_loss(model, packed)
        alone = [translation_loss(model, (torch.tensor([s]), torch.tensor([t])), padding=0) for s, t in PAIRS]
        assert int(count) == sum(len(target) - 1 for _, target in PAIRS) == sum(int(one.targets) for one in alone)
        torch.testing.assert_close(total, sum(one.total for one in alone))  # pyright: ignore
        total.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    @pytest.mark.parametrize(
        ("pairs", "message"),
        [
            ([], "no pairs to pack"),
            ([Pair([1], [2]), Pair([], [2])], "source of pair 1 has 0 tokens: it must have 1 to 5"),
            ([Pair([1] * 6, [2])], "source of pair 0 has 6 tokens"),
            ([Pair([1], [2] * 4)], "target of pair 0 has 4 tokens: it must have 1 to 3"),
        ],
    )
    def test_bad_input_is_refused(self, pairs: list[Pair], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            pack_pairs(pairs, source_length=5, target_length=3, padding=0)


def small_model(tied: bool) -> T5:
    torch.manual_seed(0)
    config = T5Config(vocabulary=12, width=8, head_width=4, hidden=16, layers=2, heads=2, dropout=0.0, tied=tied)
    return T5(config).double()


class TestSchedule:
    def test_is_the_papers(self) -> None:
        """1/√max(n, k) with k of 10⁴: 0.01 for so many steps."""
        schedule = ConstantThenInverseSquareRoot(10_000)
        assert isinstance(schedule, Schedule)
        for step in (1, 5000, 10_000, 10_001, 40_000, 2**19):
            assert 0.01 * schedule(step - 1, 2**19) == pytest.approx(1 / math.sqrt(max(step, 10_000)))
        with pytest.raises(ValueError, match="held for 0 steps"):
            ConstantThenInverseSquareRoot(0)


def test_a_model_learns_to_restore_what_was_hidden() -> None:
    """Rows that count upwards: after a little training the hidden number is known from its neighbours."""
    torch.manual_seed(0)
    sizes = T5Config(vocabulary=24, width=24, head_width=8, hidden=48, layers=1, heads=3, dropout=0.0)
    model = T5(replace(sizes, tied=False))

    def draw(draws: np.random.Generator) -> Pair:
        first = int(draws.integers(2, 14))
        noise = span_noise(6, draws, rate=0.2)
        return replace_spans(list(range(first, first + 6)), noise, sentinels=(23, 22, 21))

    batches = Mixture({"count": draw}, {"count": 1.0}, batch=32, begin=0, end=1, seed=0)
    result = train(model, batches, partial(translation_loss, padding=0), TrainingConfig(80, 1e-2))
    assert float(result.losses[0]) > 3.0 and float(result.losses[-5:].mean()) < 0.4
