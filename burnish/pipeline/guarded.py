"""PPO under its guard: updates are watched, corrected, rolled back, and at last given up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from burnish.config.guard import GuardConfig
from burnish.errors import Diverged
from burnish.models.sampling import sample_rollout
from burnish.monitor.hacking import HackMonitor, WatcherMonitor
from burnish.monitor.health import HealthMonitor
from burnish.monitor.texts import text_figures
from burnish.pipeline.journal import Journal
from burnish.policy.guard import GuardState, GuardStep, guard_step
from burnish.policy.ppo import PPO
from burnish.records import Alert, StepStats
from burnish.reward.ensemble import EnsembleScorer
from burnish.reward.saved import SavedWatcher

SAMPLES_KEPT = 8
PAIRS_KEPT = 24
OWN_PAIRS = "samples/pairs.jsonl"
KEPT = ("healthy", "raises", "healthy_tick", "candidate", "candidate_tick")  # of Guarded, in checkpoints


@dataclass
class Guarded:
    """A PPO run with its monitors, its watcher and its guard: everything a checkpoint must hold, and where it goes."""

    ppo: PPO
    health: HealthMonitor
    watcher: WatcherMonitor
    hacks: HackMonitor
    watch: SavedWatcher | None
    config: GuardConfig
    journal: Journal
    scorer: EnsembleScorer | None = None  # whose members can be combined more carefully
    guard: GuardState = field(default_factory=GuardState)
    healthy: int = 0  # number of the last checkpoint that has proved healthy
    healthy_tick: int = 0
    candidate: int = 0  # that of the one that is about to, 0 where there is none
    candidate_tick: int = 0
    raises: int = 0  # KL raises over all attempts
    cause: str | None = None  # whether the reward or the optimiser failed, once PPO was given up

    @property
    def tightest(self) -> int:
        """How often the guard may have the members combined more carefully."""
        return self.scorer.given.tightest if self.scorer is not None and self.config.tighten else 0

    def state(self) -> dict[str, Any]:
        return {
            "phase": "ppo",
            "ppo": self.ppo.state_dict(),
            "health": self.health.state_dict(),
            "watcher": self.watcher.state_dict(),
            "hacks": self.hacks.state_dict(),
            "guard": self.guard.state_dict(),
            **{name: getattr(self, name) for name in KEPT},
        }

    def restore(self, folder: Path, state: dict[str, Any]) -> None:
        self.ppo.load(folder)
        self.ppo.load_state_dict(state["ppo"])
        self.health.load_state_dict(state["health"])
        self.watcher.load_state_dict(state["watcher"])
        self.hacks.load_state_dict(
            state.get("hacks", {"start": [], "recent": []})
        )  # not in older checkpoints
        self.set_guard(GuardState(**state["guard"]))
        for name in KEPT:
            setattr(self, name, state.get(name, 0))  # older checkpoints know only the first two

    def set_guard(self, state: GuardState) -> None:
        """Take over a state of the guard, with what it has done to the reward."""
        self.guard = state
        if self.scorer is not None:
            self.scorer.tighten(state.tightenings)

    def prove(self, *, healthy: bool) -> None:
        """After an update: a checkpoint since which all updates were healthy for long enough is one to go back to, one
        that was followed by an unhealthy update is not. So what the proxy likes is never enough: the watcher and the
        detectors have looked at what came of it."""
        if not healthy:
            self.candidate = 0
        elif self.candidate and self.ppo.tick - self.candidate_tick >= self.config.proof_updates:
            self.healthy, self.healthy_tick, self.candidate = self.candidate, self.candidate_tick, 0

    def checkpoint(self, *, healthy: bool, proven: bool = False) -> None:
        """Save everything; older checkpoints go, but for the last that has proved healthy and the one about to."""
        found = self.journal.latest_checkpoint()
        number = found.step + 1 if found else 1
        if proven:
            self.healthy, self.healthy_tick, self.candidate = number, self.ppo.tick, 0
        elif healthy and not self.candidate:
            self.candidate, self.candidate_tick = number, self.ppo.tick
        keep = frozenset({self.healthy, self.candidate})
        self.journal.checkpoint(self.ppo.save, self.state(), keep=keep)


def run_guarded(guarded: Guarded, sample_every: int) -> str | None:
    """Updates until PPO is done (None) or given up (the reason), roll-backs on the way included."""
    reason = None
    while reason is None and guarded.ppo.step < guarded.ppo.config.updates:
        try:
            reason = run_attempt(guarded, sample_every)
        except Diverged as error:
            reason = diverged(guarded, str(error))
    return reason


def run_attempt(guarded: Guarded, sample_every: int) -> str | None:
    """Updates until PPO is done (None), rolled back (None, state restored) or given up (the reason)."""
    ppo, journal = guarded.ppo, guarded.journal
    for raw in ppo.updates():
        stats = watched(ppo, raw, guarded.watch)
        journal.log("ppo", stats)
        while ppo.notes:
            journal.decide(stats.step, ppo.notes.pop(0))
        timing = {"step": stats.step, "attempt": stats.attempt, "tick": ppo.tick, **ppo.timing}
        journal.run.append("timing/ppo.jsonl", timing)
        journal.view.progress(ppo.step, ppo.config.updates)
        journal.view.update(stats.values)
        if (ppo.tick - 1) % sample_every == 0:
            keep_samples(journal, ppo)
            keep_pairs(journal, ppo)
        observers = (guarded.health, guarded.watcher, guarded.hacks)
        alerts = [alert for observer in observers for alert in observer.observe(stats)]
        for alert in alerts:
            journal.alert(alert)
        verdict = judge(guarded, stats, alerts)
        guarded.prove(healthy=verdict.healthy and not verdict.state.streak)
        if verdict.action == "raise_kl":
            ppo.controller.raise_coef(guarded.config.raise_kl_factor)
            guarded.raises += 1
        elif verdict.action == "lower_rate":
            ppo.slow_down(guarded.config.learning_rate_factor)
        elif verdict.action == "roll_back":
            roll_back(guarded)
            return None
        elif verdict.action == "give_up":
            assert verdict.decision is not None
            return verdict.decision.reason
        if ppo.step % ppo.config.checkpoint_every == 0 or ppo.step == ppo.config.updates:
            guarded.checkpoint(healthy=verdict.healthy and not verdict.state.streak)
    return None


def judge(guarded: Guarded, stats: StepStats, alerts: Sequence[Alert]) -> GuardStep:
    """What the guard makes of an update, on record: with what it costs in updates that are not kept."""
    ppo = guarded.ppo
    verdict = guard_step(guarded.guard, stats, alerts, ppo.tick, guarded.config, tightest=guarded.tightest)
    guarded.set_guard(verdict.state)
    if verdict.decision is not None:
        gone = {"roll_back": ppo.tick - guarded.healthy_tick, "give_up": ppo.tick}.get(verdict.action, 0)
        told = f"{verdict.decision.reason} ({gone} updates given up)" if gone else verdict.decision.reason
        evidence = {**verdict.decision.evidence, "updates_lost": gone}
        verdict = replace(verdict, decision=replace(verdict.decision, reason=told, evidence=evidence))
        assert verdict.decision is not None
        guarded.journal.decide(stats.step, verdict.decision)
        if verdict.action == "give_up":
            guarded.cause = str(evidence["cause"])
    return verdict


def diverged(guarded: Guarded, message: str) -> str | None:
    """An update that could not even be sampled or scored: critical, so the guard acts at once."""
    ppo, journal = guarded.ppo, guarded.journal
    ppo.tick += 1
    alert = Alert("diverged", "critical", message, ppo.step, 1.0, 0.0, {"attempt": ppo.attempt})
    journal.alert(alert)
    stats = StepStats(ppo.step, ppo.attempt, {})
    verdict = judge(guarded, stats, [alert])
    if verdict.decision is None:
        raise Diverged(f"{message} (guard.enabled is false)")
    if verdict.action == "roll_back":
        roll_back(guarded)
        return None
    return verdict.decision.reason


def roll_back(guarded: Guarded) -> None:
    """Back to the last healthy checkpoint (weights, optimiser, controller, monitors); the new attempt draws new
    randomness and takes smaller steps. What was decided so far (guard, counters) is kept."""
    ppo, guard, raises, tick = guarded.ppo, guarded.guard, guarded.raises, guarded.ppo.tick
    coef, health, hacks = ppo.controller.coef, copy(guarded.health), copy(guarded.hacks)
    attempt = ppo.attempt + 1
    saved = guarded.journal.run.checkpoint_at("align", guarded.healthy)
    guarded.restore(saved.folder, saved.state)
    guarded.set_guard(guard)
    guarded.raises = raises
    ppo.tick = tick
    # A penalty that had to grow is not taken back with the weights.
    ppo.controller.raise_coef(max(1.0, coef / ppo.controller.coef))
    # Each roll-back takes smaller steps than the one before, also when it returns to the same checkpoint.
    factor = guarded.config.learning_rate_factor ** (attempt - ppo.attempt)
    ppo.restart(factor, attempt)
    guarded.health.restart(health)
    guarded.hacks.restart(hacks)
    guarded.checkpoint(healthy=True, proven=True)


def watched(ppo: PPO, stats: StepStats, watch: SavedWatcher | None) -> StepStats:
    """The figures with those of the texts added and, on the updates it looks at, the watcher's mean score with its
    standard error."""
    assert ppo.experience is not None
    judged = ppo.experience.judged
    figures = text_figures([p.text for p in judged.prompts], judged.texts)
    stats = replace(stats, values={**stats.values, **figures})
    if watch is None or (stats.step > 1 and stats.step % ppo.config.watch_every):
        return stats
    scores = watch.scores(judged, ppo.codec.pad_id)
    extra = {
        "watcher": float(scores.mean()),
        "watcher_se": float(scores.std(unbiased=True)) / math.sqrt(len(scores)),
    }
    return replace(stats, values={**stats.values, **extra})


def keep_samples(journal: Journal, ppo: PPO) -> None:
    """A few prompts and responses of this update, with scores and KL."""
    experience = ppo.experience
    assert experience is not None
    rollout = experience.rollout
    for i in range(min(SAMPLES_KEPT, len(rollout))):
        journal.run.append(
            f"samples/ppo-{ppo.tick:06d}.jsonl",
            {
                "prompt": experience.judged.prompts[i].text,
                "response": rollout.texts[i],
                "score": float(experience.scores.scores[i]),
                "kl": float(experience.kl[i]),
                "length": rollout.lengths[i],
            },
        )


def keep_pairs(journal: Journal, ppo: PPO) -> None:
    """Two answers of the policy as it is now to each of a few prompts, with their scores: whether the reward still
    tells better from worse in what the policy writes (`burnish reward examine`)."""
    asked = ppo.batch_of_prompts(ppo.step + 1)[:: ppo.answers][:PAIRS_KEPT]
    rollout = sample_rollout(
        ppo.policy,
        ppo.codec,
        [prompt for prompt in asked for _ in range(2)],
        max_tokens=ppo.max_tokens,
        batch_size=ppo.config.batch_size,
        seed=ppo.seed,
        where=("pairs", ppo.tick),
    )
    judged = rollout if ppo.plain is None else ppo.plain(rollout)
    scores = ppo.score(judged).scores.tolist()
    for i in range(0, len(rollout), 2):
        prompt = judged.prompts[i]
        journal.run.append(
            OWN_PAIRS,
            {
                "tick": ppo.tick,
                "prompt": prompt.text,
                "messages": [[m.role, m.content] for m in prompt.messages],
                "first": judged.texts[i],
                "second": judged.texts[i + 1],
                "first_ended": judged.ended[i],
                "second_ended": judged.ended[i + 1],
                "first_score": scores[i],
                "second_score": scores[i + 1],
            },
        )
