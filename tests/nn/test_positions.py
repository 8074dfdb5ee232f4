"""Position schemes against their formulas in plain Python, and against GPT-NeoX."""

import math

import pytest
import torch
from transformers.models.gpt_neox.configuration_gpt_neox import GPTNeoXConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding, apply_rotary_pos_emb

from allyouneed.nn import LearnedPositions, PositionScheme, RotaryPositions, SinusoidalPositions
from allyouneed.papers.alibi import ALiBi

POSITIONS = torch.tensor([[0, 1, 2, 17, 300], [5, 6, 7, 8, 4_095]])


@pytest.mark.parametrize("base", [10_000.0, 100.0])
@pytest.mark.parametrize("width", [2, 30])
def test_sinusoids_are_those_of_the_paper(width: int, base: float):
    scheme = SinusoidalPositions(width, base)
    actual = scheme.embed(torch.zeros(2, 5, width), POSITIONS)
    for row, positions in enumerate(POSITIONS.tolist()):
        for place, position in enumerate(positions):
            for i in range(width // 2):
                angle = position / base ** (2 * i / width)
                # Rounding of an angle in 32 bits grows with it.
                near = pytest.approx((math.sin(angle), math.cos(angle)), abs=5e-7 * max(1, angle))
                assert tuple(actual[row, place, 2 * i : 2 * i + 2].tolist()) == near


def test_sinusoids_are_added():
    scheme, embeddings = SinusoidalPositions(4), torch.randn(2, 5, 4)
    waves = scheme.embed(torch.zeros(2, 5, 4), POSITIONS)
    torch.testing.assert_close(scheme.embed(embeddings, POSITIONS), embeddings + waves)


def test_sinusoids_refuse_an_odd_width():
    with pytest.raises(ValueError, match="31 is odd"):
        SinusoidalPositions(31)


def test_learned_positions_are_rows_of_the_table():
    scheme, embeddings = LearnedPositions(9, 6), torch.randn(2, 3, 6)
    positions = torch.tensor([[0, 1, 2], [6, 7, 8]])
    expected = torch.stack(
        [
            torch.stack([embeddings[row, i] + scheme.table.weight[position] for i, position in enumerate(line)])
            for row, line in enumerate(positions.tolist())
        ]
    )
    assert torch.equal(scheme.embed(embeddings, positions), expected)


def test_learned_positions_refuse_what_is_beyond_the_table():
    with pytest.raises(ValueError, match=r"position 9 .*0 to 8.*at most 9 tokens"):
        LearnedPositions(9, 6).embed(torch.zeros(1, 2, 6), torch.tensor([[8, 9]]))


@pytest.mark.parametrize(("head_width", "rotated"), [(8, None), (8, 2), (24, 6), (6, 4)])
def test_rotary_equals_gpt_neox(head_width: int, rotated: int | None):
    turned = head_width if rotated is None else rotated
    config = GPTNeoXConfig(
        hidden_size=3 * head_width,
        num_attention_heads=3,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": (turned + 0.5) / head_width,
        },
    )
    query, key = torch.randn(2, 2, 3, 5, head_width, dtype=torch.float64)
    cos, sin = GPTNeoXRotaryEmbedding(config)(query, POSITIONS)
    assert cos.shape[-1] == turned
    rotation = RotaryPositions(head_width, rotated=rotated).rotation(POSITIONS)
    for actual, expected in zip(
        (rotation(query), rotation(key)), apply_rotary_pos_emb(query, key, cos, sin), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_rotary_turns_pairs_by_complex_numbers():
    """Multiplying coordinate pairs, as complex numbers, by e^(i·angle): the paper's equation 13."""
    width, base = 6, 10_000.0
    vectors = torch.randn(2, 1, 5, width, dtype=torch.float64)
    actual = RotaryPositions(width, base).rotation(POSITIONS)(vectors)
    frequencies = [base ** (-2 * i / width) for i in range(width // 2)]
    angles = POSITIONS[:, None, :, None] * torch.tensor(frequencies, dtype=torch.float64)
    pairs = torch.complex(*vectors.chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat((pairs.real, pairs.imag), -1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=3e-7 * float(POSITIONS.max()))


def test_rotary_scores_depend_on_distance_alone():
    scheme, (query, key) = RotaryPositions(8), torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def score(i: int, j: int) -> float:
        at = [scheme.rotation(torch.tensor([[position]])) for position in (i, j)]
        return float((at[0](query) * at[1](key)).sum())

    assert score(7, 3) == pytest.approx(score(107, 103), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-4)


@pytest.mark.parametrize("rotated", [3, 0, -2, 10])
def test_rotary_refuses(rotated: int):
    with pytest.raises(ValueError, match=f"width 8.*not {rotated}"):
        RotaryPositions(8, rotated=rotated)


def test_rotary_refuses_an_odd_head():
    with pytest.raises(ValueError, match=r"width 5.*not 5"):
        RotaryPositions(5)


class TestCastModels:
    """A model cast to 16 bits, or built on no device, has the positions that it had: only weights are rounded."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_sinusoids(self, dtype: torch.dtype):
        zeros = torch.zeros(2, 5, 30)
        expected = SinusoidalPositions(30).embed(zeros, POSITIONS)
        actual = SinusoidalPositions(30).to(dtype).embed(zeros.to(dtype), POSITIONS)
        assert actual.dtype == dtype
        assert torch.equal(actual, expected.to(dtype))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_rotations(self, dtype: torch.dtype):
        expected = RotaryPositions(8).rotation(POSITIONS)
        actual = RotaryPositions(8).to(dtype).rotation(POSITIONS)
        assert torch.equal(actual.cos, expected.cos) and torch.equal(actual.sin, expected.sin)
        vectors = torch.randn(2, 1, 5, 8)
        turned = actual(vectors.to(dtype))
        assert turned.dtype == dtype
        torch.testing.assert_close(turned.float(), expected(vectors), rtol=0.02, atol=0.02)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_slopes(self, dtype: torch.dtype):
        places = torch.arange(100)
        assert torch.equal(ALiBi(12).to(dtype).bias(places, places), ALiBi(12).bias(places, places))

    @pytest.mark.parametrize(
        "build", [lambda: SinusoidalPositions(8), lambda: RotaryPositions(8)], ids=["sinusoidal", "rotary"]
    )
    def test_built_on_the_meta_device(self, build):
        with torch.device("meta"):
            scheme = build()
        scheme = scheme.to_empty(device="cpu")
        zeros, vectors = torch.zeros(2, 5, 8), torch.ones(2, 1, 5, 8)
        assert torch.equal(scheme.embed(zeros, POSITIONS), build().embed(zeros, POSITIONS))
        if (rotation := build().rotation(POSITIONS)) is not None:
            assert torch.equal(scheme.rotation(POSITIONS)(vectors), rotation(vectors))


@pytest.mark.parametrize(
    "scheme", [PositionScheme(), SinusoidalPositions(8), RotaryPositions(8), ALiBi(3)], ids=lambda it: type(it).__name__
)
def test_fixed_schemes_have_nothing_to_learn_or_to_save(scheme: PositionScheme):
    assert not list(scheme.parameters()) and not scheme.state_dict()


def test_a_plain_scheme_gives_no_positions():
    scheme, embeddings = PositionScheme(), torch.randn(2, 5, 8)
    assert scheme.embed(embeddings, POSITIONS) is embeddings
    assert scheme.rotation(POSITIONS) is None and scheme.bias(torch.arange(5), torch.arange(5)) is None
