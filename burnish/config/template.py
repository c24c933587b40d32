"""The configuration file that `burnish init` writes, generated from the sections."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from burnish.config.run import RunConfig

HEAD = {
    "rehearsal": """\
# A rehearsal: the embedded story model, simulated annotators, a known true preference.
# It runs as it stands: burnish run FILE
name: rehearsal
""",
    "real": """\
# A real model on real preference pairs. Set the two paths, then: burnish run FILE
name: align
model:
  path: embedded        # a folder or hub name with a causal language model
  layers: auto          # trained: the top fifth over a shared frozen rest; or top:N, lora, lora_top:N, all
data:
  prompts: preferences  # the prompts of the pairs
label:
  source: imported
  preferences: preferences.jsonl  # prompt, chosen, rejected: JSONL, JSONL.gz, Parquet or a datasets name
evaluate:
  examiner: reward_model
""",
}


def template(kind: Literal["rehearsal", "real"], head: str | None = None) -> str:
    """Return a configuration file: the keys of this kind (or `head`), then every key with its default as a comment."""
    lines = [
        head or HEAD[kind],
        "# Every key with its default (null: see docs/reference/configuration.md).",
        "#",
    ]
    lines += [f"# {line}".rstrip() for line in _section(RunConfig, "")]
    return "\n".join(lines) + "\n"


def _section(model: type[BaseModel], indent: str) -> list[str]:
    lines = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            note = (inspect.getdoc(annotation) or "").splitlines()[0]
            lines += [f"{indent}{name}:  # {note}", *_section(annotation, f"{indent}  ")]
        else:
            lines.append(f"{indent}{name}: {_scalar(field.get_default())}")
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    return yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()
