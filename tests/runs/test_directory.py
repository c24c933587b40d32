"""The run directory: locks, half-written files, checkpoints, invalidation."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from burnish.config import RunConfig
from burnish.config.loading import flat
from burnish.errors import RunError
from burnish.runs import lock
from burnish.runs.directory import RunDirectory, Stale, Writes
from burnish.runs.files import atomic_folder, atomic_write, read_json, write_json
from burnish.runs.inputs import Inputs, code_version, content_hash

INPUTS = Inputs({}, {}, "c")
HOLDER = """
import sys, time
from pathlib import Path
from burnish.config import RunConfig
from burnish.runs.inputs import Inputs
from burnish.runs.directory import RunDirectory
run = RunDirectory.create_or_open(Path(sys.argv[1]), RunConfig())
with run.lock():
    run.freeze()
    run.begin_stage("reward", Inputs({}, {}, "c"))
    run.append("metrics/reward.jsonl", {"step": 1})
    print("held", flush=True)
    time.sleep(3600)
"""


def new_run(path: Path) -> RunDirectory:
    run = RunDirectory.create_or_open(path, RunConfig())
    run.freeze()
    return run


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "held"
    return process


def killed(path: Path) -> str:
    """The lock file that a killed process leaves in a run."""
    process = holder(path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return (path / "lock").read_text()


def test_a_second_process_is_refused_and_a_dead_owners_lock_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = holder(path)
    run = RunDirectory.open(path)
    assert run.stage_state("reward") == "running"
    with pytest.raises(RunError, match=f"process {process.pid} on .* works on"), run.lock():
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert run.stage_state("reward") == "interrupted"
    with run.lock():
        assert run.stage_state("reward") == "running"
        assert f"pid={os.getpid()}\n" in (path / "lock").read_text()
    assert not list(path.glob("lock*"))


def test_a_recycled_pid_does_not_count_as_the_owner(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    with run.lock():
        held = (run.path / "lock").read_text()
    (run.path / "lock").write_text(re.sub(r"start=\d+", "start=1", held))
    with run.lock():
        pass


def test_only_one_of_many_racing_processes_gets_a_dead_owners_lock(tmp_path: Path) -> None:
    path = tmp_path / "run"
    killed(path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    while sum(p.poll() is None for p in processes) > 1:
        time.sleep(0.1)
    alive = [p for p in processes if p.poll() is None]
    assert len(alive) == 1
    for p in processes:
        p.kill()
        p.communicate()


def elsewhere(path: Path) -> None:
    """Make the lock file one of a process on another machine."""
    path.write_text(re.sub(r"host=.*", "host=elsewhere", path.read_text()))


def held_elsewhere(path: Path) -> RunDirectory:
    """A run whose lock another machine has."""
    run = new_run(path)
    with run.lock():
        held = (path / "lock").read_text()
    (path / "lock").write_text(held)
    elsewhere(path / "lock")
    return run


def test_a_silent_owner_on_another_machine_is_taken_over_after_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LEASE", 0.6)
    run = held_elsewhere(tmp_path / "run")
    began = time.monotonic()
    with run.lock():
        assert time.monotonic() - began >= 0.6
        assert "host=elsewhere" not in (run.path / "lock").read_text()


def test_a_living_owner_on_another_machine_is_waited_for_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LEASE", 3.0)  # the thread that renews it may have to wait for a core
    run = held_elsewhere(tmp_path / "run")
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(0.05):
            os.utime(run.path / "lock")

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        with pytest.raises(RunError, match="on elsewhere works on"), run.lock():
            pass
    finally:
        stop.set()
        renewing.join()


def test_whoever_lost_the_lock_writes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LEASE", 0.3)
    run = new_run(tmp_path / "run")
    with run.lock():
        run.append("metrics/x.jsonl", {"step": 1})
        elsewhere(run.path / "lock")
        other = run.path / "other"
        other.write_text((run.path / "lock").read_text())
        other.replace(run.path / "lock")  # as a process does that takes the lock over
        while run.lease.compromise is None:  # type: ignore[union-attr]
            time.sleep(0.02)
        for write in (
            lambda: run.append("metrics/x.jsonl", {"step": 2}),
            lambda: run.begin_stage("reward", INPUTS),
            lambda: run.checkpoint("reward", 1, lambda folder: None, {}),
        ):
            with pytest.raises(RunError, match="taken over by another process"):
                write()
    assert "elsewhere" in (run.path / "lock").read_text(), "the other's lock stays"


def test_a_half_written_line_is_ignored_and_cut_back(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    assert run.begin_stage("reward", INPUTS)
    run.append("metrics/reward.jsonl", {"step": 1})
    run.checkpoint("reward", 1, lambda folder: None, {"x": 1})
    run.append("metrics/reward.jsonl", {"step": 2})
    run.append("samples/reward-1.jsonl", {"step": 2})
    with (run.path / "metrics" / "reward.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert [r["step"] for r in run.read_rows("metrics/reward.jsonl")] == [1, 2]
    assert run.begin_stage("reward", INPUTS)
    assert [r["step"] for r in run.read_rows("metrics/reward.jsonl")] == [1]
    assert not (run.path / "samples" / "reward-1.jsonl").exists()


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.append("metrics/x.jsonl", {"step": 1})
    with (run.path / "metrics" / "x.jsonl").open("a") as file:
        file.write("oops\n")
    run.append("metrics/x.jsonl", {"step": 2})
    with pytest.raises(RunError, match="line 2"):
        run.read_rows("metrics/x.jsonl")


def test_a_figure_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    with pytest.raises(ValueError, match="loss"):
        run.append("metrics/x.jsonl", {"step": 1, "loss": float("nan")})


def test_a_json_file_holds_no_figure_that_is_not_finite(tmp_path: Path) -> None:
    write_json(tmp_path / "e.json", {"a": [1.0, {"b": None}]})
    with pytest.raises(ValueError, match=r"policies\.ppo\.kl_se\[1\]=nan of e\.json"):
        write_json(tmp_path / "e.json", {"policies": {"ppo": {"kl_se": [1.0, float("nan")]}}})
    assert read_json(tmp_path / "e.json") == {"a": [1.0, {"b": None}]}


def test_checkpoints_are_whole_or_absent(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")

    def broken(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    run.checkpoint("align", 1, lambda folder: atomic_write(folder / "w", "1"), {"n": 1})
    with pytest.raises(KeyboardInterrupt):
        run.checkpoint("align", 2, broken, {"n": 2})
    (run.path / "align" / "checkpoint-000003.tmp-1").mkdir()
    found = run.latest_checkpoint("align")
    assert found is not None
    assert (found.step, found.state["n"]) == (1, 1)
    run.checkpoint("align", 4, lambda folder: None, {}, keep={1})
    run.checkpoint("align", 5, lambda folder: None, {}, keep={1})
    assert sorted(p.name for p in (run.path / "align").glob("checkpoint-??????")) == [
        "checkpoint-000001",
        "checkpoint-000005",
    ]
    assert run.begin_stage("align", INPUTS)
    assert list((run.path / "align").glob("*.tmp-*")), "a stage that begins anew has no leftovers of its own"
    assert run.begin_stage("align", INPUTS)
    assert not list((run.path / "align").glob("*.tmp-*")), (
        "one that goes on sweeps what a killed process left"
    )


def inputs_of(value: int, code: str = "c", file: str = "f") -> Inputs:
    return Inputs({"ppo.epochs": value}, {"prompts": file}, code)


def done_run(path: Path, *names: str) -> RunDirectory:
    run = new_run(path)
    for name in names:
        assert run.begin_stage(name, inputs_of(3))
        run.append_event({"kind": "decision", "stage": name})
        run.append(f"metrics/{name}.jsonl", {"step": 1})
        run.finish_stage(name, ["x"], 1.0, {})
    return run


def test_done_is_skipped_and_what_was_begun_on_other_inputs_is_stale(tmp_path: Path) -> None:
    run = done_run(tmp_path / "run", "collect", "label", "reward")
    assert not run.begin_stage("collect", inputs_of(3))
    same = dict.fromkeys(("collect", "label", "reward", "align"), inputs_of(3))
    assert run.stale(same) == Stale([], [], [])
    changed = run.stale({**same, "label": inputs_of(4)})
    assert changed == Stale(["ppo.epochs 3 -> 4"], ["label", "reward"], [])
    assert run.stale({**same, "reward": inputs_of(3, file="g")}).changes == ["the content of prompts"]
    older = run.stale({**same, "label": inputs_of(3, code="d")})
    assert older == Stale([], [], ["label", "reward"]), "made by other code: a thing of its own"
    run.discard_stage("label", Writes(records=("label",)))
    assert [e["stage"] for e in run.read_rows("events.jsonl")] == ["collect", "reward"]
    assert not (run.path / "metrics" / "label.jsonl").exists()
    assert (run.path / "metrics" / "reward.jsonl").exists()
    assert run.stage_state("label") == "absent"


def test_a_key_that_one_version_does_not_know_is_no_change(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.begin_stage("align", Inputs({"ppo.epochs": 3, "ppo.gone": 7}, {}, "c"))
    default = flat(RunConfig().model_dump(mode="json"))["ppo.gamma"]
    with_new_key = Inputs({"ppo.epochs": 3, "ppo.gamma": default}, {}, "c")
    assert run.stale({"align": with_new_key}).changes == []
    set_anew = Inputs({"ppo.epochs": 3, "ppo.gamma": 0.5}, {}, "c")
    assert run.stale({"align": set_anew}).changes == [f"ppo.gamma {default} -> 0.5"]


def test_a_run_of_an_older_version_can_be_read(tmp_path: Path) -> None:
    """Its configuration has keys that are gone, and its manifest a hash in place of inputs."""
    run = done_run(tmp_path / "run", "align")
    file = run.path / "run.yaml"
    file.write_text(file.read_text().replace("ppo:\n", "ppo:\n  gone: 1\n") + "lost: {a: 1}\n")
    assert RunDirectory.open(run.path).config == run.config
    manifest = json.loads((run.path / "manifest.json").read_text())
    del manifest["stages"]["align"]["inputs"]
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    assert run.stale({"align": inputs_of(3)}) == Stale([], [], ["align"])
    assert run.stale({"align": inputs_of(4)}).changed == ["align"]
    file.write_text(file.read_text().replace("epochs: 3", "epochs: many"))
    with pytest.raises(RunError, match=r"ppo\.epochs='many', which this version cannot use"):
        RunDirectory.open(run.path)


def test_work_is_what_is_done_and_left_something_or_has_a_checkpoint(tmp_path: Path) -> None:
    run = done_run(tmp_path / "run", "reward")
    run.begin_stage("sft", INPUTS)
    run.finish_stage("sft", [], 1.0, {})
    run.begin_stage("align", INPUTS)
    assert [run.holds_work(n) for n in ("reward", "sft", "align", "evaluate")] == [True, False, False, False]
    run.checkpoint("align", 1, lambda folder: None, {})
    assert run.holds_work("align")


def test_a_full_disk_says_so_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic_write(tmp_path / "f", "old")

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="disk is full"):
        atomic_write(tmp_path / "f", "new")
    with pytest.raises(RunError, match="disk is full"), atomic_folder(tmp_path / "d") as folder:
        (folder / "x").write_text("x")
    assert (tmp_path / "f").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("x")
    with pytest.raises(RunError, match="not empty"):
        RunDirectory.create_or_open(tmp_path, RunConfig())
    with pytest.raises(RunError, match="not a run directory"):
        RunDirectory.open(tmp_path / "nothing")


def test_threads_are_frozen_with_the_run(tmp_path: Path) -> None:
    first = RunDirectory.create_or_open(tmp_path / "r", RunConfig(threads=7))
    first.freeze()
    assert RunDirectory.create_or_open(tmp_path / "r", RunConfig()).config.threads == 7


def test_threads_are_found_where_the_system_has_no_affinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert RunDirectory.create_or_open(tmp_path / "r", RunConfig()).config.threads == 6


def test_hashes(tmp_path: Path) -> None:
    assert code_version(["burnish.policy"]) != code_version(["burnish.reward"])
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "a").write_text("1")
    before = content_hash(tmp_path)
    (tmp_path / "reward" / "a").write_text("2")
    assert content_hash(tmp_path) != before
    assert content_hash(tmp_path, exclude=("a*",)) == ""
