"""LayerNorm and its recurrent layers against PyTorch's, and the norms that they are compared with."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from allyouneed.papers.layer_norm import (
    GRU,
    LSTM,
    BatchNorm,
    Bias,
    LayerNorm,
    RecurrentBatchNorm,
    layer_norm,
    weight_norm,
)
from allyouneed.papers.layer_norm.invariances import NORMS, TABLE_1, deviations

README = Path(__file__).parents[2] / "src/allyouneed/papers/layer_norm/readme.md"


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# The function


@settings(deadline=None, max_examples=60)
@given(
    axes=st.lists(st.integers(0, 5), max_size=3),
    units=st.integers(1, 33),
    affine=st.booleans(),
    offset=st.sampled_from([0.0, 1.0, 1e4]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_values_and_gradients_are_torchs(axes, units, affine, offset, scale):
    inputs = [numbers(*axes, units) * scale + offset]
    if affine:
        inputs += [numbers(units, seed=1), numbers(units, seed=2)]
    upstream = numbers(*axes, units, seed=3)
    results = []
    for function in (layer_norm, lambda x, *rest: F.layer_norm(x, (units,), *rest)):
        leaves = [value.clone().requires_grad_() for value in inputs]
        output = function(*leaves)
        output.backward(upstream)
        results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*results, strict=True):
        # Rounding of the sums that an offset leaves behind is scaled up with them.
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9 * max(1.0, 1 / scale))


@pytest.mark.parametrize("shape", [(1, 7), (5,), (2, 3, 4), (1, 1), (3, 2)])
@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_backward_pass_against_finite_differences(shape, epsilon):
    leaves = [numbers(*shape), 1.0 + 0.3 * numbers(shape[-1], seed=1), numbers(shape[-1], seed=2)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(lambda *values: layer_norm(*values, epsilon), leaves)
    assert torch.autograd.gradcheck(lambda value: layer_norm(value, epsilon=epsilon), leaves[:1])


def test_strided_summed_inputs():
    summed = numbers(6, 8, 2).movedim(2, 0)[:, ::2, 1::3].requires_grad_()
    assert not summed.is_contiguous()
    close(layer_norm(summed), F.layer_norm(summed, (summed.shape[-1],)))
    assert torch.autograd.gradcheck(layer_norm, (summed.detach().requires_grad_(),))


def test_only_what_is_asked_for_has_a_gradient():
    summed, gain, bias = numbers(3, 4), numbers(4).requires_grad_(), numbers(4)
    layer_norm(summed, gain, bias).sum().backward()
    assert gain.grad is not None and summed.grad is None and bias.grad is None


def test_a_second_derivative_is_refused():
    summed = numbers(2, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(layer_norm(summed).square().sum(), summed, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_normalised_in_thirty_two(dtype):
    summed = (numbers(4, 512, dtype=torch.float32) * 30 + 100).to(dtype)
    output = layer_norm(summed)
    assert output.dtype == dtype
    close(output, F.layer_norm(summed.float(), (512,)).to(dtype), 0.0)


def test_a_gradient_in_sixteen_bits_keeps_its_types():
    summed = numbers(3, 8, dtype=torch.float32).bfloat16().requires_grad_()
    norm = LayerNorm(8)
    norm(summed).sum().backward()
    assert summed.grad is not None and summed.grad.dtype == torch.bfloat16
    assert norm.gain is not None and norm.gain.grad is not None and norm.gain.grad.dtype == torch.float32


def test_equal_units():
    assert (layer_norm(torch.full((2, 4), 3.0)) == 0).all()
    assert layer_norm(torch.full((2, 4), 3.0), epsilon=0.0).isnan().all()


# The module


@pytest.mark.parametrize("shape", [5, (5,), (3, 5), (2, 3, 5)])
@pytest.mark.parametrize("affine", [True, False])
def test_module_is_torchs(shape, affine):
    whole = (shape,) if isinstance(shape, int) else shape
    ours, theirs = LayerNorm(shape, affine=affine).double(), nn.LayerNorm(shape, elementwise_affine=affine).double()
    if affine:
        assert ours.gain is not None and ours.bias is not None
        assert (ours.gain == 1).all() and (ours.bias == 0).all()
        for values, name in ((ours.gain, "weight"), (ours.bias, "bias")):
            nn.init.normal_(values)
            getattr(theirs, name).data.copy_(values.data)
    summed = numbers(4, *whole)
    close(ours(summed), theirs(summed))


def test_a_case_is_normalised_alike_alone_and_in_a_batch_in_training_and_after():
    norm, summed = LayerNorm(6), numbers(4, 6, dtype=torch.float32)
    together = norm(summed)
    assert torch.equal(norm.eval()(summed), together)
    for case in range(4):
        close(norm(summed[case : case + 1]), together[case : case + 1], 1e-6)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 5\) do not end in the shape \(4,\)"):
        LayerNorm(4)(torch.zeros(2, 5))
    for shape in (0, (), (3, 0)):
        with pytest.raises(ValueError, match="no units"):
            LayerNorm(shape)
    with pytest.raises(ValueError, match="no units"):
        layer_norm(torch.zeros(3, 0))
    for epsilon in (-1e-5, float("nan")):
        with pytest.raises(ValueError, match="epsilon"):
            LayerNorm(4, epsilon)
        with pytest.raises(ValueError, match="epsilon"):
            layer_norm(torch.ones(1, 2), epsilon=epsilon)
    with pytest.raises(ValueError, match="0 inputs and 3 hidden"):
        LSTM(0, 3)
    with pytest.raises(ValueError, match="5 inputs and 0 hidden"):
        GRU(5, 0)
    for layer in (LSTM(5, 3), GRU(5, 3)):
        with pytest.raises(ValueError, match=r"\(2, 0, 5\)"):
            layer(torch.zeros(2, 0, 5))
        with pytest.raises(ValueError, match=r"\(2, 4, 6\).* width 5"):
            layer(torch.zeros(2, 4, 6))


# Recurrent layers


def rows(weight: Tensor, order: tuple[int, ...]) -> Tensor:
    """Put the blocks of a torch weight, one for each gate, in our order."""
    blocks = weight.chunk(len(order))
    return torch.cat([blocks[gate] for gate in order])


def our_lstm(theirs: nn.LSTM, reverse: bool) -> LSTM:
    """Take over the weights of a layer of PyTorch's, whose gates are i, f, g, o."""
    ending, order = "l0_reverse" if reverse else "l0", (1, 0, 3, 2)
    ours = LSTM(theirs.input_size, theirs.hidden_size, nn.Identity, reverse=reverse).double()
    bias = getattr(theirs, f"bias_ih_{ending}") + getattr(theirs, f"bias_hh_{ending}")
    ours.load_state_dict(
        {
            "input_weight": rows(getattr(theirs, f"weight_ih_{ending}"), order),
            "hidden_weight": rows(getattr(theirs, f"weight_hh_{ending}"), order),
            "bias": rows(bias, order),
        }
    )
    return ours


def our_gru(theirs: nn.GRU, reverse: bool) -> GRU:
    """Take over the weights of a layer of PyTorch's, whose gates are r, z, n, and whose z keeps what ours replaces."""
    ending, order = "l0_reverse" if reverse else "l0", (1, 0, 2)
    ours = GRU(theirs.input_size, theirs.hidden_size, Bias, reverse=reverse).double()
    hidden = theirs.hidden_size
    state = {}
    for ours_name, gates, candidate, name in (
        ("input_weight", "input_norm", "candidate_input_norm", "ih"),
        ("hidden_weight", "hidden_norm", "candidate_hidden_norm", "hh"),
    ):
        weight, bias = (rows(getattr(theirs, f"{kind}_{name}_{ending}"), order) for kind in ("weight", "bias"))
        weight[:hidden] *= -1
        bias[:hidden] *= -1
        state |= {ours_name: weight, f"{gates}.bias": bias[: 2 * hidden], f"{candidate}.bias": bias[2 * hidden :]}
    ours.load_state_dict(state)
    return ours


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_without_a_norm_both_directions_are_torchs(kind, batch):
    torch.manual_seed(0)
    theirs = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](5, 7, batch_first=True, bidirectional=True).double()
    take_over = {"lstm": our_lstm, "gru": our_gru}[kind]
    inputs = numbers(batch, 6, 5).requires_grad_()
    state = numbers(2, batch, 7, seed=1)
    cells = numbers(2, batch, 7, seed=2)
    expected, last = theirs(inputs, (state, cells) if kind == "lstm" else state)
    with torch.no_grad():
        layers = [take_over(theirs, reverse) for reverse in (False, True)]
    results = [
        layer(inputs, (state[way], cells[way]) if kind == "lstm" else state[way]) for way, layer in enumerate(layers)
    ]
    outputs = torch.cat([outputs for outputs, _ in results], dim=2)
    close(outputs, expected)
    for way, (_, ours) in enumerate(results):
        if kind == "lstm":
            close(ours[0], last[0][way])
            close(ours[1], last[1][way])
        else:
            close(ours, last[way])
    upstream = numbers(*expected.shape, seed=3)
    (ours,) = torch.autograd.grad(outputs, inputs, upstream, retain_graph=True)
    (want,) = torch.autograd.grad(expected, inputs, upstream, retain_graph=True)
    close(ours, want)
    # Of the weights, those from state to state have the deepest gradient.
    ours = torch.autograd.grad(outputs, layers[0].hidden_weight, upstream, retain_graph=True)[0]
    (want,) = torch.autograd.grad(expected, theirs.weight_hh_l0, upstream)
    want = rows(want, (1, 0, 3, 2) if kind == "lstm" else (1, 0, 2))
    if kind == "gru":
        want[:7] *= -1
    close(ours, want)


def affine_norms(layer: nn.Module) -> None:
    """Give every norm a gain and a bias that do something."""
    for seed, module in enumerate(layer.modules()):
        if isinstance(module, LayerNorm):
            assert module.gain is not None and module.bias is not None
            module.gain.data = 1 + 0.3 * numbers(*module.gain.shape, seed=seed)
            module.bias.data = 0.3 * numbers(*module.bias.shape, seed=seed + 50)


@torch.no_grad()
def test_layer_normalised_lstm_is_equations_20_to_22():
    torch.manual_seed(1)
    layer = LSTM(4, 5).double()
    affine_norms(layer)
    inputs = numbers(2, 3, 4)

    def norm(name: str, summed: Tensor) -> Tensor:
        module = getattr(layer, name)
        deviation = (summed.var(correction=0) + 1e-5).sqrt()
        return (summed - summed.mean()) / deviation * module.gain + module.bias

    outputs, (last, last_cell) = layer(inputs)
    for case in range(2):
        hidden, cell = torch.zeros(5).double(), torch.zeros(5).double()
        for step in range(3):
            from_hidden = norm("hidden_norm", layer.hidden_weight @ hidden)
            gates = from_hidden + norm("input_norm", layer.input_weight @ inputs[case, step]) + layer.bias
            f, i, o, g = gates[:5], gates[5:10], gates[10:15], gates[15:]
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * norm("cell_norm", cell).tanh()
            close(outputs[case, step], hidden)
        close(last[case], hidden)
        close(last_cell[case], cell)


@torch.no_grad()
def test_layer_normalised_gru_is_equations_26_to_28():
    torch.manual_seed(1)
    layer = GRU(4, 5).double()
    affine_norms(layer)
    inputs = numbers(2, 3, 4)

    def norm(name: str, summed: Tensor) -> Tensor:
        module = getattr(layer, name)
        return F.layer_norm(summed, summed.shape, module.gain, module.bias)

    outputs, last = layer(inputs)
    for case in range(2):
        hidden = torch.zeros(5).double()
        for step in range(3):
            x = inputs[case, step]
            gates = norm("hidden_norm", layer.hidden_weight[:10] @ hidden)
            z, r = (gates + norm("input_norm", layer.input_weight[:10] @ x)).sigmoid().split(5)
            candidate = norm("candidate_input_norm", layer.input_weight[10:] @ x)
            candidate = (candidate + r * norm("candidate_hidden_norm", layer.hidden_weight[10:] @ hidden)).tanh()
            hidden = (1 - z) * hidden + z * candidate
            close(outputs[case, step], hidden)
        close(last[case], hidden)


@pytest.mark.parametrize("make", [LSTM, GRU])
@pytest.mark.parametrize("reverse", [False, True])
def test_no_output_sees_what_has_not_been_read(make, reverse):
    layer = make(3, 4, reverse=reverse).double()
    inputs = numbers(2, 5, 3).requires_grad_()
    outputs, _ = layer(inputs)
    (gradient,) = torch.autograd.grad(outputs[0, 2].sum(), inputs)
    reached = gradient.abs().sum(2) > 0
    read = [False, False, True, True, True] if reverse else [True, True, True, False, False]
    assert reached.tolist() == [read, [False] * 5]


@pytest.mark.parametrize("make", [LSTM, GRU])
def test_a_sequence_in_two_pieces_is_one(make):
    layer = make(3, 4).double()
    affine_norms(layer)
    inputs = numbers(2, 7, 3)
    whole, end = layer(inputs)
    first, state = layer(inputs[:, :3])
    second, last = layer(inputs[:, 3:], state)
    close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(last, end, rtol=1e-12, atol=1e-12)


def test_gradients_through_time():
    layer = LSTM(2, 3).double()
    affine_norms(layer)
    assert torch.autograd.gradcheck(lambda inputs: layer(inputs)[0], numbers(2, 4, 2).requires_grad_())


def test_scaling_all_recurrent_weights_changes_nothing():
    # A small epsilon, for h is 0 before the first step and small after it.
    layer = LSTM(3, 4, lambda units: LayerNorm(units, epsilon=1e-12)).double()
    inputs = numbers(2, 6, 3)
    before, _ = layer(inputs)
    layer.hidden_weight.data *= 10
    close(layer(inputs)[0], before, 1e-6)


def test_initial_weights():
    layer = LSTM(6, 8, forget_bias=2.0)
    assert (layer.bias[:8] == 2).all() and (layer.bias[8:] == 0).all()
    for block in layer.hidden_weight.detach().split(8):
        close(block @ block.T, torch.eye(8), 1e-5)


# Batch normalisation


@pytest.mark.parametrize("batch", [2, 4, 9])
def test_batch_norm_is_torchs(batch):
    ours, theirs = BatchNorm(5, momentum=0.3).double(), nn.BatchNorm1d(5, momentum=0.3).double()
    ours.gain.data = theirs.weight.data = numbers(5, seed=8)
    ours.bias.data = theirs.bias.data = numbers(5, seed=9)
    for step in range(3):
        summed = numbers(batch, 5, seed=step) * 3 + 1
        close(ours(summed), theirs(summed))
    close(ours.mean, theirs.running_mean)
    close(ours.variance, theirs.running_var)
    close(ours.eval()(summed), theirs.eval()(summed))


def test_unbiased_batch_norm():
    norm, summed = BatchNorm(3, unbiased=True).double(), numbers(4, 3) * 2 + 1
    norm.gain.data = numbers(3, seed=1)
    expected = (summed - summed.mean(0)) / (summed.var(0, correction=1) + 1e-5).sqrt() * norm.gain + norm.bias
    close(norm(summed), expected)
    close(norm.variance, 0.9 * torch.ones(3).double() + 0.1 * summed.var(0, correction=1))


def test_each_time_step_has_statistics_of_its_own():
    steps, batch = 4, 6
    norm = RecurrentBatchNorm(3, steps)
    assert (norm.gain == 0.1).all()
    norm.double().gain.data = numbers(3, seed=7)
    alone = [BatchNorm(3).double() for _ in range(steps)]
    for module in alone:
        module.gain.data.copy_(norm.gain.data)
    summed = numbers(batch, steps, 3) * torch.arange(1.0, 5.0).double()[:, None]
    expected = torch.stack([module(summed[:, step]) for step, module in enumerate(alone)], 1)
    one_by_one = copy.deepcopy(norm)
    close(norm(summed, 0), expected)
    close(torch.stack([one_by_one(summed[:, step], step) for step in range(steps)], 1), expected)
    for kept in (norm, one_by_one):
        close(kept.mean, torch.stack([module.mean for module in alone]))
        close(kept.variance, torch.stack([module.variance for module in alone]))
    norm.eval()
    longer = torch.cat([summed, summed[:, -1:], summed[:, -1:]], 1)
    afterwards = norm(longer, 0)
    close(afterwards[:, -1], afterwards[:, 3])
    close(afterwards[:, 3], alone[3].eval()(summed[:, 3]))
    close(norm(longer[:, -1], 5), afterwards[:, -1])


def test_batch_norm_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="a batch of 1 has no variance"):
        BatchNorm(3)(torch.zeros(1, 3))
    assert BatchNorm(3).eval()(torch.zeros(1, 3)).shape == (1, 3)
    with pytest.raises(ValueError, match="5 steps in training, but there are statistics for 4"):
        RecurrentBatchNorm(3, 4)(torch.zeros(2, 5, 3), 0)
    for momentum in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"momentum is {momentum}"):
            BatchNorm(3, momentum=momentum)
    with pytest.raises(ValueError, match="at least one unit and one step"):
        RecurrentBatchNorm(3, 0)


def test_a_batch_normalised_lstm_depends_on_its_batch_and_a_layer_normalised_one_does_not():
    inputs = numbers(3, 4, 2)
    changed = inputs.clone()
    changed[1:] *= 3
    for norm, same in ((LayerNorm, True), (lambda units: RecurrentBatchNorm(units, 4), False)):
        torch.manual_seed(0)
        layer = LSTM(2, 5, norm).double()
        assert torch.allclose(layer(inputs)[0][0], layer(changed)[0][0]) is same


# Table 1


def test_weight_norm_is_torchs():
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3, bias=False).double())
    gain, weight = numbers(3, seed=1), numbers(3, 4)
    linear.parametrizations.weight.original0.data = gain[:, None]
    linear.parametrizations.weight.original1.data = weight
    close(weight_norm(weight, gain), linear.weight)
    close(weight_norm(weight), weight / weight.square().sum(1, keepdim=True).sqrt())


@pytest.mark.parametrize("norm", list(NORMS))
def test_table_1(norm):
    for seed in range(20):
        found = deviations(norm, seed, units=3 + seed, inputs=2 + seed, cases=4 + seed)
        assert len(found) == 6
        for change, deviation in found.items():
            if change in TABLE_1[norm]:
                assert deviation < 1e-9, change
            else:
                assert deviation > 0.1, change


def test_table_1_has_no_other_norms():
    with pytest.raises(ValueError, match="no norm 'group' in Table 1; it has batch, weight, layer"):
        deviations("group", 0)


def test_what_table_1_leaves_open():
    """With an epsilon the scalings are only nearly free; a negative factor turns the sign."""
    summed = numbers(5, 8) * 1e-3
    assert (layer_norm(summed) - layer_norm(10 * summed)).abs().max() > 0.1
    close(layer_norm(-summed), -layer_norm(summed))
