"""Speculative decoding: cheap draft tokens, verified by the model in one forward pass, which keeps its distribution.

Sources: Leviathan, Kalman & Matias 2023 (arXiv:2211.17192), algorithm 1; Chen et al. 2023 (arXiv:2302.01318). Draft
tokens by looking for earlier occurrences of the last tokens: Saxena 2023 ("prompt lookup decoding").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from allyouneed.nn import Decoder, arrange_for_inference
from allyouneed.text import Sampling, probabilities, sample
from allyouneed.text.generation import row_generator


@dataclass(frozen=True)
class DraftToken:
    """A token that may come next.

    Attributes:
        token: its id.
        sampled_from: the distribution q that it was sampled from; None where it is certain.
    """

    token: int
    sampled_from: Float[Tensor, " vocabulary"] | None = None


@runtime_checkable
class DraftSession(Protocol):
    """Draft tokens for one sequence, which may keep what it computed for it."""

    def propose(self, tokens: Sequence[int], most: int) -> list[DraftToken]:
        """Give tokens that may follow, at most so many; what is given depends on the tokens alone."""
        ...


@runtime_checkable
class Draft(Protocol):
    """Where draft tokens come from."""

    def begin(self, sampling: Sampling, seed: int, row: int) -> DraftSession:
        """Begin with a sequence that is sampled so."""
        ...


class NGramDraft:
    """Proposes what followed the last time that the last tokens stood in the sequence.

    Args:
        longest: how many of the last tokens are looked for at first; then one fewer, down to `shortest`.
        shortest: the fewest that are looked for.

    Raises:
        ValueError: `shortest` below 1 or above `longest`.
    """

    def __init__(self, longest: int = 3, shortest: int = 2):
        if not 1 <= shortest <= longest:
            raise ValueError(
                f"from {shortest} to {longest} tokens cannot be looked for: it must be 1 ≤ shortest ≤ longest"
            )
        self.longest = longest
        self.shortest = shortest

    def begin(self, sampling: Sampling, seed: int, row: int) -> "NGramDraft":
        """Give itself: nothing is kept for a sequence."""
        return self

    def propose(self, tokens: Sequence[int], most: int) -> list[DraftToken]:
        """Give what followed the latest earlier occurrence of the longest end of the sequence that has one."""
        tokens = list(tokens)
        for size in range(min(self.longest, len(tokens) - 1), self.shortest - 1, -1):
            end = tokens[-size:]
            for start in range(len(tokens) - size - 1, -1, -1):
                if tokens[start : start + size] == end:
                    followed = tokens[start + size : start + size + most]
                    return [DraftToken(token) for token in followed]
        return []


class ModelDraft:
    """Proposes what a smaller model generates.

    Args:
        model: of the same vocabulary; it is put into evaluation mode and arranged for inference.
    """

    def __init__(self, model: Decoder):
        self.model = arrange_for_inference(model.eval())

    def begin(self, sampling: Sampling, seed: int, row: int) -> "ModelDraftSession":
        """Begin with a sequence."""
        return ModelDraftSession(self.model, sampling, seed, row)


class ModelDraftSession:
    """The smaller model's draft tokens for one sequence, and what it computed for it.

    Args:
        model: the smaller model.
        sampling: how the sequence is sampled; draft tokens are sampled alike, but for a repetition penalty.
        seed: of the sequence's random numbers. Those of draft tokens are others.
        row: the sequence's number.
    """

    def __init__(self, model: Any, sampling: Sampling, seed: int, row: int):
        self._model = model
        self._device = next(model.parameters()).device
        self._sampling = Sampling(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        self._seed = (seed, row)
        self._cache = model.new_cache()
        self._held: list[int] = []

    @torch.inference_mode()
    def propose(self, tokens: Sequence[int], most: int) -> list[DraftToken]:
        """Let the smaller model go on, token by token; nothing where its context ends."""
        tokens = list(tokens)
        context = self._model.context
        if context is not None and len(tokens) + most > context:
            return []
        agreed = next(
            (place for place, pair in enumerate(zip(self._held, tokens, strict=False)) if len({*pair}) > 1), None
        )
        agreed = min(len(self._held), len(tokens) - 1) if agreed is None else agreed
        if agreed < self._cache.shortest:
            self._cache, agreed = self._model.new_cache(), 0
        self._cache.truncate(agreed)
        # Random numbers of draft tokens depend on the place in the sequence, so that asking twice gives the same.
        generator = row_generator(self._seed[0], (1 + self._seed[1]) * 2**32 + len(tokens))
        fed, draft_tokens = tokens[agreed:], []
        for _ in range(most):
            logits = self._model.last_logits(torch.tensor([fed], device=self._device), cache=self._cache)
            token = int(sample(logits, self._sampling, generator))
            sampled_from = None if self._sampling.temperature == 0 else probabilities(logits, self._sampling)[0]
            draft_tokens.append(DraftToken(token, sampled_from))
            fed = [token]
        self._held = [*tokens, *(drafted.token for drafted in draft_tokens[:-1])]
        return draft_tokens


def accept(
    logits: Float[Tensor, "rows vocabulary"],
    draft_tokens: Sequence[DraftToken],
    sampling: Sampling,
    generator: torch.Generator,
    seen: Bool[Tensor, " vocabulary"] | None = None,
    counts: Int[Tensor, " vocabulary"] | None = None,
) -> list[int]:
    """Give the draft tokens that are accepted, and the token that is sampled from the model itself after them.

    A draft token x, sampled from q, is accepted with probability min(1, p(x) / q(x)); the first that is not is replaced
    by a sample from the normalised rest of p over q, max(0, p - q). So each token has the distribution p (Leviathan et
    al., appendix A.1). Without draft tokens this is `text.sample`, token for token.

    Args:
        logits: the model's after the sequence, and after each draft token.
        draft_tokens: what is proposed; one fewer than rows.
        sampling: how tokens are sampled: gives p.
        generator: of the sequence's random numbers.
        seen: True for tokens that the sequence has had, for a repetition penalty; it is not changed.
        counts: how often the sequence generated each token, for the other penalties; it is not changed.

    Raises:
        ValueError: not one row more than draft tokens, or logits from which nothing can be sampled.
    """
    if len(logits) != len(draft_tokens) + 1:
        raise ValueError(
            f"{len(draft_tokens)} draft tokens need {len(draft_tokens) + 1} rows of logits, not {len(logits)}"
        )
    seen = None if seen is None else seen.to(logits.device, copy=True)[None]
    counts = None if counts is None else counts.to(logits.device, copy=True)[None]
    taken: list[int] = []
    for place, drafted in enumerate(draft_tokens):
        token = _accepted(logits[place : place + 1], drafted, sampling, generator, seen, counts)
        taken.append(token)
        if token != drafted.token:
            return taken
        if seen is not None:
            seen[0, token] = True
        if counts is not None:
            counts[0, token] += 1
    return [*taken, int(sample(logits[-1:], sampling, [generator], seen, counts))]


def _accepted(
    logits: Float[Tensor, "1 vocabulary"],
    drafted: DraftToken,
    sampling: Sampling,
    generator: torch.Generator,
    seen: Bool[Tensor, "1 vocabulary"] | None,
    counts: Int[Tensor, "1 vocabulary"] | None,
) -> int:
    """Give the draft token where it is accepted, and otherwise what takes its place, which is another token."""
    if sampling.temperature == 0:
        return int(sample(logits, sampling, [generator], seen, counts))
    wanted = probabilities(logits, sampling, seen, counts)[0].cpu().double()
    given = torch.zeros_like(wanted)
    if drafted.sampled_from is None:
        given[drafted.token] = 1.0
    else:
        given += drafted.sampled_from.cpu().double()
    draws = torch.rand(2, generator=generator, dtype=torch.float64)
    if draws[0] * given[drafted.token] < wanted[drafted.token]:
        return drafted.token
    rest = (wanted - given).clamp(min=0).cumsum(0)
    if float(rest[-1]) == 0:
        # Only by rounding: then both distributions are the same.
        return drafted.token
    return int(torch.searchsorted(rest / rest[-1], draws[1:], right=True))
