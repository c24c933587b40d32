"""The reward stage: train and examine ensemble, watcher and, if none is set, an examiner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, partial
from itertools import zip_longest
from typing import Any

import torch

from burnish.config.evaluate import EvaluateConfig
from burnish.config.model import TINY_MODEL
from burnish.config.ppo import PPOConfig
from burnish.config.reward import RewardConfig
from burnish.distributed import collectives
from burnish.distributed.threads import side_by_side
from burnish.errors import ConfigError
from burnish.models.artefacts import load_reward_model, save_reward_model
from burnish.models.backbone import Backbone
from burnish.models.heads import Pooling, Reading, ScalarHead, averaged, raw_scores
from burnish.models.optim import USUAL, ladder, n_updates
from burnish.models.pairs import EncodedPairs
from burnish.models.sequences import Sequences
from burnish.pipeline.answers import sample_answers
from burnish.pipeline.context import Data, Journal, Models
from burnish.pipeline.learning_rates import found_rate
from burnish.randomness import derive_seed
from burnish.records import Decision, Preference, Prompt, StepStats
from burnish.reward.ensemble import RewardEnsemble, normalisation, pair_spread, prepare, save_ensemble
from burnish.reward.examine import error_correlation, errors, examine, length_bias, watcher_verdict
from burnish.reward.length import fit_correction
from burnish.reward.probe import Probed, choose, choose_different, choose_other, probe, probed_depths
from burnish.reward.scrutiny import mean_correlation
from burnish.reward.train import new_models, train_reward_model, trial_loss
from burnish.runs.files import read_json, write_json

AVERAGE = "average"  # the model with the members' mean weights
ROLES = ("members", "watcher", "examiner")
POOLED: dict[Pooling, str] = {"mean": "mean of the response's tokens", "last": "last token"}


def reward(
    models: Models,
    data: Data,
    journal: Journal,
    config: RewardConfig,
    ppo: PPOConfig,
    examination: EvaluateConfig,
    seed: int,
) -> list[str]:
    """Train members, watcher and examiner, normalise them on reference samples, and examine them.

    Members are trained side by side, and a checkpoint follows each group. `ppo` sets the number of
    reference samples (as many as it has prompts), `examination` the confidence of the intervals.
    """
    folder = journal.path / "reward"
    parts = data.parts
    names = [f"member-{k}" for k in range(config.members)]
    same = config.readings == "same"
    groups = {"members": names} if same else {name: [name] for name in names}
    groups |= {role: [role] for role in ("watcher", "examiner") if parts[role]}
    found = journal.latest_checkpoint()
    done = found.step if found else 0
    if not done:
        places = find_readings(models, journal, config, parts["members"], seed)
        write_json(folder / "readings.json", places)
        journal.checkpoint()
    saved = read_json(folder / "readings.json")
    for role in list(groups)[max(0, done - 1) :]:
        reading = Reading(**saved[role])
        place = models.base.at(reading.depth, config.layers)
        pairs = EncodedPairs(place, models.codec, parts["members" if role in names else role])
        journal.view.note(f"reward: {', '.join(groups[role])} on {len(pairs)} pairs")
        if role in ("members", names[0]):
            saved["learning_rate"] = find_rate(models, journal, config, pairs, reading.pooling, seed)
            write_json(folder / "readings.json", saved)
        rate = saved["learning_rate"]
        train_group(models, journal, config, groups[role], pairs, reading.pooling, rate, seed)
        journal.checkpoint()
    prepare(models.base, folder)
    prompts = reference_prompts(data, config, ppo)
    rollout = sample_answers(models, prompts, examination.batch_size, seed, "reference")
    pad_id = models.codec.pad_id
    used = [AVERAGE] if config.aggregate == "weights" else names
    members = [load_reward_model(models.base, folder / name) for name in used]
    samples = Sequences.of(members[0].top.base, rollout, pad_id)
    raw = torch.stack([raw_scores(m, samples) for m in members], 1)  # (N, K)
    ensemble = RewardEnsemble(
        members, *normalisation(raw), config.aggregate, config.uwo_lambda, config.std_lambda
    )
    how = config.correction
    correct = None if how is None else partial(fit_correction, how, penalty=config.length_penalty)
    if correct is not None:
        usual = ensemble.mean_normalised(raw)
        ensemble.length = correct(usual, samples.response_lengths)

    @cache
    def validation(base: Backbone) -> EncodedPairs:
        return EncodedPairs(base, models.codec, parts["validation"])

    def on_validation(read: Callable[[Sequences], torch.Tensor], base: Backbone) -> torch.Tensor:
        """Return what `read` gives for the chosen, then for the rejected answers."""
        encoded = validation(base)
        return torch.cat(encoded.sides(read(encoded.sequences)))

    held_out = on_validation(ensemble.raw, ensemble.base)  # (2N, K)
    ensemble.reference_variance = max(pair_spread((held_out - ensemble.mean) / ensemble.sd), 1e-8)
    first = collectives.from_lead(lambda: {c.id: c.first.text for c in data.store.comparisons()})
    report = examine(parts["validation"], held_out.cpu(), ensemble.sd.cpu(), first, examination.confidence)
    more: dict[str, Any] = {
        "folders": used,
        "score_sd": score_sd(models, ensemble, raw, prompts, config, examination, seed),
    }
    single = [role for role in ("watcher", "examiner") if parts[role]]
    for role in [*single, *([AVERAGE] if config.shared_head else [])]:
        model = load_reward_model(models.base, folder / role)
        base = model.top.base
        own = raw_scores(model, Sequences.of(base, rollout, pad_id))
        mean, sd = normalisation(own[:, None])
        more[role] = {"mean": float(mean), "sd": float(sd)}
        if role == "watcher" and correct is not None:
            more[role]["length"] = correct((own - mean) / sd, rollout.lengths).as_json()
        scores = on_validation(partial(raw_scores, model), base)[:, None]
        report[role] = examine(parts["validation"], scores.cpu(), sd.cpu(), first, examination.confidence)
        if role == "watcher":
            report[role] |= watcher_verdict(report[role], report["baselines"])
        elif role == "examiner":
            # An examiner with the members' errors cannot see what those taught the policy.
            both = torch.stack([errors(held_out / ensemble.sd), errors(scores)], 1)
            report[role]["error_correlation_with_members"] = error_correlation(both.cpu())
    report.setdefault("watcher", None)
    report["length"] = length_bias(
        ensemble, raw, samples, held_out, validation(ensemble.base), config.length, examination.confidence
    )
    report["n_members"] = config.members
    report["pairs"] = {role: len(pairs) for role, pairs in parts.items()}
    save_ensemble(ensemble, folder, raw, samples.response_lengths, more)
    write_json(folder / "examination.json", report)
    return ["reward"]


def find_readings(
    models: Models,
    journal: Journal,
    config: RewardConfig,
    pairs: list[Preference],
    seed: int,
) -> dict[str, Any]:
    """Return the layer and pooling from which members, watcher and examiner read, by role.

    With `readings: different` each member also has its own, by its name. Linear probes on the members'
    pairs select what is "auto". The examiner reads and errs elsewhere.
    """
    base = models.base
    layers = config.layers or base.layers
    depths = probed_depths(base, layers) if config.depth == "auto" else [config.depth]
    poolings: list[Pooling] = ["mean", "last"] if config.pooling == "auto" else [config.pooling]
    base.at(depths[0], layers)  # raises if there is no such depth
    found: list[Probed] = []
    if len(depths) * len(poolings) == 1:
        if config.readings == "different":
            raise ConfigError(
                "reward.readings is 'different', but this model has one place to read at (depth "
                f"{depths[0]}, pooling {poolings[0]}); set reward.readings: same"
            )
        readings = dict.fromkeys(ROLES, Reading(depths[0], poolings[0]))
    else:
        journal.view.note(f"reward: probing {len(depths)} of {base.depth} layers")
        encoded = EncodedPairs(base, models.codec, pairs)
        found = probe(base, encoded, depths, poolings, derive_seed(seed, "probe"))
        best = choose(found)
        each = [best] if config.readings == "same" else choose_different(found, config.members)
        taken = {place.reading for place in each}
        left = [place for place in found if place.reading not in taken] or found
        reading, other = best.reading, choose_other(left, best.reading).reading
        readings = {"members": reading, "watcher": reading, "examiner": other}
        if config.readings == "different":
            readings |= {f"member-{k}": place.reading for k, place in enumerate(each)}
        where = "; ".join(f"{POOLED[p.reading.pooling]} after {p.reading.depth}" for p in each)
        text = f"scores are read from the {where} of {base.depth} layers"
        evidence: dict[str, Any] = {"accuracy": best.accuracy, "loss": best.loss}
        if len(each) > 1:
            evidence["error_correlation"] = mean_correlation(torch.stack([p.errors for p in each], 1).numpy())
        journal.decide(0, Decision("reading", text, evidence))
    rows = {role: asdict(reading) for role, reading in readings.items()}
    return {**rows, "probes": [p.as_json() for p in found]}


def find_rate(
    models: Models,
    journal: Journal,
    config: RewardConfig,
    pairs: EncodedPairs,
    pooling: Pooling,
    seed: int,
) -> float:
    """Return the rate of all reward models: configured, known (embedded model) or found by trials."""
    if config.learning_rate != "auto":
        return config.learning_rate
    base = pairs.sequences.base
    if models.config.path == TINY_MODEL:
        return ladder(base)[USUAL]
    seed = derive_seed(seed, "sweep")
    prompts = len(set(pairs.groups))
    # The batch size counts prompts. One rate serves all members, also where they read at different places.
    return found_rate(
        journal,
        "reward",
        base,
        pairs.groups,
        batch_size=config.batch_size * len(pairs) / prompts,
        steps=n_updates(prompts, config.batch_size, config.epochs),
        trial=lambda learned, unseen, rate: trial_loss(pairs, learned, unseen, config, pooling, rate, seed),
        seed=seed,
    )


def train_group(
    models: Models,
    journal: Journal,
    config: RewardConfig,
    names: Sequence[str],
    pairs: EncodedPairs,
    pooling: Pooling,
    learning_rate: float,
    seed: int,
) -> None:
    """Train and save reward models of the same pairs side by side.

    Several processes train whole models each. A name seeds its head, bootstrap, order and dropout.
    """
    base = pairs.sequences.base
    learning = partial(
        train_reward_model,
        pairs=pairs,
        config=config,
        learning_rate=learning_rate,
        seed=derive_seed(seed, "reward"),
    )

    def train(own: list[str]) -> list[tuple[list[StepStats], dict[str, torch.Tensor] | None]]:
        """Return the statistics of every model, and its weights if another process saves them."""
        _ = pairs.sequences.features  # before threads share them
        trained = new_models(base, own, config, seed, pooling, names[0])
        loops = [learning(head, member=name) for name, head in trained.items()]
        logged: list[list[StepStats]] = [[] for _ in own]
        for number, stats in side_by_side(
            loops, in_threads=base.device.type == "cpu" and base.shards is None
        ):
            if len(own) == len(names):
                journal.log("reward", stats, {"member": own[number]})
            else:
                logged[number].append(stats)
        if collectives.leads():
            heads.update(trained)
        states = [None if collectives.leads() else head.state() for head in trained.values()]
        return list(zip(logged, states, strict=True))

    heads: dict[str, ScalarHead] = {}
    done = collectives.deal(names, train, to_lead=True)  # weights are large, and process 0 alone saves them
    for row in zip_longest(*(stats_of for stats_of, _ in done)):  # in the order of a single process
        for name, stats in zip(names, row, strict=True):
            if stats is not None:
                journal.log("reward", stats, {"member": name})

    @collectives.by_lead
    def keep() -> None:
        for name, (_, state) in zip(names, done, strict=True):
            if state is not None:
                heads.update(new_models(base, [name], config, seed, pooling, names[0]))
                heads[name].load(state)
        if config.shared_head and len(names) > 1:
            heads[AVERAGE] = averaged([heads[name] for name in names])
        for name, head in heads.items():
            save_reward_model(head, journal.path / "reward" / name, models.codec.tokenizer)

    keep()


def reference_prompts(data: Data, config: RewardConfig, ppo: PPOConfig) -> list[Prompt]:
    """Return the prompts that get a reference response: as many as PPO uses or normalisation needs."""
    wanted = max(config.reference_samples, ppo.updates * ppo.batch_size // ppo.samples_per_prompt)
    return list(data.splits.train[:wanted])


def score_sd(
    models: Models,
    ensemble: RewardEnsemble,
    raw: torch.Tensor,
    prompts: Sequence[Prompt],
    config: RewardConfig,
    examination: EvaluateConfig,
    seed: int,
) -> float:
    """Return the sd of the ensemble's score on reference responses, given raw scores (N, K).

    It is 1 for one member. A relative score subtracts that of a reference response to the same prompt.
    It takes a second response, because each member has its own offset for every prompt.
    """
    normalised = (raw - ensemble.mean) / ensemble.sd
    if not ensemble.relative:
        # A length correction keeps this scale, because its scores are rescaled to it.
        return float(normalised.mean(1).std(unbiased=False))
    some = prompts[: config.reference_samples]
    again = sample_answers(models, some, examination.batch_size, seed, "reference-2")
    sequences = Sequences.of(ensemble.base, again, models.codec.pad_id)
    scores = ensemble.score(sequences, normalised[: len(some)])
    return float(scores.scores.std(unbiased=False))
