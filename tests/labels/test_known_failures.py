"""Failures of judges and of labelling that other systems had, each of which must not be possible here."""

from __future__ import annotations

import json
from pathlib import Path

from planted import PlantedJudge, comparisons, worth

from burnish.commands.label_vendors import export_batch
from burnish.config.judge import JudgeConfig
from burnish.data.guidelines import load_guidelines
from burnish.data.store import LabelStore
from burnish.labels.judge import judge_comparisons
from burnish.labels.ledger import Answer, Ledger
from burnish.labels.rubric import load_rubric
from burnish.labels.vendors import VENDORS
from burnish.records import Comparison, Label
from tests.labels.scripted import Script, serving

CONFIG = JudgeConfig(model="m", concurrency=1, retries=0)
RUBRIC = load_rubric(None, load_guidelines())


def test_undoing_the_shuffle_gives_the_winner_and_not_whoever_stood_first(tmp_path: Path) -> None:
    """One system's test for a swap could never be true: `chosen` was always the first of the pair."""
    asked = comparisons(60, 5)
    swapped = [Comparison(c.prompt, c.second, c.first) for c in asked]
    for number, pairs in enumerate((asked, swapped)):
        with Ledger(tmp_path / f"{number}.jsonl") as book:
            found = judge_comparisons(pairs, PlantedJudge(worth), RUBRIC, book, CONFIG).labels
        said = {label.comparison_id: label.preference > 0.5 for label in found}
        assert said == {c.id: worth(c.first.text) > worth(c.second.text) for c in pairs}
        assert 15 < sum(said.values()) < 45


class Failing(PlantedJudge):
    async def ask(self, question: str) -> Answer:
        if int(question.split("question 6 ")[1].split()[0]) % 3 == 0:
            return Answer(why="status 500", again=True)
        return await super().ask(question)


def test_a_judge_that_fails_gives_no_label_and_neither_a_zero_nor_a_tie(tmp_path: Path) -> None:
    """Two systems wrote a score of 0.0, one of them for both answers."""
    asked = comparisons(30, 6)
    with Ledger(tmp_path / "l.jsonl") as book:
        found = judge_comparisons(asked, Failing(worth), RUBRIC, book, CONFIG).labels
    answered = {c.id for i, c in enumerate(asked) if i % 3}
    assert {label.comparison_id for label in found} == answered
    assert not any(label.preference in (0.0, 0.5) for label in found)


def test_unreadable_verdicts_of_a_server_give_no_label(tmp_path: Path) -> None:
    from burnish.labels.endpoint import EndpointJudge

    with serving(Script(worth, fail=lambda question, times: "unreadable")) as url:
        config = CONFIG.model_copy(update={"endpoint": url})
        with Ledger(tmp_path / "l.jsonl") as book:
            found = judge_comparisons(comparisons(5, 7), EndpointJudge(config), RUBRIC, book, config)
    assert found.labels == []
    assert len(found.both) == 5


def test_people_are_never_shown_what_a_judge_said(tmp_path: Path) -> None:
    """One system fills in the AI's rating for people to confirm."""
    asked = comparisons(12, 8)
    for vendor in VENDORS:
        file = tmp_path / f"{vendor}.sqlite"
        with LabelStore(file) as store:
            store.add_comparisons(asked)
        with_judge = tmp_path / f"{vendor}-judged.sqlite"
        only = tmp_path / "only.jsonl"
        only.write_text("".join(json.dumps({"comparison": c.id}) + "\n" for c in asked))
        with LabelStore(with_judge) as store:
            store.add_comparisons(asked)
            store.add_labels(Label(c.id, "judge:m@1", 0.97, "judge", cost=0.25) for c in asked)
        folders = []
        for number, place in enumerate((file, with_judge)):
            folder = tmp_path / f"{vendor}-{number}"
            export_batch(
                place, folder, vendor, n=None, only=only, redundancy=1, gold=None, gold_share=0.0,
                guidelines=None, seed=0,
            )  # fmt: skip
            folders.append({f.name: f.read_bytes() for f in folder.iterdir()})
        assert folders[0] == folders[1]
