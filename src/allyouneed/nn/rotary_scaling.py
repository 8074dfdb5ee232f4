"""How rotary positions are stretched beyond the length that a model was first trained with, a class for each method.

Rotary positions rotate pair i of a head's coordinates by the angle position · θᵢ, where θᵢ = base^(-2i/width). Each
method gives other frequencies θ, and some multiply queries and keys by a number besides, which makes attention sharper.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rotary_frequencies(width: int, base: float, device: torch.device) -> Float[Tensor, " pairs"]:
    """Give the angle by which each pair of coordinates rotates from a position to the next.

    Worked out at each call: a buffer would be rounded with the weights when a model is cast to 16 bits.
    """
    return 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)


@dataclass(frozen=True)
class RotaryScaling:
    """The seam; as it stands, frequencies are left as they are."""

    @property
    def magnitude(self) -> float:
        """What rotated queries and keys are multiplied by."""
        return 1.0

    @property
    def length_dependent(self) -> bool:
        """Whether frequencies depend on the length of the sequence that a position is in."""
        return False

    def longest(self, context: int) -> int:
        """Give the most tokens that a model is meant to read with it, where its configuration says `context`."""
        return context

    def frequencies(self, width: int, base: float, lengths: Int[Tensor, " batch"]) -> Float[Tensor, "#batch pairs"]:
        """Give the angle by which each pair of coordinates rotates from a position to the next.

        Args:
            width: how many coordinates rotate.
            base: of the unscaled frequencies.
            lengths: of each sequence, up to the last token that is rotated.
        """
        return rotary_frequencies(width, base, lengths.device)[None]


@dataclass(frozen=True)
class LinearScaling(RotaryScaling):
    """All frequencies divided by a factor: positions are squeezed together (Chen et al. 2023, section 2.3).

    Attributes:
        factor: by which the context grows.

    Raises:
        ValueError: a factor that is not above 0.
    """

    factor: float

    def __post_init__(self) -> None:
        _check_above_zero(factor=self.factor)

    def longest(self, context: int) -> int:
        """Give the context times the factor."""
        return int(context * self.factor)

    def frequencies(self, width: int, base: float, lengths: Int[Tensor, " batch"]) -> Float[Tensor, "#batch pairs"]:
        """Divide all alike."""
        return rotary_frequencies(width, base, lengths.device)[None] / self.factor


@dataclass(frozen=True)
class DynamicScaling(RotaryScaling):
    """A base that grows with the sequence once it is longer than the original context ("dynamic NTK").

    Source: Peng et al. 2023, section 3.3. Each sequence of a batch has a base of its own, where the reference
    implementation takes that of the longest for all. Keys that are in a cache stay as they were rotated, as in the
    reference implementation: beyond the original context, several calls give something else than a single one.

    Attributes:
        factor: how fast the base grows.
        original: the context that the model was trained with.

    Raises:
        ValueError: a factor that is not above 0, or a context below 1.
    """

    factor: float
    original: int

    def __post_init__(self) -> None:
        _check_above_zero(factor=self.factor, original=self.original)

    @property
    def length_dependent(self) -> bool:
        """They do."""
        return True

    def longest(self, context: int) -> int:
        """Give the context times the factor, as servers do; there is no end by itself."""
        return max(context, int(context * self.factor))

    def frequencies(self, width: int, base: float, lengths: Int[Tensor, " batch"]) -> Float[Tensor, "#batch pairs"]:
        """Take them from a base that is larger by (factor · length / original - (factor - 1))^(width / (width - 2)).

        Raises:
            ValueError: fewer than two pairs of coordinates.
        """
        if width < 4:
            raise ValueError(f"dynamic scaling needs two pairs of rotated coordinates or more, not {width} coordinates")
        plain = rotary_frequencies(width, base, lengths.device)
        growth = self.factor * lengths.clamp(min=self.original) / self.original - (self.factor - 1)
        larger = base * growth[:, None] ** (width / (width - 2))
        steps = torch.arange(0, width, 2, dtype=torch.float32, device=lengths.device) / width
        return torch.where(lengths[:, None] > self.original, 1.0 / larger**steps, plain)


@dataclass(frozen=True)
class Llama3Scaling(RotaryScaling):
    """Slow frequencies divided by a factor, fast ones left, and those between interpolated (as in Llama 3.1).

    Source: the code that was released with Llama 3.1 (Grattafiori et al. 2024 say only that the base was raised).

    Attributes:
        factor: by which slow frequencies are divided.
        low_frequency_factor: slow are those that rotate less often than this in the original context.
        high_frequency_factor: fast are those that rotate more often than this.
        original: the context that the model was trained with first.

    Raises:
        ValueError: numbers that are not above 0, or a low factor that is not below the high one.
    """

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original: int

    def __post_init__(self) -> None:
        low, high = self.low_frequency_factor, self.high_frequency_factor
        _check_above_zero(factor=self.factor, low_frequency_factor=low, original=self.original)
        if not low < high:
            raise ValueError(f"low_frequency_factor {low} must be below high_frequency_factor {high}")

    def frequencies(self, width: int, base: float, lengths: Int[Tensor, " batch"]) -> Float[Tensor, "#batch pairs"]:
        """Divide the slow ones."""
        plain = rotary_frequencies(width, base, lengths.device)
        rotations = self.original * plain / (2 * math.pi)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        kept = ((rotations - low) / (high - low)).clamp(0, 1)
        return (kept * plain + (1 - kept) * plain / self.factor)[None]


@dataclass(frozen=True)
class YarnScaling(RotaryScaling):
    """Interpolation by parts, and sharper attention: YaRN (Peng et al. 2023, section 3.4).

    Attributes:
        factor: by which the context grows; s in the paper.
        original: the context that the model was trained with first; L.
        attention_factor: multiplies queries and keys; √(1/t) = 0.1 ln(s) + 1 where None.
        beta_fast: pairs that rotate more often than this in the original context keep their frequencies; β.
        beta_slow: those that rotate less often are interpolated; α.
        magnitude_scale: multiplies the logarithm in the factor's numerator, where both scales are given; `mscale` in
            checkpoints.
        magnitude_scale_all: the same in a denominator, `mscale_all_dim`.
        truncate: whether the bounds between the pairs are rounded outwards to whole pairs.

    Raises:
        ValueError: numbers that are not above 0.
    """

    factor: float
    original: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    magnitude_scale: float | None = None
    magnitude_scale_all: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        _check_above_zero(
            factor=self.factor, original=self.original, beta_fast=self.beta_fast, beta_slow=self.beta_slow
        )
        if self.attention_factor is not None:
            _check_above_zero(attention_factor=self.attention_factor)

    @property
    def magnitude(self) -> float:
        """What rotated queries and keys are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.magnitude_scale and self.magnitude_scale_all:
            return self._sharpened(self.magnitude_scale) / self._sharpened(self.magnitude_scale_all)
        return self._sharpened(1.0)

    def longest(self, context: int) -> int:
        """Give the original context times the factor, or the context where it is said to be longer."""
        return max(context, int(self.original * self.factor))

    def frequencies(self, width: int, base: float, lengths: Int[Tensor, " batch"]) -> Float[Tensor, "#batch pairs"]:
        """Keep the fast ones, divide the slow ones by the factor, and go from one to the other between."""
        plain = rotary_frequencies(width, base, lengths.device)
        first, last = self._pair(self.beta_fast, width, base), self._pair(self.beta_slow, width, base)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        # The upper bound counts coordinates and not pairs, as in the authors' code.
        first, last = max(first, 0), min(last, width - 1)
        pairs = torch.arange(width // 2, dtype=torch.float32, device=lengths.device)
        interpolated = ((pairs - first) / (last - first if last != first else 0.001)).clamp(0, 1)
        return (interpolated * plain / self.factor + (1 - interpolated) * plain)[None]

    def _pair(self, rotations: float, width: int, base: float) -> float:
        """Give which pair rotates so often in the original context."""
        return width * math.log(self.original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    def _sharpened(self, scale: float) -> float:
        return 0.1 * scale * math.log(self.factor) + 1 if self.factor > 1 else 1.0


@dataclass(frozen=True)
class LongRopeScaling(RotaryScaling):
    """Each frequency divided by a factor of its own, of one list or another as the sequence is short or long.

    Source: Ding et al. 2024 (LongRoPE). With twice the same list it is any fixed division, such as some files state
    by its factors alone.

    Attributes:
        short: divides each pair's frequency in sequences within the original context.
        long: the same in longer ones.
        original: the context that the model was trained with first.
        factor: by which the context grows.
        attention_factor: multiplies queries and keys; √(1 + ln(factor) / ln(original)) where None.

    Raises:
        ValueError: lists of different lengths, or numbers that are not above 0.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    factor: float = 1.0
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        if len(self.short) != len(self.long) or not all(value > 0 for value in (*self.short, *self.long)):
            raise ValueError(f"short {self.short} and long {self.long} must be as many numbers, all above 0")
        _check_above_zero(factor=self.factor, original=self.original)
        if self.attention_factor is not None:
            _check_above_zero(attention_factor=self.attention_factor)

    @property
    def magnitude(self) -> float:
        """What rotated queries and keys are multiplied by."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 1.0 if self.factor <= 1 else math.sqrt(1 + math.log(self.factor) / math.log(self.original))

    @property
    def length_dependent(self) -> bool:
        """Whether the two lists differ."""
        return self.short != self.long

    def frequencies(self, width: int, base: float, lengths: Int[Tensor, " batch"]) -> Float[Tensor, "#batch pairs"]:
        """Divide each by its own factor.

        Raises:
            ValueError: not as many factors as pairs.
        """
        if len(self.short) != width // 2:
            raise ValueError(f"{len(self.short)} factors do not fit {width // 2} pairs of rotated coordinates")
        plain = rotary_frequencies(width, base, lengths.device)
        short, long = (torch.tensor(factors, device=lengths.device) for factors in (self.short, self.long))
        if not self.length_dependent:
            return (plain / short)[None]
        return torch.where(lengths[:, None] > self.original, plain / long, plain / short)


def _check_above_zero(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}: it must be above 0, and finite")
