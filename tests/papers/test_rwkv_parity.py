"""RWKV against transformers: weights copied both ways, states, and the files; and how it begins."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import RwkvConfig as TheirConfig
from transformers import RwkvForCausalLM

from allyouneed.hub import UnsupportedError, WeightsError
from allyouneed.papers.rwkv import SIZES, Rwkv, RwkvConfig
from allyouneed.text import Sampling, generate

PLAIN = RwkvConfig(vocabulary=37, width=24, layers=2)
# Another width inside and another epsilon. Where they rescale, epsilon weighs more, see below.
ODD = RwkvConfig(vocabulary=29, width=20, layers=7, hidden=33, epsilon=1e-3, context=50, rescale_every=0)
TIED = RwkvConfig(vocabulary=11, width=16, layers=3, hidden=16, tied=True)
# Sums of another width than the stream. Theirs are wrong about the state then, so they are asked without.
WIDE = RwkvConfig(vocabulary=23, width=16, layers=2, channels=24)
CONFIGS = {"plain": PLAIN, "odd": ODD, "tied": TIED}

each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def reference(config: RwkvConfig) -> Any:
    """Make transformers' model of the same numbers, with weights far enough from their start to tell errors apart."""
    torch.manual_seed(0)
    numbers: dict[str, Any] = {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "intermediate_size": config.hidden,
        "attention_hidden_size": config.channels,
        "layer_norm_epsilon": config.epsilon,
        "context_length": config.context,
        "rescale_every": config.rescale_every,
        "tie_word_embeddings": config.tied,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    theirs: Any = RwkvForCausalLM(TheirConfig(**numbers))
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight.normal_(mean=0.5 if "mix" in name else float(weight.dim() == 1 and "ln" in name), std=0.3)
    return theirs.eval()


def copied(theirs: Any, config: RwkvConfig) -> Rwkv:
    """Fill our model from transformers' weights, name by name."""
    ours = Rwkv(config)
    parameters, source = dict(ours.named_parameters()), theirs.state_dict()
    for name in ours.weight_names():
        (own,) = name.ours
        assert parameters[own].shape == source[name.theirs].shape
        parameters[own].data.copy_(source[name.theirs])
    return ours.eval()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def tokens(config: RwkvConfig, *shape: int) -> Tensor:
    return torch.randint(config.vocabulary, shape, generator=torch.Generator().manual_seed(sum(shape)))


class TestEqualsTransformers:
    @pytest.mark.parametrize("config", [*CONFIGS.values(), WIDE], ids=[*CONFIGS, "wide"])
    @pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 2), (2, 33)])
    def test_logits(self, config: RwkvConfig, shape: tuple[int, int]) -> None:
        theirs = reference(config)
        ours = copied(theirs, config)
        given = tokens(config, *shape)
        with torch.no_grad():
            assert relative_error(ours(given), theirs(given, use_cache=False).logits) < 1e-5
            assert relative_error(ours.hidden(given), theirs.rwkv(given, use_cache=False).last_hidden_state) < 1e-5

    @each_config
    def test_gradients(self, config: RwkvConfig) -> None:
        # In training theirs rescales nothing, and sums in 32 bits.
        theirs = reference(config)
        ours, theirs = copied(theirs, config).double(), theirs.double().train()
        window = tokens(config, 3, 12)
        for logits in (ours(window[:, :-1]), theirs(window[:, :-1], use_cache=False).logits):
            F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten()).backward()
        parameters, their_parameters = dict(ours.named_parameters()), dict(theirs.named_parameters())
        for name in ours.weight_names():
            actual, expected = parameters[name.ours[0]].grad, their_parameters[name.theirs].grad
            assert actual is not None and expected is not None
            assert relative_error(actual, expected) < 1e-5, name.theirs

    @each_config
    def test_states(self, config: RwkvConfig) -> None:
        """A prompt, then tokens one by one and several at once; the five parts are theirs too."""
        theirs = reference(config)
        ours = copied(theirs, config)
        # A single token of several rows is beyond theirs: each row is then mixed with the tokens before all others.
        given = tokens(config, 1, 20)
        state, their_state = ours.new_cache(), None
        with torch.no_grad():
            for part in given.split([5, 1, 1, 9, 1, 3], dim=1):
                answer = theirs(part, state=their_state, use_cache=True)
                their_state = answer.state
                assert relative_error(ours(part, cache=state), answer.logits) < 1e-5
        assert their_state is not None
        for index, layer in enumerate(state.layers):
            assert layer is not None
            time, channel, numerator, denominator, exponent = layer.tensors
            parts = [part[:, :, index] for part in their_state]
            assert relative_error(channel, parts[0]) < 1e-5 and relative_error(time, parts[1]) < 1e-5
            # The same sums may be scaled by other exponents.
            scale = (parts[4] - exponent).exp()
            assert relative_error(numerator, scale * parts[2]) < 1e-4
            assert relative_error(denominator, scale * parts[3]) < 1e-4

    def test_rescaled(self) -> None:
        """What they halve every two layers is normalised all the same, but for an epsilon that does not shrink."""
        config = RwkvConfig(vocabulary=29, width=20, layers=7, epsilon=1e-7, rescale_every=2)
        theirs = reference(config)
        theirs.rwkv.ln_out.eps = 1e-7
        ours = copied(theirs, config)
        ours.norm.eps = 1e-7
        given = tokens(config, 2, 15)
        with torch.no_grad():
            assert relative_error(ours(given), theirs(given, use_cache=False).logits) < 1e-5
        assert theirs.rwkv.layers_are_rescaled

    def test_greedy_text(self) -> None:
        theirs = reference(PLAIN)
        ours = copied(theirs, PLAIN)
        prompt = tokens(PLAIN, 1, 6)
        expected = theirs.generate(prompt, do_sample=False, max_new_tokens=12, pad_token_id=0)[0, 6:].tolist()
        assert generate(ours, prompt.tolist(), new_tokens=12, sampling=Sampling.greedy()) == [expected]


class TestFiles:
    @pytest.mark.parametrize("config", [*CONFIGS.values(), WIDE], ids=[*CONFIGS, "wide"])
    def test_ours_are_read_by_transformers(self, config: RwkvConfig, tmp_path: Path) -> None:
        ours = copied(reference(config), config)
        ours.save_pretrained(tmp_path)
        loaded: Any = RwkvForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        theirs, report = loaded
        assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
        given = tokens(config, 2, 9)
        with torch.no_grad():
            assert relative_error(ours(given), theirs.eval()(given, use_cache=False).logits) < 1e-5

    @each_config
    def test_theirs_are_read(self, config: RwkvConfig, tmp_path: Path) -> None:
        theirs = reference(config)
        theirs.save_pretrained(tmp_path)
        ours = Rwkv.from_pretrained(tmp_path)
        assert ours.config == replace(config, hidden=config.hidden or 4 * config.width, channels=config.width)
        given = tokens(config, 2, 9)
        with torch.no_grad():
            assert relative_error(ours(given), theirs(given).logits) < 1e-5

    @each_config
    def test_there_and_back(self, config: RwkvConfig, tmp_path: Path) -> None:
        ours = copied(reference(config), config)
        ours.save_pretrained(tmp_path)
        again = Rwkv.from_pretrained(tmp_path)
        for name, weight in again.named_parameters():
            assert torch.equal(weight, ours.get_parameter(name)), name
        again.bfloat16().save_pretrained(tmp_path)
        low = Rwkv.from_pretrained(tmp_path)
        assert {weight.dtype for weight in low.parameters()} == {torch.bfloat16}
        given = tokens(config, 2, 9)
        with torch.no_grad():
            assert relative_error(low(given).float(), ours(given)) < 0.1

    def test_what_is_missing_is_named(self, tmp_path: Path) -> None:
        Rwkv(PLAIN).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
        with pytest.raises(WeightsError, match=r"rwkv\.blocks\.2\."):
            Rwkv.from_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["Rwkv6ForCausalLM"]}))
        with pytest.raises(UnsupportedError, match="Rwkv6ForCausalLM"):
            Rwkv.from_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
        with pytest.raises(UnsupportedError, match="hidden_size"):
            Rwkv.from_pretrained(tmp_path)


class TestBeginning:
    @pytest.mark.parametrize("name", SIZES)
    def test_sizes_are_those_of_the_formula(self, name: str) -> None:
        """Section 4: 2VD + 13D²L + D(11L + 4)."""
        config = SIZES[name]
        with torch.device("meta"):
            found = sum(weight.numel() for weight in Rwkv(config).parameters())
        vocabulary, width, layers = config.vocabulary, config.width, config.layers
        assert found == 2 * vocabulary * width + 13 * width**2 * layers + width * (11 * layers + 4)
        rounded = {"M": 1e6, "B": 1e9}[name[-1]] * float(name[:-1])
        assert found == pytest.approx(rounded, rel=0.06)

    def test_appendix_e(self) -> None:
        model: Any = Rwkv(RwkvConfig(vocabulary=50, width=6, layers=3))
        first, last = model.blocks[0], model.blocks[2]
        ramp = torch.arange(6) / 6
        torch.testing.assert_close(first.time_mixing.mix_key.flatten(), ramp)
        torch.testing.assert_close(last.time_mixing.mix_value.flatten(), ramp ** (1 / 3) + 0.3)
        torch.testing.assert_close(last.time_mixing.mix_receptance.flatten(), ramp ** (1 / 3) / 2)
        torch.testing.assert_close(last.channel_mixing.mix_key.flatten(), ramp ** (1 / 3))
        places = torch.arange(6) / 5
        torch.testing.assert_close(first.time_mixing.decay_logarithm.detach(), -5 + 8 * places**0.7)
        torch.testing.assert_close(last.time_mixing.decay_logarithm.detach(), -5 + 8 * places**2)
        expected = math.log(0.3) + torch.tensor([0.0, 0.5, -0.5, 0.0, 0.5, -0.5])
        torch.testing.assert_close(first.time_mixing.bonus.detach(), expected)
        # Columns at right angles, of the length that keeps sizes where a map leads to more coordinates.
        for weight, squared in (
            (first.time_mixing.value.weight, 1.0),
            (first.channel_mixing.key.weight, 4.0),
            (model.head.weight, 0.25 * 50 / 6),
        ):
            torch.testing.assert_close((weight.T @ weight).detach(), squared * torch.eye(6))
        embeddings = model.embedding.weight.detach()
        assert 5e-5 < float(embeddings.abs().max()) <= 1e-4

    def test_a_block_begins_as_the_identity_and_all_of_it_learns(self) -> None:
        """Which it would not with the matrices of appendix E as printed: keys of zero have no slope when squared."""
        torch.manual_seed(0)
        model: Any = Rwkv(RwkvConfig(vocabulary=50, width=12, layers=2)).double()
        given = torch.randint(50, (2, 16))
        stream = model.embedding_norm(model.embedding(given))
        torch.testing.assert_close(model.hidden(given), model.norm(stream))
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(given[:, :-1]).flatten(0, 1), given[:, 1:].flatten()).backward()
            optimizer.step()
        assert all(bool((weight.grad != 0).any()) for weight in model.parameters())
        for block in model.blocks:
            torch.nn.init.zeros_(block.channel_mixing.key.weight)
        optimizer.zero_grad()
        F.cross_entropy(model(given[:, :-1]).flatten(0, 1), given[:, 1:].flatten()).backward()
        assert all(bool((block.channel_mixing.key.weight.grad == 0).all()) for block in model.blocks)
        assert all(bool((block.channel_mixing.value.weight.grad == 0).all()) for block in model.blocks)

    def test_one_layer_of_one_channel(self) -> None:
        model = Rwkv(RwkvConfig(vocabulary=3, width=1, layers=1))
        assert all(bool(weight.isfinite().all()) for weight in model.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_in_8_bits(tied: bool, tmp_path: Path) -> None:
    config = RwkvConfig(vocabulary=40, width=64, layers=2, tied=tied)
    ours = copied(reference(config), config)
    ours.save_pretrained(tmp_path)
    low = Rwkv.from_pretrained(tmp_path, quantize="int8")
    given = tokens(config, 2, 12)
    with torch.no_grad():
        assert 1e-6 < relative_error(low(given), ours(given)) < 0.05
    assert len(generate(low, given.tolist(), new_tokens=3)[1]) == 3
    with pytest.raises(ValueError, match="quantised"):
        low.save_pretrained(tmp_path)
