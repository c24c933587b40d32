"""Responses of SFT and of every candidate to the held-out prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.config.evaluate import EvaluateConfig
from burnish.distributed import collectives
from burnish.errors import RunError
from burnish.evaluation.champion import AVERAGE, BEST_OF
from burnish.models.artefacts import is_saved
from burnish.models.generate import sample_rollout
from burnish.models.logprobs import Policy
from burnish.pipeline.concise import Instructed
from burnish.pipeline.context import Models
from burnish.pipeline.rounds import policies
from burnish.policy.rollouts import kl_to_reference
from burnish.records import Prompt, Rollout
from burnish.reward.ensemble import gather, load_ensemble, pick, scores_of_samples
from burnish.runs.directory import RunDirectory
from burnish.runs.files import read_json, write_json

CONCISE = "_concise"  # suffix of the name of a policy sampled with ppo.concise
ANSWERS = "examination_answers.json"  # the answers that people compare


@dataclass
class Answers:
    """A policy's responses to the selection and then the test prompts, with their lengths in tokens.

    The `config.answers` responses to a prompt follow one another. `rollout` is None for responses that
    were read from a file. `independent` is False for best of n, which chooses among SFT's responses:
    its k-th response to a prompt leaves out SFT's k-th, and only these two may be compared.
    """

    texts: list[str]
    lengths: list[int]
    kl: dict[str, Any] | None = None
    rollout: Rollout | None = None
    independent: bool = True

    @classmethod
    def of(
        cls, samples: Sequence[Rollout], kl: dict[str, Any] | None = None, *, independent: bool = True
    ) -> Answers:
        """Build the answers from rollouts of the same prompts and KL figures."""
        places = [(k, i) for i in range(len(samples[0])) for k in range(len(samples))]
        rollout = gather(samples, places)
        return cls(rollout.texts, rollout.lengths, kl, rollout, independent)


def sample_all(
    models: Models, run: RunDirectory, prompts: Sequence[Prompt], config: EvaluateConfig, seed: int
) -> dict[str, Answers]:
    """Sample SFT, every trained policy (also of earlier rounds) and best-of-n; measure KL to SFT.

    Best of n needs n + 1 responses of SFT to a prompt. Those beyond `config.answers` serve it alone.
    """
    reference, answers, n = models.reference(config.temperature), config.answers, config.best_of_n
    pool = config.sft_answers
    sft = [sample(models, reference, prompts, config, seed, "sft", turn) for turn in range(pool)]
    found = {"sft": Answers.of(sft[:answers])}
    for name, folder in examined_policies(run).items():
        policy = models.saved_policy(folder)
        policy.temperature = reference.temperature
        found[name] = sample_policy(models, policy, prompts, config, seed, name)
    if n > 1:
        ensemble = load_ensemble(models.base, run.path / "reward")
        extra = sample(models, reference, prompts, config, seed, "best_of", n) if ensemble.relative else None
        scores = scores_of_samples(ensemble, sft, extra, models.codec.pad_id)
        chosen = []
        for turn in range(answers):
            others = [(turn + k) % pool for k in range(1, n + 1)]
            chosen.append(pick([sft[k] for k in others], scores[others].argmax(0)))
        found[f"{BEST_OF}{n}"] = Answers.of(chosen, independent=False)
    return found


def examined_policies(run: RunDirectory) -> dict[str, Path]:
    """Return the folders of the policies that are examined.

    Where people or a judge are paid for each policy, PPO's averaged weights are examined only if
    ppo.average_updates asks for them.
    """
    found = policies(run)
    if not run.config.examines_average:
        found.pop(AVERAGE, None)
    return found


def sample_policy(
    models: Models,
    policy: Policy,
    prompts: Sequence[Prompt],
    config: EvaluateConfig,
    seed: int,
    name: str,
) -> Answers:
    """Sample `config.answers` responses of a policy to each prompt, and measure its KL to SFT."""
    samples = [sample(models, policy, prompts, config, seed, name, turn) for turn in range(config.answers)]
    reference = models.reference(config.temperature)
    return Answers.of(samples, measured_kl(policy, reference, samples[0], config.kl_prompts))


def frozen(
    models: Models, run: RunDirectory, prompts: Sequence[Prompt], config: EvaluateConfig, seed: int
) -> dict[str, Answers]:
    """Return the answers that people compare, sampled once so that a resumed run asks the same.

    They are of candidates only. Raises RunError if the file holds answers to other prompts.
    """
    file = run.path / ANSWERS
    if not collectives.from_lead(file.exists):
        fewer = config if config.best_of_n_candidate else config.model_copy(update={"best_of_n": 1})
        answers = sample_all(models, run, prompts, fewer, seed)
        kept = {n: {"texts": a.texts, "lengths": a.lengths, "kl": a.kl} for n, a in answers.items()}
        write_json(file, {"prompts": [p.id for p in prompts], "answers": kept})
    found = read_json(file)
    if found["prompts"] != [p.id for p in prompts]:
        raise RunError(f"{file} contains answers to other prompts; pass --redo to sample and ask again")
    return {name: Answers(**a) for name, a in found["answers"].items()}


def sample_instructed(
    models: Models, path: Path, prompts: Sequence[Prompt], config: EvaluateConfig, concise: str, seed: int
) -> dict[str, Answers]:
    """Sample SFT and PPO with the instruction, which is removed from the prompts that judges read."""
    instructed = Instructed.of(prompts, concise, models.codec, models.prompt_room)
    reference = models.reference(config.temperature)
    found = {}
    for name in ("sft", "ppo"):
        policy, kl = reference, None
        if name != "sft":
            if not is_saved(path / name):
                continue
            policy = models.saved_policy(path / name)
            policy.temperature = reference.temperature
        samples = [
            sample(models, policy, instructed.prompts, config, seed, name + CONCISE, turn)
            for turn in range(config.answers)
        ]
        if name != "sft":
            kl = measured_kl(policy, reference, samples[0], config.kl_prompts)
        found[name + CONCISE] = Answers.of([instructed.plain(r) for r in samples], kl)
    return found


def sample(
    models: Models,
    policy: Policy,
    prompts: Sequence[Prompt],
    config: EvaluateConfig,
    seed: int,
    name: str,
    turn: int = 0,
) -> Rollout:
    """Sample one response to each prompt."""
    return sample_rollout(
        policy,
        models.codec,
        prompts,
        max_tokens=models.config.max_response_tokens,
        batch_size=config.batch_size,
        seed=seed,
        where=("evaluate", name, turn),
    )


def measured_kl(policy: Policy, reference: Policy, rollout: Rollout, kl_prompts: int) -> dict[str, Any]:
    """Return KL(policy || SFT) and standard error in nats per response, exact over the vocabulary.

    `rollout` has one response to each prompt.
    """
    n = min(kl_prompts, len(rollout))
    values = kl_to_reference(policy, reference, rollout, range(len(rollout) - n, len(rollout)))
    return {
        "kl": float(values.mean()),
        "kl_se": float(values.std(unbiased=True)) / math.sqrt(n),
        "kl_n": n,
        "kl_kind": "exact over the vocabulary at every token of sampled responses",
    }
