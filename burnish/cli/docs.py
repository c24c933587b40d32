"""Generator of the reference pages: `python -m burnish.cli.docs [--check] FOLDER`.

It writes the command line, the configuration and the exit codes from the code.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.main import get_command

from burnish.cli.main import app
from burnish.config.loading import RENAMED
from burnish.config.run import RunConfig
from burnish.errors import EXIT_CODES

NOTE = "This page is generated from the code by `make docs`."
NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", types.NoneType: "null"}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def pages() -> dict[str, str]:
    """Return the generated pages by file name."""
    return {"cli.md": cli_page(), "configuration.md": configuration_page(), "exit_codes.md": exit_page()}


def cli_page() -> str:
    """Return the page of the command line: every command with its help."""
    root = get_command(app)
    parts = ["# The command line", "", NOTE, ""]
    for title, command in commands(root, "burnish"):
        inner = command.context_class(command, info_name=title)
        inner.terminal_width = inner.max_content_width = 100
        parts += [f"## `{title}`", "", "```text", command.get_help(inner).strip(), "```", ""]
    return "\n".join(parts)


def commands(command: Any, title: str) -> Iterator[tuple[str, Any]]:
    """Yield a command with its title, then its subcommands."""
    yield title, command
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from commands(inner, f"{title} {name}")


def exit_page() -> str:
    """Return the page of the exit codes."""
    rows = [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    return "\n".join(["# Exit codes", "", NOTE, "", "| Code | Meaning |", "|---|---|", *rows, ""])


def configuration_page() -> str:
    """Return the page of the configuration: every key with its type, default, range and meaning."""
    parts = [
        "# Configuration",
        "",
        NOTE,
        "",
        "A configuration is a YAML file with sections. `burnish init` writes one, and",
        "`burnish run FILE --set ppo.updates=20` overrides a key. Unknown keys are errors. The meaning of `null`",
        "is given with each key.",
        "",
        *_section(RunConfig, "", 1),
        "## Renamed keys",
        "",
        "The old names are read with a warning in this version only.",
        "",
        "| Old | New |",
        "|---|---|",
        *(f"| `{old}` | `{old.rpartition('.')[0]}.{new}` |" for old, new in RENAMED.items()),
        "",
    ]
    return "\n".join(parts)


def _section(model: type[BaseModel], prefix: str, level: int) -> list[str]:
    """Return the heading, the table of keys and the inner sections of a section."""
    lines: list[str] = []
    rows: list[str] = []
    inner: list[tuple[type[BaseModel], str]] = []
    for name, field in model.model_fields.items():
        section = _inner(field.annotation)
        if section is not None:
            inner.append((section, f"{prefix}{name}{'' if section is field.annotation else '[]'}"))
            if section is field.annotation:
                continue
        cells = (_type(field.annotation), _default(field), _range(field), field.description or "")
        rows.append(f"| `{name}` | " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if prefix:
        lines += [f"{'#' * level} `{prefix.rstrip('.')}`", "", (model.__doc__ or "").split("\n\n")[0], ""]
    if rows:
        lines += ["| Key | Type | Default | Range | Meaning |", "|---|---|---|---|---|", *rows, ""]
    for section, name in inner:
        lines += _section(section, f"{name}.", min(level + 1, 4))
    return lines


def _inner(annotation: Any) -> type[BaseModel] | None:
    """Return the section that an annotation is or has elements of, or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [section for arg in get_args(annotation) if (section := _inner(arg)) is not None]
    return found[0] if found else None


def _type(annotation: Any) -> str:
    if annotation in NAMES:
        return NAMES[annotation]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0])
    if origin is Literal:
        return ", ".join(f"`{_scalar(value)}`" for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(arg) for arg in args))
    if origin is tuple:
        return "list of keys below" if _inner(args[0]) else f"list of {_type(args[0])}"
    return "text"


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else f"`{_scalar(field.get_default())}`"


def _range(field: FieldInfo) -> str:
    found = [*field.metadata]
    for arg in get_args(field.annotation):
        if get_origin(arg) is Annotated:
            found += [part for meta in get_args(arg)[1:] for part in getattr(meta, "metadata", [meta])]
    bounds = [
        f"{words} {getattr(part, name):g}"
        for part in found
        for name, words in BOUNDS.items()
        if getattr(part, name, None) is not None
    ]
    return ", ".join(dict.fromkeys(bounds))


def _scalar(value: Any) -> str:
    """Return a value as YAML on one line."""
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()


def main() -> None:
    """Write the pages, or with --check compare them and fail if one is stale."""
    check = "--check" in sys.argv
    folder = Path(sys.argv[-1])
    for name, page in pages().items():
        file = folder / name
        if check and file.read_text(encoding="utf-8") != page:
            sys.exit(f"{file} is stale; run `make docs`")
        if not check:
            file.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
