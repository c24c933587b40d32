"""report.html (placeholder until the page room is filled)."""

from pathlib import Path


def render_report(run_path: Path) -> Path:
    page = run_path / "report.html"
    page.write_text("<p>report</p>")
    return page
