"""Time the scoring of four-way questions after a prompt that all share, against reading every prompt whole.

The prompt has 1,000 tokens; questions are 1,000 of school science with four options each, as the few-shot harness of
GPT-3's room scores them. Whole means: prompt, question and option are read anew for each of the four options, alone,
and logits are computed for the option's tokens only. Both sides give the same likelihoods, which is checked.

Reading 4,000 prompts whole would take hours with SmolLM2, so each side is timed on some of the questions, in turn, in
the same process: ours on `--questions` after the prompt, whole on `--whole`. The time of 1,000 questions is reckoned:
ours is the prompt's once and 1,000 times a question's; whole is 1,000 times a question's.

    python benchmarks/scoring.py [--model smollm2-135m-instruct] [--threads 1] [--rounds 3]

`--model none` takes a model of our own with random weights, which needs no download of a model.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch

from allyouneed.papers.gpt3 import GPT3, GPT3Config, Layout, score_tokens
from allyouneed.papers.gpt3.tasks import science
from allyouneed.papers.readers import load_model
from allyouneed.text import BytePairTokenizer, Tokenizer

PROMPT, QUESTIONS = 1000, 1000
WANTED = 1 / 5
LAYOUT = Layout("", "\nAnswer:")

Coded = tuple[list[int], list[list[int]]]


def load(name: str) -> tuple[Any, Tokenizer]:
    """Load a published model, or make one of our own and a tokenizer for it."""
    if name != "none":
        return load_model(name, dtype=torch.float32)
    texts = [one.text for one in islice(science("train").examples, 1000)]
    torch.manual_seed(0)
    model = GPT3(GPT3Config(vocabulary=3000, positions=2048, width=384, layers=6, heads=6, band=128))
    return model.eval(), BytePairTokenizer.train(texts, 3000)


def coded(tokenizer: Tokenizer) -> tuple[list[int], list[Coded]]:
    """Give the tokens of the prompt, which is full of solved examples, and those of the questions and their options."""
    examples = science("train").examples
    questions = [
        (
            tokenizer.encode(LAYOUT.question(one.text)),
            [tokenizer.encode(LAYOUT.answer(option)) for option in one.options],
        )
        for one in examples[:QUESTIONS]
    ]
    shown = "".join(LAYOUT.question(one.text) + LAYOUT.answer(one.answers[0]) for one in examples[QUESTIONS:])
    return tokenizer.encode(shown[: 20 * PROMPT])[:PROMPT], questions


@torch.inference_mode()
def whole(model: Any, prompt: Sequence[int], question: Coded) -> list[float]:
    """Score a question's options by reading each of its four prompts from the first token to the last."""
    tokens, options = question
    scores = []
    for option in options:
        read = torch.tensor([[*prompt, *tokens, *option]])
        chances = model.logits(model.hidden(read[:, :-1])[0, -len(option) :]).log_softmax(-1)
        scores.append(float(chances.gather(-1, read[0, -len(option) :, None]).sum()))
    return scores


def shared(model: Any, prompt: Sequence[int], questions: Sequence[Coded]) -> list[list[float]]:
    """Score all options of all questions by the harness."""
    return score_tokens(model, prompt, [tokens for tokens, _ in questions], [options for _, options in questions])


def main() -> None:
    """Time both sides in turn, and print what 1,000 questions cost on each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=50, help="that ours is timed on")
    parser.add_argument("--whole", type=int, default=1, help="questions of four prompts each that are read whole")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load(options.model)
    prompt, questions = coded(tokenizer)
    ratios = []
    for number in range(options.rounds):
        some = questions[number * options.questions :][: options.questions]
        seconds = {}
        began = time.perf_counter()
        shared(model, prompt, [([0], [[0]])])
        seconds["prompt"] = time.perf_counter() - began
        began = time.perf_counter()
        found = shared(model, prompt, some)
        seconds["ours"] = time.perf_counter() - began
        began = time.perf_counter()
        expected = [whole(model, prompt, one) for one in some[: options.whole]]
        each = (time.perf_counter() - began) / options.whole
        for one, other in zip(found, expected, strict=False):
            torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-3, atol=1e-3)
        ours = seconds["prompt"] + QUESTIONS * (seconds["ours"] - seconds["prompt"]) / options.questions
        ratios.append(ours / (QUESTIONS * each))
        print(
            f"round {number + 1}: {QUESTIONS} questions take ours {ours:.0f} s, whole {QUESTIONS * each:.0f} s: "
            f"1/{1 / ratios[-1]:.0f} (measured: prompt {seconds['prompt']:.2f} s, {len(some)} questions "
            f"{seconds['ours']:.2f} s, one question whole {each:.2f} s)",
            flush=True,
        )
    middle = statistics.median(ratios)
    print(
        f"{options.model}, {options.threads} threads: ours costs 1/{1 / middle:.0f}; at most 1/{1 / WANTED:.0f} wanted"
    )


if __name__ == "__main__":
    main()
