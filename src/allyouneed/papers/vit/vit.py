"""The Vision Transformer: an image is a row of patches, read by a plain transformer encoder."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allyouneed.hub import Name, Pretrained, StoredModel, UnsupportedError, refuse_unless, required, same
from allyouneed.nn import ACTIVATIONS, Attention, AttentionPattern, Block, FeedForward, PreNorm

from .positions import Grid, LearnedPositions, PatchPositions


@dataclass(frozen=True)
class VitConfig:
    """The size of a model; as it stands, the paper's ViT-B/16 (Table 1).

    Attributes:
        image: side of the images that it is pre-trained on, in pixels.
        patch: P, side of a patch, in pixels.
        channels: C, of the images.
        width: D, of the residual stream.
        layers: L, number of blocks.
        heads: of attention.
        hidden: inner width of the feed-forward layers ("MLP size").
        activation: a name in `nn.ACTIVATIONS`.
        dropout: of embeddings and sublayers' outputs (Table 3 has 0 or 0.1).
        attention_dropout: of attention weights.
        epsilon: of the norms; 10⁻⁶ in the released code.
    """

    image: int = 224
    patch: int = 16
    channels: int = 3
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    activation: str = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    epsilon: float = 1e-6


_KEYS = {
    "image": "image_size",
    "patch": "patch_size",
    "channels": "num_channels",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "epsilon": "layer_norm_eps",
}
"""What the fields of `VitConfig` are called in `config.json`."""
# What transformers takes where a key is absent, where that is not the paper's.
_ABSENT = {"epsilon": 1e-12}


def read_config(config: Mapping[str, Any]) -> VitConfig:
    """Read the sizes in a `config.json`.

    Raises:
        UnsupportedError: a value that is of another type, or not supported here, named.
    """
    refuse_unless(config, "qkv_bias", (True,))
    refuse_unless(config, "pooler_act", ("tanh",))
    refuse_unless(config, "hidden_act", tuple(ACTIVATIONS))
    values: dict[str, Any] = {}
    for field in fields(VitConfig):
        default: Any = _ABSENT.get(field.name, field.default)
        values[field.name] = required(config, _KEYS[field.name], type(default), default)
    refuse_unless(config, "pooler_output_size", (None, values["width"]))
    refuse_unless(config, "head_dim", (None, values["width"] // max(values["heads"], 1)))
    return VitConfig(**values)


class PatchEmbedding(nn.Module):
    """Cut images, or maps of features, into square patches and map each to a vector (equation 1: E).

    Args:
        channels: of the images.
        patch: side of a patch.
        width: of the vectors.
    """

    def __init__(self, channels: int, patch: int, width: int):
        super().__init__()
        # A convolution whose window moves by its own side is the same matrix applied to every flattened patch.
        self.projection = nn.Conv2d(channels, width, patch, patch)

    def grid(self, height: int, width: int) -> Grid:
        """Say how many patches there are in images of a size, from top to bottom and from left to right.

        Raises:
            ValueError: an image that cannot be cut into whole patches.
        """
        patch = self.projection.kernel_size[0]
        if not height or not width or height % patch or width % patch:
            raise ValueError(
                f"an image of {height} × {width} cannot be cut into patches of {patch} × {patch}: "
                f"both sides must be multiples of {patch}"
            )
        return height // patch, width // patch

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch patches model"]:
        """Give the vectors of the patches, row by row.

        Raises:
            ValueError: an image that cannot be cut into whole patches, or of another number of channels.
        """
        if images.shape[1] != self.projection.in_channels:
            raise ValueError(f"images have {images.shape[1]} channels; the model takes {self.projection.in_channels}")
        self.grid(*images.shape[2:])
        return self.projection(images).flatten(2).transpose(1, 2)


class Vit(Pretrained):
    """The encoder: pre-norm blocks over a class token and the patches (Figure 1, equations 1 to 4).

    Weights start as in the released code (`initialise`).

    Args:
        config: the size.
        pooler: whether there is a linear layer with tanh on the class token's vector: the hidden layer of the head in
            pre-training (section 3.1, appendix D.3), which is dropped for fine-tuning.
        embedding: what makes vectors of images, with a method `grid`; a `PatchEmbedding` where None, a
            `HybridEmbedding` for a hybrid.
        positions: of the patches; `LearnedPositions` where None.
    """

    model_types: ClassVar[tuple[str, ...]] = ("vit",)
    # The encoder of a classifier can be read without its head.
    architectures: ClassVar[tuple[str, ...]] = ("ViTModel", "ViTForImageClassification")
    ignored: ClassVar[tuple[str, ...]] = (r"classifier\..*",)
    prefix: ClassVar[str] = "vit."

    def __init__(
        self,
        config: VitConfig,
        *,
        pooler: bool = True,
        embedding: Any = None,
        positions: PatchPositions | None = None,
    ):
        super().__init__()
        self.config = config
        self.embedding = embedding or PatchEmbedding(config.channels, config.patch, config.width)
        grid = self.embedding.grid(config.image, config.image)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.positions = positions or LearnedPositions(grid, config.width)

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(config.width, eps=config.epsilon)

        def block() -> Block:
            attention = Attention(
                config.width, config.heads, dropout=config.attention_dropout, kernel=self.positions.kernel
            )
            feed_forward = FeedForward(config.width, config.hidden, ACTIVATIONS[config.activation])
            return Block(PreNorm(attention, norm(), config.dropout), PreNorm(feed_forward, norm(), config.dropout))

        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([block() for _ in range(config.layers)])
        self.norm = norm()
        self.pooler = nn.Linear(config.width, config.width) if pooler else None
        initialise(self)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens model"]:
        """Give the vectors of the class token and, after it, of the patches, row by row.

        Images may have another size than those of pre-training: positions are then interpolated (section 3.2).

        Raises:
            ValueError: images that cannot be cut into whole patches, or of another number of channels; or a size that
                the positions cannot be carried to.
        """
        return self.norm(deque(self.layers(images), maxlen=1).pop())

    def layers(self, images: Float[Tensor, "batch channels height width"]) -> Iterator[Tensor]:
        """Give the embeddings, then what each block makes of them, before the last norm; errors as in `forward`."""
        patches = self.embedding(images)
        hidden = torch.cat((self.class_token.expand(len(patches), -1, -1), patches), 1)
        added = self.positions.added(self.embedding.grid(*images.shape[2:]))
        hidden = self.dropout(hidden if added is None else hidden + added)
        yield hidden
        pattern = AttentionPattern()
        for block in self.blocks:
            hidden = block(hidden, pattern)
            yield hidden

    def pooled(self, hidden: Float[Tensor, "batch tokens model"]) -> Float[Tensor, "batch model"]:
        """Give the vector that stands for each image: the class token's, mapped with tanh where there is a pooler."""
        first = hidden[:, 0]
        return first if self.pooler is None else torch.tanh(self.pooler(first))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Vit":
        """Build the model that a `config.json` describes; a classifier's has no pooler."""
        names = config.get("architectures") or ["ViTModel"]
        return cls(read_config(config), pooler=names[0] == "ViTModel")

    @classmethod
    def for_stored(cls, stored: StoredModel) -> "Vit":
        """Build the model that a checkpoint holds; its pooler is left out where that has none."""
        pooler = any(name.endswith("pooler.dense.weight") for name in stored.names())
        return cls(read_config(stored.config), pooler=pooler)

    def to_config(self) -> dict[str, Any]:
        """Give the `config.json` that describes this model.

        Raises:
            UnsupportedError: a model without a pooler, a hybrid, or one with other positions than the paper's own,
                which the usual layout has no place for.
        """
        if self.pooler is None:
            raise UnsupportedError("a ViTModel is stored with its pooler, and this one has none: save it with its head")
        return self.described(self.architectures[0])

    def described(self, architecture: str) -> dict[str, Any]:
        """Give the `config.json` of this encoder under a head of an architecture; errors as in `to_config`."""
        for part, kind in ((self.embedding, PatchEmbedding), (self.positions, LearnedPositions)):
            if type(part) is not kind:
                raise UnsupportedError(
                    f"only a model with {kind.__name__} has a place in this layout, not one with {type(part).__name__}"
                )
        sizes = {key: getattr(self.config, field) for field, key in _KEYS.items()}
        return {"architectures": [architecture], "model_type": "vit", "qkv_bias": True, **sizes}

    def weight_names(self) -> list[Name]:
        """Name every parameter as published checkpoints do."""
        names = [
            same("class_token", "embeddings.cls_token"),
            same("positions.table", "embeddings.position_embeddings"),
        ]
        pairs = {"embedding.projection": "embeddings.patch_embeddings.projection"}
        for index in range(self.config.layers):
            block, layer = f"blocks.{index}", f"encoder.layer.{index}"
            for part in ("query", "key", "value"):
                pairs[f"{block}.attention.sublayer.{part}"] = f"{layer}.attention.attention.{part}"
            pairs[f"{block}.attention.sublayer.output"] = f"{layer}.attention.output.dense"
            pairs[f"{block}.attention.norm"] = f"{layer}.layernorm_before"
            pairs[f"{block}.feed_forward.sublayer.inner"] = f"{layer}.intermediate.dense"
            pairs[f"{block}.feed_forward.sublayer.output"] = f"{layer}.output.dense"
            pairs[f"{block}.feed_forward.norm"] = f"{layer}.layernorm_after"
        pairs["norm"] = "layernorm"
        if self.pooler is not None:
            pairs["pooler"] = "pooler.dense"
        return names + weights_and_biases(pairs)


def initialise(model: Vit) -> None:
    """Set the weights as the released code does: Xavier-uniform in the blocks, LeCun-normal for patches and pooler.

    Biases and the class token are zero, positions N(0, 0.02²); the paper gives only the head's zeros (section 3.2).
    """
    for module in model.blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for module in (getattr(model.embedding, "projection", None), model.pooler):
        if module is not None:
            nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.zeros_(module.bias)


def weights_and_biases(pairs: Mapping[str, str]) -> list[Name]:
    """Name the weight and the bias of each of our parts by what that part is called outside."""
    return [same(f"{ours}.{kind}", f"{theirs}.{kind}") for ours, theirs in pairs.items() for kind in ("weight", "bias")]
