"""The contract every method fulfils."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from mmrl.clip import ClassList, Clip
from mmrl.errors import UsageError, unknown

if TYPE_CHECKING:
    from typing_extensions import Self


class Options(BaseModel):
    """Frozen, validated values: no unknown names, no NaN or infinity, and no true or false where a number belongs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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


class Loss(NamedTuple):
    """`total` to minimise, its named `terms` (scalars, before weighting) and the training `logits` (B, C)."""

    total: Tensor
    terms: dict[str, Tensor]
    logits: Tensor


class ImageFeatures(NamedTuple):
    """Normalised image features (B, embed_dim): of the class token and, where a method has them, of the representation tokens."""

    class_token: Tensor
    representation: Tensor | None = None


class Method(nn.Module, ABC):
    """A way to adapt a frozen CLIP. Its parameters are exactly what is trained; CLIP itself is no part of them.

    Args:
        clip: the frozen model; shared, never changed.
        options: validated options of this method.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    Options: ClassVar[type[MethodOptions]] = NoOptions
    edits_layers: ClassVar[bool] = False
    authors_names: ClassVar[Mapping[str, str]] = {}  # ours -> the authors' ({i}: one tensor a layer), where a checkpoint can be imported

    def __init__(self, clip: Clip, options: MethodOptions) -> None:
        super().__init__()
        if self.edits_layers:
            clip.require_staged(self.name)
        self.clip = clip
        self.options = options

    @property
    def trainable(self) -> bool:
        return any(True for _ in self.parameters())

    @property
    def frozen_text_layers(self) -> int:
        """Number of text layers below the first that this method edits: what they put out is constant for a class list."""
        return 0

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As `nn.Module.to`; a device is also that of the frozen CLIP, which other methods may share."""
        device, *_ = torch._C._nn._parse_to(*args, **kwargs)
        super().to(*args, **kwargs)
        if device is not None:
            self.clip.to(device)
        return self

    def cuda(self, device: int | torch.device | None = None) -> Self:
        """As `to`, on the present or the given GPU."""
        return self.to(torch.device("cuda") if device is None else torch.device("cuda", device) if isinstance(device, int) else device)

    def cpu(self) -> Self:
        """As `to`, in main memory."""
        return self.to(torch.device("cpu"))

    def class_list(self, names: Sequence[str], template: str | Sequence[str], *, memory_gib: float | None = None) -> ClassList:
        """Everything constant about a class list. Make a new one to move to other classes. Several templates are averaged.

        Args:
            memory_gib: how much the prompts' activations may take in a training step, in GiB; None for no limit.

        Raises:
            UsageError: blank or repeated names, a bad template, a prompt over the context length, or a memory that is not above 0.
        """
        return self.clip.class_list(names, template, start=self.frozen_text_layers, memory_gib=memory_gib)

    @abstractmethod
    def loss(self, images: Tensor, labels: Tensor, classes: ClassList) -> Loss:
        """Training loss of images (B, 3, H, W), normalised, with labels (B,) among `classes`."""

    @abstractmethod
    def text_features(self, classes: ClassList) -> Tensor:
        """Adapted class features (C, embed_dim), normalised. They hold until the parameters change; the caller owns them."""

    @abstractmethod
    def image_features(self, images: Tensor) -> ImageFeatures:
        """Adapted image features of images (B, 3, H, W)."""

    @abstractmethod
    def combine(self, images: ImageFeatures, text: Tensor, seen: Tensor | bool) -> Tensor:
        """Logits (B, C), comparable over all classes, from image features and class features (C, embed_dim).

        Args:
            seen: whether the classes were trained on: one answer, or one per class (C,), boolean.
        """

    def logits(self, images: Tensor, text: Tensor, seen: Tensor | bool) -> Tensor:
        """Logits (B, C) of images (B, 3, H, W); `text` from `text_features`, `seen` as in `combine`."""
        return self.combine(self.image_features(images), text, seen)


def cosine_logits(image: Tensor, text: Tensor, scale: float) -> Tensor:
    """scale x cosine of normalised features (B, d) and (C, d), in float32 at least: half precision would round logits to a tenth."""
    dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
    with torch.autocast(image.device.type, enabled=False):
        return scale * image.to(dtype) @ text.to(dtype).T


_REGISTRY: dict[str, type[Method]] = {}


def register(name: str) -> Any:
    """Class decorator that makes a method known under `name`.

    Raises:
        ValueError: the name is taken by another class.
    """

    def add(cls: type[Method]) -> type[Method]:
        if name in _REGISTRY and _REGISTRY[name] is not cls:
            raise ValueError(f"method '{name}' is registered already, by {_REGISTRY[name].__module__}.{_REGISTRY[name].__qualname__}")
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return add


def registered() -> dict[str, type[Method]]:
    return dict(_REGISTRY)


def get(name: str) -> type[Method]:
    """The method class called `name`. Raises UsageError with the nearest name if there is none."""
    if name not in _REGISTRY:
        raise unknown("method", name, _REGISTRY)
    return _REGISTRY[name]


def make_options(cls: type[Method], options: Mapping[str, Any] | MethodOptions | None) -> MethodOptions:
    """Validated options of `cls`; all problems are reported together.

    Raises:
        UsageError: an unknown option (the nearest is named) or a value out of range.
    """
    if isinstance(options, cls.Options):
        return options
    given = options.model_dump() if isinstance(options, MethodOptions) else dict(options or {})
    problems = [
        str(unknown(f"option of {cls.name}", key, cls.Options.model_fields)) for key in given if key not in cls.Options.model_fields
    ]
    try:
        made = cls.Options(**{k: v for k, v in given.items() if k in cls.Options.model_fields})
    except ValidationError as error:
        problems += [describe_problem(p) for p in error.errors()]
    if problems:
        raise UsageError("\n".join(problems))
    return made


def describe_problem(problem: Mapping[str, Any]) -> str:
    """One line for one of pydantic's errors: name, value, what is allowed."""
    where = ".".join(str(part) for part in problem["loc"]) or "options"
    return f"{where} is {problem.get('input')!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}."


def build(name: str, clip: Clip, options: Mapping[str, Any] | MethodOptions | None = None, *, seed: int | None = None) -> Method:
    """The method called `name` on `clip`, freshly initialised.

    Args:
        seed: of the initial values; None takes them from torch's generator as it stands.
    """
    cls = get(name)
    made = make_options(cls, options)
    if seed is None:
        return cls(clip, made).to(clip.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(clip, made).to(clip.device)
