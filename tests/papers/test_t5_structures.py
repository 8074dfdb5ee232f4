"""T5's structures: who sees whom, what must not matter, and what they cost."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from allyouneed.nn import Attention, AttentionPattern, LayerCache, attention_pattern
from allyouneed.papers.t5 import (
    SIZES,
    STRUCTURES,
    RelativePositions,
    T5Config,
    training_flops,
    unscaled_attention,
)
from allyouneed.text import beam_search

# Heads are together wider than the model.
SMALL = T5Config(
    vocabulary=37,
    width=14,
    head_width=6,
    hidden=19,
    layers=2,
    heads=3,
    buckets=10,
    furthest=17,
    dropout=0.0,
)

each_structure = pytest.mark.parametrize("structure", STRUCTURES)


def build(structure: str, config: T5Config = SMALL, seed: int = 0) -> Any:
    """Make a structure with weights that differ from each other."""
    torch.manual_seed(seed)
    model = STRUCTURES[structure](config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(mean=float(weight.dim() == 1), std=0.4)
    return model.eval()


def batch(*lengths: int, target: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Draw sources, targets that begin with token 0, and where sources are present."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    present = torch.arange(longest) < torch.tensor(lengths)[:, None]
    source = torch.randint(2, SMALL.vocabulary, (len(lengths), longest), generator=generator)
    targets = torch.randint(2, SMALL.vocabulary, (len(lengths), target), generator=generator)
    targets[:, 0] = 0
    return source, targets, present


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return float((actual - expected).abs().max()) <= tolerance * float(expected.abs().max())


def test_attention_is_not_scaled() -> None:
    query, key, value = torch.randn(3, 2, 3, 5, 7).double()
    expected = (query @ key.transpose(-2, -1)).softmax(-1) @ value
    assert close(unscaled_attention(query, key, value), expected, 1e-12)


class TestHeadsOfTheirOwnWidth:
    @pytest.mark.parametrize("head_width", [3, 10])
    def test_grouped_heads_decode_as_they_read(self, head_width: int) -> None:
        """A single query takes another way through grouped heads than several do."""
        torch.manual_seed(0)
        layer = Attention(8, 4, key_value_heads=2, head_width=head_width, bias=False).double()
        hidden = torch.randn(2, 5, 8).double()
        with torch.no_grad():
            expected = layer(hidden, AttentionPattern(causal=True))
            cache = LayerCache()
            for place in range(5):
                assert close(layer(hidden[:, place : place + 1], cache=cache)[:, 0], expected[:, place], 1e-10)

    def test_none_is_refused(self) -> None:
        with pytest.raises(ValueError, match="head_width 0 is out of range"):
            Attention(8, 2, head_width=0)


class TestStructures:
    @each_structure
    def test_no_target_token_sees_what_follows_it(self, structure: str) -> None:
        """By the gradient of a token's logits to the embeddings of the tokens before and after it."""
        model = build(structure).double()
        source, target, _ = batch(5, target=6)
        seen = embeddings_seen(model, source, target, place=2)
        assert bool((seen[:5] > 0).all()), "all of the source"
        assert bool((seen[5:8] > 0).all()), "itself and the targets before"
        assert bool((seen[8:] == 0).all()), "none after"

    @pytest.mark.parametrize(("structure", "sees"), [("language model", False), ("prefix language model", True)])
    def test_a_source_token_sees_the_rest_of_the_source_only_in_a_prefix(self, structure: str, sees: bool) -> None:
        model = build(structure).double()
        model.train(False)
        rows = torch.cat(batch(5, target=6)[:2], 1)
        vectors = model.decoder.embedding(rows).detach().requires_grad_()
        handle = model.decoder.embedding.register_forward_hook(lambda *_: vectors)
        hidden = model.decoder.hidden(rows, prefix=5 if model.prefix else 0)
        handle.remove()
        (gradient,) = torch.autograd.grad(hidden[0, 1].sum(), vectors)
        felt = gradient[0].abs().sum(-1) > 0
        assert bool(felt[:2].all())
        assert bool(felt[2:5].all()) == sees and bool(felt[2:5].any()) == sees
        assert not bool(felt[5:].any())

    @each_structure
    def test_a_row_alone_is_as_in_a_batch(self, structure: str) -> None:
        model = build(structure).double()
        source, target, present = batch(9, 4, 1)
        with torch.no_grad():
            together = model(source, target, present=present)
            for row, length in enumerate((9, 4, 1)):
                alone = model(source[row : row + 1, :length], target[row : row + 1])
                assert close(together[row], alone[0], 1e-10)

    @each_structure
    def test_padding_changes_nothing(self, structure: str) -> None:
        model = build(structure).double()
        source, target, present = batch(9, 4, 1)
        other = source.where(present, 5)
        with torch.no_grad():
            expected = model(source, target, present=present)
            assert close(model(other, target, present=present), expected, 1e-12)
            longer = torch.cat((target, torch.full((3, 4), 0)), 1)
            assert close(model(source, longer, present=present)[:, :6], expected, 1e-10)

    @each_structure
    @pytest.mark.parametrize("padded", [True, False])
    def test_a_cache_changes_nothing(self, structure: str, padded: bool) -> None:
        model = build(structure).double()
        source, target, present = batch(9, 4, 1, target=12) if padded else batch(7, 7, target=12)
        known = present if padded else None
        with torch.no_grad():
            expected = model(source, target, present=known)
            state = model.start(source, present=known, limit=12)
            for place, tokens in enumerate(target.unbind(1)):
                assert close(model.next_logits(tokens, state), expected[:, place], 1e-10)

    @each_structure
    def test_beams_follow_their_beginnings(self, structure: str) -> None:
        """A beam wide enough to keep every beginning finds the likeliest target, tried one by one."""
        model = build(structure, replace(SMALL, vocabulary=5)).double()
        sources = [[2, 3, 4], [4]]
        found = beam_search(model, sources, begin=0, end=1, beam=5, alpha=0.0, limit=3, patient=True)
        for source, hypothesis in zip(sources, found, strict=True):
            best = max(
                (likelihood(model, source, [*middle, 1]), middle)
                for middle in [[], *([a] for a in (0, 2, 3, 4)), *([a, b] for a in (0, 2, 3, 4) for b in (0, 2, 3, 4))]
            )
            assert hypothesis.log_probability == pytest.approx(best[0], abs=1e-4)
            assert hypothesis.tokens == best[1]

    @each_structure
    @pytest.mark.parametrize(
        ("source", "target", "present", "message"),
        [
            ((1, 0), (1, 2), None, "sources are empty"),
            ((2, 3), (2, 2), torch.tensor([[True] * 3, [False] * 3]), "source 1 is empty"),
            ((1, 3), (1, 0), None, "needs? at least"),
        ],
    )
    def test_empty_rows_are_refused(self, structure: str, source: Any, target: Any, present: Any, message: str) -> None:
        model = build(structure)
        with pytest.raises(ValueError, match=message):
            model.hidden(torch.full(source, 3), torch.full(target, 3), present=present)

    def test_shared_stacks_have_half_the_parameters_and_their_own_positions(self) -> None:
        config = replace(SMALL)
        shared, whole = STRUCTURES["shared"](config), STRUCTURES["encoder-decoder"](config)
        encoder: Any = shared.encoder
        decoder: Any = shared.decoder
        for reading, writing in zip(encoder.blocks, decoder.blocks, strict=True):
            assert reading.attention is writing.attention and reading.feed_forward is writing.feed_forward
        assert encoder.positions is not decoder.positions
        stack = sum(parameter.numel() for parameter in whole.encoder.blocks.parameters())  # pyright: ignore
        count = [sum(parameter.numel() for parameter in model.parameters()) for model in (whole, shared)]
        assert count[0] - count[1] == stack

    def test_a_prefix_of_one_token_or_none_is_a_causal_mask(self) -> None:
        scheme = RelativePositions(2, bidirectional=True, buckets=8)
        masks = [attention_pattern(scheme, 5, 5, causal=True, prefix=prefix).mask for prefix in (0, 1)]
        assert torch.equal(*masks)  # pyright: ignore


def embeddings_seen(model: Any, source: Tensor, target: Tensor, place: int) -> Tensor:
    """Give how much a target token's logits depend on each embedding, of source and target."""
    stacks = {id(model.decoder.embedding): model.decoder.embedding}
    captured: list[Tensor] = []

    def keep(module: Any, inputs: Any, vectors: Tensor) -> Tensor:
        captured.append(vectors.detach().requires_grad_())
        return captured[-1]

    handles = [module.register_forward_hook(keep) for module in stacks.values()]
    logits = model(source, target)
    for handle in handles:
        handle.remove()
    gradients = torch.autograd.grad(logits[0, place].square().sum(), captured)
    return torch.cat([gradient[0].abs().sum(-1) for gradient in gradients])


def likelihood(model: Any, source: list[int], target: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([source]), torch.tensor([[0, *target[:-1]]]))
    return float(logits.log_softmax(-1)[0].gather(1, torch.tensor(target)[:, None]).sum())


class TestCost:
    @each_structure
    def test_operations_are_those_of_the_matrices(self, structure: str) -> None:
        """Against torch's own counter, forward and backward."""
        config = replace(SMALL, width=16, head_width=4, heads=4, hidden=64, vocabulary=64)
        source, target = 40, 24
        model = build(structure, config).train()
        tokens = torch.randint(2, 64, (1, source)), torch.randint(2, 64, (1, target))
        # It does not know of the CPU's fused kernel.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(*tokens).sum().backward()
        assert counter.get_total_flops() == training_flops(config, structure, source, target)

    def test_the_baseline_costs_what_a_language_model_of_half_its_layers_does(self) -> None:
        """Section 3.2.2, at the paper's lengths: 12 + 12 layers as 12, but for cross-attention; 6 + 6 are half."""
        config = SIZES["base"]
        cost = {name: training_flops(config, name, 450, 102) for name in STRUCTURES}
        assert cost["encoder-decoder"] == cost["shared"] == pytest.approx(cost["language model"], rel=0.2)
        assert cost["prefix language model"] == cost["language model"]
        half = training_flops(replace(config, layers=6), "encoder-decoder", 450, 102)
        assert half == pytest.approx(cost["encoder-decoder"] / 2, rel=0.05)
