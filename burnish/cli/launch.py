"""Start of a run's processes: torchrun on this machine, or Ray Train on a cluster.

Both set the environment variables by which the processes find each other (`collectives.together`).
Both restart all processes from the last checkpoint when one of them dies.
"""

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

OUTCOME = "BURNISH_OUTCOME"  # path of the file in which processes leave their error for the parent
PATIENCE = 5.0  # seconds between two checks for people's answers


@dataclass(frozen=True)
class Task:
    """A run to carry out, with the options of its command.

    `until`: the last stage; `redo`: redo stages whose settings or code changed; `wait`: wait for
    people; `profile`: PPO updates to trace. If `outcome` is set, an error that a restart would
    repeat is written to that file. No process is restarted for such an error.
    """

    config: RunConfig
    path: Path
    until: str | None = None
    redo: bool = False
    wait: bool = False
    outcome: Path | None = None
    profile: int = 0


def wanted(scale: ScaleConfig) -> bool:
    """Check whether to start processes: several are configured, and this is not one of them."""
    return not collectives.launched() and (scale.workers > 1 or scale.ray is not None)


def carry_out(task: Task) -> bool:
    """Carry out a run or take part in it; return False if its error is in the outcome file."""
    prepare_environment()
    outcome = task.outcome or (Path(os.environ[OUTCOME]) if OUTCOME in os.environ else None)
    if outcome is None:
        _carry_out(task)
        return True
    if collectives.first():
        outcome.unlink(missing_ok=True)  # left by the processes before a restart
    try:
        _carry_out(task)
    except PeerFailed:
        if collectives.first() or not outcome.exists():
            raise
        return False  # the first process has ended and written the outcome
    except BurnishError as error:
        if collectives.first():
            atomic_write(outcome, json.dumps(in_words(error)))
        elif not _soon(outcome.exists):
            raise  # only this process failed; the first does not know of it
        return False
    if collectives.first():
        atomic_write(outcome, json.dumps(None))
    return True


def _soon(true: Callable[[], bool]) -> bool:
    """Check whether `true()` becomes true within `heartbeats.FAREWELL` seconds."""
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
                run_pipeline(task.config, task.path, until=task.until, redo=redo, profile=task.profile)
                return
            except Waiting as error:
                if not task.wait:
                    raise
                if collectives.leads():
                    print(error, file=sys.stderr, flush=True)
                collectives.from_lead(lambda over=error.over: _until(over))  # type: ignore[misc]
                redo = False  # redone already, before the wait for people


def _until(over: Callable[[], bool]) -> None:
    while not over():
        time.sleep(PATIENCE)


def start(task: Task, arguments: Sequence[str]) -> None:
    """Start the processes of a run with these command-line arguments, and wait for them.

    Raise the error that ended the run in them, or PeerFailed if they gave up without one.
    """
    from burnish.config.checks import check_config

    check_config(task.config)  # here, so that an error is printed once
    if task.config.scale.ray is not None:
        _on_ray(task)
    else:
        with tempfile.TemporaryDirectory() as room, _told(Path(room) / "outcome.json") as outcome:
            _by_torchrun(task.config.scale, arguments, outcome)


@contextmanager
def _told(outcome: Path) -> Iterator[Path]:
    """Raise the error that the processes started in the block left in `outcome`.

    It takes precedence over the error of their launcher. Raise PeerFailed if the file is missing.
    """
    try:
        yield outcome
    finally:
        word = json.loads(outcome.read_text(encoding="utf-8")) if outcome.exists() else None
        if word is not None:
            raise from_words(*word)
    if not outcome.exists():
        raise PeerFailed(
            f"the processes did not write {outcome}, a file all machines must see; start the same command again"
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
            "went wrong is printed above, and the same command continues from the last checkpoint"
        )


def _worker(given: dict[str, Any]) -> None:
    """Run the task as one of Ray's workers."""
    carry_out(Task(**given))


def _on_ray(task: Task) -> None:
    """Start the processes as workers of Ray Train, on a cluster or on this machine."""
    try:
        import ray
        from ray.train import FailureConfig, RunConfig as TrainConfig, ScalingConfig
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
    outcome = path.parent / name / f"outcome-{uuid4().hex}.json"  # in Ray's folder of the run
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
