"""Byte-level byte pairs: the tokenizer of most language models, and the one that rooms train for their own."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from .library import LibraryTokenizer, panics_explained
from .tokenizers import _check_ids, _checked, _utf8

# The library keeps hundreds of bytes a token until a call returns, so a long text goes through in pieces.
_PIECE_CHARACTERS = 10_000

# GPT-2's pattern, by which `ByteLevel` splits words, never joins a letter or digit to white space after it. So a text
# may be cut there, and its pieces have the tokens that the whole has.
_SAFE_CUT = re.compile(r"(?<=\w)(?=[ \n])")


class BytePairTokenizer(LibraryTokenizer):
    """Byte-level byte-pair encoding, as in GPT-2 (Radford et al. 2019, section 2.2), by Hugging Face tokenizers.

    Every byte is a token, so any text can be encoded. A tokenizer made by `train` gives back every text as it was; one
    made elsewhere may have been set up to normalise text, and then does so here, or may lack tokens for rare bytes (as
    SmolLM2's does for some control characters), which it then drops.

    Args:
        tokenizer: a byte-level BPE tokenizer. It is changed: special tokens are no longer found in text, and nothing is
            truncated or padded.

    Raises:
        ValueError: another kind of tokenizer.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        if not isinstance(tokenizer.model, models.BPE) or not isinstance(tokenizer.decoder, decoders.ByteLevel):
            raise ValueError(
                f"a tokenizer of {type(tokenizer.model).__name__} decoded by {type(tokenizer.decoder).__name__} is not "
                "byte-level BPE: it must be of BPE and decoded by ByteLevel"
            )
        super().__init__(tokenizer)
        self._may_be_cut = tokenizer.normalizer is None and _splits_as_gpt2(tokenizer.pre_tokenizer)

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int, special_tokens: Sequence[str] = ()) -> "BytePairTokenizer":
        """Learn merges from texts; the same texts give the same tokenizer.

        Ids 0 to 255 are the bytes in GPT-2's order, then come the merges in the order in which they were learned, and
        the special tokens last. A pair is merged only if it was seen twice.

        Args:
            texts: what to learn from; pairs across two texts are not counted.
            vocabulary: number of tokens, bytes and special tokens among them.
            special_tokens: their names.

        Raises:
            ValueError: a vocabulary with no room for the bytes and the special tokens, or larger than the texts have
                pairs for; special tokens that are empty, repeated, or ordinary tokens too; one string for texts, or
                half of a surrogate pair in them.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts is one string of {len(texts)} characters; it must be several texts, as [text]")
        special_tokens = list(special_tokens)
        if len(set(special_tokens)) < len(special_tokens) or "" in special_tokens:
            raise ValueError(f"special tokens {special_tokens} must have names, each its own")
        merged = vocabulary - len(special_tokens)
        if merged < 256:
            raise ValueError(
                f"a vocabulary of {vocabulary} has no room for 256 bytes and {len(special_tokens)} special tokens: "
                f"it must be at least {256 + len(special_tokens)}"
            )
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=merged,
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_checked(texts), trainer)
        found = tokenizer.get_vocab_size()
        if found < merged:
            raise ValueError(
                f"the texts have pairs for a vocabulary of {found + len(special_tokens)}, special tokens included, "
                f"not for {vocabulary}: ask for no more, or give more text"
            )
        ordinary = sorted(name for name in special_tokens if tokenizer.token_to_id(name) is not None)
        if ordinary:
            raise ValueError(f"special tokens {ordinary} are ordinary tokens too: choose names such as <|end|>")
        tokenizer.add_special_tokens(special_tokens)
        return cls(tokenizer)

    def decode(self, tokens: Sequence[int]) -> str:
        """Give the text of tokens, with `�` for bytes that are not UTF-8, and special tokens by their names.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        _check_ids(tokens, self.vocabulary)
        text = []
        # The library would take a special token's name for a spelling of bytes.
        for name, run in groupby(tokens, self._special_names.get):
            same = list(run)
            with panics_explained():
                spelled = self._tokenizer.decode(same, skip_special_tokens=False) if name is None else name * len(same)
            text.append(spelled)
        return "".join(text)

    def _encoded(self, text: str) -> Iterator[list[int]]:
        _utf8(text)
        for piece in _pieces(text) if self._may_be_cut else (text,):
            with panics_explained():
                tokens = self._tokenizer.encode(piece, add_special_tokens=False).ids
            yield tokens


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        cut = _SAFE_CUT.search(text, start + _PIECE_CHARACTERS)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _splits_as_gpt2(pre_tokenizer: object) -> bool:
    return (
        isinstance(pre_tokenizer, pre_tokenizers.ByteLevel)
        and pre_tokenizer.use_regex
        and not pre_tokenizer.add_prefix_space
    )
