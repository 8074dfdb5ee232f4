"""What prompts, ends and numbers of tokens must be, said where something else is given."""

from collections.abc import Collection, Iterable, Mapping
from numbers import Integral
from typing import Any


def check_texts(name: str, texts: Any) -> None:
    """Check that several texts are given.

    Raises:
        ValueError: one text in place of several, what cannot be gone through, or what is no string in it.
    """
    if isinstance(texts, str):
        shown = f"[{texts!r}]" if len(texts) < 20 else "[text]"
        raise ValueError(f"{name} is one text of {len(texts)} characters; it must be several, as {shown}")
    if not isinstance(texts, Iterable) or isinstance(texts, bytes):
        raise ValueError(f"{name} is {texts!r:.40}; it must be several texts, as ['Once upon']")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name} has {text!r:.40} at {place}; it must be a text")


def check_tokens(name: str, tokens: Any, vocabulary: int | None = None) -> None:
    """Check that several tokens are given, and that a model knows them.

    Args:
        name: what the tokens are, in the error.
        tokens: what was given.
        vocabulary: how many tokens there are; any number where None.

    Raises:
        ValueError: one token in place of several, or something in it that is no token.
    """
    if not isinstance(tokens, Collection) or isinstance(tokens, str | bytes):
        raise ValueError(f"{name} is {tokens!r:.40}; it must be several tokens, as [2]")
    of = "0 or more" if vocabulary is None else f"from 0 to {vocabulary - 1}"
    for token in getattr(tokens, "tolist", lambda: tokens)():
        if not isinstance(token, Integral) or not 0 <= int(token) < (vocabulary or int(token) + 1):
            raise ValueError(f"{name} has token {token!r:.40}, which the model does not know: tokens are {of}")


def check_prompts(prompts: Any, vocabulary: int | None) -> None:
    """Check that prompts are several, each of at least one token that the model knows.

    Raises:
        ValueError: they are not; or there are none.
    """
    if not isinstance(prompts, Collection) or isinstance(prompts, str | bytes | Mapping):
        raise ValueError(f"prompts is {prompts!r:.40}; it must be the tokens of several prompts, as [[1, 2], [3]]")
    if len(prompts) == 0:
        raise ValueError("there are no prompts: generation needs at least one")
    for row, prompt in enumerate(prompts):
        if isinstance(prompt, Collection) and len(prompt) == 0:
            raise ValueError(f"prompt {row} is empty: each needs at least one token")
        check_tokens(f"prompt {row}", prompt, vocabulary)


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Check that something is a whole number, and not too small.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r:.40}; it must be a whole number, at least {least}")
    if value < least:
        raise ValueError(f"{name} {value} is out of range: it must be at least {least}")
