"""The two tasks of pre-training: words to restore, and whether one sentence follows another."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from allyouneed.training import Loss

from .heads import MaskedLanguageModel, PreTraining
from .wordpiece import WordPieceTokenizer

IGNORED = -100
"""The target of a token that is not asked about."""


class Masked(NamedTuple):
    """Rows with some of their tokens hidden.

    Attributes:
        tokens: what the model is given.
        targets: what stood where it is asked; elsewhere `IGNORED`.
    """

    tokens: Int[Tensor, "batch length"]
    targets: Int[Tensor, "batch length"]


@dataclass(frozen=True)
class Masking:
    """How tokens are hidden (section 3.1; Table 8 tries other shares).

    Attributes:
        rate: share of a row's tokens that are asked about.
        masked: share of those that become `[MASK]`.
        random: share of those that become another token, any of the vocabulary that is not special.
        same: share of those that stay as they are.
    """

    rate: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    same: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate is {self.rate}: it must be above 0, and 1 at most")
        shares = (self.masked, self.random, self.same)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise ValueError(f"shares {shares} of masked, random and unchanged tokens: they must add up to 1")


def mask_tokens(
    tokens: Int[Tensor, "batch length"],
    allowed: Bool[Tensor, "batch length"],
    generator: torch.Generator,
    *,
    mask: int,
    vocabulary: int,
    special: Collection[int],
    masking: Masking = Masking(),
) -> Masked:
    """Choose tokens to ask about, and hide them; the same generator state gives the same.

    Of each row as many are chosen as `masking.rate` says, rounded, and at least one.

    Source: Devlin et al. 2019, section 3.1 and appendix A.1. A random token is never a special one: `[PAD]` in the
    place of a word would hide that place from attention.

    Args:
        tokens: rows of tokens.
        allowed: which of them may be chosen: neither special tokens nor padding.
        generator: of all draws, on the CPU.
        mask: the token `[MASK]`.
        vocabulary: number of tokens, of which a random one is drawn.
        special: those of them that are never drawn: the values of `tokenizer.special_tokens`.
        masking: how many, and what becomes of them.

    Raises:
        ValueError: a row of which no token may be chosen, or a vocabulary of special tokens alone.
    """
    ordinary = torch.tensor(sorted(set(range(vocabulary)) - set(special)), dtype=tokens.dtype)
    if not len(ordinary):
        raise ValueError(f"all of the {vocabulary} tokens are special ({sorted(special)}): none can replace a word")
    available = allowed.sum(1, keepdim=True)
    if not bool((available > 0).all()):
        raise ValueError("a row has no token that may be hidden: there must be one that is not special")
    wanted = (available * masking.rate).round().long().clamp(min=1)
    draws = torch.rand(tokens.shape, generator=generator).masked_fill(~allowed, 2.0)
    chosen = draws.argsort(1).argsort(1) < wanted
    fate = torch.rand(tokens.shape, generator=generator)
    other = ordinary[torch.randint(len(ordinary), tokens.shape, generator=generator)]
    hidden = torch.where(
        fate < masking.masked, mask, torch.where(fate < masking.masked + masking.random, other, tokens)
    )
    return Masked(torch.where(chosen, hidden, tokens), torch.where(chosen, tokens, IGNORED))


class Pairs:
    """Rows `[CLS]` A `[SEP]` B `[SEP]` of running text, as a pure function of the step.

    A begins with any sentence and is followed by as many others as fit its share of the row, which is drawn; B is what
    follows A in the same text, or as often begins anywhere in another text. Both may be many sentences long or, where
    one sentence is longer than its share, a part of it.

    Source: Devlin et al. 2019, section 3.1 and appendix A.2. Unlike the released code, rows are drawn anew at every
    step, so that no text is read in order.

    Args:
        texts: the sentences of each text, as tokens; at least two texts that have two sentences.
        tokenizer: of which the special tokens are.
        length: tokens of a row; those that a text is too short for are padding.
        batch: rows of a batch.
        seed: of all draws.
        next_share: how often B follows A; 1 never draws B from elsewhere.

    Raises:
        ValueError: too few texts, or numbers out of range.
    """

    def __init__(
        self,
        texts: Sequence[Sequence[Sequence[int]]],
        tokenizer: WordPieceTokenizer,
        length: int,
        batch: int,
        seed: int,
        *,
        next_share: float = 0.5,
    ):
        texts = [text for text in texts if len(text) >= 2]
        if len(texts) < 2:
            raise ValueError(f"there are {len(texts)} texts of two sentences or more: pairs need two texts at least")
        if length < 8 or batch < 1 or seed < 0 or not 0 <= next_share <= 1:
            raise ValueError(
                f"length {length}, batch {batch}, seed {seed}, next_share {next_share}: they must be 8, 1 and 0 or "
                "more, and a share from 0 to 1"
            )
        self.tokenizer, self.length, self.batch, self.seed, self.next_share = (
            tokenizer,
            length,
            batch,
            seed,
            next_share,
        )
        self._tokens = np.fromiter((token for text in texts for one in text for token in one), dtype=np.int64)
        sizes = [len(one) for text in texts for one in text]
        self._begins = np.concatenate(([0], np.cumsum(sizes)))
        self._text = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
        ends = np.cumsum([sum(map(len, text)) for text in texts])
        self._end = ends[self._text]
        # A needs a sentence after it.
        last = np.append(self._text[1:] != self._text[:-1], True)
        self._firsts = np.flatnonzero(~last)

    def __call__(
        self, step: int
    ) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"], Int[Tensor, " batch"]]:
        """Give a step's tokens, segments, and for each row 0 where B follows A and 1 where it does not."""
        draw = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(step,)))
        tokens = np.full((self.batch, self.length), self.tokenizer.padding)
        segments = np.zeros((self.batch, self.length), dtype=np.int64)
        labels = np.zeros(self.batch, dtype=np.int64)
        for row in range(self.batch):
            first, second, labels[row] = self._pair(draw)
            cut = 2 + len(first)
            tokens[row, 0], tokens[row, cut - 1] = self.tokenizer.begin, self.tokenizer.separator
            tokens[row, 1 : cut - 1] = first
            tokens[row, cut : cut + len(second)] = second
            tokens[row, cut + len(second)] = self.tokenizer.separator
            segments[row, cut : cut + len(second) + 1] = 1
        return torch.from_numpy(tokens), torch.from_numpy(segments), torch.from_numpy(labels)

    def _pair(self, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
        room = self.length - 3
        share = int(draw.integers(room // 4, room - room // 4 + 1))
        sentence = int(draw.choice(self._firsts))
        begin, end = self._begins[sentence], self._end[sentence]
        # The last whole sentence that fits, or the share where not even one does; something must be left for B.
        cut = self._begins[np.searchsorted(self._begins, begin + share, side="right") - 1]
        if cut <= begin:
            cut = begin + share
        if cut >= end:
            cut = self._begins[sentence + 1]
        cut = min(cut, begin + share)
        first = self._tokens[begin:cut]
        if draw.random() < self.next_share:
            return first, self._tokens[cut : min(end, cut + room - len(first))], 0
        text = self._text[sentence]
        other = int(draw.integers(len(self._text)))
        while self._text[other] == text:
            other = int(draw.integers(len(self._text)))
        begin = self._begins[other]
        return first, self._tokens[begin : min(self._end[other], begin + room - len(first))], 1


def words_of(tokens: Int[Tensor, "batch length"], tokenizer: WordPieceTokenizer) -> Bool[Tensor, "batch length"]:
    """Say which tokens are words or parts of words: those that may be hidden."""
    special = torch.tensor(sorted(tokenizer.special_tokens.values()))
    return ~torch.isin(tokens, special.to(tokens.device))


def masked_loss(
    model: MaskedLanguageModel,
    batch: tuple[Tensor, Tensor, Tensor],
) -> Loss:
    """Sum the cross-entropies, in nats, of the hidden tokens.

    Args:
        model: with or without the second head.
        batch: tokens, segments and targets; padding is the model's.
    """
    tokens, segments, targets = batch
    hidden = model.bert(tokens, segments, present=present_in(model, tokens))
    asked = targets != IGNORED
    return Loss(model.loss(hidden[asked], targets[asked]), asked.sum())


def pretraining_loss(model: PreTraining, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Loss:
    """Add the mean over rows of the second task's cross-entropy to the mean over hidden tokens of the first's.

    Source: Devlin et al. 2019, appendix A.2. Given as a sum over the hidden tokens, as training expects it.

    Args:
        model: with both heads.
        batch: tokens, segments, targets, and for each row 0 where B follows A and 1 where it does not.
    """
    tokens, segments, targets, labels = batch
    hidden = model.bert(tokens, segments, present=present_in(model, tokens))
    asked = targets != IGNORED
    words = model.loss(hidden[asked], targets[asked])
    follows = F.cross_entropy(model.next_logits(hidden).float(), labels)
    return Loss(words + follows * asked.sum(), asked.sum())


def left_to_right_loss(model: MaskedLanguageModel, batch: tuple[Tensor, Tensor]) -> Loss:
    """Sum the cross-entropies, in nats, of every token given those before it: the rival of section 5.1.

    Args:
        model: of the same parts, which then sees left context alone.
        batch: tokens and segments; nothing is hidden.
    """
    tokens, segments = batch
    present = present_in(model, tokens)
    hidden = model.bert(
        tokens[:, :-1], segments[:, :-1], present=None if present is None else present[:, :-1], causal=True
    )
    targets = tokens[:, 1:]
    asked = targets != model.bert.config.padding
    return Loss(model.loss(hidden[asked], targets[asked]), asked.sum())


def present_in(model: MaskedLanguageModel, tokens: Int[Tensor, "batch length"]) -> Bool[Tensor, "batch length"] | None:
    """Say which tokens are no padding; None where none is, which is faster."""
    present = tokens != model.bert.config.padding
    return None if bool(present.all()) else present
