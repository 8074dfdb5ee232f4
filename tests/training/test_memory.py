"""Peaks of tensor memory, on sequences of allocations whose peak is known."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from allyouneed.training import peak_tensor_bytes


def room(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


def nothing() -> None:
    pass


def one() -> object:
    return room(1000)


def one_after_the_other() -> None:
    first = room(1000)
    del first
    room(3000)


def both_at_once() -> None:
    first = room(1000)
    second = room(3000)
    del first, second
    room(3500)


def peak_in_the_middle() -> None:
    first, second = room(1000), room(2000)
    third = room(4000)
    del second
    fourth = room(1500)
    del first, third, fourth


def views_are_free() -> None:
    first = room(1000)
    first.view(10, 100).T[3:].expand(4, -1, -1)


def in_place_is_free() -> None:
    room(1000).zero_().bitwise_not_()


@pytest.mark.parametrize(
    ("work", "peak"),
    [
        (nothing, 0),
        (one, 1000),
        (one_after_the_other, 3000),
        (both_at_once, 4000),
        (peak_in_the_middle, 7000),
        (views_are_free, 1000),
        (in_place_is_free, 1000),
    ],
)
def test_known_sequences(work: Callable[[], object], peak: int):
    assert peak_tensor_bytes(work) == peak


def test_what_existed_before_is_not_counted():
    before = [room(5000)]

    def work() -> None:
        room(100).copy_(before[0][:100])
        # The processor's record does not tell of the end of what it has not seen begin.
        before.pop()
        before.append(room(600))

    assert peak_tensor_bytes(work) == 600


def test_a_training_step_repeats_exactly():
    def step() -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
        model(torch.randn(32, 64)).square().sum().backward()

    peaks = {peak_tensor_bytes(step) for _ in range(5)}
    assert len(peaks) == 1
    # At the least weights and their gradients.
    assert peaks.pop() > 2 * 4 * (64 * 256 * 2)


def test_an_error_of_the_work_comes_through():
    with pytest.raises(ZeroDivisionError):
        peak_tensor_bytes(lambda: 1 // 0)
    assert peak_tensor_bytes(one) == 1000


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]):
    peak_tensor_bytes(one)
    assert capfd.readouterr() == ("", "")


@pytest.mark.gpu
def test_on_an_accelerator():
    def work() -> None:
        first = torch.empty(1 << 20, dtype=torch.uint8, device="cuda")
        second = torch.empty(3 << 20, dtype=torch.uint8, device="cuda")
        del first, second

    assert peak_tensor_bytes(work, "cuda") == 4 << 20
