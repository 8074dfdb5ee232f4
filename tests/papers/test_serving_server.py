"""The server over loopback: the API by its own client, bad input by raw sockets, and clients that go away."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

import allyouneed
from allyouneed.papers.serving import Engine, Limits
from allyouneed.papers.serving.answer_response import AnswerResponse
from allyouneed.papers.serving.connections import PatientProtocol, allow_many_connections, listen, make_server
from allyouneed.papers.serving.server import Protection, create_app
from allyouneed.papers.serving.service import Service
from allyouneed.papers.serving.token_texts import TokenTexts
from allyouneed.text import ChatTemplate, LocalChat, Sampling, generate_text

NAME = "smollm2-135m-instruct"
GREEDY = Sampling.greedy()
HELLO: list[Any] = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]


class Impatient(PatientProtocol):
    head_seconds = 0.5
    reading_seconds = 0.5


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any, str]:
    from allyouneed.hub import open_model

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLYOUNEED_STANDINS", str(Path(__file__).parents[1] / "standins"))
        template = open_model(NAME).chat_template
        assert template is not None
        return *allyouneed.load(NAME), template


class Running:
    """A server in a thread of its own, and a gate through which the model's passes go."""

    def __init__(self, loaded: tuple[Any, Any, str], *, limits: Limits, seconds: float, protection: Protection):
        model, tokenizer, template = loaded
        self.engine = Engine(model, cache_tokens=4096, limits=limits)
        service = Service(
            self.engine, tokenizer, name=NAME, template=ChatTemplate(template, tokenizer), seconds=seconds
        )
        opened = listen("127.0.0.1", 0)
        # Small, so that a reader who does not read is noticed soon.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        self.address: tuple[str, int] = opened.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self.server = make_server(create_app(service, protection), protocol=Impatient, finish_seconds=20.0)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [opened]}, daemon=True)
        self.gate = threading.Event()
        self.gate.set()
        self.hook = model.norm.register_forward_pre_hook(lambda *_: self.pass_gate())
        self.client = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=protection.api_key or "none", max_retries=0, timeout=60
        )
        self.thread.start()
        eventually(lambda: self.server.started)

    def pass_gate(self) -> None:
        assert self.gate.wait(60)

    def close(self) -> None:
        self.gate.set()
        self.client.close()
        self.server.should_exit = True
        self.thread.join(60)
        self.hook.remove()
        assert not self.thread.is_alive()
        self.engine.pool.check([])
        assert self.engine.statistics.allocated_blocks == 0

    def idle(self) -> bool:
        statistics = self.engine.statistics
        return statistics.running == statistics.waiting == statistics.allocated_blocks == 0

    def chat(self, **options: Any) -> Any:
        return self.client.chat.completions.create(
            **{"model": NAME, "messages": HELLO, "max_tokens": 6, "temperature": 0} | options
        )

    def post(self, body: Any, path: str = "/v1/chat/completions", **options: Any) -> httpx.Response:
        return httpx.post(
            self.url + path, timeout=60, **({"content": body} if isinstance(body, bytes) else {"json": body}), **options
        )

    def raw(self, content: bytes) -> socket.socket:
        opened = socket.create_connection(self.address, timeout=60)
        opened.sendall(content)
        return opened

    def still_serves(self) -> None:
        assert self.chat().choices[0].message.content


def eventually(holds: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)


@contextmanager
def running(
    loaded: Any, *, limits: Limits | None = None, seconds: float = 60.0, protection: Protection | None = None
) -> Iterator[Running]:
    server = Running(
        loaded,
        limits=limits or Limits(max_num_sequences=8, max_batched_tokens=32, max_queue=16),
        seconds=seconds,
        protection=protection or Protection(body_seconds=0.5, body_bytes=100_000),
    )
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def server(loaded: tuple[Any, Any, str]) -> Iterator[Running]:
    with running(loaded) as server:
        yield server


def head(length: int, path: str = "/v1/chat/completions") -> bytes:
    lines = f"POST {path} HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    return lines.encode()


def body(**options: Any) -> bytes:
    return json.dumps({"model": NAME, "messages": HELLO, "max_tokens": 6, "temperature": 0} | options).encode()


class TestAnswers:
    def test_a_chat_is_what_plain_generation_writes(self, server: Running, loaded: tuple[Any, Any, str]) -> None:
        plain = "".join(LocalChat(*loaded).reply(HELLO, new_tokens=20, sampling=GREEDY))
        answer = server.chat(max_completion_tokens=20, max_tokens=openai.omit)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (plain, "length")
        prompt = len(ChatTemplate(loaded[2], loaded[1]).encode(HELLO))
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, 20)
        assert answer.usage.total_tokens == prompt + 20
        parts = server.chat(
            messages=[
                {**HELLO[0], "role": "developer"},
                {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
            ],
            max_tokens=20,
        )
        assert parts.choices[0].message.content == plain

    def test_a_stream_joins_to_the_whole(self, server: Running) -> None:
        # The prompt's blocks are in the cache for both then.
        server.still_serves()
        whole = server.chat(n=2, temperature=1.0, seed=5, max_tokens=12)
        chunks = list(
            server.chat(
                n=2, temperature=1.0, seed=5, max_tokens=12, stream=True, stream_options={"include_usage": True}
            )
        )
        for choice in range(2):
            own = [part for chunk in chunks for part in chunk.choices if part.index == choice]
            assert "".join(part.delta.content or "" for part in own) == whole.choices[choice].message.content
            assert own[0].delta.role == "assistant" and own[-1].finish_reason == "length"
            assert all(part.finish_reason is None for part in own[:-1])
        assert chunks[-1].usage == whole.usage and not chunks[-1].choices
        assert len({chunk.id for chunk in chunks}) == 1

    def test_completions_are_what_plain_generation_writes(self, server: Running, loaded: tuple[Any, Any, str]) -> None:
        model, tokenizer, _ = loaded
        texts = ["The capital of", "Once"]
        plain = [generate_text(model, tokenizer, [text], new_tokens=16, sampling=GREEDY)[0] for text in texts]
        ask = server.client.completions.create
        answer = ask(model=NAME, prompt=texts, temperature=0)
        assert [choice.text for choice in answer.choices] == plain
        as_tokens = ask(model=NAME, prompt=[tokenizer.encode(text) for text in texts], temperature=0)
        assert [choice.text for choice in as_tokens.choices] == plain
        streamed = ask(model=NAME, prompt=tokenizer.encode(texts[0]), temperature=0, stream=True)
        assert "".join(chunk.choices[0].text for chunk in streamed) == plain[0]

    def test_seeds(self, server: Running) -> None:
        def texts(**options: Any) -> list[str]:
            answer = server.chat(temperature=1.0, n=3, **options)
            return [choice.message.content for choice in answer.choices]

        assert texts(seed=7) == texts(seed=7) and len(set(texts(seed=7))) == 3
        assert texts(seed=-8) != texts(seed=7) and texts() != texts()

    def test_stop_strings_end_a_text_wherever_tokens_begin(self, server: Running) -> None:
        whole = server.chat(max_tokens=30, temperature=1.0, seed=1).choices[0].message.content
        stop = whole[11:14]
        answer = server.chat(max_tokens=30, temperature=1.0, seed=1, stop=[stop, "not there"], logprobs=True)
        text = whole[: whole.index(stop)]
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (text, "stop")
        tokens = [bytes(token.bytes) for token in answer.choices[0].logprobs.content]
        joined = [b"".join(tokens[:count]).decode(errors="replace") for count in (len(tokens), len(tokens) - 1)]
        assert joined[0].startswith(text) and len(joined[1]) < len(text)

    def test_likelihoods(self, server: Running, loaded: tuple[Any, Any, str]) -> None:
        model, tokenizer, template = loaded
        answer = server.chat(logprobs=True, top_logprobs=3, max_tokens=5)
        prompt = ChatTemplate(template, tokenizer).encode(HELLO)
        logits = model(torch.tensor([prompt]))[0, -1].detach().log_softmax(-1)
        first = answer.choices[0].logprobs.content[0]
        assert first.logprob == pytest.approx(float(logits.max()), abs=1e-4)
        texts = TokenTexts(tokenizer)
        assert [(other.token, bytes(other.bytes)) for other in first.top_logprobs] == [
            (texts.text_of(token), texts.bytes_of(token)) for token in logits.topk(3).indices.tolist()
        ]
        streamed = [
            token
            for chunk in server.chat(logprobs=True, max_tokens=5, stream=True)
            for token in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
        ]
        assert [token.logprob for token in streamed] == [token.logprob for token in answer.choices[0].logprobs.content]
        completed = server.client.completions.create(model=NAME, prompt="Once", logprobs=2, max_tokens=9, seed=2)
        told = completed.choices[0].logprobs
        assert told is not None and told.tokens is not None and told.text_offset is not None
        starts = [
            completed.choices[0].text[place:].startswith(token)
            for before, place, token in zip(["", *told.tokens], told.text_offset, told.tokens, strict=False)
            # Parts of characters have places of their own only once all of them are there.
            if not (before + token).count("bytes:")
        ]
        assert len(starts) >= 4 and all(starts)

    def test_models(self, server: Running) -> None:
        assert [model.id for model in server.client.models.list()] == [NAME]
        assert server.client.models.retrieve(NAME).object == "model"
        with pytest.raises(openai.NotFoundError, match="does not exist here"):
            server.client.models.retrieve("gpt-4")


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
BAD: list[tuple[dict[str, Any], int, str | None, str]] = [
    ({"model": "gpt-4"}, 404, "model", "there is 'smollm2-135m-instruct'"),
    ({"max_tokens": -1}, 400, "max_tokens", "greater than or equal to 1; got -1"),
    ({"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1; got 0"),
    ({"max_completion_tokens": 7}, 400, "max_tokens", "differ"),
    ({"max_tokens": "5"}, 400, "max_tokens", "valid integer; got '5'"),
    (
        {"messages": [{"role": "user", "content": "word " * 600}]},
        400,
        "messages",
        "maximum context length is 512 tokens",
    ),
    ({"messages": []}, 400, "messages", "at least 1 item"),
    ({"messages": [{"role": "user"}]}, 400, "messages", "messages.0.content: Field required"),
    ({"messages": [{"role": "function", "content": "x"}]}, 400, "messages", "messages.0.role"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages", "chat template has no place"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, 400, "messages", "of the role assistant"),
    ({"messages": [{"role": "user", "content": "x", "audio": {"id": "1"}}]}, 400, "audio", "this model reads text"),
    ({"messages": [{"role": "user", "content": None}]}, 400, "messages", "messages.0.content: Field required"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "messages", "needs the field text"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]},
        400,
        "messages",
        "needs the field text",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        400,
        "messages",
        "messages.0.content.0: content parts of type image_url are not supported: this model reads text",
    ),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "messages", ""),
    ({"temperature": 2.5}, 400, "temperature", "less than or equal to 2"),
    ({"temperature": float("nan")}, 400, "temperature", "finite"),
    ({"top_p": 0}, 400, "top_p", "greater than 0"),
    ({"n": 9}, 400, "n", "n 9 is more than the 8 sequences computed at once"),
    ({"n": 0}, 400, "n", "greater than or equal to 1"),
    ({"n": 129}, 400, "n", "less than or equal to 128"),
    ({"stop": ["a"] * 257}, 400, "stop", "at most 256"),
    ({"stop": [""]}, 400, "stop", "at least 1 character"),
    ({"stop_token_ids": [512]}, 400, "stop_token_ids", "token 512 is not in the vocabulary"),
    ({"logit_bias": {"512": 1}}, 400, "logit_bias", "token 512 is not in the vocabulary"),
    ({"logit_bias": {"x": 1}}, 400, "logit_bias", "should match pattern"),
    ({"logit_bias": {"1": 101}}, 400, "logit_bias", "less than or equal to 100"),
    ({"min_tokens": 2, "stop": "a"}, 400, "min_tokens", "min_tokens and stop together are not supported"),
    ({"min_tokens": 7}, 400, "min_tokens", "min_tokens 7 are more than the 6"),
    ({"top_logprobs": 3}, 400, "top_logprobs", "need logprobs to be true"),
    ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "less than or equal to 20"),
    ({"presence_penalty": 2.5}, 400, "presence_penalty", "less than or equal to 2"),
    ({"frequency_penalty": float("-inf")}, 400, "frequency_penalty", "finite number"),
    ({"repetition_penalty": 1e-40}, 400, "repetition_penalty", "greater than or equal to 0.01"),
    ({"top_k": -2}, 400, "top_k", "greater than or equal to 1"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", "set stream to true"),
    ({"temprature": 1}, 400, "temprature", "there is no argument temprature here"),
    ({"tools": TOOLS}, 400, "tools", "tools are not supported by this model"),
    ({"tools": TOOLS, "tool_choice": "auto"}, 400, "tools", "tools are not supported by this model"),
    ({"tools": [{"type": "custom", "custom": {}}]}, 400, "tools", "tools must be functions"),
    ({"tools": TOOLS * 2}, 400, "tools", "must have names, each its own"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}}, 400, "tool_choice", "has ['g']"),
    ({"tool_choice": "required"}, 400, "tool_choice", "there are no tools"),
    ({"functions": [{}]}, 400, "functions", "functions is not supported: use tools"),
    ({"reasoning_effort": "high"}, 400, "reasoning_effort", "does not reason apart from its answer"),
    ({"store": True}, 400, "store", "nothing is stored here"),
    ({"modalities": ["text", "audio"]}, 400, "modalities", "this model answers in text"),
    ({"web_search_options": {}}, 400, "web_search_options", "nothing is searched here"),
    ({"echo": True}, 400, "echo", "that is for /v1/completions"),
    ({"mirostat": 2}, 400, "mirostat", "mirostat is not supported: the samplers here are temperature"),
    ({"repeat_penalty": 1.1}, 400, "repeat_penalty", "use repetition_penalty"),
    ({"guided_json": {"type": "object"}}, 400, "guided_json", "use response_format"),
    (
        {"chat_template_kwargs": {"enable_thinking": False}},
        400,
        "chat_template_kwargs",
        "no variable 'enable_thinking'",
    ),
    ({"continue_final_message": True}, 400, "messages", "needs a final message of the assistant"),
]


def test_a_slash_at_the_end_changes_nothing(server: Running) -> None:
    answer = server.post(json.loads(body()), path="/v1/chat/completions/")
    assert answer.status_code == 200, answer.text
    assert answer.json()["object"] == "chat.completion"
    assert httpx.get(server.url + "/v1/models/").json()["object"] == "list"


class TestBadInput:
    @pytest.mark.parametrize(("options", "status", "param", "said"), BAD, ids=[str(row[0])[:40] for row in BAD])
    def test_is_refused_in_the_apis_shape(
        self, server: Running, options: dict[str, Any], status: int, param: str | None, said: str
    ) -> None:
        answer = server.post(body(**options), headers={"content-type": "application/json"})
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"} and error["param"] == param
        assert said in error["message"] and len(error["message"]) < 400

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"{", "the body is not JSON"),
            (b"", "the body must be a JSON object"),
            (b"[1, 2]", "the body must be a JSON object"),
            (b"\xff\xfe", "the body is not UTF-8: byte 0 is 0xff"),
            (b"[" * 90_000, "parsing the body"),
            (b'{"max_tokens": ' + b"9" * 5000 + b"}", "parsing the body"),
        ],
        ids=lambda content: repr(content)[:20],
    )
    def test_malformed_bodies(self, server: Running, content: bytes, said: str) -> None:
        answer = server.post(content, headers={"content-type": "application/json"})
        assert answer.status_code == 400 and said in answer.json()["error"]["message"], answer.text

    def test_prompts_of_completions(self, server: Running) -> None:
        for prompt, said in [
            ("", "at least one token"),
            ([], "there must be 1 to 64"),
            ([512], "not in the vocabulary"),
            (["a"] * 65, "65 prompts"),
            ([-1], "not in the vocabulary"),
            (["a", 1], r"\['a', 1\] is no prompt: it must be a text"),
            ([[1, "a"]], "is no prompt"),
            ([True], "is no prompt"),
            ({"a": 1}, "is no prompt"),
            (3, "3 is no prompt"),
        ]:
            with pytest.raises(openai.BadRequestError, match=said):
                server.client.completions.create(model=NAME, prompt=prompt)
        eventually(server.idle)

    def test_what_is_no_json_request(self, server: Running) -> None:
        form = server.post(body(), headers={"content-type": "text/plain"})
        assert form.status_code == 400 and "application/json" in form.json()["error"]["message"]
        assert server.post({}, "/v1/nothing").json()["error"]["type"] == "not_found_error"
        wrong = httpx.get(server.url + "/v1/completions")
        assert wrong.status_code == 405 and wrong.json()["error"]["message"]
        with closing(server.raw(b"no http at all\r\n\r\n")) as connection:
            assert connection.recv(1000).startswith(b"HTTP/1.1 400")
        server.still_serves()

    def test_bodies_that_are_too_long(self, server: Running) -> None:
        answer = server.post(b" " * 3_000_000, headers={"content-type": "application/json"})
        assert answer.status_code == 413 and "100000 bytes" in answer.json()["error"]["message"]

    def test_a_body_that_does_not_come(self, server: Running) -> None:
        with closing(server.raw(head(500) + b'{"model"')) as connection:
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 408") and b"only 8 bytes of the body came" in answer
        server.still_serves()

    def test_heads_that_do_not_come(self, server: Running) -> None:
        for content in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nhost"):
            with closing(server.raw(content)) as connection:
                assert connection.recv(1000) == b""

    def test_a_thousand_connections(self, server: Running) -> None:
        allow_many_connections()
        connections = [socket.create_connection(server.address, timeout=60) for _ in range(1000)]
        server.still_serves()
        for connection in connections:
            with closing(connection):
                assert connection.recv(1) == b""
        server.still_serves()


class TestLimits:
    def test_a_full_queue_is_429_and_is_served_later(self, loaded: tuple[Any, Any, str]) -> None:
        with running(loaded, limits=Limits(max_num_sequences=1, max_batched_tokens=8, max_queue=2)) as server:
            server.gate.clear()
            threads = [threading.Thread(target=server.still_serves) for _ in range(3)]
            for count, thread in enumerate(threads):
                thread.start()
                eventually(
                    lambda count=count: server.engine.statistics.running + server.engine.statistics.waiting > count
                )
            with pytest.raises(openai.RateLimitError, match="2 requests wait already") as refused:
                server.chat()
            assert refused.value.response.headers["retry-after"] == "1"
            # Several prompts are taken whole or not at all.
            with pytest.raises(openai.RateLimitError):
                server.client.completions.create(model=NAME, prompt=["a", "b"])
            server.gate.set()
            for thread in threads:
                thread.join()
            server.still_serves()

    @pytest.mark.parametrize("stream", [True, False])
    def test_who_goes_away_is_not_written_for(self, server: Running, stream: bool) -> None:
        before = server.engine.statistics.generated_tokens
        server.gate.clear()
        content = body(stream=stream, max_tokens=400)
        connection = server.raw(head(len(content)) + content)
        eventually(lambda: server.engine.statistics.running == 1)
        connection.close()
        server.gate.set()
        eventually(server.idle)
        assert server.engine.statistics.generated_tokens - before < 400

    def test_a_reader_who_does_not_read_is_cut_off(self, server: Running) -> None:
        content = body(stream=True, max_tokens=450, n=8, logprobs=True, top_logprobs=20, temperature=1, seed=3)
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(server.address)
        connection.sendall(head(len(content)) + content)
        before = server.engine.statistics.generated_tokens
        eventually(lambda: server.engine.statistics.running == 8)
        server.still_serves()
        eventually(server.idle)
        assert server.engine.statistics.generated_tokens - before < 8 * 450
        with closing(connection):
            assert not connection.makefile("rb").read().endswith(b"0\r\n\r\n")

    def test_time_limits(self, loaded: tuple[Any, Any, str]) -> None:
        with running(loaded, limits=Limits(max_num_sequences=1, max_batched_tokens=8), seconds=0.4) as server:
            first = server.chat(stream=True, max_tokens=400)
            server.gate.clear()
            timer = threading.Timer(0.6, server.gate.set)
            timer.start()
            with pytest.raises(openai.APIStatusError, match="longer than its") as late:
                server.chat()
            assert late.value.status_code == 504
            # What was begun ends with an error in the stream.
            with pytest.raises(openai.APIError, match="longer than its"):
                list(first)
            timer.join()
            server.still_serves()

    def test_a_stream_shows_at_once_that_it_lives(self, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(AnswerResponse, "ping_seconds", 0.05)
        server.gate.clear()
        asked = {"model": NAME, "messages": HELLO, "max_tokens": 3, "stream": True}
        with httpx.stream("POST", server.url + "/v1/chat/completions", json=asked, timeout=60) as answer:
            lines = filter(None, answer.iter_lines())
            assert answer.status_code == 200 and [next(lines), next(lines)] == [": ping", ": ping"]
            server.gate.set()
            rest = [line for line in lines if line != ": ping"]
        assert rest[-1] == "data: [DONE]" and len(rest) >= 3
        # OpenAI's client passes over comments.
        assert list(server.chat(stream=True, max_tokens=3))[-1].choices[0].finish_reason == "length"

    def test_keys(self, loaded: tuple[Any, Any, str]) -> None:
        with running(loaded, protection=Protection(api_key="secret")) as server:
            server.still_serves()
            with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
                server.client.with_options(api_key="other").models.list()
            assert httpx.get(server.url + "/v1/models").status_code == 401
            assert httpx.get(server.url + "/health").json()["status"] == "ok"

    def test_an_end_that_lets_answers_be_finished(self, loaded: tuple[Any, Any, str]) -> None:
        with running(loaded) as server:
            chunks = server.chat(stream=True, max_tokens=40)
            server.gate.clear()
            server.server.should_exit = True
            eventually(lambda: not server.server.servers[0].is_serving())
            server.gate.set()
            rest = list(chunks)
            assert rest[-1].choices[0].finish_reason == "length"
            server.thread.join(60)
            with pytest.raises(openai.APIConnectionError):
                server.chat()

    def test_an_error_of_the_model_is_told(self, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail() -> None:
            raise MemoryError("no memory")

        monkeypatch.setattr(server, "pass_gate", fail)
        with pytest.raises(openai.InternalServerError, match="the model failed: MemoryError"):
            server.chat()
        monkeypatch.undo()
        server.still_serves()


def test_the_command_serves_until_it_is_told_to_end() -> None:
    environment = {**os.environ, "ALLYOUNEED_STANDINS": str(Path(__file__).parents[1] / "standins")}
    command = [sys.executable, "-m", "allyouneed.cli", "serve", NAME, "--port", "0", "--api-key", "k"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        address = next(found[0] for line in process.stderr if (found := re.search(r"http://127\S+/v1", line)))
        with openai.OpenAI(base_url=address, api_key="k", max_retries=0, timeout=60) as client:
            chunks = client.completions.create(model=NAME, prompt="Once", max_tokens=300, temperature=0, stream=True)
            next(chunks)
            process.send_signal(signal.SIGINT)
            # What was begun is finished.
            assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
        assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()
