"""A run's reward models examined and under stress, from the command line; the page that tells it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from burnish.commands.reward_examine import OWN_STORE, judged_pairs
from burnish.data.store import LabelStore
from burnish.records import Comparison, Label, Prompt, Response
from burnish.runs.directory import RunDirectory
from tests.command import burnish


@pytest.fixture(scope="module")
def examined(short_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("examined") / "run"
    shutil.copytree(short_run, copy)
    burnish("reward", "examine", str(copy), "--own-pairs", "40")
    burnish("reward", "stress", str(copy), "--answers", "40", "--best-of", "16", "--prompts", "4")
    return copy


def test_an_examination_tells_what_is_known(examined: Path) -> None:
    found = json.loads((examined / "examined.json").read_text())
    known = json.loads((examined / "reward" / "examination.json").read_text())
    assert found["outcome"] in ("go", "warn", "stop", "too few")
    assert found["accuracy"]["value"] == pytest.approx(known["accuracy"]["value"])
    assert found["calibration"]["ece"] == pytest.approx(known["calibration"]["ece"], abs=1e-6)
    assert found["baselines"] == known["baselines"]
    assert found["diversity"]["error_correlation"] == known["error_correlation"]
    assert set(found["slices"]) == {"length", "language", "topic", "labels from", "labels"}
    assert found["wording"]["changed"] > 0
    own = found["own"]
    assert own["judge"] == "the true preference"
    assert list(own["rows"]) == ["while PPO ran", "when PPO had finished"]
    assert sum(row["pairs"] for row in own["rows"].values()) > 20


def test_a_stress_test_tells_of_every_change_and_of_best_of_n(examined: Path) -> None:
    found = json.loads((examined / "stressed.json").read_text())
    assert len(found["changes"]) == 15
    assert {row["n"] for row in found["changes"] if row["name"] == "filler"} == {40}
    assert [row["n"] for row in found["best_of"]["rows"]] == [1, 2, 4, 8, 16]
    scores = [row["score"]["value"] for row in found["best_of"]["rows"]]
    assert scores == sorted(scores)
    assert found["worth"] == "the true preference"
    assert found["best_of"]["rows"][0]["worth"]["n"] == 4


def test_the_gate_has_stressed_the_reward_before_ppo(short_run: Path) -> None:
    events = RunDirectory.open(short_run).read_rows("events.jsonl")
    acts = [e["action"] for e in events if e["kind"] == "decision" and e["stage"] == "align"]
    stressed = json.loads((short_run / "stress.json").read_text())
    assert acts[0] == f"stress_{stressed['outcome'].replace(' ', '_')}"
    assert acts[1].startswith("gate_")
    assert "under stress" in (short_run / "report.html").read_text()


@pytest.mark.e2e
def test_both_again_tell_the_same(examined: Path) -> None:
    before = {name: (examined / name).read_text() for name in ("examined.json", "stressed.json")}
    burnish("reward", "examine", str(examined), "--own-pairs", "40")
    burnish("reward", "stress", str(examined), "--answers", "40", "--best-of", "16", "--prompts", "4")
    assert before == {name: (examined / name).read_text() for name in before}


def test_other_pairs_than_the_runs(examined: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    burnish("export", str(examined), str(pairs), "--as", "pairs")
    done = burnish("reward", "examine", str(examined), "--on", str(pairs), "--json")
    found = json.loads(done.stdout)
    assert found["on"] == str(pairs)
    assert found["pairs"] > 150
    assert "labels" not in found["slices"]
    assert (examined / "examined_on.html").exists()
    assert json.loads((examined / "examined.json").read_text())["on"] == "validation"


class NoGold:
    gold = None


def test_who_labels_the_policys_answers_is_heard(tmp_path: Path) -> None:
    """Without a true preference pairs wait in a store that every command of `burnish label` takes."""
    sides = [Response(text, "policy", True) for text in ("one", "two", "three")]
    pairs = [
        Comparison(Prompt("p"), sides[0], sides[1]),
        Comparison(Prompt("p"), sides[2], sides[1]),
    ]
    data: Any = NoGold()
    assert judged_pairs(data, tmp_path, pairs) == {}
    with LabelStore(tmp_path / OWN_STORE) as store:
        assert store.count()["comparisons"] == 2
        ids = [c.id for c in store.comparisons()]
        store.add_labels([Label(ids[0], "ann", 1.0, "human"), Label(ids[0], "bob", 0.0, "human")])
        store.add_labels([Label(ids[1], "ann", 1.0, "human")])
    assert judged_pairs(data, tmp_path, pairs) == {ids[0]: 0.5, ids[1]: 1.0}
    swapped = [Comparison(Prompt("p"), sides[1], sides[2])]
    assert judged_pairs(data, tmp_path, swapped) == {ids[1]: 0.0}


def test_before_there_is_a_reward_it_says_so(tmp_path: Path) -> None:
    done = burnish("reward", "examine", str(tmp_path), check=False)
    assert done.returncode == 5
    assert "not a run directory" in done.stderr
