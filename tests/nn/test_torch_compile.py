"""`torch.compile` takes decoder models whole, with their gradients, and what they refuse stays refused."""

import json
import subprocess
import sys
import tempfile

import pytest
import torch
from torch import nn

from allyouneed.nn import Attention, Block, Decoder, FeedForward, PreNorm, compiler
from allyouneed.papers.alibi import ALiBi
from allyouneed.papers.gpt1 import GPT1, GPT1Config
from allyouneed.papers.gpt2 import GPT2, GPT2Config
from allyouneed.papers.gpt3 import GPT3, GPT3Config
from allyouneed.papers.llama1 import Llama, LlamaConfig
from allyouneed.papers.rwkv import Rwkv, RwkvConfig


def _alibi() -> Decoder:
    blocks = [Block(PreNorm(Attention(32, 4), nn.LayerNorm(32)), PreNorm(FeedForward(32), nn.LayerNorm(32)))]
    return Decoder(50, 32, blocks, positions=ALiBi(4), norm=nn.LayerNorm(32))


MODELS = {
    "llama": lambda: Llama(LlamaConfig(50, 32, 2, 4, 64, key_value_heads=2, context=64)),
    "gpt1": lambda: GPT1(GPT1Config(vocabulary=50, positions=64, width=32, layers=2, heads=4)),
    "gpt2": lambda: GPT2(GPT2Config(vocabulary=50, positions=64, width=32, layers=2, heads=4)),
    "gpt3": lambda: GPT3(GPT3Config(vocabulary=50, positions=64, width=32, layers=2, heads=4, band=4)),
    "alibi": _alibi,
    "rwkv": lambda: Rwkv(RwkvConfig(50, 32, 2)),
}

TOKENS = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(0))


# What the types of shapes are checked by cannot be compiled: each model is tried in a process without that.
CHECKS = {}


def _check(function):
    CHECKS[function.__name__] = function
    return function


@_check
def no_graph_breaks(name: str) -> None:
    """Neither forwards nor backwards, and the same numbers."""
    model = MODELS[name]().eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected, found = [], []
    for run, kept in ((model, expected), (compiled, found)):
        model.zero_grad()
        logits = run(TOKENS)
        logits.pow(2).mean().backward()
        kept += [logits.detach(), *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)]
    assert len(found) == len(expected) > 5
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-5 * float(other.abs().max()))


@_check
def a_compiler_of_code(name: str) -> None:
    """The same numbers as compiled C++."""
    model = MODELS[name]().eval()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model)(TOKENS), model(TOKENS), rtol=0, atol=1e-5)


@_check
def too_many_tokens(name: str) -> None:
    """They are refused as before."""
    compiled = torch.compile(MODELS[name]().eval(), backend="eager")
    said = {"llama": "more than the model's context of 64", "gpt2": "beyond the learned table"}[name]
    with torch.no_grad():
        try:
            compiled(torch.zeros(1, 65, dtype=torch.int64))
        except ValueError as error:
            assert said in str(error), error
        else:
            raise AssertionError("nothing was refused")


@_check
def saved_names(name: str) -> None:
    """A compiled model is saved under the usual names."""
    model = MODELS[name]().eval()
    with tempfile.TemporaryDirectory() as folder:
        torch.compile(model, backend="eager").save_pretrained(folder)
        again = type(model).from_pretrained(folder)
        with torch.no_grad():
            torch.testing.assert_close(again(TOKENS), model(TOKENS))


CASES = [
    *(("no_graph_breaks", name) for name in MODELS),
    ("a_compiler_of_code", "llama"),
    ("too_many_tokens", "llama"),
    ("too_many_tokens", "gpt2"),
    ("saved_names", "llama"),
    ("saved_names", "gpt2"),
]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str | None]:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("check", "name"), CASES, ids=" ".join)
def test_torch_compile(check: str, name: str, outcomes: dict[str, str | None]) -> None:
    if check == "a_compiler_of_code" and compiler.find_compiler() is None:
        pytest.skip("there is no C++ compiler")
    assert outcomes[f"{check} {name}"] is None


def _main() -> None:
    outcomes: dict[str, str | None] = {}
    for check, name in CASES:
        torch._dynamo.reset()
        torch.manual_seed(0)
        try:
            CHECKS[check](name)
        except Exception as error:
            outcomes[f"{check} {name}"] = repr(error)
        else:
            outcomes[f"{check} {name}"] = None
    print(json.dumps(outcomes))


if __name__ == "__main__":
    _main()
