"""Of every tokenizer and any tokens, the pieces of text joined are the text of all: nothing is lost on the way."""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

from allyouneed.papers.bert import WordPieceTokenizer
from allyouneed.papers.gpt1 import EndOfWordBPE
from allyouneed.papers.gpt2 import ByteLevelBPE
from allyouneed.papers.t5 import SentencePieceTokenizer
from allyouneed.text import (
    BytePairTokenizer,
    ByteTokenizer,
    ChatTemplate,
    GenerationConfig,
    LocalChat,
    PublishedTokenizer,
    TextStream,
    Tokenizer,
    generate_text,
)

TEXTS = ["to be or not to be, that is the question", "naïve été 日本 😀", "don't  say  it's so!  "] * 3
TEXT = "日本語 and  two spaces, 😀👩‍👧 naïve\n\n\tit's so ! don't"
SPECIAL = ["<unk>", "<s>", "</s>"]
PIECES = ["▁", "▁▁", "▁▁▁", *"tobernhaquisd.,!'\n", "▁to", "▁be", "to", "be", "é", "▁world", "�"]


def fallback(decoder: Any, *, normalizer: Any = None, byte_tokens: bool = True) -> tokenizers.Tokenizer:
    """Make byte pairs with spaces written ▁, and bytes for what has no piece, as LLaMA's and Gemma's vocabularies."""
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256 if byte_tokens else 0)), *PIECES]
    ids = {name: place for place, name in enumerate(dict.fromkeys(names))}
    merges = [("▁", "▁"), ("▁▁", "▁"), ("t", "o"), ("b", "e"), ("▁", "to"), ("▁", "be")]
    model = models.BPE(vocab=ids, merges=merges, byte_fallback=byte_tokens, fuse_unk=True, unk_token="<unk>")
    made: Any = tokenizers.Tokenizer(model)
    made.normalizer = normalizer or normalizers.Replace(" ", "▁")
    made.decoder = decoder
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    made.add_tokens([AddedToken("<tool call>", special=False, normalized=False)])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def llama() -> Tokenizer:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    prepended = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PublishedTokenizer(fallback(decoders.Sequence(steps), normalizer=prepended))


def gemma() -> Tokenizer:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return PublishedTokenizer(fallback(decoders.Sequence(steps)))


def metaspace(scheme: str) -> Callable[[], Tokenizer]:
    steps = [decoders.ByteFallback(), decoders.Metaspace("▁", scheme)]
    return lambda: PublishedTokenizer(fallback(decoders.Sequence(steps)))


def joined_by_spaces() -> Tokenizer:
    made: Any = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "": 2, "<unk>": 3}, unk_token="<unk>"))
    return PublishedTokenizer(made)


def word_piece(cleanup: bool) -> Callable[[], Tokenizer]:
    names = ["[UNK]", "[CLS]", "do", "##n", "n", "'", "##'", "##t", "t", ".", ",", "##.", "it", "s", "##s", "##", "#"]
    made: Any = tokenizers.Tokenizer(models.WordPiece({name: place for place, name in enumerate(names)}))
    made.decoder = decoders.WordPiece("##", cleanup)
    return lambda: PublishedTokenizer(made)


def collapsing() -> Tokenizer:
    names = ["<pad>", "|", "a", "b", "c", "<unk>"]
    made: Any = tokenizers.Tokenizer(models.WordLevel({name: at for at, name in enumerate(names)}, unk_token="<unk>"))
    made.decoder = decoders.CTC("<pad>", "|", False)
    return PublishedTokenizer(made)


def byte_pairs() -> Tokenizer:
    trained = BytePairTokenizer.train(TEXTS, 290, ["<s>", "</s>", "<é>"])
    trained._tokenizer.add_tokens(["<tool call>", "é"])
    return BytePairTokenizer(trained._tokenizer)


@cache
def sentence_pieces(kind: str, *, byte_tokens: bool = True) -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter([*TEXTS, "▁ a"]),
        model_writer=written,
        model_type=kind,
        vocab_size=340,
        byte_fallback=byte_tokens,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=3,
    )
    return written.getvalue()


MADE: Mapping[str, Callable[[], Tokenizer]] = {
    "bytes": ByteTokenizer,
    "byte pairs": byte_pairs,
    "llama": llama,
    "gemma": gemma,
    "metaspace always": metaspace("always"),
    "metaspace first": metaspace("first"),
    "metaspace never": metaspace("never"),
    "no decoder": joined_by_spaces,
    "word pieces": word_piece(False),
    "word pieces, cleaned up": word_piece(True),
    "collapsing": collapsing,
    "gpt1": lambda: EndOfWordBPE.train(TEXTS, 70),
    "gpt2": lambda: ByteLevelBPE.train(TEXTS, 280, ["<|endoftext|>", "<é>"]),
    "bert": lambda: WordPieceTokenizer.train(TEXTS, 50),
    "t5": lambda: SentencePieceTokenizer.train(TEXTS, 36, sentinels=3),
    "t5 as published": lambda: PublishedTokenizer(SentencePieceTokenizer.train(TEXTS, 36, sentinels=3).as_published()),
    "t5 with bytes": lambda: SentencePieceTokenizer(sentence_pieces("unigram"), 3),
}


@cache
def tokenizer_of(name: str) -> Tokenizer:
    return MADE[name]()


def draw_tokens(data: st.DataObject, tokenizer: Tokenizer) -> list[int]:
    """Draw a sequence of any tokens, runs of a few kinds among them, and texts."""
    token = st.integers(0, tokenizer.vocabulary - 1)
    few = st.lists(token, min_size=1, max_size=3).flatmap(lambda some: st.lists(st.sampled_from(some), max_size=60))
    texts = st.text("日😀é to\n�", max_size=20)
    parts = data.draw(st.lists(st.one_of(st.lists(token, max_size=4), few, texts), max_size=6))
    return [token for part in parts for token in (tokenizer.encode(part) if isinstance(part, str) else part)]


def pieces(tokenizer: Tokenizer, tokens: Sequence[int], prompt: Sequence[int] = ()) -> str:
    stream = TextStream(tokenizer, prompt=prompt)
    return "".join([stream.add(token) for token in tokens]) + stream.finish()


@pytest.mark.parametrize("name", MADE)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_pieces_joined_are_the_text_of_all(name: str, data: st.DataObject):
    tokenizer = tokenizer_of(name)
    tokens = draw_tokens(data, tokenizer)
    assert pieces(tokenizer, tokens) == tokenizer.decode(tokens)


@pytest.mark.parametrize("name", MADE)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_follows_a_prompt(name: str, data: st.DataObject):
    tokenizer = tokenizer_of(name)
    prompt, tokens = draw_tokens(data, tokenizer), draw_tokens(data, tokenizer)
    whole, before = tokenizer.decode([*prompt, *tokens]), tokenizer.decode(prompt)
    added = pieces(tokenizer, tokens, prompt)
    assert whole.endswith(added)
    kept = whole.removesuffix(added) if added else whole
    # What the prompt ends with may be the beginning of a character, which is then no part of it.
    assert kept == before or (
        before.startswith(kept)
        and len(before) - len(kept) <= 3
        and set(before[len(kept) :]) == {"\N{REPLACEMENT CHARACTER}"}
    )


@pytest.mark.parametrize("name", MADE)
def test_a_text_in_two(name: str):
    tokenizer = tokenizer_of(name)
    tokens = tokenizer.encode_prompt(TEXT if name not in ("no decoder", "collapsing") else "a")
    whole = tokenizer.decode(tokens)
    for cut in range(len(tokens) + 1):
        begun = tokenizer.decode(tokens[:cut])
        if not begun.endswith("\N{REPLACEMENT CHARACTER}"):
            assert begun + pieces(tokenizer, tokens[cut:], tokens[:cut]) == whole


@pytest.mark.parametrize("name", ["bytes", "byte pairs", "llama", "gpt2", "t5 with bytes"])
def test_a_character_comes_with_its_last_byte(name: str):
    tokenizer = tokenizer_of(name)
    stream = TextStream(tokenizer)
    for character in "日😀ü本a":
        *begun, last = tokenizer.encode(character)
        said = [stream.add(token) for token in begun]
        # A space may come before, as a token of its own.
        assert "".join(said).strip() == ""
        assert stream.add(last).endswith(character.strip())


@pytest.mark.parametrize("name", MADE)
def test_a_token_costs_the_same_in_a_long_text(name: str, monkeypatch: pytest.MonkeyPatch):
    tokenizer = tokenizer_of(name)
    decode, looked_at = tokenizer.decode, 0

    def counted(tokens: Sequence[int]) -> str:
        nonlocal looked_at
        looked_at += len(tokens)
        return decode(tokens)

    monkeypatch.setattr(tokenizer, "decode", counted)
    tokens = list(range(tokenizer.vocabulary)) * (1 + 2000 // tokenizer.vocabulary)
    stream = TextStream(tokenizer, prompt=tokens)
    for token in tokens:
        stream.add(token)
    assert looked_at / len(tokens) < 30


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_bytes_that_are_no_text_decode_as_the_reference_has_them(data: st.DataObject):
    reference: Any = sentencepiece.SentencePieceProcessor(model_proto=sentence_pieces("bpe"))
    names = [reference.id_to_piece(token) for token in range(reference.get_piece_size())]
    byte_tokens = [token for token in range(len(names)) if reference.is_byte(token)]
    ordinary = [token for token, name in enumerate(names) if name in ("e", "t", "n", "o")]
    model = models.BPE(vocab={name: token for token, name in enumerate(names)}, merges=[], byte_fallback=True)
    made: Any = tokenizers.Tokenizer(model)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokens = data.draw(st.lists(st.sampled_from([*byte_tokens, *ordinary * 8]), max_size=30))
    assert PublishedTokenizer(made).decode(tokens) == reference.decode(tokens)
    text = data.draw(st.text(max_size=5)).encode()
    cut = [byte_tokens[byte] for byte in text[data.draw(st.integers(0, 3)) :]]
    assert PublishedTokenizer(made).decode(cut) == reference.decode(cut)


def test_tokens_that_the_tokenizer_does_not_know_have_no_text():
    stream = TextStream(ByteTokenizer(), prompt=[300, 65])
    assert [stream.add(token) for token in (66, 256, 67)] == ["B", "", "C"]


@pytest.mark.parametrize(
    ("name", "beginning", "ending"), [("llama", [1], []), ("bert", [2], [3]), ("t5", [], [1]), ("gpt2", [], [])]
)
def test_prompts_begin_as_published_tokenizers_begin_texts(name: str, beginning: list[int], ending: list[int]):
    tokenizer = tokenizer_of(name)
    plain = tokenizer.encode("to be")
    assert tokenizer.encode_prompt("to be") == [*beginning, *plain]
    assert tokenizer.encode_with_special_tokens("to be") == [*beginning, *plain, *ending]
    named = tokenizer.decode(beginning) + "to be"
    assert tokenizer.encode_prompt(named) == [*beginning, *plain]
    assert tokenizer.encode_prompt("") == beginning


class Says(nn.Module):
    """A model that continues its first prompt by given tokens, and remembers what it was fed."""

    def __init__(self, tokenizer: Tokenizer, tokens: Sequence[int]):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.vocabulary, self.tokens = tokenizer.vocabulary, list(tokens)
        self.fed: list[list[int]] = []

    def forward(self, tokens: Tensor, *, present: Tensor | None = None, cache: Any = None) -> Tensor:
        said = nn.functional.one_hot(torch.tensor(self.tokens[len(self.fed)]), self.vocabulary).float() * 100
        self.fed.append(tokens[0].tolist())
        return said.expand(*tokens.shape, -1)

    def new_cache(self, limit: int | None = None, capacity: int = 64) -> Any:
        return type("Nothing", (), {"__len__": lambda self: 0})()


@pytest.mark.parametrize("name", ["llama", "metaspace first", "gemma", "byte pairs", "t5"])
@pytest.mark.parametrize("answer", [" world 日本😀", "\n  to be", "日"])
def test_generated_text_and_chats_lose_nothing_and_end_by_themselves(name: str, answer: str):
    tokenizer: Any = tokenizer_of(name)
    roles, end = dict(tokenizer.special_tokens_map), tokenizer.special_tokens["</s>"]
    tokens = tokenizer.encode_continuation(answer)
    prompt = tokenizer.encode_prompt("to be")
    added = tokenizer.decode([*prompt, *tokens]).removeprefix(tokenizer.decode(prompt))
    told: list[str] = []
    model: Any = Says(tokenizer, [*tokens, end, end])
    model.generation = GenerationConfig(eos_token_ids=(end,))
    options: dict[str, Any] = {"new_tokens": 30, "on_text": lambda row, piece: told.append(piece)}
    assert generate_text(model, tokenizer, ["to be"], **options) == [added] == ["".join(told)]
    assert model.fed[0] == prompt
    # The same end, where only the tokenizer states it.
    tokenizer.special_tokens_map = {"eos_token": "</s>"}
    assert generate_text(Says(tokenizer, [*tokens, end]), tokenizer, ["to be"], new_tokens=30) == [added]
    model = Says(tokenizer, [*tokens, end])
    model.chat_template = "{% for one in messages %}{{ eos_token }}{{ one.content }}{% endfor %}"
    chat = LocalChat(model, tokenizer)
    prompt = chat.template.encode([{"role": "user", "content": "to be"}])
    expected = tokenizer.decode([*prompt, *tokens]).removeprefix(tokenizer.decode(prompt))
    assert "".join(chat.reply([{"role": "user", "content": "to be"}], new_tokens=30)) == expected
    tokenizer.special_tokens_map = roles


@pytest.mark.parametrize("name", ["llama", "gemma", "metaspace always", "metaspace first", "metaspace never"])
def test_texts_between_special_tokens_are_encoded_as_the_reference_does(name: str, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    made: Any = tokenizer_of(name)
    published = made._tokenizer
    if name.startswith("metaspace"):
        published = fallback(published.decoder)
        published.normalizer = None
        published.pre_tokenizer = pre_tokenizers.Metaspace("▁", name.removeprefix("metaspace "), split=False)
    tokenizer = PublishedTokenizer(published)
    tokenizer.special_tokens_map = {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer.save(tmp_path)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for template in (
        "{{ bos_token }}{% for one in messages %}{{ one.content }}{{ eos_token }}{% endfor %}",
        "{% for one in messages %}{{ one.content }}</s> {% endfor %}be",
    ):
        reference.chat_template = template
        for said in (("to be", " to"), ("be", "\nor", "to  be"), ("日", "")):
            talk = [{"role": "user", "content": text} for text in said]
            expected = reference.apply_chat_template(talk, return_dict=False)
            assert ChatTemplate(template, tokenizer).encode(talk, answering=False) == expected
    assert tokenizer.encode_prompt("to be") == reference.encode("to be")
    assert tokenizer.decode(reference.encode("to be")) == reference.decode(reference.encode("to be"))


@pytest.mark.parametrize("name", ["bytes", "byte pairs", "llama", "gemma", "gpt2"])
def test_a_text_that_goes_on_gets_no_space(name: str):
    tokenizer = tokenizer_of(name)
    for first, later in (("to be", " to be"), ("to", "\nbe"), ("to be", "日 to")):
        assert tokenizer.decode([*tokenizer.encode(first), *tokenizer.encode_continuation(later)]) == first + later
