"""What single tokens are called in answers, and which bytes they are."""

from collections.abc import Mapping, Sequence
from functools import cached_property

from allyouneed.text import Tokenizer
from allyouneed.text.token_bytes import token_bytes


class TokenTexts:
    """The text and the bytes of each token of a tokenizer.

    Args:
        tokenizer: the model's, whose vocabulary may be larger.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._special: Mapping[int, str] = {token: name for name, token in tokenizer.special_tokens.items()}

    def bytes_of(self, token: int) -> bytes:
        """Give the bytes that a token stands for; of a special token those of its name, of an unknown one none."""
        if not 0 <= token < self._tokenizer.vocabulary:
            return b""
        if token in self._special:
            return self._special[token].encode()
        return self._bytes[token] if self._bytes else self._tokenizer.decode([token]).encode()

    def text_of(self, token: int) -> str:
        r"""Give the text of a token; where its bytes are no text by themselves, their values, as `bytes:\xf0\x9f`."""
        data = self.bytes_of(token)
        if not data:
            return f"token_id:{token}"
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{value:02x}" for value in data)

    def names_of(self, token: int, others: Sequence[int]) -> dict[int, str]:
        """Name tokens that stand side by side: by their texts, and by their ids where another has the text already.

        Args:
            token: has its own text in any case.
            others: the other tokens, or the same one too.
        """
        names = {token: self.text_of(token)}
        for other in others:
            if other not in names:
                text = self.text_of(other)
                names[other] = f"token_id:{other}" if text in names.values() else text
        return names

    @cached_property
    def _bytes(self) -> list[bytes]:
        try:
            return token_bytes(self._tokenizer)
        except ValueError:
            # Of some tokenizers it depends on the neighbours.
            return []
