"""An AI judge: which model answers, at which endpoint, for how much money at most."""

from typing import Literal

from pydantic import Field, model_validator

from burnish.config.strict import Section


class JudgeConfig(Section):
    """A model that compares two answers, asked in both orders."""

    model: str | None = None  # its name at the endpoint, or the folder or hub name of a local one
    endpoint: str | None = None  # base URL of an OpenAI-compatible API; None: the model runs in this process
    api_key_env: str = (
        "OPENAI_API_KEY"  # environment variable that holds the key; may be unset for a local server
    )
    gguf_file: str | None = None  # of a local model
    rubric: str | None = (
        None  # template with {guidelines}, {prompt}, {first}, {second}; None: the package's own
    )
    # Log-odds of the verdict's tokens, where the endpoint gives log-probabilities; votes: one answer, no odds.
    verdict: Literal["log_odds", "votes"] = "log_odds"
    max_tokens: int = Field(8, ge=1)  # of an answer
    concurrency: int = Field(8, ge=1)
    timeout: float = Field(60.0, gt=0)  # seconds
    retries: int = Field(5, ge=0)  # of one question, with growing waits
    # Dollars for a million tokens, and dollars that may be spent in all; None: no limit.
    price_in: float = Field(0.0, ge=0)
    price_out: float = Field(0.0, ge=0)
    budget: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _priced(self) -> "JudgeConfig":
        if self.budget is not None and not (self.price_in or self.price_out):
            raise ValueError(
                "judge.budget needs prices: set judge.price_in and judge.price_out, dollars for a million tokens"
            )
        return self
