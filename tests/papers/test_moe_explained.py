"""Sparse layers of transformers: capacity, losses, expert choice and upcycling, against plain computations."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MixtralForCausalLM, SwitchTransformersConfig
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersSparseMLP,
    router_z_loss_func,
)

from allyouneed.nn import Experts, GatedExperts
from allyouneed.papers.llama1 import Llama, LlamaConfig
from allyouneed.papers.moe_explained import (
    Choice,
    ExpertChoice,
    Mixtral,
    MixtralConfig,
    Routing,
    SparseFeedForward,
    TopKRouter,
    balancing_loss,
    expert_capacity,
    router_loss,
    router_statistics,
    routings,
    upcycle,
    within_capacity,
    z_loss,
)
from allyouneed.papers.moe_explained.routing import rounding_error, ties
from allyouneed.training import Loss, TrainingConfig, next_token_loss, train

WIDTH, EXPERTS, HIDDEN = 6, 5, 7


def sparse(k: int = 1, factor: float | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    router = TopKRouter(WIDTH, EXPERTS, k, normalised=k > 1)
    router.weight.data *= 5
    return SparseFeedForward(router, Experts(EXPERTS, WIDTH, HIDDEN, torch.tanh), factor, **options).double()


def vectors(count: int = 20) -> Tensor:
    return torch.randn(count, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()


def looped(layer: Any, tokens: Tensor, capacity: int | None) -> tuple[Tensor, list[int]]:
    """Route first choices in the order of tokens, then second ones; drop what finds its expert full."""
    probabilities = (tokens @ layer.router.weight.T).softmax(1)
    weights, chosen = probabilities.topk(layer.router.k, dim=1)
    if layer.router.normalised:
        weights = weights / weights.sum(1, keepdim=True)
    taken = [0] * EXPERTS
    outputs = [torch.zeros(WIDTH).double() for _ in tokens]
    for place in range(layer.router.k):
        for token, vector in enumerate(tokens):
            expert = int(chosen[token, place])
            if capacity is not None and taken[expert] >= capacity:
                continue
            taken[expert] += 1
            inner = layer.experts.activation(layer.experts.inner[expert](vector))
            outputs[token] = outputs[token] + weights[token, place] * layer.experts.output[expert](inner)
    return torch.stack(outputs), taken


class TestSparseFeedForward:
    @pytest.mark.parametrize("k", [1, 2, EXPERTS])
    @pytest.mark.parametrize("factor", [None, 0.3, 1.0, 1.25, 10.0])
    @pytest.mark.parametrize("slots", [False, True])
    def test_equals_a_loop_over_tokens(self, k: int, factor: float | None, slots: bool) -> None:
        layer, tokens = sparse(k, factor, slots=slots and factor is not None), vectors()
        capacity = None if factor is None else math.ceil(20 / EXPERTS * factor)
        ours, (expected, taken) = layer(tokens), looped(layer, tokens, capacity)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
        dropped = router_statistics(layer)["dropped"]
        assert dropped == pytest.approx(1 - sum(taken) / (20 * k))
        assert (dropped > 0) == (factor is not None and max(looped(layer, tokens, None)[1]) > (capacity or 0))
        learned = [tokens, *layer.parameters()]
        pairs = (torch.autograd.grad(out.square().sum(), learned, allow_unused=True) for out in (ours, expected))
        for one, other in zip(*pairs, strict=True):
            torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, rtol=1e-9, atol=1e-9)

    def test_a_token_without_room_is_given_zeros_and_no_gradient(self) -> None:
        layer, tokens = sparse(1, 0.3), vectors()
        answers = layer(tokens)
        kept = layer.routing.kept[:, 0]
        assert 0 < int(kept.sum()) < 20
        assert not answers[~kept].any() and bool(answers[kept].any(1).all())
        (gradient,) = torch.autograd.grad(answers.sum(), tokens)
        assert not gradient[~kept].any()

    def test_in_evaluation_nothing_is_dropped(self) -> None:
        """So that a token's answer does not depend on the others of its batch."""
        layer, tokens = sparse(1, 0.3).eval(), vectors()
        whole = layer(tokens)
        assert bool(layer.routing.kept.all()) and layer.routing.capacity is None
        torch.testing.assert_close(torch.cat([layer(token[None]) for token in tokens]), whole, rtol=1e-12, atol=1e-12)

    def test_the_router_learns_with_one_expert_a_token(self) -> None:
        layer = sparse(1)
        layer(vectors()).square().sum().backward()
        assert float(layer.router.weight.grad.abs().max()) > 0

    def test_the_router_stays_in_32_bits(self) -> None:
        router = TopKRouter(WIDTH, EXPERTS, 1)
        with torch.autocast("cpu", torch.bfloat16):
            assert router(torch.randn(3, WIDTH)).logits.dtype == torch.float32
        assert router.bfloat16()(torch.randn(3, WIDTH).bfloat16()).logits.dtype == torch.float32

    @pytest.mark.parametrize("tokens", [7, 8, 9])
    def test_capacity_is_rounded_up(self, tokens: int) -> None:
        assert expert_capacity(tokens, 4, 1.0) == -(-tokens // 4)
        assert expert_capacity(100, 8, 1.25) == 16

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: TopKRouter(4, 3, 4), "k is 4: of 3 experts"),
            (lambda: TopKRouter(4, 3, 0), "k is 0"),
            (lambda: TopKRouter(4, 3, 1, normalised=True), "never learn"),
            (lambda: expert_capacity(10, 2, -1.0), r"factor is -1\.0"),
            (lambda: expert_capacity(10, 2, math.nan), "factor is nan"),
            (lambda: within_capacity(torch.zeros(3, 1, dtype=torch.int64), 2, -1), "capacity is -1"),
            (lambda: sparse(1, 0.0), r"factor is 0\.0"),
            (lambda: sparse(1, None, slots=True), "slots need a capacity_factor"),
            (lambda: SparseFeedForward(TopKRouter(4, 3, 1), Experts(2, 4, 4)), "3 experts, and there are 2"),
            (lambda: ExpertChoice(TopKRouter(4, 3, 1), Experts(2, 4, 4)), "3 experts, and there are 2"),
            (lambda: ExpertChoice(TopKRouter(4, 3, 1), Experts(3, 4, 4), 0.0), r"factor is 0\.0"),
            (lambda: router_loss(nn.Linear(2, 2), z=-1.0), "must not be negative"),
            (lambda: router_statistics(nn.Linear(2, 2)), "no sparse layers"),
            (lambda: routings(sparse()), "1 of 1 sparse layers were not called"),
            (lambda: upcycle(nn.Linear(2, 2), 4), "of the model's 0 blocks none"),
            (lambda: upcycle(upcycle(llama(), 3), 3), "a SparseFeedForward cannot be copied"),
            (lambda: upcycle(llama(), 2, 3), "k is 3: of 2 experts"),
            (lambda: MixtralConfig(k=9), "k is 9: of 8 experts"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, make: Callable[[], Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make()


class TestEqualsSwitchTransformers:
    """Theirs counts each sequence's capacity for itself, ours that of the batch: compared on one sequence at a time."""

    def pair(self, capacity: int) -> tuple[Any, Any]:
        torch.manual_seed(0)
        theirs: Any = SwitchTransformersSparseMLP(
            SwitchTransformersConfig(
                d_model=WIDTH,
                d_ff=HIDDEN,
                num_experts=EXPERTS,
                expert_capacity=capacity,
                router_jitter_noise=0.0,
                dropout_rate=0.0,
            )
        )
        theirs.router.classifier.weight.data.normal_()
        ours: Any = SparseFeedForward(TopKRouter(WIDTH, EXPERTS, 1), Experts(EXPERTS, WIDTH, HIDDEN), capacity / 4)
        ours.router.weight.data = theirs.router.classifier.weight.data.clone()
        for index in range(EXPERTS):
            ours.experts.inner[index].weight.data = theirs.experts[f"expert_{index}"].wi.weight.data.clone()
            ours.experts.output[index].weight.data = theirs.experts[f"expert_{index}"].wo.weight.data.clone()
        return ours, theirs

    @pytest.mark.parametrize("capacity", [1, 3, 6, 20])
    def test_forward_and_gradient(self, capacity: int) -> None:
        ours, theirs = self.pair(capacity)
        tokens = torch.randn(1, 20, WIDTH)  # 20 tokens for 5 experts: a factor of capacity / 4.
        mine, other = tokens.clone().requires_grad_(), tokens.clone().requires_grad_()
        answer, expected = ours(mine), theirs(other)
        assert ours.routing.capacity == capacity
        torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-6)
        answer.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ours.router.weight.grad, theirs.router.classifier.weight.grad, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("k", [1, 2])
    def test_losses(self, k: int) -> None:
        logits = torch.randn(40, EXPERTS)
        choice = Choice(logits, logits.topk(k).indices, torch.ones(40, k))
        # Theirs counts each of the k choices as a whole token.
        torch.testing.assert_close(k * balancing_loss(choice), load_balancing_loss_func((logits,), EXPERTS, k))
        torch.testing.assert_close(z_loss(choice), router_z_loss_func(logits[None]))


class TestLosses:
    def test_of_even_routing(self) -> None:
        """The balancing loss is 1 where all is even, and the number of experts where one has everything."""
        even = Choice(torch.zeros(10, EXPERTS), torch.arange(10)[:, None] % EXPERTS, torch.ones(10, 1))
        assert float(balancing_loss(even)) == pytest.approx(1)
        assert float(z_loss(even)) == pytest.approx(math.log(EXPERTS) ** 2)
        one = Choice(F.one_hot(torch.zeros(10).long(), EXPERTS) * 100.0, torch.zeros(10, 1).long(), torch.ones(10, 1))
        assert float(balancing_loss(one)) == pytest.approx(EXPERTS)

    def test_statistics(self) -> None:
        layer = sparse(1, 1.0)
        layer.router.weight.data.zero_()
        layer(vectors(20))
        found = router_statistics(layer)
        # Of equal logits one expert is always chosen.
        assert found["largest_load"] == EXPERTS and found["unused"] == pytest.approx(0.8)
        assert found["dropped"] == pytest.approx(0.8) and found["slots"] == 1.0
        assert found["entropy"] == pytest.approx(1) and found["largest_logit"] == 0
        assert found["z_loss"] == pytest.approx(math.log(EXPERTS) ** 2)
        assert found["bf16_ties"] == 1 and found["bf16_error"] == 0

    def test_what_16_bits_cannot_tell(self) -> None:
        """Between 2 and 4, bfloat16 goes in steps of 1/64, between -1/2 and -1 of 1/256; a shift changes what ties."""
        logits = torch.tensor([[3.0, 3.004, -9.0], [-0.6, -0.604, -9.0], [3.0, 3.1, -9.0], [-9.0, 3.004, 3.0]])
        choice = Choice(logits, logits.argmax(1, keepdim=True), torch.ones(4, 1))
        assert ties(choice, torch.bfloat16).tolist() == [True, False, False, True]
        assert not ties(choice, torch.float32).any()
        # All of two, of which none is left over, and two of three.
        both = Choice(logits[:, :2], logits[:, :2].topk(2).indices, torch.ones(4, 2))
        assert not ties(both, torch.bfloat16).any()
        two = Choice(logits, logits.topk(2).indices, torch.ones(4, 2))
        assert not ties(two, torch.bfloat16).any()

    def test_how_far_16_bits_move_probabilities(self) -> None:
        logits = torch.tensor([[3.0, 3.004], [3.0, 3.0]])
        choice = Choice(logits, logits.argmax(1, keepdim=True), torch.ones(2, 1))
        # Rounded they are equal; before, the second's probability was above one half by a quarter of the difference.
        torch.testing.assert_close(
            rounding_error(choice, torch.bfloat16), torch.tensor([0.001, 0.0]), atol=1e-6, rtol=0
        )
        assert not rounding_error(choice, torch.float32).any()

    def test_the_signed_logit_falls_below_zero_where_the_absolute_one_would_rise(self) -> None:
        layer = sparse(1)
        layer(vectors())
        before = router_statistics(layer)
        shifted = routings(layer)[0].choice._replace(logits=routings(layer)[0].choice.logits - 20)
        layer.routing = Routing(shifted, layer.routing.kept, None)
        assert router_statistics(layer)["largest_logit"] == pytest.approx(before["largest_logit"] - 20)

    def test_they_are_summed_over_layers(self) -> None:
        model = nn.Sequential(sparse(1), sparse(2))
        model(vectors())
        parts = [0.1 * balancing_loss(r.choice) + 0.2 * z_loss(r.choice) for r in routings(model)]
        torch.testing.assert_close(router_loss(model, 0.1, 0.2), parts[0] + parts[1])
        assert router_loss(model, 0.0, 0.0) == 0.0

    @pytest.mark.parametrize(("loss", "statistic"), [("balance", "largest_load"), ("z", "z_loss")])
    def test_each_lowers_what_it_is_for(self, loss: str, statistic: str) -> None:
        layer, tokens = sparse(1).float(), torch.randn(200, WIDTH) + (loss == "balance")
        layer(tokens)
        before = router_statistics(layer)
        optimizer = torch.optim.Adam(layer.router.parameters(), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            layer(tokens)
            penalty: Any = router_loss(layer, **({"balance": 0.0, "z": 0.0} | {loss: 1.0}))
            penalty.backward()
            optimizer.step()
        assert router_statistics(layer)[statistic] < 0.7 * before[statistic]


class TestExpertChoice:
    def test_each_expert_takes_its_best_tokens(self) -> None:
        torch.manual_seed(0)
        layer: Any = ExpertChoice(TopKRouter(WIDTH, EXPERTS, 1), Experts(EXPERTS, WIDTH, HIDDEN, torch.tanh), 2.0)
        layer, tokens = layer.double(), vectors(20)
        scores = (tokens @ layer.router.weight.T).softmax(1)
        expected = torch.zeros(20, WIDTH).double()
        for expert in range(EXPERTS):
            taken = scores[:, expert].topk(8).indices  # 20 / 5 · 2
            inner = torch.tanh(layer.experts.inner[expert](tokens[taken]))
            answers = scores[taken, expert, None] * layer.experts.output[expert](inner)
            expected = expected.index_add(0, taken, answers)
        torch.testing.assert_close(layer(tokens), expected, rtol=1e-12, atol=1e-12)
        routes = layer.routes(tokens)
        assert routes.counts == (8,) * EXPERTS
        # Sorted the same way as other routes: place // experts is the token.
        assert torch.equal(routes.places // EXPERTS, routes.tokens)

    def test_a_capacity_beyond_the_tokens_takes_all(self) -> None:
        layer: Any = ExpertChoice(TopKRouter(WIDTH, EXPERTS, 1), Experts(EXPERTS, WIDTH, HIDDEN), 50.0).double()
        assert layer.routes(vectors(3)).counts == (3,) * EXPERTS


def llama() -> Llama:
    torch.manual_seed(0)
    return Llama(LlamaConfig(vocabulary=37, width=24, layers=3, heads=4, hidden=20, context=64, initial_deviation=0.2))


class TestUpcycling:
    @pytest.mark.parametrize("k", [2, 4])
    def test_it_begins_as_the_dense_model(self, k: int, tmp_path: Path) -> None:
        """A checkpoint of ours, from its file."""
        llama().save_pretrained(tmp_path)
        model = Llama.from_pretrained(tmp_path).double()
        given = torch.randint(37, (2, 11))
        sparse = upcycle(model, 4, k)
        assert sum(p.numel() for p in sparse.parameters()) > 2 * sum(p.numel() for p in model.parameters())
        with torch.no_grad():
            torch.testing.assert_close(sparse(given), model(given), rtol=1e-10, atol=1e-10)
        layers = [module for module in sparse.modules() if isinstance(module, SparseFeedForward)]
        assert len(layers) == 3 and all(isinstance(layer.experts, GatedExperts) for layer in layers)

    def test_the_dense_model_is_left_alone_and_layers_can_be_chosen(self) -> None:
        model = llama()
        sparse = upcycle(model, 3, where=lambda layer: layer == 1)
        assert not any(isinstance(module, SparseFeedForward) for module in model.modules())
        kinds = [type(block.feed_forward.sublayer).__name__ for block in sparse.blocks]  # pyright: ignore
        assert kinds == ["GatedFeedForward", "SparseFeedForward", "GatedFeedForward"]
        parameters = {id(parameter) for parameter in model.parameters()}
        assert not parameters & {id(parameter) for parameter in sparse.parameters()}

    def test_it_becomes_a_mixtral(self, tmp_path: Path) -> None:
        """The weights of an upcycled LLaMA are those of a Mixtral, which transformers reads."""
        sparse = upcycle(llama(), 4).eval()
        config = MixtralConfig(37, 24, 3, 4, 20, 4, 4, 2, 10_000.0, 1e-6, 64)
        mixtral = Mixtral(config)
        mixtral.load_state_dict(sparse.state_dict())
        mixtral.save_pretrained(tmp_path)
        theirs: Any = MixtralForCausalLM.from_pretrained(tmp_path).eval()
        given = torch.randint(37, (2, 11))
        with torch.no_grad():
            torch.testing.assert_close(theirs(given).logits, sparse(given), rtol=1e-4, atol=1e-4)

    def test_it_learns_on(self) -> None:
        torch.manual_seed(0)
        sparse = upcycle(llama(), 4)
        rows = torch.arange(16).remainder(5).expand(4, 16).contiguous()

        def loss(model: Any, batch: Tensor) -> Loss:
            total, targets = next_token_loss(model, batch)
            return Loss(total + targets * router_loss(model), targets)

        result = train(sparse, lambda step: rows, loss, TrainingConfig(40, 1e-2))
        assert result.losses[-1] < 0.2 < result.losses[0]
        first: Any = sparse.blocks[0].feed_forward.sublayer.experts  # pyright: ignore
        assert not torch.equal(first.inner[0].weight, first.inner[1].weight)
