"""Whole runs by several processes: started by torchrun and by Ray, killed and begun again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from burnish.data.store import LabelStore
from burnish.pipeline.run import fingerprint
from burnish.records import Label
from burnish.runs.directory import RunDirectory
from tests.command import begun, burnish
from tests.killing import wait_until

SMALL = (
    *("threads=1", "data.n_prompts=200", "collect.n_pairs=96", "ppo.updates=4", "ppo.checkpoint_every=1"),
    *("reward.depth=3", "reward.pooling=mean", "evaluate.best_of_n=1", "dpo.when=never", "ppo.gate=ignored"),
    *("evaluate.n_selection=16", "evaluate.n_test=16", "evaluate.kl_prompts=16"),
)


def begin(folder: Path, *more: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start a run that is small as a process of its own."""
    sets = (part for key in (*SMALL, *more) for part in ("--set", key))
    return begun("run", "examples/short.yaml", "--dir", str(folder), *options, *sets)


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it said, once it has come to its end."""
    said, told = process.communicate()
    assert process.returncode in (0, 10), told[-3000:]
    return said, told


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nobody disturbed."""
    folder = tmp_path_factory.mktemp("several") / "whole"
    said, _ = ended(begin(folder, "scale.workers=2"))
    assert said.count("Report:") == 1, "one process talks"
    return folder


@pytest.mark.slow("several")
@pytest.mark.e2e
def test_two_processes_make_a_run_as_one_makes_it(shared_run: Path, tmp_path: Path) -> None:
    ended(begin(tmp_path / "alone"))
    stages = json.loads((shared_run / "manifest.json").read_text())["stages"]
    assert {entry["processes"] for entry in stages.values()} == {2}
    ours, theirs = fingerprint(shared_run), fingerprint(tmp_path / "alone")
    assert ours.keys() == theirs.keys()
    # Whole jobs come to the same bits; what is added up over processes is rounded in another order.
    for name in ("metrics/reward.jsonl", "labels.json", "metrics/collect.jsonl"):
        assert ours[name] == theirs[name]
    rows = [
        [json.loads(line) for line in (run / "metrics" / "ppo.jsonl").read_text().splitlines()]
        for run in (shared_run, tmp_path / "alone")
    ]
    for several, one in zip(*rows, strict=True):
        assert several.keys() == one.keys()
    first, second = rows[0][0], rows[1][0]
    assert first["score"] == pytest.approx(second["score"], abs=1e-3)
    assert first["length"] == second["length"]


@pytest.mark.slow("several")
@pytest.mark.e2e
def test_a_process_that_is_killed_comes_back_and_the_run_ends_as_if_nothing_had_been(
    shared_run: Path, tmp_path: Path
) -> None:
    process = begin(tmp_path / "killed", "scale.workers=2", "scale.max_restarts=1")
    metrics = tmp_path / "killed" / "metrics" / "ppo.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 1, process)
    os.kill(member(process.pid, 1), signal.SIGKILL)
    ended(process)
    assert fingerprint(tmp_path / "killed") == fingerprint(shared_run)


def member(parent: int, number: int) -> int:
    """The process with this number among those that a command has started."""
    for child in psutil.Process(parent).children(recursive=True):
        if child.environ().get("RANK") == str(number) and "burnish.cli.main" in child.cmdline():
            return int(child.pid)
    raise AssertionError(f"no process {number} of {parent}")


def test_what_a_configuration_lacks_is_said_once_and_nothing_is_started(tmp_path: Path) -> None:
    sets = (part for key in ("scale.workers=2", "evaluate.examiner=judge") for part in ("--set", key))
    done = burnish("run", "examples/short.yaml", "--dir", str(tmp_path / "r"), *sets, check=False)
    assert done.returncode == 3
    assert done.stderr.count("evaluate.judge.model names no model") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.slow("several")
@pytest.mark.e2e
def test_processes_that_wait_for_people_have_not_failed_and_go_on_when_they_have_answered(
    tmp_path: Path,
) -> None:
    path = tmp_path / "r"
    sets = ("scale.workers=2", "label.source=people", "evaluate.examiner=reward_model")
    process = begin(path, *sets)
    said, told = process.communicate()
    assert process.returncode == 12, told[-2000:]
    assert not said, "nothing came of it yet"
    assert "Traceback" not in told
    assert told.count("waiting for people") == 1, told

    waiting = begin(path, *sets, options=("--wait", "--until", "label"))
    assert waiting.stderr is not None
    assert any("waiting for people" in line for line in waiting.stderr)
    assert RunDirectory.open(path).stage_state("label") == "waiting"
    with LabelStore(path / "labels.sqlite") as store:
        store.add_labels([Label(c.id, "person:ann", 1.0, "human") for c in store.comparisons()])
    ended(waiting)
    assert RunDirectory.open(path).stage_state("label") == "done"


@pytest.mark.slow("several")
@pytest.mark.e2e
def test_two_processes_that_hold_a_part_of_every_layer_make_a_run_as_whole_ones_make_it(
    shared_run: Path, tmp_path: Path
) -> None:
    ended(begin(tmp_path / "cut", "scale.workers=2", "scale.shard=true"))
    ours, theirs = fingerprint(shared_run), fingerprint(tmp_path / "cut")
    assert ours.keys() == theirs.keys()
    # Another forward pass in single precision: a token may tip, and an answer with it. Double precision is held to
    # 1e-9 by tests of the policy.
    rows = [
        [json.loads(line) for line in (run / "metrics" / "ppo.jsonl").read_text().splitlines()]
        for run in (shared_run, tmp_path / "cut")
    ]
    assert len(rows[0]) == len(rows[1]) == 4
    first, second = rows[0][0], rows[1][0]
    assert first.keys() == second.keys()
    assert first["score"] == pytest.approx(second["score"], abs=0.5)
    assert first["length"] == pytest.approx(second["length"], rel=0.2)


WRONG = {
    "what the first process reads for all": (
        ("label.source=imported", "label.preferences={pairs}", "data.prompts=preferences"),
        "rejected",
    ),
    "what every process finds by itself": (("collect.n_pairs=8",), "fall to"),
}


@pytest.mark.slow("several")
@pytest.mark.e2e
@pytest.mark.parametrize("case", WRONG)
def test_what_would_fail_again_is_said_once_and_nobody_tries_it_again(case: str, tmp_path: Path) -> None:
    sets, words = WRONG[case]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "a", "chosen": "b"}\n')
    given = [s.format(pairs=pairs) for s in sets]
    process = begin(tmp_path / "r", "scale.workers=2", "evaluate.examiner=reward_model", *given)
    _, told = process.communicate()
    assert process.returncode == 4, told[-2000:]
    assert told.count("burnish: ") == 1, told
    assert words in told


@pytest.mark.slow("several")
@pytest.mark.e2e
def test_two_rounds_of_two_processes_with_all_that_a_run_can_train(tmp_path: Path) -> None:
    shown = tmp_path / "shown.jsonl"
    shown.write_text(
        "".join(
            json.dumps({"prompt": f"Tell me of place {i}.", "completion": f"Place {i} is worth a visit."})
            + "\n"
            for i in range(24)
        )
    )
    more = (
        *("scale.workers=2", "scale.shard=true", "scale.max_restarts=0"),
        *("rounds=2", f"sft.demonstrations={shown}"),
        *("ppo.updates=2", "dpo.when=always", "dpo.pairs=on_policy", "dpo.max_prompts=32"),
        *("distill.when=always", "distill.max_prompts=32", "evaluate.best_of_n=2"),
    )
    said, _ = ended(begin(tmp_path / "r", *more))
    assert "Champion:" in said
    of_all = fingerprint(tmp_path / "r")
    for name in ("reward", "ppo", "dpo", "distill", "on_policy_pairs.jsonl"):
        assert of_all[name] != of_all[f"rounds/1/{name}"], f"{name} learnt anew in the second round"


@pytest.mark.slow("several")
@pytest.mark.e2e
def test_workers_of_ray_make_a_run_from_prompts_to_champion_and_one_that_dies_comes_back(
    shared_run: Path, tmp_path: Path
) -> None:
    if find_spec("ray") is None:
        pytest.skip("needs Ray (pip install 'burnish[ray]')")
    process = begin(tmp_path / "ray", "scale.workers=2", "scale.ray=auto", "scale.max_restarts=1")
    metrics = tmp_path / "ray" / "metrics" / "ppo.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 1, process)
    workers = [p for p in psutil.process_iter() if "RayTrainWorker" in " ".join(_command(p))]
    assert workers, "Ray's workers say what they are"
    os.kill(max(p.pid for p in workers), signal.SIGKILL)
    said, _ = ended(process)
    assert "Champion:" in said
    assert fingerprint(tmp_path / "ray") == fingerprint(shared_run)


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []
