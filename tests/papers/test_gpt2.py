"""GPT-2 against its published vocabulary, against tokenizers and tiktoken, and against transformers' model."""

import dataclasses
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config as TheirConfig
from transformers import GPT2LMHeadModel, GPT2Tokenizer
from transformers.activations import NewGELUActivation

from allyouneed.data import fetch, is_present, novels
from allyouneed.hub import UnsupportedError, WeightsError, open_model
from allyouneed.papers.gpt2 import (
    GPT2,
    SIZES,
    ByteLevelBPE,
    GPT2Config,
    byte_characters,
    first_sentences,
    learn_merges,
    question_prompt,
    summary_prompt,
    translation_prompt,
    words,
)
from allyouneed.papers.gpt2.gpt2 import gelu
from allyouneed.papers.gpt2.strings import random_strings
from allyouneed.text import BytePairTokenizer, Tokenizer, generate
from allyouneed.training import Cosine, TrainingConfig, evaluate, next_token_loss, train

VOCABULARY = "gpt2-vocabulary"
# As tiktoken has it; in plain words, what PATTERN says.
TIKTOKEN_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
TINY = GPT2Config(
    vocabulary=61,
    positions=24,
    width=16,
    layers=2,
    heads=4,
    embedding_dropout=0.0,
    attention_dropout=0.0,
    residual_dropout=0.0,
)


def strings(count: int, seed: int) -> Iterator[str]:
    """Give random strings without characters that this Python's Unicode has not assigned.

    What is a letter is looked up in tables of different years on the different sides.
    """
    for some in random_strings(count, seed):
        yield "".join(character for character in some if unicodedata.category(character) != "Cn")


@pytest.fixture(scope="module")
def text() -> str:
    """A part of a novel."""
    return novels("train")[0][:200_000]


@pytest.fixture(scope="module")
def trained(text: str) -> ByteLevelBPE:
    return ByteLevelBPE.train([text], 700, ["<|endoftext|>"])


@pytest.fixture(scope="module")
def published() -> Path:
    if not is_present(VOCABULARY):
        pytest.skip(f"the asset {VOCABULARY} is not in the cache: `allyouneed fetch {VOCABULARY}`")
    return fetch(VOCABULARY)


def by_tokenizers(folder: Path, names: tuple[str, str] = ("vocab.json", "merges.txt")) -> tokenizers.Tokenizer:
    theirs = tokenizers.Tokenizer(models.BPE.from_file(*(str(folder / name) for name in names)))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    return theirs


def by_tiktoken(folder: Path) -> tiktoken.Encoding:
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    ids = json.loads((folder / "encoder.json").read_text("utf-8"))
    end = ids.pop("<|endoftext|>")
    ranks = {bytes(byte_of[character] for character in spelling): token for spelling, token in ids.items()}
    return tiktoken.Encoding(
        "gpt2", pat_str=TIKTOKEN_PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": end}
    )


def merges_of(tokenizer: ByteLevelBPE, folder: Path) -> list[str]:
    tokenizer.save(folder)
    return (folder / "merges.txt").read_text("utf-8").splitlines()[1:]


class TestWords:
    def test_no_word_has_letters_and_signs(self):
        """The paper's example: one word dog, and not one for each sign that may follow it."""
        assert list(words("dog. dog! dog?")) == ["dog", ".", " dog", "!", " dog", "?"]

    def test_spaces_lead_words_and_contractions_stand_alone(self):
        expected = ["I", "'ll", " take", "   ", " 42", "\n", "\n", "cats", "',", " won", "'t", " I", "?"]
        assert [*words("I'll take    42\n\ncats', won't I?")] == expected
        assert [*words("a  \n b  ")] == ["a", "  \n", " b", "  "]

    @given(st.text())
    def test_they_are_the_text(self, some: str):
        assert "".join(words(some)) == some

    def test_equal_those_of_tokenizers(self):
        splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
        for some in strings(2000, seed=1):
            spans = [span for _, span in splitter.pre_tokenize_str(some)]
            assert [*words(some)] == [some[start:end] for start, end in spans]


class TestByteCharacters:
    def test_are_the_published_ones(self):
        characters = byte_characters()
        assert len(set(characters)) == 256
        assert set(characters) == set(pre_tokenizers.ByteLevel.alphabet())
        assert (characters[ord(" ")], characters[ord("\n")], characters[ord("a")]) == ("Ġ", "Ċ", "a")
        for some in ("naïve ☕ \t\x00", "\u3000"):
            ((spelling, _), *_) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(
                some
            )
            assert "".join(characters[byte] for byte in some.encode()) == spelling


def learn_naively(counts: dict[bytes, int], tokens: int) -> list[bytes]:
    """Learn as Sennrich et al.'s algorithm 1 says: count all pairs anew before each merge."""
    order = sorted(range(256), key=lambda byte: byte_characters()[byte])
    content = [bytes([byte]) for byte in order]
    spelled = {word: [order.index(byte) for byte in word] for word in counts}
    while len(content) < 256 + tokens:
        pairs: Counter[tuple[int, int]] = Counter()
        for word, ids in spelled.items():
            for pair in pairwise(ids):
                pairs[pair] += counts[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        joined = content[best[0]] + content[best[1]]
        if joined not in content:
            content.append(joined)
        new = content.index(joined)
        for word, ids in spelled.items():
            merged: list[int] = []
            for token in ids:
                # `merged` may not end in a token that was just made, unless that is the pair's own left part.
                if merged and (merged[-1], token) == best:
                    merged[-1] = -1
                else:
                    merged.append(token)
            spelled[word] = [new if token == -1 else token for token in merged]
    return content[256:]


class TestTraining:
    @pytest.mark.parametrize("vocabulary", [256, 300, 1500])
    def test_equals_tokenizers_on_a_novel(self, vocabulary: int, text: str, tmp_path: Path):
        """Merge by merge: ties go to the smaller ids on both sides."""
        ours = ByteLevelBPE.train([text[:100_000], text[100_000:]], vocabulary)
        BytePairTokenizer.train([text[:100_000], text[100_000:]], vocabulary).save(tmp_path)
        theirs = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))["model"]
        assert merges_of(ours, tmp_path) == [" ".join(pair) for pair in theirs["merges"]]
        assert json.loads((tmp_path / "vocab.json").read_text("utf-8")) == theirs["vocab"]

    @settings(max_examples=40)
    @given(st.dictionaries(st.text("abé", min_size=1, max_size=9), st.integers(1, 5), max_size=8), st.integers(0, 30))
    def test_equals_counting_anew_each_time(self, counts: dict[str, int], tokens: int):
        encoded = {word.encode(): count for word, count in counts.items()}
        content = [*sorted(byte_characters())]
        for (left, right), token in learn_merges(encoded, tokens):
            joined = content[left] + content[right]
            content += [joined] if token == len(content) else []
            assert content[token] == joined
        byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        learned = [bytes(byte_of[character] for character in spelling) for spelling in content[256:]]
        assert learned == learn_naively(encoded, tokens)

    def test_the_same_bytes_made_twice_are_one_token(self):
        """abc is made of ab and c, and where bc was merged first, of a and bc."""
        counts = {b"xbc": 9, b"ybc": 9, b"ab": 8, b"abc": 7, b"zab": 6}
        merges = learn_merges(counts, 40)
        assert len({token for _, token in merges}) == max(token for _, token in merges) - 255

    def test_special_tokens_come_last(self, trained: ByteLevelBPE):
        assert trained.vocabulary == 700
        assert trained.special_tokens == {"<|endoftext|>": 699}
        assert trained.byte_lengths()[699] == 0

    @pytest.mark.parametrize(
        ("texts", "vocabulary", "special", "message"),
        [
            ("abc", 300, [], "one string of 3 characters"),
            (["abc"], 255, [], "a vocabulary of 255 has no room for 256 bytes and 0 special"),
            (["abc"], 257, ["<a>", "<b>"], "must be at least 258"),
            (["abc"], 300, [], "have pairs for a vocabulary of 256, special tokens included, not for 300"),
            (["abc"], 258, ["<a>", "<a>"], "each its own"),
            (["abc"], 257, [""], "must have names"),
            (["abc"], 257, ["a"], "no token's"),
            (["ab\ud800"], 257, [], r"character 2 of the text, '\\ud800', is half of a surrogate pair"),
        ],
    )
    def test_bad_input_is_refused(self, texts: Any, vocabulary: int, special: list[str], message: str):
        # A type checker at run time refuses one string for texts before the method does.
        error = Exception if isinstance(texts, str) else ValueError
        with pytest.raises(error, match=None if isinstance(texts, str) else message):
            ByteLevelBPE.train(texts, vocabulary, special)


class TestEncoding:
    def test_published_ids(self, published: Path):
        """10,000 strings of every script, emoji, control characters; empty and very long."""
        ours, second = ByteLevelBPE.load(published), by_tiktoken(published)
        first = by_tokenizers(published, ("encoder.json", "vocab.bpe"))
        tried = [*strings(10_000, seed=0)]
        assert sum(map(len, tried)) > 200_000 and max(map(len, tried)) > 5000
        for some in tried:
            ids = ours.encode(some)
            assert ids == first.encode(some, add_special_tokens=False).ids == second.encode_ordinary(some)
            assert ours.decode(ids) == some

    def test_published_examples(self, published: Path):
        tokenizer = ByteLevelBPE.load(published)
        assert tokenizer.vocabulary == 50_257 == GPT2Config().vocabulary
        assert tokenizer.special_tokens == {"<|endoftext|>": 50_256}
        assert tokenizer.encode("Hello world") == [15496, 995]
        assert tokenizer.decode([50_256, 15496]) == "<|endoftext|>Hello"
        assert 50_256 not in tokenizer.encode("<|endoftext|>")

    def test_equals_tokenizers_with_a_vocabulary_of_our_own(self, trained: ByteLevelBPE, tmp_path: Path):
        trained.save(tmp_path)
        theirs = by_tokenizers(tmp_path)
        for some in strings(2000, seed=2):
            ids = trained.encode(some)
            assert ids == theirs.encode(some, add_special_tokens=False).ids
            assert trained.encode_to_tensor(some).tolist() == ids
            assert trained.decode(ids) == some == theirs.decode(ids, skip_special_tokens=False)

    def test_prose_is_merged_in_the_order_in_which_merges_were_learned(self, text: str, tmp_path: Path):
        """Of other novels, where many pairs of a word could be merged first."""
        trained = ByteLevelBPE.train([text], 1500)
        trained.save(tmp_path)
        prose = "".join(novel[5_000:25_000] for novel in novels("test"))
        ids = trained.encode(prose)
        assert len(set(ids)) > 900 and ids == by_tokenizers(tmp_path).encode(prose, add_special_tokens=False).ids

    @pytest.mark.parametrize("unit", ["a", "ab", "the", "é", " \n"])
    def test_a_very_long_word_takes_no_longer_than_its_length(self, unit: str, trained: ByteLevelBPE, tmp_path: Path):
        trained.save(tmp_path)
        word = unit * (60_000 // len(unit))
        assert trained.encode(word) == by_tokenizers(tmp_path).encode(word, add_special_tokens=False).ids

    @given(st.text())
    def test_any_text_comes_back(self, trained: ByteLevelBPE, some: str):
        ids = trained.encode(some)
        assert trained.decode(ids) == some
        assert int(trained.byte_lengths()[torch.tensor(ids, dtype=torch.int64)].sum()) == len(some.encode())

    @given(st.binary())
    def test_any_tokens_decode(self, trained: ByteLevelBPE, data: bytes):
        order = sorted(byte_characters())
        ids = [order.index(byte_characters()[byte]) for byte in data]
        assert trained.decode(ids) == data.decode("utf-8", errors="replace")

    def test_is_a_tokenizer(self, trained: ByteLevelBPE):
        assert isinstance(trained, Tokenizer)

    def test_bad_input_is_refused(self, trained: ByteLevelBPE):
        for token in (-1, 700):
            with pytest.raises(ValueError, match=f"token {token} is not in the vocabulary: ids are 0 to 699"):
                trained.decode([token])
        for encode in (trained.encode, trained.encode_to_tensor):
            with pytest.raises(ValueError, match=r"character 1 of the text, '\\udfff', is half of a surrogate pair"):
                encode("a\udfff")


class TestFiles:
    @pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
    def test_what_was_saved_is_loaded(self, names: tuple[str, str], trained: ByteLevelBPE, text: str, tmp_path: Path):
        trained.save(tmp_path / "new")
        for old, new in zip(("vocab.json", "merges.txt"), names, strict=True):
            (tmp_path / "new" / old).rename(tmp_path / "new" / new)
        again = ByteLevelBPE.load(tmp_path / "new")
        assert again.encode(text[:5000]) == trained.encode(text[:5000])
        assert again.special_tokens == trained.special_tokens
        assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted([*names, "tokenizer_config.json"])

    def test_transformers_reads_what_was_saved(self, trained: ByteLevelBPE, tmp_path: Path):
        tiny().save_pretrained(tmp_path, trained)
        theirs = GPT2Tokenizer.from_pretrained(tmp_path)
        for some in strings(200, seed=3):
            # Theirs finds special tokens in a text, which ours never does.
            some = some.replace("<|endoftext|>", "")
            assert theirs(some)["input_ids"] == trained.encode(some)
        stored = open_model(tmp_path)
        assert isinstance(GPT2.read_tokenizer(stored), ByteLevelBPE)
        theirs.save_pretrained(tmp_path)
        assert GPT2.read_tokenizer(open_model(tmp_path)).encode("a cat, naïve") == trained.encode("a cat, naïve")

    def test_the_published_files_are_written_back(self, published: Path, tmp_path: Path):
        ByteLevelBPE.load(published).save(tmp_path)
        assert (tmp_path / "merges.txt").read_bytes() == (published / "vocab.bpe").read_bytes()
        written, read = (tmp_path / "vocab.json").read_text("utf-8"), (published / "encoder.json").read_text("utf-8")
        assert json.loads(written) == json.loads(read)

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("vocab.json", lambda old: old[:100], "vocab.json is no vocabulary"),
            ("vocab.json", lambda old: "[1]", "must map each token to its id"),
            ("vocab.json", lambda old: old.replace(": 300", ": 301"), "the ids of 700 tokens must be 0 to 699"),
            ("vocab.json", lambda old: old.replace('"!"', '"!!!!!!!"'), "1 of the 256 bytes have no token, '!'"),
            ("merges.txt", lambda old: old + "a b c\n", "line 445 is 'a b c': it must be two tokens"),
            ("merges.txt", lambda old: old + "Ġtqz x\n", "merge 443, 'Ġtqz' and 'x': no merge before it makes 'Ġtqz'"),
            ("merges.txt", lambda old: old + "ÿ ÿ\n", "the vocabulary lacks 'ÿÿ'"),
            ("merges.txt", lambda old: old + old.splitlines()[1] + "\n", "is there twice"),
        ],
    )
    def test_damaged_files_are_refused(
        self, name: str, change: Any, message: str, trained: ByteLevelBPE, tmp_path: Path
    ):
        trained.save(tmp_path)
        path = tmp_path / name
        path.write_text(change(path.read_text("utf-8")), "utf-8")
        with pytest.raises(ValueError, match=re.escape(message)):
            ByteLevelBPE.load(tmp_path)

    def test_bytes_that_are_no_text_are_refused(self, trained: ByteLevelBPE, tmp_path: Path):
        trained.save(tmp_path)
        (tmp_path / "merges.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ValueError, match=r"merges\.txt lists no merges"):
            ByteLevelBPE.load(tmp_path)

    def test_missing_files_are_named(self, tmp_path: Path):
        with pytest.raises(FileNotFoundError, match=r"vocab\.json and merges\.txt, or encoder\.json and vocab\.bpe"):
            ByteLevelBPE.load(tmp_path)


def theirs(**changes: Any) -> GPT2LMHeadModel:
    """Make transformers' model of the size of TINY, with weights large enough that every part counts."""
    torch.manual_seed(0)
    numbers: dict[str, Any] = {"vocab_size": 61, "n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 4}
    model = GPT2LMHeadModel(
        TheirConfig(**numbers | {"bos_token_id": None, "eos_token_id": None, "attn_implementation": "eager"} | changes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def tiny(**changes: Any) -> GPT2:
    torch.manual_seed(0)
    model = GPT2(dataclasses.replace(TINY, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.double().eval()


def agree(ours: GPT2, reference: GPT2LMHeadModel, tokens: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), reference(tokens).logits, rtol=1e-5, atol=1e-5)


class TestModel:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"n_inner": 23},
            {"tie_word_embeddings": False},
            {"n_head": 1, "layer_norm_epsilon": 0.1},
            {"n_layer": 1, "n_head": 16, "activation_function": "gelu_pytorch_tanh"},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("shape", [(1, 1), (3, 7), (1, 24)])
    def test_equals_transformers_both_ways(self, changes: dict[str, Any], shape: tuple[int, int], tmp_path: Path):
        reference = theirs(**changes)
        tokens = torch.randint(61, shape)
        reference.save_pretrained(tmp_path / "theirs")
        ours = GPT2.from_pretrained(tmp_path / "theirs")
        agree(ours, reference, tokens)
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.mul_(0.9)
        ours.save_pretrained(tmp_path / "ours")
        again, loading = GPT2LMHeadModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
        assert not any(loading.values()), loading
        agree(ours, again.eval(), tokens)

    def test_a_checkpoint_without_prefix_and_with_masks_loads(self, tmp_path: Path):
        """As OpenAI's weights are on the hub: no `transformer.`, and the causal masks among the tensors."""
        reference = theirs()
        reference.save_pretrained(tmp_path)
        stored = {name.removeprefix("transformer."): value for name, value in reference.state_dict().items()}
        del stored["lm_head.weight"]
        for layer in range(2):
            stored[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 24, 24).tril()
        save_file({name: value.contiguous() for name, value in stored.items()}, tmp_path / "model.safetensors")
        tokens = torch.randint(61, (2, 9))
        agree(GPT2.from_pretrained(tmp_path), reference, tokens)
        stored["h.0.attn.surprise"] = torch.ones(1)
        save_file({name: value.contiguous() for name, value in stored.items()}, tmp_path / "model.safetensors")
        with pytest.raises(WeightsError, match=r"h\.0\.attn\.surprise"):
            GPT2.from_pretrained(tmp_path)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding_changes_nothing(self, side: str, tmp_path: Path):
        reference = theirs()
        reference.save_pretrained(tmp_path)
        ours = GPT2.from_pretrained(tmp_path)
        lengths = [9, 4, 1]
        rows = [torch.randint(61, (length,)) for length in lengths]
        tokens, present = torch.zeros(3, 9, dtype=torch.int64), torch.zeros(3, 9, dtype=torch.bool)
        for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            places = slice(9 - length, 9) if side == "left" else slice(0, length)
            tokens[index, places], present[index, places] = row, True
        positions = (present.long().cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            mine = ours(tokens, present=present)
            expected = reference(tokens, attention_mask=present.long(), position_ids=positions).logits
            for index, row in enumerate(rows):
                kept = present[index]
                torch.testing.assert_close(mine[index][kept], expected[index][kept], rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(mine[index][kept], ours(row[None])[0], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("pieces", [[1] * 20, [7, 13], [19, 1]])
    def test_cache_on_equals_off(self, pieces: list[int]):
        model = tiny()
        tokens = torch.randint(61, (2, 20))
        cache = model.new_cache(capacity=3)
        with torch.no_grad():
            parts = [model(part, cache=cache) for part in tokens.split(pieces, 1)]
            torch.testing.assert_close(torch.cat(parts, 1), model(tokens), rtol=1e-10, atol=1e-11)

    def test_no_token_sees_those_after_it(self):
        model = tiny()
        seen: list[Tensor] = []

        def keep(module: Any, inputs: Any, output: Tensor) -> Tensor:
            seen.append(output.detach().requires_grad_())
            return seen[-1]

        model.embedding.register_forward_hook(keep)
        logits = model(torch.randint(61, (1, 10)))
        for place in range(10):
            (gradient,) = torch.autograd.grad(logits[0, place].square().sum(), seen, retain_graph=True)
            reached = gradient[0].abs().sum(-1)
            assert bool((reached[place + 1 :] == 0).all()) and bool((reached[: place + 1] > 0).all())

    def test_beyond_its_positions_is_refused(self):
        model = tiny()
        with pytest.raises(ValueError, match=r"position 24 is beyond the learned table.*at most 24 tokens"):
            model(torch.zeros(1, 25, dtype=torch.int64))
        cache = model.new_cache()
        model(torch.zeros(1, 24, dtype=torch.int64), cache=cache)
        with pytest.raises(ValueError, match="position 24 is beyond"):
            model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
        with pytest.raises(ValueError, match="30 new ones go beyond the model's context of 24: ask for at most 22"):
            generate(model, [[1, 2, 3]], new_tokens=30)
        assert len(generate(model, [[1, 2, 3]], new_tokens=22)[0]) == 22

    def test_heads_that_do_not_divide_the_width_are_refused(self):
        with pytest.raises(ValueError, match="width 16 cannot be divided among 3 heads"):
            GPT2(dataclasses.replace(TINY, heads=3))

    @pytest.mark.parametrize(
        ("size", "parameters"),
        [("117M", 124_439_808), ("345M", 354_823_168), ("762M", 774_030_080), ("1542M", 1_557_611_200)],
    )
    def test_sizes_are_those_of_table_2(self, size: str, parameters: int):
        """Counted without memory; the paper's names are its own counts."""
        with torch.device("meta"):
            model = GPT2(SIZES[size])
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters
        assert SIZES[size].width // SIZES[size].heads == 64

    def test_initial_weights(self):
        """Their standard deviations, and those of transformers' model of the same size."""
        torch.manual_seed(0)
        numbers = {"vocab_size": 500, "n_positions": 300, "n_embd": 128, "n_layer": 8, "n_head": 4}
        ours = GPT2(GPT2Config(vocabulary=500, positions=300, width=128, layers=8, heads=4))
        reference = GPT2LMHeadModel(TheirConfig(**numbers, bos_token_id=None, eos_token_id=None)).state_dict()
        parameters = dict(ours.named_parameters())
        for name in ours.weight_names():
            mine = torch.cat([parameters[own].detach().flatten() for own in name.ours])
            assert float(mine.mean()) == pytest.approx(float(reference[name.theirs].mean()), abs=1e-3)
            assert float(mine.std()) == pytest.approx(float(reference[name.theirs].std()), rel=0.03, abs=1e-12)
        residual = parameters["blocks.3.feed_forward.sublayer.output.weight"].std()
        assert residual.item() == pytest.approx(0.02 / math.sqrt(16), rel=0.03)

    def test_the_activation_is_the_released_one(self):
        numbers = torch.linspace(-6, 6, 1001, dtype=torch.float64)
        torch.testing.assert_close(gelu(numbers), NewGELUActivation()(numbers))
        assert 1e-4 < float((gelu(numbers) - torch.nn.functional.gelu(numbers)).abs().max()) < 5e-4

    def test_dropout_is_where_gpt2_has_it(self):
        """With all that a sublayer adds dropped, the embeddings pass through; with those dropped too, nothing does."""
        tokens = torch.randint(61, (1, 5))
        model = tiny(residual_dropout=1.0).train()
        places = torch.arange(5)[None]
        expected = model.norm(model.positions.embed(model.embedding(tokens), places))
        torch.testing.assert_close(model.hidden(tokens), expected)
        model = tiny(residual_dropout=1.0, embedding_dropout=1.0).train()
        assert torch.equal(model.hidden(tokens), model.norm.bias.expand(1, 5, 16))
        model = tiny(attention_dropout=0.5).train()
        assert not torch.equal(model(tokens), model(tokens))
        model.eval()
        assert torch.equal(model(tokens), model(tokens))

    def test_learns(self):
        torch.manual_seed(0)
        model = GPT2(TINY)
        rows = torch.arange(120).reshape(6, 20) % 7
        before = evaluate(model, [rows], next_token_loss)
        assert before == pytest.approx(math.log(61), rel=0.05)
        train(model, lambda step: rows, next_token_loss, TrainingConfig(40, 2e-2, schedule=Cosine(warmup=4)))
        assert evaluate(model, [rows], next_token_loss) < before / 4

    @pytest.mark.gpu
    def test_on_an_accelerator(self):
        model = tiny().float()
        tokens = torch.randint(61, (2, 20))
        expected = model(tokens)
        torch.testing.assert_close(model.cuda()(tokens.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)


class TestConfig:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("model_type", "gpt_neox"),
            ("activation_function", "mish"),
            ("scale_attn_weights", False),
            ("scale_attn_by_inverse_layer_idx", True),
            ("add_cross_attention", True),
            ("n_layer", "two"),
            ("n_embd", None),
        ],
    )
    def test_what_is_not_supported_is_named(self, key: str, value: Any):
        config = tiny().to_config() | {key: value}
        with pytest.raises(UnsupportedError, match=key):
            GPT2.from_config(config)

    def test_comes_back(self):
        for config in (TINY, dataclasses.replace(TINY, hidden=5, tied=False, epsilon=0.5, residual_dropout=0.3)):
            assert GPT2.from_config(GPT2(config).to_config()).config == config

    def test_is_that_of_transformers(self):
        """The smallest published model by transformers' own defaults."""
        with torch.device("meta"):
            model = GPT2.from_config(TheirConfig().to_dict())
            assert model.config == SIZES["117M"]
            assert (
                TheirConfig(**model.to_config()).to_diff_dict()
                == TheirConfig(architectures=["GPT2LMHeadModel"]).to_diff_dict()
            )


class TestPrompts:
    def test_are_as_the_paper_frames_them(self):
        assert summary_prompt("  Long ago.\n") == "Long ago.\nTL;DR:"
        assert translation_prompt([("I see.", "Je vois."), ("Yes.", "Oui.")], "No.") == (
            "I see. = Je vois.\nYes. = Oui.\nNo. ="
        )
        assert question_prompt("Where?", [("Who?", "Tom")], document="Tom is here.\n") == (
            "Tom is here.\nQ: Who?\nA: Tom\nQ: Where?\nA:"
        )
        assert question_prompt("Who wrote Emma?", [("Who?", "I")]) == "Q: Who?\nA: I\nQ: Who wrote Emma?\nA:"

    def test_first_sentences(self):
        text = ' He said "No."  She\nleft! Why? 3.5 of them stayed. The rest'
        assert first_sentences(text, 1) == 'He said "No."'
        assert first_sentences(text, 3) == 'He said "No." She left! Why?'
        assert first_sentences(text, 9) == 'He said "No." She left! Why? 3.5 of them stayed. The rest'
        assert first_sentences("", 2) == first_sentences(" \n", 2) == ""

    @given(st.text(), st.integers(1, 5))
    @settings(max_examples=50)
    def test_sentences_are_of_the_text(self, text: str, count: int):
        assert " ".join(text.split()).startswith(first_sentences(text, count))

    def test_bad_input_is_refused(self):
        for call, message in (
            (lambda: summary_prompt(" "), "the article of a prompt is ' '"),
            (lambda: translation_prompt([], "No."), "no examples"),
            (lambda: translation_prompt([("a", "")], "No."), "the translation of a prompt is ''"),
            (lambda: translation_prompt([("a", "b")], "\n"), "the sentence of a prompt"),
            (lambda: question_prompt(""), "the question of a prompt is ''"),
            (lambda: question_prompt("Who?", [("Where?", " ")]), "the answer of a prompt"),
            (lambda: first_sentences("a", 0), "the first 0 sentences"),
        ):
            with pytest.raises(ValueError, match=message):
                call()
