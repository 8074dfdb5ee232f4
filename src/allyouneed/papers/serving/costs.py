"""What a model's attention costs, in bytes and in time beside its linear layers, and how many tokens compute alike."""

from allyouneed.nn import Attention, Decoder, Int4Linear, Int8Linear

# How much longer a multiplication takes in attention than in a linear layer.
_SLOWER_ATTENTION = 4


def attention_layers(model: Decoder) -> list[Attention]:
    """Give the attention layer of each block.

    Raises:
        ValueError: blocks that have none or several, or not all alike.
    """
    found = [[module for module in block.modules() if isinstance(module, Attention)] for block in model.blocks]
    if any(len(layers) != 1 for layers in found):
        raise ValueError(f"blocks with {list(map(len, found))} attention layers cannot be paged: each must have one")
    layers = [own for (own,) in found]
    if len({(layer.key_value_heads, layer.heads, layer.head_width) for layer in layers}) > 1:
        raise ValueError("layers with different heads cannot be paged: all must be alike")
    return layers


def bytes_per_token(model: Decoder) -> int:
    """Count the bytes of a token's keys and values: 2 · layers · key-value heads · head width · bytes a number."""
    layers = attention_layers(model)
    each = layers[0].key_value_heads * layers[0].head_width
    return 2 * len(layers) * each * next(model.parameters()).dtype.itemsize


def attention_context(model: Decoder) -> float:
    """Say for how many tokens attending to them takes as long as all linear layers of the blocks take for one.

    By multiplications: 2 · layers · heads · head width for each token that is attended to, and one a weight. Where few
    queries share what they read, one of the former takes about four times as long (on a CPU; SmolLM2 in 4 and 32 bits).
    """
    layers = attention_layers(model)
    linear = [module for module in model.blocks.modules() if hasattr(module, "in_features")]
    weights = sum(int(module.in_features) * int(module.out_features) for module in linear)  # pyright: ignore[reportArgumentType]
    attended = 2 * len(layers) * layers[0].heads * layers[0].head_width
    return weights / (_SLOWER_ATTENTION * attended)


def most_tokens(model: Decoder) -> int | None:
    """Give the most tokens of a step that quantised linear layers compute alike; None where there are none.

    Compiled code computes any number alike.
    """
    if model.compiled is not None:
        return None
    quantised = [module for module in model.modules() if isinstance(module, (Int4Linear, Int8Linear))]
    return min((own.many - 1 for own in quantised if own.kernel == "packed 4-bit"), default=None)
