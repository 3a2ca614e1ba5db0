"""Base, novel and harmonic mean by method and data set, over seeds, as a terminal table, Markdown or CSV.

A data set's HM is the mean over seeds of each seed's HM, so that it has a spread. Spreads are sample standard deviations (ddof 1);
a single seed has none. The average row is the paper's: base and novel averaged over data sets, and the HM *of those averages*.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from mmrl.errors import UsageError
from mmrl.reports.records import Metrics, RunRecord, harmonic_mean

ZERO_SHOT = "zero-shot"
AVERAGE = "average"
NOTE = (
    "Top-1 accuracy in %, mean ± sample standard deviation over seeds (ddof 1). HM of a data set: mean of the seeds' HMs; "
    "HM of the average row: HM of the averaged base and novel, as in the paper."
)


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation (ddof 1; None for one value) of `n` accuracies, in per cent."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Stat:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.std is None else f" ± {self.std:.2f}")


@dataclass(frozen=True)
class Row:
    """One method on one data set, or its average; `seeds` is the number of runs behind each number."""

    method: str
    dataset: str
    base: Stat
    novel: Stat
    hm: Stat
    seeds: int


@dataclass(frozen=True)
class Summary:
    """Rows by data set, then method; averages by method (empty for one data set)."""

    rows: tuple[Row, ...]
    averages: tuple[Row, ...]

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(row.dataset for row in self.rows))

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(row.method for row in self.rows))


def summarise(records: Iterable[RunRecord]) -> Summary:
    """Rows for every method and data set of `records`, the zero-shot scores kept in them as a method of their own.

    Only records with base and novel scores count. Backbone and number of shots join the method's name where they differ.

    Raises:
        UsageError: no record has both scores, or two records are of the same method, data set and seed.
    """
    complete = [record for record in records if record.metrics.base and record.metrics.novel]
    if not complete:
        raise UsageError("no run record has both base and novel scores: evaluate the runs on both halves first")
    labels = _Labels(complete)
    values: dict[tuple[str, str], list[Metrics]] = defaultdict(list)
    unadapted: dict[tuple[str, str], list[Metrics]] = defaultdict(list)
    seen: dict[tuple[str, str, int], RunRecord] = {}
    for record in complete:
        place = labels.method(record), record.dataset
        twin = seen.setdefault((*place, record.seed), record)
        if twin is not record:
            runs = f"{twin.where} and {record.where}"
            raise UsageError(f"two runs of {place[0]} on {record.dataset} with seed {record.seed}: {runs}. Leave one out.")
        if record.method == ZERO_SHOT:
            unadapted[place].append(record.metrics)
            continue
        values[place].append(record.metrics)
        if record.zero_shot and record.zero_shot.base and record.zero_shot.novel:
            unadapted[labels.zero_shot(record), record.dataset].append(record.zero_shot)

    rows = [_row(*place, _distinct(metrics)) for place, metrics in unadapted.items()]
    rows += [_row(*place, metrics) for place, metrics in values.items()]
    datasets = list(dict.fromkeys(record.dataset for record in complete))
    methods = list(dict.fromkeys(row.method for row in rows))
    rows.sort(key=lambda row: (datasets.index(row.dataset), methods.index(row.method)))
    return Summary(tuple(rows), tuple(_averages(rows, datasets, methods)) if len(datasets) > 1 else ())


class _Labels:
    """Names of methods: with the backbone and the shots only where a table mixes several."""

    def __init__(self, records: Sequence[RunRecord]) -> None:
        self._backbones = len({record.backbone for record in records}) > 1
        self._shots = len({record.shots for record in records if record.method != ZERO_SHOT}) > 1

    def zero_shot(self, record: RunRecord) -> str:
        return f"{ZERO_SHOT} ({record.backbone})" if self._backbones else ZERO_SHOT

    def method(self, record: RunRecord) -> str:
        if record.method == ZERO_SHOT:
            return self.zero_shot(record)
        parts = [record.backbone] * self._backbones + [f"{record.shots or 'all'} shots"] * self._shots
        return f"{record.method} ({', '.join(parts)})" if parts else record.method


def _distinct(metrics: list[Metrics]) -> list[Metrics]:
    """Zero-shot scores do not depend on the seed: one of them, unless they do differ."""
    pairs = {(round(m.base.top1, 9), round(m.novel.top1, 9)) for m in metrics if m.base and m.novel}
    return metrics[:1] if len(pairs) == 1 else metrics


def _row(method: str, dataset: str, metrics: Sequence[Metrics]) -> Row:
    pairs = [(100 * m.base.top1, 100 * m.novel.top1) for m in metrics if m.base and m.novel]
    hms = [harmonic_mean(base, novel) for base, novel in pairs]
    return Row(method, dataset, Stat.of([b for b, _ in pairs]), Stat.of([n for _, n in pairs]), Stat.of(hms), len(pairs))


def _averages(rows: Sequence[Row], datasets: Sequence[str], methods: Sequence[str]) -> list[Row]:
    found = []
    for method in methods:
        own = [row for row in rows if row.method == method]
        base = statistics.fmean(row.base.mean for row in own)
        novel = statistics.fmean(row.novel.mean for row in own)
        name = AVERAGE if len(own) == len(datasets) else f"{AVERAGE} ({len(own)} of {len(datasets)} data sets)"
        b, n, hm = (Stat(mean, None, len(own)) for mean in (base, novel, harmonic_mean(base, novel)))
        found.append(Row(method, name, b, n, hm, seeds=min(row.seeds for row in own)))
    return found


HEADINGS = ("data set", "method", "base", "novel", "HM", "seeds")


def _cells(row: Row) -> tuple[str, ...]:
    return row.dataset, row.method, str(row.base), str(row.novel), str(row.hm), str(row.seeds)


def _best(summary: Summary) -> set[Row]:
    """The rows with the highest HM of their data set (none where a data set has one method)."""
    best = set()
    for group in (*(tuple(row for row in summary.rows if row.dataset == name) for name in summary.datasets), summary.averages):
        comparable = [row for row in group if row.dataset == group[0].dataset]
        if len(comparable) > 1:
            best.add(max(comparable, key=lambda row: row.hm.mean))
    return best


def to_rich(summary: Summary, *, title: str | None = None) -> Table:
    """For the terminal; the best HM of each data set in bold."""
    table = Table(title=title, caption=NOTE, caption_justify="left", title_justify="left")
    for heading in HEADINGS:
        is_name = heading in HEADINGS[:2]
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold")
    best = _best(summary)
    previous = None
    for row in (*summary.rows, *summary.averages):
        if previous not in (None, row.dataset):
            table.add_section()
        dataset, *rest = map(escape, _cells(row))
        table.add_row("" if row.dataset == previous else dataset, *rest, style="bold" if row in best else None)
        previous = row.dataset
    return table


def to_markdown(summary: Summary) -> str:
    """A Markdown table with the note on what the numbers are; the best HM of each data set in bold."""
    best = _best(summary)
    lines = ["| " + " | ".join(HEADINGS) + " |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for row in (*summary.rows, *summary.averages):
        cells = [cell.replace("|", "\\|") for cell in _cells(row)]
        if row in best:
            cells[4] = f"**{cells[4]}**"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", NOTE, ""])


def to_csv(summary: Summary) -> str:
    """Comma-separated, in per cent at full precision (rounding is for the eye); an empty cell where there is no spread."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["dataset", "method", "base_mean", "base_std", "novel_mean", "novel_std", "hm_mean", "hm_std", "seeds"])
    for row in (*summary.rows, *summary.averages):
        numbers = [number for stat in (row.base, row.novel, row.hm) for number in (stat.mean, stat.std)]
        writer.writerow([row.dataset, row.method, *("" if number is None else repr(number) for number in numbers), row.seeds])
    return stream.getvalue()
