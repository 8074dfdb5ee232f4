"""Continuing prompts with a causal language model, several at a time, each as if it were alone."""

import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allyouneed.nn import compile_decoder

from .checks import check_count, check_prompts, check_tokens
from .constraints import Constraint, constrained
from .sampling import Sampling, mask_undecodable, sample


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


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    sampling: Sampling | None = None,
    stop: Collection[int] = (),
    seed: int = 0,
    use_cache: bool = True,
    prefill_chunk: int | None = None,
    constraints: Sequence[Constraint | None] | None = None,
    compile: bool = False,
    on_token: Callable[[int, int], object] | None = None,
) -> list[list[int]]:
    """Continue each prompt, and return what was added to it.

    Prompts may differ in length: shorter ones are padded on the left with tokens that are not present, and each row
    samples with a generator of its own, seeded by `seed` and the row's number. So a row's tokens do not depend on the
    other prompts, but for rounding in the model. The model is in evaluation mode during the call, and afterwards in the
    mode that it was in before.

    Args:
        model: gives the logits. Where it has `last_logits`, as `nn.Decoder` has, only the last place's are computed;
            where it has a `context` that is not None, prompts that go beyond it with their new tokens are refused, and
            where it has a `vocabulary`, tokens that are not in it.
        prompts: the tokens of each prompt, at least one.
        new_tokens: the most tokens to add to a prompt.
        sampling: how tokens are sampled; as the model has it (`Sampling()`) where None. A repetition penalty looks at
            the prompt and at what was added.
        stop: tokens that end a row. The one that did is not returned, so a row that was ended has fewer than
            `new_tokens` tokens.
        seed: of the sampling; 0 or more.
        use_cache: whether the model keeps what it computed for earlier tokens. It changes the time, and the
            result by no more than rounding.
        prefill_chunk: the most tokens of a prompt that are fed at a time, which bounds the memory that a long prompt
            takes; all at once where None. Needs the cache.
        constraints: what may follow in each row, such as a grammar's; anything where None. They are copied. A row ends
            where its constraint says that nothing may follow, and `stop` tokens come only where it says that the row
            may end.
        compile: whether single tokens are computed by compiled code from now on, as `nn.compile_decoder` does; a model
            that it cannot compile is computed as usual, with a warning that says why. Needs the cache.
        on_token: called with the row and the token as soon as one is added. Where it returns True, that token is the
            row's last.

    Raises:
        ValueError: no prompts, a prompt of no tokens, of unknown ones, or beyond the model's context with its new
            tokens, unknown tokens among the stops, fewer than one new token, a negative seed, chunks of fewer than
            one token, chunks or compiled code without a cache, constraints not as many as prompts, or what the model
            refuses, such as more tokens than it has positions for.
        ConstraintError: no token may follow in a row.
    """
    check_prompts(prompts, getattr(model, "vocabulary", None))
    check_count("new_tokens", new_tokens)
    if compile and not use_cache:
        raise ValueError("compile is True and use_cache False: without a cache there are no single tokens to compute")
    if compile:
        compile_or_warn(model)
    added: list[list[int]] = [[] for _ in prompts]
    room = max(map(len, prompts)) + new_tokens
    steps = continuations(
        model,
        prompts,
        new_tokens=new_tokens,
        sampling=sampling,
        stop=stop,
        seed=seed,
        # The last token that is sampled is not fed to the model.
        cache=model.new_cache(limit=room - 1, capacity=room - 1) if use_cache and room > 1 else None,
        prefill_chunk=prefill_chunk,
        constraints=constraints,
    )
    ended = None
    with closing(steps):
        while True:
            try:
                row, token = steps.send(ended)
            except StopIteration:
                return added
            added[row].append(token)
            ended = on_token is not None and on_token(row, token) is True


def continuations(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    sampling: Sampling | None = None,
    stop: Collection[int] = (),
    seed: int = 0,
    cache: Any = None,
    prefill_chunk: int | None = None,
    constraints: Sequence[Constraint | None] | None = None,
) -> Generator[tuple[int, int], bool | None, None]:
    """Check what `generate` is asked, and give the tokens one after the other, each with its row.

    Whoever goes through them may `send` True after a token, and its row ends there. Arguments and errors are those of
    `generate`; `cache` is a new one, None for none, or one with a row for each prompt, which holds its first tokens but
    not all.
    """
    vocabulary = getattr(model, "vocabulary", None)
    check_prompts(prompts, vocabulary)
    check_tokens("stop", stop, vocabulary)
    check_count("new_tokens", new_tokens)
    check_count("seed", seed, 0)
    if prefill_chunk is not None and (prefill_chunk < 1 or cache is None):
        needed = "at least 1" if prefill_chunk < 1 else "None where there is no cache to keep earlier chunks"
        raise ValueError(f"prefill_chunk {prefill_chunk} is out of range: it must be {needed}")
    context = getattr(model, "context", None)
    for row, prompt in enumerate(prompts):
        if context is not None and len(prompt) > context:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens, more than the model's context of {context}: shorten it"
            )
        # The last token that is sampled is not fed to the model.
        if context is not None and len(prompt) + new_tokens - 1 > context:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens, and {new_tokens} new ones go beyond the model's context of "
                f"{context}: ask for at most {context + 1 - len(prompt)}"
            )
    held = 0 if cache is None else len(cache)
    if held >= min(map(len, prompts)):
        raise ValueError(f"a cache of {held} tokens needs prompts that are longer: got {list(map(len, prompts))}")
    if constraints is not None and len(constraints) != len(prompts):
        raise ValueError(f"{len(constraints)} constraints for {len(prompts)} prompts: there must be one for each")
    following = {row: one.copy() for row, one in enumerate(constraints or ()) if one is not None}
    return _continue(
        model, prompts, new_tokens, sampling or Sampling(), stop, seed, cache, held, prefill_chunk, following
    )


def _continue(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    sampling: Sampling,
    stop: Collection[int],
    seed: int,
    cache: Any,
    held: int,
    prefill_chunk: int | None,
    constraints: dict[int, Constraint],
) -> Generator[tuple[int, int], bool | None, None]:
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    generators = [row_generator(seed, row) for row in range(len(prompts))]
    fed, present = _pad_left([prompt[held:] for prompt in prompts], device)
    running = set(range(len(prompts)))
    seen = counts = None
    with evaluating(model):
        for _ in range(new_tokens):
            logits = _last_logits(model, fed, present, cache, prefill_chunk)
            if constraints:
                logits = _constrained_rows(logits, constraints, running, stop)
            if sampling.repetition_penalty != 1 and seen is None:
                seen = _tokens_of(prompts, logits)
            if sampling.needs_counts and counts is None:
                counts = torch.zeros(logits.shape, dtype=torch.int32, device=logits.device)
            sampled = sample(logits, sampling, generators, seen, counts)
            for row, token in enumerate(sampled.tolist()):
                if row not in running:
                    continue
                if token in stop:
                    running.remove(row)
                    continue
                if seen is not None:
                    seen[row, token] = True
                if counts is not None:
                    counts[row, token] += 1
                if row in constraints:
                    constraints[row].advance(token)
                ended = row in constraints and constraints[row].is_finished
                if (yield row, token) is True or ended:
                    running.remove(row)
            if not running:
                return
            # A row that has ended is fed padding, which takes up no position.
            still = torch.tensor([[row in running] for row in range(len(prompts))], device=device)
            if cache is None:
                fed, present = torch.cat((fed, sampled[:, None]), 1), torch.cat((present, still), 1)
            else:
                fed, present = sampled[:, None], still


def compile_or_warn(model: Any) -> None:
    """Let a model compute single tokens by compiled code, and warn where that cannot be."""
    outcome = compile_decoder(model)
    if outcome.reason is not None:
        warnings.warn(str(outcome), stacklevel=3)


@torch.inference_mode()
def _last_logits(
    model: Any,
    tokens: Int[Tensor, "batch length"],
    present: Bool[Tensor, "batch length"],
    cache: Any,
    chunk: int | None,
) -> Float[Tensor, "batch vocabulary"]:
    """Give the logits of the token that follows the last; feed all in chunks of some size where one is given."""
    logits = None
    size = chunk or tokens.shape[1]
    for part, there in zip(tokens.split(size, 1), present.split(size, 1), strict=True):
        # Without padding the model may take a faster way.
        known = None if bool(there.all()) else there
        if hasattr(model, "last_logits"):
            logits = model.last_logits(part, present=known, cache=cache)
        else:
            logits = model(part, present=known, cache=cache)[:, -1]
    assert logits is not None
    return mask_undecodable(logits, model)


def _constrained_rows(
    logits: Float[Tensor, "batch vocabulary"],
    constraints: Mapping[int, Constraint],
    running: Collection[int],
    stop: Collection[int],
) -> Float[Tensor, "batch vocabulary"]:
    return torch.stack(
        [
            constrained(own, constraints[row], stop) if row in running and row in constraints else own
            for row, own in enumerate(logits)
        ]
    )


def _tokens_of(
    prompts: Sequence[Sequence[int]], logits: Float[Tensor, "batch vocabulary"]
) -> Bool[Tensor, "batch vocabulary"]:
    seen = torch.zeros(logits.shape, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        seen[row, torch.as_tensor(prompt)] = True
    return seen.to(logits.device)


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


def row_generator(seed: int, row: int) -> torch.Generator:
    """Give the generator that a row samples with, the same whatever the other rows are.

    Args:
        seed: of the sampling; 0 or more.
        row: its number.
    """
    state = np.random.SeedSequence(seed, spawn_key=(row,)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Set a model to evaluation mode for a while, and then back to the mode that each of its modules was in."""
    # Module by module, since a part may be kept in evaluation mode while the whole is trained.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
