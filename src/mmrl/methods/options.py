"""Options: frozen, validated values, each described once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Options(BaseModel):
    """Frozen, validated values: no unknown names, no NaN or infinity, and no true or false where a number belongs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)  # a command needs few of the methods'

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name and cls.model_fields[info.field_name].annotation is not bool:
            raise PydanticCustomError("truth", "Input should be no true or false")
        return value


class MethodOptions(Options):
    """Options of a method, each described once (the command line's help is made of the descriptions)."""


class NoOptions(MethodOptions):
    """For a method without options."""


def option_problem(problem: Mapping[str, Any]) -> str:
    """One line for one of pydantic's errors: name, value, what is allowed."""
    where = ".".join(str(part) for part in problem["loc"]) or "options"
    return f"{where} is {problem.get('input')!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}."
