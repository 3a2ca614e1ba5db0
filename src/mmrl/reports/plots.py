"""Plots of run records as PNG files: accuracies by method, training curves, calibration, confusions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from PIL import Image

from mmrl.errors import UsageError
from mmrl.reports.records import Scores
from mmrl.reports.style import BLUE, CYCLE, DASHES, GREY, INK, ORANGE, PALE, VERMILLION, figure, quiet, shorten
from mmrl.reports.tables import Row, Summary

PANELS_PER_ROW = 4
NUMBERS_UP_TO = 20  # classes up to which a confusion matrix prints its counts
NAMES_UP_TO = 60  # and its class names
NOT_LOSSES = ("step", "epoch", "lr", "accuracy", "seconds")


def accuracy_plot(summary: Summary, path: Path) -> None:
    """Base, novel and their harmonic mean: a panel for each data set (and their average), a line for each method.

    Error bars are one sample standard deviation over seeds. Top-1 accuracy in per cent.
    """
    groups = [[row for row in summary.rows if row.dataset == name] for name in summary.datasets]
    if summary.averages:
        groups.append(list(summary.averages))
    lines = math.ceil(len(groups) / PANELS_PER_ROW)
    columns = math.ceil(len(groups) / lines)
    methods = summary.methods
    height = 0.42 * len(methods) + 0.75
    with figure(path, max(4.8, 2.9 * columns), lines * height + 0.65) as drawn:
        panels = drawn.subplots(lines, columns, sharey=True, squeeze=False)
        for panel, group in zip(panels.flat, groups, strict=False):
            _dumbbells(panel, group, methods)
        for panel in panels.flat[len(groups) :]:
            panel.set_visible(False)
        for panel in panels.flat[max(0, len(groups) - columns) : len(groups)]:  # the lowest of each column
            panel.set_xlabel("top-1 accuracy, %")
        legend = [
            Line2D([], [], marker="o", color=BLUE, linestyle="", label="base (trained on)"),
            Line2D([], [], marker="s", color=VERMILLION, markerfacecolor="white", markeredgewidth=1.6, linestyle="", label="novel"),
            Line2D([], [], marker="|", color=INK, markersize=12, markeredgewidth=2.2, linestyle="", label="harmonic mean"),
        ]
        if any(stat.std for row in summary.rows for stat in (row.base, row.novel)):
            legend.append(Line2D([], [], marker="|", color=GREY, markersize=5, linewidth=1.2, label="± 1 standard deviation"))
        drawn.legend(handles=legend, loc="outside upper center", ncols=4 if columns > 1 else 2)


def _dumbbells(panel: Axes, rows: Sequence[Row], methods: Sequence[str]) -> None:
    for row in rows:
        y = methods.index(row.method)
        panel.plot([row.base.mean, row.novel.mean], [y, y], color=PALE, linewidth=4, solid_capstyle="round", zorder=1)
        for stat, colour, shift in ((row.base, BLUE, -0.13), (row.novel, VERMILLION, 0.13)):
            if stat.std:
                panel.errorbar(stat.mean, y + shift, xerr=stat.std, color=colour, capsize=2.5, linewidth=1.2, zorder=2)
        panel.plot(row.base.mean, y, "o", color=BLUE, markersize=6.5, zorder=3)
        panel.plot(row.novel.mean, y, "s", color=VERMILLION, markerfacecolor="white", markeredgewidth=1.6, markersize=6, zorder=3)
        panel.plot(row.hm.mean, y, "|", color=INK, markersize=15, markeredgewidth=2.2, zorder=4)
        panel.annotate(f"{row.hm.mean:.1f}", (row.hm.mean, y), (0, 10), textcoords="offset points", ha="center", fontsize=8, color=INK)
    title = rows[0].dataset if len({row.dataset for row in rows}) == 1 else "average"
    panel.set_title(shorten(title, 28))
    panel.set_yticks(range(len(methods)), [shorten(name) for name in methods])
    panel.set_ylim(len(methods) - 0.45, -0.7)
    panel.margins(x=0.12)
    quiet(panel)


def training_curves(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Terms of the loss, accuracy on the training batches and learning rate over optimiser steps.

    Args:
        history: one mapping every few steps with `step`, and of `epoch`, `lr`, `accuracy` (0 to 1) and loss terms what there is.
    """
    if not history:
        raise UsageError("nothing to plot: the run record has no training history")
    steps = np.array([entry["step"] for entry in history])
    names = [name for name in dict.fromkeys(key for entry in history for key in entry) if name not in NOT_LOSSES]
    others = [name for name in ("accuracy", "lr") if any(name in entry for entry in history)]
    count = 1 + len(others)
    with figure(path, 7.2, 2.6 + 1.25 * len(others)) as drawn:
        panels = drawn.subplots(count, 1, sharex=True, squeeze=False, height_ratios=[2.4] + [1.0] * len(others))[:, 0]
        for index, name in enumerate(names):
            colour = INK if name == "total" else CYCLE[index % len(CYCLE)]
            _curve(panels[0], steps, _series(history, name), colour, "-" if name == "total" else DASHES[index % len(DASHES)], name)
        lowest = min((float(np.nanmin(_series(history, name))) for name in names), default=0.0)
        panels[0].set_ylim(bottom=0 if lowest >= 0 else None)
        panels[0].set_ylabel("loss")
        panels[0].set_title("Training loss and its terms")
        panels[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        for panel, name in zip(panels[1:], others, strict=True):
            series = _series(history, name)
            if name == "accuracy":
                _curve(panel, steps, 100 * series, BLUE, "-", None)
                panel.set_ylim(0, 102)
                panel.set_ylabel("batch\naccuracy, %")
            else:
                panel.step(steps, series, where="post", color=INK, linewidth=1.4)
                panel.set_ylim(bottom=0)
                panel.set_ylabel("learning\nrate")
        for panel in panels:
            quiet(panel, grid="y")
            panel.tick_params(axis="x", length=3)
        panels[-1].set_xlabel("step")
        drawn.align_ylabels(panels)


def _series(history: Sequence[Mapping[str, float]], name: str) -> np.ndarray:
    return np.array([entry.get(name, math.nan) for entry in history], dtype=float)


def _curve(panel: Axes, steps: np.ndarray, values: np.ndarray, colour: str, dash: object, label: str | None) -> None:
    """A faint line of the values, and over it their running mean where there are enough of them to need one."""
    width = len(values) // 25
    if width > 1:
        panel.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
        kernel = np.ones(width)
        valid = np.isfinite(values)
        smooth = np.convolve(np.where(valid, values, 0), kernel, "same") / np.maximum(np.convolve(valid, kernel, "same"), 1)
        values = np.where(valid, smooth, np.nan)
    panel.plot(steps, values, color=colour, linestyle=dash, linewidth=1.6, label=label)


def reliability_diagram(scores: Scores, path: Path, *, title: str = "Reliability") -> None:
    """Accuracy against confidence in the bins of `scores` (15 equally wide ones), and how many images each holds."""
    if not scores.bins:
        raise UsageError("nothing to plot: the scores have no calibration bins")
    width = 1 / len(scores.bins)
    centres = (np.arange(len(scores.bins)) + 0.5) * width
    count = np.array([each.count for each in scores.bins])
    accuracy = np.array([each.accuracy for each in scores.bins])
    confidence = np.array([each.confidence for each in scores.bins])
    filled = count > 0
    with figure(path, 4.2, 5.0) as drawn:
        upper, lower = drawn.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
        upper.bar(centres[filled], accuracy[filled], width * 0.94, color=BLUE, label="accuracy")
        low, gap = np.minimum(accuracy, confidence), np.abs(accuracy - confidence)
        look = {"facecolor": "none", "edgecolor": VERMILLION, "hatch": "////", "linewidth": 0.8}
        upper.bar(centres[filled], gap[filled], width * 0.94, bottom=low[filled], label="gap to mean confidence", **look)
        upper.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1.2, label="perfect calibration")
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        measured = f"ECE {100 * scores.ece:.1f} %, " if scores.ece is not None else ""
        upper.set_title(f"{title}\n{measured}accuracy {100 * scores.top1:.1f} %")
        upper.legend(loc="upper left")
        quiet(upper, grid="y")
        lower.bar(centres, 100 * count / max(count.sum(), 1), width * 0.94, color=ORANGE)
        lower.set(xlabel="confidence", ylabel="images, %")
        quiet(lower, grid="y")
        lower.tick_params(axis="x", length=3)


def confusion_plot(scores: Scores, path: Path, *, title: str = "Confusion") -> None:
    """The confusion matrix, each row as shares of the true class; counts are printed for up to 20 classes."""
    if not scores.confusion:
        raise UsageError("nothing to plot: the scores have no confusion matrix")
    matrix = np.array(scores.confusion, dtype=float)
    n = len(matrix)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(max(3.4, 0.34 * n + 1.9), 11.0)
    with figure(path, side + 0.9, side) as drawn:
        panel = drawn.subplots()
        image = panel.imshow(share, cmap="Blues", vmin=0, vmax=1)
        panel.set(xlabel="predicted class", ylabel="true class")
        panel.set_title(f"{title}\n{scores.count} images")
        panel.spines[:].set_visible(False)
        panel.tick_params(length=0)
        names = [shorten(name) for name in scores.class_names]
        size = 8 if n <= NUMBERS_UP_TO else 5.5
        if names and n <= NAMES_UP_TO:
            panel.set_xticks(range(n), names, rotation=90, fontsize=size)
            panel.set_yticks(range(n), names, fontsize=size)
        if n <= NUMBERS_UP_TO:
            for row, column in np.argwhere(matrix > 0):
                colour = "white" if share[row, column] > 0.55 else INK
                panel.text(column, row, f"{matrix[row, column]:.0f}", ha="center", va="center", fontsize=7.5, color=colour)
        bar: Any = drawn.colorbar(image, ax=panel, shrink=0.75, label="share of the true class")  # some releases type its outline wrongly
        bar.outline.set_visible(False)


Guess = tuple[str, float, bool]


def predictions_plot(images: Sequence[Path], guesses: Sequence[Sequence[Guess]], truths: Sequence[str], path: Path) -> None:
    """Each image over its likeliest classes, as bars; classes that were never trained are hatched and marked as new.

    Args:
        guesses: for each image (name, probability, trained), likeliest first.
        truths: the right class of each image, for the titles.
    """
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    with figure(path, 2.3 * columns, 2.9 * rows) as drawn:
        grid = drawn.subfigures(rows, columns, squeeze=False)
        for place in grid.flat[len(images) :]:
            place.set_visible(False)
        for place, file, ranked, truth in zip(grid.flat, images, guesses, truths):
            upper, lower = place.subplots(2, 1, height_ratios=(3, 1.3))
            with Image.open(file) as image:
                upper.imshow(image.convert("RGB"), interpolation="nearest")
            upper.set_title(f"it is: {shorten(truth, 20)}", fontsize=9, loc="center")
            upper.axis("off")
            for at, (name, probability, trained) in enumerate(ranked):
                look = {"color": BLUE} if trained else {"facecolor": "white", "edgecolor": VERMILLION, "hatch": "//////"}
                lower.barh(at + 0.2, probability, height=0.3, **look)
                lower.text(0, at, f"{shorten(name, 24)}{'' if trained else ' (new)'}", va="bottom", fontsize=7.5)
                lower.text(1, at, f"{probability:.0%}", va="bottom", ha="right", fontsize=7.5)
            lower.set(xlim=(0, 1), ylim=(len(ranked) - 0.5, -0.6), xticks=[], yticks=[])
            lower.spines[:].set_visible(False)
