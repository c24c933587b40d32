"""Loading of configurations: YAML, `--set` overrides, renamed keys, and errors that name key, rule and next step."""

from __future__ import annotations

import copy
import difflib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from burnish.config.run import RunConfig
from burnish.config.strict import Section
from burnish.errors import ConfigError, RenamedKeyWarning

S = TypeVar("S", bound=Section)

RENAMED = {
    "collect.follows": "previous_run",
    "select.how": "acquisition",
    "label.missing_share": "max_unlabelled_share",
    "ppo.answers": "samples_per_prompt",
    "ppo.rewards.called": "name",
    "dpo.n": "samples_per_prompt",
    "dpo.prompts": "max_prompts",
    "distill.n": "samples_per_prompt",
    "distill.prompts": "max_prompts",
    "evaluate.guard_sets": "regression_sets",
    "evaluate.regression_sets.tolerated": "tolerance",
    "evaluate.people_each": "labels_per_pair",
}
"""Dotted keys of version 0.1.0 and their names in the same section now. The aliases go with the next version."""


class _Loader(yaml.SafeLoader):
    """Safe YAML loader that refuses duplicate keys, reads 1e-6 as a number and keeps line numbers of keys."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    result = _Located()
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node)
        if key in result:
            raise ConfigError(f"key {key!r} occurs twice (line {key_node.start_mark.line + 1}); keep one")
        result[key] = loader.construct_object(value_node, deep=True)
        result.lines[key] = key_node.start_mark.line + 1
    return result


class _Located(dict[str, Any]):
    """A mapping that knows the line of each key."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.lines: dict[str, int] = {}


def _float(loader: _Loader, node: yaml.ScalarNode) -> Any:
    return float(node.value)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_constructor("!number", _float)
# YAML 1.1 wants a dot in floats with an exponent; people write 1e-6.
_Loader.yaml_implicit_resolvers = {
    first: list(rules) for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_EXPONENT = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
for _first in "-+0123456789":
    _Loader.yaml_implicit_resolvers.setdefault(_first, []).insert(0, ("!number", _EXPONENT))


def load_config(path: Path | None, sets: Sequence[str] = ()) -> RunConfig:
    """Load the configuration in `path` (defaults without one), with `KEY=VALUE` overrides applied."""
    data: dict[str, Any] = {} if path is None else _read(path)
    renamed = rename_keys(data)
    renamed |= override(data, sets)
    if renamed:
        warnings.warn(
            f"{', '.join(f'{old} is now {new}' for old, new in renamed.items())}; the next version will not read "
            "the old names",
            RenamedKeyWarning,
            stacklevel=2,
        )
    _check_keys(data, RunConfig, "")
    return validated(RunConfig, data)


def override(data: dict[str, Any], sets: Sequence[str]) -> dict[str, str]:
    """Apply `KEY=VALUE` overrides in place; return the old and new dotted keys of renamed ones."""
    renamed: dict[str, str] = {}
    for item in sets:
        key, equals, text = item.partition("=")
        if key in RENAMED:
            renamed[key] = f"{key.rpartition('.')[0]}.{RENAMED[key]}"
            item = f"{renamed[key]}{equals}{text}"
        _apply(data, item)
    return renamed | rename_keys(data)


def with_sets(config: RunConfig, sets: Sequence[str]) -> RunConfig:
    """Return a configuration with `KEY=VALUE` overrides applied."""
    data = config.model_dump(mode="json")
    override(data, sets)
    _check_keys(data, RunConfig, "")
    return validated(RunConfig, data)


def validated(section: type[S], data: Mapping[str, Any]) -> S:
    """Build a configuration or a section from values; raise ConfigError that names what is wrong."""
    try:
        return section.model_validate(data)
    except ValidationError as error:
        raise ConfigError("; ".join(_problems(error, data))) from None


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], 3)
        hint = f"; did you mean {', '.join(near)}?" if near else "; `burnish init` writes one"
        raise ConfigError(f"{path} does not exist{hint}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ConfigError(f"{path}, line {line}: {error.problem or 'not YAML'}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}; it must map section names to settings")
    return data


def _apply(data: dict[str, Any], item: str) -> None:
    key, equals, text = item.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {item!r} is not KEY=VALUE; write e.g. --set ppo.learning_rate=1e-6")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        value = text
    *sections, leaf = key.split(".")
    place = data
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {item!r}: {section} is a value, not a section")
        place = inner
    place[leaf] = value


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def known_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of the configuration."""
    for name, field in model.model_fields.items():
        yield prefix + name
        inner = _section(field.annotation)
        if inner:
            yield from known_keys(inner, f"{prefix}{name}.")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys; lists and empty mappings are values."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return found


def rename_keys(data: dict[str, Any]) -> dict[str, str]:
    """Give renamed keys their new names in place. Return old and new dotted keys of those that were found.

    Raises ConfigError where a section has both names.
    """
    found: dict[str, str] = {}
    for old, new in RENAMED.items():
        *parents, leaf = old.split(".")
        for section in list(_sections(data, parents)):
            if leaf not in section:
                continue
            dotted = ".".join([*parents, new])
            if new in section:
                raise ConfigError(f"{old} and {dotted} are two names of one key; remove {old}")
            section[new] = section.pop(leaf)
            lines = getattr(section, "lines", {})
            if leaf in lines:
                lines[new] = lines.pop(leaf)
            found[old] = dotted
    return found


def current_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a flat configuration (dotted keys) with the names of this version, inside lists too."""
    tree: dict[str, Any] = {}
    for dotted, value in config.items():
        *parents, leaf = dotted.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = copy.deepcopy(value)
    rename_keys(tree)
    return flat(tree)


def constants(model: type[BaseModel] = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Return the dotted keys that older versions had and that are constants now, with their values."""
    found = {
        f"{prefix}{name}": getattr(model, name)
        for name in model.__class_vars__
        if isinstance(getattr(model, name, None), bool | int | float)
    }
    for name, field in model.model_fields.items():
        inner = _section(field.annotation)
        found |= constants(inner, f"{prefix}{name}.") if inner else {}
    return found


def _sections(node: Any, parents: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the mappings at a dotted place; a list on the way stands for all its elements."""
    if isinstance(node, list):
        for item in node:
            yield from _sections(item, parents)
    elif isinstance(node, dict) and parents:
        yield from _sections(node.get(parents[0]), parents[1:])
    elif isinstance(node, dict):
        yield node


def _check_keys(data: dict[str, Any], model: type[BaseModel], prefix: str) -> None:
    """Raise ConfigError for unknown keys. Remove keys that older versions had and that have their constant value."""
    for key, value in list(data.items()):
        dotted = f"{prefix}{key}"
        if key in model.__class_vars__ and isinstance(getattr(model, key), bool | int | float):
            constant = getattr(model, key)
            if value != constant:
                raise ConfigError(
                    f"{dotted}={value!r}: this is a constant ({constant!r}) that cannot be set; remove the key"
                )
            del data[key]
            continue
        if key not in model.model_fields:
            line = getattr(data, "lines", {}).get(key)
            where = f" (line {line})" if line else ""
            near = _nearest(str(key), dotted, prefix)
            hint = f"; did you mean {near}?" if near else "; `burnish schema` lists the keys"
            raise ConfigError(f"unknown key {dotted}{where}{hint}")
        inner = _section(model.model_fields[key].annotation)
        if inner and isinstance(value, dict):
            _check_keys(value, inner, f"{dotted}.")


def forget_unknown(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys this version knows, of a configuration that another version may have written.

    Renamed keys get their new names.
    """
    own = copy.deepcopy(dict(data))
    rename_keys(own)
    return _known(own, RunConfig)


def _known(data: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for key, value in data.items():
        if key in model.model_fields:
            inner = _section(model.model_fields[key].annotation)
            known[key] = _known(value, inner) if inner and isinstance(value, Mapping) else value
    return known


def _nearest(key: str, dotted: str, prefix: str) -> str | None:
    """Return the known key most like this one, from its own section first, by name or by its parts."""
    keys = list(known_keys())
    own = [k for k in keys if k.startswith(prefix) and "." not in k[len(prefix) :]]
    near = difflib.get_close_matches(dotted, own, 1, cutoff=0.7)
    parts = set(key.split("_"))
    inside = [
        k
        for k in keys
        if k.startswith(prefix) and parts == set(k[len(prefix) :].replace(".", "_").split("_"))
    ]
    same = [k for k in keys if k.rsplit(".", 1)[-1] == key]
    loose = difflib.get_close_matches(dotted, keys, 1, cutoff=0.6)
    for found in (near, inside, same, loose):
        if found:
            return found[0]
    return None


def _problems(error: ValidationError, data: Mapping[str, Any]) -> list[str]:
    lines = []
    for problem in error.errors():
        dotted = ".".join(str(p) for p in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if isinstance(problem.get("input"), Mapping) or not dotted:
            lines.append(message if not dotted else f"{dotted}: {message}")
        else:
            lines.append(f"{dotted}={problem.get('input')!r}: {message[0].lower()}{message[1:]}")
    return lines


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration."""
    return RunConfig.model_json_schema()


def dump_yaml(config: RunConfig) -> str:
    """Return the whole configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
