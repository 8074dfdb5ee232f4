"""The three parts that every data set here is cut into."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar, cast, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

ROWS_IN_A_BLOCK = 50
"""Neighbouring rows that go into one split, since neighbours are alike."""

Row = TypeVar("Row")


def check_split(split: str) -> Split:
    """Return `split` when it names one.

    Raises:
        ValueError: It does not; the message names the three that there are.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}: it must be one of {', '.join(map(repr, SPLITS))}")
    return cast("Split", split)


def split_of_block(block: int) -> Split:
    """Say which split a block is in: of every 20 the 10th is validation, the 20th is the test, the others training."""
    held_out: dict[int, Split] = {9: "validation", 19: "test"}
    return held_out.get(block % 20, "train")


def without_repeats(
    rows: Mapping[Split, Sequence[Row]], texts: Callable[[Row], Iterable[str]]
) -> dict[Split, tuple[Row, ...]]:
    """Leave out of validation and training what has a text of a later split, in the order train, validation, test.

    Args:
        rows: of each split.
        texts: gives those of a row by which it is known again.
    """
    kept: dict[Split, tuple[Row, ...]] = {}
    held_out: set[str] = set()
    for split in ("test", "validation", "train"):
        kept[split] = tuple(row for row in rows[split] if held_out.isdisjoint(texts(row)))
        held_out.update(text for row in rows[split] for text in texts(row))
    return kept
