"""The command line: what options come to, without a run."""

from __future__ import annotations

from typing import Any

import pytest

from burnish.cli import audit, main
from burnish.config.stages import StageName
from burnish.errors import EXIT_CODES, BurnishError
from burnish.pipeline.run import STAGES
from tests.command import burnish


def test_the_quickstart_takes_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(main, "_run", lambda *args: calls.append(args))
    burnish("quickstart", "--seed", "3", "--set", "ppo.updates=2")
    assert calls[0][1] == ["name=quickstart", "seed=3", "ppo.updates=2"]


def test_every_error_has_its_code_in_the_one_table_and_the_help_tells_it() -> None:
    def family(kind: type[BurnishError]) -> list[type[BurnishError]]:
        return [kind, *(k for sub in kind.__subclasses__() for k in family(sub))]

    codes = {kind.exit_code for kind in family(BurnishError)}
    codes |= {0, main.EXIT_USAGE, main.EXIT_INTERRUPTED, main.EXIT_CHAMPION_IS_SFT, main.EXIT_NOTHING_ALIGNED}
    codes |= {audit.EXIT_HACKING, audit.EXIT_TOO_FEW, audit.EXIT_BROKEN}
    assert codes == EXIT_CODES.keys()
    told = " ".join(burnish("--help").stdout.split())
    assert all(f"{code} {meaning}" in told for code, meaning in EXIT_CODES.items())


def test_a_run_can_stop_after_any_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(main, "_run", lambda *args: calls.append(args))
    for stage in STAGES:
        assert burnish("run", "--until", stage.name).returncode == 0
    assert [args[3] for args in calls] == [stage.name for stage in STAGES] == list(StageName)
    assert burnish("run", "--until", "lunch", check=False).returncode == 2
