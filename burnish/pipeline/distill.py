"""Best-of-n distillation: fine-tuning on the ensemble's picks among SFT's own answers."""

from __future__ import annotations

from typing import Any

from burnish.config.distill import DistillConfig
from burnish.models.artefacts import save_policy
from burnish.models.optim import OWN, ladder
from burnish.models.sequences import Sequences
from burnish.pipeline.answers import OwnAnswers
from burnish.pipeline.context import Journal, Models
from burnish.policy.sft import fine_tune
from burnish.randomness import derive_seed


def run_distill(
    models: Models, own: OwnAnswers, journal: Journal, config: DistillConfig, seed: int
) -> dict[str, Any]:
    """Fine-tune on the answer that the ensemble scores highest among several to each prompt.

    Samples are not saved: a run that stops here samples again.
    """
    scored = own.scored(config.max_prompts, config.samples_per_prompt)
    picked = scored.best()
    sequences, seed = Sequences.of(models.base, picked, models.codec.pad_id), derive_seed(seed, "distill")
    # SFT's own answers are most likely before any training, so trials that compare likelihoods would
    # choose the lowest rate.
    rate = ladder(models.base)[OWN] if config.learning_rate == "auto" else config.learning_rate
    policy = models.new_policy()
    updates = fine_tune(policy, sequences, config, learning_rate=rate, seed=seed)
    stats = None
    for stats in updates:
        journal.log("distill", stats)
    save_policy(policy.top, journal.path / "distill", models.codec.tokenizer)
    return {
        "updates": stats.step if stats else 0,
        "prompts": len(picked),
        "score_gain": scored.gain,
        "mean_length": sum(picked.lengths) / len(picked),
        "mean_length_before": sum(scored.samples[0].lengths) / len(picked),
    }
