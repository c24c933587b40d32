"""Rendering of pages with figures: templates, the figures' script, and Plotly inside the page."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from burnish.report.charts import Figure

Chart = tuple[str, str, Figure]
"""Title, note, figure."""


class Charts:
    """Collection of a page's figures, which one script draws."""

    def __init__(self, prefix: str = "chart") -> None:
        self.figures: dict[str, Any] = {}
        self.prefix = prefix

    def add(self, title: str, note: str, figure: Figure) -> dict[str, Any]:
        """Add a figure and return its id, title and note for the template."""
        key = f"{self.prefix}-{len(self.figures)}"
        self.figures[key] = figure
        return {"id": key, "title": title, "note": note}

    def many(self, charts: list[Chart]) -> list[dict[str, Any]]:
        """Add several figures and return their entries."""
        return [self.add(*chart) for chart in charts]

    def as_script(self) -> Markup:
        """Return the data of all figures as JSON for a script element."""
        return Markup(in_script(self.figures))


def in_script(value: Any) -> str:
    """Return JSON without `<`, which could end a script element or open a comment in it."""
    return json.dumps(value).replace("<", "\\u003c")


def render(template: str, charts: Charts | None = None, **values: Any) -> str:
    """Render a template of the package; with `charts`, include Plotly and the figures' data."""
    environment = Environment(
        loader=PackageLoader("burnish.report"), autoescape=select_autoescape(default=True), trim_blocks=True
    )
    drawn = {} if charts is None else {"figures": charts.as_script(), "plotly": _plotly()}
    return environment.get_template(template).render(**drawn, **values)


def _plotly() -> Markup:
    source = (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return Markup(source.replace("</script", "<\\/script"))
