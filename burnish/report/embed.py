"""What every page of figures is made of: templates, figures as one script, Plotly inside the page."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from burnish.report.charts import Figure

Chart = tuple[str, str, Figure]
"""Title, what it tells, figure."""


class Charts:
    """Numbers the page's figures and keeps their data for the one script that draws them."""

    def __init__(self, prefix: str = "chart") -> None:
        self.figures: dict[str, Any] = {}
        self.prefix = prefix

    def add(self, title: str, note: str, figure: Figure) -> dict[str, Any]:
        key = f"{self.prefix}-{len(self.figures)}"
        self.figures[key] = figure
        return {"id": key, "title": title, "note": note}

    def many(self, charts: list[Chart]) -> list[dict[str, Any]]:
        return [self.add(*chart) for chart in charts]

    def as_script(self) -> Markup:
        return Markup(in_script(self.figures))


def in_script(value: Any) -> str:
    """JSON that may stand inside a script element. A `<` could end the element, or begin a comment that swallows its
    end."""
    return json.dumps(value).replace("<", "\\u003c")


def render(template: str, charts: Charts | None = None, **values: Any) -> str:
    """A page from a template of the package; with charts, Plotly and their data go into it."""
    environment = Environment(
        loader=PackageLoader("burnish.report"), autoescape=select_autoescape(default=True), trim_blocks=True
    )
    drawn = {} if charts is None else {"figures": charts.as_script(), "plotly": _plotly()}
    return environment.get_template(template).render(**drawn, **values)


def _plotly() -> Markup:
    source = (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return Markup(source.replace("</script", "<\\/script"))
