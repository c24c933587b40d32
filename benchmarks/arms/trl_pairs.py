"""One arm: current TRL's RewardTrainer or DPOTrainer on preference pairs. Prints one JSON line: seconds of training
(tokenization and loading not counted), pairs a second, held-out accuracy (reward), peak MiB. DPO saves its model."""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer


class Clock(TrainerCallback):
    began = 0.0
    ended = 0.0

    def on_train_begin(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.began = time.perf_counter()

    def on_train_end(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.ended = time.perf_counter()


def accuracy(model: torch.nn.Module, tokenizer, rows: list[dict[str, str]]) -> float:  # type: ignore[no-untyped-def]
    def score(text: str) -> float:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            return float(model(input_ids=ids).logits)

    model.eval()
    won = [score(r["prompt"] + r["chosen"]) > score(r["prompt"] + r["rejected"]) for r in rows]
    return sum(won) / len(won)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["reward", "dpo"])
    parser.add_argument("model")
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("/tmp/trl-out"))
    args = parser.parse_args()
    torch.set_num_threads(2)
    rows = [json.loads(line) for line in args.pairs.open()]
    rows = [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in rows]
    train, held_out = rows[: -args.held_out], rows[-args.held_out :]
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    common = {
        "output_dir": str(args.out),
        "per_device_train_batch_size": args.batch,
        "num_train_epochs": 1,
        "learning_rate": args.rate,
        "warmup_steps": 0.1,
        "lr_scheduler_type": "linear",
        "save_strategy": "no",
        "report_to": [],
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "logging_steps": 50,
        "seed": args.seed,
    }
    clock = Clock()
    if args.what == "reward":
        model = AutoModelForSequenceClassification.from_pretrained(
            args.model, num_labels=1, dtype=torch.float32
        )
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(**common, weight_decay=0.01, max_length=512),
            train_dataset=Dataset.from_list(train),
            processing_class=tokenizer,
            callbacks=[clock],
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(**common, beta=0.1, label_smoothing=0.1, max_length=512),
            train_dataset=Dataset.from_list(train),
            processing_class=tokenizer,
            callbacks=[clock],
        )
    trainer.train()
    seconds = clock.ended - clock.began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    out = {"seconds": seconds, "pairs_per_second": len(train) / seconds, "peak_mib": peak}
    if args.what == "reward":
        out["accuracy"] = accuracy(trainer.model, tokenizer, held_out)
    else:
        trainer.model.save_pretrained(args.out / "model")
        tokenizer.save_pretrained(args.out / "model")
        out["model"] = str(args.out / "model")
    print(json.dumps(out))


if __name__ == "__main__":
    main()
