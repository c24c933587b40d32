"""Text of models and people as HTML in which nothing runs and nothing loads: Markdown without links and images."""

from __future__ import annotations

from functools import cache

from markdown_it import MarkdownIt
from markupsafe import Markup, escape

LONGEST = 30_000  # letters that are read as Markdown; what is longer is shown as it is


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False, "breaks": True})
    kinds = ["link", "image", "autolink", "html_inline", "html_block", "reference", "entity"]
    return parser.enable("table").disable(kinds)


def rendered(text: str) -> Markup:
    """A text as HTML. Links, images and HTML stand there as they were written."""
    if len(text) > LONGEST:
        return Markup("<pre>") + escape(text) + Markup("</pre>")
    return Markup(_parser().render(text))
