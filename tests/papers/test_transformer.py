"""The Transformer's room: attention beside the paper, the whole model against torch's, the recipe, and translation."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allyouneed.data.buckets import Buckets
from allyouneed.nn import Attention, AttentionPattern, EncoderDecoder, LearnedPositions, PositionScheme
from allyouneed.papers.transformer import (
    SPECIAL_TOKENS,
    MultiHeadAttention,
    cross_attention_weights,
    encoded_pairs,
    label_smoothed_cross_entropy,
    peak_learning_rate,
    scaled_dot_product_attention,
    shared_tokenizer,
    transformer,
    translate,
    translation_loss,
)
from allyouneed.text import beam_search
from allyouneed.training import InverseSquareRoot, TrainingConfig, train

VOCABULARY, WIDTH, LAYERS, HEADS, HIDDEN = 23, 30, 2, 5, 17


def same(actual: Tensor | None, expected: Tensor | None, tolerance: float = 1e-10) -> None:
    assert actual is not None and expected is not None
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance / 10)


def randomise(module: nn.Module) -> None:
    """Draw every weight, biases and gains too, so that none could be forgotten unseen."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)


class TestAttention:
    @pytest.mark.parametrize("masked", [False, True])
    def test_equation_1_is_what_torch_computes(self, masked: bool):
        torch.manual_seed(0)
        query, key, value = (torch.randn(2, 3, size, 4).double() for size in (5, 7, 7))
        value = torch.cat((value, value), -1)
        allowed = torch.rand(2, 1, 5, 7) < 0.6 if masked else None
        if allowed is not None:
            allowed[..., 0] = True
        mixed, weights = scaled_dot_product_attention(query, key, value, allowed)
        same(mixed, F.scaled_dot_product_attention(query, key, value, attn_mask=allowed))
        same(weights.sum(-1), torch.ones(2, 3, 5).double())
        if allowed is not None:
            assert not weights.masked_select(~allowed.expand_as(weights)).any()

    def test_products_divided_by_the_root_have_the_variance_of_their_factors(self):
        """Footnote 4. Equal keys would hide the scale, so the scores are read back from the weights."""
        torch.manual_seed(0)
        query, key = torch.randn(400, 256).double(), torch.randn(50, 256).double()
        _, weights = scaled_dot_product_attention(query, key, key)
        scores = weights.log()
        assert float((scores - scores.mean(-1, keepdim=True)).var()) == pytest.approx(1.0, rel=0.1)

    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("cross", [False, True])
    def test_heads_one_by_one_are_all_heads_in_one_matrix(self, cross: bool, masked: bool):
        torch.manual_seed(0)
        plain, fused = MultiHeadAttention(WIDTH, HEADS).double(), Attention(WIDTH, HEADS, bias=False).double()
        hidden = torch.randn(2, 6, WIDTH).double().requires_grad_()
        source = torch.randn(2, 4, WIDTH).double().requires_grad_() if cross else hidden
        allowed = torch.ones(6, source.shape[1]).tril().bool()[None] if masked else None
        with torch.no_grad():
            for name in ("query", "key", "value"):
                heads = getattr(plain, f"w_{name}")
                getattr(fused, name).weight.copy_(torch.cat(list(heads), dim=1).T)
            fused.output.weight.copy_(plain.w_output.T)
        pattern = AttentionPattern(mask=None if allowed is None else allowed[:, None])
        upstream = torch.randn(2, 6, WIDTH).double()
        found = []
        for output in (
            plain(hidden, source, source, allowed),
            fused(hidden, pattern, source=source if cross else None),
        ):
            found.append((output, *torch.autograd.grad(output, {hidden, source}, upstream)))
        for actual, expected in zip(*found, strict=True):
            same(actual, expected)

    def test_keys_and_values_may_have_widths_of_their_own(self):
        """Table 3, rows (B)."""
        attention = MultiHeadAttention(12, 5, key_width=3, value_width=4)
        assert attention(torch.randn(1, 2, 12), *[torch.randn(1, 7, 12)] * 2).shape == (1, 2, 12)
        with pytest.raises(ValueError, match="width 12 cannot be divided among 5 heads"):
            MultiHeadAttention(12, 5)


class Torch(nn.Module):
    """`torch.nn.Transformer` between our embeddings and our output projection."""

    def __init__(self):
        super().__init__()
        self.stacks = nn.Transformer(WIDTH, HEADS, LAYERS, LAYERS, HIDDEN, dropout=0.0, batch_first=True)
        # Its norms after the stacks are not in the paper.
        self.stacks.encoder.norm = self.stacks.decoder.norm = None

    def forward(self, ours: EncoderDecoder, source: Tensor, target: Tensor, present: Tensor | None) -> Tensor:
        embedded = []
        for stack, tokens in ((ours.encoder, source), (ours.decoder, target)):
            embeddings = stack.embedding(tokens) * math.sqrt(WIDTH)
            embedded.append(stack.positions.embed(embeddings, torch.arange(tokens.shape[1])[None]))
        missing = None if present is None else ~present
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=torch.float64)
        hidden = self.stacks(
            *embedded, tgt_mask=mask, src_key_padding_mask=missing, memory_key_padding_mask=missing, tgt_is_causal=True
        )
        return hidden @ ours.output_weight.T


def in_torch_names(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename our stacks' weights or gradients to torch's, which holds query, key and value in one."""
    renamed = {}
    for stack, blocks in (("encoder", ("attention",)), ("decoder", ("attention", "cross_attention"))):
        for index in range(LAYERS):
            ours, theirs = f"{stack}.blocks.{index}", f"{stack}.layers.{index}"
            for kind in ("weight", "bias"):
                for number, name in enumerate(blocks):
                    attention = "self_attn" if name == "attention" else "multihead_attn"
                    parts = [values[f"{ours}.{name}.sublayer.{part}.{kind}"] for part in ("query", "key", "value")]
                    renamed[f"{theirs}.{attention}.in_proj_{kind}"] = torch.cat(parts)
                    renamed[f"{theirs}.{attention}.out_proj.{kind}"] = values[f"{ours}.{name}.sublayer.output.{kind}"]
                    renamed[f"{theirs}.norm{number + 1}.{kind}"] = values[f"{ours}.{name}.norm.{kind}"]
                renamed[f"{theirs}.norm{len(blocks) + 1}.{kind}"] = values[f"{ours}.feed_forward.norm.{kind}"]
                for part, linear in (("inner", "linear1"), ("output", "linear2")):
                    renamed[f"{theirs}.{linear}.{kind}"] = values[f"{ours}.feed_forward.sublayer.{part}.{kind}"]
    return renamed


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("batch", "source_length", "length"), [(1, 1, 1), (3, 9, 6)])
def test_equals_torch_weight_for_weight(batch: int, source_length: int, length: int, padded: bool):
    torch.manual_seed(0)
    ours = transformer(VOCABULARY, width=WIDTH, layers=LAYERS, heads=HEADS, hidden=HIDDEN, dropout=0.0).double()
    randomise(ours)
    theirs = Torch().double()
    # Strict: torch has no weight that we lack.
    theirs.stacks.load_state_dict(in_torch_names({name: value.detach() for name, value in ours.named_parameters()}))
    source = torch.randint(VOCABULARY, (batch, source_length))
    target = torch.randint(VOCABULARY, (batch, length))
    present = torch.arange(source_length) < torch.tensor([[source_length], [2], [5]])[:batch] if padded else None
    actual, expected = ours(source, target, present=present), theirs(ours, source, target, present)
    same(actual, expected)
    goals = torch.randint(VOCABULARY, (batch * length,))
    weights = dict(ours.named_parameters())
    F.cross_entropy(actual.flatten(0, 1), goals).backward()
    gradients = {name: weight.grad for name, weight in weights.items()}
    ours.zero_grad()
    F.cross_entropy(expected.flatten(0, 1), goals).backward()
    same(gradients["encoder.embedding.weight"], ours.encoder.embedding.weight.grad, 1e-8)
    stacks = {name: value for name, value in gradients.items() if "blocks" in name}
    expected_gradients = {name: weight.grad for name, weight in theirs.stacks.named_parameters()}
    assert in_torch_names(stacks).keys() == expected_gradients.keys()  # pyright: ignore[reportArgumentType]
    for name, value in in_torch_names(stacks).items():  # pyright: ignore[reportArgumentType]
        same(value, expected_gradients[name], 1e-8)


@pytest.mark.parametrize(
    ("millions", "changes"),
    [
        (65, {}),
        (36, {"layers": 2}),
        (80, {"layers": 8}),
        (28, {"width": 256}),
        (168, {"width": 1024}),
        (53, {"hidden": 1024}),
        (90, {"hidden": 4096}),
        (213, {"width": 1024, "heads": 16, "hidden": 4096}),
    ],
)
def test_parameters_are_as_many_as_in_table_3(millions: int, changes: dict[str, int]):
    """With the about 37,000 tokens of section 5.1."""
    with torch.device("meta"):
        model = transformer(37_000, **({"hidden": 2048} | changes))
    assert sum(weight.numel() for weight in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.07)


def test_dropout_is_where_section_5_4_has_it():
    model = transformer(VOCABULARY, width=WIDTH, layers=1, heads=HEADS, dropout=0.25)
    places = {name for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert places == {
        "encoder.dropout",
        "decoder.dropout",
        *(f"encoder.blocks.0.{part}.dropout" for part in ("attention", "feed_forward")),
        *(f"decoder.blocks.0.{part}.dropout" for part in ("attention", "cross_attention", "feed_forward")),
    }
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.25}
    assert {module.dropout for module in model.modules() if isinstance(module, Attention)} == {0.0}


def test_the_schedule_is_equation_3():
    width, warmup = 512, 4000
    schedule, peak = InverseSquareRoot(warmup), peak_learning_rate(width, warmup)
    for number in (1, 2, 1000, 3999, 4000, 4001, 16_000, 100_000):
        expected = width**-0.5 * min(number**-0.5, number * warmup**-1.5)
        assert peak * schedule(number - 1, 100_000) == pytest.approx(expected, rel=1e-12)


class TestLabelSmoothing:
    @pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
    def test_equals_torch_with_gradients(self, smoothing: float):
        torch.manual_seed(0)
        found = []
        hidden, weight = torch.randn(40, 6).double().requires_grad_(), torch.randn(9, 6).double().requires_grad_()
        targets = torch.randint(9, (40,))
        for loss in (
            label_smoothed_cross_entropy(hidden, weight, targets, smoothing),
            F.cross_entropy(hidden @ weight.T, targets, label_smoothing=smoothing, reduction="sum"),
        ):
            found.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
        for actual, expected in zip(*found, strict=True):
            same(actual, expected)

    @pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
    def test_a_share_that_is_none_is_refused(self, smoothing: float):
        with pytest.raises(ValueError, match=f"label smoothing {smoothing} is out of range"):
            label_smoothed_cross_entropy(torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(1).long(), smoothing)

    def test_padding_is_no_target(self):
        torch.manual_seed(0)
        model = transformer(VOCABULARY, width=WIDTH, layers=1, heads=HEADS, dropout=0.0).double()
        source, target = torch.tensor([[3, 4, 5], [6, 7, 22]]), torch.tensor([[1, 9, 8, 2], [1, 5, 2, 22]])
        loss, count = translation_loss(model, (source, target), padding=22, smoothing=0.1)
        alone = [
            translation_loss(model, (source[:1], target[:1]), padding=22, smoothing=0.1),
            translation_loss(model, (source[1:, :2], target[1:, :3]), padding=22, smoothing=0.1),
        ]
        same(loss, alone[0].total + alone[1].total)
        assert count == 5 == alone[0].targets + alone[1].targets
        logits = model(source[:1], target[:1, :-1])
        expected = F.cross_entropy(logits[0], target[0, 1:], label_smoothing=0.1, reduction="sum")
        same(alone[0].total, expected)


class TestCrossAttentionWeights:
    def test_they_are_those_that_the_model_uses(self):
        torch.manual_seed(0)
        model = transformer(VOCABULARY, width=WIDTH, layers=2, heads=HEADS, dropout=0.3).double()
        randomise(model)
        source, target = torch.randint(VOCABULARY, (2, 7)), torch.randint(VOCABULARY, (2, 4))
        kernels = [block.cross_attention.sublayer.kernel for block in model.decoder.blocks]
        weights = cross_attention_weights(model, source, target)
        assert weights.shape == (2, 2, HEADS, 4, 7)
        same(weights.sum(-1), torch.ones(2, 2, HEADS, 4).double())
        assert model.training
        assert [block.cross_attention.sublayer.kernel for block in model.decoder.blocks] == kernels
        # The first layer's, from what goes into its attention.
        seen: list[Tensor] = []
        attention = model.decoder.blocks[0].cross_attention.sublayer
        attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model.eval()
        encoded = model.encoder(source)
        model(source, target)
        query = attention.query(seen[0]).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        key = attention.key(encoded).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        same(weights[0], scaled_dot_product_attention(query, key, key)[1].detach())


PAIRS = [
    ("God saw the light.", "Y vió Dios la luz."),
    ("God called the light day.", "Y llamó Dios á la luz Día."),
    ("There was light.", "Y fué la luz."),
]


class TestTranslation:
    def test_one_vocabulary_holds_both_languages_and_the_special_tokens(self):
        tokenizer = shared_tokenizer(PAIRS, 270)
        assert tokenizer.vocabulary == 270
        assert list(tokenizer.special_tokens) == list(SPECIAL_TOKENS)
        sources, targets = encoded_pairs(tokenizer, PAIRS)
        special = tokenizer.special_tokens
        for (english, spanish), source, target in zip(PAIRS, sources, targets, strict=True):
            assert source == [*tokenizer.encode(english), special["<end>"]]
            assert target == [special["<begin>"], *tokenizer.encode(spanish), special["<end>"]]
            assert tokenizer.decode(source[:-1]) == english

    def test_a_model_learns_to_read_backwards_and_translates(self):
        """From end to end: buckets with padding, smoothed loss, warm-up, then beam search."""
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        begin, end, padding = 10, 11, 12

        def word() -> list[int]:
            length = int(torch.randint(2, 6, (1,), generator=generator))
            return torch.randint(10, (length,), generator=generator).tolist()

        words = [word() for _ in range(1500)]
        sides = [[[*source, end] for source in words], [[begin, *source[::-1], end] for source in words]]
        model = transformer(13, width=32, layers=1, heads=4, dropout=0.0)
        loss = partial(translation_loss, padding=padding, smoothing=0.1)
        config = TrainingConfig(500, 5e-3, schedule=InverseSquareRoot(60), weight_decay=0.0, betas=(0.9, 0.98))
        train(model, Buckets(sides, 350, padding, seed=0), loss, config)
        asked = [word() for _ in range(60)]
        found = beam_search(model, [[*source, end] for source in asked], begin=begin, end=end)
        right = sum(hypothesis.tokens == source[::-1] for hypothesis, source in zip(found, asked, strict=True))
        assert right >= 50

    def test_texts_come_back_as_texts(self):
        tokenizer = shared_tokenizer(PAIRS, 270)
        special = tokenizer.special_tokens

        class Says(nn.Module):
            """Says the Spanish of a source that it knows, with a special token in the middle."""

            def start(self, source: Tensor, *, present: Tensor | None = None, limit: int | None = None):
                return self

            def select(self, rows: Tensor, sources: Tensor | None = None) -> None: ...

            def __init__(self):
                super().__init__()
                self.words = [*tokenizer.encode(PAIRS[0][1]), special["<begin>"], special["<end>"]]

            def next_logits(self, tokens: Tensor, state: object) -> Tensor:
                return F.one_hot(torch.tensor([self.words.pop(0)]), 270).float() * 100

        assert translate(Says(), tokenizer, [PAIRS[0][0]], beam=1) == [PAIRS[0][1]]

    @pytest.mark.parametrize("text", ["", "  \n"])
    def test_an_empty_text_is_refused(self, text: str):
        tokenizer = shared_tokenizer(PAIRS, 270)
        model = transformer(270, width=8, layers=1, heads=2)
        with pytest.raises(ValueError, match="text 1 is empty"):
            translate(model, tokenizer, ["God", text])
        with pytest.raises(ValueError, match="text 0 is empty"):
            encoded_pairs(tokenizer, [(text, "Dios")])


class TestRefused:
    def test_vocabularies_that_differ_where_sharing_is_asked_for(self):
        with pytest.raises(ValueError, match=r"cannot be shared: it is \(30, 8\).*the decoder's is \(31, 8\)"):
            transformer(30, target_vocabulary=31, width=8, heads=2)
        model = transformer(30, target_vocabulary=31, width=8, heads=2, layers=1, shared=False)
        assert model(torch.zeros(1, 2).long(), torch.full((1, 3), 30)).shape == (1, 3, 31)

    def test_a_source_longer_than_the_learned_positions(self):
        model = transformer(30, width=8, heads=2, layers=1, positions=partial(LearnedPositions, 16))
        assert model.encoder.positions is not model.decoder.positions
        source = torch.zeros(1, 17).long()
        with pytest.raises(ValueError, match="at most 16 tokens"):
            model(source, source[:, :2])

    def test_sinusoids_refuse_no_length(self):
        model = transformer(30, width=8, heads=2, layers=1)
        assert model(torch.zeros(1, 700).long(), torch.zeros(1, 2).long()).isfinite().all()

    def test_heads_that_do_not_divide_the_width(self):
        with pytest.raises(ValueError, match="width 8 cannot be divided among 3 heads"):
            transformer(30, width=8, heads=3)

    def test_no_positions_are_a_choice(self):
        model = transformer(30, width=8, heads=2, layers=1, positions=lambda width: PositionScheme()).eval()
        source, target = torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5]])
        same(model(source, target), model(source[:, [2, 0, 1]], target), 1e-5)
