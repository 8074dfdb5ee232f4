"""Mixtral against transformers: whole small models with routers that choose, weights read and written."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, MixtralForCausalLM
from transformers import MixtralConfig as TheirConfig

from allyouneed.hub import READERS, UnsupportedError, WeightsError
from allyouneed.nn import KeyValueCache
from allyouneed.papers.moe_explained import Mixtral, MixtralConfig, router_statistics, routings
from allyouneed.text import Sampling, generate
from allyouneed.training import next_token_loss

PLAIN = MixtralConfig(
    vocabulary=37, width=24, layers=2, heads=4, hidden=20, key_value_heads=2, experts=5, k=2, context=64
)
WIDE = MixtralConfig(
    vocabulary=29,
    width=16,
    layers=3,
    heads=2,
    hidden=12,
    key_value_heads=1,
    experts=3,
    k=3,
    rotary_base=5000.0,
    epsilon=1e-3,
    context=96,
    tied=True,
)
each_config = pytest.mark.parametrize(
    "config", [PLAIN, WIDE, replace(PLAIN, experts=1, k=1)], ids=["2/5", "3/3", "1/1"]
)


def reference(config: MixtralConfig) -> Any:
    """Make transformers' model of the same numbers, with weights so large that routers decide."""
    torch.manual_seed(0)
    theirs = MixtralForCausalLM(
        TheirConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            intermediate_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.key_value_heads,
            num_local_experts=config.experts,
            num_experts_per_tok=config.k,
            max_position_embeddings=config.context,
            rms_norm_eps=config.epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": config.rotary_base},
            tie_word_embeddings=config.tied,
            sliding_window=None,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.normal_(mean=float(weight.dim() == 1), std=0.3)
    return theirs.eval()


def pair(config: MixtralConfig, folder: Path) -> tuple[Mixtral, Any]:
    theirs = reference(config)
    theirs.save_pretrained(folder)
    return Mixtral.from_pretrained(folder), theirs


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def tokens(config: MixtralConfig, *shape: int) -> Tensor:
    return torch.randint(config.vocabulary, shape, generator=torch.Generator().manual_seed(sum(shape)))


@each_config
@pytest.mark.parametrize("shape", [(1, 1), (2, 33)])
def test_logits_and_routing(config: MixtralConfig, shape: tuple[int, int], tmp_path: Path) -> None:
    ours, theirs = pair(config, tmp_path)
    given = tokens(config, *shape)
    with torch.no_grad():
        answer = theirs(given, output_router_logits=True)
        assert relative_error(ours(given), answer.logits) < 1e-5
    for routing, logits in zip(routings(ours), answer.router_logits, strict=True):
        assert relative_error(routing.choice.logits, logits) < 1e-4
        assert torch.equal(routing.choice.chosen.sort().values, logits.topk(config.k).indices.sort().values)
    if shape[1] > 1 and config.experts > config.k:
        # It is a router that chooses, and not always the same.
        found = router_statistics(ours)
        assert found["unused"] < 0.3 and 1.1 < found["largest_load"] < config.experts / config.k


@each_config
def test_gradients(config: MixtralConfig, tmp_path: Path) -> None:
    ours, theirs = pair(config, tmp_path)
    window = tokens(config, 3, 12)
    loss, count = next_token_loss(ours, window)
    (loss / count).backward()
    F.cross_entropy(theirs(window[:, :-1]).logits.flatten(0, 1), window[:, 1:].flatten()).backward()
    for mine, expert in ((layer, index) for layer in range(config.layers) for index in range(config.experts)):
        experts: Any = ours.blocks[mine].feed_forward.sublayer.experts  # pyright: ignore
        whole = theirs.model.layers[mine].mlp.experts
        gate_and_inner = torch.cat([experts.gate[expert].weight.grad, experts.inner[expert].weight.grad])
        assert relative_error(gate_and_inner, whole.gate_up_proj.grad[expert]) < 1e-4
        assert relative_error(experts.output[expert].weight.grad, whole.down_proj.grad[expert]) < 1e-4
    if config.experts > 1:
        router: Any = ours.blocks[0].feed_forward.sublayer.router  # pyright: ignore
        assert relative_error(router.weight.grad, theirs.model.layers[0].mlp.gate.weight.grad) < 1e-4
    assert ours.embedding.weight.grad is not None
    assert relative_error(ours.embedding.weight.grad, theirs.model.embed_tokens.weight.grad) < 1e-4


@each_config
def test_a_cache_padding_and_greedy_continuations(config: MixtralConfig, tmp_path: Path) -> None:
    ours, theirs = pair(config, tmp_path)
    prompts = [tokens(config, 9).tolist(), tokens(config, 2).tolist()]
    padded = torch.tensor([[0] * (9 - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (9 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    greedy = GenerationConfig(do_sample=False, max_new_tokens=12, pad_token_id=0)
    expected = theirs.generate(padded, attention_mask=mask, generation_config=greedy)[:, 9:].tolist()
    assert generate(ours, prompts, new_tokens=12, sampling=Sampling.greedy()) == expected
    cache: KeyValueCache = ours.new_cache()
    given = tokens(config, 2, 15)
    with torch.no_grad():
        parts = torch.cat([ours(part, cache=cache) for part in given.split([7, 1, 7], 1)], 1)
        assert relative_error(parts, ours(given)) < 1e-5


@each_config
def test_ours_load_into_theirs(config: MixtralConfig, tmp_path: Path) -> None:
    torch.manual_seed(1)
    ours = Mixtral(replace(config, initial_deviation=0.3)).eval()
    ours.save_pretrained(tmp_path)
    again = Mixtral.from_pretrained(tmp_path)
    assert again.config == ours.config
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), ours.parameters(), strict=True))
    loaded: Any = MixtralForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    theirs, report = loaded
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    given = tokens(config, 2, 10)
    with torch.no_grad():
        assert relative_error(ours(given), theirs.eval()(given).logits) < 1e-5


def test_any_reader_of_models_finds_it() -> None:
    """Which class reads a checkpoint, its `model_type` decides."""
    module, _, name = READERS[Mixtral(PLAIN).to_config()["model_type"]].partition(":")
    assert getattr(importlib.import_module(module), name) is Mixtral


def test_in_8_bits(tmp_path: Path) -> None:
    """Experts are linear layers, so that they can be quantised like any."""
    config = replace(PLAIN, width=64, hidden=64, initial_deviation=0.1)
    torch.manual_seed(0)
    Mixtral(config).save_pretrained(tmp_path)
    exact, quantised = Mixtral.from_pretrained(tmp_path), Mixtral.from_pretrained(tmp_path, quantize="int8")
    given = tokens(config, 1, 9)
    with torch.no_grad():
        assert 0 < relative_error(quantised(given), exact(given)) < 0.2


def test_the_arithmetic_of_a_name() -> None:
    """8x7B has 46.7 billion parameters, and not 56: only the feed-forward layers are eightfold."""
    with torch.device("meta"):
        model = Mixtral(MixtralConfig(layers=1))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    block = sum(size for name, size in sizes.items() if name.startswith("blocks."))
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    total = sum(sizes.values()) + 31 * block
    assert total // 10**8 == 467
    assert (total - 32 * experts * 6 // 8) // 10**8 == 128  # Those that a token uses.


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("sliding_window", 1024),
        ("router_jitter_noise", 0.1),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}),
        ("rope_parameters", {"type": "linear", "rope_theta": 1e4, "factor": 4.0}),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("num_experts_per_tok", 1),
        ("num_attention_heads", 5),
        ("head_dim", 7),
        ("hidden_size", None),
    ],
)
def test_what_is_not_supported_is_named(key: str, value: Any) -> None:
    with pytest.raises(UnsupportedError, match=key):
        Mixtral.from_config(Mixtral(PLAIN).to_config() | {key: value})


def test_more_experts_a_token_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="k is 6: of 5 experts"):
        Mixtral.from_config(Mixtral(PLAIN).to_config() | {"num_experts_per_tok": 6})


def test_more_than_the_context_and_missing_experts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="65 tokens are more than the model's context of 64"):
        Mixtral(PLAIN)(tokens(PLAIN, 1, 65))
    Mixtral(PLAIN).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"num_local_experts": 5', '"num_local_experts": 6'))
    with pytest.raises(WeightsError, match=r"experts\.5\.w1"):
        Mixtral.from_pretrained(tmp_path)
