"""Beam search against exhaustive search, against a plain loop, and against greedy decoding."""

import itertools
import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from allyouneed.nn import (
    Attention,
    Block,
    CrossBlock,
    Decoder,
    Encoder,
    EncoderDecoder,
    FeedForward,
    PostNorm,
    RecurrentEncoderDecoder,
    SinusoidalPositions,
)
from allyouneed.text import Hypothesis, Translator, beam_search, length_penalty

BEGIN, END = 0, 1


class Rows:
    """The state of a `Table`: what was said of each target, and the source of each row."""

    def __init__(self, sources: Sequence[tuple[int, ...]]):
        self.sources = list(sources)
        self.targets: list[tuple[int, ...]] = [()] * len(sources)
        self.selections = 0

    def of_row(self, row: int) -> tuple[int, ...]:
        return self.sources[row * len(self.sources) // len(self.targets)]

    def select(self, rows: Tensor, sources: Tensor | None = None) -> None:
        self.selections += 1
        before, after = self.targets, [self.targets[row] for row in rows.tolist()]
        origins = [row * len(self.sources) // len(before) for row in rows.tolist()]
        kept = list(range(len(self.sources))) if sources is None else sources.tolist()
        share = len(after) // len(kept)
        assert origins == [source for source in kept for _ in range(share)], "rows of one source stand together"
        self.targets = after
        self.sources = [self.sources[source] for source in kept]


class Table(nn.Module):
    """A model that is a table: logits drawn anew for each source and each beginning of a target."""

    def __init__(self, vocabulary: int, seed: int = 0, words: int | None = None, spread: float = 2.0):
        super().__init__()
        self.vocabulary, self.seed, self.words, self.spread = vocabulary, seed, words, spread
        self.calls: list[int] = []

    def logits(self, source: tuple[int, ...], target: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, source, target)) % 2**40)
        drawn = self.spread * torch.randn(self.vocabulary, generator=generator)
        if self.words is not None:
            # The end and so many words are possible.
            drawn[0] = -torch.inf
            drawn[2 + self.words :] = -torch.inf
        return drawn

    def start(self, source: Tensor, *, present: Tensor | None = None, limit: int | None = None) -> Rows:
        there = torch.ones_like(source, dtype=torch.bool) if present is None else present
        return Rows([tuple(row[seen].tolist()) for row, seen in zip(source, there, strict=True)])

    def next_logits(self, tokens: Tensor, state: Rows) -> Tensor:
        assert len(tokens) == len(state.targets)
        self.calls.append(len(tokens))
        state.targets = [(*target, token) for target, token in zip(state.targets, tokens.tolist(), strict=True)]
        return torch.stack([self.logits(state.of_row(row), target) for row, target in enumerate(state.targets)])


def gains(model: Table, source: Sequence[int], target: Sequence[int]) -> list[float]:
    return model.logits(tuple(source), (BEGIN, *target)).log_softmax(-1).tolist()


def all_targets(vocabulary: int, limit: int) -> Iterator[tuple[int, ...]]:
    """Every target of at most `limit` tokens, its end among them."""
    words = [token for token in range(vocabulary) if token != END]
    for length in range(limit):
        yield from itertools.product(words, repeat=length)


def exhaustive(model: Table, source: Sequence[int], limit: int, alpha: float) -> Hypothesis:
    best: Hypothesis | None = None
    words = model.vocabulary if model.words is None else 2 + model.words
    for target in all_targets(words, limit):
        total = sum(gains(model, source, target[:place])[token] for place, token in enumerate((*target, END)))
        score = total / ((5 + len(target) + 1) / 6) ** alpha
        if best is None or score > best.score:
            best = Hypothesis(list(target), total, score)
    assert best is not None
    return best


def same(actual: Hypothesis, expected: Hypothesis) -> None:
    assert actual.tokens == expected.tokens
    assert actual.log_probability == pytest.approx(expected.log_probability, abs=1e-4)
    assert actual.score == pytest.approx(expected.score, abs=1e-4)


def test_the_length_penalty_is_the_formula():
    assert length_penalty(1, 0.6) == 1.0
    assert length_penalty(7, 0.0) == 1.0
    assert length_penalty(19, 0.6) == pytest.approx(4**0.6)


class TestAgainstExhaustiveSearch:
    """Where the beam holds all beginnings that there are, nothing can be missed."""

    @settings(max_examples=60, deadline=None)
    @given(
        vocabulary=st.integers(2, 7),
        seed=st.integers(0, 1000),
        alpha=st.sampled_from([0.0, 0.6, 1.0]),
        sources=st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=3), min_size=1, max_size=4),
    )
    def test_two_tokens_over_a_tiny_vocabulary(self, vocabulary, seed, alpha, sources):
        model = Table(vocabulary, seed)
        found = []
        for source in sources:
            found += beam_search(
                model,
                [source],
                begin=BEGIN,
                end=END,
                beam=vocabulary,
                alpha=alpha,
                limit=2,
                patient=True,
            )
        for source, hypothesis in zip(sources, found, strict=True):
            same(hypothesis, exhaustive(model, source, 2, alpha))

    @settings(max_examples=40, deadline=None)
    @given(seed=st.integers(0, 1000), alpha=st.sampled_from([0.0, 0.6]), length=st.integers(1, 4))
    def test_longer_targets_of_few_possible_words(self, seed: int, alpha: float, length: int):
        """Two words and the end: 24 beams hold all that four tokens and the end can begin with."""
        model = Table(30, seed, words=2)
        source = list(range(2, 2 + length))
        (found,) = beam_search(model, [source], begin=BEGIN, end=END, beam=24, alpha=alpha, limit=5, patient=True)
        same(found, exhaustive(model, source, 5, alpha))

    @settings(max_examples=40, deadline=None)
    @given(seed=st.integers(0, 1000), words=st.integers(1, 2))
    def test_without_a_penalty_impatience_costs_nothing(self, seed: int, words: int):
        model = Table(30, seed, words=words)
        (found,) = beam_search(model, [[2, 3]], begin=BEGIN, end=END, beam=24, alpha=0.0, limit=5)
        same(found, exhaustive(model, [2, 3], 5, 0.0))

    def test_a_narrow_beam_finds_nothing_better_and_misses_something(self):
        missed = 0
        for seed in range(30):
            model = Table(6, seed)
            best = exhaustive(model, [2], 4, 0.6).score
            (found,) = beam_search(model, [[2]], begin=BEGIN, end=END, beam=2, limit=4)
            assert found.score <= best + 1e-6
            missed += found.score < best - 1e-6
        assert 0 < missed < 30


def plain_loop(
    model: Table, source: Sequence[int], beam: int, alpha: float, limit: int, patient: bool
) -> tuple[Hypothesis | None, int]:
    """The search as the docstring says it, one source, in lists; also the number of steps."""
    alive: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    best: Hypothesis | None = None
    for step in range(1, limit + 1):
        ranked = sorted(
            (
                (total + gain, (*target, token))
                for total, target in alive
                for token, gain in enumerate(gains(model, source, target))
                if token == END or step < limit
            ),
            reverse=True,
        )
        for total, target in ranked[:beam]:
            score = total / length_penalty(step, alpha)
            if target[-1] == END and (best is None or score > best.score):
                best = Hypothesis(list(target[:-1]), total, score)
        alive = [(total, target) for total, target in ranked if target[-1] != END][:beam]
        hope = alive[0][0] / length_penalty(limit if patient else step, alpha) if alive else -math.inf
        if best is not None and hope <= best.score:
            return best, step
    return best, limit


@settings(max_examples=60, deadline=None)
@given(
    vocabulary=st.integers(2, 12),
    beam=st.integers(1, 12),
    seed=st.integers(0, 1000),
    alpha=st.sampled_from([0.0, 0.6, 1.3]),
    limit=st.integers(1, 8),
    patient=st.booleans(),
    batch=st.integers(1, 4),
    sources=st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=4), min_size=1, max_size=5),
)
def test_equals_a_plain_loop(vocabulary, beam, seed, alpha, limit, patient, batch, sources):
    model = Table(vocabulary, seed)
    beam = min(beam, vocabulary)
    found = beam_search(
        model,
        sources,
        begin=BEGIN,
        end=END,
        beam=beam,
        alpha=alpha,
        limit=limit,
        batch=batch,
        patient=patient,
    )
    for source, hypothesis in zip(sources, found, strict=True):
        expected, _ = plain_loop(model, source, beam, alpha, limit, patient)
        assert expected is not None
        same(hypothesis, expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), length=st.integers(1, 5))
def test_a_beam_of_one_is_greedy(seed: int, length: int):
    model = Table(9, seed)
    source = list(range(2, 2 + length))
    target: list[int] = []
    while len(target) < length + 6:
        scores = gains(model, source, target)
        token = scores.index(max(scores))
        if token == END:
            break
        target.append(token)
    (found,) = beam_search(model, [source], begin=BEGIN, end=END, beam=1, further=6)
    assert found.tokens == target


def test_a_source_that_is_done_leaves_its_batch():
    model = Table(12, seed=3)
    sources = [[2, place] for place in range(2, 10)]
    beam_search(model, sources, begin=BEGIN, end=END, beam=3, batch=8)
    steps = [plain_loop(model, source, 3, 0.6, 53, False)[1] for source in sources]
    assert len(set(steps)) > 2
    rows = [8, *(3 * sum(taken > step for taken in steps) for step in range(1, max(steps)))]
    assert model.calls == rows


def test_targets_end_at_their_own_limit():
    class Endless(Table):
        def logits(self, source: tuple[int, ...], target: tuple[int, ...]) -> Tensor:
            return torch.tensor([-20.0, -10.0, 0.0, -1.0, -2.0])

    found = beam_search(Endless(5), [[2], [2, 3, 4]], begin=BEGIN, end=END, beam=2, further=4, patient=True)
    assert [len(hypothesis.tokens) for hypothesis in found] == [5, 7]
    found = beam_search(Endless(5), [[2], [2, 3, 4]], begin=BEGIN, end=END, beam=2, limit=3, patient=True)
    assert [len(hypothesis.tokens) for hypothesis in found] == [2, 2]


def transformer(width: int = 16, vocabulary: int = 21, layers: int = 1) -> EncoderDecoder:
    def attention() -> nn.Module:
        return PostNorm(Attention(width, 4), nn.LayerNorm(width))

    def feed_forward() -> nn.Module:
        return PostNorm(FeedForward(width), nn.LayerNorm(width))

    blocks = [Block(attention(), feed_forward()) for _ in range(layers)]
    encoder = Encoder(vocabulary, width, blocks, positions=SinusoidalPositions(width), embedding_scale=width**0.5)
    blocks = [CrossBlock(attention(), attention(), feed_forward()) for _ in range(layers)]
    decoder = Decoder(vocabulary, width, blocks, positions=SinusoidalPositions(width), embedding_scale=width**0.5)
    return EncoderDecoder(encoder, decoder, shared=True)


MODELS = {"transformer": transformer, "recurrent": lambda: RecurrentEncoderDecoder(21, 21, 16, dropout=0.5)}


@pytest.mark.parametrize("kind", list(MODELS))
def test_with_real_models_batches_change_nothing_and_scores_are_true(kind: str):
    torch.manual_seed(0)
    model = MODELS[kind]()
    for parameter in model.parameters():
        parameter.data *= 2.0
    assert isinstance(model, Translator)
    sources = [[2, 3, 4, 5, 6, 7], [8], [9, 10, 11], [4, 4, 4, 4], [12, 13]]
    options = {"begin": BEGIN, "end": END, "beam": 5, "further": 6}
    together = beam_search(model, sources, **options)
    assert model.training
    for source, hypothesis in zip(sources, together, strict=True):
        (alone,) = beam_search(model, [source], **options)
        same(alone, hypothesis)
    model.eval()
    with torch.no_grad():
        for source, hypothesis in zip(sources, together, strict=True):
            target = torch.tensor([[BEGIN, *hypothesis.tokens, END]])
            logits = model(torch.tensor([source]), target[:, :-1])
            total = float(logits.log_softmax(-1).gather(2, target[:, 1:, None]).sum())
            assert hypothesis.log_probability == pytest.approx(total, abs=1e-3)
            assert hypothesis.score == pytest.approx(total / length_penalty(len(hypothesis.tokens) + 1, 0.6), abs=1e-3)


class TestRefused:
    def search(self, sources: list[list[int]] | None = None, *, vocabulary: int = 5, **settings) -> None:
        settings = {"begin": BEGIN, "end": END, "beam": 2} | settings
        beam_search(Table(vocabulary), sources or [[2]], **settings)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"beam": 0}, "beam 0 is out of range: it must be finite and at least 1"),
            ({"batch": 0}, "batch 0 is out of range"),
            ({"alpha": -0.1}, "alpha -0.1 is out of range"),
            ({"alpha": math.nan}, "alpha nan is out of range"),
            ({"further": -1}, "further -1 is out of range"),
            ({"limit": 0}, "limit 0 is out of range"),
            ({"beam": 6}, "a beam of 6 is wider than the vocabulary of 5 tokens: it must be 5 or less"),
            ({"end": 5}, "the end token 5 is not in the vocabulary: ids are 0 to 4"),
        ],
    )
    def test_numbers_out_of_range(self, settings: dict, message: str):
        with pytest.raises(ValueError, match=message):
            self.search(**settings)

    def test_an_empty_source(self):
        with pytest.raises(ValueError, match="source 1 is empty"):
            self.search([[2], []])

    def test_logits_that_are_not_numbers(self):
        class Broken(Table):
            def logits(self, source: tuple[int, ...], target: tuple[int, ...]) -> Tensor:
                return torch.full((5,), torch.nan)

        with pytest.raises(ValueError, match="not a number"):
            beam_search(Broken(5), [[2]], begin=BEGIN, end=END, beam=2)

    def test_an_end_that_is_impossible(self):
        class Endless(Table):
            def logits(self, source: tuple[int, ...], target: tuple[int, ...]) -> Tensor:
                return torch.tensor([0.0, -torch.inf, 0.0])

        with pytest.raises(ValueError, match=r"no target of source 0 .* has a probability above 0 within its limit"):
            beam_search(Endless(3), [[2]], begin=BEGIN, end=END, beam=2)


def test_no_sources_give_no_targets():
    assert beam_search(Table(5), [], begin=BEGIN, end=END) == []
