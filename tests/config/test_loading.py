"""Configuration: what is said wrongly is answered with the key, the rule and the next step."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import yaml

from burnish.config import RunConfig
from burnish.config.loading import (
    RENAMED,
    dump_yaml,
    forget_unknown,
    json_schema,
    known_keys,
    load_config,
)
from burnish.config.ppo import FunctionReward
from burnish.config.strict import Section
from burnish.config.template import template
from burnish.errors import ConfigError, RenamedKeyWarning
from burnish.runs.inputs import Inputs


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_overrides_and_numbers_as_people_write_them(tmp_path: Path) -> None:
    path = file(tmp_path, "ppo:\n  learning_rate: 1e-6\n")
    config = load_config(path, ["ppo.kl.target=3", "seed=4", "model.layers=top:2"])
    assert (config.ppo.learning_rate, config.ppo.kl.target, config.seed) == (1e-6, 3.0, 4)
    assert load_config(None, ["ppo.learning_rate=2.5E-5"]).ppo.learning_rate == 2.5e-5


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    assert load_config(file(tmp_path, "")) == load_config(None) == RunConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "ppo:\n  learning_rte: 1\n",
            r"unknown key ppo.learning_rte \(line 2\); did you mean ppo.learning_rate",
        ),
        ("kl_target: 3\n", "did you mean ppo.kl.target"),
        ("rewrad:\n  members: 3\n", "did you mean reward"),
        ("ppo:\n  updates: 1\n  updates: 2\n", r"'updates' occurs twice \(line 3\)"),
        ("ppo:\n  updates: many\n", "ppo.updates='many'"),
        (
            "ppo:\n  batch_size: 64\n  minibatches: 6\n",
            "ppo.minibatches=6 must divide ppo.batch_size=64; try",
        ),
        ("evaluate:\n  kl_prompts: 1\n", "evaluate.kl_prompts=1: .* greater than or equal to 2"),
        ("model:\n  layers: bottom\n", "use 'auto', 'all', 'lora', 'top:N'"),
        ("- a\n- b\n", "must map section names"),
        ("ppo: [\n", "line 2"),
    ],
)
def test_mistakes_are_answered(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(file(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    file(tmp_path, "")
    with pytest.raises(ConfigError, match=r"did you mean c\.yaml"):
        load_config(tmp_path / "cc.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"seed: 1\nname: caf\xe9\n")
    with pytest.raises(ConfigError, match="line 2: not UTF-8"):
        load_config(tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        load_config(None, ["ppo"])


@pytest.mark.parametrize("kind", ["rehearsal", "real"])
def test_the_template_runs_as_it_stands_and_names_every_key(tmp_path: Path, kind: str) -> None:
    text = template(kind)  # type: ignore[arg-type]
    loaded = load_config(file(tmp_path, text))
    assert loaded.name in ("rehearsal", "align")
    listed = yaml.safe_load(text.split("#\n", 1)[1].replace("# ", "", 1).replace("\n# ", "\n"))
    assert RunConfig.model_validate(listed) == RunConfig()
    for key in known_keys():
        assert key.split(".")[-1] in text


def sections(model: type[Section] = Section) -> list[type[Section]]:
    found = [c for c in model.__subclasses__() if c.__module__.startswith("burnish.")]
    return found + [inner for c in found for inner in sections(c)]


@pytest.mark.parametrize("section", sections(), ids=lambda c: c.__name__)
def test_every_key_says_its_meaning(section: type[Section]) -> None:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            assert inspect.getdoc(field.annotation), name
            continue
        said = field.description or ""
        assert len(said) > 10, f"{section.__name__}.{name} has no description"
        assert said.endswith((".", ")")), f"{section.__name__}.{name}: {said!r} is no sentence"
        assert max(len(s.split()) for s in re.split(r"[.;:] ", said)) <= 30, (
            f"{section.__name__}.{name}: long"
        )


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_key_is_read_under_both_names(tmp_path: Path, old: str, new: str) -> None:
    value = {"name": "grams", "max_unlabelled_share": 0.5, "acquisition": "bald", "tolerance": 0.1}.get(
        new, 8
    )
    value = {"previous_run": "runs/old", "regression_sets": [{"task": "arc"}]}.get(new, value)
    if old.startswith("ppo.rewards."):
        given = {"ppo": {"rewards": [{"function": "a:b", old.rpartition(".")[2]: value}]}}
        modern = {"ppo": {"rewards": [{"function": "a:b", new: value}]}}
    elif "_sets." in old:
        section, key, leaf = old.split(".")
        given = {section: {"guard_sets": [{"task": "arc", leaf: value}]}}
        modern = {section: {"regression_sets": [{"task": "arc", new: value}]}}
    else:
        section, leaf = old.split(".")
        given, modern = {section: {leaf: value}}, {section: {new: value}}
    with pytest.warns(RenamedKeyWarning, match=new):
        loaded = load_config(file(tmp_path, yaml.safe_dump(given)))
    assert loaded == load_config(file(tmp_path, yaml.safe_dump(modern)))
    assert forget_unknown(given) == forget_unknown(modern) == modern, "a run directory of an older version"


def test_a_renamed_key_is_refused_beside_its_new_name_and_warned_about(tmp_path: Path) -> None:
    given = file(tmp_path, "ppo:\n  answers: 2\n  samples_per_prompt: 4\n")
    with pytest.raises(ConfigError, match=r"ppo\.answers and ppo\.samples_per_prompt are two names"):
        load_config(given)
    old = file(tmp_path, "ppo:\n  answers: 2\n")
    with pytest.warns(RenamedKeyWarning):
        assert load_config(old, ["ppo.samples_per_prompt=4"]).ppo.samples_per_prompt == 4, "an override wins"
    with pytest.warns(RenamedKeyWarning, match=r"ppo\.answers is now ppo\.samples_per_prompt"):
        assert load_config(None, ["ppo.answers=2"]).ppo.samples_per_prompt == 2


def test_a_renamed_key_changes_no_stage() -> None:
    config = {
        "ppo.answers": 4,
        "ppo.kl.lead": 5.0,
        "ppo.rewards": [{"function": "a:b", "called": "x"}],
        "evaluate.guard_sets": [{"task": "arc", "tolerated": 0.1}],
    }
    old = Inputs.from_json({"config": config, "files": {"guard sets": "a"}, "code": "c"})
    now = {
        "ppo.samples_per_prompt": 4,
        "ppo.rewards": [{"function": "a:b", "name": "x"}],
        "evaluate.regression_sets": [{"task": "arc", "tolerance": 0.1}],
    }
    assert Inputs(now, {"regression sets": "a"}, "c").changes_since(old) == []
    changed = Inputs({**now, "ppo.samples_per_prompt": 8}, {"regression sets": "a"}, "c").changes_since(old)
    assert changed == ["ppo.samples_per_prompt 4 -> 8"]
    other = Inputs.from_json({"config": {**config, "ppo.kl.lead": 3.0}, "files": {}, "code": "c"})
    assert Inputs(now, {}, "c").changes_since(other) == ["ppo.kl.lead 3.0 -> 5.0"], "now a constant"


def test_terms_of_rewards_get_the_keys_of_later_versions_and_a_column_that_is_gone_is_a_change() -> None:
    old_term = {
        "function": "m:f",
        "url": None,
        "weight": 2.0,
        "name": None,
        "timeout": 120.0,
        "token_env": None,
    }
    now = FunctionReward(function="m:f", weight=2.0).model_dump(mode="json")
    old, new = (Inputs({"ppo.rewards": [term]}, {}, "c") for term in (old_term, now))
    assert new.changes_since(old) == []
    other = Inputs({"ppo.rewards": [now | {"weight": 3.0}]}, {}, "c")
    assert len(other.changes_since(old)) == 1
    some, none = Inputs({"data.columns.prompt": "q"}, {}, "c"), Inputs({"data.columns": {}}, {}, "c")
    assert none.changes_since(some) == ["data.columns.prompt q -> null"]
    assert some.changes_since(none) == ["data.columns.prompt None -> q"]


def test_a_key_that_became_a_constant(tmp_path: Path) -> None:
    assert load_config(file(tmp_path, "ppo:\n  adam_eps: 1e-5\n  kl: {lead: 5}\n")) == RunConfig()
    with pytest.raises(ConfigError, match=r"ppo\.kl\.lead=3: this is a constant \(5\.0\)"):
        load_config(None, ["ppo.kl.lead=3"])
    with pytest.raises(ConfigError, match=r"model\.trust_remote_code=True: this is a constant"):
        load_config(None, ["model.trust_remote_code=true"])
    assert forget_unknown({"ppo": {"adam_eps": 1e-8}}) == {"ppo": {}}, "older runs still open"


def test_dump_loads_back(tmp_path: Path) -> None:
    config = load_config(None, ["ppo.kl.target=2", "monitor.trackers=[]"])
    assert load_config(file(tmp_path, dump_yaml(config))) == config


def test_schema_knows_the_sections() -> None:
    assert {"ppo", "reward", "guard", "evaluate"} <= json_schema()["properties"].keys()


def test_a_rate_is_found_by_the_run_unless_it_is_given(tmp_path: Path) -> None:
    assert load_config(None).dpo.learning_rate == "auto"
    left_open = file(tmp_path, "sft:\n  learning_rate: null\nppo:\n  learning_rate: 0\n")
    config = load_config(left_open)
    assert (config.sft.learning_rate, config.ppo.learning_rate) == ("auto", 0.0)
    for wrong in ("dpo.learning_rate=0", "ppo.learning_rate=-1e-6", "reward.learning_rate=fast"):
        with pytest.raises(ConfigError, match=wrong.split("=")[0]):
            load_config(None, [wrong])
