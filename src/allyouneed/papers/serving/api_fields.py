"""Fields of OpenAI's API and of other open servers that may say nothing here, and why they may ask for nothing more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError


@dataclass(frozen=True)
class Unsupported:
    """A field that is known, and that nothing here can do anything about.

    Attributes:
        why: what the refusal says after the field's name.
        neutral: the values that ask for nothing, besides null and what is empty.
        empty_asks: whether an empty value asks for something after all.
    """

    why: str
    neutral: tuple[Any, ...] = ()
    empty_asks: bool = False

    def says_nothing(self, value: Any) -> bool:
        """Tell whether a value asks for nothing."""
        if is_empty(value) and not self.empty_asks:
            return True
        # False is not 0 here.
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.neutral)


def is_empty(value: Any) -> bool:
    """Tell whether a value is null, an empty string, an empty list or an empty object."""
    return value is None or value in ("", [], {})


_STRUCTURED = "use response_format"
_SAMPLERS = "the samplers here are temperature, top_p, top_k, min_p and penalties"

_OPENAI = {
    "audio": Unsupported("this model answers in text"),
    "function_call": Unsupported("use tool_choice, which has replaced it", ("none", "auto")),
    "functions": Unsupported("use tools, which has replaced it"),
    "modalities": Unsupported("this model answers in text", (["text"],)),
    "moderation": Unsupported("nothing is moderated here"),
    "prediction": Unsupported("`allyouneed serve --speculate ngram` speculates for all requests"),
    "prompt_cache_options": Unsupported(
        "every prompt is cached while there is memory for it",
        ({"mode": "implicit"}, {"mode": "implicit", "ttl": "30m"}),
    ),
    "prompt_cache_retention": Unsupported("every prompt is cached while there is memory for it", ("in_memory",)),
    "reasoning_effort": Unsupported("this model does not reason apart from its answer", ("none",)),
    "service_tier": Unsupported("all requests are served alike", ("auto", "default")),
    "store": Unsupported("nothing is stored here", (False,)),
    "verbosity": Unsupported("say in the prompt how long the answer should be", ("medium",)),
    "web_search_options": Unsupported("nothing is searched here", empty_asks=True),
}

_VLLM = {
    "allowed_token_ids": Unsupported("use logit_bias, or response_format"),
    "bad_words": Unsupported("use logit_bias"),
    "cache_salt": Unsupported("cached prompts are shared by all requests"),
    "early_stopping": Unsupported("there is no beam search here", (False,)),
    "guided_choice": Unsupported(_STRUCTURED),
    "guided_decoding_backend": Unsupported(_STRUCTURED),
    "guided_grammar": Unsupported(_STRUCTURED),
    "guided_json": Unsupported(_STRUCTURED),
    "guided_regex": Unsupported(_STRUCTURED),
    "guided_whitespace_pattern": Unsupported(_STRUCTURED),
    "include_reasoning": Unsupported("this model does not reason apart from its answer", (True, False)),
    "include_stop_str_in_output": Unsupported("answers end before the stop string", (False,)),
    "kv_transfer_params": Unsupported("keys and values stay on this server"),
    "length_penalty": Unsupported("there is no beam search here", (1,)),
    "logits_processors": Unsupported("no code is taken from requests"),
    "priority": Unsupported("all requests are served alike", (0,)),
    "prompt_embeds": Unsupported("a prompt is text or tokens"),
    "prompt_logprobs": Unsupported("use echo with logprobs on /v1/completions"),
    "repetition_detection": Unsupported("use frequency_penalty"),
    "request_id": Unsupported("send it as the header x-request-id"),
    "return_token_ids": Unsupported("tokens are given as text and bytes", (False,)),
    "return_tokens_as_token_ids": Unsupported("tokens are given as text and bytes", (False,)),
    "spaces_between_special_tokens": Unsupported("nothing is put between special tokens", (True, False)),
    "structured_outputs": Unsupported(_STRUCTURED),
    "thinking_token_budget": Unsupported("this model does not reason apart from its answer"),
    "truncate_prompt_tokens": Unsupported("a prompt that is too long is refused"),
    "use_beam_search": Unsupported("there is no beam search here", (False,)),
    "vllm_xargs": Unsupported("this server takes no further arguments"),
}

_LLAMA_CPP = {
    "cache_prompt": Unsupported("every prompt is cached while there is memory for it", (True,)),
    "dry_multiplier": Unsupported(_SAMPLERS, (0,)),
    "dynatemp_range": Unsupported(_SAMPLERS, (0,)),
    "grammar": Unsupported(_STRUCTURED),
    "id_slot": Unsupported("sequences have no slots here", (-1,)),
    "json_schema": Unsupported(_STRUCTURED),
    "lora": Unsupported("no adapters are loaded here"),
    "min_keep": Unsupported(_SAMPLERS, (0,)),
    "mirostat": Unsupported(_SAMPLERS, (0,)),
    "n_indent": Unsupported("use stop", (0,)),
    "n_keep": Unsupported("a prompt that is too long is refused", (0,)),
    "n_predict": Unsupported("use max_tokens", (-1,)),
    "n_probs": Unsupported("use logprobs", (0,)),
    "reasoning_format": Unsupported("this model does not reason apart from its answer", ("none", "auto")),
    "repeat_last_n": Unsupported("penalties look at the whole text", (-1,)),
    "repeat_penalty": Unsupported("use repetition_penalty", (1,)),
    "response_fields": Unsupported("answers are given whole"),
    "return_progress": Unsupported("use stream", (False,)),
    "samplers": Unsupported(_SAMPLERS),
    "t_max_predict_ms": Unsupported("`allyouneed serve --seconds` limits all requests", (0,)),
    "tfs_z": Unsupported(_SAMPLERS, (1,)),
    "timings_per_token": Unsupported("no timings are sent", (False,)),
    "top_a": Unsupported(_SAMPLERS, (0,)),
    "top_n_sigma": Unsupported(_SAMPLERS, (-1, 0)),
    "typical_p": Unsupported(_SAMPLERS, (1,)),
    "xtc_probability": Unsupported(_SAMPLERS, (0,)),
}

_OLLAMA = {
    "format": Unsupported(_STRUCTURED),
    "keep_alive": Unsupported("the model stays loaded as long as the server runs"),
    "options": Unsupported("give what it holds as fields of the request"),
    "think": Unsupported("this model does not reason apart from its answer", (False,)),
}

UNSUPPORTED: Mapping[str, Unsupported] = _OPENAI | _VLLM | _LLAMA_CPP | _OLLAMA
"""What may only say nothing, on every route."""

CHAT_ONLY: Mapping[str, Unsupported] = {
    "add_generation_prompt": Unsupported("that is for /v1/chat/completions", (True, False)),
    "chat_template": Unsupported("that is for /v1/chat/completions"),
    "chat_template_kwargs": Unsupported("that is for /v1/chat/completions"),
    "continue_final_message": Unsupported("a completion always continues its prompt", (True, False)),
    "documents": Unsupported("put them into the prompt"),
    "max_completion_tokens": Unsupported("use max_tokens"),
    "messages": Unsupported("that is for /v1/chat/completions"),
    "parallel_tool_calls": Unsupported("that is for /v1/chat/completions", (True, False)),
    "tool_choice": Unsupported("that is for /v1/chat/completions", ("none", "auto")),
    "tools": Unsupported("that is for /v1/chat/completions"),
    "top_logprobs": Unsupported("use logprobs", (0,)),
}
"""What may only say nothing where texts are completed."""

COMPLETIONS_ONLY: Mapping[str, Unsupported] = {
    "add_special_tokens": Unsupported("the chat template writes them", (False,)),
    "best_of": Unsupported("that is for /v1/completions", (1,)),
    "chat_template": Unsupported("conversations are written by the model's own template"),
    "documents": Unsupported("put them into a message"),
    "echo": Unsupported("that is for /v1/completions", (False,)),
    "media_io_kwargs": Unsupported("this model reads text"),
    "mm_processor_kwargs": Unsupported("this model reads text"),
    "prompt": Unsupported("that is for /v1/completions"),
    "suffix": Unsupported("that is for /v1/completions"),
}
"""What may only say nothing in chats."""


def without_what_says_nothing(given: Any, honoured: Mapping[str, bool], unsupported: Mapping[str, Unsupported]) -> Any:
    """Drop the fields of an object that say nothing: those that are null, empty, or neutral.

    Args:
        given: the object; anything else is left to be refused.
        honoured: for each field by name, whether it is required; those that are may be empty and stay.
        unsupported: fields that are known and may only say nothing.

    Raises:
        PydanticCustomError: a field that is not supported asks for something.
    """
    if not isinstance(given, dict):
        return given
    kept = {}
    for name, value in given.items():
        if value is None or (is_empty(value) and not honoured.get(name) and name not in unsupported):
            continue
        if name in honoured:
            kept[name] = value
        elif (field := unsupported.get(name)) is not None:
            if not field.says_nothing(value):
                refuse(f"{name} is not supported: {field.why}", name)
        else:
            kept[name] = value
    return kept


def refuse(message: str, param: str | None = None) -> None:
    """Refuse a value in our own words.

    Args:
        message: for a person; braces in it are not special.
        param: the field to blame, where it is not the one that is validated.

    Raises:
        PydanticCustomError: always.
    """
    raise PydanticCustomError("refused", "{said}", {"said": message, "param": param})
