"""Sections `label.judge` and `evaluate.judge`: an AI judge."""

from typing import Literal

from pydantic import Field, model_validator

from burnish.config.strict import Section


class JudgeConfig(Section):
    """A language model that compares two responses, asked in both orders."""

    model: str | None = Field(
        None, description="Name of the model at the endpoint, or the folder or hub name of a local model."
    )
    endpoint: str | None = Field(
        None, description="Base URL of an OpenAI-compatible API; null runs the model in this process."
    )
    api_key_env: str = Field(
        "OPENAI_API_KEY",
        description="Environment variable that holds the API key. It may be unset for a local server.",
    )
    gguf_file: str | None = Field(None, description="GGUF file inside the folder of a local model.")
    rubric: str | None = Field(
        None,
        description="File with the prompt template, which has {guidelines}, {prompt}, {first} and {second}; null: "
        "the package's own. Set it to tell the judge what counts in your task.",
    )
    verdict: Literal["log_odds", "votes"] = Field(
        "log_odds",
        description="log_odds reads the log-probabilities of the verdict's tokens; votes reads the answer alone. "
        "Use votes where the endpoint returns no log-probabilities.",
    )
    max_tokens: int = Field(8, ge=1, description="Tokens of the judge's answer at most.")
    concurrency: int = Field(8, ge=1, description="Requests in flight at once.")
    timeout: float = Field(60.0, gt=0, description="Seconds before a request counts as failed.")
    retries: int = Field(
        5, ge=0, description="Further tries of a failed request, with exponentially growing waits."
    )
    price_in: float = Field(0.0, ge=0, description="Dollars per million input tokens.")
    price_out: float = Field(0.0, ge=0, description="Dollars per million output tokens.")
    budget: float | None = Field(
        None,
        gt=0,
        description="Dollars the judge may cost in all; null: no limit. It needs price_in or price_out.",
    )

    @model_validator(mode="after")
    def _priced(self) -> "JudgeConfig":
        if self.budget is not None and not (self.price_in or self.price_out):
            raise ValueError(
                "judge.budget needs prices: set judge.price_in and judge.price_out, dollars for a million tokens"
            )
        return self
