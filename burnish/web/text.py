"""Untrusted text as HTML that runs and loads nothing: Markdown without links and images."""

from __future__ import annotations

from functools import cache

from markdown_it import MarkdownIt
from markupsafe import Markup, escape

LONGEST = 30_000  # characters; longer text is shown as it is, not as Markdown


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "linkify": False, "breaks": True})
    kinds = ["link", "image", "autolink", "html_inline", "html_block", "reference", "entity"]
    return parser.enable("table").disable(kinds)


def rendered(text: str) -> Markup:
    """Render Markdown as HTML; links, images and HTML tags are shown as they were written."""
    if len(text) > LONGEST:
        return Markup("<pre>") + escape(text) + Markup("</pre>")
    return Markup(_parser().render(text))
