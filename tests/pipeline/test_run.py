"""Whole runs: what they leave, that they go on where they were killed, and how they fail."""

from __future__ import annotations

import json
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from burnish.config.loading import load_config
from burnish.data.preferences import read_preferences
from burnish.data.store import LabelStore
from burnish.models.sequences import Sequences
from burnish.monitor.live import View
from burnish.monitor.trackers import Trackers
from burnish.pipeline import run as stages
from burnish.pipeline.context import RunContext
from burnish.pipeline.run import STAGES, discard, fingerprint, run_pipeline
from burnish.reward.ensemble import load_ensemble
from burnish.runs.directory import RunDirectory
from tests.command import ROOT, begun, burnish
from tests.killing import kill_at, wait_until
from tests.shared_run import ARGUMENTS


def test_the_summary_holds_what_it_promises(short_run: Path) -> None:
    s = json.loads((short_run / "summary.json").read_text())
    assert s["champion"] in ("sft", "ppo", "ppo_average", "ppo_best", "dpo")
    assert [i["item"] for i in s["checklist"]][:2] == [
        "10,000 or more preference pairs",
        "an ensemble of three reward models",
    ]
    assert s["checklist"][0]["ok"] is False
    assert s["checklist"][1]["ok"] is True
    assert s["reward"]["members"] == 3
    assert (
        s["reward"]["accuracy"]["ci_low"]
        < s["reward"]["accuracy"]["value"]
        < s["reward"]["accuracy"]["ci_high"]
    )
    assert s["ppo"]["state"] == "finished"
    assert s["ppo"]["kl_final"] > 3 * s["ppo"]["kl_final_se"], "PPO has moved the policy"
    assert s["ppo"]["kl_target"] == 3
    assert s["fallback"] == {"triggered": False, "reason": None}
    for policy in ("ppo", "dpo", "best_of_2"):
        figures = s["evaluation"][policy]
        assert figures["ci_low"] <= figures["win_rate"] <= figures["ci_high"]
        assert figures["n"] == 48
        assert s["gold"][policy]["n"] == 48
    assert s["evaluation"]["sft"]["mean_length"] > 1
    assert {stage["state"] for stage in s["stages"].values()} == {"done"}
    assert all(stage["seconds"] > 0 for n, stage in s["stages"].items() if n != "report")


def test_every_update_carries_kl_and_reward(short_run: Path) -> None:
    rows = RunDirectory.open(short_run).read_rows("metrics/ppo.jsonl")
    assert [r["step"] for r in rows] == list(range(1, 7))
    names = "kl kl_k3 kl_coef score member_0 member_1 member_2 ensemble_std length truncated entropy clip_fraction"
    for row in rows:
        assert set(names.split()) <= row.keys()
        assert row["kl_k3"] >= 0
        assert row["sampling_gap"] < 1e-3
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert "watcher" in rows[0]


def test_artefacts_are_plain_models(short_run: Path) -> None:
    policy = AutoModelForCausalLM.from_pretrained(short_run / "ppo")
    tokenizer = AutoTokenizer.from_pretrained(short_run / "ppo")
    inputs = tokenizer("One day, Zoe had a red ball.", return_tensors="pt")
    out = policy.generate(**inputs, max_new_tokens=12, do_sample=True)
    assert out.shape[1] > inputs["input_ids"].shape[1]
    member = AutoModel.from_pretrained(short_run / "reward" / "member-0")
    assert member.config.pad_token_id not in (None, member.config.eos_token_id)
    with torch.no_grad():
        assert torch.isfinite(member(**inputs).last_hidden_state).all()
    assert not [p for p in short_run.rglob("*") if p.suffix in (".bin", ".pt", ".pkl", ".pickle")]
    assert (short_run / "champion" / "README.md").read_text().count("SFT") >= 1
    assert load_file(short_run / "champion" / "model.safetensors")
    expected = (short_run / "run.yaml").stat().st_mode & 0o666
    weights = sorted(short_run.rglob("*.safetensors"))
    assert len(weights) > 6
    assert {p.stat().st_mode & 0o777 for p in weights} == {expected}, (
        "whoever may read the run may read its weights"
    )


def test_members_differ(short_run: Path) -> None:
    heads = [
        load_file(short_run / "reward" / f"member-{k}" / "head.safetensors")["score.weight"] for k in range(3)
    ]
    assert not torch.allclose(heads[0], heads[1])
    assert not torch.allclose(heads[1], heads[2])


def test_a_finished_run_is_left_alone(run_copy: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in run_copy.rglob("*") if p.is_file() and "sqlite" not in p.name}
    burnish(*ARGUMENTS, "--dir", str(run_copy))
    touched = [str(p) for p, t in before.items() if p.stat().st_mtime_ns != t and p.name != "run.yaml"]
    assert touched == []


def test_status_and_json(short_run: Path) -> None:
    done = burnish("status", str(short_run), "--json")
    states = json.loads(done.stdout)["stages"]
    assert set(states.values()) == {"done"}
    assert list(states) == ["sft", "collect", "label", "reward", "align", "evaluate", "report"]


@dataclass(frozen=True)
class Changed:
    """A copy of the short run, refused with another number of test prompts, and evaluated anew on request."""

    path: Path
    refused: CompletedProcess[str]
    unharmed: bool
    done: CompletedProcess[str]


@pytest.fixture(scope="module")
def changed(short_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Changed:
    copy = tmp_path_factory.mktemp("changed") / "copy"
    shutil.copytree(short_run, copy)
    command = [*ARGUMENTS, "--dir", str(copy), "--set", "evaluate.n_test=40"]
    refused = burnish(*command, check=False)
    unharmed = fingerprint(copy) == fingerprint(short_run)
    return Changed(copy, refused, unharmed, burnish(*command, "--redo"))


@pytest.mark.e2e
def test_a_changed_key_redoes_what_depends_on_it_and_says_so(short_run: Path, changed: Changed) -> None:
    assert changed.refused.returncode == 5
    assert "(evaluate.n_test 48 -> 40): evaluate would be done again" in changed.refused.stderr
    assert "--redo" in changed.refused.stderr
    assert changed.unharmed
    assert "evaluate.n_test 48 -> 40; will be done again: evaluate, report" in changed.done.stderr
    assert json.loads((changed.path / "summary.json").read_text())["evaluation"]["ppo"]["n"] == 40
    assert fingerprint(changed.path)["reward"] == fingerprint(short_run)["reward"]


def test_changed_labelling_sets_the_old_labels_aside(run_copy: Path) -> None:
    burnish(
        "run",
        "examples/short.yaml",
        "--until",
        "label",
        "--dir",
        str(run_copy),
        "--set",
        "threads=1",
        "--set",
        "label.labels_per_pair=2",
        "--redo",
    )
    with (
        LabelStore(run_copy / "labels.sqlite") as new,
        LabelStore(run_copy / "labels.replaced-1.sqlite") as old,
    ):
        assert new.count()["labels"] == 2 * old.count()["labels"] > 0
        assert new.count()["comparisons"] == old.count()["comparisons"]
    assert not (run_copy / "reward").exists()


@pytest.mark.e2e
def test_align_done_again_leaves_no_row_of_the_old_one(run_copy: Path) -> None:
    run = RunDirectory.open(run_copy)
    names = ("metrics/ppo.jsonl", "metrics/dpo.jsonl", "timing/ppo.jsonl", "samples/ppo-000001.jsonl")
    before = {name: run.read_rows(name) for name in names}
    assert all(before.values())
    sets = ["threads=1", "ppo.kl.target=2.5"]
    args = [a for s in sets for a in ("--set", s)]
    burnish("run", "examples/short.yaml", "--until", "align", "--dir", str(run_copy), *args, "--redo")
    for name, rows in before.items():
        assert len(run.read_rows(name)) == len(rows), name
    assert run.read_rows("metrics/ppo.jsonl") != before["metrics/ppo.jsonl"]


def test_discarding_every_stage_leaves_nothing_of_theirs(run_copy: Path) -> None:
    run = RunDirectory.open(run_copy)
    discard(run, STAGES)
    left = {str(p.relative_to(run_copy)) for p in run_copy.rglob("*") if p.is_file()}
    kept = {"run.yaml", "device.json", "manifest.json", "events.jsonl", "labels.replaced-1.sqlite"}
    assert {p for p in left if not p.startswith("tensorboard/")} == kept
    assert run.read_rows("events.jsonl") == []


def test_what_another_version_made_is_kept_unless_asked(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = fingerprint(run_copy)
    monkeypatch.setattr(stages, "code_version", lambda modules: "of another version")
    config = load_config(ROOT / "examples" / "short.yaml", ["threads=1"])
    run_pipeline(config, run_copy)
    said = capsys.readouterr().err
    assert "kept: sft, collect, label, reward, align, evaluate (--redo does them again)" in said
    assert "will be done again: report" in said
    assert fingerprint(run_copy) == before
    inputs = stages.stage_inputs(RunDirectory.open(run_copy).config)
    begun = stages.discard_stale(RunDirectory.open(run_copy), inputs, View("x", 1.0), redo=True)
    assert begun is None
    assert RunDirectory.open(run_copy).stages() == []


@pytest.mark.slow("kills")
@pytest.mark.e2e
def test_killed_in_three_stages_it_ends_with_the_same_hashes(short_run: Path, tmp_path: Path) -> None:
    """benchmarks/kill_resume.py does this twenty times at random moments; here at three places of one run."""
    folder = tmp_path / "killed"
    command = [*ARGUMENTS, "--dir", str(folder)]
    places = [
        ("collect", "collect/checkpoint-*"),
        ("reward", "metrics/reward.jsonl"),
        ("align", "align/checkpoint-000002"),
    ]
    for stage, sign in places:
        kill_at(lambda sign=sign: any(folder.glob(sign)), begun(*command, quiet=True))
        run = RunDirectory.open(folder)
        assert run.stage_state(stage) == "interrupted"
        assert "running" not in [run.stage_state(n) for n in run.stages()]
    burnish(*command)
    assert fingerprint(folder) == fingerprint(short_run)


@pytest.mark.e2e
def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    process = begun(*ARGUMENTS, "--dir", str(folder))
    wait_until((folder / "manifest.json").exists, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "continues from the last checkpoint" in err
    assert "Traceback" not in err
    assert not (folder / "lock").exists()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["run", "no-such.yaml"], 3, "does not exist"),
        (["run", "--set", "ppo.learning_rte=1"], 3, "did you mean ppo.learning_rate"),
        (["run", "--set", "label.source=imported"], 3, "evaluate.examiner"),
        (["run", "--set", "model.path=nowhere/here", "--set", "threads=1"], 6, "cannot be loaded"),
        (["run", "--set", "collect.n_pairs=0", "--set", "threads=1"], 4, "nothing to label"),
        (["run", "--set", "model.max_prompt_tokens=2", "--set", "threads=1"], 4, "prompts"),
        (["status", "no-such-run"], 5, "not a run directory"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_mistakes_end_with_one_message_and_a_code(
    args: list[str], code: int, message: str, tmp_path: Path
) -> None:
    extra = ["--dir", str(tmp_path / "r")] if args[0] == "run" else []
    done = burnish(*args, *extra, cwd=tmp_path, check=False)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.e2e
def test_when_nothing_beats_sft_it_ships_and_the_exit_code_says_so(run_copy: Path) -> None:
    sets = ["threads=1", "ppo.updates=0", "dpo.when=never", "evaluate.n_test=16", "evaluate.n_selection=16"]
    args = [a for s in sets for a in ("--set", s)]
    done = burnish("run", "examples/short.yaml", "--dir", str(run_copy), *args, "--redo", check=False)
    assert done.returncode == 10, done.stderr
    assert "Champion: sft" in done.stdout
    assert load_file(run_copy / "champion" / "model.safetensors")
    assert "The champion is SFT" in (run_copy / "report.html").read_text()


@pytest.mark.e2e
def test_doctor_and_export(short_run: Path, tmp_path: Path) -> None:
    done = burnish("doctor", "examples/short.yaml", "--json", "--set", "threads=1")
    checks = {f["check"]: f["ok"] for f in json.loads(done.stdout)}
    assert checks["lengths against context"] is True
    assert checks["leakage between splits"] is True
    assert checks["EOS and pad"] is True
    assert {"memory", "time", "disk"} <= checks.keys()
    burnish("export", str(short_run), str(tmp_path / "pairs.jsonl"), "--as", "pairs")
    assert len(read_preferences(tmp_path / "pairs.jsonl").pairs) > 150
    burnish("export", str(short_run), str(tmp_path / "policy"), "--as", "policy")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "policy").config.num_hidden_layers == 4
    again = burnish("export", str(short_run), str(tmp_path / "policy"), "--as", "policy", check=False)
    assert again.returncode == 5
    assert "choose another place" in again.stderr


def test_exported_reward_models_give_the_runs_score_by_their_card_alone(
    short_run: Path, tmp_path: Path
) -> None:
    burnish("export", str(short_run), str(tmp_path / "reward"), "--as", "reward")
    folder = tmp_path / "reward"
    ensemble = json.loads((folder / "ensemble.json").read_text())
    place = RunContext.of(RunDirectory.open(short_run), View("x", 1.0), Trackers({}, print))
    codec, prompt = place.models.codec, place.data.splits.train[0]
    ids = [codec.encode_prompt(prompt), codec.encode_response(" She was happy.")]
    raws = []
    for member in sorted(folder.glob("member-*")):
        names: dict[str, Any] = {"FOLDER": str(member)}
        exec((member / "README.md").read_text().split("```python")[1].split("```")[0], names)
        raws.append(float(names["score"](*ids)))
    (formula,) = re.findall(r"```python\nscore = (.*)\n```", (folder / "README.md").read_text())
    score = eval(formula, {"raws": raws, "ensemble": ensemble})
    own = load_ensemble(place.models.base, short_run / "reward")
    expected = own.normalised(Sequences(own.base, ids[:1], ids[1:], codec.pad_id)).mean()
    assert score == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.e2e
def test_compare_names_settings_and_figures_that_differ(short_run: Path, changed: Changed) -> None:
    copy = changed.path
    told = json.loads(burnish("compare", str(short_run), str(copy), "--json").stdout)
    assert told["settings"] == [["evaluate.n_test", 48, 40]]
    rows = {key: (a, b) for key, a, b in told["figures"]}
    assert rows["ppo, win rate by examiner"][0].endswith("n = 48")
    assert rows["ppo, win rate by examiner"][1].endswith("n = 40")
    assert rows["reward accuracy"][0] == rows["reward accuracy"][1]
    assert "evaluate.n_test" in burnish("compare", str(short_run), str(copy)).stdout


def test_chat_asks_sft_and_the_champion_the_same(short_run: Path) -> None:
    prompt = "One day, Zoe had a red ball."
    done = burnish("chat", str(short_run), "--json", stdin=f"{prompt}\n{prompt}\n")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    champion = json.loads((short_run / "evaluation.json").read_text())["champion"]
    assert set(first) == {"sft", champion}
    assert all(text.strip() for text in first.values())
    assert first["sft"] != second["sft"], "the same line again is another draw"
    long = burnish("chat", str(short_run), stdin="word " * 500 + "\n", check=False)
    assert long.returncode == 4
    assert "max_prompt_tokens" in long.stderr


def test_init_writes_a_file_that_runs_and_never_overwrites(tmp_path: Path) -> None:
    burnish("init", "mine.yaml", cwd=tmp_path)
    done = burnish("init", "mine.yaml", cwd=tmp_path, check=False)
    assert done.returncode == 3
    assert "exists already" in done.stderr
    small = ["data.n_prompts=200", "collect.n_pairs=8", "threads=1"]
    burnish("run", "mine.yaml", "--until", "label", *(a for s in small for a in ("--set", s)), cwd=tmp_path)
    assert (tmp_path / "runs" / "rehearsal" / "labels.sqlite").exists()
