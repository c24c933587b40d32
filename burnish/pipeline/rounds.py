"""Rounds of labelling and training: their directories, results and order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from burnish.config import RunConfig
from burnish.config.collect import CollectConfig
from burnish.config.loading import flat
from burnish.data.store import LabelStore, Snapshot
from burnish.distributed import collectives
from burnish.errors import ConfigError, RunError
from burnish.evaluation.champion import ROUND, TRAINED
from burnish.models.artefacts import is_saved
from burnish.models.memory import give_back
from burnish.models.pairs import EncodedPairs
from burnish.pipeline.context import SNAPSHOT, Data, Journal, Models, label_store_of
from burnish.records import Comparison, Preference
from burnish.reward.ensemble import load_ensemble, prepare
from burnish.runs.directory import ROUNDS, RunDirectory
from burnish.runs.files import read_json
from burnish.stats import clustered_proportion


def account_of_rounds(
    models: Models, data: Data, run: RunDirectory, confidence: float
) -> list[dict[str, Any]]:
    """Return each round's new labels, their cost, its policy and the accuracy of its ensemble.

    The accuracy is on held-out pairs of every round, drawn at random and not by any uncertainty.
    """
    rounds = range(run.config.rounds)
    pairs = data.parts["validation"]
    paths = [*(round_path(run.path, number + 1) for number in rounds[:-1]), run.path]
    snapshots = [Snapshot(**read_json(path / SNAPSHOT)) for path in paths]
    origin: dict[str, int] = {}
    known_at, counts, labels = collectives.from_lead(
        lambda: (
            [[c.id for c in data.store.comparisons(at=at)] for at in snapshots],
            [0, *(sum(1 for _ in data.store.labels(at=at)) for at in snapshots)],
            list(data.store.labels(at=snapshots[-1])),
        )
    )
    for number, ids in enumerate(known_at):
        for comparison in ids:
            origin.setdefault(comparison, number)
    known = policies(run)
    found = []
    for number in rounds:
        last = number == rounds[-1]
        right = judged_right(replace(models), paths[number] / "reward", pairs)
        give_back()  # one base at a time
        asked = labels[counts[number] : counts[number + 1]]

        def accuracy(of_round: int | None, right: list[float] = right) -> dict[str, Any] | None:
            rows = [i for i, p in enumerate(pairs) if of_round is None or origin[p.comparison_id] == of_round]
            groups = [pairs[i].prompt.group for i in rows]
            hits = [right[i] for i in rows]
            return asdict(clustered_proportion(hits, groups, confidence=confidence)) if rows else None

        names = TRAINED if last else (f"{ROUND}{number + 1}",)
        found.append(
            {
                "round": number + 1,
                "labels": len(asked),
                "cost": sum(label.cost for label in asked),
                "policy": next((name for name in names if name in known), None),
                "accuracy": accuracy(None),
                "accuracy_on_pairs_of_round": {str(r + 1): accuracy(r) for r in rounds},
            }
        )
    return found


def judged_right(models: Models, rewards: Path, pairs: list[Preference]) -> list[float]:
    """Return 1.0 for each pair of which a saved ensemble, as PPO used it, prefers the chosen side."""
    prepare(models.base, rewards)
    ensemble = load_ensemble(models.base, rewards)
    encoded = EncodedPairs(ensemble.base, models.codec, pairs)
    scores = ensemble.corrected(ensemble.mean_normalised(ensemble.raw(encoded.sequences)), encoded.sequences)
    chosen, rejected = encoded.sides(scores)
    return [float(a > b) for a, b in zip(chosen.tolist(), rejected.tolist(), strict=True)]


OF_A_MACHINE = (
    "device",
    "dtype",
    "cache_gib",
    "gradient_checkpointing",
    "attn_implementation",
)  # keys of `model` in which the runs may differ


def carry_out_rounds(
    journal: Journal, config: RunConfig, carry_out: Callable[[RunConfig, Path], object]
) -> list[str]:
    """Run every round except the last; a stopped run continues in the round where it was."""
    for number in range(1, config.rounds):
        journal.view.note(f"round {number} of {config.rounds}")
        carry_out(config_of_round(config, journal.path, number), round_path(journal.path, number))
        give_back()  # frees the models of a round before the next one loads its own
    journal.view.note(f"round {config.rounds} of {config.rounds}")
    return [ROUNDS]


def round_path(run: Path, number: int) -> Path:
    """Return the run directory of a round before the last."""
    return run / ROUNDS / str(number)


def config_of_round(config: RunConfig, run: Path, number: int) -> RunConfig:
    """Return the configuration of a round before the last."""
    earlier = str(round_path(run, number - 1).resolve()) if number > 1 else config.collect.previous_run
    collect = config.collect.model_copy(
        update={"n_pairs": pairs_of_round(config.collect, config.rounds, number), "previous_run": earlier}
    )
    return config.model_copy(
        update={
            "name": f"{config.name}-round-{number}",
            "rounds": 1,
            "collect": collect,
            "ppo": config.ppo.model_copy(update={"update_seconds": None}),  # the run has applied it
            "monitor": config.monitor.model_copy(update={"trackers": ()}),
        }
    )


def pairs_of_round(config: CollectConfig, rounds: int, number: int) -> int:
    """Return the number of pairs of a round: an equal part of `collect.n_pairs`, or what is left."""
    part = config.n_pairs // rounds
    return part if number < rounds else config.n_pairs - part * (rounds - 1)


def followed(run: RunDirectory) -> Path | None:
    """Return the run that gives this one its policy, ensemble and reference; None for a first round.

    Raises ConfigError if that run has not finished its align stage or has another model.
    """
    if run.config.rounds > 1:
        return round_path(run.path, run.config.rounds - 1)
    if run.config.collect.previous_run is None:
        return None
    earlier = RunDirectory.open(Path(run.config.collect.previous_run))
    if earlier.stage_state("align") != "done":
        raise ConfigError(
            f"collect.previous_run names {earlier.path}, which has not finished its align stage yet"
        )
    for section in ("model", "sft"):
        ours, theirs = (
            flat(getattr(c, section).model_dump(mode="json")) for c in (run.config, earlier.config)
        )
        differing = [k for k in ours if ours[k] != theirs.get(k) and k.split(".")[0] not in OF_A_MACHINE]
        if differing:
            raise ConfigError(
                f"collect.previous_run names {earlier.path}, which has another {section}.{differing[0]} "
                f"({theirs.get(differing[0])!r}, here {ours[differing[0]]!r}): rounds have one "
                "reference"
            )
    return earlier.path


def asked_before(earlier: RunDirectory) -> list[Comparison]:
    """Return the comparisons of a run when its labels were complete; raise RunError if they are gone."""
    at = Snapshot(**read_json(earlier.path / SNAPSHOT))
    with LabelStore(label_store_of(earlier.path, earlier.config.label)) as store:
        known = list(store.comparisons(at=at))
    if at.comparisons and not known:
        raise RunError(f"the labels that {earlier.path} learned from are gone; add --redo to make it again")
    return known


def aligned(run: Path) -> Path | None:
    """Return the policy that a run's align stage made (PPO's, or its substitute), or None."""
    return next((run / name for name in TRAINED if is_saved(run / name)), None)


def policies(run: RunDirectory) -> dict[str, Path]:
    """Return the folders of a run's trained policies by name, those of earlier rounds first."""
    numbers = range(1, run.config.rounds)
    rounds = {f"{ROUND}{n}": aligned(round_path(run.path, n)) for n in numbers}
    own = {name: run.path / name for name in TRAINED if is_saved(run.path / name)}
    return {name: folder for name, folder in rounds.items() if folder is not None} | own


def policy_folder(run: Path, name: str) -> Path:
    """Return the folder of a policy, given its name in the evaluation."""
    if name.startswith(ROUND):
        return aligned(round_path(run, int(name.removeprefix(ROUND)))) or run / name
    return run / name
