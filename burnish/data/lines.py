"""Readers of text files, plain or gzipped, with errors that name the file, line and byte."""

from __future__ import annotations

import codecs
import difflib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from burnish.errors import DataError

LONGEST_LINE = 64 << 20  # bytes
MARKS = (  # byte order marks; the one of UTF-32 LE begins with that of UTF-16 LE, so it comes first
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def must_exist(path: Path) -> None:
    """Raise DataError, with the nearest names in the folder, unless the file exists."""
    if path.is_file():
        return
    if path.is_dir():
        raise DataError(f"{path} is a folder; give a file")
    folder = path.parent
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, 3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "check the path"
    raise DataError(f"{path} does not exist; {hint}")


def decode(raw: bytes, source: str, *, line_ends: bool = True) -> str:
    """Decode text by its byte order mark, which is removed, or as UTF-8 without one.

    Windows line ends become Unix ones unless `line_ends` is False. Raises DataError with line and byte.
    """
    text = _decode(raw, source)
    return text.replace("\r\n", "\n").replace("\r", "\n") if line_ends else text


def _decode(raw: bytes, source: str) -> str:
    encoding = next((name for mark, name in MARKS if raw.startswith(mark)), "utf-8")
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding not in ("utf-8", "utf-8-sig"):
            raise DataError(
                f"{source} begins as {encoding.upper()} but is not ({error.reason}); save it as UTF-8"
            ) from None
        before = raw[: error.start]
        line, byte = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        raise _not_utf8(source, line, byte) from None


def _not_utf8(source: str, line: int, byte: int) -> DataError:
    return DataError(
        f"{source}, line {line}: byte {byte} is not UTF-8; save the file as UTF-8 (Windows programs often save cp1252; "
        "in a spreadsheet choose 'CSV UTF-8')"
    )


def read_text(path: Path, *, line_ends: bool = True) -> str:
    """Return the content of a text file, gzipped if its name ends in .gz.

    `line_ends` is as in `decode`. Raises DataError if the file is missing or not text.
    """
    must_exist(path)
    with _opened(path) as file:
        return decode(_whole(file, path), str(path), line_ends=line_ends)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines (from 1) of a text file, gzipped if its name ends in .gz.

    Raises DataError if it is missing, empty or not text, or has a line over LONGEST_LINE.
    """
    must_exist(path)
    empty = True
    with _opened(path) as file:
        try:
            start = file.peek(4)[:4]
            if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or start == codecs.BOM_UTF32_BE:
                # These encodings cannot be split by bytes; such files are small exports of spreadsheets.
                for number, line in enumerate(decode(file.read(), str(path)).split("\n"), 1):
                    empty = False
                    yield number, line.rstrip("\r")
                return
            for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), 1):
                empty = False
                if number == 1 and len(raw) > LONGEST_LINE and _begins_array(raw):
                    raw += file.readline()  # a whole array on one line
                elif len(raw) > LONGEST_LINE:
                    raise DataError(
                        f"{path}, line {number} has more than {LONGEST_LINE >> 20} MiB; write one row per line"
                    )
                if number == 1:
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise _not_utf8(str(path), number, error.start + 1) from None
                yield number, line.rstrip("\r\n")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise _no_gzip(path, error) from None
    if empty:
        raise DataError(f"{path} is empty; give one JSON object (or prompt) a line")


def _begins_array(raw: bytes) -> bool:
    return raw.removeprefix(codecs.BOM_UTF8)[:64].lstrip().startswith(b"[")


def _opened(path: Path) -> io.BufferedReader:
    try:
        # GzipFile has the `read` and `peek` of BufferedReader.
        return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]
    except PermissionError:
        raise DataError(f"{path} may not be read by this user; change its permissions") from None


def _whole(file: io.BufferedReader, path: Path) -> bytes:
    try:
        return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _no_gzip(path, error) from None


def _no_gzip(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is not a complete gzip file ({error}); create or download it again")
