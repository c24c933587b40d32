"""The architecture: imports run one way, stages do not import each other, light modules load no torch."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1] / "burnish"
LEVELS = (
    {
        "environment",
        "errors",
        "randomness",
        "records",
        "objectives",
        "detectors",
        "rewards",
        "stats",
        "textstats",
        "config",
        "distributed",
    },
    {"models", "data", "runs"},
    {"labels", "reward", "policy", "monitor", "evaluation", "rehearse", "report"},
    {"pipeline"},
    {"commands", "api"},
    {"web"},
    {"cli", "__main__"},
)
"""A package imports packages of its own level or of a lower one; the third level imports only lower ones."""
LEVEL = {package: level for level, packages in enumerate(LEVELS) for package in packages}
STAGES = LEVELS[2]


def package_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def name_of(file: Path) -> str:
    return ".".join(["burnish", *file.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


MODULES = {name_of(file): file for file in ROOT.rglob("*.py")}


@cache
def imported(module: str) -> frozenset[str]:
    """The modules of the project that a module imports, those inside functions included, those for types alone not."""
    found = set()
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for name in (f"{node.module}.{alias.name}" for alias in node.names):
                found.add(name if name in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return frozenset(found & MODULES.keys() - {module, "burnish"})


def imports() -> list[tuple[str, str, str]]:
    """(module, its package, imported package) for every import between packages."""
    return [
        (module, package_of(module), package_of(name))
        for module in MODULES
        if module != "burnish"
        for name in imported(module)
        if package_of(module) != package_of(name)
    ]


def test_every_package_has_a_level() -> None:
    packages = {
        p.stem for p in ROOT.iterdir() if (p.suffix == ".py" or p.is_dir()) and not p.name.startswith("_")
    }
    assert packages - LEVEL.keys() == set()


def test_imports_run_one_way() -> None:
    wrong = [(module, target) for module, inside, target in imports() if LEVEL[target] > LEVEL[inside]]
    assert wrong == []


def test_stages_do_not_import_each_other() -> None:
    wrong = [(f, b) for f, a, b in imports() if a in STAGES and b in STAGES]
    assert wrong == []


def test_models_data_and_runs_are_apart() -> None:
    """`runs.files` reads and writes files and knows no run, so all may use it."""
    wrong = [
        (module, name)
        for module in MODULES
        for name in imported(module)
        if package_of(module) in LEVELS[1]
        and package_of(name) in LEVELS[1] - {package_of(module)}
        and name != "burnish.runs.files"
    ]
    assert wrong == []


def test_the_report_reads_only_files() -> None:
    reads = {b for _, a, b in imports() if a == "report"}
    assert reads <= {"runs", "records", "stats", "errors", "config", "detectors"}


def test_the_guard_sees_no_model_and_no_monitor() -> None:
    text = (ROOT / "policy" / "guard.py").read_text(encoding="utf-8")
    assert "torch" not in text
    assert "burnish.m" not in text


def folder_of(module: str) -> str:
    return module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Nodes from which a node is reached that reaches them."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        waiting, reached[start] = list(graph[start]), set()
        while waiting:
            node = waiting.pop()
            if node not in reached[start]:
                reached[start].add(node)
                waiting += graph.get(node, ())
    return [sorted([a, *reached[a]]) for a in graph if a in reached[a]]


def test_no_import_cycles_between_modules_or_packages() -> None:
    assert cycles({module: set(imported(module)) for module in MODULES}) == []
    folders: dict[str, set[str]] = {}
    for module in MODULES:
        inside = folder_of(module) if folder_of(module) != "burnish" else module
        for name in imported(module):
            outside = folder_of(name) if folder_of(name) != "burnish" else name
            if (
                outside != inside
                and not outside.startswith(f"{inside}.")
                and not inside.startswith(f"{outside}.")
            ):
                folders.setdefault(inside, set()).add(outside)
    folders.pop("burnish", None)  # its public names come from everywhere
    assert cycles(folders) == []


def test_all_that_a_stage_reaches_by_imports_is_in_its_code() -> None:
    """With the imports as they are found here, apart from `runs.inputs`."""
    from burnish.pipeline.run import STAGES, code_of
    from burnish.runs.inputs import NOT_HASHED

    for stage in STAGES:
        code, waiting, seen = set(code_of(stage)), [f"burnish.pipeline.{stage.name}"], set()
        while waiting:
            name = waiting.pop()
            if name not in seen and not any(name == n or name.startswith(f"{n}.") for n in NOT_HASHED):
                seen.add(name)
                waiting += imported(name)
        assert len(seen) > 20, stage.name
        assert seen - code == set(), stage.name


def test_the_pipeline_is_what_a_run_executes() -> None:
    assert len(list((ROOT / "pipeline").glob("*.py"))) <= 27


LIGHT = [
    "burnish",
    "burnish.cli.main",
    "burnish.config.loading",
    "burnish.runs.directory",
    "burnish.data.store",
    "burnish.data.preferences",
    "burnish.report.page",
    "burnish.report.summary",
    "burnish.rehearse.world",
    "burnish.rehearse.annotators",
    "burnish.policy.guard",
    "burnish.policy.kl_control",
    "burnish.monitor.health",
    "burnish.monitor.logs",
    "burnish.monitor.trackers",
    "burnish.monitor.callback",
    "burnish.commands.replay",
    "burnish.report.why",
    "burnish.monitor.live",
    "burnish.stats",
    "burnish.labels.queue",
    "burnish.web.app",
    "burnish.cli.serve",
    "burnish.rehearse.examples",
]


LOOK = f"""
import contextlib, importlib, io, json, sys
sys.argv[1:] = ["label", "serve", "--help"]
from burnish.cli.main import main
with contextlib.redirect_stdout(io.StringIO()) as shown:
    try:
        main()
    except SystemExit as end:
        code = end.code
of_help = sorted({{"torch", "transformers", "pandas", "scipy"}} & sys.modules.keys())
found = {{"code": code, "help": shown.getvalue(), "of help": of_help}}
for module in {LIGHT!r}:
    importlib.import_module(module)
    found[module] = sorted({{"torch", "transformers"}} & sys.modules.keys())
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, Any]:
    """What a new process has loaded after the page's help, and after each light module in turn. The first module that
    is not light is the first with a library; those after it have it too."""
    done = subprocess.run([sys.executable, "-c", LOOK], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_no_torch(module: str, loaded: dict[str, Any]) -> None:
    assert loaded[module] == []


def test_the_page_helps_and_starts_without_torch(loaded: dict[str, Any]) -> None:
    assert loaded["code"] == 0
    assert "label comparisons in a browser" in loaded["help"].casefold()
    assert loaded["of help"] == []


def test_what_the_page_alone_needs_is_part_of_what_is_needed() -> None:
    makefile = (ROOT.parent / "Makefile").read_text(encoding="utf-8")
    page = makefile.split("PAGE := ")[1].split("\nlabel:")[0].replace("\\\n", " ").split()
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.split("[<>=]", d)[0] for d in project["dependencies"]}
    assert len(page) > 15
    assert set(page) <= needed


def test_every_public_name_can_be_imported() -> None:
    import burnish

    for name in burnish.__all__:
        assert getattr(burnish, name) is not None
