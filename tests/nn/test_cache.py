"""The key-value cache by itself: what is put in comes out, whatever its buffers do."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allyouneed.nn import KeyValueCache, LayerCache, WindowCache


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


class TestBranches:
    """Rows that go on from the same tokens, against a plain cache that was given all of them."""

    def filled(self, batch: int, length: int, limit: int | None = None) -> tuple[KeyValueCache, torch.Tensor]:
        cache, new = KeyValueCache(2, limit), torch.randn(batch, 3, length, 4)
        for layer in cache.layers:
            layer.append(new, -new)
        return cache, new

    @pytest.mark.parametrize(("batch", "rows"), [(1, [0] * 5), (1, [0]), (3, [2, 0, 0, 1]), (3, [1])])
    def test_each_row_goes_on_from_the_row_it_names(self, batch: int, rows: list[int]):
        cache, new = self.filled(batch, 7)
        branched = cache.branch(rows)
        assert len(branched) == len(cache) == 7
        for length in (1, 4):
            more = torch.randn(len(rows), 3, length, 4)
            keys, values = branched.layers[1].append(more, -more)
            assert torch.equal(keys[:, :, :7], new[rows]) and torch.equal(values, -keys)
            assert torch.equal(keys[:, :, -length:], more)
        assert len(cache) == 7
        own = torch.randn(batch, 3, 1, 4)
        assert torch.equal(cache.layers[1].append(own, own)[0], torch.cat((new, own), 2))
        assert torch.equal(branched.layers[1].append(more, more)[0][:, :, :7], new[rows])

    @pytest.mark.parametrize("first", [[0], [0, 0, 0]])
    def test_branches_branch(self, first: list[int]):
        cache, new = self.filled(1, 4)
        once = cache.branch(first)
        middle = torch.randn(len(first), 3, 2, 4)
        once.layers[0].append(middle, middle)
        rows = [len(first) - 1, 0, 0]
        twice = once.branch(rows)
        last = torch.randn(3, 3, 1, 4)
        keys, _ = twice.layers[0].append(last, last)
        assert torch.equal(keys, torch.cat((new.expand(3, -1, -1, -1), middle[rows], last), 2))
        assert once.layers[0].length == 6 and twice.layers[0].length == 7

    def test_what_is_held_once_is_not_copied(self):
        cache, _ = self.filled(1, 1000)
        trunk = cache.layers[0].append(torch.zeros(1, 3, 0, 4), torch.zeros(1, 3, 0, 4))[0]
        branched: Any = cache.branch([0] * 50).branch(range(50))
        assert branched.layers[0]._common[0].data_ptr() == trunk.data_ptr()

    def test_padding_goes_with_its_row(self):
        cache, _ = self.filled(2, 3)
        cache.present = torch.tensor([[True, True, False], [True, True, True]])
        branched = cache.branch([1, 0, 0])
        assert branched.present is not None
        assert torch.equal(branched.present, cache.present[[1, 0, 0]])

    def test_an_empty_cache_branches_into_an_empty_one(self):
        branched = KeyValueCache(2).branch([0, 0])
        new = torch.randn(2, 1, 3, 4)
        assert len(branched) == 0 and torch.equal(branched.layers[0].append(new, new)[0], new)

    def test_their_own_tokens_can_be_forgotten_and_those_in_common_cannot(self):
        cache, new = self.filled(1, 4)
        branched = cache.branch([0, 0])
        for layer in branched.layers:
            layer.append(torch.randn(2, 3, 3, 4), torch.randn(2, 3, 3, 4))
        branched.truncate(4)
        more = torch.randn(2, 3, 1, 4)
        assert torch.equal(branched.layers[0].append(more, more)[0][:, :, :4], new.expand(2, -1, -1, -1))
        for length in (3, 6):
            with pytest.raises(ValueError, match=rf"4 of them in common, cannot be cut to {length}"):
                branched.truncate(length)

    def test_the_limit_counts_what_is_in_common(self):
        branched = self.filled(1, 4, limit=6)[0].branch([0, 0]).branch([1, 0])
        new = torch.zeros(2, 3, 2, 4)
        assert branched.layers[0].append(new, new)[0].shape[2] == 6
        with pytest.raises(ValueError, match=r"limited to 6 tokens and would hold 8"):
            branched.layers[0].append(new, new)

    def test_bad_rows_are_refused(self):
        cache, _ = self.filled(2, 3)
        for rows, message in (([], "into no rows"), ([0, 2], "row 2 is not in the cache: it holds rows 0 to 1")):
            with pytest.raises(ValueError, match=message):
                cache.branch(rows)
        branched = self.filled(1, 3)[0].branch([0, 0])
        with pytest.raises(ValueError, match="row -1 is not in the cache: it holds rows 0 to 1"):
            branched.branch([-1])
        with pytest.raises(ValueError, match="a batch of 2, not of 3"):
            branched.layers[0].append(torch.zeros(3, 3, 1, 4), torch.zeros(3, 3, 1, 4))


class TestWindows:
    """A layer whose tokens see the last ones only."""

    @given(
        sizes=st.lists(st.integers(1, 200), min_size=1, max_size=12),
        window=st.integers(1, 90),
        capacity=st.integers(1, 200),
    )
    def test_what_will_be_seen_is_returned(self, sizes: list[int], window: int, capacity: int):
        cache = WindowCache(window, capacity=capacity)
        keys, values = torch.randn(2, 1, sum(sizes), 2), torch.randn(2, 1, sum(sizes), 2)
        end = 0
        for size in sizes:
            start, end = end, end + size
            first = max(0, start - (window - 1))
            held = cache.append(keys[:, :, start:end], values[:, :, start:end])
            assert torch.equal(held[0], keys[:, :, first:end]) and torch.equal(held[1], values[:, :, first:end])
            assert cache.length == end
            # Those that will be seen, and some more; not those of long ago.
            assert cache._last.length <= 2 * (window + 64) and cache.shortest <= max(0, end - 64)

    @given(data=st.data(), window=st.integers(1, 40))
    def test_what_was_cut_is_as_if_it_had_not_been(self, data: st.DataObject, window: int):
        cache, keys = WindowCache(window), torch.randn(1, 1, 2000, 2)
        kept = 0
        for _ in range(8):
            new = data.draw(st.integers(1, 120))
            cache.append(keys[:, :, kept : kept + new], keys[:, :, kept : kept + new])
            kept = data.draw(st.integers(cache.shortest, kept + new))
            cache.truncate(kept)
            seen = cache.append(keys[:, :, kept : kept + 1], keys[:, :, kept : kept + 1])[0]
            assert torch.equal(seen, keys[:, :, max(0, kept + 1 - window) : kept + 1])
            kept += 1

    def test_what_was_forgotten_cannot_be_asked_for(self):
        cache, new = KeyValueCache(2, windows=[None, 3]), torch.zeros(1, 1, 1000, 2)
        for layer in cache.layers:
            layer.append(new, new)
        assert cache.shortest == 1000 - 64
        with pytest.raises(ValueError, match=r"window of 3 cannot be cut to 935: it must be from 936 to 1000"):
            cache.truncate(935)
        assert len(cache) == 1000 and cache.layers[1].length == 1000
        cache.truncate(936)
        assert [layer.length for layer in cache.layers] == [936, 936]

    def test_the_limit_counts_what_was_forgotten(self):
        cache, new = WindowCache(2, limit=300), torch.zeros(1, 1, 299, 2)
        cache.append(new, new)
        with pytest.raises(ValueError, match="limited to 300 tokens and would hold 301"):
            cache.append(new[:, :, :2], new[:, :, :2])

    def test_branches_have_their_own(self):
        cache, keys = KeyValueCache(1, windows=[4]), torch.randn(2, 1, 300, 2)
        cache.layers[0].append(keys, keys)
        branched = cache.branch([1, 1, 0])
        new = torch.randn(3, 1, 1, 2)
        seen = branched.layers[0].append(new, new)[0]
        assert torch.equal(seen, torch.cat((keys[[1, 1, 0], :, -3:], new), 2))
        assert len(branched) == 301 and len(cache) == 300
        with pytest.raises(ValueError, match="row 2 is not in the cache"):
            cache.branch([2])
        empty = KeyValueCache(1, windows=[4]).branch([0, 0])
        assert len(empty) == 0 and torch.equal(empty.layers[0].append(new, new)[0], new)

    def test_windows_that_do_not_fit_are_refused(self):
        with pytest.raises(ValueError, match="window 0 is out of range"):
            WindowCache(0)
        with pytest.raises(ValueError, match="1 windows do not fit 2 layers"):
            KeyValueCache(2, windows=[3])
