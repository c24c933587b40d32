"""The guard's ladder over a PPO that is real but small: every planted fault, what is done about it, and the same again
when it is killed at any rung."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from burnish.commands.replay import replay
from burnish.config import RunConfig
from burnish.config.guard import GuardConfig
from burnish.config.monitor import MonitorConfig
from burnish.distributed import collectives
from burnish.errors import ConfigError, RunError
from burnish.monitor.hacking import HackMonitor
from burnish.monitor.health import HealthMonitor
from burnish.monitor.live import View
from burnish.monitor.trackers import Trackers
from burnish.pipeline.context import Journal
from burnish.pipeline.guarded import Guarded, run_guarded, watched
from burnish.pipeline.oversight import Oversight
from burnish.policy.kl_control import AdaptiveKLController
from burnish.records import Alert, Decision, Rollout, Scores, StepStats
from burnish.report.text_report import as_text
from burnish.report.why import as_report, why
from burnish.runs.directory import RunDirectory
from tests.killing import killed
from tests.toys import VOCABULARY, make_ppo, toy

Score = Callable[[Rollout], Scores]
UPDATES = 24


def hits(rollout: Rollout, weight: float = 1.0) -> Scores:
    hit = weight * torch.tensor([float(VOCABULARY["a"] in r) for r in rollout.response_ids])
    return Scores(hit, hit[:, None], torch.zeros_like(hit))


class Members:
    """What the guard sees of an ensemble that can be combined more carefully, and is worth less then."""

    tightest = 1

    def __init__(self) -> None:
        self.given, self.times = self, 0

    def tighten(self, times: int) -> None:
        self.times = times

    def __call__(self, rollout: Rollout) -> Scores:
        return hits(rollout, 1 - 0.5 * self.times)


def start(path: Path, score: Score = hits, guard: dict[str, Any] | None = None, **config: Any) -> Guarded:
    """PPO under its guard in a run directory: a new one, or from where the last one was left."""
    settings = {
        "updates": UPDATES,
        "checkpoint_every": 3,
        "coef": 0.5,
        "adaptive_rate": False,
        "advantage": "gae",
        "batch_size": 32,
    }
    base, codec = toy()
    ppo = make_ppo(base, codec, **(settings | config))  # type: ignore[arg-type]
    ppo.score = score
    config = RunConfig(threads=1, guard=GuardConfig(**(guard or {})), ppo=ppo.config)
    run = collectives.from_lead(lambda: RunDirectory.create_or_open(path, config))
    run.freeze()
    journal = Journal(run, View("toy", 1.0, io.StringIO()), Trackers([], print), "align")
    members = score if isinstance(score, Members) else None
    # One response an update: detectors that a run of so few never hears, for all answers are one of five tokens.
    oversight = Oversight.of(
        run.config.guard,
        MonitorConfig(),
        kl_target=1.0,
        responses=1,
        armed=False,
        looks=1,
        tightest=0 if members is None else members.tightest,
    )
    guarded = Guarded(ppo, oversight, None, journal, members)  # type: ignore[arg-type]
    found = journal.latest_checkpoint()
    if found is None:
        journal.decide(0, oversight.introduced())
        guarded.checkpoint(healthy=True, proven=True)
    else:
        run.cut_back(found.state["offsets"])
        guarded.restore(found.folder, found.state)
    return guarded


def decisions(guarded: Guarded) -> list[dict[str, Any]]:
    rows = guarded.journal.run.read_rows("events.jsonl")
    return [row for row in rows if row["kind"] == "decision" and row["action"] != "oversight"]


def actions(guarded: Guarded) -> list[str]:
    return [row["action"] for row in decisions(guarded)]


def once(at: int, fault: Callable[[Guarded], None]) -> Score:
    """A score that does something terrible to the run when it is asked for the `at`-th time."""
    asked = []

    def score(rollout: Rollout) -> Scores:
        asked.append(1)
        if len(asked) == at:
            fault(score.guarded)  # type: ignore[attr-defined]
        return hits(rollout)

    return score


def test_without_a_fault_it_is_left_alone(tmp_path: Path) -> None:
    guarded = start(tmp_path)
    assert run_guarded(guarded, 100) is None
    assert actions(guarded) == []
    assert guarded.ppo.tick == UPDATES


def test_weights_that_are_not_numbers_are_rolled_back(tmp_path: Path) -> None:
    def poison(guarded: Guarded) -> None:
        with torch.no_grad():
            guarded.ppo.policy_parameters[0].fill_(float("nan"))

    score = once(8, poison)
    guarded = score.guarded = start(tmp_path, score)  # type: ignore[attr-defined]
    assert run_guarded(guarded, 100) is None
    assert actions(guarded) == ["roll_back"]
    assert all(bool(torch.isfinite(p).all()) for p in guarded.ppo.policy_parameters)


def test_a_value_function_that_runs_away_is_slowed_down_then_rolled_back(tmp_path: Path) -> None:
    def push(guarded: Guarded) -> None:
        with torch.no_grad():
            for p in guarded.ppo.value_parameters:
                p.add_(50.0)

    score = once(10, push)
    guarded = score.guarded = start(tmp_path, score)  # type: ignore[attr-defined]
    assert run_guarded(guarded, 100) is None
    assert actions(guarded) == ["lower_rate", "roll_back"]
    assert decisions(guarded)[0]["evidence"]["alert"] == "loss_spike"
    assert decisions(guarded)[-1]["evidence"]["cause"] == "optimiser"


def test_a_reward_that_says_the_same_of_everything_is_given_up_without_roll_backs(tmp_path: Path) -> None:
    guarded = start(tmp_path, lambda rollout: hits(rollout, 0.0))
    reason = run_guarded(guarded, 100)
    assert reason is not None
    assert "one score for all answers" in reason
    assert actions(guarded) == ["give_up"]
    assert decisions(guarded)[0]["evidence"]["cause"] == "reward"


def test_a_reward_that_explodes_is_given_up(tmp_path: Path) -> None:
    asked: list[int] = []

    def score(rollout: Rollout) -> Scores:
        asked.append(1)
        return hits(rollout, 1.0 if len(asked) < 8 else 1e4)

    guarded = start(tmp_path, score)
    assert run_guarded(guarded, 100) is not None
    assert actions(guarded) == ["roll_back", "roll_back", "give_up"]
    assert decisions(guarded)[-1]["evidence"]["alert"] == "exploding_reward"
    assert decisions(guarded)[-1]["evidence"]["cause"] == "reward"


def test_a_batch_that_was_scored_by_noise_costs_a_roll_back_at_most(tmp_path: Path) -> None:
    asked: list[int] = []

    def score(rollout: Rollout) -> Scores:
        asked.append(1)
        found = hits(rollout)
        if len(asked) == 8:
            rng = random.Random(1)
            found.scores = torch.tensor([rng.uniform(-1e4, 1e4) for _ in range(len(rollout))])
        return found

    guarded = start(tmp_path, score)
    assert run_guarded(guarded, 100) is None
    assert actions(guarded).count("roll_back") <= 1
    assert "give_up" not in actions(guarded)


def test_a_policy_that_comes_to_one_answer_is_given_up(tmp_path: Path) -> None:
    guarded = start(tmp_path, lambda r: hits(r, 5.0), coef=1e-4, rate=0.2)
    reason = run_guarded(guarded, 100)
    assert reason is not None
    assert {row["evidence"]["alert"] for row in decisions(guarded)} <= {"entropy_collapse", "kl_spike"}
    assert actions(guarded)[-1] == "give_up"


@pytest.mark.parametrize(("name", "target"), [("length_drift", 0.5), ("kl_spike", 1.0)])
def test_a_raise_against_a_hack_lowers_the_controllers_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, target: float
) -> None:
    guarded = start(tmp_path, updates=3, checkpoint_every=9)
    guarded.ppo.controller = AdaptiveKLController(coef=0.5, target=1.0, horizon=1e9)
    monkeypatch.setattr(
        guarded.oversight, "observe", lambda stats: [Alert(name, "warning", name, stats.step, 2.0, 1.0)]
    )
    monkeypatch.setattr(AdaptiveKLController, "smoothed", 9.0)
    run_guarded(guarded, 100)
    assert actions(guarded) == ["raise_kl"]
    assert guarded.ppo.controller.target == target
    assert guarded.ppo.controller.coef == pytest.approx(1.0)
    assert ("KL target from 1 to 0.5" in decisions(guarded)[0]["reason"]) == (target == 0.5)


def test_the_watchers_error_is_clustered_by_prompt(tmp_path: Path) -> None:
    """Eight prompts, four answers each, one score for all answers to a prompt."""
    guarded = start(tmp_path, updates=1, samples_per_prompt=4)
    stats = next(iter(guarded.ppo.updates()))
    judged = guarded.ppo.experience.reward_rollout  # type: ignore[union-attr]
    worth = {p.text: float(i) for i, p in enumerate(dict.fromkeys(judged.prompts))}
    scores = torch.tensor([worth[p.text] for p in judged.prompts])

    class Watch:
        def scores(self, rollout: Rollout, pad_id: int) -> torch.Tensor:
            return scores

    values = watched(guarded.ppo, stats, Watch()).values  # type: ignore[arg-type]
    n = len(worth)
    sums = [float((scores[scores == w] - scores.mean()).sum()) for w in worth.values()]
    clustered = (n / (n - 1) * sum(s * s for s in sums)) ** 0.5 / len(scores)
    assert values["prompts"] == n
    assert values["watcher_se"] == pytest.approx(clustered)
    assert values["watcher_se"] > 1.5 * float(scores.std()) / len(scores) ** 0.5


@pytest.mark.slow("ladder")
def test_kl_that_runs_away_raises_the_coefficient_first(tmp_path: Path) -> None:
    """Warnings for KL: the target is passed slowly, for the coefficient is far too small at first."""
    guarded = start(tmp_path, lambda r: hits(r, 0.6), coef=0.02, rate=0.004, updates=40, batch_size=256)
    guarded.oversight.health.kl_target = 0.3
    guarded.oversight.health.config = MonitorConfig(entropy_floor=0.01)  # which falls as well
    run_guarded(guarded, 100)
    assert actions(guarded)[0] == "raise_kl"
    assert decisions(guarded)[0]["evidence"]["alert"] == "kl_spike"


def test_a_full_disk_ends_it_in_words_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = start(tmp_path / "whole")
    run_guarded(whole, 100)
    guarded = start(tmp_path / "full")
    with monkeypatch.context() as patch:
        written: list[int] = []

        def full(*_: object, **__: object) -> None:
            written.append(1)
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

        patch.setattr("burnish.policy.ppo.save_file", full)
        with pytest.raises(RunError, match=r"the disk is full .* what the run had saved is kept"):
            run_guarded(guarded, 100)
        assert written
    again = start(tmp_path / "full")
    assert again.ppo.step == 0, "the checkpoint before the full disk"
    run_guarded(again, 100)
    assert same_weights(again, whole)


# Every rung, and killed there


class Scripted(HackMonitor):
    """Alerts by attempt and step, whatever the figures."""

    attempts = 2

    def observe(self, stats: StepStats) -> list[Alert]:
        name = "clip_fraction" if stats.attempt == 0 and stats.step < 8 else "length_drift"
        if stats.step < 5 or stats.attempt >= self.attempts:
            return []
        return [Alert(name, "warning", f"{name} seen", stats.step, 2.0, 1.0)]


class ScriptedToTheEnd(Scripted):
    """It never gets any better."""

    attempts = 9


LADDER = ["lower_rate", "raise_kl", "raise_kl", "tighten", "roll_back", "raise_kl", "raise_kl", "roll_back"]


def on_the_ladder(path: Path, script: type[Scripted] = Scripted) -> Guarded:
    guarded = start(path, Members(), guard={"settle_updates": 0, "patience": 2}, updates=40)
    guarded.oversight.hacks = script(32)
    guarded.oversight.health.config = MonitorConfig(loss_spike=1e9, clip_fraction=1.0, approx_kl=1e9)
    return guarded


def same_weights(a: Guarded, b: Guarded) -> bool:
    pairs = zip(
        [*a.ppo.policy_parameters, *a.ppo.value_parameters],
        [*b.ppo.policy_parameters, *b.ppo.value_parameters],
        strict=True,
    )
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    guarded = on_the_ladder(tmp_path_factory.mktemp("whole"))
    assert run_guarded(guarded, 100) is None
    return guarded


def test_the_ladder_is_climbed_in_its_order_and_every_rung_says_why_and_what_it_cost(whole: Guarded) -> None:
    assert actions(whole) == LADDER
    for row in decisions(whole):
        assert row["evidence"]["alert"] in ("clip_fraction", "length_drift")
        assert (row["evidence"]["updates_lost"] > 0) == (row["action"] == "roll_back")
    lost = [row["evidence"]["updates_lost"] for row in decisions(whole) if row["action"] == "roll_back"]
    assert whole.ppo.tick == 40 + sum(lost), "what is lost is made again"
    assert "where the reward models disagree" in decisions(whole)[3]["reason"]
    assert whole.scorer is not None
    assert whole.oversight.guard.tightenings == 1, "a tightened reward is not loosened by a roll-back"


def killed_at(rung: int, path: Path, script: type[Scripted] = Scripted) -> None:
    """Up the ladder, and SIGKILL as soon as this decision is on record."""

    def work(die: Callable[[], None]) -> None:
        guarded = on_the_ladder(path, script)
        decide, seen = Journal.decide, []

        def deciding(self: Journal, step: int, decision: Decision) -> None:
            decide(self, step, decision)
            seen.append(decision.action)
            if len(seen) == rung + 1:
                die()

        Journal.decide = deciding  # type: ignore[method-assign]
        run_guarded(guarded, 100)

    killed(work)


@pytest.mark.slow("ladder")
@pytest.mark.e2e
@pytest.mark.parametrize("rung", range(len(LADDER)))
def test_killed_at_any_rung_it_decides_the_same_and_ends_with_the_same_bits(
    rung: int, whole: Guarded, tmp_path: Path
) -> None:
    killed_at(rung, tmp_path)
    again = on_the_ladder(tmp_path)
    assert actions(again) == LADDER[: len(actions(again))] != LADDER, "it was killed on the way"
    assert run_guarded(again, 100) is None
    assert actions(again) == LADDER
    assert decisions(again) == decisions(whole)
    assert same_weights(again, whole)
    assert again.journal.run.read_rows("metrics/ppo.jsonl") == whole.journal.run.read_rows(
        "metrics/ppo.jsonl"
    )


@pytest.mark.e2e
def test_killed_as_it_gives_up_it_gives_up_again_for_the_same_reason(tmp_path: Path) -> None:
    whole = on_the_ladder(tmp_path / "whole", ScriptedToTheEnd)
    reason = run_guarded(whole, 100)
    assert reason is not None
    assert actions(whole)[-1] == "give_up"
    killed_at(len(actions(whole)) - 1, tmp_path / "killed", ScriptedToTheEnd)
    again = on_the_ladder(tmp_path / "killed", ScriptedToTheEnd)
    assert run_guarded(again, 100) == reason
    assert decisions(again) == decisions(whole)
    assert same_weights(again, whole)


def test_it_goes_back_only_to_what_has_proved_healthy(tmp_path: Path) -> None:
    """Checkpoints at 3, 6, 9 ...; alerts from 5 on: that of 3 was followed by an alert before five healthy updates."""
    guarded = on_the_ladder(tmp_path)
    run_guarded(guarded, 100)
    first = next(row for row in decisions(guarded) if row["action"] == "roll_back")
    assert first["evidence"]["updates_lost"] == first["evidence"]["tick"], "back to the start"
    later = start(tmp_path / "later", guard={"patience": 1, "max_raises": 0, "tighten": False})
    monitor = later.oversight.hacks
    calls: list[int] = []

    def observe(stats: StepStats) -> list[Alert]:
        calls.append(stats.step)
        return [Alert("length_drift", "warning", "seen", stats.step, 2.0, 1.0)] if len(calls) == 13 else []

    monitor.observe = observe  # type: ignore[method-assign]
    run_guarded(later, 100)
    row = next(row for row in decisions(later) if row["action"] == "roll_back")
    assert row["evidence"]["updates_lost"] == 13 - 3, (
        "6 and 9 were skipped while 3 was proved; 9 was not proved yet"
    )


# Looked at again


def test_the_same_decisions_again_from_kept_figures_alone(
    whole: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = replayed(whole, monkeypatch, [])
    assert again["same"]
    assert [a["action"] for a in again["replayed"]] == LADDER == [a["action"] for a in again["recorded"]]
    assert [a["reason"] for a in again["replayed"]] == [a["reason"] for a in again["recorded"]]


def test_other_settings_decide_otherwise_and_it_says_from_where_on(
    whole: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = replayed(whole, monkeypatch, ["guard.patience=4"])
    assert not patient["same"]
    assert patient["apart_at"] == {"step": 6, "attempt": 0}
    assert replayed(whole, monkeypatch, ["guard.enabled=false"])["replayed"] == []
    with pytest.raises(ConfigError, match="needs a new run"):
        replayed(whole, monkeypatch, ["ppo.updates=3"])


def replayed(guarded: Guarded, monkeypatch: pytest.MonkeyPatch, sets: list[str]) -> dict[str, Any]:
    """`replay` with the alerts of the script, which no figure has in it."""
    with monkeypatch.context() as patch:
        patch.setattr("burnish.pipeline.oversight.HackMonitor", Scripted)
        patch.setattr("burnish.pipeline.oversight.HealthMonitor", Deaf)
        return replay(guarded.journal.path, sets)


class Deaf(HealthMonitor):
    """Hears nothing, as in the run."""

    def observe(self, stats: StepStats) -> list[Alert]:
        return []


def test_an_attempt_that_diverged_is_replayed_too(tmp_path: Path) -> None:
    def poison(guarded: Guarded) -> None:
        with torch.no_grad():
            guarded.ppo.policy_parameters[0].fill_(float("nan"))

    score = once(8, poison)
    guarded = score.guarded = start(tmp_path, score)  # type: ignore[attr-defined]
    run_guarded(guarded, 100)
    again = replay(tmp_path)
    assert [a["action"] for a in again["replayed"]] == ["roll_back"]
    assert again["same"]


def test_why_says_what_was_done_what_it_cost_and_what_failed(whole: Guarded, tmp_path: Path) -> None:
    found = why(whole.journal.path)
    assert "raised the KL coefficient 4 times" in found["text"]
    assert "rolled back twice" in found["text"]
    lost = sum(row["updates_lost"] for row in found["decisions"])
    assert f"{lost} updates were repeated" in found["text"]
    assert "the first was `clip_fraction` at update 5" in found["text"]
    assert [row["action"] for row in found["decisions"]] == LADDER
    flat = start(tmp_path, lambda rollout: hits(rollout, 0.0))
    run_guarded(flat, 100)
    text = why(tmp_path)["text"]
    assert "PPO was given up at update 5" in text
    assert "The reward failed" in text
    lines = as_text(as_report(why(tmp_path), replay(tmp_path)))
    assert "give_up" in lines
    assert "As recorded." in lines
