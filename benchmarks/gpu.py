"""What a GPU does with Burnish's loops, in the minutes for which one is lent.

usage: python benchmarks/gpu.py [--size 1b] [--seconds 540] [--out gpu.json]

The steps stand in order of worth. Each is written to the JSON file as it ends, so a machine that is taken back early
leaves what it has measured. A step that fails is recorded with its error, and the next one starts. Weights are random,
in the shapes of Llama 3.2 1B or Llama 3.1 8B, so nothing is downloaded. The script needs torch, transformers and the
packages that `burnish` imports; on a bare machine, carry the wheels that it lacks (`pip download --no-deps`) and set
PYTHONPATH to the checkout. On a CPU, `--size tiny` shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from burnish.config.model import ModelConfig
from burnish.config.ppo import PPOConfig
from burnish.config.reward import RewardConfig
from burnish.models import device as devices
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.batches import micro_batches
from burnish.models.engine import FastDecoder
from burnish.models.generate import sample_ids, sample_rollout
from burnish.models.heads import new_reward_head
from burnish.models.load import Codec, load_model
from burnish.models.logprobs import Output, Policy, _TargetLogprobs, make_policy, token_logprobs
from burnish.models.pairs import EncodedPairs
from burnish.models.sequences import Sequences
from burnish.policy.kl_control import AdaptiveKLController
from burnish.policy.ppo import PPO
from burnish.records import Preference, Prompt, Rollout, Scores
from burnish.reward.train import train_reward_model

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 5


@dataclass(frozen=True)
class Size:
    """Shapes of a Llama, and the work that is measured with it."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    words: int
    tied: bool
    batches: tuple[int, ...]  # responses sampled at once
    prompt: int  # tokens
    response: int
    pairs: int

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.inner,
            vocab_size=self.words,
            tie_word_embeddings=self.tied,
            max_position_embeddings=8192,
            rope_theta=500_000.0,
            pad_token_id=0,
            eos_token_id=1,
        )


SIZES = {
    "tiny": Size(64, 3, 4, 2, 96, 2048, True, (4, 8), 12, 8, 8),
    "1b": Size(2048, 16, 32, 8, 8192, 128_256, True, (64, 512), 128, 256, 64),
    "8b": Size(4096, 32, 32, 8, 14_336, 128_256, False, (64, 256), 128, 256, 64),
}


@dataclass
class Bench:
    """The model under measurement, made on first use."""

    size: Size
    device: torch.device
    dtype: torch.dtype
    layers: str = "top:2"

    @cached_property
    def lm(self) -> LlamaForCausalLM:
        torch.manual_seed(0)
        with self.device:
            lm: LlamaForCausalLM = LlamaForCausalLM._from_config(self.size.config(), dtype=self.dtype)
        return lm.eval()

    @cached_property
    def codec(self) -> Codec:
        """The tokenizer of the embedded model; the end token is one that random weights hardly sample."""
        tokenizer = load_model(ModelConfig(), weights=False)[1].tokenizer
        return Codec(tokenizer, 0, 1, frozenset({1}), False)

    @cached_property
    def base(self) -> Backbone:
        base = Backbone(self.lm, self.layers)
        base.hold(self.dtype)
        return base

    @cached_property
    def prompts(self) -> list[Prompt]:
        words = ["the", "cat", "saw", "a", "small", "red", "house", "on", "the", "hill", "and"]
        n = max(self.size.batches)
        return [Prompt(" ".join([str(i), *words * (self.size.prompt // len(words))])) for i in range(n)]

    def policy(self, *, trainable: bool) -> Policy:
        return make_policy(TrainableLayers(self.base, trainable=trainable), 0)

    def seconds(self, work: Callable[[], Any], repeats: int = REPEATS) -> float:
        """Return the median time of `work` on a warm device."""
        work()
        times = []
        for _ in range(repeats):
            devices.synchronize(self.device)
            began = time.perf_counter()
            work()
            devices.synchronize(self.device)
            times.append(time.perf_counter() - began)
        return median(times)


def output_layer(bench: Bench) -> dict[str, Any]:
    """Log-probabilities and gradient of the frozen output layer, in milliseconds, by precision."""
    size, rows = bench.size, 8 * bench.size.response
    weight = torch.randn(size.words, size.hidden, device=bench.device) / size.hidden**0.5
    hidden = torch.randn(rows, size.hidden, device=bench.device, requires_grad=True)
    targets = torch.randint(size.words, (rows,), device=bench.device)
    found: dict[str, Any] = {"tokens": rows}
    exact = None
    for name, dtype, tf32 in (
        ("float32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bfloat16", torch.bfloat16, "highest"),
    ):
        torch.set_float32_matmul_precision(tf32)
        layer = Output(devices.held(weight, dtype))
        top: Any = None
        policy = Policy(top, layer, 0, dtype=dtype)

        def work(layer: Output = layer, policy: Policy = policy) -> torch.Tensor:
            out, _ = _TargetLogprobs.apply(hidden, layer.weight, None, targets, policy, None)
            torch.autograd.grad(out.sum(), hidden)
            return out.detach()

        found[f"{name}_ms"] = 1e3 * bench.seconds(work)
        out = work()
        exact = out if exact is None else exact
        found[f"{name}_largest_error_nats"] = float((out - exact).abs().max())
    torch.set_float32_matmul_precision("highest")
    return found


def sampling(bench: Bench) -> dict[str, Any]:
    """Tokens a second of the engine, with and without CUDA graphs, of `generate` and of continuous batching."""
    found: dict[str, Any] = {"engine_runs_the_model": bench.base.fast}
    policy, tokens = bench.policy(trainable=False), bench.size.response
    for n in bench.size.batches:
        prompts = [bench.codec.encode_prompt(p) for p in bench.prompts[:n]]

        def ours(prompts: list[list[int]] = prompts, n: int = n) -> None:
            sample_ids(policy, bench.codec, prompts, torch.rand(n, tokens, dtype=torch.float64), n)

        found[f"engine_{n}"] = n * tokens / bench.seconds(ours, 1)
        if bench.device.type == "cuda":
            FastDecoder.graphs = True
            try:
                found[f"engine_graphs_{n}"] = n * tokens / bench.seconds(ours, 1)
            finally:
                FastDecoder.graphs = False
    n = bench.size.batches[0]
    ids = torch.tensor([bench.codec.encode_prompt(bench.prompts[0])] * n, device=bench.device)

    def generate() -> None:
        asked = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": True, "top_k": 0}
        with torch.no_grad(), bench.base.precision():
            bench.lm.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **asked)

    found[f"generate_{n}"] = n * tokens / bench.seconds(generate, 1)
    return found


def continuous_batching(bench: Bench) -> dict[str, Any]:
    """Tokens a second of transformers' continuous batching."""
    n, tokens = bench.size.batches[-1], bench.size.response
    prompts = [bench.codec.encode_prompt(p) for p in bench.prompts[:n]]
    asked = transformers.GenerationConfig(
        max_new_tokens=tokens, do_sample=True, eos_token_id=-1, pad_token_id=0
    )

    def work() -> None:
        with torch.no_grad():
            bench.lm.generate_batch(inputs=prompts, generation_config=asked, progress_bar=False)

    return {f"tokens_per_second_{n}": n * tokens / bench.seconds(work, 1)}


def pass_price(bench: Bench) -> dict[str, Any]:
    """The price of one more forward pass, in tokens, and the passes over 512 rows with it and with a CPU's."""
    bench.base.measure_price()
    rng = random.Random(0)
    prompts = [rng.randint(bench.size.prompt // 4, bench.size.prompt) for _ in range(512)]
    responses = [rng.randint(1, bench.size.response) for _ in range(512)]
    passes = {
        price: len(list(micro_batches(prompts, responses, 32, range(512), price)))
        for price in (devices.ON_CPU.pass_price, bench.base.pass_price)
        if price is not None
    }
    return {"tokens": bench.base.pass_price, "passes_of_512_rows_by_price": passes}


def ppo_update(bench: Bench) -> dict[str, Any]:
    """Seconds of one PPO update by phase, after one that warms up, and the gaps of log-probabilities."""
    n = bench.size.batches[0]

    def score(rollout: Rollout) -> Scores:
        lengths = torch.tensor([float(sum(ids) % 7) for ids in rollout.response_ids], device=bench.device)
        return Scores(lengths, lengths[:, None], torch.zeros_like(lengths))

    ppo = PPO(
        policy=bench.policy(trainable=True),
        reference=bench.policy(trainable=False),
        value=None,
        codec=bench.codec,
        score=score,
        prompts=bench.prompts,
        config=PPOConfig(
            updates=2,
            batch_size=n,
            micro_batch=max(1, n // 4),
            epochs=2,
            advantage="rloo",
            samples_per_prompt=4,
        ),
        controller=AdaptiveKLController(coef=0.1, target=4.0, horizon=64),
        max_tokens=bench.size.response,
        learning_rate=1e-6,
        value_learning_rate=1e-6,
        seed=0,
    )
    *_, last = ppo.updates()
    shares = ppo.timing
    found = {"responses": n, "kl_at_the_start": float(last.values["kl"]), **shares}
    found["peak_gib"] = _peak(bench.device)
    return found


def planned_update(bench: Bench) -> dict[str, Any]:
    """The seconds that `burnish plan` computes for the phases of `ppo_update`, from the data sheet."""
    from burnish.commands.plan.devices import DEVICES, pace_on
    from burnish.commands.plan.memory_estimate import Lengths, Shapes
    from burnish.config.loading import load_config

    n, size = bench.size.batches[0], bench.size
    named = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "no GPU, so H100"
    sheet = next((sheet for sheet in DEVICES if sheet in named.lower().replace(" ", "")), None)
    if sheet is None:
        return {"skipped": f"there is no data sheet of {named} in burnish/commands/plan/devices.py"}
    with torch.device("meta"):
        lm = LlamaForCausalLM._from_config(size.config(), dtype=torch.float32)
    base = Backbone(lm, bench.layers)
    base.hold(bench.dtype, bench.device)
    config = load_config(
        None,
        [
            f"ppo.micro_batch={max(1, n // 4)}",
            f"ppo.batch_size={n}",
            "ppo.advantage=rloo",
            "ppo.samples_per_prompt=4",
        ],
    )
    lengths = Lengths(size.prompt, size.response, size.prompt, size.response)
    pace = pace_on(DEVICES[sheet], Shapes(base, config, bench.device), lengths, n)
    return {
        "sheet": sheet,
        "sampling_seconds": n * pace.sampling,
        "reading_seconds": n * pace.reading,
        "training_seconds": n * config.ppo.epochs * pace.policy,
    }


def sampling_gap(bench: Bench) -> dict[str, Any]:
    """Differences between sampled and recomputed log-probabilities, in nats a token."""
    policy = bench.policy(trainable=False)
    rollout = sample_rollout(
        policy,
        bench.codec,
        bench.prompts[: bench.size.batches[0]],
        max_tokens=bench.size.response,
        batch_size=bench.size.batches[0],
        seed=0,
        where=("gpu",),
    )
    sequences = Sequences.of(bench.base, rollout, 0)
    gaps = []
    with torch.no_grad():
        for _, batch in sequences.batches(8):
            again = token_logprobs(policy, batch)
            sampled = rollout.sample_logprobs[batch.rows, : again.shape[1]]
            gaps.append((again - sampled)[batch.response_mask].float())
    gap = torch.cat(gaps)
    return {
        "tokens": len(gap),
        "mean": float(gap.mean()),
        "mean_of_sizes": float(gap.abs().mean()),
        "quantile_999": float(gap.abs()[:100_000].quantile(0.999)),
        "largest": float(gap.abs().max()),
    }


def reward_pairs(bench: Bench) -> dict[str, Any]:
    """Pairs a second of one reward model, once the frozen activations are there."""
    n = bench.size.pairs
    answers = " one two three four five six seven eight" * (bench.size.response // 9)
    pairs = [Preference(p, answers, answers + " nine.") for p in (bench.prompts * n)[:n]]
    encoded = EncodedPairs(bench.base, bench.codec, pairs)
    _ = encoded.sequences.features
    model = new_reward_head(bench.base, 0, "m0", layers=bench.layers, dropout=0.0)
    config = RewardConfig(batch_size=8, micro_batch=16, bootstrap=False)

    def work() -> None:
        list(train_reward_model(model, encoded, config, learning_rate=1e-6, seed=0, member="m0"))

    return {"pairs_per_second": n / bench.seconds(work, 1), "peak_gib": _peak(bench.device)}


def load_peak(bench: Bench) -> dict[str, Any]:
    """Peak memory of loading the model from bfloat16 files, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        bench.lm.to(torch.bfloat16).save_pretrained(folder)
        bench.codec.tokenizer.save_pretrained(folder)
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        call = [sys.executable, __file__, "--load", folder, "--device", str(bench.device)]
        done = subprocess.run(call, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"files_gib": size / 2**30}


def _load(folder: str, device: str) -> None:
    load_model(ModelConfig(path=folder, device=device, dtype="bfloat16"), as_held=True)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"host_gib": resident, "device_gib": _peak(torch.device(device))}))


def gpu_tests(bench: Bench) -> dict[str, Any]:
    """`make test-gpu`, where pytest is installed."""
    call = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=False)
    return {"exit_code": done.returncode, "end": done.stdout[-1500:] or done.stderr[-1500:]}


def _peak(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


STEPS: list[Callable[[Bench], dict[str, Any]]] = [
    output_layer,
    sampling,
    sampling_gap,
    pass_price,
    ppo_update,
    planned_update,
    reward_pairs,
    load_peak,
    continuous_batching,
    gpu_tests,
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=540.0, help="no step starts after this time")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--only", help="steps by name, with commas")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        _load(args.load, args.device)
        return
    began, device = time.perf_counter(), torch.device(args.device)
    dtype = torch.bfloat16 if devices.has_fast_bfloat16(device) else torch.float32
    bench = Bench(SIZES[args.size], device, dtype)
    found: dict[str, Any] = {
        "size": args.size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": str(dtype),
        "steps": {},
    }
    for step in STEPS:
        name = step.__name__
        if args.only and name not in args.only.split(","):
            continue
        if time.perf_counter() - began > args.seconds:
            found["steps"][name] = {"skipped": f"{args.seconds:g} s are over"}
            continue
        start = time.perf_counter()
        try:
            result = step(bench)
        except Exception as error:  # noqa: BLE001 - recorded; the machine is lent, and other steps may work
            result = {
                "error": f"{type(error).__name__}: {error}"[:2000],
                "where": traceback.format_exc()[-3000:],
            }
        found["steps"][name] = result | {"step_seconds": time.perf_counter() - start}
        args.out.write_text(json.dumps(found, indent=1))
        print(name, json.dumps(found["steps"][name]), flush=True)
    args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
