"""Time servers of SmolLM2-135M-Instruct over loopback, asked by OpenAI's client at random times, all sides in one run.

Sides, each in a process of its own with one torch thread, one after the other, behind the same HTTP server:

- continuous: our engine with continuous batching, which decides before each step who is in it
- static: our engine with static batching: a batch is kept together until its longest sequence is done
- transformers: `generate` on batches of whoever waits, in 32 bits too; tokens are sent as they come

All get the same requests: prompts of presidents' addresses, lengths of texts drawn from a log-normal distribution (most
are short, a few are long), arrivals of a Poisson process. Texts end at their length alone. A line a side says how many
tokens a second were generated from the first arrival to the last token, and the median and the 99th percentile of the
time to the first token, of the time of each further one, and of a request's time divided by its tokens, waiting
included. The texts of both sides of ours must be equal, bit for bit.

    python benchmarks/serving.py [--requests N] [--rate R] [--sequences N] [--longest N] [--sides …] [--rounds N]
"""

import argparse
import asyncio
import math
import multiprocessing
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import openai
import torch

import allyouneed
from allyouneed.data import texts
from allyouneed.papers.serving import Engine, Limits, Request, Scheduler, StaticScheduler
from allyouneed.papers.serving.connections import listen, make_server
from allyouneed.papers.serving.server import create_app
from allyouneed.papers.serving.service import Service

MODEL = "smollm2-135m-instruct"
SIDES = ("continuous", "static", "transformers")
# To be reached: continuous over static, tokens a second.
WANTED = 2.5
CACHE_TOKENS = 8192


@dataclass(frozen=True)
class Call:
    """A request of the trace.

    Attributes:
        at: when it is made, in seconds after the first.
        prompt: tokens.
        new_tokens: the length of its text.
    """

    at: float
    prompt: list[int]
    new_tokens: int


@dataclass(frozen=True)
class Answered:
    """When a call's tokens came.

    Attributes:
        call: the call.
        first: when the first token was there, in seconds after the trace began.
        last: when the last was.
        text: all of it.
    """

    call: Call
    first: float
    last: float
    text: str


def make_trace(tokenizer: Any, count: int, rate: float, longest: int, seed: int) -> list[Call]:
    """Draw requests: lengths of texts have a median of 16 tokens, and a mean of about 38 where the longest has 512."""
    draw, at, calls = random.Random(seed), 0.0, []
    tokens = tokenizer.encode(texts.state_of_the_union("test")[:200_000])
    for _ in range(count):
        start = draw.randrange(len(tokens) - 100)
        new_tokens = min(longest, max(2, round(draw.lognormvariate(math.log(16), 1.3))))
        calls.append(Call(at, tokens[start : start + draw.randint(8, 32)], new_tokens))
        at += draw.expovariate(rate)
    return calls


class TransformersEngine:
    """What our server asks of an engine, by batches of `transformers.generate`."""

    def __init__(self, reference: Any, most: int):
        self.model: Any = SimpleNamespace(context=reference.config.max_position_embeddings)
        self.pool: Any = SimpleNamespace(blocks=1, size=self.model.context)
        self._reference = reference
        self._most = most
        self._waiting: list[Request] = []
        self._changed = threading.Condition()

    def submit(self, request: Request) -> int:
        """Let a request wait."""
        with self._changed:
            self._waiting.append(request)
            self._changed.notify_all()
        return 0

    def cancel(self, number: int) -> None:
        """A batch cannot let go of anyone."""

    def start(self) -> None:
        """Begin the thread that computes."""
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self, seconds: float) -> None:
        """The thread ends with its process."""

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            self._generate(batch)

    @torch.inference_mode()
    def _generate(self, batch: Sequence[Request]) -> None:
        longest = max(len(request.prompt) for request in batch)
        tokens = torch.tensor([[0] * (longest - len(request.prompt)) + list(request.prompt) for request in batch])
        present = torch.tensor([[0] * (longest - len(request.prompt)) + [1] * len(request.prompt) for request in batch])

        def tell(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            generated = input_ids.shape[1] - longest
            for row, request in enumerate(batch):
                if generated <= request.new_tokens:
                    request.listener.token(0, int(input_ids[row, -1]), None)
                if generated == request.new_tokens:
                    request.listener.ended(0, "length")
            return torch.tensor([generated >= request.new_tokens for request in batch])

        self._reference.generate(
            tokens,
            attention_mask=present,
            max_new_tokens=max(request.new_tokens for request in batch),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=[tell],
        )


def make_engine(side: str, model: Any, max_num_sequences: int) -> Any:
    """Make the engine of a side."""
    if side != "transformers":
        scheduler = StaticScheduler if side == "static" else Scheduler
        limits = Limits(
            max_num_sequences=max_num_sequences, max_batched_tokens=4 * max_num_sequences, max_queue=100_000
        )
        return Engine(model, cache_tokens=CACHE_TOKENS, limits=limits, sharing=False, scheduler=scheduler)
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for parameter in reference.parameters():
            # Off its file, which goes with the folder.
            parameter.data = parameter.data.clone()
    return TransformersEngine(reference, max_num_sequences)


def serve_side(side: str, max_num_sequences: int, ready: Connection) -> None:
    """Serve until killed, in a process of its own."""
    torch.set_num_threads(1)
    model, tokenizer = allyouneed.load(MODEL)
    engine = make_engine(side, model, max_num_sequences)
    service = Service(engine, tokenizer, name=MODEL, seconds=100_000.0)
    opened = listen("127.0.0.1", 0)
    port = opened.getsockname()[1]
    make_server(create_app(service), on_ready=lambda: ready.send(port)).run(sockets=[opened])


async def ask(client: openai.AsyncOpenAI, call: Call, began: float) -> Answered:
    """Make a call at its time, and note when its tokens come."""
    await asyncio.sleep(began + call.at - time.perf_counter())
    first, pieces = 0.0, []
    stream = await client.completions.create(
        model=MODEL, prompt=call.prompt, max_tokens=call.new_tokens, temperature=0, stream=True
    )
    async for chunk in stream:
        first = first or time.perf_counter() - began
        pieces.append(chunk.choices[0].text)
    return Answered(call, first, time.perf_counter() - began, "".join(pieces))


async def play(port: int, trace: Sequence[Call]) -> list[Answered]:
    """Make all calls of a trace, after one that wakes up everything."""
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=100_000
    ) as client:
        await ask(client, Call(0.0, [1, 2, 3], 4), time.perf_counter())
        began = time.perf_counter()
        return list(await asyncio.gather(*(ask(client, call, began) for call in trace)))


def run_side(side: str, max_num_sequences: int, trace: Sequence[Call]) -> list[Answered]:
    """Start a side's server, play the trace, and end the server."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_side, args=(side, max_num_sequences, theirs), daemon=True)
    process.start()
    try:
        if not ours.poll(300):
            raise TimeoutError(f"the server of {side} has not started within 300 seconds")
        return asyncio.run(play(ours.recv(), trace))
    finally:
        process.kill()
        process.join()


def tokens_a_second(answers: Sequence[Answered]) -> float:
    """Count what was generated from the first arrival to the last token."""
    return sum(own.call.new_tokens for own in answers) / max(own.last for own in answers)


def line(side: str, answers: Sequence[Answered]) -> str:
    """Say how a side did."""

    def percentiles(values: Sequence[float], unit: float, digits: int) -> str:
        ordered = sorted(values)
        at = [ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] for share in (0.5, 0.99)]
        return " and ".join(f"{unit * value:.{digits}f}" for value in at)

    first = [own.first - own.call.at for own in answers]
    further = [(own.last - own.first) / (own.call.new_tokens - 1) for own in answers]
    whole = [(own.last - own.call.at) / own.call.new_tokens for own in answers]
    return (
        f"  {side:12} {tokens_a_second(answers):6.1f} tokens/s; first token {percentiles(first, 1, 1)} s; "
        f"further tokens {percentiles(further, 1000, 0)} ms each; all, by tokens {percentiles(whole, 1, 2)} s"
    )


def main() -> None:
    """Time what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--requests", type=int, default=384, help="so many that the end, when nobody waits any more, weighs little"
    )
    parser.add_argument(
        "--rate", type=float, default=4.0, help="requests a second; the default is more than all can do"
    )
    parser.add_argument("--sequences", type=int, default=16, help="the most that are generated at once")
    parser.add_argument("--longest", type=int, default=512, help="the most tokens of a text")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=1, help="each with other requests")
    options = parser.parse_args()
    torch.set_num_threads(1)
    _, tokenizer = allyouneed.load(MODEL)
    for turn in range(options.rounds):
        trace = make_trace(tokenizer, options.requests, options.rate, options.longest, turn)
        mean = sum(call.new_tokens for call in trace) / len(trace)
        print(
            f"round {turn}: {len(trace)} requests, {options.rate:g} a second, texts of {mean:.0f} tokens on average "
            f"and {options.longest} at most, at most {options.sequences} at once; medians and 99th percentiles",
            flush=True,
        )
        answers = {}
        for side in options.sides:
            answers[side] = run_side(side, options.sequences, trace)
            print(line(side, answers[side]), flush=True)
        if "continuous" in answers and "static" in answers:
            if [own.text for own in answers["continuous"]] != [own.text for own in answers["static"]]:
                raise SystemExit("the texts of continuous and static batching differ")
            ratio = tokens_a_second(answers["continuous"]) / tokens_a_second(answers["static"])
            print(
                f"  continuous generates {ratio:.2f} times as many tokens a second as static (to be reached: {WANTED})"
            )


if __name__ == "__main__":
    main()
