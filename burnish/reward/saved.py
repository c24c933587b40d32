"""Reward models of a run, from the folders its reward stage left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from burnish.checkpoints import atomic_write, read_json, write_json
from burnish.errors import RunError
from burnish.models.artefacts import load_reward_model, saved_reading
from burnish.models.batches import CPU
from burnish.models.heads import raw_scores
from burnish.models.sequences import Sequences
from burnish.models.shared_base import Base
from burnish.records import Rollout
from burnish.reward.ensemble import RewardEnsemble
from burnish.reward.length import LengthCorrection


def prepare(base: Base, folder: Path) -> None:
    """Make the parts of a base that a run's reward models read, so that whatever is sampled from now on keeps their
    activations: a run that goes on in another process reads the same numbers as one that was never stopped."""
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
    """What makes the members' scores one: normalisation and aggregation in ensemble.json, `more` beside them, and in
    reference.safetensors the raw scores (N, K) of the reference samples and their lengths (N,) in tokens, in the order
    of the prompts they answer."""
    tensors = {"raw": reference.cpu().contiguous(), "lengths": torch.tensor(lengths, device=CPU)}
    atomic_write(folder / "reference.safetensors", save(tensors))
    write_json(folder / "ensemble.json", ensemble.as_json(len(reference)) | more)


def scorers(folder: Path) -> list[str]:
    """The folders of the models whose scores are combined: the members, or the average of their weights."""
    saved = read_json(folder / "ensemble.json")
    return list(saved.get("folders") or (f"member-{k}" for k in range(len(saved["mean"]))))


def load_ensemble(base: Base, folder: Path, *, average: bool = False) -> RewardEnsemble:
    """The ensemble as the reward stage left it, or the average of its members' weights as an ensemble of one. Raises
    RunError where there is no such average."""
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
    """(N, K) normalised scores of a reference response to each of the first N training prompts, and the standard
    deviation of the ensemble's score on reference responses. Raises RunError where an older version left neither."""
    file, saved = folder / "reference.safetensors", read_json(folder / "ensemble.json")
    if not file.exists() or "score_sd" not in saved:
        raise RunError(
            f"{folder} was left by an older version and lacks what PPO starts from; add --redo to the same command to "
            "train the reward models again"
        )
    raw = load_file(file)["raw"].to(ensemble.mean.device)
    return (raw - ensemble.mean) / ensemble.sd, float(saved["score_sd"])


def load_anchor(ensemble: RewardEnsemble, folder: Path) -> torch.Tensor:
    """(N,) the ensemble's score of those reference responses. Raises RunError where their lengths are not known."""
    saved = load_file(folder / "reference.safetensors")
    if "lengths" not in saved:
        raise RunError(
            f"{folder} was left by an older version and lacks the lengths of its reference responses; add --redo to "
            "train the reward models again"
        )
    # Against itself a response has no spread: every aggregation is the mean.
    scores = ensemble.mean_normalised(saved["raw"].to(ensemble.mean.device))
    if ensemble.length is None:
        return scores
    return ensemble.length.apply(scores, saved["lengths"].tolist())


def load_watcher(base: Base, folder: Path) -> SavedWatcher | None:
    """The watcher, when the run has one."""
    return SavedWatcher(base, folder) if (folder / "watcher").exists() else None


class SavedWatcher:
    """The watcher with its normalisation."""

    def __init__(self, base: Base, folder: Path) -> None:
        self.model = load_reward_model(base, folder / "watcher")
        self.scale = read_json(folder / "ensemble.json")["watcher"]
        examined = read_json(folder / "examination.json")["watcher"]
        self.armed = bool(examined and examined["armed"])
        fit = self.scale.get("length")
        self.length = LengthCorrection.from_json(fit) if fit else None

    def scores(self, rollout: Rollout, pad_id: int) -> torch.Tensor:
        """(N,) in reference standard deviations, without what length bought where that is taken from the ensemble too:
        a watcher that pays for length would see every shorter answer as a fall."""
        sequences = Sequences.of(self.model.top.base, rollout, pad_id)
        scores = (raw_scores(self.model, sequences) - self.scale["mean"]) / self.scale["sd"]
        return scores if self.length is None else self.length.apply(scores, sequences.response_lengths)
