"""Continuing prompts with a causal language model, several at a time, each as if it were alone."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .sampling import Sampling, sample


@runtime_checkable
class LanguageModel(Protocol):
    """What `generate` asks of a model: a torch module such as `nn.Decoder`, causal, and blind to what is not present.

    A row's logits must not depend on tokens that are not present, nor its positions on how many of them there are.
    """

    def __call__(
        self,
        tokens: Int[Tensor, "batch length"],
        *,
        present: Bool[Tensor, "batch length"] | None = None,
        cache: Any = None,
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Give the logits of the token that follows each token.

        Args:
            tokens: those that follow what the cache holds.
            present: False where a token is padding; all tokens are present where None.
            cache: holds what earlier calls computed, and takes in what this one does.
        """
        ...

    def new_cache(self, limit: int | None = None, capacity: int = 64) -> Any:
        """Make an empty cache for at most `limit` tokens, with room for `capacity` at first."""
        ...

    def eval(self) -> Any:
        """Set the module and all within it to evaluation, as torch modules do."""
        ...

    def modules(self) -> Iterable[nn.Module]:
        """Go through the module and all modules within it."""
        ...

    def parameters(self) -> Iterable[Tensor]:
        """Go through the weights; tokens go to the device of the first."""
        ...


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    sampling: Sampling | None = None,
    stop: Collection[int] = (),
    seed: int = 0,
    use_cache: bool = True,
    on_token: Callable[[int, int], object] | None = None,
) -> list[list[int]]:
    """Continue each prompt, and return what was added to it.

    Prompts may differ in length: shorter ones are padded on the left with tokens that are not present, and each row
    draws from a generator of its own, seeded by `seed` and the row's number. So a row's tokens do not depend on the
    other prompts, but for rounding in the model. The model is in evaluation mode during the call, and afterwards in the
    mode that it was in before.

    Args:
        model: gives the logits.
        prompts: the tokens of each prompt, at least one.
        new_tokens: the most tokens to add to a prompt.
        sampling: how tokens are drawn; as the model has it (`Sampling()`) where None.
        stop: tokens that end a row. The one that did is not returned, so a row that was ended has fewer than
            `new_tokens` tokens.
        seed: of all draws; 0 or more.
        use_cache: whether the model keeps what it computed for earlier tokens. It changes the time, and the
            result by no more than rounding.
        on_token: called with the row and the token as soon as one is added.

    Raises:
        ValueError: no prompts, a prompt of no tokens, fewer than one new token, a negative seed, or what the model
            refuses, such as more tokens than it has positions for.
    """
    if len(prompts) == 0:
        raise ValueError("there are no prompts: generation needs at least one")
    for row, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {row} is empty: each needs at least one token")
    if new_tokens < 1:
        raise ValueError(f"new_tokens {new_tokens} is out of range: it must be at least 1")
    if seed < 0:
        raise ValueError(f"seed {seed} is out of range: it must be at least 0")
    sampling = sampling or Sampling()
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    generators = [_row_generator(seed, row) for row in range(len(prompts))]
    tokens, present = _pad_left(prompts, device)
    added: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    # The last token that is drawn is not fed to the model.
    room = tokens.shape[1] + new_tokens - 1
    cache = model.new_cache(limit=room, capacity=room) if use_cache else None
    with _evaluating(model):
        fed, fed_present = tokens, present
        for _ in range(new_tokens):
            # Without padding the model may take a faster way.
            known = None if bool(fed_present.all()) else fed_present
            drawn = sample(model(fed, present=known, cache=cache)[:, -1], sampling, generators)
            for row, token in enumerate(drawn.tolist()):
                if row not in running:
                    continue
                if token in stop:
                    running.remove(row)
                    continue
                added[row].append(token)
                if on_token is not None:
                    on_token(row, token)
            if not running:
                break
            # A row that has ended is fed padding, which takes up no position.
            still = torch.tensor([[row in running] for row in range(len(prompts))], device=device)
            if cache is None:
                fed, fed_present = torch.cat((fed, drawn[:, None]), 1), torch.cat((fed_present, still), 1)
            else:
                fed, fed_present = drawn[:, None], still
    return added


def _pad_left(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
    longest = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
    present = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.as_tensor(prompt)
        present[row, longest - len(prompt) :] = True
    return tokens.to(device), present.to(device)


def _row_generator(seed: int, row: int) -> torch.Generator:
    state = np.random.SeedSequence(seed, spawn_key=(row,)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    # Module by module, since a part may be kept in evaluation mode while the whole is trained.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
