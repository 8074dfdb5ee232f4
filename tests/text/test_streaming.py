"""Text as it comes: whole characters only, and stop strings wherever tokens begin and end."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from allyouneed.text import BytePairTokenizer, ByteTokenizer, Sampling, TextStream, generate_text

BYTES = ByteTokenizer()
STOPS = [["stop"], ["ab", "bc"], ["aab"], ["\n\n", "é"], []]


def pieces(tokens: Sequence[int], stop_strings: Sequence[str] = (), tokenizer: Any = BYTES) -> list[str]:
    stream = TextStream(tokenizer, stop_strings)
    return [stream.add(token) for token in tokens] + [stream.finish()]


@given(text=st.text(max_size=60))
def test_joined_pieces_are_the_text_and_each_is_whole(text: str):
    found = pieces(BYTES.encode(text))
    assert "".join(found) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in found) or "\N{REPLACEMENT CHARACTER}" in text
    # Nothing is held back longer than its own bytes take.
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert sum(map(bool, found)) == len(text) and found[-1] == ""


@given(data=st.binary(max_size=40))
def test_bytes_that_are_no_text_come_as_the_tokenizer_decodes_them(data: bytes):
    assert "".join(pieces(list(data))) == BYTES.decode(list(data))


@given(text=st.text("abcstop\né", max_size=30), stop_strings=st.sampled_from(STOPS))
def test_text_ends_before_the_first_stop_string(text: str, stop_strings: list[str]):
    # Found as soon as its last character has come.
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stop_strings)]
    expected = text
    if ends:
        seen = text[: ends[0]]
        expected = seen[: min(seen.find(stop) for stop in stop_strings if stop in seen)]
    assert "".join(pieces(BYTES.encode(text), stop_strings)) == expected


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_stop_string_is_found_across_tokens(cut: int):
    class Chunks(ByteTokenizer):
        def decode(self, tokens: Sequence[int]) -> str:
            return "".join((text[:cut], text[cut:])[token] for token in tokens)

    text = "one <stop> two"
    stream = TextStream(Chunks(), ["<stop>"])
    told = [stream.add(0), stream.add(1)]
    assert "".join(told) == "one "
    assert stream.stopped
    assert stream.add(0) == "" and stream.finish() == ""


def test_what_may_begin_a_stop_string_is_held_back_until_it_does_not():
    assert pieces(BYTES.encode("a<sun>"), ["<stop>"]) == ["a", "", "", "<su", "n", ">", ""]
    assert pieces(BYTES.encode("a<st"), ["<stop>"]) == ["a", "", "", "", "<st"]
    assert pieces(BYTES.encode("aaab"), ["aab"]) == ["", "", "a", "", ""]


def test_tokens_that_are_decoded_by_what_precedes_them():
    class Words(ByteTokenizer):
        """Like a tokenizer of words, it puts a space before all words but the first."""

        def decode(self, tokens: Sequence[int]) -> str:
            return " ".join(["one", "two", "three"][token] for token in tokens)

    assert pieces([0, 1, 2], ["o th"], Words()) == ["one", " tw", "", ""]
    assert pieces([0, 1, 2], (), Words()) == ["one", " two", " three", ""]


def test_characters_split_over_tokens_of_a_trained_tokenizer():
    tokenizer = BytePairTokenizer.train(["αβγ αβγ"] * 3 + ["ab"], vocabulary=258)
    text = "日本 αβγ 🙂"
    tokens = tokenizer.encode(text)
    assert len(tokens) > len(text)
    found = pieces(tokens, (), tokenizer)
    assert "".join(found) == text and "\N{REPLACEMENT CHARACTER}" not in "".join(found)


@pytest.mark.parametrize(("stop_strings", "message"), [("stop", r"one text .* as \['stop'\]"), (["a", ""], "empty")])
def test_stop_strings_that_make_no_sense_are_refused(stop_strings: Any, message: str):
    with pytest.raises(ValueError, match=message):
        TextStream(BYTES, stop_strings)


class Script(nn.Module):
    """Continues each row by the bytes of one text, by its place in the row's own tokens."""

    def __init__(self, text: str):
        super().__init__()
        self.data = torch.tensor(BYTES.encode(text))

    def forward(self, tokens: Tensor, *, present: Tensor | None = None, cache: None = None) -> Tensor:
        there = torch.ones_like(tokens).bool() if present is None else present
        after = (tokens.eq(ord(">")) & there).cumsum(1).cumsum(1)[:, -1] - 1
        return nn.functional.one_hot(self.data[after % len(self.data)], 256).float()[:, None]

    def new_cache(self, limit: int | None = None, capacity: int = 64) -> None:
        return None


def test_texts_are_continued_each_until_its_own_end():
    told: list[tuple[int, str]] = []
    options: dict[str, Any] = {"sampling": Sampling.greedy(), "on_text": lambda row, piece: told.append((row, piece))}
    model = Script("naïve. Stop! More.")
    texts = generate_text(model, BYTES, ["é>", "longer than that>"], new_tokens=12, stop_strings=["Stop"], **options)
    assert texts == ["naïve. ", "naïve. "]
    assert [piece for row, piece in told if row == 1] == list("naïve. ")
    assert generate_text(model, BYTES, [">"], new_tokens=3, **options) == ["na\N{REPLACEMENT CHARACTER}"]
    assert generate_text(model, BYTES, [">"], new_tokens=9, stop=[ord(".")], **options) == ["naïve"]
    with pytest.raises(ValueError, match="prompts is one text of 3 characters"):
        generate_text(model, BYTES, "abc", new_tokens=3)
