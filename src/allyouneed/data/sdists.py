"""Source distributions, downloaded from pip's index without running their build, which `pip download` would do."""

import json
import os
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from errno import ENOSPC
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

_JSON = "application/vnd.pypi.simple.v1+json"
_SUFFIXES = (".tar.gz", ".zip")
_SECONDS = 60.0


class SdistError(Exception):
    """A source distribution could not be had; the message is a clause that says why."""


def download_sdist(package: str, version: str, folder: Path) -> Path:
    """Download a package's source distribution from the index that pip is set up with.

    What comes is not checked here: whoever reads it compares checksums.

    Args:
        package: its name.
        version: exact.
        folder: where to put the file.

    Raises:
        SdistError: there is no index, or no such file in it, or it could not be read.
        OSError: with ENOSPC when the disk is full.
    """
    page = f"{_index().rstrip('/')}/{package.lower().replace('_', '-').replace('.', '-')}/"
    stems = {f"{name}-{version}" for name in (package, package.replace("-", "_"), package.lower().replace("-", "_"))}
    with _opened(page, f"{_JSON}, text/html;q=0.5") as answer:
        content = answer.read().decode("utf-8", errors="replace")
        files = _of_json(content) if _JSON in answer.headers.get("Content-Type", "") else _of_html(content)
    found = {name: urljoin(page, address) for name, address in files.items()}
    wanted = [name for stem in sorted(stems) for suffix in _SUFFIXES if (name := stem + suffix) in found]
    if not wanted:
        raise SdistError(f"the index has no source distribution of {package} {version}")
    path = folder / wanted[0]
    with _opened(found[wanted[0]], "*/*") as answer, path.open("wb") as file:
        try:
            shutil.copyfileobj(answer, file, 1 << 20)
        except OSError as error:
            if error.errno == ENOSPC:
                raise
            raise SdistError(f"the download of {path.name} broke off: {error}") from error
    return path


def _index() -> str:
    if os.environ.get("PIP_NO_INDEX"):
        raise SdistError("pip is set up to use no index (PIP_NO_INDEX)")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "get", "global.index-url"]
    configured = os.environ.get("PIP_INDEX_URL") or subprocess.run(command, capture_output=True, text=True).stdout
    if configured.strip():
        return configured.strip()
    # Only pip knows its default, which is not among its settings.
    from pip._internal.models.index import PyPI

    return PyPI.simple_url


def _opened(address: str, accepted: str) -> Any:
    if urlsplit(address).scheme not in ("http", "https"):
        raise SdistError(f"the address {address} is not of http or https")
    request = urllib.request.Request(address, headers={"Accept": accepted})
    context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or None)
    try:
        return urllib.request.urlopen(request, timeout=_SECONDS, context=context)
    except (urllib.error.URLError, OSError) as error:
        raise SdistError(f"the index said: {error}") from error


def _of_json(content: str) -> dict[str, str]:
    try:
        return {file["filename"]: file["url"] for file in json.loads(content)["files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise SdistError(f"the index gave a page that cannot be read: {error!r}") from error


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get("href") if tag == "a" else None
        if address:
            self.found[unquote(urlsplit(address).path.rpartition("/")[2])] = address


def _of_html(content: str) -> dict[str, str]:
    links = _Links()
    links.feed(content)
    return links.found
