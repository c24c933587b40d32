"""What all studies share: cells (an arm and a seed) that are carried out once, rows that are kept, tables and plots
made of kept rows alone.

Every study is a file that ends with `main(Study(...))` and has these options:
  --seeds 0 1 2   --only ARM ...   which cells
  --room DIR      where runs are made, kept from one call to the next (runs that stopped go on; without: a new one)
  --kept FILE     where rows go and come from (experiments/kept/STUDY.jsonl)
  --table         carry out nothing: the table of what is kept
  --page FILE     a page with the study's plots
A row is used again when settings, seed and code (of the package and of the study) are those it was made with.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from scipy import stats

from burnish.config.loading import load_config
from burnish.models.optim import ladder
from burnish.monitor.live import View
from burnish.pipeline.assemble import build_ppo
from burnish.pipeline.context import RunContext
from burnish.pipeline.run import run_pipeline, set_determinism
from burnish.policy.ppo import PPO
from burnish.policy.ppo_start import first_rate
from burnish.report.embed import Chart, Charts, render
from burnish.reward.ensemble import prepare
from burnish.runs.directory import RunDirectory
from burnish.runs.inputs import code_version, content_hash

HERE = Path(__file__).parent
Figures = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One arm at one seed; `settings` are the arm's, JSON values."""

    arm: str
    seed: int
    settings: Any


@dataclass(frozen=True)
class Study:
    """`measure` carries out a cell in a room that all cells share, and returns its figures: numbers are averaged over
    seeds, text is listed, None is not known. `columns` are those that the table shows, with their headings."""

    file: str
    about: str
    arms: Mapping[str, Any]
    measure: Callable[[Cell, Path], Figures]
    columns: Mapping[str, str]
    seeds: Sequence[int] = (0, 1, 2)
    against: str | None = None  # the arm that the others are compared with, paired by seed
    compared: Sequence[str] = ()  # the figures that are
    plots: Callable[[Sequence[Row]], list[Chart]] | None = None
    notes: Sequence[str] = field(default_factory=tuple)
    summary: Callable[[Sequence[Row]], str] | None = None  # what all rows together say
    derived: Callable[[Figures], Figures] | None = (
        None  # more figures, of those that are kept, by the code as it is
    )

    @property
    def name(self) -> str:
        return Path(self.file).stem

    @property
    def code(self) -> str:
        """A hash of all the code a cell runs: the package, the study, and what it has imported from beside it."""
        beside = {str(getattr(module, "__file__", "")) for module in list(sys.modules.values())}
        files = sorted({self.file, *(f for f in beside if Path(f).parent == HERE)})
        hashes = "".join(content_hash(Path(file)) for file in files)
        return f"{code_version(('burnish',))}-{hashlib.sha256(hashes.encode()).hexdigest()[:24]}"


def main(study: Study) -> None:
    """Carry out what is asked for and print the table."""
    parser = argparse.ArgumentParser(
        description=study.about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(study.seeds))
    parser.add_argument("--only", nargs="+", choices=list(study.arms), default=list(study.arms))
    parser.add_argument("--room", type=Path)
    parser.add_argument("--kept", type=Path, default=HERE / "kept" / f"{study.name}.jsonl")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    cells = [Cell(arm, seed, study.arms[arm]) for seed in asked.seeds for arm in asked.only]
    if not asked.table:
        with tempfile.TemporaryDirectory() as aside:
            carry_out(study, cells, asked.room or Path(aside), asked.kept)
    rows = newest(read_rows(asked.kept), cells)
    if study.derived is not None:
        rows = [{**row, "figures": {**row["figures"], **study.derived(row["figures"])}} for row in rows]
    print(table(study, rows))
    if study.summary is not None and rows:
        print(f"\n{study.summary(rows)}")
    if asked.page is not None and study.plots is not None:
        asked.page.write_text(plotted(study, rows), encoding="utf-8")


def plotted(study: Study, rows: Sequence[Row]) -> str:
    """The study's plots as a page."""
    assert study.plots is not None
    charts = Charts()
    drawn = charts.many(study.plots(rows))
    return render("study.html", charts, name=study.name, about=study.about, drawn=drawn)


def carry_out(study: Study, cells: Sequence[Cell], room: Path, kept: Path) -> None:
    """Every cell that is not kept as the code is now; each row is written when it is there."""
    room.mkdir(parents=True, exist_ok=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    code, commit = study.code, git("rev-parse", "--short", "HEAD")
    if git("status", "--porcelain"):
        commit = f"{commit}+"
    for cell in cells:
        key = {"arm": cell.arm, "seed": cell.seed, "settings": cell.settings, "code": code}
        if any(all(row[name] == value for name, value in key.items()) for row in read_rows(kept)):
            continue
        print(f"{study.name}: {cell.arm}, seed {cell.seed}", file=sys.stderr, flush=True)
        began = perf_counter()
        figures = study.measure(cell, room)
        row = {**key, "commit": commit, "seconds": round(perf_counter() - began, 1), "figures": figures}
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def git(*words: str) -> str:
    """What git says; nothing where there is no repository."""
    done = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def read_rows(kept: Path) -> list[Row]:
    """Rows in the order they were made."""
    if not kept.exists():
        return []
    return [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines() if line.strip()]


def newest(rows: Sequence[Row], cells: Sequence[Cell]) -> list[Row]:
    """The last row of every cell, in the order of the cells; one made with other settings is none of its."""
    found = {(row["arm"], row["seed"], json.dumps(row["settings"])): row for row in rows}
    keys = [(cell.arm, cell.seed, json.dumps(cell.settings)) for cell in cells]
    return [found[key] for key in keys if key in found]


def mean(values: Sequence[float | None]) -> str:
    """Mean with half a 95 % interval by Student's t over seeds; one value alone, none as nothing."""
    known = np.array([v for v in values if v is not None], dtype=float)
    if len(known) < 2:
        return "".join(f"{v:.3f}" for v in known)
    half = stats.t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / len(known) ** 0.5
    return f"{known.mean():.3f} ± {half:.3f}"


def told(values: Sequence[Any]) -> str:
    """A table's cell: numbers as their mean, text as it is, each once with how often."""
    if any(isinstance(v, str) for v in values):
        texts = [str(v) for v in values]
        return ", ".join(f"{texts.count(t)}x {t}" if len(texts) > 1 else t for t in dict.fromkeys(texts))
    return mean(values)


def table(study: Study, rows: Sequence[Row]) -> str:
    """The study's table in Markdown, and differences to the arm that the others are compared with."""
    lines = [
        f"| arm | seeds | {' | '.join(study.columns.values())} |",
        "|---" * (len(study.columns) + 2) + "|",
    ]
    by_arm = {arm: [row for row in rows if row["arm"] == arm] for arm in study.arms}
    for arm, own in by_arm.items():
        if own:
            cells = [told([row["figures"].get(name) for row in own]) for name in study.columns]
            lines.append(f"| {arm} | {len(own)} | {' | '.join(cells)} |")
    base = {row["seed"]: row["figures"] for row in by_arm.get(study.against or "", [])}
    for name in study.compared if base else ():
        for arm, own in by_arm.items():
            pairs = [
                (row["figures"].get(name), base[row["seed"]].get(name)) for row in own if row["seed"] in base
            ]
            apart = [a - b for a, b in pairs if a is not None and b is not None]
            if arm != study.against and apart:
                lines.append(
                    f"\n{arm} against {study.against}, {study.columns.get(name, name)}: {mean(apart)}"
                )
    commits = ", ".join(dict.fromkeys(str(row["commit"]) for row in rows))
    minutes = sum(row["seconds"] for row in rows) / 60
    return "\n".join([*lines, "", f"Commit {commits}; {minutes:.0f} minutes.", *study.notes])


def run_to(
    room: Path,
    name: str,
    sets: Sequence[str],
    until: str | None = None,
    start: str | None = None,
    config: Path | None = None,
) -> Path:
    """A run in the room, as far as asked; with `start` from a copy of another run there, whose stages stand as far as
    the settings allow. A run that is there already goes on, and a finished one is left as it is."""
    path = room / name
    if start is not None and not path.exists():
        aside = room / f".{name}"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(room / start, aside)
        aside.rename(path)
    loaded = load_config(config, [f"name={name}", "monitor.trackers=[]", *sets])
    # A copy is brought to other settings: what they change is done again.
    with Silent(name, loaded.ppo.kl.target) as view:
        run_pipeline(loaded, path, until=until, redo=True, view=view)
    return path


class Silent(View):
    """A view that shows nothing: failures are raised, and all else is on record."""

    def note(self, text: str) -> None:
        pass


@contextmanager
def place_of(path: Path) -> Iterator[RunContext]:
    """What a run's stages were handed, to go on from; what its reward models read is kept, where it has any."""
    run = RunDirectory.open(path)
    set_determinism(run.config)
    place = RunContext.alone(run)
    try:
        if (path / "reward").exists():
            prepare(place.models.base, path / "reward")
        yield place
    finally:
        place.data.close()


@contextmanager
def ppo_of(path: Path, sets: Sequence[str] = ()) -> Iterator[tuple[PPO, RunContext]]:
    """PPO of a run whose reward stage is done, before its first update and without a guard, at the first rate that it
    measures for itself; `sets` change its settings."""
    with place_of(path) as place:
        seed = place.config.seed
        config = load_config(None, [f"seed={seed}", *sets]).ppo if sets else place.config.ppo
        ppo = build_ppo(place.models, place.data, path / "reward", config, seed)
        if config.learning_rate == "auto":
            ppo.begin_at(first_rate(ppo)[0] or ladder(place.models.base)[-1])
        yield ppo, place


def read_json(path: Path, *names: str) -> Any:
    """A JSON file of a run, or a part of it."""
    found = json.loads(path.read_text(encoding="utf-8"))
    for name in names:
        found = found[name]
    return found


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    """A run's decisions or alerts."""
    return [e for e in RunDirectory.open(run).read_rows("events.jsonl") if e["kind"] == kind]
