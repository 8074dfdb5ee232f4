"""What a result depends on as one short text, so that no other configuration, code or version reuses it."""

import ast
import dataclasses
import hashlib
import importlib.util
import json
import platform
import re
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .trial import Task

# A module, or something in it, that code names in a string to import it later.
_NAMED = re.compile(r"(\w+(?:\.\w+)+)(?::\w+)?")


def as_json(config: Any) -> dict[str, Any]:
    """Give a configuration as plain values, nested dataclasses with the name of their class."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return {"class": type(value).__name__} | fields
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value if isinstance(value, (int, float, str, bool, type(None))) else repr(value)

    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def digest(task: "Task") -> str:
    """Give what a trial's result depends on as one short text.

    It is its configuration, the code that it runs on, the versions of what that stands on, device and precision. The
    versions of published models and data sets that are loaded by name are in the code: each is pinned there.
    """
    return digest_of(task.config, task.trial.__module__, task)


def digest_of(config: Any, module: str, task: "Task") -> str:
    """Give what something that is made of a configuration by a module's code depends on, where a task is run."""
    from importlib.metadata import version

    versions = [platform.python_version(), version("torch"), version("numpy")]
    parts = [as_json(config), code_digest(module), versions, task.device, task.precision]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@cache
def code_digest(module: str) -> str:
    """Hash the source of a module and of everything of its package and of this project that it imports.

    What is imported only when it is needed, by a name such as "allyouneed.papers.llama1:Llama" in the code, counts too.
    `evidence` judges trials and takes little part in them, so of it only trials, their context and stages count.

    Raises:
        ValueError: the module has no file, so that its results could not be told from those of other code.
    """
    packages = {name.split(".")[0] for name in (module, __name__)}
    skipped = __name__.rsplit(".", 1)[0]
    own = {f"{skipped}.{part}" for part in ("trial", "context", "stages")}
    waiting, files = [module, *own], {}
    while waiting:
        name = waiting.pop()
        if name in files or (name not in own and (name == skipped or name.startswith(skipped + "."))):
            continue
        source = _source(name)
        if source is None:
            if name == module:
                raise ValueError(
                    f"the code of {module} is in no file, so a change of it would go unseen: put it in one"
                )
            continue
        files[name] = source.read_bytes()
        # Importing a module runs the packages around it.
        waiting += [name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)]
        is_package = source.name == "__init__.py"
        for node in ast.walk(ast.parse(files[name])):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.split(".")[0] in packages]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parts = name.split(".")
                    parts = parts[: len(parts) - node.level + is_package]
                    base = ".".join([*parts, *([node.module] if node.module else [])])
                if base.split(".")[0] in packages:
                    waiting += [base, *(f"{base}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = _NAMED.fullmatch(node.value)
                if found is not None and found[1].split(".")[0] in packages:
                    waiting.append(found[1])
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    return whole.hexdigest()


def _source(module: str) -> Path | None:
    """Find a module's file without running it; None for what is not a module (a class imported by name)."""
    loaded = sys.modules.get(module)
    if loaded is not None and getattr(loaded, "__file__", None):
        return Path(str(loaded.__file__))
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None
    return Path(found.origin) if found is not None and found.origin else None
