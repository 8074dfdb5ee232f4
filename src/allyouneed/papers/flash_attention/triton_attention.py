"""FlashAttention by fused kernels: for CUDA devices, and for CPUs under Triton's interpreter."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from . import backward_kernels, kernels

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
WIDEST = 128
"""Of a head, in numbers; no block sizes were chosen for wider ones."""
INTERPRETED = all(isinstance(function, InterpretedFunction) for function in (kernels.forward, tl.max))
"""Whether the kernels run under Triton's interpreter. What its own functions are was settled at its first import."""


@dataclass(frozen=True)
class Launch:
    """How one kernel is compiled.

    Attributes:
        queries: of a block; a power of two, 16 or more.
        keys: of a block; a power of two, 16 or more.
        warps: of 32 threads, that work on a tile.
        stages: tiles that are being loaded while one is computed with.
    """

    queries: int
    keys: int
    warps: int = 4
    stages: int = 2


@dataclass(frozen=True)
class Launches:
    """The launches of the three kernels that loop.

    Attributes:
        forward: a program holds `queries` and loops over blocks of `keys`.
        backward_keys: a program holds `keys` and loops over blocks of `queries`.
        backward_queries: a program holds `queries` and loops over blocks of `keys`.
    """

    forward: Launch
    backward_keys: Launch
    backward_queries: Launch


def usual_launches(head_width: int, dtype: torch.dtype) -> Launches:
    """Give launches that fit into the registers and the shared memory of a Hopper GPU."""
    if dtype == torch.float32:
        stages = 2 if head_width <= 64 else 1
        return Launches(Launch(64, 32, 4, stages), Launch(32, 64, 4, stages), Launch(64, 32, 4, stages))
    if head_width <= 64:
        return Launches(Launch(128, 64, 4, 3), Launch(64, 128, 8, 3), Launch(128, 64, 8, 3))
    return Launches(Launch(128, 128, 8, 2), Launch(64, 128, 8, 2), Launch(128, 64, 8, 2))


class _TritonAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, launches: Launches
    ) -> Tensor:
        query, key, value = (tensor.contiguous() for tensor in (query, key, value))
        output = torch.empty_like(query)
        log_sum = query.new_empty(query.shape[:-1], dtype=torch.float32)
        launch = launches.forward
        kernels.forward[_grid(query, launch.queries)](
            query, key, value, output, log_sum, query.shape[-2], key.shape[-2], scale * math.log2(math.e),
            **_compiled_for(query, causal, launch),
        )  # fmt: skip
        ctx.save_for_backward(query, key, value, output, log_sum)
        ctx.chosen = scale, causal, launches
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, output, log_sum = ctx.saved_tensors
        scale, causal, launches = ctx.chosen
        upstream = gradients[0].contiguous()
        along = torch.empty_like(log_sum)
        rows = along.numel()
        widths = {"HEAD_WIDTH": query.shape[-1], "WIDTH": _padded(query.shape[-1])}
        backward_kernels.along[(triton.cdiv(rows, 64),)](output, upstream, along, rows, **widths, QUERIES=64)
        query_gradient, key_gradient, value_gradient = map(torch.empty_like, (query, key, value))
        sizes = (query.shape[-2], key.shape[-2], scale * math.log2(math.e), scale)
        inputs = (query, key, value, upstream, log_sum, along)
        launch = launches.backward_keys
        backward_kernels.backward_keys[_grid(key, launch.keys)](
            *inputs, key_gradient, value_gradient, *sizes, **_compiled_for(query, causal, launch)
        )
        launch = launches.backward_queries
        backward_kernels.backward_queries[_grid(query, launch.queries)](
            *inputs, query_gradient, *sizes, **_compiled_for(query, causal, launch)
        )
        return query_gradient, key_gradient, value_gradient, None, None, None


def _padded(head_width: int) -> int:
    """Give the width of the blocks: a power of two that tensor cores take."""
    return max(16, triton.next_power_of_2(head_width))


def _grid(tensor: Tensor, block: int) -> tuple[int]:
    """Give the number of programs: one for each block of each head."""
    batch, heads, length, _ = tensor.shape
    return (batch * heads * triton.cdiv(length, block),)


def _precision(dtype: torch.dtype) -> str:
    if dtype == torch.float32:
        return "tf32x3"  # Tensor cores take 19 bits of a number: three products give nearly all of 32.
    return "widened" if INTERPRETED else "tf32"


def _compiled_for(query: Tensor, causal: bool, launch: Launch) -> dict[str, Any]:
    width = query.shape[-1]
    return {
        "HEAD_WIDTH": width,
        "WIDTH": _padded(width),
        "QUERIES": launch.queries,
        "KEYS": launch.keys,
        "CAUSAL": causal,
        "PRECISION": _precision(query.dtype),
        "num_warps": launch.warps,
        "num_stages": launch.stages,
    }


def triton_attention(
    query: Float[Tensor, "batch heads queries head_width"],
    key: Float[Tensor, "batch heads keys head_width"],
    value: Float[Tensor, "batch heads keys head_width"],
    *,
    attn_mask: None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    launches: Launches | None = None,
) -> Float[Tensor, "batch heads queries head_width"]:
    """Compute attention, in one kernel forward and three backward, without ever holding all of its scores.

    Sums are kept in 32 bits, products are of the inputs' type. Can be the `kernel` of `nn.Attention`, where nothing
    but causality is masked and no weight is dropped. First derivatives only.

    Args:
        query: Q, on a CUDA device; elsewhere under Triton's interpreter, with `TRITON_INTERPRET=1` set before Triton
            is first imported.
        key: K.
        value: V.
        attn_mask: there is none.
        dropout_p: 0.
        is_causal: no query looks at a later key; as many queries as keys.
        scale: what scores are multiplied by; 1/√(head width) where None.
        launches: block sizes; the usual ones for the width and the type where None.

    Raises:
        ValueError: a mask or dropout, types or shapes that the kernels are not for, or a device without them.
    """
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (query, key, value))
    queries, keys, width = query.shape[-2], key.shape[-2], query.shape[-1]
    if key.shape != (*query.shape[:2], keys, width) or value.shape != key.shape:
        raise ValueError(f"query, key and value of shapes {shapes} do not belong together")
    if attn_mask is not None or dropout_p:
        what = f"dropout of {dropout_p}" if attn_mask is None else f"a mask of shape {tuple(attn_mask.shape)}"
        raise ValueError(f"{what}: the kernels know causality alone; `flash_attention` has masks and dropout")
    if query.dtype not in DTYPES or not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"query, key and value are {query.dtype}, {key.dtype} and {value.dtype}: one of {DTYPES}")
    if not 1 <= width <= WIDEST or not keys:
        raise ValueError(f"heads of width {width} and {keys} keys: they must be 1 to {WIDEST} wide, and have keys")
    if is_causal and queries != keys:
        raise ValueError(f"causal attention of {queries} queries to {keys} keys: they must be the same tokens")
    if query.device.type != "cuda" and not INTERPRETED:
        raise ValueError(
            f"tensors on {query.device.type}: the kernels run on cuda, and elsewhere under Triton's interpreter, with "
            "TRITON_INTERPRET=1 set before Triton is first imported"
        )
    launches = launches or usual_launches(width, query.dtype)
    with torch.cuda.device_of(query):
        output = _TritonAttention.apply(
            query, key, value, 1.0 / math.sqrt(width) if scale is None else scale, is_causal, launches
        )
    assert isinstance(output, Tensor)
    return output
