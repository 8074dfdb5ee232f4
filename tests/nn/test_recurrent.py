"""The recurrent encoder–decoder: its attention by the formula, the whole against a loop of cells, and its state."""

import pytest
import torch
from torch import Tensor, nn

from allyouneed.nn import AdditiveAttention, RecurrentEncoderDecoder

SOURCE_VOCABULARY, VOCABULARY, WIDTH, HIDDEN = 19, 23, 10, 8
CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}


def build(cell: str = "gru", layers: tuple[int, int] = (1, 2), **settings) -> RecurrentEncoderDecoder:
    torch.manual_seed(0)
    settings = {"hidden": HIDDEN} | settings
    return RecurrentEncoderDecoder(
        settings.pop("source_vocabulary", SOURCE_VOCABULARY),
        VOCABULARY,
        WIDTH,
        encoder_layers=layers[0],
        decoder_layers=layers[1],
        cell=CELLS[cell],
        **settings,
    ).double()


@pytest.fixture(params=[(cell, layers) for cell in CELLS for layers in ((1, 1), (2, 3))], ids=str)
def model(request: pytest.FixtureRequest) -> RecurrentEncoderDecoder:
    return build(*request.param)


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11)


def draw(batch: int, source: int, target: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(source + 100 * target)
    return (
        torch.randint(SOURCE_VOCABULARY, (batch, source), generator=generator),
        torch.randint(VOCABULARY, (batch, target), generator=generator),
    )


def present(*lengths: int) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def test_additive_attention_is_the_formula():
    torch.manual_seed(0)
    attention = AdditiveAttention(3, 4, 5).double()
    query, keys = torch.randn(2, 3, 3).double(), torch.randn(2, 6, 4).double()
    there = present(6, 2)
    actual = attention(query, keys, present=there)
    for b in range(2):
        for q in range(3):
            scores = torch.stack(
                [
                    attention.score.weight[0]
                    @ (attention.query.weight @ query[b, q] + attention.query.bias + attention.key.weight @ key).tanh()
                    for key in keys[b, there[b]]
                ]
            )
            same(actual[b, q], scores.softmax(0) @ keys[b, there[b]])
    weights = attention.weights(query, keys, present=there)
    same(weights.sum(-1), torch.ones(2, 3).double())
    assert not weights[1, :, 2:].any()


def test_equals_a_loop_of_gru_cells():
    """One source token after the other, one target token after the other, from the published equations."""
    model = build()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    source, target = draw(1, 5, 4)

    def gru(stack: nn.GRU, suffix: str, value: Tensor, hidden: Tensor) -> Tensor:
        weights = [getattr(stack, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        inner, outer = weights[0] @ value + weights[2], weights[1] @ hidden + weights[3]
        (reset_i, update_i, new_i), (reset_h, update_h, new_h) = inner.chunk(3), outer.chunk(3)
        reset, update = (reset_i + reset_h).sigmoid(), (update_i + update_h).sigmoid()
        return (1 - update) * (new_i + reset * new_h).tanh() + update * hidden

    read = {"": [], "_reverse": []}
    ends = []
    for suffix, tokens in (("", source[0]), ("_reverse", source[0].flip(0))):
        hidden = torch.zeros(HIDDEN).double()
        for token in tokens:
            hidden = gru(model.encoder, suffix, model.source_embedding.weight[token], hidden)
            read[suffix].append(hidden)
        ends.append(hidden)
    keys = torch.stack([torch.cat(pair) for pair in zip(read[""], read["_reverse"][::-1], strict=True)])
    lower, upper = model.bridge(torch.cat(ends)).tanh().chunk(2)
    logits = model(source, target)
    for place, token in enumerate(target[0]):
        embedded = model.embedding.weight[token]
        lower = gru(model.lower, "", embedded, lower)
        context = model.attention(lower[None, None], keys[None])[0, 0]
        upper = gru(model.upper, "", torch.cat((lower, context)), upper)
        vector = model.readout(torch.cat((upper, context, embedded))).tanh()
        same(logits[0, place], model.output_weight @ vector)


def test_padding_changes_nothing(model: RecurrentEncoderDecoder):
    source, target = draw(4, 9, 6)
    there = present(9, 4, 1, 7)
    logits = model(source, target, present=there)
    for row in range(4):
        length = 6 - row
        same(logits[row, :length], model(source[row, there[row]][None], target[row, :length][None])[0])
    others = source.where(there, (source + 7) % SOURCE_VOCABULARY)
    assert torch.equal(model(others, target, present=there), logits)


def test_targets_hear_from_the_whole_source_and_from_no_later_target(model: RecurrentEncoderDecoder):
    seen: dict[str, Tensor] = {}
    for name, part in (("source", model.source_embedding), ("target", model.embedding)):
        part.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
    logits = model(*draw(1, 4, 5))
    weights = torch.randn(VOCABULARY, dtype=torch.float64)
    for place in range(5):
        of_source, of_target = torch.autograd.grad(
            logits[0, place] @ weights, [seen["source"], seen["target"]], retain_graph=True
        )
        assert bool((of_source.abs().amax(-1) > 1e-9).all())
        assert not of_target[:, place + 1 :].any()
        assert bool((of_target[:, : place + 1].abs().amax(-1) > 1e-9).all())


@torch.no_grad()
def test_one_token_at_a_time_changes_nothing(model: RecurrentEncoderDecoder):
    source, target = draw(3, 8, 7)
    there = present(8, 2, 5)
    state = model.start(source, present=there)
    steps = [model.next_logits(target[:, place], state) for place in range(7)]
    same(torch.stack(steps, 1), model(source, target, present=there))


@torch.no_grad()
def test_beams_of_a_source_are_as_if_each_had_a_copy_of_it(model: RecurrentEncoderDecoder):
    source, target = draw(2, 6, 1)
    there = present(6, 3)
    state = model.start(source, present=there)
    model.next_logits(target[:, 0], state)
    state.select(torch.tensor([0, 0, 1, 1]))
    second = torch.tensor([1, 2, 3, 4])
    logits = model.next_logits(second, state)
    of_row = torch.tensor([0, 0, 1, 1])
    history = torch.stack((target[of_row, 0], second), 1)
    same(logits, model(source[of_row], history, present=there[of_row])[:, -1])
    state.select(torch.tensor([3, 2]), torch.tensor([1]))
    last = model.next_logits(torch.tensor([5, 6]), state)
    history = torch.cat((history[[3, 2]], torch.tensor([[5], [6]])), 1)
    same(last, model(source[[1, 1]], history, present=there[[1, 1]])[:, -1])


def test_tables_are_tied_and_shared_where_asked_for():
    tied = build(source_vocabulary=VOCABULARY)
    assert tied.output_weight is tied.embedding.weight is not tied.source_embedding.weight
    model = build(source_vocabulary=VOCABULARY, shared=True)
    assert model.source_embedding.weight is model.embedding.weight is model.output_weight
    untied = build(tied=False)
    assert untied.output_weight is not untied.embedding.weight
    assert untied.output_weight.shape == (VOCABULARY, WIDTH)


def test_recurrent_weights_start_orthogonal_and_forget_gates_open():
    model = build("lstm", (2, 2))
    for stack in (model.encoder, model.lower, model.upper):
        for name, weight in stack.named_parameters():
            if name.startswith("weight_hh"):
                for gate in weight.split(HIDDEN):
                    torch.testing.assert_close(gate @ gate.T, torch.eye(HIDDEN).double(), rtol=0, atol=1e-5)
            if name.startswith("bias_ih"):
                assert weight.tolist() == [0.0] * HIDDEN + [1.0] * HIDDEN + [0.0] * 2 * HIDDEN


def test_dropout_is_on_in_training_alone():
    model = build(dropout=0.3, layers=(2, 3))
    source, target = draw(2, 5, 4)
    assert not torch.equal(model(source, target), model(source, target))
    model.eval()
    assert torch.equal(model(source, target), model(source, target))


def test_a_scale_of_embeddings_multiplies_what_is_read():
    model, scaled = build(), build(embedding_scale=3.0)
    with torch.no_grad():
        scaled.source_embedding.weight /= 3.0
        scaled.embedding.weight /= 3.0
    same(scaled.hidden(*draw(2, 5, 4)), model.hidden(*draw(2, 5, 4)))


class TestRefused:
    @pytest.mark.parametrize("call", ["forward", "start"])
    def test_an_empty_source(self, model: RecurrentEncoderDecoder, call: str):
        source, target = draw(2, 4, 2)
        rest = (target,) if call == "forward" else ()
        with pytest.raises(ValueError, match="the sources are empty"):
            getattr(model, call)(source[:, :0], *rest)
        with pytest.raises(ValueError, match="source 0 is empty"):
            getattr(model, call)(source, *rest, present=torch.tensor([[False] * 4, [True] * 4]))

    def test_an_empty_target(self, model: RecurrentEncoderDecoder):
        with pytest.raises(ValueError, match="the targets are empty"):
            model(*draw(2, 3, 0))

    def test_padding_that_is_not_on_the_right(self, model: RecurrentEncoderDecoder):
        with pytest.raises(ValueError, match="padding must be on the right"):
            model(*draw(1, 3, 2), present=torch.tensor([[False, True, True]]))

    def test_a_vocabulary_that_differs_where_sharing_is_asked_for(self):
        with pytest.raises(ValueError, match="19 source tokens and one of 23 target tokens cannot share"):
            build(shared=True)

    def test_no_layers(self):
        with pytest.raises(ValueError, match="1 encoder and 0 decoder layers"):
            build(layers=(1, 0))
