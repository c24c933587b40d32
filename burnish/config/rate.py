"""Types of learning rates, given or found by the run."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field


def _auto(value: Any) -> Any:
    """Return `auto` for null, which older files use."""
    return "auto" if value is None else value


Rate = Annotated[Literal["auto"] | Annotated[float, Field(gt=0)], BeforeValidator(_auto)]
"""A learning rate above zero, or `auto`."""

PolicyRate = Annotated[Literal["auto"] | Annotated[float, Field(ge=0)], BeforeValidator(_auto)]
"""A learning rate above zero, `auto`, or zero, which freezes the policy."""
