"""LP++: cases lpp/... of its descent and of the step that it keeps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl.clip import ClassList
from mmrl.methods import Task
from mmrl.methods.lpp import Blend, LPPlusPlus, LPPlusPlusOptions, descend, first
from tools.golden.features import FeatureClip
from tools.golden.judge import Errors, Tensors, note, read_tensors, value

FEATURE_CASES = {"lpp/": "lpp"}
NAMES = {"probe_steps": "epochs", "probe_momentum": "momentum", "alpha_every": "alpha_every"}
PARTS = {"W": "weight", "b": "bias", "alpha": "alpha"}


@dataclass
class Given:
    """A `FeatureSource` of the file: views (V, N, d) of the training images, of which LP++ asks for one."""

    tensors: Tensors
    dtype: torch.dtype

    def __call__(self, part: str, views: int = 0) -> tuple[Tensor, Tensor]:
        found = self.tensors[f"{part}_features"].to(self.dtype)
        return found[:views] if views else found.unsqueeze(0), self.tensors[f"{part}_labels"]


class Started(LPPlusPlus):
    """With the authors' random biases."""

    biases: Tensor

    def first_bias(self, classes: int) -> Tensor:
        return self.biases


def features(folder: Path, name: str, case: Mapping[str, Any], dtype: torch.dtype) -> Errors:
    """Errors of one case by group, from features in `dtype`: each step by itself, and the method as a whole."""
    tensors, prefix, errors = read_tensors(folder / value(case, "file")), value(case, "prefix"), Errors()
    source = Given(Tensors(tensors.behind(f"{prefix}in/")), dtype)
    golden = Tensors(tensors.behind(f"{prefix}f64/") or tensors.behind(f"{prefix}f32/"))
    text, (views, labels) = source.tensors["text_features"].to(dtype), source("train", 1)
    hyper = value(case, "hyper_parameters")
    options = LPPlusPlusOptions(**{own: hyper[theirs] for own, theirs in NAMES.items() if theirs in hyper})
    bias = golden["init_b"].to(dtype)

    x = F.normalize(views[0], dim=-1)
    start = first(x, labels, x @ text.T, bias, options.alpha_scale)
    compare(errors, "initial parameters", start, golden, "init_")
    path = descend(x, labels, x @ text.T, start, steps=options.probe_steps, momentum=options.probe_momentum, every=options.alpha_every)
    named = {int(found[1]) for key in golden if (found := re.fullmatch(r"epoch(\d+)_W", key))}
    val, val_labels = (each[0] if i == 0 else each for i, each in enumerate(source("val")))
    val = F.normalize(val, dim=-1)
    losses, accuracies = [], []
    for epoch, (blend, loss) in enumerate(path):
        losses.append(loss)
        accuracies.append((blend.logits(val, val @ text.T).argmax(-1) == val_labels).double().mean() * 100)
        if epoch in named:
            compare(errors, "parameters", blend, golden, f"epoch{epoch}_")
    compare(errors, "parameters", blend, golden, "last_")
    note(errors, "losses", torch.stack(losses), golden["loss"])
    note(errors, "validation", torch.stack(accuracies), golden["val_acc"])

    names = tuple(f"class {i}" for i in range(len(text)))
    method = Started(FeatureClip(text.shape[1], text), options)  # type: ignore[arg-type]
    method.biases = bias
    method.setup(Task(names, "{}", len(labels), len(val_labels), features=source))  # type: ignore[arg-type]
    compare(errors, "selected parameters", Blend(method.weight, method.bias, method.alpha), golden, "best_")
    test = F.normalize(source.tensors["test_features"].to(dtype), dim=-1)
    logits = method.logits(test, method.head(ClassList(names, text)), seen=True)
    note(errors, "test logits", logits, golden["test_logits"])
    return errors


def compare(errors: Errors, group: str, blend: Blend, golden: Tensors, prefix: str) -> None:
    for theirs, ours in PARTS.items():
        note(errors, group, getattr(blend, ours), golden[f"{prefix}{theirs}"])
