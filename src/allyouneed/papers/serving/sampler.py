"""How one sequence's tokens are sampled: its generator, what it has seen, and what is drafted for it."""

import warnings
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from allyouneed.text.constraints import constrained
from allyouneed.text.generation import row_generator

from .requests import LogProbabilities, Request
from .sequences import SequenceState
from .speculation import Draft, DraftToken, accept


class SequenceSampler:
    """Samples the tokens of a sequence.

    Args:
        sequence: whose tokens.
        vocabulary: how many tokens there are.
        draft: where draft tokens come from; none where None.
    """

    def __init__(self, sequence: SequenceState, vocabulary: int, draft: Draft | None):
        request = sequence.request
        self._sequence = sequence
        self._generator = row_generator(request.seed, sequence.choice)
        self._seen = self._counts = None
        if request.sampling.needs_counts:
            self._counts = torch.zeros(vocabulary, dtype=torch.int32)
        if request.sampling.repetition_penalty != 1:
            self._seen = torch.zeros(vocabulary, dtype=torch.bool)
            self._seen[torch.tensor(sequence.tokens)] = True
        self._constraint = None if request.constraint is None else request.constraint.copy()
        self._draft_session = None if draft is None else draft.begin(request.sampling, request.seed, sequence.choice)
        self._draft_tokens: list[DraftToken] = []

    @property
    def is_finished(self) -> bool:
        """Whether nothing may follow what was sampled."""
        return self._constraint is not None and self._constraint.is_finished

    def propose(self, most: int) -> list[int]:
        """Give tokens that may follow, at most so many."""
        if self._draft_session is None:
            return []
        try:
            self._draft_tokens = self._draft_session.propose(self._sequence.tokens, most)[:most]
        except Exception as error:
            # A sequence can do without draft tokens.
            warnings.warn(f"nothing is proposed, because the draft failed: {error!r}", stacklevel=2)
            self._draft_tokens = []
        return [drafted.token for drafted in self._draft_tokens]

    def sample(self, logits: Float[Tensor, "rows vocabulary"]) -> Iterator[tuple[int, LogProbabilities | None]]:
        """Sample what follows: the draft tokens that are accepted, and one token more; who stops early takes fewer.

        Args:
            logits: after the sequence, and after each draft token if there are any in this step.

        Raises:
            ValueError: nothing can be sampled from the logits, since they are not finite.
            ConstraintError: no token may follow.
        """
        request = self._sequence.request
        draft_tokens = self._draft_tokens if len(logits) > 1 else []
        allowed = self._constrained(logits, draft_tokens)
        allowed = _without_early_stops(allowed, request, self._sequence.generated)
        tokens = accept(allowed, draft_tokens, request.sampling, self._generator, self._seen, self._counts)
        for token, row in zip(tokens, logits, strict=False):
            if self._seen is not None:
                self._seen[token] = True
            if self._counts is not None:
                self._counts[token] += 1
            if self._constraint is not None and token not in request.stop:
                self._constraint.advance(token)
            yield (
                token,
                None if request.logprobs is None else log_probabilities(row[None], [token], request.logprobs)[0],
            )

    def _constrained(
        self, logits: Float[Tensor, "rows vocabulary"], draft_tokens: Sequence[DraftToken]
    ) -> Float[Tensor, "rows vocabulary"]:
        """Mask what may not follow in each row, were the draft tokens before it accepted; the first may not be."""
        if self._constraint is None:
            return logits
        stop, constraint = self._sequence.request.stop, self._constraint.copy()
        masked = logits.clone()
        for place in range(len(logits)):
            masked[place] = constrained(logits[place], constraint, stop)
            # A draft token that is masked is not accepted, and after one that ends the sequence nothing is read.
            if place == len(draft_tokens) or (token := draft_tokens[place].token) in stop:
                break
            if not bool(torch.isfinite(masked[place, token])):
                break
            constraint.advance(token)
            if constraint.is_finished:
                break
        return masked


def log_probabilities(
    logits: Float[Tensor, "rows vocabulary"], tokens: Sequence[int], count: int
) -> list[LogProbabilities]:
    """Give the log probability of a token after each row of logits, and those of the likeliest tokens there.

    Raises:
        ValueError: logits that are not finite where they are highest.
    """
    logarithms = logits.float().log_softmax(-1)
    if bool(logarithms.isnan().any()):
        raise ValueError("the model's logits have no log probabilities: the highest of a row must be finite")
    values, ids = logarithms.topk(min(count, logarithms.shape[-1]))
    chosen = logarithms.gather(-1, torch.tensor(tokens, device=logits.device)[:, None]).squeeze(-1)
    return [
        LogProbabilities(own, dict(zip(top_ids, top, strict=True)))
        for own, top_ids, top in zip(chosen.tolist(), ids.tolist(), values.tolist(), strict=True)
    ]


def _without_early_stops(
    logits: Float[Tensor, "rows vocabulary"], request: Request, generated: int
) -> Float[Tensor, "rows vocabulary"]:
    """Mask the tokens that end a sequence in rows where it has too few tokens yet."""
    early = request.min_new_tokens - generated
    stop = [token for token in request.stop if token < logits.shape[-1]]
    if early <= 0 or not stop:
        return logits
    logits = logits.clone()
    logits[:early, stop] = -torch.inf
    return logits


def keep_prompt_logprobs(sequence: SequenceState, count: int, logits: Float[Tensor, "_ vocabulary"]) -> None:
    """Keep what the last `count` tokens' logits say of those that follow them in the prompt, unless it is known."""
    request = sequence.request
    if request.prompt_logprobs is None:
        return
    # A sequence that lost its blocks comes by here again.
    known = sequence.table.length - count
    skipped = min(len(sequence.prompt_logprobs) - known, count)
    following = list(request.prompt[known + 1 + skipped : sequence.table.length + 1])
    rows = logits[skipped : skipped + len(following)]
    sequence.prompt_logprobs += log_probabilities(rows, following, request.prompt_logprobs)
