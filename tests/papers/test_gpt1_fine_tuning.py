"""GPT's input transformations, heads, auxiliary loss and layer transfer."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from allyouneed.hub import UnsupportedError, WeightsError
from allyouneed.papers.gpt1 import (
    GPT1,
    PADDING,
    Chooser,
    Classifier,
    Examples,
    GPT1Config,
    RecurrentLanguageModel,
    Special,
    assemble,
    classification,
    entailment,
    fine_tuning_loss,
    multiple_choice,
    similarity,
    transfer,
    with_new_tokens,
)
from allyouneed.training import TrainingConfig, train

VOCABULARY = 40
SPECIAL = Special.after(VOCABULARY)
S, D, E = SPECIAL
ONE, TWO, THREE = [5, 6, 7], [8, 9], [10]


def body(vocabulary: int = VOCABULARY + 3, **changes: Any) -> GPT1:
    torch.manual_seed(0)
    sizes = {"vocabulary": vocabulary, "positions": 16, "width": 24, "layers": 3, "heads": 3}
    drops = dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), 0.0)
    return GPT1(GPT1Config(**{**sizes, **drops, **changes}))


def shaken(model: Any) -> Any:
    """Move every weight away from where it starts."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


class TestTransformations:
    def test_are_those_of_figure_1(self) -> None:
        assert SPECIAL == (40, 41, 42)
        assert classification(ONE, SPECIAL) == [[S, 5, 6, 7, E]]
        assert entailment(ONE, TWO, SPECIAL) == [[S, 5, 6, 7, D, 8, 9, E]]
        assert similarity(ONE, TWO, SPECIAL) == [[S, 5, 6, 7, D, 8, 9, E], [S, 8, 9, D, 5, 6, 7, E]]
        assert multiple_choice(ONE, [TWO, THREE, []], SPECIAL) == [
            [S, 5, 6, 7, D, 8, 9, E],
            [S, 5, 6, 7, D, 10, E],
            [S, 5, 6, 7, D, E],
        ]

    def test_a_special_token_in_a_text_is_refused(self) -> None:
        for text in ([5, E], [S], [D, 5]):
            with pytest.raises(ValueError, match="which is special"):
                classification(text, SPECIAL)

    @pytest.mark.parametrize("options", [[], [ONE]])
    def test_a_choice_without_options_is_refused(self, options: list[list[int]]) -> None:
        with pytest.raises(ValueError, match=f"{len(options)} options: there must be two"):
            multiple_choice(TWO, options, SPECIAL)

    def test_rows_are_padded_on_the_right_and_missing_options_are_padding(self) -> None:
        found = assemble(
            [multiple_choice([5], [[6], [7]], SPECIAL), multiple_choice([5], [[6, 7], [8], [9]], SPECIAL)],
            [1, 2],
            longest=16,
        )
        assert found.tokens.tolist() == [
            [[S, 5, D, 6, E, 0], [S, 5, D, 7, E, 0], [0] * 6],
            [[S, 5, D, 6, 7, E], [S, 5, D, 8, E, 0], [S, 5, D, 9, E, 0]],
        ]
        assert found.labels.tolist() == [1, 2]

    @pytest.mark.parametrize(
        ("examples", "labels", "classes", "named"),
        [
            ([], [], 2, "0 examples and 0 labels"),
            ([[[S, 5, E]]], [0, 1], 2, "1 examples and 2 labels"),
            ([[[S, 5, E]], [[S, 5, E]]], [0, 2], 2, "example 1 has the label 2; it must be from 0 to 1"),
            ([[[S, 5, E]]], [-1], 2, "example 0 has the label -1"),
            ([[[S, 5, E], [S, 6, E]]], [2], None, "example 0 has the label 2; it must be from 0 to 1"),
            ([[[S, 5, E]], []], [0, 0], 2, "example 1 has no rows"),
            ([[[S, *[5] * 14, E]], [[S, *[5] * 15, E]]], [0, 0], 2, "example 1 has a row of 17 tokens.* reads 16"),
        ],
    )
    def test_bad_examples_are_refused(self, examples: Any, labels: Any, classes: int | None, named: str) -> None:
        with pytest.raises(ValueError, match=named):
            assemble(examples, labels, longest=16, classes=classes)


def a_batch() -> Examples:
    examples = [similarity(ONE, TWO, SPECIAL), similarity(THREE, THREE, SPECIAL), similarity(TWO, ONE, SPECIAL)]
    return assemble(examples, [0, 1, 1], longest=16, classes=2)


class TestHeads:
    def test_the_last_tokens_vectors_are_added_up_and_mapped(self) -> None:
        model = shaken(Classifier(body(), ["no", "yes", "maybe"]))
        tokens = a_batch().tokens
        with torch.no_grad():
            found = model(tokens)
            for rows, logits in zip(tokens, found, strict=True):
                last = [model.body.hidden(row[None, row != PADDING])[0, -1] for row in rows]
                torch.testing.assert_close(logits, model.score.weight @ (last[0] + last[1]), rtol=1e-5, atol=1e-5)

    def test_similarity_has_no_order(self) -> None:
        model = shaken(Classifier(body(), ["no", "yes"])).double()
        first, _, third = a_batch().tokens
        with torch.no_grad():
            found = model(torch.stack((first, third)))
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)
        # A single row does have one.
        single = torch.stack((first[:1], third[:1]))
        with torch.no_grad():
            found = model(single)
        assert float((found[0] - found[1]).abs().max()) > 1e-3

    def test_options_are_scored_by_themselves_and_missing_ones_never_chosen(self) -> None:
        model = shaken(Chooser(body())).double()
        full = multiple_choice(ONE, [TWO, THREE, [11], [12, 13]], SPECIAL)
        found = assemble([full, full[:2]], [0, 0], longest=16)
        with torch.no_grad():
            scores = model(found.tokens)
            alone = model(assemble([full[2:3] + full[:1]], [0], longest=16).tokens)
        assert scores[1, 2:].tolist() == [-math.inf] * 2
        torch.testing.assert_close(scores[0, :2], scores[1, :2])
        torch.testing.assert_close(alone[0], scores[0, [2, 0]])

    def test_padding_changes_nothing_and_an_example_alone_is_as_in_its_batch(self) -> None:
        for model in (Classifier(body(), ["no", "yes"]), Chooser(body())):
            model = shaken(model).double()
            tokens = a_batch().tokens
            with torch.no_grad():
                together = model(tokens)
                wider = model(F.pad(tokens, (0, 4), value=PADDING))
                torch.testing.assert_close(wider, together, rtol=0, atol=1e-12)
                for example, expected in zip(tokens, together, strict=True):
                    length = int((example != PADDING).sum(-1).max())
                    alone = model(example[None, :, :length])
                    torch.testing.assert_close(alone[0], expected, rtol=0, atol=1e-12)

    def test_an_lstm_takes_the_same_heads(self) -> None:
        lstm = RecurrentLanguageModel(VOCABULARY + 3, 24, 30)
        tokens = a_batch().tokens
        for model in (Classifier(lstm, ["no", "yes"]), Chooser(lstm)):
            assert model(tokens).shape == (3, 2)
            with pytest.raises(UnsupportedError, match="LSTM has no place"):
                model.to_config()

    @pytest.mark.parametrize("labels", [[], ["one"], ["a", "a"]])
    def test_labels_are_two_or_more(self, labels: list[str]) -> None:
        with pytest.raises(ValueError, match="two or more, each once"):
            Classifier(body(), labels)


LABELS: dict[str, Any] = {"id2label": {0: "no", 1: "yes", 2: "maybe"}, "label2id": {"no": 0, "yes": 1, "maybe": 2}}
THEIRS: dict[str, Any] = {"vocab_size": 43, "n_positions": 16, "n_embd": 24, "n_layer": 3, "n_head": 3}


class TestCheckpoints:
    def test_a_classifier_is_theirs_both_ways(self, tmp_path: Path) -> None:
        theirs: Any = shaken(
            transformers.OpenAIGPTForSequenceClassification(
                transformers.OpenAIGPTConfig(**THEIRS, **LABELS, pad_token_id=0)
            )
        )
        theirs.save_pretrained(tmp_path / "first")
        ours = Classifier.from_pretrained(tmp_path / "first")
        assert ours.labels == ("no", "yes", "maybe")
        ours.save_pretrained(tmp_path / "second")
        loaded: Any = transformers.OpenAIGPTForSequenceClassification.from_pretrained(
            tmp_path / "second", output_loading_info=True
        )
        again, told = loaded
        assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert again.config.id2label == LABELS["id2label"]
        # Without the second order, which transformers' model does not read.
        for tokens in (a_batch().tokens[:, 0], torch.tensor([[S, E]]), torch.tensor([[S, 5, D, 6, 0, 0, 0]])):
            with torch.no_grad():
                expected = theirs(tokens).logits
                torch.testing.assert_close(ours(tokens[:, None]), expected, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(again.eval()(tokens).logits, expected, rtol=1e-5, atol=1e-5)

    def test_a_chooser_is_theirs_both_ways(self, tmp_path: Path) -> None:
        theirs = shaken(transformers.OpenAIGPTDoubleHeadsModel(transformers.OpenAIGPTConfig(**THEIRS)))
        theirs.save_pretrained(tmp_path / "first")
        ours = Chooser.from_pretrained(tmp_path / "first")
        # Their rows have no padding unless they say where they end.
        assert ours.padding == -1
        ours.padding = PADDING
        ours.save_pretrained(tmp_path / "second")
        loaded: Any = transformers.OpenAIGPTDoubleHeadsModel.from_pretrained(
            tmp_path / "second", output_loading_info=True
        )
        again, told = loaded
        assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        tokens = a_batch().tokens
        ends = (tokens != PADDING).sum(-1) - 1
        with torch.no_grad():
            expected = theirs(tokens, mc_token_ids=ends)
            torch.testing.assert_close(ours(tokens), expected.mc_logits, rtol=1e-5, atol=1e-5)
            found = again.eval()(tokens, mc_token_ids=ends)
            torch.testing.assert_close(found.mc_logits, expected.mc_logits, rtol=1e-5, atol=1e-5)
            words = ours.body(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
            torch.testing.assert_close(words, expected.logits, rtol=1e-5, atol=1e-5)

    def test_the_language_model_is_read_from_under_a_classifier(self, tmp_path: Path) -> None:
        model = shaken(Classifier(body(), ["no", "yes"]))
        model.save_pretrained(tmp_path)
        tokens = a_batch().tokens[:, 0]
        with torch.no_grad():
            torch.testing.assert_close(GPT1.from_pretrained(tmp_path)(tokens), model.body(tokens))

    def test_a_tied_table_may_be_stored_twice(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        model = shaken(Chooser(body()))
        model.save_pretrained(tmp_path)
        stored = load_file(tmp_path / "model.safetensors")
        table = stored["lm_head.weight"]
        save_file({**stored, "transformer.tokens_embed.weight": table.clone()}, tmp_path / "model.safetensors")
        tokens = a_batch().tokens
        with torch.no_grad():
            torch.testing.assert_close(Chooser.from_pretrained(tmp_path)(tokens), model(tokens))
        save_file({**stored, "transformer.tokens_embed.weight": table + 1}, tmp_path / "model.safetensors")
        with pytest.raises(WeightsError, match="tokens_embed"):
            Chooser.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("kind", "change", "named"),
        [
            (Chooser, {"summary_activation": "tanh"}, "summary_activation is 'tanh'"),
            (Chooser, {"summary_type": "mean"}, "summary_type is 'mean'"),
            (Classifier, {"problem_type": "regression"}, "problem_type is 'regression'"),
            (Classifier, {"id2label": {"0": "one"}}, "2 labels or more"),
            (Classifier, {"afn": "tanh"}, "afn is 'tanh'"),
        ],
    )
    def test_what_is_not_supported_is_named(self, kind: Any, change: dict[str, Any], named: str) -> None:
        with pytest.raises(UnsupportedError, match=named):
            kind.from_config({**body().to_config(), **change})

    def test_every_parameter_has_one_name(self) -> None:
        for model in (Classifier(body(), ["no", "yes"]), Chooser(body())):
            named = [own for name in model.weight_names() for own in name.ours]
            assert sorted(named) == sorted(name for name, _ in model.named_parameters())


def loss_by_hand(model: Any, examples: Examples, weight: float) -> float:
    """Give the mean loss an example as equations 1, 4 and 5 say it, row by row and token by token."""
    labelled = words = 0.0
    count = 0
    for rows, label in zip(examples.tokens, examples.labels, strict=True):
        labelled -= float(model(rows[None])[0].log_softmax(-1)[label])
        for row in rows:
            real = row[row != PADDING]
            if not len(real):
                continue
            logits = model.body(real[None])[0].log_softmax(-1)
            for place in range(1, len(real)):
                words -= float(logits[place - 1, real[place]])
                count += 1
    return labelled / len(examples.labels) + weight * words / max(1, count)


class TestLoss:
    @pytest.mark.parametrize("weight", [0.5, 0.0, 2.0])
    def test_is_that_of_the_labels_and_of_the_words(self, weight: float) -> None:
        model = shaken(Classifier(body(), ["no", "yes"]))
        examples = a_batch()
        with torch.no_grad():
            total, count = fine_tuning_loss(model, examples, auxiliary=weight)
            assert count == 3
            assert float(total) / count == pytest.approx(loss_by_hand(model, examples, weight), rel=1e-4)

    def test_rows_that_are_missing_do_not_count(self) -> None:
        model = shaken(Chooser(body()))
        full = multiple_choice(ONE, [TWO, THREE, [11, 12]], SPECIAL)
        examples = assemble([full, full[:2]], [2, 0], longest=16)
        with torch.no_grad():
            total, count = fine_tuning_loss(model, examples)
            assert float(total) / int(count) == pytest.approx(loss_by_hand(model, examples, 0.5), rel=1e-4)

    def test_the_paper_weighs_words_by_a_half(self) -> None:
        model = shaken(Classifier(body(), ["no", "yes"]))
        with torch.no_grad():
            found, _ = fine_tuning_loss(model, a_batch())
            half, _ = fine_tuning_loss(model, a_batch(), auxiliary=0.5)
            none, _ = fine_tuning_loss(model, a_batch(), auxiliary=0.0)
        assert torch.equal(found, half) and float(half - none) > 1

    @pytest.mark.parametrize("kind", ["classifier", "chooser", "lstm"])
    def test_fine_tuning_learns(self, kind: str) -> None:
        """Whether token 5 stands in the first text, or which option has it."""
        generator = torch.Generator().manual_seed(0)
        examples, labels = [], []
        for _ in range(32):
            one, two = torch.randint(6, VOCABULARY, (2, 4), generator=generator).tolist()
            label = int(torch.randint(2, (1,), generator=generator))
            if kind == "chooser":
                (two if label else one)[1] = 5
                examples.append(multiple_choice([4], [one, two], SPECIAL))
            else:
                if label:
                    one[1] = 5
                examples.append(entailment(one, two, SPECIAL))
            labels.append(label)
        found = assemble(examples, labels, longest=16, classes=None if kind == "chooser" else 2)
        torch.manual_seed(0)
        inner = RecurrentLanguageModel(VOCABULARY + 3, 24, 30, deviation=0.1) if kind == "lstm" else body(deviation=0.1)
        model = Chooser(inner) if kind == "chooser" else Classifier(inner, ["no", "yes"])
        train(model, lambda _step: tuple(found), fine_tuning_loss, TrainingConfig(40, 1e-2))
        with torch.no_grad():
            assert float((model.eval()(found.tokens).argmax(-1) == found.labels).float().mean()) > 0.95


class TestTransfer:
    @pytest.mark.parametrize("layers", [0, 1, 3, None])
    def test_copies_embeddings_and_the_first_layers(self, layers: int | None) -> None:
        source, target = shaken(body(VOCABULARY)), body()
        new = {name: value.clone() for name, value in target.named_parameters()}
        transfer(source, target, layers)
        for name, value in target.named_parameters():
            copied = source.get_parameter(name)
            if name == "embedding.weight":
                assert torch.equal(value[:VOCABULARY], copied)
                assert torch.equal(value[VOCABULARY:], new[name][VOCABULARY:])
            elif name.startswith("blocks.") and int(name.split(".")[1]) >= (3 if layers is None else layers):
                assert torch.equal(value, new[name]), name
            else:
                assert torch.equal(value, copied), name

    def test_new_tokens_change_nothing_for_the_old(self) -> None:
        source = shaken(body(VOCABULARY))
        extended = with_new_tokens(source).eval()
        assert extended.config.vocabulary == VOCABULARY + 3
        tokens = torch.randint(VOCABULARY, (2, 9))
        with torch.no_grad():
            torch.testing.assert_close(extended(tokens)[..., :VOCABULARY], source(tokens))
        extended.embedding.weight.data.zero_()
        assert bool(source.embedding.weight.any())
        assert with_new_tokens(source.double()).embedding.weight.dtype == torch.float64

    def test_an_lstm_is_copied_whole(self) -> None:
        source = shaken(RecurrentLanguageModel(VOCABULARY, 24, 30))
        target = RecurrentLanguageModel(VOCABULARY + 3, 24, 30).eval()
        transfer(source, target)
        tokens: Tensor = torch.randint(VOCABULARY, (2, 9))
        with torch.no_grad():
            torch.testing.assert_close(target.hidden(tokens), source.hidden(tokens))
        with pytest.raises(ValueError, match="1 layers cannot be transferred: the pre-trained model has 0 blocks"):
            transfer(source, target, 1)

    def test_what_does_not_fit_is_refused(self) -> None:
        with pytest.raises(ValueError, match="4 layers cannot be transferred: the pre-trained model has 3 blocks"):
            transfer(body(), body(), 4)
        with pytest.raises(ValueError, match=r"embedding\.weight is \(43, 24\) in the pre-trained model, in the other"):
            transfer(body(), body(VOCABULARY))
        with pytest.raises(ValueError, match=r"positions\.table\.weight is \(16, 24\)"):
            transfer(body(), body(positions=12))
        with pytest.raises(ValueError, match=r"blocks\.2.* it is missing"):
            transfer(body(), body(layers=2))
