"""Text as it comes: tokens turned into whole characters, ended by stop strings, and continued prompts of text."""

from collections.abc import Callable, Collection, Sequence

from .generation import LanguageModel, generate
from .generation_config import end_tokens
from .sampling import Sampling
from .tokenizers import Tokenizer

# What stands for bytes that are not, or not yet, a character.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Turns the tokens of one text, as they come, into pieces of text that are certain.

    A character of several bytes that is not complete is held back, and so is text that may be the beginning of a stop
    string. Joined, the pieces are the text of all tokens, or what stands before the first stop string in it.

    Args:
        tokenizer: decodes.
        stop_strings: end the text, wherever tokens begin and end.

    Attributes:
        stopped: whether a stop string was found; further tokens are then ignored.

    Raises:
        ValueError: an empty stop string, or one string in place of several.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Collection[str] = ()):
        if isinstance(stop_strings, str):
            raise ValueError(f"stop_strings is one string, {stop_strings!r}; it must be several, as [{stop_strings!r}]")
        if "" in stop_strings:
            raise ValueError("a stop string is empty, and would end every text before it begins")
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop_strings = stop_strings
        # Tokens of complete characters, before which some tokenizers decode what follows otherwise, and those after.
        self._context: list[int] = []
        self._pending: list[int] = []
        self._given = 0
        self._held = ""

    def add(self, token: int) -> str:
        """Take in a token, and give the text that has become certain; it may be empty."""
        if self.stopped:
            return ""
        self._pending.append(token)
        text = self._decoded()
        whole = text.removesuffix(_INCOMPLETE)
        new, self._given = whole[self._given :], max(self._given, len(whole))
        if len(whole) == len(text):
            self._context, self._pending, self._given = self._pending, [], 0
        return self._certain(new)

    def finish(self) -> str:
        """Give what was held back: no token follows."""
        if self.stopped:
            return ""
        rest = self._certain(self._decoded()[self._given :])
        rest, self._held = rest + self._held, ""
        self._context, self._pending, self._given = self._pending, [], 0
        return rest

    def _decoded(self) -> str:
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._pending)[len(before) :]

    def _certain(self, new: str) -> str:
        text = self._held + new
        found = [place for stop in self._stop_strings if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        begun = max((_overlap(text, stop) for stop in self._stop_strings), default=0)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]


def _overlap(text: str, stop: str) -> int:
    """Count the characters at the end of the text with which the stop string may begin."""
    return next((count for count in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:count])), 0)


def generate_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    new_tokens: int,
    sampling: Sampling | None = None,
    stop: Collection[int] | None = None,
    stop_strings: Collection[str] = (),
    seed: int = 0,
    prefill_chunk: int | None = None,
    on_text: Callable[[int, str], object] | None = None,
) -> list[str]:
    """Continue texts, and return what was added to each; the model is used as `generate` does.

    Args:
        model: gives the logits.
        tokenizer: the model's.
        prompts: the texts; each is begun as the tokenizer's `encode_prompt` does, and has at least one token.
        new_tokens: the most tokens to add to a text.
        sampling: how tokens are drawn; as the model has it where None.
        stop: tokens that end a text, and are not returned; those that the model and its tokenizer state as ends where
            None.
        stop_strings: strings that end a text, and are not returned.
        seed: of all draws; 0 or more.
        prefill_chunk: the most tokens of a prompt that are fed at a time; all at once where None.
        on_text: called with the row and what was added, in whole characters, as soon as it is certain.

    Raises:
        ValueError: one text in place of several, an empty stop string, or what `generate` refuses.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts is one text of {len(prompts)} characters; it must be several, as [text]")
    streams = [TextStream(tokenizer, stop_strings) for _ in prompts]
    texts = [""] * len(streams)

    def add(row: int, piece: str) -> None:
        texts[row] += piece
        if piece and on_text is not None:
            on_text(row, piece)

    def on_token(row: int, token: int) -> bool:
        add(row, streams[row].add(token))
        return streams[row].stopped

    generate(
        model,
        [tokenizer.encode_prompt(prompt) for prompt in prompts],
        new_tokens=new_tokens,
        sampling=sampling,
        stop=end_tokens(model, tokenizer) if stop is None else stop,
        seed=seed,
        prefill_chunk=prefill_chunk,
        on_token=on_token,
    )
    for row, stream in enumerate(streams):
        add(row, stream.finish())
    return texts
