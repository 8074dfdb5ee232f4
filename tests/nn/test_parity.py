"""Whole decoders against transformers: the same weights give the same logits and the same gradients, both ways."""

from collections.abc import Iterator, Mapping
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from allyouneed.nn import (
    Attention,
    Block,
    Decoder,
    FeedForward,
    GatedFeedForward,
    LearnedPositions,
    PreNorm,
    RotaryPositions,
)

State = Mapping[str, Tensor]
VOCABULARY, LAYERS, LIMIT = 61, 2, 32


def copied(source: State, renamed: Mapping[str, str]) -> dict[str, Tensor]:
    return {ours: source[theirs] for ours, theirs in renamed.items()}


class Gpt2:
    """Pre-norm blocks, learned positions, biases everywhere, one matrix for query, key and value, all transposed."""

    def __init__(self, heads: int, key_value_heads: int):
        assert key_value_heads == heads
        self.width = width = 6 * heads
        config = GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=LIMIT,
            n_embd=width,
            n_layer=LAYERS,
            n_head=heads,
            activation_function="gelu_new",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            layer_norm_epsilon=1e-5,
            bos_token_id=0,
            eos_token_id=0,
        )
        config._attn_implementation = "sdpa"
        self.theirs: nn.Module = GPT2LMHeadModel(config)
        gelu = partial(F.gelu, approximate="tanh")
        blocks = [
            Block(
                PreNorm(Attention(width, heads), nn.LayerNorm(width)),
                PreNorm(FeedForward(width, activation=gelu), nn.LayerNorm(width)),
            )
            for _ in range(LAYERS)
        ]
        self.ours = Decoder(
            VOCABULARY, width, blocks, positions=LearnedPositions(LIMIT, width), norm=nn.LayerNorm(width)
        )

    @staticmethod
    def names() -> Iterator[tuple[str, str]]:
        yield "embedding.weight", "transformer.wte.weight"
        yield "positions.table.weight", "transformer.wpe.weight"
        for kind in ("weight", "bias"):
            yield f"norm.{kind}", f"transformer.ln_f.{kind}"
            for i in range(LAYERS):
                for ours, theirs in (
                    ("attention.norm", "ln_1"),
                    ("feed_forward.norm", "ln_2"),
                    ("attention.sublayer.output", "attn.c_proj"),
                    ("feed_forward.sublayer.inner", "mlp.c_fc"),
                    ("feed_forward.sublayer.output", "mlp.c_proj"),
                ):
                    yield f"blocks.{i}.{ours}.{kind}", f"transformer.h.{i}.{theirs}.{kind}"

    def to_ours(self, state: State) -> dict[str, Tensor]:
        ours = copied(state, dict(self.names()))
        for i in range(LAYERS):
            for kind in ("weight", "bias"):
                fused = state[f"transformer.h.{i}.attn.c_attn.{kind}"]
                for name, part in zip(("query", "key", "value"), fused.chunk(3, -1), strict=True):
                    ours[f"blocks.{i}.attention.sublayer.{name}.{kind}"] = part
        return {
            name: value.T if name.startswith("blocks") and value.dim() == 2 else value for name, value in ours.items()
        }

    def to_theirs(self, state: State) -> dict[str, Tensor]:
        state = {n: v.T if n.startswith("blocks") and v.dim() == 2 else v for n, v in state.items()}
        theirs = copied(state, {theirs: ours for ours, theirs in self.names()})
        theirs["lm_head.weight"] = state["embedding.weight"]
        for i in range(LAYERS):
            for kind in ("weight", "bias"):
                parts = [state[f"blocks.{i}.attention.sublayer.{name}.{kind}"] for name in ("query", "key", "value")]
                theirs[f"transformer.h.{i}.attn.c_attn.{kind}"] = torch.cat(parts, -1)
        return theirs


class Llama:
    """Rotary positions, RMS norms, gated feed-forward, grouped heads, no biases, an output projection of its own."""

    def __init__(self, heads: int, key_value_heads: int):
        self.width = width = 6 * heads
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=47,
            num_hidden_layers=LAYERS,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            max_position_embeddings=LIMIT,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
        )
        config._attn_implementation = "sdpa"
        self.theirs: nn.Module = LlamaForCausalLM(config)
        norm = partial(nn.RMSNorm, width, eps=1e-6)
        blocks = [
            Block(
                PreNorm(Attention(width, heads, key_value_heads=key_value_heads, bias=False), norm()),
                PreNorm(GatedFeedForward(width, 47), norm()),
            )
            for _ in range(LAYERS)
        ]
        self.ours = Decoder(VOCABULARY, width, blocks, positions=RotaryPositions(6), norm=norm(), tied=False)

    @staticmethod
    def names() -> Iterator[tuple[str, str]]:
        yield "embedding.weight", "model.embed_tokens.weight"
        yield "norm.weight", "model.norm.weight"
        yield "head.weight", "lm_head.weight"
        for i in range(LAYERS):
            for ours, theirs in (
                ("attention.norm", "input_layernorm"),
                ("feed_forward.norm", "post_attention_layernorm"),
                *((f"attention.sublayer.{name}", f"self_attn.{name[0]}_proj") for name in ("query", "key", "value")),
                ("attention.sublayer.output", "self_attn.o_proj"),
                ("feed_forward.sublayer.gate", "mlp.gate_proj"),
                ("feed_forward.sublayer.inner", "mlp.up_proj"),
                ("feed_forward.sublayer.output", "mlp.down_proj"),
            ):
                yield f"blocks.{i}.{ours}.weight", f"model.layers.{i}.{theirs}.weight"

    def to_ours(self, state: State) -> dict[str, Tensor]:
        return copied(state, dict(self.names()))

    def to_theirs(self, state: State) -> dict[str, Tensor]:
        return copied(state, {theirs: ours for ours, theirs in self.names()})


def randomise(model: nn.Module) -> None:
    """Draw every weight, biases and gains too, so that none could be forgotten unseen."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)


@pytest.fixture(
    params=[(Gpt2, 5, 5), (Llama, 5, 5), (Llama, 5, 1), (Llama, 4, 2)], ids=lambda p: f"{p[0].__name__}{p[1:]}"
)
def pair(request: pytest.FixtureRequest) -> Gpt2 | Llama:
    torch.manual_seed(0)
    kind, heads, key_value_heads = request.param
    pair = kind(heads, key_value_heads)
    pair.ours.double()
    pair.theirs.double()
    return pair


def wide_norms(theirs: nn.Module) -> None:
    """Have transformers' RMS norms, which compute in 32 bits whatever they are given, compute in 64."""
    for name, module in list(theirs.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            exact = nn.RMSNorm(module.weight.shape[0], eps=module.variance_epsilon, dtype=torch.float64)
            exact.weight = module.weight
            theirs.set_submodule(name, exact)


@pytest.mark.parametrize("direction", ["into ours", "into theirs"])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 13)])
def test_logits_and_gradients_are_equal(pair: Gpt2 | Llama, direction: str, batch: int, length: int):
    wide_norms(pair.theirs)
    if direction == "into ours":
        randomise(pair.theirs)
        pair.ours.load_state_dict(pair.to_ours(pair.theirs.state_dict()))
    else:
        randomise(pair.ours)
        pair.theirs.load_state_dict(pair.to_theirs(pair.ours.state_dict()))
    tokens = torch.randint(VOCABULARY, (batch, length))
    actual, expected = pair.ours(tokens), pair.theirs(tokens, use_cache=False).logits
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    # Targets of all tokens, given freely: a length of 1 has a gradient too.
    targets = torch.randint(VOCABULARY, (batch * length,))
    for logits in (actual, expected):
        F.cross_entropy(logits.flatten(0, 1), targets).backward()
    gradients = {name: parameter.grad for name, parameter in pair.theirs.named_parameters()}
    for name, expected_gradient in pair.to_ours(gradients).items():
        torch.testing.assert_close(
            pair.ours.get_parameter(name).grad,
            expected_gradient,
            rtol=1e-8,
            atol=1e-10,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_unchanged_transformers_is_as_near_as_its_norms_allow(pair: Gpt2 | Llama):
    pair.ours.load_state_dict(pair.to_ours(pair.theirs.state_dict()))
    tokens = torch.randint(VOCABULARY, (3, 13))
    torch.testing.assert_close(pair.ours(tokens), pair.theirs(tokens).logits, rtol=1e-5, atol=1e-6)


def test_padding_and_cache_are_as_in_transformers(pair: Gpt2 | Llama):
    """Left-padded prompts, then one token at a time, each side with its own cache."""
    wide_norms(pair.theirs)
    pair.theirs.eval()
    pair.ours.load_state_dict(pair.to_ours(pair.theirs.state_dict()))
    tokens = torch.randint(VOCABULARY, (3, 9))
    present = torch.arange(9) >= torch.tensor([[0], [2], [5]])
    cache, past = pair.ours.new_cache(capacity=2), None
    with torch.no_grad():
        for start, end in ((0, 6), (6, 7), (7, 8), (8, 9)):
            chunk, seen = tokens[:, start:end], present[:, :end]
            places = (seen.long().cumsum(1) - 1).clamp(min=0)[:, start:]
            output = pair.theirs(
                chunk, attention_mask=seen.long(), position_ids=places, past_key_values=past, use_cache=True
            )
            past = output.past_key_values
            actual = pair.ours(chunk, present=seen[:, start:], cache=cache)
            real = seen[:, start:]
            torch.testing.assert_close(actual[real], output.logits[real], rtol=1e-10, atol=1e-10)
