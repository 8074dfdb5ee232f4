"""LLaMA against transformers: small random weights in odd shapes, what must not matter, and a real checkpoint."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM
from transformers import LlamaConfig as TheirConfig

from allyouneed.data import fetch, is_present
from allyouneed.hub import UnsupportedError, WeightsError, open_model
from allyouneed.papers.llama1 import SIZES, Llama, LlamaConfig, swiglu_hidden
from allyouneed.text import Sampling, generate
from allyouneed.text.chat import ChatTemplate
from allyouneed.training import TrainingConfig, next_token_loss, train

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from llama_parity import PROMPTS

PLAIN = LlamaConfig(vocabulary=37, width=24, layers=2, heads=4, hidden=41, context=64)
GROUPED = LlamaConfig(
    vocabulary=29,
    width=48,
    layers=3,
    heads=6,
    hidden=32,
    key_value_heads=2,
    rotary_base=100_000.0,
    epsilon=1e-3,
    context=96,
    tied=True,
)
ONE_KEY = LlamaConfig(vocabulary=11, width=18, layers=1, heads=3, hidden=7, key_value_heads=1, context=50, tied=True)
CONFIGS = {"plain": PLAIN, "grouped": GROUPED, "one key-value head": ONE_KEY}

each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def reference(config: LlamaConfig, seed: int = 0) -> Any:
    """Make transformers' model of the same numbers, with weights far enough from their start to tell errors apart."""
    torch.manual_seed(seed)
    theirs = LlamaForCausalLM(
        TheirConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            intermediate_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.key_value_heads,
            max_position_embeddings=config.context,
            rms_norm_eps=config.epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": config.rotary_base},
            tie_word_embeddings=config.tied,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.normal_(mean=float(weight.dim() == 1), std=0.3)
    return theirs.eval()


def copy(source: Mapping[str, Tensor], ours: Llama) -> Llama:
    """Fill our model from transformers' weights, name by name."""
    parameters = dict(ours.named_parameters())
    for name in ours.weight_names():
        shapes = [parameters[own].shape for own in name.ours]
        for own, part in zip(name.ours, name.split(source[name.theirs].clone(), shapes), strict=True):
            parameters[own].data.copy_(part)
    return ours.eval()


def pair(config: LlamaConfig) -> tuple[Llama, Any]:
    theirs = reference(config)
    return copy(theirs.state_dict(), Llama(config)), theirs


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def tokens(config: LlamaConfig, *shape: int) -> Tensor:
    return torch.randint(config.vocabulary, shape, generator=torch.Generator().manual_seed(sum(shape)))


class TestEqualsTransformers:
    @each_config
    @pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 2), (2, 33)])
    def test_logits(self, config: LlamaConfig, shape: tuple[int, int]) -> None:
        ours, theirs = pair(config)
        given = tokens(config, *shape)
        with torch.no_grad():
            assert relative_error(ours(given), theirs(given).logits) < 1e-5

    @each_config
    def test_gradients(self, config: LlamaConfig) -> None:
        ours, theirs = pair(config)
        ours, theirs = ours.double(), theirs.double()
        window = tokens(config, 3, 12)
        loss, count = next_token_loss(ours, window)
        (loss / count).backward()
        logits = theirs(window[:, :-1]).logits
        F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten()).backward()
        parameters, their_parameters = dict(ours.named_parameters()), dict(theirs.named_parameters())
        for name in ours.weight_names():
            joined = name.join([parameters[own].grad for own in name.ours])  # pyright: ignore[reportArgumentType]
            # Their norms and the angles of both sides are computed in 32 bits.
            assert relative_error(joined, their_parameters[name.theirs].grad) < 1e-5

    @each_config
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding(self, config: LlamaConfig, side: str) -> None:
        ours, theirs = pair(config)
        given = tokens(config, 3, 9)
        places = torch.arange(9)
        lengths = torch.tensor([[9], [4], [1]])
        present = places < lengths if side == "right" else places >= 9 - lengths
        positions = (present.long().cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            expected = theirs(given, attention_mask=present.long(), position_ids=positions).logits
            actual = ours(given, present=present)
        assert relative_error(actual[present], expected[present]) < 1e-5

    @each_config
    def test_a_cache_longer_than_its_room(self, config: LlamaConfig) -> None:
        """First a prompt, then tokens one by one and several at once, beyond the capacity that was asked for."""
        ours, theirs = pair(config)
        given = tokens(config, 2, 40)
        cache, their_cache = ours.new_cache(capacity=4), None
        with torch.no_grad():
            for part in given.split([5, 1, 1, 1, 17, 1, 14], dim=1):
                answer = theirs(part, past_key_values=their_cache, use_cache=True)
                their_cache = answer.past_key_values
                assert relative_error(ours(part, cache=cache), answer.logits) < 1e-5

    @each_config
    def test_in_16_bits_no_further_from_the_truth(self, config: LlamaConfig) -> None:
        ours, theirs = pair(config)
        given = tokens(config, 2, 20)
        with torch.no_grad():
            exact = ours(given)
            their_error = relative_error(theirs.bfloat16()(given).logits.float(), exact)
            our_error = relative_error(ours.bfloat16()(given).float(), exact)
        assert ours(given).dtype == torch.bfloat16
        assert 0 < our_error < max(1.5 * their_error, 0.02)

    @each_config
    def test_greedy_continuations(self, config: LlamaConfig) -> None:
        """Of prompts of different lengths, padded on the left."""
        ours, theirs = pair(config)
        prompts = [tokens(config, 9).tolist(), tokens(config, 2).tolist(), tokens(config, 5).tolist()]
        padded = torch.tensor([[0] * (9 - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (9 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        greedy = GenerationConfig(do_sample=False, max_new_tokens=20, pad_token_id=0)
        expected = theirs.generate(padded, attention_mask=mask, generation_config=greedy)[:, 9:].tolist()
        for use_cache in (True, False):
            added = generate(ours, prompts, new_tokens=20, sampling=Sampling.greedy(), use_cache=use_cache)
            assert added == expected


class TestInvariants:
    @each_config
    def test_a_token_sees_what_precedes_it_alone(self, config: LlamaConfig) -> None:
        model = Llama(config)
        embeddings: list[Tensor] = []

        def keep(module: Any, arguments: Any, output: Tensor) -> Tensor:
            embeddings.append(output.detach().requires_grad_())
            return embeddings[0]

        model.embedding.register_forward_hook(keep)
        logits = model(tokens(config, 1, 9))
        logits[0, 4].square().sum().backward()
        assert embeddings[0].grad is not None
        reached = embeddings[0].grad[0].norm(dim=-1)
        assert bool((reached[:5] > 0).all()) and bool((reached[5:] == 0).all())

    @each_config
    def test_rows_alone_equal_rows_in_a_batch(self, config: LlamaConfig) -> None:
        model = pair(config)[0].double()
        given = tokens(config, 4, 11)
        with torch.no_grad():
            whole = model(given)
            for row in range(4):
                torch.testing.assert_close(model(given[row : row + 1]), whole[row : row + 1], rtol=1e-9, atol=1e-9)

    @each_config
    def test_cache_on_equals_off_with_padding(self, config: LlamaConfig) -> None:
        model = pair(config)[0].double()
        given = tokens(config, 2, 15)
        present = torch.arange(15) >= torch.tensor([[0], [6]])
        cache = model.new_cache()
        with torch.no_grad():
            parts = [
                model(part, present=there, cache=cache)
                for part, there in zip(given.split([7, 1, 7], 1), present.split([7, 1, 7], 1), strict=True)
            ]
            whole = model(given, present=present)
        torch.testing.assert_close(torch.cat(parts, 1)[present], whole[present], rtol=1e-9, atol=1e-9)

    def test_order_matters(self) -> None:
        """Two rows of the same tokens in another order: without positions the last logits would be the same."""
        model, _ = pair(PLAIN)
        first = tokens(PLAIN, 1, 8)
        second = torch.cat((first[:, :7].flip(1), first[:, 7:]), 1)
        with torch.no_grad():
            assert relative_error(model(first)[:, -1], model(second)[:, -1]) > 1e-2

    def test_it_learns(self) -> None:
        torch.manual_seed(0)
        model = Llama(replace(GROUPED, initial_deviation=0.1))
        rows = torch.arange(16).remainder(5).expand(4, 16).contiguous()
        result = train(model, lambda step: rows, next_token_loss, TrainingConfig(40, 1e-2))
        assert result.losses[-1] < 0.1 < result.losses[0]


class TestSizes:
    @pytest.mark.parametrize(("size", "billions"), [("7B", 6.7), ("13B", 13.0), ("33B", 32.5), ("65B", 65.2)])
    def test_parameters_are_those_of_table_2(self, size: str, billions: float) -> None:
        with torch.device("meta"):
            model = Llama(replace(SIZES[size], layers=2))
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        block = sum(count for name, count in sizes.items() if name.startswith("blocks.0."))
        total = sum(sizes.values()) + (SIZES[size].layers - 2) * block
        # Cut off after a digit, as the table has them: 65.29 billion are 65.2.
        assert total // 10**8 / 10 == billions

    def test_hidden_is_two_thirds_of_four_times_the_width(self) -> None:
        assert [swiglu_hidden(config.width) for config in SIZES.values()] == [11008, 13824, 17920, 22016]
        assert swiglu_hidden(96, 1) == 256
        assert swiglu_hidden(100, 1) == 267

    def test_there_are_no_biases(self) -> None:
        assert not [name for name, _ in Llama(PLAIN).named_parameters() if "bias" in name]

    def test_initial_weights(self) -> None:
        torch.manual_seed(0)
        for name, weight in Llama(replace(PLAIN, width=64, hidden=200, initial_deviation=0.05)).named_parameters():
            if weight.dim() == 1:
                assert bool((weight == 1).all()), name
            else:
                assert float(weight.detach().std()) == pytest.approx(0.05, rel=0.1), name

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"layers": 0}, "layers is 0"),
            ({"vocabulary": -1}, "vocabulary is -1"),
            ({"context": 0}, "context is 0"),
            ({"rotary_base": 0.0}, "rotary_base is 0.0"),
            ({"initial_deviation": float("nan")}, "initial_deviation is nan"),
        ],
    )
    def test_numbers_out_of_range_are_refused(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            replace(PLAIN, **change)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"heads": 5}, "24 cannot be divided among 5"),
            ({"key_value_heads": 3}, "4 heads cannot share 3"),
            ({"heads": 8}, "even number of coordinates"),
        ],
    )
    def test_numbers_that_do_not_fit_are_refused(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Llama(replace(PLAIN, **change))

    def test_more_than_the_context_is_refused(self) -> None:
        model = Llama(PLAIN).eval()
        with torch.no_grad():
            model(tokens(PLAIN, 1, 64))
            with pytest.raises(ValueError, match="65 tokens are more than the model's context of 64"):
                model(tokens(PLAIN, 1, 65))
            cache = model.new_cache()
            model(tokens(PLAIN, 1, 60), cache=cache)
            with pytest.raises(ValueError, match="65 tokens"):
                model(tokens(PLAIN, 1, 5), cache=cache)
            assert len(cache) == 60 and model.context == 64
            model(tokens(PLAIN, 1, 4), cache=cache)


class TestCheckpoints:
    @each_config
    @pytest.mark.parametrize("shard", [None, 4000], ids=["whole", "sharded"])
    def test_theirs_load_into_ours(self, config: LlamaConfig, shard: int | None, tmp_path: Path) -> None:
        theirs = reference(config)
        theirs.save_pretrained(tmp_path, max_shard_size=shard or "5GB")
        ours = Llama.from_pretrained(tmp_path)
        assert ours.config == config
        given = tokens(config, 2, 10)
        with torch.no_grad():
            assert relative_error(ours(given), theirs(given).logits) < 1e-5

    @each_config
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_ours_load_into_theirs(self, config: LlamaConfig, dtype: torch.dtype, tmp_path: Path) -> None:
        torch.manual_seed(1)
        ours = Llama(replace(config, initial_deviation=0.3)).to(dtype)
        ours.save_pretrained(tmp_path)
        again = Llama.from_pretrained(tmp_path)
        assert again.config == ours.config
        assert all(torch.equal(one, other) for one, other in zip(again.parameters(), ours.parameters(), strict=True))
        assert {parameter.dtype for parameter in again.parameters()} == {dtype}
        loaded: Any = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
        theirs, report = loaded
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        given = tokens(config, 2, 10)
        with torch.no_grad():
            assert relative_error(again.float()(given), theirs(given).logits) < 1e-5

    def test_every_parameter_has_one_name(self) -> None:
        for config in CONFIGS.values():
            model = Llama(config)
            named = [own for name in model.weight_names() for own in name.ours]
            assert sorted(named) == sorted(name for name, _ in model.named_parameters())
            theirs = {name for name, _ in reference(config).named_parameters()}
            assert {name.theirs for name in model.weight_names()} == theirs

    def test_older_configurations(self) -> None:
        """As transformers wrote them before version 5, and without keys that have defaults."""
        config = PLAIN_CONFIG | {
            "rope_theta": 5000.0,
            "rope_scaling": None,
            "pretraining_tp": 1,
            "torch_dtype": "float16",
        }
        model = Llama.from_config(config)
        assert model.config == LlamaConfig(37, 24, 2, 4, 41, rotary_base=5000.0)
        inside = PLAIN_CONFIG | {"rope_scaling": {"rope_type": "default", "rope_theta": 5000.0}}
        assert Llama.from_config(inside).config == model.config

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("rope_scaling", {"type": "linear"}),
            ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
            ("rope_parameters", {"rope_type": "proportional", "rope_theta": 1e4}),
            ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
            ("rope_parameters", {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}),
            ("rope_scaling", "linear"),
            ("attention_bias", 1),
            ("mlp_bias", "yes"),
            ("hidden_act", "gelu"),
            ("sliding_window", 1024),
            ("layer_types", ["full_attention", "sliding_attention"]),
            ("layer_types", ["full_attention"]),
            ("layer_types", ["full_attention", "chunked_attention"]),
            ("head_dim", 7),
            ("attention_dropout", 0.1),
            ("rope_interleaved", True),
            ("partial_rotary_factor", 0.25),
            ("quantization_config", {"quant_method": "gptq"}),
            ("num_attention_heads", 5),
            ("vocab_size", None),
            ("hidden_size", "24"),
        ],
    )
    def test_what_is_not_supported_is_named(self, key: str, value: Any) -> None:
        with pytest.raises(UnsupportedError, match=key):
            Llama.from_config(PLAIN_CONFIG | {key: value})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda weights: weights.pop("model.norm.weight"), "missing: model.norm.weight"),
            (lambda weights: weights.update(extra=torch.zeros(3)), "left over.*extra"),
            (lambda weights: weights.update({"model.norm.weight": torch.zeros(3)}), r"model.norm.weight has \(3,\)"),
        ],
    )
    def test_weights_that_do_not_fit_are_named(
        self, change: Callable[[dict[str, Tensor]], Any], message: str, tmp_path: Path
    ) -> None:
        Llama(PLAIN).save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        change(weights)
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(WeightsError, match=message):
            Llama.from_pretrained(tmp_path)

    def test_a_tied_copy_and_old_buffers_are_read(self, tmp_path: Path) -> None:
        model = Llama(GROUPED)
        model.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        again = Llama.from_pretrained(tmp_path)
        assert torch.equal(again.embedding.weight, model.embedding.weight)
        weights["lm_head.weight"][0, 0] += 1
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(WeightsError, match=r"lm_head\.weight"):
            Llama.from_pretrained(tmp_path)

    def test_another_architecture_is_refused(self, tmp_path: Path) -> None:
        Llama(PLAIN).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen2ForCausalLM"]}))
        with pytest.raises(UnsupportedError, match="Qwen2ForCausalLM"):
            Llama.from_pretrained(tmp_path)


PLAIN_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 37,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 41,
}


@pytest.mark.skipif(
    not is_present("smollm2-135m-instruct"), reason="smollm2-135m-instruct is not in the cache: allyouneed fetch it"
)
class TestSmolLM2:
    """More prompts and longer texts are in benchmarks/llama_parity.py."""

    def test_the_chat_template_is_applied_as_transformers_does(self) -> None:
        stored = open_model("smollm2-135m-instruct")
        (file,) = fetch("smollm2-135m-instruct").glob("*.gguf")
        reference: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        assert stored.chat_template is not None
        template = ChatTemplate(stored.chat_template, stored.tokenizer())
        for messages in CONVERSATIONS:
            for answering in (True, False):
                expected = reference.apply_chat_template(
                    messages, chat_template=stored.chat_template, add_generation_prompt=answering, return_dict=False
                )
                assert template.encode(messages, answering=answering) == expected
        assert template.end_tokens() == {stored.config["eos_token_id"]}

    def test_equals_transformers(self) -> None:
        """Logits, and greedy continuations of 20 prompts, on the same dequantised weights."""
        stored = open_model("smollm2-135m-instruct")
        ours = Llama.from_stored(stored)
        with torch.device("meta"):
            numbers: Any = dict(stored.config) | {"eos_token_id": None}
            theirs: Any = LlamaForCausalLM(TheirConfig(**numbers))
        weights = {name: stored.read(name, torch.float32) for name in stored.names()}
        theirs.load_state_dict(weights | {"lm_head.weight": weights["model.embed_tokens.weight"]}, assign=True)
        # Buffers that were built without memory.
        theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config)
        tokenizer = stored.tokenizer()
        prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
        given = torch.tensor([prompts[0] + prompts[1] + prompts[2]])
        with torch.no_grad():
            assert relative_error(ours(given), theirs.eval()(given).logits) < 1e-5
        longest = max(map(len, prompts))
        padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        greedy = GenerationConfig(do_sample=False, max_new_tokens=8, pad_token_id=0)
        expected = theirs.generate(padded, attention_mask=mask, generation_config=greedy)[:, longest:].tolist()
        assert generate(ours, prompts, new_tokens=8, sampling=Sampling.greedy()) == expected
        assert tokenizer.decode(expected[0]).startswith(" Paris.")


CONVERSATIONS = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "The colour of snow?\n"}],
    [
        {"role": "user", "content": "¿Qué tal?  Two  spaces, 12345 and 🙂"},
        {"role": "assistant", "content": "Bien."},
        {"role": "user", "content": "And\n\nnow?"},
    ],
)
