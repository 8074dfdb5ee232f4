"""Names of weights as they are without `torch.compile`, and lists of names in messages."""

from collections.abc import Collection

# `torch.compile(module)` wraps: the module becomes a child of this name, and its weights are called accordingly.
_COMPILED = "_orig_mod."


def plain_name(name: str) -> str:
    """Give the name that a weight has where nothing is compiled, whichever of the modules around it are."""
    return name.replace(_COMPILED, "")


def listed(names: Collection[str], most: int = 6) -> str:
    """Write out some names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(list(names)[:most]) + (f" and {rest} more" if rest > 0 else "")
