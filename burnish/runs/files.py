"""Atomic writes: files are written under another name, flushed, then renamed."""

from __future__ import annotations

import errno
import gzip
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from burnish.distributed import collectives
from burnish.errors import RunError

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk into one clear RunError; files written before are kept."""
    try:
        yield
    except Exception as error:
        # The library that writes weights raises its own error, which contains the system's message.
        words = (os.strerror(code) for code in FULL)
        if getattr(error, "errno", None) not in FULL and not any(w in str(error) for w in words):
            raise
        free = shutil.disk_usage(path if path.exists() else path.parent).free >> 20
        raise RunError(
            f"the disk is full ({free} MiB free) while writing {path}; what the run had saved is kept: free "
            "some space and start the same command again"
        ) from error


@contextmanager
def _aside(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with disk_errors(path.parent):
        try:
            with aside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace a file in one step; only the leading process writes, and the others do not wait."""
    if not collectives.leads():
        return
    with _aside(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def atomic_lines(path: Path, lines: Iterable[str]) -> int:
    """Replace a file (gzipped if .gz) by streamed lines in one step; return how many."""
    count = 0
    with _aside(path) as file:
        packed = (
            gzip.GzipFile(fileobj=file, mode="wb", mtime=0) if path.suffix == ".gz" else nullcontext(file)
        )
        with packed as sink:
            for line in lines:
                sink.write(f"{line}\n".encode())
                count += 1
    return count


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step; all processes wait until it is written.

    Raises ValueError naming a figure that is not finite, so that a failure never becomes a number.
    """
    for name, odd in _not_finite(value, ""):
        raise ValueError(
            f"{name}={odd} of {path.name} is not finite; the code that computed it must leave it out and report that"
        )
    collectives.by_lead(atomic_write)(path, json.dumps(value, indent=1, allow_nan=False))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def _not_finite(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _not_finite(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _not_finite(inner, f"{name}[{number}]")


@collectives.by_lead
def link_folder(source: Path, path: Path) -> None:
    """Create a folder with hard links to another folder's files, or copies where links fail."""

    def put(file: str, to: str) -> str:
        try:
            os.link(file, to)
        except OSError:  # another disk, or a file system without links
            shutil.copy2(file, to)
        return to

    with atomic_folder(path) as aside:
        shutil.copytree(source, aside, copy_function=put, dirs_exist_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that replaces `path` if the block ends without an error.

    Its files get the folder's permissions, because the library that writes weights makes them private.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    with disk_errors(path.parent):
        try:
            yield aside
            readable = aside.stat().st_mode & 0o666
            for file in aside.rglob("*"):
                if file.is_file():
                    file.chmod(readable)
                    with file.open("rb") as handle:
                        os.fsync(handle.fileno())
            if path.exists():
                shutil.rmtree(path)
            aside.replace(path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files and folders of a killed process."""
    for left in folder.rglob("*.tmp-*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
