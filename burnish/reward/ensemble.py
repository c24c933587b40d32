"""An ensemble of reward models: aggregation of member scores, saving and loading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch.nn.functional import pad

from burnish.config.reward import Aggregate
from burnish.errors import Diverged, RunError, TrainingError
from burnish.models.artefacts import load_reward_model, saved_reading
from burnish.models.backbone import Backbone
from burnish.models.batches import CPU, Batch
from burnish.models.device import traits
from burnish.models.heads import ScalarHead, raw_scores
from burnish.models.sequences import Sequences
from burnish.models.standalone import aggregate
from burnish.records import Prompt, Rollout, Scores
from burnish.reward.length import LengthCorrection
from burnish.runs.files import atomic_write, read_json, write_json

TIGHTENINGS = 2

TIGHT_LAMBDA = 0.5


@dataclass
class RewardEnsemble:
    """K reward models with the mean and sd (K,) of their scores on reference samples."""

    members: list[ScalarHead]
    mean: torch.Tensor
    sd: torch.Tensor
    how: Aggregate = "mean"
    uwo_lambda: float = 0.1
    std_lambda: float = 0.5
    reference_variance: float = 1.0
    length: LengthCorrection | None = None  # of the combined score, not of the members' own
    offset: float = 0.0  # added to a tightened score, so that its level on reference samples stays the same

    @property
    def relative(self) -> bool:
        """True if a score depends on the score of a reference response to the same prompt."""
        return self.how not in ("mean", "weights")

    @property
    def tightest(self) -> int:
        """Number of tightenings that have an effect."""
        return 0 if len(self.members) == 1 or self.how in ("min", "weights") else TIGHTENINGS

    def tightened(self, times: int) -> RewardEnsemble:
        """Return the same members, combined more conservatively.

        The first tightening uses uwo with a lambda of at least `TIGHT_LAMBDA` and at least twice its own;
        each further one doubles lambda. mean_std doubles its lambda (at least `TIGHT_LAMBDA`) each time.
        """
        if not times or not self.tightest:
            return self
        if self.how == "mean_std":
            after = max(self.std_lambda, TIGHT_LAMBDA) * 2**times
            return replace(self, std_lambda=after, offset=after - self.std_lambda)
        before = self.uwo_lambda if self.how == "uwo" else 0.0
        after = max(2 * before, TIGHT_LAMBDA) * 2 ** (times - 1)
        # Reference responses differ by the reference variance on average, so their penalty is lambda.
        return replace(self, how="uwo", uwo_lambda=after, offset=after - before)

    @property
    def base(self) -> Backbone:
        """Backbone part that the first member reads."""
        return self.members[0].top.base

    def raw(self, sequences: Sequences) -> torch.Tensor:
        """Return raw scores (N, K); raises Diverged if a score is not finite."""
        scores = torch.stack([raw_scores(m, sequences) for m in self.members], 1)
        if not torch.isfinite(scores).all():
            raise Diverged("a reward model gave a score that is not finite; lower reward.learning_rate")
        return scores

    def prefixes(self, sequences: Sequences) -> torch.Tensor:
        """Return the members' mean normalised score (N, T) of the prefix before each response token.

        A member reads it as a value function does: `mean` includes the prompt's last token. The length
        correction is left out. Entries after a response's end are 0.
        """
        lengths = sequences.response_lengths
        width, rows = max(lengths), traits(self.base.device).rows

        def read(member: ScalarHead) -> torch.Tensor:
            def values(batch: Batch) -> torch.Tensor:
                found = member.values(batch)
                return pad(found, (0, width - found.shape[1]))

            own = sequences.at(member.top.base)
            return own.read(values, rows, range(len(sequences)), "scores of prefixes")

        found = torch.stack([read(m) for m in self.members], -1)
        mean = self.mean_normalised(found)
        ends = torch.tensor(lengths, device=CPU).to(mean.device)
        return mean.masked_fill(torch.arange(width, device=mean.device) >= ends[:, None], 0.0)

    def normalised(self, sequences: Sequences) -> torch.Tensor:
        """Return scores (N, K) with mean 0 and sd 1 on the reference samples."""
        return (self.raw(sequences) - self.mean) / self.sd

    def mean_normalised(self, raw: torch.Tensor) -> torch.Tensor:
        """Return the mean (N, ...) over members of their raw scores (N, ..., K), after normalisation."""
        return ((raw - self.mean) / self.sd).mean(-1)

    def score(self, sequences: Sequences, reference: torch.Tensor | None) -> Scores:
        """Score N sequences, given normalised scores (N, K) of a reference response to each prompt.

        The reference responses must not be among the compared sequences. `reference` may be None if the
        score is not `relative`; the spread is then 0.
        """
        assert not (self.relative and reference is None)
        members = self.normalised(sequences)
        scores, spread = aggregate(
            members,
            members if reference is None else reference,
            self.how,
            uwo_lambda=self.uwo_lambda,
            std_lambda=self.std_lambda,
            reference_variance=self.reference_variance,
        )
        return Scores(self.corrected(scores, sequences) + self.offset, members, spread)

    def corrected(self, scores: torch.Tensor, sequences: Sequences) -> torch.Tensor:
        """Return scores (N,) after the configured length correction, if there is one."""
        return scores if self.length is None else self.length.apply(scores, sequences.response_lengths)

    def as_json(self, n_reference: int) -> dict[str, Any]:
        """Return the settings and statistics that ensemble.json stores."""
        return {
            "aggregate": self.how,
            "uwo_lambda": self.uwo_lambda,
            "std_lambda": self.std_lambda,
            "mean": self.mean.tolist(),
            "sd": self.sd.tolist(),
            "reference_variance": self.reference_variance,
            "n_reference": n_reference,
            "length": None if self.length is None else self.length.as_json(),
        }


class EnsembleScorer:
    """Scorer of rollouts for PPO: `scorer(rollout) -> Scores`.

    `reference` (N, K) holds the normalised scores of a reference response to each of N prompts.
    `anchor` (N,) holds the ensemble's own scores of these responses, for shaping. A rollout may contain
    only these prompts.
    """

    def __init__(
        self,
        ensemble: RewardEnsemble,
        pad_id: int,
        prompts: Sequence[Prompt],
        reference: torch.Tensor,
        anchor: torch.Tensor | None = None,
    ) -> None:
        self.ensemble, self.pad_id, self.reference, self.anchor = ensemble, pad_id, reference, anchor
        self.given = ensemble
        self.row = {prompt.id: i for i, prompt in enumerate(prompts)}

    def tighten(self, times: int) -> None:
        """Tighten the given ensemble `times` times; 0 restores it."""
        self.ensemble = self.given.tightened(times)

    def prefixes(self, rollout: Rollout) -> torch.Tensor:
        """Return the mean score (B, T) of the prefix before each response token."""
        return self.given.prefixes(Sequences.of(self.given.base, rollout, self.pad_id))

    def __call__(self, rollout: Rollout) -> Scores:
        """Score every response of a rollout."""
        sequences = Sequences.of(self.ensemble.base, rollout, self.pad_id)
        rows = [self.row[prompt.id] for prompt in rollout.prompts]
        scores = self.ensemble.score(sequences, self.reference[rows])
        return scores if self.anchor is None else replace(scores, anchor=self.anchor[rows])


def normalisation(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and sd (K,) of raw reference scores (N, K); TrainingError if a member is constant."""
    mean, sd = raw.mean(0), raw.std(0, unbiased=False)
    flat = [k for k, s in enumerate(sd.tolist()) if not s > 1e-8]
    if flat:
        raise TrainingError(
            f"reward member {flat[0]} gives every reference sample the same score; raise reward.learning_rate "
            "or check that the pairs' responses differ"
        )
    return mean, sd


def pair_spread(members: torch.Tensor) -> float:
    """Return the mean over pairs of Var_k(r_k(a) - r_k(b)), from scores (2N, K) of all a, then all b."""
    first, second = members.chunk(2)
    return float((first - second).var(1, unbiased=False).mean())


def scores_of_samples(
    ensemble: RewardEnsemble, samples: Sequence[Rollout], reference: Rollout | None, pad_id: int
) -> torch.Tensor:
    """Return the ensemble's scores (samples, N) of several responses to each of N prompts.

    Each sample has one response to each prompt. `reference` is one more, independent response to each
    prompt; it may be None if the score is not `relative`.
    """
    anchor = reference_scores(ensemble, reference, pad_id)
    return torch.stack(
        [ensemble.score(Sequences.of(ensemble.base, r, pad_id), anchor).scores for r in samples]
    )


def reference_scores(ensemble: RewardEnsemble, reference: Rollout | None, pad_id: int) -> torch.Tensor | None:
    """Return normalised scores (N, K) of the reference responses, None if there are none."""
    if reference is None:
        return None
    return ensemble.normalised(Sequences.of(ensemble.base, reference, pad_id))


def pick(samples: Sequence[Rollout], which: torch.Tensor) -> Rollout:
    """Take each prompt's response from the round given in `which` (N,), without log-probabilities."""
    return gather(samples, [(k, i) for i, k in enumerate(which.tolist())])


def gather(samples: Sequence[Rollout], places: Sequence[tuple[int, int]]) -> Rollout:
    """Collect the responses at (round, row), in that order, without log-probabilities.

    Activations are kept at the depths that all rounds have.
    """
    nothing = torch.zeros(0, device=CPU)
    cuts = [cut for cut in samples[0].features if all(cut in s.features for s in samples)]
    return Rollout(
        prompts=[samples[k].prompts[i] for k, i in places],
        prompt_ids=[samples[k].prompt_ids[i] for k, i in places],
        response_ids=[samples[k].response_ids[i] for k, i in places],
        texts=[samples[k].texts[i] for k, i in places],
        ended=[samples[k].ended[i] for k, i in places],
        sample_logprobs=nothing,
        sample_entropy=nothing,
        response_mask=nothing.bool(),
        features={cut: [samples[k].features[cut][i] for k, i in places] for cut in cuts},
    )


def best_of(
    ensemble: RewardEnsemble, samples: Sequence[Rollout], reference: Rollout | None, pad_id: int
) -> Rollout:
    """Select the response to each prompt with the highest score; arguments as for `scores_of_samples`."""
    return pick(samples, scores_of_samples(ensemble, samples, reference, pad_id).argmax(0))


def prepare(base: Backbone, folder: Path) -> None:
    """Create the backbone parts that a run's reward models read, so that sampling keeps activations.

    A run resumed in another process then reads the same numbers as a run that was never stopped.
    """
    for model in sorted(folder.iterdir()):
        reading = saved_reading(model)
        if reading is not None:
            base.at(reading.depth, reading.layers)


def save_ensemble(
    ensemble: RewardEnsemble,
    folder: Path,
    reference: torch.Tensor,
    lengths: Sequence[int],
    more: dict[str, object],
) -> None:
    """Save the normalisation and the aggregation of the members' scores.

    ensemble.json holds both, and `more`. reference.safetensors holds the raw scores (N, K) of the
    reference samples and their lengths (N,) in tokens, in the order of their prompts.
    """
    tensors = {"raw": reference.cpu().contiguous(), "lengths": torch.tensor(lengths, device=CPU)}
    atomic_write(folder / "reference.safetensors", save(tensors))
    write_json(folder / "ensemble.json", ensemble.as_json(len(reference)) | more)


def scorers(folder: Path) -> list[str]:
    """Return the folders of the scoring models: the members, or the average of their weights."""
    saved = read_json(folder / "ensemble.json")
    return list(saved.get("folders") or (f"member-{k}" for k in range(len(saved["mean"]))))


def load_ensemble(base: Backbone, folder: Path, *, average: bool = False) -> RewardEnsemble:
    """Load the saved ensemble, or the average of its members' weights as an ensemble of one.

    Raises RunError if there is no such average.
    """
    saved = read_json(folder / "ensemble.json")
    if average and saved["aggregate"] != "weights":
        if "average" not in saved:
            raise RunError(
                f"{folder} holds no average of its members' weights; it is made with reward.shared_head: true"
            )
        own = saved["average"]
        mean, sd = (torch.tensor([own[name]], device=base.device) for name in ("mean", "sd"))
        return RewardEnsemble([load_reward_model(base, folder / "average")], mean, sd, "weights")
    return RewardEnsemble(
        [load_reward_model(base, folder / name) for name in scorers(folder)],
        torch.tensor(saved["mean"], device=base.device),
        torch.tensor(saved["sd"], device=base.device),
        saved["aggregate"],
        saved["uwo_lambda"],
        saved.get("std_lambda", 0.5),
        saved["reference_variance"],
        LengthCorrection.from_json(saved["length"]) if saved.get("length") else None,
    )


def load_reference(ensemble: RewardEnsemble, folder: Path) -> tuple[torch.Tensor, float]:
    """Load normalised reference scores (N, K) and the sd of the ensemble's score on them.

    They belong to a reference response to each of the first N training prompts. Raises RunError if an
    older version did not save them.
    """
    file, saved = folder / "reference.safetensors", read_json(folder / "ensemble.json")
    if not file.exists() or "score_sd" not in saved:
        raise RunError(
            f"{folder} was left by an older version and lacks the reference scores that PPO starts from; add "
            "--redo to the same command to train the reward models again"
        )
    raw = load_file(file)["raw"].to(ensemble.mean.device)
    return (raw - ensemble.mean) / ensemble.sd, float(saved["score_sd"])


def load_anchor(ensemble: RewardEnsemble, folder: Path) -> torch.Tensor:
    """Return the ensemble's scores (N,) of these responses; RunError if their lengths are unknown."""
    saved = load_file(folder / "reference.safetensors")
    if "lengths" not in saved:
        raise RunError(
            f"{folder} was left by an older version and lacks the lengths of its reference responses; add --redo to "
            "train the reward models again"
        )
    # Relative to itself a response has no spread, so every aggregation equals the mean.
    scores = ensemble.mean_normalised(saved["raw"].to(ensemble.mean.device))
    if ensemble.length is None:
        return scores
    return ensemble.length.apply(scores, saved["lengths"].tolist())


def load_watcher(base: Backbone, folder: Path) -> SavedWatcher | None:
    """Load the watcher, None if the run has none."""
    return SavedWatcher(base, folder) if (folder / "watcher").exists() else None


class SavedWatcher:
    """Watcher with its normalisation and its length correction."""

    def __init__(self, base: Backbone, folder: Path) -> None:
        self.model = load_reward_model(base, folder / "watcher")
        self.scale = read_json(folder / "ensemble.json")["watcher"]
        examined = read_json(folder / "examination.json")["watcher"]
        self.armed = bool(examined and examined["armed"])
        fit = self.scale.get("length")
        self.length = LengthCorrection.from_json(fit) if fit else None

    def scores(self, rollout: Rollout, pad_id: int) -> torch.Tensor:
        """Return scores (N,) in reference standard deviations, with the ensemble's length correction.

        A watcher without the correction would see every shorter answer as a drop.
        """
        sequences = Sequences.of(self.model.top.base, rollout, pad_id)
        scores = (raw_scores(self.model, sequences) - self.scale["mean"]) / self.scale["sd"]
        return scores if self.length is None else self.length.apply(scores, sequences.response_lengths)
