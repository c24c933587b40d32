"""Token rewards, generalised advantage estimation, whitening."""

from __future__ import annotations

import torch

from burnish.objectives.kl import kl_k1


def _assert_right_padded(response_mask: torch.Tensor) -> None:
    assert response_mask.ndim == 2
    assert response_mask.dtype == torch.bool
    assert bool((response_mask[:, 1:] <= response_mask[:, :-1]).all()), (
        "a response stands left, padding right"
    )


def shape_rewards(
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    kl_coef: float,
) -> torch.Tensor:
    """(B, T) rewards: -kl_coef * k1 on every response token, plus the score (B,) on the last one.

    Ziegler et al. 2019, Eq. 2, for responses of varying length: the score stands at each row's last response
    token, not in the last column. What is off the mask is ignored and 0 in the result. Raises ValueError for
    an empty response.
    """
    assert logprobs.shape == ref_logprobs.shape == response_mask.shape
    assert scores.shape == response_mask.shape[:1]
    _assert_right_padded(response_mask)
    lengths = response_mask.sum(1)
    if bool((lengths == 0).any()):
        row = int((lengths == 0).nonzero()[0])
        raise ValueError(
            f"response {row} has 0 tokens; its score needs one to stand on: keep at least its EOS"
        )
    rewards = (-kl_coef * kl_k1(logprobs, ref_logprobs)).masked_fill(~response_mask, 0.0)
    last = lengths - 1
    return rewards.scatter_add(1, last[:, None], scores[:, None].to(rewards.dtype))


def gae(
    rewards: torch.Tensor, values: torch.Tensor, response_mask: torch.Tensor, *, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns (B, T) of right-padded responses (Schulman et al. 2016, Eq. 16).

    delta_t = r_t + gamma V_{t+1} - V_t with V = 0 after the last response token; A_t = delta_t + gamma lam
    A_{t+1}; returns = A + V. What is off the mask is ignored and 0 in the result.
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
    rewards: torch.Tensor, response_mask: torch.Tensor, *, answers: int, scaled: bool
) -> torch.Tensor:
    """Advantages (B, T) without a value function, the same on every token of a response: its summed reward less that of
    the other answers to the same prompt, `answers` of which stand in a row.

    RLOO: less the mean of the others (Ahmadian et al. 2024, Eq. 8). GRPO, `scaled`: less the mean of all of them, by
    their standard deviation (Shao et al. 2024, 4.1.2); 0 where they are all alike. Raises ValueError for fewer than
    two answers, or rows that are no multiple of them.
    """
    rows = len(rewards)
    if answers < 2 or rows % answers:
        raise ValueError(
            f"{rows} responses are not groups of {answers}: it takes two answers a prompt, or more"
        )
    totals = rewards.masked_fill(~response_mask, 0.0).sum(1).view(-1, answers)
    above = totals - totals.mean(1, keepdim=True)
    if scaled:
        sd = totals.std(1, keepdim=True, unbiased=False)
        above = torch.where(sd > 1e-6, above / sd.clamp(min=1e-6), torch.zeros_like(above))
    else:
        above = above * (answers / (answers - 1))
    return above.view(-1, 1).expand_as(rewards).masked_fill(~response_mask, 0.0)


def whiten(x: torch.Tensor, mask: torch.Tensor, *, shift_mean: bool = True) -> torch.Tensor:
    """Scale the masked entries to variance 1; their mean becomes 0, or stays when not `shift_mean`.

    Biased variance, 1e-8 inside the square root, as in Ziegler et al. 2019 (code). What is off the mask is
    ignored and 0 in the result. Raises ValueError when nothing is on the mask.
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
