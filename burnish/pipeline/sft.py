"""The sft stage: fine-tune on demonstrations; the result is the reference policy from here on."""

from __future__ import annotations

from burnish.config.sft import SftConfig
from burnish.data.preferences import read_demonstrations
from burnish.errors import DataError
from burnish.models.artefacts import save_policy
from burnish.models.logprobs import make_policy
from burnish.models.shared_base import Top
from burnish.pipeline.data import fits
from burnish.pipeline.journal import Journal
from burnish.pipeline.models import Models
from burnish.policy.sft import fine_tune
from burnish.randomness import derive_seed


def sft(models: Models, journal: Journal, config: SftConfig, seed: int) -> list[str]:
    """Nothing is done without demonstrations."""
    if config.demonstrations is None:
        return []
    base, codec = models.as_given()
    demonstrations = read_demonstrations(config.demonstrations)
    short = [d for d in demonstrations if fits(codec, models.config, d[0], (d[1], True))]
    kept = {id(d) for d in short}
    dropped = [{"prompt": d[0].text[:80], "reason": "too long"} for d in demonstrations if id(d) not in kept]
    if dropped:
        journal.reject("sft", dropped)
    if not short:
        raise DataError(f"no demonstration in {config.demonstrations} fits; raise model.max_response_tokens")
    policy = make_policy(Top(base), codec.pad_id)
    updates = fine_tune(
        policy,
        codec,
        short,
        config,
        learning_rate=models.rate("sft", config.learning_rate, base),
        seed=derive_seed(seed, "sft"),
    )
    for stats in updates:
        journal.log("sft", stats)
    save_policy(policy.top, journal.path / "sft", codec.tokenizer)
    return ["sft"]
