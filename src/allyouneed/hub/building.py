"""Building the model that a configuration describes, without more than its checkpoint can fill."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .errors import CheckpointFormatError, UnsupportedError, WeightsError
from .stored import StoredModel

# A stored tensor may hold several parameters, such as those of query, key and value.
_PARAMETERS_OF_A_TENSOR = 32
_SPARE = 256
_FACTORIES: frozenset[Callable[..., Any]] = frozenset(
    (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.arange, torch.tensor, torch.eye)
)


class _TooManyError(Exception):
    """More or larger tensors than the checkpoint has."""


class _Counting(TorchFunctionMode):
    """Counts the tensors that are made, and their numbers, and ends what makes more than there is to fill them with."""

    def __init__(self, tensors: int, numbers: int):
        super().__init__()
        self.tensors = tensors
        self.numbers = numbers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in _FACTORIES and isinstance(made, torch.Tensor):
            self.tensors -= 1
            self.numbers -= made.numel()
            if self.tensors < 0 or self.numbers < 0:
                raise _TooManyError
        return made


@contextmanager
def bounded_by(stored: StoredModel) -> Iterator[None]:
    """Build on the meta device, and stop at once where a model has far more weights than a checkpoint holds.

    Raises:
        UnsupportedError: it has, with the numbers of the configuration that are larger than anything that is stored; or
            the configuration's numbers go together in no model.
    """
    shapes = [stored.shape(name) for name in stored.names()]
    numbers = sum(map(prod, shapes))
    counting = _Counting(
        _PARAMETERS_OF_A_TENSOR * len(shapes) + _SPARE,
        # A tied table is made twice by some, and what is drawn at first comes on top.
        8 * numbers + (1 << 20),
    )
    try:
        with torch.device("meta"), counting:
            yield
    except (CheckpointFormatError, UnsupportedError, WeightsError):
        raise
    except _TooManyError:
        raise UnsupportedError(
            f"{stored.source}: config.json describes a model with far more weights than the {len(shapes)} tensors with "
            f"{numbers:,} numbers that are stored{_suspects(stored.config, shapes)}"
        ) from None
    except (ValueError, RuntimeError, TypeError, ArithmeticError, MemoryError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        suspects = _suspects(stored.config, shapes)
        raise UnsupportedError(
            f"{stored.source}: config.json describes a model that cannot be built{suspects}: {said}"
        ) from error


def _suspects(config: Mapping[str, Any], shapes: list[tuple[int, ...]]) -> str:
    """Name the numbers that are larger than any side of a tensor, or count more layers than there are tensors."""
    widest = max((side for shape in shapes for side in shape), default=0)
    found = [
        f"{key} is {value}"
        for key, value in config.items()
        if isinstance(value, int | float) and value > (len(shapes) if "layer" in key else widest)
    ]
    return f" ({', '.join(found[:4])})" if found else ""
