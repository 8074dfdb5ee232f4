"""The training loop: that it learns, that it is what it says, and what it refuses."""

import math
import re
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from allyouneed.nn import Attention, Block, Decoder, FeedForward, LearnedPositions, PreNorm
from allyouneed.training import (
    Cosine,
    DivergedError,
    Linear,
    Loss,
    TrainingConfig,
    evaluate,
    next_token_loss,
    train,
)
from allyouneed.training.stepping import split_batch
from allyouneed.training.weights import Weights

TEXT = """
A reading list is a promise that is easy to make and hard to keep. One begins with the best of intentions, reads the
first paper with a pencil in hand, the second with a cup of tea, and the third not at all. What helps is to have
something to do with what was read. A model that is small enough to train while the tea is still warm, and yet real
enough to show what the paper said that it would show, is such a thing. It learns the letters of a text first, then
which of them go together, then the short words, and with patience a little of the grammar. Whoever watches the loss
fall has seen the same curve that the authors saw, only smaller. And whoever sees it rise, when the text becomes longer
than any that the model was trained on, has seen what the authors of the next paper set out to mend. The claims are
written down before the run, the numbers after it, and nobody is asked to believe either of them without looking. When
a number does not come out as it was written in the paper, that is worth as much as when it does, for then there is
something to find out. Some effects need a large model, some need a long text, and some were never there. Which is
which cannot be told from a table alone. It can be told by trying, by counting what was tried, and by saying plainly
what was not.
""".strip()


def decoder(vocabulary: int = 17, width: int = 16, length: int = 16, dropout: float = 0.0) -> Decoder:
    torch.manual_seed(0)
    block = Block(
        PreNorm(Attention(width, 4, dropout=dropout), nn.LayerNorm(width), dropout=dropout),
        PreNorm(FeedForward(width), nn.LayerNorm(width), dropout=dropout),
    )
    return Decoder(vocabulary, width, [block], positions=LearnedPositions(length, width), norm=nn.LayerNorm(width))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def drawn(step: int, rows: int = 7, vocabulary: int = 17) -> Tensor:
    return torch.randint(vocabulary, (rows, 9), generator=torch.Generator().manual_seed(step))


def with_padding(step: int) -> dict[str, Any]:
    """Give a mapping in which rows have from 1 to 8 targets, and one row has none."""
    counts = torch.tensor([8, 1, 3, 0, 8, 2, 5])[:, None]
    tokens = drawn(step)
    return {"tokens": tokens[:, :-1], "pair": (tokens[:, 1:].where(torch.arange(8) < counts, -100), counts)}


def padded_loss(model: Any, batch: dict[str, Any]) -> Loss:
    targets, _ = batch["pair"]
    logits = model(batch["tokens"])
    total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)
    return Loss(total, (targets != -100).sum())


class TestLearning:
    def test_it_learns_a_text(self):
        """Beyond the frequencies of letters, to which letter follows which; a wrong shift does not get there."""
        tokens = torch.tensor([sorted(set(TEXT)).index(letter) for letter in TEXT])
        counts = torch.tensor(list(Counter(TEXT).values())) / len(TEXT)
        unigram_entropy = float(-(counts * counts.log()).sum())
        model = decoder(len(set(TEXT)), 32, 32)

        def batches(step: int) -> Tensor:
            starts = torch.randint(len(TEXT) - 33, (16,), generator=torch.Generator().manual_seed(step))
            return torch.stack([tokens[start : start + 33] for start in starts.tolist()])

        config = TrainingConfig(100, 1e-2, schedule=Cosine(warmup=10))
        before = evaluate(model, [batches(1000)], next_token_loss)
        result = train(model, batches, next_token_loss, config)
        after = evaluate(model, [batches(1000)], next_token_loss)
        assert before > unigram_entropy > 2.7
        assert after < unigram_entropy - 0.5
        # It has not seen the next letter: with that, the loss would be near zero.
        assert after > 1.0
        assert float(result.losses[-10:].mean()) == pytest.approx(after, abs=0.3)

    def test_a_task_is_learned_that_needs_the_right_shift(self):
        """Rows that count up: the token after each is known, so the loss goes to nearly nothing."""

        def batches(step: int) -> Tensor:
            return (drawn(step)[:, :1] + torch.arange(9)) % 17

        model = decoder()
        train(model, batches, next_token_loss, TrainingConfig(120, 2e-2, schedule=Cosine(warmup=10)))
        assert evaluate(model, [batches(999)], next_token_loss) < 0.05


class TestStep:
    @pytest.mark.parametrize("clip", [None, 0.05, 100.0])
    @pytest.mark.parametrize("accumulate", [1, 3])
    def test_equals_a_loop_written_out(self, accumulate: int, clip: float | None):
        """Five steps of AdamW on the mean loss, with decay of matrices alone, the schedule and clipping."""
        ours, reference = decoder().double(), decoder().double()
        config = TrainingConfig(5, 3e-2, Linear(warmup=2, final=0.5), 0.3, (0.8, 0.9), clip, accumulate)
        result = train(ours, drawn, next_token_loss, config)
        decayed = [p for p in reference.parameters() if p.dim() > 1]
        others = [p for p in reference.parameters() if p.dim() < 2]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}], betas=(0.8, 0.9)
        )
        for step, factor in enumerate([0.5, 1.0, 1.0, 1 - 0.5 / 3, 1 - 1 / 3]):
            tokens = drawn(step)
            for group in optimizer.param_groups:
                group["lr"] = 3e-2 * factor
            optimizer.zero_grad()
            loss = F.cross_entropy(reference(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(reference.parameters(), clip)
            optimizer.step()
            assert float(result.losses[step]) == pytest.approx(loss.item(), rel=1e-6)
        for name, value in reference.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-9, atol=1e-9, msg=name)

    @pytest.mark.parametrize("accumulate", [2, 3, 7])
    @pytest.mark.parametrize("case", ["even", "padded"])
    def test_parts_make_the_step_of_the_whole(self, case: str, accumulate: int):
        batches, loss = (drawn, next_token_loss) if case == "even" else (with_padding, padded_loss)
        results = []
        for parts in (1, accumulate):
            model = decoder().double()
            losses = train(model, batches, loss, TrainingConfig(3, 1e-2, accumulate=parts)).losses
            results.append((losses, weights(model)))
        (whole_losses, whole), (losses, parts) = results
        torch.testing.assert_close(losses, whole_losses)
        for name in whole:
            # The loss does not depend on the biases of keys, so AdamW divides their gradient, rounding alone, by 1e-8.
            torch.testing.assert_close(parts[name], whole[name], rtol=1e-9, atol=1e-9, msg=name)

    @pytest.mark.parametrize("clip", [0.01, 0.5, None])
    def test_clipping_bounds_the_gradient_of_the_step(self, clip: float | None):
        norms: list[float] = []

        def measure(optimizer: torch.optim.Optimizer, *_: object) -> None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norms.append(float(nn.utils.get_total_norm(gradients)))

        hook = register_optimizer_step_pre_hook(measure)
        try:
            train(decoder(), drawn, next_token_loss, TrainingConfig(4, 1e-3, clip=clip))
        finally:
            hook.remove()
        assert len(norms) == 4
        if clip is None:
            assert min(norms) > 0.5
        else:
            assert norms == pytest.approx([clip] * 4, rel=1e-4)

    def test_frozen_weights_stay(self):
        model = decoder()
        model.embedding.requires_grad_(False)
        before = weights(model)
        result = train(model, drawn, next_token_loss, TrainingConfig(2, 1e-2))
        assert result.frozen == ("embedding.weight",) and result.unused == ()
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert "embedding.weight" not in changed and len(changed) > 10

    @pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
    def test_16_bits(self, precision: Any):
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        model = decoder(dropout=0.1)
        losses = train(model, lambda _: drawn(0), next_token_loss, TrainingConfig(12, 1e-2), fabric=fabric).losses
        assert losses.dtype == torch.float32 and losses[-1] < losses[0] - 0.3
        stored = torch.float32 if precision == "bf16-mixed" else torch.bfloat16
        assert {p.dtype for p in model.parameters()} == {stored}
        assert math.isfinite(evaluate(model, [drawn(0)], next_token_loss, fabric=fabric))

    def test_the_log_and_the_result_tell_of_every_step(self):
        lines: list[dict[str, float]] = []
        config = TrainingConfig(4, 0.5, Linear(warmup=2))
        result = train(decoder(), drawn, next_token_loss, config, log=lambda **line: lines.append(line))
        assert [line["step"] for line in lines] == [1, 2, 3, 4] and {line["steps"] for line in lines} == {4}
        assert [line["learning_rate"] for line in lines] == pytest.approx([0.25, 0.5, 0.5, 0.25])
        assert [line["loss"] for line in lines] == pytest.approx(result.losses.tolist())
        assert bool((result.step_seconds > 0).all()) and result.seconds == pytest.approx(
            float(result.step_seconds.sum())
        )

    def test_the_same_seed_gives_the_same_weights(self):
        results = []
        for _ in range(2):
            model = decoder(dropout=0.2)
            train(model, drawn, next_token_loss, TrainingConfig(3, 1e-2))
            results.append(weights(model))
        assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])

    def test_the_model_is_trained_with_dropout_whatever_its_mode(self):
        model = decoder(dropout=0.2).eval()
        train(model, drawn, next_token_loss, TrainingConfig(1, 1e-2))
        assert model.training


class TestDiverging:
    def diverge(self, loss: Any, clip: float | None = 1.0) -> None:
        model = decoder()
        before = weights(model)
        with pytest.raises(DivergedError, match=r"at step 1 of 3: try a lower learning rate than 0\.01"):
            train(model, drawn, loss, TrainingConfig(3, 1e-2, clip=clip))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    @pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf])
    def test_a_loss_that_is_no_number(self, factor: float):
        self.diverge(lambda model, batch: Loss(next_token_loss(model, batch).total * factor, 1))

    def test_the_step_is_told(self):
        def loss(model: Decoder, batch: Tensor) -> Loss:
            total, targets = next_token_loss(model, batch)
            return Loss(total * (math.nan if torch.equal(batch, drawn(2)) else 1.0), targets)

        with pytest.raises(DivergedError, match="the loss is nan at step 3 of 5"):
            train(decoder(), drawn, loss, TrainingConfig(5, 1e-2))

    @pytest.mark.parametrize("clip", [None, 1.0])
    def test_a_gradient_that_is_no_number(self, clip: float | None):
        def loss(model: Decoder, batch: Tensor) -> Loss:
            total, targets = next_token_loss(model, batch)
            # The square root's slope at zero is infinite, its value is not.
            return Loss(total + (model.norm.weight[0] - 1.0).abs().sqrt(), targets)

        self.diverge(loss, clip)


class TestGroups:
    def test_every_weight_once_and_vectors_undecayed(self):
        model = decoder()
        decayed, others = Weights(model).groups(0.3)
        assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
        everything = [id(p) for _, p in (*decayed["params"], *others["params"])]
        assert sorted(everything) == sorted(id(p) for p in model.parameters())
        named = {id(p): name for name, p in model.named_parameters()}
        assert all(named[id(p)] == name for name, p in (*decayed["params"], *others["params"]))
        assert all(name.endswith("bias") or "norm" in name for name, _ in others["params"])
        assert not any(name.endswith("bias") or "norm" in name for name, _ in decayed["params"])

    def test_shared_weights_are_in_once_and_frozen_ones_not_at_all(self):
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        model[2].requires_grad_(False)
        (decayed,) = Weights(model).groups(0.1)
        assert decayed["params"] == [("0.weight", model[0].weight)]
        train(model, lambda _: torch.ones(2, 3), lambda m, b: Loss(m(b).sum(), 2), TrainingConfig(1, 0.1))


class TestEvaluate:
    def test_batches_count_by_their_targets(self):
        losses = [(6.0, 3), (1.0, 1), (0.0, 0)]
        assert evaluate(nn.Identity(), losses, lambda _, pair: Loss(torch.tensor(pair[0]), pair[1])) == 7 / 4

    def test_cutting_batches_otherwise_changes_nothing(self):
        model = decoder().double()
        whole = evaluate(model, [with_padding(0)], padded_loss)
        parts = evaluate(model, split_batch(with_padding(0), 3), padded_loss)
        assert parts == pytest.approx(whole, rel=1e-12)

    @pytest.mark.parametrize("training", [True, False])
    def test_dropout_is_off_and_the_mode_comes_back(self, training: bool):
        model = decoder(dropout=0.5).train(training)
        modes = []

        def loss(module: Decoder, batch: Tensor) -> Loss:
            modes.append((module.training, torch.is_grad_enabled()))
            return next_token_loss(module, batch)

        assert evaluate(model, [drawn(0)], loss) == evaluate(model, [drawn(0)], loss)
        assert modes == [(False, False)] * 2
        assert {module.training for module in model.modules()} == {training}

    def test_the_mode_comes_back_after_an_error(self):
        model = decoder()
        with pytest.raises(ZeroDivisionError):
            evaluate(model, [drawn(0)], lambda *_: 1 // 0)
        assert model.training

    @pytest.mark.parametrize("batches", [[], [drawn(0)]], ids=["no batches", "no targets"])
    def test_refuses_nothing(self, batches: list[Tensor]):
        with pytest.raises(ValueError, match="nothing to evaluate"):
            evaluate(decoder(), batches, lambda *_: Loss(torch.tensor(0.0), 0))


class TestSplitting:
    @pytest.mark.parametrize(("rows", "parts", "sizes"), [(7, 3, [3, 2, 2]), (4, 4, [1] * 4), (5, 1, [5])])
    def test_as_even_as_can_be(self, rows: int, parts: int, sizes: list[int]):
        tensor = torch.randn(rows, 2)
        pieces = split_batch(tensor, parts)
        assert [len(piece) for piece in pieces] == sizes and torch.equal(torch.cat(pieces), tensor)

    def test_keeps_the_structure(self):
        batch = with_padding(0)
        pieces = split_batch(batch, 3)
        assert [set(piece) for piece in pieces] == [{"tokens", "pair"}] * 3
        assert all(isinstance(piece["pair"], tuple) for piece in pieces)
        assert torch.equal(torch.cat([piece["pair"][0] for piece in pieces]), batch["pair"][0])

    @pytest.mark.parametrize(
        ("batch", "parts", "named"),
        [
            (torch.zeros(2, 3), 3, r"\[2\].*3 parts"),
            (torch.zeros(0, 3), 1, r"\[0\].*1 parts"),
            ((torch.zeros(4), torch.zeros(5)), 2, r"\[4, 5\]"),
            ((), 1, r"\[\]"),
        ],
    )
    def test_refuses(self, batch: Any, parts: int, named: str):
        with pytest.raises(ValueError, match=named):
            split_batch(batch, parts)

    def test_train_refuses_a_batch_smaller_than_its_parts(self):
        with pytest.raises(ValueError, match=r"\[7\].*8 parts"):
            train(decoder(), drawn, next_token_loss, TrainingConfig(1, 0.1, accumulate=8))


def test_refuses_a_batch_without_targets():
    with pytest.raises(ValueError, match="the batch of step 1 has no targets"):
        train(
            decoder(),
            drawn,
            lambda m, b: Loss(next_token_loss(m, b).total * 0, torch.tensor(0)),
            TrainingConfig(1, 0.1),
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", -1),
        ("steps", True),
        ("accumulate", 0),
        ("learning_rate", 0.0),
        ("learning_rate", -0.1),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
        ("weight_decay", math.inf),
        ("betas", (1.0, 0.9)),
        ("betas", (0.9, -0.1)),
        ("betas", (0.9, math.nan)),
        ("clip", 0.0),
        ("clip", -1.0),
        ("clip", math.nan),
    ],
)
def test_refuses_a_configuration(name: str, value: Any):
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}: it must be ")):
        TrainingConfig(**{"steps": 1, "learning_rate": 0.1} | {name: value})


def test_refuses_a_loss_that_is_no_sum_with_its_targets():
    with pytest.raises(ValueError, match="the loss gave a Tensor: it must give a Loss"):
        train(decoder(), drawn, lambda model, batch: model(batch).sum(), TrainingConfig(1, 0.1))


@pytest.mark.parametrize("factor", [-0.5, math.nan, math.inf])
def test_refuses_a_schedule_that_gives_no_learning_rate(factor: float):
    config = TrainingConfig(3, 0.1, schedule=lambda step, steps: factor if step == 1 else 1.0)
    with pytest.raises(ValueError, match=f"gives {factor} at step 1 of 3"):
        train(decoder(), drawn, next_token_loss, config)
