from inspect import unwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from allyouneed.data.batches import RandomWindows, Shuffled, consecutive_windows

TEXT = torch.arange(1000)
STORED = [torch.uint8, torch.int16, torch.int32, torch.int64]


class TestRandomWindows:
    @given(tokens=st.integers(2, 60), length=st.integers(1, 59), batch=st.integers(1, 60), step=st.integers(0, 2**40))
    def test_windows_are_consecutive_tokens(self, tokens: int, length: int, batch: int, step: int):
        length = min(length, tokens - 1)
        batch = min(batch, tokens - length)
        windows = RandomWindows(100 + torch.arange(tokens), length, batch, seed=0)(step)
        assert windows.shape == (batch, length + 1)
        assert torch.equal(windows, windows[:, :1] + torch.arange(length + 1))
        assert windows.min() >= 100
        assert windows.max() < 100 + tokens

    def test_every_place_is_as_likely_as_any(self):
        draw = RandomWindows(torch.arange(24), length=4, batch=20, seed=3)
        starts = torch.cat([draw(step)[:, 0] for step in range(1000)])
        counts = starts.bincount(minlength=24)
        assert counts[20:].sum() == 0
        assert stats.chisquare(counts[:20].numpy()).pvalue > 1e-3

    def test_a_batch_depends_on_seed_and_step_alone(self):
        draw = RandomWindows(TEXT, 10, 8, seed=1)
        batches = [draw(step) for step in range(5)]
        again = RandomWindows(TEXT, 10, 8, seed=1)
        np.random.seed(0)
        torch.manual_seed(0)
        assert torch.equal(again(3), batches[3])
        assert all(torch.equal(again(step), batches[step]) for step in reversed(range(5)))

    def test_no_two_of_seed_and_step_give_the_same_batch(self):
        pairs = [(seed, step) for seed in (0, 1, 2, 2**32, 2**32 + 1) for step in (0, 1, 2, 2**32, 2**32 + 1)]
        batches = {tuple(RandomWindows(TEXT, 1, 16, seed)(step)[:, 0].tolist()) for seed, step in pairs}
        assert len(batches) == len(pairs)

    def test_consecutive_steps_are_independent(self):
        draw = RandomWindows(torch.arange(1001), 1, 1, seed=0)
        starts = torch.cat([draw(step)[:, 0] for step in range(3000)]).double().numpy()
        other = RandomWindows(torch.arange(1001), 1, 1, seed=1)
        others = torch.cat([other(step)[:, 0] for step in range(3000)]).double().numpy()
        # Of 3000 pairs of independent numbers, the correlation's standard deviation is 0.018.
        assert abs(np.corrcoef(starts[1:], starts[:-1])[0, 1]) < 0.06
        assert abs(np.corrcoef(starts, others)[0, 1]) < 0.06

    @pytest.mark.parametrize("dtype", STORED)
    def test_stored_tokens_of_any_integer_type_become_64_bits(self, dtype: torch.dtype):
        windows = RandomWindows(torch.arange(250).to(dtype), 10, 8, seed=0)(0)
        assert windows.dtype == torch.int64
        assert torch.equal(windows, RandomWindows(torch.arange(250), 10, 8, seed=0)(0))

    def test_the_stored_text_is_left_alone(self):
        text = TEXT.clone()
        RandomWindows(text, 10, 8, seed=0)(0).zero_()
        assert torch.equal(text, TEXT)

    @pytest.mark.parametrize(
        ("tokens", "length", "batch", "seed", "message"),
        [
            (torch.arange(0), 4, 1, 0, "the text is empty"),
            (torch.arange(4), 4, 1, 0, r"4 tokens, too few for one window of 5 \(length 4"),
            (torch.arange(7), 4, 4, 0, "batch of 4 is larger than the data: 7 tokens have 3 windows of 5"),
            (TEXT, 0, 1, 0, "length 0 is out of range: it must be at least 1"),
            (TEXT, -2, 1, 0, "length -2"),
            (TEXT, 4, 0, 0, "batch 0 is out of range"),
            (TEXT, 4, 1, -1, "seed -1 is out of range: it must be at least 0"),
            (torch.zeros(4, 4, dtype=torch.int64), 2, 1, 0, r"shape \(4, 4\)"),
            (torch.zeros(9), 2, 1, 0, r"type torch\.float32"),
            (torch.zeros(9, dtype=torch.bool), 2, 1, 0, r"type torch\.bool"),
        ],
    )
    def test_what_has_no_windows_is_refused(self, tokens: Tensor, length: int, batch: int, seed: int, message: str):
        with pytest.raises(ValueError, match=message):
            # Past the check of types that tests run under, which users do not have.
            unwrap(RandomWindows.__init__)(object.__new__(RandomWindows), tokens, length, batch, seed)

    def test_a_negative_step_is_refused(self):
        with pytest.raises(ValueError, match="step -1 is out of range"):
            RandomWindows(TEXT, 10, 8, seed=0)(-1)


class TestShuffled:
    @given(count=st.integers(1, 50), batch=st.integers(1, 50), epoch=st.integers(0, 3))
    def test_an_epoch_has_every_item_at_most_once(self, count: int, batch: int, epoch: int):
        batch = min(batch, count)
        draw = Shuffled(torch.arange(count), batch, seed=2)
        steps = range(epoch * draw.batches_per_epoch, (epoch + 1) * draw.batches_per_epoch)
        batches = [draw(step) for step in steps]
        seen = torch.cat(batches).tolist()
        assert all(len(items) == batch for items in batches)
        assert len(set(seen)) == len(seen) == count - count % batch

    def test_what_an_epoch_drops_changes(self):
        draw = Shuffled(torch.arange(10), 4, seed=0)
        seen = torch.cat([draw(step) for step in range(60)])
        counts = seen.bincount(minlength=10)
        assert counts.sum() == 240
        assert counts.min() >= 15

    def test_epochs_and_seeds_have_orders_of_their_own(self):
        orders = {tuple(Shuffled(torch.arange(30), 30, seed)(step).tolist()) for seed in range(4) for step in range(4)}
        assert len(orders) == 16
        assert tuple(range(30)) not in orders

    def test_all_orders_are_as_likely(self):
        draw = Shuffled(torch.arange(4), 4, seed=0)
        orders = [int((draw(step) * torch.tensor([64, 16, 4, 1])).sum()) for step in range(2400)]
        counts = np.unique(orders, return_counts=True)[1]
        assert len(counts) == 24
        assert stats.chisquare(counts).pvalue > 1e-3

    def test_a_batch_depends_on_seed_and_step_alone(self):
        first, again = (Shuffled(torch.arange(30), 4, seed=1) for _ in range(2))
        batches = [first(step) for step in range(30)]
        assert all(torch.equal(again(step), batches[step]) for step in (29, 0, 7, 8, 6, 13, 0))

    def test_several_tensors_stay_together_in_their_own_types(self):
        images = torch.arange(20 * 6, dtype=torch.uint8).view(20, 2, 3)
        labels = torch.arange(20)
        for items in ((images, labels), [images, labels]):
            chosen = Shuffled(items, 6, seed=0)(4)
            assert isinstance(chosen, tuple)
            some, of_them = chosen
            assert some.dtype == torch.uint8
            assert some.shape == (6, 2, 3)
            assert torch.equal(some, images[of_them])

    @pytest.mark.parametrize(
        ("items", "batch", "seed", "message"),
        [
            ((), 1, 0, "no items in 0 tensors"),
            (torch.tensor(3), 1, 0, "no items in 1 tensors"),
            (torch.arange(0), 1, 0, "batch of 1 is larger than the data: there are 0 items"),
            ((torch.arange(3), torch.arange(4)), 1, 0, r"tensors have \[3, 4\] items"),
            (torch.arange(3), 4, 0, "batch of 4 is larger than the data: there are 3 items"),
            (torch.arange(3), 0, 0, "batch 0 is out of range: it must be at least 1"),
            (torch.arange(3), 1, -1, "seed -1 is out of range"),
        ],
    )
    def test_what_cannot_be_batched_is_refused(self, items: Tensor, batch: int, seed: int, message: str):
        with pytest.raises(ValueError, match=message):
            Shuffled(items, batch, seed)

    def test_a_negative_step_is_refused(self):
        with pytest.raises(ValueError, match="is out of range"):
            Shuffled(torch.arange(3), 1, 0)(-1)


class TestConsecutiveWindows:
    @given(tokens=st.integers(2, 80), length=st.integers(1, 79), batch=st.integers(1, 20))
    def test_each_target_is_predicted_once(self, tokens: int, length: int, batch: int):
        length = min(length, tokens - 1)
        batches = consecutive_windows(torch.arange(tokens), length, batch)
        windows = torch.cat(batches)
        assert windows.shape[1] == length + 1
        scored = (tokens - 1) // length * length
        assert windows[:, 1:].flatten().tolist() == list(range(1, scored + 1))
        assert windows[:, :-1].flatten().tolist() == list(range(scored))
        assert all(len(windows) == batch for windows in batches[:-1])
        assert 1 <= len(batches[-1]) <= batch

    @settings(max_examples=20)
    @given(windows=st.integers(1, 5))
    def test_with_a_limit_every_length_scores_the_same_targets(self, windows: int):
        limit = 16 * windows
        for length in (1, 2, 4, 8, 16):
            batches = consecutive_windows(TEXT, length, batch=3, limit=limit)
            assert torch.cat(batches)[:, 1:].flatten().tolist() == list(range(1, limit + 1))

    @pytest.mark.parametrize("dtype", STORED)
    def test_stored_tokens_of_any_integer_type_become_64_bits(self, dtype: torch.dtype):
        batches = consecutive_windows(torch.arange(250).to(dtype), 10, 8)
        assert {windows.dtype for windows in batches} == {torch.int64}
        assert torch.equal(torch.cat(batches), torch.cat(consecutive_windows(torch.arange(250), 10, 8)))

    @pytest.mark.parametrize(
        ("tokens", "length", "batch", "limit", "message"),
        [
            (torch.arange(0), 4, 1, None, "the text is empty"),
            (torch.arange(4), 4, 1, None, "4 tokens, too few for one window of 5"),
            (TEXT, 0, 1, None, "length 0 is out of range"),
            (TEXT, 4, 0, None, "batch 0 is out of range"),
            (TEXT, 4, 1, 6, "first 6 targets .* multiple of 4 from 4 to 996, for there are 999 targets"),
            (TEXT, 4, 1, 0, "first 0 targets"),
            (TEXT, 4, 1, -4, "first -4 targets"),
            (TEXT, 4, 1, 1000, "first 1000 targets"),
        ],
    )
    def test_what_cannot_be_scored_is_refused(
        self, tokens: Tensor, length: int, batch: int, limit: int | None, message: str
    ):
        with pytest.raises(ValueError, match=message):
            consecutive_windows(tokens, length, batch, limit)
