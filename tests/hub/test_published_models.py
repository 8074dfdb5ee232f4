"""The published models as they are, where they were fetched."""

import re

import pytest
import torch

import allyouneed
from allyouneed.data import is_present
from allyouneed.data.assets import stand_in
from allyouneed.hub import StoredModel, open_model
from allyouneed.nn import compile_decoder
from allyouneed.text import Sampling, generate


def opened(name: str) -> StoredModel:
    if stand_in(name) is not None or not is_present(name):
        pytest.skip(f"{name} is not in the cache: run `allyouneed fetch {name}`")
    return open_model(name)


def test_smollm2_is_read() -> None:
    stored = opened("smollm2-135m-instruct")
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    assert [stored.config[key] for key in sizes] == [49152, 576, 30, 9, 3]
    assert stored.config["tie_word_embeddings"]
    assert len(stored.names()) == 272
    kinds = {}
    for name in stored.names():
        if len(stored.shape(name)) == 2 and ".0." in name:
            blocks = stored.blocks(name)
            assert blocks is not None
            kinds[blocks.kind] = name
            assert torch.equal(blocks.dequantized(), stored.read(name)), name
    assert set(kinds) == {"Q4_1"}
    assert set(stored.tokenizer().special_tokens) >= {"<|im_start|>", "<|im_end|>"}
    assert "<|im_start|>assistant" in (stored.chat_template or "")


def test_smollm2_knows_a_capital() -> None:
    opened("smollm2-135m-instruct")
    model, tokenizer = allyouneed.load("smollm2-135m-instruct")
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer.encode("The capital of France is")]))
    assert tokenizer.decode([int(logits[0, -1].argmax())]) == " Paris"


def test_compiled_smollm2_writes_what_its_weights_in_32_bits_do() -> None:
    opened("smollm2-135m-instruct")
    model, tokenizer = allyouneed.load("smollm2-135m-instruct", quantize="int4")
    outcome = compile_decoder(model)
    if outcome.reason is not None:
        pytest.skip(outcome.reason)
    prompts = [tokenizer.encode(text) for text in ("The capital of France is", "def fibonacci(n):")]
    plain, _ = allyouneed.load("smollm2-135m-instruct")
    expected = [generate(plain, [prompt], new_tokens=16, sampling=Sampling.greedy()) for prompt in prompts]
    assert [generate(model, [prompt], new_tokens=16, sampling=Sampling.greedy()) for prompt in prompts] == expected
    # In one batch, with padding.
    assert generate(model, prompts, new_tokens=16, sampling=Sampling.greedy()) == [row for (row,) in expected]


def test_qwen_is_read() -> None:
    """Its own 4-bit, 5-bit and 8-bit groups are taken apart exactly, of a layer of each kind."""
    stored = opened("qwen2.5-coder-0.5b-instruct")
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    assert [stored.config[key] for key in sizes] == [151_936, 896, 24, 14, 2]
    assert stored.config["model_type"] == "qwen2" and not stored.config["tie_word_embeddings"]
    kinds = {}
    for name in stored.names():
        if len(stored.shape(name)) == 2 and re.search(r"\.(0|2)\.", name):
            blocks = stored.blocks(name)
            if blocks is None:
                kinds["in full"] = name
                continue
            kinds[blocks.kind] = name
            assert torch.equal(blocks.dequantized(), stored.read(name)), name
    assert set(kinds) == {"Q4_K", "Q5_0", "Q8_0", "in full"} and "down_proj" in kinds["in full"]
    assert stored.generation.eos_token_ids == (151_645,) and "<|im_start|>assistant" in (stored.chat_template or "")


def test_qwen_splits_text_as_its_own_tokenizer() -> None:
    """Ids of Qwen2.5's published tokenizer."""
    tokenizer = opened("qwen2.5-coder-0.5b-instruct").tokenizer()
    assert tokenizer.encode("def f(x):\n    return 12") == [750, 282, 2075, 982, 262, 470, 220, 16, 17]
    assert tokenizer.vocabulary == 151_936 and tokenizer.special_tokens["<|im_end|>"] == 151_645
    text = "Zwei  Wörter, 2026:\r\n\t漢字 🙂\n\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_minilm_is_read() -> None:
    stored = opened("all-minilm-l6-v2")
    assert stored.config["architectures"] == ["BertModel"]
    assert stored.shape("embeddings.word_embeddings.weight") == (30522, 384)
    assert stored.dtype("embeddings.position_ids") == torch.int64
    assert all(stored.read(name).isfinite().all() for name in stored.names() if "layer.0" in name)
    assert stored.tokenizer().vocabulary == 30522
