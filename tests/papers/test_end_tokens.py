"""Every architecture keeps the tokens of beginning, end and padding, and the chat template, from load to save to load.

The reference is transformers: it writes the first folder, and reads the last.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import allyouneed
from allyouneed.hub import READERS
from allyouneed.papers.gpt2 import GPT2, GPT2Config
from allyouneed.papers.llama1 import Llama, LlamaConfig
from allyouneed.text import (
    BytePairTokenizer,
    GenerationConfig,
    LocalChat,
    Sampling,
    end_tokens,
    generate,
    generate_text,
)

transformers = pytest.importorskip("transformers")

SHORT: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", SHORT | {"num_key_value_heads": 1}),
    "mistral": ("MistralForCausalLM", SHORT | {"num_key_value_heads": 1, "sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", SHORT | {"num_key_value_heads": 1}),
    "qwen3": ("Qwen3ForCausalLM", SHORT | {"num_key_value_heads": 1, "head_dim": 8}),
    "mixtral": ("MixtralForCausalLM", SHORT | {"num_key_value_heads": 1, "num_local_experts": 2}),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}),
    "openai-gpt": ("OpenAIGPTLMHeadModel", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}),
    "rwkv": ("RwkvForCausalLM", {"hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16}),
    "t5": ("T5ForConditionalGeneration", {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}),
}
TEMPLATE = "{% for message in messages %}<turn>{{ message.content }}</s>{% endfor %}"
BEGIN, END, TURN, PAD = range(257, 261)


def test_every_causal_architecture_is_here() -> None:
    # BERT generates nothing, and GPT-3 is GPT-2's and unknown to transformers.
    assert {*MADE, "bert", "gpt3"} == {*READERS}


def vocabulary() -> BytePairTokenizer:
    tokenizer = BytePairTokenizer.train(["to be or not to be"], 261, ["<s>", "</s>", "<turn>", "<pad>"])
    tokenizer.special_tokens_map = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return tokenizer


def published(kind: str, folder: Path, **ids: Any) -> None:
    """Write a small model of an architecture as transformers does, with a tokenizer beside it."""
    name, numbers = MADE[kind]
    config = transformers.AutoConfig.for_model(kind, vocab_size=261, **numbers, **ids)
    getattr(transformers, name)(config).save_pretrained(folder)
    vocabulary().save(folder)


def ids_of(entries: Any) -> tuple[Any, ...]:
    return tuple(getattr(entries, f"{role}_token_id", None) for role in ("bos", "eos", "pad"))


@pytest.mark.parametrize("ends", [END, [END, TURN]], ids=["one end", "two ends"])
@pytest.mark.parametrize("kind", MADE)
def test_from_load_to_save_to_load(kind: str, ends: Any, tmp_path: Path) -> None:
    pad = 0 if kind == "t5" else PAD
    start = {"decoder_start_token_id": 0} if kind == "t5" else {}
    published(kind, tmp_path / "theirs", bos_token_id=BEGIN, eos_token_id=ends, pad_token_id=pad, **start)
    (tmp_path / "theirs" / "chat_template.jinja").write_text(TEMPLATE)
    model, tokenizer = allyouneed.load(tmp_path / "theirs")
    several = tuple(ends) if isinstance(ends, list) else (ends,)
    assert model.generation.bos_token_id == BEGIN
    assert model.generation.eos_token_ids == several == end_tokens(model, tokenizer)
    # The model's files and the tokenizer's differ for T5, and what generation goes by is the model's.
    assert model.generation.pad_token_id == pad
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids, tokenizer.pad_token_id) == (BEGIN, (END,), PAD)
    assert model.chat_template == TEMPLATE
    model.save_pretrained(tmp_path / "ours", tokenizer)
    again, same = allyouneed.load(tmp_path / "ours")
    assert (again.generation, again.chat_template) == (model.generation, TEMPLATE)
    assert same.special_tokens_map == tokenizer.special_tokens_map
    reference = getattr(transformers, MADE[kind][0]).from_pretrained(tmp_path / "ours")
    before = getattr(transformers, MADE[kind][0]).from_pretrained(tmp_path / "theirs")
    for one, other in ((reference.config, before.config), (reference.generation_config, before.generation_config)):
        assert ids_of(one) == ids_of(other) == (BEGIN, ends, pad)
    assert reference.generation_config.decoder_start_token_id == before.generation_config.decoder_start_token_id
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert (read.bos_token, read.eos_token, read.pad_token) == ("<s>", "</s>", "<pad>")
    talk = [{"role": "user", "content": "to be"}]
    if kind != "t5":
        expected = read.apply_chat_template(talk, return_dict=False)
        assert LocalChat(again, same).template.encode(talk, answering=False) == expected  # pyright: ignore


@pytest.mark.parametrize("kind", [kind for kind in MADE if kind != "t5"])
def test_where_nothing_is_stated_nothing_is_guessed(kind: str, tmp_path: Path) -> None:
    published(kind, tmp_path / "theirs", bos_token_id=None, eos_token_id=None, pad_token_id=None)
    for file in ("generation_config.json", "tokenizer_config.json"):
        (tmp_path / "theirs" / file).unlink(missing_ok=True)
    model, tokenizer = allyouneed.load(tmp_path / "theirs")
    assert model.generation == GenerationConfig()
    assert (end_tokens(model, tokenizer), tokenizer.bos_token_id) == ((), None)
    model.save_pretrained(tmp_path / "ours", tokenizer)
    reference = getattr(transformers, MADE[kind][0]).from_pretrained(tmp_path / "ours")
    assert ids_of(reference.config)[:2] == ids_of(reference.generation_config)[:2] == (None, None)


def test_a_new_model_is_given_its_tokens(tmp_path: Path) -> None:
    model = GPT2(GPT2Config(vocabulary=99, positions=32, width=16, layers=1, heads=2))
    assert model.generation == GenerationConfig()
    model.generation = GenerationConfig(bos_token_id=7, eos_token_ids=(7,), pad_token_id=8)
    model.save_pretrained(tmp_path)
    assert GPT2.from_pretrained(tmp_path).generation == model.generation
    config = json.loads((tmp_path / "config.json").read_text())
    assert [config[f"{role}_token_id"] for role in ("bos", "eos", "pad")] == [7, 7, 8]


def test_text_ends_at_each_of_them() -> None:
    tokenizer = vocabulary()
    torch.manual_seed(0)
    model = Llama(LlamaConfig(vocabulary=261, width=16, layers=1, heads=2, hidden=24)).eval()
    greedy = Sampling.greedy()
    [tokens] = generate(model, [tokenizer.encode("to be")], new_tokens=12, sampling=greedy)
    assert len(set(tokens)) > 3
    for end in set(tokens):
        model.generation = GenerationConfig(eos_token_ids=(END, end))
        [ended] = generate_text(model, tokenizer, ["to be"], new_tokens=12, sampling=greedy)
        assert ended == tokenizer.decode(tokens[: tokens.index(end)])
        assert LocalChat(model, tokenizer, TEMPLATE).stop == {END, end}
    assert generate_text(model, tokenizer, ["to be"], new_tokens=12, sampling=greedy, stop=()) == [
        tokenizer.decode(tokens)
    ]
