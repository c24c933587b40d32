"""`burnish plan`: memory and time of a configuration on a device, or on several of them, before any weight is loaded;
whether it fits, and which settings would make it."""

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

RESPONSE_SHARE = (
    0.5  # of the longest that is allowed: what responses are expected to have, where no answer is given
)
LIBRARIES = 170 << 20  # bytes that stages load of libraries, on their way (statistics, tables, plots)
SPARE = 0.9  # of the free memory; the rest is for what is not counted
CONTEXT = 700 << 20  # bytes that CUDA takes on a device, and its libraries' work space
SMALL = (1, 3)  # layers of the slices that are timed


@dataclass(frozen=True)
class Advice:
    """Settings that lower the peak, and the bytes it comes to with them and all before them."""

    settings: str
    peak: int


@dataclass(frozen=True)
class Estimate:
    """What `burnish plan` tells. `seconds` is empty where time was not asked for."""

    device: str
    world: int
    free: int  # bytes, of each device
    memory: dict[str, StageMemory]
    seconds: dict[str, float]
    advice: list[Advice]
    assumed: list[str]

    @property
    def peak(self) -> int:
        return max(stage.peak for stage in self.memory.values())

    @property
    def largest(self) -> str:
        """The stage that needs most."""
        return max(self.memory, key=lambda name: self.memory[name].peak)

    @property
    def duration(self) -> float:
        """Seconds of all stages, that of a fallback left out."""
        return sum(seconds for name, seconds in self.seconds.items() if name != FALLBACK)

    @property
    def fits(self) -> bool:
        return self.peak <= SPARE * self.free

    def as_json(self) -> dict[str, Any]:
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
    """The outlook of a configuration on the device it names, or on `world` of a kind in `DEVICES`. Reads tokenizer and
    data; the time on the device it names is measured on slices of the model with random weights."""
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
            f"PPO's batch is {config.ppo.batch_size}; ppo.update_seconds has it found when the run begins"
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
            assumed.append("the device gives the shares of its data sheet that docs/scale.md names")
        if world > 1:
            assumed.append("processes do not wait for one another")
            if config.scale.shard and device is None:
                assumed.append("layers that are cut over processes are put together in no time")
        seconds = time_by_stage(pace, counts, config, Sharing(world, link))
    outlook = Estimate(device or str(place_of), world, free, found, seconds, [], assumed)
    if outlook.fits:
        return outlook
    return replace(outlook, advice=advise(config, memory, SPARE * free, several=world > 1))


def weights_file(model: ModelConfig) -> int:
    """Bytes that the files of a model take; 0 where they are not here."""
    folder = Path(resolve_path(model.path))
    names = [model.gguf_file] if model.gguf_file else ["*.safetensors", "*.bin"]
    return sum(file.stat().st_size for name in names for file in folder.glob(name) if file.exists())


def sketched(lm: PreTrainedModel, config: RunConfig, device: torch.device, named: str | None) -> Shapes:
    """Shapes of a configuration, of a model on no device that stays as it is."""
    model = config.model
    base = Backbone(copy.deepcopy(lm), model.layers, model.lora, checkpointing=model.gradient_checkpointing)
    auto = torch.bfloat16 if named is not None else find_dtype(model.dtype, device)
    base.hold(auto if model.dtype == "auto" else find_dtype(model.dtype, device))
    return Shapes(base, config, device)


def _sizes(
    models: SketchedModels, data: Data, config: RunConfig, response_tokens: float | None
) -> tuple[Lengths, Counts, list[str]]:
    """How long prompts and responses are, how many of everything there are, and what of it is assumed."""
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
        assumed.append(f"responses have {response:.0f} tokens, half of what they may (--response-tokens)")
    longest = max(prompts)
    return (
        Lengths(sum(prompts) / len(prompts), response, longest, limits.max_response_tokens),
        counts,
        assumed,
    )


MEASURING = 20.0  # seconds that a machine is measured for, about
FIRST = 4  # responses that are measured first


def measured_pace(models: SketchedModels, data: Data, config: RunConfig, lengths: Lengths) -> Speed:
    """Seconds a response, for responses as long as they are said to be; of reward models that train other layers than
    the policy, by slices of their own."""
    prompts = data.splits.train[: max(PROBE, min(config.ppo.batch_size, 2 * PROBE))]
    whole = _timed(models, prompts, config)
    theirs = config.reward.layers
    if theirs not in (None, "auto", models.base.layers):
        whole = replace(whole, reward=_timed(models.training(theirs), prompts, config).reward)
    sampled = lengths.response / lengths.longest_response  # random weights seldom end a response
    read = lengths.mean / (lengths.prompt + lengths.longest_response)
    return whole.scaled(sampled, read)


def _timed(models: SketchedModels, prompts: Sequence[Prompt], config: RunConfig) -> Speed:
    """Seconds a response, from slices with few layers, reward models trained as the policy is: what a layer adds is
    what it adds to them."""
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
    """Settings that lower the peak, each on top of those before it, until it fits; those that lower nothing are left
    out. What costs only time comes first, what is trained last."""

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
    """The configuration with these keys, `section.key`, set."""
    for key, value in settings.items():
        section, name = key.split(".")
        changed = getattr(config, section).model_copy(update={name: value})
        config = config.model_copy(update={section: changed})
    return config
