"""GDA: cases gda/fewshot_... and gda/base2new_... of its classifiers.

The authors' biases have the prior log(1/C) of C equally likely classes, which ours leave out: it is added before they are compared.

The pseudo-inverse of base-to-novel runs cuts at a share of the largest singular value that belongs to float32. Where the authors' code in
float64 cuts at another place, its numbers are of another classifier, and those in float32 are compared with. Rounding decides these where
the largest singular value is so many times the smallest kept that float32 knows them to no more than the tolerance: then the base
classes' rows and logits are left out, and counted, and what remains is compared: means, the mean covariance, the number of directions
that are kept, which alpha is selected, accuracies, and new classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmrl import methods
from mmrl.methods import Task
from mmrl.methods.frozen import unit
from mmrl.methods.gda import GDA, GaussianHead, moments
from tools.golden.features import FeatureClip
from tools.golden.judge import TOLERANCE, Error, Errors, Tensors, note, read_tensors, value

FEATURE_CASES = {"gda/": "gda"}
RENAMED = {"alpha": "start_alpha", "alpha_grid": "alpha_grid", "neighbours": "k_neighbours", "text_copies": "text_copies"}


def task_of(given: Tensors, names: tuple[str, ...], dtype: torch.dtype) -> Task:
    """What is in a case's in/, as the engine gives it."""

    def features(part: str, views: int = 0) -> tuple[Tensor, Tensor]:
        found = given[f"{part}_features"].to(dtype)
        return found if part == "train" else found.unsqueeze(0), given[f"{part}_labels"]

    return Task(names, "{}", len(given["train_labels"]), len(given["val_labels"]), features=features)  # type: ignore[arg-type]


def percent(logits: Tensor, labels: Tensor) -> Tensor:
    return 100 * (logits.argmax(-1) == labels).double().mean()


@dataclass
class Run:
    """A fitted method on the tensors of a case.

    Attributes:
        given: those of in/, in the precision of the run.
        golden: those of the authors' code, in the precision that is compared with.
        names: of base and new classes, by the prefix that their tensors have.
        new: whether it is a base-to-new case.
    """

    method: GDA
    given: Tensors
    golden: Tensors
    names: Mapping[str, tuple[str, ...]]
    new: bool
    errors: Errors = field(default_factory=dict)

    def head(self, kind: str) -> GaussianHead:
        return self.method.head(self.method.class_list(self.names[kind], "{}"))

    def classifier(self, group: str, kind: str, weight: str, bias: str, test: str, logits: str) -> None:
        """GaussianHead and logits of one list of classes."""
        head, prior = self.head(kind), -math.log(len(self.names[kind]))
        note(self.errors, group, head.rows.weight, self.golden[weight].T)
        note(self.errors, group, head.rows.bias + prior, self.golden[bias])
        found = self.method.logits(self.given[test], head, seen=kind == "")
        note(self.errors, group, found + float(self.method.alpha) * prior, self.golden[logits])

    def accuracies(self, test: float) -> None:
        """In percent: of every alpha on the validation images, and of the one selected on test images, which is `test`."""
        zero_shot, gaussian = self.method._compare(self.given["val_features"], self.head(""))
        found = [percent(zero_shot + alpha * gaussian, self.given["val_labels"]) for alpha in self.method.options.alpha_grid]
        note(self.errors, "accuracies", torch.stack(found), self.golden["val_acc_per_alpha"])
        logits = self.method.logits(self.given["test_features"], self.head(""), seen=True)
        note(self.errors, "accuracies", percent(logits, self.given["test_labels"]), test)

    def samples(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All views of the training images (n, d), normalised, and their labels (n,)."""
        views = self.given["train_features"]
        return unit(views).flatten(0, 1), self.given["train_labels"].repeat(len(views))

    def precision(self) -> torch.Tensor:
        """Inverse covariance (d, d) of the base classes."""
        samples, labels = self.samples()
        return self.method._fitted(samples, labels, len(self.names[""])).precision.to(samples)

    def covariance(self, kept: int | None) -> None:
        """Means and covariance of the base classes."""
        samples, labels = self.samples()
        counts = torch.bincount(labels)
        means, mean = moments(samples, labels, counts, 1 / (len(counts) * (counts - 1).double()))
        note(self.errors, "class means", means, self.golden["base_mus" if self.new else "mus"])
        if kept and "base_mean_cov" in self.golden:
            note(self.errors, "mean covariance", mean, self.golden["base_mean_cov"])
            found = torch.linalg.matrix_rank(self.precision().double(), rtol=1e-6)  # below the share of any cut, above rounding
            note(self.errors, "directions kept", found, float(kept))

    def rounding_decides(self, kept: int) -> bool:
        """Whether float32 knows the smallest direction that is kept to no more than the tolerance."""
        variances = torch.linalg.eigvalsh(self.golden["base_mean_cov"].double()).flip(0)
        return float(torch.finfo(torch.float32).eps * variances[0] / variances[kept - 1]) > TOLERANCE


def features(folder: Path, name: str, case: Mapping[str, Any], dtype: torch.dtype) -> Errors:
    """Errors of one case by group, from features in `dtype`."""
    tensors, prefix = read_tensors(folder / value(case, "file")), value(case, "prefix")
    hyper, numbers = value(case, "hyper_parameters"), value(case, "numbers")
    new, which = "k_neighbours" in hyper, "f64" if dtype == torch.float64 else "f32"
    ranks = {key: numbers[key].get("pinv_rank_kept") for key in ("f32", "f64")}
    other_cut = ranks["f32"] != ranks["f64"]
    if other_cut:
        which = "f32"
    given = Tensors({key: each.to(dtype) if each.is_floating_point() else each for key, each in tensors.behind(f"{prefix}in/").items()})
    text = {kind: given[f"{kind}text_features"] for kind in ("", "new_")}
    names = {kind: tuple(f"{kind}{i}" for i in range(len(rows))) for kind, rows in text.items()}
    clip = FeatureClip(text[""].shape[1], torch.cat([*text.values()]), names=[*names[""], *names["new_"]])
    options = {"augment_epoch": len(given["train_features"]), "covariance": "mean" if new else "shrunk"}
    options |= {own: tuple(hyper[theirs]) if own == "alpha_grid" else hyper[theirs] for own, theirs in RENAMED.items() if theirs in hyper}
    task = task_of(given, names[""], dtype)
    method = methods.build("gda", clip, options, task=task)  # type: ignore[arg-type]
    assert isinstance(method, GDA)
    method.finish(task)
    run = Run(method, given, Tensors(tensors.behind(f"{prefix}{which}/")), names, new)
    note(run.errors, "selected alpha", method.alpha, numbers[which]["alpha"])
    run.accuracies(numbers[which]["base_acc" if new else "test_acc"])
    run.covariance(ranks[which])
    if other_cut and run.rounding_decides(ranks[which]):
        run.errors["base classes"] = Error(left_out=sum(run.golden[key].numel() for key in ("W", "b", "base_test_logits")))
    else:
        run.classifier("base classes", "", "W", "b", "test_features", "base_test_logits" if new else "test_logits")
        if f"{'base_' * new}cov_inv" in run.golden:
            note(run.errors, "base classes", run.precision(), run.golden[f"{'base_' * new}cov_inv"])
    if new:
        run.classifier("new classes", "new_", "W_new", "b_new", "new_test_features", "new_test_logits")
    return run.errors
