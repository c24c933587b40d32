"""What is worth a label: golden values, a planted disagreement, a random part, and a part that measures."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from burnish.data.store import LabelStore
from burnish.errors import DataError
from burnish.labels.select import acquisition, choose, is_reserved
from burnish.records import Comparison, Label, Response
from burnish.rehearse.grammar import prompts
from tests.pipeline.conftest import burnish


def test_acquisition_golden() -> None:
    """Two models, one sure each way (margins 2 and -2); two unsure alike (0, 0); two sure alike (2, 2)."""
    margins = np.array([[2.0, -2.0], [0.0, 0.0], [2.0, 2.0]])
    assert acquisition(margins, "variance").tolist() == [4.0, 0.0, 0.0]
    p = 1 / (1 + math.exp(-2))
    sure = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    entropy = acquisition(margins, "entropy")
    assert entropy == pytest.approx([math.log(2), math.log(2), sure])
    assert acquisition(margins, "bald") == pytest.approx([math.log(2) - sure, 0.0, 0.0], abs=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_missing_score_is_an_error(bad: float) -> None:
    with pytest.raises(DataError, match="1 of 2 comparisons have no finite score"):
        acquisition(np.array([[0.0, bad], [1.0, 2.0]]), "bald")


def test_the_best_are_taken_beside_a_random_part() -> None:
    ids = [f"c{i}" for i in range(100)]
    scores = np.arange(100.0)
    taken = choose(ids, scores, 20, how="bald", random_share=0.3, seed=0)
    assert sorted(i for i, why in taken if why == "bald") == list(range(86, 100))
    drawn = [i for i, why in taken if why == "random"]
    assert len(drawn) == 6
    assert max(drawn) < 86
    assert len({i for i, _ in taken}) == 20
    assert taken == choose(ids, scores, 20, how="bald", random_share=0.3, seed=0)
    assert drawn != [
        i for i, why in choose(ids, scores, 20, how="bald", random_share=0.3, seed=1) if why == "random"
    ]
    assert len(choose(ids, None, 500, how="random", random_share=0.3, seed=0)) == 100


def test_a_share_is_reserved_for_good() -> None:
    share = sum(is_reserved(f"c{i}", 0.1) for i in range(5000)) / 5000
    assert 0.08 < share < 0.12
    assert all(is_reserved(f"c{i}", 0.3) for i in range(500) if is_reserved(f"c{i}", 0.1))


@pytest.mark.e2e
def test_a_runs_reward_models_choose_and_score(short_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
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
    arguments = ["label", "select", str(run), str(out), "--n", "10", "--store", str(store), "--json"]
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
    done = burnish("reward", "score", str(run), "--json", stdin="\n".join(lines))
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert len(first["members"]) == 3
    assert first["score"] == pytest.approx(sum(first["members"]) / 3, abs=1e-5)
    assert first["score"] > second["score"], "the true preference likes cheer, and 192 labels say so"
    assert first["tokens"] > 5
    table = burnish("reward", "score", str(run), "--prompt", asked[1].prompt.text, stdin=f"{glad}\n{sad}\n")
    assert table.stdout.splitlines()[0].split() == ["score", "spread", "tokens", "members"]
    wrong = burnish("reward", "score", str(run), stdin="no JSON\n", check=False)
    assert (wrong.returncode, "line 1 is no JSON object" in wrong.stderr) == (4, True)
    long = burnish("reward", "score", str(run), "--prompt", "Zoe", stdin="word " * 400, check=False)
    assert "row 1 has more tokens" in long.stderr
