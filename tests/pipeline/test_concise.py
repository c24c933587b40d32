"""An instruction that is sampled under and that no judge sees."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from burnish.config.model import ModelConfig
from burnish.errors import ConfigError
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.generate import sample_rollout
from burnish.models.load import Codec, load_model
from burnish.models.logprobs import make_policy
from burnish.pipeline.concise import Instructed, instructed
from burnish.records import Message, Prompt
from burnish.rehearse.grammar import prompts
from burnish.runs.directory import RunDirectory
from tests.small_run import run

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn here') }}{% endif %}" + TEMPLATE
)


def chat_codec(template: str) -> Codec:
    codec = load_model(ModelConfig())[1]
    codec.tokenizer.chat_template = template
    return replace(codec, use_chat_template=True)


def text(codec: Codec, prompt: Prompt) -> str:
    return str(codec.tokenizer.decode(codec.encode_prompt(prompt))).replace(" ", "")


def test_it_stands_in_the_system_turn_of_a_chat_template() -> None:
    codec = chat_codec(TEMPLATE)
    assert (
        text(codec, instructed(Prompt("Hello"), "Be brief.", codec))
        == "<system>Bebrief.<user>Hello<assistant>"
    )
    kept = Prompt.from_messages([Message("system", "Be kind."), Message("user", "Hello")])
    told = instructed(kept, "Be brief.", codec)
    assert [m.role for m in told.messages] == ["system", "user"]
    assert told.messages[0].content == "Be kind.\n\nBe brief."


def test_it_stands_before_the_users_words_where_the_template_knows_no_system() -> None:
    codec = chat_codec(NO_SYSTEM)
    told = instructed(Prompt("Hello"), "Be brief.", codec)
    assert [(m.role, m.content) for m in told.messages] == [("user", "Be brief.\n\nHello")]


def test_it_stands_before_a_plain_text() -> None:
    codec = load_model(ModelConfig())[1]
    assert instructed(Prompt("Hello"), "Be brief.", codec).text == "Be brief.\n\nHello"


def test_judges_read_the_same_answers_to_the_prompts_without_it() -> None:
    lm, codec = load_model(ModelConfig())
    base = Backbone(lm, "top:2")
    asked = prompts(6, 3)
    told = Instructed.of(asked, "Zoe was sad.", codec, 200)
    policy = make_policy(TrainableLayers(base, trainable=False), codec.pad_id)
    rollout = sample_rollout(policy, codec, told.prompts, max_tokens=12, batch_size=6, seed=0, where=("t",))
    plain = told.plain(rollout)
    assert [p.text for p in plain.prompts] == [p.text for p in asked]
    assert plain.prompt_ids == [codec.encode_prompt(p) for p in asked] != rollout.prompt_ids
    assert plain.response_ids == rollout.response_ids
    assert rollout.features
    assert not plain.features, "activations of the instructed prompts are not those of the plain ones"


def test_an_instruction_without_room_is_refused() -> None:
    codec = load_model(ModelConfig())[1]
    with pytest.raises(ConfigError, match=r"has room for 20 before a response; shorten it"):
        Instructed.of(prompts(3, 3), "Answer concisely. " * 9, codec, 20)


@pytest.mark.slow("modes")
@pytest.mark.e2e
def test_a_run_samples_under_it_and_decides_without(tmp_path: Path) -> None:
    run(tmp_path, "collect.n_pairs=96", "data.n_prompts=200", "ppo.concise='It was a short story.'")
    path = tmp_path / "r"
    rows = RunDirectory.open(path).read_rows("metrics/ppo.jsonl")
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4), "policy and reference are both instructed"
    samples = [
        json.loads(line)
        for f in sorted((path / "samples").glob("ppo-*"))
        for line in f.read_text().splitlines()
    ]
    assert samples
    assert not any("short story" in s["prompt"] for s in samples)
    evaluation = json.loads((path / "evaluation.json").read_text())
    assert {"sft_concise", "ppo", "ppo_concise"} <= evaluation["policies"].keys()
    assert evaluation["selected"] in ("ppo", "ppo_average", "ppo_best"), "the only candidates"
    assert evaluation["policies"]["ppo_concise"]["kl"] > 0
    assert "ppo_concise" in (path / "report.html").read_text()
