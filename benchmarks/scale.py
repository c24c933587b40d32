"""How cost grows with processes and models: measured with one and two processes on this machine, computed by the model
of `burnish plan` for GPUs that are not here.

    python benchmarks/scale.py measure     # about ten minutes on two cores
    python benchmarks/scale.py compute
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from burnish.commands.plan.devices import DEVICES, pace_on, seconds_a_gathering, seconds_a_sum
from burnish.commands.plan.estimate import CONTEXT, sketched
from burnish.commands.plan.memory_estimate import Lengths, Shapes, memory_of
from burnish.commands.plan.time_estimate import Counts, Sharing, time_by_stage
from burnish.config import RunConfig
from burnish.config.loading import load_config

# Billions of parameters: layers, width, MLP width, heads, key-value heads. Llama 3's shapes (3.2 1B and 3B, 3.1 8B and
# 70B) and Qwen 2.5's 32B, with their vocabularies.
MODELS = {
    "1B": (16, 2048, 8192, 32, 8, 128256),
    "3B": (28, 3072, 8192, 24, 8, 128256),
    "8B": (32, 4096, 14336, 32, 8, 128256),
    "32B": (64, 5120, 27648, 40, 8, 152064),
    "70B": (80, 8192, 28672, 64, 8, 128256),
}
LENGTHS = Lengths(prompt=200, response=250, longest_prompt=512, longest_response=512)
COUNTS = Counts(pairs=10_000, answers=20_000, asked=10_000, train=10_000)
SETTINGS = (
    *("label.source=imported", "label.preferences=pairs.jsonl", "evaluate.examiner=reward_model"),
    *(
        "model.max_prompt_tokens=512",
        "model.max_response_tokens=512",
        "ppo.batch_size=512",
        "ppo.updates=100",
    ),
    *("ppo.minibatches=4", "ppo.micro_batch=8", "reward.micro_batch=16", "evaluate.batch_size=512"),
    *("ppo.advantage=rloo", "ppo.samples_per_prompt=4", "dpo.when=never"),
)
TRAINED = {
    "the top ({})": ["model.layers=auto"],
    "lora": ["model.layers=lora", "reward.layers=lora"],
    "lora, cut": [
        *("model.layers=lora", "reward.layers=lora", "scale.shard=true", "model.gradient_checkpointing=true"),
        *("ppo.micro_batch=2", "reward.micro_batch=2"),
    ],
}
WORLDS = (1, 8, 16, 64)
HOW = {  # processes, threads of each
    "one process, one thread": (1, 1),
    "one process, two threads": (1, 2),
    "two processes, one thread each": (2, 1),
}


def compute(device: str) -> None:
    print(
        "| model | trained | GPUs | peak GiB | a PPO update, s | whole run, h | of an update, sums of gradients, s |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, (layers, width, mlp, heads, kv, words) in MODELS.items():
        known = LlamaConfig(
            hidden_size=width,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv,
            vocab_size=words,
            tie_word_embeddings=name in ("1B", "3B"),
        )
        with torch.device("meta"):
            lm = AutoModelForCausalLM.from_config(known, dtype=torch.float32)
        for trained, more in TRAINED.items():
            config = load_config(None, [*SETTINGS, *more])
            shapes = sketched(lm, config, torch.device("cuda"), device)
            for world in WORLDS:
                _row(device, f"{name} | {trained.format(shapes.base.layers)}", world, shapes, config)


def _row(device: str, name: str, world: int, shapes: Shapes, config: RunConfig) -> None:
    memory = memory_of(
        shapes, LENGTHS, answers=COUNTS.answers, asked=COUNTS.asked, world=world, program=CONTEXT
    )
    memory.pop("loading")  # in the machine's own memory
    peak = max(stage.peak for stage in memory.values())
    card = DEVICES[device]
    there = f"{peak / 2**30:.0f}" + ("" if peak <= 0.9 * card.memory else " (does not fit)")
    gathered = seconds_a_gathering(card, shapes, world)
    pace = pace_on(card, shapes, LENGTHS, -(-config.ppo.batch_size // world), gathered)
    link = seconds_a_sum(card, shapes, world)
    seconds = time_by_stage(pace, COUNTS, config, Sharing(world, link))
    steps = config.ppo.epochs * config.ppo.minibatches
    update = config.ppo.batch_size * pace.ppo_response(config) / world + steps * link
    print(
        f"| {name} | {world} | {there} | {update:.0f} | {sum(seconds.values()) / 3600:.1f} | "
        f"{steps * link:.2f} |"
    )


def measure(repeats: int) -> None:
    print("| how | collect | reward | align | evaluate | a PPO update, s (median) |")
    print("|---|---|---|---|---|---|")
    for how, (workers, threads) in HOW.items():
        rows = [_timed(workers, threads) for _ in range(repeats)]
        cells = [statistics.median(row[column] for row in rows) for column in range(5)]
        print(f"| {how} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |", flush=True)


def _timed(workers: int, threads: int) -> list[float]:
    """Seconds of the stages, and of an update in the middle of PPO."""
    with tempfile.TemporaryDirectory() as room:
        sets = [f"scale.workers={workers}", f"threads={threads}", "ppo.updates=12", "ppo.checkpoint_every=12"]
        arguments = [part for key in sets for part in ("--set", key)]
        subprocess.run(
            [sys.executable, "-m", "burnish.cli.main", "run", "--dir", f"{room}/run", "--force", *arguments],
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stages = json.loads(Path(f"{room}/run/manifest.json").read_text())["stages"]
        lines = Path(f"{room}/run/timing/ppo.jsonl").read_text().splitlines()
        updates = [json.loads(line)["seconds"] for line in lines]
    return [
        *(stages[name]["seconds"] for name in ("collect", "reward", "align", "evaluate")),
        statistics.median(updates),
    ]


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("what", choices=["measure", "compute"])
    ask.add_argument("--device", choices=list(DEVICES), default="h100")
    ask.add_argument("--repeats", type=int, default=1)
    asked = ask.parse_args()
    if asked.what == "compute":
        compute(asked.device)
    else:
        measure(asked.repeats)


if __name__ == "__main__":
    main()
