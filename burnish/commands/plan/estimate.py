"""`burnish plan`: memory and time of a configuration before any weight is loaded.

The estimate is for one device or several. It says whether the run fits, and which settings would
make it fit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from burnish.commands.plan.devices import DEVICES, pace_on, seconds_a_gathering, seconds_a_sum
from burnish.commands.plan.memory_estimate import Lengths, Shapes, StageMemory, memory_of
from burnish.commands.plan.sketch import SketchedModels
from burnish.commands.plan.time_estimate import FALLBACK, Counts, Sharing, time_by_stage
from burnish.config import RunConfig
from burnish.config.checks import check_config
from burnish.config.model import ModelConfig
from burnish.models.backbone import Backbone
from burnish.models.load import find_device, find_dtype, resolve_path
from burnish.pipeline.context import Data, RunContext
from burnish.pipeline.speed_estimate import PROBE, Speed, measure
from burnish.records import Prompt
from burnish.runs.directory import RunDirectory, usable_cores

RESPONSE_SHARE = 0.5  # expected share of the longest allowed response, if there are no answers
LIBRARIES = 170 << 20  # bytes of libraries that stages load later (statistics, tables, plots)
SPARE = 0.9  # share of the free memory to use; the rest is for what is not counted
CONTEXT = 700 << 20  # bytes of a CUDA context and its libraries' workspace
SMALL = (1, 3)  # layers of the slices that are timed


@dataclass(frozen=True)
class Advice:
    """Settings that lower the peak, and its bytes with them and all earlier advice."""

    settings: str
    peak: int


@dataclass(frozen=True)
class Estimate:
    """Result of `burnish plan`; `seconds` is empty if time was not asked for."""

    device: str
    world: int
    free: int  # bytes, of each device
    memory: dict[str, StageMemory]
    seconds: dict[str, float]
    advice: list[Advice]
    assumed: list[str]

    @property
    def peak(self) -> int:
        """Bytes of the stage that needs the most memory."""
        return max(stage.peak for stage in self.memory.values())

    @property
    def largest(self) -> str:
        """Name of the stage that needs the most memory."""
        return max(self.memory, key=lambda name: self.memory[name].peak)

    @property
    def duration(self) -> float:
        """Seconds of all stages except a fallback."""
        return sum(seconds for name, seconds in self.seconds.items() if name != FALLBACK)

    @property
    def fits(self) -> bool:
        """True if the peak is within `SPARE` of the free memory."""
        return self.peak <= SPARE * self.free

    def as_json(self) -> dict[str, Any]:
        """Return the estimate as values that JSON can hold."""
        return {
            "device": self.device,
            "devices": self.world,
            "free": self.free,
            "peak": self.peak,
            "fits": self.fits,
            "memory": {
                name: {"peak": stage.peak, "held": stage.held, "passing": stage.passing}
                for name, stage in self.memory.items()
            },
            "seconds": self.seconds,
            "advice": [{"settings": a.settings, "peak": a.peak} for a in self.advice],
            "assumed": self.assumed,
        }


def look_ahead(
    config: RunConfig,
    *,
    device: str | None = None,
    world: int = 1,
    response_tokens: float | None = None,
    timed: bool = True,
) -> Estimate:
    """Estimate memory and time of a configuration on its own device, or on `world` devices.

    `device` is a key of `DEVICES`. Tokenizer and data are read. On the run's own device, time is
    measured on slices of the model with random weights.
    """
    check_config(config)
    torch.set_num_threads(config.threads or usable_cores())
    place_of = torch.device("cuda") if device is not None else find_device(config.model.device)
    with TemporaryDirectory() as room:
        run = RunDirectory.create_or_open(Path(room) / "plan", config)
        place = RunContext.alone(run)
        models = SketchedModels(config.model, None, config.ppo.temperature, device=place_of)
        data = replace(place.data, models=models)
        lengths, counts, assumed = _sizes(models, data, config, response_tokens)
        data.close()
    if config.ppo.update_seconds is not None:
        assumed.append(
            f"PPO's batch is {config.ppo.batch_size}; with ppo.update_seconds the run chooses its own"
        )
    program, free, libraries = CONTEXT, 0, 0
    if device is not None:
        free = int(DEVICES[device].memory)
    elif place_of.type == "cpu":
        libraries, own = LIBRARIES, psutil.Process().memory_info().rss
        program, free = own + libraries, (own + psutil.virtual_memory().available) // world
    else:
        free = torch.cuda.mem_get_info(place_of)[0]
    lm = models._loaded[0]

    def memory(changed: RunConfig) -> dict[str, StageMemory]:
        return memory_of(
            sketched(lm, changed, place_of, device),
            lengths,
            answers=counts.answers,
            asked=counts.asked,
            world=world,
            program=program,
            libraries=libraries,
            file=weights_file(config.model),
        )

    found = memory(config)
    seconds: dict[str, float] = {}
    if timed:
        shapes = sketched(lm, config, place_of, device)
        link = 0.0
        if device is None:
            pace = measured_pace(models, data, config, lengths)
        else:
            gathered = seconds_a_gathering(DEVICES[device], shapes, world)
            pace = pace_on(DEVICES[device], shapes, lengths, -(-config.ppo.batch_size // world), gathered)
            link = seconds_a_sum(DEVICES[device], shapes, world)
            assumed.append(
                "the time is computed, not measured: from the data sheet, by the shares in docs/guides/scale.md"
            )
        if world > 1:
            assumed.append("processes do not wait for one another")
            if config.scale.shard and device is None:
                assumed.append("gathering sharded layers takes no time")
        seconds = time_by_stage(pace, counts, config, Sharing(world, link))
    outlook = Estimate(device or str(place_of), world, free, found, seconds, [], assumed)
    if outlook.fits:
        return outlook
    return replace(outlook, advice=advise(config, memory, SPARE * free, several=world > 1))


def weights_file(model: ModelConfig) -> int:
    """Return the bytes of a model's weight files; 0 if they are not on this machine."""
    folder = Path(resolve_path(model.path))
    names = [model.gguf_file] if model.gguf_file else ["*.safetensors", "*.bin"]
    return sum(file.stat().st_size for name in names for file in folder.glob(name) if file.exists())


def sketched(lm: PreTrainedModel, config: RunConfig, device: torch.device, named: str | None) -> Shapes:
    """Return the shapes of a configuration, from a copy of `lm` on the meta device."""
    model = config.model
    base = Backbone(copy.deepcopy(lm), model.layers, model.lora, checkpointing=model.gradient_checkpointing)
    dtype = find_dtype(model.dtype, device, base.hidden_size)
    base.hold(torch.bfloat16 if named is not None and model.dtype == "auto" else dtype, device)
    return Shapes(base, config, device)


def _sizes(
    models: SketchedModels, data: Data, config: RunConfig, response_tokens: float | None
) -> tuple[Lengths, Counts, list[str]]:
    """Return prompt and response lengths, data counts, and a list of the assumptions."""
    codec, limits, assumed = models.codec, config.model, list[str]()
    train = data.splits.train
    some = train[:512]
    prompts = [len(codec.encode_prompt(p)) for p in some]
    answers: list[int] = []
    if data.label.preferences is not None:
        pairs = data.imported.pairs
        texts = {(p.prompt.id, text): p.prompt for p in pairs for text in (p.chosen, p.rejected)}
        answers = [len(codec.encode_response(t, to=p)) for (_, t), p in list(texts.items())[:512]]
        counts = Counts(len(pairs), len(texts), len({p.prompt.group for p in pairs}), len(train))
    else:
        n = config.collect.n_pairs
        counts = Counts(n, 2 * n, min(n, len(train)), len(train))
    if config.sft.demonstrations is not None:
        from burnish.data.preferences import read_demonstrations
        from burnish.data.text import Rejected

        demonstrations = read_demonstrations(config.sft.demonstrations, rejected=Rejected())
        counts = replace(counts, demonstrations=len(demonstrations))
    if response_tokens is not None:
        response = response_tokens
    elif answers:
        response = sum(answers) / len(answers)
        assumed.append(f"responses have {response:.0f} tokens, as the answers in {data.label.preferences}")
    else:
        response = RESPONSE_SHARE * limits.max_response_tokens
        assumed.append(f"responses have {response:.0f} tokens, half of the limit (--response-tokens)")
    longest = max(prompts)
    return (
        Lengths(sum(prompts) / len(prompts), response, longest, limits.max_response_tokens),
        counts,
        assumed,
    )


MEASURING = 20.0  # approximate seconds of the measurement
FIRST = 4  # responses that are measured first


def measured_pace(models: SketchedModels, data: Data, config: RunConfig, lengths: Lengths) -> Speed:
    """Measure the seconds a response, scaled to the expected lengths.

    Reward models that train other layers than the policy are timed on slices of their own.
    """
    prompts = data.splits.train[: max(PROBE, min(config.ppo.batch_size, 2 * PROBE))]
    whole = _timed(models, prompts, config)
    theirs = config.reward.layers
    if theirs not in (None, "auto", models.base.layers):
        whole = replace(whole, reward=_timed(models.training(theirs), prompts, config).reward)
    sampled = lengths.response / lengths.longest_response  # random weights seldom end a response
    read = lengths.mean / (lengths.prompt + lengths.longest_response)
    return whole.scaled(sampled, read)


def _timed(models: SketchedModels, prompts: Sequence[Prompt], config: RunConfig) -> Speed:
    """Measure the seconds a response on slices with few layers, and extrapolate to all layers.

    Reward models are trained as the policy is. A layer of the model is assumed to add what a layer adds
    to the slices.
    """
    config = config.model_copy(update={"reward": config.reward.model_copy(update={"layers": None})})
    few, more = SMALL
    frozen, trained = models.base.cut, models.trained_layers
    shapes = [(few, few), (more, few), (few, more)] if frozen else [(0, few), (0, more)]
    found = []
    for shape in shapes:
        small = models.slice(*shape)
        began = perf_counter()
        measure(small, prompts[:FIRST], config)  # the first time is slower than the others
        each = (perf_counter() - began) / min(FIRST, len(prompts))
        found.append(measure(small, prompts[: max(FIRST, int(MEASURING / len(shapes) / each))], config))
    first = found[0]

    def grown(part: Callable[[Speed], float]) -> float:
        per_frozen = max(0.0, (part(found[1]) - part(first)) / (more - few)) if frozen else 0.0
        per_trained = max(0.0, (part(found[-1]) - part(first)) / (more - few))
        return part(first) + per_frozen * max(0, frozen - few) + per_trained * (trained - few)

    return Speed(
        grown(lambda p: p.sampling),
        grown(lambda p: p.features),
        grown(lambda p: p.reading),
        grown(lambda p: p.policy),
        grown(lambda p: p.reward),
    )


Change = tuple[str, Callable[[RunConfig], RunConfig | None]]


def advise(
    config: RunConfig,
    memory: Callable[[RunConfig], dict[str, StageMemory]],
    room: float,
    *,
    several: bool = False,
) -> list[Advice]:
    """Return settings that lower the peak, each on top of those before it, until it fits.

    Settings that lower it by less than 2 % are left out. Settings that cost only time come first, those
    that change what is trained last.
    """

    def peak(changed: RunConfig) -> int:
        return max(stage.peak for stage in memory(changed).values())

    now, lowest = config, peak(config)
    taken = list[Advice]()
    for settings in _ladder(config, several=several):
        if lowest <= room:
            break
        changed = _with(now, settings)
        after = peak(changed)
        if after < 0.98 * lowest:
            now, lowest = changed, after
            taken.append(Advice(" ".join(f"{k}={_told(v)}" for k, v in settings.items()), after))
    return taken


def _told(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _ladder(config: RunConfig, *, several: bool) -> list[dict[str, object]]:
    small = max(1, min(4, config.ppo.micro_batch))
    rows: dict[str, object] = {
        f"{s}.micro_batch": max(2, small) for s in ("ppo", "dpo", "reward", "sft", "distill")
    }
    fewer: list[dict[str, object]] = [{"ppo.advantage": "rloo", "ppo.samples_per_prompt": 4}]
    whole: list[dict[str, object]] = [{"model.layers": "top:2"}]
    cut: list[dict[str, object]] = [{"scale.shard": True}]
    smallest: list[dict[str, object]] = [{"ppo.batch_size": 16}]
    return [
        rows,
        {"evaluate.batch_size": 16, "collect.batch_size": 16},
        {"model.cache_gib": 0.5},
        {"model.dtype": "bfloat16"},
        {"model.gradient_checkpointing": True},
        *(cut if several and config.model.layers != "all" else []),
        *(fewer if config.ppo.batch_size % 4 == 0 else []),
        *([] if config.model.layers.startswith("lora") else whole),
        {"model.layers": "lora_top:2", "reward.layers": "lora_top:2", "ppo.value_init": "zero"},
        *(smallest if config.ppo.batch_size > 16 else []),
    ]


def _with(config: RunConfig, settings: dict[str, object]) -> RunConfig:
    """Return the configuration with these keys (`section.key`) set."""
    for key, value in settings.items():
        section, name = key.split(".")
        changed = getattr(config, section).model_copy(update={name: value})
        config = config.model_copy(update={section: changed})
    return config
