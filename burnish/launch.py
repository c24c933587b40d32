"""How the processes of a run come about: by torchrun on this machine, by Ray Train on a cluster. Both set the same
variables, by which each finds the others (`spmd.together`); both begin all of them anew, from the last checkpoint, when
one has died."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish import spmd
from burnish.environment import prepare_environment
from burnish.errors import ConfigError, PeerFailed, Waiting

if TYPE_CHECKING:
    from burnish.config import RunConfig
    from burnish.config.scale import ScaleConfig

PATIENCE = 5.0  # seconds between looks whether people have answered


@dataclass(frozen=True)
class Task:
    """What is to be carried out: `until` a stage, with `redo` of what has changed; `wait` for people."""

    config: RunConfig
    path: Path
    until: str | None = None
    redo: bool = False
    wait: bool = False


def wanted(scale: ScaleConfig) -> bool:
    """Whether processes are to be started: this one is not one of them, and several are asked for."""
    return not spmd.launched() and (scale.workers > 1 or scale.ray is not None)


def carry_out(task: Task) -> None:
    """Carry out a run, or take part in it as one of its processes."""
    prepare_environment()
    from burnish.pipeline.order import run_pipeline

    redo = task.redo
    with spmd.together(task.config.scale.timeout):
        while True:
            try:
                run_pipeline(task.config, task.path, until=task.until, redo=redo)
                return
            except Waiting as error:
                if not task.wait:
                    raise
                if spmd.leads():
                    print(error, file=sys.stderr, flush=True)
                spmd.from_lead(lambda over=error.over: _until(over))  # type: ignore[misc]
                redo = False  # it was done before people were waited for


def _until(over: Callable[[], bool]) -> None:
    while not over():
        time.sleep(PATIENCE)


def start(task: Task, arguments: Sequence[str]) -> int:
    """Start the processes of a run that was asked for with these command-line arguments, and wait for them. The exit
    code; 0 where the run is done. Raises PeerFailed when they gave up."""
    from burnish.pipeline.order import check_config

    check_config(task.config)  # here, where it is said once
    if task.config.scale.ray is not None:
        _on_ray(task)
    else:
        _by_torchrun(task.config.scale, arguments)
    from burnish.runs import RunDirectory

    run = RunDirectory.open(task.path)
    waiting = any(run.stage_state(name) == "waiting" for name in run.stages())
    return Waiting.exit_code if waiting else 0


def _by_torchrun(scale: ScaleConfig, arguments: Sequence[str]) -> None:
    ours = [sys.executable, "-m", "burnish.cli", *arguments]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    command += ["--nproc-per-node", str(scale.workers), "--max-restarts", str(scale.max_restarts), *ours]
    processes = subprocess.Popen(command)
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
    """One of Ray's workers. Who waits for people has not failed: nobody is to begin it anew."""
    try:
        carry_out(Task(**given))
    except Waiting as error:
        if spmd.first():
            print(error, flush=True)


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
    absolute = Task(task.config, task.path.resolve(), task.until, task.redo, task.wait)
    trainer = TorchTrainer(
        _worker,
        train_loop_config=vars(absolute),
        torch_config=TorchConfig(backend=backend, timeout_s=int(scale.timeout)),
        scaling_config=ScalingConfig(num_workers=scale.workers, use_gpu=gpus),
        run_config=TrainConfig(
            name=f"burnish-{task.config.name}",
            storage_path=str(absolute.path.parent),
            failure_config=FailureConfig(max_failures=scale.max_restarts),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise PeerFailed(
            f"Ray's {scale.workers} workers gave up after {scale.max_restarts} restarts at most: {error}"
        ) from error
    finally:
        if began:
            ray.shutdown()
