"""`burnish plan`: memory and time of a run, estimated before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from burnish.environment import prepare_environment
from burnish.errors import ConfigError

if TYPE_CHECKING:
    from burnish.commands.plan.estimate import Estimate

GIB = 1 << 30


def plan(
    config: Annotated[
        Path | None, typer.Argument(help="YAML configuration; without one, the embedded rehearsal.")
    ] = None,
    sets: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. model.layers=lora."),
    ] = [],  # noqa: B006
    device: Annotated[
        str | None,
        typer.Option(
            help="A device that this machine lacks: a100, h100, h200, l40s, rtx4090. Default: the run's own."
        ),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="Number of devices that share the work.")] = 1,
    response_tokens: Annotated[
        float | None, typer.Option(min=1, help="Average tokens of a response, if you know the number.")
    ] = None,
    time: Annotated[bool, typer.Option("--time/--no-time", help="Estimate time too.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Estimate memory and time of a run by stage, before any weight is loaded.

    The estimate is for one device or several. It says whether the run fits, and which settings would
    make it fit.
    """
    from burnish.config.loading import load_config

    loaded = load_config(config, sets)
    prepare_environment()
    from burnish.commands.plan.devices import DEVICES
    from burnish.commands.plan.estimate import look_ahead

    if device is not None and device not in DEVICES:
        raise ConfigError(
            f"no device {device!r} is known; give one of {', '.join(DEVICES)}, or none for this one"
        )
    found = look_ahead(loaded, device=device, world=devices, response_tokens=response_tokens, timed=time)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        print("\n".join(estimate_lines(found)))


def estimate_lines(found: Estimate) -> list[str]:
    """Return the estimate as lines of text."""
    where = f"{found.device}, {found.free / GIB:.1f} GiB free" + (
        f" on each of {found.world}" if found.world > 1 else ""
    )
    lines = [where, ""]
    for name, stage in found.memory.items():
        parts = {**stage.held, f"{stage.largest}, for a while": stage.passing[stage.largest]}
        largest = sorted(parts.items(), key=lambda part: -part[1])[:3]
        why = ", ".join(f"{what} {size / GIB:.2f}" for what, size in largest)
        lines.append(f"{name:<20}{stage.peak / GIB:>8.2f} GiB   {why}")
    lines += ["", f"peak {found.peak / GIB:.2f} GiB: {'fits' if found.fits else 'does not fit'}"]
    lines += [f"  with {a.settings}: {a.peak / GIB:.2f} GiB" for a in found.advice]
    if not found.fits and not found.advice:
        lines.append("  no setting makes it smaller: take a larger device or a smaller model")
    if found.seconds:
        lines.append("")
        lines += [f"{name:<44}{_duration(seconds):>10}" for name, seconds in found.seconds.items()]
        lines.append(f"{'all of it':<44}{_duration(found.duration):>10}")
    return [*lines, *([""] if found.assumed else []), *(f"assumed: {text}" for text in found.assumed)]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
