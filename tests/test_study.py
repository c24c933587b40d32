"""The runner that studies share: cells once, rows kept, tables of kept rows alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import study
from study import Cell, Study, carry_out, newest, plotted, read_rows, table, told

from burnish.report.charts import figure, line

ARMS = {"plain": {"x": 1.0}, "other": {"x": 3.0}}


def make(measure: Any = None, **more: Any) -> Study:
    def usual(cell: Cell, room: Path) -> dict[str, Any]:
        return {"y": cell.settings["x"] + cell.seed, "kind": "go" if cell.seed else "stop", "none": None}

    columns = {"y": "figure", "kind": "outcome", "none": "nothing"}
    return Study(__file__, "", ARMS, measure or usual, columns, against="plain", compared=("y",), **more)


def cells(seeds: int) -> list[Cell]:
    return [Cell(arm, seed, settings) for seed in range(seeds) for arm, settings in ARMS.items()]


def test_a_cell_is_carried_out_once(tmp_path: Path) -> None:
    done = []

    def measure(cell: Cell, room: Path) -> dict[str, Any]:
        done.append((cell.arm, cell.seed))
        return {"y": 0.0}

    kept = tmp_path / "kept.jsonl"
    carry_out(make(measure), cells(2), tmp_path, kept)
    carry_out(make(measure), cells(3), tmp_path, kept)
    assert done == [(arm, seed) for seed in range(3) for arm in ARMS]
    row = read_rows(kept)[0]
    assert row["settings"] == {"x": 1.0}
    assert row["commit"]


def test_a_study_that_fails_keeps_what_it_has(tmp_path: Path) -> None:
    def measure(cell: Cell, room: Path) -> dict[str, Any]:
        if cell.seed == 1:
            raise RuntimeError("the machine is gone")
        return {"y": 0.0}

    with pytest.raises(RuntimeError):
        carry_out(make(measure), cells(2), tmp_path, tmp_path / "kept.jsonl")
    assert len(read_rows(tmp_path / "kept.jsonl")) == 2


def test_other_code_and_other_settings_are_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.jsonl"
    carry_out(make(), cells(1), tmp_path, kept)
    carry_out(make(), [Cell("plain", 0, {"x": 2.0})], tmp_path, kept)
    assert len(read_rows(kept)) == 3
    monkeypatch.setattr(study, "code_version", lambda modules: "another")
    carry_out(make(), cells(1), tmp_path, kept)
    assert len(read_rows(kept)) == 5
    assert len(newest(read_rows(kept), cells(1))) == 2
    assert newest(read_rows(kept), cells(1))[0]["code"].startswith("another")


def test_a_table_is_made_of_kept_rows_alone(tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    carry_out(make(), cells(3), tmp_path, kept)
    text = table(make(), newest(read_rows(kept), cells(3)))
    assert "| plain | 3 | 2.000 ± 2.484 | 1x stop, 2x go |  |" in text
    assert "other against plain, figure: 2.000 ± 0.000" in text
    half = table(make(), newest(read_rows(kept), cells(3)[:1]))
    assert "| plain | 1 | 1.000 | stop |  |" in half
    assert "other" not in half.partition("Commit")[0]


def test_plots_are_made_of_kept_rows_too(tmp_path: Path) -> None:
    def plots(rows: Any) -> Any:
        return [("Figure", "A note.", figure([line([0, 1], [r["figures"]["y"] for r in rows], "y")], "y"))]

    carry_out(make(), cells(1), tmp_path, tmp_path / "kept.jsonl")
    page = plotted(make(plots=plots), read_rows(tmp_path / "kept.jsonl"))
    assert 'id="chart-0"' in page
    assert '"y": [1.0, 3.0]' in page


def test_cells_of_a_table() -> None:
    assert told([1.0, None, 3.0]).startswith("2.000 ± ")
    assert told([None]) == ""
    assert told(["go", "go"]) == "2x go"


def test_every_study_is_one(tmp_path: Path) -> None:
    """It can be imported, its arms are JSON, and its usage names it."""
    for file in sorted(Path(study.__file__).parent.glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "main(\n        Study(" in text:
            module = __import__(file.stem)
            assert json.loads(json.dumps(module.ARMS)) == module.ARMS
            assert f"usage: python experiments/{file.name}" in text
            assert callable(module.measure)
