"""Make examples/pairs.jsonl: two answers of the embedded model to each prompt, chosen by the rehearsal's preference."""

from __future__ import annotations

import json
from pathlib import Path

import burnish
from burnish.rehearse.grammar import prompts
from burnish.rehearse.world import gold

N = 600


def main() -> None:
    """Write the pairs; ties are left out."""
    model = burnish.load_model("embedded")
    policy, codec = model.policy, model.models.codec
    asked = prompts(N, seed=1)
    options = {"max_tokens": model.models.config.max_response_tokens, "batch_size": 256, "seed": 1}
    first, second = (
        burnish.sample_rollout(policy, codec, asked, where=("pairs", k), **options) for k in ("a", "b")
    )
    with (Path(__file__).parent / "pairs.jsonl").open("w", encoding="utf-8") as out:
        for prompt, *answers in zip(asked, first.texts, second.texts, strict=True):
            rejected, chosen = sorted(answers, key=lambda text: gold(prompt, text))
            if gold(prompt, chosen) > gold(prompt, rejected):
                out.write(json.dumps({"prompt": prompt.text, "chosen": chosen, "rejected": rejected}) + "\n")


if __name__ == "__main__":
    main()
