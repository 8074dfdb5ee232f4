"""The chat page in headless Chromium, by its own driver, and what the server does for browsers and those who watch."""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from allyouneed.papers.serving.door import Protection

from .test_serving_server import HELLO, NAME, Running, eventually, loaded, running  # noqa: F401

ORIGIN = "http://localhost:3000"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def guarded(loaded: Any) -> Iterator[Running]:  # noqa: F811
    protection = Protection(hosts=frozenset({"127.0.0.1"}), origins=(ORIGIN,), body_seconds=0.5)
    with running(loaded, protection=protection) as server:
        yield server


class Browser:
    """A window of Chromium, by the WebDriver protocol."""

    def __init__(self, address: str):
        self.client = httpx.Client(base_url=address, timeout=60)
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        options = {"goog:chromeOptions": {"args": arguments}, "goog:loggingPrefs": {"browser": "ALL"}}
        answer = self.client.post("/session", json={"capabilities": {"alwaysMatch": options}})
        assert answer.status_code == 200, answer.text
        self.session = f"/session/{answer.json()['value']['sessionId']}"

    def tell(self, what: str, **options: Any) -> Any:
        answer = self.client.post(f"{self.session}/{what}", json=options)
        assert answer.status_code == 200, answer.text
        return answer.json()["value"]

    def run(self, script: str) -> Any:
        return self.tell("execute/sync", script=f"return {script}", args=[])

    def element(self, selector: str) -> str:
        return next(iter(self.tell("element", using="css selector", value=selector).values()))

    def write(self, selector: str, text: str) -> None:
        self.tell(f"element/{self.element(selector)}/value", text=text)

    def click(self, selector: str) -> None:
        self.tell(f"element/{self.element(selector)}/click")

    def press(self, key: str) -> None:
        pressed = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        self.tell("actions", actions=[{"type": "key", "id": "keyboard", "actions": pressed}])

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({json.dumps(selector)})?.textContent ?? ''")

    def size(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.tell("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=metrics)

    def complaints(self) -> list[str]:
        return [own["message"] for own in self.tell("se/log", type="browser") if own["level"] == "SEVERE"]

    def picture(self, name: str) -> None:
        """Keep what is to be seen, where somebody wants to look at it."""
        if (folder := os.environ.get("ALLYOUNEED_PICTURES")) is not None:
            data = self.client.get(f"{self.session}/screenshot").json()["value"]
            (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self.client.delete(self.session)
        self.client.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    driver = shutil.which("chromedriver")
    if driver is None or not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("there is no Chromium with its driver: Debian's packages are chromium and chromium-driver")
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        address = f"http://127.0.0.1:{port}"
        try:
            eventually(lambda: reachable(address))
            opened = Browser(address)
            yield opened
            opened.close()
        finally:
            process.terminate()


def reachable(address: str) -> bool:
    try:
        return httpx.get(address + "/status").status_code == 200
    except httpx.TransportError:
        time.sleep(0.1)
        return False


class TestPage:
    @pytest.fixture
    def page(self, guarded: Running, browser: Browser) -> Browser:
        browser.size(1100, 760)
        browser.tell("url", url=guarded.url + "/")
        eventually(lambda: browser.text("#model") == NAME)
        return browser

    def test_a_conversation(self, guarded: Running, page: Browser) -> None:
        page.click("summary")
        page.write("#system", "Be kind.")
        page.run("document.getElementById('temperature').value = '0'")
        page.run("document.getElementById('longest').value = '12'")
        page.write("#text", "Hello\ue007")
        eventually(lambda: page.text("#status").startswith("The answer: "))
        expected = guarded.chat(max_tokens=12).choices[0].message.content
        assert page.text("article.assistant p") == expected
        page.picture("desktop")
        # The next turn knows the first, and what is shown is no part of the page.
        page.write("#text", "<img src=x onerror=document.title='bad'> & <b>more</b>")
        page.click("#send")
        eventually(lambda: page.run("document.querySelectorAll('article.assistant:not(.busy)').length") == 2)
        assert page.run("document.querySelectorAll('article img, article b').length") == 0
        assert (
            page.text("article.user:nth-of-type(3) p").startswith("<img src=x") and page.run("document.title") == NAME
        )
        turns = [*HELLO, {"role": "assistant", "content": expected}]
        turns.append({"role": "user", "content": page.text("article.user:nth-of-type(3) p")})
        again = guarded.chat(messages=turns, max_tokens=12).choices[0].message.content
        assert page.text("article.assistant:nth-of-type(4) p") == again
        page.click("#clear")
        assert page.run("document.querySelectorAll('article').length") == 0
        assert page.complaints() == []

    def test_stop(self, guarded: Running, page: Browser) -> None:
        guarded.gate.clear()
        try:
            page.write("#text", "Hello\ue007")
            eventually(lambda: guarded.engine.statistics.running == 1)
            assert page.run("getComputedStyle(document.getElementById('send')).display") == "none"
            page.click("#stop")
        finally:
            guarded.gate.set()
        eventually(guarded.idle)
        # Nothing was said, so that the question may be asked again.
        assert page.run("document.getElementById('text').value") == "Hello" and page.text("#status") == "Stopped."

    def test_an_error_is_shown(self, page: Browser) -> None:
        page.run("document.getElementById('longest').value = '100000'")
        page.run("document.getElementById('temperature').value = '9'")
        page.write("#text", "Hello\ue007")
        eventually(lambda: page.text("article.error p"))
        assert "temperature" in page.text("article.error p")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_on_a_phone(self, page: Browser, scheme: str) -> None:
        page.size(360, 640)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.tell("goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params={"features": features})
        page.write("#text", "Hello, what can you do? " * 4)
        page.click("#send")
        eventually(lambda: page.text("#status").startswith("The answer: "))
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        boxes = "[...document.querySelectorAll('button')].map(own => own.getBoundingClientRect())"
        shown = f"{boxes}.filter(box => box.width)"
        assert page.run(
            f"{shown}.every(box => box.right <= innerWidth && box.bottom <= innerHeight && box.height >= 44)"
        )
        page.picture(f"phone-{scheme}")

    def test_everything_has_a_name_and_can_be_reached_by_keyboard(self, page: Browser) -> None:
        page.click("summary")
        unnamed = "[...document.querySelectorAll('input, textarea')].filter(own => !own.labels.length).length"
        assert page.run(unnamed) == 0
        reached = set()
        for _ in range(12):
            page.press("\ue004")
            reached.add(page.run("document.activeElement.id || document.activeElement.tagName"))
        assert {"clear", "text", "send", "system", "temperature", "longest", "key", "MAIN"} <= reached


class TestDoor:
    def test_the_page_loads_nothing_from_elsewhere(self, guarded: Running) -> None:
        answer = httpx.get(guarded.url + "/")
        assert answer.headers["content-type"].startswith("text/html") and "http" not in answer.text.replace(
            "https?", ""
        )
        assert "default-src 'none'" in answer.headers["content-security-policy"]

    def test_foreign_hosts(self, guarded: Running) -> None:
        for host, status in (("evil.example", 403), ("127.0.0.1.evil.example", 403), ("127.0.0.1", 200), ("", 403)):
            answer = httpx.get(guarded.url + "/health", headers={"host": host})
            assert answer.status_code == status, host
        assert (
            "answers only to 127.0.0.1" in httpx.get(guarded.url, headers={"host": "evil"}).json()["error"]["message"]
        )

    def test_origins(self, guarded: Running) -> None:
        asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
        allowed = httpx.options(guarded.url + CHAT, headers={"origin": ORIGIN, **asks})
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == ORIGIN
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        other = httpx.options(guarded.url + CHAT, headers={"origin": "http://evil.example", **asks})
        assert other.status_code == 400 and "access-control-allow-origin" not in other.headers
        refused = other.json()["error"]
        assert refused["code"] == "forbidden_origin" and "http://evil.example" in refused["message"]
        # An error has them, too: otherwise a page could not say what is wrong.
        wrong = guarded.post({}, headers={"origin": ORIGIN})
        assert wrong.status_code == 400 and wrong.headers["access-control-allow-origin"] == ORIGIN

    def test_numbers_of_requests(self, guarded: Running) -> None:
        def number(**headers: str) -> str:
            return httpx.get(guarded.url + "/health", headers=headers).headers["x-request-id"]

        assert number(**{"x-request-id": "a-1.b:c_2"}) == "a-1.b:c_2"
        made = {number(), number(), number(**{"x-request-id": "a b"}), number(**{"x-request-id": "x" * 200})}
        assert len(made) == 4 and all(len(own) == 32 for own in made)

    @pytest.mark.parametrize(
        ("content", "headers", "status", "said"),
        [
            (b"\x1f\x8b", {"content-encoding": "gzip"}, 415, "encoded as 'gzip': send it as it is"),
            (b'{"model": "\xff"}', {}, 400, "not UTF-8: byte 11 is 0xff"),
        ],
    )
    def test_bodies(self, guarded: Running, content: bytes, headers: dict[str, str], status: int, said: str) -> None:
        answer = guarded.post(content, headers={"content-type": "application/json", **headers})
        assert answer.status_code == status and said in answer.json()["error"]["message"]

    def test_heads_that_are_too_long(self, guarded: Running) -> None:
        with closing(guarded.raw(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"a" * 100_000)) as connection:
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 431") and b"headers are too long" in answer

    def test_health_openapi_and_metrics(self, guarded: Running) -> None:
        head = httpx.head(guarded.url + "/health")
        assert head.status_code == 200 and not head.content
        described = httpx.get(guarded.url + "/openapi.json").json()
        assert {CHAT, "/v1/completions", "/v1/models", "/health"} <= described["paths"].keys()

        def metrics() -> dict[str, float]:
            lines = httpx.get(guarded.url + "/metrics").text.splitlines()
            return {name: float(value) for name, value in (own.rsplit(" ", 1) for own in lines if own[0] != "#")}

        before = metrics()
        guarded.chat(max_tokens=5)
        guarded.post({})
        httpx.get(guarded.url + "/nothing")
        eventually(guarded.idle)
        after = metrics()

        def grown(name: str) -> float:
            return after[name] - before.get(name, 0.0)

        assert grown("allyouneed_generated_tokens_total") == 5
        assert grown(f'allyouneed_requests_total{{route="{CHAT}",status="200"}}') == 1
        assert grown(f'allyouneed_requests_total{{route="{CHAT}",status="400"}}') == 1
        assert grown('allyouneed_requests_total{route="other",status="404"}') == 1
        assert grown("allyouneed_time_to_first_token_seconds_count") == 1
        assert grown("allyouneed_inter_token_seconds_count") == 4
        assert after["allyouneed_running"] == after["allyouneed_waiting"] == after["allyouneed_allocated_blocks"] == 0
