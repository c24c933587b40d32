"""`burnish evaluate overoptimization`: how far a run's reward can be optimised usefully."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from burnish.commands.pool import Pool, gains_of_updates, pool_of
from burnish.evaluation.overoptimization import of_pool, of_run
from burnish.report.overoptimized import render_overoptimized
from burnish.runs.files import write_json

REPORT = "overoptimization.json"


def overoptimization(
    path: Path,
    *,
    prompts: int = 32,
    answers: int = 256,
    on_progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Measure the worth of best of n and of PPO's updates against the root of KL.

    Best of n chooses among `answers` answers of SFT to each held-out prompt. Worth is judged by judges
    that were not optimised against (the true preference of a rehearsal, the examiner, the watcher),
    with fitted curves. Writes overoptimization.json and its page, and returns their content. Raises
    RunError without such a judge.
    """
    with pool_of(path, prompts, answers, on_progress, needs_judge=True) as pool:
        place = pool.place
        report = {
            "run": place.config.name,
            "answers": answers,
            "kl_target": place.config.ppo.kl.target,
            "judges": list(pool.judges),
            "pool": of_pool(pool.proxy, pool.worth, pool.seed, place.config.evaluate.confidence),
            "ppo": of_ppo(pool),
        }
    report["offered"] = offered(report)
    write_json(path / REPORT, report)
    render_overoptimized(path)
    return report


def of_ppo(pool: Pool) -> dict[str, Any] | None:
    """Return KL, gains and fits of PPO's updates, or None if PPO made no update."""
    found = gains_of_updates(pool)
    if found is None:
        return None
    fits = {name: of_run(seen["kl"], seen["gain"], pool.seed) for name, seen in found["judges"].items()}
    return found | {"fits": fits}


def offered(report: dict[str, Any]) -> dict[str, Any] | None:
    """Return the KL at which worth peaks, or None if no curve has bent within reach.

    PPO's own curves come before those of best of n, and more trusted judges before others.
    """
    for source, held in (("ppo", report["ppo"]), ("best of n", report["pool"])):
        for judge in report["judges"]:
            fit = (held or {"fits": {}})["fits"].get(judge)
            if fit is not None and fit["kl"] is not None and fit["kl_interval"] is not None:
                return {"kl": fit["kl"], "interval": fit["kl_interval"], "judge": judge, "from": source}
    return None
