"""Filling a model with linear layers in 8 or 4 bits, one at a time, so that it never stands in memory in full."""

import ctypes
import sys
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from allyouneed.nn import Int4Linear, Int8Linear, join_projections, tie_quantized
from allyouneed.nn.decoder import Decoder
from allyouneed.nn.stepping import step_quickly

from .errors import UnsupportedError
from .filling import Filling, fill
from .stored import QuantizedBlocks, StoredModel

Quantization = Literal["int8", "int4"]

_TABLE = "embedding.weight"


def fill_quantized(
    model: nn.Module, stored: StoredModel, fillings: Sequence[Filling], *, kind: Quantization, dtype: torch.dtype
) -> None:
    """Fill a model as `fill` does, and its linear layers and tied embedding table in few bits.

    `int8` takes layers that are stored in 8 or 5 bits (Q8_0, Q5_0) as they are, and rounds others to 8 bits. `int4`
    rounds nothing: layers that are stored in 4, 5 or 8 bits run in their own groups, and others, such as Q6_K, in full.

    Raises:
        UnsupportedError: `int4` of a checkpoint that has no layer in 4 bits.
        ValueError: a linear layer whose rows are no whole number of groups.
    """
    quantized = {
        filling.stored: filling for filling in fillings if all(_is_map(model, ours) for ours in filling.name.ours)
    }
    # Biases first: a quantised linear layer is made of weight and bias together.
    fill(model, stored, [filling for filling in fillings if filling.stored not in quantized], dtype=dtype, device="cpu")
    narrow = 0
    for filling in quantized.values():
        blocks = stored.blocks(filling.stored) if _is_plain(filling) else None
        if blocks is not None and (blocks.bits == 8 or kind == "int4"):
            narrow += blocks.bits == 4
            _put(model, filling.name.ours[0], _from_blocks(blocks, _bias(model, filling.name.ours[0])))
        elif kind == "int8":
            parts = filling.name.split(stored.read(filling.stored, torch.float32), filling.shapes)
            for ours, part in zip(filling.name.ours, parts, strict=True):
                _put(model, ours, Int8Linear.from_weight(part, _bias(model, ours)))
        else:
            fill(model, stored, [filling], dtype=dtype, device="cpu")
    if kind == "int4" and not narrow:
        raise UnsupportedError(
            f"{stored.source} has no linear layer in groups of 4 bits, which quantize='int4' would run as they are: "
            "load a GGUF file in Q4_0, Q4_1 or Q4_K, or choose quantize='int8'"
        )
    step_quickly(model)


def _return_freed_memory() -> None:
    """Hand what was freed back to the system: left alone, glibc keeps it in holes between what stays."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def _is_map(model: nn.Module, name: str) -> bool:
    """Tell whether a parameter is the weight of a linear layer, or a table that is one too."""
    parent, _, leaf = name.rpartition(".")
    return (leaf == "weight" and isinstance(model.get_submodule(parent), nn.Linear)) or _is_tied_table(model, name)


def _is_tied_table(model: nn.Module, name: str) -> bool:
    return name == _TABLE and isinstance(model, Decoder) and model.head is None


def _is_plain(filling: Filling) -> bool:
    return len(filling.name.ours) == 1 and not filling.name.transposed


def _bias(model: nn.Module, name: str) -> torch.Tensor | None:
    bias = getattr(model.get_submodule(name.rpartition(".")[0]), "bias", None)
    return None if bias is None else bias.detach()


def _from_blocks(blocks: QuantizedBlocks, bias: torch.Tensor | None) -> Int4Linear | Int8Linear:
    if blocks.bits == 4:
        return Int4Linear.from_blocks(blocks.quants, blocks.scale, blocks.minimum, bias)
    return Int8Linear.from_blocks(blocks.quants, blocks.scale, bias)


def _put(model: nn.Module, name: str, linear: Int4Linear | Int8Linear) -> None:
    if isinstance(model, Decoder) and _is_tied_table(model, name):
        tie_quantized(model, linear)
        return
    parent, _, child = name.rpartition(".")[0].rpartition(".")
    module = model.get_submodule(parent)
    setattr(module, child, linear)
    # As soon as its last part is there, and not at the end for all blocks: the peak stays low.
    join_projections(module)
    _return_freed_memory()
