"""Names take stored tensors apart and put them together again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allyouneed.hub import Name, WeightsError, same, stacked, transposed


@given(
    heights=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    width=st.integers(1, 4),
    dim=st.integers(0, 1),
    turned=st.booleans(),
)
def test_join_undoes_split(heights: list[int], width: int, dim: int, turned: bool) -> None:
    shapes = [(height, width) if dim == 0 else (width, height) for height in heights]
    name = stacked([f"part{place}" for place in range(len(shapes))], "whole", dim=dim, transposed=turned)
    parts = [torch.randn(shape) for shape in shapes]
    whole = name.join(parts)
    assert tuple(whole.shape) == name.stored_shape(shapes)
    assert whole.is_contiguous()
    back = name.split(whole.clone(), shapes)
    assert all(torch.equal(part, again) for part, again in zip(parts, back, strict=True))
    assert len({part.untyped_storage().data_ptr() for part in back}) == len(back)


def test_what_the_three_kinds_store() -> None:
    weight = torch.arange(6.0).view(2, 3)
    assert torch.equal(same("a", "b").join([weight]), weight)
    assert torch.equal(transposed("a", "b").join([weight]), weight.t())
    query, key = torch.ones(2, 3), torch.zeros(1, 3)
    joined = stacked(("query", "key"), "both", transposed=True).join([query, key])
    assert torch.equal(joined, torch.tensor([[1.0, 1, 0]] * 3))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"b has the shape \(3, 2\); the model needs \(2, 3\)"):
        same("a", "b").split(torch.zeros(3, 2), [(2, 3)])
    with pytest.raises(WeightsError, match="cannot be stacked"):
        stacked(("a", "b"), "c").join([torch.zeros(2, 3), torch.zeros(2, 4)])
    with pytest.raises(WeightsError, match="cannot be stacked"):
        stacked(("a", "b"), "c", dim=1).stored_shape([(2,), (2,)])
    with pytest.raises(WeightsError, match="matrices"):
        transposed("a", "b").stored_shape([(2,)])
    with pytest.raises(ValueError, match="at least one"):
        Name((), "b")
