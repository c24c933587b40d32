"""The scripts under benchmarks/ in their shortest form: they run on a clean clone, and give the figures they promise.

Not here: `first_label.py` and `peers.sh` install environments, and `watch_trl.py` runs in a peer's.
`sizes.py` trains three models for ten minutes; with fewer steps their answers are too poor for a run.
`quickstart_seeds.py` reads whole quickstarts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from burnish.rehearse import grammar

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow("benchmarks")
ELSEWHERE = {"first_label", "quickstart_seeds", "sizes", "watch_trl"}
FORMS = {
    "gate_seeds": ["--seeds", "1", "--jobs", "1"],
    "kill_resume": ["--kills", "1", "--runs", "1"],
    "labelling_load": ["--annotators", "3", "--seconds", "5", "--comparisons", "300", "--kills", "1"],
    "page_to_pairs": ["--pairs", "30", "--annotators", "3"],
    "plan": ["--modes", "auto"],
    "scale": ["compute"],
    "selection": [],
}
OWN_TESTS = {"beside_trl", "candidates", "gpu", "gradient_noise", "speed"}
"""Scripts that need other arguments than those of FORMS."""


def script(name: str, *args: str | Path | float) -> str:
    """Run a script in a process of its own, on one thread, and return what it prints."""
    call = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *map(str, args)]
    threads = {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        call, capture_output=True, text=True, cwd=ROOT, env=os.environ | threads, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def last_line(text: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(text.strip().splitlines()[-1])
    return found


def test_every_script_is_here() -> None:
    there = {file.stem for file in (ROOT / "benchmarks").glob("*.py")}
    assert there == FORMS.keys() | ELSEWHERE | OWN_TESTS


@pytest.mark.parametrize("name", FORMS)
def test_the_shortest_form_runs(name: str) -> None:
    assert script(name, *FORMS[name]).strip()


def test_candidates_are_trained_from_a_finished_run(run_copy: Path) -> None:
    assert "dpo_labels" in script("candidates", run_copy, "--arms", "dpo_labels")


UNTRAINED = """
import json, shutil, sys
what, model, data, out = sys.argv[1:5]
first = json.loads(open(data).readline())
assert first["prompt"][0]["role"] == "user"
assert what == "rloo" or first["chosen"][0]["content"] != first["rejected"][0]["content"]
shutil.copytree(model, out + "/model")
if what == "dpo":  # another model below the layers that the run trains
    from safetensors.torch import load_file, save_file
    weights = load_file(out + "/model/model.safetensors")
    name = next(n for n in weights if "layers.0.mlp.down_proj" in n)
    weights[name] *= 1.5
    save_file(weights, out + "/model/model.safetensors", {"format": "pt"})
print(json.dumps({"steps": 3, "batch": 8, "seconds": 1.0, "autocast": "float32"}))
"""
"""An arm that trains nothing; its DPO changes a layer that the run keeps frozen."""


def test_an_untrained_peer_is_judged_as_sft(run_copy: Path, tmp_path: Path) -> None:
    arm, out = tmp_path / "arm.py", tmp_path / "out"
    arm.write_text(UNTRAINED)
    call = (run_copy, out, "--arm", arm, "--minutes", 3, "--trial-minutes", 1)
    lines = script("beside_trl", *call).splitlines()
    (row,) = [line.split("|") for line in lines if line.startswith("| trl-rloo-default")]
    assert 0.3 < float(row[2].split()[0]) < 0.7
    assert abs(float(row[5])) < 1e-3, "KL to SFT"
    (row,) = [line.split("|") for line in lines if line.startswith("| trl-dpo-default")]
    assert float(row[5]) > 0.01
    assert any(line.startswith("| ppo - trl-dpo-default") for line in lines)
    arms = {path.parent.name for path in out.glob("*/result.json")}
    assert {"reward", "trl-rloo-default", "trl-dpo-default", "rloo-trial-1e-06", "dpo-trial-2.5e-05"} <= arms
    arm.unlink()
    assert script("beside_trl", *call).splitlines() == lines, "finished arms are kept"


def test_the_noise_of_gradients_is_measured_on_a_finished_run(run_copy: Path) -> None:
    found = last_line(script("gradient_noise", run_copy, "--batches", 2, "--answers", 16, "--coef", 0.3))
    assert len(found) == 6
    assert found["response (RLOO)"]["alignment"] == 1.0  # type: ignore[index]
    assert all(row["signal"] < 1 for row in found.values())  # type: ignore[index]


def test_the_script_for_a_gpu_runs_every_step_on_a_cpu(tmp_path: Path) -> None:
    steps = "output_layer,sampling,sampling_gap,pass_price,ppo_update,planned_update,reward_pairs,load_peak"
    out = tmp_path / "gpu.json"
    script("gpu", "--size", "tiny", "--device", "cpu", "--out", out, "--only", steps)
    found = json.loads(out.read_text())["steps"]
    assert list(found) == steps.split(",")
    assert [name for name, step in found.items() if "error" in step] == []
    assert found["sampling"]["engine_4"] > 0
    assert abs(found["sampling_gap"]["mean"]) < 1e-3, "in bfloat16 where the processor multiplies it"
    assert found["load_peak"]["host_gib"] > found["load_peak"]["files_gib"] > 0
    script("gpu", "--size", "tiny", "--device", "cpu", "--out", out, "--only", steps, "--seconds", "0")
    assert all("skipped" in step for step in json.loads(out.read_text())["steps"].values())


def test_our_arms_of_the_speed_table_run_on_a_new_arena(tmp_path: Path) -> None:
    arena = tmp_path / "arena"
    script("arms/arena", arena, "--layers", "3", "--hidden", "64", "--vocab", "512")
    ppo = last_line(script("arms/burnish_ppo", arena, "--updates", "2", "--batch", "8", "--members", "1"))
    assert len(ppo["seconds"]) == 2  # type: ignore[arg-type]
    rates = last_line(
        script("arms/burnish_sampling", arena, "--prompts", "8", "--batch", "8", "--rounds", "1")
    )
    assert float(rates["ours"]) > 0  # type: ignore[arg-type]


def test_our_arms_on_pairs_run(tmp_path: Path) -> None:
    pairs = [
        {"prompt": p.text, "chosen": " She sang and was glad.", "rejected": f" He had {i} cows."}
        for i, p in enumerate(grammar.prompts(60, 0))
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    model = ROOT / "burnish" / "rehearse" / "model"
    reward = last_line(
        script("arms/burnish_pairs", "reward", model, file, "--rate", 1e-3, "--held-out", 12, "--members", 1)
    )
    assert 0 <= float(reward["accuracy"]) <= 1  # type: ignore[arg-type]
    dpo = last_line(script("arms/burnish_pairs", "dpo", model, file, "--rate", 1e-3, "--held-out", 12))
    assert 0 <= float(dpo["gold_win_rate"]) <= 1  # type: ignore[arg-type]
