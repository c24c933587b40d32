"""Answers and scores of a run's models, for `burnish chat` and the web page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from burnish.commands.reward_explain import explain
from burnish.commands.reward_score import Scorer, score_texts
from burnish.data.text import Unusable, parse_json, prompt_of, text_of
from burnish.errors import BurnishError, DataError, RunError
from burnish.evaluation.champion import BEST_OF
from burnish.models.artefacts import is_saved
from burnish.models.generate import sample_rollout
from burnish.models.logprobs import Policy
from burnish.pipeline.context import RunContext
from burnish.pipeline.rounds import policy_folder
from burnish.pipeline.run import set_determinism
from burnish.records import Prompt, Rollout
from burnish.reward.ensemble import RewardEnsemble, best_of, load_ensemble
from burnish.runs.directory import RunDirectory
from burnish.runs.files import read_json


class Chat:
    """Policies of a run, loaded once: SFT, and the champion or the policy `against`.

    SFT is alone if it is the champion. Best of n samples as it was examined. Raises RunError for a run
    without a champion.
    """

    def __init__(self, path: Path, temperature: float | None, against: str | None = None) -> None:
        run = RunDirectory.open(path)
        if not (path / "evaluation.json").exists():
            raise RunError(f"{path} has no champion yet; finish it with `burnish run`")
        set_determinism(run.config)
        self.place = RunContext.alone(run)
        models = self.place.models
        self.champion = against or read_json(path / "evaluation.json")["champion"]
        self.policies = {"sft": models.reference(temperature)}
        self.ensemble: RewardEnsemble | None = None
        if self.champion.startswith(BEST_OF):
            self.policies[self.champion] = self.policies["sft"]
            self.ensemble = load_ensemble(models.base, path / "reward")
        elif self.champion != "sft" and is_saved(policy_folder(path, self.champion)):
            self.policies[self.champion] = models.saved_policy(policy_folder(path, self.champion))
            self.policies[self.champion].temperature = self.policies["sft"].temperature

    def say(self, line: str, number: int) -> dict[str, str]:
        """Return every policy's answer to a prompt: {"sft": ..., "ppo": ...}.

        The line is text, or messages as a JSON list. The line, its number and the seed decide the draws.
        """
        prompt, models = parse(line), self.place.models
        limit = models.config.max_prompt_tokens
        if len(models.codec.encode_prompt(prompt)) > limit:
            raise DataError(
                f"the prompt has more than model.max_prompt_tokens={limit} tokens; ask a shorter one"
            )

        def answer(policy: Policy, *where: str | int) -> Rollout:
            return sample_rollout(
                policy,
                models.codec,
                [prompt],
                max_tokens=models.config.max_response_tokens,
                batch_size=1,
                seed=self.place.config.seed,
                where=("chat", *where),
            )

        said = {}
        for name, policy in self.policies.items():
            ensemble = self.ensemble if name == self.champion else None
            if ensemble is None:
                said[name] = answer(policy, name, number).texts[0]
                continue
            samples = [answer(policy, name, number, k) for k in range(int(name.removeprefix(BEST_OF)))]
            reference = answer(policy, name, number, "reference") if ensemble.relative else None
            said[name] = best_of(ensemble, samples, reference, models.codec.pad_id).texts[0]
        return said


def answers(path: Path, lines: Iterable[str], temperature: float | None) -> Iterator[dict[str, str]]:
    """Yield every policy's answer to each line (`Chat.say`)."""
    chat = Chat(path, temperature)
    yield from (chat.say(line, number) for number, line in enumerate(lines))


def parse(line: str) -> Prompt:
    """Parse a prompt: text, or a dialogue as a JSON list of messages.

    Other text that begins with a bracket is text.
    """
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


def judged(path: Path, prompt: str, responses: Sequence[str]) -> dict[str, Any]:
    """Return the scores of every response with an explanation, or the reason why there is none."""
    asked = parse(prompt)
    try:
        rows = [(asked, text_of(response), True) for response in responses]
    except Unusable as reason:
        raise DataError(f"an answer cannot be read: {reason}") from None
    found = []
    for row, response in zip(score_texts(path, rows, scorer(path, stamp(path))), responses, strict=True):
        try:
            why: dict[str, Any] = asdict(explain(path, asked, response))
        except BurnishError as error:
            why = {"error": str(error)}
        found.append({**row, "response": response, "why": why})
    return {"answers": found}


def both(path: Path, line: str, number: int) -> dict[str, str]:
    """Return the answers of SFT and of the champion to a prompt.

    If SFT is the champion, the other is the candidate that came nearest to beating it. Another `number`
    draws other answers.
    """
    found = read_json(path / "evaluation.json")
    against = found["selected"] if found["champion"] == "sft" else found["champion"]
    return chat(path, against, stamp(path)).say(line, number)


def stamp(path: Path) -> float:
    """Return the latest modification time of a run's models, or 0 if there are none.

    A change shows that another run was started in the same folder.
    """
    files = [path / "reward" / "ensemble.json", path / "evaluation.json"]
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


@lru_cache(maxsize=1)
def scorer(path: Path, made: float) -> Scorer:
    """Load a run's reward models; the last loaded ones are cached."""
    return Scorer(path)


@lru_cache(maxsize=1)
def chat(path: Path, against: str, made: float) -> Chat:
    """Load a run's policies; the last loaded ones are cached."""
    return Chat(path, None, against)
