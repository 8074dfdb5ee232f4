"""Templates that come with a model, run in a sandbox that bounds how long they run and how much they write.

They can change nothing outside, as Jinja's own sandbox has it. Here every turn of a loop and every call of a macro is
counted, and so is the size of texts and lists that they make, so that none runs for ever or fills the memory.
"""

import functools
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_SOURCE = 500_000
"""Characters of a template."""
MAX_STEPS = 100_000
"""Turns of loops and calls of macros in one conversation."""
MAX_POWER = 64
"""Of a number; larger ones take long to compute, and no template needs them."""
MAX_SIZE = 20_000_000
"""Characters of a text, or items of a list, that a template makes."""

_STEP, _JOINED = "__step", "__joined"


class TemplateLimitError(jinja2.TemplateError):
    """A template that runs too long, or makes something too large."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with bounds, and the functions and filters that chat templates expect."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        # Constants are not computed beforehand, where nothing is counted.
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], optimized=False)
        self._counted = threading.local()
        self.filters = {name: _bounded(filter_) for name, filter_ in {**self.filters, "tojson": _to_json}.items()}
        self.globals |= {
            _STEP: self._step,
            _JOINED: _joined,
            "raise_exception": _refuse,
            "strftime_now": lambda form: datetime.now().strftime(form),
        }

    def prepared(self, source: str) -> jinja2.Template:
        """Compile a template.

        Raises:
            ValueError: it is too long, or has a mistake in its syntax.
        """
        if len(source) > MAX_SOURCE:
            raise ValueError(f"the chat template has {len(source)} characters: at most {MAX_SOURCE} are compiled")
        try:
            tree = _Counting().visit(self.parse(source))
            return self.template_class.from_code(self, self.compile(tree), self.make_globals(None))
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the chat template has a mistake in line {error.lineno}: {error.message}") from error
        except (RecursionError, MemoryError, SyntaxError, ValueError, TypeError) as error:
            raise ValueError(f"the chat template cannot be compiled: {type(error).__name__}: {error}") from error

    def rendered(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """Give the text of a template.

        Raises:
            ValueError: the template refuses, fails, runs too long or writes too much.
        """
        self._counted.steps = 0
        try:
            pieces, size = [], 0
            for piece in template.generate(**variables):
                size += len(piece)
                _check_size(size)
                pieces.append(piece)
            return "".join(pieces)
        except Exception as error:  # Whatever a template's code may raise.
            said = str(error) or type(error).__name__
            raise ValueError(f"the chat template refuses this conversation: {said}") from error

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute one of the operations by which a value may grow."""
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if isinstance(text, str | list | tuple) and isinstance(times, int):
                    _check_size(len(text) * times)
        if operator == "**" and not (isinstance(right, int | float) and abs(right) <= MAX_POWER):
            raise TemplateLimitError(f"a power of more than {MAX_POWER} is not computed")
        if operator == "%" and isinstance(left, str):
            _check_numbers([int(digits) for digits in _numbers(left)])
        return _checked(super().call_binop(context, operator, left, right))

    def call(self, __context: Any, __obj: Any, *args: Any, **options: Any) -> Any:
        """Call a function or a method."""
        if isinstance(getattr(__obj, "__self__", None), str):
            # Methods of texts make them as wide as they are told.
            _check_numbers([*args, *options.values()])
        return _checked(super().call(__context, __obj, *args, **options))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Give a text's `format` method, by which it may not become wider than is allowed."""
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        def bounded(*args: Any, **options: Any) -> str:
            _check_numbers([*map(int, _numbers(value.__self__)), *args, *options.values()])
            return _checked(formatted(*args, **options))

        return functools.update_wrapper(bounded, value)

    def _step(self) -> str:
        self._counted.steps += 1
        if self._counted.steps > MAX_STEPS:
            raise TemplateLimitError(f"it takes more than {MAX_STEPS} turns of its loops")
        return ""


class _Counting(NodeTransformer):
    """Puts a count into every loop and macro, and has texts that are joined looked at."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._counted(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _called(_JOINED, node.nodes, node.lineno)

    def _counted(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_called(_STEP, [], node.lineno), lineno=node.lineno))
        return node


def _called(name: str, arguments: list[Any], line: int) -> nodes.Call:
    return nodes.Call(nodes.Name(name, "load", lineno=line), arguments, [], None, None, lineno=line)


def _joined(*parts: Any) -> str:
    return _checked("".join(map(str, parts)))


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Look at the numbers that a filter is given, and at what it makes."""

    @functools.wraps(function)
    def bounded(*args: Any, **options: Any) -> Any:
        _check_numbers([*args[1:], *options.values()])
        return _checked(function(*args, **options))

    return bounded


def _numbers(form: str) -> Iterable[str]:
    """Give the numbers in a text that says how others are to be written."""
    return (
        "".join(run) for run in "".join(sign if sign.isascii() and sign.isdigit() else " " for sign in form).split()
    )


def _check_numbers(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_SIZE:
            raise TemplateLimitError(f"it asks for {value} of something: at most {MAX_SIZE} are made")


def _check_size(size: int) -> None:
    if size > MAX_SIZE:
        raise TemplateLimitError(f"it makes a text or a list of more than {MAX_SIZE} parts")


def _checked(value: Any) -> Any:
    if isinstance(value, str | list | tuple | dict):
        _check_size(len(value))
    return value


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
