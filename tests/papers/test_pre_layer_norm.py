"""Blocks against transformers' GPT-2 (pre-norm) and BERT (post-norm), initial weights, and the measure of gradients."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from allyouneed.nn import (
    Attention,
    AttentionPattern,
    Block,
    CrossBlock,
    Decoder,
    FeedForward,
    PostNorm,
    PreNorm,
    SinusoidalPositions,
)
from allyouneed.nn.encoder_decoder import CrossLayerCache
from allyouneed.papers.pre_layer_norm import gradient_norms, initialise_gaussian, post_norm_block, pre_norm_block
from allyouneed.training import Loss, next_token_loss

HEADS, WIDTH, HIDDEN = 5, 15, 37
Weights = Mapping[str, Tensor]


def gpt2(cross: bool) -> tuple[nn.Module, Callable[[Weights], dict[str, Tensor]]]:
    """Give a block, and the map from its weights (or their gradients) to ours; its matrices are transposed."""
    config = GPT2Config(
        n_embd=WIDTH,
        n_head=HEADS,
        n_inner=HIDDEN,
        activation_function="gelu",
        resid_pdrop=0.0,
        attn_pdrop=0.0,
        layer_norm_epsilon=1e-5,
        add_cross_attention=cross,
    )
    config._attn_implementation = "sdpa"

    def to_ours(theirs: Weights) -> dict[str, Tensor]:
        ours: dict[str, Tensor] = {}
        for kind in ("weight", "bias"):
            parts = dict(zip(("query", "key", "value"), theirs[f"attn.c_attn.{kind}"].chunk(3, -1), strict=True))
            ours |= {f"attention.sublayer.{name}.{kind}": part for name, part in parts.items()}
            ours[f"attention.sublayer.output.{kind}"] = theirs[f"attn.c_proj.{kind}"]
            ours[f"attention.norm.{kind}"] = theirs[f"ln_1.{kind}"]
            ours[f"feed_forward.sublayer.inner.{kind}"] = theirs[f"mlp.c_fc.{kind}"]
            ours[f"feed_forward.sublayer.output.{kind}"] = theirs[f"mlp.c_proj.{kind}"]
            ours[f"feed_forward.norm.{kind}"] = theirs[f"ln_2.{kind}"]
            if cross:
                key, value = theirs[f"crossattention.c_attn.{kind}"].chunk(2, -1)
                ours[f"cross_attention.sublayer.query.{kind}"] = theirs[f"crossattention.q_attn.{kind}"]
                ours[f"cross_attention.sublayer.key.{kind}"] = key
                ours[f"cross_attention.sublayer.value.{kind}"] = value
                ours[f"cross_attention.sublayer.output.{kind}"] = theirs[f"crossattention.c_proj.{kind}"]
                ours[f"cross_attention.norm.{kind}"] = theirs[f"ln_cross_attn.{kind}"]
        return {name: tensor.T if tensor.dim() == 2 else tensor for name, tensor in ours.items()}

    return GPT2Block(config, layer_idx=0), to_ours


def bert(cross: bool) -> tuple[nn.Module, Callable[[Weights], dict[str, Tensor]]]:
    """Give a layer (as a decoder's where it looks at a source), and the map from its weights to ours."""
    config = BertConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        intermediate_size=HIDDEN,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-5,
        is_decoder=cross,
        add_cross_attention=cross,
    )
    config._attn_implementation = "sdpa"
    attentions = {"attention": "attention"} | ({"cross_attention": "crossattention"} if cross else {})
    names = {"feed_forward.sublayer.inner": "intermediate.dense"}
    names |= {"feed_forward.sublayer.output": "output.dense", "feed_forward.norm": "output.LayerNorm"}
    for mine, their in attentions.items():
        names |= {f"{mine}.sublayer.{part}": f"{their}.self.{part}" for part in ("query", "key", "value")}
        names |= {f"{mine}.sublayer.output": f"{their}.output.dense", f"{mine}.norm": f"{their}.output.LayerNorm"}
    kinds = ("weight", "bias")
    return BertLayer(config), lambda theirs: {
        f"{mine}.{kind}": theirs[f"{their}.{kind}"] for mine, their in names.items() for kind in kinds
    }


@pytest.mark.parametrize("cross", [False, True], ids=["two sublayers", "three sublayers"])
@pytest.mark.parametrize(("reference", "compose"), [(gpt2, pre_norm_block), (bert, post_norm_block)])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 7)])
def test_blocks_equal_transformers_with_gradients(batch: int, length: int, reference, compose, cross: bool):
    torch.manual_seed(length)
    theirs, to_ours = reference(cross)
    theirs = theirs.double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    attentions = [Attention(WIDTH, HEADS) for _ in range(2 if cross else 1)]
    ours = compose(*attentions, FeedForward(WIDTH, HIDDEN), norm=partial(nn.LayerNorm, WIDTH)).double()
    ours.load_state_dict(to_ours(theirs.state_dict()))

    inputs = [torch.randn(batch, length, WIDTH, dtype=torch.float64, requires_grad=True)]
    further: dict[str, Any] = {}
    cache = None
    if cross:
        inputs.append(torch.randn(batch, length + 2, WIDTH, dtype=torch.float64, requires_grad=True))
        further["encoder_hidden_states"] = inputs[1]
        cache = CrossLayerCache(inputs[1], AttentionPattern(), keep=False)
    causal = reference is gpt2 or cross
    actual = ours(inputs[0], AttentionPattern(causal=causal and length > 1), cache=cache)
    expected = theirs(inputs[0], **further)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)

    upstream = torch.randn_like(actual)
    mine = torch.autograd.grad(actual, [*inputs, *ours.parameters()], upstream)
    their = torch.autograd.grad(expected, [*inputs, *theirs.parameters()], upstream)
    torch.testing.assert_close(mine[: len(inputs)], their[: len(inputs)], rtol=1e-9, atol=1e-10)
    of_theirs = to_ours(dict(zip(dict(theirs.named_parameters()), their[len(inputs) :], strict=True)))
    of_ours = dict(zip(dict(ours.named_parameters()), mine[len(inputs) :], strict=True))
    assert of_ours.keys() == of_theirs.keys()
    assert sum(map(Tensor.numel, of_ours.values())) == sum(map(Tensor.numel, theirs.parameters()))
    torch.testing.assert_close(of_ours, of_theirs, rtol=1e-9, atol=1e-10)


def test_blocks_differ_in_where_the_norm_stands():
    for compose, wrapper in ((pre_norm_block, PreNorm), (post_norm_block, PostNorm)):
        two = compose(Attention(6, 2), FeedForward(6), norm=nn.Identity)
        three = compose(Attention(6, 2), Attention(6, 2), FeedForward(6), norm=nn.Identity)
        assert type(two) is Block and type(three) is CrossBlock
        assert all(type(part) is wrapper for part in [*two.children(), *three.children()])
    norms = pre_norm_block(Attention(6, 2), FeedForward(6), norm=partial(nn.LayerNorm, 6)).modules()
    assert sum(isinstance(module, nn.LayerNorm) for module in norms) == 2


@pytest.mark.parametrize("compose", [pre_norm_block, post_norm_block])
@pytest.mark.parametrize("count", [0, 1, 4])
def test_blocks_refuse_other_numbers_of_sublayers(count: int, compose):
    with pytest.raises(ValueError, match=f"two sublayers.* or three.*, not {count}"):
        compose(*(FeedForward(6) for _ in range(count)), norm=nn.Identity)


def test_initial_weights_are_the_papers():
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(300, 100), nn.Embedding(500, 64), nn.LayerNorm(9), nn.LayerNorm(9, bias=False)])
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7.0)
    initialise_gaussian(model)
    linear, embedding, norm, unbiased = model
    assert float(linear.weight.detach().std()) == pytest.approx(math.sqrt(2 / 400), rel=0.02)
    # A normal's kurtosis is 3, that of the uniform form of Xavier's 1.8.
    assert float((linear.weight / linear.weight.std()).detach().pow(4).mean()) == pytest.approx(3.0, abs=0.15)
    assert float(embedding.weight.detach().std()) == pytest.approx(1 / 8, rel=0.02)
    assert not linear.bias.any() and not norm.bias.any()
    assert bool((norm.weight == 1).all()) and bool((unbiased.weight == 1).all())


def theorem_model(compose, layers: int, width: int, seed: int) -> nn.ModuleList:
    """Compose the stack that the theory is about: one head that looks everywhere alike, square matrices."""
    torch.manual_seed(seed)
    blocks = nn.ModuleList(
        compose(Attention(width, 1), FeedForward(width, width, F.relu), norm=partial(nn.LayerNorm, width))
        for _ in range(layers)
    )
    initialise_gaussian(blocks)
    for block in blocks:
        nn.init.zeros_(block.attention.sublayer.query.weight)
        nn.init.zeros_(block.attention.sublayer.key.weight)
        # The paper's attention ends with the values: no output projection.
        nn.init.eye_(block.attention.sublayer.output.weight)
    return blocks


class TestLemma2:
    """The squared length of the vectors at initialisation, in units of the width, over Gaussian inputs."""

    LAYERS, WIDTH = 6, 96

    def lengths(self, compose, at: Callable[[Block], nn.Module], take: Callable[[Any, Any], Tensor]) -> list[float]:
        found = [0.0] * self.LAYERS
        for seed in range(8):
            blocks = theorem_model(compose, self.LAYERS, self.WIDTH, seed)
            for place, block in enumerate(blocks):
                at(block).register_forward_hook(
                    lambda _, inputs, output, place=place: found.__setitem__(
                        place, found[place] + float(take(inputs, output).pow(2).sum(-1).mean()) / self.WIDTH / 8
                    )
                )
            hidden = torch.randn(4, 16, self.WIDTH)
            with torch.no_grad():
                for block in blocks:
                    hidden = block(hidden)
        return found

    def test_post_norm_sums_are_three_halves_in_every_layer(self):
        lengths = self.lengths(post_norm_block, lambda block: block.feed_forward.norm, lambda inputs, _: inputs[0])
        assert lengths == pytest.approx([1.5] * self.LAYERS, rel=0.05)

    def test_pre_norm_grows_between_two_lines(self):
        lengths = self.lengths(pre_norm_block, lambda block: block, lambda _, output: output)
        for layer, length in enumerate(lengths, start=1):
            assert 1 + 0.5 * layer < length < 1 + 1.5 * layer
        # The norm in the branch, not the path: what post-norm keeps at 1 is long here.
        assert lengths[-1] > 4


def test_theorem_1_in_its_own_setting():
    """The gradient of the last second matrix: the same at any depth for post-norm, as 1/√depth for pre-norm.

    Of one token, as the proof has it: those of several become alike with depth, and add up better.
    """
    depths, width = (4, 12, 32), 32

    def last_gradient(compose, norm: Callable[[], nn.Module], layers: int) -> float:
        total = 0.0
        for seed in range(8):
            blocks = theorem_model(compose, layers, width, seed)
            model = nn.Sequential(*blocks, norm())
            output = torch.randn(64, width) / math.sqrt(width)
            batch = torch.randn(1, 1, width), torch.randint(64, (1, 1))

            def loss(model: nn.Module, batch: tuple[Tensor, Tensor], output: Tensor = output) -> Loss:
                logits = model(batch[0]) @ output.T
                return Loss(F.cross_entropy(logits.flatten(0, 1), batch[1].flatten(), reduction="sum"), 1)

            total += float(gradient_norms(model, [blocks[-1].feed_forward.sublayer.output.weight], [batch], loss))
        return total

    def exponent(compose, norm: Callable[[], nn.Module]) -> float:
        x = torch.tensor(depths, dtype=torch.float64).log()
        y = torch.tensor([last_gradient(compose, norm, depth) for depth in depths], dtype=torch.float64).log()
        return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).pow(2).sum())

    assert abs(exponent(post_norm_block, nn.Identity)) < 0.1
    # With the slowest growth that lemma 2 allows, the exponent over these depths is −0.42; with the fastest, −0.47.
    assert -0.55 < exponent(pre_norm_block, partial(nn.LayerNorm, width)) < -0.35


class TestGradientNorms:
    def model(self) -> Decoder:
        torch.manual_seed(0)
        blocks = [pre_norm_block(Attention(12, 3), FeedForward(12), norm=partial(nn.LayerNorm, 12)) for _ in range(2)]
        return Decoder(11, 12, blocks, positions=SinusoidalPositions(12), norm=nn.LayerNorm(12)).double()

    def test_are_of_the_mean_over_all_targets(self):
        """Batches of different sizes count by their targets, as one batch of all would."""
        model = self.model()
        batches = [torch.randint(11, (rows, 6)) for rows in (1, 4, 2)]
        parameters = [block.feed_forward.sublayer.output.weight for block in model.blocks]
        actual = gradient_norms(model, parameters, iter(batches), next_token_loss)
        total, targets = next_token_loss(model, torch.cat(batches))
        (total / targets).backward()
        torch.testing.assert_close(actual, torch.stack([parameter.grad.norm() for parameter in parameters]))

    def test_average_before_they_measure(self):
        """Gradients that cancel over batches have no expectation, however long each is."""
        model = nn.Linear(3, 1, bias=False)
        batch = torch.randn(5, 3)

        def loss(model: nn.Module, batch: Tensor) -> Loss:
            return Loss(model(batch).sum(), len(batch))

        assert float(gradient_norms(model, [model.weight], [batch], loss)) > 0.1
        assert float(gradient_norms(model, [model.weight], [batch, -batch], loss)) < 1e-6

    def test_leave_everything_as_it_was(self):
        model = self.model()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.embedding.weight.grad = torch.ones_like(model.embedding.weight)
        model.eval()
        gradient_norms(model, list(model.parameters()), [torch.randint(11, (2, 5))], next_token_loss)
        assert not model.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert bool((model.embedding.weight.grad == 1).all())
        assert all(p.grad is None for name, p in model.named_parameters() if name != "embedding.weight")

    def test_refuse_nothing_to_measure(self):
        model = self.model()
        with pytest.raises(ValueError, match="at least one batch"):
            gradient_norms(model, list(model.parameters()), [], next_token_loss)
        stranger = nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
        with pytest.raises(ValueError, match=r"parameter 1, of shape \(2, 3\), has no gradient"):
            gradient_norms(model, [model.embedding.weight, stranger], [torch.randint(11, (2, 5))], next_token_loss)
