"""Values of a configuration are there and of their type, or the error names them."""

from typing import Any

import pytest

from allyouneed.hub import UnsupportedError, canonical, label_entries, read_labels, refuse_unless, required


@pytest.mark.parametrize("config", [{}, {"act": "relu"}, {"act": None}])
def test_accepted_values_pass(config: dict[str, Any]) -> None:
    refuse_unless(config, "act", ("relu", None))


def test_other_values_are_named() -> None:
    with pytest.raises(UnsupportedError, match="act is 'tanh'; only 'relu' or 'gelu' is supported here"):
        refuse_unless({"act": "tanh"}, "act", ("relu", "gelu"))
    with pytest.raises(UnsupportedError, match="window is absent, which means 4096; only None"):
        refuse_unless({}, "window", (None,), absent=4096)
    with pytest.raises(UnsupportedError, match=r"scaling is \{'factor': 2\}"):
        refuse_unless({"scaling": {"factor": 2}}, "scaling", (None,))
    with pytest.raises(UnsupportedError, match="bias is 1; only True"):
        refuse_unless({"bias": 1}, "bias", (True,))


def test_required_values() -> None:
    assert required({"width": 4}, "width", int) == 4
    assert required({"epsilon": 1}, "epsilon", float) == 1.0
    assert required({}, "epsilon", float, 0.5) == 0.5
    assert required({"tied": None}, "tied", bool, True) is True


@pytest.mark.parametrize(
    ("value", "kind"), [("4", int), (True, int), (4.0, int), (-1, int), (float("nan"), float), (float("inf"), float)]
)
def test_wrong_values_are_named(value: object, kind: type) -> None:
    with pytest.raises(UnsupportedError, match=f"width is {value!r}"):
        required({"width": value}, "width", kind)


def test_a_missing_value_is_named() -> None:
    with pytest.raises(UnsupportedError, match="no width"):
        required({}, "width", int)


def test_labels_come_in_the_order_of_their_numbers() -> None:
    assert read_labels({"id2label": {"1": "no", "0": "yes", 2: "maybe"}}) == ("yes", "no", "maybe")
    assert read_labels({}) == read_labels({"id2label": None}) == ("LABEL_0", "LABEL_1")
    assert read_labels({"num_labels": 3}) == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert read_labels(label_entries(("yes", "no", "maybe"))) == ("yes", "no", "maybe")


@pytest.mark.parametrize("named", [{}, {"1": "yes", "2": "no"}, {"0": 1, "1": 2}, ["yes", "no"]])
def test_labels_without_numbers_or_names_are_named(named: object) -> None:
    with pytest.raises(UnsupportedError, match="id2label is"):
        read_labels({"id2label": named})


def test_two_numbers_of_labels_must_agree() -> None:
    assert read_labels({"id2label": {"0": "yes"}, "num_labels": 1}) == ("yes",)
    with pytest.raises(UnsupportedError, match="num_labels is 3; only 1"):
        read_labels({"id2label": {"0": "yes"}, "num_labels": 3})


def test_other_names_of_a_number_are_read() -> None:
    aliases = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer"}
    assert canonical({"hidden_size": 4, "n_layer": 2, "num_hidden_layers": 2}, aliases) == {"n_embd": 4, "n_layer": 2}
    with pytest.raises(UnsupportedError, match="hidden_size is 4 and n_embd is 5, which are two names of one number"):
        canonical({"hidden_size": 4, "n_embd": 5}, aliases)


def test_too_few_labels() -> None:
    assert read_labels({"id2label": {"0": "yes"}}) == ("yes",)
    with pytest.raises(UnsupportedError, match="there must be 2 labels or more"):
        read_labels({"id2label": {"0": "yes"}}, least=2)
