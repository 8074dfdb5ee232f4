"""What a tokenizer's special tokens are for: which begins a text, which ends it, which fills up rows."""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""What a special token may be for: to begin a text, to end it, an unknown word, between sentences, padding, to stand
for a whole text, or for a hidden word; under the keys of `tokenizer_config.json`."""

CONFIG_FILE = "tokenizer_config.json"
_MAP_FILE = "special_tokens_map.json"


class SpecialTokensMixin:
    """The roles of special tokens, and texts with the special tokens around them that a published model expects.

    A tokenizer derives from it, and has `encode` and `special_tokens`. It says in `_frame` what it puts around a text.
    """

    _roles: Mapping[str, str] = MappingProxyType({})

    @property
    @abstractmethod
    def special_tokens(self) -> Mapping[str, int]:
        """The ids of special tokens, by name."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Give the tokens of a text, and no special tokens."""

    def token_to_id(self, name: str) -> int | None:
        """Give the id of a token by its name; None where there is no such token."""
        return self.special_tokens.get(name)

    def _frame(self) -> tuple[Sequence[int], Sequence[int]]:
        """Give the special tokens before a text and after it."""
        return (), ()

    @property
    def special_tokens_map(self) -> Mapping[str, str]:
        """The names of the tokens that have a role, by role, such as `eos_token`. It can be set.

        Raises:
            ValueError: on setting, a role that is none of `ROLES`, or a name that is no token.
        """
        return MappingProxyType(dict(self._roles))

    @special_tokens_map.setter
    def special_tokens_map(self, roles: Mapping[str, str]) -> None:
        for role, name in roles.items():
            if role not in ROLES:
                raise ValueError(f"{role!r} is no role of a special token: there are {', '.join(ROLES)}")
            if self.token_to_id(name) is None:
                raise ValueError(f"the {role} {name!r} is no token of this tokenizer")
        self._roles = dict(roles)

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text; None where there is none."""
        return self._id_of("bos_token")

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text; empty where there are none."""
        end = self._id_of("eos_token")
        return () if end is None else (end,)

    @property
    def pad_token_id(self) -> int | None:
        """The token that fills up rows; None where there is none."""
        return self._id_of("pad_token")

    def encode_prompt(self, text: str) -> list[int]:
        """Give the tokens of a text that is to be continued: those of `encode`, and before them what begins a text.

        What begins a text is what the published tokenizer puts there, such as a beginning-of-sequence token. A text
        that starts with its name has it already, and does not get it twice.

        Raises:
            ValueError: half of a surrogate pair, which has no UTF-8.
        """
        beginning = self._frame()[0]
        names = {token: name for name, token in self.special_tokens.items()}
        named = "".join(names.get(token, "") for token in beginning)
        return [*beginning, *self.encode(text.removeprefix(named))]

    def encode_after_special(self, text: str) -> list[int]:
        """Give the tokens of a text that stands behind special tokens, and not at the beginning of all."""
        return self.encode(text)

    def encode_continuation(self, text: str) -> list[int]:
        """Give the tokens of a text that goes on where another ended."""
        return self.encode(text)

    def encode_with_special_tokens(self, text: str) -> list[int]:
        """Give the tokens of a text between the special tokens that the published tokenizer puts around one, if any.

        Raises:
            ValueError: half of a surrogate pair, which has no UTF-8.
        """
        beginning, ending = self._frame()
        return [*beginning, *self.encode(text), *ending]

    def read_special_tokens_map(self, folder: Path | str) -> None:
        """Take over the roles that a folder states; a token that the tokenizer does not have gets none.

        Raises:
            ValueError: a file that is damaged.
        """
        self.special_tokens_map = {
            role: name
            for role, name in read_special_tokens(folder).items()
            if name is not None and self.token_to_id(name) is not None
        }

    def _id_of(self, role: str) -> int | None:
        name = self._roles.get(role)
        return None if name is None else self.token_to_id(name)


def read_special_tokens(folder: Path | str) -> dict[str, str | None]:
    """Give the names of the special tokens that a folder states, by role; None where it says that there is none.

    They stand in `tokenizer_config.json`, and in older folders in `special_tokens_map.json`, as names or as
    descriptions of tokens whose `content` is the name.

    Raises:
        ValueError: a file is damaged, or a name is neither.
    """
    stated: dict[str, str | None] = {}
    for file in (CONFIG_FILE, _MAP_FILE):
        path = Path(folder) / file
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds a {type(content).__name__}, not an object with keys")
        for role in ROLES:
            if role in content and role not in stated:
                stated[role] = _name(content[role], role, path)
    return stated


def write_tokenizer_config(folder: Path | str, settings: Mapping[str, Any], roles: Mapping[str, str]) -> None:
    """Write `tokenizer_config.json`, which names the special tokens by role: null where there is none.

    Args:
        folder: made where it is missing.
        settings: what else the file says, such as `tokenizer_class`.
        roles: the names, by role.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Said outright, since readers take a default for what is absent.
    named = {role: roles.get(role) for role in ROLES if role in roles or role in ("bos_token", "eos_token")}
    part = folder / f"{CONFIG_FILE}.part"
    part.write_text(json.dumps({**settings, **named}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(folder / CONFIG_FILE)


def _name(stated: Any, role: str, path: Path) -> str | None:
    name = stated.get("content") if isinstance(stated, dict) else stated
    if name is not None and not isinstance(name, str):
        raise ValueError(f"{path}: {role} is {stated!r}; it must be a name, or a token's description with its content")
    # An empty name is how some files say that there is none.
    return name or None
