"""A table of the report, and its forms: Markdown, LaTeX (booktabs), tidy CSV; the page's template makes the HTML."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mmrl.reports.measures import Measure

TableCell = Measure | str | int | float | None  # None: no score is planned

DIRTY = "‡"
MISSING = "–"
NOT_APPLICABLE = "n/a"
TIDY = ("method", "variant", "backbone", "shots", "dataset", "metric", "seed", "value", "std", "seeds", "seeds_planned",
        "datasets", "datasets_planned", "dirty", "paper", "applicable")  # fmt: skip


@dataclass(frozen=True)
class Sheet:
    """One table.

    Attributes:
        name: of its files.
        group: the column within whose values the best of each column is set in bold.
        unseen: numbers that stand in its CSV file alone.
        files: whether it is written to files of its own.
        ruled: rows under a line within their group: the first that the paper's table lacks.
    """

    name: str
    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    notes: tuple[str, ...] = ()
    group: int | None = None
    bold: bool = True
    unseen: tuple[Measure, ...] = ()
    files: bool = True
    ruled: frozenset[int] = frozenset()

    @property
    def numeric(self) -> tuple[bool, ...]:
        """By column, whether it holds numbers."""
        return tuple(any(not isinstance(row[at], str) and row[at] is not None for row in self.rows) for at in range(len(self.heads)))

    def paper_only(self, at: int) -> bool:
        """Whether a row has numbers of the paper alone."""
        arms = [cell.arm for cell in self.rows[at] if isinstance(cell, Measure)]
        return bool(arms) and all(arm.paper_only for arm in arms)

    def best(self) -> set[tuple[int, int]]:
        """(row, column) of a column's highest mean within a group, if it is above every other one by more than the spread of either.

        Complete ones alone are compared; with one of them, or where two are within the spread, nothing is set in bold.
        """
        groups: dict[object, list[int]] = defaultdict(list)
        for at, row in enumerate(self.rows):
            groups[None if self.group is None else row[self.group]].append(at)
        found = set()
        for at in range(len(self.heads)) if self.bold else ():
            for members in groups.values():
                cells = ((self.rows[place][at], place) for place in members)
                complete = [(cell, place) for cell, place in cells if isinstance(cell, Measure) and cell.complete]
                if len(complete) > 1:
                    first, best = max(complete, key=lambda each: each[0].mean or 0.0)
                    if all(_clearly_above(first, other) for other, place in complete if place != best):
                        found.add((best, at))
        return found

    @property
    def all_notes(self) -> tuple[str, ...]:
        """Its notes, and what the marks in it mean."""
        measures = [cell for row in self.rows for cell in row if isinstance(cell, Measure)]
        odd = {
            f"{m.arm.published or m.arm.title}, {m.dataset}, {m.metric}: the printed {m.paper.value:.2f} does not follow from the paper's "
            f"other values ({m.paper.odd})."
            for m in measures
            if m.paper and m.paper.odd
        }
        more = [f"{DIRTY} computed on a source tree with uncommitted changes."] if any(m.dirty for m in measures) else []
        if not all(m.applicable for m in measures):
            more.append(f"{NOT_APPLICABLE}: not applicable; the method can only tell apart the classes that it was trained on.")
        if any(m.arm.paper_only for m in measures):
            more.append("Paper only: as printed in the paper, and not run here; never set in bold.")
        own = sorted(frozenset().union(*(m.own_splits for m in measures)))
        if own:
            more.append(f"Not the published split: {', '.join(own)}. The paper's numbers are not comparable and not shown.")
        return (*self.notes, *more, *(f"§ {note}" for note in sorted(odd)))


def _clearly_above(one: Measure, other: Measure) -> bool:
    """By more than the larger spread, in the digits that are shown."""
    return round((one.mean or 0.0) - (other.mean or 0.0), 2) > round(max(one.std or 0.0, other.std or 0.0), 2)


def main_text(cell: TableCell) -> str:
    """The number with its spread, or the text."""
    if isinstance(cell, Measure):
        if cell.arm.paper_only and cell.paper:
            return f"{cell.paper.value:.2f}{'§' if cell.paper.odd else ''}"
        if cell.mean is None:
            return MISSING if cell.applicable else NOT_APPLICABLE
        spread = "" if cell.std is None else f" ± {cell.std:.2f}"
        return f"{cell.mean:.2f}{spread}{DIRTY if cell.dirty else ''}"
    if isinstance(cell, float):
        return f"{cell:,.4g}" if abs(cell) < 1000 else f"{cell:,.0f}"
    return "" if cell is None else f"{cell:,}" if isinstance(cell, int) else cell


def small_text(cell: TableCell) -> list[str]:
    """What stands below a number: what is missing of it, and the paper's value."""
    if not isinstance(cell, Measure) or not cell.applicable or cell.arm.paper_only:
        return []
    if cell.mean is None:
        return ["missing"]
    out = [f"{len(cell.by_seed)} of {cell.planned} seeds"] if len(cell.by_seed) < cell.planned else []
    if cell.datasets and cell.datasets[0] < cell.datasets[1]:
        out.append(f"{cell.datasets[0]} of {cell.datasets[1]} data sets")
    if cell.paper and cell.delta is not None:
        out.append(f"paper {cell.paper.value:.2f}{'§' if cell.paper.odd else ''}, {signed(cell.delta)}")
    return out


def signed(value: float) -> str:
    """With its sign, a true minus, and two digits."""
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def markdown(sheet: Sheet) -> str:
    best = sheet.best()
    lines = [f"# {md(sheet.title)}", "", "| " + " | ".join(map(md, sheet.heads)) + " |"]
    lines.append("| " + " | ".join("---:" if number else "---" for number in sheet.numeric) + " |")
    for i, row in enumerate(sheet.rows):
        cells = []
        for j, cell in enumerate(row):
            text, small = md(main_text(cell)), "; ".join(small_text(cell))
            cells.append((f"**{text}**" if (i, j) in best else text) + (f" ({small})" if small else ""))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"{md(note)}  " for note in sheet.all_notes), ""])


# A word with one of these becomes a link, or a mail to someone, in some of the readers of Markdown even if it is escaped: not so in code.
_LINKED = re.compile(r"://|www\.|@|mailto:|xmpp:", re.IGNORECASE)
_BLANK = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029]+")
_MD = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", **{mark: f"\\{mark}" for mark in "\\`*_[]|~!#$"}})
_LISTED = re.compile(r"(\d*)([-+=.)])(?=[-+= ]|$)")  # begins a list, is a rule, or makes a heading of the line above


def md(text: str) -> str:
    """`text` on one line, as prose or a table's cell that reads as it is written: no markup, no link, no HTML. Parentheses need no mark."""
    words = [code(word) if _LINKED.search(word) else word.translate(_MD) for word in _one_line(text).split(" ")]
    line = " ".join(words)
    found = _LISTED.match(line)
    return line if found is None else f"{found[1]}\\{line[found.end(1) :]}"


def code(text: str) -> str:
    """`text` on one line, as code. A | between two pieces of it is safe in a table, and elsewhere."""
    return "&#124;".join(_span(piece) for piece in _one_line(text).split("|"))


def _span(text: str) -> str:
    if not text.strip():
        return text
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    edge = " " if text[0] in " `" or text[-1] in " `" else ""
    return f"{fence}{edge}{text}{edge}{fence}"


def _one_line(text: str) -> str:
    return _BLANK.sub(" ", text).strip()


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "`": r"\textasciigrave{}", "[": "{[}", "]": "{]}", "*": "{*}",  # after \\ a bracket or star is an argument
    "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$", "−": r"$-$", "–": "--",
    "‡": r"$\ddagger$",
    "†": r"$\dagger$", "§": r"\S{}", "λ": r"$\lambda$", "α": r"$\alpha$", "β": r"$\beta$", "×": r"$\times$", "…": r"\ldots{}",
    '"': "''", "₁": "$_1$", "₂": "$_2$", "≥": r"$\geq$",
}  # fmt: skip


def tex(text: str) -> str:
    """`text` on one line, with everything escaped that LaTeX would read as more than text."""
    return "".join(_TEX.get(letter, letter) for letter in _one_line(text))


def latex(sheet: Sheet) -> str:
    """A table environment that needs the packages booktabs and graphicx; wide ones are scaled to the line."""
    best = sheet.best()
    columns = "".join("r" if number else "l" for number in sheet.numeric)
    lines = [
        r"% \usepackage{booktabs,graphicx}",
        r"\begin{table}", r"\centering", rf"\caption{{{tex(sheet.title)}}}", rf"\label{{tab:{sheet.name}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%", rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
        " & ".join(map(tex, sheet.heads)) + r" \\", r"\midrule",
    ]  # fmt: skip
    previous = None
    for i, row in enumerate(sheet.rows):
        if sheet.group is not None and previous not in (None, row[sheet.group]):
            lines.append(r"\midrule")
        elif i in sheet.ruled:
            lines.append(r"\midrule" if sheet.group is None else rf"\cmidrule(l){{2-{len(row)}}}")
        previous = row[sheet.group] if sheet.group is not None else None
        cells = []
        for j, cell in enumerate(row):
            text, small = tex(main_text(cell)), tex("; ".join(small_text(cell)))
            cells.append((rf"\textbf{{{text}}}" if (i, j) in best else text) + (rf" {{\scriptsize ({small})}}" if small else ""))
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}"]
    lines += [rf"\par\smallskip{{\footnotesize {' '.join(tex(note) for note in sheet.all_notes)}\par}}"] if sheet.all_notes else []
    return "\n".join([*lines, r"\end{table}", ""])


def tidy_csv(sheet: Sheet) -> str:
    """Tidy: for every number a line with its mean over seeds (seed 'mean'), and one for each seed; per cent at full precision.

    Metrics: 'base', 'novel', 'all'; 'hm', the harmonic mean of mean base and mean novel; 'mean hm', the mean of harmonic means: those of
    the seeds, or for an 'average' the 'hm' of the data sets. A number that is not applicable has no value, no seeds, and 0 in the last
    column. One that the paper alone has is a line (seed 'paper') with nothing but the column 'paper'. A table without measures is written
    as it stands.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    measures = [cell for row in sheet.rows for cell in row if isinstance(cell, Measure)]
    if not measures:
        writer.writerows([sheet.heads, *(["" if cell is None else cell for cell in row] for row in sheet.rows)])
        return stream.getvalue()
    writer.writerow(TIDY)
    for measure in (*measures, *sheet.unseen):
        writer.writerows(_tidy(measure))
    return stream.getvalue()


def _tidy(measure: Measure) -> list[list[object]]:
    place = [measure.place()[name] for name in TIDY[:6]]
    n, m = measure.datasets or (None, None)
    printed = measure.paper.value if measure.paper else None
    if measure.arm.paper_only:
        return [["" if each is None else each for each in (*place, "paper", *[None] * 7, printed, None)]]
    more = [measure.std, len(measure.by_seed), measure.planned, n, m, int(measure.dirty), printed, int(measure.applicable)]
    lines: list[Sequence[object]] = [[*place, "mean", measure.mean, *more]]
    lines += [[*place, "" if seed is None else seed, value, *[None] * len(more)] for seed, value in measure.by_seed.items()]
    return [["" if each is None else repr(each) if isinstance(each, float) else each for each in line] for line in lines]
