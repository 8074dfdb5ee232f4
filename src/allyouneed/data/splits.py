"""The three parts that every data set here is cut into."""

from typing import Literal, cast, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


def check_split(split: str) -> Split:
    """Return `split` when it names one.

    Raises:
        ValueError: It does not; the message names the three that there are.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}: it must be one of {', '.join(map(repr, SPLITS))}")
    return cast("Split", split)
