from inspect import unwrap

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from allyouneed.text import pack

DOCUMENTS = st.lists(st.lists(st.integers(0, 50_000), max_size=12), max_size=8)


@given(documents=DOCUMENTS, length=st.integers(1, 9), separator=st.none() | st.just(99_999))
def test_rows_rebuild_the_documents(documents: list[list[int]], length: int, separator: int | None):
    stream: list[int] = []
    for number, document in enumerate(documents):
        if number and separator is not None:
            stream.append(separator)
        stream.extend(document)
    assume(len(stream) >= length)
    rows = pack(documents, length, separator)
    assert rows.dtype == torch.int64
    rebuilt = rows.flatten().tolist()
    assert rebuilt == stream[: len(rebuilt)]
    assert len(stream) - len(rebuilt) < length
    if separator is not None and len(rebuilt) == len(stream):
        split: list[list[int]] = [[]]
        for token in rebuilt:
            if token == separator:
                split.append([])
            else:
                split[-1].append(token)
        assert split == documents


def test_tensors_of_any_integer_type_and_a_generator_are_taken():
    documents = (torch.tensor([1, 2, 255], dtype=dtype) for dtype in (torch.uint8, torch.int32, torch.int64))
    assert pack(documents, 5, 0).tolist() == [[1, 2, 255, 0, 1], [2, 255, 0, 1, 2]]


@pytest.mark.parametrize(
    ("documents", "length", "message"),
    [
        ([[1, 2]], 0, "rows of 0 tokens"),
        ([[1, 2]], -3, "rows of -3 tokens"),
        ([], 4, "have 0 tokens with separators, too few for one row of 4"),
        ([[1], [2]], 4, "have 3 tokens with separators, too few for one row of 4"),
        ([[1], [[2, 3]]], 1, r"document 1 has the shape \(1, 2\)"),
        ([1, 2, 3], 1, r"document 0 has the shape \(\)"),
    ],
)
def test_what_cannot_be_packed_is_refused(documents: list[list[int]], length: int, message: str):
    with pytest.raises(ValueError, match=message):
        # Past the check of types that tests run under, which users do not have.
        unwrap(pack)(documents, length, 0)
