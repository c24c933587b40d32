"""Plans of a run: from a rehearsal's labels, and with a judge in the store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burnish.commands.label_plan import plan
from burnish.data.store import LabelStore
from burnish.errors import DataError, RunError
from burnish.records import Comparison, Label, Prompt, Response
from burnish.rehearse.grammar import prompts
from tests.command import burnish
from tests.small_run import SMALL


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rehearsal up to its labels."""
    path = tmp_path_factory.mktemp("plan") / "run"
    sets = [a for s in (*SMALL, "collect.n_pairs=200", "data.n_prompts=400") for a in ("--set", s)]
    burnish("run", "--dir", str(path), "--until", "label", *sets)
    return path


def test_a_rehearsal_is_planned_from(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    given = ["label", "plan", str(run), "--price-person", "1", "--accuracy", "0.7", "--labels", "5000"]
    burnish(*given, "--page", str(page))
    assert "Accuracy against labels" in page.read_text()
    report = json.loads(burnish(*given, "--json").stdout)
    assert report["mixes"] == [
        {"judge": 0.0, "cost": 5000.0, "worth": 5000.0, "accuracy": report["mixes"][0]["accuracy"]}
    ]
    assert 0.5 < report["seen"][-1]["accuracy"] < 1
    assert {row["labels"] for row in report["expected"]} >= {5000, 50000}


def test_a_judge_in_the_store_is_weighed(run: Path, tmp_path: Path) -> None:
    """It agrees with two people, who agree, on nine comparisons of ten."""
    store = tmp_path / "l.sqlite"
    asked = [Comparison(p, Response(" She sang."), Response(" He wept.")) for p in prompts(200, seed=3)]
    with LabelStore(store) as labels:
        labels.add_comparisons(asked)
        labels.add_labels(Label(c.id, who, 1.0, "human", cost=0.5) for c in asked for who in "ab")
        labels.add_labels(
            Label(c.id, "judge:m", 0.1 if i % 10 == 0 else 0.9, "judge", cost=0.01)
            for i, c in enumerate(asked)
        )
    report = plan(
        run, store=store, labels=1000, most=120, accuracy=None, price_judge=None, price_person=None, seed=0
    )
    assert report["pairs"] == 120
    sources = report["sources"]
    assert (sources["judge_agrees"], sources["people_agree"]) == (pytest.approx(0.9), 1.0)
    assert sources["worth"] == pytest.approx(0.64)
    assert (sources["price_person"], sources["price_judge"]) == (pytest.approx(1.0), pytest.approx(0.01))
    assert len(report["mixes"]) == 6


def test_too_few_pairs_are_said(run: Path, tmp_path: Path) -> None:
    store = tmp_path / "l.sqlite"
    c = Comparison(Prompt("Zoe had a cup."), Response(" She sang."), Response(" She wept."))
    with LabelStore(store) as labels:
        labels.add_comparisons([c])
        labels.add_labels([Label(c.id, "a", 1.0, "human")])
    told = {
        "labels": 1000,
        "most": 100,
        "accuracy": None,
        "price_judge": None,
        "price_person": None,
        "seed": 0,
    }
    with pytest.raises(DataError, match="1 labelled pairs that can be used; a plan needs at least 80"):
        plan(run, store=store, **told)
    with pytest.raises(RunError):
        plan(tmp_path, store=None, **told)
