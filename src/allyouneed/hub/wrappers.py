"""Weights that were saved from inside a wrapper, under the names that they have without it.

Data parallelism puts `module.` before every name, `torch.compile` `_orig_mod.`, adapters `base_model.model.`, and a
larger model that holds this one the name by which it calls it.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import UnsupportedError
from .stored import QuantizedBlocks, StoredModel

# Parts of names that wrappers add wherever they stand, since they wrap single layers too.
_INNER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_ADAPTERS = (".lora_", ".base_layer.", ".modules_to_save.", ".ia3_", "prompt_encoder.")


def unwrapped(stored: StoredModel, expected: Iterable[str], prefix: str = "") -> StoredModel:
    """Give a checkpoint whose tensors have the names of the bare model; the same one where they have them already.

    Args:
        stored: as opened.
        expected: the names that the model looks for.
        prefix: with and without which it looks for them.

    Raises:
        UnsupportedError: an adapter's weights, which must be merged first; or two tensors that would have one name.
    """
    adapters = [name for name in stored.names() if any(part in f".{name}" for part in _ADAPTERS)]
    if adapters:
        raise UnsupportedError(
            f"{stored.source} has the weights of an adapter, such as {adapters[0]}: merge it into its model first, "
            "as peft's merge_and_unload does, and save that"
        )
    bare = {name: ".".join(part for part in name.split(".") if part not in _INNER) for name in stored.names()}
    known = {variant for name in expected for variant in _variants(name, prefix)}
    wrapper = _common_wrapper(bare.values(), known)
    names = {given.removeprefix(wrapper): name for name, given in bare.items()}
    if len(names) < len(bare):
        raise UnsupportedError(f"{stored.source} has weights twice, within {wrapper or 'a wrapper'} and outside of it")
    if all(name == given for given, name in names.items()):
        return stored
    return _Renamed(stored, names)


def _variants(name: str, prefix: str) -> tuple[str, ...]:
    if not prefix:
        return (name,)
    return name, name.removeprefix(prefix), prefix + name.removeprefix(prefix)


def _common_wrapper(names: Collection[str], known: Collection[str]) -> str:
    """Find what must be cut off for most names to be known; nothing where that is no better."""
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in known:
                found["".join(f"{part}." for part in parts[:start])] += 1
    # The shortest of those that are as good.
    return min(found, key=lambda wrapper: (-found[wrapper], len(wrapper)), default="")


class _Renamed(StoredModel):
    """A checkpoint under other names."""

    def __init__(self, stored: StoredModel, names: dict[str, str]):
        self._inner = stored
        self._names = names
        self.source, self.config, self.chat_template = stored.source, stored.config, stored.chat_template

    def names(self) -> Sequence[str]:
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._inner.shape(self._names[name])

    def dtype(self, name: str) -> torch.dtype:
        return self._inner.dtype(self._names[name])

    def blocks(self, name: str) -> QuantizedBlocks | None:
        return self._inner.blocks(self._names[name])

    def tokenizer(self) -> Any:
        return self._inner.tokenizer()

    def _portions(self, name: str) -> Iterator[tuple[slice | Tensor, Tensor]]:
        return self._inner._portions(self._names[name])
