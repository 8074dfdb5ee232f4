"""Source distributions come from pip's index, and nothing in them is run."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from allyouneed.data.sdists import SdistError, download_sdist

ARCHIVE = bytes(range(256)) * 20
PAGES = {
    "/json/some-data/": json.dumps(
        {
            "files": [
                {"filename": "some_data-1.0-py3-none-any.whl", "url": "../../files/wheel"},
                {"filename": "some_data-1.0.tar.gz", "url": "../../files/some_data-1.0.tar.gz"},
            ]
        }
    ).encode(),
    "/html/some-data/": b'<a href="/files/some_data-1.0.tar.gz#sha256=00">some_data-1.0.tar.gz</a><a>x</a>',
    "/broken/some-data/": b'{"meta": 1}',
    "/elsewhere/some-data/": b'<a href="file:///etc/some_data-1.0.tar.gz">x</a>',
    "/files/some_data-1.0.tar.gz": ARCHIVE,
}


class Index(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content = PAGES.get(self.path)
        self.send_response(200 if content is not None else 404)
        kind = "application/vnd.pypi.simple.v1+json" if self.path.startswith(("/json", "/broken")) else "text/html"
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def index(address: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PIP_INDEX_URL", f"{address}/{getattr(request, 'param', 'json')}")


@pytest.mark.parametrize("index", ["json", "html"], indirect=True)
@pytest.mark.parametrize("package", ["some-data", "Some_Data"])
@pytest.mark.usefixtures("index")
def test_the_archive_comes_from_either_kind_of_index(package: str, tmp_path: Path) -> None:
    path = download_sdist(package, "1.0", tmp_path)
    assert path == tmp_path / "some_data-1.0.tar.gz"
    assert path.read_bytes() == ARCHIVE


@pytest.mark.parametrize(
    ("index", "package", "version", "message"),
    [
        ("json", "some-data", "2.0", "no source distribution of some-data 2.0"),
        ("json", "other", "1.0", "the index said: HTTP Error 404"),
        ("broken", "some-data", "1.0", "cannot be read: KeyError"),
        ("elsewhere", "some-data", "1.0", "is not of http or https"),
    ],
    indirect=["index"],
)
@pytest.mark.usefixtures("index")
def test_what_cannot_be_had_is_said(package: str, version: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SdistError, match=message):
        download_sdist(package, version, tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_index_is_no_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SdistError, match="PIP_NO_INDEX"):
        download_sdist("some-data", "1.0", tmp_path)


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PIP_NO_INDEX", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(SdistError, match="the index said"):
        download_sdist("some-data", "1.0", tmp_path)
