"""`burnish sweep`: its grid, a run that fails, a sweep that continues, means over seeds, and `compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from burnish.commands import sweep as command
from burnish.commands.sweep import cells_of, seeds_of, sweep, threads_of, values_of
from burnish.config.loading import load_config
from burnish.errors import ConfigError, RunError
from burnish.report.compare import compare
from burnish.report.sweep import as_report, mean_over_seeds
from burnish.report.text_report import as_text
from burnish.runs.directory import RunDirectory
from burnish.stats import mean_interval
from tests.command import burnish
from tests.small_run import SMALL


@pytest.mark.parametrize(("text", "seeds"), [("0-4", [0, 1, 2, 3, 4]), ("3", [3]), ("7, 0-1", [7, 0, 1])])
def test_seeds(text: str, seeds: list[int]) -> None:
    assert seeds_of(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "4-1", "0,0", "0-2,1", "-1", "1.5"])
def test_lists_of_seeds_that_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        seeds_of(text)


def test_several_values_of_a_key() -> None:
    assert values_of("ppo.kl.target=2,4") == ["ppo.kl.target=2", "ppo.kl.target=4"]
    assert values_of("align.compared=[ppo, distill],[ppo,rloo]") == [
        "align.compared=[ppo, distill]",
        "align.compared=[ppo,rloo]",
    ]
    assert values_of("ppo.concise='Be brief, please.'") == ["ppo.concise='Be brief, please.'"]
    assert values_of("name=x") == ["name=x"]


def test_every_combination_has_a_directory_of_its_own(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, [0, 1], ["ppo.kl.target=2,4", "ppo.updates=3", "align.method=ppo,distill"])
    assert len(cells) == len({cell.path for cell in cells}) == 8
    assert cells[0].path == tmp_path / "ppo.kl.target-2_ppo.updates-3_align.method-ppo" / "seed-0"
    assert cells[0].sets == ("ppo.kl.target=2", "ppo.updates=3", "align.method=ppo")
    assert cells[0].name == "ppo.kl.target=2, align.method=ppo", "what varies"
    assert [cell.path for cell in cells_of(tmp_path, [5], [])] == [tmp_path / "seed-5"]
    with pytest.raises(ConfigError, match="names a value twice"):
        cells_of(tmp_path, [0], ["ppo.updates=3,3"])
    with pytest.raises(ConfigError, match="give --seeds"):
        cells_of(tmp_path, [0], ["seed=0,1"])
    long = [f"data.prompts={'x' * 300}{i}" for i in range(2)]
    names = [cells_of(tmp_path, [0], [item])[0].path.parent.name for item in long]
    assert len(set(names)) == 2
    assert max(map(len, names)) <= 100


def summary(win: float) -> dict[str, Any]:
    row = {"win_rate": win, "mean_length": 20.0, "kl": 3.0}
    return {
        "champion": "ppo" if win > 0.5 else "sft",
        "evaluation": {
            "judge": "panel",
            "sft": {"win_rate": None, "mean_length": 30.0, "kl": None},
            "ppo": row,
        },
        "gold": None,
        "frontier": None,
        "reward": {"accuracy": {"value": 0.7}},
        "stages": {"align": {"seconds": 60.0}, "report": {"seconds": None}},
    }


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Runs that leave a file, and win by their seed; seed 2 fails. Returns the runs that were carried out."""
    carried_out: list[Path] = []

    def carry_out(config: Path | None, cell: command.Cell, *rest: object) -> command.Result:
        carried_out.append(cell.path)
        if cell.seed == 2 and not (cell.path.parents[1] / "mended").exists():
            return command.Result(failed="exit code 1: memory ran out")
        if cell.seed == 5:
            return command.Result(waits=True)
        if cell.seed == 6:
            raise OSError("no space left")
        cell.path.mkdir(parents=True)
        (cell.path / "done").touch()
        return command.Result(command.build_summary(cell.path))

    monkeypatch.setattr(command, "_carry_out", carry_out)
    monkeypatch.setattr(command, "finished", lambda path, config: (path / "done").exists())
    monkeypatch.setattr(command, "build_summary", lambda path: summary(0.4 + 0.1 * int(path.name[-1])))
    return carried_out


def test_a_run_that_fails_does_not_stop_the_others_and_is_carried_out_again(
    tmp_path: Path, faked: list[Path]
) -> None:
    folder, heard = tmp_path / "s", []
    table = sweep(None, folder, [0, 1, 2, 3], [], on_progress=heard.append)
    cell = table["cells"][""]
    assert [run["failed"] for run in cell["runs"]] == [None, None, "exit code 1: memory ran out", None]
    assert cell["champions"] == {"ppo": 1, "sft": 2}
    assert cell["means"]["ppo, win rate by examiner"]["n"] == 3
    assert "! seed 2: exit code 1: memory ran out" in as_text(as_report(table))
    assert any("memory ran out (3 of 4)" in line for line in heard)
    assert json.loads((folder / "sweep.json").read_text()) == table
    faked.clear()
    (folder.parent / "mended").touch()
    again = sweep(None, folder, [0, 1, 2, 3], [])
    assert faked == [folder / "seed-2"]
    assert [run["failed"] for run in again["cells"][""]["runs"]] == [None] * 4


def test_a_run_that_waits_and_one_that_cannot_start_are_recorded(tmp_path: Path, faked: list[Path]) -> None:
    table = sweep(None, tmp_path / "s", [5, 6, 1], [])
    runs = table["cells"][""]["runs"]
    assert [(run["failed"], run["waits"]) for run in runs] == [
        (None, True),
        ("OSError: no space left", False),
        (None, False),
    ]
    text = as_text(as_report(table))
    assert "seed 5: waits for people" in text
    assert "! seed 6: OSError: no space left" in text


def test_finished_runs_are_in_the_table_before_the_first_run_starts(
    tmp_path: Path, faked: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    sweep(None, folder, [0, 1], [])

    def stopped(*args: object) -> command.Result:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_carry_out", stopped)
    with pytest.raises(KeyboardInterrupt):
        sweep(None, folder, [0, 1, 3], [])
    kept = json.loads((folder / "sweep.json").read_text())
    assert [run["champion"] for run in kept["cells"][""]["runs"]] == ["sft", "sft", None]


@pytest.mark.parametrize(
    ("code", "state"), [(0, "done"), (10, "done"), (11, "done"), (12, "waits"), (3, "failed")]
)
def test_exit_codes_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, state: str) -> None:
    asked: list[list[str]] = []

    class Child:
        def __init__(self, call: list[str], stdout: Any, stderr: int) -> None:
            asked.append(call)
            stdout.write("the last line\n")

        def wait(self, timeout: float | None = None) -> int:
            return code

        def poll(self) -> int:
            return code

    monkeypatch.setattr(command.subprocess, "Popen", Child)
    monkeypatch.setattr(command, "build_summary", lambda path: summary(0.7))
    table = sweep(None, tmp_path / "s", [1], ["ppo.updates=3"], jobs=2, redo=True)
    (run,) = table["cells"][""]["runs"]
    assert (run["figures"] is not None) == (state == "done")
    assert run["waits"] == (state == "waits")
    if state == "failed":
        assert run["failed"].startswith("exit code 3: the last line (see ")
    (call,) = asked
    assert {"ppo.updates=3", "seed=1", "--redo"} <= set(call)
    assert any(part.startswith("threads=") for part in call), "two jobs share the cores"


def test_the_threads_of_a_run_that_has_begun_are_kept(tmp_path: Path) -> None:
    config = load_config(None, [])
    cores = command.usable_cores()
    assert threads_of(tmp_path, config, 1) is None
    assert threads_of(tmp_path, config, 2) == max(1, cores // 2)
    RunDirectory.create_or_open(tmp_path / "r", load_config(None, ["threads=7"])).freeze()
    assert threads_of(tmp_path / "r", config, 1) == threads_of(tmp_path / "r", config, 2) == 7
    assert threads_of(tmp_path / "r", load_config(None, ["threads=3"]), 2) is None


def test_means_have_an_interval_over_seeds(tmp_path: Path, faked: list[Path]) -> None:
    table = sweep(None, tmp_path / "s", [0, 1, 3], ["ppo.kl.target=2,4"], jobs=2)
    assert list(table["cells"]) == ["ppo.kl.target=2", "ppo.kl.target=4"]
    for cell in table["cells"].values():
        expected = mean_interval([0.4, 0.5, 0.7])
        found = cell["means"]["ppo, win rate by examiner"]
        assert found["value"] == pytest.approx(expected.value)
        assert found["ci_low"] == pytest.approx(expected.ci_low)
        assert cell["means"]["minutes of stages"]["value"] == 1.0
    first, second = table["cells"].values()
    assert "differences" not in first
    assert second["differences"]["ppo, win rate by examiner"] == {
        "value": 0.0,
        "ci_low": 0.0,
        "ci_high": 0.0,
        "n": 3,
    }
    assert "less ppo.kl.target=2" in as_text(as_report(table))
    assert mean_over_seeds([0.5, None])["ci_low"] is None, "one value has no interval"


def test_a_wrong_configuration_is_refused_before_the_first_run(tmp_path: Path, faked: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"ppo\.updates"):
        sweep(None, tmp_path / "s", [0], ["ppo.updates=3,-1"])
    assert faked == []


def test_two_sweeps_are_compared(tmp_path: Path, faked: list[Path]) -> None:
    sweep(None, tmp_path / "a", [0, 1], ["ppo.kl.target=2"])
    sweep(None, tmp_path / "b", [0, 1, 3], ["ppo.kl.target=4"])
    found = compare(tmp_path / "a", tmp_path / "b")
    assert ("ppo.kl.target", 2.0, 4.0) in found.settings
    figures = {key: (a, b) for key, a, b in found.figures}
    assert figures["champions"] == ("sft 2", "sft 2, ppo 1")
    assert figures["ppo, win rate by examiner"][0].startswith("0.450 [")
    assert figures["ppo, win rate by examiner"][1].endswith("seeds 3")
    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match="compare two runs, or two sweeps"):
        compare(tmp_path / "a", tmp_path / "run")


@pytest.mark.slow("modes")
def test_a_sweep_of_whole_runs_and_its_continuation(tmp_path: Path) -> None:
    args = [a for s in (*SMALL, "evaluate.every=0") for a in ("--set", s)]
    folder = tmp_path / "s"
    more = ["--seeds", "0-1", "--dir", str(folder), *args]
    table = json.loads(burnish("sweep", *more, "--json").stdout)
    (cell,) = table["cells"].values()
    assert [run["failed"] for run in cell["runs"]] == [None] * 2
    assert cell["means"]["ppo, win rate by examiner"]["n"] == 2
    again = burnish("sweep", *more)
    assert "started" not in again.stderr
    assert "2 of 2 runs" in again.stdout
