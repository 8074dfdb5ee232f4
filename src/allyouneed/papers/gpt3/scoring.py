"""Choosing among options by their likelihood, with what many questions have in common computed once (section 2.4)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from allyouneed.data.tasks import Example
from allyouneed.text import LanguageModel, Tokenizer
from allyouneed.text.generation import evaluating

from .prompts import Prompt

Normalisation = Literal["total", "per_token", "unconditional"]
NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)
ANSWER_CONTEXT = "Answer:"
"""What stands before an option when its unconditional probability is asked for; the option brings its own space."""

# Tokens that a model is given at a time, and keys that all rows together look at: what a branched cache joins anew in
# each layer stays small.
_TOKENS_AT_A_TIME, _KEYS_AT_A_TIME = 1024, 32_768


@dataclass(frozen=True)
class OptionScores:
    """What a model thinks of the options of one question. Log-likelihoods are in nats.

    Every option is scored whole: the log-likelihoods of all of its tokens, each given those before it. By the first
    token alone, options that begin alike ("positive", "positively") could not be told apart.

    Attributes:
        log_likelihoods: of each option after the question, summed over its tokens.
        lengths: tokens of each option.
        unconditional: log-likelihood of each option where nothing but `ANSWER_CONTEXT` stands before it; empty where
            they were not asked for.
    """

    log_likelihoods: tuple[float, ...]
    lengths: tuple[int, ...]
    unconditional: tuple[float, ...] = ()

    def scores(self, normalisation: Normalisation) -> tuple[float, ...]:
        """Give the score of each option.

        Args:
            normalisation: "total" is the log-likelihood, which favours short options; "per_token" divides it by the
                number of tokens; "unconditional" is ln P(option | context) − ln P(option | answer context), by which
                options that are likely anywhere gain nothing.

        Raises:
            ValueError: another normalisation, or "unconditional" where those likelihoods were not asked for.
        """
        if normalisation == "total":
            return self.log_likelihoods
        if normalisation == "per_token":
            return tuple(total / length for total, length in zip(self.log_likelihoods, self.lengths, strict=True))
        if normalisation != "unconditional":
            raise ValueError(f"normalisation is {normalisation!r}: it must be one of {', '.join(NORMALISATIONS)}")
        if not self.unconditional:
            raise ValueError("the unconditional likelihoods were not asked for: score with `unconditional=True`")
        return tuple(given - alone for given, alone in zip(self.log_likelihoods, self.unconditional, strict=True))

    def choice(self, normalisation: Normalisation) -> int:
        """Give the place of the option with the highest score, the first of several that tie."""
        scores = self.scores(normalisation)
        return scores.index(max(scores))


def accuracy(scores: Sequence[OptionScores], questions: Sequence[Example], normalisation: Normalisation) -> float:
    """Give the share of questions whose highest option is right.

    Raises:
        ValueError: no questions, not as many scores as questions, or a question without options.
    """
    if not questions or len(scores) != len(questions):
        raise ValueError(
            f"{len(questions)} questions and {len(scores)} scores: there must be as many, and at least one"
        )
    right = [
        one.options[given.choice(normalisation)] in one.answers for given, one in zip(scores, questions, strict=True)
    ]
    return sum(right) / len(right)


def score_options(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: Prompt,
    questions: Sequence[Example],
    *,
    unconditional: bool = False,
    answer_context: str = ANSWER_CONTEXT,
    start: Sequence[int] | None = None,
) -> list[OptionScores]:
    """Score the options of every question after a prompt that all of them share.

    The prompt is computed once, a question once for all of its options, and of the options what follows the first
    token, whose likelihood the question gives already. No padding stands before anything that is scored. The same call
    gives the same scores; with other questions beside it a score differs by rounding.

    Args:
        model: a causal language model whose cache can be branched, such as `nn.Decoder`.
        tokenizer: the model's.
        prompt: as `assemble` gives it.
        questions: each with its options; their answers are not looked at.
        unconditional: score each option after `answer_context` alone as well.
        answer_context: "Answer:" or "A:" in the paper.
        start: tokens that the model expects at the beginning of a text; used before `answer_context`. Those with which
            the tokenizer begins prompts where None.

    Raises:
        ValueError: a question without two options, with an empty option, or with two that have the same tokens; one
            that is, with the prompt before it, longer than the model's context.
    """
    coded = [_coded(tokenizer, prompt, one) for one in questions]
    _check_lengths(model, prompt, coded, questions)
    likelihoods = score_tokens(model, prompt.tokens, [one[0] for one in coded], [one[1] for one in coded])
    alone: Mapping[tuple[int, ...], float] = {}
    if unconditional:
        distinct = sorted({option for _, options in coded for option in options})
        start = tokenizer.encode_prompt("") if start is None else start
        context = [*start, *tokenizer.encode(answer_context)]
        alone = dict(zip(distinct, score_tokens(model, (), [context], [distinct])[0], strict=True))
    return [
        OptionScores(
            tuple(given),
            tuple(map(len, options)),
            tuple(alone[option] for option in options) if unconditional else (),
        )
        for given, (_, options) in zip(likelihoods, coded, strict=True)
    ]


def score_tokens(
    model: LanguageModel,
    prefix: Sequence[int],
    questions: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
) -> list[list[float]]:
    """Sum the log-likelihoods, in nats, of each question's options after the prefix and the question.

    Args:
        model: as in `score_options`.
        prefix: what all questions share; may be empty.
        questions: tokens of each, at least one.
        options: tokens of each option of each question, at least one.
    """
    device = device_of(model)
    found: list[list[float]] = [[] for _ in questions]
    with torch.inference_mode(), evaluating(model):
        trunk = prefix_cache(model, prefix)
        order = sorted(range(len(questions)), key=lambda place: len(questions[place]))
        for group in in_parts(order, [len(questions[place]) for place in order], len(prefix)):
            cache = trunk.branch([0] * len(group))
            # Padding on the right is seen by nothing that comes before it.
            tokens, _ = _padded([questions[place] for place in group], device)
            ends = torch.tensor([len(questions[place]) for place in group], device=device)
            first = _widened(_logits_at(model, tokens, ends - 1, cache)).log_softmax(-1)
            for row, place in enumerate(group):
                found[place] = [float(first[row, option[0]]) for option in options[place]]
            for length, rows in groupby(range(len(group)), key=lambda row: len(questions[group[row]])):
                longer = [
                    (row, group[row], choice)
                    for row in rows
                    for choice, option in enumerate(options[group[row]])
                    if len(option) > 1
                ]
                rest = [options[place][choice] for _, place, choice in longer]
                scores = _rest_scored(model, cache, len(prefix) + length, [row for row, _, _ in longer], rest)
                for (_, place, choice), score in zip(longer, scores, strict=True):
                    found[place][choice] += score
    return found


def device_of(model: LanguageModel) -> torch.device:
    """Give the device of a model's weights."""
    return next((weight.device for weight in model.parameters()), torch.device("cpu"))


def prefix_cache(model: LanguageModel, prefix: Sequence[int]) -> Any:
    """Compute what many prompts begin with, once; the cache that holds it is to be branched."""
    cache = model.new_cache(capacity=max(1, len(prefix)))
    if prefix:
        with torch.inference_mode(), evaluating(model):
            tokens = torch.tensor([list(prefix)], device=device_of(model))
            _logits_at(model, tokens, torch.tensor([len(prefix) - 1], device=tokens.device), cache)
    return cache


def in_parts(places: Sequence[int], lengths: Sequence[int], earlier: int) -> Iterator[list[int]]:
    """Cut places, the short ones first, so that no part has many tokens or looks at many keys.

    Args:
        places: to be cut.
        lengths: tokens at each place, each at least as many as at the one before.
        earlier: tokens that stand before those of every place.
    """
    part: list[int] = []
    for place, length in zip(places, lengths, strict=True):
        rows = len(part) + 1
        if part and (rows * length > _TOKENS_AT_A_TIME or rows * (earlier + length) > _KEYS_AT_A_TIME):
            yield part
            part = []
        part.append(place)
    if part:
        yield part


def _rest_scored(
    model: LanguageModel, cache: Any, earlier: int, rows: Sequence[int], options: Sequence[Sequence[int]]
) -> list[float]:
    """Sum the log-likelihoods of all but the first token of each option, after so many tokens of the row it is for."""
    scores = [0.0] * len(options)
    order = sorted(range(len(options)), key=lambda place: len(options[place]))
    for part in in_parts(order, [len(options[place]) - 1 for place in order], earlier):
        tokens, counted = _padded([options[place] for place in part], device_of(model))
        # Rows that are padded to the length of others are cut to what is theirs, and gone on with.
        branches = cache.branch([rows[place] for place in part])
        branches.truncate(earlier)
        logits = _widened(model(tokens[:, :-1], cache=branches))
        chosen = logits.gather(-1, tokens[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)
        sums = chosen.where(counted[:, 1:], 0.0).sum(-1).tolist()
        for place, score in zip(part, sums, strict=True):
            scores[place] = score
    return scores


def _padded(
    rows: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
    """Put rows of tokens into one tensor, padded on the right, and say what is no padding."""
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    present = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, content in enumerate(rows):
        tokens[row, : len(content)] = torch.tensor(list(content))
        present[row, : len(content)] = True
    return tokens.to(device), present.to(device)


def _logits_at(
    model: Any, tokens: Int[Tensor, "batch length"], places: Int[Tensor, " batch"], cache: Any
) -> Float[Tensor, "batch vocabulary"]:
    """Give the logits of what follows one place of each row, and of no other place where the model can do that."""
    rows = torch.arange(len(tokens), device=tokens.device)
    if hasattr(model, "hidden") and hasattr(model, "logits"):
        return model.logits(model.hidden(tokens, cache=cache)[rows, places])
    return model(tokens, cache=cache)[rows, places]


def _widened(logits: Tensor) -> Tensor:
    """Give logits in 32 bits where they have fewer, for sums over a vocabulary are beyond 16."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _coded(tokenizer: Tokenizer, prompt: Prompt, one: Example) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    named = f"the question {one.text[:60]!r}"
    if len(one.options) < 2:
        raise ValueError(f"{named} has {len(one.options)} options: to choose there must be at least two")
    empty = [option for option in one.options if not option.strip()]
    if empty:
        raise ValueError(f"{named} has the option {empty[0]!r}: each must say something")
    options = tuple(tuple(tokenizer.encode_continuation(prompt.layout.answer(option))) for option in one.options)
    if len(set(options)) < len(options):
        repeated = next(text for text, tokens in zip(one.options, options, strict=True) if options.count(tokens) > 1)
        raise ValueError(f"{named} has the option {repeated!r} twice: nothing could tell them apart")
    return tuple(prompt.encode_question(tokenizer, one.text)), options


def _check_lengths(model: Any, prompt: Prompt, coded: Sequence[Any], questions: Sequence[Example]) -> None:
    context = getattr(model, "context", None)
    for one, (tokens, options) in zip(questions, coded, strict=True):
        # An option's last token is scored, and not read.
        total = len(prompt.tokens) + len(tokens) + max(map(len, options)) - 1
        if context is not None and total > context:
            raise ValueError(
                f"the question {one.text[:60]!r} has {total} tokens with its longest option and the prompt before it, "
                f"more than the model's context of {context}: keep room for it in `assemble`, or leave it out"
            )
