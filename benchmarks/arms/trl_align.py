"""One arm: current TRL's RewardTrainer, RLOOTrainer, GRPOTrainer or DPOTrainer, for a number of minutes.

Data are conversations, so that TRL applies the model's chat template. Options are TRL's defaults but for the device,
gradient checkpointing (off, as it only costs time here), the length of responses and the learning rate. The linear
schedule ends with the minutes: the time of a step is measured before. Prints one JSON line and saves the model.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback, set_seed
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
)

KINDS = {
    "reward": (RewardTrainer, RewardConfig),
    "rloo": (RLOOTrainer, RLOOConfig),
    "grpo": (GRPOTrainer, GRPOConfig),
    "dpo": (DPOTrainer, DPOConfig),
}
WARM, TIMED = 2, 4  # steps before the clock starts, and steps that it times


class Clock(TrainerCallback):
    """Times the steps of a training, and ends it after some seconds."""

    def __init__(self, limit: float) -> None:
        self.limit, self.ends = limit, []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())
        if self.ends[-1] - self.began > self.limit:
            control.should_training_stop = True


def trainer_of(args: argparse.Namespace, steps: int, clock: Clock) -> Any:
    """Build a fresh trainer that ends after `steps` (-1: after the default number of epochs)."""
    set_seed(args.seed)
    trainer_class, config_class = KINDS[args.what]
    options = {
        "output_dir": str(args.out / "trainer"),
        "max_steps": steps,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "logging_steps": 10,
        "seed": args.seed,
    }
    if args.rate is not None:
        options["learning_rate"] = args.rate
    rows = [json.loads(line) for line in args.data.read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    if args.what in ("rloo", "grpo"):
        rows = [{"prompt": row["prompt"]} for row in rows]
        options["max_completion_length"] = args.tokens
        more: dict[str, Any] = {"reward_funcs": [str(args.reward)]}
        model: Any = args.model
    elif args.what == "reward":
        tokenizer.padding_side, more = "right", {}
        model = AutoModelForSequenceClassification.from_pretrained(
            args.model, num_labels=1, dtype=torch.float32
        )
        model.config.pad_token_id = tokenizer.pad_token_id
    else:
        model, more = args.model, {}
    return trainer_class(
        model=model,
        args=config_class(**options),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
        **more,
    )


def main() -> None:
    """Train for the given minutes, and save the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[*KINDS])
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--reward", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    limit = args.minutes * 60
    pace = Clock(limit)
    trainer_of(args, WARM + TIMED, pace).train()
    step = (pace.ends[-1] - pace.ends[0]) / max(1, len(pace.ends) - 1)
    whole = trainer_of(args, -1, Clock(limit))
    per_epoch = len(whole.get_train_dataloader())
    steps = min(int(whole.args.num_train_epochs * per_epoch), max(1, int(limit / step)))
    del whole
    clock = Clock(limit)
    trainer = trainer_of(args, steps, clock)
    trainer.train()
    seconds = clock.ends[-1] - clock.began
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.save_pretrained(args.out / "model")
    trainer.processing_class.save_pretrained(args.out / "model")
    found = {
        "what": args.what,
        "rate": trainer.args.learning_rate,
        "steps": len(clock.ends),
        "planned": steps,
        "batch": trainer.args.per_device_train_batch_size,
        "seconds": seconds,
        "autocast": "bfloat16" if trainer.args.bf16 else "float32",
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "log": trainer.state.log_history,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
