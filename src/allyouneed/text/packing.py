"""Documents of any length, laid end to end and cut into rows of one length."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int64, Integer
from torch import Tensor


def pack(
    documents: Iterable[Sequence[int] | Integer[Tensor, " tokens"]], length: int, separator: int | None
) -> Int64[Tensor, "rows length"]:
    """Join documents into one stream of tokens and cut it into rows; what fills no row at the end is dropped.

    No token is padding, and a document may begin in one row and end in another.

    Args:
        documents: the tokens of each document; one of no tokens still has its separators.
        length: tokens in a row. A row that holds both inputs and targets has one more token than a model is given.
        separator: stands between two documents; nothing does where None.

    Raises:
        ValueError: a length below 1, a document that is not a row of tokens, or less text than one row.
    """
    if length < 1:
        raise ValueError(f"rows of {length} tokens cannot be packed: the length must be at least 1")
    between = torch.empty(0, dtype=torch.int64) if separator is None else torch.tensor([separator])
    stream = []
    for number, document in enumerate(documents):
        tokens = torch.as_tensor(document, dtype=torch.int64)
        if tokens.ndim != 1:
            raise ValueError(f"document {number} has the shape {tuple(tokens.shape)}: it must be a sequence of tokens")
        stream += [between, tokens] if number else [tokens]
    joined = torch.cat(stream) if stream else torch.empty(0, dtype=torch.int64)
    rows = len(joined) // length
    if rows == 0:
        raise ValueError(f"the documents have {len(joined)} tokens with separators, too few for one row of {length}")
    return joined[: rows * length].view(rows, length)
