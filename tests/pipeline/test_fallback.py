"""A PPO that is set up to fail is rolled back, given up, and replaced; a champion no worse than SFT comes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from burnish.config.loading import load_config
from burnish.pipeline.context import Journal
from burnish.pipeline.run import fingerprint, run_pipeline
from burnish.records import Decision, StepStats
from burnish.runs.directory import RunDirectory
from tests.command import burnish
from tests.killing import killed

MAX_ROLLBACKS = 2
SMALL = [
    "threads=1",
    "data.n_prompts=500",
    "collect.n_pairs=256",
    "ppo.batch_size=16",
    # Hundreds of times under what such steps move, in every attempt and on every machine.
    "ppo.kl.target=0.05",
    f"guard.max_rollbacks={MAX_ROLLBACKS}",
    "dpo.epochs=1",
    "evaluate.n_selection=32",
    "evaluate.n_test=48",
    "evaluate.kl_prompts=32",
    "evaluate.best_of_n=1",
    "reward.reference_samples=64",
]


SETS = [a for s in SMALL for a in ("--set", s)]


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As far as PPO."""
    folder = tmp_path_factory.mktemp("runs") / "unstable"
    burnish("run", "examples/unstable.yaml", "--dir", str(folder), *SETS, "--until", "reward")
    return folder


@pytest.fixture(scope="module")
def failed(rewarded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("failed") / "unstable"
    shutil.copytree(rewarded, folder)
    burnish("run", "examples/unstable.yaml", "--dir", str(folder), *SETS)
    return folder


@pytest.mark.slow("ladder")
@pytest.mark.parametrize("where", ["give_up", "in DPO"])
def test_killed_where_ppo_is_given_up_or_in_the_fallback_the_same_model_comes_out(
    where: str, rewarded: Path, failed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed" / "unstable"
    shutil.copytree(rewarded, folder)

    def work(die: Callable[[], None]) -> None:
        decide, log = Journal.decide, Journal.log

        def deciding(self: Journal, step: int, decision: Decision) -> None:
            decide(self, step, decision)
            if decision.action == where:
                die()

        def logging(self: Journal, name: str, stats: StepStats, extra: Any = None) -> None:
            log(self, name, stats, extra)
            if name == "dpo" and where == "in DPO" and stats.step == 3:
                die()

        Journal.decide, Journal.log = deciding, logging  # type: ignore[method-assign]
        run_pipeline(load_config(Path("examples/unstable.yaml"), SMALL), folder, until="align")

    killed(work)
    assert RunDirectory.open(folder).stage_state("align") == "interrupted"
    burnish("run", "examples/unstable.yaml", "--dir", str(folder), *SETS, "--until", "align")
    ours, theirs = fingerprint(folder), fingerprint(failed)
    assert {name: ours[name] for name in ("align.json", "dpo")} == {
        n: theirs[n] for n in ("align.json", "dpo")
    }
    metrics = [name for name in ours if "metrics/ppo" in name or "metrics/dpo" in name]
    assert len(metrics) == 2
    assert all(ours[name] == theirs[name] for name in metrics)
    kept = [
        [e for e in RunDirectory.open(p).read_rows("events.jsonl") if e["stage"] == "align"]
        for p in (folder, failed)
    ]
    assert kept[0] == kept[1]


@pytest.mark.slow("ladder")
def test_roll_backs_giving_up_and_dpo_are_on_record_with_figures(failed: Path) -> None:
    events = RunDirectory.open(failed).read_rows("events.jsonl")
    actions = [e["action"] for e in events if e["kind"] == "decision"]
    assert actions.count("roll_back") == MAX_ROLLBACKS
    assert actions.count("give_up") == 1
    assert actions.index("give_up") > max(i for i, a in enumerate(actions) if a == "roll_back")
    given_up = next(e for e in events if e.get("action") == "give_up")
    assert given_up["evidence"]["value"] > given_up["evidence"]["threshold"]
    assert any(e["kind"] == "alert" and e["severity"] == "critical" for e in events)


@pytest.mark.slow("ladder")
def test_each_attempt_starts_from_the_healthy_checkpoint_with_smaller_steps(failed: Path) -> None:
    rows = RunDirectory.open(failed).read_rows("metrics/ppo.jsonl")
    rates = {}
    for row in rows:
        rates.setdefault(row["attempt"], row["learning_rate"])
    assert sorted(rates) == list(range(MAX_ROLLBACKS + 1))
    for attempt in range(MAX_ROLLBACKS):
        assert rates[attempt + 1] == pytest.approx(rates[attempt] / 2)
    first = {a: next(r for r in rows if r["attempt"] == a) for a in rates}
    assert all(abs(r["kl"]) < 1e-3 for r in first.values())
    assert len({r["score"] for r in first.values()}) == len(rates), "a new attempt draws new randomness"


@pytest.mark.slow("ladder")
def test_the_summary_tells_the_fallback_and_the_champion_is_no_worse(failed: Path) -> None:
    s = json.loads((failed / "summary.json").read_text())
    assert s["ppo"]["state"] == "given_up"
    assert s["fallback"]["triggered"] is True
    assert f"given up after {MAX_ROLLBACKS} roll-backs" in s["fallback"]["reason"]
    assert s["champion"] in ("dpo", "sft")
    if s["champion"] == "dpo":
        assert s["evaluation"]["dpo"]["ci_low"] > 0.5
    assert s["checklist"][-1]["ok"] is True
    text = (failed / "report.html").read_text()
    assert "roll back" in text
    assert "The fallback was taken" in text
