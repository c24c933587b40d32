"""D-optimal selection of comparisons to label.

Every pick is the comparison whose label would tell a linear reward most, given the earlier picks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
BLOCK = 1024  # candidates whose gain is updated at once


def d_optimal(
    features: Floats,
    weights: npt.NDArray[np.float64],
    n: int,
    *,
    past: Floats | None = None,
    groups: Sequence[str] | None = None,
    ridge: float = 1.0,
) -> tuple[list[int], list[float]]:
    """Select n rows by greedy D-optimal design and return them with the gain of each, in nats.

    `features` (N, D) are differences of what a reward head reads, `weights` (N,) p (1 - p) of the
    comparison. Row i adds w_i x_i x_i^T to the Fisher information of the Bradley-Terry model. Then
    log det(ridge I + past^T past + sum) grows by log(1 + w_i x_i^T A^-1 x_i). Each pick has the
    largest gain given those before it. The set is within 1 - 1/e of the best one, because the log
    determinant is submodular. `past` (M, D) are weighted rows that have labels. With `groups`, each
    group gives one row until every group has one. Features are scaled so that the mean row has
    length 1, which gives `ridge` its meaning.

    The search is lazy: a gain only falls as other rows are picked, so an old gain is an upper bound
    (Minoux 1978). Raises ValueError for n > N and for features or weights that are not finite.
    """
    rows, width = features.shape
    if not 0 < n <= rows:
        raise ValueError(f"n={n} of {rows} candidates; n must lie between 1 and their number")
    if not np.isfinite(features).all() or not np.isfinite(weights).all():
        raise ValueError("features or weights are not finite; leave such comparisons out")
    scale = float(np.sqrt(max(1e-30, np.square(features, dtype=np.float64).sum() / rows)))
    x = features / np.float32(scale) * np.sqrt(weights).astype(np.float32)[:, None]
    known = ridge * np.eye(width)
    if past is not None and len(past):
        scaled = past.astype(np.float64) / scale
        known += scaled.T @ scaled
    # In these coordinates the known information matrix is the identity.
    z = np.ascontiguousarray(x @ np.linalg.inv(np.linalg.cholesky(known)).T.astype(np.float32))
    gains = np.einsum("nd,nd->n", z, z, dtype=np.float64)
    done = np.zeros(rows, dtype=np.int32)  # number of picks that each gain accounts for
    directions = np.zeros((n, width), dtype=np.float32)
    number = {g: i for i, g in enumerate(dict.fromkeys(groups or ()))}
    group = None if groups is None else np.array([number[g] for g in groups])
    free = np.ones(rows, dtype=bool)
    picked: list[int] = []
    information: list[float] = []
    for k in range(n):
        if not free.any():  # every group has a pick
            free[:] = True
            free[picked] = False
        at = _best(z, gains, done, directions, k, free)
        gain = max(0.0, float(gains[at]))
        picked.append(at)
        information.append(float(np.log1p(gain)))
        left = z[at] - directions[:k].T @ (directions[:k] @ z[at])
        directions[k] = left / np.sqrt(1.0 + gain)
        free[at] = False
        if group is not None:
            free[group == group[at]] = False
    return picked, information


def _best(
    z: Floats,
    gains: npt.NDArray[np.float64],
    done: npt.NDArray[np.int32],
    directions: Floats,
    k: int,
    free: npt.NDArray[np.bool_],
) -> int:
    """Return the free row with the largest gain after k picks, updating gains only as needed."""
    bounds = np.where(free, gains, -np.inf)
    while True:
        top = int(bounds.argmax())
        if done[top] == k:
            return top
        late = (
            np.flatnonzero(done < k)
            if len(bounds) <= BLOCK
            else _largest(np.where(done < k, bounds, -np.inf))
        )
        since = int(done[late].min())
        projected = z[late] @ directions[since:k].T
        # Rows that were updated more recently have already lost part of this.
        fresh = np.arange(since, k)[None, :] >= done[late][:, None]
        gains[late] -= np.where(fresh, np.square(projected, dtype=np.float64), 0.0).sum(axis=1)
        done[late] = k
        bounds[late] = np.where(free[late], gains[late], -np.inf)


def _largest(bounds: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    return np.argpartition(bounds, -BLOCK)[-BLOCK:]
