"""The tests themselves: each process is started by a marked test, slow groups are known, leftovers end."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests import selection
from tests.leftovers import children, end_processes

TESTS = Path(__file__).parent
MARKS = {"e2e", "slow", "gpu"}


def marks_of(node: ast.FunctionDef, tree: ast.Module) -> set[str]:
    """The marks of a test and of its module."""
    module = [
        n.value for n in tree.body if isinstance(n, ast.Assign) and "pytestmark" in ast.unparse(n.targets)
    ]
    return {
        n.attr
        for part in (*node.decorator_list, *module)
        for n in ast.walk(part)
        if isinstance(n, ast.Attribute)
    }


def test_every_test_that_starts_a_process_is_marked() -> None:
    unmarked = []
    for file in sorted(TESTS.rglob("test_*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        for name in selection.starting(file):
            node = functions[name]
            if name.startswith("test_") and not marks_of(node, tree) & MARKS:
                unmarked.append(f"{file.name}::{name}")
    assert unmarked == []


SLEEPER = "import subprocess, sys, time; subprocess.Popen(['sleep', '600']); print('on', flush=True); time.sleep(600)"


def test_what_a_test_has_started_ends_with_all_that_that_has_started() -> None:
    process = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    root = psutil.Process(process.pid)
    (below,) = root.children()
    end_processes({root.pid})
    assert process.returncode == -9
    assert process.stdout.closed
    assert not below.is_running() or below.status() == psutil.STATUS_ZOMBIE


ORPHANED = """
import os, subprocess
child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux alone")
def test_a_process_whose_parent_is_gone_is_a_child_of_the_test() -> None:
    done = subprocess.run([sys.executable, "-c", ORPHANED], stdout=subprocess.PIPE, check=True)
    assert int(done.stdout) in children()


HANGS = """
import subprocess

def test_that_hangs():
    subprocess.Popen(["sleep", "600"]).wait()

def test_after_it():
    assert not subprocess.run(["pgrep", "-P", str(__import__("os").getpid()), "sleep"], capture_output=True).stdout
"""


@pytest.mark.e2e
def test_a_test_that_times_out_is_one_failure_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (tmp_path / "test_inner.py").write_text(HANGS)
    options = ["-q", "-p", "tests.leftovers", "-p", "no:cacheprovider", "-p", "no:schemathesis"]
    options += ["--timeout", "3", "--timeout-method", "signal"]
    command = [sys.executable, "-m", "pytest", *options, "-c", str(tmp_path / "pytest.ini"), str(tmp_path)]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr


def test_a_slow_group_guards_what_is_there_and_has_tests() -> None:
    named = set()
    for file in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.slow":
                named.add(ast.literal_eval(node.args[0]))
    groups = selection.slow_groups()
    assert named == groups.keys()
    for group in groups:
        assert selection.tests_of(group), group
        assert selection.content_of(group)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one slow group that guards one package."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "a.py").write_text("x = 1\n")
    (tmp_path / "tests" / "slow_groups.toml").write_text('[long]\nguards = ["package"]\n')
    (tmp_path / "tests" / "test_a.py").write_text('@pytest.mark.slow("long")\ndef test_a(): ...\n')
    monkeypatch.setattr(selection, "ROOT", tmp_path)
    monkeypatch.setattr(selection, "PASSED", tmp_path / "tests" / "slow_passed.json")
    return tmp_path


def test_a_group_is_due_until_it_passed_and_again_when_code_or_test_has_changed(project: Path) -> None:
    assert selection.due_groups() == {"long"}
    selection.record({"long": selection.content_of("long")})
    assert selection.due_groups() == set()
    for changed in (project / "package" / "a.py", project / "tests" / "test_a.py"):
        before = changed.read_text()
        changed.write_text(before + "# more\n")
        assert selection.due_groups() == {"long"}
        changed.write_text(before)
        assert selection.due_groups() == set()
    (project / "package" / "b.py").write_text("")
    assert selection.due_groups() == {"long"}


def test_what_a_group_no_longer_is_leaves_the_record(project: Path) -> None:
    (project / "tests" / "slow_passed.json").write_text('{"gone": "0", "long": "1"}')
    selection.record({})
    assert json.loads((project / "tests" / "slow_passed.json").read_text()) == {"long": "1"}


def test_a_group_that_guards_what_does_not_exist_is_refused(project: Path) -> None:
    (project / "tests" / "slow_groups.toml").write_text('[long]\nguards = ["nowhere"]\n')
    with pytest.raises(FileNotFoundError, match=r"long guards .*nowhere"):
        selection.due_groups()


@dataclass
class Fake:
    """What the plugin asks of pytest's configuration, of a test and of a report."""

    option: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(record_slow=True, slow_groups="all")
    )
    user_properties: list[tuple[str, str]] = field(default_factory=lambda: [("slow", "long")])
    when: str = "call"
    passed: bool = True

    def get_closest_marker(self, name: str) -> bool:
        return name == "slow"


def recorded(project: Path, *passed: bool, left_out: bool = False) -> bool:
    """Whether the group is recorded when its tests pass or fail like this, and one of them does not run."""
    plugin: Any = selection.LeftOut(Fake())  # type: ignore[arg-type]
    if left_out:
        plugin.pytest_deselected([Fake()])
    session: Any = SimpleNamespace(items=[Fake() for _ in passed])
    plugin.pytest_collection_finish(session)
    for one in passed:
        plugin.pytest_runtest_logreport(Fake(passed=one))
    plugin.pytest_sessionfinish(session, 0)
    return selection.due_groups() == set()


def test_a_group_is_recorded_when_all_of_its_tests_ran_and_passed(project: Path) -> None:
    assert not recorded(project, True, False)
    assert not recorded(project, True, True, left_out=True)
    assert recorded(project, True, True)


def test_a_group_that_changes_while_it_runs_stays_due(project: Path) -> None:
    plugin: Any = selection.LeftOut(Fake())  # type: ignore[arg-type]
    (project / "package" / "a.py").write_text("x = 2\n")
    session: Any = SimpleNamespace(items=[Fake()])
    plugin.pytest_collection_finish(session)
    plugin.pytest_runtest_logreport(Fake())
    plugin.pytest_sessionfinish(session, 0)
    assert selection.due_groups() == {"long"}
