"""Charts of single classifiers: calibration, confusions, training curves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.reports.records import Bin, Scores
from mmrl.reports.svg import Chart, tag, width_of

MATRIX_UP_TO = 60  # classes up to which confusions are a matrix; a list of the commonest otherwise
COMMONEST = 8
SHADES = 8
NOT_LOSSES = ("step", "epoch", "lr", "accuracy", "seconds")
WHOLE = ("loss", "total")  # of whose terms the other series are
POINTS = 120


def pooled(seeds: Sequence[Sequence[Bin]]) -> tuple[Bin, ...]:
    """The bins of several seeds as of one set of predictions; none if a seed lacks them."""
    if not seeds or any(len(bins) != len(seeds[0]) for bins in seeds):
        return ()
    out = []
    for bins in zip(*seeds):
        count = sum(each.count for each in bins)
        confidence, accuracy = (
            sum(each.count * getattr(each, name) for each in bins) / max(count, 1) for name in ("confidence", "accuracy")
        )
        out.append(Bin(count=count, confidence=min(confidence, 1.0), accuracy=min(accuracy, 1.0)))
    return tuple(out)


def reliability(title: str, bins: Sequence[Bin]) -> str:
    """Accuracy by confidence in equally wide bins, against the diagonal; bars below: share of the images. '' if there are none."""
    total = sum(each.count for each in bins)
    if not total:
        return ""
    gap = sum(each.count * abs(each.accuracy - each.confidence) for each in bins) / total
    text = f"{total} predictions, expected calibration error {100 * gap:.1f} %. "
    text += "; ".join(f"confidence {100 * each.confidence:.0f} %: accuracy {100 * each.accuracy:.0f} %" for each in bins if each.count)
    chart = Chart(250, 262, title, text, left=52, bottom=76)
    chart.y_scale(0, 100, count=4, name="accuracy, %")
    floor, ground = chart.height - chart.bottom, chart.height - 40
    chart.x_scale(0, 100, at=[])
    step = 100 / len(bins)
    for at, each in enumerate(bins):
        if each.count:
            left, right = chart.x(at * step + 0.4), chart.x((at + 1) * step - 0.4)
            top = chart.y(100 * each.accuracy)
            size: dict[str, Any] = {"x": left, "width": right - left}
            chart.add(tag("g", tag("rect", y=top, height=floor - top, class_="mark", **size), class_="s0"))
            high = 24 * each.count / total
            chart.add(tag("g", tag("rect", y=ground - high, height=high, class_="mark", **size), class_="s4"))
    chart.add(tag("line", x1=chart.x(0), y1=chart.y(0), x2=chart.x(100), y2=chart.y(100), class_="diagonal"))
    chart.add(tag("line", x1=chart.left, x2=chart.width - chart.right, y1=ground, y2=ground, class_="grid"))
    for value in (0, 50, 100):
        chart.label(str(value), chart.x(value), ground + 14, anchor="middle")
    chart.label(
        f"confidence, %   (ECE {100 * gap:.1f} %)",
        (chart.left + chart.width - chart.right) / 2,
        chart.height - 6,
        anchor="middle",
        class_="axis",
    )
    return chart.render()


def confusion(title: str, scores: Scores) -> str:
    """The matrix of true (rows) and predicted classes (columns), each row as shares of its images. '' if none, or too large."""
    n = len(scores.confusion)
    if not n or n > MATRIX_UP_TO:
        return ""
    side = 26.0 if n <= 12 else 16.0 if n <= 30 else 11.0
    names = list(scores.class_names) or [str(i) for i in range(n)]
    left = min(150.0, max(map(width_of, names)) + 12) if side >= 11 else 20.0
    wide = left + n * side + 14
    # Names below the columns stand upright, so they need as much room as the names of the rows.
    about = "rows: true class; columns: predicted"
    chart = Chart(
        max(wide, width_of(about) + 14), 30 + n * side + left + 22, title, _confused_text(scores), left=left, top=30, bottom=left + 22
    )
    shades: dict[int, list[str]] = defaultdict(list)
    for i, row in enumerate(scores.confusion):
        total = max(sum(row), 1)
        for j, count in enumerate(row):
            if count:
                shade = max(1, round(SHADES * count / total))
                shades[shade].append(f"M{left + j * side:g} {30 + i * side:g}h{side - 1:g}v{side - 1:g}h{1 - side:g}z")
    chart.add(tag("rect", x=left - 1, y=29, width=n * side + 1, height=n * side + 1, class_="box"))
    for shade, paths in sorted(shades.items()):
        chart.add(tag("g", tag("path", d="".join(paths), class_="mark", opacity=f"{shade / SHADES:.3f}"), class_="s0"))
    for i, name in enumerate(names):
        middle = (i + 0.5) * side
        chart.label(name, left - 5, 30 + middle + 4, anchor="end", room=left - 8, class_="fine" if side < 16 else "")
        place = f"translate({left + middle + 4:.1f} {34 + n * side:.1f}) rotate(-90)"
        chart.label(name, 0, 0, anchor="end", room=left - 8, transform=place, class_="fine" if side < 16 else "")
    chart.label(about, 6, chart.height - 6, class_="axis")
    return chart.render()


def confused(scores: Scores, limit: int = COMMONEST) -> list[tuple[str, str, int, float]]:
    """The commonest mistakes: true class, predicted class, images, and their share of the true class's images."""
    names = scores.class_names or tuple(str(i) for i in range(len(scores.confusion)))
    pairs = [
        (names[i], names[j], count, count / max(sum(row), 1))
        for i, row in enumerate(scores.confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(pairs, key=lambda pair: (-pair[2], -pair[3], pair[0], pair[1]))[:limit]


def _confused_text(scores: Scores) -> str:
    worst = [f"{true} taken for {guess} {count} times" for true, guess, count, _ in confused(scores, 5)]
    return f"{scores.count} images, accuracy {100 * scores.top1:.1f} %. " + (
        "Commonest mistakes: " + "; ".join(worst) if worst else "No mistakes"
    )


def training(title: str, history: Sequence[Mapping[str, float]]) -> tuple[list[str], list[str]]:
    """Charts of the loss with its terms and of the accuracy on training batches, over steps; and the names of the loss's series."""
    rows = history[:: max(1, len(history) // POINTS)]
    names = sorted({key for row in rows for key in row if key not in NOT_LOSSES}, key=lambda name: (name not in WHOLE, name))
    out = []
    for what, keys in (("loss", names), ("batch accuracy, %", ["accuracy"])):
        factor = 100.0 if keys == ["accuracy"] else 1.0
        lines = [[(float(row["step"]), factor * row[key]) for row in rows if key in row and "step" in row] for key in keys]
        values = [y for line in lines for _, y in line]
        steps = [x for line in lines for x, _ in line]
        if not values:
            continue
        chart = Chart(310, 210, f"{title}: {what}", f"from {values[0]:.3g} to {lines[0][-1][1]:.3g} over {max(steps):.0f} steps")
        chart.y_scale(min(0.0, *values), 100.0 if factor > 1 else max(values) * 1.05 or 1.0, count=4)
        chart.x_scale(0.0, max(steps), name="step")
        for series, line in enumerate(lines):
            if line:
                chart.line(line, series, marks=False)
        out.append(chart.render())
    return out, names
