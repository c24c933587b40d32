"""Why RLHF at all: imitating good and bad alike, imitating the good, best of n, DPO, PPO, RLOO and GRPO from the same
labels, by the true preference, beside KL and wall time.

usage: python experiments/why_rlhf.py (options: see study.py)
Every arm starts from the quickstart's model, labels and rewards of its seed. `mixed` and `chosen` are fine-tuned on
both answers of the labelled pairs, or on the preferred ones. Seconds are of the arm alone: labels and rewards come
before, and rewards are needed by best of 4, PPO, RLOO and GRPO alone.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from candidates import against_sft
from study import Cell, Figures, Study, main, place_of, ppo_of, run_to

from burnish.models.logprobs import Policy
from burnish.models.optim import OWN, USUAL, ladder
from burnish.models.pairs import EncodedPairs
from burnish.models.sequences import Sequences
from burnish.pipeline.answers import OwnAnswers
from burnish.pipeline.context import RunContext
from burnish.policy.dpo import DPO
from burnish.policy.sft import demonstrated, fine_tune

GROUPED = ["ppo.samples_per_prompt=4"]
ARMS: dict[str, list[str]] = {
    "mixed": [],
    "chosen": [],
    "best of 4, distilled": [],
    "DPO": [],
    "PPO": [],
    "RLOO": ["ppo.advantage=rloo", *GROUPED],
    "GRPO": ["ppo.advantage=grpo", *GROUPED],
}


def measure(cell: Cell, room: Path) -> Figures:
    """One arm."""
    path = run_to(room, f"why-{cell.seed}", [f"seed={cell.seed}"], "reward")
    if cell.arm in ("PPO", "RLOO", "GRPO"):
        began = perf_counter()
        with ppo_of(path, cell.settings) as (ppo, place):
            for _ in ppo.updates():
                pass
            seconds = perf_counter() - began
            return against_sft(place, ppo.policy, "ppo") | {"seconds": seconds}
    with place_of(path) as place:
        began = perf_counter()
        policy = trained(cell.arm, place)
        seconds = perf_counter() - began
        return against_sft(place, policy, cell.arm) | {"seconds": seconds}


def trained(arm: str, place: RunContext) -> Policy:
    """The policy of an arm that needs no reinforcement."""
    models, config, seed = place.models, place.config, place.config.seed
    pairs, base = place.data.parts["members"], models.base
    policy = models.new_policy()
    if arm == "DPO":
        dpo = DPO(
            policy=policy,
            reference=models.reference(),
            pairs=EncodedPairs(base, models.codec, pairs),
            config=config.dpo,
            learning_rate=ladder(base)[USUAL] / 4,
            seed=seed,
            smoothing=0.1,
        )
        dpo.policy.temperature = dpo.reference.temperature = 1.0
        for _ in dpo.updates():
            pass
        return policy
    if arm == "best of 4, distilled":
        own = OwnAnswers(models, place.data, place.journal, config.ppo.batch_size, seed)
        picked = own.scored(config.distill.max_prompts, config.distill.samples_per_prompt).best()
        sequences = Sequences.of(base, picked, models.codec.pad_id)
    else:
        shown = [(p.prompt, p.chosen) for p in pairs]
        if arm == "mixed":
            shown += [(p.prompt, p.rejected) for p in pairs]
        sequences = demonstrated(base, models.codec, shown)
    for _ in fine_tune(policy, sequences, config.distill, learning_rate=ladder(base)[OWN], seed=seed):
        pass
    return policy


if __name__ == "__main__":
    main(
        Study(
            file=__file__,
            about=__doc__ or "",
            arms=ARMS,
            measure=measure,
            columns={
                "win": "true win rate against SFT",
                "gain": "gold gained, sd",
                "kl": "KL, nats",
                "length": "tokens",
                "seconds": "seconds",
            },
            against="chosen",
            compared=("win", "gain"),
        )
    )
