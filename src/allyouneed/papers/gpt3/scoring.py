"""Choosing among options by their likelihood, with what many questions have in common computed once (section 2.4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from allyouneed.data.tasks import Example
from allyouneed.text import LanguageModel, Tokenizer, score_tokens

from .prompts import Prompt

Normalisation = Literal["total", "per_token", "unconditional"]
NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)
ANSWER_CONTEXT = "Answer:"
"""What stands before an option when its unconditional probability is asked for; the option brings its own space."""


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
