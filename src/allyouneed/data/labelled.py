"""Rows of unequal length with labels: padding, and prompts that are read and not learned.

Import this module by its name; it imports torch.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int64, Integer
from torch import Tensor

from .batches import Shuffled

IGNORE_INDEX = -100
"""The label of a token that is no target: of a prompt, or padding. PyTorch's and transformers' number for it."""

Side = Literal["left", "right"]
Truncation = Literal["prompt", "answer"]
Tokens = Sequence[int] | Integer[Tensor, " tokens"]


class LabelledBatch(NamedTuple):
    """Rows of tokens with labels, as losses and data-parallel training take them.

    Attributes:
        tokens: token ids, padded to one length.
        labels: the tokens again where they are to be learned, `IGNORE_INDEX` elsewhere. A label stands at its own
            token's place; the loss compares it with what is predicted one place before.
        present: False where a token is padding.
    """

    tokens: Int64[Tensor, "batch length"]
    labels: Int64[Tensor, "batch length"]
    present: Bool[Tensor, "batch length"]


def label_pairs(
    pairs: Sequence[tuple[Tokens, Tokens]],
    *,
    pad: int,
    length: int | None = None,
    truncation: Truncation | None = None,
    side: Side = "right",
) -> LabelledBatch:
    """Join prompts and answers into rows of which only the answers are learned.

    Every token of an answer is a target, its end token too where it has one, and no token of a prompt is. Where the
    prompt is empty the answer's first token is none either, since nothing stands before it.

    Args:
        pairs: tokens of a prompt and of its answer. Whatever begins a text for the model belongs into the prompt,
            whatever ends one into the answer.
        pad: the token of padding: any of the vocabulary, for it is neither read nor learned.
        length: the most tokens of a row; what is longer is cut as `truncation` says. No limit where None.
        truncation: "prompt" drops the beginning of the prompt, down to one token, and then the end of the answer; what
            begins every text goes first, so shorten prompts yourself where the model needs it. "answer" drops the end
            of the answer, down to one token, and then the beginning of the prompt. None refuses rows that are too long.
        side: where padding stands. For training it makes no difference beyond rounding.

    Raises:
        ValueError: no pairs, an answer of no tokens, a row of one token (it has nothing to predict from), a row that is
            too long and is not to be cut, a length below 2, a negative token, or an option that there is not.
    """
    return _padded(_rows(pairs, length, truncation), pad, side)


def _rows(
    pairs: Sequence[tuple[Tokens, Tokens]], length: int | None, truncation: Truncation | None
) -> list[LabelledBatch]:
    if truncation not in (None, "prompt", "answer"):
        raise ValueError(f"truncation is {truncation!r}: it must be 'prompt', 'answer' or None")
    if length is not None and length < 2:
        raise ValueError(f"length is {length}: a row needs 2 tokens, one to read and one to predict")
    if not pairs:
        raise ValueError("there are no pairs to make a batch of")
    rows = []
    for number, (prompt, answer) in enumerate(pairs):
        prompt, answer = _within(number, _checked(number, prompt), _checked(number, answer), length, truncation)
        tokens = torch.cat((prompt, answer))
        labels = tokens.clone()
        # Nothing comes before a row's first token from which it could be predicted.
        labels[: max(1, len(prompt))] = IGNORE_INDEX
        rows.append(LabelledBatch(tokens, labels, torch.ones_like(tokens, dtype=torch.bool)))
    return rows


def _checked(number: int, part: Tokens) -> Tensor:
    if isinstance(part, str):
        raise ValueError(
            f"pair {number} has the text {part!r:.40}: pairs are of tokens, as text.encode_pairs makes them of texts"
        )
    tokens = torch.as_tensor(part)
    if len(tokens) and (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool):
        raise ValueError(f"pair {number} has numbers of {tokens.dtype}: tokens are whole numbers")
    tokens = tokens.to(torch.int64)
    if tokens.ndim != 1:
        raise ValueError(f"pair {number} has a part of shape {tuple(tokens.shape)}: it must be one row of tokens")
    if len(tokens) and int(tokens.min()) < 0:
        raise ValueError(f"pair {number} has the token {int(tokens.min())}: tokens are 0 or more")
    return tokens


def _within(
    number: int, prompt: Tensor, answer: Tensor, length: int | None, truncation: Truncation | None
) -> tuple[Tensor, Tensor]:
    """Cut a pair down to the length."""
    if len(answer) == 0:
        raise ValueError(f"the answer of pair {number} has no tokens: there is nothing to learn from it")
    if len(prompt) + len(answer) < 2:
        raise ValueError(f"pair {number} is a single token: nothing stands before it to predict it from")
    excess = 0 if length is None else len(prompt) + len(answer) - length
    if excess <= 0:
        return prompt, answer
    if truncation is None:
        raise ValueError(
            f"pair {number} has {len(prompt)} + {len(answer)} tokens, more than the length of {length}: "
            "choose truncation='prompt' or 'answer', or a greater length"
        )
    from_answer = max(0, excess - max(0, len(prompt) - 1))
    if truncation == "answer":
        from_answer = min(excess, len(answer) - 1)
    return prompt[excess - from_answer :], answer[: len(answer) - from_answer]


def _padded(rows: Sequence[LabelledBatch], pad: int, side: Side) -> LabelledBatch:
    """Make one batch of rows of any lengths."""
    if side not in ("left", "right"):
        raise ValueError(f"side is {side!r}: padding stands on the 'left' or on the 'right'")
    if not isinstance(pad, Integral) or isinstance(pad, bool) or pad < 0:
        raise ValueError(f"pad is {pad!r}: it must be a token of the vocabulary, 0 or more")
    fillings = (pad, IGNORE_INDEX, False)
    return LabelledBatch(
        *(
            torch.nn.utils.rnn.pad_sequence(list(part), True, filling, padding_side=side)
            for part, filling in zip(zip(*rows, strict=True), fillings, strict=True)
        )
    )


class ShuffledPairs:
    """Batches of (prompt, answer) pairs as a function of the step, in an order that is shuffled anew each epoch.

    Each batch is padded to its own longest row. Options are those of `label_pairs`; what does not fit is refused here,
    before a training begins.

    Args:
        pairs: tokens of prompts and answers.
        batch: rows in a batch; an epoch's last, incomplete one is dropped.
        seed: of all permutations; 0 or more.
        pad: the token of padding.
        length: the most tokens of a row; no limit where None.
        truncation: what gives way where a row is too long; None refuses it.
        side: where padding stands.

    Raises:
        ValueError: as `label_pairs` and `Shuffled` say.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Tokens, Tokens]],
        batch: int,
        seed: int,
        *,
        pad: int,
        length: int | None = None,
        truncation: Truncation | None = None,
        side: Side = "right",
    ):
        self._rows = _rows(pairs, length, truncation)
        self._places = Shuffled(torch.arange(len(pairs)), batch, seed)
        self._pad = pad
        self._side: Side = side
        self.batches_per_epoch = self._places.batches_per_epoch
        self(0)

    def __call__(self, step: int) -> LabelledBatch:
        """Give the rows of a step, counted from 0."""
        return _padded([self._rows[place] for place in self._places(step).tolist()], self._pad, self._side)
