"""RWKV: its forms of WKV against one another and the definition, and what must not matter to the model."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from allyouneed.papers.rwkv import Rwkv, RwkvConfig, RwkvState, WkvState, wkv_chunked, wkv_parallel, wkv_recurrent
from allyouneed.text import Sampling, generate

FORMS: dict[str, Any] = {"recurrent": wkv_recurrent, "parallel": wkv_parallel, "chunked": wkv_chunked}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)

CONFIG = RwkvConfig(vocabulary=29, width=12, layers=3, hidden=20, channels=8)


def definition(decay: Tensor, bonus: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Equation 16, a softmax over the tokens so far, whose weights are written down."""
    averages = []
    for t in range(keys.shape[1]):
        ages = torch.arange(t - 1, -1, -1, dtype=keys.dtype)[:, None]
        weights = torch.cat((keys[:, :t] - ages * decay, bonus + keys[:, t : t + 1]), 1).softmax(1)
        averages.append((weights * values[:, : t + 1]).sum(1))
    return torch.stack(averages, 1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sequences(
    length: int, batch: int = 2, channels: int = 3, size: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Draw keys and values."""
    keys, values = normal(2, batch, length, channels, seed=seed)
    return size * keys, values


def draw(length: int, batch: int = 2, channels: int = 3, size: float = 1.0, seed: int = 0) -> list[Tensor]:
    """Draw decays, a bonus, keys and values."""
    decay, bonus = normal(2, channels, seed=seed + 1000)
    return [decay.exp(), bonus, *sequences(length, batch, channels, size, seed)]


def model(config: RwkvConfig = CONFIG, **options: Any) -> Rwkv:
    """Make a model whose weights are far enough from their start to tell errors apart."""
    torch.manual_seed(0)
    made = Rwkv(config, **options).double()
    for name, weight in made.named_parameters():
        torch.nn.init.normal_(weight, mean=0.5 if "mix" in name.split(".")[-1] else 0.0, std=0.4)
    return made.eval()


def tokens(*shape: int) -> Tensor:
    return torch.randint(CONFIG.vocabulary, shape, generator=torch.Generator().manual_seed(sum(shape)))


class TestWkv:
    @each_form
    # Keys of which the exponential is infinite, in both directions: e^710 is.
    @pytest.mark.parametrize("size", [1.0, 1000.0])
    @pytest.mark.parametrize("length", [1, 2, 7, 64])
    def test_is_as_defined(self, form: Any, size: float, length: int) -> None:
        drawn = draw(length, size=size)
        torch.testing.assert_close(form(*drawn)[0], definition(*drawn), rtol=1e-11, atol=1e-11)

    @settings(max_examples=25)
    @given(
        length=st.integers(1, 40),
        chunk=st.integers(1, 45),
        fastest=st.sampled_from([0.0, 1.0, 1e3, 1e35, math.inf]),
        seed=st.integers(0, 99),
    )
    def test_forms_agree(self, length: int, chunk: int, fastest: float, seed: int) -> None:
        """With padding anywhere, states from before, all sorts of decays and whatever chunks."""
        decay, bonus, keys, values = draw(length, batch=3, size=30.0, seed=seed)
        decay[0], decay[1] = 0.0, fastest
        generator = torch.Generator().manual_seed(seed)
        present = torch.rand(3, length, generator=generator) < 0.7
        _, before = wkv_recurrent(decay, bonus, *sequences(2, batch=3))
        expected, state = wkv_recurrent(decay, bonus, keys, values, before, present)
        for found, found_state in (
            wkv_parallel(decay, bonus, keys, values, before, present),
            wkv_chunked(decay, bonus, keys, values, before, present, chunk=chunk),
        ):
            torch.testing.assert_close(found[present], expected[present], rtol=1e-10, atol=1e-10)
            for theirs, ours in zip(found_state, state, strict=True):
                torch.testing.assert_close(theirs, ours, rtol=1e-10, atol=1e-10)

    @each_form
    def test_padding_is_as_if_it_were_not_there(self, form: Any) -> None:
        decay, bonus, keys, values = draw(9, batch=1)
        there = torch.tensor([[False, True, True, False, False, True, True, True, False]])
        found, state = form(decay, bonus, keys, values, None, there)
        expected, expected_state = form(decay, bonus, keys[:, there[0]], values[:, there[0]])
        torch.testing.assert_close(found[:, there[0]], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(torch.stack(state), torch.stack(expected_state), rtol=1e-12, atol=1e-12)

    @each_form
    @pytest.mark.parametrize("decay", [0.0, 1e-6, 20.0, 1e30])
    def test_long_sequences(self, form: Any, decay: float) -> None:
        """4,096 tokens in 32 bits, with keys up to a hundred and more, beside the truth in 64."""
        _, bonus, keys, values = (tensor.float() for tensor in draw(4096, batch=1, channels=2, size=30.0))
        decays = torch.full((2,), decay)
        found, state = form(decays, bonus, keys, values)
        exact, _ = wkv_parallel(decays.double(), bonus.double(), keys.double(), values.double())
        assert all(bool(part.isfinite().all()) for part in (found, *state))
        assert float((found - exact).abs().max()) < 1e-4

    @pytest.mark.parametrize("form", [wkv_parallel, wkv_chunked], ids=["parallel", "chunked"])
    def test_gradients_of_long_sequences(self, form: Any) -> None:
        """4,096 tokens in 32 bits beside 64, with channels that forget nothing, something, and everything."""
        _, bonus, keys, values = draw(4096, batch=1, channels=4, size=30.0)
        decay = torch.tensor([0.0, 1e-3, 3.0, 1e30], dtype=torch.float64)

        def gradients(dtype: torch.dtype) -> tuple[Tensor, ...]:
            inputs = [tensor.to(dtype).requires_grad_() for tensor in (decay, bonus, keys, values)]
            return torch.autograd.grad(form(*inputs)[0].sin().sum(), inputs)

        for found, exact in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
            assert bool(exact.isfinite().all()) and float(exact.abs().max()) > 0.1
            assert float((found - exact).abs().max()) < 1e-4 * float(exact.abs().max())

    @each_form
    def test_with_no_decay_it_is_the_mean(self, form: Any) -> None:
        _, _, _, values = draw(4096, batch=1)
        zeros = values.new_zeros(3)
        found, _ = form(zeros, zeros, torch.zeros_like(values), values)
        expected = values.cumsum(1) / torch.arange(1, 4097)[:, None]
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)

    @each_form
    def test_gradients(self, form: Any) -> None:
        """By finite differences: of the averages and of the sums that are carried on, from a state and with padding."""
        decay, bonus, keys, values = draw(7, size=2.0)
        present = torch.tensor([[True] * 7, [False, True, False, True, True, True, False]])
        _, before = wkv_recurrent(decay, bonus, *sequences(3))

        def sums(*inputs: Tensor) -> tuple[Tensor, ...]:
            state = WkvState(inputs[4], inputs[5], before.exponent)
            averages, (numerator, denominator, exponent) = form(*inputs[:4], state, present)
            return averages[present], numerator * exponent.exp(), denominator * exponent.exp()

        inputs = [tensor.clone().requires_grad_() for tensor in (decay, bonus, keys, values, *before[:2])]
        assert torch.autograd.gradcheck(sums, inputs)

    @pytest.mark.parametrize("size", [1.0, 300.0])
    def test_gradients_of_the_forms_agree(self, size: float) -> None:
        """Where keys overflow too, at a length that is no multiple of the chunk."""
        gradients = []
        for form in (*FORMS.values(), definition):
            inputs = [tensor.requires_grad_() for tensor in draw(101, size=size)]
            found = form(*inputs)
            averages = found if isinstance(found, Tensor) else found[0]
            gradients.append(torch.autograd.grad(averages.sin().sum(), inputs))
        for found in gradients[:-1]:
            for ours, expected in zip(found, gradients[-1], strict=True):
                torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)

    @each_form
    def test_sixteen_bits_are_summed_in_32(self, form: Any) -> None:
        decay, bonus, keys, values = (tensor.bfloat16() for tensor in draw(300))
        found, state = form(decay, bonus, keys, values)
        exact, _ = form(decay.double(), bonus.double(), keys.double(), values.double())
        assert found.dtype == torch.bfloat16 and state.numerator.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=2e-6)

    @each_form
    def test_what_is_carried_holds_no_more_memory_than_it_needs(self, form: Any) -> None:
        _, state = form(*draw(500))
        assert all(part.untyped_storage().nbytes() <= 2 * part.nbytes for part in state)

    def test_bad_input_is_refused(self) -> None:
        decay, bonus, keys, values = draw(5)
        with pytest.raises(ValueError, match=r"smallest decay is -1"):
            wkv_chunked(-torch.ones(3), bonus, keys, values)
        with pytest.raises(ValueError, match="chunk 0"):
            wkv_chunked(decay, bonus, keys, values, chunk=0)
        with pytest.raises(ValueError, match="no tokens"):
            wkv_recurrent(decay, bonus, keys[:, :0], values[:, :0])
        with pytest.raises(ValueError, match=r"the state is \(3, 3\).*\(2, 3\)"):
            wkv_parallel(decay, bonus, keys, values, WkvState.empty(draw(5, batch=3)[2]))


class TestModel:
    def test_causality(self) -> None:
        """No logit depends on a later token's embedding, and each on its own and the one before."""
        ours = model()
        embedded = ours.embedding(tokens(1, 9)).detach().requires_grad_()
        ours.embedding.forward = lambda _: embedded  # pyright: ignore[reportAttributeAccessIssue]
        logits = ours(tokens(1, 9))
        for place in range(9):
            (gradient,) = torch.autograd.grad(logits[0, place].sin().sum(), embedded, retain_graph=True)
            assert bool((gradient[0, place + 1 :] == 0).all())
            assert bool((gradient[0, : place + 1].abs().amax(-1) > 0).all())

    @pytest.mark.parametrize("parts", [[1] * 12, [5, 1, 1, 5], [11, 1], [1, 11], [12]])
    def test_with_a_state_as_without(self, parts: list[int]) -> None:
        ours, given = model(), tokens(2, 12)
        state = ours.new_cache()
        with torch.no_grad():
            found = [ours(part, cache=state) for part in given.split(parts, 1)]
            torch.testing.assert_close(torch.cat(found, 1), ours(given), rtol=1e-10, atol=1e-10)
        assert len(state) == 12
        # Five vectors a layer and row, two of the width and three of the sums' channels.
        assert state.nbytes == 8 * 2 * 3 * (2 * CONFIG.width + 3 * 8)

    @pytest.mark.parametrize("form", [wkv_parallel, wkv_recurrent], ids=["parallel", "recurrent"])
    def test_the_form_does_not_matter(self, form: Any) -> None:
        given = tokens(2, 23)
        with torch.no_grad():
            torch.testing.assert_close(model(form=form)(given), model()(given), rtol=1e-10, atol=1e-10)

    def test_rows_do_not_depend_on_one_another(self) -> None:
        ours, given = model(), tokens(4, 10)
        with torch.no_grad():
            together = ours(given)
            for row in range(4):
                torch.testing.assert_close(together[row], ours(given[row : row + 1])[0], rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("side", ["left", "right", "between"])
    def test_padding(self, side: str) -> None:
        """Neither the logits of what is there nor what follows know of it."""
        ours, given = model(), tokens(3, 10)
        lengths = torch.tensor([[10], [4], [1]])
        places = torch.arange(10)
        present = {
            "left": places >= 10 - lengths,
            "right": places < lengths,
            "between": (places % 3 == 0) | (lengths == 10),
        }[side]
        following = tokens(3, 2)
        state = ours.new_cache()
        with torch.no_grad():
            found = ours(given, present=present, cache=state)
            after = ours(following, cache=state)
            for row in range(3):
                alone = torch.cat((given[row, present[row]], following[row]))[None]
                expected = ours(alone)[0]
                torch.testing.assert_close(found[row, present[row]], expected[:-2], rtol=1e-10, atol=1e-10)
                torch.testing.assert_close(after[row], expected[-2:], rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("chunk", [None, 3])
    def test_generation(self, chunk: int | None) -> None:
        """A padded batch with a state writes what each row writes alone without one."""
        ours = model()
        prompts = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5]]
        greedy = Sampling.greedy()
        found = generate(ours, prompts, new_tokens=9, sampling=greedy, prefill_chunk=chunk)
        alone = [generate(ours, [prompt], new_tokens=9, sampling=greedy, use_cache=False)[0] for prompt in prompts]
        assert found == alone
        drawn = generate(ours, prompts, new_tokens=9, seed=1, prefill_chunk=chunk)
        assert drawn == generate(ours, prompts, new_tokens=9, seed=1, use_cache=False) != found

    def test_branches_of_a_state(self) -> None:
        ours, given = model(), tokens(2, 6)
        state = ours.new_cache()
        with torch.no_grad():
            ours(given, cache=state)
            branched = state.branch([1, 1, 0])
            following = tokens(3, 2)
            found = ours(following, cache=branched)
            for row, source in enumerate([1, 1, 0]):
                alone = torch.cat((given[source], following[row]))[None]
                torch.testing.assert_close(found[row], ours(alone)[0, -2:], rtol=1e-10, atol=1e-10)
        assert (len(state), len(branched)) == (6, 8)

    def test_what_a_state_cannot_do(self) -> None:
        ours = model()
        state = ours.new_cache(limit=7)
        ours(tokens(2, 6), cache=state)
        with pytest.raises(ValueError, match="limited to 7 tokens and would have taken in 8"):
            ours(tokens(2, 2), cache=state)
        with pytest.raises(ValueError, match="a batch of 2, not of 3"):
            ours(tokens(3, 1), cache=state)
        with pytest.raises(ValueError, match="of 6 tokens cannot be cut to 5"):
            state.truncate(5)
        with pytest.raises(ValueError, match="row 2 is not in the state"):
            state.branch([0, 2])
        with pytest.raises(ValueError, match="into no rows"):
            state.branch([])
        with pytest.raises(ValueError, match="no tokens"):
            ours(tokens(1, 0))
        assert len(state) == 6
        state.truncate(0)
        torch.testing.assert_close(ours(tokens(3, 4), cache=state), ours(tokens(3, 4)))

    def test_a_long_state_is_as_large_as_a_short_one(self) -> None:
        ours = model()
        sizes = []
        for length in (1, 200):
            state = ours.new_cache()
            with torch.no_grad():
                ours(tokens(1, length), cache=state)
            tensors = [tensor for layer in state.layers if layer is not None for tensor in layer.tensors]
            sizes.append((state.nbytes, {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}))
        (short, short_memory), (long, long_memory) = sizes
        assert short == long
        # The sums may share a piece of memory of just their size.
        assert sum(long_memory.values()) <= 1.5 * sum(short_memory.values())

    @pytest.mark.parametrize("name", ["vocabulary", "width", "layers", "hidden", "channels", "context"])
    def test_numbers_out_of_range(self, name: str) -> None:
        numbers: dict[str, Any] = {"vocabulary": 3, "width": 4, "layers": 1, name: 0}
        with pytest.raises(ValueError, match=f"{name} is 0"):
            RwkvConfig(**numbers)

    def test_an_empty_state_takes_no_memory(self) -> None:
        assert RwkvState(3).nbytes == 0 and len(RwkvState(3)) == 0
