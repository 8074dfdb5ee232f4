"""An experiment is a value: arms, a trial, claims, a figure, and scales."""

import ast
import contextlib
import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from .claims import Claim, TrialResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .context import Context

ScaleName = Literal["smoke", "laptop", "gpu"]
SCALES: tuple[ScaleName, ...] = get_args(ScaleName)


class SettingError(ValueError):
    """A setting that an experiment's configuration does not have, or not of that type."""


@dataclass(frozen=True)
class Scale:
    """What to run at one size.

    Attributes:
        arms: the configuration of each arm, all of one frozen dataclass.
        seeds: every arm is run with seeds 0 to seeds - 1.
        device: what it is meant for: "cpu" or "cuda".
        precision: as Lightning Fabric names it: "32-true", "bf16-mixed".
    """

    arms: Mapping[str, Any]
    seeds: int
    device: str = "cpu"
    precision: str = "32-true"


@dataclass(frozen=True)
class Experiment:
    """The claims of one paper and how they are tried.

    Attributes:
        paper: the room's name.
        trial: runs one configuration with the seed, device and folder of its context, and returns its metrics.
        claims: written before the recorded run.
        scales: smoke, laptop and gpu.
        figure: draws the trials the way the paper does.

    Raises:
        ValueError: a scale is missing, arms of different kinds, or a claim that names an arm that there is not.
    """

    paper: str
    trial: "Callable[[Any, Context], Mapping[str, float]]"
    claims: tuple[Claim, ...]
    scales: Mapping[ScaleName, Scale]
    figure: "Callable[[Sequence[TrialResult]], Figure]"

    def __post_init__(self) -> None:
        if set(self.scales) != set(SCALES):
            raise ValueError(f"{self.paper}: scales are {sorted(self.scales)}; they must be {sorted(SCALES)}")
        for name, scale in self.scales.items():
            kinds = {type(config) for config in scale.arms.values()}
            if len(kinds) != 1 or not dataclasses.is_dataclass(next(iter(kinds))):
                raise ValueError(f"{self.paper}: the arms of {name} must share one dataclass, not {kinds}")
            for claim in self.claims:
                unknown = set(claim.test.arms) - set(scale.arms)
                if unknown:
                    raise ValueError(f"{self.paper}: claim {claim.id} names arms {sorted(unknown)}, not in {name}")
        if len({claim.id for claim in self.claims}) < len(self.claims):
            raise ValueError(f"{self.paper}: two claims have one id")

    def configured(self, scale: ScaleName, settings: Mapping[str, str]) -> Scale:
        """Give a scale with settings, written as text, put into every arm's configuration.

        Raises:
            SettingError: an unknown key, a value of the wrong type, or a key that tells the arms apart.
        """
        chosen = self.scales[scale]
        if not settings:
            return chosen
        kind = type(next(iter(chosen.arms.values())))
        known_types = get_type_hints(kind)
        hints = {field.name: known_types[field.name] for field in dataclasses.fields(kind) if field.init}
        changes = {}
        for key, text in settings.items():
            if key not in hints:
                known = ", ".join(f"{name} ({_type_name(hint)})" for name, hint in hints.items())
                raise SettingError(f"{self.paper} has no setting {key!r}; it has {known}")
            if len({getattr(config, key) for config in chosen.arms.values()}) > 1:
                raise SettingError(f"{key!r} is what tells the arms of {self.paper} apart, and cannot be set for all")
            changes[key] = _parse(key, text, hints[key])
        try:
            arms = {arm: dataclasses.replace(config, **changes) for arm, config in chosen.arms.items()}
        except ValueError as error:
            raise SettingError(str(error)) from error
        return dataclasses.replace(chosen, arms=arms)


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _parse(key: str, text: str, hint: Any) -> Any:
    """Read a setting's text as its field's type."""
    try:
        value = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, TypeError, SyntaxError):
        value = text
    for candidate in (value, text):
        with contextlib.suppress(ValueError):
            return _fitted(candidate, hint)
    raise SettingError(f"{key!r} must be {_type_name(hint)}, not {text!r}")


def _fitted(value: Any, hint: Any) -> Any:
    """Give a value in a field's type (the types that configurations use), an int as a float where one is wanted.

    Raises:
        ValueError: it is not of that type.
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        for option in get_args(hint):
            with contextlib.suppress(ValueError):
                return _fitted(value, option)
    elif origin is Literal:
        # True equals 1, and is none of 1, 2, 3.
        if any(type(value) is type(option) and value == option for option in get_args(hint)):
            return value
    elif origin is tuple:
        inner = get_args(hint)
        same = inner[:1] * len(value) if isinstance(value, tuple) and inner[-1:] == (...,) else inner
        if isinstance(value, tuple) and len(same) == len(value):
            return tuple(map(_fitted, value, same))
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"{value!r} is no {_type_name(hint)}")
