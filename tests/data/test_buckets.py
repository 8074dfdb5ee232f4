from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from allyouneed.data.buckets import Buckets, in_order_of_length, pad
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
    linear_cross_entropy,
)

PADDING = 0

ITEMS = st.lists(
    st.tuples(
        st.lists(st.integers(1, 99), min_size=1, max_size=12), st.lists(st.integers(1, 99), min_size=1, max_size=12)
    ),
    min_size=1,
    max_size=40,
)


def some_items(count: int = 60) -> list[list[list[int]]]:
    generator = np.random.default_rng(0)
    sources, targets = [], []
    for number in range(count):
        length = int(generator.integers(1, 13))
        other = max(1, min(12, length + int(generator.integers(-2, 3))))
        # The first token is the item's number, so that it can be told in a batch.
        sources.append([number + 1, *generator.integers(1, 99, length - 1).tolist()])
        targets.append([number + 1, *generator.integers(1, 99, other - 1).tolist()])
    return [sources, targets]


def rows(batch: tuple[Tensor, ...]) -> list[tuple[tuple[int, ...], ...]]:
    """Give the items of a batch, without padding."""
    return [tuple(tuple(row[row != PADDING].tolist()) for row in sides) for sides in zip(*batch, strict=True)]


@given(items=ITEMS, tokens=st.integers(12, 60), epoch=st.integers(0, 2**30))
def test_an_epoch_holds_each_item_once(items, tokens: int, epoch: int):
    sides = [list(side) for side in zip(*items, strict=True)]
    draw = Buckets(sides, tokens, PADDING, seed=1)
    first = epoch * draw.batches_per_epoch
    batches = [draw(step) for step in range(first, first + draw.batches_per_epoch)]
    found = Counter(item for batch in batches for item in rows(batch))
    assert found == Counter(tuple(map(tuple, item)) for item in items)
    for batch in batches:
        assert all(side.dtype == torch.int64 and side.numel() <= tokens for side in batch)
        # As wide as the longest, and padded on the right.
        for side in batch:
            lengths = (side != PADDING).sum(1)
            assert side.shape[1] == lengths.max()
            assert torch.equal(side != PADDING, torch.arange(side.shape[1]) < lengths[:, None])


@given(items=ITEMS, tokens=st.integers(12, 60))
def test_for_evaluation_each_item_comes_once_from_short_to_long(items, tokens: int):
    sides = [list(side) for side in zip(*items, strict=True)]
    batches = in_order_of_length(sides, tokens, PADDING)
    found = [item for batch in batches for item in rows(batch)]
    assert Counter(found) == Counter(tuple(map(tuple, item)) for item in items)
    longest = [max(map(len, item)) for item in found]
    assert longest == sorted(longest)
    assert all(side.numel() <= tokens for batch in batches for side in batch)


def test_items_of_a_batch_are_about_equally_long():
    sides = some_items(2000)
    draw = Buckets(sides, 240, PADDING, seed=0)
    for step in range(draw.batches_per_epoch):
        longest = [max(map(len, item)) for item in rows(draw(step))]
        assert max(longest) - min(longest) <= 1
    plain = sum(len(side) for side in sides) / 2 * 12
    padded = sum(draw(step)[0].numel() for step in range(draw.batches_per_epoch))
    assert padded < 0.7 * plain


def test_a_batch_depends_on_seed_and_step_alone():
    draw, again = (Buckets(some_items(), 40, PADDING, seed=1) for _ in range(2))
    steps = 3 * draw.batches_per_epoch
    batches = [draw(step) for step in range(steps)]
    np.random.seed(0)
    torch.manual_seed(0)
    for step in (steps - 1, 0, 7, steps // 2, 7, 1):
        assert all(map(torch.equal, again(step), batches[step]))


def test_epochs_and_seeds_have_orders_and_company_of_their_own():
    def numbers(seed: int, epoch: int) -> list[frozenset[int]]:
        draw = Buckets(some_items(200), 60, PADDING, seed)
        first = epoch * draw.batches_per_epoch
        return [frozenset(draw(step)[0][:, 0].tolist()) for step in range(first, first + draw.batches_per_epoch)]

    orders = [numbers(seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    assert len({frozenset(order) for order in orders}) == 9


def test_lengths_come_in_any_order():
    draw = Buckets(some_items(400), 60, PADDING, seed=0)
    widths = [draw(step)[0].shape[1] for step in range(draw.batches_per_epoch)]
    assert abs(np.corrcoef(range(len(widths)), widths)[0, 1]) < 0.3


def test_one_side_and_three():
    (only,) = Buckets([[[1, 2], [3]]], 8, PADDING, seed=0)(0)
    assert sorted(only.tolist()) == [[1, 2], [3, 0]]
    batch = Buckets([[[1, 2]], [[3]], [[4, 5, 6]]], 8, PADDING, seed=0)(5)
    assert [side.tolist() for side in batch] == [[[1, 2]], [[3]], [[4, 5, 6]]]


def test_pads_on_the_right():
    assert pad([[1], [2, 3, 4], []], 9).tolist() == [[1, 9, 9], [2, 3, 4], [9, 9, 9]]
    assert pad([], 9).shape == (0, 0)


def transformer() -> nn.Module:
    def post_norm(sublayer: nn.Module) -> nn.Module:
        return PostNorm(sublayer, nn.LayerNorm(16))

    blocks = [Block(post_norm(Attention(16, 2)), post_norm(FeedForward(16)))]
    encoder = Encoder(100, 16, blocks, positions=SinusoidalPositions(16))
    blocks = [CrossBlock(post_norm(Attention(16, 2)), post_norm(Attention(16, 2)), post_norm(FeedForward(16)))]
    return EncoderDecoder(encoder, Decoder(100, 16, blocks, positions=SinusoidalPositions(16)), shared=True)


@pytest.mark.parametrize("build", [transformer, lambda: RecurrentEncoderDecoder(100, 100, 16)], ids=["att", "gru"])
def test_padding_changes_nothing(build):
    """A batch's loss and gradients are those of its items, one by one."""
    torch.manual_seed(0)
    model = build().double()

    def loss(source: Tensor, target: Tensor) -> Tensor:
        hidden = model.hidden(source, target[:, :-1], present=source != PADDING)
        return linear_cross_entropy(hidden, model.output_weight, target[:, 1:], ignore_index=PADDING)

    sides = some_items(30)
    sides[1] = [[1, *target] for target in sides[1]]
    draw = Buckets(sides, 400, PADDING, seed=0)
    batch = max((draw(step) for step in range(draw.batches_per_epoch)), key=lambda batch: len(batch[0]))
    assert (batch[0] == PADDING).any() and (batch[1] == PADDING).any() and len(batch[0]) > 10
    whole = loss(*batch)
    whole.backward()
    gradients = [weight.grad for weight in model.parameters()]
    model.zero_grad()
    parts = []
    for source, target in rows(batch):
        parts.append(loss(torch.tensor([source]), torch.tensor([target])))
        parts[-1].backward()
    torch.testing.assert_close(whole, torch.stack(parts).sum(), rtol=1e-12, atol=1e-12)
    for weight, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("sides", "tokens", "seed", "message"),
    [
        ([], 8, 0, r"the sides have \[\] items"),
        ([[], []], 8, 0, r"the sides have \[0, 0\] items"),
        ([[[1]], [[1], [2]]], 8, 0, r"the sides have \[1, 2\] items"),
        ([[[1], []]], 8, 0, "sequence 1 of side 0 has 0 tokens: it must have 1 to 8"),
        ([[[1]], [[1] * 9]], 8, 0, "sequence 0 of side 1 has 9 tokens: it must have 1 to 8"),
        ([[[1, 0, 2]]], 8, 0, "sequence 0 of side 0 has the padding token 0 in it"),
        ([[[1]]], 0, 0, "tokens 0 is out of range"),
        ([[[1]]], 8, -1, "seed -1 is out of range"),
    ],
)
def test_what_cannot_be_batched_is_refused(sides, tokens: int, seed: int, message: str):
    with pytest.raises(ValueError, match=message):
        Buckets(sides, tokens, PADDING, seed)


def test_a_negative_step_is_refused():
    with pytest.raises(ValueError, match="out of range"):
        Buckets([[[1]]], 8, PADDING, 0)(-1)
