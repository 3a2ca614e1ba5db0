"""How to train, whatever the method: `FitConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from mmrl.errors import UsageError, unknown
from mmrl.methods.base import Options, describe_problem

WITHOUT_EFFECT = ("checkpoint_every", "log", "memory_gib")  # on what comes out, so a resumed run may change them


class FitConfig(Options):
    """Options of training; defaults are the authors' for base-to-novel runs.

    Raises:
        UsageError: unknown options (the nearest is named) and values out of range, all in one message.
    """

    model_config = ConfigDict(validate_default=True)

    epochs: int = Field(10, ge=1, le=100_000, description="passes over the training images")
    batch_size: int = Field(4, ge=1, le=1_000_000, description="images a batch; the last incomplete batch of an epoch is left out")
    lr: float = Field(1e-3, gt=0, description="learning rate of AdamW after warm-up; falls along a cosine, once an epoch")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay of AdamW")
    warmup_epochs: int = Field(1, ge=0, description="first epochs, at the constant rate warmup_lr; fewer than epochs")
    warmup_lr: float = Field(1e-5, gt=0, description="learning rate of the warm-up epochs")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of the frozen CLIP's arithmetic; trained tensors are float32 always. fp16 needs a CUDA device"
    )
    accumulate: int = Field(1, ge=1, le=1_000_000, description="batches whose gradients are averaged before each step")
    seed: int = Field(1, ge=0, lt=2**63, description="decides initial values, order and augmentation")
    checkpoint_every: int | None = Field(None, ge=1, le=10**12, description="steps between checkpoints, besides the one after every epoch")
    log: Literal["tensorboard"] | None = Field(None, description="where else to log every step; tensorboard writes into the output folder")
    memory_gib: float | None = Field(None, gt=0, description="memory for activations of the class prompts, in GiB; default: no limit")

    def __init__(self, **values: Any) -> None:
        problems = [str(unknown("training option", key, type(self).model_fields)) for key in values if key not in type(self).model_fields]
        try:
            super().__init__(**{key: value for key, value in values.items() if key in type(self).model_fields})
        except ValidationError as error:
            problems += [describe_problem(problem) for problem in error.errors()]
        if problems:
            raise UsageError("\n".join(problems))

    @field_validator("warmup_epochs")
    @classmethod
    def _ends_before_training_does(cls, value: int, info: ValidationInfo) -> int:
        epochs = info.data.get("epochs")
        if epochs is not None and value >= epochs:
            raise PydanticCustomError(
                "warmup",
                "Input should be less than epochs ({epochs}), or all of the training is warm-up; give warmup_epochs={below} or more epochs",
                {"epochs": epochs, "below": epochs - 1},
            )
        return value

    def identity(self) -> dict[str, Any]:
        """The options that decide what comes out of a run."""
        return {key: value for key, value in self.model_dump().items() if key not in WITHOUT_EFFECT}


def make_config(values: Mapping[str, Any] | FitConfig | None) -> FitConfig:
    """A validated configuration. Raises UsageError with all problems."""
    return values if isinstance(values, FitConfig) else FitConfig(**(values or {}))
