"""Linear probe: logistic regression on frozen image features (Radford et al., ICML 2021; few-shot form: Zhou et al., IJCV 2022)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from mmrl.clip import ClassList
from mmrl.errors import Notice
from mmrl.methods.base import Method
from mmrl.methods.exchange import Task
from mmrl.methods.linear import AS_AUTHORS, Rows, Selection, exact, require_images, say_unselected
from mmrl.methods.options import MethodOptions
from mmrl.methods.registry import register

TOLERANCE = 1e-4  # scikit-learn's default
FIRST_MEAN_LOSS = (1, 4)  # the first scikit-learn whose L-BFGS minimises the mean over the images, and no longer the sum

C = Annotated[float, Field(ge=1e-12, le=1e12)]


class LinearProbeOptions(MethodOptions):
    """Defaults are those of the few-shot probe of CoOp's authors; that of `c` is what CLIP's authors have in their example."""

    c: C = Field(0.316, description="C of scikit-learn, the inverse of the L2 penalty, where none is selected")
    c_grid: tuple[C, ...] = Field(
        (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6),
        min_length=1,
        max_length=100,
        description="values of C to select from; of those equally accurate the first",
    )
    c_search_steps: int = Field(8, ge=0, le=100, description="steps of the bisection around the best of them, on a logarithmic scale")
    max_iter: int = Field(1000, ge=1, le=1_000_000, description="most iterations of L-BFGS")
    selection: Selection = Field(
        "validation",
        description="where C comes from: the search, by accuracy on the validation images, or the option c as it is (fixed, and where "
        "there are no validation images), and none of them is fitted; " + AS_AUTHORS,
    )


class Fit(NamedTuple):
    """A fitted probe: its C, numpy's weights (C, embed_dim) and biases (C,), whether L-BFGS ended by itself, and how many validation
    images it has right."""

    c: float
    weight: Any
    bias: Any
    converged: bool
    correct: int


def search(fit: Callable[[float], Fit], values: Sequence[float], steps: int) -> Fit:
    """The first of `values` with the most right, then a bisection between a tenth and ten times it.

    Each step compares both ends, keeps the better (the lower where they are equal), and moves the other to the middle. The authors fit
    both ends in every step; one of them was fitted before. The best of `values` itself is no end, unless there are no steps.
    """
    best = max((fit(c) for c in values), key=lambda one: one.correct)  # max takes the first
    if not steps:
        return best
    low, high = fit(0.1 * best.c), fit(10 * best.c)
    for left in reversed(range(steps)):
        best = high if high.correct > low.correct else low
        if left:
            middle = fit(10 ** (0.5 * (math.log10(low.c) + math.log10(high.c))))
            low, high = (middle, high) if best is high else (low, middle)
    return best


def tolerance(images: int) -> float:
    """Largest gradient at which L-BFGS may stop, such that it is the same fit with every scikit-learn.

    Up to 1.3 it minimises the sum of the losses of all images, and since 1.4 their mean, whose gradient is `images` times smaller: the
    default of 1e-4 then ends the fit earlier, with other weights (by up to a half) and another C. Published numbers are of the sum.
    """
    import sklearn

    version = tuple(int(part) for part in sklearn.__version__.split(".")[:2])
    return TOLERANCE if version < FIRST_MEAN_LOSS else TOLERANCE / images


@register("linear-probe")
class LinearProbe(Method):
    """Multinomial logistic regression with an L2 penalty on the image features as they are: not normalised, not augmented; text is not
    used. C is searched on the validation images.

    Weights are in float32, or as exact as the features; they are fitted in float64.
    """

    title = "Linear probe"
    summary = "logistic regression on frozen image features"
    source = "Radford et al., ICML 2021"
    Options = LinearProbeOptions
    setup_options = ("seed",)  # no augmented views
    options: LinearProbeOptions
    weight: Tensor  # (C, embed_dim)
    bias: Tensor  # (C,)
    c: Tensor  # the one selected

    @classmethod
    def open_vocabulary(cls, options: MethodOptions) -> bool:
        return False

    def setup(self, task: Task) -> None:
        """Raises UsageError for fewer than two classes, or a class without a training image."""
        super().setup(task)
        if task.features is None:
            shape = len(task.names), self.clip.embed_dim
            self._hold(torch.zeros(shape), torch.zeros(shape[0]), torch.tensor(self.options.c))
            return
        train = task.features("train")
        require_images(self.name, task, train[1])
        choose = self.options.selection != "fixed" and task.validation > 0
        if self.options.selection != "fixed" and not choose:
            say_unselected(self.name, "C", f"takes that of its options: {self.options.c}")
        fitted = self._fitted(train, task.features("val") if choose else None)
        if not fitted.converged:
            said = f"the logistic regression of '{self.name}' was stopped after {self.options.max_iter:,} steps; raise max_iter."
            warnings.warn(said, Notice, stacklevel=2)
        self._hold(*(torch.as_tensor(each).to(exact(train[0])) for each in (fitted.weight, fitted.bias, fitted.c)))

    def _hold(self, weight: Tensor, bias: Tensor, c: Tensor) -> None:
        for name, value in (("weight", weight), ("bias", bias), ("c", c)):
            self.register_buffer(name, value)

    def _fitted(self, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor] | None) -> Fit:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        x, y = _numpy(*train)
        held_out = None if val is None else _numpy(*val)
        tol = tolerance(len(x))

        def fit(c: float) -> Fit:
            probe = LogisticRegression(C=c, tol=tol, max_iter=self.options.max_iter)
            with warnings.catch_warnings():  # of many fits that are only tried
                warnings.simplefilter("ignore", ConvergenceWarning)
                probe.fit(x, y)
            correct = 0 if held_out is None else int((probe.predict(held_out[0]) == held_out[1]).sum())
            weight, bias = probe.coef_, probe.intercept_
            if len(weight) == 1:  # of two classes it has the difference: sigmoid(z) is the softmax of -z/2 and z/2
                weight, bias = weight * [[-0.5], [0.5]], bias * [-0.5, 0.5]
            return Fit(c, weight, bias, int(probe.n_iter_.max()) < self.options.max_iter, correct)

        return fit(self.options.c) if held_out is None else search(fit, self.options.c_grid, self.options.c_search_steps)

    def head(self, classes: ClassList) -> Rows:
        """Raises UsageError if a class is not among those trained on."""
        columns = self.trained_columns(classes)
        return Rows(self.weight[columns], self.bias[columns])

    def logits_of_features(self, features: Tensor, head: Rows, seen: Tensor | bool) -> Tensor:
        return head.logits(features)


def _numpy(features: Tensor, labels: Tensor) -> tuple[Any, Any]:
    """Features (1, N, embed_dim) as (N, embed_dim) in float64, and labels (N,)."""
    return features[0].cpu().double().numpy(), labels.cpu().numpy()
