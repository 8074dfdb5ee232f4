"""Text as it comes: tokens turned into whole characters, ended by stop strings, and continued prompts of text."""

from collections.abc import Callable, Collection, Sequence

from .checks import check_texts
from .constraints import Grammar
from .generation import LanguageModel, generate
from .generation_config import end_tokens
from .sampling import Sampling
from .tokenizers import Tokenizer

# What stands for bytes that are not, or not yet, a character; some tokenizers write one for each of them.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_MOST_INCOMPLETE = 3

# How many tokens are looked back on, and how many characters they must give. What a token adds depends on whether text
# stands before it, and on the up to three bytes before it that may begin its first character; on no more than that.
_TOKENS, _CHARACTERS = 8, 4


class TextStream:
    """Turns the tokens of one text, as they come, into pieces of text that are certain.

    Characters of several bytes that are not complete are held back, and so is text that may be the beginning of a stop
    string. Joined, the pieces are what the tokenizer decodes all tokens to, or what stands before the first stop string
    in it. After a prompt they are what follows it: the text of all tokens is the prompt's and then the pieces, but for
    a character that the prompt begins and the first tokens complete, which is theirs. A token costs the same wherever
    in a text it comes.

    Args:
        tokenizer: decodes. A model may know more tokens than it: those have no text.
        stop_strings: end the text, wherever tokens begin and end.
        prompt: tokens that stand before.

    Attributes:
        stopped: whether a stop string was found; further tokens are then ignored.

    Raises:
        ValueError: an empty stop string, one string in place of several, or what is no string.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Collection[str] = (), *, prompt: Sequence[int] = ()):
        check_texts("stop_strings", stop_strings)
        if "" in stop_strings:
            raise ValueError("a stop string is empty, and would end every text before it begins")
        self.stopped = False
        self._tokenizer = tokenizer
        self._known = tokenizer.vocabulary
        self._stop_strings = stop_strings
        # The last tokens, and how many characters of their text were given or stand in the prompt.
        self._window: list[int] = []
        self._given = 0
        # Characters that ended the prompt incomplete, and stand there if they stay so.
        self._begun = 0
        self._held = ""
        if len(prompt) > 0:
            self._look_back(prompt)

    def add(self, token: int) -> str:
        """Take in a token, and give the text that has become certain; it may be empty."""
        if self.stopped or token >= self._known:
            return ""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        new = self._taken(text, len(text) - _incomplete(text))
        if len(self._window) > 2 * _TOKENS:
            self._shorten(text)
        return self._certain(new)

    def finish(self) -> str:
        """Give what was held back: no token follows."""
        if self.stopped:
            return ""
        text = self._tokenizer.decode(self._window)
        rest = self._certain(self._taken(text, len(text))) + self._held
        self._held = ""
        return rest

    def _look_back(self, prompt: Sequence[int]) -> None:
        """Begin with the last tokens of a prompt, as many as what follows may depend on."""
        count = _TOKENS
        while True:
            self._window = [token for token in prompt[-count:] if token < self._known]
            text = self._tokenizer.decode(self._window)
            self._begun = _incomplete(text)
            self._given = len(text) - self._begun
            if self._given >= _CHARACTERS or count >= len(prompt):
                return
            count *= 2

    def _taken(self, text: str, end: int) -> str:
        """Give what the window's text has up to an end and was not given before."""
        new = text[self._given : end]
        self._given = max(self._given, end)
        while self._begun and new:
            self._begun = self._begun - 1 if new[0] == _INCOMPLETE else 0
            new = new.removeprefix(_INCOMPLETE) if new[0] == _INCOMPLETE else new
        return new

    def _shorten(self, text: str) -> None:
        """Forget the window's first tokens, where the others give enough text, and the same."""
        tail = self._window[-_TOKENS:]
        shorter = self._tokenizer.decode(tail)
        given = len(shorter) - (len(text) - self._given)
        if given >= _CHARACTERS and text.endswith(shorter[given - 1 :]):
            self._window, self._given = tail, given

    def _certain(self, new: str) -> str:
        text = self._held + new
        found = [place for stop in self._stop_strings if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        begun = max((_overlap(text, stop) for stop in self._stop_strings), default=0)
        self._held = text[len(text) - begun :]
        return text[: len(text) - begun]


def _incomplete(text: str) -> int:
    """Count the characters at the end of a text that may stand for the beginning of one character."""
    return min(len(text) - len(text.rstrip(_INCOMPLETE)), _MOST_INCOMPLETE)


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
    grammar: Grammar | None = None,
    compile: bool = False,
    on_text: Callable[[int, str], object] | None = None,
) -> list[str]:
    """Continue texts, and return what was added to each; the model is used as `generate` does.

    Args:
        model: gives the logits.
        tokenizer: the model's.
        prompts: the texts; each is begun as the tokenizer's `encode_prompt` does, and has at least one token.
        new_tokens: the most tokens to add to a text.
        sampling: how tokens are sampled; as the model has it where None.
        stop: tokens that end a text, and are not returned; those that the model and its tokenizer state as ends where
            None.
        stop_strings: strings that end a text, and are not returned.
        seed: of the sampling; 0 or more.
        prefill_chunk: the most tokens of a prompt that are fed at a time; all at once where None.
        grammar: what each text follows; anything where None. Byte-level, SentencePiece-like and byte tokenizers only.
        compile: whether single tokens are computed by compiled code, as in `generate`.
        on_text: called with the row and what was added, in whole characters, as soon as it is certain.

    Raises:
        ValueError: one text in place of several, what is no text, an empty stop string, or what `generate` refuses.
        ConstraintError: no token may follow in a text.
    """
    check_texts("prompts", prompts)
    coded = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    streams = [TextStream(tokenizer, stop_strings, prompt=tokens) for tokens in coded]
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
        coded,
        new_tokens=new_tokens,
        sampling=sampling,
        stop=end_tokens(model, tokenizer) if stop is None else stop,
        seed=seed,
        prefill_chunk=prefill_chunk,
        constraints=None if grammar is None else [grammar.constraint(tokenizer)] * len(prompts),
        compile=compile,
        on_token=on_token,
    )
    for row, stream in enumerate(streams):
        add(row, stream.finish())
    return texts
