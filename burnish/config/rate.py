"""A learning rate that is given, or found by the run itself."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field


def _auto(value: Any) -> Any:
    """What older files left open with `null`."""
    return "auto" if value is None else value


Rate = Annotated[Literal["auto"] | Annotated[float, Field(gt=0)], BeforeValidator(_auto)]
"""Above zero, or `auto`."""

PolicyRate = Annotated[Literal["auto"] | Annotated[float, Field(ge=0)], BeforeValidator(_auto)]
"""The same, or zero, which freezes a policy."""
