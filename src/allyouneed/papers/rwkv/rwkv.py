"""RWKV: a language model of time-mixing and channel-mixing, trained in parallel and run as a recurrent network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allyouneed.hub import Name, Pretrained, canonical, required, same

from .initialise import initialise
from .mixing import RwkvBlock
from .state import RwkvState, Shift
from .wkv import Wkv, wkv_chunked, wkv_recurrent


@dataclass(frozen=True)
class RwkvConfig:
    """The numbers that tell one model of the family from another.

    Attributes:
        vocabulary: tokens that there are; 50,277 in the paper.
        width: of the residual stream.
        layers: number of blocks.
        hidden: inner width of channel-mixing; 4 times the width where None, as in the paper.
        channels: of the sums of time-mixing; as many as the width has where None, as in the paper.
        epsilon: of the norms in the blocks.
        context: tokens of the sequences that it was trained on. Longer ones are read all the same.
        rescale_every: layers after which `transformers` halves what it computes, lest 16 bits overflow; kept for its
            configuration and not needed here.
        tied: whether the output projection is the embedding table; not in the paper.

    Raises:
        ValueError: a number out of range.
    """

    vocabulary: int
    width: int
    layers: int
    hidden: int | None = None
    channels: int | None = None
    epsilon: float = 1e-5
    context: int = 1024
    rescale_every: int = 6
    tied: bool = False

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "layers", "hidden", "channels", "context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")
        if not self.epsilon > 0:
            raise ValueError(f"epsilon is {self.epsilon}: it must be above 0")


def _of_table_2(layers: int, width: int) -> RwkvConfig:
    return RwkvConfig(50_277, width, layers)


SIZES: Mapping[str, RwkvConfig] = {
    "169M": _of_table_2(12, 768),
    "430M": _of_table_2(24, 1024),
    "1.5B": _of_table_2(24, 2048),
    "3B": _of_table_2(32, 2560),
    "7B": _of_table_2(32, 4096),
    "14B": _of_table_2(40, 5120),
}
"""Table 2."""


class Rwkv(Pretrained, nn.Module):
    """The model, with the initial weights of appendix E; `from_pretrained` gives it those of a checkpoint.

    Source: Peng et al. 2023, section 3. It is what `text.generate` calls a language model, with a state of constant
    size for a cache.

    Args:
        config: its numbers.
        form: computes WKV over several tokens; a single one always takes the recurrent step.
    """

    model_types: ClassVar[tuple[str, ...]] = ("rwkv",)
    architectures: ClassVar[tuple[str, ...]] = ("RwkvForCausalLM", "RwkvModel")
    prefix: ClassVar[str] = "rwkv."

    def __init__(self, config: RwkvConfig, *, form: Wkv = wkv_chunked):
        super().__init__()
        self.config = config
        self.form = form
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.embedding_norm = nn.LayerNorm(config.width, eps=config.epsilon)
        sizes = config.width, config.channels or config.width, config.hidden or 4 * config.width
        self.blocks = nn.ModuleList([RwkvBlock(*sizes, config.epsilon) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(config.width)
        self.head = None if config.tied else nn.Linear(config.width, config.vocabulary, bias=False)
        initialise(self)

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.config.vocabulary

    @property
    def context(self) -> None:
        """No limit: the state has room for any number of tokens."""
        return

    @property
    def output_weight(self) -> Float[Tensor, "vocabulary width"]:
        """The output projection: the embedding table where they are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    def forward(
        self,
        tokens: Int[Tensor, "batch length"],
        *,
        present: Bool[Tensor, "batch length"] | None = None,
        cache: RwkvState | None = None,
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Give the logits of the token that follows each token; arguments as in `hidden`."""
        return self.logits(self.hidden(tokens, present=present, cache=cache))

    def hidden(
        self,
        tokens: Int[Tensor, "batch length"],
        *,
        present: Bool[Tensor, "batch length"] | None = None,
        cache: RwkvState | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """Give each token's vector after the last block and norm.

        Args:
            tokens: token ids.
            present: False where a token is padding, anywhere: neither the tokens after it nor the state know of it,
                and what it is given itself is meaningless.
            cache: the state after earlier tokens; it becomes that after these.

        Raises:
            ValueError: no tokens, another batch than the state's, or more tokens than its limit.
        """
        batch, length = tokens.shape
        if length == 0:
            raise ValueError("RWKV was given sequences of no tokens; it needs at least one")
        if cache is not None:
            cache.check(batch, length)
        shift = Shift.over(present)
        form: Wkv = wkv_recurrent if length == 1 else self.form
        stream = self.embedding_norm(self.embedding(tokens))
        layers = []
        for index, block in enumerate(self.blocks):
            stream, layer = block(stream, None if cache is None else cache.layers[index], shift=shift, form=form)
            layers.append(layer)
        if cache is not None:
            cache.advance(layers, length)
        return self.norm(stream)

    def last_logits(
        self,
        tokens: Int[Tensor, "batch length"],
        *,
        present: Bool[Tensor, "batch length"] | None = None,
        cache: RwkvState | None = None,
    ) -> Float[Tensor, "batch vocabulary"]:
        """Give the logits of the token that follows the last, and no others; arguments as in `hidden`."""
        return self.logits(self.hidden(tokens, present=present, cache=cache)[:, -1])

    def logits(self, hidden: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes vocabulary"]:
        """Map vectors to logits over the vocabulary."""
        return F.linear(hidden, self.embedding.weight) if self.head is None else self.head(hidden)

    def new_cache(self, limit: int | None = None, capacity: int = 64) -> RwkvState:
        """Make an empty state.

        Args:
            limit: the most tokens that it may take in.
            capacity: tokens to make room for, as the caches of attention do; a state takes none.
        """
        del capacity
        return RwkvState(self.config.layers, limit)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Rwkv":
        """Build the model that a `config.json` describes, with new weights.

        Raises:
            UnsupportedError: a key that is missing, or a value that would need other code than this: it is named.
            ValueError: numbers that do not fit together.
        """
        config = canonical(config, {"max_position_embeddings": "context_length"})
        width = required(config, "hidden_size", int)
        halved = config.get("rescale_every")
        inner, channels = config.get("intermediate_size"), config.get("attention_hidden_size")
        numbers = RwkvConfig(
            vocabulary=required(config, "vocab_size", int),
            width=width,
            layers=required(config, "num_hidden_layers", int),
            hidden=None if inner is None else required(config, "intermediate_size", int),
            channels=None if channels is None else required(config, "attention_hidden_size", int),
            epsilon=required(config, "layer_norm_epsilon", float, 1e-5),
            context=required(config, "context_length", int, 1024),
            rescale_every=0 if type(halved) is int and halved < 0 else required(config, "rescale_every", int, 6),
            tied=required(config, "tie_word_embeddings", bool, False),
        )
        return cls(numbers)

    def to_config(self) -> dict[str, Any]:
        """Describe the model in the keys of a `config.json`."""
        config = self.config
        return {
            "architectures": ["RwkvForCausalLM"],
            "model_type": "rwkv",
            "vocab_size": config.vocabulary,
            "hidden_size": config.width,
            "num_hidden_layers": config.layers,
            "intermediate_size": config.hidden or 4 * config.width,
            "attention_hidden_size": config.channels or config.width,
            "layer_norm_epsilon": config.epsilon,
            "context_length": config.context,
            "rescale_every": config.rescale_every,
            "tie_word_embeddings": config.tied,
        }

    def copies(self) -> Mapping[str, str]:
        """Say that checkpoints with tied weights may hold them twice."""
        return {"head.weight": "rwkv.embeddings.weight"} if self.config.tied else {}

    def weight_names(self) -> Sequence[Name]:
        """Say how checkpoints call each weight."""
        names = [same("embedding.weight", "rwkv.embeddings.weight")]
        if not self.config.tied:
            names.append(same("head.weight", "head.weight"))
        norms = {"embedding_norm": "blocks.0.pre_ln", "norm": "ln_out"}
        for layer in range(self.config.layers):
            norms |= {f"blocks.{layer}.{ours}": f"blocks.{layer}.{theirs}" for ours, theirs in _NORMS.items()}
            for ours, theirs in _WEIGHTS.items():
                names.append(same(f"blocks.{layer}.{ours}", f"rwkv.blocks.{layer}.{theirs}"))
        for ours, theirs in norms.items():
            names += [same(f"{ours}.{part}", f"rwkv.{theirs}.{part}") for part in ("weight", "bias")]
        return names


_NORMS = {"time_norm": "ln1", "channel_norm": "ln2"}
_WEIGHTS = {
    "time_mixing.mix_key": "attention.time_mix_key",
    "time_mixing.mix_value": "attention.time_mix_value",
    "time_mixing.mix_receptance": "attention.time_mix_receptance",
    "time_mixing.decay_logarithm": "attention.time_decay",
    "time_mixing.bonus": "attention.time_first",
    "time_mixing.key.weight": "attention.key.weight",
    "time_mixing.value.weight": "attention.value.weight",
    "time_mixing.receptance.weight": "attention.receptance.weight",
    "time_mixing.output.weight": "attention.output.weight",
    "channel_mixing.mix_key": "feed_forward.time_mix_key",
    "channel_mixing.mix_receptance": "feed_forward.time_mix_receptance",
    "channel_mixing.key.weight": "feed_forward.key.weight",
    "channel_mixing.receptance.weight": "feed_forward.receptance.weight",
    "channel_mixing.value.weight": "feed_forward.value.weight",
}
