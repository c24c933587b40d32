"""Rounds: sample from the newest policy, have labelled what is worth it, train again, from SFT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from burnish.config.checks import check_config
from burnish.config.loading import load_config
from burnish.data.store import LabelStore
from burnish.errors import ConfigError
from burnish.models.load import load_model
from burnish.pipeline.context import RunContext
from burnish.pipeline.run import fingerprint, run_pipeline
from burnish.records import Comparison, Label, Preference, Response
from burnish.rehearse.annotators import SimulatedAnnotators
from burnish.rehearse.grammar import prompts
from burnish.rehearse.world import gold
from burnish.runs.directory import RunDirectory
from tests.command import begun, burnish
from tests.killing import kill_at
from tests.small_run import SMALL

ROUNDS = [
    "rounds=2",
    "collect.n_pairs=192",
    "collect.batch_size=128",
    "data.n_prompts=400",
    "reward.epochs=1",
]


def arguments(path: Path, *sets: str) -> list[str]:
    return ["run", "--dir", str(path), *(a for s in (*SMALL, *ROUNDS, *sets) for a in ("--set", s))]


@pytest.mark.slow("kills")
@pytest.mark.e2e
def test_two_rounds_from_prompts_to_champion_and_the_same_when_killed(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    burnish(*arguments(whole))
    first = whole / "rounds" / "1"
    for path in (whole, first):
        states = {
            name: RunDirectory.open(path).stage_state(name) for name in RunDirectory.open(path).stages()
        }
        assert set(states.values()) == {"done"}, path
    assert not (first / "labels.sqlite").exists(), "labels lie in one place"
    with LabelStore(whole / "labels.sqlite") as store:
        asked = {c.id: c.round for c in store.comparisons()}
        answered = {label.comparison_id for label in store.labels()}
        assert answered == asked.keys(), "what is sampled and not chosen is nobody's to answer"
    rows = [json.loads(line) for line in (whole / "selected.jsonl").read_text().splitlines()]
    assert {row["comparison"] for row in rows} == {i for i, r in asked.items() if r == 1}
    assert len(rows) == 96
    why = [row["why"] for row in rows]
    chosen = why.count("variance") + why.count("random")
    assert why.count("random") == round(0.3 * chosen)
    assert why.count("to measure") == 96 - chosen > 20
    seen = json.loads((first / "labels.json").read_text())["comparisons"]
    assert seen == sum(r == 0 for r in asked.values()), "the first round learned from its own labels alone"
    evaluation = json.loads((whole / "evaluation.json").read_text())
    assert {"sft", "round_1", "ppo", "ppo_average"} == evaluation["policies"].keys() - {"ppo_best"}
    told = evaluation["rounds"]
    assert [r["policy"] for r in told] == ["round_1", "ppo"]
    assert [r["labels"] for r in told] == [len(asked) - 96, 96]
    own = json.loads((whole / "reward" / "examination.json").read_text())["accuracy"]
    assert told[1]["accuracy"]["value"] == pytest.approx(own["value"])
    parts = told[1]["accuracy_on_pairs_of_round"]
    assert parts["1"]["n"] + parts["2"]["n"] >= told[1]["accuracy"]["n"]
    assert "Results of each round" in (whole / "report.html").read_text()
    # A kill in the first round, one among the candidates of the second.
    for sign in ("rounds/1/reward/checkpoint-*", "collect/checkpoint-000001"):
        kill_at(lambda sign=sign: any(killed.glob(sign)), begun(*arguments(killed), quiet=True))
    burnish(*arguments(killed))
    assert fingerprint(killed) == fingerprint(whole)
    assert any(name.startswith("rounds/1/ppo") for name in fingerprint(whole))
    label = burnish(
        "label", "export", str(whole / "rounds" / "1"), str(tmp_path / "b"), "--vendor", "mturk", check=False
    )
    assert "no comparison without a label" in label.stderr, "a round's labels are those of its run"
    refused = burnish(*arguments(whole, "ppo.updates=4"), check=False)
    assert refused.returncode == 5
    assert "rounds, collect, label, reward, align, evaluate would be done again" in refused.stderr
    burnish(*arguments(whole, "ppo.updates=4"), "--redo", "--until", "collect")
    assert (whole / "labels.replaced-1.sqlite").exists()


@pytest.mark.slow("kills")
@pytest.mark.e2e
def test_three_rounds_with_weighed_labels_and_chosen_pairs_end_the_same_with_a_kill_in_each(
    tmp_path: Path,
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    sets = (
        *("rounds=3", "collect.n_pairs=216", "select.acquisition=d_optimal", "label.consensus=dawid_skene"),
        *("label.labels_per_pair=3", "label.simulated.annotators=5", "ppo.updates=2"),
    )
    burnish(*arguments(whole, *sets))
    for sign in ("rounds/1/reward/checkpoint-*", "rounds/2/collect/checkpoint-*", "reward/checkpoint-*"):
        kill_at(lambda sign=sign: any(killed.glob(sign)), begun(*arguments(killed, *sets), quiet=True))
    burnish(*arguments(killed, *sets))
    assert fingerprint(killed) == fingerprint(whole)
    why = [json.loads(line)["why"] for line in (whole / "selected.jsonl").read_text().splitlines()]
    assert {"d_optimal", "random", "to measure"} == set(why)
    with LabelStore(whole / "labels.sqlite") as ours, LabelStore(killed / "labels.sqlite") as theirs:
        assert list(ours.labels()) == list(theirs.labels())


@pytest.mark.e2e
def test_rounds_wait_for_people_and_go_on(tmp_path: Path) -> None:
    """Nothing is aligned here (ppo.updates 0): the newest policy stays SFT."""
    path = tmp_path / "r"
    command = [
        *arguments(path, "label.source=people", "ppo.updates=0", "evaluate.examiner=reward_model"),
        "--until",
        "label",
    ]
    crowd = SimulatedAnnotators(gold, load_config(None, []).label.simulated, 0, "g", "")
    for number in (1, 2):
        waits = burnish(*command, check=False)
        assert waits.returncode == 12, waits.stderr
        assert f"`burnish label terminal {path} --name YOU`" in waits.stderr
        with LabelStore(path / "labels.sqlite") as store:
            known = {label.comparison_id for label in store.labels()}
            asked = [c for c in store.comparisons() if c.id not in known]
            assert len(asked) in range(80, 97)
            # The last round continues without some of them.
            given = [crowd.label(c, 0) for c in asked[: len(asked) if number == 1 else 60]]
            store.add_labels([Label(g.comparison_id, "person:ann", g.preference, "human") for g in given])
        assert {c.round for c in asked} == {number - 1}
    lost = burnish(*command, "--set", "ppo.batch_size=16", check=False)
    assert (lost.returncode, "rounds, collect would be done again" in lost.stderr) == (5, True), lost.stderr
    assert burnish(*command, check=False).returncode == 12
    assert burnish(*command, "--set", "label.max_unlabelled_share=0.4").returncode == 0
    assert not list(path.glob("labels.replaced*"))


@pytest.mark.e2e
def test_a_run_follows_another_with_its_labels_and_its_reference(short_run: Path, tmp_path: Path) -> None:
    def follow(name: str, earlier: Path, *sets: str, check: bool = True):  # type: ignore[no-untyped-def]
        every = (f"collect.previous_run={earlier}", "collect.n_pairs=32", "data.n_prompts=400", *sets)
        return burnish(
            *("run", "--dir", str(tmp_path / name), *(a for s in (*SMALL, *every) for a in ("--set", s))),
            *("--until", "label"),
            check=check,
        )

    follow("next", short_run, "seed=1")
    with (
        LabelStore(short_run / "labels.sqlite") as theirs,
        LabelStore(tmp_path / "next" / "labels.sqlite") as ours,
    ):
        before = {(label.comparison_id, label.annotator, label.preference) for label in theirs.labels()}
        after = {(label.comparison_id, label.annotator, label.preference) for label in ours.labels()}
        assert before < after
        assert len(after) == len(before) + 32
        assert [c.round for c in ours.comparisons()].count(1) == 32
    other = follow("other", short_run, "model.layers=top:1", check=False)
    assert (other.returncode, "has another model.layers ('auto', here 'top:1')" in other.stderr) == (3, True)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(short_run, unfinished)
    manifest = json.loads((unfinished / "manifest.json").read_text())
    manifest["stages"]["align"]["state"] = "failed"
    (unfinished / "manifest.json").write_text(json.dumps(manifest))
    early = follow("early", unfinished, check=False)
    assert (early.returncode, "has not finished its align stage" in early.stderr) == (3, True)
    changed = tmp_path / "changed"
    shutil.copytree(short_run, changed)
    follow("kept", changed)
    (changed / "align.json").write_text("{}")
    again = follow("kept", changed, check=False)
    assert "the content of followed run" in again.stderr


@pytest.mark.e2e
def test_who_follows_has_the_reference_that_was_fine_tuned(tmp_path: Path) -> None:
    demonstrations = tmp_path / "d.jsonl"
    rows = [{"prompt": p.text, "completion": " They sang and were happy."} for p in prompts(32, 5)]
    demonstrations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "r"
    sets = (
        f"sft.demonstrations={demonstrations}",
        "sft.epochs=1",
        "ppo.updates=0",
        "sft.learning_rate=0.001",
    )
    burnish(*arguments(path, *sets), "--until", "collect")
    first, own = path / "rounds" / "1" / "sft", path / "sft"
    assert (own / "model.safetensors").stat().st_ino == (first / "model.safetensors").stat().st_ino, (
        "kept once"
    )
    place = RunContext.alone(RunDirectory.open(path))
    given = load_model(RunDirectory.open(path).config.model)[0].state_dict()
    assert place.models.fine_tuned == own
    tuned = load_file(own / "model.safetensors")
    assert any(not weights.equal(given[name]) for name, weights in tuned.items())


def test_labels_that_are_taken_over_keep_their_side(tmp_path: Path) -> None:
    prompt = prompts(1, 0)[0]
    one, two = Response(" one"), Response(" two")
    with LabelStore(tmp_path / "a.sqlite") as theirs, LabelStore(tmp_path / "b.sqlite") as ours:
        theirs.add_comparisons([Comparison(prompt, one, two)])
        theirs.add_labels([Label(Comparison(prompt, one, two).id, "ann", 1.0, "human")])
        then = theirs.snapshot()
        theirs.add_labels([Label(Comparison(prompt, one, two).id, "late", 0.0, "human")])
        ours.add_comparisons([Comparison(prompt, two, one)])
        ours.take_over(theirs, then)
        ours.take_over(theirs, then)
        (pair,) = ours.preferences()
        assert pair == Preference(prompt, " one", " two", 1.0, pair.comparison_id)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            ["rounds=2", "label.source=imported", "label.preferences=p.jsonl"],
            "samples of further rounds cannot be labelled",
        ),
        (["rounds=4", "collect.n_pairs=3"], "rounds=4 share collect.n_pairs=3"),
    ],
)
def test_what_cannot_have_rounds_says_so(sets: list[str], message: str) -> None:
    extra = ["evaluate.examiner=reward_model", "data.prompts=preferences"] if "imported" in sets[1] else []
    with pytest.raises(ConfigError, match=message):
        check_config(load_config(None, [*sets, *extra]))


def test_a_stage_that_a_run_has_not_is_no_place_to_stop(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="until='rounds', but a run with rounds: 1 has the stages sft"):
        run_pipeline(load_config(None, []), tmp_path / "r", until="rounds")
    assert not (tmp_path / "r").exists()
