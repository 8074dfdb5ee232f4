"""An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale (Dosovitskiy et al. 2020)."""

from .heads import ImageClassifier
from .pictures import attention_weights, class_rollout, grid_similarities, rollout, similarities
from .positions import AxisPositions, LearnedPositions, PatchPositions, RelativePositions, resize
from .resnet import HybridEmbedding, ResNet, ResNetStem
from .vit import PatchEmbedding, Vit, VitConfig

__all__ = [
    "AxisPositions",
    "HybridEmbedding",
    "ImageClassifier",
    "LearnedPositions",
    "PatchEmbedding",
    "PatchPositions",
    "RelativePositions",
    "ResNet",
    "ResNetStem",
    "Vit",
    "VitConfig",
    "attention_weights",
    "class_rollout",
    "grid_similarities",
    "resize",
    "rollout",
    "similarities",
]
