"""A model behind a server: our own over loopback, and one that fails in every way for a while."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest

from allyouneed.hub import open_model
from allyouneed.papers.readers import load_batch
from allyouneed.papers.serving import EngineBatch
from allyouneed.papers.serving.connections import listen, make_server
from allyouneed.papers.serving.server import Protection, create_app
from allyouneed.papers.serving.service import Service
from allyouneed.prompting import ServerBatch, ServerError, complete, score
from allyouneed.text import ChatTemplate, Sampling

STANDINS = Path(__file__).parents[1] / "standins"
NAME = "smollm2-135m-instruct"
GREEDY = Sampling.greedy()
KEY = "sk-secret-1234"
QUESTIONS = [[{"role": "user", "content": f"What is {place}?"}] for place in range(12)]


@pytest.fixture(scope="module")
def engine() -> EngineBatch:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLYOUNEED_STANDINS", str(STANDINS))
        made = load_batch(NAME, max_num_sequences=4, cache_megabytes=4)
    assert isinstance(made, EngineBatch)
    return made


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """Serve the stand-in on loopback, as `allyouneed serve` does, in a thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLYOUNEED_STANDINS", str(STANDINS))
        own = load_batch(NAME, max_num_sequences=4, cache_megabytes=4)
        template = open_model(NAME).chat_template
    assert isinstance(own, EngineBatch) and template is not None
    service = Service(
        own.engine, own.tokenizer, name=NAME, template=ChatTemplate(template, own.tokenizer), stop=own.stop
    )
    opened, ready = listen("127.0.0.1", 0), threading.Event()
    server = make_server(create_app(service, Protection(KEY)), on_ready=ready.set)
    thread = threading.Thread(target=lambda: server.run(sockets=[opened]), daemon=True)
    thread.start()
    assert ready.wait(30)
    yield f"http://127.0.0.1:{opened.getsockname()[1]}/v1"
    server.should_exit = True
    thread.join(30)


class TestOurServer:
    @pytest.fixture(autouse=True)
    def _key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("THE_KEY", KEY)

    def test_answers_are_those_of_the_engine(self, served: str, engine: EngineBatch, tmp_path: Path) -> None:
        model = ServerBatch(served, NAME, key_variable="THE_KEY", concurrency=5)
        prompts = [*QUESTIONS, "Once upon", " a time"]
        found = complete(model, prompts, new_tokens=9, sampling=GREEDY, store=tmp_path)
        assert found.texts == complete(engine, prompts, new_tokens=9, sampling=GREEDY).texts
        assert found.usage.completion_tokens > 0 and found.asked == 14
        assert complete(model, prompts, new_tokens=9, sampling=GREEDY, store=tmp_path).asked == 0
        assert KEY not in repr(model) and not any(KEY in path.read_text() for path in tmp_path.glob("??/*"))
        newer = ServerBatch(served, NAME, key_variable="THE_KEY", revision="2")
        assert not complete(newer, prompts[:1], new_tokens=9, sampling=GREEDY, store=tmp_path)[0].from_store

    def test_sampled_answers_too(self, served: str, engine: EngineBatch) -> None:
        model = ServerBatch(served, NAME, key_variable="THE_KEY")
        sampling, seeds = Sampling(0.9, top_k=30, top_p=0.9, repetition_penalty=1.2), list(range(12))
        found = complete(model, QUESTIONS, new_tokens=9, sampling=sampling, seed=seeds, stop_strings=["e"])
        wanted = complete(engine, QUESTIONS, new_tokens=9, sampling=sampling, seed=seeds, stop_strings=["e"])
        assert found.texts == wanted.texts and len(set(found.texts)) > 6

    def test_a_schema_is_followed_there_too(self, served: str) -> None:
        model = ServerBatch(served, NAME, key_variable="THE_KEY")
        found = complete(model, QUESTIONS[:5], new_tokens=9, schema=Literal["red", "blue"], sampling=Sampling(2.0))
        assert found.unparsed == found.failed == [] and {result.value for result in found} <= {"red", "blue"}
        refused = complete(model, QUESTIONS[:1], schema={"type": "array", "uniqueItems": True})
        assert "uniqueItems" in str(refused[0].error)

    def test_log_probabilities_are_those_of_the_engine(self, served: str, engine: EngineBatch) -> None:
        model = ServerBatch(served, NAME, key_variable="THE_KEY")
        prompts, options = ["Once upon a", "It was"], [[" time", " day"], [" the", " a good"]]
        found, wanted = score(model, prompts, options), score(engine, prompts, options)
        for own, other in zip(found, wanted, strict=True):
            assert own.answer.tokens == other.answer.tokens
            assert own.answer.log_probabilities == pytest.approx(other.answer.log_probabilities, abs=1e-3)

    def test_a_wrong_key_or_name_ends_at_once(self, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
        began = time.monotonic()
        other = complete(ServerBatch(served, "other", key_variable="THE_KEY", first_wait=30), QUESTIONS, new_tokens=3)
        assert len(other.failed) == 12 and "does not exist" in str(other[11].error)
        monkeypatch.setenv("THE_KEY", "wrong-key-99")
        wrong = complete(ServerBatch(served, NAME, key_variable="THE_KEY", first_wait=30), QUESTIONS, new_tokens=3)
        assert all(isinstance(result.error, ServerError) and result.error.status == 401 for result in wrong)
        assert "wrong-key-99" not in "".join(str(result.error) for result in wrong)
        assert time.monotonic() - began < 20

    def test_a_prompt_that_is_refused_leaves_others_alone(self, served: str) -> None:
        model = ServerBatch(served, NAME, key_variable="THE_KEY")
        found = complete(model, [QUESTIONS[0], [{"role": "user", "content": "long " * 3000}]], new_tokens=3)
        assert found.failed == [1] and "answers 400" in str(found[1].error)


def _body(text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


@contextmanager
def flaky(answer: Callable[[BaseHTTPRequestHandler, dict[str, Any], int], None]) -> Iterator[tuple[str, Counter[str]]]:
    """Serve by a function of the handler, the body and the how-manieth time that this prompt is asked."""
    asked: Counter[str] = Counter()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
            with lock:
                asked[text] += 1
                times = asked[text]
            answer(self, body, times)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("content-length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


class TestPatience:
    def test_what_fails_for_a_while_is_tried_again(self) -> None:
        def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any], times: int) -> None:
            text = body["messages"][-1]["content"]
            kind = int(text.split()[-1].rstrip("?"))
            if times > 2:
                send(handler, 200, _body(f"after {times}"))
            elif kind == 0:
                send(handler, 429, b'{"error": {"message": "slow down"}}', retry_after="0.05")
            elif kind == 1:
                send(handler, 500, b"oops")
            elif kind == 2:
                time.sleep(1.0)
                send(handler, 200, _body("too late"))
            elif kind == 3:
                whole = _body("half")
                send(handler, 200, whole[:20], length=len(whole))
                handler.close_connection = True
            elif kind == 4:
                handler.connection.close()
            elif kind == 5:
                send(handler, 200, b"<html>not JSON</html>")
            elif kind == 6:
                send(handler, 200, b'{"choices": []}')
            else:
                send(handler, 503, b"", retry_after="Wed, 21 Oct 2015 07:28:00 GMT")

        with flaky(answer) as (url, asked):
            model = ServerBatch(url, "m", seconds=0.5, first_wait=0.01, concurrency=4)
            found = complete(model, QUESTIONS[:8], new_tokens=5)
        assert found.failed == [] and found.texts == ["after 3"] * 8
        assert set(asked.values()) == {3} and found.usage.cached_tokens == 32

    def test_patience_ends_and_says_of_what(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)

        def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any], times: int) -> None:
            if "3" in body["messages"][-1]["content"]:
                # Where a message is cut, no part of the key may be left.
                told = f"no luck with {handler.headers['authorization']} {'x' * 263} {KEY}"
                send(handler, 500, json.dumps({"error": {"message": told}}).encode())
            else:
                send(handler, 200, _body("fine"))

        with flaky(answer) as (url, asked):
            found = complete(ServerBatch(url, "m", first_wait=0.01, max_attempts=4), QUESTIONS[:6], new_tokens=5)
        assert found.failed == [3] and asked["What is 3?"] == 4
        message = str(found[3].error)
        assert "500" in message and "no luck with Bearer …" in message and "in 4 attempts" in message
        assert KEY[:6] not in message

    def test_what_is_wrong_is_not_tried_again(self) -> None:
        with flaky(lambda handler, body, times: send(handler, 400, b'{"error": {"message": "bad"}}')) as (url, asked):
            found = complete(ServerBatch(url, "m", first_wait=5), QUESTIONS[:3], new_tokens=5)
        assert len(found.failed) == 3 and set(asked.values()) == {1}

    def test_nobody_there_is_found_out_once(self) -> None:
        began = time.monotonic()
        model = ServerBatch("http://127.0.0.1:9/v1", "m", first_wait=0.05, max_attempts=3, concurrency=2)
        found = complete(model, QUESTIONS, new_tokens=5)
        assert len(found.failed) == 12 and "ConnectError" in str(found[0].error)
        assert time.monotonic() - began < 5

    def test_no_more_requests_are_open_than_asked_for(self) -> None:
        lock, now, most = threading.Lock(), 0, 0

        def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any], times: int) -> None:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.05)
            with lock:
                now -= 1
            send(handler, 200, _body("fine"))

        with flaky(answer) as (url, _):
            complete(ServerBatch(url, "m", concurrency=3), QUESTIONS, new_tokens=5)
        assert most == 3

    def test_requests_are_in_the_apis_form(self) -> None:
        bodies: list[dict[str, Any]] = []

        def answer(handler: BaseHTTPRequestHandler, body: dict[str, Any], times: int) -> None:
            bodies.append(body)
            if "prompt" in body and body.get("echo"):
                told = {
                    "text_offset": [0, 4, 9],
                    "token_logprobs": [None, -1.5, -0.25],
                    "tokens": ["once", " upon", " a"],
                }
                send(handler, 200, json.dumps({"choices": [{"text": body["prompt"], "logprobs": told}]}).encode())
            else:
                send(handler, 200, _body('{"a": 1}'))

        schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
        with flaky(answer) as (url, _):
            model = ServerBatch(url, "m")
            sampling = Sampling(0.5, min_p=0.1, logit_bias={7: 1.0})
            found = complete(
                model, QUESTIONS[:1], new_tokens=5, seed=3, sampling=sampling, schema=schema, stop_strings=["x"]
            )
            assert found[0].value == {"a": 1}
            refused = complete(model, ["text"], schema=schema)
            scores = score(model, ["once", "onc"], [[" upon a"], ["e upon a"]])
            assert "conversation" in str(score(model, QUESTIONS[:1], [["a"]])[0].error)
        assert bodies[0] == {
            "model": "m",
            "messages": QUESTIONS[0],
            "max_tokens": 5,
            "seed": 3,
            "temperature": 0.5,
            "min_p": 0.1,
            "logit_bias": {"7": 1.0},
            "stop": ["x"],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema, "strict": True},
            },
        }
        assert "constrain=False" in str(refused[0].error)
        assert scores[0].answer.log_probabilities == (-1.75,) and scores[0].answer.tokens == (2,)
        assert "begins within one of the server's tokens" in str(scores[1].error)
        echo = {"prompt": "once upon a", "max_tokens": 0, "echo": True, "logprobs": 1, "seed": 0, "model": "m"}
        assert echo in bodies

    def test_bad_arguments_are_refused(self) -> None:
        for url in ("ftp://a/v1", "http://me:secret@host/v1", "localhost:8000", "http://a/v1?key=1"):
            with pytest.raises(ValueError, match="address must be"):
                ServerBatch(url, "m")
        for further in ({"concurrency": 0}, {"max_attempts": 0}, {"seconds": 0.0}, {"first_wait": -1.0}):
            with pytest.raises(ValueError, match=next(iter(further))):
                ServerBatch("http://a/v1", "m", **further)  # pyright: ignore[reportArgumentType]
