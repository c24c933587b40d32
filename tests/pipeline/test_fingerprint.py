"""A stopped and continued run ends as one that was never stopped, whatever kernels this processor has."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from burnish.config.loading import load_config
from burnish.pipeline.context import Journal
from burnish.pipeline.run import fingerprint, run_pipeline
from burnish.records import StepStats
from burnish.runs.directory import RunDirectory
from tests.command import ROOT, as_before

SMALLER = [
    *("threads=1", "ppo.updates=4", "ppo.checkpoint_every=1", "ppo.learning_rate=1e-4", "dpo.when=never"),
    *("ppo.kl.target=2.5", "ppo.gate=ignored"),
]


def aligned(
    short_run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int | None
) -> dict[str, str]:
    """The fingerprint of the short run aligned anew, and stopped once in PPO on the way."""
    shutil.copytree(short_run, folder)
    config = load_config(ROOT / "examples" / "short.yaml", SMALLER)
    log = Journal.log

    def logging(self: Journal, name: str, stats: StepStats, extra: Any = None) -> None:
        log(self, name, stats, extra)
        if name == "ppo" and stats.step == stop_at:
            raise KeyboardInterrupt

    with as_before():
        if stop_at is not None:
            with monkeypatch.context() as patch:
                patch.setattr(Journal, "log", logging)
                with pytest.raises(KeyboardInterrupt):
                    run_pipeline(config, folder, until="align", redo=True)
            assert RunDirectory.open(folder).stage_state("align") == "interrupted"
        run_pipeline(config, folder, until="align", redo=stop_at is None)
    return fingerprint(folder)


@pytest.mark.slow("kills")
@pytest.mark.e2e
def test_align_stopped_and_continued_has_the_bits_of_one_that_was_not(
    short_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = aligned(short_run, tmp_path / "whole", monkeypatch, None)
    assert any(name.startswith("ppo") for name in whole)
    assert aligned(short_run, tmp_path / "stopped", monkeypatch, 3) == whole
