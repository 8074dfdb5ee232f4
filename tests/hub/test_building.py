"""A configuration that asks for more than is stored is refused before it costs anything."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from allyouneed.hub import Pretrained, UnsupportedError
from allyouneed.papers.bert import Bert, BertConfig
from allyouneed.papers.gpt2 import GPT2, GPT2Config
from allyouneed.papers.llama1 import Llama, LlamaConfig
from allyouneed.papers.t5 import T5, T5Config

MODELS: dict[str, Any] = {
    "bert": lambda: Bert(BertConfig(vocabulary=50, width=16, layers=2, heads=2, hidden=16, positions=16)),
    "gpt2": lambda: GPT2(GPT2Config(vocabulary=50, positions=16, width=16, layers=2, heads=2)),
    "llama": lambda: Llama(LlamaConfig(50, 32, 2, 2, 64, context=64)),
    "t5": lambda: T5(T5Config(vocabulary=50, width=16, head_width=8, hidden=16, layers=2, heads=2)),
}
HOSTILE = {
    "bert": ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"],
    "gpt2": ["vocab_size", "n_embd", "n_layer", "n_head", "n_positions"],
    "llama": ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"],
    "t5": ["vocab_size", "d_model", "d_ff", "d_kv", "num_layers", "num_decoder_layers", "num_heads"],
}


@pytest.mark.parametrize("value", [100_000, 10**30])
@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in HOSTILE.items() for key in keys])
def test_what_is_out_of_all_proportion_is_named_at_once(kind: str, key: str, value: int, tmp_path: Path) -> None:
    model: Pretrained = MODELS[kind]()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    began = time.process_time()
    with pytest.raises(ValueError, match=f"{key}.* {value}|{value}.*{key}") as refused:
        type(model).from_pretrained(tmp_path)
    assert str(tmp_path) in str(refused.value) or "config.json" in str(refused.value)
    assert time.process_time() - began < 5


def test_layers_that_are_not_stored_are_missing_weights(tmp_path: Path) -> None:
    """A few more than there are is an ordinary mistake, and is told as one."""
    model = MODELS["gpt2"]()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_layer": 3}))
    with pytest.raises(ValueError, match=r"missing: .*h\.2\."):
        GPT2.from_pretrained(tmp_path)


def test_numbers_that_go_together_in_no_model_are_refused(tmp_path: Path) -> None:
    MODELS["gpt2"]().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_head": 3}))
    with pytest.raises(UnsupportedError, match=r"config\.json describes a model that cannot be built.*3"):
        GPT2.from_pretrained(tmp_path)
