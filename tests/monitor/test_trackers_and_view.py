"""Trackers never stop a run and never fail in silence; the view speaks plainly where there is no terminal."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from burnish.errors import ConfigError
from burnish.monitor.live import LiveView, View, sparkline
from burnish.monitor.trackers import Trackers, open_trackers
from burnish.records import Alert, Decision


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_holds_what_was_logged(tmp_path: Path) -> None:
    trackers = open_trackers(("tensorboard",), tmp_path, {"name": "x"}, pytest.fail)
    trackers.log("ppo", 1, {"kl": 0.5})
    trackers.log("ppo", 2, {"kl": 1.5})
    trackers.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("ppo/kl")] == [(1, 0.5), (2, 1.5)]


def test_a_tracker_that_fails_is_reported_once_and_left_out() -> None:
    class Broken:
        def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
            raise OSError("no network")

        def close(self) -> None:
            raise AssertionError("was left out")

    said: list[str] = []
    trackers = Trackers({"wandb": Broken()}, said.append)
    trackers.log("ppo", 1, {})
    trackers.log("ppo", 2, {})
    trackers.close()
    assert len(said) == 1
    assert "wandb" in said[0]
    assert "no network" in said[0]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_package_names_the_command(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ConfigError, match=r"pip install 'burnish\[trackers\]'"):
        open_trackers((name,), tmp_path, {"name": "x"}, print)


ALERT = Alert("kl_spike", "warning", "KL 9 is over 8", 3, 9.0, 8.0)


def test_plain_lines_thin_updates_and_keep_every_alert() -> None:
    out = io.StringIO()
    with View("run", 4.0, out) as view:
        view.stage("align")
        for n in range(1, 26):
            view.progress(n, 25)
            view.update({"kl": n / 10, "score": 1.0})
        view.alert(ALERT)
        view.decision(Decision("roll_back", "KL was over"))
    text = out.getvalue()
    shown = [line.split()[0] for line in text.splitlines() if "/25" in line]
    assert shown == ["1/25", "10/25", "20/25", "25/25"]
    assert "KL 9 is over 8" in text
    assert "roll_back: KL was over" in text


def test_the_live_panel_shows_curves_target_and_last_alert() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with LiveView("run", 4.0, console) as view:
        view.stage("align")
        view.progress(3, 10)
        view.update({"kl": 1.0, "score": 0.5})
        view.update({"kl": 2.0, "score": 0.7})
        view.alert(ALERT)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("align 3/10", "target 4", "KL 9 is over 8", "▁█"):
        assert part in text


def test_sparkline() -> None:
    assert sparkline([0.0, 7.0, 3.5]) == "▁█▅"
    assert sparkline([2.0, 2.0]) == "▁▁"
