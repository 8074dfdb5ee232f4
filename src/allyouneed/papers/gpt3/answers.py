"""Free answers: what a model writes after a question, and how it is compared with what counts as right."""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from allyouneed.text import LanguageModel, Sampling, TextStream, Tokenizer, continuations, end_tokens
from allyouneed.text.scoring import in_parts, prefix_cache

from .prompts import Prompt

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def write_answers(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: Prompt,
    questions: Sequence[str],
    *,
    new_tokens: int,
    stop: Sequence[str] = ("\n",),
) -> list[str]:
    """Let a model answer every question after a prompt that all of them share, greedily.

    An answer ends before a stop string, and at each token that the model or its tokenizer says ends a text. The prompt
    is computed once. Questions of equally many tokens go together, so that no padding stands between the
    prompt and a question.

    Args:
        model: a causal language model whose cache can be branched, such as `nn.Decoder`.
        tokenizer: the model's.
        prompt: as `assemble` gives it.
        questions: what is asked.
        new_tokens: the most tokens of an answer.
        stop: strings that end an answer too; the end of the line, by default.

    Raises:
        ValueError: a question that is, with the prompt before it and the answer after, longer than the model's context.
    """
    coded = [prompt.encode_question(tokenizer, text) for text in questions]
    context = getattr(model, "context", None)
    for text, tokens in zip(questions, coded, strict=True):
        total = len(prompt.tokens) + len(tokens) + new_tokens - 1
        if context is not None and total > context:
            raise ValueError(
                f"the question {text[:60]!r} has {total} tokens with the prompt before it and {new_tokens} after it, "
                f"more than the model's context of {context}: keep room for it in `assemble`, or leave it out"
            )
    ends = end_tokens(model, tokenizer)
    trunk = prefix_cache(model, prompt.tokens)
    answers = [""] * len(questions)
    for group in _equally_long(coded, len(prompt.tokens)):
        prompts = [[*prompt.tokens, *coded[place]] for place in group]
        streams = [TextStream(tokenizer, stop, prompt=tokens) for tokens in prompts]
        steps = continuations(
            model,
            prompts,
            new_tokens=new_tokens,
            sampling=Sampling.greedy(),
            stop=ends,
            cache=trunk.branch([0] * len(group)),
        )
        ended: bool | None = None
        while True:
            try:
                row, token = steps.send(ended)
            except StopIteration:
                break
            answers[group[row]] += streams[row].add(token)
            ended = streams[row].stopped
        for row, place in enumerate(group):
            answers[place] = (answers[place] + streams[row].finish()).strip()
    return answers


def _equally_long(questions: Sequence[Sequence[int]], earlier: int) -> Iterator[list[int]]:
    """Put the places of questions with equally many tokens together, as many as are computed at a time."""
    order = sorted(range(len(questions)), key=lambda place: len(questions[place]))
    for length, places in groupby(order, key=lambda place: len(questions[place])):
        same = list(places)
        yield from in_parts(same, [length] * len(same), earlier)


def plain(text: str) -> str:
    """Write an answer as those to questions are compared: lower case, no punctuation, no articles, single spaces.

    Source: Rajpurkar et al. 2016, section 6.1.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, right: Sequence[str], form: Callable[[str], str] = str.strip) -> bool:
    """Tell whether an answer is one of the right ones, to the letter.

    Args:
        answer: what was written.
        right: what counts as right.
        form: how both are written before they are compared; `plain` for answers to questions in words. Not for numbers,
            whose sign it would take away.
    """
    return form(answer) in map(form, right)


def f1(answer: str, right: Sequence[str]) -> float:
    """Give the harmonic mean of precision and recall of an answer's words, for the right answer that it comes nearest.

    Source: Rajpurkar et al. 2016, section 6.1. An answer without words matches a right one without words.

    Raises:
        ValueError: there is no right answer.
    """
    if not right:
        raise ValueError("an answer cannot be compared with no right answer")
    return max(_f1(plain(answer).split(), plain(one).split()) for one in right)


def _f1(given: list[str], right: list[str]) -> float:
    if not given or not right:
        return float(given == right)
    shared = sum((Counter(given) & Counter(right)).values())
    return 2 * shared / (len(given) + len(right))
