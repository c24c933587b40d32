"""D-optimal selection: comparisons whose labels would tell a linear reward most, each by what those before it leave
unknown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
BLOCK = 1024  # candidates whose gain is brought up to date at once


def d_optimal(
    features: Floats,
    weights: npt.NDArray[np.float64],
    n: int,
    *,
    past: Floats | None = None,
    groups: Sequence[str] | None = None,
    ridge: float = 1.0,
) -> tuple[list[int], list[float]]:
    """The rows of greedy D-optimal design and the gain of each, in nats.

    `features` (N, D) are differences of what a reward head reads, `weights` (N,) p (1 - p) of the comparison: row i
    adds w_i x_i x_i^T to the Fisher information of the Bradley-Terry model, and log det(ridge I + past^T past + sum)
    grows by log(1 + w_i x_i^T A^-1 x_i). Each pick has the largest gain beside those before it (within 1 - 1/e of the
    best set: the determinant is submodular). `past` (M, D) are weighted rows that have labels. With `groups` one row of
    a group, until every group has one. Features are scaled so that the mean row has length 1, which gives `ridge` its
    meaning.

    Lazy: a gain only falls as others are picked, so that one that was known some picks ago bounds it (Minoux 1978).
    Raises ValueError for n > N and for features that are not finite.
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
    # In these coordinates what is known is the identity.
    z = np.ascontiguousarray(x @ np.linalg.inv(np.linalg.cholesky(known)).T.astype(np.float32))
    gains = np.einsum("nd,nd->n", z, z, dtype=np.float64)
    done = np.zeros(rows, dtype=np.int32)  # picks that a gain takes account of
    directions = np.zeros((n, width), dtype=np.float32)
    number = {g: i for i, g in enumerate(dict.fromkeys(groups or ()))}
    group = None if groups is None else np.array([number[g] for g in groups])
    free = np.ones(rows, dtype=bool)
    picked: list[int] = []
    information: list[float] = []
    for k in range(n):
        if not free.any():  # every group has one
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
    """The free row of the largest gain after k picks; gains are brought up to date where a bound leaves it open."""
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
        # A row that was brought up to date later has lost part of this already.
        fresh = np.arange(since, k)[None, :] >= done[late][:, None]
        gains[late] -= np.where(fresh, np.square(projected, dtype=np.float64), 0.0).sum(axis=1)
        done[late] = k
        bounds[late] = np.where(free[late], gains[late], -np.inf)


def _largest(bounds: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    return np.argpartition(bounds, -BLOCK)[-BLOCK:]
