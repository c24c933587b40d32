"""The instruction to be concise: PPO samples with it, but rewards and judges do not see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from burnish.errors import ConfigError, DataError
from burnish.models.load import Codec
from burnish.records import Message, Prompt, Rollout


def instructed(prompt: Prompt, instruction: str, codec: Codec) -> Prompt:
    """Return a prompt with the instruction in its system message, or before an untemplated text.

    It goes before the first user message if the chat template has no system role.
    """
    if not codec.templated(prompt):
        return Prompt(f"{instruction}\n\n{prompt.text}", prompt.messages)
    turns = prompt.messages or (Message("user", prompt.text),)
    if turns[0].role == "system":
        system, rest = f"{turns[0].content}\n\n{instruction}", turns[1:]
    else:
        system, rest = instruction, turns
    given = Prompt.from_messages([Message("system", system), *rest])
    try:
        codec.encode_prompt(given)
    except DataError:
        first = next(i for i, turn in enumerate(rest) if turn.role == "user")
        given = Prompt.from_messages(
            [
                *rest[:first],
                Message("user", f"{system}\n\n{rest[first].content}"),
                *rest[first + 1 :],
            ]
        )
    return given


@dataclass(frozen=True)
class Instructed:
    """Prompts with an instruction; `plain` removes it for reward models, watcher and examiner."""

    codec: Codec
    prompts: list[Prompt]
    known: dict[str, Prompt]  # prompts without the instruction, by the id of the prompt with it

    @classmethod
    def of(cls, prompts: Sequence[Prompt], instruction: str, codec: Codec, room: int | None) -> Instructed:
        """Add the instruction to prompts; raise ConfigError if one then has more than `room` tokens."""
        instructions = [instructed(p, instruction, codec) for p in prompts]
        longest = max(len(codec.encode_prompt(p)) for p in instructions)
        if room is not None and longest > room:
            raise ConfigError(
                f"ppo.concise makes a prompt of {longest} tokens, but the model has room for {room} before a response; "
                "shorten it, or lower model.max_prompt_tokens"
            )
        return cls(codec, instructions, {t.id: p for t, p in zip(instructions, prompts, strict=True)})

    def plain(self, rollout: Rollout) -> Rollout:
        """Return the same responses as answers to the prompts without the instruction."""
        prompts = [self.known[p.id] for p in rollout.prompts]
        ids = [self.codec.encode_prompt(p) for p in prompts]
        return replace(rollout, prompts=prompts, prompt_ids=ids, features={})
