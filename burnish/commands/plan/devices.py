"""Data sheets of accelerators, and the share of them that training is assumed to reach."""

from __future__ import annotations

from dataclasses import dataclass

from burnish.commands.plan.memory_estimate import Lengths, Shapes
from burnish.models.sequences import PROMPTS_AT_ONCE
from burnish.pipeline.speed_estimate import Speed

PRODUCTS = 0.35  # share of the stated operations a second that untuned transformer passes reach
READING = 0.6  # share of the stated bandwidth in decoding, which reads all weights for every token
A_LAYER = 4e-4  # seconds of a layer's kernel launches from Python, forward, for any size
GRADIENTS = 0.7  # share of the stated link in adding up gradients and gathering layers
BACKWARD = 2.0  # times a forward pass


@dataclass(frozen=True)
class Accelerator:
    """Data sheet of a device.

    `memory`: bytes. `half`, `single`: products and sums a second in bfloat16, and in float32 by its
    tensor cores (TF32 if it has it). `bandwidth`: bytes a second from memory. `link`: bytes a second to
    another device of its node.
    """

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
    """Estimate the seconds per response of each operation from a device's data sheet.

    `slots` responses are sampled in parallel. Each pass through the frozen layers waits `gathered`
    seconds until sharded layers are gathered.
    """
    base = shapes.base
    depth, trained = base.depth, base.depth - base.cut
    body = sum(p.numel() for p in base.lm.base_model.parameters()) - shapes.embedding
    a_layer = body / depth  # weights
    held_half = base.dtype.itemsize == 2
    speed = PRODUCTS * (device.half if held_half else device.single)  # trained weights are cast
    tokens, said = lengths.mean, lengths.response
    head = 2 * shapes.vocabulary * base.hidden_size * said / speed
    rows = min(slots, shapes.config.ppo.micro_batch)
    launches = A_LAYER / rows
    below = base.cut * (2 * a_layer * tokens / speed + launches)
    adapted = base.layers.startswith("lora")
    above = trained * (2 * a_layer * tokens / speed + launches)
    # Frozen weights need no weight gradient.
    back = (1.0 if adapted else BACKWARD) * above + head + (above if base.checkpointing else 0.0)
    step = max(shapes.weights / (READING * device.bandwidth), slots * 2 * body / speed) + depth * A_LAYER
    sampling = lengths.longest_response * (step + gathered) / slots
    if base.cut:
        below += gathered / PROMPTS_AT_ONCE
    else:  # in the forward and the backward pass
        above, back = above + gathered / rows, back + gathered / rows
    reading = above + head
    return Speed(sampling, below, reading, reading + back, above + back - head)


def seconds_a_sum(device: Accelerator, shapes: Shapes, world: int) -> float:
    """Return the seconds to add up a step's gradients, in a ring of `world` devices."""
    sent = 2 * (world - 1) / world * 4 * (shapes.policy + shapes.value)
    return sent / (GRADIENTS * device.link) if world > 1 else 0.0


def seconds_a_gathering(device: Accelerator, shapes: Shapes, world: int) -> float:
    """Return the seconds to gather, one by one, all layers that are sharded over `world` devices."""
    if world == 1 or not shapes.config.scale.shard:
        return 0.0
    return (world - 1) / world * sum(shapes.blocks) / (GRADIENTS * device.link)
