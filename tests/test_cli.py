"""The command line: what options come to, without a run."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from burnish import cli


def test_the_quickstart_takes_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(cli, "_run", lambda *args: calls.append(args))
    done = CliRunner().invoke(cli.app, ["quickstart", "--seed", "3", "--set", "ppo.updates=2"])
    assert done.exit_code == 0, done.output
    assert calls[0][1] == ["name=quickstart", "seed=3", "ppo.updates=2"]
