"""The sft stage: fine-tune on demonstrations; the result is the reference policy from here on."""

from __future__ import annotations

from burnish.checkpoints import link_folder
from burnish.config.sft import SftConfig
from burnish.data.preferences import read_demonstrations
from burnish.errors import DataError
from burnish.models.artefacts import save_plain_policy
from burnish.models.logprobs import Policy, make_policy
from burnish.models.shared_base import Top
from burnish.pipeline.data import fits
from burnish.pipeline.journal import Journal
from burnish.pipeline.models import Models
from burnish.pipeline.rounds import followed
from burnish.pipeline.trials import fine_tuning_rate
from burnish.policy.sft import demonstrated, fine_tune
from burnish.randomness import derive_seed
from burnish.records import Prompt


def sft(models: Models, journal: Journal, config: SftConfig, seed: int) -> list[str]:
    """Nothing is done without demonstrations; whoever follows another run has its reference."""
    if config.demonstrations is None:
        return []
    earlier = followed(journal.run)
    if earlier is not None:
        link_folder(earlier / "sft", journal.path / "sft")
        return ["sft"]
    base, codec = models.as_given()
    demonstrations = read_demonstrations(config.demonstrations)
    short: list[tuple[Prompt, str]] = []
    long: list[tuple[Prompt, str]] = []
    for prompt, text in demonstrations:
        ok = fits(codec, models.config, prompt, (text, True))
        (short if ok else long).append((prompt, text))
    if long:
        journal.reject("sft", [{"prompt": p.text[:80], "reason": "too long"} for p, _ in long])
    if not short:
        raise DataError(f"no demonstration in {config.demonstrations} fits; raise model.max_response_tokens")

    def new_policy() -> Policy:
        return make_policy(Top(base), codec.pad_id)

    sequences, seed = demonstrated(base, codec, short), derive_seed(seed, "sft")
    prompts = [p for p, _ in short]
    rate = fine_tuning_rate(
        journal, "sft", config.learning_rate, new_policy, sequences, prompts, config, seed
    )
    policy = new_policy()
    updates = fine_tune(policy, sequences, config, learning_rate=rate, seed=seed)
    for stats in updates:
        journal.log("sft", stats)
    save_plain_policy(policy.top, journal.path / "sft", codec.tokenizer)
    return ["sft"]
