"""A finished run looked at again from the command line: why, replay, over-optimisation, regression sets, audit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from burnish.commands.pool import kept_updates, kl_after
from burnish.config.evaluate import RegressionSet
from burnish.data.prompts import read_references
from burnish.errors import DataError
from burnish.pipeline.context import RunContext
from burnish.pipeline.regression_sets import measure_regression_sets, sets_of_looks
from burnish.runs.directory import RunDirectory
from tests.command import burnish


def test_why_and_the_same_decisions_again(short_run: Path) -> None:
    told = json.loads(burnish("why", str(short_run), "--replay", "--json").stdout)
    assert told["replay"]["same"]
    assert told["text"].startswith("PPO finished")
    assert "nats of a target of" in told["text"]
    shown = burnish("why", str(short_run), "--replay").stdout
    assert "As recorded." in shown
    refused = burnish("why", str(short_run), "--set", "ppo.updates=3", check=False)
    assert refused.returncode == 3
    assert "needs a new run" in refused.stderr


def test_its_own_metrics_are_a_log_that_can_be_audited(short_run: Path) -> None:
    done = burnish("audit", str(short_run / "metrics" / "ppo.jsonl"), "--responses", "64", check=False)
    assert done.returncode in (0, 21), done.stderr
    assert "looked at: length_drift" in done.stdout


def test_over_optimisation_of_a_run(run_copy: Path) -> None:
    args = ("evaluate", "overoptimization", str(run_copy), "--prompts", "8", "--answers", "32")
    told = json.loads(burnish(*args, "--json").stdout)
    assert told["judges"][0] == "true preference"
    proxy = [s["value"] for s in told["pool"]["curves"]["proxy"]]
    assert proxy == sorted(proxy)
    assert proxy[0] == pytest.approx(0.0, abs=1e-9)
    assert told["pool"]["n"] == [1, 2, 4, 8, 16, 32]
    assert set(told["pool"]["fits"]) == set(told["judges"])
    assert len(told["ppo"]["kl"]) == len(RunDirectory.open(run_copy).read_rows("metrics/ppo.jsonl"))
    page = (run_copy / "overoptimization.html").read_text()
    assert "root of KL" in page
    again = json.loads(burnish(*args, "--json").stdout)
    assert again == told, "the same answers, the same resamples"


def test_the_frontier_of_a_run_is_in_its_report_summary_and_comparison(run_copy: Path) -> None:
    args = ("evaluate", "frontier", str(run_copy), "--prompts", "8", "--answers", "64", "--samples", "2")
    found = json.loads(burnish(*args, "--json").stdout)
    ensemble = [s["value"] for s in found["curves"]["ensemble"]]
    assert ensemble == sorted(ensemble)
    assert ensemble[0] == pytest.approx(0.0, abs=1e-9)
    (name, row), *_ = found["policies"].items()
    assert set(row["by"]) == {"ensemble", "true preference", "watcher"}
    by_hand = row["by"]["ensemble"]
    at = np.interp(math.sqrt(row["kl"]["value"]), np.sqrt(found["kl"]), ensemble)
    assert by_hand["frontier"] == pytest.approx(at)
    if by_hand["share"] is not None:
        assert by_hand["share"]["value"] == pytest.approx(by_hand["gain"]["value"] / at)
    summary = json.loads((run_copy / "summary.json").read_text())
    assert summary["frontier"][name]["by"]["ensemble"]["gain"] == by_hand["gain"]
    assert "Gain for its KL" in (run_copy / "report.html").read_text()
    (run_copy / "evaluation.json").unlink()
    burnish("report", str(run_copy))
    assert "Gain for its KL" in (run_copy / "report.html").read_text(), (
        "charts follow in the order of the page"
    )
    shown = burnish("compare", str(run_copy), str(run_copy)).stdout
    assert ("share of the frontier by ensemble" in shown) == (by_hand["share"] is not None)


def test_regression_sets_are_answered_by_both(short_run: Path, tmp_path: Path) -> None:
    place = RunContext.alone(RunDirectory.open(short_run))
    prompts = place.data.splits.test[:12]
    rows = tmp_path / "facts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": p.text, "reference": " A "}) + "\n" for p in prompts))
    sets = (
        RegressionSet(file=str(rows)),
        RegressionSet(file=str(rows), measure="likelihood", limit=10),
        RegressionSet(file=str(rows), measure="exact"),
    )
    config = place.config.evaluate.model_copy(update={"regression_sets": sets})
    contains, likely, exact = measure_regression_sets(place.models, short_run / "ppo", config, 1)
    assert contains.baseline == 1.0, "every story has an a in it"
    assert contains.champion > 0.5, "most of the policy's; how many depends on the processor"
    assert (exact.champion, exact.baseline) == (0.0, 0.0)
    assert not contains.loses
    looks = sets_of_looks(place.models, config, 1)
    assert looks is not None
    assert looks(place.models.saved_policy(short_run / "ppo")) == {
        "regression_facts_contains": contains.champion,
        "regression_facts_likelihood": likely.champion,
        "regression_facts_exact": 0.0,
    }
    assert sets_of_looks(place.models, config.model_copy(update={"regression_sets": ()}), 1) is None
    assert likely.champion < 0
    assert likely.champion != likely.baseline
    assert (contains.difference.n, likely.difference.n) == (12, 10)
    (same,) = measure_regression_sets(
        place.models, short_run / "ppo", config.model_copy(update={"regression_sets": sets[1:2]}), 1
    )
    assert same == likely
    warm = config.model_copy(update={"regression_sets": sets[1:2], "temperature": 0.5})
    (as_warm,) = measure_regression_sets(place.models, short_run / "ppo", warm, 1)
    assert (as_warm.champion, as_warm.baseline) == (likely.champion, likely.baseline), "at temperature 1"
    rows.write_text(json.dumps({"prompt": "Once", "reference": "b"}) + "\n")
    with pytest.raises(DataError, match="8 are needed"):
        measure_regression_sets(place.models, short_run / "ppo", config, 1)
    place.data.close()


def test_references(tmp_path: Path) -> None:
    file = tmp_path / "sets.jsonl"
    rows = [{"prompt": "a", "reference": "b"}, {"prompt": "a", "reference": "c"}]
    rows.append({"instruction": "d", "reference": "e"})
    file.write_text("\n\n".join(json.dumps(row) for row in rows))
    assert [(p.text, r) for p, r in read_references(file)] == [("a", "b"), ("d", "e")]
    assert len(read_references(file, 1)) == 1
    file.write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError, match="line 1: `reference` is null"):
        read_references(file)


def test_updates_that_were_rolled_back_are_not_fitted_and_ticks_without_a_row_are_passed_over() -> None:
    """Attempt 0 makes updates 1 to 4 (ticks 1 to 4), tick 5 diverges, attempt 1 goes on after update 2 (ticks 6, 7)."""

    def row(step: int, attempt: int, tick: int) -> dict[str, float]:
        return {"step": step, "attempt": attempt, "tick": tick, "kl": 10.0 * attempt + step}

    made = [row(s, 0, s) for s in (1, 2, 3, 4)] + [row(3, 1, 6), row(4, 1, 7)]
    kept = kept_updates(made)
    assert [(r["step"], r["attempt"]) for r in kept] == [(1, 0), (2, 0), (3, 1), (4, 1)]
    assert kl_after(kept, made) == {1: 2.0, 2: 13.0, 6: 14.0}


def test_over_optimisation_and_chat_of_scores_that_need_a_reference(run_copy: Path) -> None:
    file = run_copy / "reward" / "ensemble.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"aggregate": "min"}))
    args = ("evaluate", "overoptimization", str(run_copy), "--prompts", "8", "--answers", "16", "--json")
    proxy = [s["value"] for s in json.loads(burnish(*args).stdout)["pool"]["curves"]["proxy"]]
    assert proxy == sorted(proxy)
    stressed = burnish(
        "reward", "stress", str(run_copy), "--answers", "16", "--best-of", "4", "--prompts", "4", check=False
    )
    assert "unexpected" not in stressed.stderr
    assert json.loads((run_copy / "stressed.json").read_text())["best_of"]["prompts"] == 4
