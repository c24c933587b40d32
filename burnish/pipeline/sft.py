"""The sft stage: fine-tune on demonstrations; the result is the reference policy from here on."""

from __future__ import annotations

from burnish.config.sft import SftConfig
from burnish.data.preferences import read_demonstrations
from burnish.data.text import Rejected
from burnish.errors import DataError
from burnish.models.artefacts import save_plain_policy
from burnish.models.backbone import TrainableLayers
from burnish.models.logprobs import Policy, make_policy
from burnish.pipeline.context import Journal, Models, misfit
from burnish.pipeline.learning_rates import fine_tuning_rate
from burnish.pipeline.rounds import followed
from burnish.policy.sft import demonstrated, fine_tune
from burnish.randomness import derive_seed
from burnish.records import Prompt
from burnish.runs.files import link_folder


def sft(models: Models, journal: Journal, config: SftConfig, seed: int) -> list[str]:
    """Fine-tune on demonstrations, if there are any; a run that follows another links its policy."""
    if config.demonstrations is None:
        return []
    earlier = followed(journal.run)
    if earlier is not None:
        link_folder(earlier / "sft", journal.path / "sft")
        return ["sft"]
    base, codec = models.as_given()
    unusable = Rejected()
    demonstrations = read_demonstrations(config.demonstrations, rejected=unusable)
    if unusable.notes:
        journal.view.note(f"rows of {config.demonstrations} that cannot be used: {unusable.summary()}")
    short: list[tuple[Prompt, str]] = []
    left_out: list[dict[str, str]] = []
    for prompt, text in demonstrations:
        why = misfit(codec, models.config, prompt, (text, True))
        if why is None:
            short.append((prompt, text))
        else:
            left_out.append({"prompt": prompt.text[:80], "reason": why})
    if left_out or unusable.notes:
        journal.reject("sft", [*unusable.notes, *left_out])
    if not short:
        raise DataError(f"no demonstration in {config.demonstrations} fits; raise model.max_response_tokens")

    def new_policy() -> Policy:
        return make_policy(TrainableLayers(base), codec.pad_id)

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
