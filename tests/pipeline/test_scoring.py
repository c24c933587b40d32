"""A finished run's reward models choose comparisons and score texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burnish.data.store import LabelStore
from burnish.labels.select import is_reserved
from burnish.records import Comparison, Label, Response
from burnish.rehearse.grammar import prompts
from tests.command import burnish


def test_a_runs_reward_models_choose_and_score(run_copy: Path, tmp_path: Path) -> None:
    store = tmp_path / "more.sqlite"
    glad, sad = " She was happy and laughed with her friends.", " He was sad and wept all day."
    asked = [
        Comparison(p, Response(glad if i % 2 else sad), Response(f" They went home {i}."))
        for i, p in enumerate(prompts(60, 9))
    ]
    with LabelStore(store) as labels:
        labels.add_comparisons(asked)
        labels.add_labels([Label(asked[0].id, "ann", 1.0, "human")])
    out = tmp_path / "selection.jsonl"
    arguments = ["label", "select", str(run_copy), str(out), "--n", "10", "--store", str(store), "--json"]
    report = json.loads(burnish(*arguments).stdout)
    assert (report["selected"], report["by_score"]) == (10, 7)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    names = {c.id for c in asked[1:]}
    assert all(row["comparison"] in names for row in rows), "what has a label is not asked again"
    assert not any(is_reserved(row["comparison"], 0.1) for row in rows)
    best = [row["score"] for row in rows if row["why"] == "bald"]
    assert min(best) >= max(row["score"] for row in rows if row["why"] == "random")
    burnish(*arguments[:4], "--how", "reserved", "--store", str(store), "--n", "50")
    held = [json.loads(line)["comparison"] for line in out.read_text().splitlines()]
    assert held
    assert all(is_reserved(i, 0.1) for i in held)
    lines = [json.dumps({"prompt": asked[1].prompt.text, "response": text}) for text in (glad, sad)]
    done = burnish("reward", "score", str(run_copy), "--json", stdin="\n".join(lines))
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert len(first["members"]) == 3
    assert first["score"] == pytest.approx(sum(first["members"]) / 3, abs=1e-5)
    assert first["score"] > second["score"], "the true preference likes cheer, and 192 labels say so"
    assert first["tokens"] > 5
    table = burnish(
        "reward", "score", str(run_copy), "--prompt", asked[1].prompt.text, stdin=f"{glad}\n{sad}\n"
    )
    assert table.stdout.splitlines()[0].split() == ["score", "std", "tokens", "members"]
    wrong = burnish("reward", "score", str(run_copy), stdin="no JSON\n", check=False)
    assert (wrong.returncode, "line 1: malformed JSON" in wrong.stderr) == (4, True)
    long = burnish("reward", "score", str(run_copy), "--prompt", "Zoe", stdin="word " * 400, check=False)
    assert "row 1 has more tokens" in long.stderr
