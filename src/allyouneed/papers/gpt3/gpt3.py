"""GPT-3: GPT-2 with dense and locally banded attention in alternate layers, and the sizes that it was trained in."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from allyouneed.hub import refuse_unless, required
from allyouneed.papers.gpt2 import GPT2, GPT2Config

from .sparse import BandedAttention


@dataclass(frozen=True)
class GPT3Config(GPT2Config):
    """The numbers of a GPT-3; the defaults are the smallest of the eight models.

    Attributes:
        positions: the longest sequence, in tokens; 2,048 (section 2.1).
        embedding_dropout: as in GPT-2. The paper speaks of weight decay alone (appendix B), so none here.
        attention_dropout: as in GPT-2; none.
        residual_dropout: as in GPT-2; none.
        band: earlier tokens that are seen in every second layer. The paper does not say how many; this is our choice.
    """

    positions: int = 2048
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    band: int = 128


SIZES: Mapping[str, GPT3Config] = MappingProxyType(
    {
        "Small": GPT3Config(),
        "Medium": GPT3Config(width=1024, layers=24, heads=16),
        "Large": GPT3Config(width=1536, layers=24, heads=16),
        "XL": GPT3Config(width=2048, layers=24, heads=16),
        "2.7B": GPT3Config(width=2560, layers=32, heads=32),
        "6.7B": GPT3Config(width=4096, layers=32, heads=32),
        "13B": GPT3Config(width=5120, layers=40, heads=40),
        "175B": GPT3Config(width=12_288, layers=96, heads=96),
    }
)
"""Table 2.1. Its 24 heads of width 128 for XL do not make its width of 2,048, nor 40 heads of 128 the 5,140 of 13B:
here XL has 16 heads and 13B a width of 5,120, which agree with the numbers of parameters."""


class GPT3(GPT2):
    """The language model of Brown et al. 2020, section 2.1.

    GPT-2 with its initial weights; the second layer, the fourth and so on see only the tokens just before each token.
    No weights were published: checkpoints are our own, with weights named as GPT-2's are.

    Args:
        config: its numbers.

    Raises:
        ValueError: heads that do not divide the width, no tokens, no layers, or a band below 1.
    """

    model_types: ClassVar[tuple[str, ...]] = ("gpt3",)
    architectures: ClassVar[tuple[str, ...]] = ("GPT3LMHeadModel",)
    config: GPT3Config

    def __init__(self, config: GPT3Config):
        super().__init__(config)
        banded = BandedAttention(config.band)
        for block in self.blocks[1::2]:
            attention: Any = block.attention
            attention.sublayer.kernel = banded

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "GPT3":
        """Build the model that a `config.json` of ours describes, with new weights.

        Raises:
            UnsupportedError: a value that is not supported, named.
        """
        refuse_unless(config, "model_type", ["gpt3"])
        plain = GPT2.from_config({**config, "model_type": "gpt2"}).config
        numbers = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
        return cls(GPT3Config(**numbers, band=required(config, "attention_band", int)))

    def to_config(self) -> dict[str, Any]:
        """Give the `config.json` by which `from_config` builds the same model; transformers knows no such model."""
        return {**super().to_config(), "model_type": "gpt3", "attention_band": self.config.band}
