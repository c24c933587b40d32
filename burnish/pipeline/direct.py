"""DPO from SFT: on the labelled pairs, on SFT's own best and worst answers, or on both."""

from __future__ import annotations

from typing import Any

from burnish.config.dpo import DPOConfig
from burnish.data.preferences import read_preferences, write_preferences
from burnish.errors import TrainingError
from burnish.models.artefacts import save_policy
from burnish.models.pairs import EncodedPairs
from burnish.pipeline.data import fits
from burnish.pipeline.journal import Journal
from burnish.pipeline.models import Models
from burnish.pipeline.own_answers import OwnAnswers
from burnish.pipeline.trials import found_rate
from burnish.policy.dpo import DPO
from burnish.randomness import derive_seed
from burnish.records import Preference

ON_POLICY = "on_policy_pairs.jsonl"


def run_dpo(
    models: Models,
    labelled: list[Preference],
    own: OwnAnswers,
    journal: Journal,
    config: DPOConfig,
    outcome: dict[str, Any],
    seed: int,
) -> dict[str, Any]:
    """DPO from SFT on the pairs the reward ensemble learned from, or on what it prefers among SFT's own answers
    (kept in `on_policy_pairs.jsonl`), as configured."""
    pairs = list(labelled) if config.pairs != "on_policy" else []
    if config.pairs != "labels":
        pairs += on_policy_pairs(models, own, journal, config)
    dpo = DPO(
        policy=models.new_policy(),
        reference=models.reference(),
        pairs=EncodedPairs(models.base, models.codec, pairs),
        config=config,
        learning_rate=0.0 if config.learning_rate == "auto" else config.learning_rate,
        seed=derive_seed(seed, "dpo"),
    )
    dpo.policy.temperature = dpo.reference.temperature = 1.0
    found = journal.latest_checkpoint()
    if found and found.state.get("dpo_step"):
        dpo.load(found.folder, found.state["dpo_step"])
        dpo.learning_rate = found.state.get("dpo_rate", dpo.learning_rate)  # older ones had a configured rate
    elif config.learning_rate == "auto":
        dpo.learning_rate = found_rate(
            journal,
            "dpo",
            models.base,
            dpo.pairs.groups,
            batch_size=config.batch_size,
            steps=dpo.steps,
            trial=dpo.trial_loss,
            seed=dpo.seed,
        )
    for stats in dpo.updates():
        journal.log("dpo", stats)
        journal.view.progress(dpo.step, dpo.steps)
        if dpo.step % config.checkpoint_every == 0:
            state = {
                "phase": "dpo",
                "outcome": outcome,
                "dpo_step": dpo.step,
                "dpo_rate": dpo.learning_rate,
            }
            journal.checkpoint(dpo.save, state)
    save_policy(dpo.policy.top, journal.path / "dpo", models.codec.tokenizer)
    return {"updates": dpo.step, "pairs": len(dpo.pairs), "pairs_from": config.pairs}


def on_policy_pairs(models: Models, own: OwnAnswers, journal: Journal, config: DPOConfig) -> list[Preference]:
    """The ensemble's favourite among `config.n` of SFT's own answers over the one it likes least, for every prompt;
    sampled once a run. Answers whose text no longer fits when it is encoded again are left out."""
    file = journal.path / ON_POLICY
    if not file.exists():
        pairs = own.judged(config.prompts, config.n).pairs()
        if not pairs:
            raise TrainingError(
                f"SFT's {config.n} answers to each of {config.prompts} prompts are all the same: there is nothing to "
                "prefer; raise ppo.temperature or dpo.n, or set dpo.pairs: labels"
            )
        write_preferences(pairs, file)
    pairs = read_preferences(file).pairs
    return [
        p
        for p in pairs
        if fits(
            models.codec, models.config, p.prompt, (p.chosen, p.chosen_ended), (p.rejected, p.rejected_ended)
        )
    ]
