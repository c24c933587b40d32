"""Routing: the agreement asked holds, the temperature is recovered, costs by hand, and what goes to people."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from burnish.commands.label_route import route
from burnish.data.store import LabelStore
from burnish.errors import ConfigError, DataError
from burnish.labels.route import Calibrated, Prices, bound_for, calibrated, plan_of, reliability, surety_of
from burnish.records import Comparison, Label, Prompt, Response
from tests.command import burnish

GIVEN: dict[str, Any] = {
    "target": 0.85,
    "judge": None,
    "check": 0.0,
    "price_judge": None,
    "price_person": None,
    "people_each": 1,
    "out": None,
    "seed": 0,
}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def drawn(n: int, seed: int, temperature: float = 2.0, scale: float = 4.0) -> tuple[list[float], list[float]]:
    """A judge whose log-odds, divided by the temperature, are those with which people say first."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, scale, n)
    people = (rng.random(n) < 1 / (1 + np.exp(-odds / temperature))).astype(float)
    return (1 / (1 + np.exp(-odds))).tolist(), people.tolist()


def test_the_temperature_is_recovered_and_mends_calibration() -> None:
    judge, people = drawn(4000, 0)
    known = calibrated(judge, people, [str(i) for i in range(4000)])
    assert known.temperature == pytest.approx(2.0, rel=0.1)
    found = reliability(known)
    assert found["ece_fitted"] < 0.03 < found["ece"]
    assert found["brier_fitted"] < found["brier"]


def test_surety_golden_and_ties() -> None:
    assert surety_of([0.5, sigmoid(2.0), sigmoid(-3.0)]) == pytest.approx([0.0, 2.0, 3.0])
    assert np.isfinite(surety_of([0.0, 1.0])).all()
    judge, people = [0.5] * 30 + [0.9] * 40, [1.0] * 30 + [0.5] * 10 + [1.0] * 30
    known = calibrated(judge, people, [str(i) for i in range(70)])
    assert len(known.agrees) == 60, "people's ties say nothing"
    assert known.agrees[:30].sum() == 15, "a judge that is torn agrees with half"
    mixed = [v for _ in range(20) for v in (0.5, 0.9)]  # every tie at an even position
    assert calibrated(mixed, [1.0] * 40, list(map(str, range(40)))).agrees[::2].sum() == 10
    with pytest.raises(ValueError, match="29 comparisons have a judge's label and a person's"):
        calibrated(judge[:29], people[:29], list(map(str, range(29))))


def known_of(agrees: list[bool], surety: list[float] | None = None) -> Calibrated:
    surety = surety or [float(len(agrees) - i) for i in range(len(agrees))]
    return Calibrated(np.array(surety), np.array(agrees), [str(i) for i in range(len(agrees))], 1.0)


def test_bound_golden() -> None:
    """Ninety-nine of a hundred agree: at a target of .9, 29 without a disagreement (.9^29 = .047) are the fewest that
    prove it; all hundred do, for 99 or more of 100 at .9 has p = .9^100 + 100 * .1 * .9^99 = 3.2e-4. At .99 it takes
    299."""
    known = known_of([True] * 99 + [False])
    bound = bound_for(0.9, known)
    assert (bound.kept, bound.needed) == (100, 29)
    assert bound.surety is not None
    assert 0 < bound.surety < 1e-6
    assert bound_for(0.99, known).surety is None
    assert bound_for(0.99, known).needed == 299
    assert bound_for(0.9, known_of([True] * 28)).surety is None
    assert bound_for(0.9, known_of([True] * 29)).kept == 29
    with pytest.raises(ValueError, match=r"target=0.5 must lie between 0.5 and 1"):
        bound_for(0.5, known)


def test_a_bound_takes_in_all_that_are_equally_sure() -> None:
    """Two thirds of what is equally sure agree: whichever stand first must not be taken for all."""
    known = known_of([True] * 60 + [False] * 30, [1.0] * 90)
    assert bound_for(0.9, known).surety is None
    assert bound_for(0.55, known).kept == 90
    least = bound_for(0.55, known).surety
    assert least is not None
    assert 0 < least < 1e-6, "all are trusted, however unsure; but who is torn names no side"


def test_answers_to_one_prompt_are_not_so_many_proofs() -> None:
    agrees = [True] * 40 + [False] * 4
    lone = Calibrated(np.ones(44), np.array(agrees), [str(i) for i in range(44)], 1.0)
    together = Calibrated(np.ones(44), np.array(agrees), [str(i // 4) for i in range(44)], 1.0)
    assert bound_for(0.8, lone).surety is not None
    assert bound_for(0.8, together).surety is None


def test_the_agreement_that_was_asked_holds_in_nineteen_of_twenty_calibrations() -> None:
    judge, people = drawn(20000, 1, scale=3.0)
    odds = surety_of(judge)
    right = np.array([(j > 0.5) == (h > 0.5) for j, h in zip(judge, people, strict=True)])
    missed = used = 0
    rng = np.random.default_rng(5)
    for _ in range(300):
        rows = rng.choice(20000, 300, replace=False)
        known = calibrated([judge[i] for i in rows], [people[i] for i in rows], [str(i) for i in rows])
        bound = bound_for(0.8, known)
        if bound.surety is not None:
            used += 1
            missed += right[odds >= bound.surety].mean() < 0.8
    assert used > 200
    assert missed / 300 < 0.08


def test_cost_golden() -> None:
    """A pool of 100, of which 60 are sure; 50 more not judged yet, of which 60 % will be: 60 go to people, two each at
    1 dollar, and 50 questions at 1 cent; 60 * 2 * 36 s = 1.2 h."""
    known = known_of([True] * 60 + [False] * 40)
    pool = np.array([80.0] * 60 + [1.0] * 40)
    plan = plan_of(0.9, known, pool, 50, Prices(judge=0.01, person=1.0, seconds=36.0, people_each=2))
    assert plan["surety"] is not None
    assert plan["surety"] <= 80
    assert plan["coverage"]["value"] == 0.6
    assert plan["to_people"] == pytest.approx(60)
    assert plan["cost"] == pytest.approx(120.5)
    assert plan["hours"] == pytest.approx(1.2)
    assert plan["cost_low"] < plan["cost"] < plan["cost_high"]


def stored(path: Path, n: int, answered: int, seed: int = 0, good: bool = True) -> Path:
    """`n` comparisons with a judge's label, of which the first `answered` have a person's."""
    judge, people = drawn(n, seed)
    if not good:
        rng = random.Random(seed)
        people = [float(rng.random() < 0.5) for _ in people]
    asked = [Comparison(Prompt(f"q {i}"), Response(f"a {i}"), Response(f"b {i}")) for i in range(n)]
    with LabelStore(path) as store:
        store.add_comparisons(asked)
        store.add_labels(
            Label(c.id, "judge:m@1", p, "judge", cost=0.002) for c, p in zip(asked, judge, strict=True)
        )
        store.add_labels(
            Label(c.id, "person:zoe", p, "human", cost=0.5, seconds=30.0)
            for c, p in zip(asked[:answered], people, strict=False)
        )
    return path


def test_what_the_judge_is_unsure_of_goes_to_people_least_sure_first(tmp_path: Path) -> None:
    path, out = stored(tmp_path / "l.sqlite", 1000, 400), tmp_path / "people.jsonl"
    found = route(path, **{**GIVEN, "out": out, "check": 0.2})
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    unsure = [line for line in lines if line["why"] == "judge unsure"]
    checks = [line for line in lines if line["why"] == "check"]
    assert [line["score"] for line in unsure] == sorted(line["score"] for line in unsure)
    assert unsure[-1]["score"] < found["plan"]["surety"] <= min(line["score"] for line in checks)
    kept = 600 - len(unsure)
    assert len(unsure) + 0.2 * kept == pytest.approx(found["plan"]["to_people"])
    assert 0.1 * kept < len(checks) < 0.3 * kept
    assert found["waiting"] == 600
    assert found["cost_all_people"] == pytest.approx(300)
    assert found["plan"]["cost"] < 300
    costs = [p["cost"] for p in found["plans"]]
    assert costs == sorted(costs), "more agreement costs more"
    shares = [p["coverage"]["value"] for p in found["plans"]]
    assert shares == sorted(shares, reverse=True)


def test_a_judge_by_votes_is_as_sure_as_it_is_right() -> None:
    rng = random.Random(0)
    judge = [float(rng.random() < 0.5) for _ in range(3000)]
    people = [j if rng.random() < 0.6 else 1 - j for j in judge]
    known = calibrated(judge, people, [str(i) for i in range(3000)])
    assert known.confidence(surety_of([1.0]))[0] == pytest.approx(0.6, abs=0.02)


def test_a_judge_that_agrees_by_chance_is_trusted_with_nothing(tmp_path: Path) -> None:
    path, out = stored(tmp_path / "l.sqlite", 400, 200, good=False), tmp_path / "people.jsonl"
    found = route(path, **{**GIVEN, "out": out})
    assert found["plan"]["surety"] is None
    assert len(out.read_text().splitlines()) == 200
    assert found["plan"]["cost"] == found["cost_all_people"]


def test_what_lacks_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"29 comparisons have .* random"):
        route(stored(tmp_path / "few.sqlite", 100, 29), **GIVEN)
    path = stored(tmp_path / "l.sqlite", 100, 50)
    with pytest.raises(ConfigError, match=r"--judge 'other' means none of judge:m@1"):
        route(path, **{**GIVEN, "judge": "other"})
    with LabelStore(path) as store:
        store.add_labels(Label(c.id, "judge:n@1", 0.5, "judge") for c in store.comparisons())
    with pytest.raises(ConfigError, match=r"must name one of judge:m@1, judge:n@1"):
        route(path, **GIVEN)
    assert route(path, **{**GIVEN, "judge": "m@"})["judge"] == "judge:m@1"
    with LabelStore(tmp_path / "none.sqlite"):
        pass
    with pytest.raises(DataError, match="has no label of a judge"):
        route(tmp_path / "none.sqlite", **GIVEN)


def test_the_command_tells_writes_a_page_and_its_file_is_a_selection(tmp_path: Path) -> None:
    path = stored(tmp_path / "l.sqlite", 600, 300)
    out, page, batch = tmp_path / "people.jsonl", tmp_path / "r.html", tmp_path / "batch"
    shown = burnish("label", "route", str(path), "--out", str(out), "--page", str(page))
    assert "The judge keeps comparisons at 85% agreement" in shown.stdout
    assert "What agreement costs" in page.read_text()
    given = ["label", "export", str(path), str(batch), "--vendor", "surge", "--only", str(out), "--json"]
    sent = burnish(*given)
    assert json.loads(sent.stdout)["items"] == len(out.read_text().splitlines())
