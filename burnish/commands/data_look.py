"""`burnish data look`: what preference data were recognised as, the pairs that they give, and what is dropped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from burnish.config import RunConfig
from burnish.data.formats import FORMATS
from burnish.data.preferences import read_preferences
from burnish.data.text import printable
from burnish.errors import ConfigError
from burnish.models.load import Codec, load_model
from burnish.pipeline.context import misfit
from burnish.records import Preference

SHOWN = 10
LINE = 2000  # characters of a text that are shown


def look(source: str | None, config: RunConfig, split: str | None, *, with_model: bool) -> dict[str, Any]:
    """Read preference data as a run would; return formats, counts, reasons and the first pairs.

    `source` and `split` default to those of the configuration. With the model of the configuration, pairs
    that it cannot read are dropped as a run drops them, and texts are shown as it reads them.
    """
    source = source or config.label.preferences
    if source is None:
        raise ConfigError("there is nothing to look at: name a file, or set label.preferences")
    codec = load_model(config.model, weights=False)[1] if with_model else None
    limits = partial(misfit, codec, config.model) if codec is not None else None

    def unfit(pair: Preference) -> str | None:
        assert limits is not None
        return limits(pair.prompt, (pair.chosen, pair.chosen_ended), (pair.rejected, pair.rejected_ended))

    with TemporaryDirectory() as room:
        rejected = Path(room) / "rejected.jsonl"
        found = read_preferences(
            source,
            split=split or config.label.split,
            max_pairs=config.label.max_pairs,
            limit=1.0,
            rejected_to=rejected,
            misfit=None if limits is None else unfit,
            decided_by=config.data.decided_by,
            columns=config.data.columns,
        )
        notes = [json.loads(line) for line in rejected.read_text(encoding="utf-8").split("\n") if line]
    first = {note["reason"]: note["line"] for note in reversed(notes)}
    about = {f.name: f for f in FORMATS}
    lengths = [len(p.chosen) for p in found.pairs], [len(p.rejected) for p in found.pairs]
    return {
        "source": source,
        "formats": [
            {"name": name, "rows": rows, "about": about[name].about, "public": about[name].public}
            for name, rows in found.formats.most_common()
        ],
        "rows_or_pairs": found.rows,
        "pairs": len(found.pairs),
        "prompts": len({p.prompt.id for p in found.pairs}),
        "dropped": [
            {"reason": reason, "count": count, "first_line": first[reason]}
            for reason, count in found.rejected.most_common()
        ],
        "graded": sum(p.strength is not None for p in found.pairs),
        "cut_off": sum(not (p.chosen_ended and p.rejected_ended) for p in found.pairs),
        "characters": {"chosen": median(lengths[0]), "rejected": median(lengths[1])},
        "shown": [as_read(pair, codec) for pair in found.pairs[:SHOWN]],
    }


def as_read(pair: Preference, codec: Codec | None) -> dict[str, Any]:
    """Return a pair as the model reads it, with its special tokens; without a model, its texts."""
    if codec is None:
        texts = {"prompt": pair.prompt.text, "chosen": pair.chosen, "rejected": pair.rejected}
        return {**texts, "strength": pair.strength}

    def decoded(ids: list[int]) -> str:
        return str(codec.tokenizer.decode(ids))

    asked = codec.encode_prompt(pair.prompt)
    sides = {
        "chosen": codec.encode_response(pair.chosen, end=pair.chosen_ended, to=pair.prompt),
        "rejected": codec.encode_response(pair.rejected, end=pair.rejected_ended, to=pair.prompt),
    }
    return {
        "prompt": decoded(asked),
        **{name: decoded(ids) for name, ids in sides.items()},
        "strength": pair.strength,
        "tokens": {"prompt": len(asked), **{name: len(ids) for name, ids in sides.items()}},
    }


def as_text(found: Mapping[str, Any]) -> str:
    """Return the report as text."""
    lines = [f"{found['source']}"]
    for form in found["formats"]:
        public = f" As in {form['public']}." if form["public"] else ""
        lines.append(f"  {form['rows']} rows of the format {form['name']}: {form['about']}.{public}")
    lines.append(
        f"  {found['pairs']} pairs of {found['prompts']} prompts; median characters: chosen "
        f"{found['characters']['chosen']:g}, rejected {found['characters']['rejected']:g}"
    )
    if found["graded"]:
        lines.append(f"  {found['graded']} pairs have a grade (reward.margin uses it)")
    if found["cut_off"]:
        lines.append(f"  {found['cut_off']} pairs have a response that was cut off")
    lines += [
        f"  dropped {d['count']}: {d['reason']} (first: line {d['first_line']})" for d in found["dropped"]
    ]
    for number, pair in enumerate(found["shown"], 1):
        strength = f", strength {pair['strength']:.2f}" if pair["strength"] is not None else ""
        tokens = ", ".join(f"{name} {n}" for name, n in pair.get("tokens", {}).items())
        lines += ["", f"pair {number}{strength}{f' (tokens: {tokens})' if tokens else ''}"]
        for name in ("prompt", "chosen", "rejected"):
            text = printable(pair[name])
            more = f" ... ({len(text) - LINE} more characters)" if len(text) > LINE else ""
            lines.append(f"  {name}: {text[:LINE]!r}{more}")
    return "\n".join(lines)
