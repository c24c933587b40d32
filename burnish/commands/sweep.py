"""`burnish sweep`: one configuration on many seeds and settings, one run after another or several at once."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any

from burnish.config import RunConfig
from burnish.config.checks import check_config
from burnish.config.loading import flat, load_config
from burnish.errors import BurnishError, ConfigError, Waiting
from burnish.report.summary import build_summary
from burnish.report.sweep import SWEEP, Figures, results
from burnish.runs.directory import RunDirectory, usable_cores
from burnish.runs.files import write_json

FINE = (0, 10, 11)  # exit codes of a run that has finished, with a champion or without
LAST_LINES = 3  # of a failed run's log, in its message
LONGEST = 100  # characters of the name of a directory


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: its settings besides the configuration's, its seed and its directory.

    `name` has the settings that vary; it is empty for a sweep over seeds alone.
    """

    sets: tuple[str, ...]
    name: str
    seed: int
    path: Path

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
    """Return the cells of a sweep: every combination of the values in `sets`, on every seed.

    All settings are in the name of a directory, so that a sweep with others has other directories.
    Raises ConfigError for a value that is given twice, and for `seed`.
    """
    keys = [item.partition("=")[0].strip() for item in sets]
    if "seed" in keys:
        raise ConfigError(
            "--set seed=... has no effect in a sweep, which sets the seed of every run; give --seeds 0-4"
        )
    choices = [values_of(item) for item in sets]
    if any(len(set(values)) < len(values) for values in choices):
        raise ConfigError(f"--set {' '.join(sets)} names a value twice; name each once")
    found = []
    for chosen in product(*choices):
        varied = ", ".join(value for value, values in zip(chosen, choices, strict=True) if len(values) > 1)
        inner = folder / _shortened("_".join(re.sub(r"[^\w.+-]+", "-", value) for value in chosen))
        found += [Cell(chosen, varied, seed, inner / f"seed-{seed}") for seed in seeds]
    if len({cell.path for cell in found}) < len(found):
        raise ConfigError(
            f"--set {' '.join(sets)}: two combinations have one directory name; give values in words"
        )
    return found


def _shortened(name: str) -> str:
    """Return a name, or its beginning and a hash if a file system may find it too long."""
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 9]}-{sha256(name.encode()).hexdigest()[:8]}"


@dataclass
class Result:
    """What is known of a run: its summary once it has finished, and why it failed or waits."""

    figures: Figures | None = None
    failed: str | None = None
    waits: bool = False


def sweep(
    config: Path | None,
    folder: Path,
    seeds: Sequence[int],
    sets: Sequence[str],
    *,
    jobs: int = 1,
    redo: bool = False,
    on_progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Carry out the runs that are not finished, and return the table that sweep.json holds.

    Configurations are checked before the first run. A run that fails, or that waits for people, is
    recorded, and the others go on. With several jobs, cores are divided among them unless the
    configuration sets `threads`. `redo` does runs again that were made with other settings. sweep.json is
    written after every run.
    """
    cells = cells_of(folder, seeds, sets)
    configs = {cell: _loaded(config, cell) for cell in cells}
    known = {cell: Result() for cell in cells}
    for cell in cells:
        if finished(cell.path, configs[cell]):
            known[cell] = Result(build_summary(cell.path))
    folder.mkdir(parents=True, exist_ok=True)

    def write() -> dict[str, Any]:
        table = results(
            folder.name,
            [
                (cell.name, cell.seed, str(cell.path), r.figures, r.failed, r.waits)
                for cell, r in known.items()
            ],
            {cell.name: flat(configs[cell].model_dump(mode="json")) for cell in cells},
        )
        write_json(folder / SWEEP, table)
        return table

    waiting = [cell for cell in cells if known[cell].figures is None]
    table, stop = write(), Event()

    def one(cell: Cell) -> tuple[Cell, Result]:
        if stop.is_set():
            return cell, Result(failed="not started")
        on_progress(f"{cell.path}: started")
        try:
            return cell, _carry_out(config, cell, configs[cell], jobs, redo, stop)
        except (BurnishError, OSError, ValueError) as error:  # recorded, like a run that failed
            return cell, Result(failed=f"{type(error).__name__}: {error}")

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for done, future in enumerate(as_completed([pool.submit(one, cell) for cell in waiting]), 1):
                cell, known[cell] = future.result()
                said = known[cell].failed or ("waits for people" if known[cell].waits else "done")
                on_progress(f"{cell.path}: {said} ({done} of {len(waiting)})")
                table = write()
        except BaseException:
            stop.set()  # runs in progress are interrupted, and keep their last checkpoint
            raise
    return table


def finished(path: Path, config: RunConfig) -> bool:
    """Return whether a run directory has a finished run of this configuration.

    Threads are not compared: they are frozen with the run.
    """
    if not (path / "manifest.json").exists():
        return False
    run = RunDirectory.open(path)
    kept, wanted = (flat(c.model_dump(mode="json")) for c in (run.config, config))
    same = all(kept.get(key) == value for key, value in wanted.items() if key != "threads")
    return same and run.stage_state("report") == "done"


def _loaded(config: Path | None, cell: Cell) -> RunConfig:
    loaded = load_config(config, _sets(cell))
    check_config(loaded)
    return loaded


def _sets(cell: Cell) -> list[str]:
    return [*cell.sets, f"seed={cell.seed}"]


def threads_of(path: Path, config: RunConfig, jobs: int) -> int | None:
    """Return the threads of a run among `jobs`: its own once it has begun; None leaves them to the run."""
    if config.threads is not None:
        return None
    if (path / "run.yaml").exists():
        return RunDirectory.open(path).config.threads
    return None if jobs == 1 else max(1, usable_cores() // (jobs * max(1, config.scale.workers)))


def _carry_out(
    config: Path | None, cell: Cell, loaded: RunConfig, jobs: int, redo: bool, stop: Event
) -> Result:
    """Carry out one run in a process of its own; it is interrupted, as by Ctrl+C, when `stop` is set."""
    threads = threads_of(cell.path, loaded, jobs)
    sets = [*_sets(cell), *([] if threads is None else [f"threads={threads}"])]
    given = [part for item in sets for part in ("--set", item)]
    call = [sys.executable, "-m", "burnish", "run", *([] if config is None else [str(config)]), *given]
    call += ["--dir", str(cell.path), *(["--redo"] if redo else [])]
    cell.log.parent.mkdir(parents=True, exist_ok=True)
    with cell.log.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(call, stdout=log, stderr=subprocess.STDOUT)
        try:
            while (code := _ended(process)) is None:
                if stop.is_set():
                    process.send_signal(signal.SIGINT)
                    code = process.wait()
                    break
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait()
    if code in FINE:
        return Result(build_summary(cell.path))
    if code == Waiting.exit_code:
        return Result(waits=True)
    text = cell.log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return Result(
        failed=f"exit code {code}: {' / '.join(lines[-LAST_LINES:]) or 'no output'} (see {cell.log})"
    )


def _ended(process: subprocess.Popen[bytes]) -> int | None:
    """Wait a second; return the exit code, or None for a process that is running."""
    try:
        return process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        return None
