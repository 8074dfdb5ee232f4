"""Loading accounts for every name on both sides, and saving undoes it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from allyouneed.hub import Name, UnsupportedError, WeightsError, open_model, same

Weights = dict[str, torch.Tensor]


def equal(model: nn.Module, other: nn.Module) -> bool:
    theirs = dict(other.named_parameters())
    return all(torch.equal(value, theirs[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_comes_back(tiny: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    tiny.to(dtype).save_pretrained(tmp_path)
    again = type(tiny).from_pretrained(tmp_path)
    assert equal(tiny, again)
    assert not again.training
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in again.parameters())
    assert open_model(tmp_path).config["torch_dtype"] == str(dtype).removeprefix("torch.")
    wide = type(tiny).from_pretrained(tmp_path, dtype=torch.float64)
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float64}


def test_names_are_found_without_their_prefix(tiny: Any, stored: Weights, write: Callable[..., Path]) -> None:
    bare = {name.removeprefix("tiny."): value for name, value in stored.items()}
    assert equal(tiny, type(tiny).from_pretrained(write(bare)))


def test_what_is_ignored_may_be_there(tiny: Any, stored: Weights, write: Callable[..., Path]) -> None:
    folder = write({**stored, "tiny.mask": torch.ones(3, dtype=torch.bool), "mask": torch.ones(1)})
    assert equal(tiny, type(tiny).from_pretrained(folder))


def test_copies_must_be_copies(tiny: Any, stored: Weights, write: Callable[..., Path]) -> None:
    table = stored["tiny.wte.weight"]
    assert equal(tiny, type(tiny).from_pretrained(write({**stored, "head.weight": table.clone()})))
    for other in (table + 1, table[:-1].clone()):
        with pytest.raises(WeightsError, match=r"head\.weight must equal tiny\.wte\.weight"):
            type(tiny).from_pretrained(write({**stored, "head.weight": other}))


def change(stored: Weights, **changes: torch.Tensor | None) -> Weights:
    changed = {**stored, **{f"tiny.{name.replace('_', '.')}": value for name, value in changes.items()}}
    return {name: value for name, value in changed.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"inner_bias": None}, r"1 are missing: tiny\.inner\.bias$"),
        ({"rotary": torch.zeros(1)}, r"1 are left over, .*: tiny\.rotary$"),
        ({"inner_weight": torch.zeros(8, 4)}, r"tiny\.inner\.weight has \(8, 4\), the model \(4, 8\)$"),
        ({"inner_bias": torch.zeros(8, dtype=torch.int64)}, r"tiny\.inner\.bias has numbers of type torch\.int64"),
        ({"inner_bias": None, "bias": torch.zeros(8)}, r"1 are missing: tiny\.inner\.bias; 1 are left over"),
        ({f"x{place}": torch.zeros(1) for place in range(20)}, r"20 are left over.*tiny\.x\d+, …$"),
    ],
)
def test_names_that_do_not_match_are_listed(
    tiny: Any, stored: Weights, write: Callable[..., Path], changes: Weights, said: str
) -> None:
    with pytest.raises(WeightsError, match=said):
        type(tiny).from_pretrained(write(change(stored, **changes)))


def test_another_architecture_is_named(tiny: Any, stored: Weights, write: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedError, match="is a OtherModel; Tiny reads TinyModel"):
        type(tiny).from_pretrained(write(stored, architectures=["OtherModel"]))
    with pytest.raises(UnsupportedError, match="act is 'gelu'; only 'relu'"):
        type(tiny).from_pretrained(write(stored, act="gelu"))
    with pytest.raises(UnsupportedError, match="width is 'four'"):
        type(tiny).from_pretrained(write(stored, width="four"))
    assert type(tiny).from_pretrained(write(stored, architectures=None)).width == 4


def test_arguments_are_honoured(tiny: Any, stored: Weights, write: Callable[..., Path]) -> None:
    folder = write(stored)
    # A type checker at run time refuses it before the function does.
    with pytest.raises((ValueError, TypeError), match="int2"):
        type(tiny).from_pretrained(folder, quantize="int2")
    with pytest.raises(ValueError, match=r"dtype is torch\.int8"):
        type(tiny).from_pretrained(folder, dtype=torch.int8)
    with pytest.raises(ValueError, match="device is 'nowhere'"):
        type(tiny).from_pretrained(folder, device="nowhere")


def test_nothing_is_left_at_random_values(tiny: Any, tmp_path: Path) -> None:
    """The random generator is not touched, and every value is the file's."""
    tiny.save_pretrained(tmp_path)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    type(tiny).from_pretrained(tmp_path)
    assert torch.equal(state, torch.get_rng_state())


def test_token_ids_survive(tiny: Any, stored: Weights, write: Callable[..., Path], tmp_path: Path) -> None:
    model = type(tiny).from_pretrained(write(stored, eos_token_id=[1, 2], pad_token_id=None))
    model.save_pretrained(tmp_path / "again")
    config = open_model(tmp_path / "again").config
    assert config["eos_token_id"] == [1, 2]
    assert "pad_token_id" not in config


def test_saving_over_what_was_loaded(tiny: Any, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    again = type(tiny).from_pretrained(tmp_path)
    with torch.no_grad():
        again.table.weight += 1
    again.save_pretrained(tmp_path)
    assert equal(again, type(tiny).from_pretrained(tmp_path))


def test_tied_parameters_stay_tied(tiny: Any, tmp_path: Path) -> None:
    class Tied(type(tiny)):
        def __init__(self, width: int):
            super().__init__(width)
            self.head = nn.Linear(width, 5, bias=False)
            self.head.weight = self.table.weight

    tied = Tied(4)
    tied.save_pretrained(tmp_path)
    again = Tied.from_pretrained(tmp_path)
    assert again.head.weight is again.table.weight
    assert torch.equal(again.head.weight, tied.head.weight)


def test_mistakes_of_a_model_are_said(tiny: Any, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    names = tiny.weight_names()

    class Naming(type(tiny)):
        chosen: list[Name]

        def weight_names(self) -> list[Name]:
            return self.chosen

    for chosen in (names[:-1], [*names, same("other", "x")], [*names, same("inner.bias", "y")]):
        Naming.chosen = chosen
        with pytest.raises(ValueError, match="every parameter once"):
            Naming.from_pretrained(tmp_path)

    class Buffered(type(tiny)):
        def __init__(self, width: int):
            super().__init__(width)
            self.register_buffer("frequencies", torch.zeros(3), persistent=False)

    with pytest.raises(ValueError, match="no checkpoint gives: frequencies"):
        Buffered.from_pretrained(tmp_path)


def test_configuration_from(stored: Mapping[str, torch.Tensor], tiny: Any, write: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedError, match="has no width"):
        type(tiny).from_pretrained(write(stored, width=None))
