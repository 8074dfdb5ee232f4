"""Requests of OpenAI's API: what both routes share, and completions.

Everything that a request may hold is honoured, says nothing, or is refused by name. What goes beyond the API (`top_k`,
`min_p`, `repetition_penalty`, `ignore_eos`, `min_tokens`, `stop_token_ids` and others) has vLLM's names.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from allyouneed.text import Sampling

from .api_fields import CHAT_ONLY, UNSUPPORTED, Unsupported, refuse, without_what_says_nothing

_MOST_STOPS = 256


class Body(BaseModel):
    """An object of a request, whose fields may be null or empty where nothing is asked for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    unsupported: ClassVar[Mapping[str, Unsupported]] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_what_says_nothing(cls, given: Any) -> Any:
        required = {field.alias or name: field.is_required() for name, field in cls.model_fields.items()}
        return without_what_says_nothing(given, required, cls.unsupported)


_Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
_TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
_MinP = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_RepetitionPenalty = Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)]
_Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
_Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
_TokenName = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]


def _as_list(given: Any) -> Any:
    return ([given] if given else []) if isinstance(given, str) else given


def _off_as_none(given: Any) -> Any:
    return None if given in (-1, 0) and not isinstance(given, bool) else given


def _false_as_none(given: Any) -> Any:
    return None if given is False else given


def _check_prompt(given: Any) -> Any:
    """Refuse what is no prompt in a sentence: of a union, pydantic blames the first member alone."""
    several = given if isinstance(given, list) else [given]
    kinds = {type(one) for one in several}
    inner = {type(token) for one in several if isinstance(one, list) for token in one}
    if len(kinds) > 1 or not kinds <= {str, int, list} or isinstance(given, int) or not inner <= {int}:
        refuse(
            f"{repr(given)[:80]} is no prompt: it must be a text, a list of tokens, or a list of several of either kind"
        )
    return given


Stops = Annotated[
    list[Annotated[str, StringConstraints(min_length=1)]], Field(max_length=_MOST_STOPS), BeforeValidator(_as_list)
]
"""Strings that end a text; one string stands for a list of it."""

Schema = dict[str, Any]
"""A JSON schema."""


class StreamOptions(Body):
    """How an answer is streamed."""

    unsupported: ClassVar[Mapping[str, Unsupported]] = {
        "include_obfuscation": Unsupported("chunks are not padded", (False,)),
        "continuous_usage_stats": Unsupported("the usage comes at the end", (False,)),
    }

    include_usage: bool = False


class JsonSchemaFormat(Body):
    """A schema that an answer follows; that it is strict is always so."""

    name: str | None = None
    description: str | None = None
    json_schema: Annotated[Schema, Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Body):
    """What an answer looks like: any text, a JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    json_object_schema: Annotated[Schema | None, Field(alias="schema")] = None

    @model_validator(mode="after")
    def _check_schema(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            refuse("a response_format of type json_schema needs the field json_schema")
        if self.type == "text" and (self.json_schema is not None or self.json_object_schema is not None):
            refuse("a response_format of type text follows no schema: its type must be json_schema")
        if self.json_schema is not None and self.json_object_schema is not None:
            refuse("a response_format has one schema: give it as json_schema or as schema, not as both")
        return self

    @property
    def schema_to_follow(self) -> Schema | None:
        """The schema; None for any text."""
        if self.type == "text":
            return None
        if self.json_schema is not None:
            return self.json_schema.json_schema
        return {"type": "object"} if self.json_object_schema is None else self.json_object_schema


class GenerationRequest(Body):
    """What both kinds of requests may hold."""

    model: str
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: _Temperature | None = None
    top_p: _TopP | None = None
    top_k: Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_off_as_none)] = None
    min_p: _MinP | None = None
    repetition_penalty: _RepetitionPenalty | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: dict[_TokenName, _Bias] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: int | None = None
    stop: Stops | None = None
    stop_token_ids: list[Annotated[int, Field(ge=0)]] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    skip_special_tokens: bool | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Who asks and what for, for the asker's own records: they change no answer anywhere.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _check_lengths(self) -> "GenerationRequest":
        if self.min_tokens and self.stop:
            refuse("min_tokens and stop together are not supported: use stop_token_ids", "min_tokens")
        return self

    @property
    def sampling(self) -> Sampling:
        """How tokens are sampled."""
        return Sampling(
            1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
        )

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def schema_to_follow(self) -> Schema | None:
        """The schema that the answer follows; None for any text."""
        return None if self.response_format is None else self.response_format.schema_to_follow

    @property
    def count_of_top_logprobs(self) -> int | None:
        """How many of the likeliest tokens are given with each token; None where no log probabilities are."""
        raise NotImplementedError


class CompletionRequest(GenerationRequest):
    """A text, or several, to be continued; texts may be given as tokens."""

    unsupported: ClassVar[Mapping[str, Unsupported]] = {
        **UNSUPPORTED,
        **CHAT_ONLY,
        "suffix": Unsupported("nothing can be filled in before a suffix"),
    }

    prompt: Annotated[str | list[str] | list[int] | list[list[int]], BeforeValidator(_check_prompt)]
    logprobs: Annotated[Annotated[int, Field(ge=0, le=20)] | None, BeforeValidator(_false_as_none)] = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _check_together(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            refuse(
                "max_tokens 0 leaves nothing to answer with: it must be at least 1, but where echo is true",
                "max_tokens",
            )
        if self.best_of is not None:
            if self.best_of < (self.n or 1):
                refuse(f"best_of {self.best_of} is less than n {self.n or 1}", "best_of")
            if self.stream and self.best_of > (self.n or 1):
                refuse("best_of cannot be streamed: the best are known at the end", "best_of")
        return self

    @property
    def count_of_top_logprobs(self) -> int | None:
        """See `GenerationRequest`."""
        return self.logprobs

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """The texts."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(part, int) for part in self.prompt):
            return [self.prompt] if self.prompt else []  # pyright: ignore[reportReturnType]
        return self.prompt  # pyright: ignore[reportReturnType]
