"""Where a store is being labelled: the page that serves it leaves its address beside it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from burnish.checkpoints import atomic_write
from burnish.data.store import Place, beside

TIMEOUT = 0.5  # seconds to find out whether a page still answers


def _note(place: Place) -> Path:
    return beside(place, ".page.json")


@contextmanager
def announced(places: Sequence[Place], url: str) -> Iterator[None]:
    """Leave a page's address beside its stores for as long as it is served."""
    for place in places:
        atomic_write(_note(place), json.dumps({"url": url}))
    try:
        yield
    finally:
        for place in places:
            _note(place).unlink(missing_ok=True)


def page_of(place: Place) -> str | None:
    """The address of the page on which a store is labelled now; None where there is none, or it no longer answers."""
    try:
        url = str(json.loads(_note(place).read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError):  # nobody serves it, or somebody is about to
        return None
    at = urlsplit(url)
    try:
        port = at.port or (443 if at.scheme == "https" else 80)
        socket.create_connection((at.hostname or "", port), timeout=TIMEOUT).close()
    except OSError:
        return None
    return url
