"""The classifier on top of the encoder, and how it is carried to another task or resolution (section 3.2)."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allyouneed.hub import PROBLEM_TYPES, Name, Pretrained, UnsupportedError, label_entries, read_labels, refuse_unless

from .positions import LearnedPositions
from .vit import Vit, read_config, weights_and_biases


class ImageClassifier(Pretrained):
    """Logits from the class token's vector, by a linear layer that starts at zero.

    With an encoder that has a pooler this is the model of pre-training, whose head has a hidden layer with tanh;
    without one it is that of fine-tuning, whose head is a single layer.

    Args:
        vit: the encoder.
        labels: what it chooses among.

    Attributes:
        problem_type: what a checkpoint says that the logits are for; None where it says nothing.

    Raises:
        ValueError: no labels, or one twice.
    """

    model_types: ClassVar[tuple[str, ...]] = ("vit",)
    architectures: ClassVar[tuple[str, ...]] = ("ViTForImageClassification",)
    problem_type: str | None = None

    def __init__(self, vit: Vit, labels: Sequence[str]):
        super().__init__()
        self.vit = vit
        self.labels = tuple(labels)
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels {list(self.labels)} must be one or more, each once")
        self.classifier = nn.Linear(vit.config.width, len(self.labels))
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch labels"]:
        """Give each image's logits over the labels; errors as in `Vit.forward`."""
        return self.classifier(self.vit.pooled(self.vit(images)))

    def for_task(self, labels: Sequence[str], *, image: int | None = None) -> "ImageClassifier":
        """Give a copy to be fine-tuned: the whole head is dropped, and a single layer at zero put in its place.

        Args:
            labels: of the other task.
            image: side of its images, to which the positions are carried once; those of pre-training where None.

        Raises:
            ValueError: a side that is not a multiple of the patch, or positions that cannot be carried to it.
        """
        vit = deepcopy(self.vit)
        vit.pooler = None
        if image is not None and image != vit.config.image:
            if not isinstance(vit.positions, LearnedPositions):
                raise ValueError(
                    f"only learned positions are carried to another resolution, not {type(vit.positions).__name__}"
                )
            grid = vit.embedding.grid(image, image)
            with torch.no_grad():
                vit.positions.table = nn.Parameter(vit.positions.added(grid).clone())
            vit.positions.grid = grid
            vit.config = replace(vit.config, image=image)
        return type(self)(vit, labels).to(vit.class_token)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ImageClassifier":
        """Build the model that a `config.json` describes, with new weights; two labels where it names none."""
        refuse_unless(config, "problem_type", PROBLEM_TYPES)
        model = cls(Vit(read_config(config), pooler=False), read_labels(config))
        model.problem_type = config.get("problem_type")
        return model

    def to_config(self) -> dict[str, Any]:
        """Give the `config.json` that describes this model.

        Raises:
            UnsupportedError: a head of two layers, or an encoder that the usual layout has no place for.
        """
        if self.vit.pooler is not None:
            raise UnsupportedError(
                "a ViTForImageClassification is stored with a head of one layer, and this one has two: save its "
                "encoder, `model.vit`, which keeps the hidden layer, or what `for_task` gives"
            )
        return {**self.vit.described(self.architectures[0]), **label_entries(self.labels, self.problem_type)}

    def weight_names(self) -> list[Name]:
        """Name every parameter as published checkpoints do."""
        inner = [
            replace(name, ours=tuple(f"vit.{own}" for own in name.ours), theirs=f"vit.{name.theirs}")
            for name in self.vit.weight_names()
        ]
        return [*inner, *weights_and_biases({"classifier": "classifier"})]
