"""Audits of judges: planted faults are found, and nothing else is."""

from __future__ import annotations

import gzip
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import PlantedJudge, comparisons, worth

from burnish.commands.label_audit import PROBES, audit_judge, audit_readings
from burnish.config.judge import JudgeConfig
from burnish.data.rankings import read_rankings, strict_pairs
from burnish.data.store import LabelStore
from burnish.errors import ConfigError, DataError
from burnish.labels.hypothesis_tests import (
    DRAWN,
    findings,
    flip_test,
    mean_against,
    share_against,
    smallest_effect,
)
from burnish.labels.ranking_audit import first_places, repeated
from burnish.records import Label
from tests.command import burnish
from tests.labels.scripted import Script, serving

REAL = Path(__file__).parents[2] / "examples" / "data" / "smollm2_ai_feedback.jsonl.gz"
CONFIG = JudgeConfig(model="planted", concurrency=1)


def test_flip_test_golden() -> None:
    """Three clusters that all say +1: one of eight ways is as far up, two as far either way."""
    ones = np.ones(3)
    assert flip_test(ones, [1, 2, 3], side="more", seed=0) == pytest.approx(1 / 8)
    assert flip_test(ones, [1, 2, 3], side="both", seed=0) == pytest.approx(2 / 8)
    assert flip_test(-ones, [1, 2, 3], side="more", seed=0) == 1.0
    assert flip_test(np.ones(6), [1, 1, 2, 2, 3, 3], side="both", seed=0) == pytest.approx(2 / 8)
    assert flip_test(np.zeros(4), [1, 2, 3, 4], side="both", seed=0) == 1.0


def test_flip_test_by_draws_and_by_the_normal_limit_say_the_same() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0.1, 1, DRAWN)
    drawn = flip_test(x, range(DRAWN), side="both", seed=1)
    limit = flip_test(np.append(x, 1e-9), range(DRAWN + 1), side="both", seed=1)
    assert drawn == pytest.approx(limit, abs=0.01)
    assert drawn < 0.2


def test_findings_are_corrected_for_their_number() -> None:
    """p of .01, .02, .9: q = .01 * 3, .02 * 3 / 2, .9; the first two are both .03."""
    made = [share_against(name, "", [1.0] * 3 + [0.0] * 17, range(20), most=0.05) for name in ("a", "b", "c")]
    from dataclasses import replace

    tests = [replace(t, p=p) for t, p in zip(made, (0.01, 0.02, 0.9), strict=True) if t is not None]
    found = findings([tests[0], None, *tests[1:]])
    assert [f.q for f in found] == pytest.approx([0.03, 0.03, 0.9])
    assert [f.seen for f in found] == [True, True, False]
    assert findings([None]) == []


def test_too_few_clusters_are_not_tested() -> None:
    assert mean_against("x", "", [1.0] * 40, [i % 11 for i in range(40)], null=0.5) is None
    assert share_against("x", "", [1.0] * 11, range(11), most=0.5) is None


def test_the_smallest_effect_is_seen_in_about_eighty_of_a_hundred_samples() -> None:
    n, level, seen = 200, 0.05, 0
    rng = np.random.default_rng(3)
    null = mean_against("x", "", rng.normal(0, 1, n).tolist(), range(n))
    assert null is not None
    effect = smallest_effect(null, level)
    assert effect == pytest.approx((1.96 + 0.8416) / math.sqrt(n), rel=0.15)
    for _ in range(200):
        test = mean_against("x", "", rng.normal(effect, 1, n).tolist(), range(n), seed=1)
        assert test is not None
        seen += test.p <= level
    assert 0.68 < seen / 200 < 0.92


def store_with(tmp_path: Path, seed: int, n: int = 160, people: float = 1.0) -> Path:
    """Comparisons of two models, labelled by people who go by worth and nothing else."""
    file = tmp_path / f"labels-{seed}.sqlite"
    if not file.exists():
        with LabelStore(file) as store:
            asked = comparisons(n, seed)
            store.add_comparisons(asked)
            rng = random.Random(seed)
            store.add_labels(
                Label(c.id, "person:a", float(worth(c.first.text) > worth(c.second.text)), "human")
                for c in asked
                if rng.random() < people
            )
    return file


def audited(tmp_path: Path, judge: PlantedJudge, seed: int = 0, **more: Any) -> dict[str, Any]:
    judge.seed = seed
    file = store_with(tmp_path, seed, n=more.pop("pairs", 160))
    ledger = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
    return audit_judge(file, CONFIG, ledger, n=160, own="mine", open_=lambda _: judge, seed=seed, **more)


@pytest.mark.parametrize(
    ("faults", "named"),
    [
        ({"position": 1.0}, "position"),
        ({"length": 0.15}, "verbosity"),
        ({"own": 1.5}, "self-preference"),
        ({"claims": 1.0}, "claim"),
        ({"wording": 2.0}, "wording"),
        ({"unsteady": 2.0}, "stability"),
    ],
)
def test_a_planted_fault_is_found(tmp_path: Path, faults: dict[str, float], named: str) -> None:
    found = audited(tmp_path, PlantedJudge(worth, noise=0.3, **faults))
    assert named in found["seen"]
    fine = {f["name"] for f in found["findings"]} - set(found["seen"])
    if named == "verbosity":  # whoever likes words likes what adds them
        assert {"position", "stability", "wording"} <= fine
    else:
        assert set(found["seen"]) == {named}


@pytest.mark.slow("statistics")
def test_a_judge_without_faults_is_found_to_have_none(tmp_path: Path) -> None:
    """Ten judges with 11 probes each: 5 % of these audits may say otherwise."""
    wrong = [
        audited(tmp_path, PlantedJudge(worth, noise=0.5, unsteady=0.1), seed)["seen"] for seed in range(10)
    ]
    assert sum(bool(w) for w in wrong) <= 2
    assert len(wrong) == 10


def test_what_needs_people_is_left_open_without_them(tmp_path: Path) -> None:
    file = tmp_path / "l.sqlite"
    with LabelStore(file) as store:
        store.add_comparisons(comparisons(40, 1))
    judge = PlantedJudge(worth, length=1.0)
    found = audit_judge(file, CONFIG, tmp_path / "a.jsonl", n=40, own="mine", open_=lambda _: judge)
    assert {"verbosity", "self-preference"}.isdisjoint(f["name"] for f in found["findings"])
    assert found["not_tested"] == 2
    assert found["agrees_with_people"] is None
    with LabelStore(file) as store:
        assert list(store.labels()) == []


def test_the_same_audit_again_asks_nothing(tmp_path: Path) -> None:
    file, judge = store_with(tmp_path, 0), PlantedJudge(worth, unsteady=1.0)
    once = audit_judge(file, CONFIG, tmp_path / "a.jsonl", n=30, open_=lambda _: judge)
    asked = judge.asked.total()
    assert max(judge.asked.values()) == 2  # as it is, and again
    again = audit_judge(file, CONFIG, tmp_path / "a.jsonl", n=30, open_=lambda _: judge)
    assert judge.asked.total() == asked
    assert again["findings"] == once["findings"]


def test_comparisons_that_people_have_labelled_are_asked_first(tmp_path: Path) -> None:
    file = tmp_path / "l.sqlite"
    asked = comparisons(60, 2)
    with LabelStore(file) as store:
        store.add_comparisons(asked)
        store.add_labels(Label(c.id, "person:a", 1.0, "human") for c in asked[::4])
    judge = PlantedJudge(worth)
    found = audit_judge(file, CONFIG, tmp_path / "a.jsonl", n=15, probes=("people",), open_=lambda _: judge)
    assert found["agrees_with_people"]["n"] == 15


def test_a_budget_that_is_too_small_and_an_unknown_probe_are_said(tmp_path: Path) -> None:
    file, judge = store_with(tmp_path, 0), PlantedJudge(worth)
    config = JudgeConfig(model="planted", price_in=1.0, budget=0.01, concurrency=1)
    with pytest.raises(DataError, match=r"budget=0.01 holds .* of 30 comparisons of 'as it is': raise it"):
        audit_judge(file, config, tmp_path / "a.jsonl", n=30, open_=lambda _: judge)
    with pytest.raises(ConfigError, match=r"'postion' is unknown; there are position, stability"):
        audit_judge(file, CONFIG, tmp_path / "b.jsonl", n=30, probes=("postion",), open_=lambda _: judge)


def rankings(tmp_path: Path, n: int, first: float, again: float | None, seed: int = 0) -> Path:
    """Four answers in a random order; the one shown first is raised by `first` standard deviations."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        value = [rng.gauss(0, 1) for _ in range(4)]
        seen = [v + first * (j == 0) for j, v in enumerate(value)]
        row = {
            "id": f"{'a' if i % 2 else 'b'}-{i}",
            "prompt": f"p{i}",
            "responses": [f"answer {i} {j}" for j in range(4)],
            "ranking": [[j] for j in sorted(range(4), key=lambda j: -seen[j])],
        }
        if again is not None:
            other = [v + rng.gauss(0, again) for v in value]
            row["ranking_again"] = [[j] for j in sorted(range(4), key=lambda j: -other[j])]
        rows.append(row)
    path = tmp_path / f"r{first}-{again}-{seed}.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    return path


def test_readings_with_a_bias_for_the_first_place(tmp_path: Path) -> None:
    found = audit_readings(rankings(tmp_path, 400, 0.5, 0.05), None)
    assert "place 1 of 4" in found["seen"]
    shares = [f["value"] for f in found["findings"] if f["name"].startswith("place")]
    assert sum(shares) == pytest.approx(1.0)
    assert audit_readings(rankings(tmp_path, 400, 0.0, None), None)["seen"] == []
    assert audit_readings(rankings(tmp_path, 400, 0.0, 0.05), None)["seen"] == []
    assert audit_readings(rankings(tmp_path, 400, 0.0, 0.8), None)["seen"] == ["stability"]


def test_first_places_are_shared_among_ties_and_second_readings_counted(tmp_path: Path) -> None:
    """Twelve items of two, six tied on top: place 1 has (6 * 1/2 + 6) / 12 = 0.75."""
    rows = [
        {
            "prompt": f"p{i}",
            "responses": ["x", "y y"],
            "ranking": [[0, 1]] if i < 6 else [[0], [1]],
            **({"ranking_again": [[1], [0]]} if i == 11 else {}),
        }
        for i in range(12)
    ]
    for row in rows[:6]:
        row["responses"].append("z")  # type: ignore[attr-defined]
        row["ranking"] = [[0, 1], [2]]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found, bad = read_rankings(path)
    assert not bad
    assert first_places(found) == []  # six of three answers, six of two: fewer than twelve of a kind
    assert strict_pairs(found[0].tiers) == {(0, 2): True, (1, 2): True}
    test, figures = repeated(found)
    assert test is None
    assert figures is not None
    assert (figures["pairs"], figures["best_became_worst"], figures["agree"]["value"]) == (1, 1, 0.0)


def test_ids_choose_rankings_and_what_matches_nothing_is_said(tmp_path: Path) -> None:
    path = rankings(tmp_path, 40, 0.0, None)
    assert audit_readings(path, "^a-")["rankings"] == 20
    with pytest.raises(DataError, match="no usable ranking"):
        audit_readings(path, "^c-")
    with pytest.raises(DataError, match="not a valid regular expression"):
        audit_readings(path, "(")


def test_the_position_bias_of_the_ai_feedback_is_found() -> None:
    public = audit_readings(REAL, "^(vicuna|mt|si|su)-")
    assert "place 1 of 4" in public["seen"]
    assert "place 1 of 4" not in audit_readings(REAL, "^q")["seen"]
    assert audit_readings(REAL, None)["second_readings"]["agree"]["value"] == pytest.approx(0.93, abs=0.01)


def test_the_command_asks_a_served_judge_and_writes_a_page(tmp_path: Path) -> None:
    file, page = store_with(tmp_path, 0, n=40), tmp_path / "audit.html"
    with serving(Script(worth, bias=3.0)) as url:
        given = ["label", "audit", str(file), "--model", "m", "--endpoint", url, "--page", str(page)]
        shown = burnish(*given, "--n", "40", "--probe", "position", "--probe", "people")
    assert "Bias found: position" in shown.stdout
    assert "the answer shown first wins" in page.read_text()
    assert set(PROBES) >= {"position", "people"}
