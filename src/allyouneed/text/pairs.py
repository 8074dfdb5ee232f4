"""Prompts and answers as tokens, for training on the answers."""

from collections.abc import Iterable, Sequence

from .chat_template import ChatTemplate, Message
from .tokenizers import Tokenizer


def encode_pairs(
    tokenizer: Tokenizer,
    pairs: Iterable[tuple[str | Sequence[Message], str]],
    *,
    template: ChatTemplate | None = None,
    end: int | None = None,
) -> list[tuple[list[int], list[int]]]:
    """Give the tokens of prompts and of their answers, apart, as a model meets them that is asked for an answer.

    A prompt is begun as the tokenizer begins texts, or is a conversation up to where the assistant answers. An answer
    is encoded by itself, since a model generates it after the prompt's own tokens, and the token that ends it follows:
    it is learned too, or the model would never stop. `allyouneed.data.labelled.label_pairs` makes batches of the pairs.

    Args:
        tokenizer: the model's.
        pairs: a text, or the messages of a conversation, and the answer to it.
        template: encodes conversations.
        end: the token that ends an answer. Where None it is the one that the template writes after an assistant's
            message, or the tokenizer's own after a text.

    Raises:
        ValueError: a conversation without a template, or no token to end an answer with.
    """
    of_text, of_message = tokenizer.eos_token_ids, set[int]()
    if template is not None and end is None:
        of_message = template.end_tokens()
    special = set(tokenizer.special_tokens.values())
    encoded = []
    for prompt, answer in pairs:
        if isinstance(prompt, str):
            tokens, last = tokenizer.encode_prompt(prompt), next(iter(of_text), end)
        elif template is not None:
            tokens, last = template.encode(prompt), next(iter(of_message), end)
        else:
            raise ValueError("a prompt is a conversation, and there is no template to encode it with: give one")
        last = last if end is None else end
        if last is None:
            raise ValueError("neither tokenizer nor template has a token that ends an answer: give its id as `end`")
        behind_special = bool(tokens) and tokens[-1] in special
        encode = tokenizer.encode_after_special if behind_special else tokenizer.encode_continuation
        encoded.append((tokens, [*encode(answer), last]))
    return encoded
