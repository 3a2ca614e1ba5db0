"""All methods of a study side by side: rank, average, paired difference to MMRL with its interval, and what a training took."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mmrl.reports.measures import HM, Arm, Measure, StudyScores
from mmrl.reports.paired import RESAMPLES, SHARE, Comparison, Side, compare
from mmrl.reports.paper import AVERAGE
from mmrl.reports.plans import ZERO_SHOT, is_ablation
from mmrl.reports.results import Results
from mmrl.reports.sheets import NOT_APPLICABLE, Sheet, TableCell
from mmrl.reports.svg import SMALL, Chart, look, marker, tag, tick_text, width_of
from mmrl.reports.tables import METRICS, Arms, title_of

REFERENCE = "mmrl"  # others are compared with it
NOTES = (
    "Rank: mean over the data sets, 1 is the highest; equal ones share the mean of their ranks. Only methods that are applicable and done "
    "on every data set are ranked.",
    "Difference: of the averages, in points, over the data sets and seeds that both have; its interval as in `mmrl compare`: "
    f"{SHARE:.0%}, by {RESAMPLES:,} resamples of data sets and of seeds within each. Of few data sets it is too narrow.",
    "Seconds: of one training, mean over data sets and seeds, on the machines that the summary names; images are read and decoded in it.",
)


@dataclass(frozen=True)
class Standing:
    """A method's place among the others, in per cent and points.

    Attributes:
        average: over the data sets.
        rank: mean over the data sets; None if one of them lacks it.
        compared: with the reference; None for itself, and where nothing is shared.
        parameters: trained; seconds: of a training, mean; 0 for zero-shot. None if no training is there.
    """

    arm: Arm
    average: Measure
    rank: float | None
    compared: Comparison | None
    parameters: int | None
    seconds: float | None


def standings(results: Results, scores: StudyScores) -> list[Standing]:
    """Of all methods that have an average, the highest first; those that are not applicable last. Empty for ablations."""
    if is_ablation(scores.study):
        return []
    metric = HM if HM in scores.metrics else "all"
    shots = scores.shots[-1] if scores.study == "few-shot" and scores.shots else None
    columns = {arm: None if arm.method == ZERO_SHOT else shots for arm in scores.arms}
    cells = {arm: {name: scores.measure(arm, name, metric, shots=columns[arm]) for name in scores.targets} for arm in scores.arms}
    ranks, reference = _ranks(cells), next((arm for arm in scores.arms if arm.method == REFERENCE and not arm.variant), None)
    found = []
    for arm in scores.arms:
        average = scores.average(arm, metric, shots=columns[arm])
        if average is None or (average.mean is None and average.applicable):
            continue
        compared = None
        if reference is not None and arm != reference and arm.backbone == reference.backbone and average.applicable:
            sides = (Side(results, scores, each, each.title) for each in (arm, reference))
            compared = next((each for each in reversed(list(compare(*sides))) if each.metric == metric), None)  # few-shot: the most shots
        found.append(Standing(arm, average, ranks.get(arm), compared, *_training_of(results, scores, arm, columns[arm])))
    return sorted(found, key=lambda each: -math.inf if each.average.mean is None else each.average.mean, reverse=True)


def _ranks(cells: Mapping[Arm, Mapping[str, Measure | None]]) -> dict[Arm, float]:
    """Mean rank over the data sets of the arms that have all of them."""
    means = {arm: [m.mean for m in own.values() if m and m.mean is not None] for arm, own in cells.items()}
    whole = {arm: values for arm, values in means.items() if values and len(values) == len(cells[arm])}
    if len(whole) < 2:
        return {}
    ranks: dict[Arm, list[float]] = {arm: [] for arm in whole}
    for column in zip(*whole.values()):
        shown = [round(value, 2) for value in column]
        for arm, value in zip(whole, shown):
            above, equal = sum(other > value for other in shown), shown.count(value)
            ranks[arm].append(above + (equal + 1) / 2)
    return {arm: statistics.fmean(each) for arm, each in ranks.items()}


def _training_of(results: Results, scores: StudyScores, arm: Arm, shots: int | None) -> tuple[int | None, float | None]:
    """Trained parameters and seconds of the arm's trainings."""
    if arm.method == ZERO_SHOT:
        return 0, 0.0
    classes = "base" if HM in scores.metrics else "all"
    tests = [test for name in scores.datasets for test in scores.tests(arm, name, classes, shots)]
    runs = {results.run_of[test.key].key: results.run_of[test.key] for test in tests}
    trainings = [run.training for run in runs.values() if run.training]
    if not trainings:
        return None, None
    return trainings[0].trained_parameters, statistics.fmean(training.seconds for training in trainings)


def ranking_sheet(scores: StudyScores, found: Sequence[Standing]) -> Sheet | None:
    """The table; None for fewer than two methods."""
    if len(found) < 2:
        return None
    arms = Arms(scores)
    metric = "HM of the averages" if HM in scores.metrics else "average"
    reference = next((each.arm.title for each in found if each.arm.method == REFERENCE), None)
    compared = reference is not None and any(each.compared for each in found)
    beside = (f"difference to {reference}", "95% from", "to") if compared else ()
    rows: list[tuple[TableCell, ...]] = []
    for each in found:
        mean = each.average.mean if each.average.applicable else NOT_APPLICABLE
        apart = each.compared
        difference = ((apart.value, apart.low, apart.high) if apart else (None, None, None)) if compared else ()
        numbers = (None if value is None else round(value, 2) for value in (each.average.std, each.rank, *difference, each.seconds))
        spread, rank, *others, seconds = numbers
        rows.append((*arms.columns(each.arm), mean, spread, rank, *others, each.parameters, seconds))
    heads = (*arms.heads, metric, "spread over seeds", "mean rank", *beside, "trained parameters", "seconds a training")
    title = f"{title_of(scores.study)}, methods side by side"
    return Sheet(f"{scores.study}-ranking", title, heads, tuple(rows), NOTES if compared else (NOTES[0], NOTES[2]), bold=False)


def time_chart(scores: StudyScores, found: Sequence[Standing]) -> str:
    """Accuracy over the seconds of a training, logarithmic; zero-shot CLIP is a level line. '' for fewer than two trained methods."""
    arms = Arms(scores)
    timed = [each for each in found if each.average.mean is not None and each.seconds]
    level = next((each.average.mean for each in found if each.arm.method == ZERO_SHOT), None)
    if len(timed) < 2:
        return ""
    means = [each.average.mean for each in timed if each.average.mean is not None] + ([level] if level is not None else [])
    metric = METRICS[HM if HM in scores.metrics else "all"]
    text = "; ".join(f"{arms.name(each.arm)}: {each.average.mean:.2f} in {each.seconds:.3g} s" for each in timed)
    chart = Chart(640, 380, f"{metric} against training time", text, left=52)
    room = max(0.06 * (max(means) - min(means)), 0.4)
    chart.y_scale(min(means) - room, max(means) + room, name=f"{metric}, {AVERAGE}, %")
    powers = [math.log10(each.seconds) for each in timed if each.seconds]
    low, high = math.floor(min(powers)), max(math.ceil(max(powers)), math.floor(min(powers)) + 1)
    chart.x_scale(low, high + 0.15, at=[(at, tick_text(10.0**at)) for at in range(low, high + 1)], name="seconds of a training", grid=True)
    if level is not None:
        y = chart.y(level)
        chart.add(tag("line", x1=chart.left, x2=chart.width - chart.right, y1=y, y2=y, class_="link"))
        chart.label("zero-shot CLIP", chart.width - chart.right, y - 5, anchor="end")
    for series, x, y, height, name in _placed(chart, arms, timed):
        chart.add(tag("g", marker(look(series)[1], x, y), class_=look(series)[0]))
        flips = _flips(chart, x, name)
        chart.label(name, x - 8 if flips else x + 8, height, anchor="end" if flips else "start")
    return chart.render()


def _placed(chart: Chart, arms: Arms, timed: Sequence[Standing]) -> Iterator[tuple[int, float, float, float, str]]:
    """Series, place of the mark, height of its name, and the name. Names that would cover one another are moved apart, upwards."""
    taken: list[tuple[float, float, float]] = []  # left, right, height
    marks = [(series, chart.x(math.log10(each.seconds or 1.0)), chart.y(each.average.mean or 0.0), arms.name(each.arm)) for series, each in
             enumerate(timed)]  # fmt: skip
    for series, x, y, name in sorted(marks, key=lambda mark: -mark[2]):
        left = x - 8 - width_of(name) if _flips(chart, x, name) else x + 8
        right, height = left + width_of(name), y + 4
        while any(left < other[1] and other[0] < right and abs(height - other[2]) < SMALL for other in taken):
            height -= 1
        taken.append((left, right, height))
        yield series, x, y, height, name


def _flips(chart: Chart, x: float, name: str) -> bool:
    """Whether a name stands left of its mark, for want of room."""
    return x + 8 + width_of(name) > chart.width - chart.right
