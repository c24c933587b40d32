"""The run directory: configuration, manifest, append-only records, checkpoints, resume.

Before a stopped stage resumes, append-only files (metrics, timing, samples, rejected, events) are
truncated to the lengths in its checkpoint. Stages run one after another, so the lengths of all
files are valid.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from filelock import SoftFileLease
from pydantic import ValidationError

from burnish.config import RunConfig
from burnish.config.label import without_password
from burnish.config.loading import dump_yaml, flat, forget_unknown
from burnish.distributed import collectives
from burnish.errors import RunError
from burnish.records import current_names
from burnish.runs.files import (
    atomic_folder,
    atomic_write,
    disk_errors,
    read_json,
    remove_leftovers,
    write_json,
)
from burnish.runs.inputs import Inputs
from burnish.runs.lock import hold, owner, still_held

VERSION = 2
ROUNDS = "rounds"  # folder of a run's earlier rounds, each a run directory
APPENDED = ("metrics", "timing", "samples", "rejected")


@dataclass(frozen=True)
class Writes:
    """Outputs of a stage besides the folder of its name; `folders` and `files` are in the run's.

    `records` are names in metrics/, timing/, samples/, rejected/. `timed` also hold wall-clock figures.
    """

    records: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    timed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stale:
    """Stages that were begun with other inputs, and those begun after them.

    `changed` stages cannot be used as they are; `older` ones come from other code and the same inputs.
    """

    changes: list[str]
    changed: list[str]
    older: list[str]


@dataclass(frozen=True)
class Checkpoint:
    """A saved state with its number, the folder of its files, and the stage's JSON state."""

    step: int
    folder: Path
    state: dict[str, Any]


class RunDirectory:
    """The folder of one run; only the process that holds `lock()` may write."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self.config = config
        self.lease: SoftFileLease | None = None

    @classmethod
    def create_or_open(cls, path: Path, config: RunConfig) -> RunDirectory:
        """Open or create a run, whose thread count is frozen at creation unless `config` sets it."""
        with disk_errors(path.parent):
            path.mkdir(parents=True, exist_ok=True)
        exists = (path / "run.yaml").exists()
        if not exists and any(not p.name.startswith("lock") for p in path.iterdir()):
            raise RunError(f"{path} is not empty and has no run.yaml; choose another --dir")
        if config.threads is None:
            threads = cls.open(path).config.threads if exists else None
            own = max(1, usable_cores() // collectives.neighbours())
            config = config.model_copy(update={"threads": threads or own})
        return cls(path, config)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open an existing run for reading, ignoring keys that this version no longer knows."""
        file = path / "run.yaml"
        if not file.exists():
            raise RunError(
                f"{path} is not a run directory (it has no run.yaml); pass one like runs/quickstart"
            )
        known = forget_unknown(yaml.safe_load(file.read_text(encoding="utf-8")))
        try:
            return cls(path, RunConfig.model_validate(known))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise RunError(
                f"{file} holds {key}={first.get('input')!r}, which this version cannot use ({first['msg']}); use "
                "the version that made the run, or start a new one"
            ) from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the right to write; raise RunError if another process has it.

        If the right is lost within the block, the next write raises RunError.
        """
        with hold(self.path / "lock") as self.lease:
            try:
                yield
            finally:
                self.lease = None

    def _still_ours(self) -> None:
        if self.lease is not None:
            still_held(self.lease)

    def freeze(self) -> None:
        """Write run.yaml, the configuration that the run uses from now on."""
        atomic_write(self.path / "run.yaml", dump_yaml(self.config))

    # Stages

    def manifest(self) -> dict[str, Any]:
        """Return the manifest, which is empty for a new run."""
        file = self.path / "manifest.json"
        if not file.exists():
            return {"version": VERSION, "stages": {}}
        return dict(read_json(file))

    def stages(self) -> list[str]:
        """Return the names of the stages that were begun, in order."""
        return list(self.manifest()["stages"])

    def stage_state(self, name: str) -> str:
        """Return done, failed, waiting, running, interrupted (its process is dead) or absent."""
        state = str(self.manifest()["stages"].get(name, {}).get("state", "absent"))
        if state == "running" and owner(self.path / "lock") is None:
            return "interrupted"
        return state

    def _update(self, name: str, **fields: Any) -> None:
        self._still_ours()
        manifest = self.manifest()
        manifest["stages"].setdefault(name, {}).update(fields)
        write_json(self.path / "manifest.json", manifest)

    def begin_stage(self, name: str, inputs: Inputs) -> bool:
        """Mark a stage running, or return False if it is done; call after handling `stale` ones.

        Records written after the last checkpoint (or start) of a stopped attempt are removed.
        """
        entry = self.manifest()["stages"].get(name)
        if entry is None:
            started = {"inputs": inputs.as_json(), "offsets": self.offsets(), "outputs": []}
            self._update(name, state="running", reason=None, **started)
            return True
        if entry["state"] == "done":
            return False
        remove_leftovers(self.path)
        saved = self.latest_checkpoint(name)
        self.cut_back(saved.state["offsets"] if saved else entry["offsets"])
        self._update(name, state="running", reason=None, inputs=inputs.as_json())
        return True

    def finish_stage(
        self,
        name: str,
        outputs: Sequence[str],
        seconds: float,
        versions: Mapping[str, str],
        processes: int = 1,
    ) -> None:
        """Mark a stage done, with wall-clock seconds and processes of the attempt that finished it."""
        self._update(
            name,
            state="done",
            outputs=list(outputs),
            seconds=seconds,
            versions=dict(versions),
            processes=processes,
        )

    def fail_stage(self, name: str, reason: str) -> None:
        """Mark a stage failed, with the reason."""
        self._update(name, state="failed", reason=reason)

    def wait_stage(self, name: str, reason: str) -> None:
        """Mark a stage that waits for a person to act, with the reason."""
        self._update(name, state="waiting", reason=reason)

    def stale(self, inputs: Mapping[str, Inputs]) -> Stale:
        """Return what has changed since the stages (in their order) were begun."""
        stages = self.manifest()["stages"]
        found = Stale([], [], [])
        for name, new in inputs.items():
            if name not in stages:
                continue
            old = self._old_inputs(stages[name], new)
            changes = new.changes_since(old)
            found.changes.extend(c for c in changes if c not in found.changes)
            if found.changes:
                found.changed.append(name)
            elif old.code != new.code or found.older:
                found.older.append(name)
        return found

    def _old_inputs(self, entry: Mapping[str, Any], new: Inputs) -> Inputs:
        """Return the inputs that a stage was begun with, by configuration if not recorded."""
        if "inputs" in entry:
            old = Inputs.from_json(entry["inputs"])
            store = old.config.get("label.store")
            if isinstance(store, str) and "://" in store:  # older versions recorded its password
                return replace(old, config={**old.config, "label.store": without_password(store)[0]})
            return old
        config = flat(RunDirectory.open(self.path).config.model_dump(mode="json"))
        return Inputs({key: config[key] for key in new.config}, new.files, "")

    def holds_work(self, name: str) -> bool:
        """Check whether discarding a stage would lose outputs of a finished stage or a checkpoint."""
        if name == ROUNDS and any(r.holds_work(stage) for r in self.rounds() for stage in r.stages()):
            return True
        entry = self.manifest()["stages"].get(name, {})
        done = entry.get("state") == "done" and bool(entry["outputs"])
        return done or self.latest_checkpoint(name) is not None

    def rounds(self) -> list[RunDirectory]:
        """Return the run directories of the earlier rounds that were begun."""
        folders = (p.parent for p in (self.path / ROUNDS).glob("*/manifest.json"))
        return [RunDirectory(folder, self.config) for folder in sorted(folders)]

    def discard_stage(self, name: str, writes: Writes) -> None:
        """Delete a stage's folders, files, records, events and manifest entry."""
        for folder in (name, *writes.folders):
            shutil.rmtree(self.path / folder, ignore_errors=True)
        for relative in (*writes.files, *writes.timed):
            (self.path / relative).unlink(missing_ok=True)
        for record in writes.records:
            for pattern in (f"{record}.jsonl", f"{record}-*.jsonl"):
                for file in (f for folder in APPENDED for f in (self.path / folder).glob(pattern)):
                    file.unlink()
        if (self.path / "events.jsonl").exists():
            kept = [row for row in self.read_rows("events.jsonl") if row.get("stage") != name]
            atomic_write(self.path / "events.jsonl", "".join(_line(row) for row in kept))
        manifest = self.manifest()
        manifest["stages"].pop(name, None)
        write_json(self.path / "manifest.json", manifest)

    # Append-only records

    def append(self, relative: str, row: Mapping[str, Any]) -> None:
        """Append one JSON line; only the leading process writes, and the others do not wait.

        Raises ValueError for a figure that is not finite, so that a failure never becomes a number.
        """
        file, line = self.path / relative, _line(row)
        if not collectives.leads():
            return
        self._still_ours()
        with disk_errors(self.path):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as handle:
                handle.write(line)

    def append_event(self, row: Mapping[str, Any]) -> None:
        """Append a row to events.jsonl."""
        self.append("events.jsonl", row)

    def read_rows(self, relative: str) -> list[dict[str, Any]]:
        """Return the rows of a JSONL file, as `read_jsonl` yields them, to every process.

        Figures of older versions get their new names.
        """
        rows = collectives.from_lead(lambda: list(read_jsonl(self.path / relative)))
        return [current_names(row) for row in rows]

    def _appended(self) -> Iterator[Path]:
        for folder in APPENDED:
            yield from sorted((self.path / folder).glob("*.jsonl"))
        if (self.path / "events.jsonl").exists():
            yield self.path / "events.jsonl"

    def offsets(self) -> dict[str, int]:
        """Return the length in bytes of every append-only file."""
        return {str(f.relative_to(self.path)): f.stat().st_size for f in self._appended()}

    def cut_back(self, offsets: Mapping[str, int]) -> None:
        """Truncate append-only files to these lengths, and delete files that are not listed."""
        for file in list(self._appended()):
            length = offsets.get(str(file.relative_to(self.path)))
            if length is None:
                file.unlink()
            else:
                with file.open("r+b") as handle:
                    handle.truncate(length)

    # Checkpoints

    @collectives.by_lead
    def checkpoint(
        self,
        stage: str,
        step: int,
        write: Callable[[Path], None],
        state: Mapping[str, Any],
        keep: set[int] | frozenset[int] = frozenset(),
    ) -> None:
        """Save STAGE/checkpoint-<step> with the files of `write`, `state` and the records' lengths.

        Older checkpoints are deleted, except those in `keep`.
        """
        self._still_ours()
        folder = self.path / stage / f"checkpoint-{step:06d}"
        with atomic_folder(folder) as aside:
            write(aside)
            write_json(aside / "state.json", {**state, "offsets": self.offsets()})
        for other in self._checkpoints(stage):
            if other != folder and int(other.name.split("-")[1]) not in keep:
                shutil.rmtree(other)

    def _checkpoints(self, stage: str) -> list[Path]:
        found = (self.path / stage).glob("checkpoint-*")
        whole = (p for p in found if ".tmp-" not in p.name and (p / "state.json").exists())
        return sorted(whole, key=lambda p: int(p.name.split("-")[1]))

    def latest_checkpoint(self, stage: str) -> Checkpoint | None:
        """Return the last checkpoint of a stage, or None."""

        def look() -> Checkpoint | None:
            folders = self._checkpoints(stage)
            return self._read_checkpoint(folders[-1]) if folders else None

        return collectives.from_lead(look)

    def checkpoint_at(self, stage: str, step: int) -> Checkpoint:
        """Return the checkpoint of a stage at a step."""
        return self._read_checkpoint(self.path / stage / f"checkpoint-{step:06d}")

    def _read_checkpoint(self, folder: Path) -> Checkpoint:
        state = read_json(folder / "state.json")
        return Checkpoint(int(folder.name.split("-")[1]), folder, state)


def project_of(path: Path) -> Path:
    """Return the run directory with the labels and paid answers; for a round, that of its run."""
    run = path.parent.parent
    return run if path.parent.name == ROUNDS and (run / "manifest.json").exists() else path


def usable_cores() -> int:
    """Return the number of cores this process may use (all, if the system does not say)."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _line(row: Mapping[str, Any]) -> str:
    try:
        return json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n"
    except ValueError as error:
        odd = [k for k, v in row.items() if isinstance(v, float) and not -1e308 < v < 1e308]
        raise ValueError(
            f"{odd or list(row)} holds a figure that is not finite; it cannot be recorded"
        ) from error


def read_jsonl(file: Path) -> Iterator[dict[str, Any]]:
    """Yield rows, ignoring a half-written last line; raise RunError for another broken one."""
    if not file.exists():
        return
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                return
            raise RunError(f"{file}, line {number} is not JSON; the file was edited or damaged") from error
