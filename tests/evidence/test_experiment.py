"""An experiment as a value: what it refuses to be, and settings written as text."""

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Optional

import pytest

from allyouneed.evidence import SCALES, Better, Claim, Exact, Experiment, Scale, SettingError

sys.path.insert(0, str(Path(__file__).parent))

import sample


@dataclass(frozen=True)
class Kinds:
    """A field of every type that configurations use."""

    arm: str = "alibi"
    whole: int = 1
    real: float = 0.5
    flag: bool = False
    text: str = "plain"
    choice: Literal["linear", "none", "true"] = "linear"
    number_choice: Literal[1, 2] = 1
    perhaps_whole: int | None = None
    perhaps_real: Optional[float] = 1.0  # noqa: UP045
    perhaps_text: str | None = "a"
    either: int | str = 1
    pair: tuple[float, float] = (0.9, 0.95)
    several: tuple[int, ...] = (1,)
    named: tuple[str, int] = ("a", 1)
    nested: dataclasses.Field | None = None
    derived: int = dataclasses.field(default=0, init=False)
    kind: ClassVar[str] = "kinds"

    def __post_init__(self) -> None:
        if self.whole > 1000:
            raise ValueError(f"whole is {self.whole}: it must be 1000 or less")


def trial(config: Kinds, context: Any) -> Mapping[str, float]:
    return {}


def scales(**arms: Any) -> dict[Any, Scale]:
    return {name: Scale(arms or {"alibi": Kinds(), "rotary": Kinds(arm="rotary")}, seeds=2) for name in SCALES}


def claim(name: str = "one", arm: str = "alibi") -> Claim:
    return Claim(name, "It is.", "Table 1", Better("loss", arm=arm, than=1.0), "None.")


def experiment(claims: tuple[Claim, ...] = (), **changes: Any) -> Experiment:
    parts = {"paper": "kinds", "trial": trial, "claims": claims, "scales": scales(), "figure": sample.figure}
    return Experiment(**parts | changes)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("whole", "3", 3),
        ("whole", "-3", -3),
        ("whole", "1_000", 1000),
        ("real", "0.25", 0.25),
        ("real", "1e-3", 1e-3),
        ("real", "4", 4.0),
        ("real", "-.5", -0.5),
        ("flag", "true", True),
        ("flag", "False", False),
        ("flag", "TRUE", True),
        ("text", "words of it", "words of it"),
        ("text", "3", "3"),
        ("text", "true", "true"),
        ("text", "none", "none"),
        ("text", "(1, 2)", "(1, 2)"),
        ("text", "", ""),
        ("choice", "linear", "linear"),
        ("choice", "none", "none"),
        ("choice", "true", "true"),
        ("number_choice", "2", 2),
        ("perhaps_whole", "4", 4),
        ("perhaps_whole", "none", None),
        ("perhaps_real", "None", None),
        ("perhaps_real", "2", 2.0),
        ("perhaps_text", "none", None),
        ("perhaps_text", "b", "b"),
        ("either", "2", 2),
        ("either", "two", "two"),
        ("pair", "(0.8, 1)", (0.8, 1.0)),
        ("pair", "0.8,1", (0.8, 1.0)),
        ("several", "(1, 2, 3)", (1, 2, 3)),
        ("several", "1,", (1,)),
        ("several", "()", ()),
        ("named", "('b', 2)", ("b", 2)),
    ],
)
def test_a_setting_is_read_as_its_field_s_type(key: str, text: str, value: object) -> None:
    configured = experiment().configured("laptop", {key: text})
    assert configured.seeds == 2
    for arm, config in configured.arms.items():
        found = getattr(config, key)
        assert (found, type(found)) == (value, type(value))
        if isinstance(value, tuple):
            assert list(map(type, found)) == list(map(type, value))
        # Nothing else changed.
        default = getattr(Kinds(), key)
        assert dataclasses.replace(config, **{key: default}) == Kinds(arm=arm)


@pytest.mark.parametrize(
    ("key", "text", "kind"),
    [
        ("whole", "3.0", "int"),
        ("whole", "1e3", "int"),
        ("whole", "true", "int"),
        ("whole", "three", "int"),
        ("whole", "", "int"),
        ("real", "fast", "float"),
        ("real", "true", "float"),
        ("real", "nan", "float"),
        ("flag", "1", "bool"),
        ("flag", "yes", "bool"),
        ("choice", "cubic", "'linear', 'none', 'true'"),
        ("choice", "Linear", "'linear', 'none', 'true'"),
        ("number_choice", "true", "1, 2"),
        ("number_choice", "1.0", "1, 2"),
        ("perhaps_whole", "1.5", "int | None"),
        ("perhaps_real", "true", "float"),
        ("pair", "0.8", "tuple[float, float]"),
        ("pair", "(0.8, 0.9, 1)", "tuple[float, float]"),
        ("pair", "(0.8, 'x')", "tuple[float, float]"),
        ("several", "[1, 2]", "tuple[int, ...]"),
        ("several", "(1, 2.5)", "tuple[int, ...]"),
        ("named", "(1, 'b')", "tuple[str, int]"),
        ("nested", "3", "Field"),
        ("whole", "{[]: 1}", "int"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_type_that_it_must_be(key: str, text: str, kind: str) -> None:
    with pytest.raises(SettingError) as error:
        experiment().configured("laptop", {key: text})
    assert key in str(error.value)
    assert kind in str(error.value)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize("key", ["speed", "Whole", "", "kind", "derived", "__class__"])
def test_an_unknown_setting_names_those_that_there_are(key: str) -> None:
    with pytest.raises(SettingError, match="kinds has no setting") as error:
        experiment().configured("laptop", {key: "1"})
    message = str(error.value)
    assert repr(key) in message
    for known in ("whole (int)", "real (float)", "several (tuple[int, ...])", "choice (Literal['linear'"):
        assert known in message
    assert "derived" not in message.removeprefix(f"kinds has no setting {key!r}")


def test_what_tells_the_arms_apart_cannot_be_set() -> None:
    with pytest.raises(SettingError, match=r"'arm' is what tells the arms of kinds apart"):
        experiment().configured("laptop", {"arm": "rotary"})


def test_what_a_configuration_refuses_is_a_setting_error() -> None:
    with pytest.raises(SettingError, match="whole is 2000: it must be 1000 or less"):
        experiment().configured("laptop", {"whole": "2000"})


def test_without_settings_a_scale_is_as_it_was_declared() -> None:
    tried = experiment()
    assert tried.configured("gpu", {}) is tried.scales["gpu"]


def test_settings_leave_device_precision_and_the_experiment_alone() -> None:
    own = {name: Scale({"alibi": Kinds()}, 3, "cuda", "bf16-mixed") for name in SCALES}
    tried = experiment(scales=own)
    configured = tried.configured("gpu", {"whole": "7", "real": "1"})
    assert configured == Scale({"alibi": Kinds(whole=7, real=1.0)}, 3, "cuda", "bf16-mixed")
    assert tried.scales["gpu"].arms["alibi"] == Kinds()


@pytest.mark.parametrize("missing", SCALES, ids=lambda name: f"without {name}")
def test_every_scale_must_be_there(missing: str) -> None:
    there = {name: scale for name, scale in scales().items() if name != missing}
    with pytest.raises(ValueError, match="scales are") as error:
        experiment(scales=there)
    assert missing in str(error.value).split("must be")[1]
    with pytest.raises(ValueError, match="huge"):
        experiment(scales=there | {"huge": Scale({"alibi": Kinds()}, 1)})


@dataclass(frozen=True)
class Other:
    arm: str = "rotary"


@pytest.mark.parametrize(
    "arms", [{"alibi": Kinds(), "rotary": Other()}, {"alibi": {"arm": "alibi"}}, {"alibi": Kinds}, {"alibi": "alibi"}]
)
def test_arms_must_share_one_dataclass(arms: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must share one dataclass"):
        experiment(scales=scales(**arms))


def test_a_scale_without_arms_is_refused() -> None:
    with pytest.raises(ValueError, match="the arms of gpu must share one dataclass"):
        experiment(scales=scales() | {"gpu": Scale({}, 1)})


def test_a_claim_must_name_arms_of_every_scale() -> None:
    with pytest.raises(ValueError, match=r"claim one names arms \['t5'\], not in"):
        experiment((claim(arm="t5"),))
    fewer = scales() | {"gpu": Scale({"alibi": Kinds()}, 1)}
    with pytest.raises(ValueError, match=r"claim one names arms \['rotary'\], not in gpu"):
        experiment((claim(arm="rotary"),), scales=fewer)
    several = Claim("several", "It is.", "Table 1", Exact("loss", ("alibi", "none"), at_most=1.0), "None.")
    with pytest.raises(ValueError, match=r"claim several names arms \['none'\]"):
        experiment((several,))


def test_claims_have_different_ids() -> None:
    assert len(experiment((claim("one"), claim("two"))).claims) == 2
    with pytest.raises(ValueError, match="two claims have one id"):
        experiment((claim("one"), claim("one", arm="rotary")))
