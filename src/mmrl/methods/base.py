"""The contract every method fulfils."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from mmrl.clip import AnyImages, ClassList, Clip
from mmrl.errors import UsageError
from mmrl.methods.authors import AuthorsFile, SavedAs, from_authors
from mmrl.methods.exchange import Differentiate, Gradients, Loss, MoreSteps, Rates, Task
from mmrl.methods.known import names_of, new_class
from mmrl.methods.options import MethodOptions, NoOptions
from mmrl.names import name_key
from mmrl.templates import fill

if TYPE_CHECKING:
    from typing_extensions import Self


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
        setup_options: options of training that count where nothing is trained by steps: those of random numbers, and of augmented views.
        recipe: published values of a method from outside the package: a JSON file of the format of `mmrl.recipes`, or its content.
        revision: of a method from outside, part of its results' keys, so that those of changed code are computed again; by default the
            hash of its plugin file, and nothing for a method of an installed package.
        eager: why its training steps cannot be recorded once and replayed (`compile=auto`); '' where nothing in them is decided in Python
            or read back from the device. A method from outside that does not say is not replayed.
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
    setup_options: ClassVar[tuple[str, ...]] = ("seed", "crop_scale")
    recipe: ClassVar[Path | Mapping[str, Any] | None] = None
    revision: ClassVar[str] = ""
    eager: ClassVar[str | None] = None
    authors_names: ClassVar[Mapping[str, str]] = {}
    saved_as: ClassVar[SavedAs | None] = None

    def __init__(self, clip: Clip, options: MethodOptions) -> None:
        super().__init__()
        if self.edits_layers:
            clip.require_staged(self.name, others=names_of(lambda cls: not cls.edits_layers))
        self.clip = clip
        self.options = options
        self.task: Task | None = None  # without features: those are the engine's, for the time of the call
        self._columns_of: tuple[Task | None, tuple[str, ...], Tensor] | None = None  # the latest answer of `trained_columns`

    # ---- what a method says of itself ----

    @classmethod
    def open_vocabulary(cls, options: MethodOptions) -> bool:
        """Whether it can classify among classes that it was not trained on."""
        return True

    @classmethod
    def trained_by(cls) -> Literal["steps", "closed form", "nothing"]:
        """How: by steps where it has a loss, else in closed form where it has a setup. Without steps, `setup_options` alone count."""
        if cls.loss is not Method.loss or cls.gradients is not Method.gradients:
            return "steps"
        return "nothing" if cls.setup is Method.setup else "closed form"

    @classmethod
    def can_select_as_authors(cls) -> bool:
        """Whether it has selection=authors."""
        field = cls.Options.model_fields.get("selection")
        return field is not None and "authors" in get_args(field.annotation)

    @property
    def sees_test_images(self) -> bool:
        """Whether it selects as its authors did, on test images among others, which flatters its scores: with selection=authors."""
        return self.can_select_as_authors() and getattr(self.options, "selection", None) == "authors"

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
    def two_classifiers(self) -> bool:
        """Whether classes that were trained on are scored by another classifier than new ones, so that `seen` decides a score."""
        return False

    @property
    def one_scale(self) -> bool:
        """Whether logits among a list with new classes are of the scale of those among the trained ones, so that a temperature which was
        fitted among these serves such a list, too."""
        return True

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
        tensors = from_authors(cls.name, cls.authors_names, file.tensors, optional=cls.saved_as.optional if cls.saved_as else ())
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

    def loss(self, images: AnyImages, labels: Tensor, classes: ClassList) -> Loss:
        """Training loss of images (B, 3, H, W), normalised, with labels (B,) among `classes`."""
        raise UsageError(f"method '{self.name}' has nothing to train; evaluate it, or train another method.")

    def gradients(self, images: AnyImages, labels: Tensor, classes: ClassList, differentiate: Differentiate) -> tuple[Loss, Gradients]:
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
        """After training: choose on validation images; on test ones with selection=authors alone."""

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
        kept, device = self._columns_of, self.clip.device
        if kept is not None and kept[0] is self.task and kept[1] == classes.names and kept[2].device == device:
            return kept[2]  # a GPU would be waited for in every step
        trained = {} if self.task is None else {name_key(name): i for i, name in enumerate(self.task.names)}
        new = [name for name in classes.names if name_key(name) not in trained]
        if new:
            raise new_class(self.name, self.task.names if self.task else (), new[0])
        with torch.inference_mode(False):  # used in training too
            columns = torch.tensor([trained[name_key(name)] for name in classes.names], device=device)
        self._columns_of = self.task, classes.names, columns
        return columns

    # ---- test ----

    @abstractmethod
    def head(self, classes: ClassList) -> Any:
        """What is computed once for a class list, such as class features. It holds until the parameters change; the caller owns it."""

    def logits(self, images: AnyImages, head: Any, seen: Tensor | bool) -> Tensor:
        """Logits (B, C), comparable over all classes, of images (B, 3, H, W): those of their frozen features, unless a method overrides it.

        Args:
            head: from `head`.
            seen: whether the classes were trained on: one answer, or one per class (C,), boolean.
        """
        return self.logits_of_features(self.clip.encode_image(images, normalise=False), head, seen)

    def logits_of_features(self, features: Tensor, head: Any, seen: Tensor | bool) -> Tensor:
        """As `logits`, of features (B, embed_dim) that the frozen image tower puts out, not normalised. For a `frozen_images` method."""
        raise NotImplementedError(f"method '{self.name}' has neither `logits` nor `logits_of_features`, or needs the images themselves.")

    def logits_each(self, images: AnyImages, asked: Sequence[tuple[Any, Tensor | bool]]) -> list[Tensor]:
        """`logits` of the same images for several pairs of head and `seen`. A method that can passes the images once."""
        return [self.logits(images, head, seen) for head, seen in asked]

    def logits_of_some(self, images: Tensor, asked: Sequence[tuple[Any, Tensor | bool, Sequence[int]]]) -> list[Tensor]:
        """`logits` (b, C) of some of the images (B, 3, H, W) for each head, `seen` and positions of images. A method that can passes all
        images together."""
        if not self.frozen_images:
            return [self.logits(images[list(at)], head, seen) for head, seen, at in asked]
        features = self.clip.encode_image(images, normalise=False)
        return [self.logits_of_features(features[list(at)], head, seen) for head, seen, at in asked]
