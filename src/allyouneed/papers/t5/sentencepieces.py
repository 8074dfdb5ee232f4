"""The vocabulary: pieces of a unigram model, trained and applied by the SentencePiece library, and sentinels."""

import io
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import sentencepiece
import tokenizers
import torch
from jaxtyping import Int32
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from allyouneed.text import SpecialTokensMixin
from allyouneed.text.special_tokens import CONFIG_FILE, write_tokenizer_config

MODEL_FILE = "spiece.model"
"""The file of the library's own format, as in published checkpoints."""
_SPECIAL = ("<pad>", "</s>", "<unk>")
_SPACE = "▁"


class SentencePieceTokenizer(SpecialTokensMixin):
    """Pieces of SentencePiece (Kudo & Richardson 2018), and after them sentinels for span corruption (section 3.1.4).

    Token 0 pads, 1 ends a text, 2 is unknown; the first sentinel is the last token of all, and the others go down from
    there, as in the released models. Text is normalised (NFKC, one space between words), and comes back so; characters
    that the pieces lack become the unknown token.

    Args:
        content: of a `spiece.model`.
        sentinels: how many there are; 100 in the released models.

    Raises:
        ValueError: a model that cannot be read, or whose first three pieces are others, or fewer than no sentinels.
    """

    def __init__(self, content: bytes, sentinels: int = 100):
        if sentinels < 0:
            raise ValueError(f"sentinels is {sentinels}: it must be at least 0")
        self._content = content
        try:
            self._model: Any = sentencepiece.SentencePieceProcessor(model_proto=content)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"these {len(content)} bytes are no SentencePiece model: {error}") from error
        self._pieces: int = self._model.get_piece_size()
        first = tuple(self._model.id_to_piece(piece) for piece in range(min(3, self._pieces)))
        if first != _SPECIAL:
            raise ValueError(f"the model's pieces begin with {first}; they must begin with {_SPECIAL}, as T5's do")
        self._special = {
            **{name: token for token, name in enumerate(_SPECIAL)},
            **{f"<extra_id_{number}>": self._pieces + sentinels - 1 - number for number in range(sentinels)},
        }
        self.special_tokens_map = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        self._names = {token: name for name, token in self._special.items()}
        self.sentinels: tuple[int, ...] = tuple(self._pieces + sentinels - 1 - number for number in range(sentinels))

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int, sentinels: int = 100) -> "SentencePieceTokenizer":
        """Learn a unigram model (Kudo 2018) from texts; the same texts give the same pieces.

        Args:
            texts: what to learn from.
            vocabulary: number of tokens, special ones and sentinels among them.
            sentinels: how many there are.

        Raises:
            ValueError: a vocabulary too small for the characters of the texts or larger than they have pieces for, no
                text, one string for texts, or half of a surrogate pair in them.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts is one string of {len(texts)} characters; it must be several texts, as [text]")
        lines = [line for text in texts for line in _checked(text).splitlines() if line.strip()]
        if not lines:
            raise ValueError("there is no text to learn pieces from")
        if vocabulary - sentinels <= len(_SPECIAL):
            raise ValueError(
                f"a vocabulary of {vocabulary} has no room for pieces beside {len(_SPECIAL)} special tokens and "
                f"{sentinels} sentinels"
            )
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
                sentence_iterator=iter(lines),
                model_writer=written,
                model_type="unigram",
                vocab_size=vocabulary - sentinels,
                pad_id=0,
                eos_id=1,
                unk_id=2,
                bos_id=-1,
                character_coverage=1.0,
                # Longer lines would be left out.
                max_sentence_length=max(len(line.encode()) for line in lines) + 1,
                num_threads=1,
                minloglevel=3,
            )
        except RuntimeError as error:
            raise ValueError(
                f"no vocabulary of {vocabulary} tokens, {sentinels} sentinels and {len(_SPECIAL)} special ones among "
                f"them, can be learned from these texts: {error}"
            ) from error
        return cls(written.getvalue(), sentinels)

    @property
    def vocabulary(self) -> int:
        """The number of token ids, special tokens and sentinels among them."""
        return self._pieces + len(self.sentinels)

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The ids of special tokens and sentinels, by name."""
        return MappingProxyType(self._special)

    @property
    def padding(self) -> int:
        """The token that fills up rows, and begins every target."""
        return 0

    @property
    def end(self) -> int:
        """The token that ends inputs and targets."""
        return 1

    @property
    def unknown(self) -> int:
        """The token of what the pieces cannot spell."""
        return 2

    def encode(self, text: str) -> list[int]:
        """Give the tokens of a text; never a special token but the unknown one.

        Raises:
            ValueError: half of a surrogate pair, which has no UTF-8.
        """
        return self._model.encode(_checked(text))

    def spell(self, text: str) -> list[int]:
        """Give the tokens of a text that must come back, such as an answer that a model is to write.

        Raises:
            ValueError: it is empty, or has characters that the pieces lack; they are named.
        """
        tokens = self.encode(text)
        if not tokens:
            raise ValueError(f"{text!r} has no tokens: there is nothing to write")
        if self.unknown in tokens:
            lacking = sorted({character for character in text if self.unknown in self.encode(character)})
            raise ValueError(
                f"the vocabulary cannot spell {text!r}: it has no piece for {', '.join(map(repr, lacking))}"
            )
        return tokens

    def encode_to_tensor(self, text: str) -> Int32[Tensor, " tokens"]:
        """Give the tokens of a long text in four bytes each.

        Raises:
            ValueError: half of a surrogate pair, which has no UTF-8.
        """
        stored = array("i")
        for line in _checked(text).splitlines():
            stored.extend(self._model.encode(line))
        return torch.frombuffer(stored, dtype=torch.int32) if stored else torch.empty(0, dtype=torch.int32)

    def decode(self, tokens: Sequence[int]) -> str:
        """Give the text of tokens, and special tokens and sentinels by their names.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        outside = next((token for token in tokens if not 0 <= token < self.vocabulary), None)
        if outside is not None:
            raise ValueError(f"token {outside} is not in the vocabulary: ids are 0 to {self.vocabulary - 1}")
        text = ""
        for name, run in groupby(tokens, self._names.get):
            same = list(run)
            if name is not None:
                text += name * len(same)
                continue
            # The library drops the space before the first word.
            begins_word = self._model.id_to_piece(same[0]).startswith(_SPACE)
            text += (" " if text and begins_word else "") + self._model.decode(same)
        return text

    def save(self, folder: Path | str) -> None:
        """Write the model and, for readers without the library, `tokenizer.json` in Hugging Face tokenizers' format."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        contents = {
            MODEL_FILE: self._content,
            "tokenizer.json": self.as_published().to_str(pretty=True).encode(),
        }
        for name, content in contents.items():
            part = folder / f"{name}.part"
            part.write_bytes(content)
            part.replace(folder / name)
        settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": len(self.sentinels)}
        write_tokenizer_config(folder, settings, self.special_tokens_map)

    @classmethod
    def load(cls, folder: Path | str) -> "SentencePieceTokenizer":
        """Read the `spiece.model` of a folder, ours or a published T5's, which has 100 sentinels unless it says so.

        Raises:
            FileNotFoundError: the folder has none.
            ValueError: it is damaged, or another kind of model.
        """
        path, settings = Path(folder) / MODEL_FILE, Path(folder) / CONFIG_FILE
        if not path.is_file():
            raise FileNotFoundError(f"there is no tokenizer in {folder}: {MODEL_FILE} is missing")
        sentinels = 100
        try:
            if settings.is_file():
                sentinels = int(json.loads(settings.read_bytes()).get("extra_ids", sentinels))
            return cls(path.read_bytes(), sentinels)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: {error}") from error

    def _frame(self) -> tuple[Sequence[int], Sequence[int]]:
        # Inputs and targets both end so, and nothing begins them.
        return (), (self.end,)

    def as_published(self) -> tokenizers.Tokenizer:
        """Make the same tokenizer of Hugging Face tokenizers' parts, which frame a text by adding the end."""
        scores = [(self._model.id_to_piece(piece), self._model.get_score(piece)) for piece in range(self._pieces)]
        scores += [(self._names[token], 0.0) for token in range(self._pieces, self.vocabulary)]
        made: Any = tokenizers.Tokenizer(models.Unigram(scores, unk_id=self.unknown, byte_fallback=False))
        made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in self._names.values()])
        characters = _field(_field(self._content, 3), 2)
        steps: list[Any] = [normalizers.Precompiled(characters)] if characters else []
        steps += [normalizers.Replace(tokenizers.Regex(" {2,}"), " "), normalizers.Strip()]
        made.normalizer = normalizers.Sequence(steps)
        made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
        made.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
        made.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", self.end)]
        )
        return made


def _checked(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} of the text, {text[error.start]!r}, is half of a surrogate pair and has no UTF-8"
        ) from error
    return text


def _field(message: bytes, wanted: int) -> bytes:
    """Find a field of bytes in a protocol-buffer message; none where it is absent."""
    for number, content in _fields(message):
        if number == wanted:
            return content
    return b""


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Go through a message's fields of bytes, those of numbers being passed over (protocol buffers' wire format)."""
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        key = number()
        kind = key & 7
        if kind == 2:
            size = number()
            yield key >> 3, message[place : place + size]
            place += size
        elif kind == 0:
            number()
        else:
            place += 8 if kind == 1 else 4
