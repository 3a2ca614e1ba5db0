"""The contract every method fulfils."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrl.clip import ClassList, Clip
from mmrl.errors import UsageError
from mmrl.methods.options import MethodOptions, NoOptions
from mmrl.names import name_key
from mmrl.templates import Template, fill

if TYPE_CHECKING:
    from typing_extensions import Self

    from mmrl.methods.authors import AuthorsFile


class Loss(NamedTuple):
    """`total` to minimise, its named `terms` (scalars, before weighting), the training `logits` (B, C), and what `Method.stepped` is given
    of this batch, without gradient."""

    total: Tensor
    terms: dict[str, Tensor]
    logits: Tensor
    kept: Any = None


Gradients = list[Tensor | None]  # one for each trained parameter, in their order; None where the loss does not depend on it


class Differentiate(Protocol):
    """Gradients of a scalar in the trained parameters."""

    def __call__(self, total: Tensor, /, *, retain_graph: bool = False) -> Gradients:
        """Gradients of `total`.

        Args:
            retain_graph: whether another scalar of the same forward pass is differentiated afterwards.
        """
        ...


@dataclass(frozen=True)
class SavedAs:
    """How the authors' code saves a method's training, so that its checkpoints can be imported.

    Attributes:
        module: the part of their model that a checkpoint has alone, as 'prompt_learner'; names in the file do not begin with it.
        optional: our names of tensors that a checkpoint may lack, since options decide whether there are any.
        constant: names, or what they begin with, of tensors in the file that follow from the backbone and the class names.
        patterns: names in the file ({i}: one tensor a layer) where they are not those of `authors_names`; each is optional.
    """

    module: str = ""
    optional: frozenset[str] = frozenset()
    constant: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()


class MoreSteps(Protocol):
    """Steps that follow the one on a batch, with the same optimiser."""

    @property
    def rate(self) -> float:
        """Learning rate of the present step."""
        ...

    def gradients(self, total: Tensor, /) -> Gradients:
        """Gradients of a scalar in the trained parameters, averaged over the processes. In fp16, all None where one is not finite."""
        ...

    def update(self, gradients: Gradients, /) -> None:
        """One more step of the optimiser; a parameter whose gradient is None stays as it is."""
        ...


class FeatureSource(Protocol):
    """Passes of the frozen image tower over the images of a task."""

    def __call__(self, part: Literal["train", "val"], views: int = 0) -> tuple[Tensor, Tensor]:
        """Features (V, N, embed_dim), not normalised, and labels (N,), of every image of a part, none dropped.

        Args:
            views: number of augmented views of each image; 0 for one pass with the test transform.
        """
        ...


class Rates(Protocol):
    """What an optimiser needs to know of the training options."""

    @property
    def lr(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def eps(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


@dataclass(frozen=True)
class Task:
    """What a method is trained for, known before training. An adapter that is loaded has the same task, without features.

    Attributes:
        names: of the classes, C.
        template: prompt, or several.
        images: number of training images.
        validation: number of validation images.
        seed: of the run.
        features: passes over the images; None where an adapter is loaded.
    """

    names: tuple[str, ...]
    template: Template
    images: int = 0
    validation: int = 0
    seed: int = 0
    features: FeatureSource | None = None


class Method(nn.Module, ABC):
    """A way to adapt a frozen CLIP. Its parameters are exactly what is trained; CLIP itself is no part of them.

    The engine calls, in this order: `setup` once, then for every batch `gradients` (which calls `loss`), `stepped` after the step,
    `epoch_ended` after every epoch, and `finish` once. A method without parameters after `setup` is not trained by steps. At test, `head`
    is called once for a list of classes, and `logits` for every batch. Parameters and persistent buffers are what an adapter holds.

    A method that leaves the image tower as it is gives `logits_of_features` in place of `logits`: then a test set passes the tower once for
    all such methods.

    Args:
        clip: the frozen model; shared, never changed.
        options: validated options of this method.

    Attributes:
        name: in the registry, set by `register`.
        title: in tables; default: the name.
        published: the method's rows in the paper's tables, where it has other ones than its title.
        summary, source: one line each, for `mmrl methods`.
        edits_layers: whether it needs a backbone whose layers can be run one by one.
        whole_batch: whether its gradients are no mean over the images of a batch, so that processes cannot share one: each that trains
            with others takes all of it.
        recipe: published values of a method from outside the package: a JSON file of the format of `mmrl.recipes`, or its content.
        revision: of a method from outside, part of its results' keys, so that those of changed code are computed again; by default the
            hash of its plugin file, and nothing for a method of an installed package.
        authors_names: our names of tensors -> those of the authors' code ({i}: one tensor a layer).
        saved_as: how the authors' code saves it, where its checkpoints can be imported.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    published: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    Options: ClassVar[type[MethodOptions]] = NoOptions
    edits_layers: ClassVar[bool] = False
    whole_batch: ClassVar[bool] = False
    recipe: ClassVar[Path | Mapping[str, Any] | None] = None
    revision: ClassVar[str] = ""
    authors_names: ClassVar[Mapping[str, str]] = {}
    saved_as: ClassVar[SavedAs | None] = None

    def __init__(self, clip: Clip, options: MethodOptions) -> None:
        super().__init__()
        if self.edits_layers:
            clip.require_staged(self.name)
        self.clip = clip
        self.options = options
        self.task: Task | None = None  # without features: those are the engine's, for the time of the call

    # ---- what a method says of itself ----

    @classmethod
    def open_vocabulary(cls, options: MethodOptions) -> bool:
        """Whether it can classify among classes that it was not trained on."""
        return True

    @property
    def modality(self) -> str:
        """Towers that are trained, as in Table 6: 'V-L' both in one, 'V, L' apart, 'V', 'L', or '-' for none."""
        return "-"

    @property
    def frozen_images(self) -> bool:
        """Whether an image counts at test by the frozen tower's feature alone, so that `logits_of_features` can take the place of `logits`.
        True for a method that leaves `logits` as it is."""
        return type(self).logits is Method.logits

    @property
    def trainable(self) -> bool:
        return any(True for _ in self.parameters())

    @property
    def frozen_text_layers(self) -> int:
        """Number of text layers below the first that this method edits: what they put out is constant for a class list."""
        return 0

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied with: the backbone's own, 100 in OpenAI's models."""
        return self.clip.logit_scale

    @classmethod
    def options_of(cls, tensors: Mapping[str, Tensor], clip: Clip, *, where: str) -> dict[str, Any]:
        """Options that the sizes of trained tensors, from a checkpoint of the authors' code, decide. For a method with `saved_as`.

        Raises:
            UsageError: they are of no such checkpoint, or it was made with another backbone; `where` says whose they are.
        """
        return {}

    @classmethod
    def from_checkpoint(cls, file: AuthorsFile, clip: Clip) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """State dict, in float32, and the options that follow from it, of a checkpoint of the authors' code.

        Raises:
            UsageError: as `options_of`, or a tensor is missing.
        """
        from mmrl.methods.authors import from_authors

        tensors = from_authors(cls, file.tensors)
        return tensors, cls.options_of(tensors, clip, where=file.where)

    # ---- where tensors are ----

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

    # ---- training ----

    def setup(self, task: Task) -> None:
        """Make what depends on the task: parameters of a size that depends on the classes, closed forms, caches.

        Called once before training, and when an adapter is loaded: then `task.features` is None, and tensors need only have their shapes.
        A method that overrides it calls `super().setup(task)`.
        """
        self.task = replace(task, features=None)

    def loss(self, images: Tensor, labels: Tensor, classes: ClassList) -> Loss:
        """Training loss of images (B, 3, H, W), normalised, with labels (B,) among `classes`."""
        raise UsageError(f"method '{self.name}' has nothing to train; evaluate it, or train another method.")

    def gradients(self, images: Tensor, labels: Tensor, classes: ClassList, differentiate: Differentiate) -> tuple[Loss, Gradients]:
        """Loss and gradients of one batch; one backward pass of `loss`, unless a method overrides it.

        Args:
            differentiate: gradients of a scalar; averaged over the processes that train together, and in fp16 scaled.
        """
        loss = self.loss(images, labels, classes)
        return loss, differentiate(loss.total)

    def optimizer(self, parameters: Sequence[nn.Parameter], fit: Rates) -> torch.optim.Optimizer | None:
        """An optimiser of its own for its trained parameters, or None for the one that the training options name.

        The learning rate of every group follows the schedule, times the group's "lr_scale" if it has one.

        Args:
            fit: the training options (`mmrl.engine.FitConfig`).
        """
        return None

    def stepped(self, batches: Sequence[tuple[Any, Tensor]], classes: ClassList, steps: MoreSteps) -> None:
        """After the optimiser's step: more of them, on what the losses of its batches `kept`, and their labels (B,)."""

    def epoch_ended(self, epoch: int, epochs: int) -> None:
        """After the last step of `epoch` (from 1) of `epochs`."""

    def finish(self, task: Task) -> None:
        """After training: choose on validation images, never on test ones."""

    # ---- classes ----

    def texts(self, names: Sequence[str], template: str | Sequence[str]) -> list[str]:
        """The prompts of `names` that the text tower reads; learned context stands in some of their words' places."""
        return fill(template, names)

    def class_list(self, names: Sequence[str], template: str | Sequence[str], *, memory_gib: float | None = None) -> ClassList:
        """Everything constant about a class list. Make a new one to move to other classes. Several templates are averaged.

        Args:
            memory_gib: how much the prompts' activations may take in a training step, in GiB; None for no limit.

        Raises:
            UsageError: blank or repeated names, a bad template, a prompt over the context length, or a memory that is not above 0.
        """
        return self.clip.class_list(names, template, start=self.frozen_text_layers, memory_gib=memory_gib)

    def trained_columns(self, classes: ClassList) -> Tensor:
        """For a method with a closed vocabulary: position (C,) of each class among those trained on.

        Raises:
            UsageError: one is not among them.
        """
        trained = {} if self.task is None else {name_key(name): i for i, name in enumerate(self.task.names)}
        new = [name for name in classes.names if name_key(name) not in trained]
        if new:
            raise UsageError(
                f"method '{self.name}' knows only the {len(trained)} classes it was trained on, and '{new[0]}' is not one of them. "
                "Choose among those, or train a method with an open vocabulary (`mmrl methods` says which are)."
            )
        return torch.tensor([trained[name_key(name)] for name in classes.names], device=self.clip.device)

    # ---- test ----

    @abstractmethod
    def head(self, classes: ClassList) -> Any:
        """What is computed once for a class list, such as class features. It holds until the parameters change; the caller owns it."""

    def logits(self, images: Tensor, head: Any, seen: Tensor | bool) -> Tensor:
        """Logits (B, C), comparable over all classes, of images (B, 3, H, W): those of their frozen features, unless a method overrides it.

        Args:
            head: from `head`.
            seen: whether the classes were trained on: one answer, or one per class (C,), boolean.
        """
        return self.logits_of_features(self.clip.encode_image(images, normalise=False), head, seen)

    def logits_of_features(self, features: Tensor, head: Any, seen: Tensor | bool) -> Tensor:
        """As `logits`, of features (B, embed_dim) that the frozen image tower puts out, not normalised. For a `frozen_images` method."""
        raise NotImplementedError(f"method '{self.name}' has neither `logits` nor `logits_of_features`, or needs the images themselves.")


class ImageFeatures(NamedTuple):
    """Normalised image features (B, embed_dim): of the class token and, where a method has them, of the representation tokens."""

    class_token: Tensor
    representation: Tensor | None = None


class TwoTower(Method):
    """A method with one vector a class and one an image, compared by cosine. Its head are the class features."""

    @abstractmethod
    def text_features(self, classes: ClassList) -> Tensor:
        """Adapted class features (C, embed_dim), normalised."""

    @property
    def frozen_images(self) -> bool:
        """As in `Method`: True where both `image_features` and `logits` are left as they are."""
        return type(self).image_features is TwoTower.image_features and type(self).logits is TwoTower.logits

    def image_features(self, images: Tensor) -> ImageFeatures:
        """Image features of images (B, 3, H, W): `image_features_of` the frozen ones, unless a method adapts the image tower."""
        return self.image_features_of(self.clip.encode_image(images, normalise=False))

    def image_features_of(self, features: Tensor) -> ImageFeatures:
        """Image features of what the frozen tower puts out (B, embed_dim), without gradient and not normalised. A method that adapts
        features alone overrides this."""
        return ImageFeatures(F.normalize(features, dim=-1))

    def combine(self, images: ImageFeatures, text: Tensor, seen: Tensor | bool) -> Tensor:
        """Logits (B, C) from image features and class features (C, embed_dim); `seen` as in `logits`."""
        return cosine_logits(images.class_token, text, self.logit_scale)

    def loss(self, images: Tensor, labels: Tensor, classes: ClassList) -> Loss:
        """Cross-entropy, unless a method overrides it."""
        logits = self.combine(self.image_features(images), self.text_features(classes), seen=True)
        total = F.cross_entropy(logits, labels)
        return Loss(total, {"ce": total}, logits.detach())

    def head(self, classes: ClassList) -> Tensor:
        return self.text_features(classes)

    def logits(self, images: Tensor, head: Tensor, seen: Tensor | bool) -> Tensor:
        return self.combine(self.image_features(images), head, seen)

    def logits_of_features(self, features: Tensor, head: Tensor, seen: Tensor | bool) -> Tensor:
        return self.combine(self.image_features_of(features), head, seen)


def cosine_logits(image: Tensor, text: Tensor, scale: float) -> Tensor:
    """scale x cosine of normalised features (B, d) and (C, d), in float32 at least: half precision would round logits to a tenth."""
    dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
    with torch.autocast(image.device.type, enabled=False):
        return scale * image.to(dtype) @ text.to(dtype).T
