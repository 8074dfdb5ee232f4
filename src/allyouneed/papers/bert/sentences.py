"""Rows of one or two sentences, and a vector for each sentence."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from allyouneed.data.buckets import pad
from allyouneed.hub import open_model

from .bert import Bert
from .wordpiece import WordPieceTokenizer

_LENGTH_FILE = "sentence_bert_config.json"


class Rows(NamedTuple):
    """What a model is given, padded on the right.

    Attributes:
        tokens: `[CLS]` A `[SEP]`, and B `[SEP]` where there is a B.
        segments: 0 in A and in padding, 1 in B.
        present: False where a token is padding.
    """

    tokens: Int[Tensor, "batch length"]
    segments: Int[Tensor, "batch length"]
    present: Bool[Tensor, "batch length"]


def join(
    tokenizer: WordPieceTokenizer,
    first: Sequence[Sequence[int]],
    second: Sequence[Sequence[int]] | None = None,
    *,
    longest: int = 512,
) -> Rows:
    """Put special tokens around sentences, or pairs of them, and pad them to one length (Figure 2).

    A row that is too long loses its end; of a pair, the longer sentence loses tokens until both fit.

    Args:
        tokenizer: whose special tokens to use.
        first: tokens of each sentence A.
        second: tokens of each sentence B; None for rows of one sentence.
        longest: the most tokens of a row, special tokens included.

    Raises:
        ValueError: no rows, another number of B than of A, or no room for a token of each beside the special ones.
    """
    special = 2 if second is None else 3
    if longest < 2 * special - 1:
        raise ValueError(f"rows of {longest} tokens have no room beside {special} special tokens")
    if not first or (second is not None and len(second) != len(first)):
        raise ValueError(f"{len(first)} sentences A and {len(second or ())} sentences B cannot be joined")
    rows, kinds = [], []
    for place, sentence in enumerate(first):
        other = () if second is None else second[place]
        kept, also = _shortened(len(sentence), len(other), longest - special)
        row = [tokenizer.begin, *sentence[:kept], tokenizer.separator]
        kind = [0] * len(row)
        if second is not None:
            row += [*other[:also], tokenizer.separator]
            kind += [1] * (also + 1)
        rows.append(row)
        kinds.append(kind)
    sizes = torch.tensor([len(row) for row in rows])
    present = torch.arange(int(sizes.max())) < sizes[:, None]
    return Rows(pad(rows, tokenizer.padding), pad(kinds, 0), present)


def _shortened(first: int, second: int, room: int) -> tuple[int, int]:
    """Say how many tokens two sentences keep: the longer one loses them, in turns once both are as long."""
    while first + second > room:
        if first > second:
            first = max(second, room - second)
        elif second > first:
            second = max(first, room - first)
        else:
            first, second = room - room // 2, room // 2
    return first, second


class SentenceEmbedder:
    """A vector of length one for each sentence: the mean of its tokens' vectors, special tokens included.

    Models must have been trained for it, as MiniLM was; BERT itself was not (Reimers & Gurevych 2019).

    Args:
        model: the encoder; it is put into evaluation mode.
        tokenizer: of the model.
        longest: tokens of a sentence beyond which the rest is left out, special tokens included.

    Raises:
        ValueError: more tokens than the model has positions for.
    """

    def __init__(self, model: Bert, tokenizer: WordPieceTokenizer, *, longest: int = 256):
        if not 3 <= longest <= model.config.positions:
            raise ValueError(f"longest is {longest}: the model takes 3 to {model.config.positions} tokens")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.longest = longest

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path) -> "SentenceEmbedder":
        """Load a published model for sentence embeddings, and how long its sentences may be.

        Args:
            name_or_folder: `all-minilm-l6-v2`, a folder, or a hub repository.

        Raises:
            ValueError: as `Bert.from_pretrained`, or a file beside the weights that is damaged.
        """
        stored = open_model(name_or_folder)
        model = Bert.from_stored(stored)
        longest = model.config.positions
        path = Path(stored.source) / _LENGTH_FILE
        if path.is_file():
            try:
                longest = min(longest, int(json.loads(path.read_bytes())["max_seq_length"]))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} does not say the longest sentence: {error!r}") from error
        return cls(model, WordPieceTokenizer.load(stored.source), longest=longest)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], *, batch: int = 32) -> Float[Tensor, "texts width"]:
        """Give the vectors of texts, in their order; they are worked out in order of length.

        Args:
            texts: one or more.
            batch: rows at a time.

        Raises:
            ValueError: no texts, one string in their place, or a batch below 1.
        """
        if isinstance(texts, str) or not texts or batch < 1:
            raise ValueError(f"texts must be a list of one or more, got {texts!r:.40}; batch, {batch}, 1 or more")
        sentences = [self.tokenizer.encode(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda place: len(sentences[place]))
        device = self.model.segments.weight.device
        found: list[Tensor] = []
        for start in range(0, len(order), batch):
            chosen = [sentences[place] for place in order[start : start + batch]]
            tokens, segments, present = (part.to(device) for part in join(self.tokenizer, chosen, longest=self.longest))
            hidden = self.model(tokens, segments, present=None if bool(present.all()) else present)
            total = (hidden * present[..., None]).sum(1)
            found.append(F.normalize(total / present.sum(1, keepdim=True)).float().cpu())
        vectors = torch.cat(found)
        result = torch.empty_like(vectors)
        result[order] = vectors
        return result
