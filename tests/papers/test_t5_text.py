"""T5's vocabulary against two other libraries, and tasks as text."""

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import T5Tokenizer

import allyouneed
from allyouneed.data import novels
from allyouneed.data.tasks import Example, Task
from allyouneed.hub import open_model
from allyouneed.papers.t5 import (
    STRUCTURES,
    T5,
    Pair,
    SentencePieceTokenizer,
    T5Config,
    as_pairs,
    as_text,
    check_labels,
    exact_match,
    number_as_text,
    text_as_number,
    write_answers,
)
from allyouneed.text import Tokenizer

TEXT = novels("train")[0][:60_000] + "\n1234567890 +−= Ünï % ﬁ"
TOKENIZER = SentencePieceTokenizer.train([TEXT], 300, sentinels=10)
LIBRARY: Any = sentencepiece.SentencePieceProcessor(model_proto=TOKENIZER._content)
PUBLISHED: tokenizers.Tokenizer = TOKENIZER.as_published()
LETTERS = "".join(sorted({character for character in TEXT if not character.isspace()}))
KIND = Task(
    "kind",
    "",
    ("long", "longer"),
    (Example("a house", ("long",), ("long", "longer")), Example("the sea", ("longer", "long"), ("long", "longer"))),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    TOKENIZER.save(tmp_path)
    return tmp_path


class TestVocabulary:
    def test_is_pieces_then_sentinels(self) -> None:
        assert isinstance(TOKENIZER, Tokenizer)
        assert TOKENIZER.vocabulary == 300
        assert TOKENIZER.sentinels == tuple(range(299, 289, -1))
        assert TOKENIZER.special_tokens["<extra_id_0>"] == 299 and TOKENIZER.special_tokens["<extra_id_9>"] == 290
        assert (TOKENIZER.padding, TOKENIZER.end, TOKENIZER.unknown) == (0, 1, 2)

    def test_the_same_text_gives_the_same_pieces(self, folder: Path) -> None:
        again = SentencePieceTokenizer.train([TEXT], 300, sentinels=10)
        again.save(folder / "again")
        assert (folder / "again" / "spiece.model").read_bytes() == (folder / "spiece.model").read_bytes()

    def test_a_long_line_is_learned_from(self) -> None:
        """The library's own trainer leaves lines above some length out."""
        line = " ".join(["zyzzyva"] * 3000)
        found = SentencePieceTokenizer.train([line], 10, sentinels=1)
        assert len(found.encode("zyzzyva")) == 1

    @pytest.mark.parametrize(
        ("texts", "vocabulary", "sentinels", "message"),
        [
            ("abc", 50, 5, "one string of 3 characters"),
            ([], 50, 5, "there is no text"),
            (["  ", "\n"], 50, 5, "there is no text"),
            (["abc abd"], 8, 5, "has no room for pieces beside 3 special tokens and 5 sentinels"),
            (["abc abd"], 5000, 5, "no vocabulary of 5000 tokens, 5 sentinels"),
            ([LETTERS], 40, 5, "no vocabulary of 40 tokens"),
            (["a\ud800"], 50, 5, r"character 1 of the text, '\\ud800'"),
        ],
    )
    def test_bad_input_is_refused(self, texts: Any, vocabulary: int, sentinels: int, message: str) -> None:
        # A type checker at run time refuses one string for texts before the method does.
        error = Exception if isinstance(texts, str) else ValueError
        with pytest.raises(error, match=None if isinstance(texts, str) else message):
            SentencePieceTokenizer.train(texts, vocabulary, sentinels)


class TestEncoding:
    @given(st.text(LETTERS + "  \n▁☕<>/s", max_size=60))
    def test_equals_the_library_and_hugging_faces(self, text: str) -> None:
        """SentencePiece's own ids, and those of the model's pieces in another implementation of unigram models."""
        assert TOKENIZER.encode(text) == LIBRARY.encode(text)
        if "▁" not in text:
            # What stands for a space, in a text, they take for different things.
            assert PUBLISHED.encode(text, add_special_tokens=False).ids == TOKENIZER.encode(text)

    @given(st.lists(st.text(LETTERS, min_size=1, max_size=8), min_size=1, max_size=8))
    def test_text_comes_back_normalised(self, words: list[str]) -> None:
        text = "  ".join(words)
        back = TOKENIZER.decode(TOKENIZER.encode(text))
        assert back == LIBRARY.normalize(text).replace("▁", " ").strip()
        assert TOKENIZER.decode(TOKENIZER.encode(back)) == back

    def test_names_of_special_tokens_in_text_are_text(self) -> None:
        special = set(TOKENIZER.special_tokens.values()) - {TOKENIZER.unknown}
        for text in ("<extra_id_0>", "a </s> b", "<pad><unk>"):
            assert special.isdisjoint(TOKENIZER.encode(text))

    def test_special_tokens_are_named(self) -> None:
        tokens = [*TOKENIZER.encode("it was"), 299, *TOKENIZER.encode("the house"), 298, 1, 0]
        assert TOKENIZER.decode(tokens) == "it was<extra_id_0> the house<extra_id_1></s><pad>"
        assert TOKENIZER.decode([]) == ""

    def test_long_texts_line_by_line(self) -> None:
        part = TEXT[:5000]
        assert TOKENIZER.encode_to_tensor(part).tolist() == [
            token for line in part.splitlines() for token in TOKENIZER.encode(line)
        ]
        assert TOKENIZER.encode_to_tensor("").shape == (0,)

    @pytest.mark.parametrize("token", [-1, 300])
    def test_tokens_outside_are_refused(self, token: int) -> None:
        with pytest.raises(ValueError, match=f"token {token} is not in the vocabulary: ids are 0 to 299"):
            TOKENIZER.decode([5, token])

    def test_what_cannot_be_spelled_is_refused(self) -> None:
        assert TOKENIZER.spell("house") == TOKENIZER.encode("house")
        with pytest.raises(ValueError, match=r"cannot spell 'a☕b☂': it has no piece for '☂', '☕'"):
            TOKENIZER.spell("a☕b☂")
        with pytest.raises(ValueError, match="'  ' has no tokens"):
            TOKENIZER.spell("  ")


class TestFiles:
    def test_come_back(self, folder: Path) -> None:
        again = SentencePieceTokenizer.load(folder)
        assert again.special_tokens == TOKENIZER.special_tokens
        assert again.encode(TEXT[:2000]) == TOKENIZER.encode(TEXT[:2000])

    def test_are_read_by_transformers(self, folder: Path) -> None:
        theirs = T5Tokenizer.from_pretrained(folder)
        for text in ("It was a house.", " two  spaces ", "Ünï % ﬁ 12"):
            assert theirs(text).input_ids == [*TOKENIZER.encode(text), TOKENIZER.end]
        assert theirs.convert_tokens_to_ids("<extra_id_3>") == TOKENIZER.sentinels[3]
        assert theirs.decode(TOKENIZER.encode("the house was long")) == "the house was long"

    def test_a_model_brings_its_tokenizer(self, folder: Path) -> None:
        sizes = T5Config(vocabulary=300, width=8, head_width=4, hidden=8, layers=1, heads=2)
        T5(sizes).save_pretrained(folder, TOKENIZER)
        found = T5.read_tokenizer(open_model(folder))
        assert isinstance(found, SentencePieceTokenizer)
        assert found.sentinels == TOKENIZER.sentinels
        (folder / "spiece.model").unlink()
        other = T5.read_tokenizer(open_model(folder))
        assert other.encode("the house") == TOKENIZER.encode("the house")

    def test_published_models_have_a_hundred_sentinels(self, folder: Path) -> None:
        (folder / "tokenizer_config.json").unlink()
        assert SentencePieceTokenizer.load(folder).vocabulary == 290 + 100

    def test_damaged_ones_are_refused(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"spiece.model is missing"):
            SentencePieceTokenizer.load(tmp_path / "nowhere")
        (folder / "tokenizer_config.json").write_text('{"extra_ids": -3}')
        with pytest.raises(ValueError, match=r"spiece.model: sentinels is -3"):
            SentencePieceTokenizer.load(folder)
        (folder / "tokenizer_config.json").unlink()
        (folder / "spiece.model").write_bytes(b"nothing of the kind")
        with pytest.raises(ValueError, match="these 19 bytes are no SentencePiece model"):
            SentencePieceTokenizer.load(folder)

    def test_models_with_other_special_pieces_are_refused(self, tmp_path: Path) -> None:
        prefix = str(tmp_path / "other")
        (tmp_path / "text").write_text("a house is a house " * 20)
        sentencepiece.SentencePieceTrainer.train(  # pyright: ignore
            input=str(tmp_path / "text"), model_prefix=prefix, vocab_size=12, minloglevel=3
        )
        with pytest.raises(ValueError, match=r"begin with \('<unk>', '<s>', '</s>'\); they must begin with"):
            SentencePieceTokenizer(Path(f"{prefix}.model").read_bytes())


class TestTasks:
    def test_inputs_as_the_paper_writes_them(self) -> None:
        """Section 2.4 and Figure 1."""
        assert as_text("translate English to German", text="That is good.") == (
            "translate English to German: That is good."
        )
        assert as_text("mnli", premise="I hate pigeons.", hypothesis="My feelings towards pigeons are hate.") == (
            "mnli premise: I hate pigeons. hypothesis: My feelings towards pigeons are hate."
        )
        with pytest.raises(ValueError, match="'mnli' was given nothing"):
            as_text("mnli")

    def test_similarities_are_one_of_21_strings(self) -> None:
        assert number_as_text(2.57) == "2.6" and text_as_number("2.6") == 2.6
        found = {number_as_text(1 + place / 1000) for place in range(4001)}
        assert len(found) == 21 and all(1 <= text_as_number(text) <= 5 for text in found)  # pyright: ignore
        assert [text_as_number(text) for text in ("5.2", "hamburger", "", "nan")] == [None] * 4
        for score in (0.9, 5.1, float("nan")):
            with pytest.raises(ValueError, match=f"score {score} is out of range"):
                number_as_text(score)

    def test_labels_may_share_their_first_token_but_not_all(self) -> None:
        spelled = check_labels(["long", "longer"], TOKENIZER)
        assert spelled["long"][0] == spelled["longer"][0] and spelled["long"] != spelled["longer"]
        with pytest.raises(ValueError, match="the labels 'long' and 'long ' have the same tokens"):
            check_labels(["long", "house", "long "], TOKENIZER)
        with pytest.raises(ValueError, match="cannot spell 'no☕'"):
            check_labels(["yes", "no☕"], TOKENIZER)
        with pytest.raises(ValueError, match="no labels"):
            check_labels([], TOKENIZER)

    def test_examples_become_pairs(self) -> None:
        pairs = as_pairs(KIND, TOKENIZER)
        assert [TOKENIZER.decode(pair.source) for pair in pairs] == ["kind: a house", "kind: the sea"]
        assert [TOKENIZER.decode(pair.target) for pair in pairs] == ["long", "longer"]
        assert [len(pair.source) for pair in as_pairs(KIND, TOKENIZER, longest=5)] == [4, 4]
        with pytest.raises(ValueError, match="kind has no examples"):
            as_pairs(Task("kind", "", (), ()), TOKENIZER)
        with pytest.raises(ValueError, match="have the same tokens"):
            as_pairs(Task("kind", "", ("long", " long"), KIND.examples), TOKENIZER)

    def test_an_answer_is_right_as_a_whole(self) -> None:
        assert exact_match(["long", "longer"], KIND, TOKENIZER) == 1.0
        assert exact_match(["longer", "long"], KIND, TOKENIZER) == 0.5, "the second has two right answers"
        assert exact_match(["hamburger", "longe"], KIND, TOKENIZER) == 0.0
        with pytest.raises(ValueError, match="1 answers to the 2 examples of kind"):
            exact_match(["long"], KIND, TOKENIZER)
        # Answers are compared as the vocabulary gives them back.
        spaced = Task("kind", "", (), (Example("", ("the  sea ",)),))
        assert exact_match(["the sea"], spaced, TOKENIZER) == 1.0

    @pytest.mark.parametrize("structure", STRUCTURES)
    def test_a_model_answers_what_it_was_taught(self, structure: str) -> None:
        torch.manual_seed(0)
        sizes = T5Config(vocabulary=300, width=16, head_width=8, hidden=32, layers=1, heads=2, dropout=0.0)
        model: Any = STRUCTURES[structure](sizes)
        pairs = [Pair(TOKENIZER.encode(text), TOKENIZER.encode(answer)) for text, answer in TAUGHT.items()]
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
        for _ in range(40):
            loss = torch.zeros(())
            for source, target in pairs:
                logits = model(torch.tensor([[*source, 1]]), torch.tensor([[0, *target]]))[0]
                loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor([*target, 1]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for beam in (1, 3):
            written = write_answers(model, TOKENIZER, [pair.source for pair in pairs], limit=12, beam=beam)
            assert written == list(TAUGHT.values())


TAUGHT = {"a house": "long", "the sea": "longer than a house"}


def test_the_roof_finds_the_room(tmp_path: Path) -> None:
    sizes = T5Config(vocabulary=320, width=8, head_width=4, hidden=8, layers=1, heads=2)
    T5(sizes).save_pretrained(tmp_path, TOKENIZER)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "t5"
    model, tokenizer = allyouneed.load(tmp_path)
    assert isinstance(model, T5) and isinstance(tokenizer, SentencePieceTokenizer)
