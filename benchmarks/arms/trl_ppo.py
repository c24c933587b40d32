"""One arm: TRL's last PPOTrainer. Prints one JSON line: seconds of every update, peak MiB."""

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
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        self.times.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("arena", type=Path)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument(
        "--frozen", type=int, default=0, help="bottom layers that are frozen, embeddings with them"
    )
    parser.add_argument("--ends", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(args.arena / "model")
    policy, reference = (AutoModelForCausalLM.from_pretrained(args.arena / "model") for _ in range(2))
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(args.arena / "scorer", num_labels=1)
        for _ in range(2)
    )
    if args.frozen:
        for lm in (policy, value):
            lm.model.embed_tokens.requires_grad_(False)
            for layer in lm.model.layers[: args.frozen]:
                layer.requires_grad_(False)
    rows = [json.loads(line)["prompt"] for line in (args.arena / "prompts.jsonl").open()]
    data = Dataset.from_dict({"input_ids": [tokenizer(r)["input_ids"] for r in rows]})
    config = PPOConfig(
        output_dir=str(args.arena / "trl"),
        per_device_train_batch_size=args.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=4,
        local_rollout_forward_batch_size=args.batch,
        total_episodes=args.batch * args.updates,
        response_length=args.length,
        stop_token="eos" if args.ends else None,
        missing_eos_penalty=1.0 if args.ends else None,
        temperature=1.0,
        learning_rate=1e-5,
        kl_coef=0.05,
        num_sample_generations=0,
        save_strategy="no",
        report_to=[],
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        disable_tqdm=True,
    )
    clock = Clock()
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=data,
        eval_dataset=data.select(range(args.batch)),
        callbacks=[clock],
    )
    clock.times.append(time.perf_counter())
    trainer.train()
    seconds = [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak}))


if __name__ == "__main__":
    main()
