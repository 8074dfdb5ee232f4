"""The API's fields: what is honoured, what says nothing, and that nothing ends in an error of the server's own."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from allyouneed.papers.serving import Limits
from allyouneed.papers.serving.server import Protection
from allyouneed.papers.serving.token_texts import TokenTexts
from allyouneed.text import ByteTokenizer, ChatTemplate, Sampling, generate
from allyouneed.text.generation import continuations

from .test_serving_server import HELLO, NAME, Running, loaded, running

__all__ = ["loaded"]

GREEDY = Sampling.greedy()
# A template in the manner of ChatML with tools, of our own making.
WITH_TOOLS = """{%- if tools %}{{- '<|im_start|>system\\nYou may call' }}
{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}{{- '<|im_start|>user\\n<result>' + message.content + '</result><|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>' + message.role }}{%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "maximum": 9}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"enum": [1, 2]}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}


class City(BaseModel):
    name: Literal["Paris", "Rome"]
    large: bool


def asked(**options: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": HELLO, "max_tokens": 6, "temperature": 0} | options


@pytest.fixture(scope="module")
def server(loaded: tuple[Any, Any, str]) -> Iterator[Running]:
    with running(loaded) as server:
        yield server


@pytest.fixture(scope="module")
def with_tools(loaded: tuple[Any, Any, str]) -> Iterator[Running]:
    with running((*loaded[:2], WITH_TOOLS)) as server:
        yield server


@pytest.fixture(scope="module")
def long(loaded: tuple[Any, Any, str]) -> list[Any]:
    """A conversation that leaves a few tokens for its answer."""
    template, words = ChatTemplate(loaded[2], loaded[1]), 1
    while len(template.encode([{"role": "user", "content": "word " * words}])) < 500:
        words += 1
    return [{"role": "user", "content": "word " * words}]


NEUTRAL: list[dict[str, Any]] = [
    {"tools": None, "tool_choice": None, "parallel_tool_calls": None},
    {"tools": [], "tool_choice": "none", "parallel_tool_calls": True},
    {"response_format": None},
    {"response_format": {"type": "text"}},
    {"logit_bias": {}, "metadata": {}, "stop": [], "stop_token_ids": []},
    {"logit_bias": None, "stop": "", "user": "", "stream_options": None, "best_of": None, "suffix": None},
    {"metadata": {"for": "records"}, "user": "me", "safety_identifier": "me", "prompt_cache_key": "me"},
    {"store": False, "service_tier": "auto", "reasoning_effort": None, "modalities": ["text"], "verbosity": "medium"},
    {"top_k": -1, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "top_p": 1},
    {"top_k": 0, "ignore_eos": False, "min_tokens": 0, "use_beam_search": False, "length_penalty": 1.0},
    {"functions": [], "function_call": "none", "audio": None, "web_search_options": None, "prediction": None},
    {"mirostat": 0, "typical_p": 1.0, "cache_prompt": True, "repeat_penalty": 1, "id_slot": -1, "grammar": ""},
    {"n": 1, "n_probs": 0, "logprobs": False, "top_logprobs": 0, "echo": False, "best_of": 1, "suffix": ""},
    {"stream": False, "stream_options": {"include_usage": False}, "an_unknown_field": None, "another": []},
    {"continue_final_message": False, "add_generation_prompt": True, "chat_template_kwargs": {}, "documents": []},
]


class TestFields:
    @pytest.mark.parametrize("route", ["chat/completions", "completions"])
    @pytest.mark.parametrize("options", NEUTRAL, ids=lambda options: ",".join(options)[:40])
    def test_what_says_nothing_changes_nothing(self, server: Running, options: dict[str, Any], route: str) -> None:
        def text(**more: Any) -> str:
            prompt = {"messages": HELLO} if route == "chat/completions" else {"prompt": "Hello"}
            answer = server.post({"model": NAME, "max_tokens": 4, "temperature": 0, **prompt, **more}, f"/v1/{route}")
            assert answer.status_code == 200, answer.text
            (choice,) = answer.json()["choices"]
            return choice["message"]["content"] if "message" in choice else choice["text"]

        assert text(**options) == text()

    @pytest.mark.parametrize(
        "message",
        [
            {"role": "assistant", "content": "x", "tool_calls": [], "function_call": None, "audio": None},
            {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "reasoning_content": None},
            {"role": "assistant", "content": None},
            {"role": "assistant", "content": "", "refusal": "x"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "x"}], "name": "a"},
            {"role": "user", "content": [{"type": "text", "text": "x"}], "name": "a"},
            {"role": "developer", "content": "x", "name": None},
        ],
        ids=repr,
    )
    def test_messages_as_clients_send_them(self, server: Running, message: dict[str, Any]) -> None:
        assert server.chat(messages=[*HELLO, message, *HELLO[1:]]).choices

    def test_what_was_answered_can_be_sent_back(self, server: Running) -> None:
        message = server.chat().choices[0].message
        again = server.chat(messages=[*HELLO, message, {"role": "user", "content": "And then?"}])
        raw = server.post(asked()).json()["choices"][0]["message"]
        same = server.chat(messages=[*HELLO, raw, {"role": "user", "content": "And then?"}])
        assert again.choices[0].message == same.choices[0].message

    def test_penalties_bias_and_stops(self, server: Running, loaded: tuple[Any, Any, str]) -> None:
        model, tokenizer, template = loaded
        prompt = ChatTemplate(template, tokenizer).encode(HELLO)

        def chat(**options: Any) -> list[int]:
            answer = server.chat(
                max_tokens=24, logprobs=True, extra_body={"ignore_eos": True} | options.pop("extra", {}), **options
            )
            return [token.bytes for token in answer.choices[0].logprobs.content]

        def plain(sampling: Sampling) -> list[int]:
            texts = TokenTexts(tokenizer)
            tokens = generate(model, [prompt], new_tokens=24, sampling=sampling)[0]
            return [list(texts.bytes_of(token)) for token in tokens]

        assert chat() == plain(GREEDY)
        penalised = Sampling(0, presence_penalty=1.5, frequency_penalty=0.5)
        assert chat(presence_penalty=1.5, frequency_penalty=0.5) == plain(penalised) != plain(GREEDY)
        assert chat(logit_bias={"300": 100}) == plain(Sampling(0, logit_bias={300: 100.0})) != plain(GREEDY)
        first = next(iter(continuations(model, [prompt], new_tokens=1, sampling=GREEDY)))[1]
        ended = server.chat(max_tokens=24, extra_body={"stop_token_ids": [first]}).choices[0]
        assert (ended.message.content, ended.finish_reason) == ("", "stop")
        later = server.chat(max_tokens=24, extra_body={"stop_token_ids": [first], "min_tokens": 3})
        assert later.usage.completion_tokens >= 3
        six = server.chat(max_tokens=24, stop=["a", "b", "c", "d", "e", "f"]).choices[0].message.content
        assert not set(six) & set("abcdef")

    def test_the_end_is_passed_over_where_it_is_to_be(self, server: Running, loaded: tuple[Any, Any, str]) -> None:
        end = loaded[1].special_tokens["<|im_end|>"]
        ended = server.chat(logit_bias={str(end): 100})
        assert (ended.choices[0].finish_reason, ended.usage.completion_tokens) == ("stop", 0)
        for hidden, text in ((False, "<|im_end|>" * 6), (True, "")):
            more = {"ignore_eos": True, "skip_special_tokens": hidden}
            whole = server.chat(logit_bias={str(end): 100}, extra_body=more)
            assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (text, "length")

    def test_a_final_message_is_gone_on_with(self, server: Running, loaded: tuple[Any, Any, str]) -> None:
        model, tokenizer, template = loaded
        begun = [*HELLO, {"role": "assistant", "content": "The answer"}]
        answer = server.chat(
            messages=begun, extra_body={"continue_final_message": True, "add_generation_prompt": False}
        )
        prompt = ChatTemplate(template, tokenizer).encode(begun, continuing=True)
        expected = tokenizer.decode(generate(model, [prompt], new_tokens=6, sampling=GREEDY)[0])
        assert answer.choices[0].message.content == expected
        assert answer.usage.prompt_tokens == len(prompt)

    def test_lengths_are_clamped_and_told(self, server: Running, long: list[Any]) -> None:
        for field in ("max_tokens", "max_completion_tokens"):
            answer = server.chat(
                messages=long, **{"max_tokens": openai.omit, field: 10**6}, extra_body={"ignore_eos": True}
            )
            assert answer.choices[0].finish_reason == "length" and answer.usage.total_tokens == 512
        card = server.client.models.retrieve(NAME).model_dump()
        assert card["max_model_len"] == card["context_length"] == 512
        with pytest.raises(openai.BadRequestError, match="maximum context length is 512 tokens") as refused:
            server.client.completions.create(model=NAME, prompt=[1] * 512)
        assert refused.value.code == "context_length_exceeded"

    def test_cached_tokens_are_told(self, server: Running) -> None:
        prompt = [7] * 40
        ask = server.client.completions.create
        usages = [ask(model=NAME, prompt=prompt, max_tokens=1).usage for _ in range(2)]
        cached = [
            usage.prompt_tokens_details.cached_tokens for usage in usages if usage and usage.prompt_tokens_details
        ]
        assert cached == [0, 32]

    def test_the_best_of_several(self, server: Running) -> None:
        ask = server.client.completions.create
        options: dict[str, Any] = {"model": NAME, "prompt": ["Once", "Now"], "seed": 3, "max_tokens": 5, "logprobs": 0}
        every = ask(**options, n=4).choices
        best = ask(**options, n=2, best_of=4)
        assert best.usage is not None and 30 <= best.usage.completion_tokens <= 40
        for place in range(2):
            own = sorted(every[4 * place : 4 * place + 4], key=mean_logprob, reverse=True)[:2]
            assert [choice.text for choice in best.choices[2 * place : 2 * place + 2]] == [one.text for one in own]
        assert [choice.index for choice in best.choices] == [0, 1, 2, 3]
        for bad, said in (({"n": 3, "best_of": 2}, "less than n 3"), ({"best_of": 2, "stream": True}, "be streamed")):
            with pytest.raises(openai.BadRequestError, match=said):
                ask(**(options | bad))

    def test_other_routes_are_refused_in_words(self, server: Running) -> None:
        with pytest.raises(openai.NotFoundError, match="there is no /v1/embeddings here: this server answers /v1/chat"):
            server.client.embeddings.create(model=NAME, input="x")

    def test_a_key_with_its_scheme_in_any_case(self, loaded: tuple[Any, Any, str]) -> None:
        with running(loaded, protection=Protection(api_key="k")) as server:
            statuses = [
                server.post(asked(), headers={"authorization": sent}).status_code
                for sent in ("Bearer k", "bearer k", "BEARER  k", "Basic k", "k", "Bearer K", "")
            ]
        assert statuses == [200, 200, 200, 401, 401, 401, 401]


def mean_logprob(choice: Any) -> float:
    return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)


class TestEcho:
    """What programs need that score texts over the API, such as lm-eval."""

    @pytest.mark.parametrize("max_tokens", [0, 1, 3])
    @pytest.mark.parametrize("as_text", [True, False])
    def test_log_probabilities_of_a_prompt(
        self, server: Running, loaded: tuple[Any, Any, str], max_tokens: int, as_text: bool
    ) -> None:
        model, tokenizer, _ = loaded
        text = "Once upon a time: 日本 🙂."
        tokens = tokenizer.encode(text)
        answer = server.client.completions.create(
            model=NAME,
            prompt=[text, "Two"] if as_text else [tokens, tokenizer.encode("Two")],
            max_tokens=max_tokens,
            echo=True,
            logprobs=2,
            temperature=0,
        )
        choice = answer.choices[0]
        told = choice.logprobs
        assert told is not None and told.token_logprobs and told.top_logprobs and told.tokens and told.text_offset
        assert choice.text.startswith(text) and len(told.tokens) == len(tokens) + max_tokens
        logarithms = model(torch.tensor([tokens]))[0].detach().log_softmax(-1)
        expected = logarithms[:-1].gather(-1, torch.tensor(tokens[1:])[:, None]).flatten().tolist()
        assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
        assert told.token_logprobs[1 : len(tokens)] == pytest.approx(expected, abs=1e-3)
        for place in range(1, len(told.tokens)):
            top = told.top_logprobs[place]
            assert top is not None and top[told.tokens[place]] == told.token_logprobs[place]
            assert len(top) >= 2
        greedy = [
            max(top.values()) == own for top, own in zip(told.top_logprobs[1:], told.token_logprobs[1:], strict=True)
        ]
        ids = logarithms[:-1].argmax(-1).tolist()
        assert greedy[: len(tokens) - 1] == [one == token for one, token in zip(ids, tokens[1:], strict=True)]
        assert all(greedy[len(tokens) - 1 :])
        for place, token in zip(told.text_offset[: len(tokens)], told.tokens, strict=False):
            assert token.startswith("bytes:") or text[place:].startswith(token)
        assert answer.choices[1].text.startswith("Two")

    def test_the_token_that_ends_a_text_is_among_the_tokens(
        self, server: Running, loaded: tuple[Any, Any, str]
    ) -> None:
        end = loaded[1].special_tokens["<|im_end|>"]
        answer = server.client.completions.create(
            model=NAME, prompt=[5, 6, 7], max_tokens=1, echo=True, logprobs=1, logit_bias={str(end): 100}
        )
        told = answer.choices[0].logprobs
        assert told is not None and told.tokens is not None and len(told.tokens) == 4
        assert told.tokens[3] == "<|im_end|>" and answer.choices[0].finish_reason == "stop"

    def test_without_log_probabilities_and_in_a_stream(self, server: Running) -> None:
        ask = server.client.completions.create
        plain = ask(model=NAME, prompt="Once", max_tokens=3, temperature=0).choices[0].text
        for options, added in (({"max_tokens": 3}, plain), ({"max_tokens": 0}, "")):
            assert ask(model=NAME, prompt="Once", temperature=0, echo=True, **options).choices[0].text == "Once" + added
            chunks = ask(model=NAME, prompt="Once", temperature=0, echo=True, stream=True, **options)
            assert "".join(chunk.choices[0].text for chunk in chunks) == "Once" + added


class TestLogProbabilities:
    def test_tokens_that_decode_alike_do_not_overwrite_each_other(self, server: Running) -> None:
        answer = server.client.completions.create(model=NAME, prompt="😀", max_tokens=40, logprobs=20, seed=1)
        told = answer.choices[0].logprobs
        assert told is not None and told.tokens and told.token_logprobs and told.top_logprobs
        for token, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
            assert top is not None and top[token] == logprob and len(top) >= 20

    def test_bytes_are_the_tokens_own(self, server: Running) -> None:
        answer = server.chat(logprobs=True, max_tokens=60, temperature=1, seed=4)
        joined = b"".join(bytes(token.bytes) for token in answer.choices[0].logprobs.content)
        text = answer.choices[0].message.content
        assert joined.decode(errors="replace").replace("\ufffd", "") == text.replace("\ufffd", "")

    def test_names_of_tokens(self, loaded: tuple[Any, Any, str]) -> None:
        texts = TokenTexts(ByteTokenizer())
        assert (
            texts.text_of(65) == "A" and texts.text_of(0xE2) == r"bytes:\xe2" and texts.text_of(300) == "token_id:300"
        )
        tokenizer = loaded[1]
        texts = TokenTexts(tokenizer)
        special = tokenizer.special_tokens["<|im_end|>"]
        assert texts.names_of(special, [5, special]) == {special: "<|im_end|>", 5: texts.text_of(5)}

    def test_tokens_of_one_text_are_told_apart_by_their_ids(self) -> None:
        class WithByteFallback(ByteTokenizer):
            """Has a special token that is spelled as another one, as `A` and `<0x41>` are."""

            special_tokens = {"A": 66}  # noqa: RUF012

        names = TokenTexts(WithByteFallback()).names_of(66, [65, 66, 67])
        assert names == {66: "A", 65: "token_id:65", 67: "C"}


class TestStructuredOutput:
    def test_a_schema_is_followed(self, server: Running) -> None:
        parsed = server.client.chat.completions.parse(
            model=NAME, messages=HELLO, response_format=City, max_tokens=200, temperature=1, seed=1
        )
        city = parsed.choices[0].message.parsed
        assert city is not None and city.name in ("Paris", "Rome") and parsed.choices[0].finish_reason == "stop"

    @pytest.mark.parametrize("stream", [True, False])
    def test_json_of_a_bounded_schema(self, server: Running, stream: bool) -> None:
        schema = {"type": "object", "properties": {"a": {"enum": [1, "x"]}}, "required": ["a"]}
        schema["additionalProperties"] = False
        form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
        for seed in range(4):
            answer = server.chat(
                response_format=form, max_tokens=100, temperature=1.5, seed=seed, stream=stream, logprobs=True
            )
            if stream:
                chunks = list(answer)
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
                reason = chunks[-1].choices[0].finish_reason
            else:
                text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
            assert reason == "stop" and json.loads(text)["a"] in (1, "x")

    def test_completions_follow_schemas_too(self, server: Running) -> None:
        answer = server.post(
            {
                "model": NAME,
                "prompt": "Once",
                "max_tokens": 60,
                "response_format": {"type": "json_object", "schema": {"enum": [{"yes": True}]}},
                "echo": True,
                "logprobs": 1,
            },
            "/v1/completions",
        ).json()["choices"][0]
        assert json.loads(answer["text"].removeprefix("Once")) == {"yes": True} and answer["finish_reason"] == "stop"

    @pytest.mark.parametrize(
        ("options", "param", "said"),
        [
            ({"response_format": {"type": "json_schema"}}, "response_format", "needs the field json_schema"),
            ({"response_format": {"type": "grammar"}}, "response_format", "Input should be 'text', 'json_object'"),
            (
                {"response_format": {"type": "text", "json_schema": {"schema": {"type": "integer"}}}},
                "response_format",
                "type text follows no schema",
            ),
            (
                {"response_format": {"type": "text", "schema": {"type": "integer"}}},
                "response_format",
                "type text follows no schema",
            ),
            (
                {
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"schema": {"type": "integer"}},
                        "schema": {"type": "string"},
                    }
                },
                "response_format",
                "not as both",
            ),
            (
                {"response_format": {"type": "json_object", "schema": {"type": "array", "uniqueItems": True}}},
                "response_format",
                "uniqueItems",
            ),
            ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos", "are not supported"),
            ({"response_format": {"type": "json_object"}, "min_tokens": 2}, "min_tokens", "are not supported"),
        ],
    )
    def test_what_cannot_be_followed_is_refused(
        self, server: Running, options: dict[str, Any], param: str, said: str
    ) -> None:
        answer = server.post(asked(**options))
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
        assert said in answer.json()["error"]["message"]


class TestTools:
    @pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
    def test_a_call_that_must_be_made(self, with_tools: Running, choice: Any) -> None:
        answer = with_tools.chat(
            tools=[WEATHER, ADD],
            tool_choice=choice,
            max_tokens=200,
            temperature=1,
            seed=2,
            extra_body={"parallel_tool_calls": False},
        )
        (made,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.content is None
        assert made.id.startswith("call_") and made.type == "function"
        if choice != "required":
            assert made.function.name == "weather"
        arguments = json.loads(made.function.arguments)
        assert arguments.get("city") in ("Paris", "Rome") or arguments == {"a": 1} or arguments == {"a": 2}
        # What was called goes back, with what came of it.
        results = [{"role": "tool", "tool_call_id": made.id, "content": "cold"}]
        again = with_tools.chat(messages=[*HELLO, answer.choices[0].message, *results], tools=[WEATHER, ADD])
        assert again.choices[0].message.content

    def test_a_stream_joins_to_the_whole(self, with_tools: Running) -> None:
        options: dict[str, Any] = {
            "tools": [ADD],
            "tool_choice": "required",
            "parallel_tool_calls": False,
            "max_tokens": 120,
            "temperature": 1,
            "seed": 4,
        }
        whole = with_tools.chat(**options).choices[0]
        with with_tools.client.chat.completions.stream(model=NAME, messages=HELLO, **options) as events:
            for _ in events:
                pass
            streamed = events.get_final_completion().choices[0]
        assert whole.message.tool_calls and streamed.message.tool_calls
        assert [call.function.name for call in streamed.message.tool_calls] == ["add"] * len(whole.message.tool_calls)
        assert [call.function.arguments for call in streamed.message.tool_calls] == [
            call.function.arguments for call in whole.message.tool_calls
        ]
        assert streamed.finish_reason == whole.finish_reason

    def test_text_where_a_call_may_be_made(self, with_tools: Running, server: Running) -> None:
        answer = with_tools.chat(tools=[WEATHER], max_tokens=12)
        assert answer.choices[0].message.content and answer.choices[0].message.tool_calls is None
        assert answer.choices[0].finish_reason == "length"
        # None may be called: neither the prompt nor the answer knows of tools.
        assert with_tools.chat(tools=[WEATHER], tool_choice="none", max_tokens=12).usage.prompt_tokens == (
            with_tools.chat(max_tokens=12).usage.prompt_tokens
        )

    def test_some_of_the_tools(self, with_tools: Running) -> None:
        allowed = {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "add"}}]},
        }
        answer = with_tools.chat(tools=[WEATHER, ADD], tool_choice=allowed, max_tokens=120, n=3, temperature=1, seed=1)
        for choice in answer.choices:
            assert {call.function.name for call in choice.message.tool_calls} == {"add"}

    def test_a_call_that_is_cut_off(self, with_tools: Running) -> None:
        cut = with_tools.chat(tools=[WEATHER], tool_choice="required", max_tokens=34, temperature=0).choices[0]
        assert cut.finish_reason == "length"
        assert with_tools.chat(messages=[*HELLO, cut.message, *HELLO[1:]], tools=[WEATHER]).choices

    def test_what_does_not_go_together_is_refused(self, with_tools: Running) -> None:
        form = {"type": "json_object"}
        for options, param, said in (
            ({"tools": [WEATHER], "response_format": form}, "response_format", "response_format and tools together"),
            ({"tools": [WEATHER], "ignore_eos": True}, "ignore_eos", "ignore_eos and tools together"),
            (
                {
                    "tools": [WEATHER],
                    "tool_choice": {
                        "type": "function",
                        "function": {"name": "weather"},
                        "allowed_tools": {
                            "mode": "auto",
                            "tools": [{"type": "function", "function": {"name": "weather"}}],
                        },
                    },
                },
                "tool_choice",
                "tool_choice.object: a tool_choice has function or allowed_tools, not both",
            ),
            (
                {"tools": [WEATHER], "tool_choice": {"type": "function"}},
                "tool_choice",
                "tool_choice.object: a tool_choice of type function needs the field function",
            ),
            (
                {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}]},
                "tools",
                "tools: ",
            ),
        ):
            answer = with_tools.post(asked(**options))
            assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
            assert answer.json()["error"]["message"].startswith(said)


def test_what_there_is_at_the_time_limit_is_answered(loaded: tuple[Any, Any, str]) -> None:
    now = [0.0]
    with running(loaded, limits=Limits(max_num_sequences=2, max_batched_tokens=16), seconds=100.0) as server:
        server.engine._clock = lambda: now[0]

        def pass_gate() -> None:
            now[0] += 100 / 20

        server.pass_gate = pass_gate
        answer = server.chat(max_tokens=400, n=2, extra_body={"ignore_eos": True})
        assert [choice.finish_reason for choice in answer.choices] == ["length"] * 2
        assert 2 <= answer.usage.completion_tokens <= 44 and all(choice.message.content for choice in answer.choices)
        now[0] = 0.0


NUMBERS = st.one_of(
    st.integers(-3, 5),
    st.sampled_from([2**31, -(2**63), 2**64, 10**100, -(10**100)]),
    st.floats(),
    st.sampled_from([5e-324, 1e-308, 1e-45, 1e308, -0.0, 1.0, 100.0, 0.01]),
    st.booleans(),
    st.none(),
    st.text(max_size=3),
    st.lists(st.integers(-1, 600), max_size=2),
    st.dictionaries(st.sampled_from(["1", "511", "512", "-1", "a", "type"]), st.floats() | st.integers(), max_size=2),
)
FIELDS = [
    *("max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "logit_bias", "n", "seed", "stop", "stop_token_ids", "ignore_eos"),
    *("min_tokens", "skip_special_tokens", "logprobs", "top_logprobs", "echo", "best_of", "stream_options"),
    *("response_format", "tools", "tool_choice", "user", "metadata", "add_special_tokens", "parallel_tool_calls"),
    *("continue_final_message", "add_generation_prompt", "chat_template_kwargs", "suffix", "store", "model"),
]


# The server's thread uses the generator of random numbers that strategies are watched for.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@settings(max_examples=100, deadline=None)
@given(options=st.dictionaries(st.sampled_from(FIELDS), NUMBERS, max_size=4), chat=st.booleans())
def test_no_value_of_any_field_is_an_error_of_the_server(
    server: Running, long: list[Any], options: dict[str, Any], chat: bool
) -> None:
    prompt = {"messages": long} if chat else {"prompt": long[0]["content"]}
    content = json.dumps({"model": NAME, **prompt, "max_tokens": 2, **options}).encode()
    answer = server.post(content, f"/v1/{'chat/' * chat}completions", headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 404), (options, answer.text)
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]
