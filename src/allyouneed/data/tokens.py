"""The novels and the addresses as tokens, in the vocabulary that a trial asks for.

Like `batches`, import this module by its name; it imports torch.
"""

from functools import cache

from jaxtyping import Int64, Integer
from torch import Tensor

from allyouneed.text import BytePairTokenizer, ByteTokenizer, Tokenizer

from .batches import consecutive_windows
from .splits import Split
from .texts import austen, state_of_the_union

BYTES = 256
"""The vocabulary that needs no learning."""


@cache
def corpus_tokens(vocabulary: int, split: Split) -> list[Integer[Tensor, " tokens"]]:
    """Give the novels and the addresses of a split, each as one row of tokens.

    Args:
        vocabulary: 256 reads bytes; more is a byte-pair vocabulary learned from the training split.
        split: of the texts.

    Raises:
        ValueError: fewer tokens than there are bytes, or more than the text has pairs for.
    """
    tokenizer: Tokenizer = ByteTokenizer() if vocabulary == BYTES else _byte_pairs(vocabulary)
    return [tokenizer.encode_to_tensor(text) for text in (austen(split), state_of_the_union(split))]


def corpus_windows(
    vocabulary: int, split: Split, length: int, batch: int, targets: int
) -> list[Int64[Tensor, "_ window"]]:
    """Cut the beginnings of the novels and of the addresses of a split into windows, for evaluation.

    Args:
        vocabulary: as of `corpus_tokens`.
        split: of the texts.
        length: tokens that a model is given.
        batch: windows in a batch.
        targets: tokens that are scored, half of them in the novels, half in the addresses.

    Raises:
        ValueError: as `corpus_tokens` and `consecutive_windows` do, the latter of half of the targets.
    """
    return [
        windows
        for text in corpus_tokens(vocabulary, split)
        for windows in consecutive_windows(text, length, batch, limit=targets // 2)
    ]


@cache
def _byte_pairs(vocabulary: int) -> BytePairTokenizer:
    return BytePairTokenizer.train([austen("train"), state_of_the_union("train")], vocabulary)
