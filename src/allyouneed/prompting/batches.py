"""Many prompts in one call: what is kept is not asked again, the rest is asked together, and nothing is hidden."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from allyouneed.text import Sampling
from allyouneed.text.checks import check_count, check_texts

from .parsing import OutputFormat
from .progress import Progress
from .requests import BatchModel, Completion, CompletionRequest, Prompt, ScoreRequest, Scores, Usage
from .results import Result, Results
from .store import AnswerStore

_Answer = TypeVar("_Answer", Completion, Scores)

# Seeds of further attempts are far from those that anybody gives, also in servers that keep 32 bits of a seed.
_NEXT_ATTEMPT = 1_000_000_007


def complete(
    model: BatchModel,
    prompts: Sequence[Prompt],
    *,
    new_tokens: int = 512,
    sampling: Sampling | None = None,
    stop_strings: Sequence[str] = (),
    seed: int | Sequence[int] = 0,
    schema: Mapping[str, Any] | Any = None,
    constrain: bool = True,
    max_attempts: int = 3,
    store: AnswerStore | Path | str | None = None,
    progress: bool | None = None,
) -> Results[Completion]:
    """Complete many prompts with any model, and keep the answers.

    Equal prompts with equal seeds are asked once. To have several answers to a prompt, give it several times with seeds
    of their own.

    Args:
        model: asked for all at once.
        prompts: texts to be continued, or conversations to be answered.
        new_tokens: the most tokens of a completion.
        sampling: how tokens are sampled; as the model has it where None.
        stop_strings: strings that end a completion, and are not part of it.
        seed: of what is sampled, for all prompts or for each.
        schema: a JSON schema or a type, as for `OutputFormat`: each answer is parsed by it. What cannot be parsed is
            asked again with another seed.
        constrain: whether the sampler is held to the schema. Otherwise the prompt must ask for it.
        max_attempts: the most answers to a prompt, until one can be parsed. Greedy ones are the same each time, and are
            asked for once.
        store: where answers are kept; nowhere where None.
        progress: show a bar, or lines where there is no terminal; on a terminal alone where None.

    Raises:
        ValueError: a value out of range, or a schema that is none. What a single prompt fails of is in its result.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise ValueError(f"prompts is {prompts!r:.60}; it must be several texts or conversations, as [text]")
    check_texts("stop_strings", stop_strings)
    check_count("max_attempts", max_attempts)
    seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts: there must be one for all, or one for each")
    output = None if schema is None else OutputFormat(schema)
    wanted = output.json_schema if output is not None and constrain else None
    requests = [
        CompletionRequest(prompt, new_tokens, sampling, tuple(stop_strings), own, wanted)
        for prompt, own in zip(prompts, seeds, strict=True)
    ]
    if sampling is not None and sampling.temperature == 0:
        max_attempts = 1
    asking = _Asking(model, store, progress, len(requests))
    results: list[Result[Completion]] = [Result()] * len(requests)
    left = list(range(len(requests)))
    with asking.progress:
        for attempt in range(max_attempts):
            tried = [
                replace(requests[place], seed=(requests[place].seed + attempt * _NEXT_ATTEMPT) % 2**63)
                for place in left
            ]
            given = asking.ask(tried, model.complete, Completion, of_first=attempt == 0)
            for place, result in zip(left, given, strict=True):
                earlier = results[place]
                kept = result.from_store and (attempt == 0 or earlier.from_store)
                results[place] = replace(_parsed(result, output), attempts=attempt + 1, from_store=kept)
            left = [place for place in left if results[place].parse_error is not None]
            if not left:
                break
    return Results(results, asking.asked, asking.usage, asking.damaged)


def score(
    model: BatchModel,
    prompts: Sequence[Prompt],
    continuations: Sequence[Sequence[str]],
    *,
    store: AnswerStore | Path | str | None = None,
    progress: bool | None = None,
) -> Results[Scores]:
    """Give the log probabilities of continuations of many prompts, in the same way.

    Args:
        model: asked for all at once.
        prompts: texts, or conversations.
        continuations: of each prompt.
        store: where scores are kept; nowhere where None.
        progress: as for `complete`.

    Raises:
        ValueError: not as many lists of continuations as prompts, or an empty one.
    """
    if isinstance(prompts, str) or len(prompts) != len(continuations):
        raise ValueError(f"{len(prompts)} prompts and {len(continuations)} lists of continuations: give as many")
    asking = _Asking(model, store, progress, len(prompts))
    requests = [ScoreRequest(prompt, tuple(own)) for prompt, own in zip(prompts, continuations, strict=True)]
    with asking.progress:
        results = asking.ask(requests, model.score, Scores)
    return Results(results, asking.asked, asking.usage, asking.damaged)


class _Asking:
    """One call: its store, its progress, and what it cost."""

    def __init__(self, model: BatchModel, store: AnswerStore | Path | str | None, progress: bool | None, count: int):
        self.store = store if store is None or isinstance(store, AnswerStore) else AnswerStore(store)
        # An open store may have met damage before.
        self._known_damage = 0 if self.store is None else len(self.store.damaged)
        self.progress = Progress(count, shown=progress)
        self.asked = 0
        self.usage = Usage()
        # Without a store nothing needs to be told apart from other models' answers.
        self._identity = {} if self.store is None else model.identity

    @property
    def damaged(self) -> list[Path]:
        return [] if self.store is None else self.store.damaged[self._known_damage :]

    def ask(
        self,
        requests: Sequence[Any],
        give: Callable[[Sequence[Any], Callable[[int, Any], object]], None],
        kind: type[_Answer],
        *,
        of_first: bool = True,
    ) -> list[Result[_Answer]]:
        """Give the result of each request: kept, or asked for now; equal ones are asked for once."""
        keys = [request.key(self._identity) for request in requests]
        found: dict[str, Result[_Answer]] = {}
        places = Counter(keys)
        open_: dict[str, Any] = {}
        for key, request in zip(keys, requests, strict=True):
            if key in found or key in open_:
                continue
            kept = None if self.store is None else self.store.get(key)
            if kept is None:
                open_[key] = request
            else:
                found[key] = Result(_read(kind, kept), from_store=True)
                self.progress.advance(places[key] * of_first, from_store=True)

        order = list(open_)

        def take(place: int, answer: _Answer | Exception) -> None:
            key = order[place]
            failed = isinstance(answer, Exception)
            found[key] = Result(error=answer) if failed else Result(answer)
            if not failed:
                self.asked += 1
                if isinstance(answer, Completion) and answer.usage is not None:
                    self.usage += answer.usage
                if self.store is not None:
                    self.store.put(key, asdict(answer), asdict(open_[key]))
            self.progress.advance(places[key] * of_first, failed=failed)

        if order:
            give([open_[key] for key in order], take)
        lost = RuntimeError("the model gave no answer, and no reason")
        return [found.get(key, Result(error=lost)) for key in keys]


def _parsed(result: Result[Completion], output: OutputFormat | None) -> Result[Completion]:
    if output is None or result.answer is None:
        return result
    try:
        return replace(result, value=output.parse(result.answer.text))
    except ValueError as error:
        cut = " (it was cut off at new_tokens)" if result.answer.finish_reason == "length" else ""
        return replace(result, parse_error=ValueError(f"{error}{cut}"))


def _read(kind: type[_Answer], kept: Mapping[str, Any]) -> Any:
    if kind is Completion:
        usage = None if kept["usage"] is None else Usage(**kept["usage"])
        return Completion(kept["text"], kept["finish_reason"], usage)
    return Scores(tuple(kept["log_probabilities"]), tuple(kept["tokens"]))
