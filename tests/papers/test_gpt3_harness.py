"""The few-shot harness: prompts that fit, options scored as by hand, free answers, and bad input."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors
from torch import Tensor, nn

from allyouneed.data import fetch, is_present
from allyouneed.data.tasks import Example
from allyouneed.hub import open_model
from allyouneed.nn import KeyValueCache
from allyouneed.papers.gpt2 import ByteLevelBPE
from allyouneed.papers.gpt3 import (
    GPT3,
    GPT3Config,
    Layout,
    OptionScores,
    Prompt,
    accuracy,
    assemble,
    draw,
    exact_match,
    f1,
    longest,
    plain,
    score_options,
    score_tokens,
    write_answers,
)
from allyouneed.papers.readers import load_model
from allyouneed.text import (
    ByteTokenizer,
    GenerationConfig,
    PublishedTokenizer,
    Sampling,
    SpecialTokensMixin,
    Tokenizer,
    generate,
    scoring,
)

STANDINS = Path(__file__).parents[1] / "standins"
BYTES = ByteTokenizer()
SUNS = [Example(f"the sun of day {day}", (f"is {'hot' * (day % 3 + 1)}",)) for day in range(30)]


class Words(SpecialTokensMixin):
    """A tokenizer of seven tokens, for a case that can be reckoned by hand."""

    pieces = ("Q: the sun", "\nA:", " hot", " dog", " cold", "Answer:", ".")
    special_tokens: ClassVar[dict[str, int]] = {}
    vocabulary = 7

    def encode(self, text: str) -> list[int]:
        tokens = []
        while text:
            token = next(token for token, piece in enumerate(self.pieces) if text.startswith(piece))
            tokens.append(token)
            text = text.removeprefix(self.pieces[token])
        return tokens

    def encode_to_tensor(self, text: str) -> Tensor:
        return torch.tensor(self.encode(text))

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.pieces[token] for token in tokens)

    def save(self, folder: Path | str) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path | str) -> "Words":
        raise NotImplementedError


class Nothing:
    """The cache of a model that remembers nothing but counts."""

    def __init__(self, length: int = 0):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def branch(self, rows: Sequence[int]) -> "Nothing":
        return Nothing(self.length)

    def truncate(self, length: int) -> None:
        assert length <= self.length
        self.length = length


class Bigrams(nn.Module):
    """Gives the probabilities of the next token by the last one, from a table."""

    def __init__(self, table: dict[int, dict[int, float]]):
        super().__init__()
        self.table = torch.full((7, 7), 1e-9, dtype=torch.float64)
        for before, after in table.items():
            for token, probability in after.items():
                self.table[before, token] = probability
            self.table[before, 6] = 1 - sum(after.values())

    def forward(self, tokens: Tensor, *, present: Tensor | None = None, cache: Any = None) -> Tensor:
        cache.length += tokens.shape[1]
        return self.table.log()[tokens]

    def new_cache(self, limit: int | None = None, capacity: int = 64) -> Nothing:
        return Nothing()


class TestACaseByHand:
    """P(hot | A:) = 1/2, P(cold | A:) = 1/4, P(dog | hot) = 1/4; after "Answer:" hot has 1/8 and cold 1/2.

    So ln P of hot is −0.6931, of cold −1.3863, of "hot dog" ln 1/8 = −2.0794, or −1.0397 a token. Over what they have
    after "Answer:", hot gains ln 4 = 1.3863, cold loses ln 2 = 0.6931, and hot dog gains ln 4 as well.
    """

    model = Bigrams({1: {2: 0.5, 4: 0.25}, 2: {3: 0.25}, 5: {2: 0.125, 4: 0.5}})
    question = Example("the sun", ("cold",), ("hot", "cold", "hot dog"))

    def scores(self, **options: Any) -> OptionScores:
        prompt = Prompt("", (), (), (), Layout())
        (scored,) = score_options(self.model, Words(), prompt, [self.question], **options)
        return scored

    def test_all_three_normalisations(self):
        scored = self.scores(unconditional=True)
        assert [round(score, 4) for score in scored.scores("total")] == [-0.6931, -1.3863, -2.0794]
        assert [round(score, 4) for score in scored.scores("per_token")] == [-0.6931, -1.3863, -1.0397]
        assert [round(score, 4) for score in scored.scores("unconditional")] == [1.3863, -0.6931, 1.3863]
        assert scored.lengths == (1, 1, 2)

    def test_the_first_of_equals_is_chosen(self):
        scored = OptionScores((-1.0, -0.5, -0.5), (1, 1, 1))
        assert scored.choice("total") == 1

    def test_normalisations_choose_differently(self):
        """Short options win by their sum, likely ones by their mean, and surprising ones by what they gain."""
        scored = OptionScores((-2.0, -3.0, -2.5), (1, 3, 1), (-1.0, -2.5, -4.0))
        assert [scored.choice(name) for name in ("total", "per_token", "unconditional")] == [0, 1, 2]

    def test_what_was_not_asked_for_is_not_there(self):
        with pytest.raises(ValueError, match="score with `unconditional=True`"):
            self.scores().scores("unconditional")
        with pytest.raises(Exception, match="mean"):
            self.scores().scores("mean")  # pyright: ignore[reportArgumentType]

    def test_accuracy_counts_any_right_answer(self):
        scored = [OptionScores((0.0, -1.0), (1, 1))] * 3
        asked = [
            Example("?", ("a",), ("a", "b")),
            Example("?", ("b",), ("a", "b")),
            Example("?", ("b", "a"), ("a", "b")),
        ]
        assert accuracy(scored, asked, "total") == pytest.approx(2 / 3)
        for wrong in ([], scored[:2]):
            with pytest.raises(ValueError, match="there must be as many, and at least one"):
                accuracy(wrong, asked[: 3 * bool(wrong)], "total")


def model(**changes: Any) -> GPT3:
    torch.manual_seed(0)
    numbers: dict[str, Any] = {"vocabulary": 256, "positions": 300, "width": 16, "layers": 3, "heads": 4, "band": 5}
    made = GPT3(GPT3Config(**numbers | changes))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return made.double().eval()


def whole(reader: Any, context: list[int], option: list[int]) -> float:
    """Score an option by reading prompt, question and option whole, alone, without a cache."""
    tokens = torch.tensor([[*context, *option]])
    with torch.no_grad():
        chances = reader(tokens)[0].log_softmax(-1)
    places = range(len(context) - 1, len(context) + len(option) - 1)
    return sum(float(chances[place, tokens[0, place + 1]]) for place in places)


class Counting(nn.Module):
    """A model that counts the tokens it is given."""

    def __init__(self, inner: GPT3):
        super().__init__()
        self.inner = inner
        self.fed: list[tuple[int, ...]] = []

    def forward(self, tokens: Tensor, *, present: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        self.fed.append(tuple(tokens.shape))
        return self.inner(tokens, present=present, cache=cache)

    def new_cache(self, limit: int | None = None, capacity: int = 64) -> KeyValueCache:
        return self.inner.new_cache(limit, capacity)


QUESTIONS = [
    Example("one", ("yes",), ("yes", "no")),
    Example("a longer question", ("no",), ("yes", "no", "yesterday", "y")),
    Example("two", ("b",), ("alpha", "b")),
    Example("x", ("same start",), ("same", "same start", "same end")),
]


class TestSentencePieces:
    """Tokenizers that put a space before the first word and a token before all: once, and not before each part."""

    def tokenizer(self) -> PublishedTokenizer:
        names = ["<s>", "▁", *"Q:thesunofday0123456789A\niscldwr?"]
        ids = {name: place for place, name in enumerate(dict.fromkeys(names))}
        made: Any = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=[]))
        made.add_special_tokens(["<s>"])
        made.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always", split=False)
        made.decoder = decoders.Metaspace("▁", "always")
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        return PublishedTokenizer(made)

    @pytest.mark.parametrize("shots", [0, 1, 3])
    def test_parts_have_the_tokens_of_the_whole(self, shots: int):
        tokenizer = self.tokenizer()
        prompt = assemble(tokenizer, SUNS[:shots])
        assert list(prompt.tokens) == tokenizer.encode_prompt(prompt.text)[: None if shots else 1]
        parts = [*prompt.tokens, *prompt.encode_question(tokenizer, "the sun?"), *tokenizer.encode_continuation(" hot")]
        assert parts == tokenizer.encode_prompt(prompt.text + prompt.question("the sun?") + " hot")

    def test_what_begins_a_text_is_scored_with_it(self):
        tokenizer, reader = self.tokenizer(), model()
        one = Example("the sun", ("hot",), ("hot", "cold"))
        prompt = assemble(tokenizer, SUNS[:2])
        [found] = score_options(reader, tokenizer, prompt, [one], unconditional=True)
        context = tokenizer.encode_prompt(prompt.text + prompt.question("the sun"))
        options = [tokenizer.encode_continuation(" hot"), tokenizer.encode_continuation(" cold")]
        assert found.log_likelihoods == pytest.approx([whole(reader, context, option) for option in options], rel=1e-10)
        alone = [whole(reader, tokenizer.encode_prompt("Answer:"), option) for option in options]
        assert found.unconditional == pytest.approx(alone, rel=1e-10)


class TestScoring:
    @pytest.mark.parametrize("shots", [0, 3])
    @pytest.mark.parametrize("start", [(), (7,)])
    def test_equals_reading_every_option_whole(self, shots: int, start: tuple[int, ...]):
        reader = model()
        prompt = assemble(BYTES, SUNS[:shots], start=start)
        scored = score_options(reader, BYTES, prompt, QUESTIONS, unconditional=True, start=start)
        for one, found in zip(QUESTIONS, scored, strict=True):
            context = [*prompt.tokens, *BYTES.encode(prompt.question(one.text))]
            options = [BYTES.encode(f" {option}") for option in one.options]
            assert found.log_likelihoods == pytest.approx([whole(reader, context, o) for o in options], rel=1e-10)
            alone = [whole(reader, [*start, *BYTES.encode("Answer:")], option) for option in options]
            assert found.unconditional == pytest.approx(alone, rel=1e-10)
            assert found.lengths == tuple(map(len, options))

    def test_equals_reading_whole_with_rotary_positions_and_shared_heads(self, monkeypatch: pytest.MonkeyPatch):
        """The stand-in for SmolLM2, with its own tokenizer."""
        monkeypatch.setenv("ALLYOUNEED_STANDINS", str(STANDINS))
        reader, tokenizer = load_model("smollm2-135m-instruct", dtype=torch.float64)
        prompt = assemble(tokenizer, SUNS[:2], start=(0,))
        scored = score_options(reader, tokenizer, prompt, QUESTIONS)
        for one, found in zip(QUESTIONS, scored, strict=True):
            context = [*prompt.tokens, *tokenizer.encode(prompt.question(one.text))]
            options = [tokenizer.encode(f" {option}") for option in one.options]
            assert found.log_likelihoods == pytest.approx([whole(reader, context, o) for o in options], rel=1e-9)

    def test_does_not_depend_on_how_many_go_together(self, monkeypatch: pytest.MonkeyPatch):
        reader, prompt = model(), assemble(BYTES, SUNS[:2])
        expected = score_options(reader, BYTES, prompt, QUESTIONS)
        for tokens, keys in ((1, 10_000), (60, 10_000), (1000, 1), (1000, 250)):
            monkeypatch.setattr(scoring, "_TOKENS_AT_A_TIME", tokens)
            monkeypatch.setattr(scoring, "_KEYS_AT_A_TIME", keys)
            again = score_options(reader, BYTES, prompt, QUESTIONS)
            for one, other in zip(expected, again, strict=True):
                assert one.log_likelihoods == pytest.approx(other.log_likelihoods, rel=1e-10)

    def test_the_same_call_gives_the_same_scores(self):
        reader, prompt = model().float(), assemble(BYTES, SUNS[:2])
        first, second = (score_options(reader, BYTES, prompt, QUESTIONS, unconditional=True) for _ in range(2))
        assert first == second

    def test_a_prompt_is_computed_once_and_a_question_once_for_all_its_options(self):
        reader = Counting(model())
        prompt = assemble(BYTES, SUNS[:3])
        questions = [Example(f"number {number}", ("b",), ("abc", "abd", "b")) for number in range(8)]
        score_options(reader, BYTES, prompt, questions)
        each = len(BYTES.encode(prompt.question(questions[0].text)))
        # " abc" without its last token is 3, " b" only its first: what is left is padded to the longest.
        assert reader.fed == [(1, len(prompt.tokens)), (8, each), (24, 3)]

    def test_a_model_that_is_trained_is_scored_without_dropout(self):
        reader, prompt = model(residual_dropout=0.5), assemble(BYTES, SUNS[:1])
        expected = score_options(reader, BYTES, prompt, QUESTIONS)
        reader.train()
        assert score_options(reader, BYTES, prompt, QUESTIONS) == expected
        assert reader.training

    def test_options_that_begin_alike_are_told_apart(self):
        """By the first token alone they would tie; whole, each has its own likelihood, and that of what follows."""
        reader = model()
        prompt = assemble(BYTES, [])
        (given,) = score_options(reader, BYTES, prompt, [Example("x", ("no",), ("no", "none", "nothing"))])
        assert len(set(given.log_likelihoods)) == 3
        # An option that goes on from another cannot be likelier in total.
        assert given.log_likelihoods[0] > given.log_likelihoods[1]

    def test_16_bits_are_enough_to_read_and_not_to_sum(self):
        reader = model().bfloat16()
        scores = score_tokens(reader, [1, 2], [[3, 4]], [[[5], [6, 7]]])
        exact = score_tokens(model(), [1, 2], [[3, 4]], [[[5], [6, 7]]])
        assert scores[0] == pytest.approx(exact[0], rel=0.05)

    @pytest.mark.parametrize(
        ("question", "message"),
        [
            (Example("why", ("x",)), "the question 'why' has 0 options: to choose there must be at least two"),
            (Example("why", ("x",), ("x",)), "has 1 options"),
            (Example("why", ("x",), ("x", " ")), "the question 'why' has the option ' ': each must say something"),
            (Example("why", ("x",), ("x", "y", "x")), "has the option 'x' twice: nothing could tell them apart"),
            (Example("why", ("x",), ("x", " x ")), "has the option 'x' twice"),
            (Example("w" * 300, ("x",), ("x", "y")), "has 307 tokens with its longest option and the prompt before it"),
            (Example("w", ("x",), ("x", "y" * 300)), "more than the model's context of 300"),
        ],
    )
    def test_bad_questions_are_refused(self, question: Example, message: str):
        prompt = assemble(BYTES, [])
        with pytest.raises(ValueError, match=message):
            score_options(model(), BYTES, prompt, [QUESTIONS[0], question])

    def test_the_longest_that_fits_is_scored(self):
        # "Q: ", "\nA:" and the space take 7 tokens; the option's last one is not read.
        fitting = Example("w" * 293, ("x",), ("x", "y"))
        (given,) = score_options(model(), BYTES, assemble(BYTES, []), [fitting])
        assert all(map(math.isfinite, given.log_likelihoods))


class TestPrompts:
    def test_reads_as_in_the_paper(self):
        examples = [Example("What is 48 plus 76?", ("124",)), Example(" What is 2 plus 2? ", ("4 ", "four"))]
        prompt = assemble(BYTES, examples, instruction="Add.\n")
        assert prompt.text == "Add.\n\nQ: What is 48 plus 76?\nA: 124\n\nQ: What is 2 plus 2?\nA: 4"
        assert prompt.question("What is 1 plus 1?") == "\n\nQ: What is 1 plus 1?\nA:"
        assert assemble(BYTES, []).question("Who?") == "Q: Who?\nA:"
        scrambled = assemble(BYTES, [Example("taec", ("cate",))], layout=Layout("", " =", "\n"))
        assert scrambled.text + scrambled.question("lyinevitab") == "taec = cate\nlyinevitab ="

    @pytest.mark.parametrize("which", ["published", "trained", "stand-in"])
    def test_tokens_are_those_of_the_whole_text(self, which: str, monkeypatch: pytest.MonkeyPatch):
        """Parts are encoded one by one, and begin where a byte-level tokenizer cuts in any case."""
        texts = ["Where?", "(Answer: five).", "don't", "3.5 = x", "naïve\n two", "end with a colon:", "e.g. \t this…"]
        examples = [Example(text, (answer,)) for text, answer in zip(texts, reversed(texts), strict=True)]
        tokenizer: Tokenizer
        if which == "published":
            if not is_present("gpt2-vocabulary"):
                pytest.skip("the asset gpt2-vocabulary is not in the cache: `allyouneed fetch gpt2-vocabulary`")
            tokenizer = ByteLevelBPE.load(fetch("gpt2-vocabulary"))
        elif which == "trained":
            tokenizer = ByteLevelBPE.train(["\n\nQ: the one.\nA: two words\n" * 9 + " ".join(texts) * 3], 300)
        else:
            monkeypatch.setenv("ALLYOUNEED_STANDINS", str(STANDINS))
            tokenizer = open_model("smollm2-135m-instruct").tokenizer()
        for layout in (Layout(), Layout("", " =", "\n"), Layout("Review: ", "\nSentiment:", "\n")):
            prompt = assemble(tokenizer, examples, instruction="Do it:", layout=layout)
            question, answer = prompt.question(texts[1]), layout.answer(texts[2])
            parts = [*prompt.tokens, *tokenizer.encode(question), *tokenizer.encode(answer)]
            assert parts == tokenizer.encode(prompt.text + question + answer)

    @settings(max_examples=60)
    @given(
        context=st.integers(40, 400), shots=st.integers(0, 12), instruction=st.sampled_from(["", "Say how hot it is."])
    )
    def test_never_exceed_the_context_and_say_what_was_dropped(self, context: int, shots: int, instruction: str):
        questions = [Example("the moon", ("cold",), ("cold", "warm"))]
        examples = draw(SUNS, shots, seed=1)
        reserved = longest(BYTES, questions, Layout())
        prompt = assemble(
            BYTES, examples, instruction=instruction, context=context + 40, reserved=reserved, start=(1, 2)
        )
        used = len(prompt.tokens) + len(BYTES.encode(prompt.question("the moon") + " cold"))
        assert used <= context + 40
        assert prompt.examples + prompt.dropped == examples
        if prompt.dropped:
            one = prompt.dropped[0]
            assert used + len(BYTES.encode(f"\n\nQ: {one.text}\nA: {one.answers[0]}")) > context + 40
        assert prompt.tokens == (1, 2, *BYTES.encode(prompt.text))

    def test_without_a_context_nothing_is_dropped(self):
        assert len(assemble(BYTES, SUNS).examples) == len(SUNS)

    def test_draws_are_of_the_seed_alone_and_grow_at_the_end(self):
        few, many = draw(SUNS, 4, seed=3), draw(SUNS, 16, seed=3)
        assert many[:4] == few and len(set(many)) == 16
        assert draw(SUNS, 4, seed=4) != few
        assert draw(SUNS, 0, seed=0) == ()
        assert set(draw(SUNS, 30, seed=0)) == set(SUNS)

    def test_what_is_kept_free_is_enough_for_the_longest(self):
        layout = Layout()
        questions = [Example("a", ("x",), ("x" * 40, "y")), Example("a" * 30, ("x",), ("x", "yy"))]
        assert longest(BYTES, questions, layout) == len("\n\nQ: a\nA: ") + 40
        assert longest(BYTES, questions, layout, new_tokens=99) == len("\n\nQ: \nA:") + 30 + 99

    def test_bad_input_is_refused(self):
        huge = Example("w" * 200, ("x",))
        for call, message in (
            (lambda: draw([], 1, 0), "1 examples cannot be drawn from the training set: it is empty"),
            (lambda: draw(SUNS, 31, 0), "31 examples cannot be drawn from the training set: it has 30"),
            (lambda: draw(SUNS, -1, 0), "neither may be below 0"),
            (lambda: assemble(BYTES, [SUNS[0], huge], context=150), "has 210 tokens, more than the context of 150"),
            (lambda: assemble(BYTES, [huge], context=209, start=(1, 2)), "fits into no prompt"),
            (lambda: assemble(BYTES, [], context=20, reserved=21), "need 21 tokens .* more than the context of 20"),
            (lambda: assemble(BYTES, [], instruction="w" * 30, context=20), "shorten the instruction"),
            (lambda: assemble(BYTES, [Example("a", ())]), "the example 'a' has no answer to be shown"),
            (lambda: longest(BYTES, [], Layout()), "there are no questions"),
        ):
            with pytest.raises(ValueError, match=message):
                call()


class TestAnswers:
    def test_equal_those_to_each_prompt_alone(self):
        reader = model()
        prompt = assemble(BYTES, SUNS[:3])
        questions = ["one", "a longer question", "two", "x", "six"]
        written = write_answers(reader, BYTES, prompt, questions, new_tokens=12, stop=("e",))
        for text, answer in zip(questions, written, strict=True):
            tokens = [*prompt.tokens, *BYTES.encode(prompt.question(text))]
            (alone,) = generate(reader, [tokens], new_tokens=12, sampling=Sampling.greedy())
            assert answer == BYTES.decode(alone).partition("e")[0].strip()

    def test_end_with_their_line(self):
        # After "A:" comes "hot", then "dog", then a new line and "A:" again.
        reader = Bigrams({1: {2: 0.9}, 2: {3: 0.9}, 3: {1: 0.9}})
        for shared in ((), (0, 1)):
            prompt = Prompt("", shared, (), (), Layout())
            assert write_answers(reader, Words(), prompt, ["the sun"] * 3, new_tokens=9) == ["hot dog"] * 3
        assert write_answers(reader, Words(), prompt, ["the sun"], new_tokens=1) == ["hot"]

    def test_end_at_the_tokens_that_end_a_text(self):
        """Those that the model's checkpoint or its tokenizer states: neither they nor what follows is in an answer."""

        class Ended(Words):
            special_tokens: ClassVar[dict[str, int]] = {" dog": 3}
            eos_token_ids = (3,)

        # After "A:" comes "hot", then "dog", then "cold" for ever.
        table = {1: {2: 0.9}, 2: {3: 0.9}, 3: {4: 0.9}, 4: {4: 0.9}}
        prompt = Prompt("", (), (), (), Layout())
        stated = Bigrams(table)
        stated.generation = GenerationConfig(eos_token_ids=(4,))
        for reader, tokenizer, answer in (
            (Bigrams(table), Words(), "hot dog cold cold"),
            (Bigrams(table), Ended(), "hot"),
            (stated, Words(), "hot dog"),
            (stated, Ended(), "hot"),
        ):
            assert write_answers(reader, tokenizer, prompt, ["the sun"] * 2, new_tokens=4) == [answer] * 2

    def test_too_long_a_question_is_refused(self):
        with pytest.raises(ValueError, match=r"has 302 tokens with the prompt before it and 6 after it"):
            write_answers(model(), BYTES, assemble(BYTES, []), ["w" * 291], new_tokens=6)

    def test_exact_match(self):
        assert exact_match(" -19", ["-19"]) and not exact_match("19", ["-19"])
        assert not exact_match("The Beatles.", ["beatles"]) and exact_match("The Beatles.", ["beatles"], plain)

    def test_f1_by_hand(self):
        """Two of three words given are right, and two of four right ones were given: 2 · 2 / (3 + 4)."""
        assert f1("the red big house", ["red house on hill"]) == pytest.approx(4 / 7)
        assert f1("red red", ["red"]) == pytest.approx(2 / 3)
        assert f1("green", ["red", "Green!"]) == 1.0
        assert f1("", ["red"]) == 0.0 and f1("the", ["a"]) == 1.0
        with pytest.raises(ValueError, match="no right answer"):
            f1("x", [])
