"""The paper's whole tables beside ours, where the setting is the paper's: order, marks, and what they never are."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmrl.reports import paper
from mmrl.reports.measures import Measure, StudyScores
from mmrl.reports.plans import Slot
from mmrl.reports.ranking import ranking_sheet, standings
from mmrl.reports.report import build_report
from mmrl.reports.results import Results
from mmrl.reports.sheets import Sheet, latex, markdown, tidy_csv
from mmrl.reports.tables import study_sheets
from tests.results_folder import edit_tests, few_shot, fill, halves, make_results, transfer

OPENAI = "ViT-B-16-quickgelu/openai"
OURS = ("zero-shot", "mmrlpp", "mmrl", "coop")
TARGETS = tuple(name for name in paper.DATASETS if name != "imagenet")
ONLY = " (paper only)"


def study(folder: Path, slots: Sequence[Slot], *, suite: str = "paper", left_out: Sequence[Slot] = ()) -> StudyScores:
    fill(make_results(folder, slots, suite=suite), [each for each in slots if each not in left_out], at=lambda each: 0.7)
    results = Results(folder)
    return StudyScores(results, results.plans[slots[0].study])


def base_to_novel(**changes: Any) -> list[Slot]:
    return halves(**({"methods": OURS, "datasets": paper.DATASETS, "backbone": OPENAI, "seeds": (1, 2)} | changes))


def methods(sheet: Sheet, **where: str) -> list[str]:
    """The column of methods, of the rows that have these values."""
    at = sheet.heads.index("method")
    kept = [row for row in sheet.rows if all(row[sheet.heads.index(head.replace("_", " "))] == value for head, value in where.items())]
    return [str(row[at]) for row in kept]


def cells(sheet: Sheet, name: str) -> list[str]:
    """Of the Markdown row of `name`, after its name."""
    line = next(line for line in markdown(sheet).splitlines() if f"| {name} |" in line)
    return [cell.strip() for cell in line.strip("|").split("|")][1 + (sheet.group is not None) :]


def alone(*names: str) -> list[str]:
    return [f"{name}{ONLY}" for name in names]


def test_table_1_stands_in_its_order_and_ours_below(tmp_path: Path):
    average, each = study_sheets(study(tmp_path, base_to_novel()))
    between = alone("CoCoOp", "ProDA", "KgCoOp", "MaPLe", "PromptSRC", "ProVP", "MetaPrompt", "TCP", "MMA")
    order = ["zero-shot CLIP", "CoOp", *between, "MMRL", "MMRL++"]
    assert methods(average) == order and methods(each, data_set="dtd") == order and len(each.rows) == 11 * len(order)
    assert average.ruled == {len(order) - 1} and each.ruled == {at for at in range(len(each.rows)) if at % len(order) == len(order) - 1}
    assert cells(average, f"CoCoOp{ONLY}") == ["80.47", "71.69", "75.83", ""]
    assert cells(average, f"MetaPrompt{ONLY}")[2] == "79.09§"
    assert any(note.startswith("§ MetaPrompt, average, hm") for note in average.all_notes)
    assert "(paper 81.20, −11.20)" in cells(average, "MMRL")[2]
    assert "paper" not in "".join(cells(average, "MMRL++"))
    assert any(note.startswith("Paper only:") for note in average.all_notes)


def test_tables_2_3_10_and_11(tmp_path: Path):
    (cross,) = study_sheets(study(tmp_path / "cross", transfer("cross-dataset", "imagenet", TARGETS, OURS, backbone=OPENAI)))
    rest = alone("CoCoOp", "MaPLe", "PromptSRC", "TCP", "MMA")
    assert methods(cross) == ["CoOp", *rest, "MMRL", "zero-shot CLIP", "MMRL++"] and cross.ruled == {7}  # Table 2 has no CLIP
    assert cells(cross, f"TCP{ONLY}")[1] == f"{paper.cross_dataset('TCP', 'average').value:.2f}"
    slots = transfer("domain-generalisation", "imagenet", paper.SHIFTED, OURS, backbone=OPENAI)
    (domain,) = study_sheets(study(tmp_path / "domain", slots))
    rest = alone("CoCoOp", "MaPLe", "PromptSRC", "MMA")
    assert methods(domain) == ["zero-shot CLIP", "CoOp", *rest, "MMRL", "MMRL++"]
    assert cells(domain, f"MMA{ONLY}")[:2] == [f"{paper.domain_generalisation('MMA', 'imagenet').value:.2f}", ""]  # no average is printed
    few = study(tmp_path / "few", few_shot(OURS, (1, 16), datasets=paper.DATASETS, backbone=OPENAI))
    average, each = study_sheets(few)
    rest = alone("CoCoOp", "MaPLe", "PromptSRC", "MMA")
    order = [f"Linear probe CLIP{ONLY}", "CoOp", *rest, "MMRL", "zero-shot CLIP", "MMRL++"]
    assert methods(average) == order == methods(each, data_set="eurosat")
    assert cells(average, f"Linear probe CLIP{ONLY}") == ["", "45.83", "78.79"]
    assert "(paper 72.67, −2.67)" in cells(average, "MMRL")[1]


@pytest.mark.parametrize(
    "changes",
    [{"backbone": "ViT-B-32/openai"}, {"datasets": ("mini:digits", "mini:objects")}, {"suite": "mini"}, {"suite": "own"}],
    ids=str,
)
def test_nothing_of_the_paper_stands_elsewhere(tmp_path: Path, changes: dict[str, Any]):
    suite = changes.pop("suite", "paper")
    scores = study(tmp_path, base_to_novel(**changes), suite=suite)
    for sheet in study_sheets(scores):
        text = markdown(sheet)
        assert "paper only" not in text.lower() and not sheet.ruled and len(set(methods(sheet))) == len(OURS)
        assert "paper" not in latex(sheet).replace("as in the paper", "")


def test_other_shots_and_another_source_are_other_settings(tmp_path: Path):
    four = [each.model_copy(update={"shots": each.shots and 4}) for each in base_to_novel()]
    assert study(tmp_path / "four", four).paper_rows == []
    both = study(tmp_path / "both", [*base_to_novel(methods=("mmrl",)), *halves(methods=("mmrl",), datasets=("dtd",), backbone="other")])
    assert methods(study_sheets(both)[0])[-2:] == ["MMRL", "MMRL"] and len(both.paper_rows) == 12
    elsewhere = study(tmp_path / "source", transfer("cross-dataset", "dtd", TARGETS[:2], OURS, backbone=OPENAI))
    assert elsewhere.paper_rows == [] and not [m for m in measures(study_sheets(elsewhere)) if m.paper]


def measures(sheets: Sequence[Sheet]) -> list[Measure]:
    return [cell for sheet in sheets for row in sheet.rows for cell in row if isinstance(cell, Measure)]


def test_options_of_the_users_stand_below_the_papers_own_row(tmp_path: Path):
    average, _ = study_sheets(study(tmp_path, base_to_novel(methods=("mmrl",), variants=("lam=2",))))
    assert methods(average)[-2:] == [f"MMRL{ONLY}", "MMRL"] and average.ruled == {12} and average.rows[-1][1] == "lam=2"


def test_a_row_of_nothing_is_left_out(tmp_path: Path):
    average, each = study_sheets(study(tmp_path, base_to_novel(datasets=paper.DATASETS[:3])))
    assert methods(average) == ["zero-shot CLIP", "CoOp", "MMRL", "MMRL++"]  # the paper's averages are over eleven
    assert len(methods(each, data_set="imagenet")) == 13


def test_not_beside_a_split_drawn_here(tmp_path: Path):
    slots = base_to_novel()
    study(tmp_path, slots)
    edit_tests(tmp_path, [each for each in slots if each.dataset == "dtd"], own_split=True)
    results = Results(tmp_path)
    average, each = study_sheets(StudyScores(results, results.plans["base-to-novel"]))
    assert methods(average) == ["zero-shot CLIP", "CoOp", "MMRL", "MMRL++"] == methods(each, data_set="dtd")
    assert len(methods(each, data_set="eurosat")) == 13


def test_they_are_neither_bold_nor_ranked_nor_scores_of_ours(tmp_path: Path):
    slots = base_to_novel()
    scores = study(tmp_path, slots)
    results = Results(tmp_path)
    sheets = study_sheets(scores)
    for sheet in sheets:
        assert not [at for at, _ in sheet.best() if sheet.paper_only(at)]
        lines = list(csv.DictReader(io.StringIO(tidy_csv(sheet))))
        only = [line for line in lines if line["seed"] == "paper"]
        assert {line["method"] for line in only} == set(paper.methods("base-to-novel")) - {"CLIP", "CoOp", "MMRL"}
        filled = {name for line in only for name, value in line.items() if value}
        assert filled == {"method", "backbone", "shots", "dataset", "metric", "seed", "paper"}
        ours = [line for line in lines if line["seed"] != "paper"]
        assert {line["method"] for line in ours} == set(OURS) and all(line["value"] for line in ours)
    ranking = ranking_sheet(scores, standings(results, scores))
    assert ranking and len(ranking.rows) == len(OURS) and not [m for m in measures([ranking]) if m.arm.paper_only]


def test_the_line_and_the_mark_in_latex_and_on_the_page(tmp_path: Path):
    average, each = study_sheets(study(tmp_path, base_to_novel()))
    body = latex(average).splitlines()
    assert body[body.index(next(line for line in body if line.startswith("MMRL++"))) - 1] == r"\midrule"
    assert latex(average).count(r"\midrule") == 2 and latex(each).count(r"\cmidrule(l){2-5}") == 11
    assert r"CoCoOp (paper only) & 80.47 & 71.69 & 75.83 &" in latex(average)
    html = build_report(tmp_path, tmp_path / "r")[0].read_text(encoding="utf-8")
    row = html.split("CoCoOp (paper only)")[0].rpartition("<tr")[2]
    assert row.startswith(' class="printed"') and '<tr class="ruled">' in html
    assert html.split("CoCoOp (paper only)")[1].split("</tr>")[0].count("<strong>") == 0


def test_what_is_planned_and_missing_stays_ours(tmp_path: Path):
    slots = base_to_novel()
    coop = [each for each in slots if each.method == "coop" and each.dataset == "dtd"]
    _, each = study_sheets(study(tmp_path, slots, left_out=coop))
    (row,) = (row for row in each.rows if row[:2] == ("dtd", "CoOp"))
    assert all(isinstance(cell, Measure) and cell.mean is None and not cell.paper for cell in row[2:])
    assert f"CoOp{ONLY}" not in methods(each)
