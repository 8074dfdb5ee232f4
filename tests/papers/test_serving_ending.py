"""The end of a server: real signals to a real process."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

NAME = "smollm2-135m-instruct"


@contextmanager
def process(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    environment = {**os.environ, "ALLYOUNEED_STANDINS": str(Path(__file__).parents[1] / "standins")}
    command = [sys.executable, "-m", "allyouneed.cli", "serve", NAME, "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as started:
        assert started.stderr is not None
        try:
            yield started, next(found[1] for line in started.stderr if (found := re.search(r"(http://\S+)/v1", line)))
        finally:
            started.kill()


def said(server: subprocess.Popen[str]) -> str:
    assert server.stderr is not None
    return server.stderr.read()


class Asking(threading.Thread):
    """Asks for a long answer, and keeps what comes."""

    def __init__(self, address: str, **options: Any):
        super().__init__(daemon=True)
        self.address = address
        self.asked = {"model": NAME, "prompt": "Once", "max_tokens": 500, "temperature": 0, "stream": True} | options
        self.status = 0
        self.lines: list[str] = []
        self.start()

    def run(self) -> None:
        # What was cut off has no last line that could be read as JSON.
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.stream("POST", self.address + "/v1/completions", json=self.asked, timeout=60) as answer,
        ):
            self.status = answer.status_code
            self.lines.extend(filter(None, answer.iter_lines()))

    def begun(self) -> "Asking":
        end = time.monotonic() + 60
        while not any(line.startswith("data") for line in self.lines):
            assert time.monotonic() < end, "no token came"
            time.sleep(0.01)
        return self

    def code(self) -> Any:
        """Give the code of the error that it ends with."""
        self.join(60)
        return json.loads(self.lines[-1].removeprefix("data: "))["error"]["code"]


def slow(address: str) -> list[Asking]:
    """Ask for so much that it is not done within the time that is left."""
    return [Asking(address, n=4, max_tokens=490, logprobs=20) for _ in range(4)]


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_what_is_begun_is_finished_and_what_waits_is_refused(which: signal.Signals) -> None:
    with process("--max-num-sequences", "1") as (server, address):
        first = Asking(address, max_tokens=480, logprobs=20).begun()
        others = [Asking(address, max_tokens=480, stream=False) for _ in range(6)]
        # All seven are there, of which one runs.
        while sum(httpx.get(address + "/health").json()["statistics"][name] for name in ("running", "waiting")) < 6:
            time.sleep(0.01)
        server.send_signal(which)
        first.join(60)
        assert first.lines[-1] == "data: [DONE]" and '"finish_reason": "length"' in first.lines[-2]
        refused = [own for own in others if (own.join(60), own.status)[1] != 200]
        assert len(refused) >= 3 and all(own.code() == "stopping" and own.status == 503 for own in refused)
        assert server.wait(60) == 0
        assert "Traceback" not in said(server)


def test_what_is_not_done_in_time_ends_with_an_error_event() -> None:
    with process("--finish-seconds", "0.05") as (server, address):
        asking = [own.begun() for own in slow(address)]
        server.send_signal(signal.SIGTERM)
        codes = [own.code() for own in asking]
        assert codes == ["stopping"] * 4 and all(own.status == 200 for own in asking)
        assert server.wait(60) == 0
        assert "Traceback" not in said(server)


def test_a_second_signal_ends_at_once() -> None:
    with process("--finish-seconds", "600") as (server, address):
        for own in slow(address):
            own.begun()
        server.send_signal(signal.SIGTERM)
        assert server.stderr is not None and "ending" in server.stderr.readline()
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 128 + signal.SIGTERM
        assert not said(server)
