"""Length correction of scores; length is in tokens, with the end-of-sequence token."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from burnish.errors import TrainingError

How = Literal["sqrt", "regress", "penalty"]

ZERO_QUANTILE = 0.05  # of reference scores: the score that counts as zero
SHORT_QUANTILE = 0.1  # of reference lengths: being even shorter gains nothing
LEAST = 1e-3  # share of the scores' standard deviation that a correction must leave
KNOTS = 32  # points of the curve that `regress` stores


@dataclass(frozen=True)
class LengthCorrection:
    """Correction of a score s of a response of L tokens, fitted on reference samples.

    - `sqrt`: R / sqrt(length), made safe. Taken literally, a worse answer gains by length where scores
      are negative; shifted to be positive, ending at once pays. So: x = s - `zero`, a fixed low quantile
      of the reference scores, which leaves few negative; w = sqrt(max(L, `shortest`) / `typical`), so
      that an answer gains nothing below a length that the reference has anyway; x / w where x > 0 and
      x * w where it is not. Longer is then worse on both sides of zero, and nothing jumps there.
    - `regress`: s minus its smooth fit on length (LOWESS, Cleveland 1979), constant beyond the samples.
    - `penalty`: s - `slope` * (L - `typical`).

    Each is rescaled to the reference scores' mean and standard deviation (`center`, `gain`, `mean`),
    because the KL coefficient starts from that scale.
    """

    how: How
    zero: float = 0.0
    shortest: float = 1.0
    typical: float = 1.0
    slope: float = 0.0
    lengths: tuple[float, ...] = ()
    fitted: tuple[float, ...] = ()
    center: float = 0.0
    gain: float = 1.0
    mean: float = 0.0

    def apply(self, scores: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Return corrected scores (N,) of responses with these lengths."""
        return (self._corrected(scores, lengths) - self.center) * self.gain + self.mean

    def _corrected(self, scores: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        assert scores.shape == (len(lengths),)
        length = torch.tensor(lengths, dtype=scores.dtype, device=scores.device)
        if self.how == "sqrt":
            weight = (length.clamp(min=self.shortest) / self.typical).sqrt()
            above = scores - self.zero
            return torch.where(above > 0, above / weight, above * weight)
        if self.how == "penalty":
            return scores - self.slope * (length - self.typical)
        expected = np.interp(lengths, self.lengths, self.fitted)
        return scores - torch.tensor(expected, dtype=scores.dtype, device=scores.device)

    def as_json(self) -> dict[str, Any]:
        """Return the fields as a dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> LengthCorrection:
        """Create a correction from the result of `as_json`."""
        lists: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
        return cls(**lists)


def fit_correction(
    how: How, scores: torch.Tensor, lengths: Sequence[int], *, penalty: float = 0.3
) -> LengthCorrection:
    """Fit a correction to reference scores (N,) and the lengths of their responses.

    `penalty` is in standard deviations of the score per standard deviation of the length. Raises
    TrainingError if length alone explains the score.
    """
    assert scores.shape == (len(lengths),)
    values, tokens = scores.double().cpu().numpy(), np.asarray(lengths, float)
    settings: dict[str, Any] = {"how": how, "typical": float(tokens.mean())}
    if how == "sqrt":
        settings["zero"] = float(np.quantile(values, ZERO_QUANTILE))
        settings["shortest"] = float(np.quantile(tokens, SHORT_QUANTILE))
    elif how == "penalty":
        settings["slope"] = penalty * float(values.std()) / max(float(tokens.std()), 1.0)
    else:
        settings["lengths"], settings["fitted"] = _smooth(tokens, values)
    fit = LengthCorrection(**settings)
    raw = fit._corrected(scores, lengths)
    sd, own = float(scores.std(unbiased=False)), float(raw.std(unbiased=False))
    if not own >= LEAST * sd:
        raise TrainingError(
            f"reward.length={how} removes the whole score: length alone explains it. Check the labels (does the "
            "longer answer always win?), or take reward.length: penalty"
        )
    return replace(fit, center=float(raw.mean()), gain=sd / own, mean=float(scores.mean()))


def _smooth(x: np.ndarray, y: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Fit a LOWESS curve of y on x and return it at quantiles of x."""
    from statsmodels.nonparametric.smoothers_lowess import lowess

    knots = np.unique(np.quantile(x, np.linspace(0, 1, KNOTS)))
    if len(knots) == 1:
        return (float(knots[0]),), (float(y.mean()),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # 0 / 0 where most lengths are equal; handled below
        fitted = np.asarray(lowess(y, x, frac=2 / 3, xvals=knots))
    for i in np.flatnonzero(~np.isfinite(fitted)):
        # So many lengths are equal that the neighbourhood is one point; the fit is the mean there.
        nearest = np.abs(x - knots[i])
        fitted[i] = y[nearest == nearest.min()].mean()
    return tuple(knots.tolist()), tuple(fitted.tolist())
