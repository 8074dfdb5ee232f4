"""LLaMA's relatives and scaled rotary positions against transformers, with small random weights in odd shapes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import allyouneed
from allyouneed.data import is_present
from allyouneed.hub import UnsupportedError, open_model, read_rotary, rotary_scaling, scaling_entry
from allyouneed.nn import Block, Int8Linear, SteppingBlock, WindowCache, arrange_for_inference, tie_quantized
from allyouneed.papers.llama1 import Llama, LlamaConfig, Mistral, MistralConfig, Qwen2, Qwen3, QwenConfig
from allyouneed.papers.readers import READERS
from allyouneed.text import Sampling, generate
from allyouneed.training import next_token_loss

# Of transformers: a model type, and what its configuration says beside the common numbers.
COMMON: Mapping[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
    "bos_token_id": None,
    "eos_token_id": None,
}
YARN = {"rope_type": "yarn", "rope_theta": 5e3, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e3,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.25],
    "long_factor": [1.0, 2.5, 4.0],
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0}
VARIANTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "head width": ("llama", {"head_dim": 10, "num_key_value_heads": 1}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}}),
    "dynamic": ("llama", {"rope_parameters": DYNAMIC}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "yarn": ("llama", {"rope_parameters": YARN, "head_dim": 16}),
    "yarn, not truncated": ("llama", {"rope_parameters": {**YARN, "truncate": False, "beta_fast": 8.0}}),
    "yarn, attention factor": ("qwen2", {"rope_parameters": {**YARN, "attention_factor": 0.7, "beta_slow": 2.0}}),
    "yarn, magnitudes": ("llama", {"rope_parameters": {**YARN, "mscale": 0.9, "mscale_all_dim": 0.4}}),
    "longrope": ("llama", {"rope_parameters": LONG}),
    "mistral": ("mistral", {"sliding_window": 5}),
    "mistral, window of one": ("mistral", {"sliding_window": 1}),
    "mistral, no window": ("mistral", {"sliding_window": None, "tie_word_embeddings": True}),
    "mistral, head width": (
        "mistral",
        {"sliding_window": 7, "head_dim": 8, "num_attention_heads": 5, "num_key_value_heads": 1},
    ),
    "qwen2": ("qwen2", {}),
    "qwen2, some windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen2, listed windows": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 14}),
    "qwen3, biases and windows": (
        "qwen3",
        {
            "head_dim": 6,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 3,
            "max_window_layers": 0,
        },
    ),
}
CLASSES: Mapping[str, tuple[type[Llama], Any, Any]] = {
    "llama": (Llama, transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (Mistral, transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (Qwen2, transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (Qwen3, transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}

each_variant = pytest.mark.parametrize("variant", VARIANTS)
windowed = pytest.mark.parametrize(
    "variant", [name for name, (_, more) in VARIANTS.items() if more.get("sliding_window")]
)


def reference(variant: str, **changes: Any) -> Any:
    """Make transformers' model, with weights far enough from their start to tell errors apart."""
    kind, more = VARIANTS[variant]
    _, configuration, model = CLASSES[kind]
    torch.manual_seed(0)
    theirs = model(configuration(**{**COMMON, **json.loads(json.dumps(more)), **changes}))
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight.normal_(mean=float("norm" in name), std=0.3)
    return theirs.eval()


def pair(variant: str, folder: Path, **changes: Any) -> tuple[Llama, Any]:
    """Load what transformers saved, and give both."""
    theirs = reference(variant, **changes)
    theirs.save_pretrained(folder)
    model_class = CLASSES[VARIANTS[variant][0]][0]
    ours = model_class.from_pretrained(folder)
    assert type(ours) is model_class
    return ours, theirs


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def tokens(*shape: int) -> Tensor:
    return torch.randint(COMMON["vocab_size"], shape, generator=torch.Generator().manual_seed(sum(shape)))


class TestEqualsTransformers:
    @each_variant
    @pytest.mark.parametrize("shape", [(1, 1), (2, 7), (3, 40)])
    def test_logits(self, variant: str, shape: tuple[int, int], tmp_path: Path) -> None:
        ours, theirs = pair(variant, tmp_path)
        with torch.no_grad():
            assert relative_error(ours(tokens(*shape)), theirs(tokens(*shape)).logits) < 1e-5

    @pytest.mark.parametrize("variant", ["linear", "dynamic", "yarn", "longrope"])
    def test_beyond_the_original_context(self, variant: str, tmp_path: Path) -> None:
        ours, theirs = pair(variant, tmp_path, max_position_embeddings=20)
        assert ours.context == {"linear": 50, "dynamic": 60, "yarn": 64, "longrope": 20}[variant]
        longest = min(60, ours.context)
        for length in (19, 20, 21, 50, longest) if longest > 20 else (15, 16, 17, 20):
            given = tokens(2, length)
            with torch.no_grad():
                # Their frequencies are kept from call to call once they have grown: a new model for each length.
                expected = reference(variant, max_position_embeddings=20)(given).logits
                assert relative_error(ours(given), expected) < 1e-5
        with pytest.raises(ValueError, match="context"):
            ours(tokens(1, ours.context + 1))
        assert ours.config.context == theirs.config.max_position_embeddings

    @each_variant
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding(self, variant: str, side: str, tmp_path: Path) -> None:
        """Each row as theirs is where it is alone."""
        ours, _ = pair(variant, tmp_path, max_position_embeddings=20)
        most = 20
        given, places, lengths = tokens(3, most), torch.arange(most), torch.tensor([[most], [13], [1]])
        present = places < lengths if side == "right" else places >= most - lengths
        with torch.no_grad():
            actual = ours(given, present=present)
            for row in range(3):
                alone = given[row : row + 1, present[row]]
                expected = reference(variant, max_position_embeddings=20)(alone).logits[0]
                assert relative_error(actual[row][present[row]], expected) < 1e-5

    @pytest.mark.parametrize("variant", sorted(set(VARIANTS) - {"mistral, window of one"}))
    def test_with_a_cache(self, variant: str, tmp_path: Path) -> None:
        """A prompt, then tokens one by one and several at once, across the edge of every window."""
        ours, theirs = pair(variant, tmp_path)
        given = tokens(2, 40)
        # Theirs keeps all where the window is of one token: that one is compared without a cache.
        cache, their_cache = ours.new_cache(capacity=4), None
        with torch.no_grad():
            for part in given.split([3, 1, 1, 1, 9, 1, 1, 2, 20, 1], dim=1):
                answer = theirs(part, past_key_values=their_cache, use_cache=True)
                their_cache = answer.past_key_values
                assert relative_error(ours(part, cache=cache), answer.logits) < 1e-5

    def test_dynamic_scaling_with_a_cache_beyond_the_context(self, tmp_path: Path) -> None:
        ours, theirs = pair("dynamic", tmp_path, max_position_embeddings=16)
        given = tokens(1, 40)
        cache, their_cache = ours.new_cache(), None
        with torch.no_grad():
            for part in given.split([10, 1, 1, 20, 1, 7], dim=1):
                answer = theirs(part, past_key_values=their_cache, use_cache=True)
                their_cache = answer.past_key_values
                assert relative_error(ours(part, cache=cache), answer.logits) < 1e-5

    @each_variant
    def test_gradients(self, variant: str, tmp_path: Path) -> None:
        ours, theirs = pair(variant, tmp_path)
        ours, theirs = ours.double(), theirs.double()
        window = tokens(3, 12)
        loss, count = next_token_loss(ours, window)
        (loss / count).backward()
        F.cross_entropy(theirs(window[:, :-1]).logits.flatten(0, 1), window[:, 1:].flatten()).backward()
        parameters, their_parameters = dict(ours.named_parameters()), dict(theirs.named_parameters())
        for name in ours.weight_names():
            joined = name.join([parameters[own].grad for own in name.ours])  # pyright: ignore[reportArgumentType]
            expected = their_parameters[name.theirs].grad
            # Their norms and the angles of both sides are computed in 32 bits. A bias of keys changes nothing.
            assert float((joined - expected).abs().max()) < 1e-5 * max(float(expected.abs().max()), 1e-2)

    @pytest.mark.parametrize("variant", ["qwen2, some windows", "mistral", "qwen3", "yarn"])
    def test_greedy_continuations(self, variant: str, tmp_path: Path) -> None:
        """Of prompts of different lengths, padded on the left."""
        ours, theirs = pair(variant, tmp_path)
        prompts = [tokens(9).tolist(), tokens(2).tolist(), tokens(5).tolist()]
        padded = torch.tensor([[0] * (9 - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (9 - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        greedy = transformers.GenerationConfig(do_sample=False, max_new_tokens=20, pad_token_id=0)
        expected = theirs.generate(padded, attention_mask=mask, generation_config=greedy)[:, 9:].tolist()
        for options in ({"use_cache": False}, {"use_cache": True}, {"prefill_chunk": 4}):
            assert generate(ours, prompts, new_tokens=20, sampling=Sampling.greedy(), **options) == expected


class TestCheckpoints:
    @each_variant
    def test_ours_load_into_theirs(self, variant: str, tmp_path: Path) -> None:
        ours, _ = pair(variant, tmp_path / "theirs")
        ours.save_pretrained(tmp_path / "ours")
        again = type(ours).from_pretrained(tmp_path / "ours")
        assert again.config == ours.config
        kind = VARIANTS[variant][0]
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "ours", dtype=torch.float32, output_loading_info=True
        )
        theirs, report = loaded
        assert type(theirs) is CLASSES[kind][2]
        assert not any(report[faults] for faults in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.no_grad():
            assert relative_error(again(tokens(2, 40)), theirs(tokens(2, 40)).logits) < 1e-5

    @each_variant
    def test_every_parameter_has_one_name(self, variant: str, tmp_path: Path) -> None:
        ours, theirs = pair(variant, tmp_path)
        named = [own for name in ours.weight_names() for own in name.ours]
        assert sorted(named) == sorted(name for name, _ in ours.named_parameters())
        assert {name.theirs for name in ours.weight_names()} == {name for name, _ in theirs.named_parameters()}

    @pytest.mark.parametrize("kind", CLASSES)
    def test_what_a_configuration_leaves_out_is_what_transformers_takes(self, kind: str) -> None:
        numbers = {key: COMMON[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
        numbers |= {"num_attention_heads": 32, "hidden_size": 64}
        ours = CLASSES[kind][0].read_config({**CLASSES[kind][0].defaults, **numbers})
        theirs = CLASSES[kind][1](**numbers)
        assert (ours.key_value_heads or 32) == theirs.num_key_value_heads
        assert (ours.head_width or 2) == getattr(theirs, "head_dim", 2)
        assert (ours.context, ours.epsilon, ours.tied) == (
            theirs.max_position_embeddings,
            theirs.rms_norm_eps,
            theirs.tie_word_embeddings,
        )
        assert ours.rotary_base == theirs.rope_parameters["rope_theta"]
        assert getattr(ours, "window", None) == getattr(theirs, "sliding_window", None)

    @pytest.mark.parametrize(
        ("kind", "change", "message"),
        [
            ("mistral", {"attention_bias": True}, "attention_bias"),
            ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types.*sliding_window 4096"),
            ("mistral", {"sliding_window": "far"}, "sliding_window"),
            ("qwen2", {"attention_bias": False}, "attention_bias"),
            ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "layer_types.*use_sliding_window"),
            ("qwen2", {"mlp_bias": True}, "mlp_bias"),
            ("qwen2", {"use_sliding_window": "no"}, "use_sliding_window"),
            ("qwen3", {"head_dim": 7}, "head_dim is 7"),
            ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ],
    )
    def test_what_is_not_supported_is_named(self, kind: str, change: dict[str, Any], message: str) -> None:
        model = CLASSES[kind][0]
        with pytest.raises(UnsupportedError, match=message):
            model.from_config({**COMMON, **change})

    def test_windows_that_do_not_fit_are_refused(self) -> None:
        numbers = (11, 8, 2, 2, 8)
        with pytest.raises(ValueError, match="window is 0"):
            MistralConfig(*numbers, window=0)
        for windowed in ((True,), (True, False)):
            with pytest.raises(ValueError, match="do not fit 2 layers"):
                QwenConfig(*numbers, windowed=windowed)

    def test_each_model_type_is_loaded_by_its_class(self, tmp_path: Path) -> None:
        for kind, (model, _, _) in CLASSES.items():
            assert READERS[kind] == f"allyouneed.papers.llama1:{model.__name__}"
        pair("qwen2", tmp_path)
        with pytest.raises(UnsupportedError, match="Qwen2ForCausalLM"):
            Llama.from_pretrained(tmp_path)

    @each_variant
    def test_scaling_is_described_as_it_was_read(self, variant: str) -> None:
        _, more = VARIANTS[variant]
        entry = more.get("rope_parameters")
        scaling = rotary_scaling(read_rotary({"rope_parameters": entry}, context=20), 20)
        described = scaling_entry(scaling)
        assert rotary_scaling(read_rotary({"rope_scaling": described}, context=20), 20) == scaling
        assert (described or {"rope_type": "default"})["rope_type"] == (entry or {"rope_type": "default"})["rope_type"]


class TestWindows:
    @windowed
    def test_cache_on_equals_off(self, variant: str, tmp_path: Path) -> None:
        """With padding on the left, and chunks that begin before the window's edge and end after it."""
        model = pair(variant, tmp_path)[0].double()
        given = tokens(3, 40)
        present = torch.arange(40) >= torch.tensor([[0], [6], [20]])
        with torch.no_grad():
            whole = model(given, present=present)
            for sizes in ([7, 1, 1, 1, 13, 17], [40], [1] * 40, [2, 3, 5, 30]):
                cache = model.new_cache(capacity=2)
                parts = [
                    model(part, present=there, cache=cache)
                    for part, there in zip(given.split(sizes, 1), present.split(sizes, 1), strict=True)
                ]
                torch.testing.assert_close(torch.cat(parts, 1)[present], whole[present], rtol=1e-9, atol=1e-9)

    @windowed
    def test_a_token_beyond_the_windows_of_all_layers_changes_nothing(self, variant: str, tmp_path: Path) -> None:
        model = pair(variant, tmp_path)[0]
        windows = [block.window for block in model.blocks]
        given, other = tokens(1, 40), tokens(1, 40)
        other[0, 0] = (given[0, 0] + 1) % 31
        with torch.no_grad():
            changed = (model(given) - model(other)).abs().amax(-1)[0] > 0
        reach = 40 if None in windows else sum(window - 1 for window in windows) + 1
        assert bool(changed[0]) and not bool(changed[reach:].any())
        assert bool(changed[reach - 1]) or reach == 40

    def test_the_cache_forgets(self, tmp_path: Path) -> None:
        model = pair("mistral", tmp_path, max_position_embeddings=2000)[0]
        cache = model.new_cache()
        with torch.no_grad():
            model(tokens(1, 1500), cache=cache)
            for _ in range(5):
                model(tokens(1, 1), cache=cache)
        layer: Any = cache.layers[0]
        assert isinstance(layer, WindowCache) and len(cache) == 1505
        assert layer._last._keys.shape[2] <= 2 * (5 + 64) and layer._last.length < 100

    @windowed
    def test_branches_and_cuts(self, variant: str, tmp_path: Path) -> None:
        model = pair(variant, tmp_path)[0].double()
        given = tokens(1, 30)
        cache = model.new_cache()
        with torch.no_grad():
            model(given[:, :20], cache=cache)
            branched = cache.branch([0, 0])
            ends = torch.stack((given[0, 20:], tokens(10)))
            actual = model(ends, cache=branched)
            expected = model(torch.cat((given[:, :20].expand(2, -1), ends), 1))[:, 20:]
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
            cache.truncate(11)
            torch.testing.assert_close(
                model(given[:, 11:], cache=cache),
                expected[:1].new_tensor(model(given)[:, 11:].tolist()),
                rtol=1e-9,
                atol=1e-9,
            )


class TestFastWays:
    """What inference computes in other ways must be the same."""

    @pytest.mark.parametrize("variant", sorted(set(VARIANTS) - {"longrope"}))
    def test_arranged_for_inference(self, variant: str, tmp_path: Path) -> None:
        model = pair(variant, tmp_path)[0].double()
        given = tokens(1, 30)
        with torch.no_grad():
            expected = model(given)
            model = arrange_for_inference(model.float())
            cache = model.new_cache()
            parts = [model(part, cache=cache) for part in given.split([12] + [1] * 18, 1)]
        assert relative_error(torch.cat(parts, 1).double(), expected) < 1e-4

    @each_variant
    def test_quantised_blocks_a_token_at_a_time(self, variant: str, tmp_path: Path) -> None:
        """Joined projections, and the shorter way of single tokens, beside each projection by itself."""
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
        head_width = 6 if variant == "longrope" else 16
        theirs = reference(variant, **sizes, head_dim=head_width)
        with torch.no_grad():
            for name, weight in theirs.named_parameters():
                if weight.dim() == 2 and "o_proj" not in name:
                    weight.mul_(0.3)
        theirs.save_pretrained(tmp_path)
        model_class = CLASSES[VARIANTS[variant][0]][0]
        if head_width == 6:
            with pytest.raises(ValueError, match="24 columns cannot be quantised"):
                model_class.from_pretrained(tmp_path, quantize="int8")
            return
        model, alone = model_class.from_pretrained(tmp_path, quantize="int8"), model_class.from_pretrained(tmp_path)
        for parent in list(alone.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, Int8Linear.from_weight(child.weight, child.bias))
        if alone.head is None:
            tie_quantized(alone, Int8Linear.from_weight(alone.embedding.weight))
        steps = variant not in ("qwen3", "qwen3, biases and windows", "biases")
        assert all(type(block) is (SteppingBlock if steps else Block) for block in model.blocks)
        given = tokens(1, 30)
        with torch.no_grad():
            cache, other = model.new_cache(), alone.new_cache()
            for part in given.split([12] + [1] * 18, 1):
                assert relative_error(model(part, cache=cache), alone(part, cache=other)) < 0.02

    def test_loaded_by_name(self, tmp_path: Path) -> None:
        """A folder with a tokenizer, by `allyouneed.load`."""
        ours, _ = pair("qwen2", tmp_path)
        assert isinstance(ours, nn.Module)
        with pytest.raises(FileNotFoundError, match="tokenizer"):
            allyouneed.load(tmp_path)


def test_a_plain_configuration_is_llama_itself() -> None:
    """What the paper describes has none of its relatives' parts."""
    model = Llama(LlamaConfig(11, 8, 2, 2, 8))
    assert not [name for name, _ in model.named_parameters() if "bias" in name or "query_norm" in name]
    assert all(block.window is None for block in model.blocks) and model.context == 2048


@pytest.mark.skipif(
    not is_present("qwen2.5-coder-0.5b-instruct"),
    reason="qwen2.5-coder-0.5b-instruct is not in the cache: allyouneed fetch it",
)
def test_qwen_equals_transformers() -> None:
    """On the same dequantised weights, in memory once; more prompts and longer texts in benchmarks/llama_parity.py."""
    stored = open_model("qwen2.5-coder-0.5b-instruct")
    ours = Qwen2.from_stored(stored)
    with torch.device("meta"):
        numbers: Any = dict(stored.config) | {"eos_token_id": None}
        theirs: Any = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**numbers))
    parameters = dict(ours.named_parameters())
    theirs.load_state_dict({name.theirs: parameters[name.ours[0]] for name in ours.weight_names()}, assign=True)
    # Buffers that were built without memory.
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(theirs.config)
    tokenizer = stored.tokenizer()
    prompt = tokenizer.encode("def fibonacci(n):\n")
    given = torch.tensor([prompt + tokenizer.encode("The capital of France is")])
    with torch.no_grad():
        assert relative_error(ours(given), theirs.eval()(given).logits) < 1e-5
    greedy = transformers.GenerationConfig(do_sample=False, max_new_tokens=6, pad_token_id=0)
    expected = theirs.generate(torch.tensor([prompt]), generation_config=greedy)[0, len(prompt) :].tolist()
    assert generate(ours, [prompt], new_tokens=6, sampling=Sampling.greedy()) == [expected]
    assert tokenizer.decode(expected).startswith("    if n")
