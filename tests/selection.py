"""A pytest plugin: which worker runs a test, which slow tests are due, and what was left out.

Slow tests belong to groups, `@pytest.mark.slow("group")`. tests/slow_groups.toml says what a group guards, and
tests/slow_passed.json the content of that (and of the group's tests) at which all of them last passed."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections import Counter
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from burnish.records import content_id
from burnish.runs.files import write_json
from burnish.runs.inputs import content_hash

ROOT = Path(__file__).parents[1]
PASSED = ROOT / "tests" / "slow_passed.json"
MARKERS = ("slow", "browser", "e2e", "realdata", "gpu")
"""A test that has several is counted under the first."""
RUN_ALL = {"gpu": "make test-gpu"}
NOT_CODE = ("__pycache__", "*.pyc")
FIRST = ("processes", "short_run")
"""Groups of tests that are long together: a worker must not begin them last."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("burnish")
    group.addoption(
        "--slow-groups",
        choices=("all", "due"),
        default="all",
        help="due: of the slow tests only groups whose content is not that at which they last passed",
    )
    group.addoption(
        "--record-slow", action="store_true", help=f"write to {PASSED.name} which slow groups have passed"
    )


# Slow groups


def slow_groups() -> dict[str, list[str]]:
    """What each group guards: paths from the project's root."""
    table = tomllib.loads((ROOT / "tests" / "slow_groups.toml").read_text(encoding="utf-8"))
    return {name: entry["guards"] for name, entry in table.items()}


def tests_of(group: str) -> list[Path]:
    """The files with tests of this group."""
    name = re.compile(rf"""mark\.slow\(["']{re.escape(group)}["']\)""")
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [file for file in files if name.search(file.read_text(encoding="utf-8"))]


def content_of(group: str) -> str:
    """A hash of what the group guards and of its tests. Raises FileNotFoundError where the table names what is not
    there."""
    parts = []
    for path in [*(ROOT / name for name in slow_groups()[group]), *tests_of(group)]:
        if not path.exists():
            raise FileNotFoundError(f"tests/slow_groups.toml: {group} guards {path}, which does not exist")
        parts += [str(path.relative_to(ROOT)), content_hash(path, exclude=NOT_CODE)]
    return content_id(*parts)


def due_groups() -> set[str]:
    """The groups that have not passed at their present content."""
    passed = json.loads(PASSED.read_text(encoding="utf-8")) if PASSED.exists() else {}
    return {group for group in slow_groups() if passed.get(group) != content_of(group)}


def group_of(item: pytest.Item) -> str | None:
    """The slow group of a test. Raises UsageError for one that the table does not know."""
    mark = item.get_closest_marker("slow")
    if mark is None:
        return None
    known = slow_groups()
    if len(mark.args) != 1 or mark.args[0] not in known:
        raise pytest.UsageError(
            f"{item.nodeid}: slow{mark.args} names no group of tests/slow_groups.toml; it has {', '.join(known)}"
        )
    return str(mark.args[0])


# Which tests, and where


@pytest.hookimpl(wrapper=True)  # before xdist reads the groups
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None, None, None]:
    due = due_groups() if config.option.slow_groups == "due" else set(slow_groups())
    kept, not_due = [], []
    for item in items:
        group = group_of(item)
        if group is not None:
            item.user_properties.append(("slow", group))
        (kept if group is None or group in due else not_due).append(item)
        if config.pluginmanager.hasplugin("xdist"):
            item.add_marker(pytest.mark.xdist_group(worker_group(item)))
    items[:] = sorted(kept, key=_place)
    if not_due:
        config.hook.pytest_deselected(items=not_due)
    yield
    if getattr(config.option, "loadgroup", False) and any("@" not in item.nodeid for item in items):
        raise pytest.UsageError(
            "this pytest-xdist does not see the groups of this pytest: no test has its worker"
        )


STARTERS = {"tests.command": "begun", "tests.killing": "killed", "tests.processes": "shared"}


def called_in(node: ast.AST) -> set[str]:
    """Functions that are called by their names, and arguments: a fixture is asked for by one."""
    calls = {n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    return calls | {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}


@cache
def starting(file: Path) -> frozenset[str]:
    """The functions of a module that start a process, themselves or through others of the module."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = {
        STARTERS[node.module]
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module in STARTERS
        if STARTERS[node.module] in {alias.name for alias in node.names}
    }
    known = {n.name: called_in(n) for n in tree.body if isinstance(n, ast.FunctionDef)} if found else {}
    while more := {name for name, called in known.items() if called & found} - found:
        found |= more
    return frozenset(found & known.keys())


def worker_group(item: pytest.Item) -> str:
    """Tests with the same word run one after another on one worker: those of a file, which share trained fixtures;
    those that start processes, which would make each other slow; those of the short run, which one worker makes."""
    fixtures = set(getattr(item, "fixturenames", ()))
    if "browser" in fixtures or getattr(item, "originalname", None) in starting(item.path):
        return "processes"
    return "short_run" if "short_run" in fixtures else item.path.stem.removeprefix("test_")


def _place(item: pytest.Item) -> int:
    """Long groups first; the sort keeps the order of the rest."""
    group = worker_group(item)
    return FIRST.index(group) if group in FIRST else len(FIRST)


# What was left out


class LeftOut:
    """Counts, over all workers, tests that a marker or a slow group kept from running; groups that passed."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.by_marker: Counter[str] = Counter()
        self.groups: Counter[str] = Counter()  # slow tests that are to run
        self.passed: Counter[str] = Counter()
        self.not_due: set[str] = set()  # groups of which a test at least does not run
        self.content = {group: content_of(group) for group in slow_groups()} if _records(config) else {}

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        for item in items:
            marker = next((name for name in MARKERS if item.get_closest_marker(name)), None)
            if marker is not None:
                self.by_marker[marker] += 1
            group = dict(item.user_properties).get("slow")
            if group is not None:
                self.not_due.add(group)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.groups = Counter(
            dict(item.user_properties)["slow"] for item in session.items if item.get_closest_marker("slow")
        )
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["left_out"] = [
                dict(self.by_marker),
                dict(self.groups),
                sorted(self.not_due),
            ]

    @pytest.hookimpl(optionalhook=True)  # of xdist
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        by_marker, groups, not_due = getattr(node, "workeroutput", {}).get("left_out", ({}, {}, []))
        self.by_marker, self.groups, self.not_due = Counter(by_marker), Counter(groups), set(not_due)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        group = dict(report.user_properties).get("slow")
        if report.when == "call" and report.passed and group is not None:
            self.passed[str(group)] += 1

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self.config.option.slow_groups == "due":
            session.exitstatus = pytest.ExitCode.OK  # no group was due
        whole = {g for g, n in self.groups.items() if self.passed[g] == n} - self.not_due
        if _records(self.config):
            record({group: self.content[group] for group in whole})

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        say = terminalreporter.write_line
        if self.groups or self.not_due:
            terminalreporter.section("slow groups")
            say(f"ran: {', '.join(sorted(self.groups)) or 'none'}")
            say(f"not run: {', '.join(sorted(self.not_due - self.groups.keys())) or 'none'}")
        if self.by_marker:
            terminalreporter.section("left out")
            for name in MARKERS:
                if self.by_marker[name]:
                    say(
                        f"{self.by_marker[name]} marked {name}: `{RUN_ALL.get(name, 'make test-all')}` runs them"
                    )


def _records(config: pytest.Config) -> bool:
    """Whether this process is to record which groups pass: not a worker."""
    return bool(config.option.record_slow) and not hasattr(config, "workerinput")


def record(passed: dict[str, str]) -> None:
    """Keep the content at which these groups passed, as it was when the tests began."""
    known = json.loads(PASSED.read_text(encoding="utf-8")) if PASSED.exists() else {}
    known |= passed
    write_json(PASSED, {group: known[group] for group in sorted(known.keys() & slow_groups().keys())})


def pytest_configure(config: pytest.Config) -> None:
    part = config.option.keyword or config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    if _records(config) and part:
        raise pytest.UsageError(
            "--record-slow records groups that ran whole; give no files and no -k with it"
        )
    config.pluginmanager.register(LeftOut(config), "left-out")
