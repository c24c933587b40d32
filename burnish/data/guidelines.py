"""Guidelines for annotators and AI judges, whose id is stored with every label."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from burnish.data.lines import read_text
from burnish.errors import DataError
from burnish.records import content_id


@dataclass(frozen=True)
class Guidelines:
    """A text of guidelines whose `id` changes with every letter of it."""

    text: str

    @property
    def id(self) -> str:
        """Content id of the text."""
        return content_id("guidelines", self.text)


def load_guidelines(path: str | None = None) -> Guidelines:
    """Return a file's guidelines, or the package's own; raise DataError if it is missing or empty."""
    if path is None:
        return Guidelines((files("burnish.data") / "guidelines.md").read_text(encoding="utf-8"))
    text = read_text(Path(path))
    if not text.strip():
        raise DataError(f"{path} is empty; write instructions for the annotators, or remove label.guidelines")
    return Guidelines(text)
