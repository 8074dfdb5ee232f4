"""Models behind an OpenAI-compatible server, asked with bounded concurrency and patience."""

import email.utils
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

import httpx

from allyouneed.text import Sampling

from .requests import Completion, CompletionRequest, ScoreRequest, Scores, Usage

_Request = TypeVar("_Request", CompletionRequest, ScoreRequest)
_Answer = TypeVar("_Answer", Completion, Scores)

_TRIED_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}
# What is wrong with the first request is wrong with all: the key, the address or the model's name.
_WRONG_FOR_ALL = {401, 403, 404}
_LONGEST_WAIT = 60.0


class ServerError(RuntimeError):
    """A server that did not answer, refused, or answered in another form than OpenAI's API has.

    Args:
        message: for a person.
        status: of the HTTP response; None where there was none.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


class ServerBatch:
    """A model behind an OpenAI-compatible server, such as `allyouneed serve`.

    What fails for a while (429, 5xx, timeouts, connections that break) is tried again after waiting, twice as long each
    time, or as long as the server asks for. A wrong key, address or name ends a call at once.

    Args:
        url: the API's, as `http://127.0.0.1:8000/v1`.
        model: its name there.
        key_variable: the environment variable that holds the key; it is read when the model is asked, and never
            shown.
        revision: whatever tells the weights behind the name apart from earlier ones, since a server does not: a part of
            the key under which answers are kept.
        concurrency: requests that are open at a time.
        max_attempts: of each request.
        seconds: how long an answer may take before it is given up.
        first_wait: seconds before the second attempt.

    Raises:
        ValueError: an address that is no URL or holds a password, or a number out of range.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        revision: str | None = None,
        concurrency: int = 8,
        max_attempts: int = 6,
        seconds: float = 600.0,
        first_wait: float = 0.5,
    ):
        if not re.fullmatch(r"https?://[^\s@/]+(/[^\s@?#]*)?", url):
            raise ValueError(f"the server's address must be as http://127.0.0.1:8000/v1, without a password: {url!r}")
        for name, value, least in (("concurrency", concurrency, 1), ("max_attempts", max_attempts, 1)):
            if value < least:
                raise ValueError(f"{name} {value} is out of range: it must be at least {least}")
        if not seconds > 0 or first_wait < 0:
            raise ValueError(f"seconds {seconds} must be above 0, and first_wait {first_wait} at least 0")
        self.url = url.rstrip("/")
        self.model = model
        self.identity: Mapping[str, Any] = {"server": self.url, "model": model, "revision": revision}
        self._key_variable = key_variable
        self._concurrency, self._max_attempts = concurrency, max_attempts
        self._seconds, self._first_wait = seconds, first_wait

    def __repr__(self) -> str:
        return f"ServerBatch({self.url!r}, {self.model!r})"

    def complete(
        self, requests: Sequence[CompletionRequest], on_result: Callable[[int, Completion | Exception], object]
    ) -> None:
        """Ask for completions, several at a time."""
        self._all(requests, self._completed, on_result)

    def score(self, requests: Sequence[ScoreRequest], on_result: Callable[[int, Scores | Exception], object]) -> None:
        """Ask for the log probabilities of continuations of texts, by `echo`; a conversation's cannot be asked for."""
        self._all(requests, self._scored, on_result)

    def _all(
        self,
        requests: Sequence[_Request],
        ask: Callable[["_Session", _Request], _Answer],
        on_result: Callable[[int, _Answer | Exception], object],
    ) -> None:
        key = os.environ.get(self._key_variable)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(self._seconds, connect=min(10.0, self._seconds))
        limits = httpx.Limits(max_connections=self._concurrency)
        # Tasks end by themselves once one is wrong for all, or the caller is interrupted.
        ended = threading.Event()
        with (
            httpx.Client(headers=headers, timeout=timeout, limits=limits) as client,
            ThreadPoolExecutor(self._concurrency) as pool,
        ):
            session = _Session(client, self, key, ended)
            futures: dict[Future[_Answer], int] = {
                pool.submit(ask, session, request): place for place, request in enumerate(requests)
            }
            try:
                for future in as_completed(futures):
                    error = future.exception()
                    if error is not None and not isinstance(error, ValueError | ServerError):
                        raise error
                    on_result(futures[future], future.result() if error is None else error)  # pyright: ignore[reportArgumentType]
            finally:
                ended.set()
                pool.shutdown(cancel_futures=True)

    def _completed(self, session: "_Session", request: CompletionRequest) -> Completion:
        body: dict[str, Any] = {"max_tokens": request.new_tokens, "seed": request.seed}
        body |= _sampling(request.sampling)
        if request.stop_strings:
            body["stop"] = list(request.stop_strings)
        if isinstance(request.prompt, str):
            if request.schema is not None:
                raise ValueError("a server follows a schema in conversations alone: ask with constrain=False")
            found = session.post("/completions", body | {"prompt": request.prompt})
            text = _at(found, "choices", 0, "text")
        else:
            if request.schema is not None:
                schema = {"name": "answer", "schema": request.schema, "strict": True}
                body["response_format"] = {"type": "json_schema", "json_schema": schema}
            found = session.post("/chat/completions", body | {"messages": [dict(own) for own in request.prompt]})
            text = _at(found, "choices", 0, "message", "content")
        if not isinstance(text, str):
            raise ServerError(f"the server's answer has no text, but {str(text)[:100]!r}")
        reason = _at(found, "choices", 0, "finish_reason")
        return Completion(text, reason if reason in ("stop", "length") else None, _usage(found.get("usage")))

    def _scored(self, session: "_Session", request: ScoreRequest) -> Scores:
        if not isinstance(request.prompt, str):
            raise ValueError("a server tells log probabilities of texts, not of a conversation's answers")
        sums, counts = [], []
        for continuation in request.continuations:
            body = {"prompt": request.prompt + continuation, "max_tokens": 0, "echo": True, "logprobs": 1, "seed": 0}
            found = session.post("/completions", body)
            told = _at(found, "choices", 0, "logprobs")
            offsets, values = _at(told, "text_offset"), _at(told, "token_logprobs")
            begin = len(request.prompt)
            if begin not in offsets:
                raise ValueError(
                    f"the continuation {continuation[:40]!r} begins within one of the server's tokens: "
                    "let the prompt end, or the continuation begin, elsewhere"
                )
            own = [value for offset, value in zip(offsets, values, strict=True) if offset >= begin]
            if not all(isinstance(value, float | int) for value in own):
                raise ServerError("the server tells no log probabilities of the continuation's tokens")
            sums.append(float(sum(own)))
            counts.append(len(own))
        return Scores(tuple(sums), tuple(counts))


class _Session:
    """The requests of one call, with one client and one patience."""

    def __init__(self, client: httpx.Client, server: ServerBatch, key: str | None, ended: threading.Event):
        self._client, self._server, self._key, self._ended = client, server, key, ended
        self._wrong: ServerError | None = None
        self._reached = False

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request until it is answered.

        Raises:
            ServerError: it is refused, or not answered in all attempts.
        """
        own, wait, made = self._server, 0.0, 0
        error = ServerError("nothing was asked")
        for attempt in range(own._max_attempts):
            if self._ended.wait(wait):
                break
            if self._wrong is not None:
                raise self._wrong
            made = attempt + 1
            wait = min(_LONGEST_WAIT, own._first_wait * 2**attempt) * random.uniform(0.5, 1.0)
            try:
                response = self._client.post(own.url + path, json={"model": own.model, **body})
                self._reached = True
                if response.status_code == 200:
                    return self._read(response)
                error = ServerError(self._message(response), response.status_code)
                wait = max(wait, _asked_wait(response.headers.get("retry-after")))
            except httpx.RequestError as failure:
                error = ServerError(self._without_key(f"{own.url}: {type(failure).__name__}: {failure}"))
            except _BadBodyError as failure:
                error = ServerError(f"{own.url}: {failure}")
            if error.status in _WRONG_FOR_ALL:
                self._wrong = error
            if error.status is not None and error.status not in _TRIED_AGAIN:
                raise error
        if not self._reached:
            # Nobody is there: others need not wait as long.
            self._wrong = error
        raise ServerError(f"{error} (in {made} attempts)", error.status)

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        try:
            found = response.json()
        except ValueError as error:
            raise _BadBodyError(f"the answer is not JSON: {self._without_key(response.text)[:100]!r}") from error
        if not isinstance(found, dict) or not found.get("choices"):
            raise _BadBodyError(f"the answer has no choices: {self._without_key(response.text)[:100]!r}")
        return found

    def _message(self, response: httpx.Response) -> str:
        try:
            said = _at(response.json(), "error", "message")
        except (ValueError, ServerError):
            said = response.text
        # Before it is cut, for of a key that is cut there would be a part left.
        return f"{self._server.url} answers {response.status_code}: {self._without_key(str(said))[:300]}"

    def _without_key(self, text: str) -> str:
        return text if not self._key else text.replace(self._key, "…")


class _BadBodyError(Exception):
    """An answer with status 200 that is none."""


def _sampling(sampling: Sampling | None) -> dict[str, Any]:
    """Give a request's fields for how tokens are sampled; what is as usual is left out: not all servers know it."""
    if sampling is None:
        return {}
    usual = Sampling()
    names = "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"
    fields: dict[str, Any] = {
        name: value for name in names if (value := getattr(sampling, name)) != getattr(usual, name)
    }
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    return {"temperature": sampling.temperature, **fields}


def _usage(told: Any) -> Usage | None:
    if not isinstance(told, Mapping):
        return None
    details = told.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return Usage(told.get("prompt_tokens") or 0, told.get("completion_tokens") or 0, cached or 0)


def _asked_wait(told: str | None) -> float:
    """Give the seconds that a server asks to wait, as a number or a time."""
    if told is None:
        return 0.0
    try:
        seconds = float(told)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(told).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(_LONGEST_WAIT, max(0.0, seconds)) if seconds == seconds else 0.0


def _at(found: Any, *path: str | int) -> Any:
    for step in path:
        try:
            found = found[step]
        except (KeyError, IndexError, TypeError) as error:
            raise ServerError(f"the server's answer has no {'.'.join(map(str, path))}") from error
    return found
