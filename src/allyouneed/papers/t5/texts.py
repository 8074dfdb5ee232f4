"""What models read: unlabelled text to pre-train on, examples of tasks, and the vocabulary of both."""

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from allyouneed.data import Split, addresses, novels
from allyouneed.data.brown import brown
from allyouneed.data.tasks import Task, task

from .objectives import Pair
from .sentencepieces import SentencePieceTokenizer
from .tasks import as_pairs, input_of

ADDRESSES = 32
"""The newest of the training split, whose English is nearest to that of the tasks."""
POOL = 12_000
"""Training examples of a task that are looked at; all arms and seeds draw from these."""


class Vocabulary(NamedTuple):
    """What a vocabulary is learned for: its size, sentinels among it, their number, and tasks that it must cover."""

    size: int
    sentinels: int
    tasks: tuple[str, ...]


@cache
def plain_texts() -> tuple[str, ...]:
    """Give the unlabelled training texts: the Brown corpus, the newest addresses, and a novel."""
    prose = [" ".join(" ".join(sentence) for sentence in text.words) for text in brown("train")]
    return (*prose, *addresses("train")[-ADDRESSES:], novels("train")[0])


@cache
def tokenizer(words: Vocabulary) -> SentencePieceTokenizer:
    """Learn the pieces: from an eighth of the unlabelled texts, and from some training examples of each task.

    As in section 3.1.3, the vocabulary covers what models are put to later.
    """
    learned = [text[:30_000] for text in plain_texts()[::8]]
    for name in words.tasks:
        examples = task(name, "train")
        learned += [text for example in examples.examples[:600] for text in (example.text, *example.answers)]
        learned += [*examples.options] * 20
    return SentencePieceTokenizer.train(learned, words.size, words.sentinels)


@cache
def unlabelled(words: Vocabulary) -> Int32[Tensor, " tokens"]:
    """Encode the unlabelled texts, one after the other."""
    return torch.cat([tokenizer(words).encode_to_tensor(text) for text in plain_texts()])


@cache
def training(words: Vocabulary, name: str, longest: int) -> tuple[Pair, ...]:
    """Encode training examples of a task whose input is short enough, and whose answer the vocabulary can spell."""
    read = tokenizer(words)
    whole = task(name, "train")
    order = np.random.default_rng(0).permutation(len(whole.examples))[:POOL].tolist()
    kept = tuple(
        example
        for example in (whole.examples[place] for place in order)
        if len(input_of(whole, example, read)) < longest and read.unknown not in read.encode(example.answers[0])
    )
    return tuple(as_pairs(replace(whole, examples=kept), read))


@cache
def held_out(
    words: Vocabulary, name: str, longest: int, count: int, split: Split
) -> tuple[Task, tuple[list[int], ...]]:
    """Give the examples of a split that are short enough, at most so many and evenly spaced, and their inputs.

    Raises:
        ValueError: there are none.
    """
    whole = task(name, split)
    inputs = [(example, input_of(whole, example, tokenizer(words))) for example in whole.examples]
    short = [one for one in inputs if len(one[1]) < longest]
    if not short:
        raise ValueError(f"the task {name} has no {split} examples of fewer than {longest} tokens")
    count = min(count, len(short))
    # Neighbours are alike.
    chosen = [short[place * len(short) // count] for place in range(count)]
    return replace(whole, examples=tuple(example for example, _ in chosen)), tuple(source for _, source in chosen)
