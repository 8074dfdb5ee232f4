"""GPT against transformers, both ways; what each position sees; the tokenizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import allyouneed
from allyouneed.data import novels
from allyouneed.hub import UnsupportedError, WeightsError, open_model
from allyouneed.papers.gpt1 import GPT1, EndOfWordBPE, GPT1Config, RecurrentLanguageModel
from allyouneed.papers.gpt1.gpt1 import gelu
from allyouneed.text import PublishedTokenizer, Tokenizer, generate
from allyouneed.training import TrainingConfig, next_token_loss, train

THEIRS: dict[str, Any] = {"vocab_size": 61, "n_positions": 19, "n_embd": 24, "n_layer": 3, "n_head": 3}
SHAPES = [(1, 1), (1, 19), (3, 13), (5, 2)]


def tiny(**changes: Any) -> GPT1:
    torch.manual_seed(0)
    sizes = {"vocabulary": 61, "positions": 19, "width": 24, "layers": 3, "heads": 3}
    drops = dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), 0.0)
    return GPT1(GPT1Config(**{**sizes, **drops, **changes})).eval()


def their_model(kind: type = transformers.OpenAIGPTLMHeadModel, **changes: Any) -> Any:
    torch.manual_seed(3)
    model = kind(transformers.OpenAIGPTConfig(**{**THEIRS, **changes})).eval()
    # Biases and norms away from zero and one, so that a forgotten one is seen.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def a_batch(rows: int, length: int) -> Tensor:
    return torch.randint(1, 61, (rows, length), generator=torch.Generator().manual_seed(rows * length))


class TestParity:
    def test_reads_theirs_with_equal_logits(self, tmp_path: Path) -> None:
        theirs = their_model()
        theirs.save_pretrained(tmp_path)
        ours = GPT1.from_pretrained(tmp_path)
        for shape in SHAPES:
            tokens = a_batch(*shape)
            with torch.no_grad():
                torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)

    def test_theirs_reads_ours(self, tmp_path: Path) -> None:
        their_model().save_pretrained(tmp_path / "first")
        ours = GPT1.from_pretrained(tmp_path / "first")
        ours.save_pretrained(tmp_path / "second")
        loaded: Any = transformers.OpenAIGPTLMHeadModel.from_pretrained(tmp_path / "second", output_loading_info=True)
        theirs, told = loaded
        assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert theirs.config.n_positions == 19 and theirs.config.initializer_range == 0.02
        for shape in SHAPES:
            tokens = a_batch(*shape)
            with torch.no_grad():
                torch.testing.assert_close(theirs.eval()(tokens).logits, ours(tokens), rtol=1e-5, atol=1e-5)

    def test_gradients_of_the_loss_are_theirs(self, tmp_path: Path) -> None:
        theirs = their_model(**dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0))
        theirs.save_pretrained(tmp_path)
        ours = GPT1.from_pretrained(tmp_path)
        tokens = a_batch(3, 13)
        loss, count = next_token_loss(ours, tokens)
        expected = theirs(tokens, labels=tokens).loss
        torch.testing.assert_close(loss / count, expected, rtol=1e-5, atol=1e-5)
        (loss / count).backward()
        expected.backward()
        named = dict(ours.named_parameters())
        stored = dict(theirs.named_parameters())
        for name in ours.weight_names():
            joined = name.join([named[own].grad for own in name.ours])  # pyright: ignore[reportArgumentType]
            torch.testing.assert_close(joined, stored[name.theirs].grad, rtol=1e-4, atol=1e-5)

    def test_reads_the_bare_model_and_early_names(self, tmp_path: Path) -> None:
        """The published checkpoint has no prefix, and the causal masks among its tensors."""
        from safetensors.torch import save_file

        theirs = their_model()
        theirs.save_pretrained(tmp_path)
        tensors = {name.removeprefix("transformer."): value for name, value in theirs.transformer.state_dict().items()}
        masks = {f"h.{index}.attn.bias": torch.ones(19, 19).tril()[None, None].clone() for index in range(3)}
        save_file({**tensors, **masks}, tmp_path / "model.safetensors")
        tokens = a_batch(3, 13)
        with torch.no_grad():
            expected = theirs(tokens).logits
            torch.testing.assert_close(GPT1.from_pretrained(tmp_path)(tokens), expected, rtol=1e-5, atol=1e-5)

    def test_the_activation_is_theirs(self) -> None:
        from transformers.models.openai.modeling_openai import ACT_FNS

        values = torch.linspace(-6, 6, 1001)
        torch.testing.assert_close(gelu(values), ACT_FNS["gelu"](values), rtol=1e-6, atol=1e-6)


class TestCheckpoints:
    def test_load_reads_what_was_saved(self, tmp_path: Path) -> None:
        model, tokenizer = tiny(), EndOfWordBPE.train(["it is a truth universally acknowledged " * 4], 40)
        model.save_pretrained(tmp_path, tokenizer)
        again, same = allyouneed.load(tmp_path)
        assert isinstance(again, GPT1)
        assert same.encode("It is a truth") == tokenizer.encode("It is a truth")
        tokens = a_batch(2, 7)
        with torch.no_grad():
            torch.testing.assert_close(again(tokens), model(tokens))

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"afn": "gelu_new"}, "afn is 'gelu_new'; only 'gelu'"),
            ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
            ({"n_head": "three"}, "n_head is 'three'; it must be of type int"),
            ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ],
    )
    def test_what_is_not_supported_is_named(self, change: dict[str, Any], named: str) -> None:
        with pytest.raises(UnsupportedError, match=named):
            GPT1.from_config({**tiny().to_config(), **change})

    def test_weights_that_do_not_fit_are_named(self, tmp_path: Path) -> None:
        import json

        their_model().save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "n_layer": 4}))
        with pytest.raises(WeightsError, match=r"h\.3\.attn\.c_attn"):
            GPT1.from_pretrained(tmp_path)

    def test_every_parameter_has_one_name(self) -> None:
        model = tiny()
        named = [own for name in model.weight_names() for own in name.ours]
        assert sorted(named) == sorted(name for name, _ in model.named_parameters())


class TestModel:
    def test_the_papers_model(self) -> None:
        with torch.device("meta"):
            model = GPT1(GPT1Config())
            theirs = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig())
        count = sum(parameter.numel() for parameter in model.parameters())
        assert count == theirs.num_parameters() == 116_534_784
        config = transformers.OpenAIGPTConfig()
        for key, value in model.to_config().items():
            if key != "architectures":
                assert getattr(config, key) == value, key

    def test_initial_weights(self) -> None:
        model = tiny(width=96, vocabulary=500)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                assert not bool(parameter.any()), name
            elif parameter.ndim == 2:
                assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name

    def test_norms_stand_after_the_sums(self) -> None:
        """Whatever the weights, what the last block gives out has mean 0 and variance 1 for each token."""
        model = tiny()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(20)
            hidden = model.hidden(a_batch(2, 9))
        torch.testing.assert_close(hidden.mean(-1), torch.zeros(2, 9), rtol=0, atol=1e-5)
        torch.testing.assert_close(hidden.var(-1, correction=0), torch.ones(2, 9), rtol=1e-2, atol=1e-2)

    def test_a_token_sees_itself_and_what_precedes_it(self) -> None:
        model = tiny()
        tokens = a_batch(1, 9)
        vectors: list[Tensor] = []

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            vectors.append(output)

        model.embedding.register_forward_hook(keep)
        hidden = model.hidden(tokens)
        (gradient,) = torch.autograd.grad(hidden[0, 4].square().sum() + hidden[0, 4].sum(), vectors[0])
        assert (gradient[0].abs().sum(-1) > 0).tolist() == [place <= 4 for place in range(9)]

    def test_the_cache_changes_nothing(self) -> None:
        model = tiny().double()
        tokens = a_batch(2, 17)
        with torch.no_grad():
            expected = model(tokens)
            cache = model.new_cache()
            parts = [model(part, cache=cache) for part in tokens.split((5, 1, 3, 8), 1)]
        torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0, atol=1e-10)

    def test_padding_changes_nothing_and_a_row_alone_is_as_in_its_batch(self) -> None:
        model = tiny().double()
        tokens = a_batch(4, 13)
        for left in (False, True):
            sizes = torch.tensor([13, 1, 4, 9])
            places = torch.arange(13)
            present = places >= 13 - sizes[:, None] if left else places < sizes[:, None]
            with torch.no_grad():
                together = model(tokens, present=present)
                for row, one in enumerate(present):
                    alone = model(tokens[row : row + 1, one])
                    torch.testing.assert_close(together[row : row + 1, one], alone, rtol=0, atol=1e-10)

    def test_generates_up_to_its_context(self) -> None:
        model = tiny()
        assert model.context == 19
        (row,) = generate(model, [[3, 4, 5]], new_tokens=10)
        assert len(row) >= 10
        with pytest.raises(ValueError, match="at most 19 tokens"):
            model(torch.zeros(1, 20, dtype=torch.long))

    def test_dropout_has_the_papers_places(self) -> None:
        model = GPT1(GPT1Config(vocabulary=61, positions=19, width=24, layers=2, heads=3)).train()
        assert model.dropout.p == 0.1
        for block in model.blocks:
            wrapped: Any = block
            assert wrapped.attention.dropout.p == wrapped.feed_forward.dropout.p == 0.1
            assert wrapped.attention.sublayer.dropout == 0.1
        tokens = a_batch(2, 9)
        assert not torch.equal(model(tokens), model(tokens))

    def test_learns_a_text_by_heart(self) -> None:
        model = tiny()
        window = torch.arange(1, 20)[None].repeat(2, 1)
        result = train(model, lambda _step: window, next_token_loss, TrainingConfig(40, 2e-2))
        assert result.losses[0] > 3.5 and result.losses[-1] < 0.5

    @pytest.mark.parametrize(
        ("change", "named"), [({"heads": 5}, "24 cannot be divided among 5"), ({"layers": 0}, "0 blocks")]
    )
    def test_impossible_sizes_are_refused(self, change: dict[str, int], named: str) -> None:
        with pytest.raises(ValueError, match=named):
            tiny(**change)


class TestRecurrentRival:
    def test_is_torchs_lstm_between_tied_embeddings(self) -> None:
        torch.manual_seed(0)
        model = RecurrentLanguageModel(61, 24, 40, layers=2)
        tokens = a_batch(3, 9)
        with torch.no_grad():
            read, _ = model.cells(model.embedding(tokens))
            expected = (read @ model.output.weight.T + model.output.bias) @ model.embedding.weight.T
            torch.testing.assert_close(model(tokens), expected)
        for layer in range(2):
            assert bool((getattr(model.cells, f"bias_ih_l{layer}")[40:80] == 1).all())

    def test_padding_on_the_right_changes_nothing(self) -> None:
        torch.manual_seed(0)
        model = RecurrentLanguageModel(61, 24, 40).eval()
        tokens = a_batch(2, 12)
        with torch.no_grad():
            torch.testing.assert_close(model(tokens)[:, :7], model(tokens[:, :7]), rtol=1e-5, atol=1e-6)

    def test_no_layers_are_refused(self) -> None:
        with pytest.raises(ValueError, match="0 layers"):
            RecurrentLanguageModel(61, 24, 40, layers=0)


@pytest.fixture(scope="module")
def trained() -> EndOfWordBPE:
    return EndOfWordBPE.train([novels("train")[0][:100_000]], 500)


TEXTS = (
    "It is a truth, universally acknowledged!",
    "  two   spaces\nand a line ",
    "don't (ever) 12,345",
    "naïve CAFÉ 日本 ∀",
)


class TestTokenizer:
    def test_is_that_of_transformers(self, trained: EndOfWordBPE, tmp_path: Path) -> None:
        trained.save(tmp_path)
        theirs = transformers.OpenAIGPTTokenizer.from_pretrained(tmp_path)
        for text in TEXTS:
            assert trained.encode(text) == theirs(text)["input_ids"]

    def test_reads_the_two_published_files(self, trained: EndOfWordBPE, tmp_path: Path) -> None:
        import json

        trained.save(tmp_path)
        model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
        for names in (("vocab.json", "merges.txt"), ("encoder_bpe_40000.json", "vocab_40000.bpe")):
            folder = tmp_path / names[0]
            folder.mkdir()
            (folder / names[0]).write_text(json.dumps(model["vocab"]))
            merges = [" ".join(pair) for pair in model["merges"]]
            (folder / names[1]).write_text("\n".join(["#version: 0.2", *merges]) + "\n")
            again = EndOfWordBPE.load(folder)
            assert again.special_tokens == trained.special_tokens == {"<unk>": 0}
            for text in TEXTS:
                assert again.encode(text) == trained.encode(text)
        tiny(vocabulary=500).save_pretrained(folder)
        assert isinstance(GPT1.read_tokenizer(open_model(folder)), EndOfWordBPE)

    def test_words_end_in_marked_tokens_and_lose_case(self, trained: EndOfWordBPE) -> None:
        assert isinstance(trained, Tokenizer)
        assert trained.vocabulary == 500
        assert trained.decode(trained.encode("The TRUTH, Sir")) == "the truth , sir"
        assert trained.encode("truth") == trained.encode(" Truth ")
        # Without the end of the word between them, two words are another's beginning.
        assert trained.encode("in to") != trained.encode("into")
        assert trained.encode("日") == [0]
        assert 0 not in trained.encode("<unk>")[1:-1]

    def test_the_same_texts_give_the_same(self, trained: EndOfWordBPE, tmp_path: Path) -> None:
        again = EndOfWordBPE.train([novels("train")[0][:100_000]], 500)
        text = novels("train")[1][:5000]
        assert again.encode(text) == trained.encode(text) == again.encode_to_tensor(text).tolist()
        again.save(tmp_path)
        assert isinstance(EndOfWordBPE.load(tmp_path), EndOfWordBPE)
        assert isinstance(PublishedTokenizer.load(tmp_path), PublishedTokenizer)

    @pytest.mark.parametrize("vocabulary", [10, 100_000])
    def test_a_vocabulary_that_the_texts_do_not_have_is_refused(self, vocabulary: int) -> None:
        with pytest.raises(ValueError, match=f"no vocabulary of {vocabulary}: <unk>, their characters and pairs"):
            EndOfWordBPE.train(["the cat sat on the mat " * 3], vocabulary)

    def test_bad_files_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor vocab\.json and merges\.txt"):
            EndOfWordBPE.load(tmp_path)
        (tmp_path / "vocab.json").write_text("[]")
        (tmp_path / "merges.txt").write_text("")
        with pytest.raises(ValueError, match=r"vocab\.json and merges\.txt in .* are no vocabulary"):
            EndOfWordBPE.load(tmp_path)
        with pytest.raises(Exception, match=r"one string|Iterable"):
            EndOfWordBPE.train("the cat", 10)
