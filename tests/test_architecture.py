"""The house: imports run one way, stages do not know each other, light things start light."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1] / "burnish"
STAGES = {"labels", "reward", "policy", "monitor", "evaluate", "rehearse", "report"}
FLOOR = {
    "environment",
    "peers",
    "spmd",
    "objectives",
    "stats",
    "textstats",
    "records",
    "config",
    "errors",
    "randomness",
}
MIDDLE = {"models", "data", "runs", "inputs", "checkpoints", "locks", "parallel"}
ABOVE = {
    "cli",
    "launch",
    "plan_cli",
    "watch_cli",
    "web_cli",
    "label_cli",
    "mturk_cli",
    "reward_cli",
    "pipeline",
    "web",
    "docs",
}
LEVEL = {
    **dict.fromkeys(FLOOR, 0),
    **dict.fromkeys(MIDDLE, 1),
    **dict.fromkeys(STAGES, 2),
    "pipeline": 3,
    "web": 3,
}
LEVEL |= {
    "cli": 4,
    "launch": 4,
    "plan_cli": 4,
    "watch_cli": 4,
    "web_cli": 4,
    "label_cli": 4,
    "mturk_cli": 4,
    "reward_cli": 4,
    "docs": 5,
}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports() -> list[tuple[str, str, str]]:
    """(file, importing room, imported room) for every import between rooms, those inside functions included."""
    found = []
    for file in ROOT.rglob("*.py"):
        inside = room(".".join(["burnish", *file.relative_to(ROOT).with_suffix("").parts]))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [
                    f"{node.module}.{a.name}" if node.module == "burnish" else node.module for a in node.names
                ]
            elif isinstance(node, ast.Import):
                names = [a.name for a in node.names]
            for name in names:
                if name.startswith("burnish.") and room(name) != inside:
                    found.append((str(file.relative_to(ROOT)), inside, room(name)))
    return found


def test_every_room_is_on_the_map() -> None:
    rooms = {
        p.stem for p in ROOT.iterdir() if (p.suffix == ".py" or p.is_dir()) and not p.name.startswith("_")
    }
    assert rooms - LEVEL.keys() == set()


def test_imports_run_one_way() -> None:
    allowed = {("models/load.py", "rehearse")}  # where the embedded model lies; a path, no code of the stage
    wrong = [
        (file, target)
        for file, inside, target in imports()
        if inside != "__init__" and LEVEL[target] > LEVEL[inside] and (file, target) not in allowed
    ]
    assert wrong == []


def test_stages_do_not_import_each_other() -> None:
    wrong = [(f, b) for f, a, b in imports() if a in STAGES and b in STAGES]
    assert wrong == []


def test_models_data_and_runs_are_apart() -> None:
    runs = {"runs", "inputs", "locks"}
    wrong = [
        (file, b)
        for file, a, b in imports()
        if (a == "models" and b in {"data", *runs})
        or (a == "data" and b in {"models", *runs})
        or (a in runs and b in {"models", "data"})
    ]
    assert wrong == []


def test_what_the_engine_is_seen_through_is_all_that_others_import_of_it() -> None:
    seen = []
    for file in ROOT.rglob("*.py"):
        if file.parent.name != "engine":
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                    "burnish.models.engine."
                ):
                    seen.append(str(file.relative_to(ROOT)))
    assert seen == []


def test_the_report_reads_only_files() -> None:
    reads = {b for _, a, b in imports() if a == "report"}
    assert reads <= {"runs", "checkpoints", "records", "stats", "errors", "config"}


def test_the_guard_sees_no_model_and_no_monitor() -> None:
    text = (ROOT / "policy" / "guard.py").read_text(encoding="utf-8")
    assert "torch" not in text
    assert "burnish.m" not in text.replace("burnish.records", "")


def test_no_import_cycles_between_modules() -> None:
    graph: dict[str, set[str]] = {}
    for file in ROOT.rglob("*.py"):
        name = ".".join(["burnish", *file.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
        tree = ast.parse(file.read_text(encoding="utf-8"))
        top = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module]
        graph[name] = {str(n.module) for n in top if str(n.module).startswith("burnish.")}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for target in graph.get(name, ()):
                visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


LIGHT = [
    "burnish",
    "burnish.cli",
    "burnish.config.loading",
    "burnish.runs",
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
    "burnish.monitor.watching",
    "burnish.pipeline.replay",
    "burnish.report.why",
    "burnish.monitor.live",
    "burnish.stats",
    "burnish.labels.queue",
    "burnish.web.app",
    "burnish.web_cli",
    "burnish.rehearse.examples",
]


LOOK = f"""
import contextlib, importlib, io, json, sys
sys.argv[1:] = ["label", "serve", "--help"]
from burnish.cli import main
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
    assert "label in a browser" in loaded["help"].casefold()
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
