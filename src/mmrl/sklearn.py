"""A classifier of images as an estimator of scikit-learn, for `cross_val_score`, `Pipeline`, `GridSearchCV`, `CalibratedClassifierCV`, ...

from mmrl.sklearn import MMRLClassifier

cross_val_score(MMRLClassifier(backbone="ViT-B-16-quickgelu/openai"), paths, labels, cv=5)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from mmrl import api
from mmrl.clip import Clip, load_clip
from mmrl.clip.device import AUTO
from mmrl.errors import UsageError
from mmrl.templates import Template

X_KINDS = "an array (n, H, W), (n, H, W, C) or (n, C, H, W), a list or column of paths or of images, or flattened images with image_shape"


class MMRLClassifier(ClassifierMixin, BaseEstimator):
    """Adapts a CLIP to the classes in y. All images given to `fit` train, and the options are those of `mmrl.fit`.

    X are images: an array (n, H, W), (n, H, W, C) or (n, C, H, W), as bytes or floats from 0 to 1; a list, array or column of paths, PIL
    images or arrays; or rows (n, d) of pixels where `image_shape` says of which shape. y are labels of any kind.

    Args:
        method: a name of `mmrl methods`.
        backbone: a name for `mmrl.load_clip`; `tiny`, the default, is for trying.
        class_names: what CLIP reads for each label, by label; default: the label as text, so let labels be names, as in "red panda".
        template: prompt with one `{}`, or several.
        options: of the method and of training, by name, such as `{"epochs": 20, "lr": 0.01}`.
        image_shape: of the images whose pixels are the rows of X: (H, W) or (H, W, C).
        random_state: decides the initial values, order and augmentation.
        device: auto (the best there is), cpu, cuda, cuda:1, ...

    Attributes:
        classes_: labels, in the order of the columns of `predict_proba`.
        classifier_: the `mmrl.Classifier`, which also classifies among other names and can be saved.
    """

    def __init__(
        self,
        method: str = api.What.method,
        *,
        backbone: str = "tiny",
        class_names: Mapping[Any, str] | None = None,
        template: Template | None = None,
        options: Mapping[str, Any] | None = None,
        image_shape: Sequence[int] | None = None,
        random_state: int = 1,
        device: str = AUTO,
    ) -> None:
        self.method = method
        self.backbone = backbone
        self.class_names = class_names
        self.template = template
        self.options = options
        self.image_shape = image_shape
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: ArrayLike) -> MMRLClassifier:
        """Train on all images.

        Raises:
            UsageError (a ValueError): X is no images, y of another length or of one class alone, or as `mmrl.fit`.
        """
        if y is None:
            raise UsageError("fit requires y to be passed, but the target y is None; it needs the label of each image.")
        labels = column_or_1d(y, warn=True)
        check_classification_targets(labels)
        images = self._images(X)
        if len(images) != len(labels):
            raise UsageError(f"X has {len(images)} images and y {len(labels)} labels; each image needs one.")
        classes = np.unique(labels)
        if len(classes) < 2:
            raise UsageError(f"y has one class, {classes.tolist()[0]!r}; a classifier needs at least two.")
        names = {label: self._name(label) for label in classes.tolist()}
        given = (images, [names[label] for label in labels.tolist()])
        clip = _backbone(self.backbone, self.device)
        self.classifier_ = api.fit(
            given, method=self.method, backbone=clip, seed=self.random_state, holdout=0, progress=False,
            template=self.template, overrides=dict(self.options or {}),
        )  # fmt: skip
        self.classes_ = classes
        self._names = list(names.values())
        return self

    def _name(self, label: Any) -> str:
        if self.class_names is None:
            return str(label)
        if label not in self.class_names:
            raise UsageError(f"class_names has no name for the label {label!r}; it has {', '.join(map(repr, self.class_names))}.")
        return self.class_names[label]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities (n, C), in the order of `classes_`."""
        check_is_fitted(self)
        found = self.classifier_.predict_proba(self._images(X), self._names).astype(np.float64)
        return found / found.sum(1, keepdims=True)

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable label of each image (n,)."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(1)]

    def _images(self, X: Any) -> list[Any]:
        """The images in `X`, one by one. Raises UsageError for what holds none."""
        if hasattr(X, "columns"):
            if len(X.columns) != 1:
                raise UsageError(f"X is a table of {len(X.columns)} columns; give the one with the images or their paths.")
            X = X[X.columns[0]]
        if not isinstance(X, Iterable) or isinstance(X, (str, bytes, Mapping)) or hasattr(X, "tocsr"):
            raise UsageError(f"X is a {type(X).__name__}; it must be {X_KINDS}.")
        dimensions = getattr(X, "ndim", 1)
        if dimensions == 2:
            X = self._rows(np.asarray(X))
        elif dimensions not in (1, 3, 4):
            raise UsageError(f"X has {dimensions} dimensions; it must be {X_KINDS}.")
        images = list(X)
        if not images:
            raise UsageError("X has no image: 0 sample(s), while a minimum of 1 is required.")
        return images

    def _rows(self, X: NDArray[Any]) -> NDArray[Any]:
        """The images whose pixels, or whose paths, are the rows of an array (n, d)."""
        if X.shape[1] == 1 and X.dtype.kind in "OUS":
            return X[:, 0]
        if self.image_shape is None:
            raise UsageError(f"X has shape {X.shape}; it must be {X_KINDS}.")
        if X.shape[1] != np.prod(self.image_shape):
            shape = tuple(self.image_shape)
            raise UsageError(f"X has {X.shape[1]} values a row, and image_shape {shape} {int(np.prod(shape))}.")
        return X.reshape(-1, *self.image_shape)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = self.image_shape is not None
        tags.input_tags.one_d_array = tags.input_tags.three_d_array = tags.input_tags.string = True
        return tags


@lru_cache(maxsize=1)
def _backbone(name: str, device: str) -> Clip:
    """The latest that was named: folds and searches fit many classifiers on one."""
    return load_clip(name, device=device)
