"""All methods of a study side by side: rank, average, paired difference to MMRL with its interval, and what a training took."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmrl.reports.measures import HM, Arm, Measure, StudyScores
from mmrl.reports.paired import RESAMPLES, SHARE, Comparison, Side, compare, unlike
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
    "Seconds: of one training, mean over data sets and seeds, on the machines that the summary names; images are read and decoded in it, "
    "but for those whose features an earlier run left in the folder.",
)


@dataclass(frozen=True)
class Standing:
    """A method's place among the others, in per cent and points.

    Attributes:
        average: over the data sets.
        rank: mean over the data sets; None if one of them lacks it.
        compared: with the reference; None for itself, and where nothing is shared.
        parameters: trained; seconds: of a training, mean; 0 for zero-shot. None if no training is there.
        name: in one piece, where the arms are of several results folders.
        reference: whether the others are compared with it.
    """

    arm: Arm
    average: Measure
    rank: float | None
    compared: Comparison | None
    parameters: int | None
    seconds: float | None
    name: str = ""
    reference: bool = False


def standings(results: Results, scores: StudyScores) -> list[Standing]:
    """Of all methods that have an average, the highest first; those that are not applicable last. Empty for ablations."""
    return [] if is_ablation(scores.study) else side_by_side([Side(results, scores, arm, "") for arm in scores.arms])


def side_by_side(sides: Sequence[Side]) -> list[Standing]:
    """The same of arms of one study in any results folders, over the data sets, and with the most shots, that all the folders have."""
    studies = [side.scores for side in sides]
    metric = HM if all(HM in scores.metrics for scores in studies) else "all"
    counts = sorted(set.intersection(*(set(scores.shots) for scores in studies))) if sides and sides[0].scores.study == "few-shot" else []
    columns = [None if side.arm.method == ZERO_SHOT or not counts else counts[-1] for side in sides]
    targets = shared_targets(studies)
    cells = [
        [side.scores.measure(side.arm, name, metric, shots=shots) for name in targets] for side, shots in zip(sides, columns, strict=True)
    ]
    ranks, reference = _ranks(cells), next((side for side in sides if side.arm.method == REFERENCE and not side.arm.variant), None)
    found = []
    for at, (side, shots) in enumerate(zip(sides, columns, strict=True)):
        arm = side.arm
        average = side.scores.average(arm, metric, shots=shots, datasets=targets) if targets else None
        if average is None or (average.mean is None and average.applicable):
            continue
        compared = None
        if reference is not None and side is not reference and arm.backbone == reference.arm.backbone and average.applicable:
            pairs = (each for each in compare(side, reference) if each.metric == metric)
            compared = next(reversed(list(pairs)), None)  # few-shot: the most shots
        took = _training_of(side.results, side.scores, arm, shots)
        found.append(Standing(arm, average, ranks.get(at), compared, *took, side.name, side is reference))
    return sorted(found, key=lambda each: -math.inf if each.average.mean is None else each.average.mean, reverse=True)


def shared_targets(studies: Sequence[StudyScores]) -> list[str]:
    """Data sets of the averages that all of the studies have."""
    return [name for name in studies[0].targets if all(name in scores.targets for scores in studies)] if studies else []


def _ranks(cells: Sequence[Sequence[Measure | None]]) -> dict[int, float]:
    """Mean rank over the data sets of the arms that have all of them, by their places."""
    means = {at: [m.mean for m in own if m and m.mean is not None] for at, own in enumerate(cells)}
    whole = {at: values for at, values in means.items() if values and len(values) == len(cells[at])}
    if len(whole) < 2:
        return {}
    ranks: dict[int, list[float]] = {at: [] for at in whole}
    for column in zip(*whole.values()):
        shown = [round(value, 2) for value in column]
        for at, value in zip(whole, shown):
            above, equal = sum(other > value for other in shown), shown.count(value)
            ranks[at].append(above + (equal + 1) / 2)
    return {at: statistics.fmean(each) for at, each in ranks.items()}


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
    """The table; None for fewer than two methods. `scores`: the study; where they have names, of the first folder."""
    if len(found) < 2:
        return None
    arms, named = Arms(scores), any(each.name for each in found)
    metric = "HM of the averages" if HM in scores.metrics else "average"
    reference = next((each.name or each.arm.title for each in found if each.reference), None)
    compared = reference is not None and any(each.compared for each in found)
    beside = (f"difference to {reference}", "95% from", "to") if compared else ()
    rows: list[tuple[TableCell, ...]] = []
    for each in found:
        mean = each.average.mean if each.average.applicable else NOT_APPLICABLE
        apart = each.compared
        difference = ((apart.value, apart.low, apart.high) if apart else (None, None, None)) if compared else ()
        numbers = (None if value is None else round(value, 2) for value in (each.average.std, each.rank, *difference, each.seconds))
        spread, rank, *others, seconds = numbers
        rows.append((*((each.name,) if named else arms.columns(each.arm)), mean, spread, rank, *others, each.parameters, seconds))
    first = ("method",) if named else arms.heads
    heads = (*first, metric, "spread over seeds", "mean rank", *beside, "trained parameters", "seconds a training")
    title = f"{title_of(scores.study)}, methods side by side"
    notes = (*(NOTES if compared else (NOTES[0], NOTES[2])), *unlike([each.compared for each in found if each.compared]))
    return Sheet(f"{scores.study}-ranking", title, heads, tuple(rows), notes, bold=False)


def time_chart(scores: StudyScores, found: Sequence[Standing]) -> str:
    """Accuracy over the seconds of a training, logarithmic; zero-shot CLIP is a level line. '' for fewer than two trained methods."""
    arms = Arms(scores)
    timed = [each for each in found if each.average.mean is not None and each.seconds]
    level = next((each.average.mean for each in found if each.arm.method == ZERO_SHOT), None)
    if len(timed) < 2:
        return ""
    means = [each.average.mean for each in timed if each.average.mean is not None] + ([level] if level is not None else [])
    metric = METRICS[HM if HM in scores.metrics else "all"]
    text = "; ".join(f"{each.name or arms.name(each.arm)}: {each.average.mean:.2f} in {each.seconds:.3g} s" for each in timed)
    chart = Chart(640, 380, f"{metric} against training time", text, left=52)
    room = max(0.06 * (max(means) - min(means)), 0.4)
    chart.y_scale(min(means) - room, max(means) + room, name=f"{metric}, {AVERAGE}, %")
    powers = [math.log10(each.seconds) for each in timed if each.seconds]
    low, high = math.floor(min(powers)), max(math.ceil(max(powers)), math.floor(min(powers)) + 1)
    chart.x_scale(low, high + 0.15, at=[(at, tick_text(10.0**at)) for at in range(low, high + 1)], name="seconds of a training", grid=True)
    taken: list[tuple[float, float, float]] = []
    if level is not None:
        y = chart.y(level)
        chart.add(tag("line", x1=chart.left, x2=chart.width - chart.right, y1=y, y2=y, class_="link"))
        right, name = chart.width - chart.right, "zero-shot CLIP"
        chart.label(name, right, y - 5, anchor="end")
        taken.append((right - width_of(name), right, y - 5))
    for series, x, y, height, name in _placed(chart, arms, timed, taken):
        chart.add(tag("g", marker(look(series)[1], x, y), class_=look(series)[0]))
        flips = _flips(chart, x, name)
        chart.label(name, x - 8 if flips else x + 8, height, anchor="end" if flips else "start")
    return chart.render()


def _placed(
    chart: Chart, arms: Arms, timed: Sequence[Standing], taken: list[tuple[float, float, float]]
) -> Iterator[tuple[int, float, float, float, str]]:
    """Series, place of the mark, height of its name, and the name. Names that would cover one another, or what is `taken` (left, right and
    height of names that stand), are moved apart, upwards."""
    marks = [
        (series, chart.x(math.log10(each.seconds or 1.0)), chart.y(each.average.mean or 0.0), each.name or arms.name(each.arm))
        for series, each in enumerate(timed)
    ]
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
