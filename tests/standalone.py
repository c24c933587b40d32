"""Programs that a run writes for people who have no Burnish, called as there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest.mock import patch


@contextmanager
def without_burnish(folder: Path) -> Iterator[None]:
    """A block in which Burnish cannot be imported, and the modules of this folder can."""

    def taken(names: list[str]) -> dict[str, ModuleType]:
        return {name: sys.modules.pop(name) for name in names}

    ours = taken([name for name in sys.modules if name.split(".")[0] == "burnish"])
    sys.modules["burnish"] = None  # type: ignore[assignment]  # what an import then finds missing
    try:
        with patch.object(sys, "path", [str(folder), *sys.path]):
            yield
    finally:
        taken([name for name in (file.stem for file in folder.glob("*.py")) if name in sys.modules])
        sys.modules.update(ours)
