"""Rotary positions of a configuration, in each spelling; the reference implementation is transformers' LlamaConfig."""

from typing import Any

import pytest
import transformers

from allyouneed.hub import UnsupportedError, read_rotary

LENGTHS = {"max_position_embeddings": 4096}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}
YARN = {
    "factor": 4,
    "original_max_position_embeddings": 1024,
    "attention_factor": 1.25,
    "beta_fast": 16,
    "beta_slow": 2.0,
    "mscale": 0.7,
    "mscale_all_dim": 0.5,
    "truncate": False,
}
LONG = {"short_factor": [1.0, 2], "long_factor": [3.0, 4.0], "original_max_position_embeddings": 1024, "factor": 4.0}
CONFIGS = {
    "nothing": {},
    "a base beside": {"rope_theta": 500_000},
    "a base inside rope_parameters": {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
    "a base inside rope_scaling": {"rope_scaling": {"rope_theta": 5e5, "rope_type": "default"}},
    "a base in both": {"rope_scaling": {"rope_theta": 5e5, "type": "default"}, "rope_theta": 500_000},
    "null entries": {"rope_parameters": None, "rope_scaling": None, "rope_theta": 5e5},
    "an empty entry": {"rope_parameters": {}, "rope_scaling": {"type": "linear", "factor": 2}},
    "linear, legacy": {"rope_scaling": {"type": "linear", "factor": 2}, "rope_theta": 5e5},
    "linear, legacy type in the new entry": {"rope_parameters": {"type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    "both types, equal": {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0}},
    "both entries, equal": {
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_parameters": {"type": "linear", "factor": 2.0},
    },
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "llama3": {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 5e5},
    "llama3, its length beside": {
        "rope_scaling": {"rope_type": "llama3", **{key: LLAMA3[key] for key in LLAMA3 if "max" not in key}},
        "original_max_position_embeddings": 512,
        "rope_theta": 5e5,
    },
    "yarn": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **YARN}},
    "yarn, no more than it needs": {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    "longrope": {"rope_scaling": {"type": "longrope", **LONG}},
    "partial": {"partial_rotary_factor": 0.5, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "partial inside": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_reads_what_the_reference_reads(name: str) -> None:
    config = {**CONFIGS[name], **LENGTHS}
    found = read_rotary(config)
    copied = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    built = transformers.LlamaConfig(**copied)
    # As it does when it computes frequencies, and only then takes what stands beside.
    built.standardize_rope_params()
    reference: dict[str, Any] = built.rope_parameters
    assert found.base == reference.pop("rope_theta")
    assert found.kind == reference.pop("rope_type")
    assert found.fraction == reference.pop("partial_rotary_factor", 1.0)
    reference.pop("type", None)
    assert {
        key: list(value) if isinstance(value, tuple) else value for key, value in found.settings.items()
    } == reference


def test_the_default_length_is_the_architectures() -> None:
    found = read_rotary({"rope_scaling": {"type": "yarn", "factor": 2.0}}, context=64)
    assert found.settings["original_max_position_embeddings"] == 64


def test_the_default_base_is_the_architectures() -> None:
    assert read_rotary({}, base=1e6).base == 1e6
    assert read_rotary({"rope_parameters": {"rope_type": "default"}}, base=1e6).base == 1e6


def test_yarn_and_longrope_find_their_factor_from_the_two_lengths() -> None:
    long = {key: value for key, value in LONG.items() if key != "factor"}
    for settings in (
        {"type": "yarn", "factor": None, "original_max_position_embeddings": 1024},
        {"type": "longrope", **long},
    ):
        assert read_rotary({**LENGTHS, "rope_scaling": settings}).settings["factor"] == 4.0


def test_scales_of_zero_say_nothing() -> None:
    found = read_rotary(
        {**LENGTHS, "rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.0}}
    )
    assert found.settings == {"factor": 4.0, "mscale": 1.0, "original_max_position_embeddings": 4096}


REFUSED = {
    "rope_scaling": {"rope_scaling": "linear"},
    "'mrope'": {"rope_scaling": {"type": "mrope"}},
    "rope_type 'linear' and the type 'yarn'": {"rope_scaling": {"type": "yarn", "rope_type": "linear", "factor": 2.0}},
    "rope_parameters is .* and rope_scaling is": {
        "rope_parameters": {"rope_theta": 5e5},
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "rope_theta is 10000.0 and rope_parameters.rope_theta": {
        "rope_theta": 10_000.0,
        "rope_parameters": {"rope_theta": 5e5},
    },
    "original_max_position_embeddings is 2 and": {
        "original_max_position_embeddings": 2,
        "rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4},
        **LENGTHS,
    },
    "no rope_scaling.factor": {"rope_scaling": {"type": "linear"}},
    "rope_scaling.factor is 'two'": {"rope_scaling": {"type": "linear", "factor": "two"}},
    "rope_scaling.factor is 0.0; it must be above 0": {"rope_scaling": {"type": "linear", "factor": 0}},
    "rope_theta is 0.0; it must be above 0": {"rope_theta": 0},
    "no max_position_embeddings": {"rope_scaling": {"type": "yarn", "factor": 2.0}},
    "rope_scaling.beta_fast is 32; of the rope_type 'linear' are read": {
        "rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 32}
    },
    "rope_parameters.full_attention": {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
    "partial_rotary_factor is 1.5": {"partial_rotary_factor": 1.5},
    "long_factor is 'x'": {"rope_scaling": {"type": "longrope", **LONG, "long_factor": "x"}, **LENGTHS},
    "truncate is 1; it must be of type bool": {
        "rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": 1},
        **LENGTHS,
    },
}


@pytest.mark.parametrize("words", REFUSED)
def test_refusals_name_the_place_and_the_value(words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        read_rotary(REFUSED[words])


def test_a_model_refuses_what_it_cannot_compute() -> None:
    scaled = read_rotary({"rope_scaling": {"type": "linear", "factor": 2.0}})
    scaled.refuse_unless(("default", "linear"))
    with pytest.raises(UnsupportedError, match="rope_scaling has the rope_type 'linear'; only 'default'"):
        scaled.refuse_unless()
    partial = read_rotary({"partial_rotary_factor": 0.5})
    partial.refuse_unless(partial=True)
    with pytest.raises(UnsupportedError, match=r"partial_rotary_factor .* is 0\.5; only 1\.0"):
        partial.refuse_unless()
