"""Best-of-n distilled: the policy is fine-tuned on the ensemble's picks among SFT's own answers."""

from __future__ import annotations

from typing import Any

from burnish.config.distill import DistillConfig
from burnish.models.artefacts import save_policy
from burnish.models.sampling import sample_rollout
from burnish.models.sequences import Sequences
from burnish.pipeline.data import Data
from burnish.pipeline.journal import Journal
from burnish.pipeline.models import Models
from burnish.pipeline.trials import fine_tuning_rate
from burnish.policy.sft import fine_tune
from burnish.randomness import derive_seed
from burnish.reward.ensemble import best_of
from burnish.reward.saved import load_ensemble


def run_distill(
    models: Models, data: Data, journal: Journal, config: DistillConfig, batch_size: int, seed: int
) -> dict[str, Any]:
    """Sample `n` answers to training prompts, `batch_size` at a time, keep the one of each that the ensemble scores
    highest, fine-tune on these. What was sampled is not kept: whoever is stopped here begins it anew."""
    ensemble = load_ensemble(models.base, journal.path / "reward")
    prompts = data.splits.train[: config.prompts]
    rounds = []
    for turn in range(config.n):
        journal.view.note(f"distill: answer {turn + 1} of {config.n} to {len(prompts)} prompts")
        rounds.append(
            sample_rollout(
                models.reference(),
                models.codec,
                prompts,
                max_tokens=models.config.max_response_tokens,
                batch_size=batch_size,
                seed=derive_seed(seed, "distill"),
                where=("sample", turn),
            )
        )
    picked, gain = best_of(ensemble, rounds, models.codec.pad_id)
    sequences, seed = Sequences.of(models.base, picked, models.codec.pad_id), derive_seed(seed, "distill")
    rate = fine_tuning_rate(
        journal, "distill", config.learning_rate, models.new_policy, sequences, prompts, config, seed
    )
    policy = models.new_policy()
    updates = fine_tune(policy, sequences, config, learning_rate=rate, seed=seed)
    stats = None
    for stats in updates:
        journal.log("distill", stats)
    save_policy(policy.top, journal.path / "distill", models.codec.tokenizer)
    return {
        "updates": stats.step if stats else 0,
        "prompts": len(prompts),
        "score_gain": gain,
        "mean_length": sum(picked.lengths) / len(picked),
        "mean_length_before": sum(rounds[0].lengths) / len(picked),
    }
