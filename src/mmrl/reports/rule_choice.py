"""Which rule for mixed lists the held-out images choose, and by how much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mmrl.reports.measures import HM, Arm
from mmrl.reports.mixed import Study, columns, names_of_rules, one
from mmrl.reports.paired import RESAMPLES, SHARE, interval
from mmrl.reports.sheets import Sheet, TableCell, signed
from mmrl.reports.tables import Arms

Pairs = list[tuple[float, ...]]  # by run: base-to-all and novel-to-all accuracy in per cent
On = Literal["held_out", "rules"]  # validation or test images
EVIDENCE = (
    "Held out: HM on validation images, of trained classes (what is fitted on others of them) and of new ones (nothing is fitted on them). "
    f"Differences to the shipped rule are of the same methods, data sets and seeds; intervals: {SHARE:.0%}, percentiles of {RESAMPLES:,} "
    "resamples of the data sets and, within each, of the runs. Of few data sets they are too narrow."
)


@dataclass(frozen=True)
class Gain:
    """A rule less the shipped one, in points of HM, with the ends of its interval."""

    value: float
    low: float | None
    high: float | None

    @property
    def text(self) -> str:
        ends = "" if self.low is None or self.high is None else f" ({signed(self.low)} to {signed(self.high)})"
        return f"{signed(self.value)}{ends}"


@dataclass(frozen=True)
class Family:
    """The arms that have the same rules, and the accuracies of each rule."""

    study: Study
    arms: tuple[Arm, ...]
    rules: tuple[str, ...]
    shipped: str

    def pairs(self, rule: str, dataset: str, on: On) -> Pairs:
        blocks = [block for arm in self.arms for block in self.study.found[arm, dataset].values() if block.held_out]
        each = [next((each for each in getattr(block, on) if each.rule == rule), None) for block in blocks]
        return [(100 * scored.base, 100 * scored.novel) for scored in each if scored]

    def sides(self, rule: str, on: On, datasets: Sequence[str]) -> list[tuple[Pairs, Pairs]]:
        both = [(self.pairs(rule, name, on), self.pairs(self.shipped, name, on)) for name in datasets]
        return [(mine, theirs) for mine, theirs in both if mine and len(mine) == len(theirs)]

    def hm(self, rule: str, on: On, datasets: Sequence[str]) -> float | None:
        parts = [columns(pairs) for name in datasets if (pairs := self.pairs(rule, name, on))]
        return one(parts) if parts else None

    def difference(self, rule: str, on: On, datasets: Sequence[str]) -> Gain | None:
        sides = self.sides(rule, on, datasets)
        if not sides:
            return None
        mine, theirs = (one([columns(pairs[at]) for pairs in sides]) for at in (0, 1))
        return Gain(mine - theirs, *interval(sides, HM))

    def best(self, datasets: Sequence[str]) -> str | None:
        """The rule of the highest held-out HM; of equal ones the shipped, else the first."""
        values = {rule: value for rule in (self.shipped, *self.rules) if (value := self.hm(rule, "held_out", datasets)) is not None}
        return max(values, key=lambda rule: round(values[rule], 9)) if values else None

    @property
    def name(self) -> str:
        return ", ".join(Arms(self.study.scores).name(arm) for arm in self.arms)


def families(study: Study) -> Iterator[Family]:
    """Methods with two classifiers, which put them together alike, in one; each other method in its own. Zero-shot CLIP has no choice."""
    groups: dict[tuple[tuple[str, ...], str, str], list[Arm]] = {}
    for arm in study.scores.arms:
        blocks = [block for dataset in study.scores.datasets for block in study.found[arm, dataset].values() if block.held_out]
        if blocks:
            alone = "" if blocks[0].class_temperature is not None else arm.method
            groups.setdefault((tuple(names_of_rules(blocks)), blocks[0].shipped, alone), []).append(arm)
    for (rules, shipped, _), arms in groups.items():
        yield Family(study, tuple(arms), rules, shipped)


def verdict(family: Family) -> str:
    """Which rule the held-out images choose, by how much, and what it does on test images; in a sentence or two."""
    datasets = family.study.scores.datasets
    best = family.best(datasets)
    if best is None or best == family.shipped:
        return f"{family.name}: no rule has a higher HM on held-out images than the shipped one, {family.shipped}, so it stays."
    held_out, test = family.difference(best, "held_out", datasets), family.difference(best, "rules", datasets)
    assert held_out is not None and test is not None
    clear = held_out.low is not None and held_out.low > 0
    first = f"{family.name}: on held-out images the rule '{best}' has the highest HM, {held_out.text} points above the shipped one"
    so = "so it is the better one" if clear else "but the interval does not leave out zero, so the shipped one stays"
    return f"{first}, {so}. On test images it is {test.text}.{_by_others(family)}"


def _by_others(family: Family) -> str:
    """What choosing for each data set by the held-out images of the others gives."""
    datasets = family.study.scores.datasets
    if len(datasets) < 2:
        return ""
    chosen = {name: family.best([other for other in datasets if other != name]) or family.shipped for name in datasets}
    parts = [(family.pairs(rule, name, "rules"), family.pairs(family.shipped, name, "rules")) for name, rule in chosen.items()]
    sides = [(mine, theirs) for mine, theirs in parts if mine and len(mine) == len(theirs)]
    mine, theirs = (one([columns(pairs[at]) for pairs in sides]) for at in (0, 1))
    rules = "; ".join(f"{name}: {rule}" for name, rule in chosen.items())
    difference = Gain(mine - theirs, *interval(sides, HM))
    return f" Chosen for each data set by the held-out images of the others ({rules}), it is {difference.text} on test images."


def _cells(family: Family, rule: str, on: On) -> tuple[TableCell, TableCell]:
    """HM, and the difference to the shipped rule."""
    datasets = family.study.scores.datasets
    value, apart = family.hm(rule, on, datasets), family.difference(rule, on, datasets)
    return None if value is None else f"{value:.2f}", "" if rule == family.shipped or apart is None else apart.text


def evidence_sheet(study: Study) -> Sheet:
    """Every rule on held-out and on test images; the verdicts are its notes."""
    rows: list[tuple[TableCell, ...]] = []
    notes = [EVIDENCE]
    for family in families(study):
        for rule in family.rules:
            mark = " (shipped)" if rule == family.shipped else ""
            rows.append((family.name, rule + mark, *_cells(family, rule, "held_out"), *_cells(family, rule, "rules")))
        notes.append(verdict(family))
    heads = ("methods", "rule", "held-out HM", "difference to shipped", "test HM", "difference to shipped, test")
    return Sheet("open-world-evidence", "Which rule, by held-out images", heads, tuple(rows), tuple(notes), group=0, bold=False)
