"""Which class reads which architecture, and what a class says that was given another's checkpoint."""

import warnings
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from .config import refuse_unless
from .errors import UnsupportedError
from .stored import StoredModel

READERS: Mapping[str, str] = MappingProxyType(
    {
        "bert": "allyouneed.papers.bert:Bert",
        "gpt2": "allyouneed.papers.gpt2:GPT2",
        "gpt3": "allyouneed.papers.gpt3:GPT3",
        "llama": "allyouneed.papers.llama1:Llama",
        "mistral": "allyouneed.papers.llama1:Mistral",
        "mixtral": "allyouneed.papers.moe_explained:Mixtral",
        "openai-gpt": "allyouneed.papers.gpt1:GPT1",
        "qwen2": "allyouneed.papers.llama1:Qwen2",
        "qwen3": "allyouneed.papers.llama1:Qwen3",
        "rwkv": "allyouneed.papers.rwkv:Rwkv",
        "t5": "allyouneed.papers.t5:T5",
    }
)
"""By `config.json`'s `model_type`: a module, and a class in it that is `Pretrained`.

Names alone: nothing here imports them. These read text, with a tokenizer; the next ones have none.
"""

IMAGE_READERS: Mapping[str, str] = MappingProxyType({"vit": "allyouneed.papers.vit:Vit"})


def check_architecture(stored: StoredModel, reader: Any, base: Any) -> None:
    """Refuse a checkpoint that is not of an architecture that a class reads.

    Args:
        stored: the checkpoint.
        reader: the class.
        base: `Pretrained`, among whose subclasses one may be that reads it.

    Raises:
        UnsupportedError: another model type, a head that the class has not, or no word of either; named, with the class
            that reads it. Also what no class reads: quantised weights of other libraries, layers configured one by one,
            heads pruned away.
    """
    kind, heads = stored.config.get("model_type"), _heads(stored.config)
    types = reader.model_types
    if types and kind not in types and (kind is not None or not heads):
        called = f"a {', '.join(heads)}, " if heads else ""
        raise UnsupportedError(
            f"{stored.source} is {called}of model_type {kind!r}; {reader.__name__} reads the model_type "
            f"{' or '.join(map(repr, types))}{_whose(stored.config, reader, base)}"
        )
    if heads and not set(heads) & set(reader.architectures):
        raise UnsupportedError(
            f"{stored.source} is a {', '.join(heads)}; {reader.__name__} reads {', '.join(reader.architectures)}"
            f"{_whose(stored.config, reader, base)}"
        )
    for key in ("quantization_config", "per_layer_config", "pruned_heads"):
        refuse_unless(stored.config, key, (None, {}))


def architecture_of(config: Mapping[str, Any]) -> str:
    """Say what a configuration calls its model, for messages."""
    heads = _heads(config)
    return f"model_type {config.get('model_type')!r}" + (f" ({', '.join(heads)})" if heads else "")


def _heads(config: Mapping[str, Any]) -> list[str]:
    named = config.get("architectures")
    return list(map(str, named)) if isinstance(named, list) else []


def warn_of_head(stored: StoredModel, reader: Any, base: Any) -> None:
    """Warn where a class reads a checkpoint without its head, which another class has; that one is named.

    Args:
        stored: the checkpoint.
        reader: the class that reads it.
        base: `Pretrained`, among whose subclasses one may be that reads the head.
    """
    heads = set(_heads(stored.config))
    whole = [
        f"{other.__module__.rpartition('.')[0]}.{other.__name__}"
        for other in _descendants(base)
        if other is not reader
        and stored.config.get("model_type") in other.model_types
        and heads & {*other.architectures}
    ]
    if whole:
        warnings.warn(
            f"{stored.source} is a {', '.join(sorted(heads))}; {reader.__name__} reads it without its head, which "
            f"{' and '.join(whole)} {'has' if len(whole) == 1 else 'have'}",
            stacklevel=3,
        )


def _whose(config: Mapping[str, Any], refusing: Any, base: Any) -> str:
    """Name the classes that read a configuration: those that are imported, or else the one that `load` takes.

    The class that refuses it is none of them.
    """
    kind = config.get("model_type")
    heads = _heads(config)
    found = [
        f"{reader.__module__.rpartition('.')[0]}.{reader.__name__}"
        for reader in _descendants(base)
        if kind in reader.model_types and set(heads) & set(reader.architectures)
    ]
    usual = {**READERS, **IMAGE_READERS}.get(kind) if isinstance(kind, str) else None
    if usual is not None and not found and not usual.endswith(f":{refusing.__name__}"):
        found = [usual.replace(":", ".")]
    return f"; {' and '.join(dict.fromkeys(found))} {'reads' if len(found) == 1 else 'read'} it" if found else ""


def _descendants(base: Any) -> Iterator[Any]:
    for child in base.__subclasses__():
        if getattr(child, "architectures", None):
            yield child
        yield from _descendants(child)
