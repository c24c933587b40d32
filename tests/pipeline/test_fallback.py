"""A PPO that is set up to fail is rolled back, given up, and replaced; a champion no worse than SFT comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import burnish

from burnish.runs import RunDirectory

pytestmark = pytest.mark.e2e
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


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "unstable"
    sets = [a for s in SMALL for a in ("--set", s)]
    burnish("run", "examples/unstable.yaml", "--dir", str(folder), *sets)
    return folder


def test_roll_backs_giving_up_and_dpo_are_on_record_with_figures(failed: Path) -> None:
    events = RunDirectory.open(failed).read_rows("events.jsonl")
    actions = [e["action"] for e in events if e["kind"] == "decision"]
    assert actions.count("roll_back") == MAX_ROLLBACKS
    assert actions.count("give_up") == 1
    assert actions.index("give_up") > max(i for i, a in enumerate(actions) if a == "roll_back")
    given_up = next(e for e in events if e.get("action") == "give_up")
    assert given_up["evidence"]["value"] > given_up["evidence"]["threshold"]
    assert any(e["kind"] == "alert" and e["severity"] == "critical" for e in events)


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
