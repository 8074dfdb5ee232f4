"""Models that differ from LLaMA in its attention layer, each by a line: Mistral, Qwen2 and Qwen3."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from allyouneed.hub import UnsupportedError, refuse_unless, required
from allyouneed.nn import Attention, RMSNorm

from .checkpoints import FULL, SLIDING, read_layer_types, read_numbers
from .llama import Llama, LlamaConfig, llama_attention


@dataclass(frozen=True)
class MistralConfig(LlamaConfig):
    """LLaMA's numbers, and a window.

    Attributes:
        window: in each layer a token sees so many at most, itself counted; all where None, as in later releases.

    Raises:
        ValueError: a number out of range.
    """

    window: int | None = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_window(self.window)


class Mistral(Llama):
    """LLaMA with a sliding window in each layer, which its key-value cache needs no more room than.

    Source: Jiang et al. 2023, section 2. Grouped keys and values, which it has too, are in LLaMA's numbers.

    Args:
        config: its numbers.

    Raises:
        ValueError: heads that do not divide evenly, or heads of an odd width.
    """

    model_types: ClassVar[tuple[str, ...]] = ("mistral",)
    architectures: ClassVar[tuple[str, ...]] = ("MistralForCausalLM", "MistralModel", "mistral")
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    }

    @classmethod
    def attention(cls, config: LlamaConfig, layer: int) -> Attention:
        """Compose the attention layer of one block, with its window."""
        return llama_attention(config, window=config.window if isinstance(config, MistralConfig) else None)

    @classmethod
    def read_config(cls, config: Mapping[str, Any]) -> MistralConfig:
        """Read the numbers of a `config.json`; as `Llama.read_config`."""
        _refuse_biases(config)
        window = _read_window(config)
        wanted = FULL if window is None else SLIDING
        if any(word != wanted for word in read_layer_types(config) or ()):
            raise UnsupportedError(
                f"config.json: layer_types is {config['layer_types']!r}, and sliding_window {window}: only layers that "
                f"are all {wanted!r} are supported here"
            )
        return MistralConfig(**read_numbers(config), window=window)

    def to_config(self) -> dict[str, Any]:
        """Describe the model in the keys of a `config.json`."""
        window = self.config.window if isinstance(self.config, MistralConfig) else None
        return {**super().to_config(), "sliding_window": window}


@dataclass(frozen=True)
class QwenConfig(LlamaConfig):
    """LLaMA's numbers, and windows in some of the layers.

    Attributes:
        window: a token sees so many at most, itself counted, in the layers that have a window.
        windowed: of each layer, whether it has; none does where empty.

    Raises:
        ValueError: a number out of range, or windows that do not fit the layers.
    """

    window: int | None = None
    windowed: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_window(self.window)
        if len(self.windowed) not in (0, self.layers) or (any(self.windowed) and self.window is None):
            raise ValueError(
                f"windowed {self.windowed} and window {self.window} do not fit {self.layers} layers: there must be a "
                "value for each, and a window where any has one"
            )

    def window_of(self, layer: int) -> int | None:
        """Give a layer's window."""
        return self.window if self.windowed and self.windowed[layer] else None


class Qwen2(Llama):
    """LLaMA with biases on queries, keys and values; Qwen2.5 and its coders too.

    Source: Bai et al. 2023, section 2.3; Yang et al. 2024, section 2.2.

    Args:
        config: its numbers; its `attention_bias` says nothing here.

    Raises:
        ValueError: heads that do not divide evenly, or heads of an odd width.
    """

    model_types: ClassVar[tuple[str, ...]] = ("qwen2",)
    architectures: ClassVar[tuple[str, ...]] = ("Qwen2ForCausalLM", "Qwen2Model", "qwen2")
    defaults: ClassVar[Mapping[str, Any]] = {
        "max_position_embeddings": 32_768,
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    }

    @classmethod
    def attention(cls, config: LlamaConfig, layer: int) -> Attention:
        """Compose the attention layer of one block, with its biases."""
        return llama_attention(config, bias=True, output_bias=False, window=_window_of(config, layer))

    @classmethod
    def read_config(cls, config: Mapping[str, Any]) -> QwenConfig:
        """Read the numbers of a `config.json`; as `Llama.read_config`."""
        refuse_unless(config, "attention_bias", (True, None))
        refuse_unless(config, "mlp_bias", (False, None))
        return QwenConfig(**read_numbers(config), **_read_windows(config))

    def to_config(self) -> dict[str, Any]:
        """Describe the model in the keys of a `config.json`."""
        described = {**super().to_config(), **_describe_windows(self.config)}
        del described["attention_bias"], described["mlp_bias"]
        return described


class Qwen3(Llama):
    """LLaMA with heads of a width of their own, whose queries and keys are normalised before they are rotated.

    Source: Yang et al. 2025, section 2.

    Args:
        config: its numbers.

    Raises:
        ValueError: heads that do not divide evenly, or heads of an odd width.
    """

    model_types: ClassVar[tuple[str, ...]] = ("qwen3",)
    architectures: ClassVar[tuple[str, ...]] = ("Qwen3ForCausalLM", "Qwen3Model", "qwen3")
    defaults: ClassVar[Mapping[str, Any]] = {**Qwen2.defaults, "head_dim": 128}

    @classmethod
    def attention(cls, config: LlamaConfig, layer: int) -> Attention:
        """Compose the attention layer of one block, with its norms."""
        width = config.head_width or config.width // config.heads
        norms = {name: RMSNorm(width, config.epsilon) for name in ("query_norm", "key_norm")}
        return llama_attention(config, **norms, window=_window_of(config, layer))

    @classmethod
    def read_config(cls, config: Mapping[str, Any]) -> QwenConfig:
        """Read the numbers of a `config.json`; as `Llama.read_config`."""
        refuse_unless(config, "mlp_bias", (False, None))
        bias = required(config, "attention_bias", bool, False)
        return QwenConfig(**read_numbers(config), attention_bias=bias, **_read_windows(config))

    def to_config(self) -> dict[str, Any]:
        """Describe the model in the keys of a `config.json`."""
        described = {**super().to_config(), **_describe_windows(self.config)}
        del described["mlp_bias"]
        return described


def _check_window(window: int | None) -> None:
    if window is not None and window < 1:
        raise ValueError(f"window is {window}: it must be at least 1, since a token sees itself")


def _refuse_biases(config: Mapping[str, Any]) -> None:
    for key in ("attention_bias", "mlp_bias"):
        refuse_unless(config, key, (False, None))


def _window_of(config: LlamaConfig, layer: int) -> int | None:
    return config.window_of(layer) if isinstance(config, QwenConfig) else None


def _read_window(config: Mapping[str, Any]) -> int | None:
    return None if config.get("sliding_window") is None else required(config, "sliding_window", int)


def _read_windows(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read which layers have a window: those that are listed, or those from `max_window_layers` on."""
    window = _read_window(config) if required(config, "use_sliding_window", bool, False) else None
    listed = read_layer_types(config)
    if window is None:
        if SLIDING in (listed or ()):
            raise UnsupportedError(
                f"config.json: layer_types has {SLIDING!r}, but use_sliding_window and sliding_window give no window"
            )
        return {}
    if listed is None:
        first = required(config, "max_window_layers", int)
        listed = [SLIDING if layer >= first else FULL for layer in range(required(config, "num_hidden_layers", int))]
    return {"window": window, "windowed": tuple(word == SLIDING for word in listed)}


def _describe_windows(config: LlamaConfig) -> dict[str, Any]:
    windows = [_window_of(config, layer) for layer in range(config.layers)]
    used = any(window is not None for window in windows)
    first = next((layer for layer, window in enumerate(windows) if window is not None), config.layers)
    return {
        "use_sliding_window": used,
        "sliding_window": next((window for window in windows if window is not None), None),
        # For readers that know no list of layers.
        "max_window_layers": first,
        "layer_types": [FULL if window is None else SLIDING for window in windows],
    }
