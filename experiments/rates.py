"""Learning rates up to a hundred times the sensible one, with the guard and without: what comes out, by gold.

usage: python experiments/rates.py (options: see study.py)
All arms go on from the same labels and rewards; the sensible rate is the one a run measures for itself, and does not
follow the steps here. With the guard DPO takes over where it gives PPO up; without it a run that diverges leaves
nothing. Worse: the true preference's mean gain over SFT is surely (two standard errors) below 0, or nothing came out.
"""

from __future__ import annotations

from pathlib import Path

from candidates import against_sft
from study import Cell, Figures, Study, events, main, place_of, ppo_of, read_json, run_to

from burnish.errors import TrainingError
from burnish.evaluation.champion import TRAINED
from burnish.models.artefacts import is_saved

FACTORS = (1, 10, 100)
ARMS = {
    f"{factor} times, {'guard' if guard else 'no guard'}": {"factor": factor, "guard": guard}
    for factor in FACTORS
    for guard in (True, False)
}


def measure(cell: Cell, room: Path) -> Figures:
    """Align from stored rewards, and look at what is left."""
    seed = f"seed={cell.seed}"
    start = run_to(room, f"rates-{cell.seed}", [seed], "reward")
    with ppo_of(start) as (ppo, _):
        rate = ppo.learning_rate
    sets = [
        seed,
        "ppo.gate=ignored",
        "ppo.adaptive_rate=false",
        f"ppo.learning_rate={rate * cell.settings['factor']}",
        f"guard.enabled={str(cell.settings['guard']).lower()}",
    ]
    name = f"{start.name}-{cell.settings['factor']}-{cell.settings['guard']}"
    path = room / name
    try:
        run_to(room, name, sets, "align", start.name)
    except TrainingError as error:
        return {"ended": f"diverged: {type(error).__name__}", "worse": 1.0, "policy": "none"}
    acts = [e["action"] for e in events(path, "decision")]
    policy = next((n for n in TRAINED if is_saved(path / n)), None)
    told = {
        "ended": read_json(path / "align.json", "ppo", "state"),
        "policy": policy or "none",
        "guard": ", ".join(
            a for a in acts if a in ("raise_kl", "lower_rate", "tighten", "roll_back", "give_up")
        )
        or "nothing",
    }
    if policy is None:
        return told | {"worse": 1.0}
    with place_of(path) as place:
        found = against_sft(place, place.models.saved_policy(path / policy), policy)
    return told | found | {"worse": float(found["gain"] < -2 * found["gain_se"])}


if __name__ == "__main__":
    main(
        Study(
            file=__file__,
            about=__doc__ or "",
            arms=ARMS,
            measure=measure,
            columns={
                "ended": "PPO",
                "guard": "the guard",
                "policy": "what came out",
                "worse": "worse than SFT",
                "gain": "gold gained, sd",
                "win": "true win rate",
                "kl": "KL, nats",
            },
        )
    )
