"""The Triton kernels against the algorithm in plain PyTorch: on a GPU, or under Triton's interpreter."""

# ruff: noqa: E402

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

pytest.importorskip("triton", reason="Triton is not installed")
GPU = torch.cuda.is_available()

from allyouneed.nn import Attention, AttentionPattern
from allyouneed.papers.flash_attention import flash_attention
from allyouneed.papers.flash_attention.triton_attention import (
    Launch,
    Launches,
    triton_attention,
)

DEVICE = "cuda" if GPU else "cpu"
SMALL = Launches(Launch(32, 16), Launch(16, 32), Launch(32, 16))
"""Blocks of which even short sequences have several."""
# The interpreter cuts off what does not fit into 16 bits of bfloat16, where a GPU rounds.
TOLERANCES = {torch.float32: 2e-5 if GPU else 2e-6, torch.float16: 3e-3, torch.bfloat16: 4e-2}


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    upstream = numbers(*output.shape, seed=99).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


def near(query: Tensor, key: Tensor, value: Tensor, launches: Launches | None = SMALL, **options: Any) -> None:
    """Hold the kernels to the algorithm in float64, by the largest entry of each result."""
    ours = with_gradients(lambda *inputs: triton_attention(*inputs, launches=launches, **options), query, key, value)
    theirs = with_gradients(
        lambda *inputs: flash_attention(*inputs, **options), *(tensor.double() for tensor in (query, key, value))
    )
    for actual, expected in zip(ours, theirs, strict=True):
        assert actual.dtype == query.dtype and actual.shape == expected.shape
        error = (actual - expected).abs().max() / expected.abs().max().clamp(min=1.0)
        assert error <= TOLERANCES[query.dtype]


@pytest.mark.parametrize(
    ("width", "dtype"),
    [(32, torch.float16), (32, torch.bfloat16), (80, torch.float32), (128, torch.float16), (128, torch.bfloat16)],
)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "whole"])
def test_values_and_gradients_are_those_of_the_algorithm(width, causal, dtype):
    """A length that is a multiple of no block, in blocks of which it has several."""
    near(*(numbers(1, 2, 39, width, seed=seed, dtype=dtype) for seed in range(3)), is_causal=causal)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "whole"])
@pytest.mark.parametrize("length", [1, 16, 31, 32, 33, 65])
def test_lengths_around_the_blocks(length, causal):
    near(*(numbers(2, 1, length, 16, seed=seed) for seed in range(3)), is_causal=causal)


@pytest.mark.parametrize("sizes", [(16, 16), (64, 16), (16, 64)])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "whole"])
def test_blocks_of_any_shape(sizes, causal):
    launch = Launch(*sizes)
    near(
        *(numbers(1, 1, 75, 16, seed=seed) for seed in range(3)),
        launches=Launches(launch, launch, launch),
        is_causal=causal,
    )


@pytest.mark.parametrize(("queries", "keys"), [(1, 40), (40, 1), (17, 70), (70, 33)])
def test_other_keys_than_queries(queries, keys):
    near(numbers(2, 2, queries, 24), numbers(2, 2, keys, 24, seed=1), numbers(2, 2, keys, 24, seed=2), scale=0.3)


@pytest.mark.parametrize("width", [1, 3, 16, 100])
def test_any_width(width):
    near(*(numbers(1, 1, 20, width, seed=seed) for seed in range(3)), is_causal=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_usual_launches(dtype):
    near(*(numbers(1, 1, 140, 64, seed=seed, dtype=dtype) for seed in range(3)), launches=None, is_causal=True)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_scores_that_overflow_without_a_running_maximum():
    query, key, value = (numbers(1, 1, 50, 16, seed=seed) * size for seed, size in enumerate((30, 30, 1)))
    scores = query @ key.mT / math.sqrt(16)
    assert not torch.isfinite(scores.exp().sum(-1)).all()
    for causal in (True, False):
        ours = with_gradients(lambda *i, c=causal: triton_attention(*i, is_causal=c, launches=SMALL), query, key, value)
        inputs = [tensor.double() for tensor in (query, key, value)]
        theirs = with_gradients(lambda *i, c=causal: flash_attention(*i, is_causal=c), *inputs)
        for actual, expected in zip(ours, theirs, strict=True):
            # Scores of a thousand are rounded to 1e-4, and weights with them.
            assert (actual - expected).abs().max() <= 2e-3 * expected.abs().max()


def test_strided_inputs_and_gradients():
    stored = [numbers(2, 19, 3, 16, seed=seed) for seed in range(3)]
    ours, theirs = (
        with_gradients(lambda *inputs, of=of: of(*(tensor.transpose(1, 2) for tensor in inputs)), *stored)
        for of in (lambda *inputs: triton_attention(*inputs, launches=SMALL), flash_attention)
    )
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=5e-6)
    leaf = numbers(1, 1, 4, 16).requires_grad_()
    triton_attention(leaf, leaf, leaf).sum().backward()  # A gradient without strides of its own.
    assert leaf.grad is not None and leaf.grad.isfinite().all()


def test_as_the_kernel_of_attention():
    torch.manual_seed(0)
    theirs, ours = (Attention(32, 2, kernel=kernel).to(DEVICE) for kernel in (flash_attention, triton_attention))
    ours.load_state_dict(theirs.state_dict())
    hidden, pattern = numbers(2, 21, 32), AttentionPattern(causal=True)
    results = [with_gradients(lambda hidden, of=of: of(hidden, pattern), hidden) for of in (ours, theirs)]
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=5e-6)


@pytest.fixture
def unhooked():
    """Without the tests' own check of shapes, as for a user."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn_mask": torch.ones(6, 6)}, r"a mask of shape \(6, 6\): the kernels know causality alone"),
        ({"dropout_p": 0.1}, "dropout of 0.1: the kernels know causality alone"),
        ({"key": numbers(1, 2, 6, 5)}, r"\(1, 2, 6, 4\), \(1, 2, 6, 5\), \(1, 2, 6, 4\) do not belong"),
        ({"value": numbers(1, 2, 6, 8)}, r"\(1, 2, 6, 8\) do not belong"),
        ({"key": numbers(1, 2, 8, 4), "value": numbers(1, 2, 8, 4), "is_causal": True}, "6 queries to 8 keys"),
        ({"key": numbers(1, 2, 6, 4).half()}, "torch.float32, torch.float16 and torch.float32"),
        ({name: numbers(1, 2, 6, 4).double() for name in ("query", "key", "value")}, "are torch.float64"),
        ({name: numbers(1, 2, 6, 129) for name in ("query", "key", "value")}, "heads of width 129 and 6 keys"),
        ({name: numbers(1, 2, 0, 4) for name in ("key", "value")}, "heads of width 4 and 0 keys"),
    ],
)
def test_bad_input_is_refused_with_its_values(options, message):
    inputs = [options.pop(name, numbers(1, 2, 6, 4)) for name in ("query", "key", "value")]
    with pytest.raises(ValueError, match=message):
        triton_attention(*inputs, **options)


COMPILED = """
import json, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from allyouneed.papers.flash_attention import backward_kernels, kernels
from allyouneed.papers.flash_attention.triton_attention import triton_attention, usual_launches
found = {}
half, brain = torch.float16, torch.bfloat16
for module, name, dtype, width in (
    (kernels, "forward", half, 64),
    (backward_kernels, "backward_keys", brain, 128),
    (backward_kernels, "backward_queries", brain, 64),
):
    kernel, launch = getattr(module, name), getattr(usual_launches(width, dtype), name)
    settings = {"HEAD_WIDTH": width, "WIDTH": width, "QUERIES": launch.queries, "KEYS": launch.keys,
                "CAUSAL": True, "PRECISION": "tf32"}
    names = kernel.arg_names
    kinds = {"log_sum_base": "*fp32", "along_base": "*fp32", "queries": "i32", "keys": "i32", "scale": "fp32",
             "natural_scale": "fp32"} | dict.fromkeys(settings, "constexpr")
    stored = "*bf16" if dtype == brain else "*fp16"
    source = ASTSource(
        kernel,
        {name: kinds.get(name, stored) for name in names},
        {(names.index(name),): value for name, value in settings.items() if name in names},
        {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if name.endswith("_base")},
    )
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    found[name] = made.metadata.shared, made.asm["ptx"].count("wgmma.mma_async")
try:
    triton_attention(*[torch.ones(1, 1, 4, 16)] * 3)
except ValueError as error:
    found["refused"] = str(error)
print(json.dumps(found))
"""


def test_the_kernels_compile_for_a_hopper_gpu_and_refuse_a_cpu(tmp_path):
    """In another process, where Triton does not interpret: its compiler needs no GPU."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", COMPILED],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert not result.returncode, result.stderr
    found = json.loads(result.stdout)
    assert found.pop("refused").startswith("tensors on cpu: the kernels run on cuda, and elsewhere under Triton's")
    assert len(found) == 3
    for shared, products in found.values():
        # What a block may have on chip, and products on tensor cores.
        assert 0 < shared <= 227 * 1024 and products > 0


# On a GPU alone


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "whole"])
@pytest.mark.parametrize("width", [32, 64, 96, 128])
@pytest.mark.parametrize("length", [1024, 1500])
def test_on_a_gpu_at_lengths_of_use(length, width, causal, dtype):
    near(*(numbers(2, 2, length, width, seed=seed, dtype=dtype) for seed in range(3)), launches=None, is_causal=causal)


@pytest.mark.gpu
def test_on_a_gpu_extra_memory_is_linear():
    from allyouneed.training import peak_tensor_bytes

    def extra(length: int) -> int:
        leaves = [numbers(1, 4, length, 64, seed=seed, dtype=torch.bfloat16).requires_grad_() for seed in range(3)]
        upstream = torch.ones_like(leaves[0])
        return peak_tensor_bytes(lambda: triton_attention(*leaves).backward(upstream), "cuda")

    short, long = extra(2048), extra(8192)
    assert long <= 4.1 * short


@pytest.mark.gpu
@pytest.mark.parametrize("length", [2048, 4096, 8192, 16_384])
@pytest.mark.parametrize("width", [64, 128])
def test_on_a_gpu_speed_against_torchs_kernels(width, length):
    """The goals: 0.7 times the speed of torch's FlashAttention, twice that of attention written out."""
    import triton

    leaves = [
        numbers(1, 1024 // width, length, width, seed=seed, dtype=torch.bfloat16).requires_grad_() for seed in range(3)
    ]
    upstream = torch.randn_like(leaves[0])

    def milliseconds(function: Callable[..., Tensor]) -> float:
        def passes() -> None:
            for leaf in leaves:
                leaf.grad = None
            function(*leaves).backward(upstream)

        return triton.testing.do_bench(passes, warmup=100, rep=300, return_mode="median")

    def written_out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.mT / math.sqrt(width)).softmax(-1) @ value

    ours = milliseconds(triton_attention)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert milliseconds(F.scaled_dot_product_attention) / ours >= 0.7
    assert milliseconds(written_out) / ours >= 2.0
