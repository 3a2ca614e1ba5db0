"""Replay of MMRL and MMRL++: a folder whose golden.json has class names and template at its top and K, dr, layers, ... in its cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip
from mmrl.methods import ImageFeatures, TwoTower
from tools.golden.judge import Errors, GoldenError, Tensors, count, load, note, ours, rounding_decides, value
from tools.golden.replay import differentiate

LR, EPS = 1e-3, 1e-8
NAMES = {
    "rep_tokens": "K",
    "rep_dim": "dr",
    "alpha": "alpha",
    "lam": "reg",
    "beta": "beta",
    "layer_rank": "rlora",
    "projection_rank": "plora",
}


def build(case: Mapping[str, Any], clip: Clip) -> TwoTower:
    """The method of a case: MMRL++ if it has a beta, else MMRL."""
    options = {"first_layer": value(case, "layers")[0], **{own: case[theirs] for own, theirs in NAMES.items() if theirs in case}}
    method = methods.build("mmrlpp" if "beta" in case else "mmrl", clip, options)
    assert isinstance(method, TwoTower)
    return method


def replay(case: Mapping[str, Any], tensors: Tensors, clip: Clip, classnames: list[str], template: str) -> Errors:
    """All steps of AdamW from the given start, in the precision of `clip`."""
    dtype = next(clip.model.parameters()).dtype
    method = build(case, clip).to(dtype)
    load(method, tensors)
    if count(method) != value(case, "trainable"):
        raise GoldenError(f"{count(method)} trainable parameters here, {case['trainable']} in the file")
    classes = method.class_list(classnames, template)
    optimizer = torch.optim.AdamW(method.parameters(), lr=LR, betas=(0.9, 0.999), eps=EPS, weight_decay=5e-4)
    errors: Errors = {}
    images = tensors["images"].to(dtype)
    first = images[0]
    with torch.no_grad():
        text, image = method.head(classes), method.image_features(first)
        note(errors, "features", text, tensors["text_features"])
        note(errors, "features", image.class_token, tensors["image_features"])
        note(errors, "zero-shot features", classes.zero_shot, tensors["text_features_zero_shot"])
        note(errors, "zero-shot features", clip.encode_image(first), tensors["image_features_zero_shot"])
        note(errors, "logits", method.combine(image, text, seen=False), tensors["logits_class"])
        note(errors, "logits", method.combine(image, text, seen=True), tensors["logits_fused"])
        note(errors, "logits", _representation_logits(image, text), tensors["logits_rep"])
    gradients = ours(method, tensors, "grad.")
    for step, expected in enumerate(case["losses"]):
        loss, found = method.gradients(images[step], tensors["labels"][step], classes, differentiate(method))
        note(errors, "losses", loss.total, expected)
        for (key, parameter), gradient in zip(method.named_parameters(), found, strict=True):
            assert gradient is not None
            parameter.grad = gradient
            if step == 0:
                note(errors, "gradients", gradient, gradients[key])
        optimizer.step()
    final = ours(method, tensors, "final.")
    for key, parameter in method.named_parameters():
        undecided = rounding_decides(gradients[key], final[key], lr=LR, eps=EPS)
        note(errors, "final parameters", parameter, final[key], undecided)
    with torch.no_grad():
        text = method.head(classes)
        note(errors, "evaluation logits", method.logits(first, text, seen=False), tensors["eval_logits_class"])
        note(errors, "evaluation logits", method.logits(first, text, seen=True), tensors["eval_logits_fused"])
    return errors


def _representation_logits(image: ImageFeatures, text: Tensor) -> Tensor:
    assert image.representation is not None
    return 100 * image.representation @ text.T
