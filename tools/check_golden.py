"""Compare our methods with numbers of their authors' code: `python tools/check_golden.py FOLDER`.

FOLDER holds golden.json and one CASE.safetensors a case, in one of three formats, which golden.json tells apart:

- MMRL and MMRL++ (`golden/mmrl.py`): with clip.safetensors (OpenAI's layout) and, in golden.json, class names, prompt, hyper-parameters
  and losses of each case; MMRL++ if the case has a beta.
- the methods that the paper compares with (`golden/baselines.py`): cases named after their method, the CLIP in ../mmrl/.
- methods on cached features (`golden/features.py`): no CLIP is needed.

Files hold initial parameters, images, labels, features, logits and gradients of step 1, parameters after all steps, and logits after
them. Every case is computed twice, in float64 and in float32. Prints the largest error of every group of tensors in both. Exits with 1 if
one that is judged is over the tolerance, and with 2 if the folder or a case of it cannot be replayed. A case of a method that we do not
have is listed as "not here yet".

Two errors count, each of the worst tensor of its group: |ours - theirs| / |theirs| in the Euclidean norm, and the largest difference of
an element relative to the largest element. Float64 is judged by both: there our own rounding plays no part, so the verdict is the same
on every processor. Float32 is judged by the norm alone: which way single elements are rounded is the processor's business.

The second error leaves out, and counts, those final parameters whose value the rounding of the file's own numbers decides: where a
gradient is of the size of Adam's eps (1e-8), one epsilon (of the file's precision) of the tensor's largest gradient moves the first
update by more than the tolerance. Which they are follows from the authors' gradients alone, not from ours.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, only this file's folder is on it

from mmrl.clip import Clip, load_clip
from mmrl.errors import MmrlError
from tools.golden import baselines, features, mmrl
from tools.golden.judge import TOLERANCE, Error, Errors, GoldenError, Pair, over_tolerance, read_tensors

__all__ = ["TOLERANCE", "Error", "Errors", "GoldenError", "Pair", "check_folder", "main", "over_tolerance"]

Replay = Callable[[torch.dtype], Errors | None]  # in the precision of the CLIP, where there is one
Result = Pair | GoldenError | None


def read_sheet(folder: Path) -> dict[str, Any]:
    """golden.json of a folder."""
    file = folder / "golden.json"
    try:
        sheet = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GoldenError(f"cannot read {file}: {error}") from error
    if not isinstance(sheet, dict) or not isinstance(sheet.get("cases"), dict):
        raise GoldenError(f"{file} has no cases: it is of no format that is known here")
    return sheet


def format_of(folder: Path, sheet: Mapping[str, Any]) -> str:
    """mmrl, baselines or features."""
    about = sheet.get("about")
    if "classnames" in sheet and "template" in sheet:
        return "mmrl"
    if isinstance(about, Mapping) and "classnames" in about:
        return "baselines"
    if any(isinstance(case, Mapping) and "prefix" in case for case in sheet["cases"].values()):
        return "features"
    raise GoldenError(f"{folder / 'golden.json'} is of no format that is known here")


def replays(folder: Path, sheet: Mapping[str, Any], kind: str, clip: Clip | None) -> dict[str, Replay]:
    """What computes the errors of each case."""
    cases: Mapping[str, Any] = sheet["cases"]
    if kind == "features":
        return {name: partial(features.replay, folder, name, case) for name, case in cases.items()}
    assert clip is not None
    names = sheet["classnames"] if kind == "mmrl" else sheet["about"]["classnames"]

    def one(name: str, dtype: torch.dtype) -> Errors | None:
        if kind == "baselines" and baselines.method_of(name) is None:
            return None
        tensors = read_tensors(folder / f"{name}.safetensors")
        if kind == "mmrl":
            return mmrl.replay(cases[name], tensors, clip, names, sheet["template"])
        return baselines.replay(name, cases[name], tensors, clip, names)

    return {name: partial(one, name) for name in cases}


def clip_of(folder: Path, kind: str) -> Clip | None:
    """The CLIP of a folder."""
    if kind == "features":
        return None
    file = (folder if kind == "mmrl" else folder.resolve().parent / "mmrl") / "clip.safetensors"
    if not file.is_file():
        raise GoldenError(f"there is no {file}, the CLIP of these cases")
    return load_clip(str(file), device="cpu")


def check_folder(folder: Path) -> dict[str, Result]:
    """Errors of every case in a golden folder; None for one of a method that is not here yet, and why where one cannot be replayed.

    Raises:
        GoldenError: the folder cannot be read.
    """
    sheet = read_sheet(folder)
    kind = format_of(folder, sheet)
    clip = clip_of(folder, kind)
    found: dict[torch.dtype, dict[str, Errors | None]] = {}
    problems: dict[str, GoldenError] = {}
    for dtype in (torch.float32, torch.float64):
        if clip is not None:
            clip.model.to(dtype)
        found[dtype] = {}
        for name, replay in replays(folder, sheet, kind, clip).items():
            try:
                found[dtype][name] = replay(dtype)
            except (GoldenError, MmrlError, ValueError) as error:
                problems[name] = GoldenError(f"{name}: {'; '.join(str(error).splitlines())}")
    results: dict[str, Result] = {}
    for name in sheet["cases"]:
        exact, single = (found[dtype].get(name) for dtype in (torch.float64, torch.float32))
        results[name] = problems.get(name) or (None if exact is None or single is None else Pair(exact, single))
    return results


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    try:
        results = check_folder(parser.parse_args(arguments).folder)
    except GoldenError as error:
        print(error, file=sys.stderr)
        return 2
    width = max(8, *map(len, results))
    print(f"{'case':{width}} {'group':20} {'float64 norm':>13} {'float64 element':>16} {'left out':>9} {'float32 norm':>13}")
    status = 0
    for name, result in results.items():
        if result is None:
            print(f"{name:{width}} not here yet")
        elif isinstance(result, GoldenError):
            print(result, file=sys.stderr)
            status = 2
        else:
            status = max(status, int(print_case(f"{name:{width}}", result)))
    return status


def print_case(name: str, pair: Pair) -> bool:
    """One line a group; whether one of them is over the tolerance."""
    bad = False
    for group, exact in pair.float64.items():
        single = pair.float32[group]
        over = over_tolerance(exact, single)
        bad |= bool(over)
        mark = f"  OVER {TOLERANCE}: {', '.join(over)}" if over else ""
        print(f"{name} {group:20} {exact.norm:13.2e} {exact.element:16.2e} {exact.left_out:9} {single.norm:13.2e}{mark}")
    return bad


if __name__ == "__main__":
    sys.exit(main())
