"""Speculation: the same greedy texts in fewer steps, and draws of the model's own distribution."""

from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from allyouneed.papers.llama1 import Llama, LlamaConfig
from allyouneed.papers.serving import (
    DraftToken,
    Engine,
    Gathered,
    Limits,
    ModelDraft,
    NGramDraft,
    Request,
    accept,
)
from allyouneed.text import Sampling, generate, probabilities, sample
from allyouneed.text.generation import row_generator

GREEDY = Sampling.greedy()
LIMITS = Limits(max_num_sequences=4, max_batched_tokens=32, max_draft_tokens=4)
PROMPTS = [[1, 2, 3, 4] * 3, [5], [6, 7, 8, 9, 6, 7], list(range(20))]


@cache
def model(seed: int = 0) -> Llama:
    """Give the target with seed 0; others are drafts, which agree with it now and then."""
    torch.manual_seed(0)
    target = Llama(LlamaConfig(32, 16, 1, 2, 32, context=120, initial_deviation=0.3)).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in target.parameters() if seed else ():
            weight.add_(0.1 * torch.randn_like(weight))
    return target


@cache
def alone(place: int, new_tokens: int = 24) -> list[int]:
    return generate(model(), [PROMPTS[place]], new_tokens=new_tokens, sampling=GREEDY)[0]


class TestTexts:
    @pytest.mark.parametrize("kind", ["ngram", "draft", "itself"])
    def test_greedy_texts_are_equal_and_take_fewer_steps(self, kind: str) -> None:
        draft = {"ngram": NGramDraft(), "draft": ModelDraft(model(1)), "itself": ModelDraft(model(0))}[kind]
        engine = Engine(model(), limits=LIMITS, draft=draft, block_size=4)
        texts = engine.generate(PROMPTS, new_tokens=24, sampling=GREEDY)
        assert texts == [alone(place) for place in range(len(PROMPTS))]
        told = engine.statistics
        assert 0 < told.accepted_tokens <= told.draft_tokens and told.allocated_blocks == 0
        # The prompts are two steps, and then each gives a text a token more than what is accepted.
        assert told.steps < 2 + 23
        if kind == "itself":
            assert told.accepted_tokens == told.draft_tokens and told.steps == 2 + -(-23 // 5)
        # What was proposed in vain has left nothing: the next turns find blocks of what was written, and go on alike.
        longer = [[*prompt, *text, 1] for prompt, text in zip(PROMPTS, texts, strict=True)]
        plain = [generate(model(), [row], new_tokens=12, sampling=GREEDY)[0] for row in longer]
        assert engine.generate(longer, new_tokens=12, sampling=GREEDY) == plain
        assert engine.statistics.cache_hit_tokens > 0

    def test_texts_end_where_they_should(self) -> None:
        engine, own = Engine(model(), limits=LIMITS, draft=ModelDraft(model())), Gathered()
        text = alone(0)
        last = next(place for place in range(2, 24) if text[place] not in text[:place])
        engine.submit(Request(PROMPTS[0], 24, own, GREEDY, stop={text[last]}))
        while engine.step():
            engine.pool.check(text.table for text in engine.scheduler)
        assert own.tokens[0] == text[:last] and own.reasons == {0: "stop"}
        for new_tokens in (1, 2, 5, 6, 7):
            assert engine.generate([PROMPTS[0]], new_tokens=new_tokens, sampling=GREEDY) == [text[:new_tokens]]

    def test_drawn_texts_do_not_depend_on_who_else_is_served(self) -> None:
        def text(others: int, cache_tokens: int) -> list[int]:
            engine = Engine(
                model(),
                limits=LIMITS,
                draft=ModelDraft(model(1)),
                block_size=4,
                cache_tokens=cache_tokens,
                sharing=False,
            )
            gathered = [Gathered() for _ in range(others + 1)]
            for place, own in enumerate(gathered):
                engine.submit(Request(PROMPTS[(place + others) % 4], 20, own, Sampling(), seed=3))
            while engine.step():
                engine.pool.check(text.table for text in engine.scheduler)
            assert others < 4 or engine.statistics.preemptions
            return next(own.tokens[0] for place, own in enumerate(gathered) if (place + others) % 4 == 0)

        assert text(0, 400) == text(4, 80)

    def test_an_engine_that_is_asked_for_half_of_it(self) -> None:
        with pytest.raises(ValueError, match="give both, or neither"):
            Engine(model(), limits=LIMITS)
        with pytest.raises(ValueError, match="give both, or neither"):
            Engine(model(), draft=NGramDraft())

    def test_a_draft_that_fails_is_done_without(self) -> None:
        class Failing(NGramDraft):
            def propose(self, tokens: Any, most: int) -> list[DraftToken]:
                raise MemoryError("no memory")

        engine = Engine(model(), limits=LIMITS, draft=Failing())
        with pytest.warns(UserWarning, match="nothing is proposed, because the draft failed"):
            assert engine.generate([PROMPTS[0]], new_tokens=5, sampling=GREEDY) == [alone(0)[:5]]


class TestDrafts:
    def test_n_grams_propose_what_followed_the_latest(self) -> None:
        draft = NGramDraft(longest=3, shortest=2)

        def proposed(tokens: list[int], most: int = 4) -> list[int]:
            return [proposal.token for proposal in draft.propose(tokens, most)]

        assert proposed([1, 2, 3, 9, 1, 2, 3]) == [9, 1, 2, 3]
        assert proposed([1, 2, 3, 9, 1, 2, 3], 2) == [9, 1]
        # The latest, and a longer end before a shorter one.
        assert proposed([1, 2, 7, 1, 2, 8, 1, 2]) == [8, 1, 2]
        assert proposed([3, 1, 2, 7, 1, 2, 8, 3, 1, 2]) == [7, 1, 2, 8]
        assert proposed([1, 2, 3, 4, 2]) == proposed([1]) == proposed([1, 2]) == []
        with pytest.raises(ValueError, match="from 3 to 2 tokens"):
            NGramDraft(2, 3)

    def test_a_model_proposes_what_it_would_write(self) -> None:
        drafting = ModelDraft(model(1)).begin(GREEDY, 0, 0)
        written = generate(model(1), [PROMPTS[0]], new_tokens=8, sampling=GREEDY)[0]
        assert [own.token for own in drafting.propose(PROMPTS[0], 3)] == written[:3]
        # Some of it was not accepted.
        other = [*PROMPTS[0], written[0], 31]
        expected = generate(model(1), [other], new_tokens=4, sampling=GREEDY)[0]
        assert [own.token for own in drafting.propose(other, 4)] == expected
        assert drafting.propose([1] * 118, 4) == []

    def test_drawn_proposals_say_what_they_were_sampled_from(self) -> None:
        drafting = ModelDraft(model(1)).begin(Sampling(0.5, top_k=5), 4, 1)
        again = ModelDraft(model(1)).begin(Sampling(0.5, top_k=5), 4, 1)
        for proposal, same in zip(drafting.propose([1, 2], 4), again.propose([1, 2], 4), strict=True):
            assert proposal.sampled_from is not None and float(proposal.sampled_from[proposal.token]) > 0
            assert int((proposal.sampled_from > 0).sum()) == 5
            assert proposal.token == same.token


SIZE = 4


def distributions(seed: int, *shape: int) -> Tensor:
    return (0.7 * torch.randn(*shape, SIZE, generator=torch.Generator().manual_seed(seed))).softmax(-1)


class TestDistribution:
    """Two tokens after a text, of which the draft proposes both: by chance as likely as the model says."""

    TARGET = (distributions(0), distributions(1, SIZE), distributions(2, SIZE, SIZE))
    DRAFT = (distributions(3), distributions(4, SIZE))

    def pairs(self, draws: int, *, certain: bool = False, accept_all: bool = False) -> Counter[tuple[int, int]]:
        generator, found = torch.Generator().manual_seed(5), Counter()
        first, second, third = self.TARGET
        for _ in range(draws):
            one = 1 if certain else int(torch.multinomial(self.DRAFT[0], 1, generator=generator))
            two = 2 if certain else int(torch.multinomial(self.DRAFT[1][one], 1, generator=generator))
            rows = torch.stack((first, second[one], third[one, two])).log()
            proposals = [
                DraftToken(one, None if certain else self.DRAFT[0]),
                DraftToken(two, None if certain else self.DRAFT[1][one]),
            ]
            taken = [one, two] if accept_all else accept(rows, proposals, Sampling(), generator)
            if len(taken) == 1:
                taken = [*taken, int(sample(second[taken[0]].log()[None], Sampling(), generator))]
            found[taken[0], taken[1]] += 1
        return found

    def significance(self, found: Counter[tuple[int, int]]) -> float:
        expected = (self.TARGET[0][:, None] * self.TARGET[1]).double() * found.total()
        observed = [found[one, two] for one in range(SIZE) for two in range(SIZE)]
        return float(chisquare(observed, (expected / expected.sum() * found.total()).flatten().tolist()).pvalue)

    @pytest.mark.parametrize("certain", [False, True], ids=["drawn", "certain"])
    def test_is_the_models(self, certain: bool) -> None:
        assert self.significance(self.pairs(1500, certain=certain)) > 0.01

    def test_would_be_another_if_all_were_accepted(self) -> None:
        assert self.significance(self.pairs(400, accept_all=True)) < 1e-6

    @pytest.mark.parametrize("certain", [False, True], ids=["drawn", "certain"])
    def test_is_accepted_as_often_as_the_paper_says(self, certain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """For each of four draft tokens and evenly spaced random numbers: min(1, p / q), and the rest of p over q."""
        wanted, steps = self.TARGET[0].double(), 250
        rows = self.TARGET[0].log()[None].repeat(2, 1)
        given: list[Tensor] = []
        rand = torch.rand

        def evenly(*size: Any, **options: Any) -> Tensor:
            return given[0] if size == (2,) else rand(*size, **options)

        monkeypatch.setattr(torch, "rand", evenly)
        grid = [(number + 0.5) / steps for number in range(steps)]
        found = torch.zeros(SIZE, dtype=torch.float64)
        for token in range(SIZE):
            given_by = torch.eye(SIZE)[token] if certain else self.DRAFT[0]
            drafted = DraftToken(token, None if certain else given_by)

            def first(one: float, two: float, drafted: DraftToken = drafted) -> int:
                given[:] = [torch.tensor([one, two], dtype=torch.float64)]
                return accept(rows, [drafted], Sampling(), torch.Generator().manual_seed(0))[0]

            accepted = sum(first(one, 0.5) == token for one in grid) / steps
            chance = min(1.0, float(wanted[token] / given_by[token]))
            assert accepted == pytest.approx(chance, abs=1 / steps)
            mixed = torch.zeros(SIZE, dtype=torch.float64)
            mixed[token] = accepted
            if chance < 1:
                rest = (wanted - given_by).clamp(min=0)
                replaced = Counter(first(1 - 1e-9, two) for two in grid)
                shares = torch.tensor([replaced[other] / steps for other in range(SIZE)], dtype=torch.float64)
                torch.testing.assert_close(shares, rest / rest.sum(), atol=1 / steps, rtol=0)
                mixed += (1 - accepted) * shares
            if certain:
                torch.testing.assert_close(mixed, wanted, atol=2 / steps, rtol=0)
            found += float(self.DRAFT[0][token]) * mixed
        torch.testing.assert_close(found, wanted, atol=2 / steps, rtol=0)

    @torch.no_grad()
    def test_the_drafts_random_numbers_are_not_its_targets(self) -> None:
        """With both sides' own numbers for each seed, as many are accepted as if they were independent."""
        sampling, draws, prompt = Sampling(), 600, PROMPTS[0]
        wanted = probabilities(model().last_logits(torch.tensor([prompt]), cache=model().new_cache()), sampling)[0]
        rows = wanted.log()[None].repeat(2, 1)
        accepted, alike, found = 0, 0, Counter()
        for seed in range(draws):
            (drafted,) = ModelDraft(model(1)).begin(sampling, seed, 0).propose(prompt, 1)
            assert drafted.sampled_from is not None
            own = row_generator(seed, 0)
            token = accept(rows, [drafted], sampling, own)[0]
            accepted += token == drafted.token
            found[token] += 1
            alike += int(sample(drafted.sampled_from.log()[None], sampling, [row_generator(seed, 0)])) == drafted.token
        chance = float(torch.minimum(wanted, drafted.sampled_from).sum())
        assert abs(accepted / draws - chance) < 4 * (chance * (1 - chance) / draws) ** 0.5
        same = float((drafted.sampled_from**2).sum())
        assert abs(alike / draws - same) < 4 * (same * (1 - same) / draws) ** 0.5
        likely = [token for token in range(32) if wanted[token] * draws >= 5]
        observed = [found[token] for token in likely]
        expected = [float(wanted[token]) * draws for token in likely]
        observed, expected = [*observed, draws - sum(observed)], [*expected, draws - sum(expected)]
        assert chisquare(observed, expected).pvalue > 0.001

    def test_keeps_filters(self) -> None:
        rows = self.TARGET[0].log()[None].repeat(2, 1)
        likeliest = int(rows[0].argmax())
        for token in range(SIZE):
            taken = accept(rows, [DraftToken(token)], Sampling(top_k=1), torch.Generator())
            assert taken == ([likeliest, likeliest] if token == likeliest else [likeliest])

    def test_without_proposals_is_plain_sampling(self) -> None:
        rows = self.TARGET[0].log()[None]
        ours, plain = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
        for _ in range(20):
            assert accept(rows, [], Sampling(), ours) == sample(rows, Sampling(), plain).tolist()

    def test_repetition_is_penalised_within_proposals(self) -> None:
        rows = torch.tensor([[2.0, 1.9, 0.0, 0.0]] * 3)
        seen = torch.zeros(SIZE, dtype=torch.bool)
        sampling = Sampling(0.0, repetition_penalty=1.5)
        assert accept(rows, [DraftToken(0), DraftToken(1)], sampling, torch.Generator(), seen) == [0, 1, 0]
        assert not bool(seen.any())

    def test_what_was_generated_is_penalised_within_proposals(self) -> None:
        rows = torch.tensor([[2.0, 1.9, 0.0, 0.0]] * 3)
        counts = torch.zeros(SIZE, dtype=torch.int32)
        sampling = Sampling(0.0, frequency_penalty=0.3)
        tokens = [DraftToken(0), DraftToken(1)]
        assert accept(rows, tokens, sampling, torch.Generator(), counts=counts) == [0, 1, 0]
        assert not bool(counts.any())

    def test_rows_and_proposals_that_do_not_fit(self) -> None:
        with pytest.raises(ValueError, match="1 draft tokens need 2 rows of logits, not 1"):
            accept(self.TARGET[0].log()[None], [DraftToken(0)], Sampling(), torch.Generator())
