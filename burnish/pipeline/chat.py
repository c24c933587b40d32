"""SFT and the champion answer the same prompts, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from burnish.checkpoints import read_json
from burnish.data.text import Unusable, parse_json, prompt_of
from burnish.errors import DataError, RunError
from burnish.evaluate.champion import BEST_OF
from burnish.models.artefacts import is_saved
from burnish.models.logprobs import Policy
from burnish.models.sampling import sample_rollout
from burnish.pipeline.order import Workplace, set_determinism
from burnish.pipeline.rounds import policy_folder
from burnish.records import Prompt, Rollout
from burnish.reward.ensemble import best_of
from burnish.reward.saved import load_ensemble
from burnish.runs import RunDirectory


def answers(
    path: Path, lines: Iterable[str], temperature: float | None, first: int = 0, against: str | None = None
) -> Iterator[dict[str, str]]:
    """For every line (a prompt, or messages as a JSON list) what each policy says: {"sft": ..., "ppo": ...}, SFT and
    the champion, or another one that SFT is held `against`; SFT alone when it is the champion; best of n as it was
    examined. Line, its number (from `first`) and seed decide the draws: the same line again gets another answer, the
    same session the same ones."""
    run = RunDirectory.open(path)
    if not (path / "evaluation.json").exists():
        raise RunError(f"{path} has no champion yet; carry it out to its end with `burnish run`")
    set_determinism(run.config)
    place = Workplace.alone(run)
    champion = against or read_json(path / "evaluation.json")["champion"]
    policies = {"sft": place.models.reference(temperature)}
    ensemble = None
    if champion.startswith(BEST_OF):
        policies[champion] = policies["sft"]
        ensemble = load_ensemble(place.models.base, path / "reward")
    elif champion != "sft" and is_saved(policy_folder(path, champion)):
        policies[champion] = place.models.saved_policy(policy_folder(path, champion))
        policies[champion].temperature = policies["sft"].temperature
    for number, line in enumerate(lines, first):
        prompt = parse(line)
        limit = place.models.config.max_prompt_tokens
        if len(place.models.codec.encode_prompt(prompt)) > limit:
            raise DataError(
                f"the prompt has more than model.max_prompt_tokens={limit} tokens; ask a shorter one"
            )

        def answer(policy: Policy, *where: str | int, prompt: Prompt = prompt) -> Rollout:
            return sample_rollout(
                policy,
                place.models.codec,
                [prompt],
                max_tokens=place.models.config.max_response_tokens,
                batch_size=1,
                seed=run.config.seed,
                where=("chat", *where),
            )

        said = {}
        for name, policy in policies.items():
            if ensemble is not None and name == champion:
                rounds = [answer(policy, name, number, k) for k in range(int(name.removeprefix(BEST_OF)))]
                reference = answer(policy, name, number, "reference") if ensemble.relative else None
                said[name] = best_of(ensemble, rounds, reference, place.models.codec.pad_id).texts[0]
            else:
                said[name] = answer(policy, name, number).texts[0]
        yield said


def parse(line: str) -> Prompt:
    """A prompt as text, or a dialogue as a JSON list of messages. Other text that begins with a bracket is text."""
    asked: Any = line.strip()
    if asked.startswith("["):
        try:
            found = parse_json(asked)
        except Unusable:
            found = None
        if isinstance(found, list) and found and all(isinstance(turn, dict) for turn in found):
            asked = found
    try:
        return prompt_of(asked)
    except Unusable as reason:
        raise DataError(
            f"the prompt cannot be read: {reason}; give text, or a JSON list of role and content"
        ) from None
