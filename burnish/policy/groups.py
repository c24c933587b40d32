"""Learning from the best and the worst of several responses to a prompt, without advantages.

Both losses have a gradient that is a weighted sum of the responses' log-probabilities. The weights are
computed first, so that micro-batches need not hold whole groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from burnish.models.batches import CPU
from burnish.objectives import dpo_loss, sequence_sum
from burnish.policy.rollouts import Experience


def extremes(ranked: torch.Tensor, rows: Sequence[int], together: int) -> list[tuple[int, int]]:
    """Return the rows (best, worst) of each group of `together` adjacent rows that `rows` hold whole.

    `ranked` (B,) orders them. A group whose values are all equal is left out, since its order is not
    known.
    """
    held = set(rows)
    values = ranked.tolist()
    found = []
    for first in range(0, len(values), together):
        group = range(first, first + together)
        if held.issuperset(group):
            best, worst = max(group, key=values.__getitem__), min(group, key=values.__getitem__)
            if values[best] > values[worst]:
                found.append((best, worst))
    return found


def rows_and_weights(weights: Mapping[int, float], experience: Experience) -> tuple[list[int], torch.Tensor]:
    """Return the rows that have a weight, and the weights (B,) of all rows, 0 without one."""
    found = torch.zeros(len(experience.rollout), device=CPU)
    found[list(weights)] = torch.tensor(list(weights.values()), device=CPU)
    return sorted(weights), found.to(experience.ranked.device)


def weights_of_best(pairs: Sequence[tuple[int, int]], experience: Experience) -> dict[int, float]:
    """Return the weight of each best row in the mean cross-entropy per token of these rows."""
    tokens = sum(experience.rollout.lengths[best] for best, _ in pairs)
    return {best: 1.0 / tokens for best, _ in pairs}


def weights_of_pairs(
    pairs: Sequence[tuple[int, int]], experience: Experience, logprobs: torch.Tensor, *, beta: float
) -> tuple[dict[int, float], dict[str, float]]:
    """Return the weights of the best and worst rows in the gradient of the DPO loss, and its figures.

    The target of a pair is sigmoid(difference of its scores). The loss is then least where the
    log-ratios differ by the scores' difference / beta. With beta = the KL coefficient this is the optimum
    of PPO's objective. Source: reward-aware preference optimization (Adler et al. 2024, Nemotron-4 340B,
    3.3.2); DPO (Rafailov et al. 2023, Eq. 7). `logprobs` (B,) are summed over responses.
    """
    best, worst = ([pair[side] for pair in pairs] for side in (0, 1))
    reference = sequence_sum(experience.ref_logprobs, experience.rollout.response_mask)
    gap = experience.ranked[best] - experience.ranked[worst]
    with torch.enable_grad():
        chosen, rejected = (logprobs[side].detach().requires_grad_() for side in (best, worst))
        losses, margins = dpo_loss(
            *(chosen, rejected, reference[best], reference[worst]), beta=beta, confidence=gap.sigmoid()
        )
        up, down = torch.autograd.grad(losses.mean(), (chosen, rejected))
    weights = dict(zip([*best, *worst], (-torch.cat([up, down])).tolist(), strict=True))
    figures = {
        "policy_loss": float(losses.detach().mean()),
        "margin": float(margins.mean()),
        "score_gap": float(gap.mean()),
    }
    return weights, figures
