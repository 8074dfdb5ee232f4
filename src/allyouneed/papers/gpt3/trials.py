"""The trials: a published model on real tasks, and models of our own trained on documents that mix many tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import mean
from typing import Any, Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from allyouneed.data.splits import Split
from allyouneed.data.tasks import Example, task
from allyouneed.evidence import Context
from allyouneed.papers.readers import load_model
from allyouneed.text import Tokenizer

from .answers import exact_match, write_answers
from .contamination import dirty, gram_length
from .corpus import LAYOUT, TRAINED, mixture, training_examples
from .generated import VOCABULARY, Mappings, accuracy_by_shots
from .gpt3 import GPT3, GPT3Config
from .prompts import Layout, Prompt, assemble, draw, longest
from .scoring import accuracy, score_options
from .tasks import FREE, OPTIONS, draw_questions
from .training import curve, narrow, of_step, size, train_as_gpt3

CONTEXT = 2048
"""Tokens of a prompt and its answer, as in the paper; SmolLM2 could read more."""
START = "<|endoftext|>"
"""What stood between documents when the published model was trained, and before each prompt here."""


@dataclass(frozen=True)
class FewShotConfig:
    """One arm.

    Attributes:
        kind: what is tried: a published model, or a model of ours that is trained on generated mappings or on a mixture
            of BIG-bench's tasks.
        shots: solved examples before a question; models of ours are tried with every number in `SHOTS`.
        published: the name of the published model.
        questions: of each task with options that are scored, drawn by the seed.
        written: of each task whose answer is written.
        longest: characters of a question; longer ones are left out.
        split: that questions are of.
        layers: blocks of a model of ours; at least three, for the second sees only the band.
        width: of its residual stream.
        heads: of its attention.
        band: tokens that every second layer sees before each token.
        vocabulary: of the mixture's tokenizer.
        length: tokens of a document of the mixture.
        letters: that a generated task maps to digits.
        examples: in a generated document.
        documents: in a batch.
        steps: of training.
        learning_rate: at its peak; each arm's own.
        tested: generated documents, of tasks that are held out, that are scored.
        most: examples of each task in the mixture.
    """

    kind: Literal["published", "mappings", "mixture"] = "published"
    shots: int = 0
    published: str = "smollm2-135m-instruct"
    questions: int = 20
    written: int = 16
    longest: int = 150
    split: Split = "test"
    layers: int = 3
    width: int = 32
    heads: int = 2
    band: int = 1
    vocabulary: int = 512
    length: int = 256
    letters: int = 3
    examples: int = 8
    documents: int = 48
    steps: int = 1000
    learning_rate: float = 4e-3
    tested: int = 2000
    most: int = 600


SHOTS: Mapping[str, tuple[int, ...]] = {"mappings": (0, 1, 2, 3, 5, 7), "mixture": (0, 1, 2, 4)}
"""Numbers of examples that models of our own are tried with."""


@cache
def published_model(name: str, device: str) -> tuple[Any, Tokenizer]:
    """Load the published model once in a process, in 32 bits."""
    return load_model(name, dtype=torch.float32, device=device)


def prompted(
    tokenizer: Tokenizer,
    training: Sequence[Example],
    questions: Sequence[Example],
    layout: Layout,
    shots: int,
    seed: int,
    *,
    context: int,
    start: Sequence[int],
    new_tokens: int = 0,
) -> Prompt:
    """Draw the examples of a seed, and write the prompt that all questions share."""
    reserved = longest(tokenizer, questions, layout, new_tokens=new_tokens)
    return assemble(
        tokenizer, draw(training, shots, seed), layout=layout, context=context, reserved=reserved, start=start
    )


def published(config: FewShotConfig, context: Context) -> dict[str, float]:
    """Try a published model with one number of examples, on tasks with options and on tasks with free answers."""
    model, tokenizer = published_model(config.published, str(context.fabric.device))
    limit = min(model.context or CONTEXT, CONTEXT)
    start = [tokenizer.special_tokens[START]] if START in tokenizer.special_tokens else []
    metrics: dict[str, float] = {}
    dropped = 0
    for done, tried in enumerate(OPTIONS):
        training = tried.examples("train", config.longest)
        questions = draw_questions(tried.examples(config.split, config.longest), config.questions, context.seed)
        prompt = prompted(
            tokenizer, training, questions, tried.layout, config.shots, context.seed, context=limit, start=start
        )
        unconditional = tried.normalisation == "unconditional"
        scores = score_options(model, tokenizer, prompt, questions, unconditional=unconditional, start=start)
        metrics[tried.name] = accuracy(scores, questions, tried.normalisation)
        dropped += len(prompt.dropped)
        context.log(step=done + 1, steps=len(OPTIONS) + len(FREE))
    for done, (name, (source, layout, new_tokens)) in enumerate(FREE.items(), start=len(OPTIONS)):
        training = task(source, "train").examples
        questions = draw_questions(task(source, config.split).examples, config.written, context.seed)
        prompt = prompted(
            tokenizer,
            training,
            questions,
            layout,
            config.shots,
            context.seed,
            context=limit,
            start=start,
            new_tokens=new_tokens,
        )
        asked = [one.text for one in questions]
        stop = ("\n", *tokenizer.special_tokens)
        written = write_answers(model, tokenizer, prompt, asked, new_tokens=new_tokens, stop=stop)
        metrics[name] = mean(
            float(exact_match(answer, one.answers)) for answer, one in zip(written, questions, strict=True)
        )
        dropped += len(prompt.dropped)
        context.log(step=done + 1, steps=len(OPTIONS) + len(FREE))
    return metrics | {"options": mean(metrics[tried.name] for tried in OPTIONS), "dropped": float(dropped)}


def build(config: FewShotConfig) -> GPT3:
    """Compose a model of our own."""
    generated = config.kind == "mappings"
    return narrow(
        GPT3Config(
            vocabulary=VOCABULARY if generated else config.vocabulary,
            positions=2 * config.examples if generated else config.length,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            band=config.band,
        )
    )


def mappings(config: FewShotConfig, context: Context) -> dict[str, float]:
    """Train a model on documents of mappings, then try it on mappings that are held out."""
    family = Mappings(config.letters, config.examples)

    def batches(step: int) -> Int64[Tensor, "batch window"]:
        return family.documents(config.documents, of_step(context.seed, step), held_out=False)

    model = build(config)
    train_as_gpt3(model, batches, config.steps, config.learning_rate, context)
    tested = family.documents(config.tested, of_step(context.seed, config.steps), held_out=True)
    with context.fabric.autocast():
        found = accuracy_by_shots(model.eval(), tested.to(context.fabric.device)).tolist()
    return curve({shots: found[shots] for shots in SHOTS["mappings"]}) | size(model)


def mixed(config: FewShotConfig, context: Context) -> dict[str, float]:
    """Train a model on documents of many tasks, then try it on three tasks that are held out."""
    text = mixture(config.vocabulary, config.most, config.longest)

    def batches(step: int) -> Int64[Tensor, "batch window"]:
        return text.documents(config.documents, config.length + 1, of_step(context.seed, step))

    model = build(config)
    train_as_gpt3(model, batches, config.steps, config.learning_rate, context)
    by_task: dict[str, dict[int, float]] = {tried.name: {} for tried in OPTIONS}
    overlaps = []
    for tried in OPTIONS:
        training = tried.examples("train", config.longest)
        questions = draw_questions(tried.examples(config.split, config.longest), config.questions, context.seed)
        for shots in SHOTS["mixture"]:
            prompt = prompted(
                text.tokenizer,
                training,
                questions,
                LAYOUT,
                shots,
                context.seed,
                context=config.length,
                start=[text.end],
            )
            with context.fabric.autocast():
                scores = score_options(model, text.tokenizer, prompt, questions)
            by_task[tried.name][shots] = accuracy(scores, questions, "per_token")
        overlaps += overlapping(tuple(one.text for one in questions), config.most, config.longest)
    curves = {shots: mean(found[shots] for found in by_task.values()) for shots in SHOTS["mixture"]}
    slopes = {f"{name}_slope": curve(found)["slope"] for name, found in by_task.items()}
    return curve(curves) | slopes | {"overlap": mean(map(float, overlaps))} | size(model)


def overlapping(questions: Sequence[str], most: int, longest: int) -> list[bool]:
    """Tell which questions share words with the training text of the mixture (appendix C)."""
    documents = (one.text for name in TRAINED for one in training_examples(name, most, longest))
    return dirty(questions, documents, gram_length(questions))


def trial(config: FewShotConfig, context: Context) -> Mapping[str, float]:
    """Do what the arm is for."""
    return {"published": published, "mappings": mappings, "mixture": mixed}[config.kind](config, context)
