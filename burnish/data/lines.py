"""Lines of text files, plain or gzipped, with errors that name the file, the line and the byte."""

from __future__ import annotations

import difflib
import gzip
from collections.abc import Iterator
from pathlib import Path

from burnish.errors import DataError


def must_exist(path: Path) -> None:
    """Raise DataError, with the nearest names in the folder, unless the file exists."""
    if path.is_file():
        return
    folder = path.parent
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, 3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "check the path"
    raise DataError(f"{path} does not exist; {hint}")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) of a UTF-8 file, gzipped when its name ends in .gz. Raises DataError for a
    missing or empty file and for bytes that are not UTF-8."""
    must_exist(path)
    empty = True
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, raw in enumerate(file, 1):
                empty = False
                try:
                    yield number, raw.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}, line {number}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
                    ) from None
        except (gzip.BadGzipFile, EOFError) as error:
            raise DataError(f"{path} is not a whole gzip file ({error}); make or fetch it again") from None
    if empty:
        raise DataError(f"{path} is empty; give one JSON object (or prompt) a line")
