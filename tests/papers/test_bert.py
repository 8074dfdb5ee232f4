"""BERT against transformers: the encoder and every head, both ways; masking, pairs, and MiniLM's sentence vectors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from allyouneed.data import is_present
from allyouneed.data.assets import asset_folder
from allyouneed.hub import Pretrained, UnsupportedError, WeightsError
from allyouneed.papers.bert import (
    IGNORED,
    SPECIAL_TOKENS,
    Bert,
    BertConfig,
    MaskedLanguageModel,
    Masking,
    NextSentence,
    Pairs,
    PreTraining,
    SentenceClassifier,
    SentenceEmbedder,
    SpanFinder,
    TokenClassifier,
    WordPieceTokenizer,
    best_spans,
    join,
    left_to_right_loss,
    mask_tokens,
    masked_loss,
    pretraining_loss,
    words_of,
)

MINILM = "all-minilm-l6-v2"
SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 19,
    "type_vocab_size": 2,
}
LABELS = {"id2label": {0: "one", 1: "two", 2: "three"}, "label2id": {"one": 0, "two": 1, "three": 2}}


def ours_of(found: Any) -> tuple[Tensor, ...]:
    return tuple(found) if isinstance(found, tuple) else (found,)


def encoder_outputs(model: Bert, *row: Any, present: Tensor) -> tuple[Tensor, ...]:
    hidden = model(*row, present=present)
    return hidden, model.pooled(hidden)


def pretraining_outputs(model: PreTraining, *row: Any, present: Tensor) -> tuple[Tensor, ...]:
    hidden = model.bert(*row, present=present)
    return model.logits(hidden), model.next_logits(hidden)


KINDS: dict[str, tuple[type[Pretrained], Any, Callable[..., Any], tuple[str, ...], dict[str, Any]]] = {
    "encoder": (Bert, transformers.BertModel, encoder_outputs, ("last_hidden_state", "pooler_output"), {}),
    "masked": (MaskedLanguageModel, transformers.BertForMaskedLM, nn.Module.__call__, ("logits",), {}),
    "next": (NextSentence, transformers.BertForNextSentencePrediction, nn.Module.__call__, ("logits",), {}),
    "both": (
        PreTraining,
        transformers.BertForPreTraining,
        pretraining_outputs,
        ("prediction_logits", "seq_relationship_logits"),
        {},
    ),
    "sentence": (
        SentenceClassifier,
        transformers.BertForSequenceClassification,
        nn.Module.__call__,
        ("logits",),
        LABELS,
    ),
    "token": (TokenClassifier, transformers.BertForTokenClassification, nn.Module.__call__, ("logits",), LABELS),
    "span": (
        SpanFinder,
        transformers.BertForQuestionAnswering,
        nn.Module.__call__,
        ("start_logits", "end_logits"),
        {},
    ),
}


def their_model(kind: str, **changes: Any) -> Any:
    _, theirs, _, _, extra = KINDS[kind]
    torch.manual_seed(3)
    model = theirs(transformers.BertConfig(**{**SIZES, **extra, **changes})).eval()
    # Biases and norms away from zero and one, so that a forgotten one is seen.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def a_batch(rows: int = 4, length: int = 13) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * length)
    tokens = torch.randint(1, 61, (rows, length), generator=generator)
    segments = (torch.arange(length) > length // 2).long().expand(rows, -1).contiguous()
    sizes = torch.arange(rows) * 3 % length + 1
    sizes[0] = length
    present = torch.arange(length) < sizes[:, None]
    return tokens.where(present, 0), segments, present


@pytest.mark.parametrize("kind", KINDS)
class TestParity:
    def test_reads_theirs_with_equal_outputs(self, kind: str, tmp_path: Path) -> None:
        kinds, _, outputs, names, _ = KINDS[kind]
        theirs = their_model(kind)
        theirs.save_pretrained(tmp_path)
        ours = kinds.from_pretrained(tmp_path)
        for rows, length in ((4, 13), (1, 1), (3, 19)):
            tokens, segments, present = a_batch(rows, length)
            with torch.no_grad():
                found = ours_of(outputs(ours, tokens, segments, present=present))
                expected = theirs(input_ids=tokens, token_type_ids=segments, attention_mask=present.long())
            for name, one in zip(names, found, strict=True):
                other = expected[name]
                if one.shape[:2] == present.shape:
                    one, other = one[present], other[present]
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)

    def test_theirs_reads_ours(self, kind: str, tmp_path: Path) -> None:
        kinds, their_class, outputs, names, _ = KINDS[kind]
        their_model(kind).save_pretrained(tmp_path / "first")
        ours = kinds.from_pretrained(tmp_path / "first")
        ours.save_pretrained(tmp_path / "second")
        theirs, told = their_class.from_pretrained(tmp_path / "second", output_loading_info=True)
        assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        tokens, segments, present = a_batch()
        with torch.no_grad():
            found = ours_of(outputs(ours, tokens, segments, present=present))
            expected = theirs.eval()(input_ids=tokens, token_type_ids=segments, attention_mask=present.long())
        for name, one in zip(names, found, strict=True):
            other = expected[name]
            if one.shape[:2] == present.shape:
                one, other = one[present], other[present]
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        if kind in ("sentence", "token"):
            assert theirs.config.id2label == LABELS["id2label"]

    def test_padding_changes_nothing_and_a_row_alone_is_as_in_its_batch(self, kind: str, tmp_path: Path) -> None:
        kinds, _, outputs, _, _ = KINDS[kind]
        their_model(kind).save_pretrained(tmp_path)
        ours = kinds.from_pretrained(tmp_path)
        tokens, segments, present = a_batch()
        with torch.no_grad():
            together = ours_of(outputs(ours, tokens, segments, present=present))
            for row, size in enumerate(present.sum(1).tolist()):
                alone = ours_of(
                    outputs(ours, tokens[row : row + 1, :size], segments[row : row + 1, :size], present=None)
                )
                for one, many in zip(alone, together, strict=True):
                    expected = many[row : row + 1]
                    if expected.ndim > 1 and expected.shape[1] == present.shape[1] and one.shape[1] == size:
                        expected = expected[:, :size]
                    torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5)


class TestCheckpoints:
    def test_an_encoder_is_read_from_under_any_head(self, tmp_path: Path) -> None:
        theirs = their_model("sentence")
        theirs.save_pretrained(tmp_path)
        ours = Bert.from_pretrained(tmp_path)
        tokens, segments, _ = a_batch()
        with torch.no_grad():
            expected = theirs.bert(tokens, token_type_ids=segments)
            torch.testing.assert_close(ours(tokens, segments), expected[0], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("kind", ["masked", "token"])
    def test_an_encoder_without_a_pooler_says_so(self, kind: str, tmp_path: Path) -> None:
        their_model(kind).save_pretrained(tmp_path)
        ours = Bert.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match="no pooler"):
            ours.pooled(ours(a_batch()[0]))
        with pytest.raises(UnsupportedError, match="save it with its head"):
            ours.save_pretrained(tmp_path / "again")

    def test_a_checkpoint_of_both_tasks_labelled_as_one(self, tmp_path: Path) -> None:
        theirs = their_model("both")
        theirs.config.architectures = ["BertForMaskedLM"]
        theirs.save_pretrained(tmp_path)
        text = (tmp_path / "config.json").read_text()
        (tmp_path / "config.json").write_text(text.replace("BertForPreTraining", "BertForMaskedLM"))
        ours = MaskedLanguageModel.from_pretrained(tmp_path)
        tokens = a_batch()[0]
        with torch.no_grad():
            torch.testing.assert_close(ours(tokens), theirs(tokens).prediction_logits, rtol=1e-5, atol=1e-5)

    def test_missing_and_unsupported_parts_are_named(self, tmp_path: Path) -> None:
        their_model("encoder").save_pretrained(tmp_path)
        with pytest.raises((UnsupportedError, WeightsError), match=r"BertModel|cls\.predictions"):
            MaskedLanguageModel.from_pretrained(tmp_path)
        their_model("encoder", hidden_act="mish").save_pretrained(tmp_path)
        with pytest.raises(UnsupportedError, match="hidden_act is 'mish'"):
            Bert.from_pretrained(tmp_path)

    def test_every_parameter_has_one_name(self) -> None:
        for kind, (kinds, _, _, _, extra) in KINDS.items():
            config = {**SIZES, **{key: {str(k): v for k, v in value.items()} for key, value in extra.items()}}
            with torch.device("meta"):
                model = kinds.from_config(config)
            named = [own for name in model.weight_names() for own in name.ours]
            assert sorted(named) == sorted(name for name, _ in model.named_parameters()), kind


def small(**changes: Any) -> Bert:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocabulary": 40,
        "width": 16,
        "layers": 2,
        "heads": 2,
        "hidden": 32,
        "positions": 32,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    return Bert(BertConfig(**{**sizes, **changes}))


class TestModel:
    def test_bert_base_has_the_papers_number_of_parameters(self) -> None:
        with torch.device("meta"):
            base = Bert(BertConfig())
            large = Bert(BertConfig(width=1024, layers=24, heads=16, hidden=4096))
        assert round(sum(parameter.numel() for parameter in base.parameters()) / 1e6) in (109, 110)
        assert 330 < sum(parameter.numel() for parameter in large.parameters()) / 1e6 < 345

    def test_every_token_sees_every_other_unless_it_is_left_to_right(self) -> None:
        model = small().eval()
        tokens = torch.arange(5, 15)[None]
        for causal in (False, True):
            added = torch.zeros(1, 10, 16, requires_grad=True)
            hidden = model.encoder(tokens, added=added, causal=causal)
            (gradient,) = torch.autograd.grad(hidden[0, 4].square().sum(), added)
            seen = gradient[0].abs().sum(-1) > 0
            assert seen.tolist() == [not causal or place <= 4 for place in range(10)]

    def test_the_last_layer_is_the_output(self) -> None:
        model = small().eval()
        tokens = torch.randint(40, (2, 7))
        layers = list(model.layers(tokens))
        assert len(layers) == 3
        assert torch.equal(layers[-1], model(tokens))

    def test_too_many_tokens_are_refused(self) -> None:
        with pytest.raises(ValueError, match="at most 32 tokens"):
            small()(torch.zeros(1, 33, dtype=torch.long))

    def test_a_head_that_needs_a_pooler_says_so(self) -> None:
        config = small().config
        with pytest.raises(ValueError, match="SentenceClassifier needs an encoder with a pooler"):
            SentenceClassifier(Bert(config, pooler=False), ["a", "b"])
        with pytest.raises(ValueError, match="each once"):
            TokenClassifier(Bert(config), ["a", "a"])


class TestSpans:
    def test_is_the_best_of_all_that_are_allowed(self) -> None:
        generator = torch.Generator().manual_seed(0)
        first, last = torch.randn(2, 6, 11, generator=generator)
        allowed = torch.rand(6, 11, generator=generator) < 0.7
        spans, scores = best_spans(first, last, allowed, longest=3)
        for row in range(6):
            every = {
                (i, j): float(first[row, i] + last[row, j])
                for i in range(11)
                for j in range(i, min(i + 3, 11))
                if allowed[row, i] and allowed[row, j]
            }
            best = max(every, key=every.__getitem__)
            assert tuple(spans[row].tolist()) == best
            assert scores[row].item() == pytest.approx(every[best])

    def test_a_row_without_a_passage_is_refused(self) -> None:
        scores = torch.zeros(2, 3)
        with pytest.raises(ValueError, match="may be the answer"):
            best_spans(scores, scores, torch.tensor([[True, True, False], [False] * 3]))


TOKENIZER = WordPieceTokenizer([*SPECIAL_TOKENS, *(chr(97 + place) for place in range(26)), *"0123456789"])
SPECIAL = sorted(TOKENIZER.special_tokens.values())
MASKED: dict[str, Any] = {"mask": TOKENIZER.mask, "vocabulary": TOKENIZER.vocabulary, "special": SPECIAL}


class TestMasking:
    @pytest.mark.parametrize("masking", [Masking(), Masking(masked=1, random=0, same=0), Masking(0.4, 0, 1, 0)])
    def test_hides_as_many_as_it_says_in_the_shares_that_it_says(self, masking: Masking) -> None:
        tokens = torch.randint(5, TOKENIZER.vocabulary, (1000, 60))
        tokens[:, 0] = TOKENIZER.begin
        tokens[:, 40:] = TOKENIZER.padding
        allowed = words_of(tokens, TOKENIZER)
        assert int(allowed.sum()) == 1000 * 39
        found = mask_tokens(tokens, allowed, torch.Generator().manual_seed(0), masking=masking, **MASKED)
        asked = found.targets != IGNORED
        assert not bool((asked & ~allowed).any())
        assert bool((asked.sum(1) == round(39 * masking.rate)).all())
        assert torch.equal(found.tokens[~asked], tokens[~asked])
        assert torch.equal(found.targets[asked], tokens[asked])
        now, before = found.tokens[asked], tokens[asked]
        hidden, kept = now == TOKENIZER.mask, now == before
        # A random token is now and then the token itself.
        chance = masking.random / (TOKENIZER.vocabulary - len(SPECIAL))
        for share, expected in ((hidden, masking.masked), (kept, masking.same + chance)):
            assert share.float().mean().item() == pytest.approx(expected, abs=0.02)

    def test_a_random_token_is_any_that_is_not_special(self) -> None:
        tokens = torch.full((2000, 10), 7)
        masking = Masking(rate=1, masked=0, random=1, same=0)
        found = mask_tokens(tokens, tokens > 0, torch.Generator().manual_seed(2), masking=masking, **MASKED)
        drawn = found.tokens.flatten().bincount(minlength=TOKENIZER.vocabulary)
        assert drawn[SPECIAL].tolist() == [0] * len(SPECIAL)
        expected = tokens.numel() / (TOKENIZER.vocabulary - len(SPECIAL))
        assert bool((drawn[len(SPECIAL) :] > 0.8 * expected).all()) and bool((drawn < 1.2 * expected).all())

    def test_every_token_is_chosen_as_often(self) -> None:
        tokens = torch.full((20_000, 12), 7)
        found = mask_tokens(tokens, tokens > 0, torch.Generator().manual_seed(1), **MASKED)
        shares = (found.targets != IGNORED).float().mean(0)
        torch.testing.assert_close(shares, torch.full((12,), 2 / 12), atol=0.01, rtol=0)

    def test_depends_on_the_generator_alone(self) -> None:
        tokens = torch.randint(5, 30, (4, 20))
        torch.manual_seed(1)
        first = mask_tokens(tokens, tokens > 0, torch.Generator().manual_seed(5), **MASKED)
        torch.manual_seed(2)
        again = mask_tokens(tokens, tokens > 0, torch.Generator().manual_seed(5), **MASKED)
        other = mask_tokens(tokens, tokens > 0, torch.Generator().manual_seed(6), **MASKED)
        assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
        assert not torch.equal(first.targets, other.targets)

    def test_what_cannot_be_is_refused(self) -> None:
        with pytest.raises(ValueError, match="must add up to 1"):
            Masking(masked=0.9)
        with pytest.raises(ValueError, match="rate is 0"):
            Masking(rate=0)
        with pytest.raises(ValueError, match="no token that may be hidden"):
            mask_tokens(torch.ones(2, 3).long(), torch.zeros(2, 3).bool(), torch.Generator(), **MASKED)
        with pytest.raises(ValueError, match="all of the 5 tokens are special"):
            mask_tokens(
                torch.ones(2, 3).long(),
                torch.ones(2, 3).bool(),
                torch.Generator(),
                mask=4,
                vocabulary=5,
                special=SPECIAL,
            )


# Text k counts up from 100·k: what follows what, and what is from where, can be read off the tokens.
NUMBERED = [[[100 * k + 10 * i + j + 5 for j in range(2 + (i + k) % 4)] for i in range(5)] for k in range(1, 7)]


class TestPairs:
    @pytest.mark.parametrize("share", [0.5, 1.0, 0.0])
    def test_b_follows_a_or_is_of_another_text(self, share: float) -> None:
        pairs = Pairs(NUMBERED, TOKENIZER, 16, 8, 0, next_share=share)
        order = {tuple(token for one in text for token in one): k for k, text in enumerate(NUMBERED)}
        flat = [list(text) for text in order]
        labels = []
        for step in range(40):
            tokens, segments, follows = pairs(step)
            assert tokens.shape == segments.shape == (8, 16)
            for row, kinds, label in zip(tokens.tolist(), segments.tolist(), follows.tolist(), strict=True):
                first_end = row.index(TOKENIZER.separator)
                second_end = row.index(TOKENIZER.separator, first_end + 1)
                first, second = row[1:first_end], row[first_end + 1 : second_end]
                assert row[0] == TOKENIZER.begin and first and second
                assert set(row[second_end + 1 :]) <= {TOKENIZER.padding}
                assert kinds == [0] * (first_end + 1) + [1] * (second_end - first_end) + [0] * (15 - second_end)
                (home,) = (text for text in flat if first[0] in text)
                place = home.index(first[0])
                assert home[place : place + len(first)] == first
                after = home[place + len(first) :]
                assert (after[: len(second)] == second) == (label == 0)
                assert label == 0 or second[0] not in home
                labels.append(label)
        assert sum(labels) / len(labels) == pytest.approx(1 - share, abs=0.1)

    def test_are_a_pure_function_of_the_step(self) -> None:
        first, again = (Pairs(NUMBERED, TOKENIZER, 16, 4, 7) for _ in range(2))
        first(0)
        for one, two in zip(first(3), again(3), strict=True):
            assert torch.equal(one, two)
        assert not torch.equal(first(3)[0], first(4)[0])

    def test_too_little_text_is_refused(self) -> None:
        with pytest.raises(ValueError, match="there are 1 texts"):
            Pairs(NUMBERED[:1], TOKENIZER, 16, 4, 0)
        with pytest.raises(ValueError, match="length 4"):
            Pairs(NUMBERED, TOKENIZER, 4, 4, 0)


class TestLosses:
    def test_are_those_of_transformers(self, tmp_path: Path) -> None:
        theirs = their_model("both")
        theirs.save_pretrained(tmp_path)
        ours = PreTraining.from_pretrained(tmp_path)
        tokens, segments, present = a_batch()
        tokens[0, 3:5], tokens[1, 0], tokens[2:, 0] = 4, 4, 4
        targets = torch.full_like(tokens, IGNORED).masked_scatter(tokens == 4, torch.arange(5, 40))
        labels = torch.tensor([0, 1, 1, 0])
        with torch.no_grad():
            expected = theirs(
                tokens,
                token_type_ids=segments,
                attention_mask=present.long(),
                labels=targets,
                next_sentence_label=labels,
            )
            total, count = pretraining_loss(ours, (tokens, segments, targets, labels))
            words, asked = masked_loss(ours, (tokens, segments, targets))
        torch.testing.assert_close(total / count, expected.loss, rtol=1e-5, atol=1e-5)
        logits = expected.prediction_logits.flatten(0, 1)
        torch.testing.assert_close(
            words / asked, nn.functional.cross_entropy(logits, targets.flatten()), rtol=1e-5, atol=1e-5
        )

    def test_left_to_right_is_the_next_tokens(self) -> None:
        model = MaskedLanguageModel(small()).eval()
        tokens = torch.randint(5, 40, (3, 9))
        tokens[1, 6:] = 0
        with torch.no_grad():
            total, count = left_to_right_loss(model, (tokens, torch.zeros_like(tokens)))
            expected = 0.0
            for row, size in zip(tokens, (9, 6, 9), strict=True):
                for place in range(1, size):
                    logits = model(row[None, :place], causal=True)[0, -1]
                    expected -= float(logits.log_softmax(-1)[row[place]])
        assert int(count) == 8 + 5 + 8
        assert float(total) == pytest.approx(expected, rel=1e-4)


class TestRows:
    def test_pairs_are_joined_and_padded(self) -> None:
        rows = join(TOKENIZER, [[7], [8, 9]], [[10, 11], [12]])
        cls, sep = TOKENIZER.begin, TOKENIZER.separator
        assert rows.tokens.tolist() == [[cls, 7, sep, 10, 11, sep], [cls, 8, 9, sep, 12, sep]]
        assert rows.segments.tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]
        assert bool(rows.present.all())
        assert join(TOKENIZER, [[7], []]).present.tolist() == [[True, True, True], [True, True, False]]

    @pytest.mark.parametrize(("first", "second"), [(9, 2), (2, 9), (7, 7), (8, 7), (1, 1), (4, 20)])
    def test_the_longer_sentence_is_cut(self, first: int, second: int) -> None:
        """As transformers' truncation "longest_first" does: token by token, from the second where both are as long."""
        rows = join(TOKENIZER, [[7] * first], [[8] * second], longest=12)
        one, two = first, second
        while one + two > 9:
            one, two = (one - 1, two) if one > two else (one, two - 1)
        found = rows.tokens[0].tolist()
        assert (found.count(7), found.count(8)) == (one, two)

    def test_what_has_no_room_is_refused(self) -> None:
        with pytest.raises(ValueError, match="rows of 4 tokens"):
            join(TOKENIZER, [[7]], [[8]], longest=4)
        with pytest.raises(ValueError, match="1 sentences A and 2"):
            join(TOKENIZER, [[7]], [[8], [9]])


@pytest.fixture(scope="module")
def embedder() -> SentenceEmbedder:
    if not is_present(MINILM):
        pytest.skip(f"{MINILM} is not in the cache: allyouneed fetch {MINILM}")
    return SentenceEmbedder.from_pretrained(MINILM)


class TestSentenceVectors:
    TEXTS = (
        "A man is eating food.",
        "",
        "The girl is carrying a baby, and the baby is laughing at the girl.",
        "Short.",
        "日本語 and naïve café — mixed!",
        "word " * 400,
    )

    def test_equal_those_of_sentence_transformers(self, embedder: SentenceEmbedder, tmp_path: Path) -> None:
        # Imported here, since it takes seconds.
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

        folder = asset_folder(MINILM)
        parts = [Transformer(str(folder), max_seq_length=256), Pooling(384), Normalize()]
        theirs = SentenceTransformer(modules=parts, device="cpu")
        expected = torch.from_numpy(theirs.encode(list(self.TEXTS), batch_size=3, show_progress_bar=False))
        torch.testing.assert_close(embedder.embed(self.TEXTS, batch=2), expected, rtol=0, atol=1e-5)
        assert embedder.longest == 256

    def test_do_not_depend_on_the_batch(self, embedder: SentenceEmbedder) -> None:
        together = embedder.embed(self.TEXTS)
        torch.testing.assert_close(together.norm(dim=1), torch.ones(len(self.TEXTS)))
        for text, vector in zip(self.TEXTS[:4], together, strict=False):
            torch.testing.assert_close(embedder.embed([text])[0], vector, rtol=0, atol=1e-5)

    def test_what_is_alike_is_near(self, embedder: SentenceEmbedder) -> None:
        cat, feline, market = embedder.embed(["a cat on a mat", "a feline on the rug", "share prices fell"])
        assert cat @ feline > 0.5 > 0.2 > cat @ market

    def test_bad_input_is_refused(self) -> None:
        embedder = SentenceEmbedder(small(), TOKENIZER, longest=32)
        for texts in ([], "one string"):
            with pytest.raises(ValueError, match="texts must be a list"):
                embedder.embed(texts)
        with pytest.raises(ValueError, match="the model takes 3 to 32"):
            SentenceEmbedder(small(), TOKENIZER, longest=33)


def test_load_gives_model_and_tokenizer() -> None:
    if not is_present(MINILM):
        pytest.skip(f"{MINILM} is not in the cache: allyouneed fetch {MINILM}")
    import allyouneed

    model, tokenizer = allyouneed.load(MINILM)
    assert isinstance(model, Bert) and isinstance(tokenizer, WordPieceTokenizer)
    assert model.config.width == 384 and tokenizer.vocabulary == model.config.vocabulary


@pytest.mark.parametrize("kind", ["sentence", "token"])
@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_what_the_logits_are_for_changes_none(kind: str, problem: str, tmp_path: Path) -> None:
    kinds, _, outputs, names, _ = KINDS[kind]
    theirs = their_model(kind, problem_type=problem)
    theirs.save_pretrained(tmp_path)
    ours = kinds.from_pretrained(tmp_path)
    tokens, segments, present = a_batch()
    with torch.no_grad():
        (found,) = ours_of(outputs(ours, tokens, segments, present=present))
        expected = theirs(input_ids=tokens, token_type_ids=segments, attention_mask=present.long())[names[0]]
    rows = present if found.shape[:2] == present.shape else slice(None)
    torch.testing.assert_close(found[rows], expected[rows], rtol=1e-4, atol=1e-5)
    assert ours.to_config()["problem_type"] == problem
