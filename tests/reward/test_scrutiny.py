"""Scrutiny of reward models: every figure against models whose faults are known."""

from __future__ import annotations

import numpy as np
import pytest

from burnish.records import Label, Preference, Prompt
from burnish.reward import scrutiny
from burnish.reward.slices import SECTIONS, sections, slices, topics

RNG = np.random.default_rng(0)
N = 2000
GROUPS = [f"prompt {i // 2}" for i in range(N)]
TRUE = RNG.normal(size=N) * 2
WON = np.where(RNG.random(N) < 1 / (1 + np.exp(-TRUE)), 1.0, -1.0)
"""A model that is exactly as sure as it is right: its gap, seen from the answer that won."""
GAPS = (TRUE * WON)[:, None]
SD = np.ones(1)


def test_a_calibrated_model_and_one_that_is_too_sure() -> None:
    good = scrutiny.reliability(GAPS, GAPS[:, 0], GROUPS)
    assert good["ece"] < 0.03
    assert good["temperature"] == pytest.approx(1.0, abs=0.15)
    assert scrutiny.is_calibrated(good)["outcome"] == "go"
    sure = scrutiny.reliability(4 * GAPS, GAPS[:, 0], GROUPS)
    assert sure["ece"] > 0.1
    assert sure["temperature"] == pytest.approx(4.0, rel=0.15)
    assert sure["ece_fitted"] < 0.04, "on pairs that the temperature was not fitted on"
    assert scrutiny.is_calibrated(sure)["outcome"] == "warn"


def test_few_pairs_are_no_evidence_against_calibration() -> None:
    few = scrutiny.reliability(GAPS[:60], GAPS[:60, 0], GROUPS[:60])
    many = scrutiny.reliability(GAPS, GAPS[:, 0], GROUPS)
    assert few["ece_by_chance"] > 0.08 > 0.04 > many["ece_by_chance"]
    report = {"ece": 0.11, "ece_by_chance": 0.12, "temperature": 1.0}
    assert scrutiny.is_calibrated(report)["outcome"] == "go"
    assert scrutiny.is_calibrated(report | {"ece_by_chance": 0.02})["outcome"] == "warn"


def test_disagreement_foretells_errors_where_it_does() -> None:
    members = TRUE[:, None] + RNG.normal(size=(N, 3)) * np.where(np.arange(N) % 2, 3.0, 0.1)[:, None]
    gaps = members * np.sign(TRUE)[:, None]
    found = scrutiny.disagreement(gaps, np.ones(3), gaps.mean(1), GROUPS, 0, 0.95)
    assert found is not None
    assert found["auroc"]["ci_low"] > 0.7
    assert scrutiny.disagreement(GAPS, SD, GAPS[:, 0], GROUPS, 0, 0.95) is None, "one member"
    flawless = scrutiny.disagreement(np.abs(gaps), np.ones(3), np.abs(gaps).mean(1), GROUPS, 0, 0.95)
    assert flawless is not None
    assert flawless["auroc"] is None, "no error to be foretold is no figure"


def test_diversity_of_copies_and_of_strangers() -> None:
    same = scrutiny.diversity(np.repeat(GAPS, 3, 1), np.ones(3))
    assert same is not None
    assert same["verdicts_that_differ"] == 0
    assert same["error_correlation"] == pytest.approx(1)
    apart = scrutiny.diversity(RNG.normal(size=(N, 3)), np.ones(3))
    assert apart is not None
    assert apart["verdicts_that_differ"] == pytest.approx(0.5, abs=0.05)
    assert abs(apart["error_correlation"]) < 0.1


def test_length_within_prompts_is_told_from_length_between_them() -> None:
    """Prompts ask for different lengths, and what they score is all there is to it."""
    asked = np.repeat(RNG.integers(10, 200, size=500), 2)
    lengths = asked + RNG.integers(-9, 10, size=1000)
    rows = np.arange(1000).reshape(-1, 2)
    between = asked / 50 + RNG.normal(size=1000) * 0.2
    found = scrutiny.length_link(between, lengths.tolist(), rows, between[rows[:, 0]] - between[rows[:, 1]])
    assert found["overall"] > 0.9
    assert abs(found["within_prompt"]) < 0.15
    within = lengths - asked + 0.0
    found = scrutiny.length_link(within, lengths.tolist(), rows, within[rows[:, 0]] - within[rows[:, 1]])
    assert found["within_prompt"] == pytest.approx(1)


def moved(share: float) -> list[tuple[int, str, float]]:
    """Changes of which this share turns the verdict."""
    margin = GAPS[:, 0]
    return [(i, "synonyms", float(-margin[i] if i < share * 400 else margin[i])) for i in range(400)]


@pytest.mark.parametrize(("share", "outcome"), [(0.02, "go"), (0.11, "warn"), (0.3, "stop")])
def test_wording_that_turns_verdicts(share: float, outcome: str) -> None:
    found = scrutiny.paraphrased(GAPS[:, 0], moved(share), GROUPS, 0.95)
    assert found["outcome"] == outcome
    assert found["turned"]["value"] == pytest.approx(share)
    assert found["kinds"]["synonyms"]["changed"] == 400
    assert scrutiny.paraphrased(GAPS[:, 0], moved(share)[:9], GROUPS, 0.95)["outcome"] == "too few"


@pytest.mark.parametrize(("own", "outcome"), [(0.75, "go"), (0.52, "warn"), (0.47, "stop")])
def test_what_a_reward_is_worth_on_the_policys_own_answers(own: float, outcome: str) -> None:
    validation = scrutiny.accuracy(np.arange(500) < 400, [str(i) for i in range(500)], 0.95)
    hits = np.arange(300) < own * 300
    right = {"early": (hits[:10], ["p"] * 10), "late": (hits, [str(i) for i in range(300)])}
    found = scrutiny.on_own_answers(validation, right, 0.95)
    assert found["outcome"] == outcome
    assert found["gap"]["value"] == pytest.approx(0.8 - own, abs=0.01)
    assert found["gap"]["ci_low"] < found["gap"]["value"] < found["gap"]["ci_high"]
    assert found["rows"]["early"] == {"pairs": 10}
    assert scrutiny.on_own_answers(validation, {}, 0.95)["outcome"] == "too few"


def test_the_worst_part_decides() -> None:
    go, warn = {"outcome": "go", "why": ""}, {"outcome": "warn", "why": "look"}
    assert scrutiny.verdict({"a": go, "b": warn}) == ("warn", ["b: look"])
    assert scrutiny.verdict({"a": {"outcome": "too few", "why": ""}, "b": go})[0] == "go"
    assert scrutiny.verdict({"a": {"outcome": "too few", "why": ""}})[0] == "too few"


def test_rules_that_must_be_beaten() -> None:
    found = {"value": 0.6, "ci_low": 0.55, "ci_high": 0.65}
    assert scrutiny.beats_rules(found, {"longer": 0.52})["outcome"] == "go"
    assert scrutiny.beats_rules(found, {"longer": 0.57})["outcome"] == "warn"
    assert scrutiny.beats_rules(found, {"longer": 0.61})["outcome"] == "stop"


def test_slices_by_everything_that_is_known() -> None:
    pairs = [
        Preference(Prompt("What is the capital of France?"), "Paris is the capital.", "No", 1.0, "a"),
        Preference(
            Prompt("Quelle est la capitale de la France ?"), "Oui", "Paris est la belle capitale", 1.0, "b"
        ),
        Preference(Prompt("Why?"), "one two three", "four five six", 1.0, "c"),
    ]
    labels = [
        *(Label("a", w, v, "human") for w, v in (("x", 1.0), ("y", 0.0))),
        *(Label("b", w, 1.0, "judge") for w in ("x", "y")),
        Label("c", "x", 1.0, "human"),
    ]
    found = slices(pairs, labels, 0)
    assert found["length"] == ["the longer preferred", "the shorter preferred", "about as long"]
    assert found["language"] == ["en", "fr", "und"]
    assert found["labels from"] == ["human", "judge", "human"]
    assert found["labels"] == ["contradict", "agree", "one label"]
    assert found["topic"] == ["all"] * 3, "too few prompts to be parted"
    assert "labels" not in slices(pairs, [], 0)


def test_rewardbench_is_scored_by_its_sections() -> None:
    subsets = ["mt-bench-easy"] * 4 + ["math-prm"] * 8 + ["hep-go"] * 2 + ["hep-rust"] * 2
    right = [True, True, True, False] + [True] * 8 + [True, False, False, False]
    found = sections(subsets, right)
    assert found is not None
    assert found["chat"]["value"] == 0.75
    assert found["reasoning"]["value"] == pytest.approx((1 + 0.25) / 2), "mathematics and code weigh the same"
    assert found["all"]["value"] == pytest.approx((0.75 + 0.625) / 2)
    assert sections(["mine"], [True]) is None
    assert sum(map(len, SECTIONS.values())) == 23


def test_topics_are_what_prompts_share() -> None:
    kinds = ("bake bread flour", "engine car wheel", "violin music song", "river fish water")
    texts = [f"{kind} {i}" for i in range(12) for kind in kinds]
    found = topics(texts, 0)
    for number, kind in enumerate(kinds):
        assert len({found[i] for i in range(number, 48, 4)}) == 1
        assert set(found[number].split(", ")) <= set(kind.split())
    assert len(set(found)) == 4


def test_accuracy_by_slice_counts_what_is_too_small() -> None:
    parts = {"half": ["a" if i < N - 5 else "b" for i in range(N)]}
    found = scrutiny.by_slice(GAPS[:, 0], parts, GROUPS, 0.95)["half"]
    assert found["a"]["pairs"] == N - 5
    assert found["b"] == {"pairs": 5}
