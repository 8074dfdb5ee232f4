"""Scaled rotary frequencies against their formulas, and what is refused; whole models are in the room of LLaMA."""

import math
from collections.abc import Callable

import pytest
import torch

from allyouneed.nn import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RotaryPositions,
    RotaryScaling,
    YarnScaling,
)

LENGTHS = torch.tensor([5, 40])
PLAIN = [100.0 ** (-2 * pair / 12) for pair in range(6)]


def frequencies(scaling: RotaryScaling) -> list[list[float]]:
    return scaling.frequencies(12, 100.0, LENGTHS).tolist()


def test_linear_squeezes_positions():
    scaled, plain = RotaryPositions(12, 100.0, scaling=LinearScaling(4.0)), RotaryPositions(12, 100.0)
    positions = torch.arange(40)[None]
    torch.testing.assert_close(scaled.rotation(4 * positions).cos, plain.rotation(positions).cos, rtol=0, atol=1e-5)


def test_dynamic_gives_each_row_the_base_of_its_own_length():
    short, long = frequencies(DynamicScaling(2.0, 16))
    assert short == pytest.approx(PLAIN, rel=1e-6)
    base = 100.0 * (2.0 * 40 / 16 - 1) ** (12 / 10)
    assert long == pytest.approx([base ** (-2 * pair / 12) for pair in range(6)], rel=1e-5)
    both = RotaryPositions(12, 100.0, scaling=DynamicScaling(2.0, 16))
    positions = torch.stack((torch.arange(20), torch.arange(20) * 2))
    alone = [both.rotation(row[None]).cos for row in positions]
    torch.testing.assert_close(both.rotation(positions).cos, torch.cat(alone), rtol=0, atol=0)


def test_llama3_divides_the_slow_ones():
    (scaled,) = frequencies(Llama3Scaling(8.0, 1.0, 4.0, 64))
    for plain, actual in zip(PLAIN, scaled, strict=True):
        wavelength = 2 * math.pi / plain
        if wavelength < 64 / 4:
            assert actual == pytest.approx(plain, rel=1e-6)
        elif wavelength > 64:
            assert actual == pytest.approx(plain / 8, rel=1e-6)
        else:
            assert plain / 8 < actual < plain


def test_yarn_keeps_fast_ones_and_interpolates_slow_ones():
    (scaled,) = frequencies(YarnScaling(4.0, 64, beta_fast=8.0))
    assert scaled[0] == pytest.approx(PLAIN[0]) and scaled[-1] == pytest.approx(PLAIN[-1] / 4)
    ratios = [round(actual / plain, 5) for actual, plain in zip(scaled, PLAIN, strict=True)]
    assert ratios == sorted(ratios, reverse=True)


@pytest.mark.parametrize(
    ("scaling", "magnitude"),
    [
        (YarnScaling(4.0, 64), 0.1 * math.log(4) + 1),
        (YarnScaling(0.5, 64), 1.0),
        (YarnScaling(4.0, 64, attention_factor=0.5), 0.5),
        (
            YarnScaling(4.0, 64, magnitude_scale=0.7, magnitude_scale_all=1.0),
            (0.07 * math.log(4) + 1) / (0.1 * math.log(4) + 1),
        ),
        (LongRopeScaling((1.0,), (2.0,), 64, factor=4.0), math.sqrt(1 + math.log(4) / math.log(64))),
        (LongRopeScaling((1.0,), (2.0,), 64), 1.0),
        (LinearScaling(3.0), 1.0),
    ],
)
def test_magnitudes_multiply_queries_and_keys(scaling: RotaryScaling, magnitude: float):
    assert scaling.magnitude == pytest.approx(magnitude)
    rotation = RotaryPositions(2, scaling=scaling).rotation(torch.tensor([[0, 3]]))
    vectors = torch.randn(1, 5, 2, 2)
    torch.testing.assert_close(rotation(vectors).norm(dim=-1), vectors.norm(dim=-1) * magnitude)


def test_a_single_position_is_rotated_and_multiplied_alike():
    scheme = RotaryPositions(8, rotated=4, scaling=YarnScaling(4.0, 16))
    many, one = scheme.rotation(torch.arange(9)[None]), scheme.rotation(torch.tensor([[8]]))
    vectors = torch.randn(1, 3, 9, 8)
    expected = many(vectors)[:, :, 8:]
    with torch.no_grad():
        torch.testing.assert_close(one(vectors[:, :, 8:]), expected)
        torch.testing.assert_close(one.single(vectors[0, :, 8]), expected[0, :, 0])


def test_longrope_changes_its_list_with_the_length():
    short, long = frequencies(LongRopeScaling((1.0,) * 6, (2.0,) * 6, 16))
    assert short == pytest.approx(PLAIN) and long == pytest.approx([plain / 2 for plain in PLAIN])
    assert LongRopeScaling((1.0,), (2.0,), 16).length_dependent
    assert not LongRopeScaling((2.0,), (2.0,), 16).length_dependent
    (same,) = frequencies(LongRopeScaling((2.0,) * 6, (2.0,) * 6, 16))
    assert same == pytest.approx(long)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearScaling(0.0), "factor is 0.0"),
        (lambda: DynamicScaling(float("inf"), 4), "factor is inf"),
        (lambda: DynamicScaling(2.0, 0), "original is 0"),
        (lambda: DynamicScaling(2.0, 4).frequencies(2, 10.0, LENGTHS), "two pairs"),
        (lambda: Llama3Scaling(8.0, 4.0, 4.0, 64), "low_frequency_factor 4.0 must be below"),
        (lambda: YarnScaling(4.0, 64, attention_factor=0.0), "attention_factor is 0.0"),
        (lambda: YarnScaling(4.0, 64, beta_slow=-1.0), "beta_slow is -1.0"),
        (lambda: LongRopeScaling((1.0,), (1.0, 2.0), 64), "as many numbers"),
        (lambda: LongRopeScaling((1.0,), (1.0,), 64).frequencies(12, 10.0, LENGTHS), "1 factors do not fit 6 pairs"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_how_far_a_model_is_meant_to_read():
    assert RotaryScaling().longest(100) == 100
    assert LinearScaling(2.5).longest(100) == 250 and DynamicScaling(2.0, 100).longest(100) == 200
    assert YarnScaling(4.0, 100).longest(100) == 400 and YarnScaling(4.0, 100).longest(1000) == 1000
    assert Llama3Scaling(8.0, 1.0, 4.0, 64).longest(512) == 512
