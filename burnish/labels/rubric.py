"""Rubric of a judge: a template with guidelines, prompt and both answers."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from burnish.data.guidelines import Guidelines
from burnish.data.lines import read_text
from burnish.errors import ConfigError
from burnish.records import content_id

FIELDS = ("{guidelines}", "{prompt}", "{first}", "{second}")


@dataclass(frozen=True)
class Rubric:
    """Template of a judge's question, and the guidelines in it."""

    template: str
    guidelines: Guidelines

    @property
    def id(self) -> str:
        """Identifier that changes with the template and with the guidelines."""
        return content_id("rubric", self.template, self.guidelines.text)

    def question(self, prompt: str, first: str, second: str) -> str:
        """Return the text sent to a judge; fields inside an answer are left as they are."""
        parts = {
            "{guidelines}": self.guidelines.text.strip(),
            "{prompt}": prompt.strip(),
            "{first}": first.strip(),
            "{second}": second.strip(),
        }
        text, rest = "", self.template
        while True:
            places = [(rest.index(field), field) for field in FIELDS if field in rest]
            if not places:
                return text + rest
            at, field = min(places)
            text, rest = text + rest[:at] + parts[field], rest[at + len(field) :]


def load_rubric(path: str | None, guidelines: Guidelines) -> Rubric:
    """Load a template, or the package's own if None; raise ConfigError if a field is missing."""
    if path is None:
        return Rubric((files("burnish.labels") / "rubric.md").read_text(encoding="utf-8"), guidelines)
    template = read_text(Path(path))
    missing = [field for field in FIELDS if field not in template]
    if missing:
        raise ConfigError(f"{path} has no {', '.join(missing)}; a rubric needs {', '.join(FIELDS)}")
    return Rubric(template, guidelines)
