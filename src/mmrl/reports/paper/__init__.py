"""The numbers printed in the MMRL paper (README.md beside this file says which, and which of them do not add up).

`published` is a method's name in the paper's tables: 'CLIP' for zero-shot, 'Linear probe CLIP', 'CoOp', 'MMRL'. A name that is in none of
them has no numbers.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

AVERAGE = "average"
OWN = "MMRL"  # the paper's method, of which its ablations are
CLIP = "CLIP"  # zero-shot
DATASETS = (
    "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397", "dtd", "eurosat",
    "ucf101",
)  # fmt: skip
SHIFTED = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
SHOTS = (1, 2, 4, 8, 16)

_ODD = {
    ("table1_base_to_novel", "MetaPrompt", AVERAGE, "hm"): "the mean of the HMs; the HM of the means is 79.36",
    ("table1_base_to_novel", "MetaPrompt", "stanford_cars", "hm"): "its base and novel give 75.67",
    ("table1_base_to_novel", "MMA", "ucf101", "hm"): "its base and novel give 83.01",
    ("table1_base_to_novel", "MMA", AVERAGE, "novel"): "the eleven data sets give 76.94",
    ("table1_base_to_novel", "MMRL", "dtd", "hm"): "its base and novel give 73.92",
    ("table10_11_few_shot", "MaPLe", AVERAGE, "4"): "the eleven data sets give 75.75",
}  # fmt: skip
# study: table with a row for each method
_METHODS = {
    "base-to-novel": "table1_base_to_novel",
    "cross-dataset": "table2_cross_dataset",
    "domain-generalisation": "table3_domain_generalization",
    "few-shot": "table10_11_few_shot",
}
# study: table, its column of values
_ABLATIONS = {
    "variants": ("table4_variants", "variant"),
    "rep-dim": ("table4_rep_dim", "rep_dim"),
    "alpha": ("table5_alpha", "alpha"),
    "regulariser": ("table9_regularization", "regularization"),
}


@dataclass(frozen=True)
class Printed:
    """A printed value, in per cent; `odd` says why it does not follow from the others, where it does not."""

    value: float
    odd: str | None = None


@cache
def rows(table: str) -> tuple[dict[str, str], ...]:
    """The lines of one of the CSV files, by column."""
    with files(__name__).joinpath(f"{table}.csv").open(encoding="utf-8") as lines:
        return tuple(csv.DictReader(lines))


def _find(table: str, column: str, where: dict[str, str]) -> Printed | None:
    for row in rows(table):
        if all(same(row[name], value) for name, value in where.items()) and row[column]:
            method, dataset = where.get("method", ""), where.get("dataset", where.get("target", ""))
            return Printed(float(row[column]), _ODD.get((table, method, dataset, where.get("shots", column))))
    return None


def same(one: str, other: str) -> bool:
    """Whether two values of an option are the same: '0' and '0.0', 'Cosine' and 'cosine', 'w/o DS₁' and 'w/o DS1'."""
    try:
        return float(one) == float(other)
    except ValueError:
        return _plain(one) == _plain(other)


def _plain(name: str) -> str:
    return "".join(name.translate(str.maketrans("₁₂", "12")).replace("-dagger", "†").casefold().split())


def is_full(variant: str) -> bool:
    """Whether a variant of Table 4 is MMRL itself."""
    return _plain(variant) in ("", "full", "mmrl")


def methods(study: str) -> tuple[str, ...]:
    """The methods of the study's table in its order; () for a study whose table has none."""
    return tuple(dict.fromkeys(row["method"] for row in rows(_METHODS[study]))) if study in _METHODS else ()


def base_to_novel(published: str, dataset: str, metric: str) -> Printed | None:
    """Table 1. `dataset` may be 'average'; `metric`: base, novel or hm."""
    return _find("table1_base_to_novel", metric, {"method": published, "dataset": dataset})


def cross_dataset(published: str, target: str) -> Printed | None:
    """Table 2. `target`: imagenet (the source), one of the ten, or 'average' of the ten."""
    return _find("table2_cross_dataset", "accuracy", {"method": published, "target": target})


def domain_generalisation(published: str, target: str) -> Printed | None:
    """Table 3. `target`: imagenet or one of its four variants; no average is printed."""
    return _find("table3_domain_generalization", "accuracy", {"method": published, "target": target})


def few_shot(published: str, dataset: str, shots: int) -> Printed | None:
    """Tables 10 and 11. `dataset` may be 'average'."""
    return _find("table10_11_few_shot", "accuracy", {"method": published, "dataset": dataset, "shots": str(shots)})


def ablation(published: str, study: str, variant: str, dataset: str, metric: str) -> Printed | None:
    """The paper's own method with `variant` as the value of what `study` changes, on 'average' or, for lambda, on one data set.

    Tables 4 (variants, rep-dim), 5 (alpha; lambda on imagenet), 8 (lambda: HM of each data set) and 9 (regulariser).
    """
    if published != OWN:
        return None
    if study == "lambda":
        if dataset == "imagenet" and (found := _find("table5_lambda_imagenet", metric, {"lambda": variant})):
            return found
        return _find("table8_lambda", dataset, {"lambda": variant}) if metric == "hm" and dataset in DATASETS else None
    if study not in _ABLATIONS or dataset != AVERAGE:
        return None
    table, column = _ABLATIONS[study]
    variant = OWN if study == "variants" and is_full(variant) else variant
    return _find(table, metric, {column: variant})


def cost(published: str) -> dict[str, str] | None:
    """The line of Table 6: ImageNet, 16 shots, an RTX 4090; values as printed."""
    return next((row for row in rows("table6_cost") if row["method"] == published), None)


def datasets() -> tuple[dict[str, str], ...]:
    """Table 7: classes, sizes, description and prompt of each data set."""
    return rows("table7_datasets")
