"""Answers read as values: by a JSON schema, or by a type whose schema pydantic makes."""

import json
import re
from collections.abc import Mapping
from typing import Any

_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL | re.IGNORECASE)


class OutputFormat:
    """A schema, and how a text that follows it becomes a value.

    Args:
        schema: a JSON schema, by which a text becomes plain lists and dictionaries; or a type, such as a dataclass, a
            `TypedDict`, a pydantic model or `list[int]`, of which a text becomes an instance.

    Attributes:
        json_schema: the schema as JSON.

    Raises:
        ValueError: a schema that is none, or a type that has none.
    """

    def __init__(self, schema: Mapping[str, Any] | Any):
        # Not above: these take a while, and most prompts want text.
        import jsonschema
        import pydantic

        self._adapter = None
        if isinstance(schema, Mapping):
            self.json_schema = dict(schema)
        else:
            try:
                self._adapter = pydantic.TypeAdapter(schema)
                self.json_schema = self._adapter.json_schema()
            except pydantic.errors.PydanticUserError as error:
                raise ValueError(f"{schema!r} has no JSON schema: {error.message.splitlines()[0]}") from error
        try:
            jsonschema.Draft202012Validator.check_schema(self.json_schema)
        except jsonschema.SchemaError as error:
            raise ValueError(f"this is no JSON schema: {error.message}") from error
        self._validator = jsonschema.Draft202012Validator(self.json_schema)

    def parse(self, text: str) -> Any:
        """Give the value of a text that is JSON, or that has one fenced block of it.

        Raises:
            ValueError: it is not JSON, or does not follow the schema.
        """
        import pydantic

        fenced = _FENCED.findall(text)
        try:
            value = json.loads(fenced[0] if len(fenced) == 1 else text, parse_constant=_refuse)
        except RecursionError as error:
            raise ValueError("the JSON is nested too deeply") from error
        except ValueError as error:
            raise ValueError(f"the text is not JSON: {error}") from error
        first = next(iter(self._validator.iter_errors(value)), None)
        if first is not None:
            raise ValueError(f"the JSON does not follow the schema at {first.json_path}: {first.message[:200]}")
        if self._adapter is None:
            return value
        try:
            # As JSON, where a date is a string and a tuple an array.
            return self._adapter.validate_json(json.dumps(value))
        except pydantic.ValidationError as error:
            raise ValueError(f"the JSON does not follow the type: {error.errors()[0]['msg']}") from error


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
