"""Several pairs in one row, so that little of a batch is padding, with no pair seeing another (section 3.1.2)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from allyouneed.nn import AttentionPattern, EncoderDecoder, linear_cross_entropy
from allyouneed.nn.encoder_decoder import CrossLayerCache
from allyouneed.training import Loss

from .objectives import Pair


class Packed(NamedTuple):
    """Rows of pairs.

    Attributes:
        source: tokens of sources one after the other.
        target: tokens of targets one after the other, those that begin and end them among them.
        source_numbers: which pair of its row each source token is of, from 1; 0 is padding.
        target_numbers: the same of target tokens.
    """

    source: Int[Tensor, "rows source_length"]
    target: Int[Tensor, "rows length"]
    source_numbers: Int[Tensor, "rows source_length"]
    target_numbers: Int[Tensor, "rows length"]


def pack_pairs(pairs: Sequence[Pair], *, source_length: int, target_length: int, padding: int) -> Packed:
    """Put each pair into the first row that has room for both its sides; open another row where none has.

    Args:
        pairs: sources and targets, with the tokens that begin and end them.
        source_length: tokens of a row of sources.
        target_length: tokens of a row of targets.
        padding: fills up rows.

    Raises:
        ValueError: no pairs, one of which a side is empty, or longer than a row.
    """
    if not pairs:
        raise ValueError("there are no pairs to pack")
    rows: list[tuple[list[Pair], int, int]] = []
    for number, pair in enumerate(pairs):
        for side, length, most in (
            ("source", len(pair.source), source_length),
            ("target", len(pair.target), target_length),
        ):
            if not 0 < length <= most:
                raise ValueError(f"the {side} of pair {number} has {length} tokens: it must have 1 to {most}, a row's")
        for place, (held, sources, targets) in enumerate(rows):
            room = source_length - sources, target_length - targets
            if len(pair.source) <= room[0] and len(pair.target) <= room[1]:
                rows[place] = ([*held, pair], sources + len(pair.source), targets + len(pair.target))
                break
        else:
            rows.append(([pair], len(pair.source), len(pair.target)))
    sides = []
    for side, length in ((0, source_length), (1, target_length)):
        tokens = torch.full((len(rows), length), padding)
        numbers = torch.zeros(len(rows), length, dtype=torch.int64)
        for row, (held, _, _) in enumerate(rows):
            place = 0
            for number, pair in enumerate(held, start=1):
                until = place + len(pair[side])
                tokens[row, place:until] = torch.as_tensor(pair[side])
                numbers[row, place:until] = number
                place = until
        sides.append((tokens, numbers))
    (source, source_numbers), (target, target_numbers) = sides
    return Packed(source, target, source_numbers, target_numbers)


def unpack_pairs(packed: Packed) -> list[Pair]:
    """Take the pairs out of their rows, row by row."""
    pairs = []
    for source, target, ours, theirs in zip(*packed, strict=True):
        for number in range(1, int(ours.max()) + 1):
            pairs.append(Pair(source[ours == number].tolist(), target[theirs == number].tolist()))
    return pairs


def packed_hidden(model: EncoderDecoder, packed: Packed) -> Float[Tensor, "rows length width"]:
    """Give each target token's vector, as if its pair were alone.

    Args:
        model: with positions that tell distances only, so that it does not matter where in a row a pair stands.
        packed: the rows. What padding is given is meaningless.
    """
    ours, theirs = packed.source_numbers, packed.target_numbers
    encoded = model.encoder.embedding(packed.source) * model.encoder.embedding_scale  # pyright: ignore
    encoded = model.encoder.dropout(encoded)  # pyright: ignore
    reading = _pattern(model.encoder.positions, _together(ours, ours))
    for block in model.encoder.blocks:  # pyright: ignore
        encoded = block(encoded, reading)
    encoded = model.encoder.norm(encoded)  # pyright: ignore
    decoder = model.decoder
    hidden = decoder.dropout(decoder.embedding(packed.target) * decoder.embedding_scale)
    places = torch.arange(theirs.shape[1], device=theirs.device)
    writing = _pattern(decoder.positions, _together(theirs, theirs) & (places <= places[:, None]))
    # A row whose sources are fewer than its targets' padding has nothing to look at there: it may look anywhere.
    crossing = _together(theirs, ours)
    crossing = AttentionPattern(mask=(crossing | ~crossing.any(-1, keepdim=True))[:, None])
    for block in decoder.blocks:
        hidden = block(hidden, writing, cache=CrossLayerCache(encoded, crossing, keep=False))
    return decoder.norm(hidden)


def packed_loss(model: EncoderDecoder, packed: Packed) -> Loss:
    """Sum the cross-entropies, in nats, of each target token given its own source and the target tokens before it."""
    following, number = packed.target[:, 1:], packed.target_numbers[:, 1:]
    counted = (number > 0) & (number == packed.target_numbers[:, :-1])
    hidden = packed_hidden(model, packed)[:, :-1][counted]
    return Loss(linear_cross_entropy(hidden, model.output_weight, following[counted]), counted.sum())


def _together(
    queries: Int[Tensor, "rows queries"], keys: Int[Tensor, "rows keys"]
) -> Bool[Tensor, "rows queries keys"]:
    return queries[:, :, None] == keys[:, None, :]


def _pattern(positions: object, allowed: Bool[Tensor, "rows length length"]) -> AttentionPattern:
    places = torch.arange(allowed.shape[-1], device=allowed.device)
    bias = positions.bias(places, places)  # pyright: ignore
    mask = allowed[:, None]
    return AttentionPattern(mask=mask if bias is None else bias.masked_fill(~mask, -torch.inf))
