"""Gradients in float16: scaled, checked for overflow, clipped by their true norm, and continued in the same bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from allyouneed.nn import Attention, Block, Decoder, FeedForward, PreNorm, SinusoidalPositions
from allyouneed.training import Checkpoint, DivergedError, Loss, TrainingConfig, next_token_loss, train


def decoder(seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    block = Block(PreNorm(Attention(16, 4), nn.LayerNorm(16)), PreNorm(FeedForward(16), nn.LayerNorm(16)))
    return Decoder(17, 16, [block], positions=SinusoidalPositions(16), norm=nn.LayerNorm(16))


def drawn(step: int) -> Tensor:
    return torch.randint(17, (4, 9), generator=torch.Generator().manual_seed(step))


def mixed(scale: float = 2.0**16, interval: int = 2000) -> Fabric:
    """Give Fabric's mixed precision in 16 bits as it is on a GPU, where its scaler is made for the CPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=interval)
    return Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu", scaler=scaler))


def linear(start: float = 1.0) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(start)
    return model


def scaled_by(*factors: float) -> Any:
    """Give a loss w · factor of the step, whose gradient is the factor."""

    def loss(model: Any, batch: Tensor) -> Loss:
        return Loss(model.weight.sum() * factors[int(batch[0])], 1)

    return loss


def steps(step: int) -> Tensor:
    return torch.tensor([step])


class TestMixed:
    @pytest.mark.parametrize("clip", [None, 0.1])
    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_it_learns_what_32_bits_learn(self, clip: float | None, accumulate: int):
        ours, plain = decoder(), decoder()
        config = TrainingConfig(15, 3e-3, clip=clip, accumulate=accumulate)
        result = train(ours, drawn, next_token_loss, config, fabric=mixed(2.0**10))
        expected = train(plain, drawn, next_token_loss, config)
        assert result.skipped == ()
        torch.testing.assert_close(result.losses, expected.losses, rtol=5e-3, atol=0)
        assert {p.dtype for p in ours.parameters()} == {torch.float32}

    def test_gradients_are_clipped_by_their_true_norm(self):
        """A gradient of 0.5 is below the clip of 1 and stays, though scaled it is beyond."""
        model, norms = linear(), []
        weight: Any = model.weight
        hook = register_optimizer_step_pre_hook(lambda *_: norms.append(float(weight.grad)))
        try:
            train(model, steps, scaled_by(0.5, 4.0), TrainingConfig(2, 1e-3), fabric=mixed())
        finally:
            hook.remove()
        assert norms == pytest.approx([0.5, 1.0])

    @pytest.mark.parametrize(("clip", "factor"), [(0.5, 1.0), (0.5, 0.25), (None, 0.75)])
    def test_of_weights_in_float16_they_are_clipped_by_their_true_norm_too(self, clip: float | None, factor: float):
        norms: list[float] = []

        def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
            norms.append(abs(optimizer.param_groups[0]["params"][0].grad.item()))

        hook = register_optimizer_step_pre_hook(note)
        try:
            train(linear().half(), steps, scaled_by(*[factor] * 3), TrainingConfig(3, 1e-3, clip=clip))
        finally:
            hook.remove()
        # In float16 the first step overflows: 2¹⁶ is too much.
        assert norms == pytest.approx([min(factor, clip or factor)] * 2)

    @pytest.mark.parametrize("half", [False, True], ids=["mixed", "float16 weights"])
    def test_parts_add_up_to_the_mean_over_all_targets(self, half: bool):
        """Adam does not see the scale of gradients, so they are looked at: (3 + 5) over 4 + 12 targets."""
        model, gradients = linear().half() if half else linear(), []

        def loss(model: Any, batch: Tensor) -> Loss:
            return Loss(model.weight.sum() * batch[0, 0], int(batch[0, 1]))

        def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
            gradients.append(optimizer.param_groups[0]["params"][0].grad.item())

        hook = register_optimizer_step_pre_hook(note)
        try:
            settings = TrainingConfig(2, 1e-3, clip=None, accumulate=2)
            batch = torch.tensor([[3, 4], [5, 12]])
            train(model, lambda _: batch, loss, settings, fabric=None if half else mixed(2.0**8))
        finally:
            hook.remove()
        # In float16 the first step overflows: 5/4 of 2¹⁶ is too much.
        assert gradients == pytest.approx([0.5] * (1 if half else 2))

    def test_a_step_that_overflows_is_skipped_and_counted(self):
        huge = 1e35  # Times 2¹⁶ it is infinite in 32 bits.
        model, fabric = linear(), mixed()
        result = train(
            model, steps, scaled_by(huge, 1.0, 1.0), TrainingConfig(3, 1e-2, weight_decay=0.0), fabric=fabric
        )
        assert result.skipped == (0,) and len(result.losses) == 3
        expected = linear()
        train(expected, steps, scaled_by(1.0, 1.0), TrainingConfig(2, 1e-2, weight_decay=0.0))
        torch.testing.assert_close(model.weight, expected.weight)
        assert fabric.strategy.precision.scaler.get_scale() == 2.0**15  # pyright: ignore

    @pytest.mark.parametrize("fabric", [mixed, None], ids=["mixed", "float16 weights"])
    def test_a_gradient_that_never_fits_ends_the_training(self, fabric: Any):
        def loss(model: Any, batch: Tensor) -> Loss:
            total = model(torch.ones(1, 1, dtype=model.weight.dtype)).sum().float()
            # The square root's slope at zero is infinite, its value is not.
            return Loss(total + (model.weight - model.weight.detach()).abs().sqrt().sum().float(), 1)

        model = linear() if fabric else linear().half()
        with pytest.raises(DivergedError, match=r"not finite even where the loss is not scaled.*step 17 of 50"):
            train(model, steps, loss, TrainingConfig(50, 0.1), fabric=fabric and fabric())
        assert model.weight.item() == 1.0

    def test_a_loss_that_is_no_number_is_no_overflow(self):
        with pytest.raises(DivergedError, match="the loss is nan at step 2 of 3"):
            train(linear(), steps, scaled_by(1.0, float("nan"), 1.0), TrainingConfig(3, 0.1), fabric=mixed())


class TestContinued:
    def test_the_factor_is_restored_and_so_are_the_bits(self, tmp_path: Path):
        """The factor doubles every third step, so that what continues with another one counts otherwise."""
        config = TrainingConfig(10, 3e-3)
        whole, first, rest = decoder(), decoder(), decoder(seed=5)
        expected = train(
            whole, drawn, next_token_loss, config, fabric=mixed(4.0, 3), checkpoint=Checkpoint(tmp_path / "whole")
        )

        class StoppedError(Exception):
            pass

        def stopping(step: int) -> Tensor:
            if step == 5:
                raise StoppedError
            return drawn(step)

        path = tmp_path / "state"
        with pytest.raises(StoppedError):
            train(first, stopping, next_token_loss, config, fabric=mixed(4.0, 3), checkpoint=Checkpoint(path, 0))
        fabric = mixed(2.0**12, 3)
        result = train(rest, drawn, next_token_loss, config, fabric=fabric, checkpoint=Checkpoint(path))
        assert fabric.strategy.precision.scaler.get_scale() == 4.0 * 2**3  # pyright: ignore
        assert torch.equal(result.losses, expected.losses)
        assert all(torch.equal(one, other) for one, other in zip(rest.parameters(), whole.parameters(), strict=True))

    def test_skipped_steps_stay_counted(self, tmp_path: Path):
        loss, kept = scaled_by(1e35, 1.0, 1e36, 1.0), Checkpoint(tmp_path / "state", 0)
        assert train(linear(), steps, loss, TrainingConfig(2, 0.1), fabric=mixed(), checkpoint=kept).skipped == (0,)
        assert train(linear(), steps, loss, TrainingConfig(4, 0.1), fabric=mixed(), checkpoint=kept).skipped == (0, 2)

    def test_other_precisions_of_computing_take_over(self, tmp_path: Path):
        """The weights are in 32 bits in both, so nothing stands in the way."""
        kept = Checkpoint(tmp_path / "state", 0)
        for number, fabric in enumerate((None, mixed(), None), start=1):
            result = train(
                decoder(), drawn, next_token_loss, TrainingConfig(3 * number, 1e-2), fabric=fabric, checkpoint=kept
            )
            assert len(result.losses) == 3 * number and bool((result.losses > 0).all())
        assert load_file(tmp_path / "state")["progress.losses"].shape == (9,)
