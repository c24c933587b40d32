"""What studies ask of a policy: its true preference against SFT's on held-out prompts, and its KL."""

from __future__ import annotations

from typing import Any

import numpy as np

from burnish.models.logprobs import Policy
from burnish.pipeline.candidates import measured_kl, sample
from burnish.pipeline.context import RunContext
from burnish.rehearse.world import golds
from burnish.stats import mean_and_se

PROMPTS = 256


def against_sft(place: RunContext, policy: Policy, name: str, prompts: int = PROMPTS) -> dict[str, Any]:
    """Win rate by gold and mean gain in standard deviations of SFT's gold, one answer to each held-out prompt by both;
    KL to SFT; the mean length."""
    models, config, seed = place.models, place.config.evaluate, place.config.seed
    asked = [*place.data.splits.test, *place.data.splits.selection][:prompts]
    reference = models.reference(config.temperature)
    policy.temperature = reference.temperature
    ours = sample(models, policy, asked, config, seed, name)
    theirs = sample(models, reference, asked, config, seed, "sft")
    a, b = (np.array(golds(r.prompts, r.texts)) for r in (ours, theirs))
    gain, se = mean_and_se(((a - b) / b.std()).tolist())
    return {
        "win": float(((a > b) + 0.5 * (a == b)).mean()),
        "gain": gain,
        "gain_se": se,
        "kl": measured_kl(policy, reference, ours, 128)["kl"],
        "length": float(np.mean(ours.lengths)),
    }
