"""`burnish evaluate frontier`: what a run's policies earn for their KL, as a share of best of n."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from burnish.commands.pool import Pool, gains_of_updates, pool_of
from burnish.evaluation.frontier import curves_of, share_of_frontier, share_of_updates
from burnish.evaluation.overoptimization import Array, best_of_kl
from burnish.models.generate import sample_rollout
from burnish.pipeline.answers import repeated
from burnish.pipeline.rounds import policies
from burnish.policy.rollouts import kl_to_reference
from burnish.report.frontier import ENSEMBLE, FRONTIER
from burnish.report.page import write_reports
from burnish.runs.files import write_json
from burnish.stats import clustered_mean, mean_interval


def frontier(
    path: Path,
    *,
    prompts: int = 32,
    answers: int = 256,
    samples: int = 4,
    on_progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Measure every policy of a run against best of n by the run's own ensemble, at the same KL.

    Best of n chooses among `answers` answers of SFT to each held-out prompt; each policy gives
    `samples` answers to the same prompts. Gains are the ensemble's, and those of judges that were not
    optimised against, in standard deviations over the pool. Writes frontier.json, and the report and
    the summary again if the run has them. Returns the content of frontier.json.
    """
    with pool_of(path, prompts, answers, on_progress) as pool:
        worths = {ENSEMBLE: pool.proxy, **pool.worth}
        curves, ns = {}, [1]
        for name, worth in worths.items():
            ns, curves[name] = curves_of(pool.proxy, worth / worth.std())
        confidence = pool.place.config.evaluate.confidence
        report = {
            "run": pool.place.config.name,
            "prompts": len(pool.prompts),
            "answers": answers,
            "samples": samples,
            "kl_target": pool.place.config.ppo.kl.target,
            "n": ns,
            "kl": [best_of_kl(n) for n in ns],
            "curves": {
                name: [asdict(mean_interval(c.tolist(), confidence)) for c in rows.T]
                for name, rows in curves.items()
            },
            "policies": {
                name: account(pool, folder, name, samples, worths, curves, ns, on_progress)
                for name, folder in policies(pool.place.journal.run).items()
            },
            "ppo": updates(pool, ns, curves),
        }
    write_json(path / FRONTIER, report)
    if (path / "report.html").exists():
        write_reports(path)
    return report


def account(
    pool: Pool,
    folder: Path,
    name: str,
    samples: int,
    worths: dict[str, Array],
    curves: dict[str, Array],
    ns: list[int],
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    """Return a policy's KL and, by ensemble and judge, its gain and share of the frontier."""
    models, config = pool.place.models, pool.place.config.evaluate
    policy, reference = models.saved_policy(folder), models.reference()
    policy.temperature = reference.temperature
    on_progress(f"{samples} answers of {name}")
    rollout = sample_rollout(
        policy,
        models.codec,
        repeated(pool.prompts, samples),
        max_tokens=models.config.max_response_tokens,
        batch_size=config.batch_size,
        seed=pool.seed,
        where=("frontier", name),
    )
    kls = kl_to_reference(policy, reference, rollout).double().cpu().numpy().reshape(-1, samples).mean(1)
    groups = [p.group for p in pool.prompts]
    found = {ENSEMBLE: pool.by_ensemble(rollout), **pool.by_judges(rollout)}
    shares = {
        by: share_of_frontier(
            (scores.mean(1) - worths[by].mean(1)) / worths[by].std(),
            kls,
            curves[by],
            ns,
            groups,
            seed=pool.seed,
            confidence=config.confidence,
        )
        for by, scores in found.items()
    }
    return {
        "kl": asdict(clustered_mean(kls.tolist(), groups, confidence=config.confidence)),
        "tokens": mean(rollout.lengths),
        "by": shares,
    }


def updates(pool: Pool, ns: list[int], curves: dict[str, Array]) -> dict[str, Any] | None:
    """Return KL and gains of PPO's updates, and the share of the frontier of the last ones."""
    found = gains_of_updates(pool)
    if found is None:
        return None
    seen = {ENSEMBLE: {"kl": found["kl"], "gain": found["proxy"]}, **found["judges"]}
    last = {name: share_of_updates(s["kl"], s["gain"], ns, curves[name].mean(0)) for name, s in seen.items()}
    return {"updates": seen, "last": last}
