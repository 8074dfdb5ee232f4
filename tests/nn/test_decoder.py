"""What every decoder keeps to, whatever its positions: causality, padding, the cache."""

from collections.abc import Callable
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
    PostNorm,
    PreNorm,
    RotaryPositions,
    SinusoidalPositions,
)
from allyouneed.papers.alibi import ALiBi

VOCABULARY, WIDTH, HEADS, LIMIT = 23, 30, 5, 40

SCHEMES: dict[str, Callable[[], PositionScheme]] = {
    "none": PositionScheme,
    "learned": lambda: LearnedPositions(LIMIT, WIDTH),
    "sinusoidal": lambda: SinusoidalPositions(WIDTH),
    "rotary": lambda: RotaryPositions(WIDTH // HEADS),
    "partly rotary": lambda: RotaryPositions(WIDTH // HEADS, rotated=2),
    "alibi": lambda: ALiBi(HEADS),
}


def build(scheme: str = "none", *, wrapper: type = PreNorm, key_value_heads: int = 1, dropout: float = 0.0) -> Decoder:
    torch.manual_seed(0)
    blocks = [
        Block(
            wrapper(
                Attention(WIDTH, HEADS, key_value_heads=key_value_heads, dropout=dropout),
                nn.LayerNorm(WIDTH),
                dropout=dropout,
            ),
            wrapper(FeedForward(WIDTH), nn.LayerNorm(WIDTH), dropout=dropout),
        )
        for _ in range(2)
    ]
    norm = nn.LayerNorm(WIDTH) if wrapper is PreNorm else None
    return Decoder(VOCABULARY, WIDTH, blocks, positions=SCHEMES[scheme](), norm=norm, dropout=dropout).double()


@pytest.fixture(params=list(SCHEMES))
def model(request: pytest.FixtureRequest) -> Decoder:
    return build(request.param)


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


def draw(batch: int, length: int) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(length))


def padded(side: str) -> tuple[Tensor, Tensor, list[int]]:
    """Give rows of 9, 4, 1 and 7 tokens in 9 slots."""
    lengths = [9, 4, 1, 7]
    slots = torch.arange(9)
    counts = torch.tensor(lengths)[:, None]
    return draw(4, 9), slots >= 9 - counts if side == "left" else slots < counts, lengths


@pytest.mark.parametrize("wrapper", [PreNorm, PostNorm])
@pytest.mark.parametrize("kernel_mask", [False, True], ids=["no mask", "mask"])
@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_no_token_hears_from_those_after_it(scheme: str, kernel_mask: bool, wrapper: type):
    model = build(scheme, wrapper=wrapper)
    embedded: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    model.embedding.register_forward_hook(keep)
    present = torch.ones(2, 6, dtype=torch.bool) if kernel_mask else None
    logits = model(draw(2, 6), present=present)
    # The sum of a pre-norm stream's coordinates passes through its last norm unseen; random weights do see it.
    weights = torch.randn(VOCABULARY, dtype=torch.float64)
    for t in range(6):
        (gradient,) = torch.autograd.grad((logits[:, t] @ weights).sum(), embedded[0], retain_graph=True)
        assert not gradient[:, t + 1 :].any()
        assert bool((gradient[:, : t + 1].abs().amax(-1) > 1e-9).all())


def test_order_matters_to_every_scheme_but_none(model: Decoder):
    """The last token's logits change when two tokens before it change places, unless there are no positions."""
    tokens = torch.tensor([[3, 5, 7, 9]])
    swapped = torch.tensor([[5, 3, 7, 9]])
    one_layer = Decoder(VOCABULARY, WIDTH, [model.blocks[0]], positions=model.positions).double()
    equal = torch.allclose(one_layer(tokens)[0, -1], one_layer(swapped)[0, -1], atol=1e-9)
    assert equal == (type(model.positions) is PositionScheme)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model: Decoder, side: str):
    tokens, present, lengths = padded(side)
    logits = model(tokens, present=present)
    for row, length in enumerate(lengths):
        same(logits[row, present[row]], model(tokens[row, present[row]][None])[0])
        assert int(present[row].sum()) == length
    others = tokens.where(present, (tokens + 7) % VOCABULARY)
    assert torch.equal(model(others, present=present)[present], logits[present])
    assert bool(logits.isfinite().all())


def test_a_row_of_nothing_but_padding_is_finite(model: Decoder):
    present = torch.tensor([[True, True, True], [False, False, False]])
    logits = model(draw(2, 3), present=present)
    assert bool(logits.isfinite().all())
    logits[0].sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_padding_takes_no_place_in_the_learned_table():
    model = build("learned")
    tokens = draw(1, LIMIT + 5)
    present = torch.arange(LIMIT + 5)[None] >= 5
    same(model(tokens, present=present)[:, 5:], model(tokens[:, 5:]))


def test_a_row_alone_equals_the_row_in_a_batch(model: Decoder):
    tokens = draw(4, 7)
    for row, logits in enumerate(model(tokens)):
        same(model(tokens[row : row + 1])[0], logits)


def test_one_token(model: Decoder):
    logits = model(torch.tensor([[3]]))
    assert logits.shape == (1, 1, VOCABULARY) and bool(logits.isfinite().all())
    same(model(torch.tensor([[3, 4]]))[:, :1], logits)


@torch.no_grad()
@pytest.mark.parametrize("capacity", [1, 5, 64])
@pytest.mark.parametrize("chunks", [[1] * 13, [3, 1, 7, 2], [12, 1], [13]], ids=str)
def test_the_cache_changes_nothing(model: Decoder, chunks: list[int], capacity: int):
    tokens = draw(3, 13)
    expected = model(tokens)
    cache = model.new_cache(limit=13, capacity=capacity)
    parts = [model(part, cache=cache) for part in tokens.split(chunks, 1)]
    same(torch.cat(parts, 1), expected)
    assert len(cache) == 13


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[9, 1, 1, 1], [2, 7, 3], [1] * 12], ids=str)
def test_the_cache_with_left_padding_changes_nothing(model: Decoder, chunks: list[int]):
    """Padding may begin in any chunk, and chunks without padding may say so with None."""
    prompts, present, lengths = padded("left")
    tokens = torch.cat((prompts, draw(4, 3)), 1)
    present = torch.cat((present, torch.ones(4, 3, dtype=torch.bool)), 1)
    cache = model.new_cache(capacity=4)
    parts = []
    for part, seen in zip(tokens.split(chunks, 1), present.split(chunks, 1), strict=True):
        parts.append(model(part, present=None if bool(seen.all()) else seen, cache=cache))
    logits = torch.cat(parts, 1)
    for row, length in enumerate(lengths):
        same(logits[row, present[row]], model(tokens[row, 9 - length :][None])[0])


@torch.no_grad()
def test_padding_after_a_row_has_ended_changes_nothing(model: Decoder):
    """A batch goes on when one of its rows has ended, and only later chunks are padded."""
    tokens = draw(2, 6)
    cache = model.new_cache()
    first = model(tokens[:, :3], cache=cache)
    ended = torch.tensor([[True], [False]]).expand(2, 3)
    rest = [model(tokens[:, 3 + i : 4 + i], present=ended[:, i : i + 1], cache=cache) for i in range(3)]
    same(torch.cat([first, *rest], 1)[0], model(tokens)[0])
    same(first[1], model(tokens[:, :3])[1])


class TestRefusedByTheCache:
    """A refused call leaves the cache as it was: the right call after it gives the right logits."""

    @torch.no_grad()
    @pytest.mark.parametrize("padding", [False, True], ids=["", "padded"])
    def test_more_tokens_than_the_limit(self, model: Decoder, padding: bool):
        tokens = draw(2, 6)
        present = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
        cache = model.new_cache(limit=6)

        def call(part: slice) -> Tensor:
            return model(tokens[:, part], present=present[:, part] if padding else None, cache=cache)

        call(slice(0, 4))
        with pytest.raises(ValueError, match=r"limited to 6 tokens.*would hold 8"):
            call(slice(2, 6))
        same(call(slice(4, 6)), model(tokens, present=present if padding else None)[:, 4:])

    @torch.no_grad()
    @pytest.mark.parametrize("padding", [False, True], ids=["", "padded"])
    def test_another_batch(self, model: Decoder, padding: bool):
        tokens, present = draw(3, 5), torch.tensor([[False, True, True]] * 3)
        cache = model.new_cache()
        model(tokens[:, :3], present=present if padding else None, cache=cache)
        for batch in (1, 2):
            with pytest.raises(ValueError, match=f"batch of 3, not of {batch}"):
                model(tokens[:batch, 3:], cache=cache)
        whole = torch.cat((present, torch.ones(3, 2, dtype=torch.bool)), 1)
        same(model(tokens[:, 3:], cache=cache), model(tokens, present=whole if padding else None)[:, 3:])

    @torch.no_grad()
    def test_a_position_beyond_the_table(self):
        model, cache = build("learned"), KeyValueCache(2)
        tokens = draw(2, LIMIT + 1)
        present = torch.ones(2, LIMIT + 1, dtype=torch.bool)
        model(tokens[:, :-2], present=present[:, :-2], cache=cache)
        with pytest.raises(ValueError, match=f"position {LIMIT} is beyond"):
            model(tokens[:, -2:], present=present[:, -2:], cache=cache)
        assert len(cache) == LIMIT - 1
        same(model(tokens[:, -2:-1], present=present[:, -2:-1], cache=cache), model(tokens[:, :-1])[:, -1:])


def test_dropout_is_of_training_alone():
    model, plain = build(dropout=0.5), build()
    plain.load_state_dict(model.state_dict())
    tokens = draw(2, 8)
    assert not torch.allclose(model(tokens), model(tokens))
    assert torch.equal(model.eval()(tokens), plain(tokens))


def test_embeddings_are_scaled_and_dropped():
    model = build(dropout=0.5)
    model.embedding_scale = 3.0
    entering: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    tokens = draw(2, 8)
    model(tokens)
    model.eval()(tokens)
    same(entering[1], 3.0 * model.embedding(tokens))
    kept = entering[0] != 0
    same(entering[0][kept], 2 * entering[1][kept])
    assert 0.3 < kept.double().mean() < 0.7


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_map(tied: bool):
    blocks = build().blocks
    model = Decoder(VOCABULARY, WIDTH, list(blocks), positions=PositionScheme(), tied=tied).double()
    assert (model.output_weight is model.embedding.weight) == tied
    assert sum("head" in name for name in model.state_dict()) == (0 if tied else 1)
    tokens = draw(1, 3)
    same(model(tokens), model.hidden(tokens) @ model.output_weight.T)
    model(tokens).sum().backward()
    assert model.output_weight.grad is not None and bool((model.output_weight.grad.abs().sum(1) > 0).all())


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_refuses_no_tokens(batch: int):
    with pytest.raises(ValueError, match="no tokens"):
        build()(torch.zeros(batch, 0, dtype=torch.int64))


@pytest.mark.parametrize(("vocabulary", "blocks"), [(0, 1), (5, 0)])
def test_refuses_no_vocabulary_and_no_blocks(vocabulary: int, blocks: int):
    with pytest.raises(ValueError, match=f"vocabulary {vocabulary}, {blocks} blocks"):
        Decoder(vocabulary, WIDTH, list(build().blocks)[:blocks], positions=PositionScheme())


@pytest.mark.parametrize("scheme", ["sinusoidal", "rotary", "alibi", "none"])
def test_no_length_is_refused(scheme: str):
    model = build(scheme).float()
    with torch.no_grad():
        logits = model(draw(1, 700))
    assert bool(logits.isfinite().all())


def test_what_the_model_was_not_trained_to_read_is_refused():
    model = build("rotary")
    assert model.context is None
    blocks: Any = list(model.blocks)
    limited = Decoder(VOCABULARY, WIDTH, blocks, positions=SCHEMES["rotary"](), context=9).double()
    assert limited.context == 9
    assert build("learned").context == LIMIT
    with pytest.raises(ValueError, match="10 tokens are more than the model's context of 9"):
        limited(draw(1, 10))
    cache = limited.new_cache()
    limited(draw(1, 7), cache=cache)
    with pytest.raises(ValueError, match="10 tokens are more"):
        limited(draw(1, 3), cache=cache)
    # What was refused left the cache as it was.
    assert limited(draw(1, 2), cache=cache).shape == (1, 2, VOCABULARY)
