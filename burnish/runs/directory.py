"""The run directory: configuration, manifest, append-only records, checkpoints, resume.

Append-only files (metrics, timing, samples, rejected, events) are cut back to the lengths a checkpoint recorded
before a stopped stage goes on; stages run one after another, so whole-run lengths are the right ones.
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
    """What a stage leaves besides the folder of its name: `records` are names in metrics/, timing/, samples/ and
    rejected/, `folders` and `files` stand in the run directory, `timed` files hold wall-clock figures too."""

    records: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    timed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stale:
    """Stages that were begun on other inputs, and those begun after them. `changed` stages cannot be used as they
    are; `older` ones were made by other code from the same inputs."""

    changes: list[str]
    changed: list[str]
    older: list[str]


@dataclass(frozen=True)
class Checkpoint:
    """A saved state: `step` numbers it, `folder` holds its files, `state` what the stage wrote as JSON."""

    step: int
    folder: Path
    state: dict[str, Any]


class RunDirectory:
    """One run's folder. Only the process that holds `lock()` may write."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        self.config = config
        self.lease: SoftFileLease | None = None

    @classmethod
    def create_or_open(cls, path: Path, config: RunConfig) -> RunDirectory:
        """Open or create. The thread count of a run is frozen when it is created, unless it is set anew."""
        with disk_errors(path.parent):
            path.mkdir(parents=True, exist_ok=True)
        exists = (path / "run.yaml").exists()
        if not exists and any(not p.name.startswith("lock") for p in path.iterdir()):
            raise RunError(f"{path} is not empty and holds no run.yaml; choose another --dir")
        if config.threads is None:
            threads = cls.open(path).config.threads if exists else None
            own = max(1, usable_cores() // collectives.neighbours())
            config = config.model_copy(update={"threads": threads or own})
        return cls(path, config)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run, to read it. Keys that this version does not know any more are passed over."""
        file = path / "run.yaml"
        if not file.exists():
            raise RunError(f"{path} is no run directory (it has no run.yaml); give one like runs/quickstart")
        known = forget_unknown(yaml.safe_load(file.read_text(encoding="utf-8")))
        try:
            return cls(path, RunConfig.model_validate(known))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise RunError(
                f"{file} holds {key}={first.get('input')!r}, which this version does not take ({first['msg']}); use "
                "the version that made the run, or start a new one"
            ) from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The right to write. Raises RunError when another process has it; when it was lost on the way, so does the
        next write."""
        with hold(self.path / "lock") as self.lease:
            try:
                yield
            finally:
                self.lease = None

    def _still_ours(self) -> None:
        if self.lease is not None:
            still_held(self.lease)

    def freeze(self) -> None:
        """Write run.yaml: the configuration this run is carried out with from now on."""
        atomic_write(self.path / "run.yaml", dump_yaml(self.config))

    # Stages

    def manifest(self) -> dict[str, Any]:
        file = self.path / "manifest.json"
        if not file.exists():
            return {"version": VERSION, "stages": {}}
        return dict(read_json(file))

    def stages(self) -> list[str]:
        return list(self.manifest()["stages"])

    def stage_state(self, name: str) -> str:
        """done, failed, waiting, running or interrupted (begun by a process that no longer lives); absent otherwise."""
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
        """False when the stage is done; otherwise mark it running, and take back what a stopped attempt had
        written since its last checkpoint (or its start). What is `stale` must have been dealt with before."""
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
        """Mark a stage done; `seconds` is the wall clock of the attempt that finished it, by so many processes."""
        self._update(
            name,
            state="done",
            outputs=list(outputs),
            seconds=seconds,
            versions=dict(versions),
            processes=processes,
        )

    def fail_stage(self, name: str, reason: str) -> None:
        self._update(name, state="failed", reason=reason)

    def wait_stage(self, name: str, reason: str) -> None:
        """Mark a stage that cannot go on before somebody else has done something."""
        self._update(name, state="waiting", reason=reason)

    def stale(self, inputs: Mapping[str, Inputs]) -> Stale:
        """What has changed since the stages (in their order) were begun."""
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
        """What a stage was begun on; of runs that did not write it down yet, by their configuration."""
        if "inputs" in entry:
            old = Inputs.from_json(entry["inputs"])
            store = old.config.get("label.store")
            if isinstance(store, str) and "://" in store:  # older versions wrote its password down
                return replace(old, config={**old.config, "label.store": without_password(store)[0]})
            return old
        config = flat(RunDirectory.open(self.path).config.model_dump(mode="json"))
        return Inputs({key: config[key] for key in new.config}, new.files, "")

    def holds_work(self, name: str) -> bool:
        """Whether discarding the stage would lose something: it is done and left something, or has a checkpoint."""
        if name == ROUNDS and any(r.holds_work(stage) for r in self.rounds() for stage in r.stages()):
            return True
        entry = self.manifest()["stages"].get(name, {})
        done = entry.get("state") == "done" and bool(entry["outputs"])
        return done or self.latest_checkpoint(name) is not None

    def rounds(self) -> list[RunDirectory]:
        """The earlier rounds that were begun."""
        folders = (p.parent for p in (self.path / ROUNDS).glob("*/manifest.json"))
        return [RunDirectory(folder, self.config) for folder in sorted(folders)]

    def discard_stage(self, name: str, writes: Writes) -> None:
        """Forget a stage: its folders, files and records, its lines in events.jsonl, its manifest entry."""
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
        """Add one JSON line. A figure that is not finite raises: a failure never becomes a number. Of several processes
        the leader does it, and the others do not wait."""
        file, line = self.path / relative, _line(row)
        if not collectives.leads():
            return
        self._still_ours()
        with disk_errors(self.path):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as handle:
                handle.write(line)

    def append_event(self, row: Mapping[str, Any]) -> None:
        self.append("events.jsonl", row)

    def read_rows(self, relative: str) -> list[dict[str, Any]]:
        """Rows of a JSONL file; a half-written last line is ignored, a broken one elsewhere raises RunError."""
        return collectives.from_lead(lambda: list(read_jsonl(self.path / relative)))

    def _appended(self) -> Iterator[Path]:
        for folder in APPENDED:
            yield from sorted((self.path / folder).glob("*.jsonl"))
        if (self.path / "events.jsonl").exists():
            yield self.path / "events.jsonl"

    def offsets(self) -> dict[str, int]:
        """Length in bytes of every append-only file."""
        return {str(f.relative_to(self.path)): f.stat().st_size for f in self._appended()}

    def cut_back(self, offsets: Mapping[str, int]) -> None:
        """Truncate append-only files to these lengths; those not listed did not exist yet and go."""
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
        """Save STAGE/checkpoint-<step>: the files `write` makes, and `state` with the records' lengths. Older
        checkpoints go, but for those in `keep`."""
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
        return sorted(p for p in found if ".tmp-" not in p.name and (p / "state.json").exists())

    def latest_checkpoint(self, stage: str) -> Checkpoint | None:
        def look() -> Checkpoint | None:
            folders = self._checkpoints(stage)
            return self._read_checkpoint(folders[-1]) if folders else None

        return collectives.from_lead(look)

    def checkpoint_at(self, stage: str, step: int) -> Checkpoint:
        return self._read_checkpoint(self.path / stage / f"checkpoint-{step:06d}")

    def _read_checkpoint(self, folder: Path) -> Checkpoint:
        state = read_json(folder / "state.json")
        return Checkpoint(int(folder.name.split("-")[1]), folder, state)


def project_of(path: Path) -> Path:
    """The run directory that labels, and answers that were paid for, lie in: a round's lie in the run it is one of."""
    run = path.parent.parent
    return run if path.parent.name == ROUNDS and (run / "manifest.json").exists() else path


def usable_cores() -> int:
    """Cores this process may run on; where the system does not say (macOS, Windows), all there are."""
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
    """Rows of an append-only file that a killed process may have left with half a last line."""
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
