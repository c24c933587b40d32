"""How much of PPO's gradient on one batch is signal, by where the reward is credited and where the KL acts.

usage: python benchmarks/gradient_noise.py RUN [--batches 4] [--answers 64] [--policy ppo] [--coef C]
Batches are sampled from SFT, or from a saved policy of the run, at a KL coefficient (default: the run's first).
`signal` is the mean product of the gradients of different batches, over their mean square. `alignment` is the mean
product with RLOO's gradient of another batch, which is unbiased, relative to RLOO's own: an alignment of 2 is worth
four times as many answers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from burnish.commands.reward_score import open_ensemble
from burnish.models.artefacts import load_policy
from burnish.pipeline.assemble import build_ppo
from burnish.policy.advantages import advantages_of
from burnish.policy.ppo import PPO

TOGETHER = 4
WAYS = {
    "response (RLOO)": {"credit": "response"},
    "response, KL to go": {"credit": "response", "where": "reward_to_go"},
    "response, KL in the loss": {"credit": "response", "where": "loss"},
    "prefix, lambda 1": {"credit": "prefix", "lam": 1.0},
    "prefix, lambda 0.95": {"credit": "prefix", "lam": 0.95},
    "prefix, lambda 0.8": {"credit": "prefix", "lam": 0.8},
}


def ppo_of(run: Path, answers: int, policy: str | None, coef: float | None) -> PPO:
    """Build PPO as the run did, with RLOO, prefixes and the weights of a saved policy."""
    place, ensemble = open_ensemble(run)
    settings = {
        "batch_size": answers,
        "samples_per_prompt": TOGETHER,
        "advantage": "rloo",
        "credit": "prefix",
    }
    config = place.config.ppo.model_copy(update=settings)
    ppo = build_ppo(place.models, place.data, run / "reward", config, place.config.seed, fresh=coef is None)
    if coef is not None:
        ppo.controller.coef = coef
    if policy is not None:
        saved = dict(load_policy(ensemble.base, run / policy).named_parameters())
        own = ppo.policy.top.trained_state()
        ppo.policy.top.load_trained_state({name: saved[name].detach() for name in own})
    place.data.close()
    return ppo


def gradients(ppo: PPO, batches: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the gradient of the trained weights by each way, for one batch after another."""
    for number in range(batches):
        batch = ppo.collect(number + 1)
        ppo.drawn += len(batch.rollout) // TOGETHER
        assert ppo.prefixes is not None
        prefixes = ppo.prefixes(batch.reward_rollout)
        found = {}
        for name, way in WAYS.items():
            kl = ppo.config.kl.model_copy(update={"where": way.get("where", "reward")})
            config = ppo.config.model_copy(update={"kl": kl, "lam": way.get("lam", 1.0)})
            advantages = advantages_of(
                config,
                *(batch.ranked, batch.old_logprobs, batch.ref_logprobs, None, batch.rollout.response_mask),
                kl_coef=ppo.controller.coef,
                samples_per_prompt=TOGETHER,
                scaled=False,
                prefixes=prefixes if way["credit"] == "prefix" else None,
            )
            batch.advantages, batch.kl_weight = advantages.values, advantages.kl_weight
            ppo.accumulate(batch, list(range(len(batch.rollout))))
            found[name] = torch.cat([p.grad.flatten() for p in ppo.policy_parameters if p.grad is not None])
        yield found


def figures(found: dict[str, list[torch.Tensor]]) -> dict[str, dict[str, float]]:
    """Return signal and alignment of each way, from the gradients of all batches."""
    plain = torch.stack(found["response (RLOO)"])
    others = ~torch.eye(len(plain), dtype=torch.bool)

    def alignment(g: torch.Tensor) -> float:
        return float(((g / g.norm(dim=1, keepdim=True)) @ plain.T)[others].mean())

    own = alignment(plain)
    rows = {}
    for name, each in found.items():
        g = torch.stack(each)
        signal = float((g @ g.T)[others].mean() / g.square().sum(1).mean())
        rows[name] = {"signal": signal, "alignment": alignment(g) / own}
    return rows


def main() -> None:
    """Print the table, and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--answers", type=int, default=64)
    parser.add_argument("--policy")
    parser.add_argument("--coef", type=float)
    a = parser.parse_args()
    ppo = ppo_of(a.run, a.answers, a.policy, a.coef)
    found: dict[str, list[torch.Tensor]] = {name: [] for name in WAYS}
    for gradient in gradients(ppo, a.batches):
        for name, values in gradient.items():
            found[name].append(values)
    rows = figures(found)
    print(f"{a.batches} batches of {a.answers} answers at a KL coefficient of {ppo.controller.coef:.3f}\n")
    print("| way | signal | alignment |\n|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row['signal']:.3f} | {row['alignment']:.2f} |")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
