"""Time one training step of our decoder against transformers' GPT2LMHeadModel, both sides in turn in one process.

Same size, same weights, same batch, same optimiser, one thread, in 32 bits and under bf16 autocast, each as a user gets
it: ours with the exact GELU and the loss that holds no matrix of logits, theirs with the approximate GELU of GPT-2 and
the loss on whole logits. The first line of the output shows that both start from the same loss but for the GELU.

    python benchmarks/training.py [--steps N]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from allyouneed.nn import Attention, Block, Decoder, FeedForward, LearnedPositions, PreNorm
from allyouneed.training import next_token_loss

WIDTH, LAYERS, HEADS, LENGTH, BATCH, VOCABULARY = 256, 6, 8, 128, 32, 4096


def our_decoder() -> Decoder:
    """Compose GPT-2's architecture from our parts."""
    blocks = [
        Block(
            PreNorm(Attention(WIDTH, HEADS), nn.LayerNorm(WIDTH)),
            PreNorm(FeedForward(WIDTH), nn.LayerNorm(WIDTH)),
        )
        for _ in range(LAYERS)
    ]
    return Decoder(VOCABULARY, WIDTH, blocks, positions=LearnedPositions(LENGTH, WIDTH), norm=nn.LayerNorm(WIDTH))


def their_decoder() -> GPT2LMHeadModel:
    """Make the reference model of the same size, without dropout."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=LENGTH,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def copy_weights(theirs: GPT2LMHeadModel, ours: Decoder) -> None:
    """Give ours the reference's weights; its linear maps are stored transposed, query, key and value in one."""
    source = {name.removeprefix("transformer."): value for name, value in theirs.state_dict().items()}
    weights = {"embedding.weight": source["wte.weight"], "positions.table.weight": source["wpe.weight"]}
    for part in ("weight", "bias"):
        weights[f"norm.{part}"] = source[f"ln_f.{part}"]
        for index in range(LAYERS):
            block, layer = f"blocks.{index}", f"h.{index}"
            joint = source[f"{layer}.attn.c_attn.{part}"].t().chunk(3)
            for name, value in zip(("query", "key", "value"), joint, strict=True):
                weights[f"{block}.attention.sublayer.{name}.{part}"] = value
            weights[f"{block}.attention.sublayer.output.{part}"] = source[f"{layer}.attn.c_proj.{part}"].t()
            weights[f"{block}.feed_forward.sublayer.inner.{part}"] = source[f"{layer}.mlp.c_fc.{part}"].t()
            weights[f"{block}.feed_forward.sublayer.output.{part}"] = source[f"{layer}.mlp.c_proj.{part}"].t()
            weights[f"{block}.attention.norm.{part}"] = source[f"{layer}.ln_1.{part}"]
            weights[f"{block}.feed_forward.norm.{part}"] = source[f"{layer}.ln_2.{part}"]
    ours.load_state_dict(weights)


def steps(loss: Callable[[], Tensor], model: nn.Module, bf16: bool) -> Callable[[], float]:
    """Give a function that takes one optimiser step and returns the seconds it took."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return time.perf_counter() - began

    return step


def main() -> None:
    """Time both and print the medians and the median of the ratios pair by pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15, help="counted pairs of steps, after two that are not")
    count = parser.parse_args().steps
    torch.set_num_threads(1)
    torch.manual_seed(0)
    theirs, ours = their_decoder(), our_decoder()
    copy_weights(theirs, ours)
    window = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))
    tokens, targets = window[:, :-1], window[:, 1:]

    def our_loss() -> Tensor:
        total, number = next_token_loss(ours, window)
        return total / number

    def their_loss() -> Tensor:
        logits = theirs(tokens).logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    print(f"loss: ours {our_loss().item():.6f}, transformers {their_loss().item():.6f}")
    print(f"width {WIDTH}, {LAYERS} layers, length {LENGTH}, batch {BATCH}, vocabulary {VOCABULARY}, one thread")
    for bf16 in (False, True):
        our_step, their_step = steps(our_loss, ours, bf16), steps(their_loss, theirs, bf16)
        pairs = [(our_step(), their_step()) for _ in range(count + 2)][2:]
        our_time, their_time = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratios = sorted(theirs / ours for ours, theirs in pairs)
        print(
            f"{'bf16' if bf16 else 'fp32'}: ours {our_time:.3f} s, transformers {their_time:.3f} s a step, "
            f"ratio {statistics.median(ratios):.2f} (of {count} pairs: {ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
