"""The paper's claims, checked against the results: each claim with the numbers that decide it."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mmrl.reports import paper
from mmrl.reports.measures import Arm, Measure, StudyScores
from mmrl.reports.paper import AVERAGE
from mmrl.reports.plans import ZERO_SHOT
from mmrl.reports.results import Results
from mmrl.reports.sheets import Sheet, signed
from mmrl.reports.tables import METRICS, Arms, number

Verdict = Literal["holds", "does not hold", "undecided", "not run"]


@dataclass(frozen=True)
class Claim:
    """One claim; `evidence` are sentences with numbers."""

    text: str
    where: str
    verdict: Verdict
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """`ours` less `other`, in points of per cent, averaged over the data sets that both have.

    `spread` is the sample standard deviation (ddof 1) over seeds of the difference; None for fewer than two seeds.
    """

    ours: float
    other: float
    spread: float | None
    better: int
    datasets: int
    planned: int

    @property
    def value(self) -> float:
        return self.ours - self.other

    @property
    def clear(self) -> bool:
        """Whether it is larger than its spread, which must be known."""
        return self.spread is not None and abs(self.value) > self.spread

    def sentence(self, one: str, two: str, metric: str) -> str:
        """It in words."""
        size = ", spread over seeds unknown"
        if self.spread is not None:
            times = abs(self.value) / self.spread if self.spread else math.inf
            shown = "within" if times <= 1 else f"{times:.1f} times" if times < 100 else "over 100 times"
            size = f", {shown} its spread over seeds ({self.spread:.2f})"
        part = "" if self.datasets == self.planned else f" ({self.planned - self.datasets} more not run)"
        return (
            f"{METRICS[metric]}: {one} {self.ours:.2f}, {two} {self.other:.2f}: {signed(self.value)} points{size}; "
            f"higher on {self.better} of {self.datasets} data sets{part}."
        )


def difference(
    scores: StudyScores, ours: Arm, other: Arm, metric: str, *, shots: int | None = None, other_shots: int | None = None
) -> Difference | None:
    """Between two arms; None where they share no data set yet, or either is not applicable on one. 'hm': as in `StudyScores`, of means."""
    pairs = {}
    for name in scores.targets:
        one, two = scores.measure(ours, name, metric, shots=shots), scores.measure(other, name, metric, shots=other_shots)
        if one and two and not (one.applicable and two.applicable):
            return None
        if one and two and one.mean is not None and two.mean is not None:
            pairs[name] = one.mean - two.mean
    if not pairs:
        return None
    a = scores.average(ours, metric, shots=shots, datasets=list(pairs))
    b = scores.average(other, metric, shots=other_shots, datasets=list(pairs))
    assert a and b and a.mean is not None and b.mean is not None
    better = sum(value > 0 for value in pairs.values())
    return Difference(a.mean, b.mean, _spread(a, b), better, len(pairs), len(scores.targets))


def _spread(a: Measure, b: Measure) -> float | None:
    """Of the difference, seed by seed; zero-shot, which has none, is the same for each."""
    others = dict.fromkeys(a.by_seed, b.by_seed[None]) if None in b.by_seed else b.by_seed
    each = [value - others[seed] for seed, value in a.by_seed.items() if seed in others]
    return statistics.stdev(each) if len(each) > 1 else None


def claims(results: Results, studies: Mapping[str, StudyScores]) -> list[Claim]:
    """Every claim, in the paper's order."""
    return [
        _above_zero_shot(studies, "base-to-novel", "hm", "MMRL has a higher HM of base and novel accuracy than zero-shot CLIP", "Table 1"),
        _above_zero_shot(studies, "domain-generalisation", "all", "MMRL is above zero-shot CLIP on shifted data", "Table 3"),
        *(_rises(studies.get("few-shot"))),
        *(_ablated(studies.get(case.study), case) for case in _ABLATED),
        _layers(results, studies),
    ]


def _above_zero_shot(studies: Mapping[str, StudyScores], study: str, metric: str, text: str, where: str) -> Claim:
    scores = studies.get(study)
    evidence, deciding = [], []
    for arm in _arms(scores, "mmrl"):
        for zero in _arms(scores, ZERO_SHOT):
            if scores and zero.backbone == arm.backbone and (found := difference(scores, arm, zero, metric)):
                evidence.append(found.sentence(Arms(scores).name(arm), "zero-shot", metric))
                deciding.append(found)
    return Claim(text, where, _verdict(deciding), tuple(evidence))


def _arms(scores: StudyScores | None, method: str) -> list[Arm]:
    """Of the method; with options of the user's where there are none with the recipe's."""
    arms = [arm for arm in (scores.arms if scores else ()) if arm.method == method]
    return [arm for arm in arms if not arm.variant] or arms


def _verdict(differences: Sequence[Difference]) -> Verdict:
    """Of a claim that all of them are positive. One that lies within its spread, or of one seed, decides nothing."""
    if not differences:
        return "not run"
    if any(each.value <= 0 and each.clear for each in differences):
        return "does not hold"
    return "holds" if all(each.value > 0 and each.clear for each in differences) else "undecided"


class _Case(NamedTuple):
    """That by `metric`, MMRL with one value of what `study` changes is `better` than with the `worse` ones."""

    study: str
    metric: str
    better: str
    worse: tuple[str, ...]
    text: str
    where: str


_ABLATED = tuple(
    _Case(*case)
    for case in (
        ("variants", "hm", "MMRL", ("w/o L", "w/o V"), "Tokens in both encoders are better than in one of them", "Table 4"),
        ("variants", "base", "MMRL", ("w/o DS1",), "Decoupling helps base classes: class features alone are worse on them", "Table 4"),
        ("variants", "novel", "MMRL", ("w/o DS2",), "Decoupling helps novel classes: both features are worse on them", "Table 4"),
        ("variants", "novel", "MMRL", ("w/o RS",), "The shared representation space helps novel classes", "Table 4"),
        ("alpha", "hm", "0.7", ("0.0", "1.0"), "Both losses together (α = 0.7) are better than either alone", "Table 5"),
        ("regulariser", "hm", "cosine", ("L1", "MSE"), "The cosine regulariser is better than L1 and MSE", "Table 9"),
    )
)  # fmt: skip


def _ablated(scores: StudyScores | None, case: _Case) -> Claim:
    evidence, deciding = [], []
    for ours in _with_value(scores, case.better):
        for name in case.worse:
            for other in _with_value(scores, name):
                found = difference(scores, ours, other, case.metric) if scores and _setting(ours) == _setting(other) else None
                if found:
                    evidence.append(found.sentence(case.better, other.variant, case.metric))
                    deciding.append(found)
    return Claim(case.text, case.where, _verdict(deciding), tuple(evidence))


def _setting(arm: Arm) -> tuple[object, ...]:
    """What arms that are compared must share."""
    return arm.method, arm.backbone, arm.shots


def _with_value(scores: StudyScores | None, value: str) -> list[Arm]:
    """MMRL's arms whose variant is `value`."""
    full = value == "MMRL"
    arms = [arm for arm in (scores.arms if scores else ()) if arm.method == "mmrl"]
    return [arm for arm in arms if (paper.is_full(arm.variant) if full else paper.same(arm.variant, value))]


def _layers(results: Results, studies: Mapping[str, StudyScores]) -> Claim:
    """J as trained by default, against tokens from the lowest layer on."""
    text, where = "Tokens in the upper layers are better than in all layers", "Figure 5, left"
    scores = studies.get("layers")
    groups: dict[tuple[object, ...], dict[float, Arm]] = {}
    for arm in scores.arms if scores else ():
        if arm.method == "mmrl" and (layer := number(arm.variant)) is not None:
            groups.setdefault(_setting(arm), {})[layer] = arm
    evidence, deciding = [], []
    for arms in groups.values():
        lowest, usual = min(arms), _usual_layer(results, studies, arms)
        found = difference(scores, arms[usual], arms[lowest], "hm") if scores and usual != lowest else None
        if found:
            evidence.append(found.sentence(f"J = {usual:g}", f"J = {lowest:g}", "hm"))
            deciding.append(found)
    return Claim(text, where, _verdict(deciding), tuple(evidence))


def _usual_layer(results: Results, studies: Mapping[str, StudyScores], arms: Mapping[float, Arm]) -> float:
    """That J of `arms`, which differ in nothing else, which the base-to-novel runs have; else about half of the depth, the default."""
    plan = studies["base-to-novel"].plan if "base-to-novel" in studies else None
    backbone = next(iter(arms.values())).backbone
    for slot in plan.slots if plan else ():
        usual = slot.method == "mmrl" and not slot.variant and slot.backbone == backbone
        run = results.runs.get(slot.run) if usual else None
        for option in run.training.options if run and run.training else ():
            if option.key == "first_layer" and option.value in arms:
                return float(option.value)
    return min(sorted(arms), key=lambda value: abs(value - max(arms) / 2))


def _rises(scores: StudyScores | None) -> list[Claim]:
    """More shots, more accuracy; more shots, more gain over zero-shot CLIP."""
    rise, gain = "MMRL's few-shot accuracy rises with every number of shots", "MMRL's gain over zero-shot CLIP grows with the shots"
    where = "Figure 4, Tables 10 and 11"
    arm = next(iter(_arms(scores, "mmrl")), None)
    if scores is None or arm is None:
        return [Claim(rise, where, "not run"), Claim(gain, where, "not run")]
    steps = [shots for shots in scores.shots if (found := scores.average(arm, "all", shots=shots)) and found.mean is not None]
    pairs = [(a, b, difference(scores, arm, arm, "all", shots=b, other_shots=a)) for a, b in itertools.pairwise(steps)]
    steps_up = [(found, found.sentence(_shots(b), _shots(a), "all")) for a, b, found in pairs if found]
    out = [Claim(rise, where, _verdict([found for found, _ in steps_up]), tuple(sentence for _, sentence in steps_up))]
    zero = next((zero for zero in _arms(scores, ZERO_SHOT) if zero.backbone == arm.backbone), None)
    gains = [(shots, difference(scores, arm, zero, "all", shots=shots)) for shots in steps] if zero else []
    there = [(shots, found) for shots, found in gains if found]
    sentences = tuple(found.sentence(_shots(shots), "zero-shot", "all") for shots, found in there)
    first, last = there[0][0] if there else 0, there[-1][0] if there else 0
    growth = difference(scores, arm, arm, "all", shots=last, other_shots=first) if first < last else None
    if growth is None:
        return [*out, Claim(gain, where, "not run", sentences)]
    more = growth.sentence(_shots(last), _shots(first), "all")  # by which the gain grows: zero-shot is the same for both
    return [*out, Claim(gain, where, _verdict([growth, there[-1][1]]), (*sentences, more))]


def _shots(shots: int) -> str:
    return "1 shot" if shots == 1 else f"{shots or 'all'} shots"


def claims_sheet(found: Sequence[tuple[str, Claim]]) -> Sheet:
    """Claims, each with the results folder that it was held against; '' where there is one alone, or it is of all."""
    several = any(folder for folder, _ in found)
    own = any(not claim.where for _, claim in found)
    rows = tuple(
        (*((folder,) if several else ()), claim.text, claim.where or "yours", claim.verdict, " ".join(claim.evidence))
        for folder, claim in found
    )
    note = (
        f"{AVERAGE.capitalize()}s are over the data sets that both sides have; a difference within its spread over the seeds, or of one "
        "seed alone, decides nothing. "
        "The paper's claims are about ViT-B/16 of OpenAI's CLIP on its eleven data sets: elsewhere they may or may not hold."
    )
    heads = (*(("results",) if several else ()), "claim", "in the paper", "verdict", "numbers")
    return Sheet("claims", "Claims" if own else "Claims of the paper", heads, rows, (note,), bold=False)
