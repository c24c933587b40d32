"""Address of a labelling page, in a file beside the store that it serves."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from urllib.parse import quote, urlsplit

from burnish.data.store import Place, beside
from burnish.runs.files import atomic_write

TIMEOUT = 0.5  # seconds to find out whether a page still answers
EXAMINATION = "examination.sqlite"
"""Store, in a run, of the comparisons that people examine; its answers are never deleted."""
ASKED = "examination_asked.json"
"""List, in a run, of those comparisons that are asked now."""


def _note(place: Place) -> Path:
    return beside(place, ".page.json")


def leave_note(place: Place, url: str, project: str) -> None:
    """Write the address of a project's page to a file beside its store."""
    atomic_write(_note(place), json.dumps({"url": _address(url, project)}))


def take_note_back(place: Place, url: str, project: str) -> None:
    """Remove the address, unless another server has left its own since."""
    try:
        left = json.loads(_note(place).read_text(encoding="utf-8"))["url"]
    except (OSError, ValueError, KeyError):  # missing or incomplete
        return
    if left == _address(url, project):
        _note(place).unlink(missing_ok=True)


def _address(url: str, project: str) -> str:
    return f"{url}/label/{quote(project)}"


def page_of(place: Place) -> str | None:
    """Return the address of the page that labels a store now; None if it does not answer."""
    try:
        url = str(json.loads(_note(place).read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError):  # not served, or still starting
        return None
    at = urlsplit(url)
    try:
        port = at.port or (443 if at.scheme == "https" else 80)
        socket.create_connection((at.hostname or "", port), timeout=TIMEOUT).close()
    except OSError:
        return None
    return url
