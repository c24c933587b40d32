"""The reward stage: train the ensemble, its watcher and (where nobody else judges) the examiner; examine them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from burnish.checkpoints import read_json, write_json
from burnish.data.prompts import split_pairs
from burnish.errors import DataError
from burnish.models.artefacts import load_reward_model, save_reward_model
from burnish.models.heads import ScalarHead, new_reward_head, raw_scores
from burnish.models.sampling import sample_rollout
from burnish.models.sequences import Sequences
from burnish.parallel import side_by_side
from burnish.pipeline.context import Context
from burnish.randomness import derive_seed
from burnish.records import Preference, Prompt, Rollout
from burnish.reward.ensemble import RewardEnsemble, normalisation, pair_spread
from burnish.reward.examine import examine, watcher_verdict
from burnish.reward.train import EncodedPairs, train_reward_model

MIN_PAIRS = 8


def reward(ctx: Context) -> list[str]:
    """Train the members side by side, then watcher and examiner (a checkpoint after each group), normalise them on
    reference samples, examine."""
    parts = split_labels(ctx)
    names = [f"member-{k}" for k in range(ctx.config.reward.members)]
    groups = [[(name, "members") for name in names]]
    groups += [[(role, role) for role in ("watcher", "examiner") if parts[role]]]
    found = ctx.run.latest_checkpoint("reward")
    for number, group in enumerate(groups[found.step if found else 0 :], found.step if found else 0):
        train_group(ctx, {name: parts[role] for name, role in group})
        ctx.run.checkpoint("reward", number + 1, lambda folder: None, {})
    prompts = reference_prompts(ctx)
    rollout = sample_reference(ctx, prompts, "reference")
    samples = Sequences.of(ctx.base, rollout, ctx.codec.pad_id)
    ensemble, raw = build_ensemble(ctx, names, samples)
    validation = EncodedPairs(ctx.base, ctx.codec, parts["validation"])
    held_out = ensemble.raw(validation.sequences)  # (2N, K)
    ensemble.reference_variance = max(pair_spread((held_out - ensemble.mean) / ensemble.sd), 1e-8)
    first = {c.id: c.first.text for c in ctx.store.comparisons()}
    report = examine(parts["validation"], held_out, ensemble.sd, first, ctx.config.evaluate.confidence)
    description = ensemble.as_json(len(prompts)) | {"score_sd": score_sd(ctx, ensemble, raw, prompts)}
    for role in ("watcher", "examiner"):
        if not parts[role]:
            continue
        model = load_head(ctx, role)
        mean, sd = normalisation(raw_scores(model, samples, 64)[:, None])
        description[role] = {"mean": float(mean), "sd": float(sd)}
        held_out = raw_scores(model, validation.sequences, 64)[:, None]
        report[role] = examine(parts["validation"], held_out, sd, first, ctx.config.evaluate.confidence)
        if role == "watcher":
            report[role] |= watcher_verdict(report[role], report["baselines"])
    report.setdefault("watcher", None)
    report["pairs"] = {role: len(pairs) for role, pairs in parts.items()}
    folder = ctx.run.path / "reward"
    reference = [
        {"prompt_id": p.id, "response": text, "raw": row}
        for p, text, row in zip(prompts, rollout.texts, raw.tolist(), strict=True)
    ]
    write_json(folder / "reference.json", reference)
    write_json(folder / "ensemble.json", description)
    write_json(folder / "examination.json", report)
    return ["reward"]


def train_group(ctx: Context, jobs: dict[str, list[Preference]]) -> None:
    """Train and export reward models side by side; a model's name seeds its head, bootstrap, order and dropout."""
    config = ctx.config.reward
    encoded: dict[int, EncodedPairs] = {}  # members learn from the same list
    models: dict[str, ScalarHead] = {}
    loops = []
    for name, pairs in jobs.items():
        ctx.view.note(f"reward: {name} on {len(pairs)} pairs")
        if id(pairs) not in encoded:
            encoded[id(pairs)] = EncodedPairs(ctx.base, ctx.codec, pairs)
        models[name] = new_reward_head(
            ctx.base, ctx.config.seed, name, layers=ctx.config.model.layers, dropout=config.dropout
        )
        loops.append(
            train_reward_model(
                models[name],
                encoded[id(pairs)],
                config,
                learning_rate=ctx.rate("reward", config.learning_rate),
                seed=derive_seed(ctx.config.seed, "reward"),
                member=name,
            )
        )
    for number, stats in side_by_side(loops):
        ctx.log("reward", stats, {"member": list(jobs)[number]})
    for name, model in models.items():
        save_reward_model(model.top, model.head, ctx.run.path / "reward" / name, ctx.codec.tokenizer)


def split_labels(ctx: Context) -> dict[str, list[Preference]]:
    """Who learns from which pairs: members, watcher, validation and examiner never share a prompt, and no
    member or watcher sees a prompt that the policies are examined on."""
    config = ctx.config.reward
    pairs = usable_pairs(ctx)
    examiner_share = config.examiner_share if ctx.config.evaluate.examiner == "reward_model" else 0.0
    shares = {
        "watcher": config.watcher_share,
        "validation": config.validation_share,
        "examiner": examiner_share,
    }
    shares["members"] = 1.0 - sum(shares.values())
    held_out = {p.group for p in (*ctx.splits.selection, *ctx.splits.test)}
    parts = split_pairs([p for p in pairs if p.prompt.group not in held_out], shares)
    if examiner_share:
        parts["examiner"] = parts["examiner"] + [p for p in pairs if p.prompt.group in held_out]
    for role, share in shares.items():
        if share and len(parts[role]) < MIN_PAIRS:
            raise DataError(
                f"only {len(parts[role])} of {len(pairs)} labelled pairs fall to the {role} "
                f"(reward.{role}_share), at least {MIN_PAIRS} are needed: label more pairs"
            )
    return parts


def usable_pairs(ctx: Context) -> list[Preference]:
    """Labelled pairs with a side that won and a length the model can take; the rest is counted in a file."""
    limits = ctx.config.model
    kept: list[Preference] = []
    dropped = []
    for pair in ctx.store.preferences():
        sides = ((pair.chosen, pair.chosen_ended), (pair.rejected, pair.rejected_ended))
        longest = max(len(ctx.codec.encode_response(text, end=ended)) for text, ended in sides)
        n_prompt = len(ctx.codec.encode_prompt(pair.prompt))
        if n_prompt > limits.max_prompt_tokens or longest > limits.max_response_tokens:
            dropped.append(
                {"comparison": pair.comparison_id, "reason": "too long", "tokens": n_prompt + longest}
            )
        else:
            kept.append(pair)
    if dropped:
        ctx.reject("reward", dropped)
    if not kept:
        raise DataError(
            "there are no labelled pairs to train a reward model on; import some (label.preferences) or "
            "collect and label (collect.n_pairs)"
        )
    return kept


def reference_prompts(ctx: Context) -> list[Prompt]:
    """The prompts PPO will see, one reference response each: enough to normalise on, no more than it can use."""
    train = ctx.splits.train
    wanted = max(ctx.config.reward.reference_samples, ctx.config.ppo.updates * ctx.config.ppo.batch_size)
    return list(train[:wanted])


def sample_reference(ctx: Context, prompts: Sequence[Prompt], name: str) -> Rollout:
    """A response of the reference policy to each prompt."""
    return sample_rollout(
        ctx.reference(),
        ctx.codec,
        prompts,
        max_tokens=ctx.config.model.max_response_tokens,
        batch_size=ctx.config.evaluate.batch_size,
        seed=ctx.config.seed,
        where=(name,),
    )


def score_sd(ctx: Context, ensemble: RewardEnsemble, raw: torch.Tensor, prompts: Sequence[Prompt]) -> float:
    """Standard deviation of the ensemble's score on the reference policy's responses (1 for one member), given their
    raw scores (N, K). Where the score compares members after subtracting that of a reference response, it takes a
    second response to the same prompts: each member has an offset of its own for every prompt."""
    normalised = (raw - ensemble.mean) / ensemble.sd
    if ensemble.how == "mean":
        return float(normalised.mean(1).std(unbiased=False))
    some = prompts[: ctx.config.reward.reference_samples]
    again = sample_reference(ctx, some, "reference-2")
    scores = ensemble.score(Sequences.of(ctx.base, again, ctx.codec.pad_id), normalised[: len(some)])
    return float(scores.scores.std(unbiased=False))


def load_head(ctx: Context, name: str, *, trainable: bool = False) -> ScalarHead:
    """A reward model of this run, from its exported folder."""
    top, head = load_reward_model(ctx.base, ctx.run.path / "reward" / name, trainable=trainable)
    return ScalarHead(top, head).eval()


def build_ensemble(
    ctx: Context, names: Sequence[str], samples: Sequences
) -> tuple[RewardEnsemble, torch.Tensor]:
    """The members as exported, normalised on the reference samples; also their raw scores (N, K) there."""
    members = [load_head(ctx, name) for name in names]
    raw = torch.stack([raw_scores(m, samples, 64) for m in members], 1)
    mean, sd = normalisation(raw)
    config = ctx.config.reward
    return RewardEnsemble(members, mean, sd, config.aggregate, config.uwo_lambda), raw


def load_ensemble(ctx: Context) -> RewardEnsemble:
    """The ensemble as the reward stage left it."""
    saved = read_json(ctx.run.path / "reward" / "ensemble.json")
    return RewardEnsemble(
        [load_head(ctx, f"member-{k}") for k in range(len(saved["mean"]))],
        torch.tensor(saved["mean"]),
        torch.tensor(saved["sd"]),
        saved["aggregate"],
        saved["uwo_lambda"],
        saved["reference_variance"],
    )
