"""GPT-3's model: banded attention against dense masks, and the whole against transformers' GPT-Neo."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from allyouneed.hub import UnsupportedError, open_model
from allyouneed.nn import Attention, AttentionPattern, fused_attention
from allyouneed.papers.gpt2 import GPT2, GPT2Config
from allyouneed.papers.gpt3 import GPT3, SIZES, BandedAttention, GPT3Config, banded_mask
from allyouneed.text import Sampling, generate

TINY = GPT3Config(vocabulary=61, positions=40, width=16, layers=4, heads=4, band=3)


def tiny(**changes: Any) -> GPT3:
    """Make a small model with weights large enough that every part counts."""
    torch.manual_seed(0)
    model = GPT3(dataclasses.replace(TINY, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.double().eval()


def dense(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """Compute attention with the whole matrix of scores."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    return scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ value


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


class TestBandedAttention:
    def test_the_pattern_drawn_by_hand(self):
        """Token i looks at {t, …, i} with t = max(0, i − l), here with l = 2."""
        expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
        assert banded_mask(5, 5, 2).int().tolist() == expected
        assert banded_mask(2, 5, 2).int().tolist() == expected[3:]

    @settings(max_examples=60)
    @given(queries=st.integers(1, 20), earlier=st.integers(0, 20), band=st.integers(1, 24), seed=st.integers(0, 9))
    def test_equals_a_dense_mask(self, queries: int, earlier: int, band: int, seed: int):
        torch.manual_seed(seed)
        query, key, value = vectors(2, 3, queries, 4), *vectors(2, 2, 3, queries + earlier, 4)
        expected = dense(query, key, value, banded_mask(queries, queries + earlier, band))
        mixed = BandedAttention(band)(query, key, value, is_causal=not earlier)
        torch.testing.assert_close(mixed, expected, rtol=1e-12, atol=1e-13)

    @settings(max_examples=40)
    @given(queries=st.integers(1, 12), earlier=st.integers(0, 12), band=st.integers(1, 8), seed=st.integers(0, 9))
    def test_a_mask_of_the_pattern_holds_too(self, queries: int, earlier: int, band: int, seed: int):
        torch.manual_seed(seed)
        keys = queries + earlier
        query, key, value = vectors(2, 3, queries, 4), *vectors(2, 2, 3, keys, 4)
        own = torch.arange(keys) == torch.arange(earlier, keys)[:, None]
        allowed = (torch.rand(2, 1, queries, keys) < 0.6) | own
        expected = dense(query, key, value, allowed & banded_mask(queries, keys, band))
        mixed = BandedAttention(band)(query, key, value, attn_mask=allowed)
        torch.testing.assert_close(mixed, expected, rtol=1e-12, atol=1e-13)
        added = torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, -torch.inf)
        mixed = BandedAttention(band)(query, key, value, attn_mask=added)
        torch.testing.assert_close(mixed, expected, rtol=1e-12, atol=1e-13)

    def test_gradients_equal_those_of_a_dense_mask(self):
        tensors = [vectors(1, 2, 11, 4).requires_grad_() for _ in range(3)]
        weight = vectors(1, 2, 11, 4)
        (dense(*tensors, banded_mask(11, 11, 3)) * weight).sum().backward()
        expected = [tensor.grad for tensor in tensors]
        for tensor in tensors:
            tensor.grad = None
        (BandedAttention(3)(*tensors, is_causal=True) * weight).sum().backward()
        for tensor, gradient in zip(tensors, expected, strict=True):
            torch.testing.assert_close(tensor.grad, gradient, rtol=1e-12, atol=1e-13)

    def test_no_block_is_given_more_keys_than_its_queries_see(self, monkeypatch: pytest.MonkeyPatch):
        """So that twice the length costs twice as much, where a dense mask costs four times as much."""
        scores: list[int] = []

        def counted(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
            scores.append(query.shape[2] * key.shape[2])
            return fused_attention(query, key, value, **options)

        monkeypatch.setattr("allyouneed.papers.gpt3.sparse.fused_attention", counted)
        totals = []
        for length in (256, 512, 1024):
            scores.clear()
            query = torch.randn(1, 1, length, 2)
            BandedAttention(16)(query, query, query, is_causal=True)
            totals.append(sum(scores))
        assert totals[0] <= 256 * 32 and totals[2] - totals[1] == 2 * (totals[1] - totals[0])

    def test_is_a_kernel_of_attention(self):
        torch.manual_seed(0)
        banded = Attention(8, 2, kernel=BandedAttention(2)).double()
        plain = Attention(8, 2).double()
        plain.load_state_dict(banded.state_dict())
        hidden = vectors(2, 9, 8)
        pattern = AttentionPattern(mask=banded_mask(9, 9, 2)[None, None])
        torch.testing.assert_close(banded(hidden, AttentionPattern(causal=True)), plain(hidden, pattern))

    def test_dropout_drops(self):
        query = vectors(1, 1, 40, 2)
        kernel = BandedAttention(5)
        assert not torch.equal(kernel(query, query, query, dropout_p=0.5), kernel(query, query, query))

    @pytest.mark.parametrize("band", [0, -3])
    def test_a_band_of_nothing_is_refused(self, band: int):
        with pytest.raises(ValueError, match=f"a band of {band} tokens is out of range: it must be at least 1"):
            GPT3(dataclasses.replace(TINY, band=band))


def neo(window: int) -> GPTNeoForCausalLM:
    """Make transformers' model of the same shape: GPT-Neo has global and local layers in turn, the first one global."""
    torch.manual_seed(1)
    config = GPTNeoConfig(
        vocab_size=61,
        max_position_embeddings=40,
        hidden_size=16,
        num_layers=4,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=window,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
    )
    model = GPTNeoForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.double().eval()


def copied_from(reference: GPTNeoForCausalLM, window: int) -> GPT3:
    """Give our model GPT-Neo's weights. Its queries are not scaled and its projections have no biases."""
    model = tiny(band=window - 1)
    theirs = reference.state_dict()
    ours = {
        "embedding.weight": theirs["transformer.wte.weight"],
        "positions.table.weight": theirs["transformer.wpe.weight"],
    }
    for part in ("weight", "bias"):
        ours[f"norm.{part}"] = theirs[f"transformer.ln_f.{part}"]
        for index in range(4):
            block, layer = f"blocks.{index}", f"transformer.h.{index}"
            ours[f"{block}.attention.norm.{part}"] = theirs[f"{layer}.ln_1.{part}"]
            ours[f"{block}.feed_forward.norm.{part}"] = theirs[f"{layer}.ln_2.{part}"]
            ours[f"{block}.attention.sublayer.output.{part}"] = theirs[f"{layer}.attn.attention.out_proj.{part}"]
            ours[f"{block}.feed_forward.sublayer.inner.{part}"] = theirs[f"{layer}.mlp.c_fc.{part}"]
            ours[f"{block}.feed_forward.sublayer.output.{part}"] = theirs[f"{layer}.mlp.c_proj.{part}"]
            for name in ("query", "key", "value"):
                own = f"{block}.attention.sublayer.{name}.{part}"
                stored = theirs.get(f"{layer}.attn.attention.{name[0]}_proj.{part}", torch.zeros(16))
                # A head's width is 4, and we divide scores by its root.
                ours[own] = stored * 2 if name == "query" else stored
    model.load_state_dict(ours)
    return model


class TestModel:
    @pytest.mark.parametrize("window", [2, 4, 64])
    @pytest.mark.parametrize("length", [1, 7, 40])
    def test_equals_gpt_neo(self, window: int, length: int):
        reference = neo(window)
        ours = copied_from(reference, window)
        tokens = torch.randint(61, (2, length))
        with torch.no_grad():
            # Their attention is computed in 32 bits whatever the weights are.
            expected = reference(tokens).logits
            torch.testing.assert_close(ours(tokens), expected, rtol=1e-4, atol=1e-5)
            if length > window:
                wider = copied_from(reference, window + 1)(tokens)
                assert not torch.allclose(wider, expected, rtol=1e-2, atol=1e-2)

    def test_layers_are_dense_and_banded_in_turn(self):
        kernels = [block.attention.sublayer.kernel for block in tiny(layers=5).blocks]  # pyright: ignore[reportAttributeAccessIssue]
        assert kernels == [fused_attention, BandedAttention(3)] * 2 + [fused_attention]

    def test_is_gpt2_where_the_band_is_wide(self):
        wide = tiny(band=100)
        plain = GPT2(GPT2Config(vocabulary=61, positions=40, width=16, layers=4, heads=4)).double().eval()
        plain.load_state_dict(wide.state_dict())
        tokens = torch.randint(61, (2, 30))
        torch.testing.assert_close(wide(tokens), plain(tokens))
        assert not torch.allclose(tiny(band=3)(tokens), plain(tokens))

    @pytest.mark.parametrize("pieces", [[1] * 20, [7, 13], [19, 1], [2, 9, 9]])
    def test_cache_on_equals_off(self, pieces: list[int]):
        model = tiny()
        tokens = torch.randint(61, (2, 20))
        cache = model.new_cache(capacity=3)
        with torch.no_grad():
            parts = [model(part, cache=cache) for part in tokens.split(pieces, 1)]
            torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=1e-10, atol=1e-11)

    def test_branches_of_a_prompt_equal_the_whole(self):
        model = tiny()
        prompt, endings = torch.randint(61, (1, 13)), torch.randint(61, (3, 6))
        with torch.no_grad():
            expected = model(torch.cat((prompt.expand(3, -1), endings), 1))[:, 13:]
            cache = model.new_cache()
            model(prompt, cache=cache)
            torch.testing.assert_close(model(endings, cache=cache.branch([0, 0, 0])), expected, rtol=1e-10, atol=1e-11)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding_changes_nothing(self, side: str):
        model = tiny()
        rows = [torch.randint(61, (length,)) for length in (12, 5, 1)]
        tokens, present = torch.zeros(3, 12, dtype=torch.int64), torch.zeros(3, 12, dtype=torch.bool)
        for index, row in enumerate(rows):
            places = slice(12 - len(row), 12) if side == "left" else slice(0, len(row))
            tokens[index, places], present[index, places] = row, True
        with torch.no_grad():
            logits = model(tokens, present=present)
            for index, row in enumerate(rows):
                torch.testing.assert_close(logits[index][present[index]], model(row[None])[0])

    def test_no_token_sees_those_after_it_and_all_see_the_first(self):
        model = tiny()
        seen: list[Tensor] = []

        def keep(module: Any, inputs: Any, output: Tensor) -> Tensor:
            seen.append(output.detach().requires_grad_())
            return seen[-1]

        model.embedding.register_forward_hook(keep)
        logits = model(torch.randint(61, (1, 10)))
        for place in range(10):
            (gradient,) = torch.autograd.grad(logits[0, place].square().sum(), seen, retain_graph=True)
            reached = gradient[0].abs().sum(-1)
            assert bool((reached[place + 1 :] == 0).all()) and bool((reached[: place + 1] > 0).all())

    def test_generates(self):
        model = tiny()
        prompts = [[1, 2, 3, 4, 5, 6, 7], [9]]
        together = generate(model, prompts, new_tokens=9, sampling=Sampling.greedy())
        for prompt, row in zip(prompts, together, strict=True):
            (alone,) = generate(model, [prompt], new_tokens=9, sampling=Sampling.greedy(), use_cache=False)
            assert row == alone

    def test_what_was_saved_is_loaded(self, tmp_path: Path):
        model = tiny(hidden=20, epsilon=1e-3)
        model.save_pretrained(tmp_path)
        again = GPT3.from_pretrained(tmp_path)
        assert again.config == model.config
        tokens = torch.randint(61, (2, 20))
        torch.testing.assert_close(again(tokens), model(tokens))
        with pytest.raises(
            UnsupportedError,
            match=r"of model_type 'gpt3'; GPT2 reads the model_type 'gpt2'; allyouneed\.papers\.gpt3\.GPT3 reads it",
        ):
            GPT2.from_stored(open_model(tmp_path))
        with pytest.raises(UnsupportedError, match="model_type"):
            GPT3.from_config({**model.to_config(), "model_type": "gpt2"})
        with pytest.raises(UnsupportedError, match="attention_band"):
            GPT3.from_config({key: value for key, value in model.to_config().items() if key != "attention_band"})

    @pytest.mark.parametrize(
        ("size", "millions"),
        [
            ("Small", 125),
            ("Medium", 350),
            ("Large", 760),
            ("XL", 1300),
            ("2.7B", 2700),
            ("6.7B", 6700),
            ("13B", 13_000),
            ("175B", 175_000),
        ],
    )
    def test_sizes_have_the_parameters_of_table_2_1(self, size: str, millions: int):
        """Counted without memory. The table rounds, and the note tells of two rows of it that cannot be quite right."""
        with torch.device("meta"):
            model = GPT3(SIZES[size])
        counted = sum(parameter.numel() for parameter in model.parameters())
        assert counted / 1e6 == pytest.approx(millions, rel=0.025)
        assert model.context == 2048
