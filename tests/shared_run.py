"""One short run for a version of the code, made once and looked at by many tests. `python -m tests.shared_run` prints
its folder."""

from __future__ import annotations

import json
import os
import platform
import shutil
from pathlib import Path

from filelock import FileLock

from burnish.pipeline.run import fingerprint, versions
from burnish.records import content_id
from burnish.runs.files import write_json
from burnish.runs.inputs import code_version, content_hash
from tests.command import ROOT, begun

ARGUMENTS = ("run", "examples/short.yaml", "--set", "threads=1")
KEPT = ROOT / ".pytest_cache" / "short-run"
PLACE = "BURNISH_SHORT_RUN"
"""Names a short run that is used whatever processor settings the tests have."""
SETTINGS = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
VERSIONS_KEPT = 3


def shared_run() -> Path:
    """The folder of the run, which is made where this version of the code has none. Tests must not write to it:
    AssertionError where one has."""
    if PLACE in os.environ:
        return Path(os.environ[PLACE])
    KEPT.mkdir(parents=True, exist_ok=True)
    home = KEPT / _key()
    with FileLock(KEPT / "lock"):
        if not home.exists():
            _make(home)
    run = home / "short"
    made = json.loads((home / "fingerprint.json").read_text())
    now = fingerprint(run)
    changed = sorted(name for name in made.keys() | now.keys() if made.get(name) != now.get(name))
    assert not changed, f"a test has changed {changed} of {run}; give it a copy, and remove {home}"
    return run


def _make(home: Path) -> None:
    unfinished = home.with_name(home.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with begun(*ARGUMENTS, "--dir", str(unfinished / "short")) as process:
        _, told = process.communicate()
    assert process.returncode in (0, 10), told
    write_json(unfinished / "fingerprint.json", fingerprint(unfinished / "short"))
    unfinished.rename(home)
    versions_kept = sorted((p for p in KEPT.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
    for old in versions_kept[:-VERSIONS_KEPT]:
        shutil.rmtree(old)


def _key() -> str:
    """What the numbers of a run depend on: code, configuration, model, libraries, processor."""
    parts = {
        "code": code_version(["burnish"]),
        "configuration": content_hash(ROOT / "examples" / "short.yaml"),
        "model": content_hash(ROOT / "burnish" / "rehearse" / "model"),
        "libraries": versions(),
        "processor": _processor(),
        "settings": {name: os.environ.get(name) for name in SETTINGS},
    }
    return content_id(json.dumps(parts, sort_keys=True))


def _processor() -> str:
    """The model and the instruction sets, where the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))


if __name__ == "__main__":
    print(shared_run())
