"""Reading how a `config.json` sets up rotary positions, in each of the spellings that are in use."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .config import required
from .errors import UnsupportedError

Setting = float | int | bool | tuple[float, ...]

_ENTRIES = ("rope_parameters", "rope_scaling")
_ORIGINAL = "original_max_position_embeddings"
# Of each kind of scaling: the settings that it takes, and their types.
_SETTINGS: Mapping[str, Mapping[str, type]] = {
    "default": {},
    "linear": {"factor": float},
    "dynamic": {"factor": float},
    "llama3": {"factor": float, "low_freq_factor": float, "high_freq_factor": float, _ORIGINAL: int},
    "yarn": {
        "factor": float,
        _ORIGINAL: int,
        "attention_factor": float,
        "beta_fast": float,
        "beta_slow": float,
        "mscale": float,
        "mscale_all_dim": float,
        "truncate": bool,
    },
    "longrope": {
        "factor": float,
        _ORIGINAL: int,
        "attention_factor": float,
        "short_factor": tuple,
        "long_factor": tuple,
    },
}
_OPTIONAL = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")


@dataclass(frozen=True)
class RotaryParameters:
    """What a configuration says of rotary positions; whether it can be computed is the model's affair.

    Attributes:
        base: the slowest pair of coordinates rotates by about 1/base radian a token; `rope_theta` in checkpoints.
        kind: how frequencies are scaled: "default" (not at all), "linear", "dynamic", "llama3", "yarn" or "longrope".
        fraction: of each head's coordinates, those that are rotated.
        settings: the numbers of that kind, under their names in checkpoints (`factor`, `beta_fast` …). Optional ones
            are there where the file gives them; `factor` and `original_max_position_embeddings` always, where the kind
            has them.
        entry: where in the configuration the kind stands, for messages.
    """

    base: float
    kind: str = "default"
    fraction: float = 1.0
    settings: Mapping[str, Setting] = field(default_factory=lambda: MappingProxyType({}))
    entry: str = _ENTRIES[0]

    def refuse_unless(self, kinds: Collection[str] = ("default",), *, partial: bool = False) -> None:
        """Refuse what a model cannot compute.

        Args:
            kinds: of scaling that it can.
            partial: whether it can rotate a part of each head only.

        Raises:
            UnsupportedError: another kind, or a part of each head; named, with what would be accepted.
        """
        if self.kind not in kinds:
            raise UnsupportedError(
                f"config.json: {self.entry} has the rope_type {self.kind!r}; only "
                f"{' or '.join(map(repr, kinds))} is supported here"
            )
        if self.fraction != 1.0 and not partial:
            raise UnsupportedError(
                f"config.json: partial_rotary_factor (at the top or in {self.entry}) is {self.fraction!r}; "
                "only 1.0 is supported here"
            )


def read_rotary(config: Mapping[str, Any], *, base: float = 10_000.0, context: int | None = None) -> RotaryParameters:
    """Read what a configuration says of rotary positions.

    It stands in `rope_parameters` or `rope_scaling`, its kind under `rope_type` or `type`; `rope_theta`,
    `partial_rotary_factor` and `original_max_position_embeddings` stand there or beside it.

    Args:
        config: of a checkpoint.
        base: what the architecture takes where none is given.
        context: what it takes where `max_position_embeddings` is not given; where None, kinds that need it require it.

    Raises:
        UnsupportedError: a kind of scaling that is not known; a setting that is missing, out of range, or not one of
            this kind's; or two places that contradict each other. Each is named.
    """
    entry, given = _entry(config)
    kind = _kind(given, entry)
    known = ("rope_type", "type", "rope_theta", "partial_rotary_factor", *_SETTINGS[kind])
    unknown = next((key for key in given if key not in known), None)
    if unknown is not None:
        accepted = ", ".join(key for key in known if key != "type")
        raise UnsupportedError(
            f"config.json: {entry}.{unknown} is {given[unknown]!r}; of the rope_type {kind!r} are read {accepted}"
        )
    reading = _Reading(config, entry, given)
    fraction = reading.positive("partial_rotary_factor", 1.0)
    if fraction > 1:
        raise UnsupportedError(f"config.json: partial_rotary_factor is {fraction!r}; it must be at most 1.0")
    return RotaryParameters(
        base=reading.positive("rope_theta", base),
        kind=kind,
        fraction=fraction,
        settings=MappingProxyType(_settings(reading, kind, context)),
        entry=entry,
    )


def _entry(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Find the entry that describes rotary positions, and leave out what is null in it."""
    found: dict[str, dict[str, Any]] = {}
    for name in _ENTRIES:
        value = config.get(name)
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise UnsupportedError(f"config.json: {name} is {value!r}; it must be null or an object with keys")
        nested = next((key for key, inner in value.items() if isinstance(inner, Mapping)), None)
        if nested is not None:
            raise UnsupportedError(
                f"config.json: {name}.{nested} is {value[nested]!r}; only rotary positions that are the same in all "
                "layers are read"
            )
        found[name] = {key: inner for key, inner in value.items() if inner is not None}
    names = [name for name in _ENTRIES if found.get(name)] or [_ENTRIES[0]]
    if len(names) == 2 and found[names[0]] != found[names[1]]:
        both = " and ".join(f"{name} is {config[name]!r}" for name in names)
        raise UnsupportedError(f"config.json: {both}; where both are given, they must be the same")
    return names[0], found.get(names[0], {})


def _kind(given: Mapping[str, Any], entry: str) -> str:
    spelled = {key: given[key] for key in ("rope_type", "type") if key in given}
    kind = next(iter(spelled.values()), "default")
    if any(other != kind for other in spelled.values()):
        raise UnsupportedError(f"config.json: {entry} has the rope_type {kind!r} and the type {spelled['type']!r}")
    if not isinstance(kind, str) or kind not in _SETTINGS:
        raise UnsupportedError(
            f"config.json: {entry} has the rope_type {kind!r}; known are {', '.join(map(repr, _SETTINGS))}"
        )
    return kind


@dataclass(frozen=True)
class _Reading:
    """A configuration and its entry for rotary positions, from which numbers are taken."""

    config: Mapping[str, Any]
    entry: str
    given: Mapping[str, Any]

    def positive(self, key: str, default: Any, kind: type = float) -> Any:
        """Give a number that must be above 0, from the entry or beside it; both must agree."""
        inside, beside = self.given.get(key), self.config.get(key)
        if inside is not None and beside is not None and inside != beside:
            raise UnsupportedError(
                f"config.json: {key} is {beside!r} and {self.entry}.{key} is {inside!r}; where both are given, they "
                "must be the same"
            )
        return (
            self.inside(key, kind)
            if inside is not None
            else _above_zero(required(self.config, key, kind, default), key)
        )

    def inside(self, key: str, kind: type) -> Any:
        """Give a setting of the entry, of this type."""
        name = f"{self.entry}.{key}"
        if kind is not tuple:
            value = required({name: self.given.get(key)}, name, kind)
            return value if kind is bool else _above_zero(value, name)
        values = self.given.get(key)
        if not isinstance(values, list) or not values:
            raise UnsupportedError(f"config.json: {name} is {values!r}; it must be a list of numbers")
        return tuple(_above_zero(required({name: value}, name, float), name) for value in values)


def _settings(reading: _Reading, kind: str, context: int | None) -> dict[str, Setting]:
    """Give the settings of a kind of scaling, and what follows from others where it is left out."""
    wanted = dict(_SETTINGS[kind])
    settings: dict[str, Setting] = {}
    if wanted.pop(_ORIGINAL, None) is not None:
        longest = _above_zero(_length(reading.config, context), "max_position_embeddings")
        original = reading.positive(_ORIGINAL, longest, int)
        settings[_ORIGINAL] = original
        if kind in ("yarn", "longrope") and "factor" not in reading.given:
            del wanted["factor"]
            settings["factor"] = longest / original
    for key, type_ in wanted.items():
        # Zero says nothing of these two.
        absent = key not in reading.given or (key.startswith("mscale") and reading.given[key] == 0)
        if not (absent and key in _OPTIONAL):
            settings[key] = reading.inside(key, type_)
    return settings


def _length(config: Mapping[str, Any], context: int | None) -> int:
    key = "max_position_embeddings"
    return required(config, key, int) if context is None else required(config, key, int, context)


def _above_zero(value: Any, name: str) -> Any:
    if not value > 0:
        raise UnsupportedError(f"config.json: {name} is {value!r}; it must be above 0")
    return value
