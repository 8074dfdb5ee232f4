"""How one sequence's tokens are sampled: its generator, what it has seen, and what is drafted for it."""

import warnings
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from allyouneed.text.generation import row_generator

from .requests import LogProbabilities
from .scheduler import SequenceState
from .speculation import Draft, DraftToken, accept


class SequenceSampler:
    """Draws the tokens of a sequence.

    Args:
        sequence: whose tokens.
        vocabulary: how many tokens there are.
        draft: where draft tokens come from; none where None.
    """

    def __init__(self, sequence: SequenceState, vocabulary: int, draft: Draft | None):
        request = sequence.request
        self._sequence = sequence
        self._generator = row_generator(request.seed, sequence.choice)
        self._seen = None
        if request.sampling.repetition_penalty != 1:
            self._seen = torch.zeros(vocabulary, dtype=torch.bool)
            self._seen[torch.tensor(sequence.tokens)] = True
        self._draft_session = None if draft is None else draft.begin(request.sampling, request.seed, sequence.choice)
        self._draft_tokens: list[DraftToken] = []

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
        """
        request = self._sequence.request
        draft_tokens = self._draft_tokens if len(logits) > 1 else []
        tokens = accept(logits, draft_tokens, request.sampling, self._generator, self._seen)
        for token, row in zip(tokens, logits, strict=False):
            if self._seen is not None:
                self._seen[token] = True
            yield token, None if request.likeliest is None else likelihoods(row, token, request.likeliest)


def likelihoods(logits: Float[Tensor, " vocabulary"], token: int, count: int) -> LogProbabilities:
    """Say how likely a token was, and which were likeliest."""
    logarithms = logits.float().log_softmax(-1)
    values, ids = logarithms.topk(min(count, len(logarithms)))
    return LogProbabilities(float(logarithms[token]), dict(zip(ids.tolist(), values.tolist(), strict=True)))
