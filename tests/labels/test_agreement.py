"""Agreement: alpha against figures worked out by hand, planted spammers and biased annotators, consensus, drift."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from burnish.commands.label_agree import agreement
from burnish.data.store import LabelStore
from burnish.errors import DataError
from burnish.labels.agreement import alpha, alpha_interval, flip_rate, hits_of, pairwise_agreement
from burnish.labels.consensus import consensus_of, votes_of, weigh
from burnish.records import Comparison, Label, Prompt, Response
from tests.command import burnish


def label(question: int | str, who: str, value: float, **more: Any) -> Label:
    return Label(str(question), who, value, "human", **more)


def alpha_of(units: list[list[float]]) -> float | None:
    count = np.array([float(len(u)) for u in units])
    return alpha(count, np.array([sum(u) for u in units]), np.array([sum(v * v for v in u) for u in units]))


def test_alpha_golden() -> None:
    """Three questions of two answers: 11, 00, 10. One of three pairs differs by 1: D_o = 2 / 6. Six values, three of
    each: of 30 ordered pairs 18 differ, D_e = 18 / 30. alpha = 1 - (1/3) / (3/5) = 4/9."""
    assert alpha_of([[1, 1], [0, 0], [1, 0]]) == pytest.approx(4 / 9)
    assert alpha_of([[1, 1], [0, 0], [1, 0], [1]]) == pytest.approx(4 / 9), "a lone answer says nothing"
    assert alpha_of([[1, 1], [0, 0]]) == 1.0
    assert alpha_of([[1, 0], [0, 1]]) == pytest.approx(-0.5)
    assert alpha_of([[1, 1], [1, 1]]) is None
    assert alpha_of([[1], [0]]) is None


def test_alpha_of_a_published_table() -> None:
    """Krippendorff 2011, section D, reliability data with missing values of four observers, interval metric: .849."""
    rows = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    units = [[float(v) for v in column if v is not None] for column in zip(*rows, strict=True)]
    assert alpha_of(units) == pytest.approx(0.849, abs=5e-4)


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=4), min_size=2, max_size=8))
def test_alpha_does_not_change_when_all_sides_are_swapped(units: list[list[float]]) -> None:
    ours, swapped = alpha_of(units), alpha_of([[1 - v for v in u] for u in units])
    assert (ours is None) == (swapped is None)
    if ours is not None and swapped is not None:
        assert ours <= 1 + 1e-12
        assert ours == pytest.approx(swapped)


def test_the_interval_of_alpha_goes_by_prompt() -> None:
    rng = random.Random(0)
    labels = [
        label(q, f"a{k}", float(rng.random() < (0.9 if q % 2 else 0.1))) for q in range(200) for k in range(2)
    ]
    votes = votes_of(labels)
    alone = alpha_interval(votes, np.arange(200, dtype=np.int32))
    together = alpha_interval(votes, np.arange(200, dtype=np.int32) // 20)
    assert alone is not None
    assert together is not None
    assert alone.n == 200
    assert together.n == 10
    assert alone.ci_low < alone.value < alone.ci_high
    assert alpha_interval(votes_of(labels[:2]), np.zeros(1, dtype=np.int32)) is None


def test_everybody_is_held_against_the_others_and_not_against_themselves() -> None:
    votes = votes_of(
        [
            label(1, "a", 1),
            label(1, "b", 1),
            label(1, "c", 0),
            label(2, "a", 1),
            label(2, "b", 0.5),
            label(3, "a", 1),
        ]
    )
    hits = hits_of(votes)
    # a: others 0.5 of question 1 (a tie), 0.5 of question 2, nobody for 3; b: (1 + 0) / 2; c: against 1.
    assert np.isnan(hits.hit[[0, 1, 3, 4, 5]]).all()
    assert hits.hit[2] == 0.0
    assert hits.others[2] == 1.0


def crowd(n: int, seed: int, accuracy: dict[str, float], each: int = 3, **odd: str) -> list[Label]:
    """Comparisons whose first side is better half the time; `odd` annotators always take a side: `shown_first`, or
    whatever is `longer` (the first side, of even questions)."""
    rng, labels = random.Random(seed), []
    for q in range(n):
        truth = rng.random() < 0.5
        for who in rng.sample(sorted(accuracy), each):
            right, swapped = rng.random() < accuracy[who], rng.random() < 0.5
            value = float(truth == right)
            if odd.get(who) == "shown_first":
                value = float(not swapped)
            elif odd.get(who) == "longer" and rng.random() < 0.4:
                value = float(q % 2 == 0)
            elif odd.get(who) == "tires" and q > n / 2:
                value = float(rng.random() < 0.5)
            labels.append(label(q, who, value, swapped=swapped, seconds=10.0, cost=0.5))
    return labels


def stored(path: Path, labels: list[Label], n: int) -> Path:
    """Questions whose first side is longer when their number is even."""
    asked = [
        Comparison(
            Prompt(f"question {q}"),
            Response(f"one {q}" + " more words" * (q % 2 == 0)),
            Response(f"two {q}" + " more words" * (q % 2)),
        )
        for q in range(n)
    ]
    with LabelStore(path) as store:
        store.add_comparisons(asked)
        store.add_labels(
            Label(asked[int(x.comparison_id)].id, x.annotator, x.preference, x.source, seconds=x.seconds, cost=x.cost,
                  swapped=x.swapped) for x in labels
        )  # fmt: skip
    return path


def test_planted_spammers_and_biased_annotators_are_found_and_nobody_else(tmp_path: Path) -> None:
    people = {f"good{k}": 0.85 for k in range(5)} | {"spam": 0.5, "side": 0.85, "long": 0.85, "tired": 0.85}
    labels = crowd(1500, 1, people, side="shown_first", long="longer", tired="tires")
    found = agreement(stored(tmp_path / "l.sqlite", labels, 1500))
    flags = {row["annotator"]: row["flags"] for row in found["annotators"]}
    assert flags.pop("spam") == ["spammer"]
    assert set(flags.pop("side")) == {"spammer", "position"}
    assert flags.pop("long") == ["length"]
    assert flags.pop("tired") == ["drift"]
    assert sum(bool(f) for f in flags.values()) <= 1, "a twentieth of what is found may be chance"
    assert "spammer" not in {f for named in flags.values() for f in named}
    assert found["hours"] == pytest.approx(4500 * 10 / 3600)
    assert found["cost"] == pytest.approx(2250)
    assert found["consensus"] == "dawid_skene"
    assert 0.1 < found["flip_rate"] < 0.35
    rows = {row["annotator"]: row for row in found["annotators"]}
    assert rows["good0"]["weighed"] == pytest.approx(0.85, abs=0.05)
    assert rows["spam"]["weighed"] == pytest.approx(0.5, abs=0.07)


@pytest.mark.slow("statistics")
def test_a_crowd_without_faults_is_found_to_have_none(tmp_path: Path) -> None:
    flagged = 0
    for seed in range(10):
        people = {f"p{k}": 0.75 for k in range(8)}
        rows = agreement(stored(tmp_path / f"{seed}.sqlite", crowd(400, seed, people), 400))["annotators"]
        flagged += sum(bool(row["flags"]) for row in rows)
    assert flagged <= 2, "of 80 annotators; false discoveries are held at a twentieth"


def test_gold_questions_find_who_fails_them(tmp_path: Path) -> None:
    path = stored(tmp_path / "l.sqlite", crowd(100, 2, {"a": 0.9, "b": 0.9, "c": 0.9}), 100)
    with LabelStore(path) as store:
        golden = [Comparison(Prompt(f"gold {k}"), Response("right"), Response("wrong")) for k in range(30)]
        store.add_gold((c, 1.0) for c in golden)
        store.add_checks(
            Label(c.id, who, float(k % 3 > 0) if who == "a" else float(k % 3 == 0), "human")
            for k, c in enumerate(golden)
            for who in ("a", "b")
        )
    rows = {row["annotator"]: row for row in agreement(path)["annotators"]}
    assert rows["a"]["gold"]["value"] == pytest.approx(2 / 3)
    assert "fails gold" not in rows["a"]["flags"], "20 of 30, where 21 were asked for"
    assert "fails gold" in rows["b"]["flags"]
    assert rows["c"]["gold"] is None
    with LabelStore(path) as store:
        store.add_checks(Label(c.id, "gone", 0.0, "human", cost=0.5) for c in golden)
    gone = {row["annotator"]: row for row in agreement(path)["annotators"]}["gone"]
    assert (gone["labels"], gone["flags"], gone["cost"]) == (0, ["fails gold"], 15.0)


def test_weighing_beats_the_mean_where_annotators_differ_and_is_the_mean_without_overlap() -> None:
    rng = random.Random(3)
    truth = [rng.random() < 0.5 for _ in range(600)]
    people = {"expert": 0.95, "good": 0.85, "weak1": 0.58, "weak2": 0.58, "weak3": 0.55}
    labels = [
        label(q, who, float(truth[q] == (rng.random() < accuracy)))
        for q in range(600)
        for who, accuracy in people.items()
    ]

    def right(how: Any) -> float:
        found = consensus_of(labels, how)
        return sum((found[str(q)] > 0.5) == truth[q] for q in range(600)) / 600

    assert right("dawid_skene") > right("mean") + 0.03
    lone = [label(q, "a", 1.0) for q in range(5)]
    assert consensus_of(lone, "dawid_skene") == consensus_of(lone, "mean") == {str(q): 1.0 for q in range(5)}
    assert weigh(votes_of(lone), "dawid_skene").accuracy is None


def test_a_lone_label_beside_others_keeps_its_value_and_ties_count_half() -> None:
    labels = [label(q, who, 1.0) for q in range(4) for who in "ab"] + [
        label(9, "a", 0.3),
        label(10, "a", 0.5),
    ]
    labels += [label(11, "a", 0.5), label(11, "b", 0.5)]
    found = consensus_of(labels, "dawid_skene")
    assert (found["9"], found["10"]) == (0.3, 0.5)
    assert found["11"] == pytest.approx(0.5, abs=0.05)
    assert 0.99 < found["0"] < 1.0


def test_flip_rate_golden() -> None:
    """Consensus .8 and .6 of the first: labels that say first are wrong with .2 and .4, the one for second with .8."""
    votes = votes_of(
        [label(1, "a", 1.0), label(1, "b", 0.0), label(2, "a", 1.0), label(2, "b", 0.5), label(3, "a", 1.0)]
    )
    assert flip_rate(votes, np.array([0.8, 0.6, 1.0])) == pytest.approx((0.2 + 0.8 + 0.4) / 3)
    assert flip_rate(votes_of([label(1, "a", 0.5), label(1, "b", 0.5)]), np.array([0.5])) is None


def test_pairwise_agreement_golden() -> None:
    """Three of one question, two against one: one pair of three agrees; two of another agree; a tie is no side."""
    votes = votes_of(
        [
            label(1, "a", 1),
            label(1, "b", 1),
            label(1, "c", 0),
            label(2, "a", 0),
            label(2, "b", 0),
            label(2, "c", 0.5),
        ]
    )
    assert pairwise_agreement(votes) == pytest.approx(2 / 4)
    assert pairwise_agreement(votes_of([label(1, "a", 1.0)])) is None


def test_labels_stand_by_their_times() -> None:
    given = [label(q, "a", float(q), at=f"2026-01-0{3 - q}T00:00:00") for q in (0, 1)]
    votes = votes_of(given)
    assert [votes.ids[c] for c in votes.comparison] == ["1", "0"]
    assert votes.value.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("value", [0.5, 1.0])
def test_a_crowd_that_always_says_the_same_is_told_of(tmp_path: Path, value: float) -> None:
    labels = [label(q, who, value) for q in range(30) for who in "ab"]
    shown = burnish("label", "agree", str(stored(tmp_path / "l.sqlite", labels, 30)))
    assert "alpha is undefined" in shown.stdout


@pytest.mark.slow("statistics")
def test_who_is_as_good_as_the_crowd_is_not_found_to_differ(tmp_path: Path) -> None:
    """Nine of ten agree: by flipping signs around .9 a fifth of such annotators would be found."""
    found = 0
    for seed in range(8):
        people = {f"p{k}": 0.95 for k in range(6)}
        report = agreement(stored(tmp_path / f"{seed}.sqlite", crowd(60, seed, people), 60))
        found += sum(f["p"] < 0.05 for f in report["findings"] if f["name"].startswith("agreement"))
    assert found <= 5, "of 48"


def test_judges_are_told_apart_from_people(tmp_path: Path) -> None:
    path = stored(tmp_path / "l.sqlite", crowd(60, 4, {"a": 0.9, "b": 0.9, "c": 0.9}), 60)
    with LabelStore(path) as store:
        store.add_labels(Label(c.id, "judge:m", 0.9, "judge") for c in store.comparisons())
    found = agreement(path)
    assert found["alpha_of_people"]["value"] > found["alpha"]["value"]
    assert {row["source"] for row in found["annotators"]} == {"human", "judge"}


def test_the_command_tells_and_writes_a_page(tmp_path: Path) -> None:
    path, page = (
        stored(tmp_path / "l.sqlite", crowd(100, 5, {"a": 0.9, "b": 0.9, "c": 0.5}), 100),
        tmp_path / "p.html",
    )
    shown = burnish("label", "agree", str(path), "--page", str(page))
    assert "Krippendorff's alpha" in shown.stdout
    assert "Agreement of 3 annotators" in page.read_text()
    told = burnish("label", "agree", str(path), "--json", "--consensus", "mean")
    assert json.loads(told.stdout)["consensus"] == "mean"
    with LabelStore(tmp_path / "empty.sqlite"):
        pass
    with pytest.raises(DataError, match="has no labels; collect or load some"):
        agreement(tmp_path / "empty.sqlite")


def test_what_labels_come_to_can_be_written(tmp_path: Path) -> None:
    path = stored(tmp_path / "l.sqlite", crowd(50, 6, {"a": 0.9, "b": 0.9, "c": 0.9}), 50)
    for as_ in ("labels", "pairs", "rankings"):
        out = tmp_path / f"{as_}.jsonl"
        shown = burnish("label", "dump", str(path), str(out), "--as", as_, "--json")
        assert json.loads(shown.stdout)["rows"] == len(out.read_text().splitlines())
    burnish("label", "load", str(tmp_path / "new.sqlite"), str(tmp_path / "labels.jsonl"))
    with LabelStore(tmp_path / "new.sqlite") as store, LabelStore(path) as old:
        assert sorted(store.labels(), key=str) == sorted(old.labels(), key=str)


def test_times_of_other_zones_are_sorted_as_instants() -> None:
    at = ["2026-01-01T10:00:00+00:00", "2026-01-01T10:30:00+02:00", "2026-01-01T09:00:00Z", "no time"]
    labels = [Label(f"c{i}", "a", i / 4, "human", at=time) for i, time in enumerate(at)]
    assert votes_of(labels).value.tolist() == [0.25, 0.5, 0.0, 0.75]
