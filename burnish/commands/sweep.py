"""`burnish sweep`: one configuration on many seeds and settings, one run after another or several at once."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any

from burnish.config import RunConfig
from burnish.config.checks import check_config
from burnish.config.loading import flat, load_config
from burnish.errors import ConfigError
from burnish.report.summary import build_summary
from burnish.report.sweep import SWEEP, Figures, results
from burnish.runs.directory import RunDirectory, usable_cores
from burnish.runs.files import write_json

FINE = (0, 10, 11)  # exit codes of a run that has finished, with a champion or without
LAST_LINES = 3  # of a failed run's log, in its message


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: its settings besides the configuration's, its seed and its directory."""

    sets: tuple[str, ...]
    seed: int
    path: Path

    @property
    def name(self) -> str:
        """The settings in one line; empty for a sweep over seeds alone."""
        return ", ".join(self.sets)

    @property
    def log(self) -> Path:
        """File with the output of the run."""
        return self.path.with_name(f"{self.path.name}.log")


def seeds_of(text: str) -> list[int]:
    """Return the seeds of a list such as `0-4,7`; raise ConfigError for anything else."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ConfigError(f"--seeds {text!r} is no list of seeds; write 0-4 or 0,1,2")
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        raise ConfigError(f"--seeds {text!r} names a seed twice; name each once")
    return found


def values_of(item: str) -> list[str]:
    """Return `KEY=VALUE` for each of the values of `KEY=V1,V2`; commas in brackets and quotes are kept."""
    key, equals, text = item.partition("=")
    values, depth, quote = [""], 0, ""
    for letter in text:
        quote = "" if letter == quote else quote or (letter if letter in "\"'" else "")
        depth += 0 if quote else (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += letter
    return [f"{key}{equals}{value.strip()}" for value in values]


def cells_of(folder: Path, seeds: Sequence[int], sets: Sequence[str]) -> list[Cell]:
    """Return the cells of a sweep: every combination of the values in `sets`, on every seed."""
    choices = [values_of(item) for item in sets]
    varied = [i for i, values in enumerate(choices) if len(values) > 1]
    found = []
    for chosen in product(*choices):
        name = "_".join(re.sub(r"[^\w.+-]+", "-", chosen[i]) for i in varied)
        found += [Cell(chosen, seed, folder / name / f"seed-{seed}") for seed in seeds]
    if len({cell.path for cell in found}) < len(found):
        raise ConfigError(f"--set {' '.join(sets)} names a value twice; name each once")
    return found


def sweep(
    config: Path | None,
    folder: Path,
    seeds: Sequence[int],
    sets: Sequence[str],
    *,
    jobs: int = 1,
    on_progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Carry out the runs that are not finished, and return the table that sweep.json holds.

    Configurations are checked before the first run. A run that fails is recorded, and the others go on.
    With several jobs, cores are divided among them unless the configuration sets `threads`. sweep.json
    is written after every run.
    """
    cells = cells_of(folder, seeds, sets)
    configs = {cell: _loaded(config, cell, jobs) for cell in cells}
    rows: dict[Cell, Figures | None] = dict.fromkeys(cells)
    failed: dict[Cell, str] = {}
    stop = Event()

    def write() -> dict[str, Any]:
        table = results(
            folder.name,
            [(cell.name, cell.seed, str(cell.path), rows[cell], failed.get(cell)) for cell in cells],
            {cell.name: flat(configs[cell].model_dump(mode="json")) for cell in cells},
        )
        write_json(folder / SWEEP, table)
        return table

    def one(cell: Cell) -> tuple[Cell, Figures | None, str | None]:
        if finished(cell.path, configs[cell]):
            return cell, build_summary(cell.path), None
        if stop.is_set():
            return cell, None, "not started"
        on_progress(f"{cell.path}: started")
        why = _carry_out(config, cell, configs[cell])
        return cell, None if why else build_summary(cell.path), why

    folder.mkdir(parents=True, exist_ok=True)
    table = write()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for done, future in enumerate(as_completed([pool.submit(one, cell) for cell in cells]), 1):
                cell, figures, why = future.result()
                rows[cell] = figures
                if why:
                    failed[cell] = why
                on_progress(f"{cell.path}: {why or 'done'} ({done} of {len(cells)})")
                table = write()
        except KeyboardInterrupt:
            stop.set()
            raise
    return table


def finished(path: Path, config: RunConfig) -> bool:
    """Return whether a run directory has a finished run of this configuration."""
    if not (path / "manifest.json").exists():
        return False
    run = RunDirectory.open(path)
    same = flat(run.config.model_dump(mode="json")) == flat(config.model_dump(mode="json"))
    return same and run.stage_state("report") == "done"


def _loaded(config: Path | None, cell: Cell, jobs: int) -> RunConfig:
    loaded = load_config(config, _sets(cell))
    if loaded.threads is None:
        loaded = loaded.model_copy(update={"threads": max(1, usable_cores() // jobs)})
    check_config(loaded)
    return loaded


def _sets(cell: Cell) -> list[str]:
    return [*cell.sets, f"seed={cell.seed}"]


def _carry_out(config: Path | None, cell: Cell, loaded: RunConfig) -> str | None:
    """Carry out one run in a process of its own; return why it failed, or None."""
    given = [part for item in (*_sets(cell), f"threads={loaded.threads}") for part in ("--set", item)]
    file = [] if config is None else [str(config)]
    call = [sys.executable, "-m", "burnish", "run", *file, *given, "--dir", str(cell.path)]
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    with cell.log.open("w", encoding="utf-8") as log:
        code = subprocess.run(call, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code in FINE:
        return None
    lines = [
        line for line in cell.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
    ]
    return f"exit code {code}: {' / '.join(lines[-LAST_LINES:]) or 'no output'} (see {cell.log})"
