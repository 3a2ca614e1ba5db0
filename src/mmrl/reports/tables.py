"""The tables of each study: which rows and columns they have. `mmrl.reports.sheets` writes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from mmrl.reports import paper
from mmrl.reports.cost import CostRow, CostTable
from mmrl.reports.measures import HM, MEAN_HM, Arm, Measure, StudyScores
from mmrl.reports.paper import AVERAGE
from mmrl.reports.plans import OPEN_WORLD, ZERO_SHOT, is_ablation, swept
from mmrl.reports.sheets import Sheet, TableCell

T = TypeVar("T")

SPREAD = "Top-1 accuracy in %, mean ± sample standard deviation over seeds (ddof 1); zero-shot has no seed and no spread."
HM_NOTE = (
    "HM of a data set: harmonic mean of the base and the novel accuracy, each averaged over the seeds, as in the paper; its spread is that "
    "of the seeds' own HMs, whose mean is in the CSV file (metric 'mean hm')."
)
AVERAGES = (
    "HM of the averages: harmonic mean of the base and the novel accuracy, each averaged over seeds and data sets, as in the paper; mean "
    "of the HMs: mean over the data sets of their HMs, each of accuracies averaged over the seeds (metric 'mean hm' in the CSV file). "
    "Spreads of averages: over the seeds that all data sets have, each averaged over the data sets."
)
TITLES = {
    "base-to-novel": "Base-to-novel generalisation", "few-shot": "Few-shot learning", "cross-dataset": "Cross-dataset transfer",
    "domain-generalisation": "Domain generalisation", OPEN_WORLD: "Mixed lists, calibration and rejection",
    "variants": "Ablation: parts of the method",
    "rep-dim": "Ablation: width of the representation space d_r", "layers": "Ablation: first layer J with representation tokens",
    "tokens": "Ablation: number of representation tokens K", "alpha": "Ablation: α, weight of the class token",
    "lambda": "Ablation: λ, weight of the regulariser", "regulariser": "Ablation: regulariser", "cost": "Cost",
}  # fmt: skip
_VALUES = {"rep-dim": "d_r", "layers": "J", "tokens": "K", "alpha": "α", "lambda": "λ", "regulariser": "regulariser"}
METRICS = {"base": "base", "novel": "novel", HM: "HM", "all": "accuracy"}
ECE_ON = {"base": "ECE, base classes", "novel": "ECE, novel classes"}
ECE_NOTE = (
    "ECE: how far confidence and accuracy are apart, in percentage points, on average over 15 bins of confidence; 0 is best. "
    "Mean ± sample standard deviation over seeds (ddof 1)."
)


def title_of(study: str) -> str:
    """In headings."""
    return f"Ablation: {', '.join(swept(study))}" if swept(study) else TITLES.get(study, study)


def value_name(study: str) -> str:
    """What the values of an ablation are of."""
    return swept(study)[0] if len(swept(study)) == 1 else _VALUES.get(study, "variant")


class Arms:
    """How the rows of a study are named: what all arms share is left out. `arms`: of several folders, in place of the study's own."""

    def __init__(self, scores: StudyScores, arms: Sequence[Arm] = ()) -> None:
        arms = arms or scores.arms
        self.ablation = is_ablation(scores.study)
        self.methods = not self.ablation or len({arm.method for arm in arms}) > 1
        self.variants = self.ablation or any(arm.variant for arm in arms)
        self.backbones = len({arm.backbone for arm in arms}) > 1
        self.shots = len({arm.shots for arm in arms if arm.shots is not None}) > 1
        self.study = scores.study

    @property
    def heads(self) -> tuple[str, ...]:
        return self._shown("method", value_name(self.study), "backbone", "shots")

    def columns(self, arm: Arm) -> tuple[TableCell, ...]:
        shots = None if arm.shots is None else arm.shots or "all"
        return self._shown(arm.title, self.variant(arm), arm.backbone, shots)

    def variant(self, arm: Arm) -> str:
        """In the ablation of parts, the whole method is shown by its title."""
        return arm.title if self.study == "variants" and paper.is_full(arm.variant) else arm.variant

    def _shown(self, *columns: T) -> tuple[T, ...]:
        return tuple(column for column, shown in zip(columns, (self.methods, self.variants, self.backbones, self.shots)) if shown)

    def name(self, arm: Arm) -> str:
        """In one piece, for legends."""
        words = [str(value) for value in self.columns(arm) if value not in (None, "")]
        return words[0] + (f" ({', '.join(words[1:])})" if words[1:] else "") if words else arm.title


def average_of(datasets: Sequence[str]) -> str:
    return f"average of {len(datasets)} data sets" if len(datasets) != 1 else datasets[0]


def in_order(scores: StudyScores) -> list[Arm]:
    """As planned, zero-shot first; in ablations, variants that are numbers by their size, before others."""
    return sorted(scores.arms, key=lambda arm: (arm.method != ZERO_SHOT, _size(arm))) if is_ablation(scores.study) else scores.arms


def _size(arm: Arm) -> float:
    value = number(arm.variant)
    return math.inf if value is None else value


def number(text: str) -> float | None:
    """`text` as a number, or the first of a range such as '6-12'; None if it is none."""
    for part in (text, text.partition("-")[0]):
        with suppress(ValueError):
            return float(part)
    return None


def _in_order(scores: StudyScores) -> list[Arm]:
    """As `in_order`; but where the setting is the paper's, all rows of its table in its order, then ours that it lacks."""
    rows = scores.paper_rows
    return [*rows, *(arm for arm in in_order(scores) if arm not in rows)]


def _rows(
    scores: StudyScores, rows: Sequence[tuple[Arm, tuple[TableCell, ...]]]
) -> tuple[tuple[tuple[TableCell, ...], ...], frozenset[int]]:
    """The cells of a table's rows, without rows of the paper that print nothing of it, and which of them stand under a line."""
    kept = [(arm, cells) for arm, cells in rows if not arm.paper_only or any(isinstance(cell, Measure) for cell in cells)]
    printed = any(isinstance(cell, Measure) and cell.paper for _, cells in kept for cell in cells)
    above = [printed and arm in scores.paper_rows for arm, _ in kept]
    return tuple(cells for _, cells in kept), frozenset(at for at in range(1, len(kept)) if above[at - 1] and not above[at])


def study_sheets(scores: StudyScores) -> list[Sheet]:
    """The tables of one study, averages first."""
    if is_ablation(scores.study):
        return _halves(scores, _matrix)
    if scores.study == "base-to-novel":
        return _halves(scores, _blocks)
    if scores.study == "few-shot":
        return _few_shot(scores)
    if scores.study in ("cross-dataset", "domain-generalisation"):
        return [_transfer(scores)]
    if scores.study == OPEN_WORLD:
        from mmrl.reports.open_world import open_world_sheets  # which is made of what is here

        return open_world_sheets(scores)
    return [_plain(scores)]


def _halves(scores: StudyScores, each: Callable[[StudyScores, Arms], list[Sheet]]) -> list[Sheet]:
    """Base, novel and HM: averages over data sets, then `each` data set."""
    arms = Arms(scores)
    names = ("base", "novel", HM, MEAN_HM)
    made = [(arm, (*arms.columns(arm), *(scores.average(arm, metric) for metric in names))) for arm in _in_order(scores)]
    rows, ruled = _rows(scores, made)
    heads = (*arms.heads, "base", "novel", "HM of the averages", "mean of the HMs")
    title = f"{title_of(scores.study)}, {average_of(scores.datasets)}"
    notes = (SPREAD, AVERAGES, *scores.plan.notes)
    return [Sheet(f"{scores.study}-average", title, heads, rows, notes, ruled=ruled), *each(scores, arms)]


def _blocks(scores: StudyScores, arms: Arms) -> list[Sheet]:
    """A block of rows for each data set, as Table 1."""
    made = [
        (arm, (dataset, *arms.columns(arm), *(scores.measure(arm, dataset, metric) for metric in ("base", "novel", HM))))
        for dataset in scores.datasets
        for arm in _in_order(scores)
    ]
    rows, ruled = _rows(scores, made)
    heads = ("data set", *arms.heads, "base", "novel", "HM")
    title = f"{title_of(scores.study)}, by data set"
    return [Sheet(scores.study, title, heads, rows, (SPREAD, HM_NOTE), group=0, unseen=_mean_hms(scores), ruled=ruled)]


def _mean_hms(scores: StudyScores) -> tuple[Measure, ...]:
    """Means of the seeds' HMs, for the CSV file of a table that shows the HMs of the means."""
    found = (scores.measure(arm, dataset, MEAN_HM) for dataset in scores.datasets for arm in in_order(scores))
    return tuple(measure for measure in found if measure)


def _matrix(scores: StudyScores, arms: Arms) -> list[Sheet]:
    """A column for each data set, as Table 8; a table each for HM, base and novel."""
    out = []
    for metric in (HM, "base", "novel"):
        rows = [
            (*arms.columns(arm), scores.average(arm, metric), *(scores.measure(arm, dataset, metric) for dataset in scores.datasets))
            for arm in in_order(scores)
        ]
        title = f"{title_of(scores.study)}, {METRICS[metric]} by data set"
        average = "HM of the averages" if metric == HM else AVERAGE
        out.append(
            Sheet(
                f"{scores.study}-{metric}",
                title,
                (*arms.heads, average, *scores.datasets),
                tuple(rows),
                (SPREAD, HM_NOTE) if metric == HM else (SPREAD,),
                unseen=_mean_hms(scores) if metric == HM else (),
            )
        )
    return out


def few_shot_columns(scores: StudyScores) -> list[int | None]:
    """None for zero-shot, where there is one, and the numbers of shots."""
    zero: list[int | None] = [None] if any(arm.method == ZERO_SHOT for arm in scores.arms) else []
    return [*zero, *scores.shots]


def _few_shot(scores: StudyScores) -> list[Sheet]:
    arms = Arms(scores)
    columns = few_shot_columns(scores)
    heads = tuple("zero-shot" if shots is None else "1 shot" if shots == 1 else f"{shots or 'all'} shots" for shots in columns)
    order = _in_order(scores)
    averages = [(arm, (*arms.columns(arm), *(scores.average(arm, "all", shots=shots) for shots in columns))) for arm in order]
    each = [
        (arm, (dataset, *arms.columns(arm), *(scores.measure(arm, dataset, "all", shots=shots) for shots in columns)))
        for dataset in scores.datasets
        for arm in order
    ]
    (rows, ruled), (blocks, within) = _rows(scores, averages), _rows(scores, each)
    title = TITLES["few-shot"]
    return [
        Sheet("few-shot-average", f"{title}, {average_of(scores.datasets)}", (*arms.heads, *heads), rows,
              (SPREAD, *scores.plan.notes), ruled=ruled),
        Sheet("few-shot", f"{title}, by data set", ("data set", *arms.heads, *heads), blocks, (SPREAD,), group=0,
              ruled=within),
    ]  # fmt: skip


def _transfer(scores: StudyScores) -> Sheet:
    """Source, average and targets, as Table 2."""
    arms = Arms(scores)
    sources = [name for name in scores.sources if name in scores.datasets]
    made: list[tuple[Arm, tuple[TableCell, ...]]] = []
    for arm in _in_order(scores):
        source, targets = ([scores.measure(arm, name, "all") for name in names] for names in (sources, scores.targets))
        made.append((arm, (*arms.columns(arm), *source, scores.average(arm, "all"), *targets)))
    rows, ruled = _rows(scores, made)
    heads = (*arms.heads, *(f"{name} (source)" for name in sources), f"average of {len(scores.targets)} targets", *scores.targets)
    return Sheet(scores.study, f"{title_of(scores.study)}, by data set tested on", heads, rows, (SPREAD, *scores.plan.notes), ruled=ruled)


def _plain(scores: StudyScores) -> Sheet:
    """A study this module does not know: every data set and list of classes on its own."""
    arms = Arms(scores)
    rows = [
        (dataset, *arms.columns(arm), *(scores.measure(arm, dataset, metric) for metric in scores.metrics))
        for dataset in scores.datasets
        for arm in scores.arms
    ]
    heads = ("data set", *arms.heads, *(METRICS[metric] for metric in scores.metrics))
    notes, unseen = ((SPREAD, HM_NOTE), _mean_hms(scores)) if HM in scores.metrics else ((SPREAD,), ())
    return Sheet(scores.study, scores.study, heads, tuple(rows), (*notes, *scores.plan.notes), group=0, unseen=unseen)


def calibration_sheet(scores: StudyScores) -> Sheet | None:
    """Expected calibration errors by data set; None where no test has one."""
    arms = Arms(scores)
    metrics = [metric for metric in scores.metrics if metric != HM]
    rows: list[tuple[TableCell, ...]] = []
    shots = scores.shots[-1] if scores.study == "few-shot" and scores.shots else None
    for dataset in scores.datasets:
        for arm in scores.arms:
            column = None if arm.method == ZERO_SHOT else shots
            found = [scores.measure(arm, dataset, metric, shots=column, quantity="ece") for metric in metrics]
            if any(measure and measure.by_seed for measure in found):
                rows.append((dataset, *arms.columns(arm), *(_renamed(measure) for measure in found)))
    heads = ("data set", *arms.heads, *(ECE_ON.get(metric, "ECE") for metric in metrics))
    title = "Expected calibration error (ECE), in %"
    return Sheet("calibration", title, heads, tuple(rows), (ECE_NOTE,), group=0, bold=False) if rows else None


def _renamed(measure: Measure | None) -> Measure | None:
    return measure and replace(measure, metric=f"ece {measure.metric}")


_COST = {
    "method": "method", "variant": "variant", "modality": "modality", "trained_parameters": "trained parameters",
    "train_ms_per_image": "training, ms an image", "train_minutes": "training, minutes", "images_per_second": "images a second",
    "batch": "batch", "peak_memory_gib": "peak memory, GiB", "hm": "HM", "dataset": "data set", "backbone": "backbone", "shots": "shots",
    "precision": "precision",
}  # fmt: skip


def cost_sheet(table: CostTable) -> Sheet | None:
    """Table 6, from the costs measured; columns in which every row is empty are left out. None without rows."""
    keys = [key for key in _COST if any(getattr(row, key) not in (None, "") for row in table.rows)]
    machines = dict.fromkeys(machine(row.environment.hardware) for row in table.rows)
    paper_note = "The paper's Table 6 was measured on an RTX 4090: its times are not comparable with these."
    notes = (f"Measured on {'; '.join(machines)}.", paper_note)
    cells = tuple(tuple(_cost_cell(row, key) for key in keys) for row in table.rows)
    return Sheet("cost", TITLES["cost"], tuple(_COST[key] for key in keys), cells, notes, bold=False) if cells else None


def _cost_cell(row: CostRow, key: str) -> TableCell:
    value: TableCell = getattr(row, key)
    return row.title or row.method if key == "method" else 100 * row.hm if key == "hm" and row.hm is not None else value


def machine(hardware: Mapping[str, Any]) -> str:
    """What something ran on, in a few words."""
    memory = f" ({hardware['gpu_memory_gib']} GiB)" if hardware.get("gpu_memory_gib") else ""
    words = [f"{hardware['gpu']}{memory}" if hardware.get("gpu") else None, hardware.get("cpu")]
    cores = f"{hardware['cores']} cores" if hardware.get("cores") else None
    return ", ".join(str(word) for word in (*words, cores) if word) or "an unnamed machine"
