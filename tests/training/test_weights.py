"""What learns: 32-bit copies of weights in 16 bits, and what is left as it is, by name."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.strategies.fsdp import FSDPStrategy
from safetensors.torch import load_file
from torch import Tensor, nn

from allyouneed.nn import (
    Attention,
    Block,
    Decoder,
    GatedFeedForward,
    Int8Linear,
    PreNorm,
    RMSNorm,
    RotaryPositions,
    quantize_int8,
)
from allyouneed.training import Checkpoint, CheckpointError, Loss, Snapshots, TrainingConfig, next_token_loss, train


def decoder(dtype: torch.dtype = torch.float32, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    blocks = [
        Block(
            PreNorm(Attention(32, 4, bias=False), RMSNorm(32, 1e-5)),
            PreNorm(GatedFeedForward(32, 64), RMSNorm(32, 1e-5)),
        )
        for _ in range(2)
    ]
    return Decoder(17, 32, blocks, positions=RotaryPositions(8), norm=RMSNorm(32, 1e-5)).to(dtype)


def drawn(step: int) -> Tensor:
    return torch.randint(17, (4, 9), generator=torch.Generator().manual_seed(step % 2))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def moved(before: dict[str, Tensor], model: nn.Module) -> float:
    after = model.state_dict()
    return sum(int((after[n] != v).sum()) for n, v in before.items()) / sum(v.numel() for v in before.values())


class TestSixteenBits:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_small_steps_add_up(self, dtype: torch.dtype):
        """As in 32 bits: without copies nearly all of these steps would be rounded away."""
        results = {}
        for kept in (torch.float32, dtype):
            model = decoder(dtype).to(kept)
            before = weights(model)
            losses = train(model, drawn, next_token_loss, TrainingConfig(60, 5e-5, weight_decay=0.0)).losses
            assert {p.dtype for p in model.parameters()} == {kept}
            results[kept] = (float(losses[0] - losses[-1]), moved(before, model))
        (fell, _), (fell_too, moved_too) = results.values()
        assert fell > 0.05
        assert fell_too == pytest.approx(fell, rel=0.05) and moved_too > 0.8

    def test_each_step_is_that_of_its_copies(self):
        """AdamW on the 32-bit copies with the gradients at their rounded values, written out; two parts to a step."""
        ours, rounded = decoder(torch.bfloat16), decoder(torch.bfloat16)
        copies = [p.detach().float().requires_grad_() for p in rounded.parameters()]
        decayed, others = ([c for c in copies if (c.dim() > 1) == matrices] for matrices in (True, False))
        groups = [{"params": decayed, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
        for step in range(4):
            for copy in copies:
                copy.grad = torch.zeros_like(copy)
            for part in drawn(step).tensor_split(2):
                rounded.zero_grad()
                next_token_loss(rounded, part).total.backward()
                for copy, parameter in zip(copies, rounded.parameters(), strict=True):
                    assert copy.grad is not None and parameter.grad is not None
                    copy.grad += parameter.grad
            for copy in copies:
                assert copy.grad is not None
                copy.grad /= 32
            nn.utils.clip_grad_norm_(copies, 0.5)
            optimizer.step()
            with torch.no_grad():
                for copy, parameter in zip(copies, rounded.parameters(), strict=True):
                    parameter.copy_(copy)
        train(ours, drawn, next_token_loss, TrainingConfig(4, 1e-3, weight_decay=0.3, clip=0.5, accumulate=2))
        for (name, one), other in zip(ours.named_parameters(), rounded.parameters(), strict=True):
            # One rounding of bfloat16 is 2⁻⁸.
            torch.testing.assert_close(one, other, rtol=2**-8, atol=1e-6, msg=name)

    @pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
    def test_under_fabrics_true_precisions(self, precision: Any):
        model = decoder()
        fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
        before = weights(model.to(torch.bfloat16 if precision == "bf16-true" else torch.float16))
        train(model, drawn, next_token_loss, TrainingConfig(40, 3e-5, weight_decay=0.0), fabric=fabric)
        assert moved(before, model) > 0.5

    def test_only_what_is_in_16_bits_has_a_copy(self):
        model = decoder(torch.bfloat16)
        model.norm.float()
        expected = weights(model)
        train(model, drawn, next_token_loss, TrainingConfig(2, 1e-3))
        assert {name: value.dtype for name, value in model.state_dict().items()} == {
            name: value.dtype for name, value in expected.items()
        }
        assert model.norm.weight.dtype == torch.float32 and not torch.equal(model.norm.weight, expected["norm.weight"])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_continued_it_ends_in_the_same_bits(self, tmp_path: Path, dtype: torch.dtype):
        config, path = TrainingConfig(12, 1e-4, accumulate=2), tmp_path / "state"
        whole = decoder(dtype)
        expected = train(whole, drawn, next_token_loss, config, checkpoint=Checkpoint(tmp_path / "whole"))
        stop = 7

        class StoppedError(Exception):
            pass

        def batches(step: int) -> Tensor:
            if step == stop:
                raise StoppedError
            return drawn(step)

        with pytest.raises(StoppedError):
            train(decoder(dtype), batches, next_token_loss, config, checkpoint=Checkpoint(path, every_seconds=0))
        resumed = decoder(dtype, seed=9)
        result = train(resumed, drawn, next_token_loss, config, checkpoint=Checkpoint(path))
        assert torch.equal(result.losses, expected.losses) and result.skipped == expected.skipped
        for one, other in ((load_file(path), load_file(tmp_path / "whole")), (weights(resumed), weights(whole))):
            assert all(
                torch.equal(one[name], other[name])
                for name in other
                if not name.startswith(("random.", "progress.step_seconds"))
            )
        masters = [name for name in load_file(path) if "master." in name]
        assert len(masters) == len(list(whole.parameters()))
        assert all(load_file(path)[name].dtype == torch.float32 for name in masters)

    def test_a_checkpoint_in_another_precision_is_refused(self, tmp_path: Path):
        train(
            decoder(torch.bfloat16),
            drawn,
            next_token_loss,
            TrainingConfig(1, 1e-3),
            checkpoint=Checkpoint(tmp_path / "s"),
        )
        with pytest.raises(
            CheckpointError, match=r"embedding\.weight is in torch\.bfloat16 there and in torch\.float32"
        ):
            train(decoder(), drawn, next_token_loss, TrainingConfig(2, 1e-3), checkpoint=Checkpoint(tmp_path / "s"))

    def test_under_fsdp_they_are_refused(self, monkeypatch: pytest.MonkeyPatch):
        fabric = Fabric(accelerator="cpu", devices=1)
        monkeypatch.setattr(type(fabric), "strategy", property(lambda _: FSDPStrategy()))
        with pytest.raises(ValueError, match=r"cannot be trained under FSDP.*bf16-mixed"):
            train(decoder(torch.bfloat16), drawn, next_token_loss, TrainingConfig(1, 1e-3), fabric=fabric)

    def test_fewer_than_16_bits_are_refused_by_name(self):
        model = nn.Linear(4, 4)
        model.weight = nn.Parameter(model.weight.detach().to(torch.float8_e4m3fn))
        with pytest.raises(ValueError, match=r"fewer than 16 bits.*weight \(torch\.float8_e4m3fn\)"):
            train(model, lambda _: torch.ones(2, 4), lambda m, b: Loss(m(b).sum(), 2), TrainingConfig(1, 0.1))


class Adapted(nn.Module):
    """A quantised layer with a low-rank product beside it."""

    def __init__(self, base: Any):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.base(hidden) + self.up(self.down(hidden))


class TestLeft:
    def test_quantised_layers_are_refused_by_name(self):
        model = quantize_int8(decoder())
        with pytest.raises(ValueError, match=r"layers are quantised.*blocks\.0\.attention\.sublayer.*more.*adapters"):
            train(model, drawn, next_token_loss, TrainingConfig(1, 1e-3))

    def test_beside_adapters_they_are_frozen_and_pass_gradients_on(self):
        model: Any = quantize_int8(decoder().requires_grad_(False))
        for block in model.blocks:
            block.attention.sublayer.output = Adapted(block.attention.sublayer.output)
        before = weights(model)
        result = train(model, drawn, next_token_loss, TrainingConfig(2, 1e-2))
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
        assert len(changed) == 4 and all("sublayer.output." in name for name in changed)
        assert (
            "blocks.0.attention.norm.weight" in result.frozen
            and "blocks.1.attention.sublayer.output.base" in result.frozen
        )

    @pytest.mark.parametrize(("dtype", "other"), [(torch.float16, True), (torch.bfloat16, False)])
    def test_one_16_bit_type_is_not_computed_in_the_other(self, dtype: torch.dtype, other: bool):
        fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
        model = decoder().to(dtype)
        if not other:
            train(model, drawn, next_token_loss, TrainingConfig(1, 1e-2), fabric=fabric)
            return
        with pytest.raises(
            ValueError, match=r"are in torch\.float16, and .* computes in torch\.bfloat16: load the model"
        ):
            train(model, drawn, next_token_loss, TrainingConfig(1, 1e-2), fabric=fabric)

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (nn.Linear(2, 2).requires_grad_(False), r"in this Linear: all its parameters are frozen.*: weight, bias$"),
            (nn.ReLU(), r"nothing to train in this ReLU: it has no parameters"),
            (nn.Sequential(Int8Linear.from_weight(torch.ones(2, 32))), r"all its weights are quantised.*: 0$"),
        ],
        ids=["frozen", "none", "quantised"],
    )
    def test_nothing_to_train(self, model: nn.Module, message: str):
        with pytest.raises(ValueError, match=message):
            train(model, lambda _: torch.ones(2, 2), lambda m, b: Loss(m(b).sum(), 2), TrainingConfig(1, 0.1))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_what_the_loss_does_not_depend_on_is_named_once(self, dtype: torch.dtype):
        model = nn.ModuleDict({"used": nn.Linear(3, 3), "spare": nn.Linear(3, 3), "later": nn.Linear(3, 3)}).to(dtype)
        given = torch.ones(2, 3, dtype=dtype)

        def loss(model: Any, batch: Tensor) -> Loss:
            hidden = model["used"](given)
            return Loss((model["later"](hidden) if int(batch[0]) else hidden).square().sum(), 2)

        with pytest.warns(UserWarning, match=r"4 of 6 weights.*: spare\.weight, spare\.bias, later\.weight") as told:
            result = train(model, lambda step: torch.full((2,), step), loss, TrainingConfig(3, 0.1))
        assert len(told) == 1 and result.unused == ("spare.weight", "spare.bias")

    def test_nothing_is_said_where_all_is_used(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert train(decoder(), drawn, next_token_loss, TrainingConfig(1, 1e-3)).unused == ()


class TestCompiled:
    """Weights of a compiled model, or of compiled parts, have the names of the plain one in files."""

    def pair(self) -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
        torch.manual_seed(1)
        part: Any = torch.compile(nn.Linear(3, 4), backend="eager")
        return plain, nn.Sequential(part, nn.Linear(4, 3))

    def test_a_model_that_is_compiled_as_a_whole(self, tmp_path: Path):
        plain, snapshots = self.pair()[0], Snapshots(tmp_path, [1])
        compiled: Any = torch.compile(plain, backend="eager")
        Checkpoint(tmp_path / "s").save(compiled, torch.optim.SGD(compiled.parameters(), lr=0.1), {})
        assert {name for name in load_file(tmp_path / "s") if "model." in name} == {
            f"model.{name}" for name in plain.state_dict()
        }
        snapshots.take(compiled, 1)
        plain.load_state_dict(snapshots.load(1))

    @pytest.mark.parametrize("first", ["plain", "compiled"])
    def test_each_continues_the_other(self, tmp_path: Path, first: str):
        plain, compiled = self.pair()
        one, other = (plain, compiled) if first == "plain" else (compiled, plain)
        assert any("_orig_mod" in name for name in compiled.state_dict())

        def loss(model: Any, batch: Tensor) -> Loss:
            return Loss(F.mse_loss(model(batch), batch, reduction="sum"), len(batch))

        for model, steps in ((one, 2), (other, 4)):
            train(
                model,
                lambda step: torch.full((2, 3), float(step)),
                loss,
                TrainingConfig(steps, 0.01),
                checkpoint=Checkpoint(tmp_path / "s"),
            )
        straight = self.pair()[first != "plain"]
        train(straight, lambda step: torch.full((2, 3), float(step)), loss, TrainingConfig(4, 0.01))
        for a, b in zip(straight.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b)
        assert not any("_orig_mod" in name for name in load_file(tmp_path / "s"))
