"""Answers kept on disk by their content, so that a run that is repeated or was killed asks nothing twice."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .requests import digest


class AnswerStore:
    """A folder with a file for each answer, named by the key of what was asked.

    A file comes into being whole, by renaming, so that several processes may write and be killed at any time: two that
    ask the same write the same file, and the later one stays. A file tells its own checksum; one that is damaged is as
    good as none, and is named in `damaged`.

    Args:
        folder: made where it is missing.

    Attributes:
        damaged: files that could not be used, since the store was opened.

    Raises:
        ValueError: there is a file in the folder's place.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is a file: answers are kept in a folder")
        self.damaged: list[Path] = []

    def __len__(self) -> int:
        """Count the answers."""
        return sum(1 for _ in self.folder.glob("??/*.json"))

    def get(self, key: str) -> dict[str, Any] | None:
        """Give the answer of a key; None where there is none, or a damaged one."""
        path = self._path(key)
        try:
            content = json.loads(path.read_bytes())
            if content["key"] == key and content["sha256"] == digest([key, content["answer"]]):
                return content["answer"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        self.damaged.append(path)
        return None

    def put(self, key: str, answer: Mapping[str, Any], asked: Mapping[str, Any] | None = None) -> None:
        """Keep an answer.

        Args:
            key: of what was asked.
            answer: as JSON.
            asked: what was asked, for people who read the file.
        """
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"key": key, "sha256": digest([key, answer]), "answer": answer, "asked": asked}
        part, name = tempfile.mkstemp(dir=path.parent, prefix=f".{key[:8]}.", suffix=".part")
        try:
            with os.fdopen(part, "w", encoding="utf-8") as file:
                json.dump(content, file, ensure_ascii=False, indent=1)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
