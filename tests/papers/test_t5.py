"""T5 against transformers: both versions, odd shapes, files both ways, and what must not matter."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import T5Config as TheirConfig
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

from allyouneed.hub import UnsupportedError, WeightsError
from allyouneed.papers.t5 import (
    SIZES,
    T5,
    RelativePositions,
    T5Config,
    initialise,
    relative_buckets,
)
from allyouneed.papers.transformer import translation_loss
from allyouneed.text import beam_search

# Heads are together wider than the model in one, narrower in the other, as in the released 11B and 1.1 small.
FIRST = T5Config(
    vocabulary=37,
    width=14,
    head_width=6,
    hidden=19,
    layers=3,
    decoder_layers=2,
    heads=3,
    buckets=10,
    furthest=17,
    dropout=0.0,
)
SECOND = replace(FIRST, width=21, head_width=5, layers=2, decoder_layers=None, feed_forward="gated-gelu", tied=False)
CONFIGS = {"1.0": FIRST, "1.1": SECOND, "silu": replace(SECOND, feed_forward="gated-silu", epsilon=1e-3)}

each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def reference(config: T5Config, seed: int = 0) -> Any:
    """Make transformers' model of the same numbers, with weights far enough from their start to tell errors apart."""
    torch.manual_seed(seed)
    theirs = T5ForConditionalGeneration(
        TheirConfig(
            vocab_size=config.vocabulary,
            d_model=config.width,
            d_kv=config.head_width,
            d_ff=config.hidden,
            num_layers=config.layers,
            num_decoder_layers=config.decoder_layers,
            num_heads=config.heads,
            relative_attention_num_buckets=config.buckets,
            relative_attention_max_distance=config.furthest,
            layer_norm_epsilon=config.epsilon,
            feed_forward_proj=config.feed_forward,
            tie_word_embeddings=config.tied,
            decoder_start_token_id=0,
        )
    )
    if not config.tied:
        # It ties them at first, whatever the configuration says.
        theirs.lm_head.weight = torch.nn.Parameter(torch.empty(config.vocabulary, config.width))
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.normal_(mean=float(weight.dim() == 1), std=0.25)
    return theirs.eval()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[T5, Any]]:
    """Our model of each configuration, read from transformers' files, and theirs."""
    made = {}
    for name, config in CONFIGS.items():
        theirs = reference(config)
        folder = tmp_path_factory.mktemp("theirs")
        theirs.save_pretrained(folder)
        made[name] = (T5.from_pretrained(folder), theirs)
    return made


@pytest.fixture(params=CONFIGS)
def pair(request: pytest.FixtureRequest, pairs: dict[str, tuple[T5, Any]]) -> tuple[T5, Any]:
    return pairs[request.param]


def batch(*lengths: int, target: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Draw sources, targets that begin with token 0, and where sources are present."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    present = torch.arange(longest) < torch.tensor(lengths)[:, None]
    source = torch.randint(2, FIRST.vocabulary, (len(lengths), longest), generator=generator)
    targets = torch.randint(2, FIRST.vocabulary, (len(lengths), target), generator=generator)
    targets[:, 0] = 0
    return source, targets, present


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return float((actual - expected).abs().max()) <= tolerance * float(expected.abs().max())


class TestEqualsTransformers:
    @pytest.mark.parametrize("lengths", [(1,), (1, 5), (33, 7, 1), (4, 4)])
    @pytest.mark.parametrize("target", [1, 2, 29])
    def test_logits(self, pair: tuple[T5, Any], lengths: tuple[int, ...], target: int) -> None:
        ours, theirs = pair
        source, targets, present = batch(*lengths, target=target)
        with torch.no_grad():
            expected = theirs(input_ids=source, attention_mask=present.long(), decoder_input_ids=targets).logits
            assert close(ours(source, targets, present=present), expected)

    def test_loss_and_gradients(self, pair: tuple[T5, Any]) -> None:
        ours, theirs = (deepcopy(model).double() for model in pair)
        source, targets, present = batch(9, 4, target=7)
        targets[1, 5:] = 0
        total, count = translation_loss(ours, (source.where(present, 0), targets), padding=0)
        (total / count).backward()
        labels = targets[:, 1:].masked_fill(targets[:, 1:] == 0, -100)
        # Their norms are computed in 32 bits.
        loss = theirs(input_ids=source, attention_mask=present.long(), labels=labels).loss
        loss.backward()
        assert float((total / count).detach()) == pytest.approx(float(loss.detach()), rel=1e-6)
        own, other = dict(ours.named_parameters(remove_duplicate=False)), dict(theirs.named_parameters())
        for name in ours.weight_names():
            expected = other[name.theirs].grad
            assert close(own[name.ours[0]].grad, expected, 1e-4), name

    def test_greedy_decoding_with_a_cache(self, pair: tuple[T5, Any]) -> None:
        ours, theirs = pair
        source, _, present = batch(11, 3, 6)
        sources = [row[there].tolist() for row, there in zip(source, present, strict=True)]
        found = beam_search(ours, sources, begin=0, end=1, beam=1, alpha=0.0, limit=13)
        # The limit is the same on both sides where no target ends before it.
        written = theirs.generate(
            input_ids=source, attention_mask=present.long(), max_new_tokens=12, do_sample=False, num_beams=1
        )
        for hypothesis, row in zip(found, written.tolist(), strict=True):
            expected = row[1:]
            expected = expected[: expected.index(1)] if 1 in expected else expected
            assert hypothesis.tokens[: len(expected)] == expected[: len(hypothesis.tokens)]
            assert len(hypothesis.tokens) >= min(len(expected), 12) - 1

    def test_files_go_both_ways(self, pair: tuple[T5, Any], tmp_path: Path) -> None:
        ours, _ = pair
        ours.save_pretrained(tmp_path)
        theirs = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
        source, targets, present = batch(8, 3)
        with torch.no_grad():
            actual = ours(source, targets, present=present)
            expected = theirs(input_ids=source, attention_mask=present.long(), decoder_input_ids=targets).logits
            assert close(actual, expected)
            assert torch.equal(T5.from_pretrained(tmp_path)(source, targets, present=present), actual)
        theirs.save_pretrained(tmp_path / "again")
        with torch.no_grad():
            again = T5.from_pretrained(tmp_path / "again")
            assert again.config == ours.config
            assert torch.equal(again(source, targets, present=present), actual)

    @each_config
    def test_initial_weights(self, config: T5Config) -> None:
        """The same deviations, tensor by tensor, of a model wide enough to tell them apart."""
        torch.manual_seed(0)
        config = replace(config, width=64, head_width=16, heads=6, hidden=96, vocabulary=300, layers=1, buckets=32)
        ours = T5(config)
        numbers = {key: value for key, value in ours.to_config().items() if key != "architectures"}
        theirs = dict(T5ForConditionalGeneration(TheirConfig(**numbers)).named_parameters())
        own = dict(ours.named_parameters(remove_duplicate=False))
        for name in ours.weight_names():
            mine = own[name.ours[0]].detach()
            # Their output projection is tied at first, whatever the configuration says.
            other = theirs["shared.weight"] / config.width**0.5 if "lm_head" in name.theirs else theirs[name.theirs]
            deviation, few = float(other.detach().std()), mine.numel() < 1000
            assert float(mine.mean()) == pytest.approx(float(other.detach().mean()), abs=0.3 * deviation + 1e-6)
            assert float(mine.std()) == pytest.approx(deviation, rel=0.25 if few else 0.06, abs=1e-6), name

    @pytest.mark.parametrize("bidirectional", [True, False])
    @pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 20), (4, 3), (64, 1000)])
    def test_buckets(self, bidirectional: bool, buckets: int, furthest: int) -> None:
        offsets = torch.arange(-1500, 1501)
        expected = T5Attention._relative_position_bucket(offsets, bidirectional, buckets, furthest)
        found = relative_buckets(offsets, bidirectional=bidirectional, buckets=buckets, furthest=furthest)
        assert torch.equal(found, expected)
        assert set(found.tolist()) <= set(range(buckets))


class TestPositions:
    def test_near_offsets_have_buckets_of_their_own_and_far_ones_share(self) -> None:
        back = relative_buckets(-torch.arange(300), bidirectional=False)
        assert back[:16].tolist() == list(range(16))
        assert set(back[128:].tolist()) == {31} and int(back[100]) < 31
        assert bool((back.diff() >= 0).all())
        ahead = relative_buckets(torch.arange(1, 300), bidirectional=True)
        behind = relative_buckets(-torch.arange(1, 300), bidirectional=True)
        assert bool((ahead == behind + 16).all())

    def test_layers_share_them_and_stacks_do_not(self) -> None:
        model = T5(FIRST)
        tables = [name for name, _ in model.named_parameters() if "positions" in name]
        assert tables == ["encoder.positions.table.weight", "decoder.positions.table.weight"]
        assert model.encoder.positions.bidirectional and not model.decoder.positions.bidirectional  # pyright: ignore

    @pytest.mark.parametrize(
        ("heads", "options", "message"),
        [
            (0, {"bidirectional": True}, "at least one head, not 0"),
            (2, {"bidirectional": True, "buckets": 7}, "7 buckets cannot hold distances of two sides"),
            (2, {"bidirectional": True, "buckets": 2}, "an even number from 4 on"),
            (2, {"bidirectional": False, "buckets": 1}, "it must be at least 2"),
            (2, {"bidirectional": False, "buckets": 32, "furthest": 16}, "furthest 16 is out of range"),
        ],
    )
    def test_bad_numbers_are_refused(self, heads: int, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            RelativePositions(heads, **options)


class TestNumbers:
    def test_the_papers_sizes(self) -> None:
        """60, 220 and 770 million, 2.8 and 11 billion (section 3.7)."""
        expected = {"small": 60e6, "base": 220e6, "large": 770e6, "3b": 2.8e9, "11b": 11e9}
        for name, size in expected.items():
            with torch.device("meta"):
                count = sum(parameter.numel() for parameter in T5(SIZES[name]).parameters())
            assert count == pytest.approx(size, rel=0.05), name

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"feed_forward": "gated-square"}, "activation is 'square'; known are gelu"),
            ({"activation": "square"}, "activation is 'square'; known are gelu"),
            ({"width": 0}, "width is 0: it must be at least 1"),
            ({"decoder_layers": 0}, "decoder_layers is 0"),
            ({"dropout": 1.0}, "dropout is 1.0"),
            ({"buckets": 5}, "5 buckets cannot hold"),
        ],
    )
    def test_bad_numbers_are_refused(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            T5(replace(FIRST, **change))


class TestFiles:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        torch.manual_seed(0)
        T5(FIRST).save_pretrained(tmp_path)
        return tmp_path

    def change(self, folder: Path, **values: Any) -> Path:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return folder

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"feed_forward_proj": "gelu_10"}, "feed_forward_proj is 'gelu_10'"),
            ({"is_gated_act": True}, "is_gated_act is True; only None or False"),
            ({"dense_act_fn": "xielu"}, "dense_act_fn is 'xielu'"),
            ({"model_type": "mt5"}, "of model_type 'mt5'; T5 reads the model_type 't5'"),
            ({"is_encoder_decoder": False}, "is_encoder_decoder is False"),
            ({"decoder_start_token_id": 5}, "decoder_start_token_id is 5; targets begin with pad_token_id, 0"),
            ({"d_model": "14"}, "d_model is '14'; it must be of type int"),
            ({"architectures": ["T5EncoderModel"]}, "is a T5EncoderModel; T5 reads"),
        ],
    )
    def test_other_configurations_are_refused(self, folder: Path, values: dict[str, Any], message: str) -> None:
        with pytest.raises(UnsupportedError, match=message):
            T5.from_pretrained(self.change(folder, **values))

    @pytest.mark.parametrize("tied", [True, False])
    def test_in_fewer_bits_they_compute_about_the_same(self, tied: bool, tmp_path: Path) -> None:
        torch.manual_seed(0)
        sizes = T5Config(vocabulary=64, width=32, head_width=8, hidden=64, layers=2, heads=4, tied=tied)
        T5(sizes).save_pretrained(tmp_path)
        tokens = torch.randint(2, 64, (2, 9)), torch.randint(2, 64, (2, 5))
        with torch.no_grad():
            expected = T5.from_pretrained(tmp_path)(*tokens)
            for options in ({"quantize": "int8"}, {"dtype": torch.bfloat16}):
                assert close(T5.from_pretrained(tmp_path, **options)(*tokens).float(), expected, 0.03)  # pyright: ignore

    def test_weights_of_another_version_are_refused(self, folder: Path) -> None:
        with pytest.raises(WeightsError, match=r"missing: .*wi_0"):
            T5.from_pretrained(self.change(folder, feed_forward_proj="gated-gelu"))

    def test_older_configurations_are_read(self, folder: Path) -> None:
        """As version 4 of transformers and earlier wrote them, for both versions of the model."""
        path = folder / "config.json"
        kept = {key: value for key, value in json.loads(path.read_text()).items() if key != "tie_word_embeddings"}
        path.write_text(json.dumps(kept | {"architectures": ["T5WithLMHeadModel"]}))
        assert T5.from_pretrained(folder).config == FIRST
        assert T5.from_config(SECOND_AS_WRITTEN).config.tied is False

    @pytest.mark.parametrize("written", [{"tie_word_embeddings": False}, {"scale_decoder_outputs": False}])
    def test_an_output_layer_that_is_not_stored_is_the_embedding_table(
        self, written: dict[str, Any], tmp_path: Path
    ) -> None:
        """And nothing is scaled, as by transformers; nor is it after saving."""
        T5(replace(SECOND, tied=True)).save_pretrained(tmp_path / "tied")
        folder = tmp_path / "tied"
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | written))
        theirs = T5ForConditionalGeneration.from_pretrained(folder)
        source, targets, present = batch(5, 7)
        ours = T5.from_pretrained(folder)
        ours.save_pretrained(tmp_path / "again")
        with torch.no_grad():
            expected = theirs(input_ids=source, attention_mask=present.long(), decoder_input_ids=targets).logits
            for model in (ours, T5.from_pretrained(tmp_path / "again")):
                assert close(model(source, targets, present=present), expected)


SECOND_AS_WRITTEN = {
    "model_type": "t5",
    "d_model": 8,
    "num_heads": 2,
    "vocab_size": 11,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}


def test_dropout_is_where_the_paper_has_it() -> None:
    """Within the feed-forward network, on the skip connection, on attention weights, at both ends of each stack."""
    model = T5(replace(FIRST, dropout=0.25))
    found = {
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout) and module.p == 0.25
    }
    for stack in (model.encoder, model.decoder):
        own = {name for name, module in stack.named_modules() if isinstance(module, torch.nn.Dropout)}
        assert {"dropout", "norm.1"} <= own
    for block in ("encoder.blocks.2", "decoder.blocks.1"):
        assert {f"{block}.attention.dropout", f"{block}.feed_forward.dropout"} <= found
        assert f"{block}.feed_forward.sublayer.activation.1" in found
    attention: Any = model.decoder.blocks[0].cross_attention  # pyright: ignore
    assert attention.sublayer.dropout == 0.25 and "decoder.blocks.0.cross_attention.dropout" in found
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]
    initialise(model)
