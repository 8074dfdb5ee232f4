"""Reading files that may be damaged: exact byte ranges, JSON, and portions of a tensor's rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import CheckpointFormatError

# Small beside any model, large enough that reading in portions costs nothing.
_PORTION = 4 << 20


def read_exactly(file: BinaryIO, start: int, size: int, what: str) -> bytearray:
    """Read a range of bytes; the caller has checked that the file was long enough to hold it.

    Raises:
        CheckpointFormatError: the file has become shorter.
    """
    file.seek(start)
    data = bytearray(size)
    view = memoryview(data)
    filled = 0
    while filled < size:
        count = file.readinto(view[filled:])  # pyright: ignore[reportAttributeAccessIssue]
        if not count:
            raise CheckpointFormatError(f"{file.name} ends {size - filled} bytes before {what} does")
        filled += count
    return data


def row_portions(rows: int, row_bytes: int) -> Iterator[slice]:
    """Divide rows into runs of a few megabytes, at least one row each."""
    step = max(1, _PORTION // max(1, row_bytes))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def read_json(path: Path, *, kind: type[Any] = dict) -> Any:
    """Read a JSON file that must hold an object, or a list.

    Args:
        path: the file.
        kind: dict or list.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointFormatError: it is not JSON, or not of this kind.
    """
    content = path.read_bytes()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointFormatError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, kind):
        wanted = "an object with keys" if kind is dict else "a list"
        raise CheckpointFormatError(f"{path} holds a {type(value).__name__}, not {wanted}")
    return value
