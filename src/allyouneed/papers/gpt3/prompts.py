"""Prompts: an instruction, solved examples drawn from a training set, and the question to be answered (section 2.4)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from allyouneed.data.tasks import Example
from allyouneed.text import Tokenizer


@dataclass(frozen=True)
class Layout:
    r"""How examples are written: `{before}question{between} answer`, with `{delimiter}` before each but the first part.

    Every part begins where white space does, where byte-level tokenizers cut in any case: so parts that are encoded
    one by one have the tokens of the whole text, and a prompt that many questions share is encoded and computed once.
    What comes after a part must not add to its white space, so questions and answers are stripped.

    Attributes:
        before: stands before a question.
        between: stands between a question and its answer, which begins with a space.
        delimiter: one or two line breaks in the paper, depending on the task.
    """

    before: str = "Q: "
    between: str = "\nA:"
    delimiter: str = "\n\n"

    def question(self, text: str, *, first: bool = False) -> str:
        """Write down what is to be answered; the first part of a prompt has no delimiter before it."""
        return f"{'' if first else self.delimiter}{self.before}{text.strip()}{self.between}"

    def answer(self, text: str) -> str:
        """Write down an answer, or an option, as it follows its question."""
        return f" {text.strip()}"


@dataclass(frozen=True)
class Prompt:
    """What stands before a question.

    Attributes:
        text: instruction and examples; empty where there are neither.
        tokens: of the text, after those that every prompt starts with.
        examples: the solved examples in it, in order.
        dropped: those that were to be in it and for which there was no room.
        layout: how questions are written after it.
    """

    text: str
    tokens: tuple[int, ...]
    examples: tuple[Example, ...]
    dropped: tuple[Example, ...]
    layout: Layout

    def question(self, text: str) -> str:
        """Write down a question as it follows this prompt."""
        return self.layout.question(text, first=not self.text)

    def encode_question(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Give the tokens of a question as it follows this prompt."""
        encode = tokenizer.encode_continuation if self.text else tokenizer.encode
        return encode(self.question(text))


def draw(examples: Sequence[Example], shots: int, seed: int) -> tuple[Example, ...]:
    """Draw solved examples from a training set, without replacement, in an order that is random too.

    Of one seed a smaller number of examples is the beginning of a larger one.

    Args:
        examples: the training set.
        shots: how many; 0 or more.
        seed: of the draw; 0 or more.

    Raises:
        ValueError: an empty training set, or one smaller than the number of examples asked for; a number below 0.
    """
    if shots < 0 or seed < 0:
        raise ValueError(f"{shots} examples with seed {seed} cannot be drawn: neither may be below 0")
    if shots > len(examples):
        have = "is empty" if not examples else f"has {len(examples)}"
        raise ValueError(f"{shots} examples cannot be drawn from the training set: it {have}")
    order = np.random.default_rng(np.random.SeedSequence(seed)).permutation(len(examples))
    return tuple(examples[place] for place in order[:shots])


def assemble(
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    *,
    instruction: str = "",
    layout: Layout | None = None,
    context: int | None = None,
    reserved: int = 0,
    start: Sequence[int] | None = None,
) -> Prompt:
    """Write a prompt of as many of the examples as there is room for, the first ones first.

    Args:
        tokenizer: counts the tokens.
        examples: solved ones, such as `draw` gives; the first answer of each is shown.
        instruction: what to do, in words; none where empty.
        layout: how examples are written; `Layout()` where None.
        context: the most tokens that the model reads; no limit where None.
        reserved: tokens of it that are kept for the question and its answer, as `longest` counts them.
        start: tokens that the model expects at the beginning of a text, such as the end of the text before; those with
            which the tokenizer begins prompts where None.

    Raises:
        ValueError: no room for the instruction, an example that is longer than the context and would fit into no
            prompt, or an example without an answer.
    """
    layout = layout or Layout()
    start = tokenizer.encode_prompt("") if start is None else start
    text = instruction.strip()
    tokens = [*start, *tokenizer.encode(text)]
    room = None if context is None else context - reserved
    if context is not None and len(tokens) + reserved > context:
        raise ValueError(
            f"a question and its answer need {reserved} tokens and what stands before all examples {len(tokens)}, "
            f"together more than the context of {context}: shorten the instruction, or leave long questions out"
        )
    shown = 0
    for example in examples:
        if not example.answers:
            raise ValueError(f"the example {example.text[:60]!r} has no answer to be shown")
        part = layout.question(example.text, first=not text) + layout.answer(example.answers[0])
        new = tokenizer.encode_continuation(part) if text else tokenizer.encode(part)
        if context is not None and len(start) + len(new) > context:
            raise ValueError(
                f"the example {example.text[:60]!r} has {len(new)} tokens, more than the context of {context}: it fits "
                "into no prompt, so leave it out of the training set"
            )
        if room is not None and len(tokens) + len(new) > room:
            break
        text += part
        tokens += new
        shown += 1
    return Prompt(text, tuple(tokens), tuple(examples[:shown]), tuple(examples[shown:]), layout)


def longest(tokenizer: Tokenizer, questions: Sequence[Example], layout: Layout, *, new_tokens: int = 0) -> int:
    """Count the tokens of the longest question and its longest option, for `assemble` to keep free.

    Args:
        tokenizer: counts.
        questions: all that are to follow one prompt.
        layout: how they are written.
        new_tokens: that are to be written where an answer is free.

    Raises:
        ValueError: there are no questions.
    """
    if not questions:
        raise ValueError("there are no questions: at least one is needed")
    lengths = {text: len(tokenizer.encode(layout.answer(text))) for one in questions for text in one.options}
    return max(
        len(tokenizer.encode(layout.question(one.text)))
        + max([new_tokens, *(lengths[option] for option in one.options)])
        for one in questions
    )
