"""Say what quantised paths of SmolLM2-135M-Instruct change: logits and perplexity on text, for each way of computing.

All are compared with the checkpoint's weights dequantised to 32 bits, on the same windows of held-out speeches. Whole
windows are computed with dequantised weights and bfloat16 products; a last part is also computed a few tokens at a
time, through the cache, as generation does it by the packed kernel.

    python benchmarks/quantized.py [--windows N] [--kinds bf16 int8 int4]
"""

import argparse
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import allyouneed
from allyouneed.data import texts

MODEL = "smollm2-135m-instruct"
LENGTH, LAST, STEP = 256, 64, 8


def windows(tokenizer: Any, count: int) -> Tensor:
    """Give rows of tokens of held-out speeches."""
    tokens = tokenizer.encode_to_tensor(texts.state_of_the_union("test")[:40_000])[: count * LENGTH].long()
    return tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)


def by_steps(model: Any, row: Tensor) -> Tensor:
    """Give the logits of a row's last part, computed a few tokens at a time."""
    cache = model.new_cache()
    model(row[:, :-LAST], cache=cache)
    return torch.cat([model(part, cache=cache) for part in row[:, -LAST:].split(STEP, 1)], 1)


def perplexity(logits: Tensor, tokens: Tensor) -> float:
    """Give exp of the mean negative log-likelihood of what follows each token."""
    return math.exp(F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item())


@torch.inference_mode()
def main() -> None:
    """Print a line for each type of weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", choices=["bf16", "int8", "int4"], default=["bf16", "int8", "int4"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = allyouneed.load(MODEL)
    rows = windows(tokenizer, options.windows)
    exact = torch.cat([model(row[None]) for row in rows])
    print(f"{MODEL}, {len(rows)} windows of {LENGTH} tokens; error: of the logits, relative to those in 32 bits")
    print(f"fp32: perplexity {perplexity(exact, rows):.3f}; of the last {LAST}: {_last(exact, rows):.3f}")
    for kind in options.kinds:
        chosen: dict[str, Any] = {"dtype": torch.bfloat16} if kind == "bf16" else {"quantize": kind}
        model, _ = allyouneed.load(MODEL, **chosen)
        whole = torch.cat([model(row[None]) for row in rows]).float()
        steps = torch.cat([by_steps(model, row[None]) for row in rows]).float()
        end = exact[:, -LAST:]
        print(
            f"{kind}: perplexity {perplexity(whole, rows):.3f}, error {_error(whole, exact):.4f}; a few tokens at a "
            f"time: {_last(steps, rows):.3f}, error {_error(steps, end):.4f}, "
            f"likeliest token the same in {100 * float((steps.argmax(-1) == end.argmax(-1)).float().mean()):.1f} %",
            flush=True,
        )


def _last(logits: Tensor, rows: Tensor) -> float:
    return perplexity(logits[:, -LAST:], rows[:, -LAST:])


def _error(found: Tensor, exact: Tensor) -> float:
    # A constant added to all logits of a place changes nothing.
    found, exact = (logits - logits.mean(-1, keepdim=True) for logits in (found, exact))
    return float((found - exact).norm() / exact.norm())


if __name__ == "__main__":
    main()
