"""A GGUF file comes in the words of the usual layout, equal to what other readers make of it."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from allyouneed.hub import CheckpointFormatError, StoredModel, UnsupportedError, gguf_llama, open_model
from allyouneed.hub.gguf_blocks import quantized_blocks
from allyouneed.papers import llama1
from allyouneed.papers.llama1 import Llama


@pytest.fixture(scope="module")
def make(maker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give a function that writes a chat model of other sizes or types."""

    def write(**sizes: Any) -> Path:
        path = tmp_path_factory.mktemp("gguf") / "a.gguf"
        maker.write_chat_model(path, **sizes)
        return path

    return write


def test_the_configuration(chat_file: Path) -> None:
    config = dict(open_model(chat_file).config)
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1])
def test_weights_equal_those_of_transformers(make: Callable[..., Path], kind: Kind, tied: bool) -> None:
    """Names and the order of rows, as the reader of GGUF files in transformers undoes them."""
    transformers = pytest.importorskip("transformers")
    path = make(kind=kind, tied=tied, vocabulary=300, layers=1)
    stored = open_model(path)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**stored.config))
    reader = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    read = reader.load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)
    reference = read["tensors"]
    assert set(stored.names()) == set(reference)
    translated = {key: value for key, value in read["config"].items() if not key.startswith("_")}
    for key in translated.keys() & stored.config.keys() - {"head_dim"}:
        assert stored.config[key] == pytest.approx(translated[key]), key
    for name in stored.names():
        assert torch.equal(stored.read(name, torch.float32), reference[name]), name
    assert stored.config["tie_word_embeddings"] == tied


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q5_0, Kind.Q4_0, Kind.Q4_1])
def test_blocks_are_the_weights(make: Callable[..., Path], kind: Kind) -> None:
    stored = open_model(make(kind=kind, vocabulary=300, layers=1))
    for name in stored.names():
        blocks = stored.blocks(name)
        if name.endswith("norm.weight"):
            assert blocks is None
            continue
        assert blocks is not None
        assert blocks.kind == ("Q8_0" if "embed" in name else kind.name)
        assert blocks.bits == (8 if blocks.kind in ("Q8_0", "Q5_0") else 4)
        assert blocks.group == 32
        assert torch.equal(blocks.dequantized(), stored.read(name)), name


def test_blocks_of_k_quants() -> None:
    """gguf cannot write this type, so its bytes are made up and compared with what gguf's dequantiser makes of them."""
    random = np.random.default_rng(0)
    stored = random.integers(0, 256, (3, 2 * 144), np.uint8)
    stored.reshape(3, 2, 144)[..., :4] = random.normal(size=(3, 2, 2)).astype(np.float16).view(np.uint8)
    blocks = quantized_blocks("Q4_K", stored)
    assert blocks is not None
    assert (blocks.bits, blocks.group) == (4, 32)
    expected = torch.from_numpy(gguf.quants.dequantize(stored, Kind.Q4_K))
    assert torch.equal(blocks.dequantized(), expected)
    assert quantized_blocks("Q6_K", stored) is None


def test_rows_are_put_back_whatever_the_heads() -> None:
    for heads, key_value_heads, half in ((1, 1, 1), (9, 3, 32), (4, 1, 2)):
        config = {"model_type": "llama", "num_attention_heads": heads, "num_key_value_heads": key_value_heads}
        assert (
            gguf_llama.row_order("model.layers.0.self_attn.q_proj.bias", {**config, "model_type": "qwen2"}, 8) is None
        )
        for part, number in (("q", heads), ("k", key_value_heads)):
            rows = 2 * half * number
            usual = np.arange(rows)
            interleaved = usual.reshape(number, 2, half).swapaxes(1, 2).reshape(-1)
            order = gguf_llama.row_order(f"model.layers.0.self_attn.{part}_proj.weight", config, rows)
            back = torch.empty(rows, dtype=torch.int64)
            back[order] = torch.from_numpy(interleaved)
            assert back.tolist() == usual.tolist()
    assert gguf_llama.row_order("model.layers.0.self_attn.v_proj.weight", {}, 8) is None
    with pytest.raises(CheckpointFormatError, match="9 rows, which cannot be halves of 2 heads"):
        gguf_llama.row_order(
            "model.layers.0.self_attn.q_proj.weight", {"model_type": "llama", "num_attention_heads": 2}, 9
        )


def translated(kind: str = "llama", frequencies: list[float] | None = None, **metadata: Any) -> dict[str, Any]:
    numbers = {
        "embedding_length": 8,
        "block_count": 1,
        "feed_forward_length": 16,
        "attention.head_count": 2,
        "context_length": 32,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    given: dict[str, Any] = {"general.architecture": kind}
    given |= {f"{kind}.{key}": value for key, value in numbers.items()}
    given |= {f"{kind}.{key.replace('__', '.')}": value for key, value in metadata.items()}
    given = {key: value for key, value in given.items() if value is not None}
    table = gguf_llama_tensor((10, 8))
    return gguf_llama.published_config(given, {"token_embd.weight": table}, frequencies)


def gguf_llama_tensor(shape: tuple[int, ...]) -> Any:
    return gguf_llama.GGUFTensor(shape, "F32", 0, 4 * shape[-1], shape[0])


def test_numbers_that_may_be_absent() -> None:
    config = translated()
    assert config["num_key_value_heads"] == 2
    assert config["head_dim"] == 4
    assert config["rope_theta"] == 10_000.0
    assert translated(attention__head_count=np.array([2, 2], np.int32))["num_attention_heads"] == 2
    mistral = translated(attention__sliding_window=128)
    assert (mistral["sliding_window"], mistral["model_type"]) == (128, "mistral")
    assert "sliding_window" not in config and "attention_bias" not in translated("qwen2")
    assert translated(rope__scaling__type="linear", rope__scaling__factor=2.0)["rope_scaling"] == {
        "rope_type": "linear",
        "factor": 2.0,
    }


@pytest.mark.parametrize(
    ("metadata", "error", "said"),
    [
        ({"embedding_length": None}, CheckpointFormatError, "llama.embedding_length is missing"),
        ({"block_count": "two"}, CheckpointFormatError, "llama.block_count is 'two'"),
        ({"block_count": -1}, CheckpointFormatError, "llama.block_count is -1"),
        ({"attention__head_count": 0}, CheckpointFormatError, "0 heads of a width of 8"),
        ({"rope__freq_base": float("nan")}, CheckpointFormatError, "llama.rope.freq_base is nan"),
        ({"attention__value_length": 8}, UnsupportedError, "value_length is not 4"),
        ({"attention__key_length": 4, "rope__dimension_count": 2}, UnsupportedError, "only whole heads are rotated"),
        ({"attention__scale": 8.0, "logit_scale": 2.0}, UnsupportedError, "llama.attention.scale, llama.logit_scale"),
        ({"expert_count": 8}, UnsupportedError, "mixtures of experts are not supported"),
        ({"attention__head_count": np.array([2, 4])}, UnsupportedError, "head_count differs between layers"),
        ({"rope__scaling__type": "longrope"}, UnsupportedError, "rope.scaling.type is 'longrope'"),
        ({"rope__scaling__type": 3}, CheckpointFormatError, "rope.scaling.type is 3; it must be a word"),
        ({"rope__scaling__attn_factor": 0.5}, UnsupportedError, "llama.rope.scaling.attn_factor is 0.5; only 1.0"),
        ({"rope__scaling__yarn_ext_factor": 0.5}, UnsupportedError, "yarn_ext_factor is 0.5; only 1.0"),
        ({"rope__scaling__yarn_log_multiplier": 0.1}, UnsupportedError, "yarn_log_multiplier is 0.1; only 0.0"),
        ({"rope__scaling__alpha": 2.0}, UnsupportedError, "llama.rope.scaling.alpha"),
        ({"kind": "qwen2", "attention__sliding_window": 64}, UnsupportedError, "which layers have it"),
        ({"frequencies": [1.0], "rope__scaling__type": "linear"}, UnsupportedError, "besides the tensor rope_freqs"),
    ],
)
def test_numbers_that_cannot_be(metadata: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        translated(**metadata)


def test_scaling_is_that_of_ggml() -> None:
    yarn = translated(
        "qwen2",
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=16,
        rope__scaling__attn_factor=0.5,
        rope__scaling__finetuned=True,
    )
    assert yarn["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "attention_factor": pytest.approx(0.5 * (0.1 * math.log(4) + 1)),
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }
    scaled = Llama.from_config(translated(frequencies=[1.0, 8.0])).positions.rotation(torch.tensor([[0, 5]]))
    plain = Llama.from_config(translated()).positions.rotation(torch.tensor([[0, 5]]))
    cos = plain.cos[0, 0, 1].clone()
    cos[1::2] = (5 * torch.tensor(10_000.0) ** -0.5 / 8).cos()
    torch.testing.assert_close(scaled.cos[0, 0, 1], cos)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_relatives_equal_transformers(kind: str, tmp_path: Path) -> None:
    """Of random weights in full: names, biases, norms, the order of rows, scaled frequencies; as transformers reads."""
    transformers = pytest.importorskip("transformers")
    configs = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}
    more: dict[str, Any] = {"head_dim": 12} if kind == "qwen3" else {}
    if kind == "llama":
        more["rope_parameters"] = {
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
        more["attention_bias"] = True
    numbers = getattr(transformers, f"{configs[kind]}Config")(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        **more,
    )
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{configs[kind]}ForCausalLM")(numbers).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.3)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", kind)
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    if kind == "qwen3":
        writer.add_key_length(12)
        writer.add_value_length(12)
    names = {theirs: ours for ours, theirs in {**gguf_llama._LAYER, **gguf_llama._WHOLE}.items()}
    for name, parameter in theirs.named_parameters():
        path, _, leaf = name.rpartition(".")
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", path)
        values = parameter.detach().numpy()
        if kind == "llama" and path.endswith(("q_proj", "k_proj")):
            heads = 4 if path.endswith("q_proj") else 2
            values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        place = names[path] if layer is None else f"blk.{layer[1]}.{names[layer[2]]}"
        writer.add_tensor(f"{place}.{leaf}", np.ascontiguousarray(values))
    if kind == "llama":
        scaled = theirs.model.rotary_emb.inv_freq
        plain = 1.0 / 1e4 ** (torch.arange(0, 8, 2) / 8)
        writer.add_tensor("rope_freqs.weight", (plain / scaled).float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    stored = open_model(tmp_path)
    ours = getattr(llama1, configs[kind]).from_stored(stored)
    tokens = torch.randint(40, (2, 100))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


def test_other_architectures_are_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "bert")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(
        UnsupportedError, match="of the architecture 'bert'; of GGUF files are read 'llama', 'qwen2', 'qwen3'"
    ):
        open_model(tmp_path)


def test_a_model_without_its_table(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointFormatError, match=r"token_embd\.weight is missing"):
        open_model(tmp_path)


def test_a_tensor_that_is_named_in_two_ways(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_embedding_length(32)
    writer.add_head_count(2)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_context_length(8)
    writer.add_layer_norm_rms_eps(1e-5)
    for name in ("token_embd.weight", "output_norm.weight", "model.norm.weight"):
        writer.add_tensor(name, np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointFormatError, match="names a tensor in two ways"):
        open_model(tmp_path)


def test_unknown_tensors_keep_their_names_and_the_template_is_there(chat_file: Path) -> None:
    stored: StoredModel = open_model(chat_file)
    assert stored.chat_template is not None
    assert "<|im_start|>" in stored.chat_template
    for name in ("rope_freqs.weight", "blk.0.attn_sinks.weight", "blk.x.attn_q.weight", "output.bias"):
        assert gguf_llama.published_name(name) == name
    assert gguf_llama.published_name("blk.3.attn_q.bias") == "model.layers.3.self_attn.q_proj.bias"
