"""Train Short, Test Long: attention with linear biases (Press, Smith & Lewis 2021)."""

from .alibi import ALiBi, alibi_slopes

__all__ = ["ALiBi", "alibi_slopes"]
