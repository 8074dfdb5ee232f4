"""The sparsely-gated mixture: against the dense computation of the same mixture, and its estimator against draws."""

import math
import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allyouneed.nn import Attention, Block, Decoder, Experts, GatedExperts, PreNorm, RotaryPositions
from allyouneed.papers.moe import (
    HierarchicalGate,
    MixtureOfExperts,
    NoisyTopKGate,
    RecurrentMixture,
    balancing_loss,
    noisy_top_k,
    squared_variation,
)
from allyouneed.training import Loss, TrainingConfig, train

WIDTH, EXPERTS, HIDDEN = 6, 7, 5


def drawn(module: Any) -> Any:
    """Give a gate and its experts weights that are far from zero, in float64."""
    generator = torch.Generator().manual_seed(0)
    module = module.double()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return module


def mixture(k: int, kind: type[Experts] = Experts) -> Any:
    activation = F.silu if kind is GatedExperts else torch.tanh
    return drawn(MixtureOfExperts(NoisyTopKGate(WIDTH, EXPERTS, k), kind(EXPERTS, WIDTH, HIDDEN, activation)))


def vectors(count: int = 23) -> Tensor:
    return torch.randn(count, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()


def dense(layer: Any, tokens: Tensor, noise: Tensor | None) -> Tensor:
    """Compute equations 1 to 5 as they stand: every expert on every token, gate values of which most are zero."""
    scores = tokens @ layer.gate.score.T
    if noise is not None:
        scores = scores + noise * F.softplus(tokens @ layer.gate.noise.T)
    least = scores.sort(dim=1, descending=True).values[:, layer.gate.k - 1, None]
    gates = scores.masked_fill(scores < least, -math.inf).softmax(1)
    experts: Any = layer.experts
    answers = []
    for index in range(experts.number):
        inner = tokens @ experts.inner[index].weight.T
        if isinstance(layer.experts, GatedExperts):
            inner = experts.activation(tokens @ experts.gate[index].weight.T) * inner
        else:
            inner = experts.activation(inner)
        answers.append(inner @ experts.output[index].weight.T)
    return (gates[:, :, None] * torch.stack(answers, 1)).sum(1)


class TestEqualsTheDenseComputation:
    @pytest.mark.parametrize("k", [1, 2, 4, EXPERTS])
    @pytest.mark.parametrize("kind", [Experts, GatedExperts])
    @pytest.mark.parametrize("training", [True, False])
    def test_forward_and_gradient(self, k: int, kind: type[Experts], training: bool) -> None:
        layer, tokens = mixture(k, kind).train(training), vectors()
        torch.manual_seed(3)
        noise = torch.randn(len(tokens), EXPERTS, dtype=torch.float64) if training else None
        torch.manual_seed(3)
        ours, expected = layer(tokens), dense(layer, tokens, noise)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
        upstream = torch.randn_like(ours)
        learned = [tokens, *layer.parameters()]
        ours_gradients, expected_gradients = (
            torch.autograd.grad(answer, learned, upstream, allow_unused=True) for answer in (ours, expected)
        )
        for one, other, what in zip(ours_gradients, expected_gradients, learned, strict=True):
            zeros = torch.zeros_like(what)
            pair = (zeros if part is None else part for part in (one, other))
            torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-10)
        if training and k > 1:
            # What the noise is multiplied by is learned, through the gate values alone.
            assert float(ours_gradients[2].abs().max()) > 1e-3

    def test_of_any_shape_and_of_no_tokens(self) -> None:
        layer = mixture(2).eval()
        tokens = vectors(12)
        whole = layer(tokens)
        assert torch.equal(layer(tokens.reshape(3, 4, WIDTH)), whole.reshape(3, 4, WIDTH))
        assert layer(tokens[:0]).shape == (0, WIDTH)

    def test_hierarchy_equals_equation_12(self) -> None:
        groups, size, k = 4, 3, 2
        layer: Any = drawn(
            MixtureOfExperts(HierarchicalGate(WIDTH, groups, size, k), Experts(12, WIDTH, HIDDEN, torch.tanh))
        ).eval()
        tokens, gate = vectors(), layer.gate

        def top(scores: Tensor) -> Tensor:
            least = scores.topk(k, dim=1).values[:, -1:]
            return scores.masked_fill(scores < least, -math.inf).softmax(1)

        primary = top(tokens @ gate.primary.score.T)
        gates = torch.cat([primary[:, [i]] * top(tokens @ gate.score[i].T) for i in range(groups)], 1)
        answers = [
            torch.tanh(tokens @ inner.weight.T) @ output.weight.T
            for inner, output in zip(layer.experts.inner, layer.experts.output, strict=True)
        ]
        expected = (gates[:, :, None] * torch.stack(answers, 1)).sum(1)
        ours = layer(tokens)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer.gating.importance, gates.sum(0), rtol=1e-12, atol=1e-12)
        # Without noise loads are counts, and equation 14 is what remains of them.
        for group in range(groups):
            torch.testing.assert_close(
                layer.gating.load[group * size : (group + 1) * size],
                (gates[:, group * size : (group + 1) * size] > 0).sum(0).double(),
            )
        learned = [tokens, *(p for n, p in layer.named_parameters() if "noise" not in n)]
        for one, other in zip(
            torch.autograd.grad(ours.square().sum(), learned, retain_graph=True),
            torch.autograd.grad(expected.square().sum(), learned),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


class TestLoad:
    @pytest.mark.parametrize("k", [1, 3])
    def test_the_estimator_is_what_draws_converge_to(self, k: int) -> None:
        """Each expert's own noise drawn anew, that of the others kept (equation 8)."""
        generator = torch.Generator().manual_seed(0)
        clean = torch.randn(5, EXPERTS, dtype=torch.float64, generator=generator)
        deviation = torch.rand(5, EXPERTS, dtype=torch.float64, generator=generator) + 0.5
        torch.manual_seed(1)
        noise = torch.randn_like(clean)
        torch.manual_seed(1)
        _, _, probability = noisy_top_k(clean, deviation, k)
        noisy = clean + noise * deviation
        draws = 20_000
        for expert in range(EXPERTS):
            others = torch.cat((noisy[:, :expert], noisy[:, expert + 1 :]), 1)
            to_beat = others.topk(k, dim=1).values[:, -1]
            anew = clean[:, expert] + deviation[:, expert] * torch.randn(
                draws, 5, dtype=torch.float64, generator=generator
            )
            found = (anew > to_beat).double().mean(0)
            # Five standard errors.
            error = 5 * (found * (1 - found) / draws).sqrt() + 1e-3
            assert bool(((probability[:, expert] - found).abs() < error).all())

    def test_its_mean_over_noise_is_the_mean_count(self) -> None:
        layer, tokens = mixture(2), vectors(400).detach()
        counts, loads = torch.zeros(EXPERTS).double(), torch.zeros(EXPERTS).double()
        torch.manual_seed(0)
        for _ in range(200):
            gating = layer.gate(tokens)
            counts += torch.bincount(gating.experts.flatten(), minlength=EXPERTS)
            loads += gating.load.detach()
        torch.testing.assert_close(loads / 200, counts / 200, rtol=0.02, atol=0.3)

    def test_the_hierarchys_too(self) -> None:
        gate = drawn(HierarchicalGate(WIDTH, 3, 4, 2))
        tokens = vectors(400).detach()
        counts, loads = torch.zeros(12).double(), torch.zeros(12).double()
        torch.manual_seed(0)
        for _ in range(200):
            gating = gate(tokens)
            counts += torch.bincount(gating.experts.flatten(), minlength=12)
            loads += gating.load.detach()
        torch.testing.assert_close(loads / 200, counts / 200, rtol=0.03, atol=0.5)

    def test_gradients_reach_scores_and_noise(self) -> None:
        """The numbers of tokens alone have none; the primary gate of a hierarchy is reached too."""
        tokens = vectors()
        for gate in (NoisyTopKGate(WIDTH, EXPERTS, 2), HierarchicalGate(WIDTH, 3, 4, 2)):
            gate = drawn(gate)
            squared_variation(gate(tokens).load).backward()
            for name, parameter in gate.named_parameters():
                assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name

    def test_gradcheck_with_fixed_noise(self) -> None:
        gate = drawn(NoisyTopKGate(WIDTH, 4, 2))

        def loads(tokens: Tensor, score: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            torch.manual_seed(0)
            gating = torch.func.functional_call(gate, {"score": score, "noise": noise}, (tokens,))
            return gating.load, gating.importance

        assert torch.autograd.gradcheck(loads, (vectors(3), gate.score, gate.noise))

    def test_without_room_for_noise_it_stays_finite(self) -> None:
        clean = torch.zeros(4, 3, requires_grad=True)
        deviation = F.softplus(torch.full((4, 3), -200.0)).requires_grad_()
        *_, probability = noisy_top_k(clean, deviation, 1)
        probability.sum().backward()
        assert clean.grad is not None and bool(clean.grad.isfinite().all()) and bool(probability.isfinite().all())


class TestBalance:
    def test_gates_begin_balanced(self) -> None:
        """Both matrices are zero (appendix A), even in a model that initialises its linear layers."""
        tokens = torch.randn(4000, WIDTH)
        gate = NoisyTopKGate(WIDTH, EXPERTS, 2)
        load = gate(tokens).load.detach()
        assert float(load.max() / load.mean()) < 1.1
        model = decoder(2)
        for module in model.modules():
            if isinstance(module, NoisyTopKGate):
                assert not module.score.any() and not module.noise.any()

    def test_the_loss_is_the_papers(self) -> None:
        layer = mixture(2)
        layer(vectors())
        importance, load = layer.gating.importance, layer.gating.load
        variation = [(values.std(correction=0) / values.mean()) ** 2 for values in (importance, load)]
        ours = balancing_loss(nn.Sequential(layer, layer), importance=0.3, load=0.2)
        torch.testing.assert_close(ours, 0.3 * variation[0] + 0.2 * variation[1])

    def test_it_evens_out_what_began_uneven(self) -> None:
        torch.manual_seed(0)
        layer = mixture(2).float()
        tokens = torch.randn(512, WIDTH)
        layer(tokens)
        before = float(squared_variation(layer.gating.importance).detach())
        optimizer = torch.optim.Adam(layer.gate.parameters(), lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            layer(tokens)
            loss: Any = balancing_loss(layer)
            loss.backward()
            optimizer.step()
        assert float(squared_variation(layer.gating.importance).detach()) < 0.2 * before

    def test_nothing_to_balance(self) -> None:
        assert balancing_loss(nn.Linear(2, 2)) == 0.0
        with pytest.raises(ValueError, match="not called yet"):
            balancing_loss(mixture(2))
        with pytest.raises(ValueError, match=r"-0\.1 and 0\.1: they must not be negative"):
            balancing_loss(nn.Linear(2, 2), importance=-0.1)


def decoder(layers: int) -> Decoder:
    width, heads = 16, 2
    blocks = [
        Block(
            PreNorm(Attention(width, heads), nn.LayerNorm(width)),
            PreNorm(MixtureOfExperts(NoisyTopKGate(width, 4, 2), Experts(4, width, 8)), nn.LayerNorm(width)),
        )
        for _ in range(layers)
    ]
    return Decoder(11, width, blocks, positions=RotaryPositions(width // heads), norm=nn.LayerNorm(width))


def recurrent() -> RecurrentMixture:
    return RecurrentMixture(11, 16, MixtureOfExperts(NoisyTopKGate(16, 4, 2), Experts(4, 16, 8)), dropout=0.1)


@pytest.mark.parametrize("make", [lambda: decoder(2), recurrent], ids=["transformer", "LSTM"])
class TestInModels:
    def test_it_learns(self, make: Any) -> None:
        torch.manual_seed(0)
        model = make()
        rows = torch.arange(16).remainder(5).expand(4, 16).contiguous()

        def loss(model: Any, batch: Tensor) -> Loss:
            logits = model(batch[:, :-1])
            total = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
            return Loss(total + batch[:, 1:].numel() * balancing_loss(model), batch[:, 1:].numel())

        result = train(model, lambda step: rows, loss, TrainingConfig(80, 2e-2))
        assert result.losses[-1] < 0.3 < 1 < result.losses[0]
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_a_token_sees_what_precedes_it_alone(self, make: Any) -> None:
        torch.manual_seed(0)
        model = make().double().eval()
        tokens = torch.randint(11, (2, 9))
        changed = tokens.clone()
        changed[:, 5] = (changed[:, 5] + 1) % 11
        with torch.no_grad():
            one, other = model(tokens), model(changed)
        torch.testing.assert_close(one[:, :5], other[:, :5], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(one[:, 5:], other[:, 5:])


def test_a_cache_changes_nothing() -> None:
    torch.manual_seed(0)
    model = decoder(2).double().eval()
    tokens = torch.randint(11, (2, 9))
    cache = model.new_cache()
    with torch.no_grad():
        parts = torch.cat([model(part, cache=cache) for part in tokens.split([5, 1, 3], 1)], 1)
        torch.testing.assert_close(parts, model(tokens), rtol=1e-10, atol=1e-10)


def test_the_recurrent_model_is_appendix_c1() -> None:
    torch.manual_seed(0)
    model: Any = recurrent().double().eval()
    tokens = torch.randint(11, (2, 7))
    embedded = model.embedding(tokens)
    first = model.first(embedded)[0] + embedded
    middle = model.middle(first).sigmoid() + first
    second = model.second(middle)[0] + middle
    torch.testing.assert_close(model(tokens), second @ model.head.weight.T)


def test_time_a_token_is_nearly_flat_in_the_experts() -> None:
    """Sixteen times as many experts; the dense computation takes sixteen times as long, ours at most three times."""
    width, hidden = 64, 256
    tokens = torch.randn(2048, width)

    def seconds(experts: int) -> float:
        torch.manual_seed(0)
        layer = MixtureOfExperts(NoisyTopKGate(width, experts, 2), Experts(experts, width, hidden))

        def once() -> float:
            began = time.process_time()
            layer(tokens).sum().backward()
            return time.process_time() - began

        return min(once() for _ in range(6))

    assert seconds(64) < 3 * seconds(4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoisyTopKGate(4, 3, 4), "k is 4: of 3 experts, 1 to 3"),
        (lambda: NoisyTopKGate(4, 3, 0), "k is 0"),
        (lambda: HierarchicalGate(4, 2, 2, 3), "k is 3: of 2 experts"),
        (lambda: HierarchicalGate(4, 2, 8, 3), "k is 3: of 2 experts"),
        (lambda: MixtureOfExperts(NoisyTopKGate(4, 3, 2), Experts(4, 4, 4)), "3 experts, and there are 4"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
