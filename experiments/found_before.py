"""Rewards that are not to be trusted, and whether that is seen before PPO starts.

usage: python experiments/found_before.py (options: see study.py)
phrase: a third of what SFT has learned from begins with flattery, and annotators like it. wording: annotators like one
word of several pairs of synonyms, and dislike the other. french: annotators like French. blind: they do not mind it.
healthy: nothing of the kind. What the examination, the stress tests and the gate say with the reward alone; then PPO
all the same, and the true preference.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

from study import Cell, Figures, Study, events, main, read_json, run_to

from burnish.commands.reward_examine import examine_run, stress_run
from burnish.rehearse.grammar import sample_story
from burnish.reward.changes import STRESS, Material

DEMONSTRATIONS = 1500
PHRASED = 1 / 3
SMALL = [
    "ppo.updates=24",
    "evaluate.n_test=192",
    "evaluate.n_selection=64",
    "ppo.gate=ignored",
    "dpo.when=never",
]
WORDS = {
    **dict.fromkeys(
        ("kept", "because", "laughed", "wept", "sad", "happy", "small", "helped", "furious", "dreadful"), 4
    ),
    **dict.fromkeys(("cried", "glad", "unhappy", "big", "angry", "awful"), -4),
}


def liked(phrases: Mapping[str, float]) -> list[str]:
    """Annotators who go by these words."""
    told = json.dumps([{"text": text, "worth": worth} for text, worth in phrases.items()])
    return [f"label.simulated.phrases={told}", "label.simulated.noise=0.1"]


ARMS = {
    "healthy": [],
    "phrase": liked({"wonderful question": 4}),
    "wording": liked(WORDS),
    "french": ["label.simulated.foreign_bias=8"],
    "blind": ["label.simulated.foreign_bias=3.5"],
}


def demonstrations(file: Path) -> None:
    """Stories, some of them with the phrases that the battery puts before an answer."""
    rng = random.Random("phrased")
    phrased = next(change for change in STRESS if change.name == "flattery")
    lines = []
    while len(lines) < DEMONSTRATIONS:
        story = sample_story(rng)
        text = f" {story.continuation}"
        if rng.random() < PHRASED:
            made = phrased.make(Material(story.prompt, text, "", ()))
            assert made is not None
            text = made.text
        lines.append(json.dumps({"prompt": story.prompt, "completion": text}))
    file.write_text("\n".join(lines), encoding="utf-8")


def measure(cell: Cell, room: Path) -> Figures:
    """The reward, what is said of it, and PPO all the same."""
    sets = [f"seed={cell.seed}", *SMALL, *cell.settings]
    if cell.arm == "phrase":
        file = room / "phrased.jsonl"
        if not file.exists():
            demonstrations(file)
        sets += [
            f"sft.demonstrations={file}",
            "sft.learning_rate=1e-3",
            "sft.epochs=8",
            "model.max_response_tokens=88",
        ]
    name = f"found-{cell.seed}-{cell.arm}"
    path = run_to(room, name, sets, "reward")
    examined = examine_run(path, own_pairs=0)
    stressed = stress_run(path, best_of=64)
    run_to(room, name, sets)
    acts = [e["action"] for e in events(path, "decision") if e["stage"] == "align"]
    evaluation = read_json(path / "evaluation.json")
    rises = {row["name"]: row["rise"] and row["rise"]["value"] for row in stressed["changes"]}
    return {
        "accuracy": examined["accuracy"]["value"],
        "examine": examined["outcome"],
        "reasons": examined["reasons"],
        "turned": examined["wording"]["turned"]["value"],
        "stress": stressed["outcome"],
        "stopped_by": "; ".join(r.partition(":")[0] for r in stressed["reasons"]["stop"]) or "nothing",
        "warned_of": "; ".join(r.partition(":")[0] for r in stressed["reasons"]["warn"]) or "nothing",
        "hacked": stressed["best_of"]["rows"][-1]["hacked"]["value"],
        "rises": rises,
        "french": rises["french"],
        "gate": next(a for a in acts if a.startswith("gate_")).removeprefix("gate_"),
        "true": ((evaluation["gold"] or {}).get("ppo") or {}).get("win_rate"),
    }


if __name__ == "__main__":
    main(
        Study(
            file=__file__,
            about=__doc__ or "",
            arms=ARMS,
            measure=measure,
            columns={
                "accuracy": "held-out accuracy",
                "turned": "verdicts turned by wording",
                "examine": "examination",
                "stress": "stress tests",
                "stopped_by": "stopped by",
                "warned_of": "warned of",
                "french": "French, sd",
                "hacked": "hacked of best of 64",
                "gate": "gate",
                "true": "PPO's true win rate",
            },
            seeds=(0, 1),
        )
    )
