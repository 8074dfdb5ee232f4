"""What every encoder keeps to, whatever its positions: it looks both ways, and padding changes nothing."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allyouneed.nn import (
    Attention,
    Block,
    Encoder,
    FeedForward,
    LearnedPositions,
    PositionScheme,
    PostNorm,
    PreNorm,
    RotaryPositions,
    SinusoidalPositions,
)
from allyouneed.papers.alibi import ALiBi

VOCABULARY, WIDTH, HEADS, LIMIT = 23, 30, 5, 9

SCHEMES: dict[str, Callable[[], PositionScheme]] = {
    "none": PositionScheme,
    "learned": lambda: LearnedPositions(LIMIT, WIDTH),
    "sinusoidal": lambda: SinusoidalPositions(WIDTH),
    "rotary": lambda: RotaryPositions(WIDTH // HEADS),
    "alibi": lambda: ALiBi(HEADS),
}


def build(scheme: str, *, wrapper: type = PreNorm, dropout: float = 0.0) -> Encoder:
    torch.manual_seed(0)
    blocks = [
        Block(
            wrapper(Attention(WIDTH, HEADS), nn.LayerNorm(WIDTH), dropout=dropout),
            wrapper(FeedForward(WIDTH, 17), nn.LayerNorm(WIDTH), dropout=dropout),
        )
        for _ in range(2)
    ]
    norm = nn.LayerNorm(WIDTH) if wrapper is PreNorm else None
    return Encoder(VOCABULARY, WIDTH, blocks, positions=SCHEMES[scheme](), norm=norm, dropout=dropout).double()


@pytest.fixture(params=list(SCHEMES))
def model(request: pytest.FixtureRequest) -> Encoder:
    return build(request.param)


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


def draw(batch: int, length: int) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("wrapper", [PreNorm, PostNorm])
@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_every_token_hears_from_every_other(scheme: str, wrapper: type):
    model = build(scheme, wrapper=wrapper)
    embedded: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    model.embedding.register_forward_hook(keep)
    hidden = model(draw(1, 5))
    weights = torch.randn(WIDTH, dtype=torch.float64)
    for place in range(5):
        (gradient,) = torch.autograd.grad(hidden[0, place] @ weights, embedded[0], retain_graph=True)
        assert bool((gradient.abs().amax(-1) > 1e-9).all())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model: Encoder, side: str):
    counts, slots = torch.tensor([9, 4, 1, 7])[:, None], torch.arange(9)
    tokens, present = draw(4, 9), slots >= 9 - counts if side == "left" else slots < counts
    hidden = model(tokens, present=present)
    for row in range(4):
        same(hidden[row, present[row]], model(tokens[row, present[row]][None])[0])
    others = tokens.where(present, (tokens + 7) % VOCABULARY)
    assert torch.equal(model(others, present=present)[present], hidden[present])
    assert bool(hidden.isfinite().all())


def test_gradients_do_not_come_from_padding(model: Encoder):
    present = torch.tensor([[True, True, True, False, False]])
    tokens = torch.tensor([[1, 2, 3, 4, 4]])
    model(tokens, present=present)[present].square().sum().backward()
    gradient = model.embedding.weight.grad
    assert gradient is not None
    assert not gradient[4].any()
    assert gradient[1:4].abs().amax(-1).gt(1e-9).all()


def test_order_matters_to_every_scheme_but_none(model: Encoder):
    """Two tokens change places; without positions the others hear of no change."""
    one, other = model(torch.tensor([[3, 5, 7, 9]])), model(torch.tensor([[5, 3, 7, 9]]))
    equal = torch.allclose(one[0, 3], other[0, 3], atol=1e-9)
    assert equal == (type(model.positions) is PositionScheme)


@pytest.mark.parametrize("norm_first", [True, False])
def test_equals_torch(norm_first: bool):
    ours = build("none", wrapper=PreNorm if norm_first else PostNorm)
    for block in ours.blocks:
        block.feed_forward.sublayer.activation = F.relu
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 17, dropout=0.0, batch_first=True, norm_first=norm_first)
    theirs = nn.TransformerEncoder(
        layer, 2, norm=nn.LayerNorm(WIDTH) if norm_first else None, enable_nested_tensor=False
    ).double()
    state = {}
    for index, block in enumerate(ours.blocks):
        attention, feed_forward = block.attention, block.feed_forward
        joint = [attention.sublayer.query, attention.sublayer.key, attention.sublayer.value]
        for kind in ("weight", "bias"):
            state[f"layers.{index}.self_attn.in_proj_{kind}"] = torch.cat([getattr(part, kind) for part in joint])
            for name, part in {
                "self_attn.out_proj": attention.sublayer.output,
                "linear1": feed_forward.sublayer.inner,
                "linear2": feed_forward.sublayer.output,
                "norm1": attention.norm,
                "norm2": feed_forward.norm,
            }.items():
                state[f"layers.{index}.{name}.{kind}"] = getattr(part, kind)
    if norm_first:
        state |= {f"norm.{name}": value for name, value in ours.norm.state_dict().items()}
    theirs.load_state_dict(state)
    tokens, present = draw(3, 7), torch.arange(7) < torch.tensor([[7], [3], [5]])
    expected = theirs(ours.embedding(tokens), src_key_padding_mask=~present)
    same(ours(tokens, present=present)[present], expected[present])


def test_embeddings_are_scaled_and_dropped():
    model = build("none", dropout=0.5)
    model.embedding_scale = 3.0
    first = model.blocks[0]
    seen: list[Tensor] = []
    first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens = draw(1, 200)
    model(tokens)
    ratio = seen[0] / (3.0 * model.embedding(tokens))
    assert set(ratio.round(decimals=9).unique().tolist()) == {0.0, 2.0}
    assert 0.4 < float((ratio == 0).double().mean()) < 0.6


class TestRefused:
    def test_no_tokens(self, model: Encoder):
        with pytest.raises(ValueError, match="sequences of no tokens"):
            model(torch.zeros(2, 0, dtype=torch.int64))

    def test_more_tokens_than_learned_positions(self):
        model = build("learned")
        assert model(draw(1, LIMIT)).shape == (1, LIMIT, WIDTH)
        with pytest.raises(ValueError, match=r"position 9 is beyond the learned table.* at most 9 tokens"):
            model(draw(1, LIMIT + 1))

    def test_padding_takes_no_learned_position(self):
        model = build("learned")
        present = torch.arange(LIMIT + 4)[None] < LIMIT
        assert model(draw(1, LIMIT + 4), present=present).shape == (1, LIMIT + 4, WIDTH)

    def test_no_vocabulary_or_no_blocks(self):
        with pytest.raises(ValueError, match="vocabulary 5, 0 blocks"):
            Encoder(5, 4, [], positions=PositionScheme())
