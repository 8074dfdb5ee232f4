"""An encoder and a decoder joined: what looks at what, the caches of a decoding, and what is refused."""

import pytest
import torch
from torch import Tensor, nn

from allyouneed.nn import (
    Attention,
    Block,
    CrossBlock,
    Decoder,
    Encoder,
    EncoderDecoder,
    FeedForward,
    LearnedPositions,
    PositionScheme,
    PostNorm,
    PreNorm,
    RotaryPositions,
    SinusoidalPositions,
)
from allyouneed.papers.alibi import ALiBi

SOURCE_VOCABULARY, VOCABULARY, WIDTH, HEADS = 19, 23, 30, 5
SCHEMES = ("none", "learned", "sinusoidal", "rotary", "alibi")


def scheme(name: str) -> PositionScheme:
    return {
        "none": PositionScheme,
        "learned": lambda: LearnedPositions(12, WIDTH),
        "sinusoidal": lambda: SinusoidalPositions(WIDTH),
        "rotary": lambda: RotaryPositions(WIDTH // HEADS),
        "alibi": lambda: ALiBi(HEADS),
    }[name]()


def build(
    positions: str = "sinusoidal",
    *,
    wrapper: type = PostNorm,
    key_value_heads: int | None = None,
    source_vocabulary: int = SOURCE_VOCABULARY,
    shared: bool = False,
    width: int = WIDTH,
) -> EncoderDecoder:
    torch.manual_seed(0)

    def attention() -> nn.Module:
        return wrapper(Attention(WIDTH, HEADS, key_value_heads=key_value_heads), nn.LayerNorm(WIDTH))

    def feed_forward() -> nn.Module:
        return wrapper(FeedForward(WIDTH, 17), nn.LayerNorm(WIDTH))

    norm = (lambda: nn.LayerNorm(WIDTH)) if wrapper is PreNorm else (lambda: None)
    blocks = [Block(attention(), feed_forward()) for _ in range(2)]
    encoder = Encoder(source_vocabulary, width, blocks, positions=scheme(positions), norm=norm())
    blocks = [CrossBlock(attention(), attention(), feed_forward()) for _ in range(2)]
    decoder = Decoder(VOCABULARY, WIDTH, blocks, positions=scheme(positions), norm=norm())
    return EncoderDecoder(encoder, decoder, shared=shared).double()


@pytest.fixture(params=SCHEMES)
def model(request: pytest.FixtureRequest) -> EncoderDecoder:
    return build(request.param)


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


def draw(batch: int, source: int, target: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(source + 100 * target)
    return (
        torch.randint(SOURCE_VOCABULARY, (batch, source), generator=generator),
        torch.randint(VOCABULARY, (batch, target), generator=generator),
    )


def present(*lengths: int) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("wrapper", [PreNorm, PostNorm])
def test_targets_hear_from_the_whole_source_and_from_no_later_target(wrapper: type):
    model = build(wrapper=wrapper)
    seen: dict[str, Tensor] = {}
    for name, part in (("source", model.encoder.embedding), ("target", model.decoder.embedding)):
        part.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
    logits = model(*draw(1, 4, 5))
    weights = torch.randn(VOCABULARY, dtype=torch.float64)
    for place in range(5):
        of_source, of_target = torch.autograd.grad(
            logits[0, place] @ weights, [seen["source"], seen["target"]], retain_graph=True
        )
        assert bool((of_source.abs().amax(-1) > 1e-9).all())
        assert not of_target[:, place + 1 :].any()
        assert bool((of_target[:, : place + 1].abs().amax(-1) > 1e-9).all())


def test_padding_changes_nothing(model: EncoderDecoder):
    source, target = draw(4, 9, 6)
    there = present(9, 4, 1, 7)
    logits = model(source, target, present=there)
    for row in range(4):
        length = 6 - row
        same(logits[row, :length], model(source[row, there[row]][None], target[row, :length][None])[0])
    others = source.where(there, (source + 7) % SOURCE_VOCABULARY)
    assert torch.equal(model(others, target, present=there), logits)
    assert bool(logits.isfinite().all())


@torch.no_grad()
@pytest.mark.parametrize("key_value_heads", [None, 1])
@pytest.mark.parametrize("positions", SCHEMES)
def test_the_caches_change_nothing(positions: str, key_value_heads: int | None):
    model = build(positions, key_value_heads=key_value_heads)
    source, target = draw(3, 8, 7)
    there = present(8, 2, 5)
    state = model.start(source, present=there, limit=7)
    steps = [model.next_logits(target[:, place], state) for place in range(7)]
    same(torch.stack(steps, 1), model(source, target, present=there))


@torch.no_grad()
def test_keys_and_values_of_the_source_are_computed_once():
    model = build()
    source, target = draw(2, 8, 4)
    counts: list[int] = []
    for block in model.decoder.blocks:
        block.cross_attention.sublayer.key.register_forward_hook(
            lambda _, inputs, __: counts.append(inputs[0].shape[1])
        )
    state = model.start(source)
    for place in range(4):
        model.next_logits(target[:, place], state)
    assert counts == [8, 8] + [0] * 6


@torch.no_grad()
def test_beams_of_a_source_are_as_if_each_had_a_copy_of_it(model: EncoderDecoder):
    """Three beams of two sources, which then change places, and one of the sources is dropped."""
    source, target = draw(2, 6, 1)
    there = present(6, 3)
    state = model.start(source, present=there)
    model.next_logits(target[:, 0], state)
    state.select(torch.tensor([0, 0, 0, 1, 1, 1]))
    second = torch.tensor([1, 2, 3, 4, 5, 6])
    logits = model.next_logits(second, state)
    state.select(torch.tensor([2, 0, 2, 5, 5, 4]))
    third = torch.tensor([7, 8, 9, 10, 11, 12])
    later = model.next_logits(third, state)
    state.select(torch.tensor([5, 3]), torch.tensor([1]))
    last = model.next_logits(torch.tensor([13, 14]), state)
    of_row = torch.tensor([0, 0, 0, 1, 1, 1])
    history = torch.stack((target[of_row, 0], second), 1)
    same(logits, model(source[of_row], history, present=there[of_row])[:, -1])
    history = torch.cat((history[[2, 0, 2, 5, 5, 4]], third[:, None]), 1)
    same(later, model(source[of_row], history, present=there[of_row])[:, -1])
    history = torch.cat((history[[5, 3]], torch.tensor([[13], [14]])), 1)
    same(last, model(source[[1, 1]], history, present=there[[1, 1]])[:, -1])


def test_a_shared_embedding_is_one_table():
    model = build(source_vocabulary=VOCABULARY, shared=True)
    assert model.encoder.embedding.weight is model.decoder.embedding.weight is model.output_weight
    tables = [weight for weight in model.parameters() if weight.shape == (VOCABULARY, WIDTH)]
    assert len(tables) == 1
    source = torch.tensor([[3, 4]])
    model(source, torch.tensor([[5]]))[0, 0, 6].backward()
    gradient = model.output_weight.grad
    assert gradient is not None
    # As source, as target, and as output.
    assert gradient.abs().amax(-1).gt(0).nonzero().flatten().tolist() == [3, 4, 5, 6]


def test_tables_that_are_not_shared_are_two():
    model = build(source_vocabulary=VOCABULARY)
    assert model.encoder.embedding.weight is not model.decoder.embedding.weight


class TestRefused:
    def test_a_vocabulary_that_differs_where_sharing_is_asked_for(self):
        with pytest.raises(ValueError, match=r"cannot be shared: it is \(19, 30\).*the decoder's is \(23, 30\)"):
            build(shared=True)

    def test_an_encoder_without_a_table_where_sharing_is_asked_for(self):
        decoder = build().decoder
        with pytest.raises(ValueError, match="cannot be shared: it is no table"):
            EncoderDecoder(nn.Identity(), decoder, shared=True)

    @pytest.mark.parametrize("call", ["forward", "start"])
    def test_an_empty_source(self, model: EncoderDecoder, call: str):
        source, target = draw(3, 4, 2)
        rest = (target,) if call == "forward" else ()
        with pytest.raises(ValueError, match="the sources are empty"):
            getattr(model, call)(source[:, :0], *rest)
        with pytest.raises(ValueError, match="source 1 is empty: all its 4 tokens are padding"):
            getattr(model, call)(source, *rest, present=torch.tensor([[True] * 4, [False] * 4, [True] * 4]))

    def test_an_empty_target(self, model: EncoderDecoder):
        with pytest.raises(ValueError, match="sequences of no tokens"):
            model(*draw(2, 3, 0))

    def test_a_source_longer_than_the_positions(self):
        model = build("learned")
        assert model(*draw(1, 12, 12)).shape == (1, 12, VOCABULARY)
        with pytest.raises(ValueError, match="position 12 is beyond the learned table"):
            model(*draw(1, 13, 2))
        with pytest.raises(ValueError, match="position 12 is beyond the learned table"):
            model(*draw(1, 2, 13))

    @torch.no_grad()
    def test_more_target_tokens_than_were_announced(self, model: EncoderDecoder):
        source, target = draw(1, 3, 3)
        state = model.start(source, limit=2)
        for place in range(2):
            model.next_logits(target[:, place], state)
        with pytest.raises(ValueError, match="limited to 2 tokens"):
            model.next_logits(target[:, 2], state)

    def test_a_decoder_called_without_a_source(self):
        with pytest.raises(ValueError, match="through an EncoderDecoder"):
            build().decoder(torch.tensor([[1, 2]]))
