"""FlashAttention's experiment: every line at the smoke scale, and the GPU's configurations on a CPU."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from allyouneed.evidence import SCALES, Run, Task, TrialResult, run
from allyouneed.evidence.figures import svg
from allyouneed.evidence.trial import run_trial
from allyouneed.papers.flash_attention import Tile, butterfly
from allyouneed.papers.flash_attention.experiment import CLAIMS, EXPERIMENT, LENGTHS, SHARES
from allyouneed.papers.flash_attention.figure import BLOCKS, MULTIPLES
from allyouneed.papers.flash_attention.trials import FlashAttentionConfig, blocks_kept, ratio, trial, ways_to_attend

GPU: Mapping[str, FlashAttentionConfig] = EXPERIMENT.scales["gpu"].arms


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(EXPERIMENT, "smoke", folder=tmp_path_factory.mktemp("runs"), in_process=True)


def tried(config: FlashAttentionConfig, folder: Path, seed: int = 0) -> TrialResult:
    record = run_trial(Task(trial, "arm", seed, config, folder / "arm"))
    assert record.result is not None, record.error
    return record.result


def test_every_claim_is_judged(smoke: Run):
    assert not smoke.failures, [failure.error for failure in smoke.failures]
    findings = smoke.findings()
    assert list(findings) == [claim.id for claim in CLAIMS]
    assert not any(finding.missing for finding in findings.values())
    for name in ("exact_output", "exact_gradients"):
        assert findings[name].verdict == "reproduced"
    # One seed is too few for the others, bounds on every trial excepted.
    by_seeds = [claim.id for claim in CLAIMS if claim.test.kind != "exact"]
    assert {findings[name].verdict for name in by_seeds} == {"inconclusive"}


def test_what_is_measured(smoke: Run):
    results = {result.arm: result for result in smoke.trials}
    for result in smoke.trials:
        assert all(math.isfinite(value) for value in {**result.metrics, **result.costs}.values())
    # Half of the cases overflow a softmax without the running maximum, or the check is of nothing.
    assert results["exactness"].metrics["overflowing_cases"] == 2
    for arm, share in SHARES.items():
        assert results[arm].metrics["share"] == share
        assert results[arm].metrics["accesses_over_dense"] == pytest.approx(share, abs=0.1)
    assert [results[arm].metrics["block_size"] for arm in BLOCKS] == [8, 16, 32, 64]
    for arm in LENGTHS:
        assert results[arm].metrics["error_over_plain"] > 0.1
        costs = results[arm].costs
        assert costs["time_over_plain_allowed"] == costs["time_over_plain"]
        assert costs["time_over_fused_allowed"] == costs["time_over_fused"] / 2


def test_the_same_trials_give_the_same_metrics(smoke: Run, tmp_path: Path):
    """Memory and accesses too, which are counted and not sampled; what depends on the machine is among the costs."""
    arms = ("exactness", "memory_x2", "kept_0.25", "tokens_x4")
    for arm in arms:
        (before,) = (result for result in smoke.trials if result.arm == arm)
        again = tried(EXPERIMENT.scales["smoke"].arms[arm], tmp_path / arm)
        assert again.metrics == before.metrics
    assert tried(EXPERIMENT.scales["smoke"].arms["exactness"], tmp_path, seed=1).metrics != smoke.trials[0].metrics


def test_the_figure_has_every_line(smoke: Run):
    figure = EXPERIMENT.figure(smoke.trials)
    drawn: list[dict[str, list[float]]] = [
        {line.get_label(): list(line.get_xdata()) for line in axes.lines if not line.get_label().startswith("_")}
        for axes in figure.axes
    ]
    lengths = [8 * times for times in MULTIPLES]
    assert drawn[0] == {"counted": [8, 16, 32, 64], "measured (Figure 2, read off)": [64, 128, 256, 512]}
    names = ["written out", "FlashAttention", "torch's fused kernel", "block-sparse FlashAttention"]
    assert drawn[1] == dict.fromkeys(names, lengths)
    assert drawn[2] == dict.fromkeys(names[:2], lengths)
    assert "block size (keys)" in svg(figure)


@pytest.mark.parametrize("scale", SCALES)
def test_arms_differ_in_what_is_swept(scale: Any):
    arms: dict[str, FlashAttentionConfig] = dict(EXPERIMENT.scales[scale].arms)
    base = arms["counted"]
    assert arms["memory_x8"] == replace(base, fast_memory=8 * base.fast_memory)
    assert arms["length_quarter"] == replace(base, length=base.length // 4)
    assert arms["width_double"] == replace(base, head_width=2 * base.head_width)
    if scale != "smoke":
        # Theorem 2 holds for M between d and Nd.
        for name in ("memory_x8", "length_quarter", "width_double", "width_half"):
            assert arms[name].head_width <= arms[name].fast_memory <= arms[name].length * arms[name].head_width
    for times, name in MULTIPLES.items():
        assert arms[name] == replace(arms["tokens_x1"], length=times * arms["tokens_x1"].length)
    for arm, share in SHARES.items():
        assert arms[arm].kept == share * arms["kept_1"].kept
        assert arms[arm].length == arms["kept_1"].kept * arms[arm].tile_keys
    # The sequences are whole numbers of tiles: nothing else than what is swept differs.
    for name in ("counted", *BLOCKS) if scale != "smoke" else ():
        assert arms[name].length % Tile.fitting(arms[name].fast_memory, arms[name].head_width).keys == 0


def test_the_setting_of_figure_2():
    for name, keys in zip(BLOCKS, (64, 128, 256, 512), strict=True):
        config: FlashAttentionConfig = EXPERIMENT.scales["laptop"].arms[name]
        assert (config.length, config.head_width) == (1024, 64)
        assert Tile.fitting(config.fast_memory, config.head_width) == Tile(64, keys)


def test_accesses_at_the_setting_of_figure_2(tmp_path: Path):
    """By the formula of the proofs: 64 · 16 heads, two bytes a number, 16 passes over Q, O, ℓ and m."""
    metrics = tried(EXPERIMENT.scales["laptop"].arms[BLOCKS[3]], tmp_path).metrics
    passes, length, width = 2, 1024, 64
    forward = 2 * length * width + passes * length * (3 * width + 4)
    assert metrics["forward_gigabytes"] == forward * 1024 * 2 / 2**30
    assert metrics["standard_accesses"] == 11 * length**2 + 12 * length * width


def test_blocks_that_are_kept():
    config = FlashAttentionConfig("sparsity", length=32, blocks="random", kept=3)
    kept = blocks_kept(config, Tile(4, 4))
    assert kept is not None and kept.shape == (8, 8) and (kept.sum(-1) == 3).all()
    assert blocks_kept(replace(config, blocks="all"), Tile(4, 4)) is None
    kept = blocks_kept(replace(config, blocks="butterfly"), Tile(4, 4))
    assert kept is not None and torch.equal(kept, butterfly(8))


def test_ways_to_attend_agree_where_nothing_is_left_out():
    config = FlashAttentionConfig("speed", length=32, tile_queries=32, tile_keys=32)
    inputs = [torch.randn(1, 2, 32, 8) for _ in range(3)]
    found = {name: way(*inputs) for name, way in ways_to_attend(config).items()}
    for name, output in found.items():
        # Of two blocks in a row the butterfly has both.
        torch.testing.assert_close(output, found["plain"], rtol=1e-5, atol=1e-6, msg=name)


def test_ratios_are_of_neighbours():
    assert ratio([1.0, 4.0, 9.0], [2.0, 4.0, 3.0]) == 1.0


# The others differ from one of these by what is swept alone.
@pytest.mark.parametrize("arm", ["exactness", "counted", "butterfly_x1", "kept_0.25", "tokens_x1"])
def test_the_gpu_configurations_are_tried(arm: str, tmp_path: Path):
    """With shorter sequences, in its own precision and by its own kernel, under Triton's interpreter on a CPU."""
    config = GPU[arm]
    if config.kernel == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    sizes = {"exactness": {"length": 9, "cases": 2}, "accesses": {"length": 128, "fast_memory": 16_384}}
    small: dict[str, Any] = sizes.get(config.task, {"length": 64, "heads": 1, "repeats": 1})
    if config.task == "sparsity":
        small |= {"tile_queries": 4, "tile_keys": 4}
    result = tried(replace(config, **small), tmp_path)
    assert {claim.test.metric for claim in CLAIMS if arm in claim.test.arms} <= {*result.metrics, *result.costs}
    if config.task == "speed":
        assert config.bits == "bfloat16" and result.metrics["error_over_plain"] < 3
        assert result.costs["time_over_plain_allowed"] == 2 * result.costs["time_over_plain"]
        assert result.costs["time_over_fused_allowed"] == 0.7 * result.costs["time_over_fused"]
