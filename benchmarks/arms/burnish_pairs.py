"""One arm: Burnish's reward ensemble or DPO on preference pairs. Prints one JSON line: seconds of training
(activations below the cut and cached reference log-probabilities counted, loading not), pairs a second (a pair counts
once, however many members learn from it), held-out accuracy (reward) or gold win rate over the start (DPO, also of a
peer's model with --judge), peak MiB."""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import torch

from burnish.config.dpo import DPOConfig
from burnish.config.model import ModelConfig
from burnish.config.reward import RewardConfig
from burnish.data.preferences import read_preferences
from burnish.distributed.threads import side_by_side
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.generate import sample_rollout
from burnish.models.heads import new_reward_head, raw_scores
from burnish.models.load import Codec, load_model
from burnish.models.logprobs import Policy, make_policy
from burnish.models.pairs import EncodedPairs
from burnish.policy.dpo import DPO
from burnish.rehearse.grammar import prompts
from burnish.rehearse.world import golds
from burnish.reward.train import train_reward_model


def win_rate(policy: Policy, reference: Policy, codec: Codec, n: int = 512) -> float:
    """By the true preference of the rehearsal, ties half, on fresh prompts."""
    fresh = prompts(n, seed=987)
    texts = [
        sample_rollout(p, codec, fresh, max_tokens=56, batch_size=128, seed=5, where=(name,)).texts
        for name, p in (("ours", policy), ("start", reference))
    ]
    ours, start = (golds(fresh, t) for t in texts)
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(ours, start, strict=True)) / n


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["reward", "dpo", "judge"])
    parser.add_argument("model")
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--layers", default="top:2")
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--judge", help="a peer's model, to be compared with the start")
    args = parser.parse_args()
    torch.set_num_threads(2)
    model, codec = load_model(ModelConfig(path=args.model))
    base = Backbone(model, args.layers)
    reference = make_policy(TrainableLayers(base, trainable=False), codec.pad_id)
    if args.what == "judge":
        theirs = make_policy(
            TrainableLayers(Backbone(load_model(ModelConfig(path=args.judge))[0], "all"), trainable=False),
            codec.pad_id,
        )
        print(json.dumps({"gold_win_rate": win_rate(theirs, reference, codec)}))
        return
    rows = list(read_preferences(args.pairs).pairs)
    train, held_out = rows[: -args.held_out], rows[-args.held_out :]
    began = time.perf_counter()
    if args.what == "reward":
        config = RewardConfig(batch_size=args.batch)
        pairs = EncodedPairs(base, codec, train)
        names = [f"member-{k}" for k in range(args.members)]
        heads = [
            new_reward_head(base, args.seed, name, layers=args.layers, dropout=config.dropout)
            for name in names
        ]
        loops = [
            train_reward_model(head, pairs, config, learning_rate=args.rate, seed=args.seed, member=name)
            for head, name in zip(heads, names, strict=True)
        ]
        list(side_by_side(loops))
        seconds = time.perf_counter() - began
        encoded = EncodedPairs(base, codec, held_out)
        scores = torch.stack([raw_scores(h, encoded.sequences) for h in heads], 1)
        scores = (scores - scores.mean(0)) / scores.std(0)
        chosen, rejected = scores.mean(1).chunk(2)
        figures = {"accuracy": float((chosen > rejected).float().mean())}
    else:
        policy = make_policy(TrainableLayers(base), codec.pad_id)
        pairs = EncodedPairs(base, codec, train)
        dpo = DPO(policy, reference, pairs, DPOConfig(batch_size=args.batch), args.rate, args.seed)
        list(dpo.updates())
        seconds = time.perf_counter() - began
        figures = {"gold_win_rate": win_rate(policy, reference, codec)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    speed = {"seconds": seconds, "pairs_per_second": len(train) / seconds, "peak_mib": peak}
    print(json.dumps(speed | figures))


if __name__ == "__main__":
    main()
