"""The C++ in this folder, compiled where a compiler is, and kept for the next process."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path

SOURCE = Path(__file__).with_name("decode.cpp")
_HEADERS = ("few_bits.h", "linear.h", "step.h")

# What may change a rounding is off but for fused multiplication and addition, which rounds once where two would twice.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_SECONDS = 300


class CompilerError(RuntimeError):
    """There is no compiler, or it failed; the message says which."""


@dataclass(frozen=True)
class Compiled:
    """A library, opened.

    Attributes:
        library: its functions.
        seconds: what compiling took; 0 where it was kept from before.
        compiler: the compiler's path.
    """

    library: ctypes.CDLL
    seconds: float
    compiler: str


def find_compiler() -> str | None:
    """Find a C++ compiler: `CXX` where it is set, else g++ or clang++; None where there is none."""
    chosen = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, (chosen,) if chosen else ("g++", "clang++"))), None)


@cache
def compiled() -> Compiled:
    """Compile the source for this processor, or open what was compiled from the same source before.

    Libraries are kept in the user's cache folder, or in that of `ALLYOUNEED_CACHE`.

    Raises:
        CompilerError: no compiler, or one that fails.
    """
    compiler = find_compiler()
    if compiler is None:
        named = os.environ.get("CXX")
        raise CompilerError(
            f"there is no C++ compiler {named}" if named else "there is no C++ compiler: g++ or clang++"
        )
    folder, seconds = _folder(), 0.0
    path = folder / f"decode-{_digest(compiler)}.so"
    if not _is_own(path):
        began = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        _compile(compiler, path)
        seconds = time.perf_counter() - began
    try:
        return Compiled(ctypes.CDLL(str(path)), seconds, compiler)
    except OSError as error:
        raise CompilerError(f"what {compiler} compiled cannot be opened: {error}") from error


def _folder() -> Path:
    chosen = os.environ.get("ALLYOUNEED_CACHE")
    return (Path(chosen).expanduser().absolute() if chosen else user_cache_path("allyouneed")) / "compiled"


def _digest(compiler: str) -> str:
    """Name all that the library depends on: what compiles, how, what, and for which processor."""
    told = _run([compiler, "--version"]) + "\n".join((*_FLAGS, sys.platform, platform.machine(), _processor()))
    source = b"".join(path.read_bytes() for path in (SOURCE, *map(SOURCE.with_name, _HEADERS)))
    return hashlib.sha256(told.encode() + source).hexdigest()[:32]


def _processor() -> str:
    """Name what instructions the processor has, since a home folder may be shared by several machines."""
    told = Path("/proc/cpuinfo")
    if not told.exists():
        return platform.processor()
    lines = told.read_text(errors="replace").splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _is_own(path: Path) -> bool:
    """Tell whether a file is there and nobody else could have put it there."""
    try:
        status = path.stat()
    except OSError:
        return False
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


def _compile(compiler: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        made = Path(work) / path.name
        command = [compiler, *_FLAGS, str(SOURCE), "-o", str(made)]
        try:
            _run([*command, "-fopenmp"])
        except CompilerError:
            # Such as Apple's clang, which has no OpenMP: one thread then.
            _run(command)
        made.chmod(0o700)
        # Whoever else compiles the same at this moment has made the same.
        made.replace(path)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilerError(f"{command[0]} does not run: {error}") from error
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
        raise CompilerError(f"{command[0]} failed: {said.strip()}")
    return done.stdout
