"""Labels that belong to a project: a store that runs share, and what each of them has learned from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burnish.data.store import LabelStore, Place, Snapshot
from burnish.monitor.live import View
from burnish.monitor.trackers import Trackers
from burnish.pipeline.context import RunContext
from burnish.records import Comparison, Label, Prompt, Response
from burnish.rehearse.grammar import prompts
from burnish.runs.directory import RunDirectory
from tests.command import burnish


def comparison(n: int) -> Comparison:
    return Comparison(Prompt(f"prompt {n}"), Response("one"), Response("two"))


def test_a_snapshot_does_not_see_what_comes_later(place: Place) -> None:
    with LabelStore(place) as store:
        assert store.snapshot() == Snapshot(0, 0)
        store.add_comparisons([comparison(0), comparison(1)])
        store.add_labels([Label(comparison(0).id, "a", 1.0, "human")])
        then = store.snapshot()
        store.add_comparisons([comparison(2)])
        store.add_labels([Label(comparison(i).id, "b", 0.0, "human") for i in range(3)])
        assert [p.prompt.text for p in store.preferences(then)] == ["prompt 0"]
        assert store.preferences(then)[0].chosen == "one"
        assert [p.prompt.text for p in store.preferences()] == ["prompt 1", "prompt 2"], "0 ties by now"
        assert len(list(store.comparisons(at=then))) == 2


@pytest.mark.e2e
def test_runs_share_a_store_and_none_of_them_puts_it_aside(tmp_path: Path, place: Place) -> None:
    def run(name: str, *sets: str, until: str = "label", redo: bool = False) -> Path:
        path = tmp_path / name
        all_sets = (f"label.store={place}", "threads=1", "data.n_prompts=300", *sets)
        more = ("--redo",) if redo else ()
        arguments = [a for s in all_sets for a in ("--set", s)]
        burnish("run", "--dir", str(path), *arguments, "--until", until, *more)
        return path

    first = run("one", "collect.n_pairs=64")
    assert not (first / "labels.sqlite").exists()
    learned = parts(first)
    run("two", "collect.n_pairs=96", "seed=1")
    with LabelStore(place) as labels:
        counts = labels.count()
        assert counts["labels"] > 140
        labels.add_comparisons([Comparison(p, Response(" a b."), Response(" c d.")) for p in prompts(5, 7)])
    assert parts(first) == learned, "labels that arrive later change nothing of a finished stage"
    report = json.loads(
        burnish("export", str(first), str(tmp_path / "p.jsonl"), "--as", "pairs", "--json").stdout
    )
    assert report["pairs"] >= sum(len(part) for part in learned.values())
    assert report["pairs"] < 65, "those of this run's snapshot, not of the whole store"
    run("one", "collect.n_pairs=64", "label.labels_per_pair=2", redo=True)
    assert not isinstance(place, Path) or place.exists()
    assert not list(tmp_path.rglob("*replaced*"))
    with LabelStore(place) as labels:
        assert labels.count()["labels"] > counts["labels"]
    assert parts(first) != learned
    nothing = burnish("label", "export", str(first), str(tmp_path / "b"), "--vendor", "mturk", check=False)
    assert "no comparison without a label" in nothing.stderr


def parts(path: Path) -> dict[str, list[str]]:
    """Who learns from which comparisons."""
    place = RunContext.of(RunDirectory.open(path), View("t", 1.0), Trackers({}, print))
    try:
        return {role: [p.comparison_id for p in pairs] for role, pairs in place.data.parts.items()}
    finally:
        place.data.close()
