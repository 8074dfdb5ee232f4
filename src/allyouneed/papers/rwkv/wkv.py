"""WKV: averages of past values, weighted by their keys and fading with age; in three forms that give the same.

Every form keeps its sums as a number times e to an exponent, so that no exponential overflows. The exponent is a
running maximum, and only says how the sums are scaled: it cancels in every quotient. It is therefore left out of the
gradients, which are exact whatever it is.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LOWEST = -1e38
"""The exponent of a sum over nothing, and the key of a token that is padding; finite, so that it minus itself is 0."""
MOST_DECAY = 1e30
"""Decays beyond this are taken as this; either leaves nothing of the past, but infinity times no time is no number."""


class WkvState(NamedTuple):
    """The sums over all tokens so far: equations 21 and 22, scaled as in equations 26 to 28.

    Attributes:
        numerator: a′, of which a = e^p · a′.
        denominator: b′, of which b = e^p · b′.
        exponent: p.
    """

    numerator: Float[Tensor, "batch channels"]
    denominator: Float[Tensor, "batch channels"]
    exponent: Float[Tensor, "batch channels"]

    @classmethod
    def empty(cls, keys: Float[Tensor, "batch length channels"]) -> "WkvState":
        """Make the state before the first token."""
        zeros = keys.new_zeros(keys.shape[0], keys.shape[2], dtype=_wide(keys.dtype))
        return cls(zeros, zeros, torch.full_like(zeros, LOWEST))


@runtime_checkable
class Wkv(Protocol):
    """What the three forms have in common.

    Each gives, for token t and every channel, equation 16: the average of the values v_i of the tokens before it with
    weights e^(k_i - (t - 1 - i)·w), and of its own with weight e^(u + k_t).
    """

    def __call__(
        self,
        decay: Float[Tensor, " channels"],
        bonus: Float[Tensor, " channels"],
        keys: Float[Tensor, "batch length channels"],
        values: Float[Tensor, "batch length channels"],
        state: WkvState | None = None,
        present: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length channels"], WkvState]:
        """Compute the averages, and the state after the last token.

        Args:
            decay: w, by which a weight's exponent falls with each token; 0 or more.
            bonus: u, added to the key of the current token.
            keys: k.
            values: v.
            state: that after the tokens before these; there are none where None.
            present: False where a token is padding: it adds nothing, no time passes, and what it is given is
                meaningless.

        Returns:
            The averages, in the values' type, and the state, in 32 bits or more.

        Raises:
            ValueError: no tokens, a negative decay, or shapes that do not fit.
        """
        ...


def wkv_recurrent(
    decay: Float[Tensor, " channels"],
    bonus: Float[Tensor, " channels"],
    keys: Float[Tensor, "batch length channels"],
    values: Float[Tensor, "batch length channels"],
    state: WkvState | None = None,
    present: Bool[Tensor, "batch length"] | None = None,
) -> tuple[Float[Tensor, "batch length channels"], WkvState]:
    """Compute WKV token by token, as a recurrent network (appendix D); as `Wkv`.

    `length` steps one after the other: the form for writing text, where there is one.
    """
    dtype = values.dtype
    decay, keys, values, state = _checked(decay, bonus, keys, values, state, present)
    length = keys.shape[1]
    numerator, denominator, exponent = state
    averages = []
    for fading, key, value in zip(
        _decays(decay, present, length).unbind(1), keys.unbind(1), values.unbind(1), strict=True
    ):
        boosted = bonus + key
        largest = _largest(exponent, boosted)
        past, current = (exponent - largest).exp(), (boosted - largest).exp()
        averages.append((past * numerator + current * value) / (past * denominator + current))
        faded = exponent - fading
        exponent = _largest(faded, key)
        past, current = (faded - exponent).exp(), (key - exponent).exp()
        numerator, denominator = past * numerator + current * value, past * denominator + current
    return torch.stack(averages, 1).to(dtype), WkvState(numerator, denominator, exponent)


def wkv_parallel(
    decay: Float[Tensor, " channels"],
    bonus: Float[Tensor, " channels"],
    keys: Float[Tensor, "batch length channels"],
    values: Float[Tensor, "batch length channels"],
    state: WkvState | None = None,
    present: Bool[Tensor, "batch length"] | None = None,
) -> tuple[Float[Tensor, "batch length channels"], WkvState]:
    """Compute WKV for all tokens at once, by a scan (the parallel scan that section 7 names); as `Wkv`.

    Two stretches of text that follow one another are joined into one by fading the first over the length of the second
    and adding; that is associative. So after log₂ `length` rounds, in each of which every token joins the sums that
    end before its own (Hillis & Steele 1986), each has the sums over all tokens up to it. Rounds are few, but the work
    is `length` times as many.
    """
    dtype = values.dtype
    decay, keys, values, state = _checked(decay, bonus, keys, values, state, present)
    length = keys.shape[1]
    # What there was before comes as if it were one more token. Each sum then stands at the token that it ends with.
    sums = torch.cat((torch.stack(state[:2])[:, :, None], torch.stack((values, torch.ones_like(values)))), 2)
    exponents = torch.cat((state.exponent[:, None], keys), 1)
    ages = torch.nn.functional.pad(_decays(decay, present, length).cumsum(1), (0, 0, 1, 0))
    reach = 1
    while reach <= length:
        faded = exponents[:, :-reach] - (ages[:, reach:] - ages[:, :-reach])
        joined = _largest(faded, exponents[:, reach:])
        earlier, later = (faded - joined).exp(), (exponents[:, reach:] - joined).exp()
        sums = torch.cat((sums[:, :, :reach], earlier * sums[:, :, :-reach] + later * sums[:, :, reach:]), 2)
        exponents = torch.cat((exponents[:, :reach], joined), 1)
        reach *= 2
    boosted = bonus + keys
    largest = _largest(exponents[:, :-1], boosted)
    past, current = (exponents[:, :-1] - largest).exp(), (boosted - largest).exp()
    numerator, denominator = past * sums[:, :, :-1]
    averages = (numerator + current * values) / (denominator + current)
    # Copies, or the state would hold the sums of all tokens in memory.
    return averages.to(dtype), WkvState(sums[0, :, -1].clone(), sums[1, :, -1].clone(), exponents[:, -1].clone())


def wkv_chunked(
    decay: Float[Tensor, " channels"],
    bonus: Float[Tensor, " channels"],
    keys: Float[Tensor, "batch length channels"],
    values: Float[Tensor, "batch length channels"],
    state: WkvState | None = None,
    present: Bool[Tensor, "batch length"] | None = None,
    *,
    chunk: int | None = None,
) -> tuple[Float[Tensor, "batch length channels"], WkvState]:
    """Compute WKV in chunks: the recurrence runs in all of them side by side, then from chunk to chunk; as `Wkv`.

    chunk + `length`/chunk steps one after the other, and work in proportion to `length`: the form for training.

    Args:
        decay: w.
        bonus: u.
        keys: k.
        values: v.
        state: that after the tokens before these.
        present: False where a token is padding.
        chunk: tokens of a chunk, which changes the result by no more than rounding; about √`length` where None.

    Raises:
        ValueError: a chunk of no tokens, and as `Wkv` says.
    """
    dtype = values.dtype
    decay, keys, values, state = _checked(decay, bonus, keys, values, state, present)
    length = keys.shape[1]
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk {chunk} is out of range: it must be at least 1 token, or None")
    side = chunk or 1 << round(math.log2(length) / 2)
    averages = []
    # Chunks of one size, and what is left over as one more.
    whole = length - length % side
    for part, size in ((slice(whole), side), (slice(whole, length), length - whole)):
        if keys[:, part].shape[1]:
            there = None if present is None else present[:, part]
            found, state = _in_chunks(decay, bonus, keys[:, part], values[:, part], state, there, size)
            averages.append(found)
    return torch.cat(averages, 1).to(dtype), state


def _in_chunks(
    decay: Tensor, bonus: Tensor, keys: Tensor, values: Tensor, state: WkvState, present: Tensor | None, chunk: int
) -> tuple[Tensor, WkvState]:
    if present is None:
        fading = decay.expand(1, 1, chunk, -1)
    else:
        fading = _decays(decay, present, keys.shape[1]).unflatten(1, (-1, chunk))
    keys, values = keys.unflatten(1, (-1, chunk)), values.unflatten(1, (-1, chunk))
    # Within each chunk: the exponents and sums of what stands before a token in its chunk, and of the whole chunk.
    end, before = torch.full_like(keys[:, :, 0], LOWEST), []
    with torch.no_grad():
        for key, lost in zip(keys.unbind(2), fading.unbind(2), strict=True):
            before.append(end)
            end = torch.maximum(end - lost, key)
        exponents = torch.stack(before, 2)
        after = torch.stack([*before[1:], end], 2)
    past, current = (exponents - fading - after).exp(), (keys - after).exp()
    ones = torch.ones_like(values)
    held, earlier = torch.zeros_like(torch.stack((values, ones))[:, :, :, 0]), []
    for kept, term in zip(past.unbind(2), torch.stack((current * values, current)).unbind(3), strict=True):
        earlier.append(held)
        held = torch.addcmul(term, kept, held)
    # From chunk to chunk.
    sums, exponent = torch.stack(state[:2]), state.exponent
    sums_at, exponents_at = [], []
    durations = fading.sum(2).expand(-1, keys.shape[1], -1)
    for lost, chunk_sums, chunk_exponent in zip(durations.unbind(1), held.unbind(2), end.unbind(1), strict=True):
        sums_at.append(sums)
        exponents_at.append(exponent)
        faded = exponent - lost
        exponent = _largest(faded, chunk_exponent)
        sums = (faded - exponent).exp() * sums + (chunk_exponent - exponent).exp() * chunk_sums
    # What each token sees: the chunks before its own, what stands before it in its own, and itself.
    carried = torch.stack(exponents_at, 1)[:, :, None] - (fading.cumsum(2) - fading)
    boosted = bonus + keys
    largest = _largest(torch.maximum(carried, exponents), boosted)
    numerator, denominator = (
        (carried - largest).exp() * torch.stack(sums_at, 2)[:, :, :, None]
        + (exponents - largest).exp() * torch.stack(earlier, 3)
        + (boosted - largest).exp() * torch.stack((values, ones))
    )
    return (numerator / denominator).flatten(1, 2), WkvState(sums[0], sums[1], exponent)


def _largest(first: Tensor, second: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.maximum(first, second)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Give the type that sums are kept in: exponents of 4,096 tokens need more than 16 bits."""
    return torch.promote_types(dtype, torch.float32)


def _decays(decay: Tensor, present: Tensor | None, length: int) -> Tensor:
    """Give each token's decay: none for padding."""
    return decay.expand(1, length, -1) if present is None else present[:, :, None] * decay


def _checked(
    decay: Tensor, bonus: Tensor, keys: Tensor, values: Tensor, state: WkvState | None, present: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, WkvState]:
    """Check the arguments; give decay, keys and values in the type that is computed in, and a state."""
    batch, length, channels = keys.shape
    if length == 0:
        raise ValueError("WKV was given sequences of no tokens; it needs at least one")
    expected: Iterable[tuple[str, Tensor | None, tuple[int, ...]]] = (
        ("decay", decay, (channels,)),
        ("bonus", bonus, (channels,)),
        ("values", values, (batch, length, channels)),
        ("present", present, (batch, length)),
        ("the state", None if state is None else state.exponent, (batch, channels)),
    )
    for name, tensor, shape in expected:
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"keys are {tuple(keys.shape)}, but {name} is {tuple(tensor.shape)}: it must be {shape}")
    # A compiled graph cannot look at values.
    if decay.device.type == "cpu" and not torch.compiler.is_compiling() and bool((decay < 0).any()):
        raise ValueError(f"the smallest decay is {float(decay.min())}: it must be 0 or more, or the past would grow")
    dtype = _wide(keys.dtype)
    keys, values = keys.to(dtype), values.to(dtype)
    if present is not None:
        keys = keys.masked_fill(~present[:, :, None], LOWEST)
    return decay.to(dtype).clamp(max=MOST_DECAY), keys, values, WkvState.empty(keys) if state is None else state
