"""PPO under its guard, which corrects updates, rolls them back or gives PPO up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from burnish.distributed import collectives
from burnish.errors import Diverged
from burnish.models.generate import sample_rollout
from burnish.monitor.profile import profiled
from burnish.monitor.texts import text_figures
from burnish.pipeline.context import Journal
from burnish.pipeline.oversight import Oversight
from burnish.policy.guard import GuardStep
from burnish.policy.looks import Looks
from burnish.policy.ppo import PPO
from burnish.records import Alert, StepStats
from burnish.reward.ensemble import EnsembleScorer, SavedWatcher
from burnish.stats import clustered_error

SAMPLES_KEPT = 8
PAIRS_KEPT = 24
OWN_PAIRS = "samples/pairs.jsonl"


@dataclass
class Guarded:
    """A PPO run with its watcher, oversight and journal: the state that a checkpoint must hold."""

    ppo: PPO
    oversight: Oversight
    watch: SavedWatcher | None
    journal: Journal
    scorer: EnsembleScorer | None = None  # can combine its members more conservatively
    looks: Looks | None = None  # at held-out prompts
    chosen: dict[str, Any] = field(default_factory=dict)  # the method, and the trials that chose it
    raises: int = 0  # KL raises over all attempts
    cause: str | None = None  # which failed when PPO was given up: "reward" or "optimiser"

    def state(self) -> dict[str, Any]:
        """Return the state of PPO and its oversight for a checkpoint."""
        kept = self.oversight.state_dict()
        kept |= {"chosen": self.chosen, "looks": [] if self.looks is None else self.looks.seen}
        return {"phase": "ppo", "ppo": self.ppo.state_dict(), "raises": self.raises, **kept}

    def restore(self, folder: Path, state: dict[str, Any]) -> None:
        """Restore PPO, its oversight and the counters from a checkpoint."""
        self.load(folder, state)
        self.oversight.load_state_dict(state)
        self.raises = state["raises"]
        self.tighten()

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Restore only PPO from a checkpoint."""
        self.ppo.load(folder)
        self.ppo.load_state_dict(state["ppo"])
        if self.looks is not None:
            self.looks.seen = list(state.get("looks", []))  # not in older checkpoints
        collectives.settled()  # all processes must load it before process 0 replaces it

    def tighten(self) -> None:
        """Combine the ensemble's members as conservatively as the guard has decided."""
        if self.scorer is not None:
            self.scorer.tighten(self.oversight.guard.tightenings)

    def checkpoint(self, *, healthy: bool, proven: bool = False) -> None:
        """Save a checkpoint; delete older ones except the last proven healthy one and its candidate."""
        collectives.check_replicas([*self.ppo.policy_parameters, *self.ppo.value_parameters], "PPO")
        found = self.journal.latest_checkpoint()
        number = found.step + 1 if found else 1
        keep = self.oversight.checkpointed(number, self.ppo.tick, healthy=healthy, proven=proven)
        self.journal.checkpoint(self.ppo.save, self.state(), keep=keep)


def run_guarded(guarded: Guarded, sample_every: int) -> str | None:
    """Run PPO with its roll-backs; return None when it is done, or the reason if it is given up."""
    reason = None
    while reason is None and not guarded.ppo.done:
        try:
            reason = run_attempt(guarded, sample_every)
        except Diverged as error:
            reason = diverged(guarded, str(error))
    return reason


def run_attempt(guarded: Guarded, sample_every: int) -> str | None:
    """Run updates; return None when PPO is done or rolled back, or the reason if it is given up."""
    ppo, journal = guarded.ppo, guarded.journal
    for raw in profiled(ppo.updates(), journal.profile, journal.path / "profile"):
        stats = collectives.leaders(watched(ppo, raw, guarded.watch))
        journal.log("ppo", stats)
        while ppo.notes:
            journal.decide(stats.step, ppo.notes.pop(0))
        timing = {"step": stats.step, "attempt": stats.attempt, "tick": ppo.tick, **ppo.timing}
        journal.run.append("timing/ppo.jsonl", timing)
        journal.trackers.log("timing", stats.step, ppo.timing)
        journal.view.progress(ppo.spent // ppo.config.batch_size, ppo.config.updates)
        journal.view.update(stats.values)
        if (ppo.tick - 1) % sample_every == 0:
            keep_samples(journal, ppo)
            keep_pairs(journal, ppo)
        verdict = judge(guarded, stats, guarded.oversight.observe(stats))
        guard = guarded.oversight.config
        if verdict.action == "raise_kl":
            assert verdict.decision is not None
            ppo.controller.raise_coef(guard.raise_kl_factor)
            if verdict.decision.evidence["cause"] == "reward":
                ppo.controller.lower_target(guard.raise_kl_factor)
            guarded.raises += 1
        elif verdict.action == "tighten":
            guarded.tighten()
        elif verdict.action == "lower_rate":
            ppo.slow_down(guard.learning_rate_factor)
        elif verdict.action == "roll_back":
            roll_back(guarded)
            return None
        elif verdict.action == "give_up":
            assert verdict.decision is not None
            return verdict.decision.reason
        if guarded.looks is not None and guarded.looks.due(ppo):
            journal.log("looks", guarded.looks.look(ppo))
        if ppo.step % ppo.config.checkpoint_every == 0 or ppo.done:
            guarded.checkpoint(healthy=verdict.healthy)
    return None


def judge(guarded: Guarded, stats: StepStats, alerts: Sequence[Alert]) -> GuardStep:
    """Return the guard's verdict on an update; record the verdict and the alerts."""
    for alert in alerts:
        guarded.journal.alert(alert)
    verdict = guarded.oversight.judge(stats, alerts, guarded.ppo.tick)
    if verdict.decision is not None:
        guarded.journal.decide(stats.step, verdict.decision)
        if verdict.action == "give_up":
            guarded.cause = str(verdict.decision.evidence["cause"])
    return verdict


def diverged(guarded: Guarded, message: str) -> str | None:
    """Let the guard act at once on an update that could not be sampled or scored."""
    ppo = guarded.ppo
    ppo.tick += 1
    alert = Alert("diverged", "critical", message, ppo.step, 1.0, 0.0, {"attempt": ppo.attempt})
    stats = StepStats(ppo.step, ppo.attempt, {})
    verdict = judge(guarded, stats, [alert])
    if verdict.decision is None:
        raise Diverged(f"{message} (guard.enabled is false)")
    if verdict.action == "roll_back":
        roll_back(guarded)
        return None
    return verdict.decision.reason


def roll_back(guarded: Guarded) -> None:
    """Restore the last healthy checkpoint (weights, optimiser, controller, monitors).

    The new attempt has new randomness and smaller steps. Guard state and counters are kept.
    """
    ppo, tick, attempt = guarded.ppo, guarded.ppo.tick, guarded.ppo.attempt + 1
    coef = ppo.controller.coef
    saved = guarded.journal.run.checkpoint_at("align", guarded.oversight.healthy)
    guarded.load(saved.folder, saved.state)
    guarded.oversight.rolled_back(saved.state)
    ppo.tick = tick
    # A KL coefficient that has grown is kept when the weights are restored.
    ppo.controller.raise_coef(max(1.0, coef / ppo.controller.coef))
    # Each roll-back takes smaller steps than the one before, also when it returns to the same checkpoint.
    factor = guarded.oversight.config.learning_rate_factor ** (attempt - ppo.attempt)
    ppo.restart(factor, attempt)
    guarded.checkpoint(healthy=True, proven=True)


def watched(ppo: PPO, stats: StepStats, watch: SavedWatcher | None) -> StepStats:
    """Add text figures and, every `ppo.watch_every` updates, the watcher's mean score.

    Its standard error is clustered by prompt; a batch of one prompt has none.
    """
    assert ppo.experience is not None
    responses = ppo.experience.reward_rollout
    figures = text_figures([p.text for p in responses.prompts], responses.texts)
    stats = replace(stats, values={**stats.values, **figures})
    if watch is None or (stats.step > 1 and stats.step % ppo.config.watch_every):
        return stats
    scores = watch.scores(responses, ppo.codec.pad_id)
    extra = {"watcher": float(scores.mean())}
    if figures["prompts"] > 1:
        extra["watcher_se"] = clustered_error(scores.tolist(), [p.text for p in responses.prompts])
    return replace(stats, values={**stats.values, **extra})


def keep_samples(journal: Journal, ppo: PPO) -> None:
    """Save a few prompts and responses of this update, with scores and KL."""
    experience = ppo.experience
    assert experience is not None
    rollout = experience.rollout
    for i in range(min(SAMPLES_KEPT, len(rollout))):
        journal.run.append(
            f"samples/ppo-{ppo.tick:06d}.jsonl",
            {
                "prompt": experience.reward_rollout.prompts[i].text,
                "response": rollout.texts[i],
                "score": float(experience.scores.scores[i]),
                "kl": float(experience.kl[i]),
                "length": rollout.lengths[i],
            },
        )


def keep_pairs(journal: Journal, ppo: PPO) -> None:
    """Save two answers of the current policy to each of a few prompts, with their scores.

    `burnish reward examine` checks on them whether the reward still ranks the policy's answers.
    """
    asked = ppo.next_prompts()[:: ppo.samples_per_prompt][:PAIRS_KEPT]
    rollout = sample_rollout(
        ppo.policy,
        ppo.codec,
        [prompt for prompt in asked for _ in range(2)],
        max_tokens=ppo.max_tokens,
        batch_size=ppo.config.batch_size,
        seed=ppo.seed,
        where=("pairs", ppo.tick),
    )
    responses = rollout if ppo.plain is None else ppo.plain(rollout)
    scores = ppo.score(responses).scores.tolist()
    for i in range(0, len(rollout), 2):
        prompt = responses.prompts[i]
        journal.run.append(
            OWN_PAIRS,
            {
                "tick": ppo.tick,
                "prompt": prompt.text,
                "messages": [[m.role, m.content] for m in prompt.messages],
                "first": responses.texts[i],
                "second": responses.texts[i + 1],
                "first_ended": responses.ended[i],
                "second_ended": responses.ended[i + 1],
                "first_score": scores[i],
                "second_score": scores[i + 1],
            },
        )
