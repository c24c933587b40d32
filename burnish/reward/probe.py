"""Linear probes of a backbone's layers, which find the best one to read, before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from burnish.distributed import collectives
from burnish.models.backbone import Backbone
from burnish.models.batches import CPU
from burnish.models.engine import norm
from burnish.models.heads import Pooling, Reading
from burnish.models.pairs import EncodedPairs
from burnish.models.sequences import by_prompt
from burnish.randomness import generator
from burnish.stats import pearson

FOLDS = 5
PENALTIES = (1.0, 0.1, 0.01)  # on the squared weights of standardised features
SHALLOW = 8  # up to this many layers, probe each one; in deeper models every second one
PROMPTS_AT_ONCE = 8
MOST_PROMPTS = 256
STEPS = 40  # of L-BFGS; each penalty starts from the weights of the previous one


@dataclass(frozen=True)
class Probed:
    """Held-out figures of a linear reward on frozen activations at one place, over folds by prompt.

    `loss` is the mean in nats a pair (0.693 is chance); `loss_se` is its standard error by prompt.
    """

    reading: Reading
    loss: float
    loss_se: float
    accuracy: float
    losses: torch.Tensor  # (G,) by prompt
    errors: torch.Tensor  # (n,) by pair, the probability given to the rejected response

    def as_json(self) -> dict[str, Any]:
        """Return the place and its figures without those of single prompts and pairs."""
        return {
            **asdict(self.reading),
            "loss": self.loss,
            "loss_se": self.loss_se,
            "accuracy": self.accuracy,
        }


def probed_depths(base: Backbone, layers: str) -> list[int]:
    """Return the depths to probe when these layers are trained, deepest first."""
    step, there = (1 if base.depth <= SHALLOW else 2), base.depths_of(layers)
    return [d for d in range(base.depth, 0, -step) if d in there]


def probe(
    base: Backbone, pairs: EncodedPairs, depths: Sequence[int], poolings: Sequence[Pooling], seed: int
) -> list[Probed]:
    """Fit a linear Bradley-Terry model at every depth and pooling and return held-out figures.

    The activations come from one forward pass over the answers of at most `MOST_PROMPTS` prompts.
    """
    groups = {group: i for i, group in enumerate(dict.fromkeys(pairs.groups))}
    used = [i for i, group in enumerate(pairs.groups) if groups[group] < MOST_PROMPTS]
    number = torch.tensor([groups[pairs.groups[i]] for i in used], device=CPU)
    n = int(number.max()) + 1
    folds = torch.randperm(n, generator=generator(seed, "folds"), device=CPU) % FOLDS
    pooled = pool(base, pairs, used, depths)
    found = []
    for (depth, pooling), vectors in pooled.items():
        if pooling not in poolings:
            continue
        chosen, rejected = (side[used] for side in pairs.sides(vectors))
        scale = torch.cat([chosen, rejected]).std(0).clamp(min=1e-6)
        margins = held_out_margins(((chosen - rejected) / scale).numpy(), folds[number].numpy())
        losses = torch.from_numpy(np.logaddexp(0.0, -margins))
        by_prompt = mean_by(losses, number, n)
        found.append(
            Probed(
                Reading(depth, pooling),
                float(by_prompt.mean()),
                float(by_prompt.std()) / n**0.5,
                float((margins > 0).mean()),
                by_prompt,
                torch.from_numpy(margins).neg().sigmoid(),
            )
        )
    return found


@torch.no_grad()
def pool(
    base: Backbone, pairs: EncodedPairs, used: Sequence[int], depths: Sequence[int]
) -> dict[tuple[int, Pooling], torch.Tensor]:
    """Return mean and last-token activations (M, D) of the answers in the `used` pairs, by depth.

    They are normed as a model of that depth would norm them.
    """
    sequences = pairs.sequences
    rows = list(dict.fromkeys(row for i in used for row in (pairs.chosen[i], pairs.rejected[i])))
    kinds: tuple[Pooling, ...] = ("mean", "last")
    places = {(d, k): column for column, (d, k) in enumerate((d, k) for d in depths for k in kinds)}

    def read(own: list[int]) -> tuple[torch.Tensor]:
        return (base.memory.fit("probe", PROMPTS_AT_ONCE, lambda size: read_of(own, size)),)

    def read_of(own: list[int], size: int) -> torch.Tensor:
        """Return activations (n, places, D) of these rows, `size` prompts at a time."""
        prompts, responses = (
            [ids[rows[i]] for i in own] for ids in (sequences.prompt_ids, sequences.response_ids)
        )
        found = torch.zeros(len(own), len(places), base.hidden_size, device=CPU)
        for chosen, by_depth in by_prompt(base, prompts, responses, sequences.pad_id, depths, size):
            for depth, features in by_depth.items():
                for i, x in zip(chosen, features, strict=True):
                    answer = x[len(prompts[i]) :] if responses[i] else x[-1:]
                    answer = answer if base.normed(depth) else norm(base.lm.base_model.norm)(answer)
                    found[i, places[depth, "mean"]] = answer.float().mean(0).cpu()
                    found[i, places[depth, "last"]] = answer[-1].float().cpu()
        return found

    (read_of_all,) = collectives.gather(len(rows), read)
    whole = torch.zeros(len(sequences), len(places), base.hidden_size, device=CPU)
    whole[rows] = read_of_all
    return {place: whole[:, column] for place, column in places.items()}


def held_out_margins(differences: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return margins (n,) of pairs under weights fitted to the other folds.

    `differences` (n, D) are chosen minus rejected. The penalty has the lowest held-out loss.
    """
    x = differences.astype(np.float64)
    margins = np.zeros((len(PENALTIES), len(x)))
    for fold in range(FOLDS):
        held = folds == fold
        if held.all() or not held.any():
            continue
        weights = np.zeros(x.shape[1])
        for row, penalty in enumerate(PENALTIES):
            weights = fit(x[~held], penalty, weights)
            margins[row, held] = x[held] @ weights
    best = np.logaddexp(0.0, -margins).mean(1).argmin()
    return np.asarray(margins[best])


def fit(x: np.ndarray, penalty: float, start: np.ndarray) -> np.ndarray:
    """Fit Bradley-Terry weights w (D,) to x (n, D): min mean log(1 + exp(-x w)) + penalty / 2 |w|^2."""

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        margins = x @ w
        slope = -1.0 / (1.0 + np.exp(np.clip(margins, -500, 500)))
        loss = np.logaddexp(0.0, -margins).mean() + penalty / 2 * w @ w
        return float(loss), x.T @ slope / len(x) + penalty * w

    return np.asarray(minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS}).x)


def mean_by(values: torch.Tensor, number: torch.Tensor, n: int) -> torch.Tensor:
    """Return means (n,) of values (m,) by their group number (m,)."""
    sums = torch.zeros(n, dtype=values.dtype, device=CPU).index_add_(0, number, values)
    return sums / torch.bincount(number, minlength=n)


def as_good(found: Sequence[Probed], errors: float = 1.0) -> list[Probed]:
    """Return the places whose loss is within some standard errors (between prompts) of the best."""
    best = min(found, key=lambda p: p.loss)

    def near(p: Probed) -> bool:
        difference = p.losses - best.losses
        return float(difference.mean()) <= errors * float(difference.std()) / len(difference) ** 0.5

    return [p for p in found if near(p)]


def choose(found: Sequence[Probed]) -> Probed:
    """Return the shallowest place within one standard error of the best.

    Layers above this place need not be run.
    """
    return min(as_good(found), key=lambda p: (p.reading.depth, p.loss))


def choose_different(found: Sequence[Probed], n: int) -> list[Probed]:
    """Return n places to read, the first that of `choose`, whose errors correlate least.

    Each further place is the one whose held-out errors have the lowest mean correlation with those of the
    places before it. It is one within two standard errors of the best, if there is one left. With fewer
    places than n, they repeat in order. Members that err differently average better (Krogh and Vedelsby
    1995, Eq. 6).
    """
    chosen, good = [choose(found)], as_good(found, errors=2.0)
    while len(chosen) < min(n, len(found)):
        taken = {p.reading for p in chosen}
        left = [p for p in good if p.reading not in taken] or [p for p in found if p.reading not in taken]

        def alike(p: Probed) -> float:
            links = (pearson(p.errors.tolist(), q.errors.tolist()) for q in chosen)
            return sum(1.0 if link is None else link for link in links)  # None: errors that are all the same

        chosen.append(min(left, key=lambda p: (alike(p), p.loss)))
    return [chosen[k % len(chosen)] for k in range(n)]


def choose_other(found: Sequence[Probed], taken: Reading) -> Probed:
    """Return the best place that differs from `taken` in depth and pooling, else in one, else any."""
    for differs in (
        [p for p in found if p.reading.depth != taken.depth and p.reading.pooling != taken.pooling],
        [p for p in found if p.reading != taken],
    ):
        if differs:
            return min(differs, key=lambda p: p.loss)
    return min(found, key=lambda p: p.loss)
