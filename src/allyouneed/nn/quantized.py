"""Linear layers whose weights are kept in groups of 4-bit or 8-bit integers, run by torch's 4-bit kernel for CPUs.

A group of neighbouring weights of a row shares a scale and a minimum: w = quant · scale + minimum. The kernel reads
4-bit integers and computes w = (quant - 8) · scale + zero, with scale and zero in bfloat16; so zero is
minimum + 8 · scale. Nothing is quantised twice: groups that come from a checkpoint are run as they are, up to that
rounding.

An 8-bit integer is 16 · high + low with high from -8 to 7 and low from 0 to 15. So a row of 8-bit integers runs as a
row of 4-bit ones that is twice as long, over its input twice. On processors with AVX-512 that takes no longer than
torch's kernel for 8 bits, which has one scale for a whole row, and here each group has its own.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor, nn

from .instructions import COLUMNS, Tiles

Kernel = Literal["packed 4-bit", "dequantised", "compiled"]

GROUP = 32
"""Weights of a group in `Int8Linear.from_weight`, as in GGUF's Q8_0."""

_GROUPS = (32, 64, 128, 256)
# The kernel stores rows in tiles; with so many rows every processor's tiles are full.
_TILE = 64
_PACKED_AT_ONCE = 4 * _TILE


# Looked up once: a look-up takes longer than a conversion.
_multiply: Any = getattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu", None)
_multiply = getattr(_multiply, "default", _multiply)


_Half = tuple[Tensor, Tensor, Tensor]


def packed_kernel() -> Kernel:
    """Name what runs quantised linear layers on this processor's cores: the packed kernel needs AVX2 or AVX-512."""
    there = _multiply is not None
    vectorised = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return "packed 4-bit" if there and vectorised else "dequantised"


class QuantizedLinear(nn.Module):
    """What 4-bit and 8-bit linear layers share: the packed form, and the two ways of computing.

    Few tokens are multiplied by the packed kernel, with inputs rounded to bfloat16. Many tokens, inputs that need a
    gradient, and devices or processors without that kernel take the dequantised weights. Integers, scales and minima
    are buffers; the packed copy that the kernel reads is made of them and belongs to this machine, so it is not saved.
    """

    # From about so many tokens on, dequantising the weights for torch's product of matrices costs less than it saves.
    many: ClassVar[int]

    scale: Tensor
    minimum: Tensor | None
    bias: Tensor | None

    def __init__(self, quants: Tensor, scale: Tensor, minimum: Tensor | None, bias: Tensor | None):
        super().__init__()
        rows, columns = quants.shape
        groups = scale.shape[-1]
        if scale.shape != (rows, groups) or groups == 0 or columns % groups:
            raise ValueError(
                f"scales of shape {tuple(scale.shape)} do not fit integers of shape {tuple(quants.shape)}: there must "
                "be a row of scales for each row, one for each group of equal length"
            )
        group = columns // groups
        if group not in _GROUPS:
            raise ValueError(f"groups of {group} weights cannot be run: there are kernels for groups of {_GROUPS}")
        if minimum is not None and minimum.shape != scale.shape:
            raise ValueError(f"minima of shape {tuple(minimum.shape)} do not fit scales of {tuple(scale.shape)}")
        if bias is not None and bias.shape != (rows,):
            raise ValueError(f"a bias of shape {tuple(bias.shape)} does not fit {rows} rows")
        self.in_features, self.out_features, self.group = columns, rows, group
        # Plain values, since a look-up among the buffers takes as long as a sum of two vectors.
        self._has_bias, self._padded = bias is not None, bool(rows % _TILE)
        self.register_buffer("scale", scale.detach())
        self.register_buffer("minimum", None if minimum is None else minimum.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())

    @property
    def kernel(self) -> Kernel:
        """What multiplies few tokens: compiled code after `use_tiles`, else the packed kernel where there is one."""
        if self._tiles is not None:
            return "compiled"
        return "dequantised" if self._packed is None else "packed 4-bit"

    @property
    def weight(self) -> Float[Tensor, "rows columns"]:
        """The dequantised weights, in 32 bits."""
        return self.rows()

    def rows(self, rows: Int[Tensor, " chosen"] | slice = slice(None)) -> Float[Tensor, "chosen columns"]:
        """Dequantise some rows, in 32 bits."""
        quants = self._integers(rows).unflatten(1, (-1, self.group))
        weight = quants.float() * self.scale[rows].float()[..., None]
        if self.minimum is not None:
            weight.add_(self.minimum[rows].float()[..., None])
        return weight.flatten(1)

    def forward(self, hidden: Float[Tensor, "... columns"]) -> Float[Tensor, "... rows"]:
        """Map each vector, in the precision in which it came."""
        tokens = hidden.numel() // self.in_features
        few = 0 < tokens < self.many and hidden.device.type == "cpu"
        if not few or self.kernel == "dequantised" or (hidden.requires_grad and torch.is_grad_enabled()):
            return self._dequantised(hidden)
        if self._tiles is not None:
            mapped = self._tiles(hidden.reshape(tokens, self.in_features).float()).to(hidden.dtype)
            mapped = mapped.view(*hidden.shape[:-1], self.out_features)
            return self._with_bias(mapped) if self._has_bias else mapped
        given = hidden.bfloat16().reshape(tokens, self.in_features).contiguous()
        mapped = self._multiplied(given).to(hidden.dtype).view(*hidden.shape[:-1], self.out_features)
        return self._with_bias(mapped) if self._has_bias else mapped

    def single(self, vector: Float[Tensor, " columns"]) -> Float[Tensor, " rows"]:
        """Map one vector and leave the result as the kernel gives it, which is in bfloat16 where it is the packed one.

        For callers who have made sure that few tokens have a kernel, and that there is no bias and no gradient.
        """
        if self._tiles is not None:
            return self._tiles(vector[None])[0]
        return self._multiplied(vector.bfloat16().view(1, -1)).view(-1)

    def use_tiles(self) -> Tiles:
        """Let compiled code multiply few tokens from now on, in place of torch's kernel, whose copy is dropped.

        Nothing is rounded to bfloat16 then.

        Raises:
            CompilerError: no compiler, or a processor that the compiled code is not for.
        """
        if self._tiles is None:
            parts = [
                None if part is None else part.repeat_interleave(self.group // COLUMNS, 1)
                for part in (self.scale, self._lowest())
            ]
            self._tiles = Tiles(self._integers, *parts)  # pyright: ignore[reportArgumentType]
            self._packed = None
            self._scale_and_zero = torch.empty(0)
        return self._tiles

    def _multiplied(self, given: Tensor) -> Tensor:
        if self._halves == 2:
            given = torch.cat((given, given), 1)
        mapped = _multiply(given, self._packed, self.group, self._scale_and_zero)
        return mapped[:, : self.out_features] if self._padded else mapped

    def extra_repr(self) -> str:
        """Give the sizes and what computes."""
        return f"{self.in_features}, {self.out_features}, group={self.group}, kernel={self.kernel}"

    def _dequantised(self, hidden: Tensor) -> Tensor:
        dtype = hidden.dtype
        narrow = hidden.device.type == "cpu" and dtype == torch.float32 and torch.cpu._is_avx512_bf16_supported()
        if narrow and not (hidden.requires_grad and torch.is_grad_enabled()):
            # Twice as fast where the processor multiplies bfloat16, and rounded as the packed kernel rounds.
            hidden = hidden.to(torch.bfloat16)
        mapped = F.linear(hidden, self.weight.to(hidden.dtype)).to(dtype)
        return self._with_bias(mapped)

    def _with_bias(self, mapped: Tensor) -> Tensor:
        return mapped if self.bias is None else mapped + self.bias.to(mapped.dtype)

    def _pack(self, halves: Callable[[slice], Sequence[_Half]]) -> None:
        """Keep what the kernel reads. Called last by constructors.

        Args:
            halves: gives, for some rows, 4-bit integers, scales and zeros, once or twice side by side. Asked for some
                tiles of rows at a time, since torch's packer wants each integer in 32 bits.
        """
        self._halves = 0
        self._packed: Any = None
        self._tiles: Tiles | None = None
        self._scale_and_zero = torch.empty(0)
        if packed_kernel() == "dequantised" or self.scale.device.type != "cpu":
            return
        padded = self.out_features + -self.out_features % _TILE
        for start in range(0, self.out_features, _PACKED_AT_ONCE):
            rows = slice(start, min(start + _PACKED_AT_ONCE, self.out_features))
            parts = halves(rows)
            missing = (0, 0, 0, -(rows.stop - rows.start) % _TILE)
            quants, scale, zero = (torch.cat([part[place] for part in parts], 1) for place in range(3))
            quants = F.pad(quants.to(torch.int32), missing)
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(quants, 1)
            both = torch.stack((scale.to(torch.bfloat16), zero.to(torch.bfloat16)), -1)
            both = F.pad(both, (0, 0, *missing)).transpose(0, 1)
            if self._packed is None:
                self._halves = len(parts)
                self._packed = packed.new_empty(padded, packed.shape[1])
                self._scale_and_zero = both.new_empty(len(both), padded, 2)
            self._packed[start : start + len(packed)] = packed
            self._scale_and_zero[:, start : start + both.shape[1]] = both

    def _integers(self, rows: Tensor | slice) -> Tensor:
        raise NotImplementedError

    def _lowest(self) -> Tensor | None:
        """Give what the integer 0 stands for in each group; None where integers have a sign, and 0 stands for 0."""
        raise NotImplementedError


class Int4Linear(QuantizedLinear):
    """A linear layer of 4-bit integers in groups, such as GGUF's Q4_1 and Q4_0; made by `from_blocks`."""

    many = 128

    @classmethod
    def from_blocks(
        cls,
        quants: UInt8[Tensor, "rows columns"],
        scale: Float[Tensor, "rows groups"],
        minimum: Float[Tensor, "rows groups"] | None = None,
        bias: Float[Tensor, " rows"] | None = None,
    ) -> "Int4Linear":
        """Run groups as they are stored: w = quant · scale + minimum.

        Args:
            quants: integers from 0 to 15; columns are a whole number of groups of 32, 64, 128 or 256.
            scale: of each group.
            minimum: of each group; 0 where None.
            bias: added to the output.

        Raises:
            ValueError: integers out of that range, or shapes that do not fit.
        """
        return cls(quants, scale, minimum, bias)

    def __init__(self, quants: Tensor, scale: Tensor, minimum: Tensor | None, bias: Tensor | None):
        super().__init__(quants, scale, minimum, bias)
        if quants.numel() and int(quants.max()) > 15:
            raise ValueError(f"integer {int(quants.max())} does not fit into 4 bits: they go from 0 to 15")
        # Two to a byte: the first of a pair in the lower half.
        self.register_buffer("quants", quants[:, ::2] | (quants[:, 1::2] << 4))
        lowest = self._lowest()

        def whole(rows: slice) -> list[_Half]:
            return [(quants[rows], scale[rows], lowest[rows].float() + 8 * scale[rows].float())]

        self._pack(whole)

    def _lowest(self) -> Tensor:
        return torch.zeros_like(self.scale) if self.minimum is None else self.minimum

    def _integers(self, rows: Tensor | slice) -> Tensor:
        pairs: Any = self.quants
        chosen = pairs[rows]
        return torch.stack((chosen & 15, chosen >> 4), -1).flatten(1)


class Int8Linear(QuantizedLinear):
    """A linear layer of 8-bit integers in groups, such as GGUF's Q8_0; made by `from_blocks` or `from_weight`."""

    many = 32

    @classmethod
    def from_blocks(
        cls,
        quants: Int8[Tensor, "rows columns"],
        scale: Float[Tensor, "rows groups"],
        bias: Float[Tensor, " rows"] | None = None,
    ) -> "Int8Linear":
        """Run groups as they are stored: w = quant · scale.

        Args:
            quants: integers; columns are a whole number of groups of 32, 64, 128 or 256.
            scale: of each group.
            bias: added to the output.

        Raises:
            ValueError: shapes that do not fit.
        """
        return cls(quants, scale, bias)

    @classmethod
    def from_weight(
        cls, weight: Float[Tensor, "rows columns"], bias: Float[Tensor, " rows"] | None = None
    ) -> "Int8Linear":
        """Quantise weights: each group of 32 is divided by a 127th of its largest magnitude and rounded.

        The scale is rounded to bfloat16, as the kernel has it, before the weights are divided by it.

        Args:
            weight: a linear layer's; columns are a multiple of 32.
            bias: added to the output.

        Raises:
            ValueError: columns that are no multiple of 32, or weights that are not finite.
        """
        if weight.shape[1] == 0 or weight.shape[1] % GROUP:
            raise ValueError(
                f"{weight.shape[1]} columns cannot be quantised in groups of {GROUP}: they must be a multiple"
            )
        grouped = weight.detach().float().unflatten(1, (-1, GROUP))
        largest = torch.maximum(grouped.amax(-1), -grouped.amin(-1))
        if not bool(largest.isfinite().all()):
            row = int((~largest.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"row {row} of the weight has values that are not finite: it cannot be quantised")
        scale = (largest / 127).to(torch.bfloat16)
        quants = (grouped / scale.float()[..., None]).nan_to_num_(0).round_().clamp_(-127, 127)
        return cls(quants.flatten(1).to(torch.int8), scale, None if bias is None else bias.detach())

    def __init__(self, quants: Tensor, scale: Tensor, bias: Tensor | None):
        super().__init__(quants, scale, None, bias)
        self.register_buffer("quants", quants.detach())

        def high_and_low(rows: slice) -> list[_Half]:
            integers, exact = quants[rows], scale[rows].float()
            return [((integers >> 4) + 8, 16 * exact, torch.zeros_like(exact)), (integers & 15, exact, 8 * exact)]

        self._pack(high_and_low)

    def _lowest(self) -> None:
        return None

    def _integers(self, rows: Tensor | slice) -> Tensor:
        integers: Any = self.quants
        return integers[rows]
