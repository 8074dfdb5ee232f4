"""What tagging takes no model for: a table of the tag that each word has most often."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from .pretraining import IGNORED
from .tasks import Corpus, Examples


class CommonestTag:
    """Gives each word the tag that it has most often in labelled rows, and a new word the tag that is commonest there.

    Args:
        source: whose tokenizer spelled the rows.
        examples: of tagging; a tag beyond those of the training texts is one more.

    Raises:
        ValueError: rows in which no word has a tag.
    """

    def __init__(self, source: Corpus, examples: Examples):
        self._special = frozenset(source.tokenizer.special_tokens.values()) - {source.tokenizer.unknown}
        counts: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        every: Counter[int] = Counter()
        for tokens, labels in zip(examples.tokens.tolist(), examples.labels.tolist(), strict=True):
            for word, _, tag in self._words(tokens, labels):
                counts[word][tag] += 1
                every[tag] += 1
        if not every:
            raise ValueError("no word of the examples has a tag: a table needs one at least")
        # Of tags that are as common, the first in the corpus's order.
        self._tags = {word: min(found, key=lambda tag: (-found[tag], tag)) for word, found in counts.items()}
        self._otherwise = min(every, key=lambda tag: (-every[tag], tag))

    def __call__(self, examples: Examples) -> Int[Tensor, "rows length"]:
        """Give the tags of the words that are asked about; elsewhere `IGNORED`."""
        found = torch.full_like(examples.labels, IGNORED)
        for row, (tokens, labels) in enumerate(zip(examples.tokens.tolist(), examples.labels.tolist(), strict=True)):
            for word, place, _ in self._words(tokens, labels):
                found[row, place] = self._tags.get(word, self._otherwise)
        return found

    def accuracy(self, examples: Examples) -> float:
        """Give the share of words whose tag it finds."""
        asked = examples.labels != IGNORED
        return float((self(examples) == examples.labels)[asked].float().mean())

    def _words(self, tokens: Sequence[int], labels: Sequence[int]) -> list[tuple[tuple[int, ...], int, int]]:
        """List words, as their pieces, with the place of the last piece, where the tag stands."""
        words, begin = [], 0
        for place, (token, label) in enumerate(zip(tokens, labels, strict=True)):
            if token in self._special:
                begin = place + 1
            elif label != IGNORED:
                words.append((tuple(tokens[begin : place + 1]), place, label))
                begin = place + 1
        return words
