"""Methods of `align` in whole runs: the trials of auto, a run that is killed, and a hack that is planted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import burnish as api
from burnish.errors import ConfigError
from burnish.pipeline.run import fingerprint
from burnish.rehearse.grammar import prompts
from burnish.runs.directory import RunDirectory
from tests.command import begun, burnish
from tests.killing import kill_at
from tests.small_run import SMALL

AUTO = [
    *(s for s in SMALL if "updates" not in s and "batch_size" not in s),
    "ppo.updates=6",
    "ppo.batch_size=16",
    "align.method=auto",
    "align.trial_updates=2",
    "align.start=dpo",
    "collect.n_pairs=300",
    "data.n_prompts=400",
    "evaluate.confidence=0.6",  # so that the watcher is armed
    "evaluate.every=2",
]


def arguments(folder: Path) -> list[str]:
    return ["run", "--dir", str(folder), *(a for s in AUTO for a in ("--set", s))]


@pytest.mark.slow("kills")
@pytest.mark.e2e
def test_auto_compares_methods_and_ends_the_same_where_it_is_killed(tmp_path: Path) -> None:
    """Killed during DPO, from which the method starts, during the trials, and during the chosen method."""
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    burnish(*arguments(whole), check=False)
    events = [json.loads(line) for line in (whole / "events.jsonl").read_text().splitlines()]
    (chosen,) = [e for e in events if e.get("action") == "method"]
    trials = chosen["evidence"]["trials"]
    assert list(trials) == ["ppo", "online_dpo", "distill"]
    assert all(t["kl"] > 0 and t["gain_se"] > 0 for t in trials.values() if t["failed"] is None)
    outcome = json.loads((whole / "align.json").read_text())["ppo"]
    assert outcome["method"] == chosen["evidence"]["method"]
    shares = {m: t["share"] for m, t in trials.items() if t["share"] is not None}
    assert outcome["method"] == max(shares, key=lambda m: shares[m])
    rows = [json.loads(line) for line in (whole / "metrics/trial.jsonl").read_text().splitlines()]
    assert [(r["method"], r["step"]) for r in rows] == [(m, s) for m in trials for s in (1, 2)]
    looks = [json.loads(line) for line in (whole / "metrics/looks.jsonl").read_text().splitlines()]
    assert [row["step"] for row in looks] == [0, 2, 4, 6]
    assert looks[0]["kl"] > 0
    (start,) = [e["evidence"] for e in events if e.get("action") == "start"]
    assert 0 < start["kl"] <= 1  # a quarter of the target of 4 nats
    assert json.loads((whole / "align.json").read_text())["dpo"]["pairs_from"] == "labels"
    assert (whole / "dpo").exists()
    assert not (whole / "align" / "looks").exists()

    def lines(name: str) -> int:
        file = folder / "metrics" / name
        return file.read_text().count("\n") if file.exists() else 0

    for seen in (
        lambda: lines("dpo.jsonl") >= 3,
        lambda: any(folder.glob("align/checkpoint-000002")),
        lambda: lines("trial.jsonl") >= 5,
        lambda: lines("ppo.jsonl") >= 3,
    ):
        kill_at(seen, begun(*arguments(folder), quiet=True))
        assert RunDirectory.open(folder).stage_state("align") == "interrupted"
    burnish(*arguments(folder), check=False)
    assert fingerprint(folder) == fingerprint(whole)


@pytest.mark.slow("ladder")
@pytest.mark.parametrize("method", ["rloo", "distill", "online_dpo"])
def test_the_guard_acts_on_a_hack_in_every_method(method: str) -> None:
    """The reward is the number of words: responses grow until the detector of length speaks."""
    model = api.load_model("embedded", layers="top:2")
    config = api.PPOConfig(updates=24, batch_size=32, kl={"target": 20}, missing_eos_penalty=0.0)

    def long(prompts: list[str], responses: list[str]) -> list[float]:
        return [float(len(r.split())) for r in responses]

    tuned = api.train_ppo(model, prompts(64, 0), long, config=config, method=method)  # type: ignore[arg-type]
    first, last = tuned.history[0].values, tuned.history[-1].values
    assert last["score"] > first["score"] or tuned.outcome["rollbacks"]
    acted = [tuned.outcome[name] for name in ("kl_raises", "rollbacks", "tightenings")]
    assert sum(acted) > 0, tuned.outcome
    assert tuned.outcome["method"] == method


def test_a_method_from_python() -> None:
    model = api.load_model("embedded", layers="top:1")
    config = api.PPOConfig(updates=2, batch_size=16, epochs=1)

    def short(prompts: list[str], responses: list[str]) -> list[float]:
        return [-float(len(r)) for r in responses]

    tuned = api.train_ppo(model, prompts(8, 0), short, config=config, method="online_dpo")
    assert "margin" in tuned.history[-1].values
    with pytest.raises(ConfigError, match="auto needs a run"):
        api.train_ppo(model, prompts(8, 0), short, config=config, method="auto")  # type: ignore[arg-type]
