"""Choosing the next token from logits: pure functions of the logits, the settings and a generator."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from torch import Tensor

# Within these no logit of a model overflows when it is multiplied or divided.
_PENALTIES = (0.01, 100.0)


@dataclass(frozen=True)
class Sampling:
    """How a token is sampled, in this order: bias, penalties, temperature, top-k, top-p, min-p.

    Attributes:
        temperature: what logits are divided by. 0 is greedy: the likeliest token, the first of several that tie.
        top_k: only tokens as likely as the k-th likeliest may be sampled (Fan et al. 2018); all where None.
        top_p: only the likeliest tokens may be sampled, as few as together have this probability
            (Holtzman et al. 2020); all where None.
        min_p: only tokens with at least this share of the likeliest token's probability may be sampled
            (Nguyen et al. 2024); all where None.
        repetition_penalty: what the logits of tokens that were seen are divided by where they are positive, and
            multiplied by where they are negative (Keskar et al. 2019, section 4.1). Above 1, repetition becomes rarer.
        presence_penalty: what is taken from the logits of tokens that were generated, however often.
        frequency_penalty: what is taken from the logit of a token each time that it was generated. Both are those of
            OpenAI's API and leave the prompt out of account.
        logit_bias: what is added to the logits of some tokens, by id.

    Raises:
        ValueError: a value out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature {self.temperature} is out of range: it must be finite and at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k} is out of range: it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} is out of range: it must be above 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p {self.min_p} is out of range: it must be from 0 to 1")
        least, most = _PENALTIES
        if not least <= self.repetition_penalty <= most:
            raise ValueError(
                f"repetition_penalty {self.repetition_penalty} is out of range: it must be from {least} to {most:g}"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(value := getattr(self, name)):
                raise ValueError(f"{name} {value} is out of range: it must be finite")
        for token, bias in self.logit_bias.items():
            if token < 0 or not math.isfinite(bias):
                raise ValueError(
                    f"logit_bias {bias} of token {token} is out of range: it must be finite, the id 0 or more"
                )

    @classmethod
    def greedy(cls) -> "Sampling":
        """Take the likeliest token, always: temperature 0."""
        return cls(temperature=0.0)

    @property
    def needs_counts(self) -> bool:
        """Whether a penalty depends on how often tokens were generated."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0


def probabilities(
    logits: Float[Tensor, "batch vocabulary"],
    sampling: Sampling,
    seen: Bool[Tensor, "batch vocabulary"] | None = None,
    counts: Int[Tensor, "batch vocabulary"] | None = None,
) -> Float32[Tensor, "batch vocabulary"]:
    """Give the probability with which each token is sampled: 0 for those that the filters hold back.

    Args:
        logits: of the next token.
        sampling: how it is sampled.
        seen: True for tokens that a row has had, the prompt's among them; a repetition penalty needs it.
        counts: how often each token was generated in a row; a presence or frequency penalty needs it.

    Raises:
        ValueError: logits with NaN or +∞ in them, or with -∞ for every token; a penalty without `seen` or `counts`; a
            bias for a token that is not in the vocabulary.
    """
    return _filtered(_adjusted(logits, sampling, seen, counts), sampling)


def _filtered(logits: Float[Tensor, "batch vocabulary"], sampling: Sampling) -> Float32[Tensor, "batch vocabulary"]:
    highest = _highest(logits)
    if sampling.temperature == 0:
        return F.one_hot(_argmax(logits), logits.shape[-1]).float()
    # Counted from the highest, no logit overflows however low the temperature.
    scaled = (logits - highest).float() / max(sampling.temperature, torch.finfo(torch.float32).tiny)
    if sampling.top_k is not None:
        scaled = _keep_top_k(scaled, sampling.top_k)
    if sampling.top_p is not None:
        scaled = _keep_top_p(scaled, sampling.top_p)
    if sampling.min_p is not None:
        # The highest is 0: what remains of a probability when it is divided by the highest one.
        scaled = scaled.masked_fill(scaled.exp() < sampling.min_p, -torch.inf)
    return scaled.softmax(-1)


def sample(
    logits: Float[Tensor, "batch vocabulary"],
    sampling: Sampling,
    generator: torch.Generator | Sequence[torch.Generator],
    seen: Bool[Tensor, "batch vocabulary"] | None = None,
    counts: Int[Tensor, "batch vocabulary"] | None = None,
) -> Int64[Tensor, " batch"]:
    """Sample a token for each row.

    Each row costs its generator one number, none where sampling is greedy.

    Args:
        logits: of the next token.
        sampling: how it is sampled.
        generator: one for all rows, or one for each row, so that a row's tokens do not depend on the others. With
            generators of the CPU the tokens are the same on every device.
        seen: as in `probabilities`.
        counts: as in `probabilities`.

    Raises:
        ValueError: generators not as many as rows, or what `probabilities` refuses.
    """
    batch = len(logits)
    if not isinstance(generator, torch.Generator) and len(generator) != batch:
        raise ValueError(f"{len(generator)} generators for {batch} rows: there must be one for all or one for each")
    logits = _adjusted(logits, sampling, seen, counts)
    if sampling.temperature == 0:
        likeliest = _argmax(logits)
        _check_highest(logits.gather(-1, likeliest[:, None]))
        return likeliest
    if isinstance(generator, torch.Generator):
        draws = _uniform(batch, generator)
    else:
        draws = torch.cat([_uniform(1, one) for one in generator])
    # In 64 bits, which some devices lack, so that rare tokens of a large vocabulary keep their probability.
    cumulative = _filtered(logits, sampling).cpu().double().cumsum(-1)
    cumulative /= cumulative[:, -1:].clone()
    # The first token whose cumulative probability exceeds the draw: its own probability is then not 0.
    return torch.searchsorted(cumulative, draws[:, None], right=True).squeeze(1).to(logits.device)


def _uniform(count: int, generator: torch.Generator) -> Float64[Tensor, " _"]:
    return torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64).cpu()


def _highest(logits: Float[Tensor, "batch vocabulary"]) -> Float[Tensor, "batch 1"]:
    highest = logits.amax(-1, keepdim=True)
    _check_highest(highest)
    return highest


def _check_highest(highest: Float[Tensor, "batch 1"]) -> None:
    for row, value in enumerate(highest.flatten().tolist()):
        if not math.isfinite(value):
            raise ValueError(
                f"no token can be sampled from row {row}, whose highest logit is {value}: it must be finite"
            )


def _argmax(logits: Float[Tensor, "batch vocabulary"]) -> Int64[Tensor, " batch"]:
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        # NumPy's takes a tenth of the time that torch's takes for a row; both give the first of several.
        return torch.from_numpy(logits.detach().numpy().argmax(-1))
    return logits.argmax(-1)


def _adjusted(
    logits: Float[Tensor, "batch vocabulary"],
    sampling: Sampling,
    seen: Bool[Tensor, "batch vocabulary"] | None,
    counts: Int[Tensor, "batch vocabulary"] | None,
) -> Float[Tensor, "batch vocabulary"]:
    """Add the bias and take off the penalties; where there are none the logits stay as they are."""
    penalty = sampling.repetition_penalty
    if not sampling.logit_bias and penalty == 1 and not sampling.needs_counts:
        return logits
    # Sums and products of 16 bits may overflow.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if sampling.logit_bias:
        ids, biases = zip(*sampling.logit_bias.items(), strict=True)
        if max(ids) >= logits.shape[-1]:
            raise ValueError(f"logit_bias has token {max(ids)}, but ids are 0 to {logits.shape[-1] - 1}")
        logits = logits.clone()
        logits[:, list(ids)] += torch.tensor(biases, dtype=logits.dtype, device=logits.device)
    if penalty != 1:
        if seen is None:
            raise ValueError(f"repetition_penalty {penalty} needs to know which tokens were seen, and `seen` is None")
        logits = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
    if sampling.needs_counts:
        if counts is None:
            raise ValueError(
                f"presence_penalty {sampling.presence_penalty} and frequency_penalty {sampling.frequency_penalty} need "
                "to know how often tokens were generated, and `counts` is None"
            )
        # OpenAI's API reference: logit − count · frequency_penalty − (count > 0) · presence_penalty.
        logits = logits - counts * sampling.frequency_penalty - (counts > 0) * sampling.presence_penalty
    return logits


def _keep_top_k(logits: Float32[Tensor, "batch vocabulary"], k: int) -> Float32[Tensor, "batch vocabulary"]:
    lowest_kept = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < lowest_kept, -torch.inf)


def _keep_top_p(logits: Float32[Tensor, "batch vocabulary"], p: float) -> Float32[Tensor, "batch vocabulary"]:
    # Stable, so that of tokens that tie the first is kept, as greedy keeps it.
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    # Summed from the least likely token up: near a sum of 1, rounding would swallow the rare ones.
    from_here_on = ordered.softmax(-1).flip(-1).cumsum(-1).flip(-1)
    held_back = from_here_on <= 1 - p
    held_back[:, 0] = False
    return logits.masked_fill(held_back.scatter(1, order, held_back), -torch.inf)


def mask_undecodable(logits: Float[Tensor, "*axes vocabulary"], model: object) -> Float[Tensor, "*axes vocabulary"]:
    """Give logits under which no token is sampled that the model's tokenizer does not know.

    Tables of embeddings are padded, to a multiple of 64 or 128, beyond the tokenizer's vocabulary. The logits of those
    places were never trained, and a token of theirs has no text.

    Args:
        logits: of the model.
        model: where it has a `decodable` that is not None, as many tokens as that can be decoded.
    """
    decodable = getattr(model, "decodable", None)
    if decodable is None or decodable >= logits.shape[-1]:
        return logits
    masked = logits.clone()
    masked[..., decodable:] = -torch.inf
    return masked
