"""Learning rates, found by short trials and recorded as decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from burnish.config.rate import Rate
from burnish.models.backbone import Backbone
from burnish.models.logprobs import Policy
from burnish.models.optim import USUAL, for_longer, ladder, n_updates, trial_rows, trial_steps, try_rates
from burnish.models.sequences import Sequences
from burnish.pipeline.context import Journal
from burnish.policy.sft import FineTuning, trial_loss
from burnish.randomness import generator
from burnish.records import Decision, Prompt

TrialLoss = Callable[[list[int], list[int], float], float]
"""Loss on the second rows after one epoch on the first, at a learning rate."""


def found_rate(
    journal: Journal,
    job: str,
    base: Backbone,
    groups: Sequence[str],
    *,
    batch_size: float,
    steps: int,
    trial: TrialLoss,
    seed: int,
) -> float:
    """Find and record the rate for `steps` updates of `batch_size` rows; `groups` are their prompts."""
    rates = ladder(base)
    tried = trial_steps(steps)
    learned, unseen = trial_rows(groups, round(tried * batch_size), generator(seed, "sweep"))
    if not unseen:
        rate = rates[USUAL]
        text = f"{job} learns at {rate:.2g}: too few prompts to try others"
        journal.decide(0, Decision("learning_rate", text, {"job": job, "rate": rate, "trials": []}))
        return rate
    journal.view.note(f"{job}: trying {len(rates)} learning rates for {tried} updates each")
    trials = try_rates(job, rates, lambda rate: trial(learned, unseen, rate))
    rate = for_longer(trials[0].rate, tried, steps)
    text = f"{job} learns at {rate:.2g}, by the best of {len(trials)} short trials ({trials[0].rate:.2g})"
    evidence = {"job": job, "rate": rate, "trials": [t.as_json() for t in trials]}
    journal.decide(0, Decision("learning_rate", text, evidence))
    return rate


def fine_tuning_rate(
    journal: Journal,
    job: str,
    given: Rate,
    new_policy: Callable[[], Policy],
    sequences: Sequences,
    prompts: Sequence[Prompt],
    config: FineTuning,
    seed: int,
) -> float:
    """Return the learning rate for sequences with one prompt each: as given, or found by trials."""
    if given != "auto":
        return given
    return found_rate(
        journal,
        job,
        sequences.base,
        [p.group for p in prompts],
        batch_size=config.batch_size,
        steps=n_updates(len(sequences), config.batch_size, config.epochs),
        trial=lambda learned, unseen, rate: trial_loss(
            new_policy(), sequences, learned, unseen, config, rate, seed
        ),
        seed=seed,
    )
