"""Compare MMRL and MMRL++ with numbers of the authors' code: `python tools/check_golden.py FOLDER`.

FOLDER holds clip.safetensors (OpenAI's layout), golden.json (class names, prompt, hyper-parameters and losses of each case) and one
CASE.safetensors a case (MMRL++ if the case has a beta, else MMRL): initial parameters, images, labels, features, logits and gradients
of step 1, parameters after all steps.
Prints the largest error of every group of tensors and exits with 1 if one is over the tolerance.

Two errors count, each of the worst tensor of its group: |ours - theirs| / |theirs| in the Euclidean norm, and the largest difference of
an element relative to the largest element. The second leaves out, and counts, those final parameters whose value rounding decides:
where a gradient is of the size of Adam's eps (1e-8), one float32 epsilon of the tensor's largest gradient moves the first update by
more than the tolerance. Which they are follows from the authors' own gradients; in float64 ours differ from theirs as much.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip, load_clip
from mmrl.methods.authors import from_authors

TOLERANCE = 1e-4
LR, EPS = 1e-3, 1e-8


class Error(NamedTuple):
    """Worst errors of a group of tensors, and how many elements were left out of the second."""

    norm: float = 0.0
    element: float = 0.0
    left_out: int = 0


Errors = dict[str, Error]


def rounding_decides(gradient: Tensor, final: Tensor) -> Tensor:
    """Elements whose first AdamW update, lr g / (|g| + eps), one float32 epsilon of the largest gradient moves past the tolerance."""
    rounding = torch.finfo(torch.float32).eps * gradient.abs().max()
    return LR * EPS * rounding / (gradient.abs() + EPS) ** 2 > TOLERANCE * final.abs().max()


def _note(errors: Errors, group: str, ours: Tensor, theirs: Tensor, leave_out: Tensor | None = None) -> None:
    if ours.shape != theirs.shape:
        raise SystemExit(f"{group}: shape {tuple(ours.shape)} here, {tuple(theirs.shape)} in the file")
    difference = (ours.detach() - theirs).double()
    norm = float(difference.norm() / theirs.double().norm().clamp_min(1e-30))
    kept = difference if leave_out is None else difference[~leave_out]
    element = float(kept.abs().max() / theirs.abs().max().clamp_min(1e-30))
    worst = errors.get(group, Error())
    left_out = worst.left_out + (0 if leave_out is None else int(leave_out.sum()))
    errors[group] = Error(max(worst.norm, norm), max(worst.element, element), left_out)


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _options(case: Mapping[str, Any]) -> dict[str, Any]:
    names = {
        "rep_tokens": "K",
        "rep_dim": "dr",
        "alpha": "alpha",
        "lam": "reg",
        "beta": "beta",
        "layer_rank": "rlora",
        "projection_rank": "plora",
    }
    return {"first_layer": case["layers"][0], **{ours: case[theirs] for ours, theirs in names.items() if theirs in case}}


def check_case(
    name: str, case: Mapping[str, Any], tensors: Mapping[str, Tensor], clip: Clip, classnames: list[str], template: str
) -> Errors:
    """Replay one case: all steps of AdamW from the given start."""
    method = methods.build("mmrlpp" if "beta" in case else "mmrl", clip, _options(case))
    method.load_state_dict(from_authors(type(method), _with_prefix(tensors, "init.")))
    if sum(p.numel() for p in method.parameters()) != case["trainable"]:
        raise SystemExit(
            f"{name}: {sum(p.numel() for p in method.parameters())} trainable parameters here, {case['trainable']} in the file"
        )
    classes = method.class_list(classnames, template)
    optimizer = torch.optim.AdamW(method.parameters(), lr=LR, betas=(0.9, 0.999), eps=EPS, weight_decay=5e-4)
    errors: Errors = {}
    first = tensors["images"][0]
    with torch.no_grad():
        text, image = method.text_features(classes), method.image_features(first)
        _note(errors, "features", text, tensors["text_features"])
        _note(errors, "features", image.class_token, tensors["image_features"])
        _note(errors, "zero-shot features", classes.zero_shot, tensors["text_features_zero_shot"])
        _note(errors, "zero-shot features", clip.encode_image(first), tensors["image_features_zero_shot"])
        _note(errors, "logits", method.combine(image, text, seen=False), tensors["logits_class"])
        _note(errors, "logits", method.combine(image, text, seen=True), tensors["logits_fused"])
        assert image.representation is not None
        _note(errors, "logits", 100 * image.representation @ text.T, tensors["logits_rep"])
    gradients = from_authors(type(method), _with_prefix(tensors, "grad."))
    for step, expected in enumerate(case["losses"]):
        loss = method.loss(tensors["images"][step], tensors["labels"][step], classes).total
        _note(errors, "losses", loss, torch.tensor(expected))
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for key, parameter in method.named_parameters():
                assert parameter.grad is not None
                _note(errors, "gradients", parameter.grad, gradients[key])
        optimizer.step()
    final = from_authors(type(method), _with_prefix(tensors, "final."))
    for key, parameter in method.named_parameters():
        _note(errors, "final parameters", parameter, final[key], rounding_decides(gradients[key], final[key]))
    with torch.no_grad():
        text = method.text_features(classes)
        _note(errors, "evaluation logits", method.logits(first, text, seen=False), tensors["eval_logits_class"])
        _note(errors, "evaluation logits", method.logits(first, text, seen=True), tensors["eval_logits_fused"])
    return errors


def check_folder(folder: Path) -> dict[str, Errors]:
    """Errors of every case in a golden folder."""
    about = json.loads((folder / "golden.json").read_text())
    clip = load_clip(str(folder / "clip.safetensors"))
    cases = about["cases"].items()
    return {
        name: check_case(name, case, load_file(folder / f"{name}.safetensors"), clip, about["classnames"], about["template"])
        for name, case in cases
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    results = check_folder(parser.parse_args().folder)
    print(f"{'case':8} {'group':20} {'relative error':>15} {'worst element':>15} {'left out':>9}")
    bad = False
    for name, errors in results.items():
        for group, error in errors.items():
            over = not (error.norm <= TOLERANCE and error.element <= TOLERANCE)
            bad |= over
            print(f"{name:8} {group:20} {error.norm:15.2e} {error.element:15.2e} {error.left_out:9}{f'  OVER {TOLERANCE}' if over else ''}")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
