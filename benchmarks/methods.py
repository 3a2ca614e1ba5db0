"""The tables of docs/methods.md: every method here, its golden numbers, and its training step beside the plain form.

    python -m benchmarks.methods                          # print the first
    python -m benchmarks.methods --golden tests/golden/mmrl tests/golden/baselines tests/golden/features --write docs/methods.md

    python -m benchmarks.methods --mini results/mini --write docs/methods.md

With `--write` each table takes the place of the one between its two marks in that file; a table that was not asked for stays. The steps are
those of `--steps`, which `python -m benchmarks.train_step --out benchmarks/results/train_step.md` writes.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmrl
from benchmarks import common
from benchmarks.common import gib
from benchmarks.sides import PLAIN
from benchmarks.train_step import gradient_cell
from mmrl import methods
from mmrl.clip import Clip
from mmrl.errors import MmrlError
from mmrl.files import write_text
from mmrl.methods import Method, Task

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ["method", "name", "file", "lines", "paper", "towers", "trained parameters", "new classes"]
MINI = {  # column of the miniature table -> study and classes of its average
    "base": ("base-to-novel", "base"), "novel": ("base-to-novel", "novel"), "HM": ("base-to-novel", "hm"),
    "cross-dataset": ("cross-dataset", "all"), "domain generalisation": ("domain-generalisation", "all"),
}  # fmt: skip
GOLDEN = ["method", "golden cases", "largest error, norm", "largest error, element"]


def here() -> dict[str, type[Method]]:
    """Methods of this package, those that are trained by steps first."""
    known = {name: cls for name, cls in methods.registered().items() if cls.__module__.startswith("mmrl.methods.")}
    return {name: known[name] for name in [*PLAIN, *sorted(known.keys() - PLAIN.keys())]}


def trained(name: str, clip: Clip) -> str:
    """How many numbers are trained, or how many for each image or class where they depend on these."""

    def count(classes: int, images: int) -> int:
        names = tuple(common.class_names(classes))
        return sum(p.numel() for p in methods.build(name, clip, seed=0, task=Task(names, common.TEMPLATE, images=images)).parameters())

    least = count(2, 8)
    an_image, a_class = count(2, 9) - least, count(3, 8) - least
    parts = [f"{number:,} {each}" for number, each in ((a_class, "a class"), (an_image, "an image")) if number]
    return ", ".join(parts) or f"{least:,}"


def method_rows(clip: Clip) -> list[list[str]]:
    rows = []
    for name, cls in here().items():
        file = Path(inspect.getfile(cls)).resolve().relative_to(ROOT).as_posix()
        lines = len((ROOT / file).read_text(encoding="utf-8").splitlines())
        method = methods.build(name, clip, seed=0)
        new = "yes" if cls.open_vocabulary(method.options) else "no"
        rows.append([cls.title, f"`{name}`", file, str(lines), cls.source, method.modality, trained(name, clip), new])
    return rows


def golden_rows(folders: list[Path]) -> list[list[str]]:
    """Largest errors in float64 over the groups and cases of each method.

    Raises:
        SystemExit: a case cannot be replayed.
    """
    from tools.check_golden import GoldenError, check_folder
    from tools.golden import baselines, features

    cases: dict[str, list[tuple[str, float, float]]] = {}
    for folder in folders:
        for case, result in check_folder(folder).items():
            if isinstance(result, GoldenError):
                raise SystemExit(f"{folder}: {result}")
            if result is not None:
                name = features.method_of(case) or baselines.method_of(case) or case
                worst = [max(errors) for errors in zip(*((e.norm, e.element) for e in result.float64.values()))]
                cases.setdefault(name, []).append((case, *worst))
    rows = []
    for name, cls in here().items():
        found = cases.get(name, [])
        errors = (f"{max(error[i] for error in found):.1e}" if found else "-" for i in (1, 2))
        rows.append([cls.title, ", ".join(case for case, *_ in found) or "-", *errors])
    return rows


def step_table(numbers: Mapping[str, Any]) -> str:
    """Of the numbers that `benchmarks.train_step --out` writes; a column that was not measured is left out."""
    rows: list[dict[str, str]] = []
    for row in numbers["rows"]:
        seconds, flops, left_out = row["median"], row["flops"], row["plain_left_out"]
        cells = {
            "method": methods.get(row["method"]).title,
            "classes": str(row["classes"]),
            "plain, s": f"left out: {left_out}" if left_out else f"{seconds['plain']:.2f}",
            "mmrl, s": f"{seconds['fast']:.2f}",
            "ratio": "-" if left_out else f"{seconds['plain'] / seconds['fast']:.2f}",
            "bound (FLOP ratio)": f"{flops['plain'] / flops['fast']:.2f}",
        }
        if not numbers["no_memory"]:
            peaks = {side: gib(peak["most"]) for side, peak in row["memory"].items() if peak}
            cells |= {f"{shown} peak": peaks.get(side, "-") for shown, side in (("plain", "plain"), ("mmrl", "fast"))}
        rows.append(cells | {"largest gradient difference": gradient_cell(row["gradients"])})
    return common.markdown(list(rows[0]), [list(row.values()) for row in rows])


def mini_table(results: Path) -> str:
    """Average accuracies over the data sets of a results folder, in %, for every method that it has; "n/a" where it has no such number."""
    means = mmrl.mean_results(mmrl.load_results(results, options=False), datasets=True)
    averages = means[(means.dataset == "average") & (means.variant == "")].set_index(["method", "study", "classes"]).accuracy
    table = []
    for name, cls in here().items():
        values = [averages.get((name, *where)) for where in MINI.values()]
        if any(value is not None for value in values):
            table.append([cls.title, *("n/a" if value is None else f"{100 * value:.2f}" for value in values)])
    return common.markdown(["method", *MINI], table)


def linked(rows: list[list[str]], folder: Path) -> list[list[str]]:
    """Rows of the first table with their file as a link that holds in a page of `folder`."""
    start = os.path.relpath(ROOT, folder.resolve()).replace(os.sep, "/")
    return [[*row[:2], f"[{Path(row[2]).name}]({start}/{row[2]})", *row[3:]] for row in rows]


def put(page: str, name: str, table: str) -> str:
    """`page` with `table` between the marks of `name`.

    Raises:
        SystemExit: there are none.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    rule = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not rule.search(page):
        raise SystemExit(f"the page has no marks {begin} and {end}")
    return rule.sub(lambda _: f"{begin}\n{table}\n{end}", page)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--backbone", default="ViT-B-16", help="architecture of open_clip that parameters are counted on (default: %(default)s)"
    )
    parser.add_argument("--golden", type=Path, nargs="+", metavar="FOLDER", help="replay the golden cases of these folders")
    parser.add_argument("--mini", type=Path, metavar="RESULTS", help="averages of a results folder on the mini benchmark")
    parser.add_argument("--steps", type=Path, metavar="JSON", help="numbers of `benchmarks.train_step --out`")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables between their marks in this page")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    rows = method_rows(common.make_clip(options.backbone))
    tables = {"methods": common.markdown(COLUMNS, linked(rows, options.write.parent) if options.write else rows)}
    if options.golden:
        try:
            tables["golden"] = common.markdown(GOLDEN, golden_rows(options.golden))
        except MmrlError as error:
            raise SystemExit(str(error)) from error
    if options.mini:
        tables["mini"] = mini_table(options.mini)
    if options.steps:
        numbers = json.loads(options.steps.read_text(encoding="utf-8"))
        tables["steps"] = f"{common.heading(numbers, 'Measured')}\n\n{step_table(numbers)}"
    print("\n\n".join(tables.values()))
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        for name, table in tables.items():
            page = put(page, name, table)
        write_text(options.write, page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
