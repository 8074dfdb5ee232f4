"""Every task as text in, text out (section 2.4): prefixes, answers as words, and what counts as right."""

from collections.abc import Sequence

from allyouneed.data.tasks import Example, Task
from allyouneed.text import Translator, beam_search

from .objectives import Pair
from .sentencepieces import SentencePieceTokenizer


def as_text(name: str, **parts: str) -> str:
    """Write an input: the task's name, then its parts, each after its own name, as "mnli premise: … hypothesis: …".

    A part named `text` stands by itself: "sst2 sentence: …" and "summarize: …" are both made so.

    Raises:
        ValueError: no parts.
    """
    if not parts:
        raise ValueError(f"the task {name!r} was given nothing to read")
    if list(parts) == ["text"]:
        return f"{name}: {parts['text']}"
    return " ".join([name, *(f"{part}: {content}" for part, content in parts.items())])


def number_as_text(score: float) -> str:
    """Write a similarity from 1 to 5 as the nearest of 21 strings, in steps of 0.2: 2.57 becomes "2.6" (STS-B).

    Raises:
        ValueError: a number out of range.
    """
    if not 1 <= score <= 5:
        raise ValueError(f"score {score} is out of range: it must be from 1 to 5")
    return f"{round(score * 5) / 5:.1f}"


def text_as_number(text: str) -> float | None:
    """Read a similarity that was written; None where it is no number from 1 to 5, which counts as wrong."""
    try:
        score = float(text)
    except ValueError:
        return None
    return score if 1 <= score <= 5 else None


def check_labels(labels: Sequence[str], tokenizer: SentencePieceTokenizer) -> dict[str, list[int]]:
    """Spell the labels of a task, and make sure that each can be written and told from the others.

    Labels may begin with the same token, since the whole answer counts; as wholes they must differ in their tokens.

    Raises:
        ValueError: no labels, one that cannot be spelled, or two that are spelled alike; they are named.
    """
    if not labels:
        raise ValueError("the task has no labels")
    spelled = {label: tokenizer.spell(label) for label in labels}
    seen: dict[tuple[int, ...], str] = {}
    for label, tokens in spelled.items():
        other = seen.setdefault(tuple(tokens), label)
        if other != label:
            raise ValueError(
                f"the labels {other!r} and {label!r} have the same tokens, so that they cannot be told apart"
            )
    return spelled


def as_pairs(task: Task, tokenizer: SentencePieceTokenizer, *, longest: int | None = None) -> list[Pair]:
    """Encode a task's examples, each as its text with the task's name before it and its first answer.

    Args:
        task: the examples.
        tokenizer: of the model.
        longest: tokens of an input, beyond which its end is cut off; one place is left for the token that ends it.

    Raises:
        ValueError: no examples, options that cannot be written or told apart, or an answer that cannot be written.
    """
    if not task.examples:
        raise ValueError(f"the task {task.name} has no examples")
    if task.options:
        check_labels(task.options, tokenizer)
    return [
        Pair(input_of(task, example, tokenizer, longest=longest), tokenizer.spell(example.answers[0]))
        for example in task.examples
    ]


def input_of(
    task: Task, example: Example, tokenizer: SentencePieceTokenizer, *, longest: int | None = None
) -> list[int]:
    """Encode an example's input: the task's name, then the text."""
    tokens = tokenizer.encode(as_text(task.name.replace("_", " "), text=example.text))
    return tokens if longest is None else tokens[: longest - 1]


def write_answers(
    model: Translator,
    tokenizer: SentencePieceTokenizer,
    sources: Sequence[Sequence[int]],
    *,
    limit: int | None = None,
    beam: int = 1,
    alpha: float = 0.6,
    batch: int = 64,
) -> list[str]:
    """Let a model answer, by greedy decoding as in most of the paper, or by beam search (section 3.7: 4 and 0.6).

    Args:
        model: an encoder–decoder or a `LanguageModel`.
        tokenizer: of the model.
        sources: the inputs' tokens, without the one that ends them.
        limit: the most tokens of an answer, its end among them; none but beam search's own where None.
        beam: beginnings kept of each answer.
        alpha: exponent of the length penalty, where there is a beam.
        batch: inputs at a time.

    Raises:
        ValueError: as `beam_search`.
    """
    ended = [[*source, tokenizer.end] for source in sources]
    found = beam_search(
        model,
        ended,
        begin=tokenizer.padding,
        end=tokenizer.end,
        beam=beam,
        alpha=alpha if beam > 1 else 0.0,
        limit=limit,
        batch=batch,
    )
    return [tokenizer.decode(hypothesis.tokens) for hypothesis in found]


def exact_match(written: Sequence[str], task: Task, tokenizer: SentencePieceTokenizer) -> float:
    """Give the share of answers that are, as written, one of those that count as right.

    Whatever else was written is wrong, text that is no label of the task too (section 2.4).

    Raises:
        ValueError: another number of answers than examples, or none.
    """
    if not written or len(written) != len(task.examples):
        raise ValueError(f"there are {len(written)} answers to the {len(task.examples)} examples of {task.name}")
    right = 0
    for text, example in zip(written, task.examples, strict=True):
        # As the tokenizer would give them back: with one space between words, and so on.
        right += text in {tokenizer.decode(tokenizer.encode(answer)) for answer in example.answers}
    return right / len(written)
