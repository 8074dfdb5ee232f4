"""Time FlashAttention against attention written out and against torch's own fused kernel, forward and backward.

All ways in turn in one process, on the same numbers. On a CPU: our tiles in PyTorch, in 32 bits, one thread. On a GPU:
our Triton kernels in bfloat16 at 2,048 to 16,384 tokens, 16,384 tokens and 1,024 numbers wide in all, whatever the
length and the heads' width; there torch's kernel is FlashAttention-2.

    python benchmarks/attention.py [--lengths N ...] [--widths N ...] [--repeat N] [--causal]
    python benchmarks/attention.py --tune    # On a GPU: try launches of the kernels, and say which are fastest.
"""

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from allyouneed.papers.flash_attention import Tile, flash_attention

TOKENS, WIDTH = 16_384, 1024
"""On a GPU: tokens of a batch, and heads times their width."""
CPU_HEADS = 4


def written_out(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool) -> Tensor:
    """Give attention as its formula stands, with the matrices of scores and weights in memory."""
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    return scores.softmax(-1) @ value


def fused(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool) -> Tensor:
    """Give attention by torch's own FlashAttention."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)


def our_tiles(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool) -> Tensor:
    """Give attention by our tiles in PyTorch."""
    return flash_attention(query, key, value, is_causal=is_causal, tile=Tile(256, 512))


def milliseconds(work: Callable[[], Any], device: torch.device) -> float:
    """Time a piece of work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - began)


def passes(attend: Callable[..., Tensor], leaves: list[Tensor], upstream: Tensor, causal: bool) -> Callable[[], Any]:
    """Give a forward and backward pass."""
    return lambda: torch.autograd.grad(attend(*leaves, is_causal=causal), leaves, upstream)


def operations(shape: torch.Size, causal: bool) -> float:
    """Count what forward and backward pass must compute: seven products of N × N × d, or half of each."""
    batch, heads, length, width = shape
    return 7 * 2 * batch * heads * length**2 * width / (2 if causal else 1)


def compare(lengths: list[int], widths: list[int], repeat: int, causal: bool, device: torch.device) -> None:
    """Print a table."""
    ways: dict[str, Callable[..., Tensor]] = {"written out": written_out, "fused": fused, "ours": our_tiles}
    if device.type == "cuda":
        from allyouneed.papers.flash_attention.triton_attention import triton_attention

        ways["ours"] = triton_attention
    kind = "causal" if causal else "not causal"
    print(f"forward and backward in milliseconds, {kind}; speed of ours over theirs, median of {repeat} pairs")
    print("| width | length | written out | torch's fused | ours | ours: TFLOP/s | × written out | × fused |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for width, length in itertools.product(widths, lengths):
        shape = torch.Size((1, CPU_HEADS, length, width))
        dtype = torch.float32
        if device.type == "cuda":
            shape, dtype = torch.Size((max(1, TOKENS // length), WIDTH // width, length, width)), torch.bfloat16
        *leaves, upstream = (torch.randn(shape, device=device, dtype=dtype) for _ in range(4))
        leaves = [leaf.requires_grad_() for leaf in leaves]
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeat + 1):
            for name, attend in ways.items():
                found[name].append(milliseconds(passes(attend, leaves, upstream, causal), device))
        counted = {name: times[1:] for name, times in found.items()}
        middle = {name: statistics.median(times) for name, times in counted.items()}
        faster = {
            name: statistics.median(theirs / ours for theirs, ours in zip(times, counted["ours"], strict=True))
            for name, times in counted.items()
        }
        speed = operations(shape, causal) / middle["ours"] / 1e9
        print(
            f"| {width} | {length:,} | {middle['written out']:,.2f} | {middle['fused']:,.2f} | {middle['ours']:,.2f} | "
            f"{speed:,.3g} | {faster['written out']:.2f} | {faster['fused']:.2f} |",
            flush=True,
        )


def tune(widths: list[int], causal: bool, device: torch.device) -> None:
    """Try block sizes, warps and stages of each kernel, the other two as they are."""
    from triton.runtime.errors import OutOfResources

    from allyouneed.papers.flash_attention.triton_attention import Launch, triton_attention, usual_launches

    for width in widths:
        shape = (2, WIDTH // width, TOKENS // 2, width)
        *leaves, upstream = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(4))
        leaves = [leaf.requires_grad_() for leaf in leaves]
        usual = usual_launches(width, torch.bfloat16)
        for kernel in ("forward", "backward_keys", "backward_queries"):
            found: list[tuple[float, Launch]] = []
            for sizes in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4)):
                queries, keys, warps, stages = sizes
                if kernel == "backward_keys":
                    queries, keys = keys, queries
                launch = Launch(queries, keys, warps, stages)
                chosen: Any = replace(usual, **{kernel: launch})

                def attend(*tensors: Tensor, is_causal: bool, chosen: Any = chosen) -> Tensor:
                    return triton_attention(*tensors, is_causal=is_causal, launches=chosen)

                work = passes(attend, leaves, upstream, causal)
                try:
                    work()
                except OutOfResources:
                    continue
                found.append((statistics.median(milliseconds(work, device) for _ in range(7)), launch))
            found.sort(key=lambda pair: pair[0])
            print(f"width {width}, {kernel}: now {getattr(usual, kernel)}")
            for spent, launch in found[:4]:
                print(f"  {spent:.3f} ms {launch}", flush=True)


def main() -> None:
    """Compare on the GPU where there is one, else on the CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    lengths = [2048, 4096, 8192, 16_384] if on_gpu else [256, 512, 1024, 2048, 4096]
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128] if on_gpu else [64])
    parser.add_argument("--repeat", type=int, default=20 if on_gpu else 3, help="counted rounds, after one that is not")
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--tune", action="store_true", help="try launches of the Triton kernels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    where = torch.cuda.get_device_name(device) if on_gpu else "CPU, one thread"
    print(f"{where}, torch {torch.__version__}, {'bfloat16' if on_gpu else 'float32'}")
    if options.tune:
        if not on_gpu:
            parser.error("there is no GPU to tune launches for")
        tune(options.widths, options.causal, device)
    else:
        compare(options.lengths, options.widths, options.repeat, options.causal, device)


if __name__ == "__main__":
    main()
