"""The run directory: locks, half-written files, checkpoints, invalidation."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from burnish.checkpoints import atomic_folder, atomic_write, read_json, write_json
from burnish.config import RunConfig
from burnish.errors import RunError
from burnish.runs import RunDirectory, code_version, config_diff, content_hash, fingerprint, stage_hash

HOLDER = """
import sys, time
from pathlib import Path
from burnish.config import RunConfig
from burnish.runs import RunDirectory
run = RunDirectory.create_or_open(Path(sys.argv[1]), RunConfig())
with run.lock():
    run.freeze()
    run.begin_stage("reward", "h")
    run.append("metrics/reward.jsonl", {"step": 1})
    print("held", flush=True)
    time.sleep(60)
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


def test_a_second_process_is_refused_and_a_dead_owners_lock_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = holder(path)
    run = RunDirectory.open(path)
    assert run.stage_state("reward") == "running"
    with pytest.raises(RunError, match=f"process {process.pid} .* works on"), run.lock():
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    assert run.stage_state("reward") == "interrupted"
    with run.lock():
        assert json.loads((path / "lock").read_text())["pid"] == os.getpid()
    assert not (path / "lock").exists()
    assert not list(path.glob("lock*"))


def test_a_recycled_pid_does_not_count_as_the_owner(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    with run.lock():
        held = json.loads((run.path / "lock").read_text())
    (run.path / "lock").write_text(json.dumps({**held, "started": held["started"] - 1000}))
    with run.lock():
        pass


def test_only_one_of_many_racing_processes_gets_a_dead_owners_lock(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    (run.path / "lock").write_text(
        json.dumps({"pid": 2**22 - 1, "started": 0.0, "host": os.uname().nodename})
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(run.path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    deadline = time.monotonic() + 60
    while sum(p.poll() is None for p in processes) > 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    alive = [p for p in processes if p.poll() is None]
    assert len(alive) == 1
    for p in processes:
        p.kill()
        p.communicate()


def test_a_half_written_line_is_ignored_and_cut_back(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    assert run.begin_stage("reward", "h")
    run.append("metrics/reward.jsonl", {"step": 1})
    run.checkpoint("reward", 1, lambda folder: None, {"x": 1})
    run.append("metrics/reward.jsonl", {"step": 2})
    run.append("samples/reward-1.jsonl", {"step": 2})
    with (run.path / "metrics" / "reward.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert [r["step"] for r in run.read_rows("metrics/reward.jsonl")] == [1, 2]
    assert run.begin_stage("reward", "h")
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
    assert run.begin_stage("align", "h")
    assert list((run.path / "align").glob("*.tmp-*")), "a stage that begins anew has no leftovers of its own"
    assert run.begin_stage("align", "h")
    assert not list((run.path / "align").glob("*.tmp-*")), (
        "one that goes on sweeps what a killed process left"
    )


def test_done_is_skipped_and_a_changed_hash_is_planned_again(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    for name in ("collect", "label", "reward"):
        assert run.begin_stage(name, f"{name}-1")
        run.append_event({"kind": "decision", "stage": name})
        run.append(f"metrics/{name}.jsonl", {"step": 1})
        run.finish_stage(name, [], 1.0, {})
    assert not run.begin_stage("collect", "collect-1")
    hashes = {"collect": "collect-1", "label": "label-2", "reward": "reward-2", "align": "a"}
    assert run.plan_invalidation(list(hashes), hashes) == ["label", "reward"]
    run.discard_stage("label")
    assert [e["stage"] for e in run.read_rows("events.jsonl")] == ["collect", "reward"]
    assert not (run.path / "metrics" / "label.jsonl").exists()
    assert run.stage_state("label") == "absent"


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
    with pytest.raises(RunError, match="no run directory"):
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
    assert stage_hash({"a": 1, "b": 2}) == stage_hash({"b": 2, "a": 1}) != stage_hash({"a": 1, "b": 3})
    assert code_version(["burnish.policy"]) != code_version(["burnish.reward"])
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "a").write_text("1")
    before = content_hash(tmp_path)
    (tmp_path / "reward" / "a").write_text("2")
    assert content_hash(tmp_path) != before
    assert list(fingerprint(tmp_path)) == ["reward"]


def test_config_diff_names_changed_keys() -> None:
    a, b = RunConfig(), RunConfig.model_validate({"ppo": {"updates": 3, "kl": {"target": 9}}})
    lines = config_diff(a.model_dump(), b.model_dump())
    assert lines == ["ppo.updates 36 -> 3", "ppo.kl.target 4.0 -> 9.0"]
