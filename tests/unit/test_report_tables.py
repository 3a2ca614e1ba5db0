"""The forms of a table: Markdown, LaTeX, tidy CSV; what marks and small print say."""

from __future__ import annotations

import csv
import io
import re
import statistics
from pathlib import Path

import pytest

from mmrl.reports import paper
from mmrl.reports.measures import Arm, Measure, StudyScores
from mmrl.reports.results import Results
from mmrl.reports.sheets import Sheet, latex, main_text, markdown, signed, small_text, tex, tidy_csv
from mmrl.reports.tables import study_sheets
from tests.results_folder import whole

ARM = Arm("mmrl", "", "tiny", 16, "MMRL")
NASTY = r"50% of $5_{a}\b & <i>#1|2~^*`"


def measure(mean: float | None = 80.0, **more: object) -> Measure:
    fields: dict[str, object] = {"by_seed": {} if mean is None else {1: mean - 1, 2: mean + 1}, "planned": 2}
    return Measure(ARM, "dtd", "hm", mean, **(fields | more))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sheets(tmp_path_factory: pytest.TempPathFactory) -> list[Sheet]:
    """Every table of a whole results folder, and one of odd names."""
    results = Results(whole(tmp_path_factory.mktemp("results")))
    found = [sheet for plan in results.plans.values() for sheet in study_sheets(StudyScores(results, plan))]
    return [*found, Sheet("odd", NASTY, ("name", NASTY), ((NASTY, measure()), ("b", measure(82.0))), (NASTY,))]


def test_numbers_and_their_small_print():
    assert main_text(measure()) == "80.00 ± 1.41" and small_text(measure()) == []
    assert main_text(measure(by_seed={None: 80.0}, planned=1)) == "80.00"
    not_applicable = measure(None, planned=0, applicable=False)
    assert (main_text(not_applicable), small_text(not_applicable)) == ("n/a", []) and not not_applicable.complete
    assert (main_text(measure(None)), small_text(measure(None))) == ("–", ["missing"])
    assert small_text(measure(planned=3)) == ["2 of 3 seeds"]
    assert small_text(measure(datasets=(3, 11))) == ["3 of 11 data sets"]
    assert small_text(measure(paper=paper.Printed(79.75))) == ["paper 79.75, +0.25"]
    assert small_text(measure(paper=paper.Printed(80.5, "odd"))) == ["paper 80.50§, −0.50"]
    assert main_text(measure(dirty=True)) == "80.00 ± 1.41‡"
    assert (main_text(1234567), main_text(0.12345), main_text(1757.6), main_text(None), main_text("x")) == (
        "1,234,567",
        "0.1235",
        "1,758",
        "",
        "x",
    )
    assert (signed(-0.004), signed(1.0), signed(-1.0)) == ("0.00", "+1.00", "−1.00")


def test_marks_are_explained_where_they_stand():
    sheet = Sheet("x", "x", ("m",), ((measure(dirty=True, paper=paper.Printed(73.82, "why")),),), ("first",))
    dirty, odd = sheet.all_notes[1:]
    assert dirty.startswith("‡ ") and "uncommitted" in dirty
    assert odd.startswith("§ MMRL, dtd, hm: the printed 73.82") and "why" in odd
    assert Sheet("x", "x", ("m",), ((measure(),),), ("first",)).all_notes == ("first",)
    own = ((measure(own_splits=frozenset({"dtd"})),), (measure(own_splits=frozenset({"ucf101", "dtd"})),))
    (note,) = Sheet("x", "x", ("m",), own).all_notes
    assert note.startswith("Not the published split: dtd, ucf101.")


def steady(mean: float, **more: object) -> Measure:
    """The same for both seeds, so without spread."""
    return measure(mean, by_seed={1: mean, 2: mean}, **more)


def test_the_best_of_each_group_is_bold():
    rows = (("a", steady(70.0)), ("a", steady(71.0)), ("b", steady(60.0)), ("c", steady(50.001)), ("c", steady(50.0)), ("c", None))
    sheet = Sheet("x", "x", ("data set", "HM"), rows, group=0)
    assert sheet.best() == {(1, 1)}  # alone in b: nothing to be better than; equal as printed: neither
    assert Sheet("x", "x", ("data set", "HM"), rows).best() == {(1, 1)}
    assert not Sheet("x", "x", ("data set", "HM"), rows, bold=False).best()


def test_what_is_within_the_spread_of_either_is_not_bold():
    one, other = measure(82.0, by_seed={1: 81.0, 2: 83.0}), steady(80.0)  # a spread of 1.41

    def bold(*cells: Measure) -> set[tuple[int, int]]:
        return Sheet("x", "x", ("method", "HM"), tuple(("m", cell) for cell in cells)).best()

    assert bold(one, other) == {(0, 1)}
    assert not bold(one, steady(80.6)) and not bold(steady(83.4), one)
    assert not bold(one, other, steady(81.0))


def test_what_is_incomplete_is_never_the_best():
    rows = (("a", steady(90.0, datasets=(3, 11))), ("b", steady(70.0, datasets=(11, 11))), ("c", steady(95.0, planned=3)))
    assert not Sheet("x", "x", ("method", "HM"), rows).best()  # one complete alone is better than nothing else
    more = (*rows, ("d", steady(60.0, datasets=(11, 11))), ("e", measure(None)))
    assert Sheet("x", "x", ("method", "HM"), more).best() == {(1, 1)}


def test_markdown(sheets: list[Sheet]):
    for sheet in sheets:
        lines = [line for line in markdown(sheet).splitlines() if line.startswith("|")]
        assert len(lines) == len(sheet.rows) + 2
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(sheet.heads) + 1}
    text = markdown(sheets[-1])
    assert "<i>" not in text and "**82.00 ± 1.41**" in text


def test_latex_is_escaped_and_whole(sheets: list[Sheet]):
    assert tex(r"a_b & 5% $x$ \n") == r"a\_b \& 5\% \$x\$ \textbackslash{}n"
    for sheet in sheets:
        text = latex(sheet)
        assert text.isascii()
        body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) == len(sheet.rows)
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(sheet.heads) - 1}
        bare = re.sub(r"\\[\\{}%$&#_]", "", text)
        assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
        assert re.findall(r"\\begin{(\w+)}", text) == re.findall(r"\\end{(\w+)}", text)[::-1] == ["table", "tabular"]


def test_no_name_is_an_argument_of_a_latex_rule():
    names = ("[2pt]", "*", "**b**", "[x](http://e.com)", "`id`", "two\nlines")
    sheet = Sheet("x", "x", ("[head", "y"), tuple((name, 1) for name in names), group=0)
    assert not re.search(r"(\\\\|rule)\s*[\[*]", latex(sheet))
    assert "two lines & 1" in latex(sheet) and tex("`[*") == r"\textasciigrave{}{[}{*}"


def test_tidy_csv_has_every_seed_at_full_precision(sheets: list[Sheet]):
    sheet = next(each for each in sheets if each.name == "base-to-novel")
    lines = list(csv.DictReader(io.StringIO(tidy_csv(sheet))))
    one = [line for line in lines if (line["method"], line["dataset"], line["metric"]) == ("mmrl", "mini:digits", "hm")]
    assert [line["seed"] for line in one] == ["mean", "1", "2", "3"]
    measures = [cell for row in sheet.rows for cell in row if isinstance(cell, Measure)]
    found = next(each for each in measures if each.arm.method == "mmrl" and each.metric == "hm")
    assert [float(line["value"]) for line in one] == [found.mean, *found.by_seed.values()]
    assert (float(one[0]["std"]), one[0]["seeds"], one[0]["seeds_planned"], one[0]["dirty"]) == (found.std, "3", "3", "1")
    zero = [line for line in lines if (line["method"], line["dataset"], line["metric"]) == ("zero-shot", "mini:digits", "base")]
    assert [(line["seed"], line["std"]) for line in zero] == [("mean", ""), ("", "")]
    few = next(each for each in sheets if each.name == "few-shot-average")
    assert {line["shots"] for line in csv.DictReader(io.StringIO(tidy_csv(few)))} == {"", "1", "2", "4", "8", "16"}


@pytest.mark.parametrize("name", ["base-to-novel", "alpha-hm"])
def test_tidy_csv_has_both_harmonic_means(sheets: list[Sheet], name: str):
    sheet = next(each for each in sheets if each.name == name)
    lines = [line for line in csv.DictReader(io.StringIO(tidy_csv(sheet))) if line["dataset"] == "mini:digits" and line["method"] == "mmrl"]
    value = {(line["variant"], line["metric"], line["seed"]): float(line["value"]) for line in lines}
    arms = {variant for variant, _, _ in value}
    assert arms
    for variant in arms:
        own = [found for (of, metric, seed), found in value.items() if (of, metric) == (variant, "hm") and seed != "mean"]
        assert len(own) > 1 and value[variant, "mean hm", "mean"] == pytest.approx(statistics.fmean(own), abs=1e-12)
        assert value[variant, "mean hm", "1"] == value[variant, "hm", "1"]
        assert value[variant, "hm", "mean"] > value[variant, "mean hm", "mean"]
    assert not [cell for row in sheet.rows for cell in row if isinstance(cell, Measure) and cell.metric == "mean hm"]
    assert any("mean hm" in note and "as in the paper" in note for note in sheet.all_notes)


def test_tables_of_text_are_written_as_they_stand():
    sheet = Sheet("c", "c", ("method", "minutes"), (("a,b", 0.1 + 0.2), ("c", None)))
    assert tidy_csv(sheet) == 'method,minutes\n"a,b",0.30000000000000004\nc,\n'


def test_no_two_tables_share_a_file(sheets: list[Sheet], tmp_path: Path):
    names = [sheet.name for sheet in sheets]
    assert len(set(names)) == len(names)
