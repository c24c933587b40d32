"""How often the guard acts on a run in which nothing is wrong, and how soon on a watcher that falls. By simulation: 64
responses an update, independent or correlated within a prompt; guard, detectors and watcher at their defaults.

usage: python experiments/false_actions.py [runs]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np

from burnish.config.guard import GuardConfig
from burnish.config.monitor import MonitorConfig
from burnish.config.ppo import PPOConfig
from burnish.pipeline.oversight import Oversight
from burnish.records import StepStats
from burnish.stats import clustered_error, wilson

RESPONSES = 64
EVERY = PPOConfig().watch_every
SHARES = {
    "truncated": 0.1,
    "repetition": 0.1,
    "foreign": 0.05,
    "formatted": 0.3,
    "duplicates": 0.1,
    "stock": 0.2,
}
MEANS = {"length": (30.0, 12.0), "ref_nll": (1.3, 0.4), "entropy": (1.2, 0.3), "ensemble_std": (0.3, 0.15)}
CASES = [
    (36, 1, 0.0),
    (36, 4, 0.5),
    (200, 1, 0.0),
    (200, 4, 0.5),
]  # updates, answers to a prompt, correlation

Mean = Callable[[int], float]


def draws(rng: np.random.Generator, answers: int, correlation: float) -> np.ndarray:
    """Standard normal, [prompts, answers], correlated within a prompt."""
    prompts = RESPONSES // answers
    shared = math.sqrt(correlation) * rng.standard_normal((prompts, 1))
    return shared + math.sqrt(1 - correlation) * rng.standard_normal((prompts, answers))


def watcher_figures(
    updates: int, mean: Mean, rng: np.random.Generator, *, answers: int, correlation: float
) -> Iterator[StepStats]:
    """A run whose watcher scores have the given mean and a standard deviation of 1. The proxy always rises."""
    prompts = RESPONSES // answers
    clusters = np.repeat(np.arange(prompts), answers).tolist()
    for step in range(1, updates + 1):
        values = {"score": step / updates, "prompts": float(prompts)}
        if step == 1 or step % EVERY == 0:
            scores = (mean(step) + draws(rng, answers, correlation)).ravel().tolist()
            values |= {"watcher": sum(scores) / len(scores), "watcher_se": clustered_error(scores, clusters)}
        yield StepStats(step, 0, values)


def detector_figures(
    updates: int, rng: np.random.Generator, *, answers: int, correlation: float
) -> Iterator[StepStats]:
    """A run whose figures stand still but for the score, which rises. Shares count correlated normals over a
    threshold."""
    thresholds = {name: float(np.quantile(rng.standard_normal(20000), 1 - p)) for name, p in SHARES.items()}
    for step in range(1, updates + 1):
        values = {"score": 2 * step / updates, "prompts": RESPONSES / answers}
        for name, at in thresholds.items():
            values[name] = float((draws(rng, answers, correlation) > at).mean())
        for name, (mean, sd) in MEANS.items():
            values[name] = mean + sd * float(draws(rng, answers, correlation).mean())
        values["sampling_gap"] = 1e-5 * math.exp(rng.standard_normal())
        yield StepStats(step, 0, values)


def first_action(stats: Iterator[StepStats], updates: int) -> int | None:
    """The update at which the guard first acts."""
    looks = PPOConfig(updates=updates).looks
    oversight = Oversight.of(
        GuardConfig(), MonitorConfig(), kl_target=4.0, responses=RESPONSES, armed=True, looks=looks
    )
    for tick, update in enumerate(stats, 1):
        if oversight.judge(update, oversight.observe(update), tick).action != "none":
            return tick
    return None


def steady(_: int) -> float:
    """A watcher that stands still."""
    return 0.0


def falls(at: float) -> Mean:
    """A watcher that falls by half a standard deviation after so many updates."""
    return lambda step: 0.0 if step <= at else -0.5


def main(runs: int) -> None:
    """Print both tables."""
    print(
        "updates answers correlation  false: watcher           false: detectors         fall found  updates to action"
    )
    for updates, answers, correlation in CASES:
        rng = np.random.default_rng(updates + answers)
        how = {"answers": answers, "correlation": correlation}
        false = [first_action(watcher_figures(updates, steady, rng, **how), updates) for _ in range(runs)]  # type: ignore[arg-type]
        hacks = [first_action(detector_figures(updates, rng, **how), updates) for _ in range(runs)]  # type: ignore[arg-type]
        at = 0.4 * updates
        found = [first_action(watcher_figures(updates, falls(at), rng, **how), updates) for _ in range(runs)]  # type: ignore[arg-type]
        late = [tick - at for tick in found if tick is not None and tick > at]
        cells = []
        for acted in (false, hacks):
            share = wilson(sum(tick is not None for tick in acted), runs)
            cells.append(f"{share.value:.3f} [{share.ci_low:.3f}, {share.ci_high:.3f}]")
        print(
            f"{updates:7d} {answers:7d} {correlation:11.1f}  {cells[0]:24s} {cells[1]:24s} {len(late) / runs:10.2f} "
            f"{median(late) if late else math.nan:18.0f}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
