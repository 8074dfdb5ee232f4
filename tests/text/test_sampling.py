import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from allyouneed.text import Sampling, probabilities, sample

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -3.0, -math.inf])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 2.5]),
    top_k=st.none() | st.integers(1, 40),
    top_p=st.none() | st.floats(0.01, 1.0),
    min_p=st.none() | st.floats(0.0, 1.0),
    penalty=st.sampled_from([0.8, 1.0, 1.3]),
)
def test_probabilities_are_those_of_transformers(
    seed: int, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None, penalty: float
):
    logits = 3 * torch.randn(4, 30, generator=seeded(seed))
    tokens: Any = torch.randint(30, (4, 6), generator=seeded(seed + 1))
    expected = TemperatureLogitsWarper(temperature)(tokens, RepetitionPenaltyLogitsProcessor(penalty)(tokens, logits))
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(tokens, expected)
    if top_p is not None:
        expected = TopPLogitsWarper(top_p)(tokens, expected)
    if min_p is not None:
        expected = MinPLogitsWarper(min_p)(tokens, expected)
    seen = torch.zeros(4, 30, dtype=torch.bool).scatter(1, tokens, True)
    found = probabilities(logits, Sampling(temperature, top_k, top_p, min_p, penalty), seen)
    torch.testing.assert_close(found, expected.softmax(-1), rtol=1e-4, atol=1e-30)
    assert (found[expected == -math.inf] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_probabilities_are_of_32_bits_and_sum_to_one(dtype: torch.dtype):
    found = probabilities(LOGITS.to(dtype)[None], Sampling(0.8, 5, 0.9))
    assert found.dtype == torch.float32
    assert float(found.sum()) == pytest.approx(1, abs=1e-6)


def test_filters_keep_what_they_should():
    def kept(sampling: Sampling) -> list[int]:
        return probabilities(LOGITS[None], sampling)[0].nonzero().flatten().tolist()

    chances = LOGITS.softmax(0)
    assert kept(Sampling()) == [0, 1, 2, 3, 4, 5, 6]
    assert kept(Sampling(top_k=3)) == [0, 1, 2]
    assert kept(Sampling(top_k=100)) == [0, 1, 2, 3, 4, 5, 6]
    assert kept(Sampling(top_p=float(chances[:2].sum()) - 0.01)) == [0, 1]
    assert kept(Sampling(top_p=float(chances[:2].sum()) + 0.01)) == [0, 1, 2]
    assert kept(Sampling(top_p=1e-9)) == [0]
    assert kept(Sampling(top_p=1.0)) == [0, 1, 2, 3, 4, 5, 6]
    # Top-p looks at what temperature and top-k have left: of two tokens the first has probability 0.73.
    assert kept(Sampling(top_k=2, top_p=0.72)) == [0]
    assert kept(Sampling(top_k=2, top_p=0.74)) == [0, 1]
    assert kept(Sampling(temperature=0.5, top_k=2, top_p=0.74)) == [0]
    # Logits of 1 and 0.5 below the highest have shares of 0.37 and 0.22; the highest always remains.
    assert kept(Sampling(min_p=0.0)) == [0, 1, 2, 3, 4, 5, 6]
    assert kept(Sampling(min_p=0.36)) == [0, 1]
    assert kept(Sampling(min_p=0.38)) == [0]
    assert kept(Sampling(min_p=1.0)) == [0]
    assert kept(Sampling(temperature=2.0, min_p=0.38)) == [0, 1, 2]


def test_all_tokens_of_a_large_vocabulary_are_kept_where_top_p_is_one():
    logits = torch.randn(1, 50_000, generator=seeded(0))
    assert (probabilities(logits, Sampling(top_p=1.0)) > 0).all()


def test_ties_are_kept_by_top_k_and_broken_towards_the_first_by_the_others():
    logits = torch.zeros(1, 100)
    logits[0, 0] = -1
    assert probabilities(logits, Sampling(top_k=5)).count_nonzero() == 99
    assert probabilities(logits, Sampling(top_p=1e-6)).argmax() == 1
    assert probabilities(logits, Sampling.greedy()).argmax() == 1
    assert sample(logits, Sampling.greedy(), seeded(0)).tolist() == [1]


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-20, 1e-3])
def test_a_low_temperature_approaches_greedy(temperature: float):
    logits = 1e4 * LOGITS[None]
    found = probabilities(logits, Sampling(temperature))
    assert torch.equal(found, probabilities(logits, Sampling.greedy()))
    assert found[0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


def test_greedy_is_temperature_zero_and_draws_nothing():
    assert Sampling.greedy() == Sampling(temperature=0)
    generator = seeded(3)
    logits = torch.randn(5, 9, generator=seeded(0))
    assert torch.equal(sample(logits, Sampling(0, top_k=4, top_p=0.5), generator), logits.argmax(-1))
    assert torch.equal(generator.get_state(), seeded(3).get_state())


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, top_k=5), Sampling(1.5, top_p=0.9)])
def test_draws_follow_the_probabilities(sampling: Sampling):
    draws = 40_000
    drawn = sample(LOGITS.expand(draws, -1), sampling, seeded(0))
    expected = probabilities(LOGITS[None], sampling)[0].double() * draws
    found = drawn.bincount(minlength=len(LOGITS))
    possible = expected > 0
    assert found[~possible].sum() == 0
    assert possible.sum() >= 5
    scale = draws / expected.sum()
    assert stats.chisquare(found[possible].numpy(), (expected[possible] * scale).numpy()).pvalue > 1e-3


def draw_next(monkeypatch: pytest.MonkeyPatch, draws: Tensor) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: draws.double())


def test_rare_tokens_of_a_large_vocabulary_keep_their_probability(monkeypatch: pytest.MonkeyPatch):
    # After a token of probability near 1, a sum in 32 bits would leap over 60 of these at a time.
    rare = 50_000
    logits = torch.zeros(1, 1 + rare)
    logits[0, 0] = math.log(1e9)
    wanted = torch.arange(20_000, 20_200)
    draw_next(monkeypatch, (1e9 + wanted.double() - 0.5) / (1e9 + rare))
    drawn = sample(logits.expand(200, -1), Sampling(), seeded(0))
    assert len(drawn.unique()) == 200
    assert (drawn - wanted).abs().max() <= 10


def test_impossible_tokens_are_never_drawn(monkeypatch: pytest.MonkeyPatch):
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    draw_next(monkeypatch, torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64))
    assert sample(logits.expand(3, -1), Sampling(), seeded(0)).tolist() == [1, 3, 3]


def test_the_highest_draw_gives_a_token_though_rounded_probabilities_sum_to_less_than_one(
    monkeypatch: pytest.MonkeyPatch,
):
    logits = torch.randn(50, 1000, generator=seeded(0))
    sums = probabilities(logits, Sampling()).double().sum(-1)
    draw_next(monkeypatch, torch.full((50,), 1 - 2**-53, dtype=torch.float64))
    assert (sums < 1 - 1e-9).any()
    assert (sample(logits, Sampling(), seeded(0)) == 999).all()


def test_draws_are_the_same_for_the_same_seed_and_differ_otherwise():
    logits = torch.zeros(200, 50)
    first = sample(logits, Sampling(), seeded(0))
    assert torch.equal(first, sample(logits, Sampling(), seeded(0)))
    assert (first != sample(logits, Sampling(), seeded(1))).float().mean() > 0.9


def test_a_row_with_its_own_generator_draws_as_it_would_alone():
    logits = torch.randn(6, 50, generator=seeded(0))
    together = sample(logits, Sampling(), [seeded(row) for row in range(6)])
    alone = [int(sample(logits[row : row + 1], Sampling(), seeded(row))) for row in range(6)]
    assert together.tolist() == alone


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, r"temperature -0\.1 is out of range: it must be finite and at least 0"),
        ({"temperature": math.inf}, "temperature inf"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"min_p": -0.1}, r"min_p -0\.1 is out of range: it must be from 0 to 1"),
        ({"min_p": 1.1}, r"min_p 1\.1"),
        ({"min_p": math.nan}, "min_p nan"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty 0\.0 is out of range: it must be from 0\.01 to 100"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty 1e-40"),
        ({"presence_penalty": math.nan}, "presence_penalty nan is out of range: it must be finite"),
        ({"frequency_penalty": -math.inf}, "frequency_penalty -inf"),
        ({"logit_bias": {3: math.inf}}, "logit_bias inf of token 3 is out of range"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias 1.0 of token -1 is out of range"),
        ({"repetition_penalty": math.inf}, "repetition_penalty inf"),
        ({"repetition_penalty": math.nan}, "repetition_penalty nan"),
        ({"top_k": 0}, "top_k 0 is out of range: it must be at least 1"),
        ({"top_p": 0.0}, r"top_p 0\.0 is out of range: it must be above 0 and at most 1"),
        ({"top_p": 1.01}, r"top_p 1\.01"),
        ({"top_p": math.nan}, "top_p nan"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Sampling(**values)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling.greedy()])
@pytest.mark.parametrize("row", [[0, math.nan], [0, math.inf], [-math.inf, -math.inf]])
def test_logits_that_give_no_probabilities_are_refused(sampling: Sampling, row: list[float]):
    logits = torch.tensor([[0.0, 1.0], row])
    with pytest.raises(ValueError, match="no token can be sampled from row 1"):
        sample(logits, sampling, seeded(0))
    with pytest.raises(ValueError, match="no token can be sampled from row 1"):
        probabilities(logits, sampling)


def test_generators_that_are_not_one_a_row_are_refused():
    with pytest.raises(ValueError, match="2 generators for 3 rows"):
        sample(torch.zeros(3, 4), Sampling(), [seeded(0), seeded(1)])


def test_seen_tokens_become_rarer_for_greedy_and_draws_alike():
    logits = torch.tensor([[2.0, 1.9, -1.0, -1.1]])
    seen = torch.tensor([[True, False, True, False]])
    sampling = Sampling(repetition_penalty=1.2)
    expected = torch.tensor([[2.0 / 1.2, 1.9, -1.0 * 1.2, -1.1]]).softmax(-1)
    torch.testing.assert_close(probabilities(logits, sampling, seen), expected)
    assert sample(logits, Sampling(0, repetition_penalty=1.2), seeded(0), seen).tolist() == [1]
    assert sample(logits, Sampling(0, repetition_penalty=1.2), seeded(0), ~seen).tolist() == [0]
    drawn = sample(logits.expand(40_000, -1), sampling, seeded(0), seen.expand(40_000, -1))
    share = drawn.bincount(minlength=4) / 40_000
    torch.testing.assert_close(share, expected[0], rtol=0, atol=0.01)


def test_a_penalty_without_what_was_seen_is_refused():
    for call in (probabilities, lambda *given: sample(*given, seeded(0))):
        with pytest.raises(ValueError, match=r"repetition_penalty 1.5 needs to know which tokens were seen"):
            call(torch.zeros(1, 4), Sampling(repetition_penalty=1.5))


def test_presence_and_frequency_penalties_are_those_of_the_api():
    logits = torch.tensor([[2.0, 1.5, 1.0, 0.5]])
    counts = torch.tensor([[3, 1, 0, 0]])
    sampling = Sampling(presence_penalty=0.25, frequency_penalty=0.5)
    expected = torch.tensor([[2.0 - 3 * 0.5 - 0.25, 1.5 - 0.5 - 0.25, 1.0, 0.5]]).softmax(-1)
    torch.testing.assert_close(probabilities(logits, sampling, counts=counts), expected)
    greedy = Sampling(0, presence_penalty=0.25, frequency_penalty=0.5)
    assert sample(logits, greedy, seeded(0), counts=counts).tolist() == [2]
    assert sample(logits, greedy, seeded(0), counts=0 * counts).tolist() == [0]
    with pytest.raises(ValueError, match=r"presence_penalty 0\.25 and frequency_penalty 0\.5 need to know how often"):
        probabilities(logits, sampling)


def test_a_bias_is_added_before_penalties():
    logits = torch.tensor([[1.0, 0.5, 0.0]])
    sampling = Sampling(logit_bias={2: 3.0, 0: -100.0}, repetition_penalty=2.0)
    seen = torch.tensor([[False, False, True]])
    expected = torch.tensor([[-99.0, 0.5, 1.5]]).softmax(-1)
    torch.testing.assert_close(probabilities(logits, sampling, seen), expected)
    with pytest.raises(ValueError, match="logit_bias has token 3, but ids are 0 to 2"):
        sample(logits, Sampling(logit_bias={3: 1.0}), seeded(0))


def test_penalties_do_not_overflow_in_16_bits():
    logits = torch.tensor([[60_000.0, 0.0, -60_000.0]], dtype=torch.float16)
    seen = torch.ones(1, 3, dtype=torch.bool)
    for penalty in (0.01, 100.0):
        assert probabilities(logits, Sampling(repetition_penalty=penalty), seen)[0].tolist() == [1, 0, 0]
