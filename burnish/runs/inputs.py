"""Inputs of a stage (configuration keys, files, code), and changes to them."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from burnish.config import RunConfig
from burnish.config.loading import constants, current_keys, flat
from burnish.config.ppo import FunctionReward

MAPPING = "data.columns"
"""A key whose value is a mapping with names of the user's own: one that is gone is a change."""
TERM = FunctionReward(function="m:f").model_dump(mode="json")
RENAMED_FILES = {"guard sets": "regression sets"}
"""Names of files in manifests of version 0.1.0, and their names now."""


@dataclass(frozen=True)
class Inputs:
    """Configuration by dotted key, content hashes of files by purpose, and a hash of the code.

    Earlier stages are inputs too, but are not recorded here.
    """

    config: Mapping[str, Any]
    files: Mapping[str, str]
    code: str

    def as_json(self) -> dict[str, Any]:
        """Return the inputs as a dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Inputs:
        """Return the inputs that `as_json` wrote."""
        files = {RENAMED_FILES.get(name, name): value for name, value in row["files"].items()}
        return cls(current_keys(row["config"]), files, row["code"])

    def changes_since(self, old: Inputs) -> list[str]:
        """Return the changed keys as `key old -> new`, and the changed files.

        A key that only one version of Burnish knows is no change if removed, or if new with its default. A key
        that became a constant is a change if it had another value.
        """
        defaults = flat(RunConfig().model_dump(mode="json"))
        lines = [
            f"{key} {before} -> {value}"
            for key, value in self.config.items()
            if (before := with_new_keys(old.config.get(key, defaults.get(key)))) != with_new_keys(value)
        ]
        lines += [
            f"{key} {value} -> null"
            for key, value in old.config.items()
            if key.startswith(f"{MAPPING}.") and key not in self.config
        ]
        lines += [
            f"{key} {old.config[key]} -> {value}"
            for key, value in constants().items()
            if key in old.config and old.config[key] != value
        ]
        return lines + [
            f"the content of {name}"
            for name in dict.fromkeys([*self.files, *old.files])
            if self.files.get(name) != old.files.get(name)
        ]


def with_new_keys(before: Any) -> Any:
    """Return recorded terms of ppo.rewards with the keys of later versions at their defaults."""
    if not (isinstance(before, list) and all(isinstance(row, dict) and "function" in row for row in before)):
        return before
    return [{**TERM, **row} for row in before]


def config_inputs(config: RunConfig, uses: Sequence[str], without: Sequence[str] = ()) -> dict[str, Any]:
    """Return the configuration keys in `uses` (or in its sections), except those in `without`."""

    def named(key: str, names: Sequence[str]) -> bool:
        return any(key == name or key.startswith(f"{name}.") for name in names)

    keys = flat(config.model_dump(mode="json"))
    return {k: v for k, v in keys.items() if named(k, uses) and not named(k, without)}


def code_version(modules: Sequence[str]) -> str:
    """Return a hash of the source of the named modules, with all modules of a package."""
    digest = hashlib.sha256()
    for name in sorted(modules):
        spec = find_spec(name)
        assert spec is not None, name
        assert spec.origin is not None, name
        origin = Path(spec.origin)
        files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
        for file in files:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:24]


ROOT = Path(__file__).parents[1]
NOT_HASHED = (
    "burnish.config",
    "burnish.errors",
    "burnish.runs",
    "burnish.monitor.live",
    "burnish.monitor.trackers",
)
"""Modules that do not affect results. Configuration values are inputs themselves."""


def imported_modules(module: str) -> set[str]:
    """Return `module` and the project's modules that it imports, directly or through others.

    Imports inside functions count. Modules of `NOT_HASHED` are left out.
    """
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found and not any(name == n or name.startswith(f"{n}.") for n in NOT_HASHED):
            found.add(name)
            waiting += _imports(name)
    return found


@cache
def _imports(module: str) -> frozenset[str]:
    """Return the project's modules that a module imports directly."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(_source(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "burnish":
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {n for n in inner if _source(n).exists()} or {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "burnish"}
    return frozenset(found - {"burnish"})


def _source(module: str) -> Path:
    """Return the file of a project module, or a path that does not exist if there is no such module."""
    path = ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def content_hash(path: Path, exclude: Sequence[str] = ()) -> str:
    """Return a hash of a file's content, or of the names and contents of a folder's files.

    Names that match `exclude` are skipped. A folder without files gives an empty string.
    """
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()[:24]
    digest = hashlib.sha256()
    files = list(_files(path, exclude))
    for file in files:
        digest.update(str(file.relative_to(path)).encode() + file.read_bytes())
    return digest.hexdigest()[:24] if files else ""


def _files(folder: Path, exclude: Sequence[str]) -> Iterator[Path]:
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        if not any(fnmatch(part, name) for part in file.relative_to(folder).parts for name in exclude):
            yield file
