"""How order enters a transformer: the seam that a position scheme plugs into, and the schemes that models share."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .rotary_scaling import RotaryScaling, rotary_frequencies


@dataclass(frozen=True)
class Rotation:
    """The angles by which rotary positions rotate queries and keys, as cosines and sines.

    Attributes:
        cos: cosine of the angle of each coordinate.
        sin: its sine.
    """

    cos: Float[Tensor, "#batch 1 length rotated"]
    sin: Float[Tensor, "#batch 1 length rotated"]

    @cached_property
    def signed_sin(self) -> Float[Tensor, "#batch 1 length rotated"]:
        """The sines by which the other coordinate of a pair is multiplied."""
        first, second = self.sin.chunk(2, dim=-1)
        return torch.cat((-first, second), dim=-1)

    @cached_property
    def matrix(self) -> Float[Tensor, "rotated rotated"]:
        """What multiplies row vectors at the only position, so as to rotate them."""
        cos, sin = self.cos.flatten(), self.signed_sin.flatten()
        return torch.diag(cos) + torch.diag(sin).roll(len(cos) // 2, 0)

    def __call__(
        self, vectors: Float[Tensor, "batch heads length head_width"]
    ) -> Float[Tensor, "batch heads length head_width"]:
        """Turn the first `rotated` coordinates of each head's vectors; leave the others."""
        rotated = self.cos.shape[-1]
        if vectors.shape[-1] == rotated:
            return self._turned(vectors).to(vectors.dtype)
        turned = self._turned(vectors[..., :rotated]).to(vectors.dtype)
        return torch.cat((turned, vectors[..., rotated:]), dim=-1)

    def single(self, vectors: Float[Tensor, "heads head_width"]) -> Float[Tensor, "heads head_width"]:
        """Turn the vectors of the only position."""
        matrix = self.matrix
        return vectors @ matrix if matrix.shape[0] == vectors.shape[1] else self(vectors[None, :, None])[0, :, 0]

    def _turned(self, vectors: Tensor) -> Tensor:
        one_position = vectors.shape[-2] == 1 and not torch.is_grad_enabled()
        # The same as below in fewer steps, which count where a token is written at a time.
        if one_position and len(self.cos) == 1 and vectors.dtype == self.cos.dtype:
            return (vectors.reshape(-1, vectors.shape[-1]) @ self.matrix).view(vectors.shape)
        first, second = vectors.chunk(2, dim=-1)
        if not one_position:
            return vectors * self.cos + torch.cat((-second, first), dim=-1) * self.sin
        return (vectors * self.cos).addcmul_(torch.cat((second, first), dim=-1), self.signed_sin)


class PositionScheme(nn.Module):
    """The seam: a model asks its scheme three things, and a scheme answers those that concern it.

    As it stands this class gives a model no positions at all. A subclass overrides one of the three: absolute schemes
    add to the embeddings, rotary ones rotate queries and keys, relative ones add a bias to the attention scores.

    Attributes:
        limit: the most tokens for which there are positions; None where there is no such limit.
        length_dependent: whether what a position is given depends on how long its sequence is, and not on the position
            alone. Then keys in a cache are not what they would be in a longer sequence.
    """

    limit: int | None = None
    length_dependent: bool = False

    def check(self, position: int) -> None:
        """Make sure that there is a position.

        Raises:
            ValueError: it is beyond the limit.
        """

    def embed(
        self, embeddings: Float[Tensor, "batch length width"], positions: Int[Tensor, "#batch length"]
    ) -> Float[Tensor, "batch length width"]:
        """Put positions into the token embeddings, once, below the first layer."""
        return embeddings

    def rotation(self, positions: Int[Tensor, "#batch length"]) -> Rotation | None:
        """Give the rotation of queries and keys at these positions, or None."""
        return None

    def bias(
        self, query_positions: Int[Tensor, " queries"], key_positions: Int[Tensor, " keys"]
    ) -> Float[Tensor, "heads queries keys"] | None:
        """Give what to add to the attention scores before the softmax, or None."""
        return None


class LearnedPositions(PositionScheme):
    """A learned vector for each position, added to the token embeddings (Gehring et al. 2017; GPT, BERT).

    Args:
        limit: number of positions; a longer sequence is refused.
        width: width of the embeddings.
    """

    def __init__(self, limit: int, width: int):
        super().__init__()
        self.limit = limit
        self.table = nn.Embedding(limit, width)

    def check(self, position: int) -> None:
        """Make sure that there is a position; arguments and errors as in `PositionScheme.check`."""
        limit = self.table.num_embeddings
        if position >= limit:
            raise ValueError(
                f"position {position} is beyond the learned table: it holds positions 0 to {limit - 1}, so sequences "
                f"of at most {limit} tokens"
            )

    def embed(
        self, embeddings: Float[Tensor, "batch length width"], positions: Int[Tensor, "#batch length"]
    ) -> Float[Tensor, "batch length width"]:
        """Add the vectors of these positions.

        Raises:
            ValueError: a position is beyond the table.
        """
        # A compiled graph cannot look at values; there the table's look-up refuses what the model has not.
        if not torch.compiler.is_compiling() and positions.numel():
            self.check(int(positions.max()))
        return embeddings + self.table(positions)


class SinusoidalPositions(PositionScheme):
    """Fixed sines and cosines of geometrically spaced wavelengths, added to the embeddings.

    Source: Vaswani et al. 2017, section 3.5. Any position has a vector, so no length is refused.

    Args:
        width: width of the embeddings; even.
        base: the longest wavelength is 2π·base.
    """

    def __init__(self, width: int, base: float = 10_000.0):
        super().__init__()
        if width % 2:
            raise ValueError(f"sinusoidal positions come in pairs of sine and cosine: width {width} is odd")
        self.width = width
        self.base = base

    def embed(
        self, embeddings: Float[Tensor, "batch length width"], positions: Int[Tensor, "#batch length"]
    ) -> Float[Tensor, "batch length width"]:
        """Add sin(position · frequency) in even coordinates and the cosine in odd ones, computed in 32 bits."""
        angles = positions.unsqueeze(-1).float() * rotary_frequencies(self.width, self.base, positions.device)
        waves = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)
        return embeddings + waves.to(embeddings.dtype)


class RotaryPositions(PositionScheme):
    """Turn pairs of coordinates of queries and keys by angles proportional to the position.

    Source: Su et al. 2021, section 3.2.2. Coordinate i is paired with coordinate i + rotated/2, as in GPT-NeoX and
    LLaMA checkpoints; the paper pairs neighbours, which is the same up to a fixed permutation of coordinates.

    Args:
        head_width: width of one head.
        base: the slowest pair rotates by about 1/base radian a token.
        rotated: how many coordinates are rotated; all of them where None (GPT-NeoX rotates a quarter).
        scaling: changes the frequencies, to read further than the model was first trained to.
    """

    def __init__(
        self,
        head_width: int,
        base: float = 10_000.0,
        rotated: int | None = None,
        scaling: RotaryScaling | None = None,
    ):
        super().__init__()
        rotated = head_width if rotated is None else rotated
        if rotated % 2 or not 0 < rotated <= head_width:
            raise ValueError(
                f"rotary positions rotate an even number of coordinates between 2 and the head's width {head_width}, "
                f"not {rotated}"
            )
        self.rotated = rotated
        self.base = base
        self.scaling = scaling or RotaryScaling()
        self.length_dependent = self.scaling.length_dependent

    def rotation(self, positions: Int[Tensor, "#batch length"]) -> Rotation:
        """Give the rotation at these positions; angles are computed in 32 bits whatever the model's precision."""
        frequencies = self.scaling.frequencies(self.rotated, self.base, positions.amax(1) + 1)
        angles = positions.unsqueeze(-1).float() * frequencies[:, None]
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
        magnitude = self.scaling.magnitude
        cos, sin = angles.cos(), angles.sin()
        return Rotation(cos, sin) if magnitude == 1 else Rotation(cos * magnitude, sin * magnitude)
