"""APE and APE-T: cases ape/ape_... and ape/apet_... of the channels, the cache, the training and the search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrl import methods
from mmrl.clip import ClassList
from mmrl.methods import Method, Task
from mmrl.methods.ape import APE, APET, similarity
from tools.golden.features import FeatureClip
from tools.golden.judge import Errors, Tensors, note, read_tensors, value
from tools.golden.replay import differentiate

FEATURE_CASES = {"ape/ape_": "ape", "ape/apet_": "ape-t"}
WEIGHT_DECAY = 0.1


class Run:
    """A method on the tensors of a case."""

    def __init__(self, folder: Path, case: Mapping[str, Any], dtype: torch.dtype) -> None:
        tensors, prefix = read_tensors(folder / value(case, "file")), value(case, "prefix")
        self.case, self.dtype, self.errors = case, dtype, Errors()
        given = tensors.behind(f"{prefix}in/")
        self.given = Tensors({key: each.to(dtype) if each.is_floating_point() else each for key, each in given.items()})
        which = "f64" if dtype == torch.float64 else "f32"
        self.golden = Tensors(tensors.behind(f"{prefix}{which}/"))
        self.hyper: Mapping[str, Any] = value(case, "hyper_parameters")
        self.numbers: Mapping[str, Any] = value(value(case, "numbers"), which)
        text = self.given["text_features"]
        self.names = tuple(f"class {i}" for i in range(len(text)))
        self.clip = FeatureClip(text.shape[1], text)
        self.task = Task(
            self.names, "{}", len(self.given["train_labels"]), len(self.given["val_labels"]), features=self.features  # type: ignore[arg-type]
        )  # fmt: skip

    def features(self, part: str, views: int = 0) -> tuple[Tensor, Tensor]:
        found = self.given[f"{part}_features"]
        return found if part == "train" else found.unsqueeze(0), self.given[f"{part}_labels"]

    def build(self, name: str, options: Mapping[str, Any]) -> Method:
        shared = {"alpha": self.hyper["init_alpha"], "beta": self.hyper["init_beta"], "augment_epoch": len(self.given["train_features"])}
        return methods.build(name, self.clip, {**shared, **options}, task=self.task).to(self.dtype)  # type: ignore[arg-type]

    def share(self, channels: int) -> float:
        return channels / self.clip.embed_dim

    def check(self, group: str, key: str, found: Tensor) -> None:
        """Compare with the golden `key`."""
        note(self.errors, group, found, self.golden[key])

    def searched(self, method: APE | APET, *names: str) -> None:
        """What is selected on the validation images, and the test logits with it."""
        with torch.no_grad():
            method.finish(self.task)
            for name in names:
                note(self.errors, "search", method.get_buffer(name), self.numbers[name])
            logits = method.logits(self.given["test_features"], method.head(self.classes(method)), True)
        self.check("test logits", "test_logits", logits)

    def classes(self, method: Method) -> ClassList:
        return method.class_list(self.names, "{}")


def features(folder: Path, name: str, case: Mapping[str, Any], dtype: torch.dtype) -> Errors:
    """Errors of one case by group, from features in `dtype`."""
    run = Run(folder, case, dtype)
    (train_free if name.startswith("ape/ape_") else trained)(run)
    return run.errors


def train_free(run: Run) -> None:
    hyper, text = run.hyper, run.given["text_features"]
    method = run.build(
        "ape",
        {
            "channels": run.share(hyper["training_free_feat_num"]),
            "criterion_weights": tuple(hyper["w_training_free"]),
            "gamma": hyper["init_gamma"],
            "search_scale": tuple(hyper["search_scale"]),
            "search_step": tuple(hyper["search_step"]),
        },
    )
    assert isinstance(method, APE)
    keys, labels, weights = F.normalize(run.given["train_features"].mean(0), dim=-1), run.given["train_labels"], hyper["w_training_free"]
    alike = similarity(text, keys, labels)
    run.check("channels", "sim", alike)
    run.check("channels", "criterion", weights[1] * text.var(0) - weights[0] * alike)
    note(run.errors, "channels", method.channels, run.golden["indices"])
    run.check("cache", "cache_keys", keys)
    run.check("cache", "cache_div", method.divergence)
    with torch.no_grad():
        head = method.head(run.classes(method))
        run.check("cache", "R_fF_test", method._compare(run.given["test_features"], head)[1])
    run.searched(method, "beta", "alpha", "gamma")


def trained(run: Run) -> None:
    hyper, numbers = run.hyper, run.numbers
    images = "APE_T reads the criterion file APE left" in " ".join(value(run.case, "notes"))
    method = run.build(
        "ape-t",
        {
            "channels": run.share(hyper["feat_num"]),
            "criterion_weights": tuple(hyper["w"]),
            "criterion": "text-and-images" if images else "text",
            "search_scale": tuple(hyper["search_scale"][:2]),
            "search_step": tuple(hyper["search_step"][:2]),
        },
    )
    assert isinstance(method, APET)
    note(run.errors, "channels", method.channels, run.golden["indices"])
    classes, views, labels = run.classes(method), run.given["train_features"], run.given["train_labels"]
    batch, orders = value(run.case, "numbers")["loader"]["batch_size"], run.given["epoch_order"].long()
    optimizer = torch.optim.AdamW(method.parameters(), lr=hyper["lr"], eps=hyper["eps"], weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, numbers["n_steps"])
    losses, accuracies, rates = [], [], []
    for epoch, order in enumerate(orders):
        for rows in order.split(batch):
            loss, found = method.gradients(views[epoch % len(views)][rows], labels[rows], classes, differentiate(method))
            losses.append(loss.total.detach())
            for parameter, gradient in zip(method.parameters(), found, strict=True):
                parameter.grad = gradient
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
            if f"step{len(losses)}_res" in run.golden:
                run.check("parameters", f"step{len(losses)}_res", method.residual)
                run.check("parameters", f"step{len(losses)}_value_weights", method.value_weights)
        method.epoch_ended(epoch + 1, len(orders))
        with torch.no_grad():
            logits = method.logits(run.given["val_features"], method.head(classes), True)
            accuracies.append(100 * (logits.argmax(-1) == run.given["val_labels"]).double().mean())
    run.check("losses", "loss", torch.stack(losses))
    note(run.errors, "losses", torch.tensor([*rates[:2], rates[-1]]), torch.tensor(numbers["lrs"]))
    run.check("accuracies", "val_acc_per_epoch", torch.stack(accuracies).round(decimals=2))  # as theirs are
    run.searched(method, "beta", "alpha")
    run.check("parameters", "res", method.residual)
    run.check("parameters", "value_weights", method.value_weights)
    with torch.no_grad():
        head = method.head(classes)
    run.check("cache", "new_cache_keys", head.keys)
    run.check("cache", "new_clip_weights", head.text.T)
