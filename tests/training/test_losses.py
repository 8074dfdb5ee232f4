"""`next_token_loss`: of windows, and of rows whose padding and prompts are no targets."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from allyouneed.data.labelled import IGNORE_INDEX, LabelledBatch, label_pairs
from allyouneed.nn import Attention, Block, Decoder, FeedForward, LearnedPositions, PreNorm, RotaryPositions
from allyouneed.papers.alibi import ALiBi
from allyouneed.training import TrainingConfig, evaluate, next_token_loss, train

PAIRS = [([3, 4], [5, 6, 7]), ([1], [2]), ([8, 9, 10, 11, 12], [13]), ([2, 2, 2], [4, 5, 6, 7, 8, 9])]
SCHEMES = {
    "rotary": lambda: RotaryPositions(4),
    "learned": lambda: LearnedPositions(16, 16),
    "alibi": lambda: ALiBi(4),
}


def decoder(scheme: str = "rotary") -> Decoder:
    torch.manual_seed(0)
    blocks = [Block(PreNorm(Attention(16, 4), nn.LayerNorm(16)), PreNorm(FeedForward(16), nn.LayerNorm(16)))]
    return Decoder(17, 16, blocks, positions=SCHEMES[scheme](), norm=nn.LayerNorm(16)).double()


def answers_alone(model: Decoder) -> tuple[Any, int]:
    """Give the loss of the answers' tokens, a row at a time, from whole log probabilities."""
    total, count = 0.0, 0
    for prompt, answer in PAIRS:
        row = torch.tensor([prompt + answer])
        logits = model(row[:, :-1]).log_softmax(-1)[0]
        for place in range(len(prompt), row.shape[1]):
            total, count = total - logits[place - 1, row[0, place]], count + 1
    return total, count


def test_of_windows_it_is_the_cross_entropy_of_the_shifted_row():
    model = decoder()
    tokens = torch.randint(17, (7, 9), generator=torch.Generator().manual_seed(0))
    total, targets = next_token_loss(model, tokens)
    logits = model(tokens[:, :-1]).log_softmax(-1)
    expected = -sum(logits[row, i, tokens[row, i + 1]] for row in range(7) for i in range(8))
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    assert targets == 56


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_of_pairs_it_is_that_of_the_answers_alone(scheme: str, side: Any):
    """Loss and gradient, whatever stands in the padding."""
    model, reference = decoder(scheme), decoder(scheme)
    total, targets = next_token_loss(model, label_pairs(PAIRS, pad=16, side=side))
    expected, count = answers_alone(reference)
    assert int(targets) == count == 11
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
    total.backward()
    expected.backward()
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-11)


def test_a_row_without_labels_adds_nothing():
    model = decoder()
    whole = label_pairs(PAIRS, pad=0)
    labels = whole.labels.clone()
    labels[1] = IGNORE_INDEX
    masked = whole._replace(labels=labels)
    total, targets = next_token_loss(model, masked)
    rest = next_token_loss(model, label_pairs([PAIRS[0], *PAIRS[2:]], pad=0))
    torch.testing.assert_close(total, rest.total, rtol=1e-12, atol=0)
    assert int(targets) == int(rest.targets) == 10


def nothing_learned() -> LabelledBatch:
    batch = label_pairs(PAIRS, pad=0)
    return batch._replace(labels=torch.full_like(batch.labels, IGNORE_INDEX))


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("tokens", 17, "a token is 17: the model's vocabulary has 0 to 16"),
        ("tokens", -1, "a token is -1"),
        ("labels", 17, "a label that is not -100 is 17"),
        ("labels", -1, "a label that is not -100 is -1"),
    ],
)
def test_what_the_model_does_not_know_is_refused(part: str, value: int, said: str):
    batch = label_pairs(PAIRS, pad=0)
    changed = getattr(batch, part).clone()
    changed[-1, 1] = value
    with pytest.raises(ValueError, match=said):
        next_token_loss(decoder(), batch._replace(**{part: changed}))
    with pytest.raises(ValueError, match="a token is 17"):
        next_token_loss(decoder(), torch.tensor([[1, 2, 17]]))


def test_a_batch_without_labels_is_zero_and_no_training_takes_it():
    total, targets = next_token_loss(decoder(), nothing_learned())
    assert (total.item(), int(targets)) == (0.0, 0)
    with pytest.raises(ValueError, match="the batch of step 1 has no targets"):
        train(decoder(), lambda _: nothing_learned(), next_token_loss, TrainingConfig(1, 0.1))
    batches = [nothing_learned(), label_pairs(PAIRS, pad=0)]
    assert evaluate(decoder(), batches, next_token_loss) == pytest.approx(answers_alone(decoder())[0].item() / 11)


@pytest.mark.parametrize("accumulate", [1, 2, 3, 4])
def test_parts_weigh_by_their_labels(accumulate: int):
    """Rows have 1 to 6 labels: parts that weighed by their rows would give another step."""
    model, whole = decoder(), decoder()
    right, left = label_pairs(PAIRS, pad=0), label_pairs(PAIRS, pad=0, side="left")
    result = train(model, lambda _: right, next_token_loss, TrainingConfig(3, 1e-2, accumulate=accumulate))
    expected = train(whole, lambda _: left, next_token_loss, TrainingConfig(3, 1e-2))
    torch.testing.assert_close(result.losses, expected.losses)
    assert float(result.losses[0]) == pytest.approx(answers_alone(decoder())[0].item() / 11)
    for one, other in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8)


def test_prompts_are_read_and_not_learned():
    """One answer to each of two prompts: only who reads the prompt can tell, and prompts stay surprising."""
    pairs = [([prompt, 3], [answer]) for prompt, answer in ((1, 5), (2, 6))]
    model = decoder()
    batch = label_pairs(pairs, pad=0)
    train(model, lambda _: batch, next_token_loss, TrainingConfig(60, 2e-2))
    assert evaluate(model, [batch], next_token_loss) < 0.05
    prompts: Tensor = batch.tokens[:, :2]
    assert evaluate(model, [prompts], next_token_loss) > 1.0
