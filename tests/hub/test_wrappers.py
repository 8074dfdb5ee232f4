"""Weights under a wrapper's names, and without a head, are loaded where the numbers stay right."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from allyouneed.hub import UnsupportedError, WeightsError

TOKENS = torch.tensor([[5, 9, 2, 30, 11, 7]])
ENCODER = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
LLAMA = {**ENCODER, "num_key_value_heads": 2}
GPT = {"vocab_size": 61, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 4}
RWKV = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "rescale_every": 0}
T5 = {"vocab_size": 61, "d_model": 12, "d_kv": 5, "d_ff": 20, "num_layers": 2, "num_heads": 3}
# Our class, the reference's with its head and without, and a configuration.
MODELS = {
    "gpt1": ("gpt1:GPT1", "OpenAIGPTLMHeadModel", "OpenAIGPTModel", GPT),
    "gpt2": ("gpt2:GPT2", "GPT2LMHeadModel", "GPT2Model", GPT),
    "llama": ("llama1:Llama", "LlamaForCausalLM", "LlamaModel", LLAMA),
    "mixtral": ("moe_explained:Mixtral", "MixtralForCausalLM", "MixtralModel", {**LLAMA, "num_local_experts": 4}),
    "rwkv": ("rwkv:Rwkv", "RwkvForCausalLM", "RwkvModel", RWKV),
    "t5": ("t5:T5", "T5ForConditionalGeneration", "T5Model", {**T5, "decoder_start_token_id": 0}),
    "bert": ("bert:Bert", "BertForMaskedLM", "BertModel", ENCODER),
}


def reader(name: str) -> Any:
    module, _, kind = MODELS[name][0].partition(":")
    return getattr(importlib.import_module(f"allyouneed.papers.{module}"), kind)


def saved(kind: str, folder: Path, sizes: dict[str, Any], **options: Any) -> Any:
    torch.manual_seed(0)
    model = getattr(transformers, kind)
    model = model(model.config_class(**sizes), **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.3
    model.save_pretrained(folder)
    return model


def output(model: Any) -> torch.Tensor:
    """Give logits, or the encoder's vectors."""
    theirs = isinstance(model, transformers.PreTrainedModel)
    twice = model.config.is_encoder_decoder if theirs else hasattr(model, "decoder")
    with torch.no_grad():
        if theirs:
            found = model(TOKENS, **({"decoder_input_ids": TOKENS} if twice else {}))
        else:
            found = model(*[TOKENS] * (1 + twice))
    return found if not theirs else found.logits if hasattr(found, "logits") else found.last_hidden_state


def rename(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    save_file({change(name): value for name, value in load_file(path).items()}, path, metadata={"format": "pt"})


WRAPPERS = {
    "data parallel": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled, then data parallel": lambda name: f"module._orig_mod.{name}",
    "layers compiled one by one": lambda name: name.replace(".0.", ".0._orig_mod.").replace(".1.", ".1._orig_mod."),
    "sharded": lambda name: "_fsdp_wrapped_module." + name.replace(".1.", ".1._checkpoint_wrapped_module."),
    "once adapted": lambda name: f"base_model.model.{name}",
    "within another model": lambda name: f"generator.model.{name}",
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("name", "kind"), [("gpt2", 1), ("gpt2", 2), ("llama", 1), ("bert", 2)])
def test_names_of_wrappers_are_taken_off(name: str, kind: int, wrapper: str, tmp_path: Path) -> None:
    saved(MODELS[name][kind], tmp_path, MODELS[name][3])  # pyright: ignore[reportArgumentType]
    expected = output(reader(name).from_pretrained(tmp_path))
    rename(tmp_path, WRAPPERS[wrapper])
    assert torch.equal(output(reader(name).from_pretrained(tmp_path)), expected)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "bert"])
def test_a_model_saved_without_its_head_has_it_where_it_is_tied(name: str, tmp_path: Path) -> None:
    _, headed, bare, sizes = MODELS[name]
    tied = {"tie_word_embeddings": True} if name in ("llama", "mixtral", "rwkv") else {}
    saved(bare, tmp_path, {**sizes, **tied})
    theirs = getattr(transformers, headed).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(output(reader(name).from_pretrained(tmp_path)), output(theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mixtral", "rwkv"])
def test_a_head_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    _, _, bare, sizes = MODELS[name]
    saved(bare, tmp_path, sizes)
    with pytest.raises(WeightsError, match=r"1 are missing: (lm_)?head\.weight; it was saved without its output layer"):
        reader(name).from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "kind", ["GPT2ForSequenceClassification", "GPT2ForTokenClassification", "GPT2DoubleHeadsModel"]
)
def test_a_language_model_is_read_from_under_another_head(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path, {**GPT, "pad_token_id": 0})
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(output(reader("gpt2").from_pretrained(tmp_path)), output(theirs), rtol=1e-4, atol=1e-4)


def test_an_encoder_is_read_with_or_without_its_pooler(tmp_path: Path) -> None:
    expected = saved("BertModel", tmp_path, ENCODER, add_pooling_layer=False)
    model = reader("bert").from_pretrained(tmp_path)
    assert model.pooler is None
    torch.testing.assert_close(output(model), output(expected), rtol=1e-4, atol=1e-4)
    # As the first published checkpoint: of this head, with a pooler beside it.
    saved("BertForPreTraining", tmp_path, ENCODER)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["BertForMaskedLM"]}))
    assert reader("bert").from_pretrained(tmp_path).pooler is not None


def test_an_image_encoder_is_read_with_or_without_its_pooler(tmp_path: Path) -> None:
    from allyouneed.papers.vit import Vit

    sizes = {key: ENCODER[key] for key in ENCODER if key not in ("vocab_size", "max_position_embeddings")}
    expected = saved("ViTModel", tmp_path, {**sizes, "image_size": 8, "patch_size": 4}, add_pooling_layer=False)
    images = torch.randn(1, 3, 8, 8)
    model = Vit.from_pretrained(tmp_path)
    assert model.pooler is None
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected(images).last_hidden_state, rtol=1e-4, atol=1e-4)


def test_adapters_must_be_merged(tmp_path: Path) -> None:
    saved("LlamaForCausalLM", tmp_path, LLAMA)
    rename(tmp_path, lambda name: f"base_model.model.{name}".replace("q_proj.", "q_proj.base_layer."))
    with pytest.raises(UnsupportedError, match=r"weights of an adapter, such as base_model.*base_layer.*merge it"):
        reader("llama").from_pretrained(tmp_path)


def test_weights_within_a_wrapper_and_outside_of_it(tmp_path: Path) -> None:
    saved("GPT2LMHeadModel", tmp_path, GPT)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, **{f"_orig_mod.{name}": value + 1 for name, value in weights.items()}}, path)
    with pytest.raises(UnsupportedError, match="has weights twice, within a wrapper and outside of it"):
        reader("gpt2").from_pretrained(tmp_path)


def test_a_vocabulary_that_was_resized_without_its_configuration(tmp_path: Path) -> None:
    model = saved("GPT2LMHeadModel", tmp_path, GPT)
    model.resize_token_embeddings(64)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(output(reader("gpt2").from_pretrained(tmp_path)), output(model), rtol=1e-4, atol=1e-4)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 61}))
    with pytest.raises(WeightsError, match=r"has \(64, 16\), the model \(61, 16\); config\.json: vocab_size is 61"):
        reader("gpt2").from_pretrained(tmp_path)
