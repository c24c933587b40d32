"""The frontier: gain of best of n at a policy's KL, and the share of it that the policy reaches.

Best of n by the same reward is what a user has without training. Its KL from the sampled policy is
log n - (n - 1) / n, an upper bound (Beirami et al. 2024) that is tight where no single response is
likely. Where it is not tight, best of n reaches its gain at less KL, and a share is too high.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from burnish.evaluation.overoptimization import Array, Rows, best_of_kl, pool_curves
from burnish.stats import clustered_interval, clustered_mean

STEPS = 4  # sizes in each doubling of n
LAST = 3  # updates of PPO that are averaged
FAR = "the KL of resampled prompts is beyond the pool; pass more --answers"
UNSURE = "the frontier's gain at this KL is not above 0 with the whole interval"


def sizes(most: int) -> list[int]:
    """Return 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, ... up to `most`, which is the last."""
    found = {most}
    octave = 1
    while octave <= most:
        found |= {octave + octave * k // STEPS for k in range(STEPS)}
        octave *= 2
    return sorted(n for n in found if n <= most)


def frontier_at(kl: float, ns: Sequence[int], gains: Array) -> float | None:
    """Return the gain of best of n at a KL in nats, None beyond the largest n.

    `gains` (len(ns),) are those of best of `ns`. Interpolation is linear in the root of KL, in which the
    gain of a Gaussian score is nearly linear. A KL under 0, as an estimate may be, counts as 0.
    """
    known = [best_of_kl(n) for n in ns]
    if kl > known[-1]:
        return None
    return float(np.interp(math.sqrt(max(kl, 0.0)), np.sqrt(known), gains))


def beyond(kl: float, ns: Sequence[int]) -> str | None:
    """Return why a KL has no frontier in this pool, None if it has one."""
    reach = best_of_kl(ns[-1])
    if kl <= reach:
        return None
    needed = math.ceil(math.exp(kl + 1))
    return f"{kl:.2f} nats are beyond best of {ns[-1]} ({reach:.2f}); pass --answers {needed}"


def share_of_frontier(
    gains: Array,
    kls: Array,
    curves: Array,
    ns: Sequence[int],
    groups: Sequence[Hashable],
    *,
    seed: int,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Return gain, the frontier's gain at the same KL, and their ratio, with intervals by prompt.

    `gains` and `kls` (M,) are a policy's means for each prompt, `curves` (M, len(ns)) the gains of best
    of n. The share is None, and `reason` says why, beyond the pool's KL and where the frontier's gain is
    not surely above 0. Resamples draw prompts for gain, KL and frontier together.
    """
    kl = float(kls.mean())
    found: dict[str, Any] = {
        "gain": asdict(clustered_mean(gains.tolist(), groups, confidence=confidence)),
        "frontier": None,
        "share": None,
        "reason": beyond(kl, ns),
    }
    if found["reason"]:
        return found

    def best(rows: Rows) -> float | None:
        return frontier_at(float(kls[rows].mean()), ns, curves[rows].mean(0))

    def share(rows: Rows) -> float | None:
        at = best(rows)
        return None if at is None or at <= 0 else float(gains[rows].mean()) / at

    def within(rows: Rows) -> float | None:
        return None if best(rows) is None else 0.0

    found["frontier"] = best(np.arange(len(gains)))
    if clustered_interval(within, groups, seed=seed, confidence=confidence) is None:
        return found | {"reason": FAR}
    at = clustered_interval(best, groups, seed=seed, confidence=confidence)
    if at is None or at.ci_low <= 0:
        found["reason"] = UNSURE
        return found
    ratio = clustered_interval(share, groups, seed=seed, confidence=confidence)
    found["share"] = None if ratio is None else asdict(ratio)
    found["reason"] = UNSURE if ratio is None else None
    return found


def curves_of(proxy: Array, worth: Array) -> tuple[list[int], Array]:
    """Return the sizes n and the (M, len(n)) gains by `worth` of best of n by `proxy`, both (M, N)."""
    ns = sizes(proxy.shape[1])
    return ns, pool_curves(proxy, worth, ns)


def share_of_updates(kl: Sequence[float], gain: Sequence[float], ns: Sequence[int], curve: Array) -> Any:
    """Return the share of the frontier of PPO's last updates, a mean over `LAST`; None without updates."""
    if not kl:
        return None
    at = float(np.mean(kl[-LAST:]))
    reached, best = float(np.mean(gain[-LAST:])), frontier_at(at, ns, curve)
    share = reached / best if best is not None and best > 0 else None
    return {"updates": len(kl[-LAST:]), "kl": at, "gain": reached, "frontier": best, "share": share}
