"""ALiBi against the paper's formula and against the two model families that were released with it."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from allyouneed.nn import Attention, Block, Decoder, FeedForward, PreNorm, attention_pattern
from allyouneed.papers.alibi import ALiBi, alibi_slopes
from allyouneed.training import Cosine, TrainingConfig, evaluate, next_token_loss, train

HEADS = [*range(1, 21), 24, 25, 32, 48, 71, 112, 128]
"""Those of released models among them: 32, 71 and 112."""


def decoder(heads: int = 4, layers: int = 2) -> Decoder:
    torch.manual_seed(0)
    width = 6 * heads
    blocks = [
        Block(PreNorm(Attention(width, heads), nn.LayerNorm(width)), PreNorm(FeedForward(width), nn.LayerNorm(width)))
        for _ in range(layers)
    ]
    return Decoder(17, width, blocks, positions=ALiBi(heads), norm=nn.LayerNorm(width))


def causal_bias(heads: int, length: int) -> Tensor:
    mask = attention_pattern(ALiBi(heads), length, length, causal=True).mask
    assert mask is not None
    return mask


class TestSlopes:
    @pytest.mark.parametrize("heads", [1, 2, 4, 8, 16, 32, 64])
    def test_powers_of_two_are_the_papers(self, heads: int):
        """The sequence begins at 2^(-8/n), with the same number as its ratio."""
        expected = [2 ** (-8 / heads * head) for head in range(1, heads + 1)]
        assert alibi_slopes(heads).tolist() == torch.tensor(expected, dtype=torch.float64).float().tolist()

    def test_eight_heads_are_those_printed_in_the_paper(self):
        assert alibi_slopes(8).tolist() == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]

    def test_other_counts_take_every_other_slope_of_the_power_above(self):
        assert alibi_slopes(12).tolist() == pytest.approx(
            [*alibi_slopes(8).tolist(), *(2**-exponent for exponent in (0.5, 1.5, 2.5, 3.5))]
        )

    @pytest.mark.parametrize("heads", HEADS)
    def test_equal_bloom(self, heads: int):
        """Key positions are multiplied by slopes, so at position 1 the slopes themselves stand."""
        bloom = build_alibi_tensor(torch.ones(1, 2, dtype=torch.int64), heads, torch.float32)
        torch.testing.assert_close(alibi_slopes(heads), bloom[:, 0, 1], rtol=1e-6, atol=0)

    @pytest.mark.parametrize("heads", HEADS)
    def test_equal_mpt(self, heads: int):
        mpt = build_mpt_alibi_tensor(heads, 2)
        torch.testing.assert_close(alibi_slopes(heads), -mpt[:, 0, 0], rtol=1e-6, atol=0)

    @given(heads=st.integers(1, 400))
    def test_are_distinct_and_fall_within_each_part(self, heads: int):
        slopes = alibi_slopes(heads).tolist()
        below = 1 << (heads.bit_length() - 1)
        assert len(set(slopes)) == len(slopes) == heads
        assert all(0 < slope < 1 for slope in slopes)
        for part in (slopes[:below], slopes[below:]):
            assert all(first > second for first, second in pairwise(part))
        assert min(slopes) == 2**-8

    @pytest.mark.parametrize("heads", [0, -4])
    def test_refuse_no_heads(self, heads: int):
        for build in (alibi_slopes, ALiBi):
            with pytest.raises(ValueError, match=f"at least one head, not {heads}"):
                build(heads)


class TestBias:
    @pytest.mark.parametrize("heads", HEADS)
    def test_equals_bloom_and_mpt_after_the_softmax(self, heads: int):
        """Theirs count from the first or the last key, not from the query: a constant for each query, which cancels."""
        length = 9
        scores = torch.randn(1, heads, length, length, generator=torch.Generator().manual_seed(heads))
        ours = (scores + causal_bias(heads, length)).softmax(-1)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        bloom = build_alibi_tensor(torch.ones(1, length, dtype=torch.int64), heads, torch.float32)[None]
        for theirs in (bloom, build_mpt_alibi_tensor(heads, length)[None]):
            expected = (scores + theirs).masked_fill(future, -math.inf).softmax(-1)
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)

    @given(
        heads=st.integers(1, 40),
        queries=st.lists(st.integers(0, 20_000), min_size=1, max_size=5),
        keys=st.lists(st.integers(0, 20_000), min_size=1, max_size=5),
    )
    def test_is_minus_slope_times_distance(self, heads: int, queries: list[int], keys: list[int]):
        scheme = ALiBi(heads)
        bias = scheme.bias(torch.tensor(queries), torch.tensor(keys))
        for head, slope in enumerate(scheme.slopes.tolist()):
            for i, query in enumerate(queries):
                for j, key in enumerate(keys):
                    expected = -slope * abs(query - key)
                    assert bias[head, i, j].item() == pytest.approx(expected, rel=1e-6, abs=0)
                    assert query != key or bias[head, i, j] == 0

    @given(heads=st.integers(1, 20), shift=st.integers(0, 10**6), length=st.integers(1, 20))
    def test_depends_on_distance_alone(self, heads: int, shift: int, length: int):
        scheme, places = ALiBi(heads), torch.arange(length)
        assert torch.equal(scheme.bias(places + shift, places + shift), scheme.bias(places, places))

    @pytest.mark.parametrize("heads", [4, 12])
    def test_is_linear_far_beyond_any_training_length(self, heads: int):
        length = 16_384
        scheme = ALiBi(heads)
        row = scheme.bias(torch.tensor([length - 1]), torch.arange(length))[:, 0].double()
        assert bool((row[:, -1] == 0).all()) and bool(row.isfinite().all())
        torch.testing.assert_close(
            row.diff(dim=1), scheme.slopes.double()[:, None].expand(-1, length - 1), rtol=0, atol=1e-3
        )
        exact = -scheme.slopes.double()[:, None] * torch.arange(length - 1, -1, -1)
        torch.testing.assert_close(row, exact, rtol=1e-7, atol=0)

    def test_nothing_is_learned_or_saved(self):
        scheme, model = ALiBi(5), decoder()
        assert not list(scheme.parameters()) and not scheme.state_dict()
        assert not any("position" in name for name in model.state_dict())
        assert not scheme.bias(torch.arange(3), torch.arange(3)).requires_grad


class TestAttention:
    @pytest.mark.parametrize(("heads", "batch", "length"), [(8, 2, 7), (5, 1, 6), (12, 1, 3), (1, 2, 1)])
    def test_equals_the_papers_formula_in_plain_loops(self, heads: int, batch: int, length: int):
        """softmax(q_i K^T / √d + m · [-(i-1), …, -2, -1, 0]), section 3, query by query."""
        torch.manual_seed(heads)
        width = 4 * heads
        attention = Attention(width, heads).double()
        hidden = torch.randn(batch, length, width, dtype=torch.float64)
        actual = attention(hidden, attention_pattern(ALiBi(heads), length, length, causal=True))
        query, key, value = (layer(hidden).detach() for layer in (attention.query, attention.key, attention.value))
        mixed = torch.zeros_like(hidden)
        for row in range(batch):
            for head, slope in enumerate(alibi_slopes(heads).tolist()):
                part = slice(4 * head, 4 * head + 4)
                for i in range(length):
                    scores = [
                        float(query[row, i, part] @ key[row, j, part]) / math.sqrt(4) - slope * (i - j)
                        for j in range(i + 1)
                    ]
                    exponentials = [math.exp(score - max(scores)) for score in scores]
                    for j in range(i + 1):
                        mixed[row, i, part] += exponentials[j] / sum(exponentials) * value[row, j, part]
        # The bias is computed in 32 bits: exact for the slopes of up to 8 heads, rounded for others.
        torch.testing.assert_close(actual, attention.output(mixed), rtol=1e-7, atol=1e-12 if heads in (1, 8) else 1e-7)

    def test_goes_into_torchs_attention_as_its_mask(self):
        torch.manual_seed(0)
        query, key, value = torch.randn(3, 2, 6, 10, 8)
        actual = F.scaled_dot_product_attention(query, key, value, attn_mask=causal_bias(6, 10))
        scores = query @ key.transpose(-1, -2) / math.sqrt(8) + causal_bias(6, 10)
        torch.testing.assert_close(actual, scores.softmax(-1) @ value)

    @pytest.mark.parametrize("heads", [4, 5])
    def test_token_by_token_equals_the_whole(self, heads: int):
        model = decoder(heads).double()
        tokens = torch.randint(17, (2, 20))
        cache = model.new_cache(capacity=3)
        with torch.no_grad():
            parts = [model(token, cache=cache) for token in tokens.split(1, 1)]
            torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=1e-10, atol=1e-11)

    def test_an_encoder_is_biased_either_way(self):
        mask = attention_pattern(ALiBi(3), 5, 5, causal=False).mask
        assert mask is not None and torch.equal(mask, mask.transpose(-1, -2)) and bool(mask.isfinite().all())

    @pytest.mark.gpu
    def test_on_an_accelerator(self):
        model = decoder()
        tokens = torch.randint(17, (2, 30))
        expected = model(tokens)
        torch.testing.assert_close(model.cuda()(tokens.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)


def test_what_was_trained_on_short_rows_reads_long_ones():
    """Rows of two tokens in turn: all that matters is near, so rows 16 times as long are no harder."""

    def rows(step: int, length: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        return torch.randint(17, (8, 2), generator=generator).repeat(1, length)[:, :length]

    model = decoder()
    train(model, lambda step: rows(step, 13), next_token_loss, TrainingConfig(80, 2e-2, schedule=Cosine(warmup=8)))
    short, long = (evaluate(model, [rows(1000, length)], next_token_loss) for length in (13, 13 * 16))
    # A guess costs the logarithm of 17, and the second token of a row cannot be more than guessed.
    assert math.log(17) / 12 < short < math.log(17) / 3
    assert long < short / 2
