"""Every key of the reference's configurations that changes numbers is read, or refused by name.

Of each architecture all keys are tried that the class of its configuration in transformers has, that the class maps to
others, or that the model asks its configuration for: each is given another value, and either the logits are those that
transformers computes from the same folder, or the key is named in a refusal. A key that a later version adds is tried
too, and fails until its other value, or why it changes nothing, is written here.
"""

import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from allyouneed.hub import UnsupportedError, WeightsError

TOKENS = torch.tensor([[5, 9, 2, 30, 11, 7, 19, 3], [1, 4, 4, 6, 21, 33, 2, 8]])
TARGETS = torch.tensor([[0, 3, 17, 9], [0, 12, 5, 8]])
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOLERANCE = 2e-4

# Values that any configuration takes; keys that change no number, and why, follow.
COMMON: Mapping[str, list[Any]] = {
    "vocab_size": [53],
    # None that could be compared: two are checked by themselves, with the others the reference gives no logits.
    "architectures": [],
    "model_type": [],
    "return_dict": [],
    "output_attentions": [],
    "dtype": ["float32"],
    "transformers_version": ["4.0.0"],
    "_name_or_path": ["elsewhere"],
    "id2label": [{"0": "a", "1": "b", "2": "c"}],
    "label2id": [{"a": 0, "b": 1, "c": 2}],
    "num_labels": [3],
    "problem_type": ["regression"],
    "bos_token_id": [3],
    "eos_token_id": [3],
    "pad_token_id": [3],
    "chunk_size_feed_forward": [2],
    "initializer_range": [0.3],
    "per_layer_config": [{"0": {"hidden_act": "relu"}}],
    "quantization_config": [{"quant_method": "gptq", "bits": 4}],
}
WHAT_IS_SAID_OF_IT = "it says what the folder is, and is checked by itself"
NOTHING: Mapping[str, str] = {
    "architectures": WHAT_IS_SAID_OF_IT,
    "model_type": WHAT_IS_SAID_OF_IT,
    "dtype": "the type in which transformers computes; ours is that of the stored weights, or the one asked for",
    "transformers_version": "who wrote the file",
    "_name_or_path": "where it came from",
    "output_hidden_states": "what transformers returns beside the logits",
    "output_attentions": "what transformers returns beside the logits",
    "return_dict": "how transformers returns it",
    "use_cache": "whether transformers returns its cache",
    "chunk_size_feed_forward": "how much of a feed-forward layer transformers computes at a time",
    "is_encoder_decoder": "which cache transformers makes",
    "bos_token_id": "a token's number, for generation",
    "eos_token_id": "a token's number, for generation",
    "pad_token_id": "a token's number, for padding",
    "initializer_range": "of new weights, not of loaded ones",
    "id2label": "names for a head that this model has not",
    "label2id": "names for a head that this model has not",
    "num_labels": "for a head that this model has not",
    "problem_type": "a loss for a head that this model has not",
}
# Written into the file alone: the reference's own classes take no such value.
RAW = ("per_layer_config", "quantization_config", "add_cross_attention", "dtype", "num_labels")
SUMMARY = dict.fromkeys(
    ["summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"],
    "for the head that chooses among options",
)
SUMMARY_VALUES: Mapping[str, list[Any]] = {
    "summary_type": ["mean"],
    "summary_activation": ["tanh"],
    "summary_first_dropout": [0.3],
}
NOT_ITS_HEAD = "for a head that this model has not"
LONGEST = "the longest sequence that is read"
LABELS = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
# Other spellings of the same function.
SPELLINGS = ("swish", "gelu_fast", "gelu_pytorch_tanh")


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture: what reads it here and there, and the other values of its keys.

    Attributes:
        reader: our class.
        theirs: the reference's.
        base: sizes of a small model.
        values: other values of its keys, beside those of `COMMON` and those that follow from a value's type.
        nothing: keys that change no logits, and why.
        refused: those of them that are refused all the same, and why.
        training: keys that count in training alone, and the field of our configuration that holds each.
        more: keys that neither the configuration's class nor the model names.
        only: of a head, the keys that concern it; all where None.
        words: what a refusal says in place of the key.
        run: give a model's output; by default, from tokens.
    """

    reader: str
    theirs: str
    base: Mapping[str, Any]
    values: Mapping[str, list[Any]]
    nothing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    training: Mapping[str, str] = dataclasses.field(default_factory=dict)
    more: Mapping[str, list[Any]] = dataclasses.field(default_factory=dict)
    only: tuple[str, ...] | None = None
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)
    run: Callable[[Any], Any] = lambda model: model(TOKENS)

    def configuration(self) -> Any:
        return getattr(transformers, self.theirs).config_class

    def known_keys(self) -> list[str]:
        """Give all keys that the reference has, maps to others, or asks for."""
        kind = self.configuration()
        model = inspect.getsource(inspect.getmodule(getattr(transformers, self.theirs)))  # pyright: ignore
        asked = re.findall(r'(?:getattr|hasattr)\(\s*(?:self\.)?config,\s*"(\w+)"', model)
        own = dict.fromkeys(
            [
                *(field.name for field in dataclasses.fields(kind)),
                *kind.attribute_map,
                *kind(**self.base).to_dict(),
                *asked,
                *self.more,
                "num_labels",
                "per_layer_config",
                "quantization_config",
            ]
        )
        return [key for key in own if self.only is None or key in self.only]

    def others(self, key: str) -> list[Any] | None:
        """Give other values of a key; None where no one has said any."""
        kind = self.configuration()
        value = kind(**self.base).to_dict().get(key)
        for values in (self.values, self.more, COMMON):
            if key in values:
                return [other for other in values[key] if other != value]
        canonical = kind.attribute_map.get(key)
        if canonical is not None:
            return self.others(canonical)
        if isinstance(value, bool):
            return [not value]
        return None


def images(model: Any) -> torch.Tensor:
    """Give images with the channels that a model takes."""
    config = model.config if hasattr(model, "config") else model.vit.config
    return IMAGES[:, : getattr(config, "num_channels", 0) or config.channels]


def pooled(model: Any) -> torch.Tensor:
    """Give the vectors that stand for images."""
    found = model(images(model))
    return found.pooler_output if hasattr(found, "pooler_output") else model.pooled(found)


DECODER = {"vocab_size": 61, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 4}
GPT_VALUES = {
    "n_positions": [12],
    "n_embd": [24],
    "n_layer": [3],
    "n_head": [2],
    "layer_norm_epsilon": [0.5],
    "resid_pdrop": [0.3],
    "embd_pdrop": [0.3],
    "attn_pdrop": [0.3],
    **SUMMARY_VALUES,
}
GPT_TRAINING = {
    "resid_pdrop": "residual_dropout",
    "embd_pdrop": "embedding_dropout",
    "attn_pdrop": "attention_dropout",
}
ACTIVATIONS = ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "tanh", "mish"]
ENCODER = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
BERT_VALUES = {
    "hidden_size": [24],
    "num_hidden_layers": [3],
    "num_attention_heads": [2],
    "intermediate_size": [20],
    "hidden_act": ACTIVATIONS,
    "hidden_dropout_prob": [0.3],
    "attention_probs_dropout_prob": [0.3],
    "max_position_embeddings": [12],
    "type_vocab_size": [3],
    "layer_norm_eps": [0.5],
    "classifier_dropout": [0.3],
    "embedding_size": [8],
}
DROPOUTS = {"hidden_dropout_prob": "dropout", "attention_probs_dropout_prob": "attention_dropout"}
LLAMA = {**ENCODER, "num_key_value_heads": 2, "max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 20.0}
ROTARY = {
    "rope_parameters": [{"rope_type": "default", "rope_theta": 20.0}, LINEAR, {**LINEAR, "type": "linear"}],
    "rope_scaling": [{"rope_type": "default", "rope_theta": 20.0}, LINEAR, {"type": "yarn", "factor": 2.0}],
    "rope_theta": [20.0],
}
LLAMA_VALUES = {
    "hidden_size": [24],
    "num_hidden_layers": [3],
    "num_attention_heads": [2],
    "num_key_value_heads": [4],
    "intermediate_size": [20],
    "hidden_act": ["gelu", "relu", "swish"],
    "max_position_embeddings": [32],
    "rms_norm_eps": [0.5],
    "attention_dropout": [0.3],
    "head_dim": [8],
    "pretraining_tp": [2],
    "sliding_window": [4],
    "original_max_position_embeddings": [8],
    "partial_rotary_factor": [0.5],
    **ROTARY,
}
QWEN_VALUES = {
    **LLAMA_VALUES,
    "layer_types": [["full_attention", "sliding_attention"]],
    "max_window_layers": [1],
}
QWEN_NOTHING = {
    "max_position_embeddings": LONGEST,
    "max_window_layers": "where windows begin, of which there are none",
    "sliding_window": "how wide windows are, of which there are none",
    "use_sliding_window": "whether there are windows, whose width the configuration leaves out",
}
T5 = {"vocab_size": 61, "d_model": 12, "d_kv": 5, "d_ff": 20, "num_layers": 2, "num_heads": 3}
T5_VALUES = {
    "d_model": [16],
    "d_kv": [4],
    "d_ff": [24],
    "num_layers": [1],
    "num_decoder_layers": [1],
    "num_heads": [2],
    "relative_attention_num_buckets": [4],
    "relative_attention_max_distance": [5],
    "dropout_rate": [0.3],
    "layer_norm_epsilon": [0.5],
    "initializer_factor": [2.0],
    "feed_forward_proj": ["relu", "gelu", "gated-gelu", "gated-silu", "gated-relu", "gated-mish"],
    "dense_act_fn": ACTIVATIONS,
    "classifier_dropout": [0.3],
    "eos_token_id": [3],
    "decoder_start_token_id": [3],
}
T5_FAMILY = Family(
    "t5:T5",
    "T5ForConditionalGeneration",
    {**T5, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 9, "decoder_start_token_id": 0},
    T5_VALUES,
    {
        "initializer_factor": "of new weights, not of loaded ones",
        "classifier_dropout": "for heads that this model has not",
        "is_decoder": "the reference sets it for each of the two stacks",
    },
    refused={
        "is_encoder_decoder": "one of the two stacks alone is not read here",
        "pad_token_id": "targets begin with it",
    },
    training={"dropout_rate": "dropout"},
    more={"decoder_start_token_id": [3]},
    words={"tie_word_embeddings": "lm_head", "scale_decoder_outputs": "lm_head"},
    run=lambda model: (
        model(TOKENS, TARGETS)
        if not isinstance(model, transformers.PreTrainedModel)
        else model(TOKENS, decoder_input_ids=TARGETS)
    ),
)
VIT = {
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 3,
    **{key: ENCODER[key] for key in ENCODER if key not in ("vocab_size", "max_position_embeddings")},
}
VIT_VALUES = {
    **{key: value for key, value in BERT_VALUES.items() if key != "classifier_dropout"},
    "image_size": [[8, 8], [8, 4]],
    "patch_size": [2, [4, 4]],
    "num_channels": [1],
    "encoder_stride": [8],
    "pooler_output_size": [24],
    "pooler_act": ["relu"],
    "head_dim": [8],
}
FAMILIES = {
    "gpt1": Family(
        "gpt1:GPT1",
        "OpenAIGPTLMHeadModel",
        DECODER,
        {**GPT_VALUES, "afn": ["gelu", "relu", "silu", "swish"], "summary_last_dropout": [0.3]},
        {**SUMMARY, "summary_last_dropout": NOT_ITS_HEAD},
        training=GPT_TRAINING,
    ),
    "gpt1, a classifier": Family(
        "gpt1.fine_tuning:Classifier",
        "OpenAIGPTForSequenceClassification",
        {**DECODER, **LABELS, "pad_token_id": 0},
        {"num_labels": [4], "pad_token_id": [8], "problem_type": ["regression", "multi_label_classification"]},
        only=("id2label", "num_labels", "problem_type", "pad_token_id"),
        run=lambda model: model(TOKENS if isinstance(model, transformers.PreTrainedModel) else TOKENS[:, None]),
    ),
    "gpt2": Family(
        "gpt2:GPT2",
        "GPT2LMHeadModel",
        DECODER,
        {
            **GPT_VALUES,
            "n_inner": [20],
            "activation_function": ACTIVATIONS,
            "classifier_dropout": [0.3],
            "hidden_dropout": [0.3],
            "summary_last_dropout": [0.3],
        },
        {
            **SUMMARY,
            "summary_last_dropout": NOT_ITS_HEAD,
            "classifier_dropout": NOT_ITS_HEAD,
            "hidden_dropout": NOT_ITS_HEAD,
            "reorder_and_upcast_attn": "in which order scores are scaled, and in how many bits",
            "tie_word_embeddings": "the reference takes the head that a file has, tied or not",
        },
        training=GPT_TRAINING,
    ),
    "bert": Family(
        "bert:Bert",
        "BertModel",
        ENCODER,
        BERT_VALUES,
        {
            "classifier_dropout": NOT_ITS_HEAD,
            "tie_word_embeddings": NOT_ITS_HEAD,
            "embedding_size": "the reference looks for the key, not for its value",
        },
        training=DROPOUTS,
        more={"position_embedding_type": ["relative_key"]},
    ),
    "bert, masked": Family(
        "bert:MaskedLanguageModel",
        "BertForMaskedLM",
        ENCODER,
        BERT_VALUES,
        only=("tie_word_embeddings", "hidden_act", "layer_norm_eps"),
    ),
    "bert, a classifier": Family(
        "bert:SentenceClassifier",
        "BertForSequenceClassification",
        {**ENCODER, **LABELS},
        {**BERT_VALUES, "num_labels": [4], "problem_type": ["regression", "multi_label_classification"]},
        {"problem_type": "what the logits are for"},
        training={"classifier_dropout": "classifier_dropout"},
        only=("id2label", "num_labels", "problem_type", "classifier_dropout"),
    ),
    "bert, spans": Family(
        "bert:SpanFinder",
        "BertForQuestionAnswering",
        ENCODER,
        {**BERT_VALUES, "num_labels": [3]},
        only=("id2label", "num_labels"),
        run=lambda model: (
            torch.stack(tuple(model(TOKENS).values())[:2])
            if isinstance(model, transformers.PreTrainedModel)
            else torch.stack(model(TOKENS))
        ),
    ),
    "t5": T5_FAMILY,
    "t5 1.1": dataclasses.replace(
        T5_FAMILY,
        base={**T5_FAMILY.base, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        nothing={**T5_FAMILY.nothing, "tie_word_embeddings": "beside scale_decoder_outputs it says nothing"},
    ),
    "rwkv": Family(
        "rwkv:Rwkv",
        "RwkvForCausalLM",
        {"vocab_size": 61, "context_length": 16, "hidden_size": 16, "num_hidden_layers": 4, "rescale_every": 0},
        {
            "context_length": [12],
            "hidden_size": [24],
            "num_hidden_layers": [3],
            # The reference cannot compute with another than the width.
            "attention_hidden_size": [],
            "intermediate_size": [20],
            "layer_norm_epsilon": [0.5],
            "rescale_every": [2, -1],
        },
        {
            "context_length": "how long a sequence the reference's compiled kernel has room for",
            "max_position_embeddings": "how long a sequence the reference's compiled kernel has room for",
            "rescale_every": "whether hidden states are halved now and then, which the norms undo",
        },
    ),
    "mixtral": Family(
        "moe_explained:Mixtral",
        "MixtralForCausalLM",
        {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
        {
            **LLAMA_VALUES,
            "num_local_experts": [3],
            "num_experts_per_tok": [1, 3],
            "router_aux_loss_coef": [0.3],
            "router_jitter_noise": [0.3],
        },
        {
            "max_position_embeddings": LONGEST,
            "output_router_logits": "what the reference returns beside the logits",
            "router_aux_loss_coef": "of a loss",
        },
        more={key: LLAMA_VALUES[key] for key in ("rope_scaling", "rope_theta", "partial_rotary_factor")},
    ),
    "llama": Family(
        "llama1:Llama",
        "LlamaForCausalLM",
        LLAMA,
        {**LLAMA_VALUES, "num_key_value_heads": [4, None]},
        {"pretraining_tp": "how many devices it was trained on", "max_position_embeddings": LONGEST},
        more={key: LLAMA_VALUES[key] for key in ("rope_scaling", "rope_theta", "partial_rotary_factor")},
    ),
    "mistral": Family(
        "llama1:Mistral",
        "MistralForCausalLM",
        {**LLAMA, "sliding_window": None},
        LLAMA_VALUES,
        {"max_position_embeddings": LONGEST},
        more={key: LLAMA_VALUES[key] for key in ("rope_scaling", "rope_theta", "partial_rotary_factor")},
    ),
    "qwen2": Family(
        "llama1:Qwen2",
        "Qwen2ForCausalLM",
        LLAMA,
        QWEN_VALUES,
        QWEN_NOTHING,
        more={key: LLAMA_VALUES[key] for key in ("rope_scaling", "rope_theta", "partial_rotary_factor")},
    ),
    "qwen3": Family(
        "llama1:Qwen3",
        "Qwen3ForCausalLM",
        {**LLAMA, "head_dim": 6},
        QWEN_VALUES,
        QWEN_NOTHING,
        more={key: LLAMA_VALUES[key] for key in ("rope_scaling", "rope_theta", "partial_rotary_factor")},
    ),
    "vit": Family(
        "vit:Vit",
        "ViTModel",
        VIT,
        VIT_VALUES,
        {
            "encoder_stride": NOT_ITS_HEAD,
        },
        training=DROPOUTS,
        run=lambda model: pooled(model),
    ),
    "vit, a classifier": Family(
        "vit:ImageClassifier",
        "ViTForImageClassification",
        {**VIT, **LABELS},
        {**VIT_VALUES, "num_labels": [4], "problem_type": ["regression"]},
        {"problem_type": "what the logits are for"},
        only=("id2label", "num_labels", "problem_type"),
        run=lambda model: model(images(model)),
    ),
}


def cases() -> Iterator[Any]:
    """Give each key of each family with each of its other values; once where no one has said any."""
    for name, family in FAMILIES.items():
        for key in family.known_keys():
            others = family.others(key)
            for place in range(1 if others is None else len(others)):
                yield pytest.param(name, key, place, id=f"{name}-{key}" + (f"-{place}" if place else ""))


def saved(family: Family, key: str, value: Any, folder: Path) -> dict[str, Any]:
    """Write a model of the reference whose configuration has another value of a key; give that of the base."""
    kind = family.configuration()
    base = kind(**family.base)
    raw = key in RAW or key in family.more
    torch.manual_seed(0)
    config = base if raw else kind(**{**family.base, key: value})
    model = getattr(transformers, family.theirs)(config)
    if base.to_dict().get("scale_decoder_outputs") is False:
        # The reference ties even those that version 1.1 has apart.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.3
    model.save_pretrained(folder)
    path = folder / "config.json"
    written = json.loads(path.read_text())
    written.pop(kind.attribute_map.get(key), None)
    if key in ROTARY:
        # As older and newer versions write them, which stand side by side in no file.
        written = {name: given for name, given in written.items() if name not in ROTARY}
    path.write_text(json.dumps({**written, key: value}, default=str))
    return json.loads(json.dumps({**base.to_dict(), **family.base}, default=str))


def output(model: Any, family: Family) -> torch.Tensor:
    with torch.no_grad():
        found = family.run(model.eval())
    if isinstance(found, torch.Tensor):
        return found
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


def reference(family: Family, folder: Path) -> torch.Tensor:
    kind = getattr(transformers, family.theirs)
    return output(kind.from_pretrained(folder, dtype=torch.float32), family)


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= TOLERANCE * theirs.std())


def without_the_change(family: Family, config: dict[str, Any], folder: Path) -> torch.Tensor | None:
    """Give what the reference computes with the same weights and the key at its base value; None if they do not fit."""
    (folder / "config.json").write_text(json.dumps(config))
    try:
        return reference(family, folder)
    except (RuntimeError, ValueError, IndexError):
        return None


@pytest.mark.parametrize(("name", "key", "place"), list(cases()))
def test_a_key_is_read_or_refused_by_name(name: str, key: str, place: int, tmp_path: Path) -> None:
    family = FAMILIES[name]
    others = family.others(key)
    assert others, f"the reference has {key}, of which no other value is known here: say one, or why it changes nothing"
    base = saved(family, key, others[place], tmp_path)
    nothing = {**(NOTHING if family.only is None else {}), **family.nothing}
    module, _, reader = family.reader.partition(":")
    kind = getattr(importlib.import_module(f"allyouneed.papers.{module}"), reader)
    try:
        model = kind.from_pretrained(tmp_path)
    except (UnsupportedError, WeightsError) as refusal:
        assert family.words.get(key, key) in str(refusal) or family.configuration().attribute_map.get(key) in str(
            refusal
        )
        assert key not in nothing or key in family.refused
        return
    theirs = reference(family, tmp_path)
    assert same(output(model, family), theirs)
    before = without_the_change(family, base, tmp_path)
    changes = before is None or not same(before, theirs)
    if key in family.training:
        assert getattr(getattr(model, "bert", model).config, family.training[key]) == others[place]
    else:
        said = key in nothing or others[place] in SPELLINGS
        assert changes != said or (changes and others[place] in SPELLINGS), (
            "what changes numbers and what does not must be told apart in this file"
        )
