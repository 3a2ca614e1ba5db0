"""What the report says of mixed lists: numbers by formula, which rule is chosen, and in which words."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from mmrl.engine.rules import CLASS, FUSED, MASS, ONE, STACKED
from mmrl.reports.figures import study_drawings
from mmrl.reports.measures import StudyScores
from mmrl.reports.mixed import Study
from mmrl.reports.open_world import open_world_drawings, reliability_drawings
from mmrl.reports.plans import Slot
from mmrl.reports.records import Bin, Coverage, ListCalibration, OpenWorldRecord, Rejection, RuleScores, harmonic_mean
from mmrl.reports.report import build_report
from mmrl.reports.results import Results
from mmrl.reports.rule_choice import families, verdict
from mmrl.reports.sheets import Sheet, main_text, tidy_csv
from mmrl.reports.tables import study_sheets
from tests.results_folder import CLOSED, DATASETS, edit_tests, fill, make_results, slot

Scored = Callable[[Slot, str, bool], tuple[float, float]]  # base and novel accuracy of a rule, on held-out images or not
TWO, SINGLE = (MASS, FUSED, CLASS), (ONE, ONE + STACKED)
SEEDS = (1, 2, 3)


def slots(methods=("zero-shot", "mmrl", "mmrlpp", "coop", CLOSED)) -> list[Slot]:
    made = [slot("open-world", m, d, "all", seed=s) for m in methods for d in DATASETS for s in (SEEDS if m != "zero-shot" else (1,))]
    return [each.model_copy(update={"seen": False, "applicable": each.method != CLOSED}) for each in made]


def plainly(each: Slot, rule: str, held_out: bool) -> tuple[float, float]:
    """Seeds and data sets differ, and rules by the same everywhere: fused is the best, the class token the worst."""
    level = {MASS: 0.5, FUSED: 0.6, CLASS: 0.4, ONE: 0.5, ONE + STACKED: 0.3}[rule]
    base = level + 0.01 * (each.seed or 0) + 0.02 * DATASETS.index(each.dataset) + 0.005 * held_out
    return base, base - 0.1


def block(each: Slot, scored: Scored) -> OpenWorldRecord:
    rules = TWO if each.method in ("mmrl", "mmrlpp") else SINGLE if each.method != "zero-shot" else (ONE,)

    def numbers(held_out: bool) -> tuple[RuleScores, ...]:
        return tuple(
            RuleScores(rule=rule, base=b, novel=n, auc=None if held_out else b * n, ece=None if held_out else 0.1)
            for rule in rules
            for b, n in [scored(each, rule, held_out)]
        )

    shift = 0.01 * (each.seed or 0)
    bins = tuple(Bin(count=4 * at, confidence=(at + 0.5) / 15, accuracy=(at + 0.5) / 20) for at in range(15))
    return OpenWorldRecord(
        validation=20, validation_new=0 if each.method == "zero-shot" else 16, base=0.8 + shift, novel=0.6 + shift, shipped=rules[0],
        temperature=1.5, class_temperature=2.0 if len(rules) > 2 else None, rules=numbers(False),
        held_out=() if each.method == "zero-shot" else numbers(True),
        calibration=tuple(
            ListCalibration(classes=classes, after=after, ece=0.2 - 0.1 * (after != "nothing") + shift, adaptive_ece=0.3 + shift, bins=bins)
            for classes in ("trained", "new", "mixed")
            for after in ("nothing", "temperature", *(() if classes == "trained" or each.method == "coop" else ("dac",)))
        ),
        rejection=tuple(
            Rejection(unknown=name, count=10, score=score, auroc=0.9 - 0.1 * at, fpr95=0.3, kept=0.94, rejected=0.5 + 0.1 * at)
            for score in ("mcm", "energy")
            for at, name in enumerate((each.dataset, "third", "fourth"))
        ),
        coverage=tuple(Coverage(classes=classes, coverage=0.9 + shift, size=2.5) for classes in ("trained", "new", "mixed")),
    )  # fmt: skip


def made(folder: Path, scored: Scored = plainly, methods=("zero-shot", "mmrl", "mmrlpp", "coop", CLOSED)) -> Path:
    own = slots(methods)
    make_results(folder, own)
    fill(folder, own)
    for each in own:
        if each.applicable:
            edit_tests(folder, [each], open_world=block(each, scored).model_dump(mode="json"))
    return folder


def scores_of(folder: Path) -> StudyScores:
    results = Results(folder)
    assert not results.damaged
    return StudyScores(results, results.plans["open-world"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("open"))


@pytest.fixture(scope="module")
def sheets(folder: Path) -> dict[str, Sheet]:
    return {sheet.name: sheet for sheet in study_sheets(scores_of(folder))}


def row(sheet: Sheet, *begins: str) -> list[str]:
    found = [[main_text(cell) for cell in each] for each in sheet.rows]
    return next(each[len(begins) :] for each in found if tuple(each[: len(begins)]) == begins)


def test_numbers(sheets: dict[str, Sheet]) -> None:
    """The harmonic mean is that of the averages, its spread that of the seeds' own."""
    base = [statistics.fmean(50 + s + 2 * d for d in (0, 1)) for s in SEEDS]
    hms = [harmonic_mean(value, value - 10) for value in base]
    mean, novel = statistics.fmean(base), statistics.fmean(base) - 10
    auc = [statistics.fmean((50 + s + 2 * d) * (40 + s + 2 * d) / 100 for d in (0, 1)) for s in SEEDS]
    hm, area = (harmonic_mean(mean, novel), statistics.stdev(hms)), (statistics.fmean(auc), statistics.stdev(auc))
    expected = [f"{m:.2f} ± {s:.2f}" for m, s in ((82, 1), (62, 1), (mean, 1), (novel, 1), hm, area)]
    assert row(sheets["open-world-average"], "MMRL") == expected
    assert row(sheets["open-world-average"], "Linear probe") == ["n/a"] * 6
    assert row(sheets["open-world-average"], "zero-shot CLIP")[:2] == ["80.00", "60.00"]
    assert row(sheets["open-world"], DATASETS[1], "MMRL")[2] == "54.00 ± 1.00"
    rules = sheets["open-world-rules"]
    assert row(rules, "MMRL", f"{MASS} (shipped)")[:4] == expected[2:] and row(rules, "MMRL", FUSED)[0] == f"{mean + 10:.2f} ± 1.00"
    assert not [each for each in rules.rows if each[0] == "zero-shot CLIP"]  # one rule has no table


def test_worth(sheets: dict[str, Sheet]) -> None:
    calibration = sheets["open-world-calibration"]
    assert row(calibration, "mixed list", "MMRL") == ["22.00 ± 1.00", "12.00 ± 1.00", "12.00 ± 1.00", *["32.00 ± 1.00"] * 3]
    assert row(calibration, "new list", "CoOp")[2] == "" == row(calibration, "trained list", "MMRL")[2]
    own, others = (row(sheets["open-world-rejection"], name, "MMRL") for name in ("new classes of the set", "other data sets"))
    assert [each.split(" ")[0] for each in own] == ["90.00", "30.00", "94.00", "50.00"] * 2
    assert [each.split(" ")[0] for each in others] == ["75.00", "30.00", "94.00", "65.00"] * 2
    assert row(sheets["open-world-coverage"], "new list", "CoOp") == ["92.00 ± 1.00", "2.50 ± 0.00"]


def test_files_have_every_data_set_and_seed(sheets: dict[str, Sheet]) -> None:
    lines = list(csv.DictReader(io.StringIO(tidy_csv(sheets["open-world-rules"]))))
    mine = [line for line in lines if (line["method"], line["dataset"], line["metric"]) == ("mmrl", DATASETS[1], "base to all")]
    found = {(line["variant"], line["seed"]): float(line["value"]) for line in mine}
    assert found[FUSED, "2"] == pytest.approx(64) and found[MASS, "mean"] == pytest.approx(54)
    lines = list(csv.DictReader(io.StringIO(tidy_csv(sheets["open-world-coverage"]))))
    listed = {f"{what}, {name} list" for what in ("coverage", "size") for name in ("trained", "new", "mixed")}
    assert {line["metric"] for line in lines} == listed


# ---- which rule ----


def test_the_better_rule_is_named_with_its_gain(folder: Path, sheets: dict[str, Sheet]) -> None:
    two, one = families(Study(scores_of(folder)))
    assert [arm.title for arm in two.arms] == ["MMRL", "MMRL++"] and [arm.title for arm in one.arms] == ["CoOp"]
    assert two.best(DATASETS) == FUSED and one.best(DATASETS) == ONE
    held_out = harmonic_mean(63.5, 53.5) - harmonic_mean(53.5, 43.5)
    said = verdict(two)
    assert f"'{FUSED}' has the highest HM, +{held_out:.2f} (" in said and "so it is the better one. On test images it is +10." in said
    assert f"the others ({DATASETS[0]}: {FUSED}; {DATASETS[1]}: {FUSED}), it is +10." in said
    assert verdict(one) == f"CoOp: no rule has a higher HM on held-out images than the shipped one, {ONE}, so it stays."
    evidence = sheets["open-world-evidence"]
    assert said in evidence.notes and verdict(one) in evidence.notes
    shown = row(evidence, "MMRL, MMRL++", FUSED)
    assert shown[1].startswith(f"+{held_out:.2f} (+") and shown[3].startswith("+10.")
    shipped = [f"{harmonic_mean(53.5, 43.5):.2f}", "", f"{harmonic_mean(53, 43):.2f}", ""]
    assert row(evidence, "MMRL, MMRL++", f"{MASS} (shipped)") == shipped


def test_what_is_not_clear_changes_nothing(tmp_path: Path) -> None:
    """Better on one data set, worse on the other: the interval has zero in it. And test images choose nothing."""

    def scored(each: Slot, rule: str, held_out: bool) -> tuple[float, float]:
        base, novel = plainly(each, MASS, held_out)
        gain = (0.2 if each.dataset == DATASETS[0] else -0.1) if rule == FUSED else 0.0
        return (base + gain, novel + gain) if held_out else (base - 0.3 * (rule == FUSED), novel)

    (family,) = families(Study(scores_of(made(tmp_path / "r", scored, ("mmrl",)))))
    said = verdict(family)
    assert family.best(DATASETS) == FUSED
    assert "but the interval does not leave out zero, so the shipped one stays. On test images it is −" in said
    assert f"({DATASETS[0]}: {MASS}; {DATASETS[1]}: {FUSED})" in said  # each by the other's images


def test_equal_rules_keep_the_shipped_one(tmp_path: Path) -> None:
    same = made(tmp_path / "r", lambda each, rule, held_out: plainly(each, MASS, held_out), ("mmrl",))
    (family,) = families(Study(scores_of(same)))
    assert family.best(DATASETS) == MASS and "so it stays" in verdict(family)


# ---- the page ----


def test_charts(folder: Path) -> None:
    scores = scores_of(folder)
    (drawing,) = open_world_drawings(scores)
    assert drawing.series == TWO and "MMRL++" in drawing.charts[0]
    diagrams = dict(reliability_drawings(scores))
    assert list(diagrams) == ["zero-shot CLIP", "MMRL", "MMRL++", "CoOp"]
    assert [len(each.charts) for each in diagrams.values()] == [6] * 4
    assert f"{4 * sum(range(15)) * 6} predictions" in diagrams["MMRL"].charts[0]  # two data sets, three seeds
    assert study_drawings(scores)  # of the shipped rule alone, for who asks for it


def test_page(folder: Path, tmp_path: Path) -> None:
    written = build_report(folder, tmp_path / "report")
    page = written[0].read_text()
    assert '<h2 id="open-world">Mixed lists, calibration and rejection</h2>' in page
    for text in ("Rules for mixed lists", "Which rule, by held-out images", "Reliability of trained, new and mixed lists", "n/a"):
        assert text in page
    names = {path.stem for path in written[1:]}
    parts = ("average", "rules", "evidence", "calibration", "rejection", "coverage")
    assert {"open-world", *(f"open-world-{part}" for part in parts)} <= names and "open-world-ranking" not in names


def test_nothing_done_yet_is_missing(tmp_path: Path) -> None:
    own = slots(("mmrl",))
    make_results(tmp_path, own)
    (sheet,) = study_sheets(scores_of(tmp_path))
    assert row(sheet, "MMRL") == ["–"] * 6
    fill(tmp_path, own[:1])
    edit_tests(tmp_path, own[:1], open_world=block(own[0], plainly).model_dump(mode="json"))
    average, each, *_ = study_sheets(scores_of(tmp_path))
    assert row(each, DATASETS[1], "MMRL") == ["–"] * 6 and row(average, "MMRL")[0] == "81.00"
