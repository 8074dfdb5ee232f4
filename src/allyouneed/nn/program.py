"""Writes a decoder's layers down as instructions: each part that is known, by its class; no others."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, fused_attention
from .blocks import Block, PostNorm, PreNorm
from .decoder import Decoder
from .feed_forward import FeedForward, GatedFeedForward
from .inference import InferenceLinear
from .instructions import Instruction, Kind
from .normalisation import RMSNorm
from .quantized import Int4Linear, Int8Linear
from .stepping import SteppingBlock


class UnknownPartError(ValueError):
    """A part of a model that there are no instructions for; the message names it."""


@dataclass(frozen=True)
class Program:
    """A decoder's layers, written down.

    Attributes:
        instructions: in order.
        widths: of the buffers that they use; the first is the residual stream.
        key_value_heads: of each attention layer.
        head_width: of each head.
        kept: tensors that they read and that nothing else may hold.
        sources: modules, with names and addresses of the parameters that are read where they lie.
    """

    instructions: "ctypes.Array[Instruction]"
    widths: tuple[int, ...]
    key_value_heads: int
    head_width: int
    kept: tuple[Tensor | None, ...]
    sources: tuple[tuple[nn.Module, str, int], ...]


_Place = tuple[int, int]
"""A buffer's number, and how many of a token's floats come first."""

_STREAM: _Place = (0, 0)

# What instructions know of each class: were there more in a module, they would compute something else.
_PARTS = {
    Attention: {
        *("heads", "key_value_heads", "head_width", "dropout", "kernel"),
        *("query", "key", "value", "output", "joint", "query_norm", "key_norm", "window"),
    },
    FeedForward: {"inner", "output", "activation"},
    GatedFeedForward: {"gate", "inner", "output", "activation", "joint"},
    PreNorm: {"norm", "sublayer", "dropout"},
    PostNorm: {"norm", "sublayer", "dropout"},
    Block: {"attention", "feed_forward"},
    SteppingBlock: {"attention", "feed_forward"},
}

_ACTIVATIONS = ("silu", "relu", "gelu", "gelu_tanh")


class Writer:
    """Goes through a decoder, and writes an instruction for each of its parts.

    Args:
        decoder: it is not changed.

    Raises:
        UnknownPartError: a part without an instruction.
    """

    def __init__(self, decoder: Decoder):
        if type(decoder).hidden is not Decoder.hidden:
            raise UnknownPartError(f"{type(decoder).__name__} computes its layers in a way of its own")
        self._buffers: dict[tuple[str, int], int] = {("stream", decoder.embedding.weight.shape[1]): 0}
        # Not made at once: weights in few bits are laid out anew only when all parts are known.
        self._written: list[Callable[[], Instruction]] = []
        self._sources: list[tuple[nn.Module, str]] = []
        self._heads: set[tuple[int, int]] = set()
        self._kept: list[Tensor | None] = []
        for number, block in enumerate(decoder.blocks):
            self._block(f"blocks.{number}", block, number)
        if len(self._heads) > 1:
            raise UnknownPartError("its attention layers have different heads")

    def program(self) -> Program:
        """Make the instructions."""
        made = [make() for make in self._written]
        ((key_value_heads, head_width),) = self._heads
        return Program(
            (Instruction * len(made))(*made),
            tuple(width for _, width in self._buffers),
            key_value_heads,
            head_width,
            tuple(self._kept),
            tuple((module, name, module._parameters[name].data_ptr()) for module, name in self._sources),  # pyright: ignore[reportOptionalMemberAccess]
        )

    def _block(self, path: str, block: Any, number: int) -> None:
        _expect(path, block, Block, SteppingBlock)
        self._residual(f"{path}.attention", block.attention, partial(self._attention, number))
        self._residual(f"{path}.feed_forward", block.feed_forward, self._feed_forward)

    def _residual(self, path: str, residual: Any, sublayer: Callable[[str, Any, _Place], None]) -> None:
        """Write a residual: its sublayer adds what it gives to the stream."""
        _expect(path, residual, PreNorm, PostNorm)
        if isinstance(residual, PostNorm):
            sublayer(f"{path}.sublayer", residual.sublayer, _STREAM)
            self._norm(f"{path}.norm", residual.norm, _STREAM)
        else:
            normed = self._buffer("normed", self._width)
            self._norm(f"{path}.norm", residual.norm, normed)
            sublayer(f"{path}.sublayer", residual.sublayer, normed)

    def _norm(self, path: str, norm: Any, target: _Place) -> None:
        _expect(path, norm, RMSNorm, nn.LayerNorm)
        self._write_norm(path, norm, _STREAM, target, self._width, 1)

    def _write_norm(self, path: str, norm: Any, source: _Place, target: _Place, width: int, count: int) -> None:
        """Write a norm of some vectors that follow one another."""
        if norm.weight is None or norm.weight.shape != (width,):
            raise UnknownPartError(f"{path} has no weight for each of {width} coordinates")
        rms = isinstance(norm, RMSNorm)
        data = [self._parameter(path, norm, name) for name in (("weight",) if rms else ("weight", "bias"))]
        kind, epsilon = (Kind.RMS_NORM, norm.epsilon) if rms else (Kind.LAYER_NORM, norm.eps)
        self._write(kind, source, target, (width, count), data, epsilon)

    def _attention(self, number: int, path: str, layer: Any, source: _Place) -> None:
        _expect(path, layer, Attention)
        if layer.kernel is not fused_attention:
            raise UnknownPartError(f"{path} has a kernel of its own")
        if layer.window is not None:
            raise UnknownPartError(f"{path} has a window")
        heads, shared, width = layer.heads, layer.key_value_heads, layer.head_width
        self._heads.add((shared, width))
        projected = self._buffer("projected", (heads + 2 * shared) * width)
        if layer.joint is not None:
            self._linear(f"{path}.joint", layer.joint, source, projected)
        else:
            for name, first in (("query", 0), ("key", heads), ("value", heads + shared)):
                self._linear(f"{path}.{name}", getattr(layer, name), source, (projected[0], first * width))
        for name, first, count in (("query_norm", 0, heads), ("key_norm", heads, shared)):
            if (norm := getattr(layer, name)) is not None:
                _expect(f"{path}.{name}", norm, RMSNorm)
                place = (projected[0], first * width)
                self._write_norm(f"{path}.{name}", norm, place, place, width, count)
        self._write(Kind.ROTATE, projected, projected, (heads, shared, width))
        mixed = self._buffer("mixed", heads * width)
        self._write(Kind.ATTEND, projected, mixed, (heads, shared, width, number))
        self._linear(f"{path}.output", layer.output, mixed, _STREAM, add=True)

    def _feed_forward(self, path: str, layer: Any, source: _Place) -> None:
        _expect(path, layer, FeedForward, GatedFeedForward)
        activation = _ACTIVATIONS.index(_activation(path, layer.activation))
        hidden = layer.output.in_features
        activated = self._buffer("activated", hidden)
        gated = isinstance(layer, GatedFeedForward)
        inner = self._buffer("inner", hidden * (1 + gated))
        if not gated:
            self._linear(f"{path}.inner", layer.inner, source, inner)
        elif layer.joint is not None:
            self._linear(f"{path}.joint", layer.joint, source, inner)
        else:
            self._linear(f"{path}.gate", layer.gate, source, inner)
            self._linear(f"{path}.inner", layer.inner, source, (inner[0], hidden))
        self._write(Kind.ACTIVATE, inner, activated, (hidden, activation, int(gated)))
        self._linear(f"{path}.output", layer.output, activated, _STREAM, add=True)

    def _linear(self, path: str, linear: Any, source: _Place, target: _Place, *, add: bool = False) -> None:
        _expect(path, linear, nn.Linear, InferenceLinear, Int4Linear, Int8Linear)
        if isinstance(linear, (Int4Linear, Int8Linear)):
            # In 32 bits, contiguous, and for as long as the instructions.
            bias = None if linear.bias is None else linear.bias.float().contiguous()
            self._kept.append(bias)
            self._written.append(lambda: linear.use_tiles().instruction(source, target, bias=bias, add=add))
            return
        by_rows = linear.weight.is_contiguous()
        if not by_rows and not linear.weight.t().is_contiguous():
            raise UnknownPartError(f"{path} has a weight that is not contiguous")
        data = [self._parameter(path, linear, "weight", any_order=True), self._parameter(path, linear, "bias")]
        kind = Kind.LINEAR_BY_ROWS if by_rows else Kind.LINEAR_BY_COLUMNS
        self._write(kind, source, target, (linear.out_features, linear.in_features, int(add)), data)

    def _write(
        self,
        kind: Kind,
        source: _Place,
        target: _Place,
        size: tuple[int, ...],
        data: list[int | None] | None = None,
        number: float = 0.0,
    ) -> None:
        padded = [*(data or ()), None, None][:2]
        self._written.append(
            lambda: Instruction(kind, *source, *target, (*size, *[0] * (4 - len(size))), tuple(padded), number)
        )

    def _parameter(self, path: str, module: nn.Module, name: str, *, any_order: bool = False) -> int | None:
        """Give the address of a parameter, and remember where it is from."""
        weight: Tensor | None = module._parameters[name]
        if weight is None:
            return None
        if weight.dtype != torch.float32 or not weight.is_cpu or not (any_order or weight.is_contiguous()):
            kind = f"{weight.dtype} on {weight.device}".removeprefix("torch.")
            raise UnknownPartError(f"{path}.{name} is {kind}; weights must be float32 on cpu, or in 8 or 4 bits")
        self._sources.append((module, name))
        return weight.data_ptr()

    def _buffer(self, name: str, width: int) -> _Place:
        return self._buffers.setdefault((name, width), len(self._buffers)), 0

    @property
    def _width(self) -> int:
        return next(iter(self._buffers))[1]


def _expect(path: str, module: Any, *classes: type) -> None:
    """Make sure that a module is of a class that is known, and has nothing that is not.

    Raises:
        UnknownPartError: another class, or parts that its class did not have when this was written.
    """
    if type(module) not in classes:
        raise UnknownPartError(f"{path} is a {type(module).__name__}")
    known = _PARTS.get(type(module))
    if known is None:
        return
    own = {name for name in vars(module) if not name.startswith("_") and name != "training"}
    unknown = sorted((own | set(module._modules) | set(module._parameters)) - known)
    if unknown:
        raise UnknownPartError(f"{path} has {', '.join(unknown)}")


def _activation(path: str, function: Any) -> str:
    if function in (F.silu, F.relu, F.gelu):
        return function.__name__
    if isinstance(function, partial) and function.func is F.gelu and function.keywords == {"approximate": "tanh"}:
        return "gelu_tanh"
    raise UnknownPartError(f"{path} has the activation {getattr(function, '__name__', function)}")
