"""What is tried: exactness on random cases, counted accesses, and time and memory beside other ways to attend."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from allyouneed.evidence import Context
from allyouneed.papers.transformer import scaled_dot_product_attention
from allyouneed.training import peak_tensor_bytes

from .accesses import SlowMemory, standard_attention, standard_attention_backward
from .flash_attention import Tile, butterfly, flash_attention

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

HEADS_OF_FIGURE_2 = 64 * 16
"""Batch times heads, where the paper counts bytes; each number has two."""


@dataclass(frozen=True)
class FlashAttentionConfig:
    """One arm.

    Attributes:
        task: what is tried.
        length: tokens.
        head_width: of a head.
        heads: that are computed, in one sequence; counts are of one.
        fast_memory: numbers that it holds, where accesses are counted.
        tile_queries: of a tile, where time is measured.
        tile_keys: of a tile, where time is measured.
        blocks: what is left of the tiles.
        kept: blocks of keys that each block of queries keeps, where they are random.
        kernel: what time and memory are measured of.
        bits: of a number, where time is measured.
        repeats: measurements of time, after one that does not count.
        times_as_fast: as attention written out it is to be.
        share_of_fused: which share of the speed of torch's own fused kernel it is to reach.
        cases: random cases of the exactness task.
    """

    task: Literal["exactness", "accesses", "sparsity", "speed"]
    length: int = 2048
    head_width: int = 64
    heads: int = 4
    fast_memory: int = 16_384
    tile_queries: int = 256
    tile_keys: int = 512
    blocks: Literal["all", "random", "butterfly"] = "all"
    kept: int = 1
    kernel: Literal["tiles", "triton"] = "tiles"
    bits: Literal["float32", "bfloat16"] = "float32"
    repeats: int = 3
    times_as_fast: float = 1.0
    share_of_fused: float = 0.5
    cases: int = 40


def dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Give attention by torch's own kernel that holds all scores."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def with_gradients(attend: Attend, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """Give the output and the three gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = attend(leaves[0], leaves[1], leaves[2])
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


def exactness(config: FlashAttentionConfig, context: Context) -> dict[str, float]:
    """Draw sizes, tiles, masks and magnitudes; compare with dense attention in float64."""
    worst, overflows = {"output_error": 0.0, "gradient_error": 0.0}, 0

    def one_of(*choices: float) -> float:
        return choices[int(torch.randint(len(choices), ()))]

    def up_to(most: int) -> int:
        return int(torch.randint(1, most + 1, ()))

    for case in range(config.cases):
        queries, keys, width = up_to(config.length), up_to(config.length), up_to(config.head_width)
        # In every other case a softmax without the running maximum would overflow: e^710 is infinite.
        size = 1.0 if case % 2 else 60.0
        lengths = (queries, keys, keys, queries)
        drawn = [torch.randn(2, 2, length, width, dtype=torch.float64) for length in lengths]
        query, key, value, upstream = (tensor.to(context.fabric.device) for tensor in drawn)
        inputs = [size * query, size * key, value]
        # Some queries see nothing.
        mask = torch.rand(2, 1, queries, keys, device=upstream.device) < one_of(0.02, 0.5, 1.0)
        tile = Tile(up_to(queries), up_to(keys))

        def tiled(query: Tensor, key: Tensor, value: Tensor, mask: Tensor = mask, tile: Tile = tile) -> Tensor:
            return flash_attention(query, key, value, attn_mask=mask, tile=tile)

        def whole(query: Tensor, key: Tensor, value: Tensor, mask: Tensor = mask) -> Tensor:
            return dense(query, key, value, mask)

        found, expected = (with_gradients(attend, inputs, upstream) for attend in (tiled, whole))
        errors = [
            float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))
            for ours, theirs in zip(found, expected, strict=True)
        ]
        worst["output_error"] = max(worst["output_error"], errors[0])
        worst["gradient_error"] = max(worst["gradient_error"], *errors[1:])
        scores = inputs[0] @ inputs[1].mT / math.sqrt(width)
        overflows += not bool(scores.exp().sum(-1).isfinite().all())
    return worst | {"overflowing_cases": float(overflows)}


def blocks_kept(config: FlashAttentionConfig, tile: Tile) -> Tensor | None:
    """Give the block mask of an arm."""
    rows, columns = math.ceil(config.length / tile.queries), math.ceil(config.length / tile.keys)
    if config.blocks == "all":
        return None
    if config.blocks == "random":
        return torch.rand(rows, columns).argsort(-1).argsort(-1) < config.kept
    return butterfly(max(rows, columns))[:rows, :columns]


def accesses(config: FlashAttentionConfig, context: Context) -> dict[str, float]:
    """Count what one head reads and writes, tiled and not, forward and backward."""
    shape = (1, 1, config.length, config.head_width)
    query, key, value, upstream = (torch.randn(shape, device=context.fabric.device) for _ in range(4))
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    tile = Tile.fitting(config.fast_memory, config.head_width)
    memory, standard = SlowMemory(), SlowMemory()
    output = flash_attention(*leaves, tile=tile, block_mask=blocks_kept(config, tile), memory=memory)
    forward = memory.accesses
    output.backward(upstream)
    with torch.no_grad():
        probabilities = standard_attention(query, key, value, standard)[1]
        standard_forward = standard.accesses
        standard_attention_backward(query, key, value, probabilities, upstream, standard)
    gigabytes = HEADS_OF_FIGURE_2 * 2 / 2**30
    return {
        "block_size": float(tile.keys),
        "accesses": float(memory.accesses),
        "standard_accesses": float(standard.accesses),
        "accesses_over_standard": memory.accesses / standard.accesses,
        "forward_gigabytes": forward * gigabytes,
        "gigabytes": memory.accesses * gigabytes,
        "standard_forward_gigabytes": standard_forward * gigabytes,
        "standard_gigabytes": standard.accesses * gigabytes,
        "on_chip_over_fast_memory": memory.on_chip / config.fast_memory,
    }


def draw(config: FlashAttentionConfig, context: Context) -> list[Tensor]:
    """Give queries, keys, values and the output's gradient."""
    shape = (1, config.heads, config.length, config.head_width)
    dtype = getattr(torch, config.bits)
    return [torch.randn(shape).to(context.fabric.device, dtype) for _ in range(4)]


def times(ways: Mapping[str, Attend], inputs: list[Tensor], upstream: Tensor, repeats: int) -> dict[str, list[float]]:
    """Time a forward and backward pass of each way, in turn, so that what else the machine does is spread."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    device = upstream.device
    for _ in range(repeats + 1):
        for name, attend in ways.items():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            began = time.perf_counter()
            with_gradients(attend, inputs, upstream)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            found[name].append(time.perf_counter() - began)
    return {name: seconds[1:] for name, seconds in found.items()}


def ratio(of: list[float], to: list[float]) -> float:
    """Give the median of the ratios of times that were taken one after the other."""
    return statistics.median(one / other for one, other in zip(of, to, strict=True))


def sparsity(config: FlashAttentionConfig, context: Context) -> dict[str, float]:
    """Compare with all blocks: accesses and time."""
    *inputs, upstream = draw(config, context)
    tile = Tile(config.tile_queries, config.tile_keys)
    kept = blocks_kept(config, tile)
    memories = {"sparse": SlowMemory(), "dense": SlowMemory()}

    def attend(name: str) -> Attend:
        blocks = kept if name == "sparse" else None
        return lambda *tensors: flash_attention(*tensors, tile=tile, block_mask=blocks, memory=memories[name])

    found = times({name: attend(name) for name in memories}, inputs, upstream, config.repeats)
    context.costs["time_over_dense"] = ratio(found["sparse"], found["dense"])
    return {
        "share": 1.0 if kept is None else float(kept.double().mean()),
        "accesses_over_dense": memories["sparse"].accesses / memories["dense"].accesses,
    }


def ways_to_attend(config: FlashAttentionConfig) -> dict[str, Attend]:
    """Give what is timed: attention written out, ours, torch's own FlashAttention, and ours with few blocks."""
    tile = Tile(config.tile_queries, config.tile_keys)
    # Square, for the butterfly, and smaller, so that there are many.
    block = max(1, min(tile.queries, tile.keys) // 2)
    blocks, rows = Tile(block, block), math.ceil(config.length / block)

    def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(query, key, value)

    def tiled(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if config.kernel == "triton":
            from .triton_attention import triton_attention

            return triton_attention(query, key, value)
        return flash_attention(query, key, value, tile=tile)

    def block_sparse(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return flash_attention(query, key, value, tile=blocks, block_mask=butterfly(rows))

    return {
        "plain": lambda query, key, value: scaled_dot_product_attention(query, key, value)[0],
        "tiled": tiled,
        "fused": fused,
        "block_sparse": block_sparse,
    }


def speed(config: FlashAttentionConfig, context: Context) -> dict[str, float]:
    """Measure time and memory of a forward and backward pass, and how far its results are from those of float64."""
    *inputs, upstream = draw(config, context)
    ways = ways_to_attend(config)
    metrics: dict[str, float] = {}
    exact = with_gradients(dense, [tensor[:, :1].double() for tensor in inputs], upstream[:, :1].double())
    errors = {}
    for name in ("plain", "tiled"):
        found = with_gradients(ways[name], inputs, upstream)
        errors[name] = [float((ours[:, :1] - truth).norm()) for ours, truth in zip(found, exact, strict=True)]
        # Output and gradients, which every way leaves behind, and what it holds beside them at the most.
        peak = peak_tensor_bytes(lambda way=ways[name]: with_gradients(way, inputs, upstream), context.fabric.device)
        metrics[f"{name}_megabytes"] = peak / 1e6
    del exact, found
    metrics["error_over_plain"] = max(
        ours / theirs for ours, theirs in zip(errors["tiled"], errors["plain"], strict=True)
    )
    metrics["megabytes_over_plain"] = metrics["tiled_megabytes"] / metrics["plain_megabytes"]
    found = times(ways, inputs, upstream, config.repeats)
    context.costs |= {f"{name}_milliseconds": 1e3 * statistics.median(seconds) for name, seconds in found.items()}
    for name, goal in (("plain", config.times_as_fast), ("fused", config.share_of_fused)):
        context.costs[f"time_over_{name}"] = ratio(found["tiled"], found[name])
        context.costs[f"time_over_{name}_allowed"] = goal * context.costs[f"time_over_{name}"]
    return metrics


TASKS = {"exactness": exactness, "accesses": accesses, "sparsity": sparsity, "speed": speed}


def trial(config: FlashAttentionConfig, context: Context) -> Mapping[str, float]:
    """Run one arm's task."""
    return TASKS[config.task](config, context)
