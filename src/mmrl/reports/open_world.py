"""The tables of the open-world study: mixed lists by rule, calibration, rejection and prediction sets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from mmrl.reports import diagnostics
from mmrl.reports.figures import Drawing, dumbbells
from mmrl.reports.measures import Measure, StudyScores
from mmrl.reports.mixed import Number, Study, names_of_rules
from mmrl.reports.paper import AVERAGE
from mmrl.reports.records import Bin, Listed, OpenWorldRecord, Rejection, RuleScores
from mmrl.reports.rule_choice import evidence_sheet, families
from mmrl.reports.sheets import Sheet, TableCell
from mmrl.reports.tables import Arms, average_of

LISTS: tuple[Listed, ...] = ("trained", "new", "mixed")
AFTER = ("nothing", "temperature", "dac")
ACCURACIES = (
    "Every image competes among all classes. base, novel: among the classes of the own half alone, as in base-to-novel; base to all, novel "
    "to all: among all; HM: harmonic mean of these two, of the averages, as in the paper; OpenworldAUC: share of pairs of a base and a "
    "novel image that are both right among their own half's classes and ranked by the largest probability of a base class. In %, mean ± "
    "sample standard deviation over seeds (ddof 1); zero-shot has no seed and no spread."
)
RULES = (
    "class-token mass: fused scores divide among the trained classes what the class token gives them together; fused beside class token: "
    "both as they are; frozen CLIP's mass: zero-shot CLIP says how much trained and new classes get together, and the classifier of each "
    "half divides it; own temperatures: each classifier's logits divided by a temperature; bias: a number is subtracted from the logits "
    "of trained classes, the largest at which 95 % of validation images of trained classes are expected to stay with these. Temperatures "
    "and biases are fitted on validation images of trained classes alone."
)
CALIBRATION = (
    "Expected calibration error in points over 15 bins: of equal width, or of equally many images (adaptive). One temperature, fitted on "
    "validation images of trained classes among these, serves all lists; DAC scales the confidence of new classes besides, by how far "
    "tuning moved their text features, and needs a text feature a class."
)
REJECTION = (
    "Known: test images of trained classes, scored among these. AUROC: a known image scores above another; FPR95: share of the others "
    "kept where 95 % of the known ones are. kept, rejected: shares of the known kept and of the others rejected at the threshold that "
    "keeps 95 % of validation images of trained classes. Of other data sets: the mean over them. In %."
)
COVERAGE = (
    "Split conformal prediction sets (the smallest on average) for 90 % coverage, by validation images of trained classes. That is "
    "guaranteed for the trained list alone, on average over draws; the new list takes the same threshold, the mixed list one of the same "
    "images among all classes. coverage: sets that hold the image's class, in %; size: classes in a set."
)


def open_world_sheets(scores: StudyScores) -> list[Sheet]:
    """All tables, the shipped rule's averages first."""
    study = Study(scores)
    if not any(study.found.values()):
        return [_shipped(study, [AVERAGE])]
    more = [evidence_sheet(study), _rules(study), _calibration(study), _rejection(study), _coverage(study)]
    return [_shipped(study, [AVERAGE]), _shipped(study, scores.datasets), *(sheet for sheet in more if sheet.rows)]


# ---- mixed lists ----


def _of_rule(rule: str | None, pick: Callable[[RuleScores], float | tuple[float, float] | None]) -> Number:
    """A number of one rule on test images; None: of the shipped one."""

    def number(block: OpenWorldRecord) -> tuple[float, ...] | None:
        each = next((each for each in block.rules if each.rule == (rule or block.shipped)), None)
        value = None if each is None else pick(each)
        return None if value is None else tuple(100 * part for part in value) if isinstance(value, tuple) else (100 * value,)

    return number


_SPLIT: tuple[tuple[str, Number], ...] = (
    ("base", lambda block: (100 * block.base,)),
    ("novel", lambda block: (100 * block.novel,)),
)


def _mixed(rule: str | None) -> tuple[tuple[str, Number], ...]:
    return (
        ("base to all", _of_rule(rule, lambda each: each.base)),
        ("novel to all", _of_rule(rule, lambda each: each.novel)),
        ("HM", _of_rule(rule, lambda each: (each.base, each.novel))),
        ("OpenworldAUC", _of_rule(rule, lambda each: each.auc)),
    )


def _shipped(study: Study, datasets: Sequence[str]) -> Sheet:
    """Of every method, by the rule that it ships: averages, or a block for each data set."""
    scores, average = study.scores, datasets == [AVERAGE]
    arms, numbers = Arms(scores), (*_SPLIT, *_mixed(None))
    rows = tuple(
        (*(() if average else (dataset,)), *arms.columns(arm), *(study.measure(arm, dataset, name, number) for name, number in numbers))
        for dataset in datasets
        for arm in scores.arms
    )
    heads = (*(() if average else ("data set",)), *arms.heads, *(name for name, _ in numbers))
    where = average_of(scores.datasets) if average else "by data set"
    notes = (ACCURACIES, *scores.plan.notes) if average else (ACCURACIES,)
    name = "open-world-average" if average else "open-world"
    return Sheet(name, f"Mixed lists, {where}", heads, rows, notes, group=None if average else 0)


def _rules(study: Study) -> Sheet:
    """Every rule of every method, averages; data sets in the CSV file alone."""
    scores, arms = study.scores, Arms(study.scores)
    rows: list[tuple[TableCell, ...]] = []
    unseen: list[Measure | None] = []
    for arm in scores.arms:
        blocks = [block for dataset in scores.datasets for block in study.found[arm, dataset].values()]
        rules = names_of_rules(blocks)
        for rule in rules if len(rules) > 1 else ():
            numbers = (*_mixed(rule), ("ECE", _of_rule(rule, lambda each: each.ece)))
            mark = " (shipped)" if any(block.shipped == rule for block in blocks) else ""
            rows.append((*arms.columns(arm), rule + mark, *(study.measure(arm, AVERAGE, name, number, rule) for name, number in numbers)))
            unseen += [study.measure(arm, dataset, name, number, rule) for dataset in scores.datasets for name, number in numbers]
    heads = (*arms.heads, "rule", "base to all", "novel to all", "HM", "OpenworldAUC", "ECE")
    title = f"Rules for mixed lists, {average_of(scores.datasets)}"
    there = tuple(each for each in unseen if each)
    return Sheet("open-world-rules", title, heads, tuple(rows), (RULES,), group=0, bold=False, unseen=there)  # of ECE the lowest is best


# ---- calibration, rejection, prediction sets ----


def _grouped(
    study: Study, name: str, title: str, first: str, kinds: Mapping[str, Sequence[tuple[str, Number]]], note: str
) -> Sheet:
    """A block of rows for each kind, with averages over the data sets; the data sets' own numbers are in the CSV file alone."""
    scores, arms = study.scores, Arms(study.scores)
    heads = [head for head, _ in next(iter(kinds.values()))]
    rows: list[tuple[TableCell, ...]] = []
    unseen: list[Measure | None] = []
    for kind, numbers in kinds.items():
        for arm in scores.arms:
            cells = [study.measure(arm, AVERAGE, f"{head}, {kind}", number) for head, number in numbers]
            if any(cell and cell.by_seed for cell in cells):
                rows.append((kind, *arms.columns(arm), *cells))
            unseen += [
                study.measure(arm, dataset, f"{head}, {kind}", number) for dataset in scores.datasets for head, number in numbers
            ]
    return Sheet(
        name, f"{title}, {average_of(scores.datasets)}", (first, *arms.heads, *heads), tuple(rows), (note,), group=0, bold=False,
        unseen=tuple(each for each in unseen if each and each.by_seed),
    )  # fmt: skip


def _calibration(study: Study) -> Sheet:
    def error(classes: Listed, after: str, which: str) -> Number:
        def number(block: OpenWorldRecord) -> tuple[float, ...] | None:
            each = next((each for each in block.calibration if (each.classes, each.after) == (classes, after)), None)
            return None if each is None else (100 * getattr(each, which),)

        return number

    names = {"nothing": "as it is", "temperature": "temperature", "dac": "temperature and DAC"}
    kinds = {
        f"{classes} list": [
            (f"{head}, {names[after]}", error(classes, after, which)) for which, head in (("ece", "ECE"), ("adaptive_ece", "adaptive ECE"))
            for after in AFTER
        ]
        for classes in LISTS
    }  # fmt: skip
    return _grouped(study, "open-world-calibration", "Calibration of trained, new and mixed lists", "list", kinds, CALIBRATION)


def _rejection(study: Study) -> Sheet:
    def mean(own: bool, score: str, which: str) -> Number:
        def number(block: OpenWorldRecord) -> tuple[float, ...] | None:
            first = block.rejection[0].unknown if block.rejection else ""  # the set's own new classes come first
            each = [one for one in block.rejection if one.score == score and (one.unknown == first) == own]
            values = [value for one in each if (value := _value(one, which)) is not None]
            return (statistics.fmean(values),) if values else None

        return number

    columns = [(f"{name} {head}", score, which) for score, name in (("mcm", "MCM"), ("energy", "energy"))
               for head, which in (("AUROC", "auroc"), ("FPR95", "fpr95"), ("kept", "kept"), ("rejected", "rejected"))]  # fmt: skip
    kinds = {
        name: [(head, mean(own, score, which)) for head, score, which in columns]
        for name, own in (("new classes of the set", True), ("other data sets", False))
    }
    return _grouped(study, "open-world-rejection", "Rejection of what is of no trained class", "others", kinds, REJECTION)


def _value(one: Rejection, which: str) -> float | None:
    value: float | None = getattr(one, which)
    return None if value is None else 100 * value


def _coverage(study: Study) -> Sheet:
    def of(classes: Listed, which: str, factor: float) -> Number:
        def number(block: OpenWorldRecord) -> tuple[float, ...] | None:
            each = next((each for each in block.coverage if each.classes == classes), None)
            return None if each is None else (factor * getattr(each, which),)

        return number

    kinds = {f"{name} list": [("coverage", of(name, "coverage", 100.0)), ("size", of(name, "size", 1.0))] for name in LISTS}
    return _grouped(study, "open-world-coverage", "Conformal prediction sets for 90 % coverage", "list", kinds, COVERAGE)


# ---- figures ----


def open_world_drawings(scores: StudyScores) -> list[Drawing]:
    """HM by rule, of the methods with more than one."""
    study = Study(scores)
    arms, drawings = Arms(scores), []
    for family in families(study):
        rules = [rule for rule in family.rules if not rule.endswith(", bias")]
        if len(rules) < 3:  # a method with one classifier
            continue
        rows = [
            (f"{arms.name(arm)}, {dataset}", [study.measure(arm, dataset, "HM", _mixed(rule)[2][1], rule) for rule in rules])
            for dataset in (*([AVERAGE] if len(scores.datasets) > 1 else []), *scores.datasets)
            for arm in family.arms
        ]
        title = "Harmonic mean of base-to-all and novel-to-all accuracy, by rule"
        drawings.append(Drawing(title, dumbbells(title, "HM, %", rows, rules), tuple(rules), "Without the rules with a bias.", wide=True))
    return [drawing for drawing in drawings if drawing.charts]


def reliability_drawings(scores: StudyScores) -> Iterator[tuple[str, Drawing]]:
    """Of each method, the diagrams of its three lists before and after calibration, all data sets and seeds together."""
    study, arms = Study(scores), Arms(scores)
    for arm in scores.arms:
        blocks = [block for dataset in scores.datasets for block in study.found[arm, dataset].values()]
        charts = []
        for classes in LISTS:
            for after in AFTER[:2]:
                bins = [each.bins for block in blocks for each in block.calibration if (each.classes, each.after) == (classes, after)]
                suffix = "" if after == "nothing" else ", temperature"
                charts.append(diagnostics.reliability(f"{classes} list{suffix}", _pooled(bins)))
        if any(charts):
            yield arms.name(arm), Drawing("", tuple(filter(None, charts)))


def _pooled(bins: Sequence[tuple[Bin, ...]]) -> tuple[Bin, ...]:
    return diagnostics.pooled(bins) if all(bins) else ()

