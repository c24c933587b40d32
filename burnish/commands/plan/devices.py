"""Devices that are not here: what their makers say of them, and what share of it training is assumed to get."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.commands.plan.memory_estimate import Lengths, Shapes
from burnish.models.sequences import PROMPTS_AT_ONCE
from burnish.pipeline.speed_estimate import Speed

PRODUCTS = 0.35  # of the stated products a second: forward and backward passes of transformers, no more tuned than ours
READING = 0.6  # of the stated bandwidth, where decoding reads all weights for every token
A_LAYER = 4e-4  # seconds that a layer's launches take in Python, whatever its size, forward
GRADIENTS = 0.7  # of the stated link, where gradients are added up and layers put together
BACKWARD = 2.0  # times a pass forward


@dataclass(frozen=True)
class Accelerator:
    """Bytes of memory; products and sums a second in bfloat16, and in float32 by its tensor cores (TF32 where it has
    it); bytes a second from memory, and to another of its node."""

    memory: float
    half: float
    single: float
    bandwidth: float
    link: float


DEVICES = {
    "a100": Accelerator(80e9, 312e12, 156e12, 2.0e12, 300e9),
    "h100": Accelerator(80e9, 989e12, 494e12, 3.35e12, 450e9),
    "h200": Accelerator(141e9, 989e12, 494e12, 4.8e12, 450e9),
    "l40s": Accelerator(48e9, 362e12, 183e12, 0.86e12, 32e9),
    "rtx4090": Accelerator(24e9, 165e12, 82e12, 1.0e12, 32e9),
}
"""NVIDIA's data sheets, dense products."""


def pace_on(
    device: Accelerator, shapes: Shapes, lengths: Lengths, slots: int, gathered: float = 0.0
) -> Speed:
    """Seconds a response of every kind of work, computed; `slots` are sampled side by side, and every pass through the
    frozen layers waits `gathered` seconds for them to be put together."""
    base = shapes.base
    depth, trained = base.depth, base.depth - base.cut
    body = sum(p.numel() for p in base.lm.base_model.parameters()) - shapes.embedding
    a_layer = body / depth  # weights
    held_half = base.dtype.itemsize == 2
    frozen_speed = PRODUCTS * (device.half if held_half else device.single)
    trained_speed = PRODUCTS * device.single
    tokens, said = lengths.mean, lengths.response
    head = 2 * shapes.vocabulary * base.hidden_size * said / trained_speed
    rows = min(slots, shapes.config.ppo.micro_batch)
    launches = A_LAYER / rows
    below = base.cut * (2 * a_layer * tokens / frozen_speed + launches)
    adapted = base.layers.startswith("lora")
    above = trained * (2 * a_layer * tokens / (frozen_speed if adapted else trained_speed) + launches)
    # The gradient by the weights is left out where they are frozen.
    back = (1.0 if adapted else BACKWARD) * above + head + (above if base.checkpointing else 0.0)
    step = (
        max(shapes.weights / (READING * device.bandwidth), slots * 2 * body / frozen_speed) + depth * A_LAYER
    )
    sampling = lengths.longest_response * (step + gathered) / slots
    if base.cut:
        below += gathered / PROMPTS_AT_ONCE
    else:  # there and back
        above, back = above + gathered / rows, back + gathered / rows
    reading = above + head
    return Speed(sampling, below, reading, reading + back, above + back - head)


def seconds_a_sum(device: Accelerator, shapes: Shapes, world: int) -> float:
    """To add up the gradients of a step over `world` devices: each sends and takes twice what is trained, by a ring."""
    sent = 2 * (world - 1) / world * 4 * (shapes.policy + shapes.value)
    return sent / (GRADIENTS * device.link) if world > 1 else 0.0


def seconds_a_gathering(device: Accelerator, shapes: Shapes, world: int) -> float:
    """To put together, one after the other, all layers that are cut over `world` devices."""
    if world == 1 or not shapes.config.scale.shard:
        return 0.0
    return (world - 1) / world * sum(shapes.blocks) / (GRADIENTS * device.link)
