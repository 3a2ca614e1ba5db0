"""Claims of the user's: 'METHOD > METHOD on METRIC [in STUDY]', decided by differences that are paired by data set and seed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mmrl.errors import UsageError, unknown
from mmrl.reports.claims import Claim, Verdict
from mmrl.reports.folders import Folder
from mmrl.reports.measures import HM
from mmrl.reports.paired import NOTE, SHARE, Comparison, Side, compare, methods_meant, unlike
from mmrl.reports.plans import is_ablation
from mmrl.reports.sheets import signed
from mmrl.reports.tables import METRICS, title_of

GRAMMAR = "METHOD > METHOD on METRIC [in STUDY]"
OWN_NOTE = f"Yours hold where the interval of every difference is above zero, and do not where one is below. {NOTE}"
_FORM = re.compile(r"\s*(\S.*?)\s*>\s*(\S.*?)\s+on\s+(\S+)(?:\s+in\s+(\S+))?\s*")
_METRICS = {"base": "base", "novel": "novel", "hm": HM, "accuracy": "all", "all": "all"}


@dataclass(frozen=True)
class _Asked:
    """That `first` is above `second` by `metric` in each of `studies`. A method may be METHOD:VARIANT."""

    first: str
    second: str
    metric: str
    studies: tuple[str, ...]


def own_claims(texts: Sequence[str], folders: Sequence[Folder]) -> list[Claim]:
    """Each of the claims with its verdict.

    Raises:
        UsageError: one is not of the grammar, or names a method, metric or study that the folders do not have.
    """
    return [_decided(text, _read(text, folders), folders) for text in texts]


def _read(text: str, folders: Sequence[Folder]) -> _Asked:
    found = _FORM.fullmatch(text)
    if found is None:
        raise UsageError(f"--claim '{text}' is no claim. Write {GRAMMAR}: 'mine > coop on hm', or 'mine > coop on accuracy in few-shot'.")
    first, second, metric, study = found.groups()
    if metric.casefold() not in _METRICS:
        raise unknown("metric", metric, _METRICS)
    metric = _METRICS[metric.casefold()]
    has = {name: scores.metrics for folder in folders for name, scores in folder.studies.items()}
    if study is not None and study not in has:
        raise unknown("study", study, has)
    if study is not None and metric not in has[study]:
        raise UsageError(f"--claim '{text}': {study} has no {METRICS[metric]}; it has {', '.join(METRICS[each] for each in has[study])}.")
    studies = tuple(name for name in has if metric in has[name] and (name == study if study else not is_ablation(name)))
    if not studies:
        raise UsageError(f"--claim '{text}': no evaluation of these results has {METRICS[metric]}. They have: {', '.join(has)}.")
    one, two = (_method(name, studies, folders) for name in (first, second))
    if one == two:
        raise UsageError(f"--claim '{text}' compares {one} with itself. Write {GRAMMAR}, with two methods, or METHOD:VARIANT.")
    return _Asked(one, two, metric, studies)


def _method(wanted: str, studies: Sequence[str], folders: Sequence[Folder]) -> str:
    """The method's name, given by that or by its title, and its variant. Raises UsageError where the studies have no such."""
    arms = [arm for folder in folders for study in studies if study in folder.studies for arm in folder.studies[study].arms]
    name, colon, variant = wanted.partition(":")
    known = {arm.method for arm in arms}
    by_title = {arm.title.casefold(): arm.method for arm in arms}
    method = name if name in known else by_title.get(name.casefold())
    if method is None:
        raise unknown("method", name, known)
    variants = {arm.variant for arm in arms if arm.method == method}
    if colon and variant not in variants:
        raise unknown(f"variant of {method}", variant, variants - {""})
    return f"{method}{colon}{variant}"


def _decided(text: str, asked: _Asked, folders: Sequence[Folder]) -> Claim:
    evidence: list[str] = []
    deciding: list[Comparison] = []
    for study in asked.studies:
        for one, two in _pairs(study, asked, folders):
            found = [each for each in compare(one, two) if each.metric == asked.metric]
            evidence += [_sentence(each, one, two) for each in found]
            evidence += unlike(found)
            deciding += found
    return Claim(" ".join(text.split()), "", _verdict(deciding), tuple(evidence))


def _pairs(study: str, asked: _Asked, folders: Sequence[Folder]) -> Iterator[tuple[Side, Side]]:
    """Both methods of one folder; of two, where no folder has both."""
    there = [(folder, (folder.results, folder.studies[study])) for folder in folders if study in folder.studies]
    pairs = [
        (a is b, replace(one, name=_named(one, a)), replace(two, name=_named(two, b)))
        for a, first in there
        for b, second in there
        for one, two in methods_meant(first, second, asked.first, asked.second)
    ]
    together = any(same for same, _, _ in pairs)
    yield from ((one, two) for same, one, two in pairs if same or not together)


def _named(side: Side, folder: Folder) -> str:
    return f"{side.name} ({folder.label})" if folder.label else side.name


def _sentence(found: Comparison, one: Side, two: Side) -> str:
    """Its numbers in words."""
    where = [title_of(found.study), *([found.row.rpartition(", ")[2]] if found.study == "few-shot" else []), METRICS[found.metric]]
    interval = "one pair alone, so without an interval"
    if found.low is not None and found.high is not None:
        interval = f"{SHARE:.0%} interval {signed(found.low)} to {signed(found.high)}"
    return (
        f"{', '.join(where)}: {one.name} {found.ours:.2f}, {two.name} {found.other:.2f}: {signed(found.value)} points, {interval}; "
        f"higher on {found.better} of {found.datasets} data sets, {found.pairs} pairs."
    )


def _verdict(found: Sequence[Comparison]) -> Verdict:
    """Of a claim that all of them are 'higher'."""
    verdicts = {each.verdict for each in found}
    if not verdicts:
        return "not run"
    return "does not hold" if "lower" in verdicts else "holds" if verdicts == {"higher"} else "undecided"
