"""Scores that cannot be: of a method that knows only the classes it was trained on, on others. The order of rows; how series look."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import pytest

from mmrl.reports.claims import claims
from mmrl.reports.cost import hm_of
from mmrl.reports.figures import study_drawings
from mmrl.reports.measures import Measure, StudyScores
from mmrl.reports.plans import Slot
from mmrl.reports.report import build_report
from mmrl.reports.results import Results
from mmrl.reports.sheets import Sheet, latex, markdown, tidy_csv
from mmrl.reports.status import status
from mmrl.reports.svg import MARKERS, look
from mmrl.reports.tables import calibration_sheet, study_sheets
from tests.results_folder import CLOSED, few_shot, fill, halves, make_results, transfer

METHODS = ("zero-shot", CLOSED, "mmrl")
TARGETS = ("two", "three")


def level(each: Slot) -> float:
    return {"zero-shot": 0.5, CLOSED: 0.9, "mmrl": 0.7}[each.method]


def scores_of(folder: Path, slots: Sequence[Slot]) -> StudyScores:
    fill(make_results(folder, slots), slots, at=level)
    results = Results(folder)
    return StudyScores(results, results.plans[slots[0].study])


@pytest.fixture
def scores(tmp_path: Path) -> StudyScores:
    return scores_of(tmp_path, halves(methods=METHODS, datasets=("one", "two"), seeds=(1, 2)))


@pytest.fixture
def moved(tmp_path: Path) -> StudyScores:
    return scores_of(tmp_path, transfer("cross-dataset", "one", TARGETS, METHODS))


def given(measure: Measure | None) -> Measure:
    assert measure is not None
    return measure


def no_number(measure: Measure | None) -> bool:
    found = given(measure)
    parts = (found.applicable, found.mean, found.std, dict(found.by_seed), found.planned, found.complete)
    return parts == (False, None, None, {}, 0, False)


def rows_of(sheet: Sheet, name: str) -> list[list[str]]:
    """Cells of the Markdown rows that have `name` in them."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown(sheet).splitlines() if f"| {name} |" in line]


def test_new_classes_and_what_follows_from_them_have_no_number(scores: StudyScores):
    zero, closed, mmrl = scores.arms
    assert (zero.title, closed.title, closed.published) == ("zero-shot CLIP", "Linear probe", "Linear probe CLIP")
    assert given(scores.measure(closed, "one", "base")).mean == pytest.approx(90) == given(scores.average(closed, "base")).mean
    for metric in ("novel", "hm", "mean hm"):
        assert no_number(scores.measure(closed, "one", metric)) and no_number(scores.average(closed, metric))
        assert given(scores.average(mmrl, metric)).complete
    assert scores.measure(closed, "one", "all") is None  # never planned
    assert scores.tests(closed, "one", "novel") == []


def test_an_average_has_no_number_where_a_part_has_none(tmp_path: Path):
    slots = halves(methods=("mmrl",), datasets=("one", "two"), seeds=(1,))
    slots = [each.model_copy(update={"applicable": (each.dataset, each.classes) != ("two", "novel")}) for each in slots]
    scores = scores_of(tmp_path, slots)
    (arm,) = scores.arms
    assert no_number(scores.average(arm, "hm")) and no_number(scores.average(arm, "novel")) and no_number(scores.measure(arm, "two", "hm"))
    assert given(scores.measure(arm, "one", "hm")).complete and given(scores.average(arm, "novel", datasets=["one"])).complete


def test_a_result_of_a_slot_that_is_not_applicable_does_not_count(tmp_path: Path):
    slots = halves(methods=("mmrl",), datasets=("one",), seeds=(1,))
    fill(tmp_path, slots, at=level)
    make_results(tmp_path, [each.model_copy(update={"applicable": each.classes == "base"}) for each in slots])
    results = Results(tmp_path)
    scores = StudyScores(results, results.plans["base-to-novel"])
    assert no_number(scores.measure(scores.arms[0], "one", "novel"))


def test_other_data_sets_have_no_number_and_the_source_has(moved: StudyScores):
    (sheet,) = study_sheets(moved)
    (row,) = rows_of(sheet, "Linear probe")
    assert row == ["Linear probe", "**90.00 ± 0.00**", "n/a", "n/a", "n/a"]
    (row,) = rows_of(sheet, "MMRL")
    assert row == ["MMRL", "70.00 ± 0.00", *["**70.00 ± 0.00**"] * 3]


def test_tables_say_so_and_explain_it(scores: StudyScores):
    average, each = study_sheets(scores)
    assert rows_of(average, "Linear probe") == [["Linear probe", "**90.00 ± 0.00**", "n/a", "n/a", "n/a"]]
    assert [row[1:] for row in rows_of(each, "Linear probe")] == [["Linear probe", "**90.00 ± 0.00**", "n/a", "n/a"]] * 2
    assert [row[-1] for row in rows_of(each, "MMRL")] == ["**70.00 ± 0.00**"] * 2  # the best of those that have a number
    assert " & n/a & n/a & n/a \\\\" in latex(average) and "missing" not in latex(average) + markdown(average)
    for sheet in (average, each, calibration_sheet(scores)):
        assert sheet and [note for note in sheet.all_notes if note.startswith("n/a: not applicable")]
        assert sheet.numeric[-2:] == (True, True)
    assert not [note for note in Sheet("x", "x", ("m",), ((average.rows[0][-1],),)).all_notes if "n/a" in note]


def test_csv_files_have_an_empty_value_and_a_mark(scores: StudyScores):
    for sheet in study_sheets(scores):
        lines = list(csv.DictReader(io.StringIO(tidy_csv(sheet))))
        marked = [line for line in lines if line["applicable"] == "0"]
        assert {(line["method"], line["metric"]) for line in marked} == {(CLOSED, metric) for metric in ("novel", "hm", "mean hm")}
        shown = {tuple(line[name] for name in ("seed", "value", "std", "seeds", "seeds_planned", "paper")) for line in marked}
        assert shown == {("mean", "", "", "0", "0", "")}
        means = [line for line in lines if line["seed"] == "mean" and line not in marked]
        assert means and all(line["value"] and line["applicable"] == "1" for line in means)
        assert {line["applicable"] for line in lines if line["seed"] != "mean"} == {""}


def test_figures_leave_them_out(scores: StudyScores, tmp_path: Path):
    (drawing,) = study_drawings(scores)  # harmonic means
    assert drawing.series == ("zero-shot CLIP", "", "MMRL")  # by number, so that MMRL keeps its colour and mark
    (chart,) = drawing.charts
    assert "Linear probe" not in chart and "nan" not in chart.lower()
    assert [f'class="s{series}"' in chart for series in range(3)] == [True, False, True]
    other = scores_of(tmp_path / "few", few_shot(METHODS, (1, 2), datasets=("one",)))
    assert study_drawings(other)[0].series == ("zero-shot CLIP", "Linear probe", "MMRL")


def test_a_figure_of_other_data_sets_has_the_source_alone(moved: StudyScores):
    (drawing,) = study_drawings(moved)
    (chart,) = drawing.charts
    assert drawing.series == ("zero-shot CLIP", "Linear probe", "MMRL") and chart.count('class="s1"') == 1
    assert "one: zero-shot CLIP 50.00, Linear probe 90.00, MMRL 70.00" in chart and "two: zero-shot CLIP 50.00, MMRL 70.00" in chart


@pytest.mark.parametrize("variants", [("0.2", "0.5"), ("L1", "cosine")], ids=["curves", "dumbbells"])
def test_a_figure_of_an_ablation_has_what_has_numbers(tmp_path: Path, variants: tuple[str, ...]):
    slots = halves("lambda", (CLOSED,), variants=variants, datasets=("one", "two"), seeds=(1,))
    (drawing,) = study_drawings(scores_of(tmp_path, slots))
    assert drawing.series == ("base", "", "") and drawing.charts


def test_status_counts_neither_to_do_nor_done(tmp_path: Path):
    slots = halves(methods=METHODS, datasets=("one",), seeds=(1,))
    make_results(tmp_path, slots)
    none = {"running": 0, "failed": 0, "cancelled": 0}
    assert status(tmp_path).total == {"done": 0, "to do": 5} | none
    fill(tmp_path, slots, at=level)
    found = status(tmp_path)
    assert found.total == {"done": 5, "to do": 0} | none == found.studies["base-to-novel"] and found.seconds_left is None


def test_the_page_misses_nothing(tmp_path: Path):
    slots = halves(methods=METHODS, datasets=("one",), seeds=(1, 2))
    fill(make_results(tmp_path, slots), slots, at=level)
    page, *tables = build_report(tmp_path, tmp_path / "r")
    html = page.read_text(encoding="utf-8")
    assert '<td class="number missing">n/a</td>' in html and "<small>missing</small>" not in html and 'id="missing"' not in html
    (progress,) = (line for line in html.split("<tr") if "Base-to-novel generalisation</td>" in line)
    assert progress.count(">8</td>") == 2  # done, and all: two of zero-shot, four of MMRL, two of the linear probe
    legend = html.split('<ul class="legend">')[1].split("</ul>")[0]
    assert legend.count("<li>") == 2 and "Linear probe" not in legend and 'class="s0"' in legend and 'class="s2"' in legend
    assert all("nan" not in path.read_text(encoding="utf-8").lower().split() for path in tables)


def test_claims_about_them_are_skipped(tmp_path: Path):
    slots = halves(methods=("zero-shot", "mmrl"), datasets=("one", "two"), seeds=(1, 2))
    slots = [each.model_copy(update={"applicable": each.seen or each.seed is None or each.dataset == "one"}) for each in slots]
    scores = scores_of(tmp_path, slots)
    first = claims(Results(tmp_path), {"base-to-novel": scores})[0]
    assert "higher HM" in first.text and first.verdict == "not run" and not first.evidence


def test_the_cost_table_takes_no_harmonic_mean_of_them(scores: StudyScores, tmp_path: Path):
    results = Results(tmp_path)
    assert hm_of(results, CLOSED, variant="", backbone="tiny", shots=16) is None
    assert hm_of(results, "mmrl", variant="", backbone="tiny", shots=16) == pytest.approx(0.7)


def test_rows_are_as_planned_and_zero_shot_is_first(tmp_path: Path):
    planned = ("mmrl", "ours", "coop", "zero-shot", "mmrlpp")
    slots = halves(methods=planned, datasets=("one",), seeds=(1,))
    fill(make_results(tmp_path, slots), slots)
    results = Results(tmp_path)
    for sheet in study_sheets(StudyScores(results, results.plans["base-to-novel"])):
        assert [row[sheet.heads.index("method")] for row in sheet.rows] == ["zero-shot CLIP", "MMRL", "ours", "CoOp", "MMRL++"]


def test_every_series_of_a_figure_looks_its_own_way():
    many = len(MARKERS) ** 2
    assert len({look(series)[:2] for series in range(many)}) == many
    assert len({look(series)[1:] for series in range(6)}) == 6
