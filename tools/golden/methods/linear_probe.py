"""The linear probe: cases lpclip/... of its search and fits.

Scikit-learn's answer depends on its version; ours is that of versions before 1.4, so
it is compared with FILE_sklearn122.safetensors where the folder has it.

A run selects C by accuracies, and these may hang on where L-BFGS stops: at small C a fit is within its tolerance before the biases have
moved. A run is left out, and counted, where we select another C for that reason alone: our fits are within the authors' tolerance at each
C where an accuracy is not theirs, and our search selects their C when it is given their accuracies.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl import methods
from mmrl.clip import ClassList
from mmrl.methods import Task
from mmrl.methods.linear_probe import Fit, LinearProbe, LinearProbeOptions, search
from tools.golden.features import FeatureClip
from tools.golden.judge import Error, Errors, GoldenError, Tensors, note, read_tensors, value

FEATURE_CASES = {"lpclip/": "linear-probe"}
NAMES = {"c_grid": "first_C", "c_search_steps": "num_step", "max_iter": "max_iter"}
STOP = 1e-4  # largest gradient of penalty and sum of losses at which scikit-learn's fit may stop


@dataclass
class Run:
    """One draw of a case: its images, and the numbers of its 7 + 2 x 8 fits."""

    options: Mapping[str, Any]
    data: Mapping[str, Tensor]
    golden: Tensors

    def features(self, part: str, views: int = 0) -> tuple[Tensor, Tensor]:
        return self.data[f"{part}_features"].unsqueeze(0), self.data[f"{part}_labels"]

    @property
    def c(self) -> float:
        """The better end of the last round, the left one where they are equal."""
        (left, right), better = self.golden["C"][-2:].tolist(), self.golden["val_acc"][-1] > self.golden["val_acc"][-2]
        return right if better else left

    def fit(self, c: float | None = None) -> LinearProbe:
        """The probe with the C that it selects, or with a given one."""
        chosen = self.options if c is None else {**self.options, "selection": "fixed", "c": c}
        labels = self.data["train_labels"]
        names = tuple(f"class {i}" for i in range(int(labels.max()) + 1))
        task = Task(names, "{}", len(labels), len(self.data["val_labels"]), features=self.features)  # type: ignore[arg-type]
        clip = FeatureClip(self.data["train_features"].shape[1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            method = methods.build("linear-probe", clip, chosen, task=task)  # type: ignore[arg-type]
        assert isinstance(method, LinearProbe)
        return method

    def scores(self, method: LinearProbe, part: str) -> Tensor:
        """Logits of a part's images."""
        with torch.no_grad():
            names = method.task.names if method.task else ()
            return method.logits(self.data[f"{part}_features"], method.head(ClassList(names, torch.empty(0))), seen=True)

    def searched(self) -> float:
        """The C that our search selects, given the authors' accuracies."""
        known = {math.log10(c): accuracy for c, accuracy in zip(self.golden["C"].tolist(), self.golden["val_acc"].tolist())}

        def fit(c: float) -> Fit:
            nearest = min(known, key=lambda log: abs(log - math.log10(c)))
            if abs(nearest - math.log10(c)) > 1e-9:
                raise GoldenError(f"the search asks for C = {c}, which the authors' never fitted")
            return Fit(c, None, None, True, round(known[nearest] * len(self.data["val_labels"])))

        options = LinearProbe.Options(**self.options)
        assert isinstance(options, LinearProbeOptions)
        return search(fit, options.c_grid, options.c_search_steps).c

    def hangs_on_the_stop(self) -> bool:
        """Whether there are accuracies on the authors' path that are not ours, all of fits that end within the authors' tolerance."""
        differ = 0
        for c, accuracy in dict(zip(self.golden["C"].tolist(), self.golden["val_acc"].tolist())).items():
            method = self.fit(c)
            right = (self.scores(method, "val").argmax(-1) == self.data["val_labels"]).double().mean()
            if abs(float(right) - accuracy) > 1e-9:
                differ += 1
                weight, bias = (each.double().requires_grad_() for each in (method.weight, method.bias))
                scores = F.linear(self.data["train_features"].double(), weight, bias)
                loss = F.cross_entropy(scores, self.data["train_labels"], reduction="sum") + (weight**2).sum() / (2 * c)
                if max(float(each.abs().max()) for each in torch.autograd.grad(loss, [weight, bias])) > 1.01 * STOP:
                    return False
        return differ > 0


def features(folder: Path, name: str, case: Mapping[str, Any], dtype: torch.dtype) -> Errors:
    """Errors of one case by group, from features in `dtype`."""
    file, prefix = folder / value(case, "file"), value(case, "prefix")
    tensors = read_tensors(file)
    other = file.with_name(f"{file.stem}_sklearn122{file.suffix}")
    golden = read_tensors(other) if other.is_file() else tensors
    hyper = value(case, "hyper_parameters")
    options = {own: tuple(entry) if isinstance(entry := hyper[theirs], list) else entry for own, theirs in NAMES.items() if theirs in hyper}
    given, errors, left_out = Tensors(tensors.behind(f"{prefix}in/")), Errors(), 0
    for run_name in sorted({found[1] for key in golden if (found := re.match(rf"{re.escape(prefix)}(shot[^/]*)/", key))}):
        drawn = Tensors(tensors.behind(f"{prefix}{run_name}/"))
        data = {"test_features": given["test_features"].to(dtype)}
        for part in ("train", "val"):
            rows = drawn[f"{part}_index"].long()
            data |= {f"{part}_features": given[f"{part}_features"][rows].to(dtype), f"{part}_labels": given[f"{part}_labels"][rows]}
        run = Run(options, data, Tensors(golden.behind(f"{prefix}{run_name}/")))
        method = run.fit()
        note(errors, "search alone", run.searched(), run.c)
        if abs(float(method.c) / run.c - 1) > 1e-6 and run.hangs_on_the_stop():
            left_out += 1
            continue
        note(errors, "selected C", method.c, run.c)
        theirs = torch.cat([run.golden["final_coef"], run.golden["final_intercept"].unsqueeze(1)], dim=1)
        note(errors, "weights", torch.cat([method.weight, method.bias.unsqueeze(1)], dim=1), theirs)
        note(errors, "test logits", run.scores(method, "test"), run.golden["final_test_decision"])
    if left_out:
        errors["selected C"] = Error(*errors.get("selected C", Error())[:2], left_out)
    return errors
