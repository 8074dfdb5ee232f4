"""Mixtures of experts of both rooms on rows with padding: routed, balanced and limited as their tokens alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from allyouneed.data.labelled import label_pairs
from allyouneed.nn import (
    Attention,
    Block,
    CrossBlock,
    Decoder,
    Encoder,
    EncoderDecoder,
    Experts,
    PreNorm,
    RotaryPositions,
)
from allyouneed.papers import moe, moe_explained
from allyouneed.papers.moe import HierarchicalGate, MixtureOfExperts, NoisyTopKGate, RecurrentMixture
from allyouneed.papers.moe_explained import (
    ExpertChoice,
    Mixtral,
    MixtralConfig,
    SparseFeedForward,
    TopKRouter,
    router_loss,
    router_statistics,
    routings,
    z_loss,
)
from allyouneed.training import Loss, TrainingConfig, next_token_loss, train

WIDTH, EXPERTS, VOCABULARY = 12, 5, 23
ROWS = [[3, 4, 5, 6, 7, 8, 9], [1, 2], [8, 9, 10, 11, 12], [2, 2, 22, 4, 19, 6, 7, 8, 9]]


def experts() -> Experts:
    return Experts(EXPERTS, WIDTH, 7, torch.tanh)


def noisy(kind: type) -> nn.Module:
    gate = NoisyTopKGate(WIDTH, EXPERTS, 2) if kind is NoisyTopKGate else HierarchicalGate(WIDTH, EXPERTS, 1, 1)
    for parameter in gate.parameters():
        nn.init.normal_(parameter)
    return MixtureOfExperts(gate, experts())


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "switch": lambda: SparseFeedForward(TopKRouter(WIDTH, EXPERTS, 1), experts(), 1.0),
    "in slots": lambda: SparseFeedForward(TopKRouter(WIDTH, EXPERTS, 1), experts(), 1.0, slots=True),
    "top two": lambda: SparseFeedForward(TopKRouter(WIDTH, EXPERTS, 2, normalised=True), experts(), 0.7),
    "without a limit": lambda: SparseFeedForward(TopKRouter(WIDTH, EXPERTS, 2), experts()),
    "expert choice": lambda: ExpertChoice(TopKRouter(WIDTH, EXPERTS, 1), experts(), 2.0),
    "noisy": lambda: noisy(NoisyTopKGate),
    "hierarchical": lambda: noisy(HierarchicalGate),
}


def layer(kind: str) -> Any:
    torch.manual_seed(0)
    return LAYERS[kind]().double()


def losses(kind: str, model: nn.Module) -> Any:
    if kind in ("noisy", "hierarchical"):
        return moe.balancing_loss(model)
    return router_loss(model, 0.3, 0.2) if kind != "expert choice" else torch.zeros(())


def padded(side: str) -> tuple[Tensor, Tensor]:
    batch = label_pairs([(row[:1], row[1:]) for row in ROWS], pad=0, side=side)  # pyright: ignore
    return batch.tokens, batch.present


class TestLayers:
    @pytest.mark.parametrize("kind", list(LAYERS))
    def test_rows_with_padding_are_routed_as_their_tokens_alone(self, kind: str) -> None:
        """Answers, losses and gradients; the padding holds numbers that would win any contest."""
        _, present = padded("right")
        alone = torch.randn(int(present.sum()), WIDTH, dtype=torch.float64)
        rows = torch.full((*present.shape, WIDTH), 50.0, dtype=torch.float64)
        rows[present] = alone
        found = []
        for given, told in ((rows, {"present": present}), (alone, {})):
            module, given = layer(kind), given.clone().requires_grad_()
            torch.manual_seed(3)  # The noise of gates.
            answers = module(given, **told)
            penalty = losses(kind, module)
            (answers.square().sum() + penalty).backward()
            assert given.grad is not None
            found.append((answers, penalty, given.grad, [p.grad for p in module.parameters() if p.grad is not None]))
        (ours, penalty, gradient, weights), (expected, expected_penalty, expected_gradient, expected_weights) = found
        torch.testing.assert_close(ours[present], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(penalty, expected_penalty, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient[present], expected_gradient, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(weights, expected_weights, rtol=1e-10, atol=1e-12)
        assert not ours[~present].any() and not gradient[~present].any()

    @pytest.mark.parametrize("kind", list(LAYERS))
    def test_unsaid_padding_would_differ(self, kind: str) -> None:
        """The comparison above can fail."""
        _, present = padded("right")
        rows = torch.randn(*present.shape, WIDTH, dtype=torch.float64).masked_fill(~present[..., None], 50.0)
        answers = []
        for told in ({"present": present}, {}):
            torch.manual_seed(3)
            module = layer(kind)
            torch.manual_seed(4)
            answers.append((module(rows, **told)[present], losses(kind, module)))
        (one, first), (other, second) = answers
        assert not torch.allclose(one, other) or not torch.allclose(first, second)

    @pytest.mark.parametrize("kind", list(LAYERS))
    def test_padding_alone_costs_nothing(self, kind: str) -> None:
        module, rows = layer(kind), torch.randn(2, 3, WIDTH, dtype=torch.float64, requires_grad=True)
        answers = module(rows, present=torch.zeros(2, 3, dtype=torch.bool))
        assert not answers.any() and losses(kind, module).item() == 0
        (answers.sum() + losses(kind, module)).backward()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in module.parameters())
        if isinstance(module, SparseFeedForward):
            with pytest.raises(ValueError, match="padding alone"):
                router_statistics(module)

    def test_capacity_is_of_the_tokens_that_there_are(self) -> None:
        module, (_, present) = layer("switch"), padded("left")
        module(torch.randn(*present.shape, WIDTH).double(), present=present)
        assert present.numel() == 36 and module.routing.capacity == -(-23 // EXPERTS)
        assert router_statistics(module)["slots"] == pytest.approx(EXPERTS * 5 / 23)


def decoder(kind: str) -> Decoder:
    torch.manual_seed(0)
    blocks = [
        Block(PreNorm(Attention(WIDTH, 3), nn.LayerNorm(WIDTH)), PreNorm(layer(kind), nn.LayerNorm(WIDTH)))
        for _ in range(2)
    ]
    return Decoder(VOCABULARY, WIDTH, blocks, positions=RotaryPositions(4)).double()


class TestModels:
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_a_decoder_hands_its_padding_on(self, side: str) -> None:
        """Without a limit each row is for itself, so the padded batch is its rows one by one."""
        model, (tokens, present) = decoder("without a limit"), padded(side)
        logits = model(tokens, present=present)
        chosen = [routing.choice.chosen for routing in routings(model)]
        for number, row in enumerate(ROWS):
            alone = model(torch.tensor([row]))
            torch.testing.assert_close(logits[number, present[number]], alone[0], rtol=1e-9, atol=1e-10)
            place = int(present[:number].sum())
            for before, now in zip(chosen, routings(model), strict=True):
                assert torch.equal(before[place : place + len(row)], now.choice.chosen)
        assert all(len(each) == sum(map(len, ROWS)) for each in chosen)

    def test_a_cache_too(self) -> None:
        model, (tokens, present) = decoder("without a limit").eval(), padded("left")
        cache = model.new_cache()
        whole = model(tokens, present=present)
        first = model(tokens[:, :6], present=present[:, :6], cache=cache)
        assert len(routings(model)[0].choice.chosen) == int(present[:, :6].sum())
        rest = model(tokens[:, 6:], present=present[:, 6:], cache=cache)
        assert len(routings(model)[0].choice.chosen) == int(present[:, 6:].sum())
        joined = torch.cat((first, rest), 1)
        torch.testing.assert_close(joined[present], whole[present], rtol=1e-9, atol=1e-10)

    def test_an_encoder(self) -> None:
        """With expert choice even in evaluation, where the padding would be chosen."""
        torch.manual_seed(0)
        block = Block(
            PreNorm(Attention(WIDTH, 3), nn.LayerNorm(WIDTH)), PreNorm(layer("expert choice"), nn.LayerNorm(WIDTH))
        )
        model = Encoder(VOCABULARY, WIDTH, [block], positions=RotaryPositions(4)).double().eval()
        row = torch.tensor([ROWS[0]])
        wide = nn.functional.pad(row, (2, 3))
        present = nn.functional.pad(torch.ones_like(row, dtype=torch.bool), (2, 3))
        torch.testing.assert_close(model(wide, present=present)[present], model(row)[0], rtol=1e-9, atol=1e-10)

    def test_an_encoder_and_a_decoder(self) -> None:
        torch.manual_seed(0)

        def attention() -> PreNorm:
            return PreNorm(Attention(WIDTH, 3), nn.LayerNorm(WIDTH))

        blocks = [CrossBlock(attention(), attention(), PreNorm(layer("switch"), nn.LayerNorm(WIDTH)))]
        positions = RotaryPositions(4)
        encoder = Encoder(VOCABULARY, WIDTH, [Block(attention(), attention())], positions=positions)
        model = EncoderDecoder(encoder, Decoder(VOCABULARY, WIDTH, blocks, positions=positions)).double()
        source, row = torch.tensor([[5, 6, 7]]), torch.tensor([ROWS[0]])
        expected, loss = model(source, row), router_loss(model)
        wide, present = nn.functional.pad(row, (0, 9)), torch.arange(16)[None] < 7
        told = model(source, wide, target_present=present)
        torch.testing.assert_close(told[present], expected[0], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(router_loss(model), loss, rtol=1e-12, atol=0)
        model(source, wide)
        assert not torch.allclose(torch.as_tensor(router_loss(model)), torch.as_tensor(loss))

    def test_the_recurrent_model(self) -> None:
        torch.manual_seed(0)
        model = RecurrentMixture(VOCABULARY, WIDTH, layer("noisy")).double().eval()
        tokens, present = padded("right")
        logits = model(tokens, present=present)
        assert isinstance(model.middle, MixtureOfExperts)
        gating = model.middle.gating
        assert gating is not None and len(gating.experts) == 23
        for number, row in enumerate(ROWS):
            alone = model(torch.tensor([row]))[0]
            torch.testing.assert_close(logits[number, : len(row)], alone, rtol=1e-9, atol=1e-10)
        tokens, present = padded("left")
        with pytest.raises(ValueError, match="pad rows on the right"):
            model(tokens, present=present)

    def test_training_on_pairs_counts_no_padding(self) -> None:
        """Two parts of unequal padding and the same rows without any, one after the other, take the same steps."""
        pairs = [(row[:2], row[2:]) for row in ROWS if len(row) > 2]
        results = []
        for parts in (1, len(pairs)):
            model = decoder("without a limit")

            def loss(model: Decoder, batch: Any) -> Loss:
                total, targets = next_token_loss(model, batch)
                # Linear in tokens, as the whole batch's is: the balancing loss of parts is not that of the whole.
                routed = routings(model)
                return Loss(total + 0.1 * sum(z_loss(r.choice) * len(r.choice.logits) for r in routed), targets)

            settings = TrainingConfig(3, 1e-2, accumulate=parts)
            results.append(train(model, lambda _: label_pairs(pairs, pad=0), loss, settings).losses)
        torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_balancing_losses_equal_those_of_transformers(side: str, tmp_path: Path) -> None:
    """Mixtral with padded rows: what each layer's router chose, and the loss under their attention mask."""
    torch.manual_seed(0)
    ours = Mixtral(MixtralConfig(VOCABULARY, 16, 2, 4, 24, 2, 4, 2, 10_000.0, 1e-6, 64, initial_deviation=0.3))
    ours.save_pretrained(tmp_path)
    theirs: Any = MixtralForCausalLM.from_pretrained(tmp_path)
    tokens, present = padded(side)
    with torch.no_grad():
        answer = theirs(tokens, attention_mask=present.long(), output_router_logits=True)
        logits = ours(tokens, present=present)
    torch.testing.assert_close(logits[present], answer.logits[present], rtol=1e-4, atol=1e-4)
    found = [2 * moe_explained.balancing_loss(routing.choice) for routing in routings(ours)]
    # Theirs counts each of the two choices as a whole token.
    for mine, router in zip(found, answer.router_logits, strict=True):
        expected = load_balancing_loss_func((router,), 4, 2, present.long())
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)
        unmasked = load_balancing_loss_func((router,), 4, 2)
        assert abs(float(unmasked) - float(mine)) > 1e-3
