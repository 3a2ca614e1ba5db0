"""How to train, whatever the method: `FitConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from mmrl.errors import UsageError, unknown
from mmrl.methods.options import Options, option_problem

# What has no effect on what comes out, so that a resumed run may change it.
WITHOUT_EFFECT = ("checkpoint_every", "compile", "log", "memory_gib", "views_gib", "views_disk_gib")


class FitConfig(Options):
    """Options of training; defaults are the authors' for base-to-novel runs.

    Raises:
        UsageError: unknown options (the nearest is named) and values out of range, all in one message.
    """

    model_config = ConfigDict(validate_default=True)

    epochs: int = Field(10, ge=1, le=100_000, description="passes over the training images")
    iterations: int | None = Field(None, ge=1, le=10**9, description="steps in all, instead of epochs; the last epoch may end early")
    batch_size: int = Field(4, ge=1, le=1_000_000, description="images a batch")
    drop_last: bool = Field(True, description="leave out the last incomplete batch of an epoch")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="adam has weight decay as an L2 penalty, adamw decoupled")
    lr: float = Field(1e-3, gt=0, description="learning rate after warm-up")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    eps: float = Field(1e-8, gt=0, le=1, description="of adam and adamw: added to the root of the second moment")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="how the learning rate goes on after warm-up")
    schedule_step: Literal["epoch", "step"] = Field("epoch", description="when the learning rate changes")
    final_lr: float = Field(0.0, ge=0, description="what the cosine falls to")
    warmup_epochs: int = Field(1, ge=0, description="first epochs, at the constant rate warmup_lr; fewer than epochs")
    warmup_lr: float = Field(1e-5, gt=0, description="learning rate of the warm-up epochs")
    crop_scale: tuple[float, float] = Field((0.5, 1.0), description="share of an image's area that a random crop of it has, from and to")
    pixels: Literal["exact", "fast"] = Field(
        "exact",
        description="how training images are cropped, flipped and resized: exact by Pillow, one by one, as in the published runs; fast by "
        "products of matrices on the device, a batch at once, with the same crops and flips",
    )  # fmt: skip
    views: int | None = Field(
        None, ge=1, le=100_000,
        description="augmented views of an image, shown in turn, one an epoch; what frozen layers make of a view is computed once. "
        "Default: a new one in every epoch",
    )  # fmt: skip
    views_gib: float = Field(2.0, ge=0, le=2**20, description="memory for what is kept of views, in GiB")
    views_disk_gib: float = Field(16.0, ge=0, le=2**20, description="room beyond it in a temporary file (of the output folder), in GiB")
    precision: Literal["fp32", "bf16", "fp16", "auto"] = Field(
        "fp32",
        description="of the frozen CLIP's arithmetic in training; trained tensors, and tests, are float32. fp16 needs a CUDA device; "
        "auto is bf16 where the device computes in it natively, else fp32",
    )
    text_precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32",
        description="of the states of class prompts between steps; half precision takes half of the memory, for long lists of classes",
    )
    compile: Literal["auto", "off"] = Field(
        "auto",
        description="auto: on a CUDA device a step is recorded once, as a CUDA graph, and replayed, where the method allows it; off: never",
    )
    accumulate: int = Field(1, ge=1, le=1_000_000, description="batches whose gradients are averaged before each step")
    seed: int = Field(1, ge=0, lt=2**63, description="decides initial values, order and augmentation")
    checkpoint_every: int | None = Field(None, ge=1, le=10**12, description="steps between checkpoints, besides the one after every epoch")
    log: Literal["tensorboard"] | None = Field(None, description="where else to log every step; tensorboard writes into the output folder")
    memory_gib: float | None = Field(
        None, gt=0, description="memory for the class prompts' activations, in GiB; default: half of what is free"
    )

    def __init__(self, **values: Any) -> None:
        problems = [str(unknown("training option", key, type(self).model_fields)) for key in values if key not in type(self).model_fields]
        try:
            super().__init__(**{key: value for key, value in values.items() if key in type(self).model_fields})
        except ValidationError as error:
            problems += [option_problem(problem) for problem in error.errors()]
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

    @field_validator("crop_scale")
    @classmethod
    def _is_a_share(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] <= 1:
            raise PydanticCustomError("crop", "Input should be two shares, 0 < from <= to <= 1, such as [0.08, 1.0]")
        return value

    def identity(self) -> dict[str, Any]:
        """The options that decide what comes out of a run. As many views as epochs are a new one in each, which is not mentioned, nor is
        what other options are by default."""
        usual = {"views": self.pool is None, "pixels": self.pixels == "exact", "text_precision": self.text_precision == "fp32"}
        left_out = (*WITHOUT_EFFECT, *(name for name, is_so in usual.items() if is_so))
        return {key: value for key, value in self.model_dump().items() if key not in left_out}

    @property
    def pool(self) -> int | None:
        """Views of an image that are shown again; None where every epoch has new ones."""
        return None if self.views is None or (self.iterations is None and self.views >= self.epochs) else self.views


def make_config(values: Mapping[str, Any] | FitConfig | None) -> FitConfig:
    """A validated configuration. Raises UsageError with all problems."""
    return values if isinstance(values, FitConfig) else FitConfig(**(values or {}))
