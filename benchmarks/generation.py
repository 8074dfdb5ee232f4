r"""Time generation with SmolLM2-135M-Instruct against `transformers.generate` and llama.cpp, all sides in turn.

Ours and transformers read the same dequantised weights in 32 bits, ours also in 8 bits and in the checkpoint's own
4-bit groups, each as `allyouneed.load` gives it, and each also with compiled steps. Everything is greedy, with a cache,
and with no end before the last token. Rounds are interleaved, and ratios are taken round by round, so that what else
the machine does slows all sides.

llama.cpp takes part where `--llama-cpp` names a Python that has `llama-cpp-python`; it reads the file itself, in a
process of its own that waits while others run. Build it from its source distribution, for this processor:

    CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF" \
        pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36

A line says how long the first token takes, how many tokens a second the median later step of the whole batch gives, and
both as ratios to the first side, transformers or what `--against` names; above 1, the line's side is faster.

    python benchmarks/generation.py [--threads 1 2] [--batch 1 8] [--prompt 16 512] [--tokens N] [--rounds N]
        [--kinds int4 int4+compiled] [--model smollm2-135m-instruct] [--llama-cpp PYTHON] [--against llama.cpp]
"""

import argparse
import contextlib
import copy
import itertools
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import allyouneed
from allyouneed.data import fetch
from allyouneed.nn import compile_decoder
from allyouneed.text import Sampling, continuations

MODEL = "smollm2-135m-instruct"
# Ratios to be reached: of a step in a batch of one, by type of weights.
WANTED = {"fp32": 1.25, "int8": 2.4, "int4": 3.5}
KINDS = [*WANTED, *(f"{kind}+compiled" for kind in WANTED)]

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


@contextlib.contextmanager
def llama_cpp(python: str, model: str, threads: int, batch: int, room: int) -> Iterator[Any]:
    """Give the same for llama.cpp, which runs in a process of its own."""
    (path,) = Path(fetch(model)).glob("*.gguf")
    script = Path(__file__).with_name("llama_cpp_side.py")
    command = [python, str(script), str(path), str(threads), str(batch), str(room)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        given, answers = process.stdin, process.stdout
        assert given is not None and answers is not None
        if not answers.readline():
            raise SystemExit(f"{python} does not run llama.cpp: see above")

        def run(prompts: list[list[int]], new_tokens: int) -> list[float]:
            print(json.dumps({"prompts": prompts, "new_tokens": new_tokens}), file=given, flush=True)
            return json.loads(answers.readline())["seconds"]

        yield run
        given.close()


def load_sides(name: str, kinds: Iterable[str], reference_wanted: bool) -> Sides:
    """Load each side; transformers reads what `save_pretrained` wrote."""
    sides: Sides = {}
    if reference_wanted:
        with tempfile.TemporaryDirectory() as folder:
            model, _ = allyouneed.load(name)
            model.save_pretrained(folder)
            reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            # Off its file, which goes with the folder.
            for parameter in reference.parameters():
                parameter.data = parameter.data.clone()
        sides["transformers"] = theirs(reference)
    loaded: dict[str, Any] = {}
    for kind in kinds:
        quantize: Any = kind.partition("+")[0]
        if quantize not in loaded:
            loaded[quantize] = allyouneed.load(name, quantize=None if quantize == "fp32" else quantize)[0]
        model = loaded[quantize]
        if kind.endswith("+compiled"):
            model = copy.deepcopy(model)
            print(f"{kind}: {compile_decoder(model)}")
        sides[kind] = ours(model)
    return sides


def compare(sides: Sides, against: str, prompts: list[list[int]], new_tokens: int, rounds: int) -> None:
    """Time all sides in turn, and print a line for each."""
    first: dict[str, list[float]] = {name: [] for name in sides}
    later: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run(prompts, 2)
    for _ in range(rounds):
        for name, run in sides.items():
            seconds = run(prompts, new_tokens)
            steps = [after - before for before, after in itertools.pairwise(seconds)]
            first[name].append(seconds[0])
            later[name].append(statistics.median(steps))
    for name in sides:
        to_first, step = statistics.median(first[name]), statistics.median(later[name])
        line = f"  {name:13} first token {1000 * to_first:7.0f} ms, {len(prompts) / step:6.1f} tokens/s"
        if name != against:
            ratios = [
                [theirs / ours for theirs, ours in zip(side[against], side[name], strict=True)]
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
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--tokens", type=int, default=24, help="tokens to add to each prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default=MODEL, help="an asset that is a GGUF file")
    parser.add_argument("--llama-cpp", metavar="PYTHON", help="a Python that has llama-cpp-python")
    parser.add_argument("--against", choices=["transformers", "llama.cpp"], default="transformers")
    options = parser.parse_args()
    if options.against == "llama.cpp" and not options.llama_cpp:
        parser.error("--against llama.cpp needs --llama-cpp PYTHON")
    ours_and_theirs = load_sides(options.model, options.kinds, options.against == "transformers")
    wanted = ", ".join(f"{kind} {ratio}" for kind, ratio in WANTED.items())
    print(
        f"{options.model}; to be reached for a batch of one on one thread: {wanted}; for a batch of eight: fp32 1.25;"
    )
    print("against llama.cpp, compiled: int4 1.0 on SmolLM2, int8 or int4 0.9 on Qwen")
    generator = torch.Generator().manual_seed(0)
    for threads, batch, length in itertools.product(options.threads, options.batch, options.prompt):
        torch.set_num_threads(threads)
        prompts = torch.randint(17, 49_152, (batch, length), generator=generator).tolist()
        print(f"{threads} threads, batch {batch}, prompts of {length} tokens")
        with contextlib.ExitStack() as opened:
            sides = dict(ours_and_theirs)
            if options.llama_cpp:
                room = length + options.tokens + 8
                sides["llama.cpp"] = opened.enter_context(
                    llama_cpp(options.llama_cpp, options.model, threads, batch, room)
                )
            compare(sides, options.against, prompts, options.tokens, options.rounds)


if __name__ == "__main__":
    main()
