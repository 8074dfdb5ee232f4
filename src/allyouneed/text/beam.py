"""Beam search: the likeliest targets of several sources at once, by a search that keeps a few beginnings of each."""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .generation import evaluating
from .sampling import mask_undecodable


class DecodingState(Protocol):
    """What a model holds of the targets under way: rows, of which those of one source stand together."""

    def select(self, rows: Int[Tensor, " rows"], sources: Int[Tensor, " kept"] | None = None) -> None:
        """Let each row continue the old row that it names, and keep the sources that are named; all where None."""
        ...


@runtime_checkable
class Translator(Protocol):
    """What beam search asks of a model: a torch module such as `nn.EncoderDecoder` or `nn.RecurrentEncoderDecoder`."""

    def start(
        self,
        source: Int[Tensor, "batch source_length"],
        *,
        present: Bool[Tensor, "batch source_length"] | None = None,
        limit: int | None = None,
    ) -> Any:
        """Encode sources, some tokens of which may be padding, and give a `DecodingState` with a row for each.

        Args:
            source: the source tokens.
            present: False where a token is padding, on the right.
            limit: the most target tokens that will be taken in.
        """
        ...

    def next_logits(self, tokens: Int[Tensor, " rows"], state: Any) -> Float[Tensor, "rows vocabulary"]:
        """Take in a target token of each row, and give the logits of the one that follows it."""
        ...

    def eval(self) -> Any:
        """Set the module and all within it to evaluation, as torch modules do."""
        ...

    def modules(self) -> Iterable[nn.Module]:
        """Go through the module and all modules within it."""
        ...

    def parameters(self) -> Iterable[Tensor]:
        """Go through the weights; tokens go to the device of the first."""
        ...


@dataclass(frozen=True)
class Hypothesis:
    """A target that was found.

    Attributes:
        tokens: without those that begin and end it.
        log_probability: of the tokens and the end, in nats.
        score: the log-probability divided by the length penalty.
    """

    tokens: list[int]
    log_probability: float
    score: float


def length_penalty(length: float, alpha: float) -> float:
    """Give what the log-probability of a target is divided by: ((5 + length) / 6)^α.

    Source: Wu et al. 2016, equation 14. The length counts the token that ends the target, since its probability counts
    too. With α of 0 nothing is penalised, and short targets win, as each further token costs probability.
    """
    return ((5.0 + length) / 6.0) ** alpha


@torch.inference_mode()
def beam_search(
    model: Translator,
    sources: Sequence[Sequence[int]],
    *,
    begin: int,
    end: int,
    beam: int = 4,
    alpha: float = 0.6,
    further: int = 50,
    limit: int | None = None,
    batch: int = 64,
    patient: bool = False,
) -> list[Hypothesis]:
    """Give the best target found for each source.

    Of each source the `beam` likeliest beginnings are kept. At each step all their continuations are ranked by
    log-probability. One that ends the target and is among the first `beam` is finished; the first `beam` of the others
    go on. A source is done when none of its beginnings has a better score than the best finished target, at the length
    that it has: with α of 0 none of them can then win any more; with a larger α one could, if its further tokens were
    all but certain. A beam of 1 is greedy: the likeliest token at each step.

    Sources are sorted by length and padded on the right in batches, and a source that is done leaves its batch. The
    model is in evaluation mode during the call, and afterwards in the mode that it was in before.

    Args:
        model: gives the logits.
        sources: the tokens of each source, at least one.
        begin: the token that every target begins with.
        end: the token that every target ends with.
        beam: beginnings kept; no more than the vocabulary has tokens.
        alpha: exponent of the length penalty; 0 or more (Vaswani et al. 2017, section 6.1: 0.6).
        further: a target ends at the latest when it has so many tokens more than its source (section 6.1: 50).
        limit: the most tokens of any target, its end among them; none but that of `further` where None.
        batch: sources at a time.
        patient: whether to go on until no beginning could win even if all its further tokens were certain. It finds
            better scores now and then, and takes up to several times as long.

    Raises:
        ValueError: a source of no tokens, a beam or batch below 1, a beam wider than the vocabulary, a negative α, no
            room for the end, logits that are not numbers, or what the model refuses.
    """
    for name, number, least in (
        ("beam", beam, 1),
        ("alpha", alpha, 0),
        ("further", further, 0),
        ("limit", limit, 1),
        ("batch", batch, 1),
    ):
        if number is not None and not least <= number < math.inf:
            raise ValueError(f"{name} {number} is out of range: it must be finite and at least {least}")
    for row, source in enumerate(sources):
        if len(source) == 0:
            raise ValueError(f"source {row} is empty: each needs at least one token")
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    order = sorted(range(len(sources)), key=lambda row: len(sources[row]))
    found: dict[int, Hypothesis] = {}
    with evaluating(model):
        for first in range(0, len(order), batch):
            rows = order[first : first + batch]
            limits = [min(len(sources[row]) + further + 1, limit or sys.maxsize) for row in rows]
            search = _Search(model, [sources[row] for row in rows], limits, begin, end, beam, alpha, patient, device)
            found.update(zip(rows, search.run(), strict=True))
    return [found[row] for row in range(len(sources))]


class _Search:
    """A batch of sources under way. Tensors have a row for each source that is not done, a column for each beam."""

    def __init__(
        self,
        model: Translator,
        sources: list[Sequence[int]],
        limits: list[int],
        begin: int,
        end: int,
        beam: int,
        alpha: float,
        patient: bool,
        device: torch.device,
    ):
        lengths = torch.tensor([len(source) for source in sources], device=device)
        longest = int(lengths.max())
        padded = torch.zeros(len(sources), longest, dtype=torch.int64)
        for row, source in enumerate(sources):
            padded[row, : len(source)] = torch.as_tensor(source)
        present = torch.arange(longest, device=device) < lengths[:, None]
        self.model = model
        self.end, self.beam, self.alpha, self.patient = end, beam, alpha, patient
        self.limits = torch.tensor(limits, device=device)
        known = None if bool(present.all()) else present
        self.state = model.start(padded.to(device), present=known, limit=max(limits))
        self.numbers = torch.arange(len(sources), device=device)
        self.tokens = torch.full((len(sources), 1), begin, device=device)
        self.scores = torch.zeros(len(sources), 1, device=device)
        self.targets = torch.empty(len(sources), 1, 0, dtype=torch.int64, device=device)
        self.best = torch.full((len(sources),), -torch.inf, device=device)
        self.found: list[Hypothesis | None] = [None] * len(sources)

    def run(self) -> list[Hypothesis]:
        """Search until every source is done."""
        step = 0
        while len(self.numbers):
            step += 1
            self._step(step)
        return [hypothesis for hypothesis in self.found if hypothesis is not None]

    def _step(self, step: int) -> None:
        """Continue every beginning by a token, and drop the sources that are done."""
        sources, beams = self.tokens.shape
        logits = mask_undecodable(self.model.next_logits(self.tokens.flatten(), self.state).float(), self.model)
        vocabulary = logits.shape[-1]
        if self.beam > vocabulary:
            raise ValueError(
                f"a beam of {self.beam} is wider than the vocabulary of {vocabulary} tokens: "
                f"it must be {vocabulary} or less"
            )
        if not 0 <= self.end < vocabulary:
            raise ValueError(f"the end token {self.end} is not in the vocabulary: ids are 0 to {vocabulary - 1}")
        gains = logits.log_softmax(-1).view(sources, beams, vocabulary)
        if bool(gains.isnan().any()):
            raise ValueError("the model gave logits whose softmax is not a number (NaN or infinite ones)")
        at_limit = self.limits <= step
        if bool(at_limit.any()):
            # Nothing but the end fits any more.
            others = torch.arange(vocabulary, device=gains.device) != self.end
            gains = gains.masked_fill(at_limit[:, None, None] & others, -torch.inf)
        candidates = (self.scores[:, :, None] + gains).flatten(1)
        # At most `beam` of these end a target, so that `beam` others are among them.
        ranked, places = candidates.topk(min(2 * self.beam, candidates.shape[1]), dim=1)
        parents, tokens = places // vocabulary, places % vocabulary
        ends = tokens == self.end
        self._finish(step, ranked, parents, ends)
        going_on = ranked.masked_fill(ends, -torch.inf)
        self.scores, chosen = going_on.topk(min(self.beam, going_on.shape[1]), dim=1)
        self.tokens, parents = tokens.gather(1, chosen), parents.gather(1, chosen)
        history = self.targets.gather(1, parents[:, :, None].expand(-1, -1, self.targets.shape[2]))
        self.targets = torch.cat((history, self.tokens[:, :, None]), 2)
        self._advance(step, parents, beams)

    def _finish(self, step: int, ranked: Tensor, parents: Tensor, ends: Tensor) -> None:
        """Note the best target of each source that ends at this step, where it is better than those before."""
        finished = ranked.masked_fill(~ends, -torch.inf)[:, : self.beam]
        highest, rank = finished.max(1)
        scores = highest / length_penalty(step, self.alpha)
        better = scores > self.best
        self.best = torch.where(better, scores, self.best)
        for row in better.nonzero().flatten().tolist():
            target = self.targets[row, parents[row, rank[row]]].tolist()
            self.found[int(self.numbers[row])] = Hypothesis(target, float(highest[row]), float(scores[row]))

    def _advance(self, step: int, parents: Tensor, beams: int) -> None:
        """Drop the sources that are done, and have the model's state follow what was chosen."""
        hopes = self.scores[:, 0]
        if self.patient:
            penalty = ((5.0 + self.limits) / 6.0) ** self.alpha
            done = hopes / penalty <= self.best
        else:
            done = hopes / length_penalty(step, self.alpha) <= self.best
        # Beginnings of probability 0 lead nowhere, and a source that has nothing else is one whose end was impossible.
        if bool((stuck := hopes.isneginf() & self.best.isneginf()).any()):
            number = int(self.numbers[int(stuck.nonzero()[0])])
            raise ValueError(f"no target of source {number} of its batch has a probability above 0 within its limit")
        kept = (~done).nonzero().flatten()
        rows = (torch.arange(len(parents), device=parents.device)[:, None] * beams + parents)[kept].flatten()
        if len(kept) < len(parents):
            for name in ("numbers", "limits", "tokens", "scores", "targets", "best"):
                setattr(self, name, getattr(self, name).index_select(0, kept))
            if len(kept):
                self.state.select(rows, kept)
        elif beams != self.tokens.shape[1] or not torch.equal(rows, torch.arange(len(rows), device=rows.device)):
            self.state.select(rows)
