"""How fast a machine is, and the batch that follows from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from burnish.config import RunConfig
from burnish.config.loading import load_config
from burnish.config.ppo import PPOConfig
from burnish.monitor.live import View
from burnish.monitor.trackers import Trackers
from burnish.pipeline import speed_estimate
from burnish.pipeline.context import RunContext
from burnish.runs.directory import RunDirectory
from tests.command import burnish

SECOND = speed_estimate.Speed(sampling=0.1, features=0.1, reading=0.1, policy=0.2, reward=0.03)


def test_a_batch_is_one_that_answers_and_minibatches_divide() -> None:
    assert speed_estimate.batch_of(100.9, PPOConfig()) == 100
    assert speed_estimate.batch_of(100, PPOConfig(samples_per_prompt=3, minibatches=2, batch_size=12)) == 96
    assert speed_estimate.batch_of(0.1, PPOConfig()) == speed_estimate.SMALLEST
    assert speed_estimate.batch_of(1e9, PPOConfig()) == speed_estimate.LARGEST


def test_an_update_costs_what_its_parts_cost() -> None:
    """Sampled, read by three members and the reference, three epochs of policy and value."""
    assert SECOND.ppo_response(RunConfig()) == pytest.approx(0.1 + 3 * 0.01 + 0.1 + 3 * 0.23)
    alone = load_config(None, ["ppo.advantage=rloo", "ppo.samples_per_prompt=4"])
    assert SECOND.ppo_response(alone) == pytest.approx(0.1 + 3 * 0.01 + 0.1 + 3 * 0.2)


def test_it_takes_as_long_as_was_asked_for_within_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed_estimate, "measure", lambda *_: SECOND)

    def settled(*sets: str) -> int:
        run = RunDirectory(tmp_path / f"new-{len(sets)}", load_config(None, ["ppo.update_seconds=92", *sets]))
        place = RunContext.of(run, View("t", 1.0), Trackers({}, print))
        return speed_estimate.settle_batch(run, place.models, place.data).ppo.batch_size

    assert settled() == 100
    assert settled("model.cache_gib=0.005") == 56, (
        "120 tokens of 96 numbers of 4 bytes, twice: 92 kB a response"
    )


def test_a_run_keeps_the_batch_it_began_with(tmp_path: Path) -> None:
    small = ["threads=1", "data.n_prompts=200", "collect.n_pairs=8", "ppo.update_seconds=0.01"]
    arguments = ["run", "--dir", str(tmp_path / "r"), *(a for s in small for a in ("--set", s))]
    burnish(*arguments, "--until", "collect")
    file = tmp_path / "r" / "run.yaml"
    frozen = yaml.safe_load(file.read_text())
    assert frozen["ppo"]["batch_size"] == speed_estimate.SMALLEST, (
        "no machine makes 20 responses in a hundredth of a second"
    )
    kept = tmp_path / "r" / "batch.json"
    kept.write_text(kept.read_text().replace(str(speed_estimate.SMALLEST), "24"))
    burnish(*arguments, "--until", "label")
    assert yaml.safe_load(file.read_text())["ppo"]["batch_size"] == 24
    kept.write_text(kept.read_text().replace("24", "25"))
    burnish(*arguments, "--set", "ppo.minibatches=2", "--until", "label")
    assert yaml.safe_load(file.read_text())["ppo"]["batch_size"] == speed_estimate.SMALLEST, (
        "25 cannot be halved"
    )
