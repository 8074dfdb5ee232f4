"""WordPiece: words cut into pieces of a learned vocabulary, the longest match first."""

import json
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from jaxtyping import Int32
from torch import Tensor

from allyouneed.text import SpecialTokensMixin
from allyouneed.text.special_tokens import CONFIG_FILE, write_tokenizer_config

from .pieces import CONTINUES, learn_pieces

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Padding, a word that no pieces spell, the beginning of a row, the end of a sentence, a hidden token."""

_FILE = "vocab.txt"
_LONGEST_WORD = 100
_REMEMBERED = 100_000
# The blocks of ideographs of Chinese, Japanese and Korean, each of which is a word. The sixth begins 256 code points
# late, as in the tokenizers library, by which published models are read today.
IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class _Cleaning(dict[int, str]):
    """What each character of a text becomes; worked out when it is first met, for `str.translate`."""

    def __init__(self, lowercase: bool):
        super().__init__()
        self.lowercase = lowercase

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if character in "\t\n\r" or category in ("Zs", "Zl", "Zp"):
            cleaned = " "
        elif category in ("Cc", "Cf", "Co") or character == "\ufffd" or (self.lowercase and category == "Mn"):
            cleaned = ""
        elif category[0] == "P" or _is_ascii_sign(code) or any(first <= code <= last for first, last in IDEOGRAPHS):
            cleaned = f" {character} "
        else:
            cleaned = character.lower() if self.lowercase else character
        self[code] = cleaned
        return cleaned


def _is_ascii_sign(code: int) -> bool:
    """Say whether a character is one of ASCII that is no letter, digit, space or control: $ and ^ are punctuation."""
    return code < 128 and chr(code).isprintable() and not chr(code).isalnum() and code != 0x20


_LOWERING, _KEEPING = _Cleaning(True), _Cleaning(False)


def words(text: str, *, lowercase: bool = True) -> list[str]:
    """Cut a text into words: at white space, and around each mark of punctuation and each ideograph.

    Control characters are dropped. Where letters are lowered, accents are dropped too: both are one setting in the
    published models.

    Source: the tokenization of BERT's released code, which the paper does not describe.

    Raises:
        ValueError: half of a surrogate pair, which is no character.
    """
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"character {error.start} of the text, {text[error.start]!r}, is half of a surrogate pair"
            ) from error
    if lowercase:
        # Decomposed, so that accents are characters of their own.
        return unicodedata.normalize("NFD", text).translate(_LOWERING).split(" ")
    return text.translate(_KEEPING).split(" ")


class WordPieceTokenizer(SpecialTokensMixin):
    """A vocabulary of pieces of words, and the greedy way of spelling words with it.

    A word is spelled by the longest piece that it begins with, then the longest that the rest begins with, and so on;
    a word that cannot be spelled so is `[UNK]` as a whole. White space is not in the tokens, so that a text does not
    come back as it was.

    Source: Wu et al. 2016, section 4.1; Devlin et al. 2019, section 3.

    Args:
        pieces: the vocabulary in order of ids; pieces that do not begin a word begin with `##`.
        lowercase: whether letters lose case and accents.

    Raises:
        ValueError: a piece twice, or a special token that is missing.
    """

    def __init__(self, pieces: Sequence[str], *, lowercase: bool = True):
        self.pieces = tuple(pieces)
        self.lowercase = lowercase
        self.ids: Mapping[str, int] = MappingProxyType({piece: place for place, piece in enumerate(self.pieces)})
        if len(self.ids) < len(self.pieces):
            twice = [piece for piece, count in Counter(self.pieces).items() if count > 1]
            raise ValueError(f"pieces {twice[:5]} are in the vocabulary more than once")
        missing = [name for name in SPECIAL_TOKENS if name not in self.ids]
        if missing:
            raise ValueError(f"the vocabulary lacks the special tokens {missing}: it must have {list(SPECIAL_TOKENS)}")
        self.padding, self.unknown, self.begin, self.separator, self.mask = (self.ids[name] for name in SPECIAL_TOKENS)
        roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        self.special_tokens_map = dict(zip(roles, SPECIAL_TOKENS, strict=True))
        ordinary = [piece for piece in self.pieces if piece not in SPECIAL_TOKENS]
        self._first = {piece: self.ids[piece] for piece in ordinary}
        self._rest = {
            piece.removeprefix(CONTINUES): self.ids[piece] for piece in ordinary if piece.startswith(CONTINUES)
        }
        self._longest = max(map(len, self.pieces))
        self._spelled: dict[str, tuple[int, ...]] = {}

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int, *, lowercase: bool = True) -> "WordPieceTokenizer":
        """Learn a vocabulary; the same texts give the same.

        The special tokens come first, then every character that the texts have, inside words and at their beginning,
        then the pieces in the order in which they were joined of two.

        Args:
            texts: what to learn from.
            vocabulary: number of pieces, special tokens and characters among them.
            lowercase: whether letters lose case and accents.

        Raises:
            ValueError: a vocabulary smaller than its characters, or larger than the texts have pieces for.
        """
        counts = Counter(word for text in texts for word in words(text, lowercase=lowercase) if word)
        return cls([*SPECIAL_TOKENS, *learn_pieces(counts, vocabulary - len(SPECIAL_TOKENS))], lowercase=lowercase)

    @property
    def vocabulary(self) -> int:
        """The number of token ids, special tokens among them."""
        return len(self.pieces)

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """The ids of `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]` and `[MASK]`."""
        return MappingProxyType({name: self.ids[name] for name in SPECIAL_TOKENS})

    def encode(self, text: str) -> list[int]:
        """Give the tokens of a text; no `[CLS]`, `[SEP]` or `[MASK]`, even where its name stands in the text."""
        return [token for word in words(text, lowercase=self.lowercase) if word for token in self.spell(word)]

    def encode_to_tensor(self, text: str) -> Int32[Tensor, " tokens"]:
        """Give the tokens of a text in four bytes each."""
        stored = array("i")
        for word in words(text, lowercase=self.lowercase):
            if word:
                stored.extend(self.spell(word))
        return torch.frombuffer(stored, dtype=torch.int32) if stored else torch.empty(0, dtype=torch.int32)

    def spell(self, word: str) -> tuple[int, ...]:
        """Give the tokens of one word, as `words` gives it: the longest match first."""
        spelled = self._spelled.get(word)
        if spelled is None:
            spelled = tuple(self._matches(word)) if len(word) <= _LONGEST_WORD else (self.unknown,)
            if len(self._spelled) < _REMEMBERED:
                self._spelled[word] = spelled
        return spelled

    def decode(self, tokens: Sequence[int]) -> str:
        """Give the words of tokens with a space between any two, special tokens by their names.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        outside = next((token for token in tokens if not 0 <= token < self.vocabulary), None)
        if outside is not None:
            raise ValueError(f"token {outside} is not in the vocabulary: ids are 0 to {self.vocabulary - 1}")
        text = " ".join(self.pieces[token] for token in tokens)
        return text.replace(f" {CONTINUES}", "")

    def save(self, folder: Path | str) -> None:
        """Write `vocab.txt`, one piece a line, and `tokenizer_config.json`, as published models have them.

        Raises:
            ValueError: a piece with a line break in it, which the format cannot hold.
        """
        broken = [piece for piece in self.pieces if piece.splitlines() != [piece]]
        if broken:
            raise ValueError(f"pieces {broken[:5]} cannot be written to {_FILE}: each must be one line")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.lowercase,
            "strip_accents": None,
            "tokenize_chinese_chars": True,
        }
        part = folder / f"{_FILE}.part"
        part.write_text("".join(f"{piece}\n" for piece in self.pieces), encoding="utf-8", newline="\n")
        part.replace(folder / _FILE)
        write_tokenizer_config(folder, settings, self.special_tokens_map)

    @classmethod
    def load(cls, folder: Path | str) -> "WordPieceTokenizer":
        """Read the `vocab.txt` of a folder, ours or a published model's, and whether it lowers letters.

        Raises:
            FileNotFoundError: the folder has no `vocab.txt`.
            ValueError: a file that is damaged, or settings that are not supported.
        """
        folder = Path(folder)
        path = folder / _FILE
        if not path.is_file():
            raise FileNotFoundError(f"there is no WordPiece vocabulary in {folder}: {_FILE} is missing")
        try:
            # Not splitlines, which would cut at characters that are pieces in published vocabularies.
            lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not a vocabulary: {error}") from error
        lowercase = True
        settings_path = folder / CONFIG_FILE
        if settings_path.is_file():
            try:
                settings = json.loads(settings_path.read_bytes())
                lowercase = settings.get("do_lower_case", True)
                accents, ideographs = settings.get("strip_accents"), settings.get("tokenize_chinese_chars", True)
            except (ValueError, AttributeError) as error:
                raise ValueError(f"{settings_path} is not a tokenizer's configuration: {error}") from error
            if accents not in (None, lowercase) or ideographs is not True:
                raise ValueError(
                    f"{settings_path} has strip_accents {accents!r} and tokenize_chinese_chars {ideographs!r}: accents "
                    "must be dropped exactly where letters are lowered, and ideographs must be words"
                )
        try:
            return cls([line.removesuffix("\r") for line in lines], lowercase=lowercase)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _frame(self) -> tuple[Sequence[int], Sequence[int]]:
        return (self.begin,), (self.separator,)

    def _matches(self, word: str) -> Iterator[int]:
        """Give the tokens of a word, or the unknown token alone."""
        found, begin, pieces = [], 0, self._first
        while begin < len(word):
            for end in range(min(len(word), begin + self._longest), begin, -1):
                token = pieces.get(word[begin:end])
                if token is not None:
                    break
            else:
                return iter((self.unknown,))
            found.append(token)
            begin, pieces = end, self._rest
        return iter(found)
