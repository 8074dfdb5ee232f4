"""Invented tasks with a known best answer: which digit stands for which letter, different in every document.

No weights can hold what is asked, since every document has a mapping of its own: whoever answers must have read the
examples. The paper invents tasks for the same reason (section 3.9).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

LETTERS = 10
DIGITS = 10
START = 0
VOCABULARY = 1 + LETTERS + DIGITS
"""Tokens: the beginning of a document, letters, digits. A document reads like `a7 c3 a7 b0`, two tokens an example."""


@dataclass(frozen=True)
class Mappings:
    """A family of tasks: mappings of a few letters to digits.

    A fifth of all mappings are held out: `documents` gives the others, or these alone.

    Attributes:
        letters: that a task maps; examples are of these, each equally often.
        examples: in a document.
    """

    letters: int = 3
    examples: int = 12

    def documents(self, count: int, generator: np.random.Generator, *, held_out: bool) -> Int64[Tensor, "rows tokens"]:
        """Draw tasks and examples of them, a document for each task.

        Args:
            count: of the documents.
            generator: of all draws.
            held_out: whether the tasks are those that are held out of training, or the others.
        """
        drawn = 0
        kept = []
        while drawn < count:
            letters = generator.permuted(np.tile(np.arange(LETTERS), (count, 1)), axis=1)[:, : self.letters]
            digits = generator.integers(DIGITS, size=letters.shape)
            chosen = is_held_out(letters, digits) == held_out
            asked = generator.integers(self.letters, size=(count, self.examples))
            pairs = np.stack((1 + letters, 1 + LETTERS + digits), axis=-1)
            rows = np.take_along_axis(pairs, asked[:, :, None], axis=1)[chosen].reshape(-1, 2 * self.examples)
            kept.append(rows)
            drawn += len(rows)
        rows = np.concatenate(kept)[:count]
        return torch.from_numpy(np.pad(rows, ((0, 0), (1, 0)), constant_values=START))

    def best(self, shots: int) -> float:
        """Give the best accuracy that there can be after so many examples: known where the letter was seen."""
        unseen = (1 - 1 / self.letters) ** shots
        return 1 - unseen + unseen / DIGITS


def is_held_out(letters: np.ndarray, digits: np.ndarray) -> np.ndarray:
    """Tell which mappings are held out, by a sum over their pairs, whatever the pairs' order."""
    return (((letters + 1) * (digits + 3) ** 2).sum(-1) % 5) == 0


@torch.inference_mode()
def accuracy_by_shots(model: nn.Module, documents: Int64[Tensor, "rows tokens"]) -> Float[Tensor, " examples"]:
    """Give the share of right digits after 0, 1, 2 … examples, in one pass over documents.

    Each example of a document is the question that the examples before it are shown for. That is what scoring the ten
    digits after each such prompt gives.
    """
    logits = model(documents[:, :-1])[:, 1::2, 1 + LETTERS :]
    return (logits.argmax(-1) == documents[:, 2::2] - 1 - LETTERS).float().mean(0)
