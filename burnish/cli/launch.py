"""Start the processes of a run: torchrun on this machine, or Ray Train on a cluster. Both set the environment variables
by which the processes find each other (`collectives.together`), and both restart all processes from the last checkpoint
when one of them dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from burnish.distributed import collectives, heartbeats
from burnish.environment import prepare_environment
from burnish.errors import BurnishError, ConfigError, PeerFailed, Waiting, from_words, in_words
from burnish.runs.files import atomic_write

if TYPE_CHECKING:
    from burnish.config import RunConfig
    from burnish.config.scale import ScaleConfig

OUTCOME = "BURNISH_OUTCOME"  # path of the file with the error that ended these processes, for their parent
PATIENCE = 5.0  # seconds between looks whether people have answered


@dataclass(frozen=True)
class Task:
    """What is to be carried out: `until` a stage, with `redo` of what has changed; `wait` for people. What goes wrong
    and would again is left in `outcome`, where somebody reads it there: no process is begun anew for it."""

    config: RunConfig
    path: Path
    until: str | None = None
    redo: bool = False
    wait: bool = False
    outcome: Path | None = None


def wanted(scale: ScaleConfig) -> bool:
    """Whether processes are to be started: this one is not one of them, and several are asked for."""
    return not collectives.launched() and (scale.workers > 1 or scale.ray is not None)


def carry_out(task: Task) -> bool:
    """Carry out a run, or take part in it as one of its processes. False where what ended it is left in the outcome."""
    prepare_environment()
    outcome = task.outcome or (Path(os.environ[OUTCOME]) if OUTCOME in os.environ else None)
    if outcome is None:
        _carry_out(task)
        return True
    if collectives.first():
        outcome.unlink(missing_ok=True)  # of the processes before these
    try:
        _carry_out(task)
    except PeerFailed:
        if collectives.first() or not outcome.exists():
            raise
        return False  # the first process has ended, and said how
    except BurnishError as error:
        if collectives.first():
            atomic_write(outcome, json.dumps(in_words(error)))
        elif not _soon(outcome.exists):
            raise  # of this process alone: the first does not know
        return False
    if collectives.first():
        atomic_write(outcome, json.dumps(None))
    return True


def _soon(true: Callable[[], bool]) -> bool:
    """Whether something comes true while a process would wait for the others' farewell."""
    until = time.monotonic() + heartbeats.FAREWELL
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _carry_out(task: Task) -> None:
    from burnish.pipeline.run import run_pipeline

    redo = task.redo
    with collectives.together(task.config.scale.timeout):
        while True:
            try:
                run_pipeline(task.config, task.path, until=task.until, redo=redo)
                return
            except Waiting as error:
                if not task.wait:
                    raise
                if collectives.leads():
                    print(error, file=sys.stderr, flush=True)
                collectives.from_lead(lambda over=error.over: _until(over))  # type: ignore[misc]
                redo = False  # it was done before people were waited for


def _until(over: Callable[[], bool]) -> None:
    while not over():
        time.sleep(PATIENCE)


def start(task: Task, arguments: Sequence[str]) -> None:
    """Start the processes of a run that was asked for with these command-line arguments, and wait for them. Raises what
    has ended the run in them, or PeerFailed when they gave up."""
    from burnish.config.checks import check_config

    check_config(task.config)  # here, where it is said once
    if task.config.scale.ray is not None:
        _on_ray(task)
    else:
        with tempfile.TemporaryDirectory() as room, _told(Path(room) / "outcome.json") as outcome:
            _by_torchrun(task.config.scale, arguments, outcome)


@contextmanager
def _told(outcome: Path) -> Iterator[Path]:
    """For a block that has processes carry out a run: raises what they say has ended it, before what whoever started
    them says."""
    try:
        yield outcome
    finally:
        word = json.loads(outcome.read_text(encoding="utf-8")) if outcome.exists() else None
        if word is not None:
            raise from_words(*word)
    if not outcome.exists():
        raise PeerFailed(
            f"the processes ended without a word in {outcome}: all machines must see it; start the same command again"
        )


def _by_torchrun(scale: ScaleConfig, arguments: Sequence[str], outcome: Path) -> None:
    ours = [sys.executable, "-m", "burnish.cli.main", *arguments]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    command += ["--nproc-per-node", str(scale.workers), "--max-restarts", str(scale.max_restarts), *ours]
    processes = subprocess.Popen(command, env={**os.environ, OUTCOME: str(outcome)})
    try:
        code = processes.wait()
    finally:
        if processes.poll() is None:
            processes.terminate()
            processes.wait()
    if code:
        raise PeerFailed(
            f"the {scale.workers} processes ended with {code} after {scale.max_restarts} restarts at most; what "
            "went wrong stands above, and the same command goes on from the last checkpoint"
        )


def _worker(given: dict[str, Any]) -> None:
    """One of Ray's workers."""
    carry_out(Task(**given))


def _on_ray(task: Task) -> None:
    """As workers of Ray Train, on a cluster or on this machine."""
    try:
        import ray
        from ray.train import FailureConfig, ScalingConfig
        from ray.train import RunConfig as TrainConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise ConfigError(
            f"scale.ray is {task.config.scale.ray!r}, but Ray is not installed ({error.name}); run "
            "`pip install 'burnish[ray]'`, or set scale.workers alone"
        ) from error
    scale = task.config.scale
    address = None if scale.ray == "auto" else scale.ray
    began = not ray.is_initialized()
    if began:
        ray.init(address=address, log_to_driver=True, include_dashboard=False)
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = there.get("GPU", 0) >= scale.workers
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    path, name = task.path.resolve(), f"burnish-{task.config.name}"
    outcome = path.parent / name / f"outcome-{uuid4().hex}.json"  # in the folder that Ray makes for itself
    absolute = replace(task, path=path, outcome=outcome)
    trainer = TorchTrainer(
        _worker,
        train_loop_config=vars(absolute),
        torch_config=TorchConfig(backend=backend, timeout_s=int(scale.timeout)),
        scaling_config=ScalingConfig(num_workers=scale.workers, use_gpu=gpus),
        run_config=TrainConfig(
            name=name,
            storage_path=str(path.parent),
            failure_config=FailureConfig(max_failures=scale.max_restarts),
        ),
    )
    with _told(outcome):
        try:
            trainer.fit()
        except Exception as error:
            raise PeerFailed(
                f"Ray's {scale.workers} workers gave up after {scale.max_restarts} restarts at most: {error}"
            ) from error
        finally:
            if began:
                ray.shutdown()
