"""Pages with figures: local copies of Plotly and the drawing script, and their security policy."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response

from burnish.report.embed import Charts
from burnish.web.accounts import Account
from burnish.web.app_state import page
from burnish.web.request_limits import POLICY

router = APIRouter()
STYLED = POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
"""Plotly needs inline styles; scripts still come only from this site."""
KEPT = {"cache-control": "public, max-age=86400"}


@router.get("/plotly.js")
def plotly() -> Response:
    """Serve Plotly's script from the installed package."""
    found = find_spec("plotly")
    assert found is not None
    assert found.submodule_search_locations
    file = Path(found.submodule_search_locations[0]) / "package_data" / "plotly.min.js"
    return FileResponse(file, media_type="text/javascript", headers=KEPT)


@router.get("/draw.js")
def draw() -> Response:
    """Serve the script that draws figures."""
    import burnish.report

    file = Path(str(burnish.report.__file__)).parent / "templates" / "report.js"
    return FileResponse(file, media_type="text/javascript", headers=KEPT)


def charted(
    request: Request, template: str, account: Account, charts: Charts | None = None, **values: Any
) -> Response:
    """Render a template with figures as a page or a part of one."""
    figures = None if charts is None else charts.as_script()
    response = page(request, template, account, figures=figures, **values)
    response.headers["content-security-policy"] = STYLED
    return response
