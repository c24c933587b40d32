"""A pytest plugin: every process that a test has started ends with the test, also when the test fails or times out."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

ADOPT = 36
"""PR_SET_CHILD_SUBREAPER of Linux's prctl: a process whose parent is gone becomes a child of this one."""
KEPT: set[psutil.Process] = set()
"""Children that outlive a test: those of fixtures that are made in the middle of one."""


def pytest_configure(config: pytest.Config) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(ADOPT, 1, 0, 0, 0)


@pytest.fixture(autouse=True)
def _no_process_outlives_its_test() -> Iterator[None]:
    """Kill the children that the test has started, with their own; those of wider fixtures are older and stay."""
    before = children()
    yield
    started = children() - before - KEPT
    if started:
        end_processes(started)


def children() -> set[psutil.Process]:
    """The processes that this one has started or adopted. Python's resource tracker serves all tests until the
    interpreter ends."""
    return {child for child in psutil.Process().children() if not _is_resource_tracker(child)}


def _is_resource_tracker(process: psutil.Process) -> bool:
    try:
        return any("resource_tracker" in word for word in process.cmdline())
    except psutil.Error:  # it has ended meanwhile
        return False


def keep_children() -> None:
    """Let all children that there are now outlive the test in which a wider fixture has started them."""
    KEPT.update(children())


def end_processes(roots: set[psutil.Process]) -> None:
    """Kill these children and theirs, and wait for them; close what `subprocess` holds of them, so that no later test
    is blamed for it."""
    gone = set(roots)
    for root in roots:
        try:
            gone.update(root.children(recursive=True))
        except psutil.NoSuchProcess:
            continue
    for process in gone:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    numbers = {process.pid for process in gone}
    for held in gc.get_objects():
        if issubclass(type(held), subprocess.Popen) and held.pid in numbers and held.returncode is None:
            held.wait()
            for stream in (held.stdin, held.stdout, held.stderr):
                if stream is not None:
                    stream.close()
    psutil.wait_procs(gone, timeout=30)
