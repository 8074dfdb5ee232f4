"""How one text's tokens are drawn: its generator, what it has seen, and what is proposed for it."""

import warnings
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from allyouneed.text.generation import row_generator

from .requests import LogProbabilities
from .scheduler import Running
from .speculation import Draft, Proposal, accept


class Writing:
    """Draws the tokens of a text.

    Args:
        text: whose tokens.
        vocabulary: how many tokens there are.
        draft: where proposals come from; none where None.
    """

    def __init__(self, text: Running, vocabulary: int, draft: Draft | None):
        request = text.request
        self._text = text
        self._generator = row_generator(request.seed, text.choice)
        self._seen = None
        if request.sampling.repetition_penalty != 1:
            self._seen = torch.zeros(vocabulary, dtype=torch.bool)
            self._seen[torch.tensor(text.tokens)] = True
        self._drafting = None if draft is None else draft.begin(request.sampling, request.seed, text.choice)
        self._proposals: list[Proposal] = []

    def propose(self, most: int) -> list[int]:
        """Give tokens that may follow, at most so many."""
        if self._drafting is None:
            return []
        try:
            self._proposals = self._drafting.propose(self._text.tokens, most)[:most]
        except Exception as error:
            # A text can do without proposals.
            warnings.warn(f"nothing is proposed, because the draft failed: {error!r}", stacklevel=2)
            self._proposals = []
        return [proposal.token for proposal in self._proposals]

    def draw(self, logits: Float[Tensor, "rows vocabulary"]) -> Iterator[tuple[int, LogProbabilities | None]]:
        """Draw what follows: the proposals that are accepted, and one token more; who stops early takes fewer.

        Args:
            logits: after the text, and after each proposal if there are any in this pass.

        Raises:
            ValueError: nothing can be drawn from the logits, since they are not finite.
        """
        request = self._text.request
        proposals = self._proposals if len(logits) > 1 else []
        tokens = accept(logits, proposals, request.sampling, self._generator, self._seen)
        for token, row in zip(tokens, logits, strict=False):
            if self._seen is not None:
                self._seen[token] = True
            yield token, None if request.likeliest is None else likelihoods(row, token, request.likeliest)


def likelihoods(logits: Float[Tensor, " vocabulary"], token: int, count: int) -> LogProbabilities:
    """Say how likely a token was, and which were likeliest."""
    logarithms = logits.float().log_softmax(-1)
    values, ids = logarithms.topk(min(count, len(logarithms)))
    return LogProbabilities(float(logarithms[token]), dict(zip(ids.tolist(), values.tolist(), strict=True)))
