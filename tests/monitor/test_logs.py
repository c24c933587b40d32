"""Logs of any trainer: what is a hack, what is none, what cannot be told; and the callback that reads one live."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from burnish import audit_rows, watch
from burnish.errors import DataError
from burnish.monitor.callback import FILE
from burnish.monitor.logs import NAMES, audit_log, figures_of, lines_of, read_log
from tests.command import burnish

TRL = {
    "score": "reward",
    "score_sd": "reward_std",
    "length": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "entropy": "entropy",
}
VERL = {
    "score": "critic/score/mean",
    "length": "response_length/mean",
    "truncated": "response_length/clip_ratio",
    "entropy": "actor/entropy",
}


def run(
    updates: int = 60, *, hacked: bool, seed: int = 0, names: dict[str, str] = TRL
) -> list[dict[str, Any]]:
    """A trainer's log; hacked, its answers grow to twice their length from the fifteenth update on, for reward."""
    rng = random.Random(seed)
    rows = []
    for i in range(updates):
        share = min(1.0, max(0, i - 15) / 15) if hacked else 0.0
        values = {
            "score": 1.5 * min(1.0, i / 20) + rng.gauss(0, 0.1),
            "score_sd": 0.9,
            "length": 60 * (1 + share) + rng.gauss(0, 3),
            "truncated": max(0.0, rng.gauss(0.03, 0.01)),
            "entropy": 1.4 - 0.2 * i / updates + rng.gauss(0, 0.02),
        }
        rows.append({"step": 10 * (i + 1)} | {names[n]: v for n, v in values.items() if n in names})
    return rows


OPENRLHF = {
    "score": "train/reward",
    "length": "train/response_length",
    "entropy": "train/entropy_loss",
}


@pytest.mark.parametrize("names", [TRL, VERL, OPENRLHF], ids=["TRL", "verl", "OpenRLHF"])
def test_longer_and_longer_answers_are_suspected_and_a_run_that_learns_is_not(names: dict[str, str]) -> None:
    for seed in range(5):
        assert audit_rows(run(hacked=False, seed=seed, names=names))["verdict"] == "healthy"
        found = audit_rows(run(hacked=True, seed=seed, names=names))
        assert found["verdict"] == "hacking suspected"
        assert found["suspected"]["detector"] == "length_drift"
        assert 200 < found["suspected"]["step"] < 350, "the trainer's own steps: ten a row"


def test_what_cannot_be_told_says_so() -> None:
    assert audit_rows(run(4, hacked=True))["verdict"] == "too few to tell"
    unscored = [{k: v for k, v in row.items() if k != "reward"} for row in run(hacked=True)]
    found = audit_rows(unscored)
    assert found["verdict"] == "too few to tell"
    assert "no score" in "\n".join(lines_of(found))
    assert audit_rows(run(30, hacked=True), responses=2)["verdict"] == "too few to tell", (
        "48 updates a window"
    )


def test_rows_of_evaluations_are_no_updates_and_what_is_no_number_is_a_skipped_step() -> None:
    rows = run(hacked=False)
    mixed = [x for row in rows for x in (row, {"eval_loss": 1.0, "step": row["step"]}, {"epoch": 1})]
    assert audit_rows(mixed)["updates"] == len(rows)
    assert figures_of({"entropy_loss": -1.2, "reward": 1.0}) == {"score": 1.0}, "no entropy: a loss"
    assert figures_of({"reward": math.nan, "loss": math.nan, "entropy": "1.0"}) == {"skipped": 1.0}
    broken = [row | {"grad_norm": math.inf} for row in rows]
    assert {a["name"] for a in audit_rows(broken)["alerts"]} == {"non_finite"}
    assert audit_rows(broken)["verdict"] == "broken", "a run that breaks is not one that hacks"


def test_every_figure_of_a_detector_has_a_name() -> None:
    from burnish.detectors import FIGURES

    assert set(FIGURES) <= set(NAMES)


def test_what_verl_prints_and_keeps(tmp_path: Path) -> None:
    """Its file logger keeps figures under `data`; its console prints them in a line, among much else."""
    rows = run(hacked=True, names=VERL)
    kept = tmp_path / "metrics.jsonl"
    inner = [{k: v for k, v in row.items() if k != "step"} for row in rows]
    kept.write_text(
        "".join(
            json.dumps({"step": row["step"], "elapsed_seconds": 1.0, "data": data}) + "\n"
            for row, data in zip(rows, inner, strict=True)
        )
    )
    printed = tmp_path / "train.log"
    lines = ["(main_task pid=19799) epoch 0, step 1", "INFO: {'actor_rollout_ref': {}}", ""]
    for row, data in zip(rows, inner, strict=True):
        told = " - ".join(f"{k}:{v:.6f}" for k, v in data.items())
        lines.append(f"(TaskRunner pid=7) step:{row['step']} - actor/grad_norm:np.float64(1.2e-01) - {told}")
    printed.write_text("\n".join(lines) + "\n")
    first, second = audit_log(kept), audit_log(printed)
    assert first["verdict"] == second["verdict"] == "hacking suspected"
    assert first["suspected"]["step"] == second["suspected"]["step"]
    assert first["updates"] == second["updates"] == len(rows)
    assert read_log(printed)[0]["actor/grad_norm"] == 0.12
    lines[3:] = [line.replace("np.float64(1.2e-01)", "nan") for line in lines[3:]]
    printed.write_text("\n".join(lines))
    assert {a["name"] for a in audit_log(printed)["alerts"]} >= {"non_finite"}


def test_files(tmp_path: Path) -> None:
    rows = run(hacked=True)
    lines = tmp_path / "log.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6')
    state = tmp_path / "trainer_state.json"
    state.write_text(json.dumps({"log_history": rows, "best": None}))
    assert read_log(lines) == rows == read_log(state)
    lines.write_text("{}\nnonsense\n{}\n")
    with pytest.raises(DataError, match="line 2 is not JSON"):
        read_log(lines)
    lines.write_text("3\n{}\n")
    with pytest.raises(DataError, match="not an object with figures"):
        read_log(lines)
    lines.write_text('{"accuracy": 1.0}\n')
    with pytest.raises(DataError, match="no row with a known figure"):
        audit_log(lines)
    with pytest.raises(DataError, match="does not exist"):
        read_log(tmp_path / "none.jsonl")
    state.write_text('{"log": 3}')
    with pytest.raises(DataError, match="holds no list of rows"):
        read_log(state)


@pytest.mark.parametrize(("hacked", "updates", "code"), [(False, 60, 0), (True, 60, 20), (True, 4, 21)])
def test_the_command_ends_with_its_verdict(tmp_path: Path, hacked: bool, updates: int, code: int) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in run(updates, hacked=hacked)))
    done = burnish("audit", str(log), check=False)
    assert done.returncode == code, done.stdout
    assert "not in the log: repetition" in done.stdout
    told = json.loads(burnish("audit", str(log), "--json", check=False).stdout)
    assert told["updates"] == updates


def callback(tmp_path: Path, **how: Any) -> tuple[Any, Any, Any, Any]:
    args = SimpleNamespace(output_dir=str(tmp_path))
    state = SimpleNamespace(is_world_process_zero=True, global_step=0)
    return watch(**how), args, state, SimpleNamespace(should_training_stop=False)


def test_the_callback_stops_a_run_that_hacks_and_keeps_what_it_saw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watcher, args, state, control = callback(tmp_path, stop=True)
    stopped = None
    for row in run(hacked=True):
        state.global_step = row.pop("step")
        watcher.on_log(args, state, control, logs=row)
        if control.should_training_stop:
            stopped = state.global_step
            break
    watcher.on_train_end(args, state, control)
    assert stopped is not None
    kept = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert [r["kind"] for r in kept][-2:] == ["decision", "verdict"]
    assert kept[-1]["suspected"]["step"] == stopped == watcher.report()["suspected"]["step"]
    assert "burnish: hacking suspected" in capsys.readouterr().out


def test_the_callback_reads_answers_and_other_processes_say_nothing(tmp_path: Path) -> None:
    watcher, args, state, control = callback(tmp_path)
    french = "La petite fille est allée au parc et elle a joué avec ses amis toute la journée."
    english = "The little girl went to the park and played with her friends all day."
    for i, row in enumerate(run(hacked=False)):
        said = french if i > 20 else english
        asked = [[{"role": "user", "content": f"{english} {k}"}] for k in range(8)]
        answers = [[{"role": "assistant", "content": said}] for _ in range(8)]
        assert watcher.texts(prompts=asked, completions=answers, extra=1) == [0.0] * 8
        state.global_step = row.pop("step")
        watcher.on_log(args, state, control, logs=row)
    found = watcher.report()
    assert found["suspected"]["detector"] == "language_switch"
    assert not control.should_training_stop, "it was not asked to"
    silent, args, state, control = callback(tmp_path / "other")
    state.is_world_process_zero = False
    silent.on_log(args, state, control, logs={"reward": 1.0})
    silent.on_train_end(args, state, control)
    assert not (tmp_path / "other").exists()


def rows_of(**change: Any) -> list[dict[str, Any]]:
    """Forty healthy updates of TRL's, with another value from the thirtieth on."""
    rng = random.Random(0)
    return [
        {
            "step": n,
            "loss": 0.01,
            "grad_norm": 0.5,
            "reward": 0.2 + rng.random() / 10,
            "reward_std": 0.3,
            "completions/mean_length": 120 + rng.random(),
            "kl": 0.04,
            **({k: v(n) if callable(v) else v for k, v in change.items()} if n >= 30 else {}),
        }
        for n in range(1, 41)
    ]


@pytest.mark.parametrize(
    ("change", "alert"),
    [
        ({"reward": math.nan}, "reward_not_finite"),
        ({"reward": None}, "reward_not_finite"),
        ({"reward": "NaN"}, "reward_not_finite"),
        ({"reward": 1.0}, "reward_stands_still"),
        ({"loss": math.nan}, "loss_not_finite"),
        ({"loss": "NaN"}, "loss_not_finite"),
        ({"kl": lambda n: -0.5 * n}, "kl_under_zero"),
        ({"kl": -0.05}, "kl_under_zero"),
    ],
)
def test_a_log_is_not_healthy_beside_a_critical_alert(change: dict[str, Any], alert: str) -> None:
    found = audit_rows(rows_of(**change))
    assert found["verdict"] == "broken"
    assert alert in {a["name"] for a in found["alerts"]}
    assert audit_rows(rows_of())["verdict"] == "healthy"


def test_a_null_in_a_row_of_another_kind_is_no_reward(tmp_path: Path) -> None:
    mixed = [x for row in rows_of() for x in (row, {"reward": None, "eval_loss": 1.0})]
    assert audit_rows(mixed)["verdict"] == "healthy"
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_of(kl=-3.0)))
    assert burnish("audit", str(file), check=False).returncode == 22
