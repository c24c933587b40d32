"""A run whose labels come from one judge and whose verdict from another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burnish.config.checks import check_config
from burnish.config.judge import JudgeConfig
from burnish.config.loading import load_config
from burnish.data.guidelines import load_guidelines
from burnish.data.store import LabelStore
from burnish.errors import ConfigError
from burnish.labels.endpoint import EndpointJudge
from burnish.labels.judge import annotator
from burnish.labels.rubric import load_rubric
from burnish.records import Label
from burnish.rehearse.world import gold
from burnish.runs.directory import RunDirectory
from tests.command import burnish
from tests.labels.scripted import Script, serving
from tests.small_run import SMALL, run


def judges(url: str) -> list[str]:
    return [
        "label.source=judge",
        "label.judge.model=one",
        f"label.judge.endpoint={url}",
        "evaluate.examiner=judge",
        "evaluate.judge.model=two",
        f"evaluate.judge.endpoint={url}",
    ]


@pytest.mark.slow("judges")
@pytest.mark.e2e
def test_from_prompts_to_a_verdict_that_is_not_provisional(tmp_path: Path) -> None:
    """The judges of this test know gold, with a taste for whatever stands first."""
    script = Script(lambda answer: 2 * gold("", answer), bias=1.0)
    with serving(script) as url:
        sets = [*judges(url), "collect.n_pairs=96", "data.n_prompts=200"]
        run(tmp_path, *sets)
        asked = dict(script.asked)
        changed = run(tmp_path, *sets, "label.judge.concurrency=2", "evaluate.judge.timeout=9")
        assert changed.returncode in (0, 10), "how many at once changes no label"
        assert dict(script.asked) == asked
    path = tmp_path / "r"
    with LabelStore(path / "labels.sqlite") as store:
        labels = list(store.labels())
        assert {label.annotator.split("@")[0] for label in labels} == {"judge:one"}
        assert len(labels) > 80
        assert all(label.guidelines in store.guidelines() for label in labels)
    report = RunDirectory.open(path).read_rows("metrics/judge.jsonl")[0]
    assert report["position_log_odds"] == pytest.approx(1.0, abs=1e-6)
    evaluation = json.loads((path / "evaluation.json").read_text())
    assert evaluation["examiner"].startswith("two, an AI judge")
    assert evaluation["provisional"] is False
    assert evaluation["judge"]["asked"] > 8
    assert evaluation["gold"], "stories have a true preference, whoever labels"
    assert "provisional" not in (path / "report.html").read_text().split("</header>")[0].lower()


@pytest.mark.slow("judges")
@pytest.mark.e2e
def test_an_examiner_that_labelled_is_refused(tmp_path: Path) -> None:
    with serving(Script(lambda answer: 0.0)) as url:
        same = [*judges(url), "evaluate.judge.model=one"]
        with pytest.raises(ConfigError, match="confirm its own labels"):
            check_config(load_config(None, same))
        other = [s for s in same if not s.startswith("label.")]
        sets = [*other, "collect.n_pairs=96", "data.n_prompts=200"]
        path = tmp_path / "r"
        run(tmp_path, *sets, "evaluate.examiner=panel")
        with LabelStore(path / "labels.sqlite") as store:
            c = next(iter(store.comparisons()))
            judge = EndpointJudge(JudgeConfig(model="one", endpoint=url))
            name = annotator(judge, load_rubric(None, load_guidelines()))
            store.add_labels([Label(c.id, name, 1.0, "judge")])
        # Seen by the run's own snapshot alone.
        snapshot = json.loads((path / "labels.json").read_text())
        (path / "labels.json").write_text(json.dumps(snapshot | {"labels": snapshot["labels"] + 1}))
        arguments = [a for s in (*SMALL, *sets) for a in ("--set", s)]
        refused = burnish("run", "--dir", str(path), *arguments, "--redo", check=False)
    assert refused.returncode == 3
    assert "labelled pairs that this run learned from" in refused.stderr
