"""Compare MMRL and MMRL++ with numbers of the authors' code: `python tools/check_golden.py FOLDER`.

FOLDER holds clip.safetensors (OpenAI's layout), golden.json (class names, prompt, hyper-parameters and losses of each case) and one
CASE.safetensors a case (MMRL++ if the case has a beta, else MMRL): initial parameters, images, labels, features, logits and gradients
of step 1, parameters after all steps.
Every case is computed twice, in float64 and in float32. Prints the largest error of every group of tensors in both, and exits with 1
if one that is judged is over the tolerance.

Two errors count, each of the worst tensor of its group: |ours - theirs| / |theirs| in the Euclidean norm, and the largest difference of
an element relative to the largest element. Float64 is judged by both: there our own rounding plays no part, so the verdict is the same
on every processor. Float32 is judged by the norm alone: which way single elements are rounded is the processor's business.

The second error leaves out, and counts, those final parameters whose value the rounding of the file's own numbers decides: where a
gradient is of the size of Adam's eps (1e-8), one epsilon (of the file's precision) of the tensor's largest gradient moves the first
update by more than the tolerance. Which they are follows from the authors' gradients alone, not from ours.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from mmrl import methods
from mmrl.clip import Clip, load_clip

TOLERANCE = 1e-4
LR, EPS = 1e-3, 1e-8


class Error(NamedTuple):
    """Worst errors of a group of tensors, and how many elements were left out of the second."""

    norm: float = 0.0
    element: float = 0.0
    left_out: int = 0


Errors = dict[str, Error]


class Pair(NamedTuple):
    """Errors of one case by group, as computed in either precision."""

    float64: Errors
    float32: Errors


def rounding_decides(gradient: Tensor, final: Tensor) -> Tensor:
    """Elements whose first AdamW update, lr g / (|g| + eps), one epsilon of the largest gradient moves past the tolerance."""
    rounding = torch.finfo(gradient.dtype).eps * gradient.abs().max()
    return LR * EPS * rounding / (gradient.abs() + EPS) ** 2 > TOLERANCE * final.abs().max()


def _ratio(over: Tensor, under: Tensor) -> float:
    ratio = float(over / under.clamp_min(1e-30))
    return ratio if math.isfinite(ratio) else math.inf  # a NaN compares with nothing, so it would be lost in a maximum


def _note(errors: Errors, group: str, ours: Tensor, theirs: Tensor, leave_out: Tensor | None = None) -> None:
    if ours.shape != theirs.shape:
        raise SystemExit(f"{group}: shape {tuple(ours.shape)} here, {tuple(theirs.shape)} in the file")
    theirs = theirs.double()
    difference = ours.detach().double() - theirs
    kept = difference if leave_out is None else difference[~leave_out]
    worst = errors.get(group, Error())
    errors[group] = Error(
        max(worst.norm, _ratio(difference.norm(), theirs.norm())),
        max(worst.element, _ratio(kept.abs().max(), theirs.abs().max())),
        worst.left_out + (0 if leave_out is None else int(leave_out.sum())),
    )


def _ours(method: methods.Method, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors behind `prefix` under our names, one a layer stacked, in the file's own precision."""
    found = {}
    for ours, theirs in method.authors_names.items():
        name = prefix + theirs
        layers = itertools.takewhile(tensors.__contains__, (name.replace("{i}", str(i)) for i in itertools.count()))
        parts = [tensors[layer] for layer in layers] if "{i}" in name else [tensors[name]] if name in tensors else []
        if not parts:
            raise SystemExit(f"the file has no tensor {name.replace('{i}', '0')}")
        found[ours] = torch.stack(parts) if "{i}" in name else parts[0]
    return found


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
    """Replay one case, all steps of AdamW from the given start, in the precision of `clip`."""
    dtype = next(clip.model.parameters()).dtype
    method = methods.build("mmrlpp" if "beta" in case else "mmrl", clip, _options(case)).to(dtype)
    method.load_state_dict(_ours(method, tensors, "init."))
    if sum(p.numel() for p in method.parameters()) != case["trainable"]:
        raise SystemExit(
            f"{name}: {sum(p.numel() for p in method.parameters())} trainable parameters here, {case['trainable']} in the file"
        )
    classes = method.class_list(classnames, template)
    optimizer = torch.optim.AdamW(method.parameters(), lr=LR, betas=(0.9, 0.999), eps=EPS, weight_decay=5e-4)
    errors: Errors = {}
    images = tensors["images"].to(dtype)
    first = images[0]
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
    gradients = _ours(method, tensors, "grad.")
    for step, expected in enumerate(case["losses"]):
        loss = method.loss(images[step], tensors["labels"][step], classes).total
        _note(errors, "losses", loss, torch.tensor(expected, dtype=torch.float64))
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for key, parameter in method.named_parameters():
                assert parameter.grad is not None
                _note(errors, "gradients", parameter.grad, gradients[key])
        optimizer.step()
    final = _ours(method, tensors, "final.")
    for key, parameter in method.named_parameters():
        _note(errors, "final parameters", parameter, final[key], rounding_decides(gradients[key], final[key]))
    with torch.no_grad():
        text = method.text_features(classes)
        _note(errors, "evaluation logits", method.logits(first, text, seen=False), tensors["eval_logits_class"])
        _note(errors, "evaluation logits", method.logits(first, text, seen=True), tensors["eval_logits_fused"])
    return errors


def check_folder(folder: Path) -> dict[str, Pair]:
    """Errors of every case in a golden folder."""
    about = json.loads((folder / "golden.json").read_text())
    cases = {name: (case, load_file(folder / f"{name}.safetensors")) for name, case in about["cases"].items()}
    clip = load_clip(str(folder / "clip.safetensors"), device="cpu")
    found: dict[torch.dtype, dict[str, Errors]] = {}
    for dtype in (torch.float32, torch.float64):
        clip.model.to(dtype)
        found[dtype] = {name: check_case(name, *case, clip, about["classnames"], about["template"]) for name, case in cases.items()}
    return {name: Pair(found[torch.float64][name], found[torch.float32][name]) for name in cases}


def over_tolerance(exact: Error, single: Error) -> list[str]:
    """Which of the judged errors are over the tolerance: both of float64, the norm of float32."""
    judged = {"float64 norm": exact.norm, "float64 element": exact.element, "float32 norm": single.norm}
    return [name for name, error in judged.items() if error > TOLERANCE]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    results = check_folder(parser.parse_args(arguments).folder)
    width = max(8, *map(len, results))
    print(f"{'case':{width}} {'group':20} {'float64 norm':>13} {'float64 element':>16} {'left out':>9} {'float32 norm':>13}")
    bad = False
    for name, pair in results.items():
        for group, exact in pair.float64.items():
            single = pair.float32[group]
            over = over_tolerance(exact, single)
            bad |= bool(over)
            mark = f"  OVER {TOLERANCE}: {', '.join(over)}" if over else ""
            print(f"{name:{width}} {group:20} {exact.norm:13.2e} {exact.element:16.2e} {exact.left_out:9} {single.norm:13.2e}{mark}")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
