"""A pytest plugin: every process that a test has started ends with the test, also when the test fails or times out."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ADOPT = 36
"""PR_SET_CHILD_SUBREAPER of Linux's prctl: a process whose parent is gone becomes a child of this one."""
KEPT: set[int] = set()
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


def children() -> set[int]:
    """The ids of the processes that this one has started or adopted."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    if not listed.exists():  # no Linux, or one that is built without these lists
        return {child.pid for child in psutil.Process().children()}
    found: set[int] = set()
    for thread in Path("/proc/self/task").iterdir():
        try:
            found.update(map(int, (thread / "children").read_text().split()))
        except FileNotFoundError:  # the thread has ended meanwhile
            continue
    return found


def _is_resource_tracker(process: psutil.Process) -> bool:
    """Whether it is the one process in which Python keeps account of shared memory until the interpreter ends."""
    return any("resource_tracker" in word for word in process.cmdline())


def keep_children() -> None:
    """Let all children that there are now outlive the test in which a wider fixture has started them."""
    KEPT.update(children())


def end_processes(children: set[int]) -> None:
    """Kill these children and theirs, and wait for them; close what `subprocess` holds of them, so that no later test
    is blamed for it."""
    gone: set[psutil.Process] = set()
    for number in children:
        try:
            root = psutil.Process(number)
            if not _is_resource_tracker(root):
                gone.update([root, *root.children(recursive=True)])
        except psutil.NoSuchProcess:
            continue
    if not gone:
        return
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
