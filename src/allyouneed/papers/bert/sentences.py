"""Rows of one or two sentences, and a vector for each sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allyouneed.data.buckets import pad
from allyouneed.hub import StoredModel, UnsupportedError, model_path, open_model
from allyouneed.text import Tokenizer

from .bert import Bert
from .pooling import Normalize, Pooling
from .sentence_folder import read_sentence_folder
from .wordpiece import WordPieceTokenizer


@runtime_checkable
class SentenceTokenizer(Protocol):
    """What rows are made with: the tokens of a text, and the special tokens between which it stands."""

    @property
    def begin(self) -> int:
        """Begins a row."""
        ...

    @property
    def separator(self) -> int:
        """Ends a sentence."""
        ...

    @property
    def padding(self) -> int:
        """Fills up rows."""
        ...

    def encode(self, text: str) -> list[int]:
        """Give the tokens of a text, without special tokens."""
        ...


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
    tokenizer: SentenceTokenizer,
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


@dataclass(frozen=True)
class _Published:
    """A published tokenizer in the words of `join`: between which special tokens it frames a text."""

    tokenizer: Tokenizer
    begin: int
    separator: int
    padding: int

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)


def _sentence_tokenizer(stored: StoredModel, padding: int) -> SentenceTokenizer:
    """Make a tokenizer of `vocab.txt`, or else of `tokenizer.json`, which newer folders have alone."""
    tokenizer = Bert.read_tokenizer(stored)
    if isinstance(tokenizer, WordPieceTokenizer):
        return tokenizer
    frame = tokenizer.encode_with_special_tokens("")
    if len(frame) != 2:
        raise UnsupportedError(
            f"{stored.source}: the tokenizer puts {len(frame)} special tokens around a text; two are supported here, "
            "as [CLS] and [SEP]"
        )
    return _Published(tokenizer, frame[0], frame[1], padding)


class SentenceEmbedder:
    """A vector for each sentence: its tokens' vectors pooled, their mean scaled to length one where nothing is said.

    Models must have been trained for it, as MiniLM was; BERT itself was not (Reimers & Gurevych 2019).

    Args:
        model: the encoder; it is put into evaluation mode.
        tokenizer: of the model.
        longest: tokens of a sentence beyond which the rest is left out, special tokens included.
        pooling: what makes one vector of the tokens'; their mean where None.
        layers: what pooled vectors go through; `Normalize` where None.
        prompts: texts that may be put before sentences, by name.
        default_prompt: the name of the one that is put there where none is asked for.

    Raises:
        ValueError: more tokens than the model has positions for, or a default that is no prompt.
    """

    def __init__(
        self,
        model: Bert,
        tokenizer: SentenceTokenizer,
        *,
        longest: int = 256,
        pooling: Pooling | None = None,
        layers: nn.Module | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt: str | None = None,
    ):
        if not 3 <= longest <= model.config.positions:
            raise ValueError(f"longest is {longest}: the model takes 3 to {model.config.positions} tokens")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.longest = longest
        self.pooling = pooling or Pooling()
        self.layers = (Normalize() if layers is None else layers).eval()
        self.prompts = dict(prompts or {})
        self.default_prompt = default_prompt
        if default_prompt is not None:
            self._prompt(default_prompt)

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path) -> "SentenceEmbedder":
        """Load a published sentence encoder, as sentence-transformers of any version writes them.

        Read are its pooling, dense layers, normalisation, prompts, and how long its sentences may be. Without a
        `modules.json` the mean is pooled and not scaled, as the library does.

        Args:
            name_or_folder: `all-minilm-l6-v2`, a folder, or a hub repository.

        Raises:
            ValueError: as `Bert.from_pretrained`; a module, or a value of one, that is not built here, named; or a
                file that is damaged.
        """
        folder = model_path(name_or_folder)
        found = read_sentence_folder(folder)
        stored = open_model(found.encoder)
        model = Bert.from_stored(stored)
        found = read_sentence_folder(folder, model.config.width)
        tokenizer = _sentence_tokenizer(stored, model.config.padding)
        if found.lowercase and tokenizer.encode("A") != tokenizer.encode("a"):
            raise UnsupportedError(
                f"{found.encoder}: do_lower_case is True beside a tokenizer that tells A from a; only False is "
                "supported here, with a tokenizer that lowers letters itself where they should be"
            )
        return cls(
            model,
            tokenizer,
            longest=min(model.config.positions, found.longest or model.config.positions),
            pooling=found.pooling,
            layers=found.layers,
            prompts=found.prompts,
            default_prompt=found.default_prompt,
        )

    @torch.inference_mode()
    def embed(
        self, texts: Sequence[str], *, batch: int = 32, prompt_name: str | None = None
    ) -> Float[Tensor, "texts width"]:
        """Give the vectors of texts, in their order; they are worked out in order of length.

        Args:
            texts: one or more.
            batch: rows at a time.
            prompt_name: of the prompt that is put before each of them; the default one where None.

        Raises:
            ValueError: no texts, one string in their place, a batch below 1, or a prompt that there is not.
        """
        if isinstance(texts, str) or not texts or batch < 1:
            raise ValueError(f"texts must be a list of one or more, got {texts!r:.40}; batch, {batch}, 1 or more")
        name = self.default_prompt if prompt_name is None else prompt_name
        prompt = "" if name is None else self._prompt(name)
        sentences = [self.tokenizer.encode(prompt + text) for text in texts]
        order = sorted(range(len(texts)), key=lambda place: len(sentences[place]))
        device = self.model.segments.weight.device
        # With the special token that begins the row.
        prompted = 1 + len(self.tokenizer.encode(prompt)) if prompt else 0
        found: list[Tensor] = []
        for start in range(0, len(order), batch):
            chosen = [sentences[place] for place in order[start : start + batch]]
            tokens, segments, present = (part.to(device) for part in join(self.tokenizer, chosen, longest=self.longest))
            hidden = self.model(tokens, segments, present=None if bool(present.all()) else present)
            found.append(self.layers(self.pooling(hidden, present, prompted)).float().cpu())
        vectors = torch.cat(found)
        result = torch.empty_like(vectors)
        result[order] = vectors
        return result

    def _prompt(self, name: str) -> str:
        if name not in self.prompts:
            raise ValueError(f"there is no prompt {name!r}: there are {', '.join(map(repr, self.prompts)) or 'none'}")
        return self.prompts[name]
