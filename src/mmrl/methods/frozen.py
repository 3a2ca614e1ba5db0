"""Frozen features: what the methods share that read an image and a class by them alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from mmrl.clip import ClassList
from mmrl.errors import UsageError
from mmrl.methods.base import Method
from mmrl.methods.linear import exact
from mmrl.methods.options import MethodOptions
from mmrl.templates import MOST_TEMPLATES, check_template

LOGIT_SCALE = 100.0  # as in the authors' code, whatever the backbone learned
VALUES = 2**24  # numbers that a pass over many rows holds at a time, so that memory does not grow with the images


class FrozenOptions(MethodOptions):
    """For a method whose class features may be of prompts of its own."""

    templates: tuple[str, ...] | None = Field(
        None, min_length=1, max_length=MOST_TEMPLATES, description="prompts whose features are averaged; null: the data set's own"
    )

    @field_validator("templates")
    @classmethod
    def _are_templates(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        try:
            value is None or check_template(value)
        except UsageError as error:
            raise PydanticCustomError("templates", "{said}", {"said": str(error).rstrip(".")}) from error
        return value


class FrozenFeatures(Method):
    """A method that compares frozen image features with frozen class features, at a logit scale of 100."""

    Options: ClassVar[type[MethodOptions]] = FrozenOptions
    options: FrozenOptions

    @property
    def logit_scale(self) -> float:
        return LOGIT_SCALE

    def class_list(self, names: Sequence[str], template: str | Sequence[str], *, memory_gib: float | None = None) -> ClassList:
        classes = super().class_list(names, template, memory_gib=memory_gib)
        if self.options.templates is None:
            return classes
        return replace(classes, teacher=self.clip.class_list(names, self.options.templates).zero_shot)


def unit(features: Tensor) -> Tensor:
    """Features (..., embed_dim) of length 1, in float32 at least."""
    return F.normalize(exact(features), dim=-1)
