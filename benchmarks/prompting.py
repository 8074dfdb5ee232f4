"""Time 64 conversations with a published chat model: one by one, by the engine, and by two engines, all in one run.

Sides, each in processes of its own with one torch thread, taking turns:

- one by one: `LocalChat`, which keeps what one conversation shares with the one before
- engine: `prompting.complete` with `load_batch`, 16 sequences at once
- two engines: two processes with half of the conversations each, begun at once

A line a side and round says how many tokens a second were generated, by the clock and by the processor time of the
slowest process. On a machine that does other work as well, the second tells more; both sides of a ratio stand in one
run. Answers are greedy and as long as they come, up to a limit; the sides' answers must be equal, or it is said how
many are not, which rounding may cause.

    python benchmarks/prompting.py [--model NAME] [--conversations N] [--new-tokens N] [--rounds N] [--sides …]
"""

import argparse
import multiprocessing
import statistics
import time
from collections import defaultdict
from typing import Any

import torch

import allyouneed
from allyouneed.prompting import complete
from allyouneed.text import Message, Sampling

SIDES = {"one by one": 1, "engine": 1, "two engines": 2}
GREEDY = Sampling.greedy()
SUBJECTS = (
    "tides",
    "bread",
    "glass",
    "rust",
    "echoes",
    "yeast",
    "magnets",
    "rainbows",
    "soap",
    "maps",
    "clocks",
    "salt",
)
TASKS = ("Explain {} to a child.", "Write two sentences about {}.", "What are {} good for?", "Name a fact about {}.")


def conversations(count: int) -> list[list[Message]]:
    """Give conversations with one system message, as a room's would have."""
    kind: Message = {"role": "system", "content": "You are a helpful teacher. Answer in a few sentences."}
    asked = [task.format(subject) for subject in SUBJECTS for task in TASKS]
    return [[kind, {"role": "user", "content": f"{asked[place % len(asked)]} ({place})"}] for place in range(count)]


def answer(side: str, name: str, new_tokens: int, ends: Any) -> None:
    """Load a model, and answer whatever conversations are sent; send texts, tokens and seconds back."""
    torch.set_num_threads(1)
    model: Any = allyouneed.load_chat(name) if side == "one by one" else allyouneed.load_batch(name)
    ends.send("loaded")
    while (asked := ends.recv()) is not None:
        clock, processor = time.perf_counter(), time.process_time()
        if side == "one by one":
            texts = ["".join(model.reply(own, new_tokens=new_tokens, sampling=GREEDY)) for own in asked]
            tokens = sum(len(model.tokenizer.encode(text)) for text in texts)
        else:
            found = complete(model, asked, new_tokens=new_tokens, sampling=GREEDY, progress=False)
            texts, tokens = found.texts, found.usage.completion_tokens
        ends.send((texts, tokens, time.perf_counter() - clock, time.process_time() - processor))


def main() -> None:
    """Run the sides in turns, and print what they reach."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--conversations", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    given = parser.parse_args()
    asked = conversations(given.conversations)
    spawn = multiprocessing.get_context("spawn")
    workers: dict[str, list[Any]] = {}
    for side in given.sides:
        workers[side] = []
        for _ in range(SIDES[side]):
            ours, theirs = spawn.Pipe()
            spawn.Process(target=answer, args=(side, given.model, given.new_tokens, theirs), daemon=True).start()
            workers[side].append(ours)
    for side in given.sides:
        for worker in workers[side]:
            assert worker.recv() == "loaded"
    clocks: dict[str, list[float]] = defaultdict(list)
    processors: dict[str, list[float]] = defaultdict(list)
    expected: list[str] | None = None
    for turn in range(given.rounds):
        for side in given.sides:
            share = len(workers[side])
            began = time.perf_counter()
            for place, worker in enumerate(workers[side]):
                worker.send(asked[place::share])
            answers = [worker.recv() for worker in workers[side]]
            seconds = time.perf_counter() - began
            texts = [""] * len(asked)
            for place, (own, *_) in enumerate(answers):
                texts[place::share] = own
            tokens = sum(own[1] for own in answers)
            clocks[side].append(tokens / seconds)
            processors[side].append(tokens / max(own[3] for own in answers))
            expected = expected or texts
            same = sum(one == other for one, other in zip(texts, expected, strict=True))
            print(
                f"round {turn + 1}, {side:11}: {tokens} tokens, {clocks[side][-1]:6.1f} a second by the clock, "
                f"{processors[side][-1]:6.1f} by processor time; {same} of {len(asked)} answers are {given.sides[0]}'s",
                flush=True,
            )
    first = given.sides[0]
    for side in given.sides[1:]:
        for kind, reached in (("the clock", clocks), ("processor time", processors)):
            ratios = [own / base for own, base in zip(reached[side], reached[first], strict=True)]
            each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"{side} over {first} by {kind}: {statistics.median(ratios):.2f} ({each})")
    for side in given.sides:
        for worker in workers[side]:
            worker.send(None)


if __name__ == "__main__":
    main()
