"""Time generation with SmolLM2-135M-Instruct against `transformers.generate`, all sides in turn in one process.

Both read the same dequantised weights in 32 bits, ours also in 8 bits and in the checkpoint's own 4-bit groups, each as
`allyouneed.load` gives it. Everything is greedy, with a cache, and with no end before the last token. Rounds are
interleaved, and ratios are taken round by round, so that what else the machine does slows all sides.

A line says how long the first token takes, what the median later step of the whole batch takes, and both as ratios to
transformers; above 1, ours is faster.

    python benchmarks/generation.py [--threads 1 2] [--batch 1 8] [--prompt 16 512] [--tokens N] [--rounds N]
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import allyouneed
from allyouneed.text import Sampling, continuations

MODEL = "smollm2-135m-instruct"
# Ratios to be reached: of a step in a batch of one, by type of weights.
WANTED = {"fp32": 1.25, "int8": 2.4, "int4": 3.5}

Sides = dict[str, Callable[[list[list[int]], int], list[float]]]


def ours(model: Any) -> Callable[[list[list[int]], int], list[float]]:
    """Give a function that continues prompts, and returns the seconds to each step's tokens."""

    def run(prompts: list[list[int]], new_tokens: int) -> list[float]:
        room = len(prompts[0]) + new_tokens
        began = time.perf_counter()
        steps = continuations(
            model, prompts, new_tokens=new_tokens, sampling=Sampling.greedy(), cache=model.new_cache(room, room)
        )
        return [time.perf_counter() - began for row, _ in steps if row == len(prompts) - 1]

    return run


class _Clock:
    """Notes when `transformers.generate` hands over tokens: the prompt at first, then each step's."""

    def __init__(self):
        self.began = time.perf_counter()
        self.seconds: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self.seconds.append(time.perf_counter() - self.began)
        return torch.zeros(len(input_ids), dtype=torch.bool)


def theirs(model: Any) -> Callable[[list[list[int]], int], list[float]]:
    """Give the same for transformers: it asks after each step whether to stop."""

    def run(prompts: list[list[int]], new_tokens: int) -> list[float]:
        tokens = torch.tensor(prompts)
        clock = _Clock()
        model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=[clock],
        )
        return clock.seconds

    return run


def load_sides(kinds: Iterable[str]) -> Sides:
    """Load each side; transformers reads what `save_pretrained` wrote."""
    sides: Sides = {}
    with tempfile.TemporaryDirectory() as folder:
        model, _ = allyouneed.load(MODEL)
        model.save_pretrained(folder)
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        # Off its file, which goes with the folder.
        for parameter in reference.parameters():
            parameter.data = parameter.data.clone()
    sides["transformers"] = theirs(reference)
    for kind in kinds:
        quantize: Any = None if kind == "fp32" else kind
        sides[kind] = ours(allyouneed.load(MODEL, quantize=quantize)[0] if quantize else model)
    return sides


def compare(sides: Sides, prompts: list[list[int]], new_tokens: int, rounds: int) -> None:
    """Time all sides in turn, and print a line for each."""
    first: dict[str, list[float]] = {name: [] for name in sides}
    later: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            seconds = run(prompts, new_tokens)
            steps = [after - before for before, after in itertools.pairwise(seconds)]
            first[name].append(seconds[0])
            later[name].append(statistics.median(steps))
    for name in sides:
        to_first, step = statistics.median(first[name]), statistics.median(later[name])
        line = f"  {name:12} first token {1000 * to_first:7.0f} ms, {len(prompts) / step:6.1f} tokens/s"
        if name != "transformers":
            ratios = [
                [theirs / ours for theirs, ours in zip(side["transformers"], side[name], strict=True)]
                for side in (first, later)
            ]
            line += "; ratios {:.2f} and {:.2f}".format(*map(statistics.median, ratios))
            line += f" (of {rounds} rounds: {min(ratios[1]):.2f} to {max(ratios[1]):.2f})"
        print(line, flush=True)


def main() -> None:
    """Time what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, nargs="+", default=[16, 512])
    parser.add_argument("--kinds", nargs="+", choices=list(WANTED), default=list(WANTED))
    parser.add_argument("--tokens", type=int, default=24, help="tokens to add to each prompt")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sides = load_sides(options.kinds)
    wanted = ", ".join(f"{kind} {ratio}" for kind, ratio in WANTED.items())
    print(f"{MODEL}; to be reached for a batch of one on one thread: {wanted}; for a batch of eight: fp32 1.25")
    generator = torch.Generator().manual_seed(0)
    for threads in options.threads:
        torch.set_num_threads(threads)
        for batch in options.batch:
            for length in options.prompt:
                prompts = torch.randint(17, 49_152, (batch, length), generator=generator).tolist()
                print(f"{threads} threads, batch {batch}, prompts of {length} tokens")
                compare(sides, prompts, options.tokens, options.rounds)


if __name__ == "__main__":
    main()
