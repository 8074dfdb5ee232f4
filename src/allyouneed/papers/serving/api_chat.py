"""Chat requests of OpenAI's API: messages, tools, and which of them the model is to call."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag, model_validator

from .api_fields import COMPLETIONS_ONLY, UNSUPPORTED, Unsupported, refuse
from .api_requests import Body, GenerationRequest, Schema

_MOST_TOOLS = 128
_ROLES = Literal["system", "developer", "user", "assistant", "tool"]
_Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


def _as_parts(given: Any) -> Any:
    return [{"type": "text", "text": given}] if isinstance(given, str) else given


def _type_is_function(given: Any) -> Any:
    if given is not None and given != "function":
        refuse(f"type {given!r} is not supported: tools must be functions")
    return given


_FunctionType = Annotated[Literal["function"], BeforeValidator(_type_is_function)]


class ContentPart(Body):
    """A part of a message: text, or the text of a refusal."""

    type: Literal["text", "refusal"]
    text: str = ""
    refusal: str = ""

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_kinds(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("type") in ("image_url", "input_audio", "file", "video_url"):
            refuse(f"content parts of type {given['type']} are not supported: this model reads text")
        if isinstance(given, dict) and given.get("type") in ("text", "refusal") and given.get(given["type"]) is None:
            refuse(f"a content part of type {given['type']} needs the field {given['type']}")
        return given


class CalledFunction(Body):
    """What was called, and with which arguments, as JSON."""

    name: _Name
    arguments: str

    @property
    def for_template(self) -> dict[str, Any]:
        """The call as chat templates know it: with arguments that are an object, if they are JSON."""
        try:
            arguments = json.loads(self.arguments)
        except ValueError:
            # Those of a call that was cut off are not.
            arguments = self.arguments
        return {"name": self.name, "arguments": arguments}


class ToolCall(Body):
    """A call that the model made."""

    id: str | None = None
    type: _FunctionType = "function"
    function: CalledFunction
    index: int | None = None

    @property
    def for_template(self) -> dict[str, Any]:
        """See `CalledFunction`."""
        return {"type": "function", "function": self.function.for_template} | ({"id": self.id} if self.id else {})


class ChatMessage(Body):
    """A message of a conversation, as requests give it or as an answer gave it."""

    unsupported: ClassVar[Mapping[str, Unsupported]] = {
        "audio": Unsupported("this model reads text"),
        "annotations": Unsupported("say in the content what was found"),
        "function_call": Unsupported("use tool_calls, which has replaced it"),
        "prefix": Unsupported("use continue_final_message", (False,)),
        "partial": Unsupported("use continue_final_message", (False,)),
        "reasoning": Unsupported("use reasoning_content"),
        "weight": Unsupported("nothing is trained here", (1,)),
    }

    role: _ROLES
    content: Annotated[list[ContentPart], BeforeValidator(_as_parts)]
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _content_may_be_missing(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("role") == "assistant" and given.get("content") is None:
            # A refusal, or calls of tools, stand in for it.
            return {**given, "content": given.get("refusal") or ""}
        return given

    @model_validator(mode="after")
    def _check_role(self) -> "ChatMessage":
        for name, role in (("tool_calls", "assistant"), ("reasoning_content", "assistant"), ("tool_call_id", "tool")):
            if getattr(self, name) is not None and self.role != role:
                refuse(f"{name} belongs to messages of the role {role}, not {self.role}")
        return self

    @property
    def for_template(self) -> dict[str, Any]:
        """The message as chat templates know it: with one text, and no developers."""
        message: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": "".join(part.text + part.refusal for part in self.content),
        }
        for name in ("name", "reasoning_content", "tool_call_id"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        if self.tool_calls is not None:
            message["tool_calls"] = [call.for_template for call in self.tool_calls]
        return message


class FunctionDefinition(Body):
    """A function that the model may call; its arguments always follow the schema, as if `strict`."""

    name: _Name
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool that the model may call."""

    type: _FunctionType
    function: FunctionDefinition

    @property
    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates know it."""
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        return {"type": "function", "function": function | {"parameters": self.parameters}}

    @property
    def parameters(self) -> Schema:
        """The schema of the arguments."""
        return self.function.parameters or {"type": "object", "properties": {}}


class NamedFunction(Body):
    """A function by its name."""

    name: str


class NamedTool(Body):
    """A tool by its name."""

    type: _FunctionType
    function: NamedFunction


class AllowedTools(Body):
    """Some of the tools, of which the model may or must call one."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


class ToolChoice(Body):
    """Which tools may or must be called, where a word does not say it."""

    type: Literal["function", "allowed_tools"]
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None

    @model_validator(mode="after")
    def _check_type(self) -> "ToolChoice":
        if getattr(self, self.type) is None:
            refuse(f"a tool_choice of type {self.type} needs the field {self.type}")
        if self.function is not None and self.allowed_tools is not None:
            refuse("a tool_choice has function or allowed_tools, not both")
        return self


# Told apart by what is given, so that what is wrong with an object is said of the object.
_ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")] | Annotated[ToolChoice, Tag("object")],
    Discriminator(lambda given: "word" if isinstance(given, str) else "object"),
]


class ChatRequest(GenerationRequest):
    """A conversation that is to be answered."""

    unsupported: ClassVar[Mapping[str, Unsupported]] = {**UNSUPPORTED, **COMPLETIONS_ONLY}

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=_MOST_TOOLS)] | None = None
    tool_choice: _ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_together(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            refuse("top_logprobs need logprobs to be true", "top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            refuse(
                f"max_tokens {self.max_tokens} and max_completion_tokens {self.max_completion_tokens} differ",
                "max_tokens",
            )
        if self.continue_final_message and self.add_generation_prompt:
            refuse(
                "continue_final_message and add_generation_prompt exclude each other: the final message either goes on "
                "or is followed by another",
                "continue_final_message",
            )
        if self.continue_final_message and (self.messages[-1].role != "assistant" or self.messages[-1].tool_calls):
            refuse("continue_final_message needs a final message of the assistant, without tool calls", "messages")
        self._check_tools()
        return self

    def _check_tools(self) -> None:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            refuse(f"tools {sorted(names)} must have names, each its own", "tools")
        if not names and self.tool_choice not in (None, "none", "auto"):
            refuse("tool_choice asks for a call, and there are no tools", "tool_choice")
        unknown = sorted({*self._chosen} - {*names})
        if unknown:
            refuse(f"tool_choice has {unknown}, which tools does not have", "tool_choice")

    @property
    def _chosen(self) -> Sequence[str]:
        """The names of the tools that the choice leaves, where it names any."""
        choice = self.tool_choice
        if not isinstance(choice, ToolChoice):
            return ()
        if choice.function is not None:
            return (choice.function.name,)
        assert choice.allowed_tools is not None
        return [tool.function.name for tool in choice.allowed_tools.tools]

    @property
    def callable_tools(self) -> Sequence[Tool]:
        """The tools that may be called; none where the choice is none."""
        if self.tool_choice == "none" or not self.tools:
            return ()
        return [tool for tool in self.tools if not self._chosen or tool.function.name in self._chosen]

    @property
    def must_call(self) -> bool:
        """Whether a tool must be called."""
        choice = self.tool_choice
        if isinstance(choice, ToolChoice):
            return choice.allowed_tools is None or choice.allowed_tools.mode == "required"
        return choice == "required"

    @property
    def count_of_top_logprobs(self) -> int | None:
        """See `GenerationRequest`."""
        return (self.top_logprobs or 0) if self.logprobs else None
