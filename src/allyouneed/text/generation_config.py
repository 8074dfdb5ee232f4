"""Which tokens begin, end and pad the texts of a model, as its checkpoint states them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .tokenizers import Tokenizer


@dataclass(frozen=True)
class GenerationConfig:
    """What a checkpoint says of generation; where it says nothing, nothing is taken for granted.

    Attributes:
        bos_token_id: begins a text; None where there is none.
        eos_token_ids: each of them ends a text; generation of text stops at them.
        pad_token_id: fills up rows; None where there is none.
        other: what else `generation_config.json` says, such as a temperature. It is kept to be written back, and no
            part of this library goes by it.

    Raises:
        ValueError: an id below 0.
    """

    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    other: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        ids = {"bos_token_id": (self.bos_token_id,), "eos_token_ids": self.eos_token_ids}
        for name, tokens in (ids | {"pad_token_id": (self.pad_token_id,)}).items():
            below = [token for token in tokens if token is not None and token < 0]
            if below:
                raise ValueError(f"{name} has the token {below[0]}: tokens are numbered from 0")

    def token_ids(self) -> dict[str, int | list[int]]:
        """Give what is stated in the keys of `config.json`: the ends as a number, or as a list where they are more."""
        ends: int | list[int] | None = list(self.eos_token_ids) or None
        if len(self.eos_token_ids) == 1:
            ends = self.eos_token_ids[0]
        entries = {"bos_token_id": self.bos_token_id, "eos_token_id": ends, "pad_token_id": self.pad_token_id}
        return {key: value for key, value in entries.items() if value is not None}


def end_tokens(model: Any, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Give the tokens that end a model's texts: those that its checkpoint states, and its tokenizer's.

    Args:
        model: any; what it states is its `generation`, where it has one. Tokens beyond its `vocabulary` never come.
        tokenizer: the model's.
    """
    stated = getattr(model, "generation", None)
    ours = stated.eos_token_ids if isinstance(stated, GenerationConfig) else ()
    known = getattr(model, "vocabulary", None) or math.inf
    return tuple(token for token in dict.fromkeys((*ours, *tokenizer.eos_token_ids)) if token < known)
