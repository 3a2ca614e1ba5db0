"""The report's charts of accuracies: dumbbells by data set or variant, and curves over shots or the values of an option."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmrl.reports.measures import HM, Arm, Measure, StudyScores
from mmrl.reports.paper import AVERAGE
from mmrl.reports.plans import ZERO_SHOT, is_ablation, swept
from mmrl.reports.svg import Chart, look, marker, tag, tick_text, whisker, width_of
from mmrl.reports.tables import METRICS, Arms, few_shot_columns, in_order, number, value_name

HALVES = ("base", "novel", HM)
PANEL = (310.0, 230.0)  # px


@dataclass(frozen=True)
class Drawing:
    """Charts that share a legend. `series` are the legend's names, in the order of their numbers; '' for one that has no point.

    Attributes:
        wide: the chart is drawn to take the page's whole width; others keep their size, also where there is only one.
    """

    title: str
    charts: tuple[str, ...]
    series: tuple[str, ...] = ()
    note: str = ""
    wide: bool = False


def study_drawings(scores: StudyScores) -> list[Drawing]:
    """The charts of one study; none where no score is there yet."""
    options, methods = len(swept(scores.study)), len({arm.method for arm in scores.arms})
    if options and (options > 1 or methods > 1) and (sweep := _sweep(scores)):
        found = sweep
    elif is_ablation(scores.study):
        found = _ablation(scores)
    elif scores.study == "few-shot":
        found = _few_shot(scores)
    else:
        found = _by_dataset(scores)
    return [found] if found.charts else []


def _by_dataset(scores: StudyScores) -> Drawing:
    """A line for each data set, a mark for each method: HM, or accuracy where classes are not halved (Fig. 1)."""
    arms, named = scores.arms, Arms(scores)
    metric = HM if HM in scores.metrics else "all"
    rows = [(f"{AVERAGE} of targets" if scores.source else AVERAGE, [scores.average(arm, metric) for arm in arms])]
    if len(scores.targets) < 2:
        rows = []
    ordered = [*scores.sources, *scores.targets] if scores.source else scores.datasets
    rows += [(name, [scores.measure(arm, name, metric) for arm in arms]) for name in ordered if name in scores.datasets]
    title = "Harmonic mean by data set" if metric == HM else "Accuracy by data set"
    names = [named.name(arm) for arm in arms]
    drawn = dumbbells(title, f"{METRICS[metric]}, %", rows, names)
    return Drawing(title, drawn, _legend(names, zip(*(measures for _, measures in rows))), _bars(scores), wide=True)


def _legend(names: Sequence[str], series: Iterable[Iterable[Measure | None]]) -> tuple[str, ...]:
    """The names of the series that have a point; '' for the others."""
    return tuple(name if any(m and m.mean is not None for m in points) else "" for name, points in zip(names, series))


def _bars(scores: StudyScores) -> str:
    seeds = {slot.seed for slot in scores.plan.slots if slot.seed is not None}
    return "Bars: one sample standard deviation over seeds." if len(seeds) > 1 else ""


def dumbbells(title: str, axis: str, rows: Sequence[tuple[str, Sequence[Measure | None]]], names: Sequence[str]) -> tuple[str, ...]:
    """One chart: a line for each row from its lowest to its highest mark; nothing if no row has a value."""
    shown = [(label, [m if m and m.mean is not None else None for m in measures]) for label, measures in rows]
    shown = [(label, measures) for label, measures in shown if any(measures)]
    ends = [m.mean + side * (m.std or 0) for _, measures in shown for m in measures if m and m.mean is not None for side in (-1, 1)]
    if not ends:
        return ()
    left = min(190.0, max(width_of(label) for label, _ in shown) + 16)
    text = "; ".join(f"{label}: " + ", ".join(f"{name} {m.mean:.2f}" for name, m in zip(names, ms) if m) for label, ms in shown)
    chart = Chart(640, 26 * len(shown) + 52, title, text, left=left, top=8, heading=False)
    low, high = min(ends), max(ends)
    room = max(0.05 * (high - low), 0.5)
    chart.x_scale(low - room, high + room, name=axis, grid=True)
    for at, (label, measures) in enumerate(shown):
        y = chart.top + 26 * at + 15.0
        means = [chart.x(m.mean) for m in measures if m and m.mean is not None]
        chart.label(label, left - 10, y + 4, anchor="end", room=left - 14, class_="strong" if label.startswith(AVERAGE) else "")
        chart.add(tag("line", x1=min(means), x2=max(means), y1=y, y2=y, class_="link"))
        for series, m in enumerate(measures):
            if m and m.mean is not None:
                std = m.std or 0
                bar = whisker(chart.x(m.mean - std), y, chart.x(m.mean + std), y) if std else ""
                colour, mark, _ = look(series)
                chart.add(tag("g", bar + marker(mark, chart.x(m.mean), y), class_=colour))
    return (chart.render(),)


def curves(title: str, axis: str, labels: Sequence[str], lines: Sequence[Sequence[Measure | None]], levels: Sequence[Measure | None],
           names: Sequence[str]) -> str:  # fmt: skip
    """One panel over equally spaced values `labels`: a line for each series; a series of `levels` is one value, the same everywhere."""
    there = [m for group in (*lines, levels) for m in group if m and m.mean is not None]
    ends = [m.mean + side * (m.std or 0) for m in there if m.mean is not None for side in (-1, 1)]
    if not ends:
        return ""
    text = [
        f"{name}: " + ", ".join(f"{label} {m.mean:.2f}" for label, m in zip(labels, line) if m and m.mean is not None)
        for name, line in zip(names, lines)
        if any(m and m.mean is not None for m in line)
    ]
    width = 58 + len(labels) * (max(map(width_of, labels)) + 8)
    chart = Chart(max(PANEL[0], width), PANEL[1], title, "; ".join(text))
    room = max(0.06 * (max(ends) - min(ends)), 0.4)
    chart.y_scale(min(ends) - room, max(ends) + room)
    chart.x_scale(-0.4, len(labels) - 0.6, at=list(enumerate(labels)), name=axis)
    for series, (line, level) in enumerate(zip(lines, levels)):
        if level and level.mean is not None:
            chart.line([(-0.4, level.mean), (len(labels) - 0.6, level.mean)], series, marks=False)
        points = [(at, m) for at, m in enumerate(line) if m and m.mean is not None]
        chart.line([(at, m.mean or 0.0) for at, m in points], series, stds=[m.std for _, m in points])
    return chart.render()


def _few_shot(scores: StudyScores) -> Drawing:
    """Accuracy over shots: the average and every data set (Fig. 4); zero-shot is a level line."""
    named = Arms(scores)
    labels = [str(shots or "all") for shots in scores.shots]
    names = tuple(named.name(arm) for arm in scores.arms)
    charts = []
    points: list[list[Measure | None]] = [[] for _ in names]
    for dataset in ([AVERAGE] if len(scores.datasets) > 1 else []) + scores.datasets:
        lines, levels = [], []
        for arm in scores.arms:
            found = {shots: _value(scores, arm, dataset, shots) for shots in few_shot_columns(scores)}
            lines.append([None if arm.method == ZERO_SHOT else found[shots] for shots in scores.shots])
            levels.append(found[None] if arm.method == ZERO_SHOT else None)
        for own, line, level in zip(points, lines, levels):
            own += [*line, level]
        charts.append(curves(dataset, "shots (images a class)", labels, lines, levels, names))
    return Drawing("Accuracy in % over shots", tuple(filter(None, charts)), _legend(names, points), _bars(scores))


def _value(scores: StudyScores, arm: Arm, dataset: str, shots: int | None) -> Measure | None:
    if dataset == AVERAGE:
        return scores.average(arm, "all", shots=shots)
    return scores.measure(arm, dataset, "all", shots=shots)


_AXES = {
    "rep-dim": "d_r, width of the representation space", "layers": "J, first layer with representation tokens",
    "tokens": "K, number of representation tokens", "alpha": "α", "lambda": "λ",
}  # fmt: skip


def _ablation(scores: StudyScores) -> Drawing:
    """Base, novel and HM over the values (Fig. 5), or a line for each variant where they are no numbers."""
    arms = [arm for arm in in_order(scores) if arm.method != ZERO_SHOT]
    names = tuple(METRICS[metric] for metric in HALVES)
    places = ([AVERAGE] if len(scores.datasets) > 1 else []) + scores.datasets
    if all(number(arm.variant) is not None for arm in arms) and len({arm.method for arm in arms}) == 1:
        labels = [tick_text(value) if (value := number(arm.variant)) is not None else arm.variant for arm in arms]
        axis = _AXES.get(scores.study) or value_name(scores.study)
        lines = {place: [[_half(scores, arm, place, metric) for arm in arms] for metric in HALVES] for place in places}
        charts = [curves(place, axis, labels, found, [None] * len(found), names) for place, found in lines.items()]
        series = [[m for found in lines.values() for m in found[at]] for at in range(len(names))]
        return Drawing("Accuracy in %", tuple(filter(None, charts)), _legend(names, series), _bars(scores))
    named = Arms(scores)
    rows = [(named.name(arm), [_half(scores, arm, places[0], metric) for metric in HALVES]) for arm in arms]
    title = f"Accuracy, {places[0]}" if places else "Accuracy"
    drawn = dumbbells(title, "accuracy, %", rows, names)
    return Drawing(title, drawn, _legend(names, zip(*(measures for _, measures in rows))), _bars(scores), wide=True)


def _sweep(scores: StudyScores) -> Drawing | None:
    """HM over the values of one option, a line for each method and combination of the others; None where that makes no line."""
    options, titles = swept(scores.study), {arm.title for arm in scores.arms}
    each = [rf"{re.escape(key)}=(.*?)" if len(options) > 1 else "(.*?)" for key in options]
    pattern = re.compile(", ".join(each) + r"((?:, \w+=.*)?)")
    points = [(match.groups(), arm) for arm in scores.arms if (match := pattern.fullmatch(arm.variant))]
    best: dict[tuple[str, ...], dict[str, Arm]] = {}
    axis = ""
    for at, key in enumerate(options):
        if all(number(values[at]) is not None for values, _ in points):
            lines: dict[tuple[str, ...], dict[str, Arm]] = {}
            for values, arm in points:
                own = (arm.title if len(titles) > 1 else "", *(f"{k}={v}" for k, v in zip(options, values) if k != key))
                rest = (*own, values[-1].removeprefix(", "), str(arm.shots), arm.backbone)
                lines.setdefault(rest, {})[values[at]] = arm
            if max(map(len, lines.values()), default=0) > max(map(len, best.values()), default=1):  # the option with the longest lines
                best, axis = lines, key
    if not best or sum(map(len, best.values())) < len(scores.arms):
        return None
    labels = sorted({label for arms in best.values() for label in arms}, key=lambda text: number(text) or 0.0)
    names = tuple(", ".join(filter(None, rest[:-2])) for rest in best)
    places = ([AVERAGE] if len(scores.datasets) > 1 else []) + scores.datasets
    metric = HM if any((m := _half(scores, arm, places[0], HM)) and m.applicable for arm in scores.arms) else "base"
    charts: list[str] = []
    series: list[list[Measure | None]] = [[] for _ in names]
    for place in places:
        drawn = [[_half(scores, arms[label], place, metric) if label in arms else None for label in labels] for arms in best.values()]
        charts.append(curves(place, axis, labels, drawn, [None] * len(drawn), names))
        for own_points, line in zip(series, drawn):
            own_points += line
    return Drawing(f"{METRICS[metric]} in %", tuple(filter(None, charts)), _legend(names, series), _bars(scores))


def _half(scores: StudyScores, arm: Arm, dataset: str, metric: str) -> Measure | None:
    return scores.average(arm, metric) if dataset == AVERAGE else scores.measure(arm, dataset, metric)
