"""How tests say what they compare."""


def number(value: float) -> str:
    """Write a number so that it reads back as it is, with a real minus sign."""
    return f"{value:.12g}".replace("-", "−")


def trial_name(arm: str, seed: int) -> str:
    """Name a trial, such as "alibi, seed 3"."""
    return f"{arm}, seed {seed}"


def between(quantity: str, low: float | None, high: float | None, less: str, more: str) -> str:
    """Say that a quantity lies between two bounds, of which one may be open."""
    if low is None:
        return quantity if high is None else f"{quantity} {less} {number(high)}"
    if high is None:
        return f"{quantity} {more} {number(low)}"
    return f"{number(low)} {less} {quantity} {less} {number(high)}"
