"""What a stage depends on is known to be so, and a stage that fails says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from burnish.config.loading import load_config
from burnish.errors import OutOfMemory
from burnish.monitor.live import View
from burnish.monitor.trackers import Trackers
from burnish.pipeline.context import RunContext
from burnish.pipeline.gate import held_out_figures
from burnish.pipeline.run import STAGES, Stage, carry_out, code_of, discard_stale, stage_inputs
from burnish.runs.directory import RunDirectory, Writes
from burnish.runs.inputs import Inputs


@pytest.mark.parametrize(
    ("setting", "stage"),
    [
        ("ppo.temperature=0.9", "reward"),
        ("evaluate.confidence=0.9", "reward"),
        ("evaluate.examiner=reward_model", "reward"),
        ("monitor.kl_spike=3", "align"),
        ("evaluate.kl_prompts=300", "evaluate"),
        ("data.n_prompts=100", "collect"),
        ("seed=1", "sft"),
        ("monitor.trackers=[]", None),
        ("rounds=2", "sft"),
        ("select.acquisition=bald", "collect"),
    ],
)
def test_a_setting_changes_the_inputs_of_the_first_stage_that_uses_it(
    setting: str, stage: str | None
) -> None:
    before, after = stage_inputs(load_config(None, [])), stage_inputs(load_config(None, [setting]))
    changed = [name for name in before if after[name].changes_since(before[name])]
    assert changed[:1] == ([stage] if stage else [])


def test_the_code_of_a_stage_is_what_its_module_imports() -> None:
    code = {stage.name: code_of(stage) for stage in STAGES}
    assert {"burnish.policy.ppo", "burnish.objectives", "burnish.models.generate"} <= set(code["align"])
    assert "burnish.policy.ppo" not in code["sft"]
    assert "burnish.report.page" in code["report"]
    assert set(code["align"]) <= set(code["rounds"])
    every = {module for modules in code.values() for module in modules}
    assert not [
        m for m in every if m.startswith(("burnish.config", "burnish.cli", "burnish.web", "burnish.runs"))
    ]
    assert len({stage_inputs(load_config(None, []))[name].code for name in ("sft", "align", "evaluate")}) == 3


def place(run: RunDirectory) -> RunContext:
    return RunContext.of(run, View("t", 1.0), Trackers({}, print))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 1 bytes"
        ),
    ],
)
def test_memory_that_ran_out_is_a_failure_with_what_to_lower(tmp_path: Path, error: Exception) -> None:
    run = RunDirectory.create_or_open(tmp_path / "r", load_config(None, []))

    def fails(_: object) -> list[str]:
        raise error

    stage = Stage("align", fails, (), Writes(), lower="ppo.micro_batch")
    with pytest.raises(OutOfMemory, match=r"memory ran out in align .* lower ppo.micro_batch"):
        carry_out(place(run), stage, Inputs({}, {}, ""))
    assert run.stage_state("align") == "failed"
    assert "memory ran out" in run.manifest()["stages"]["align"]["reason"]


def test_less_at_once_is_on_record_under_the_stage_that_did_it(tmp_path: Path) -> None:
    run = RunDirectory.create_or_open(tmp_path / "r", load_config(None, []))

    def narrow(place: RunContext) -> list[str]:
        def work(rows: int) -> None:
            if rows > 8:
                raise torch.OutOfMemoryError("no room")

        place.models.base.memory.fit("training ppo", 32, work)
        return []

    carry_out(place(run), Stage("align", narrow, (), Writes()), Inputs({}, {}, ""))
    events = run.read_rows("events.jsonl")
    assert [(e["stage"], e["action"], e["evidence"]["rows"]) for e in events] == [
        ("align", "halve_micro_batch", 16),
        ("align", "halve_micro_batch", 8),
    ]
    assert events[0]["reason"] == "memory ran out (no room): training ppo continues with 16 rows at once"


def test_an_unexpected_error_is_a_failure_too_and_stays_what_it_is(tmp_path: Path) -> None:
    run = RunDirectory.create_or_open(tmp_path / "r", load_config(None, []))

    def fails(_: object) -> list[str]:
        raise ZeroDivisionError("by chance")

    with pytest.raises(ZeroDivisionError):
        carry_out(place(run), Stage("align", fails, (), Writes()), Inputs({}, {}, ""))
    assert run.stage_state("align") == "failed"
    assert run.manifest()["stages"]["align"]["reason"] == "by chance"


def test_who_is_stopped_while_discarding_finds_all_of_it_stale_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was taken back before the stop, no later stage may pass for done on top of an earlier one done anew."""
    config = load_config(None, ["threads=1"])
    before = stage_inputs(config)
    after = stage_inputs(load_config(None, ["threads=1", "reward.epochs=2"]))
    for stops_after in range(4):
        run = RunDirectory.create_or_open(tmp_path / str(stops_after), config)
        run.freeze()
        for name in before:
            run.begin_stage(name, before[name])
            run.finish_stage(name, ["x"], 1.0, {})
        calls: list[str] = []
        really = run.discard_stage

        def stopped(name: str, writes: Writes, calls: list[str] = calls, really: Any = really) -> None:
            if len(calls) == stops_after:  # noqa: B023
                raise KeyboardInterrupt
            calls.append(name)
            really(name, writes)

        monkeypatch.setattr(run, "discard_stage", stopped)
        with pytest.raises(KeyboardInterrupt):
            discard_stale(run, after, View("t", 1.0), redo=True)
        left = [name for name in ("reward", "align", "evaluate", "report") if name in run.stages()]
        assert run.stale(after).changed == left
        assert left[0] == "reward"


def test_with_a_length_correction_the_labels_taste_for_length_is_no_rule_to_beat() -> None:
    examined: dict[str, Any] = {
        "accuracy": {"value": 0.8},
        "baselines": {"longer": 0.77, "shorter": 0.23, "first": 0.49},
        "length": {"how": "none"},
    }
    assert held_out_figures(examined) == ({"value": 0.8}, examined["baselines"])
    examined["length"] = {"how": "regress", "corrected_accuracy": {"value": 0.7}}
    assert held_out_figures(examined) == ({"value": 0.7}, {"first": 0.49})
