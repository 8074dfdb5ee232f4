from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from allyouneed.nn import (
    Attention,
    Block,
    Decoder,
    FeedForward,
    KeyValueCache,
    LearnedPositions,
    PositionScheme,
    PreNorm,
    RotaryPositions,
    SinusoidalPositions,
)
from allyouneed.papers.alibi.alibi import ALiBi
from allyouneed.text import LanguageModel, Sampling, continuations, generate

VOCABULARY, WIDTH, HEADS, LIMIT = 40, 24, 3, 64
PROMPTS = [[5, 6, 7], [1], [9, 8, 7, 6, 5, 4, 3, 2], [5, 6]]
SCHEMES: dict[str, Callable[[], PositionScheme]] = {
    "none": PositionScheme,
    "learned": lambda: LearnedPositions(LIMIT, WIDTH),
    "sinusoidal": lambda: SinusoidalPositions(WIDTH),
    "rotary": lambda: RotaryPositions(WIDTH // HEADS),
    "alibi": lambda: ALiBi(HEADS),
}
MODES = [Sampling.greedy(), Sampling(1.0), Sampling(1.3, top_k=20, top_p=0.9)]


def decoder(scheme: str = "rotary", dropout: float = 0.0) -> Decoder:
    """Build a small model whose next token depends on the tokens before, far back too."""
    torch.manual_seed(1)
    blocks = [
        Block(
            PreNorm(Attention(WIDTH, HEADS), nn.LayerNorm(WIDTH), dropout),
            PreNorm(FeedForward(WIDTH), nn.LayerNorm(WIDTH), dropout),
        )
        for _ in range(2)
    ]
    # Tied, a model so young would repeat its last token for ever.
    model = Decoder(
        VOCABULARY, WIDTH, blocks, positions=SCHEMES[scheme](), norm=nn.LayerNorm(WIDTH), tied=False, dropout=dropout
    )
    for block in model.modules():
        if isinstance(block, Attention):
            nn.init.normal_(block.query.weight, std=0.5)
            nn.init.normal_(block.key.weight, std=0.5)
    return model.double()


class Recorder(nn.Module):
    """A decoder that keeps what it was asked and what it answered."""

    def __init__(self, model: Decoder):
        super().__init__()
        self.model = model
        self.fed: list[tuple[int, ...]] = []
        self.masked: list[bool] = []
        self.logits: list[Tensor] = []

    def forward(self, tokens: Tensor, *, present: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        self.fed.append(tuple(tokens.shape))
        self.masked.append(present is not None)
        logits = self.model(tokens, present=present, cache=cache)
        self.logits.append(logits[:, -1])
        return logits

    def new_cache(self, limit: int | None = None, capacity: int = 64) -> KeyValueCache:
        return self.model.new_cache(limit, capacity)


class Script(nn.Module):
    """Continues each row by counting on from its last token that is present, modulo the vocabulary."""

    def forward(self, tokens: Tensor, *, present: Tensor | None = None, cache: None = None) -> Tensor:
        return nn.functional.one_hot((tokens + 1) % 10, 10).float()

    def new_cache(self, limit: int | None = None, capacity: int = 64) -> None:
        return None


def by_hand(model: Decoder, prompt: Sequence[int], new_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(new_tokens):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_row_is_as_it_would_be_alone(scheme: str, use_cache: bool):
    model = decoder(scheme).eval()
    together = Recorder(model)
    rows = generate(together, PROMPTS, new_tokens=12, sampling=Sampling.greedy(), use_cache=use_cache)
    for row, prompt in enumerate(PROMPTS):
        alone = Recorder(model)
        assert [rows[row]] == generate(alone, [prompt], new_tokens=12, sampling=Sampling.greedy(), use_cache=use_cache)
        assert rows[row] == by_hand(model, prompt, 12)
        for ours, its in zip(together.logits, alone.logits, strict=True):
            torch.testing.assert_close(ours[row], its[0], rtol=1e-9, atol=1e-9)
    assert len({tuple(row) for row in rows}) == len(rows)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_padding_would_change_the_logits_were_it_present(scheme: str):
    # Without this the test above could pass with a model that ignores what precedes.
    model = decoder(scheme)
    padded, alone = torch.tensor([[0, 0, 0, 5, 6, 7]]), torch.tensor([[5, 6, 7]])
    assert (model(padded)[0, -1] - model(alone)[0, -1]).abs().max() > 1e-2


@pytest.mark.parametrize("sampling", MODES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_cache_changes_no_token(scheme: str, sampling: Sampling):
    model = decoder(scheme)
    options: dict[str, Any] = {"new_tokens": 12, "sampling": sampling, "stop": {3, 4}, "seed": 5}
    assert generate(model, PROMPTS, **options) == generate(model, PROMPTS, use_cache=False, **options)


@pytest.mark.parametrize("sampling", MODES[1:])
def test_a_row_draws_the_same_whatever_stands_beside_it(sampling: Sampling):
    model = decoder("alibi")
    rows = generate(model, PROMPTS, new_tokens=20, sampling=sampling, seed=3)
    others = [[2] * 11, PROMPTS[1], [30]]
    assert generate(model, others, new_tokens=20, sampling=sampling, seed=3)[1] == rows[1]
    assert generate(model, PROMPTS[:1], new_tokens=20, sampling=sampling, seed=3) == rows[:1]


def test_draws_depend_on_the_seed_and_on_the_row():
    model = decoder()
    options: dict[str, Any] = {"new_tokens": 20, "sampling": Sampling()}
    first = generate(model, [[1, 2]] * 3, seed=0, **options)
    assert len({tuple(row) for row in first}) == 3
    assert generate(model, [[1, 2]] * 3, seed=0, **options) == first
    other = generate(model, [[1, 2]] * 3, seed=1, **options)
    # Row 1 of a seed must not be row 0 of the next.
    assert not {tuple(row) for row in first} & {tuple(row) for row in other}
    assert generate(model, [[1, 2]] * 3, new_tokens=20) == first


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_global_random_state_is_left_alone(use_cache: bool):
    model = decoder()
    before = torch.get_rng_state()
    generate(model, PROMPTS, new_tokens=3, use_cache=use_cache)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_stop_token_ends_its_row_and_is_left_out():
    rows = generate(Script(), [[1], [2, 3, 4], [8]], new_tokens=4, sampling=Sampling.greedy(), stop={5, 9})
    assert rows == [[2, 3, 4], [], []]
    assert generate(Script(), [[1]], new_tokens=3, sampling=Sampling.greedy(), stop=[5]) == [[2, 3, 4]]


def test_it_ends_when_all_rows_have():
    recorder = Recorder(decoder())
    rows = generate(recorder, PROMPTS, new_tokens=40, sampling=Sampling.greedy(), stop=range(VOCABULARY))
    assert rows == [[], [], [], []]
    assert recorder.fed == [(4, 8)]


@pytest.mark.parametrize("use_cache", [True, False])
def test_an_ended_row_takes_up_no_positions(use_cache: bool):
    # Beside a short prompt, a long one that stops early would run off the end of the table.
    # The recorder does not say what its context is, so that this is found out only then.
    model = Recorder(decoder("learned"))
    long = [number % VOCABULARY for number in range(LIMIT - 1)]
    end = by_hand(model, long, 1)[0]
    short = next([token] for token in range(VOCABULARY) if end not in by_hand(model, [token], 20))
    options: dict[str, Any] = {"new_tokens": 20, "sampling": Sampling.greedy(), "use_cache": use_cache}
    assert generate(model, [long, short], stop=[end], **options) == [[], by_hand(model, short, 20)]
    with pytest.raises(ValueError, match=f"position {LIMIT} is beyond the learned table"):
        generate(model, [long, short], **options)


def test_with_a_cache_only_new_tokens_are_fed_and_prompts_of_one_length_need_no_mask():
    recorder = Recorder(decoder())
    generate(recorder, [[1, 2, 3], [4, 5, 6]], new_tokens=4)
    assert recorder.fed == [(2, 3), (2, 1), (2, 1), (2, 1)]
    assert not any(recorder.masked)
    recorder = Recorder(decoder())
    generate(recorder, [[1, 2, 3], [4, 5, 6]], new_tokens=4, use_cache=False)
    assert recorder.fed == [(2, 3), (2, 4), (2, 5), (2, 6)]


def test_tokens_are_told_as_they_come():
    told: list[tuple[int, int]] = []
    rows = generate(
        Script(),
        [[1], [3], [6]],
        new_tokens=3,
        sampling=Sampling.greedy(),
        stop={5},
        on_token=lambda row, token: told.append((row, token)),
    )
    assert rows == [[2, 3, 4], [4], [7, 8, 9]]
    assert told == [(0, 2), (1, 4), (2, 7), (0, 3), (2, 8), (0, 4), (2, 9)]


def test_dropout_is_off_and_the_modes_come_back():
    model = decoder(dropout=0.5).train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    rows = generate(model, PROMPTS, new_tokens=6, sampling=Sampling.greedy())
    assert [module.training for module in model.modules()] == modes
    assert rows == generate(decoder(dropout=0.5).eval(), PROMPTS, new_tokens=6, sampling=Sampling.greedy())

    def interrupt(row: int, token: int) -> None:
        assert not model.training
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(model, PROMPTS, new_tokens=6, on_token=interrupt)
    assert [module.training for module in model.modules()] == modes


def test_a_model_can_be_trained_after_generating():
    model = decoder()
    generate(model, PROMPTS, new_tokens=3)
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert model.embedding.weight.grad is not None


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "there are no prompts"),
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1]], {"new_tokens": 0}, "new_tokens 0 is out of range: it must be at least 1"),
        ([[1]], {"seed": -1}, "seed -1 is out of range"),
        ([[1]], {"prefill_chunk": 0}, "prefill_chunk 0 is out of range: it must be at least 1"),
        ([[1]], {"prefill_chunk": 4, "use_cache": False}, "prefill_chunk 4 is out of range: it must be None"),
    ],
)
def test_what_cannot_be_continued_is_refused(prompts: list[list[int]], options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        generate(decoder(), prompts, **{"new_tokens": 2, **options})


@pytest.mark.parametrize("scheme", ["learned", "rotary", "alibi"])
@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_prompts_in_chunks_are_continued_as_whole_ones(scheme: str, chunk: int):
    model = Recorder(decoder(scheme))
    options: dict[str, Any] = {"new_tokens": 10, "sampling": Sampling.greedy()}
    rows = generate(model, PROMPTS, prefill_chunk=chunk, **options)
    assert max(length for _, length in model.fed) == min(chunk, 8)
    assert rows == generate(decoder(scheme), PROMPTS, **options)


def test_only_the_last_places_logits_are_computed():
    model = decoder()
    mapped: list[tuple[int, ...]] = []
    real = model.logits
    model.logits = lambda hidden: mapped.append(tuple(hidden.shape)) or real(hidden)
    generate(model, [[1, 2, 3], [4, 5, 6]], new_tokens=2)
    assert mapped == [(2, WIDTH)] * 2


def test_unknown_tokens_are_refused_at_once():
    for token in (-1, VOCABULARY):
        with pytest.raises(ValueError, match=rf"prompt 1 has token {token}, .* tokens are from 0 to {VOCABULARY - 1}"):
            generate(decoder(), [[1], [2, token]], new_tokens=1)
    assert generate(decoder(), [[VOCABULARY - 1, 0]], new_tokens=1)


def test_a_prompt_beyond_the_context_is_refused_at_once():
    model = decoder("learned")
    with pytest.raises(ValueError, match=f"prompt 1 has {LIMIT + 1} tokens, more than the model's context of {LIMIT}"):
        generate(model, [[1], [1] * (LIMIT + 1)], new_tokens=1)
    assert len(generate(model, [[1] * LIMIT], new_tokens=1)[0]) == 1
    assert decoder("rotary").context is None


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_penalty_looks_at_prompt_and_added_tokens_but_not_at_padding(use_cache: bool):
    # Counts on unless the next token was seen, in which case token 0 is likeliest.
    class Counting(Script):
        def forward(self, tokens: Tensor, *, present: Tensor | None = None, cache: None = None) -> Tensor:
            return 2 * super().forward(tokens) + 1.5 * nn.functional.one_hot(torch.zeros_like(tokens), 10)

    sampling = Sampling(0, repetition_penalty=1.6)
    options: dict[str, Any] = {"new_tokens": 3, "sampling": sampling, "use_cache": use_cache}
    # Row 0 is padded with zeros: were they seen, 0 would not be drawn after 7, whose successor it has had.
    assert generate(Counting(), [[8, 7], [1, 2, 3, 4]], **options) == [[0, 1, 2], [5, 6, 7]]
    assert generate(Counting(), [[7]], **options, seed=1) == [[8, 9, 0]]


def test_presence_and_frequency_penalties_count_what_was_generated_alone():
    class Constant(Script):
        def forward(self, tokens: Tensor, *, present: Tensor | None = None, cache: None = None) -> Tensor:
            return torch.tensor([1.0, 0.7, 0.4] + [-9.0] * 7).expand(*tokens.shape, -1)

    # Token 0 stands in the prompt, which costs it nothing.
    options: dict[str, Any] = {"new_tokens": 4, "use_cache": False}
    assert generate(Constant(), [[0, 0]], **options, sampling=Sampling(0, presence_penalty=0.5)) == [[0, 1, 0, 0]]
    assert generate(Constant(), [[0, 0]], **options, sampling=Sampling(0, frequency_penalty=0.4)) == [[0, 1, 0, 2]]


def test_a_row_ends_where_it_is_told_to():
    rows = generate(
        Script(), [[1], [3]], new_tokens=4, sampling=Sampling.greedy(), on_token=lambda _, token: token == 4
    )
    assert rows == [[2, 3, 4], [4]]


def test_a_cache_with_the_beginning_of_a_prompt_is_gone_on_with():
    model = decoder()
    prompt = PROMPTS[2]
    expected = generate(model, [prompt], new_tokens=6, sampling=Sampling.greedy())[0]
    cache = model.new_cache()
    recorder = Recorder(model)

    def go_on() -> list[int]:
        steps = continuations(recorder, [prompt], new_tokens=6, sampling=Sampling.greedy(), cache=cache)
        return [token for _, token in steps]

    assert go_on() == expected
    cache.truncate(5)
    recorder.fed.clear()
    assert go_on() == expected
    assert recorder.fed[0] == (1, 3)
    with pytest.raises(ValueError, match="a cache of 13 tokens needs prompts that are longer"):
        continuations(model, [prompt], new_tokens=1, cache=cache)


def test_a_beginning_in_common_is_computed_once_for_all_prompts():
    model = decoder()
    beginning = [5, 3, 9, 1]
    prompts = [[*beginning, 2, 7], [*beginning, 4, 4]]
    expected = generate(model, prompts, new_tokens=6, sampling=Sampling.greedy())
    trunk = model.new_cache()
    model.eval()(torch.tensor([beginning]), cache=trunk)
    recorder = Recorder(model)
    for _ in range(2):
        rows: list[list[int]] = [[], []]
        for row, token in continuations(
            recorder, prompts, new_tokens=6, sampling=Sampling.greedy(), cache=trunk.branch([0, 0])
        ):
            rows[row].append(token)
        assert rows == expected
    assert recorder.fed[0] == (2, 2)
    with pytest.raises(ValueError, match="a batch of 1, not of 2"):
        next(continuations(model, prompts, new_tokens=1, cache=trunk))


def test_whoever_stops_early_leaves_the_model_as_it_was():
    model = decoder().train()
    steps = continuations(model, [[1, 2]], new_tokens=9)
    next(steps)
    assert not model.training
    steps.close()
    assert model.training and not torch.is_inference_mode_enabled()


def test_a_decoder_is_a_language_model():
    model: LanguageModel = decoder()
    assert model
