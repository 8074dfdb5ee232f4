"""How checkpoints state the scaling of rotary positions, and the parts that compute it."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from allyouneed.nn.rotary_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RotaryScaling,
    YarnScaling,
)

from .rotary import RotaryParameters

_ORIGINAL = {"original_max_position_embeddings": "original"}
_KINDS: Mapping[str, tuple[type[RotaryScaling], Mapping[str, str]]] = {
    "default": (RotaryScaling, {}),
    "linear": (LinearScaling, {"factor": "factor"}),
    "dynamic": (DynamicScaling, {"factor": "factor"}),
    "llama3": (
        Llama3Scaling,
        {
            "factor": "factor",
            "low_freq_factor": "low_frequency_factor",
            "high_freq_factor": "high_frequency_factor",
            **_ORIGINAL,
        },
    ),
    "yarn": (
        YarnScaling,
        {
            "factor": "factor",
            **_ORIGINAL,
            "attention_factor": "attention_factor",
            "beta_fast": "beta_fast",
            "beta_slow": "beta_slow",
            "mscale": "magnitude_scale",
            "mscale_all_dim": "magnitude_scale_all",
            "truncate": "truncate",
        },
    ),
    "longrope": (
        LongRopeScaling,
        {
            "short_factor": "short",
            "long_factor": "long",
            **_ORIGINAL,
            "factor": "factor",
            "attention_factor": "attention_factor",
        },
    ),
}

SCALINGS = tuple(_KINDS)
"""The kinds that `rotary_scaling` makes, as `rope_type` names them."""


def rotary_scaling(rotary: RotaryParameters, context: int) -> RotaryScaling:
    """Make the scaling that a configuration asks for.

    Args:
        rotary: what `read_rotary` read.
        context: the configuration's `max_position_embeddings`.

    Raises:
        UnsupportedError: a kind that there is no part for.
        ValueError: settings that do not fit together.
    """
    rotary.refuse_unless(SCALINGS, partial=True)
    kind, names = _KINDS[rotary.kind]
    settings: dict[str, Any] = {names[key]: value for key, value in rotary.settings.items()}
    if kind is DynamicScaling:
        settings["original"] = context
    return kind(**settings)


def scaling_entry(scaling: RotaryScaling) -> dict[str, Any] | None:
    """Describe a scaling as a configuration does, in `rope_scaling`; None where there is none.

    Raises:
        ValueError: a scaling that checkpoints have no words for.
    """
    for name, (kind, names) in _KINDS.items():
        if type(scaling) is kind:
            defaults = {field.name: field.default for field in fields(kind)}
            values = {key: getattr(scaling, ours) for key, ours in names.items()}
            entry = {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in values.items()
                if value is not None and not (value == defaults[names[key]] and key != "factor")
            }
            return {"rope_type": name, **entry} if names else None
    raise ValueError(f"{scaling!r} is none of the scalings that checkpoints describe: {', '.join(SCALINGS)}")
