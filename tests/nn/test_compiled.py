"""Compiled code computes what the parts compute, and what it does not know it leaves to them, by name."""

import copy
import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from allyouneed.nn import (
    Attention,
    AttentionPattern,
    Block,
    Decoder,
    FeedForward,
    GatedFeedForward,
    Int4Linear,
    Int8Linear,
    LearnedPositions,
    PositionScheme,
    PostNorm,
    PreNorm,
    RMSNorm,
    RotaryPositions,
    compile_decoder,
    compiler,
    join_projections,
    quantize_int8,
)
from allyouneed.papers.alibi import ALiBi
from allyouneed.text import ByteTokenizer, LocalChat, Sampling, generate

pytestmark = pytest.mark.skipif(compiler.find_compiler() is None, reason="there is no C++ compiler")


def _llama(
    *,
    width: int = 64,
    heads: int = 4,
    shared: int = 2,
    hidden: int = 96,
    rotated: int | None = None,
    bias: bool = False,
) -> Decoder:
    blocks = [
        Block(
            PreNorm(Attention(width, heads, key_value_heads=shared, bias=bias), RMSNorm(width)),
            PreNorm(GatedFeedForward(width, hidden), RMSNorm(width)),
        )
        for _ in range(3)
    ]
    return Decoder(50, width, blocks, positions=RotaryPositions(width // heads, rotated=rotated), norm=RMSNorm(width))


def _with_norms(model: Decoder) -> Decoder:
    for block in model.blocks:
        layer = block.attention.sublayer
        layer.query_norm, layer.key_norm = RMSNorm(layer.head_width), RMSNorm(layer.head_width)
    return model


def _gpt2(activation: object = partial(F.gelu, approximate="tanh")) -> Decoder:
    blocks = [
        Block(
            PreNorm(Attention(45, 3), nn.LayerNorm(45)),
            PreNorm(FeedForward(45, 90, activation), nn.LayerNorm(45)),  # pyright: ignore[reportArgumentType]
        )
        for _ in range(2)
    ]
    return Decoder(50, 45, blocks, positions=LearnedPositions(64, 45), norm=nn.LayerNorm(45))


def _post_norm(positions: PositionScheme, activation: object = F.relu) -> Decoder:
    blocks = [
        Block(
            PostNorm(Attention(36, 6, head_width=8), nn.LayerNorm(36, bias=False)),
            PostNorm(FeedForward(36, 70, activation), nn.LayerNorm(36)),  # pyright: ignore[reportArgumentType]
        )
        for _ in range(2)
    ]
    return Decoder(50, 36, blocks, positions=positions, tied=False)


DECODERS = {
    "llama": _llama,
    "llama with biases": lambda: _llama(bias=True),
    "llama of odd widths": lambda: _llama(width=66, heads=3, shared=1, hidden=37),
    "llama of wide heads": lambda: _llama(width=128, heads=2, shared=1, hidden=130),
    "wider heads": lambda: _llama(width=256, heads=2, shared=2, hidden=64),
    "partly rotated": lambda: _llama(rotated=6),
    "llama with norms of queries and keys": lambda: _with_norms(_llama(heads=4, shared=2)),
    "gpt-2": _gpt2,
    "exact gelu": lambda: _gpt2(F.gelu),
    "post-norm": lambda: _post_norm(PositionScheme()),
    "alibi": lambda: _post_norm(ALiBi(6)),
}


def _model(name: str, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    model = DECODERS[name]().eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def _four_bits(model: Decoder) -> Decoder:
    generator = torch.Generator().manual_seed(1)
    for parent in list(model.blocks.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                quants = torch.randint(0, 16, child.weight.shape, generator=generator, dtype=torch.uint8)
                scale = torch.rand(len(quants), quants.shape[1] // 32, generator=generator) / 40
                setattr(parent, name, Int4Linear.from_blocks(quants, scale, -7.5 * scale, child.bias))
    return join_projections(model)  # pyright: ignore[reportReturnType]


def _compiled(model: Decoder) -> Decoder:
    """Compile a copy."""
    own = copy.deepcopy(model)
    outcome = compile_decoder(own)
    if outcome.reason is not None and "AVX-512" in outcome.reason:
        pytest.skip(outcome.reason)
    assert outcome.reason is None, outcome
    return own


@torch.inference_mode()
def _steps(model: Decoder, tokens: torch.Tensor, prompt: int, present: torch.Tensor | None = None) -> torch.Tensor:
    """Give the logits of a prompt's last token and of each after it, fed one at a time."""
    cache = model.new_cache(capacity=3)
    given = [
        model.last_logits(tokens[:, :prompt], present=None if present is None else present[:, :prompt], cache=cache)
    ]
    for place in range(prompt, tokens.shape[1]):
        own = None if present is None else present[:, place : place + 1]
        given.append(model.last_logits(tokens[:, place : place + 1], present=own, cache=cache))
    return torch.stack(given)


def _tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(50, (batch, length), generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("batch", [1, 3])
def test_steps_give_what_the_parts_give(name: str, batch: int) -> None:
    model = _model(name)
    tokens = _tokens(batch, 40)
    compiled = _compiled(model)
    expected = _steps(model, tokens, 7)
    taken = []
    step = compiled.compiled.step
    compiled.compiled.step = lambda *given: taken.append(1) or step(*given)
    found = _steps(compiled, tokens, 7)
    assert len(taken) == 33
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["llama", "gpt-2", "alibi"])
def test_padding_is_not_seen(name: str) -> None:
    model = _model(name)
    tokens = _tokens(3, 20)
    present = torch.ones(3, 20, dtype=torch.bool)
    present[1, :5], present[2, :2], present[0, 15:] = False, False, False
    expected, found = (_steps(own, tokens, 6, present) for own in (model, _compiled(model)))
    # What rows that have ended are given is meaningless.
    torch.testing.assert_close(found[:, 1:], expected[:, 1:], rtol=0, atol=2e-6 * float(expected.abs().max()))
    torch.testing.assert_close(found[:10, 0], expected[:10, 0], rtol=0, atol=2e-6 * float(expected.abs().max()))


def _dequantised(quantised: Decoder, model: Decoder) -> Decoder:
    """Give a quantised model's weights to the one that it was made of."""
    with torch.no_grad():
        model.embedding.weight.copy_(quantised.embedding.weight)
        for block, few in zip(model.blocks, quantised.blocks, strict=True):
            for name, parts in (("attention", ("query", "key", "value")), ("feed_forward", ("gate", "inner"))):
                own, other = (getattr(one, name).sublayer for one in (block, few))
                linears = [getattr(own, part) for part in parts]
                weights = other.joint.weight.split([linear.out_features for linear in linears])
                for linear, weight in zip(linears, weights, strict=True):
                    linear.weight.copy_(weight)
                own.output.weight.copy_(other.output.weight)
    return model


@pytest.mark.parametrize("name", ["llama", "llama with biases"])
@pytest.mark.parametrize("quantise", [quantize_int8, _four_bits], ids=["8 bits", "4 bits"])
@pytest.mark.parametrize("batch", [1, 5])
def test_few_bits_are_computed_as_in_32(name: str, quantise: object, batch: int) -> None:
    """As the dequantised weights are, which torch's kernel, in bfloat16, gives up to two parts in a hundred."""
    model = _model(name)
    quantised = quantise(copy.deepcopy(model))  # pyright: ignore[reportCallIssue]
    expected = _steps(_dequantised(quantised, model), _tokens(batch, 30), 1)
    found = _steps(_compiled(quantised), _tokens(batch, 30), 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))
    usual = _steps(quantised, _tokens(batch, 30), 1)
    torch.testing.assert_close(found, usual, rtol=0, atol=0.04 * float(expected.abs().max()))


@pytest.mark.parametrize(("rows", "columns", "group"), [(16, 32, 32), (100, 96, 32), (65, 256, 64), (7, 512, 256)])
@pytest.mark.parametrize("bits", [4, 5, 8])
@pytest.mark.parametrize("wide", [False, True], ids=["narrow scales", "wide scales"])
def test_tiles_multiply_as_the_integers_say(rows: int, columns: int, group: int, bits: int, wide: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    scale = torch.rand(rows, columns // group, generator=generator) + 0.1
    scale = scale if wide else scale.half()
    if bits == 4:
        quants = torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8)
        linear = Int4Linear.from_blocks(quants, scale, -4 * scale.float())
    else:
        limit = 1 << bits - 1
        quants = torch.randint(-limit, limit, (rows, columns), generator=generator, dtype=torch.int8)
        linear = Int8Linear.from_blocks(quants, scale)
    try:
        tiles = linear.use_tiles()
    except compiler.CompilerError as error:
        pytest.skip(str(error))
    assert linear.kernel == "compiled"
    # Weights in 5 bits have exact scales in 16 bits, or take 8 bits.
    assert tiles.kind.name == f"LINEAR_{8 if wide and bits == 5 else bits}_BITS" + "_WIDE_SCALES" * wide
    hidden = torch.randn(19, columns, generator=generator)
    hidden[3] = 0
    together = tiles(hidden)
    expected = hidden.double() @ linear.weight.double().T
    # Inputs have 15 bits and a sign, by group.
    largest = hidden.abs().unflatten(1, (-1, 32)).amax(2).repeat_interleave(32, 1)
    assert ((together - expected).abs() <= 2**-15 * (largest.double() @ linear.weight.double().abs().T)).all()
    # To the last bit, however many tokens there are.
    for count in range(1, 19):
        assert torch.equal(tiles(hidden[:count]), together[:count])
    torch.testing.assert_close(linear(hidden), together, rtol=0, atol=0)
    torch.testing.assert_close(linear(hidden.bfloat16()), tiles(hidden.bfloat16().float()).bfloat16(), rtol=0, atol=0)


def test_what_is_not_finite_stays_so() -> None:
    linear = Int8Linear.from_weight(torch.randn(20, 64, generator=torch.Generator().manual_seed(0)))
    try:
        tiles = linear.use_tiles()
    except compiler.CompilerError as error:
        pytest.skip(str(error))
    hidden = torch.ones(3, 64)
    hidden[0, 5], hidden[1, 40] = torch.nan, torch.inf
    assert not tiles(hidden)[:2].isfinite().any()
    assert tiles(hidden)[2].isfinite().all()


def test_a_step_does_not_depend_on_others_in_the_batch() -> None:
    model = _compiled(quantize_int8(_model("llama")))  # pyright: ignore[reportArgumentType]
    caches = [model.new_cache() for _ in range(2)]
    with torch.inference_mode():
        embedded = torch.randn(6, 1, 64, generator=torch.Generator().manual_seed(0))
        pattern = AttentionPattern(rotation=model.positions.rotation(torch.zeros(1, 1, dtype=torch.int64)))
        whole = model.compiled.step(embedded, pattern, caches[0])
        alone = model.compiled.step(embedded[4:5], pattern, caches[1])
    assert torch.equal(whole[4:5], alone)


def test_generated_tokens_are_equal() -> None:
    model = _model("llama")
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [10]]
    expected = generate(model, prompts, new_tokens=40, sampling=Sampling.greedy())
    own = copy.deepcopy(model)
    assert generate(own, prompts, new_tokens=40, sampling=Sampling.greedy(), compile=True) == expected
    assert own.compiled is not None


def test_threads_may_compute_at_once() -> None:
    model = _compiled(_model("llama"))
    prompts = [[token, token + 1] for token in range(4)]
    expected = [generate(model, [prompt], new_tokens=30, sampling=Sampling.greedy())[0] for prompt in prompts]
    found: dict[int, list[int]] = {}

    def run(row: int) -> None:
        found[row] = generate(model, [prompts[row]], new_tokens=30, sampling=Sampling.greedy())[0]

    threads = [threading.Thread(target=run, args=(row,)) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[row] for row in range(4)] == expected


def test_several_threads_of_the_model() -> None:
    model = _compiled(_model("llama"))
    tokens = _tokens(2, 20)
    one = _steps(model, tokens, 5)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(_steps(model, tokens, 5)[1:], one[1:])
    finally:
        torch.set_num_threads(before)


def test_a_copy_is_not_compiled_and_computes_with_its_own_weights() -> None:
    model = _compiled(_model("llama"))
    other = copy.deepcopy(model)
    assert other.compiled is None
    with torch.no_grad():
        other.blocks[0].attention.sublayer.output.weight.zero_()
    tokens = _tokens(1, 10)
    assert not torch.equal(_steps(model, tokens, 4), _steps(other, tokens, 4))


def test_changed_weights_count_and_moved_ones_go_the_usual_way() -> None:
    model = _compiled(_model("llama"))
    tokens = _tokens(1, 10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    plain = copy.deepcopy(model)
    torch.testing.assert_close(_steps(model, tokens, 4), _steps(plain, tokens, 4), rtol=0, atol=1e-4)
    model.double()
    assert not model.compiled.is_current()
    torch.testing.assert_close(_steps(model, tokens, 4), _steps(plain.double(), tokens, 4))
    # Compiling again says why it cannot be.
    assert "float64" in str(compile_decoder(model))


def test_training_and_gradients_go_the_usual_way() -> None:
    model = _compiled(_model("llama"))
    cache = model.new_cache()
    model.last_logits(_tokens(1, 4), cache=cache)
    hidden = torch.zeros(1, 1, 64)
    assert not model.compiled.takes(hidden, cache)
    with torch.no_grad():
        assert model.compiled.takes(hidden, cache)
        assert not model.compiled.takes(hidden.bfloat16(), cache)
        assert not model.compiled.takes(hidden, cache.branch([0, 0]))
        assert not model.compiled.takes(torch.zeros(1, 2, 64), cache)
        model.train()
        assert not model.compiled.takes(hidden, cache)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda model: model.bfloat16(), r"blocks.0.attention.norm.weight is bfloat16 on cpu"),
        (lambda model: setattr(model.blocks[1].feed_forward, "sublayer", nn.Identity()), "blocks.1.* is a Identity"),
        (lambda model: setattr(model.blocks[2].attention.sublayer, "kernel", torch.matmul), "blocks.2.*kernel"),
        (lambda model: setattr(model.blocks[0].attention.sublayer, "sinks", 4), "blocks.0.* has sinks"),
        (lambda model: setattr(model.blocks[1].attention.sublayer, "window", 4), "blocks.1.* has a window"),
        (lambda model: setattr(model.blocks[0].feed_forward.sublayer, "activation", torch.tanh), "activation tanh"),
    ],
)
def test_what_is_not_known_is_named_and_computed_as_usual(change: object, named: str) -> None:
    model = _model("llama")
    change(model)  # pyright: ignore[reportCallIssue]
    outcome = compile_decoder(model)
    assert model.compiled is None
    assert outcome.reason is not None
    with pytest.warns(UserWarning, match=named):
        LocalChat(
            model, ByteTokenizer(), "{% for message in messages %}{{ message.content }}{% endfor %}", compile=True
        )


def test_what_is_no_decoder_is_named() -> None:
    assert "a Linear is no decoder" in str(compile_decoder(nn.Linear(2, 2)))


def test_without_a_compiler_the_usual_way_is_taken_and_named(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    model = _model("llama")
    monkeypatch.setenv("ALLYOUNEED_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    compiler.compiled.cache_clear()
    with pytest.warns(UserWarning, match="computed as usual: there is no C\\+\\+ compiler no-such-compiler"):
        found = generate(model, [[1, 2]], new_tokens=5, sampling=Sampling.greedy(), compile=True)
    assert found == generate(model, [[1, 2]], new_tokens=5, sampling=Sampling.greedy())
    monkeypatch.setenv("CXX", "false")
    assert "false failed" in str(compile_decoder(model))


def test_what_was_compiled_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("ALLYOUNEED_CACHE", str(tmp_path))
    compiler.compiled.cache_clear()
    first = compile_decoder(_model("llama"))
    assert first.seconds > 0
    assert "compiled in" in str(first)
    compiler.compiled.cache_clear()
    assert compile_decoder(_model("llama")).seconds == 0
    (kept,) = (tmp_path / "compiled").iterdir()
    # Writable by others, it would not be trusted.
    kept.chmod(0o777)
    compiler.compiled.cache_clear()
    assert compile_decoder(_model("llama")).seconds > 0
    compiler.compiled.cache_clear()


def test_compiling_needs_the_cache() -> None:
    with pytest.raises(ValueError, match="use_cache False"):
        generate(_model("llama"), [[1]], new_tokens=1, compile=True, use_cache=False)
