"""CLAP and ZS-LP: cases clap/... of their training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl.clip import ClassList
from mmrl.methods import Task
from mmrl.methods.clap import CLAP, CLAPOptions, class_weights, descend, learning_rate
from tools.golden.features import FeatureClip
from tools.golden.judge import TOLERANCE, Error, Errors, Tensors, note, read_tensors, value

FEATURE_CASES = {"clap/": "clap"}
NAMES = {"probe_epochs": "epochs", "probe_batch": "batch", "probe_lr": "lr", "probe_momentum": "momentum", "augment_epoch": "reps",
         "penalty": "constraint"}  # fmt: skip


class Ordered(CLAP):
    """With the authors' samples (epochs, rows), in their order."""

    rows: Tensor

    def shuffled(self, samples: int, epoch: int) -> Tensor:
        return self.rows[epoch]


def features(folder: Path, name: str, case: Mapping[str, Any], dtype: torch.dtype) -> Errors:
    """Errors of one case by group, from features in `dtype`: each epoch by itself, and the method as a whole.

    Where the authors' own numbers in float32 and in float64 part by more than a tenth of the tolerance, as on a long and noisy path, ours
    in float32 are left out.
    """
    tensors, prefix, errors = read_tensors(folder / value(case, "file")), value(case, "prefix"), Errors()
    given = Tensors(tensors.behind(f"{prefix}in/"))
    golden, single = (Tensors(tensors.behind(f"{prefix}{kind}/")) for kind in ("f64", "f32"))
    hyper = value(case, "hyper_parameters")
    options = CLAPOptions(**{own: hyper[theirs] for own, theirs in NAMES.items() if theirs in hyper})
    samples, labels, text = given["train_features"].to(dtype), given["train_labels"], given["text_features"].to(dtype)
    x, rows, scale = F.normalize(samples, dim=-1), given["epoch_rows"].long(), float(hyper["logit_scale"])

    rates = [learning_rate(epoch, options.probe_epochs, options.probe_lr) for epoch in range(options.probe_epochs)]
    note(errors, "learning rates", torch.tensor(rates, dtype=torch.float64), given["lr_per_epoch"])
    shown = golden["logits_zs_train"]
    note(errors, "zero-shot logits", scale * x[: len(shown)] @ F.normalize(text, dim=-1).T, shown)
    weights = None
    if options.penalty != "none":
        weights = class_weights(x, labels, text, scale)
        note(errors, "class weights", weights, golden["alpha"])

    def compare(group: str, ours: Tensor, key: str) -> None:
        if dtype == torch.float64 or float((single[key] - golden[key]).norm() / golden[key].norm()) < 0.1 * TOLERANCE:
            note(errors, group, ours, golden[key])
        else:
            before = errors.get(group, Error())
            errors[group] = before._replace(left_out=before.left_out + ours.numel())

    named = {int(found[1]) for key in golden if (found := re.fullmatch(r"prototypes_after_epoch(\d+)", key))}
    losses = []
    for epoch, (prototypes, each) in enumerate(
        descend(x, labels, text, weights, rows, epochs=options.probe_epochs, batch=options.probe_batch, lr=options.probe_lr,
                momentum=options.probe_momentum, scale=scale)
    ):  # fmt: skip
        losses += each
        if epoch in named:
            compare("prototypes", prototypes, f"prototypes_after_epoch{epoch}")
    compare("losses", torch.stack(losses), "loss")

    names = tuple(f"class {i}" for i in range(len(text)))
    method = Ordered(FeatureClip(text.shape[1], text, scale), options)  # type: ignore[arg-type]
    method.rows = rows
    images = len(samples) // max(1, options.augment_epoch)
    method.setup(Task(names, "{}", images, features=lambda part, views=0: (samples.unsqueeze(0), labels)))
    compare("trained prototypes", method.prototypes, "prototypes")
    test = method.logits(given["test_features"].to(dtype), method.head(ClassList(names, text)), seen=True)
    compare("test logits", test, "test_logits")
    return errors
