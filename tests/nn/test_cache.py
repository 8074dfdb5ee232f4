"""The key-value cache by itself: what is put in comes out, whatever its buffers do."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allyouneed.nn import KeyValueCache, LayerCache


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8), capacity=st.integers(1, 20))
def test_what_is_appended_is_returned(sizes: list[int], capacity: int):
    cache = LayerCache(capacity=capacity)
    keys = torch.randn(2, 3, sum(sizes), 4)
    values = torch.randn(2, 3, sum(sizes), 4)
    end = 0
    for size in sizes:
        start, end = end, end + size
        held = cache.append(keys[:, :, start:end], values[:, :, start:end])
        assert torch.equal(held[0], keys[:, :, :end]) and torch.equal(held[1], values[:, :, :end])
        assert cache.length == end


def test_buffers_double_and_are_not_copied_in_between():
    cache, new = LayerCache(capacity=4), torch.randn(1, 1, 1, 2)
    places = [cache.append(new, new)[0].data_ptr() for _ in range(17)]
    changes = [count for count in range(1, 17) if places[count] != places[count - 1]]
    assert changes == [4, 8, 16]


def test_the_limit_is_the_last_that_fits():
    cache, new = LayerCache(limit=5, capacity=64), torch.zeros(1, 1, 5, 2)
    with pytest.raises(ValueError, match=r"limited to 4 tokens.*would hold 5"):
        LayerCache(limit=4).append(new, new)
    cache.append(new, new)
    with pytest.raises(ValueError, match=r"limited to 5 tokens.*would hold 6"):
        cache.append(new[:, :, :1], new[:, :, :1])
    assert cache.length == 5


def test_refuses_another_batch():
    cache, new = LayerCache(), torch.zeros(3, 1, 1, 2)
    cache.append(new, new)
    with pytest.raises(ValueError, match="batch of 3, not of 1"):
        cache.append(new[:1], new[:1])


def test_keeps_the_type_of_what_it_holds():
    new = torch.zeros(1, 1, 1, 2, dtype=torch.bfloat16)
    assert LayerCache().append(new, new)[0].dtype == torch.bfloat16


def test_padding_is_joined_to_what_came_before():
    cache, new = KeyValueCache(2), torch.zeros(2, 1, 3, 4)
    assert cache.joined(None, 2, 3, torch.device("cpu")) is None
    for layer in cache.layers:
        layer.append(new, new)
    assert len(cache) == 3
    some = torch.tensor([[True], [False]])
    joined = cache.joined(some, 2, 1, torch.device("cpu"))
    assert joined is not None and joined.tolist() == [[True] * 4, [True] * 3 + [False]]
    assert cache.present is None
    cache.present = joined
    again = cache.joined(None, 2, 2, torch.device("cpu"))
    assert again is not None and again.tolist() == [[True] * 6, [True] * 3 + [False, True, True]]


def test_what_is_cut_off_is_forgotten():
    cache, new = KeyValueCache(2), torch.randn(2, 1, 5, 4)
    for layer in cache.layers:
        layer.append(new, new)
    cache.present = torch.tensor([[False, True, True, True, True], [True] * 5])
    cache.truncate(3)
    assert len(cache) == 3 and cache.present.shape == (2, 3)
    keys, _ = cache.layers[0].append(new[:, :, :1], new[:, :, :1])
    assert torch.equal(keys, torch.cat((new[:, :, :3], new[:, :, :1]), 2))
    for length in (-1, 5):
        with pytest.raises(ValueError, match=f"cannot be cut to {length}"):
            cache.truncate(length)
