"""Losses, advantages and KL estimators: pure functions of tensors, with equation and source."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def kl_k1(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Return log pi - log ref, elementwise: unbiased, noisy, may be negative.

    In the reward (detached) its policy gradient is the exact gradient of KL(policy || reference).
    As a loss its expected gradient is 0 (Tang and Munos 2025), so do not differentiate it.
    """
    assert logprobs.shape == ref_logprobs.shape
    return logprobs - ref_logprobs


def kl_k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """Return the k3 estimate of KL per token, exp(-d) - 1 + d with d = log pi - log ref.

    It is unbiased and never negative. Used for monitoring.
    """
    delta = kl_k1(logprobs, ref_logprobs)
    return torch.expm1(-delta) + delta


def sequence_sum(x: torch.Tensor, response_mask: torch.Tensor) -> torch.Tensor:
    """Sum values per token (B, T) to (B,) per response; entries off the mask, even nan, are ignored."""
    assert x.ndim == 2
    assert x.shape == response_mask.shape
    return x.masked_fill(~response_mask, 0.0).sum(1)


def exact_kl(logits: torch.Tensor, ref_logits: torch.Tensor) -> torch.Tensor:
    """Return KL(softmax(logits) || softmax(ref_logits)) over the last axis: (..., V) -> nats (...).

    A token that the policy cannot sample (logit -inf) counts 0, whatever its reference logit. A
    token that only the reference cannot sample makes the KL infinite.
    """
    assert logits.shape == ref_logits.shape
    log_p, log_q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    log_ratio = (log_p - log_q).masked_fill(log_p.isneginf(), 0.0)  # 0 log 0 = 0
    return (log_p.exp() * log_ratio).sum(-1)


def _assert_right_padded(response_mask: torch.Tensor) -> None:
    assert response_mask.ndim == 2
    assert response_mask.dtype == torch.bool
    assert bool((response_mask[:, 1:] <= response_mask[:, :-1]).all()), (
        "responses must be padded on the right"
    )


def shape_rewards(
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    kl_coef: float,
) -> torch.Tensor:
    """Return rewards (B, T): -kl_coef * k1 on every response token, plus the score on the last.

    The scores have shape (B,). Ziegler et al. 2019, Eq. 2, for responses of varying length: the
    score is added at each row's last response token, not in the last column. Entries off the mask
    are ignored, and are 0 in the result. Raises ValueError for an empty response.
    """
    assert logprobs.shape == ref_logprobs.shape == response_mask.shape
    assert scores.shape == response_mask.shape[:1]
    _assert_right_padded(response_mask)
    lengths = response_mask.sum(1)
    if bool((lengths == 0).any()):
        row = int((lengths == 0).nonzero()[0])
        raise ValueError(f"response {row} has 0 tokens; its score is added at a token: keep at least the EOS")
    rewards = (-kl_coef * kl_k1(logprobs, ref_logprobs)).masked_fill(~response_mask, 0.0)
    last = lengths - 1
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))


def gae(
    rewards: torch.Tensor, values: torch.Tensor, response_mask: torch.Tensor, *, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return advantages and returns (B, T) of right-padded responses (Schulman et al. 2016, Eq. 16).

    delta_t = r_t + gamma V_{t+1} - V_t with V = 0 after the last response token; A_t = delta_t +
    gamma lam A_{t+1}; returns = A + V. Entries off the mask are ignored, and are 0 in the result.
    """
    assert rewards.shape == values.shape == response_mask.shape
    _assert_right_padded(response_mask)
    values = values.masked_fill(~response_mask, 0.0)
    next_value = following = torch.zeros_like(rewards[:, 0])  # (B,)
    columns = []
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = (delta + gamma * lam * following).masked_fill(~response_mask[:, t], 0.0)  # Eq. 16
        next_value = values[:, t]
        columns.append(following)
    advantages = torch.stack(columns[::-1], 1)  # (B, T)
    return advantages, advantages + values


def group_advantages(
    rewards: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    answers: int,
    scaled: bool,
    paid: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return advantages (B, T) from groups of `answers` rows to one prompt, without values.

    The rows of a group are adjacent. An advantage is the same on every token of a response: its
    summed reward less that of the other answers to its prompt. `paid` (B, T) is the reward that was
    given before each token (see `paid_before`). With it, an advantage is the reward from a token on,
    less that of the other answers from the same position on.

    RLOO: less the mean of the others (Ahmadian et al. 2024, Eq. 8). GRPO, `scaled`: less the mean
    of the whole group, divided by its standard deviation (Shao et al. 2024, 4.1.2); 0 if all are
    equal. Raises ValueError for fewer than two answers, or if their number does not divide the
    rows.
    """
    rows = len(rewards)
    if answers < 2 or rows % answers:
        raise ValueError(
            f"{rows} responses are not groups of {answers}: each prompt needs two answers or more"
        )
    totals = rewards.masked_fill(~response_mask, 0.0).sum(1, keepdim=True)
    to_go = (totals if paid is None else totals - paid).view(len(totals) // answers, answers, -1)
    above = to_go - to_go.mean(1, keepdim=True)
    if scaled:
        sd = totals.view(-1, answers, 1).std(1, keepdim=True, unbiased=False)
        above = torch.where(sd > 1e-6, above / sd.clamp(min=1e-6), torch.zeros_like(above))
    else:
        above = above * (answers / (answers - 1))
    return above.reshape(rows, -1).expand_as(rewards).masked_fill(~response_mask, 0.0)


def paid_before(rewards: torch.Tensor, response_mask: torch.Tensor) -> torch.Tensor:
    """Return the sum (B, T) of a response's rewards before each token; after its end, of all of them."""
    given = rewards.masked_fill(~response_mask, 0.0)
    return given.cumsum(1) - given


def advantage_unit(used: torch.Tensor, plain: torch.Tensor, mask: torch.Tensor) -> float:
    """Return the factor by which scaling changed advantages: the ratio of their sds, 1 without spread.

    A KL in the loss is multiplied by it, so that its coefficient stays in units of the score.
    """
    spread = float(plain[mask].std(unbiased=False))
    return float(used[mask].std(unbiased=False)) / spread if spread > 0 else 1.0


def whiten(x: torch.Tensor, mask: torch.Tensor, *, shift_mean: bool = True) -> torch.Tensor:
    """Scale the masked entries to variance 1 and mean 0; without `shift_mean` the mean stays.

    Biased variance, 1e-8 inside the square root, as in Ziegler et al. 2019 (code). Entries off the
    mask are ignored, and are 0 in the result. Raises ValueError for an empty mask.
    """
    assert x.shape == mask.shape
    kept = x[mask]
    if kept.numel() == 0:
        raise ValueError("the mask keeps 0 entries; whitening needs at least one")
    mean, variance = kept.mean(), kept.var(unbiased=False)
    white = (x - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        white = white + mean
    return white.masked_fill(~mask, 0.0)


def masked_mean(
    x: torch.Tensor, mask: torch.Tensor, normalizer: torch.Tensor | float | None = None
) -> torch.Tensor:
    """Return the mean of the entries on the mask, a scalar; others, even nan, are ignored.

    With `normalizer`, return their sum divided by it. Raises ValueError for an empty mask without
    one.
    """
    return _token_sum(x, mask, normalizer)


def _token_sum(x: torch.Tensor, mask: torch.Tensor, normalizer: torch.Tensor | float | None) -> torch.Tensor:
    """Return the sum over masked tokens divided by `normalizer` (their number when None).

    Micro-batches that all get the token count of their minibatch add up to its mean.
    """
    assert x.shape == mask.shape
    assert mask.dtype == torch.bool
    if normalizer is None:
        normalizer = mask.sum()
        if not bool(normalizer):
            raise ValueError("the mask keeps 0 tokens; a mean needs at least one, or pass `normalizer`")
    x = x.masked_fill(~mask, 0.0)
    if isinstance(normalizer, torch.Tensor) and normalizer.ndim:
        return (x / normalizer).sum()
    return x.sum() / normalizer


def loss_normalizer(
    how: str, response_mask: torch.Tensor, *, tokens: int, responses: int, longest: int
) -> torch.Tensor | float:
    """Return what the losses of tokens are divided by: a number, or one for each row (B, 1).

    `tokens` and `responses` are those of the whole minibatch. token: the mean over all tokens (DAPO,
    Yu et al. 2025, Eq. 8). response: the mean over responses of the mean over their tokens (GRPO, Shao
    et al. 2024, Eq. 3), in which a token of a long response counts less. constant: the sum over tokens
    divided by `longest` tokens, for every response (Dr. GRPO, Liu et al. 2025, 3.2).
    """
    if how == "response":
        return responses * response_mask.sum(1, keepdim=True).clamp(min=1).float()
    return float(tokens if how == "token" else responses * longest)


def bradley_terry_loss(
    chosen_scores: torch.Tensor,
    rejected_scores: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    margin: torch.Tensor | float = 0.0,
    center_coef: float = 0.0,
    confidence: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the (B,) negative log-likelihood that the chosen response wins.

    Bradley and Terry 1952. With p = sigmoid(r_w - r_l - margin) and target q:
    -q log p - (1 - q) log(1 - p), plus center_coef * (r_w + r_l)^2 (Eisenstein et al. 2023, Eq. 2).
    The target q is `confidence` (B,) in [0, 1] (1 when None), drawn towards one half:
    q (1 - label_smoothing) + (1 - q) label_smoothing.
    """
    assert chosen_scores.ndim == 1
    assert chosen_scores.shape == rejected_scores.shape
    assert 0.0 <= label_smoothing < 0.5
    target = _soft_target(chosen_scores, label_smoothing, confidence)
    difference = chosen_scores - rejected_scores - margin
    loss = -target * F.logsigmoid(difference) - (1 - target) * F.logsigmoid(-difference)
    return loss + center_coef * (chosen_scores + rejected_scores).square()


def odin_loss(
    quality: torch.Tensor,
    length: torch.Tensor,
    tokens: torch.Tensor,
    quality_head: torch.Tensor,
    length_head: torch.Tensor,
) -> torch.Tensor:
    """Return the ODIN loss, which moves length out of the quality head into the length head.

    `|corr(quality, tokens)| - corr(length, tokens) + |cos(heads)|` (Chen et al. 2024, ODIN, Eqs. 4
    and 5), from the scores (B,) of both heads for responses of `tokens` (B,) tokens, and the
    weights (D,) of the heads. A correlation with a constant is 0.
    """

    def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        x, y = a - a.mean(), b - b.mean()
        found: torch.Tensor = (x * y).sum() / (x.norm() * y.norm()).clamp(min=1e-6)
        return found

    n = tokens.to(quality.dtype)
    apart = F.cosine_similarity(quality_head.flatten(), length_head.flatten(), dim=0).abs()
    loss: torch.Tensor = correlation(quality, n).abs() - correlation(length, n) + apart
    return loss


def clipped_policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    cliprange: float,
    cliprange_high: float | None = None,
    ratio_of: str = "token",
    normalizer: torch.Tensor | float | None = None,
    tokens: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return PPO's clipped surrogate loss, a token mean, and the share of clipped tokens.

    Schulman et al. 2017, Eq. 7: max(-A rho, -A clip(rho, 1 - cliprange, 1 + cliprange)) with rho =
    exp(logprobs - old_logprobs), all (B, T). A token is clipped where clipping raised its loss. The loss
    is divided by `normalizer` (see `loss_normalizer`) and the share by `tokens` (each by this call's
    tokens when None), so those of micro-batches add up. The gradient reaches `logprobs` on the mask only.

    `cliprange_high` is the upper range if it differs (Yu et al. 2025, DAPO, Eq. 10). With `ratio_of`
    "response", rho is the same on all tokens of a response: the exponential of its mean log-ratio
    (Zheng et al. 2025, GSPO, Eq. 7).
    """
    assert cliprange > 0
    assert ratio_of in ("token", "response")
    assert logprobs.shape == old_logprobs.shape == advantages.shape == response_mask.shape
    log_ratio = (logprobs - old_logprobs).masked_fill(~response_mask, 0.0)
    if ratio_of == "response":
        lengths = response_mask.sum(1, keepdim=True).clamp(min=1)
        log_ratio = (log_ratio.sum(1, keepdim=True) / lengths).expand_as(log_ratio)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    high = cliprange if cliprange_high is None else cliprange_high
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + high)  # Eq. 7
    loss = _token_sum(torch.maximum(plain, clipped), response_mask, normalizer)
    share = masked_mean((clipped > plain).to(ratio.dtype), response_mask, tokens)
    return loss, share.detach()


def clipped_value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    cliprange_value: float,
    normalizer: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Return PPO's clipped value loss (Ziegler et al. 2019, code), a token mean over (B, T).

    0.5 max((V - G)^2, (clip(V, V_old - cliprange_value, V_old + cliprange_value) - G)^2)
    """
    assert values.shape == old_values.shape == returns.shape == response_mask.shape
    assert cliprange_value > 0
    # Mask before the square: its gradient at a nan is nan, even if the result is masked later.
    values, old_values, returns = (x.masked_fill(~response_mask, 0.0) for x in (values, old_values, returns))
    near = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    worst = torch.maximum((values - returns).square(), (near - returns).square())
    return 0.5 * _token_sum(worst, response_mask, normalizer)


def dpo_loss(
    chosen_logprobs: torch.Tensor,
    rejected_logprobs: torch.Tensor,
    ref_chosen_logprobs: torch.Tensor,
    ref_rejected_logprobs: torch.Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    confidence: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the DPO loss (Rafailov et al. 2023, Eq. 7) and the detached margin beta h of each pair.

    Label smoothing gives the conservative cDPO (Mitchell 2023). All log-probabilities are sums over
    a response, (B,), in nats:
    h = (log pi - log ref)(chosen) - (log pi - log ref)(rejected);
    loss = -t logsigmoid(beta h) - (1 - t) logsigmoid(-beta h).
    The target t is q (1 - e) + (1 - q) e with e = `label_smoothing` and q = `confidence` (B,). q is
    the probability that the chosen response is the better one (1 when None).
    """
    assert beta > 0
    assert chosen_logprobs.ndim == 1
    assert chosen_logprobs.shape == rejected_logprobs.shape
    assert ref_chosen_logprobs.shape == ref_rejected_logprobs.shape == chosen_logprobs.shape
    assert 0.0 <= label_smoothing < 0.5
    h = (chosen_logprobs - ref_chosen_logprobs) - (rejected_logprobs - ref_rejected_logprobs)
    margins = beta * h
    target = _soft_target(margins, label_smoothing, confidence)
    loss = -target * F.logsigmoid(margins) - (1 - target) * F.logsigmoid(-margins)
    return loss, margins.detach()


def ipo_loss(
    chosen_logprobs: torch.Tensor,
    rejected_logprobs: torch.Tensor,
    ref_chosen_logprobs: torch.Tensor,
    ref_rejected_logprobs: torch.Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    confidence: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the IPO loss (h - c)^2, c = 1 / (2 beta) (Azar et al. 2023, Eq. 17), and the margin.

    h and units are as in `dpo_loss`; the margin is beta h, detached. The minimum is at h = c, so the
    gap between chosen and rejected responses stays finite. With a `confidence` q (B,) the loss is the
    mean over both labels, q (h - c)^2 + (1 - q) (h + c)^2, with its minimum at h = (2 q - 1) c.
    """
    assert beta > 0
    assert chosen_logprobs.ndim == 1
    assert chosen_logprobs.shape == rejected_logprobs.shape
    assert ref_chosen_logprobs.shape == ref_rejected_logprobs.shape == chosen_logprobs.shape
    h = (chosen_logprobs - ref_chosen_logprobs) - (rejected_logprobs - ref_rejected_logprobs)
    target, wanted = _soft_target(h, label_smoothing, confidence), 1 / (2 * beta)
    loss = target * (h - wanted).square() + (1 - target) * (h + wanted).square()
    return loss, (beta * h).detach()


DPO_LOSSES = {"sigmoid": dpo_loss, "ipo": ipo_loss}
"""Losses of DPO by their name in `dpo.loss`; all take the arguments of `dpo_loss`."""


def _soft_target(like: torch.Tensor, label_smoothing: float, confidence: torch.Tensor | None) -> torch.Tensor:
    """Return the (B,) probability that the chosen response wins, after label smoothing."""
    assert confidence is None or confidence.shape == like.shape
    target = torch.ones_like(like) if confidence is None else confidence
    return target * (1 - label_smoothing) + (1 - target) * label_smoothing


def response_cross_entropy(
    logprobs: torch.Tensor, response_mask: torch.Tensor, *, normalizer: torch.Tensor | float | None = None
) -> torch.Tensor:
    """Return the mean negative log-probability of response tokens: (B, T) -> nats a token."""
    return -_token_sum(logprobs, response_mask, normalizer)


def approx_kl(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    mask: torch.Tensor,
    *,
    normalizer: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Return an estimate of KL(old || new) per token for small steps.

    It is half the mean squared log-ratio (Ziegler et al. 2019, code), a token mean as in
    `clipped_policy_loss`.
    """
    assert logprobs.shape == old_logprobs.shape == mask.shape
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0)
    return 0.5 * masked_mean(log_ratio.square(), mask, normalizer)


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float | None:
    """Return 1 - Var(G - V) / Var(G) over the tokens in `mask`.

    It is 1 for a perfect fit and 0 for a fit no better than a constant. Return None if the returns do
    not vary. Raises ValueError for an empty mask.
    """
    assert values.shape == returns.shape == mask.shape
    kept, target = values[mask], returns[mask]
    if target.numel() == 0:
        raise ValueError("the mask keeps 0 tokens; explained variance needs at least one")
    # The variance is no test: that of equal floats need not round to 0.
    if bool(target.max() == target.min()):
        return None
    return float(1 - (target - kept).var(unbiased=False) / target.var(unbiased=False))
