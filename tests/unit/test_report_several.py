"""`mmrl report A B --claim ...`: several folders on one page, side by side, and claims of the user's held against them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmrl.cli.main import app
from mmrl.errors import UsageError
from mmrl.reports.claims import Claim
from mmrl.reports.folders import open_folders
from mmrl.reports.own_claims import own_claims
from mmrl.reports.plans import Slot
from mmrl.reports.report import write_report
from tests.results_folder import few_shot, fill, halves, make_results
from tests.unit.test_report_page import INSIDE, Outline

TOP = {"zero-shot": 0.5, "mmrl": 0.7, "coop": 0.6, "mine": 0.8}


def flat(each: Slot) -> float:
    return TOP[each.method] + 0.01 * (each.seed or 0)


def made(folder: Path, slots: Sequence[Slot], at: Callable[[Slot], float] = flat) -> Path:
    fill(make_results(folder, slots), slots, at=at)
    return folder


def again(slots: Sequence[Slot]) -> list[Slot]:
    """The same scores as runs of their own; zero-shot's are the same wherever they are."""
    other = {"key": "{}x", "run": "{}x"}
    return [
        each if each.seed is None else each.model_copy(update={name: form.format(getattr(each, name)) for name, form in other.items()})
        for each in slots
    ]


@pytest.fixture
def both(tmp_path: Path) -> list[Path]:
    """Two folders: both have MMRL and zero-shot CLIP on one common data set of two; each has a method and a study of its own."""
    one = [*halves(methods=("zero-shot", "mmrl", "coop"), datasets=("one", "two")), *few_shot(methods=("mmrl",), datasets=("one",))]
    two = [*again(halves(methods=("zero-shot", "mmrl", "mine"), datasets=("two", "three")))]
    more = halves("lambda", ("mmrl",), variants=("0.2", "2.0"), datasets=("two",))
    return [made(tmp_path / "runs" / "old", one), made(tmp_path / "runs" / "new <b>", [*two, *more], lambda each: flat(each) + 0.02)]


def test_studies_of_each_and_side_by_side_where_they_share_one(both: list[Path], tmp_path: Path):
    page, *tables = write_report(open_folders(both), tmp_path / "r")
    html = page.read_text(encoding="utf-8")
    outline = Outline(html)
    assert not outline.open and len(set(outline.ids)) == len(outline.ids) and all(link.startswith(INSIDE) for link in outline.links)
    mark = "new--b-"
    assert {"base-to-novel", "old-base-to-novel", "old-few-shot", f"{mark}-base-to-novel", f"{mark}-lambda"} <= set(outline.ids)
    assert "few-shot" not in outline.ids and "lambda" not in outline.ids  # of one folder alone
    assert "<title>Results of old and new &lt;b&gt;</title>" in html and "<b>" not in html
    assert "mmrl report old &#39;new &lt;b&gt;&#39; --out report" in html
    names = {path.stem for path in tables}
    assert len(tables) == 3 * len(names) and {"base-to-novel-side-by-side", "old-few-shot", f"{mark}-calibration", "claims"} <= names
    with (page.parent / "tables" / "base-to-novel-side-by-side.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    zero = ["zero-shot CLIP (new <b>)", "zero-shot CLIP (old)"]
    assert [row["method"] for row in rows] == ["mine", "MMRL (new <b>)", "MMRL (old)", "CoOp", *zero]
    by_name = {row["method"]: row for row in rows}
    assert float(by_name["mine"]["HM of the averages"]) == pytest.approx(84)  # on the common data set alone
    assert float(by_name["MMRL (new <b>)"]["difference to MMRL (old)"]) == pytest.approx(2)
    assert by_name["MMRL (old)"]["difference to MMRL (old)"] == ""
    assert [float(row["mean rank"]) for row in rows] == [1, 2, 3, 4, 5, 6]


def test_zero_shot_of_the_same_tests_stands_once(tmp_path: Path):
    slots = halves(methods=("zero-shot", "mmrl"), datasets=("one", "two"))
    folders = open_folders([made(tmp_path / "a", slots), made(tmp_path / "b", again(slots))])
    page, *_ = write_report(folders, tmp_path / "r")
    shown = (page.parent / "tables" / "base-to-novel-side-by-side.md").read_text(encoding="utf-8")
    assert shown.count("zero-shot CLIP") == 1 and "MMRL (a)" in shown and "MMRL (b)" in shown
    assert "all the folders have: one, two." in shown


def test_folders_of_one_name_are_told_apart(tmp_path: Path):
    slots = halves(methods=("mmrl",), datasets=("one",))
    places = [made(tmp_path / name / "results", slots) for name in ("a", "b")]
    assert [(folder.label, folder.mark) for folder in open_folders(places)] == [("a/results", "a-results"), ("b/results", "b-results")]
    assert [folder.label for folder in open_folders(places[:1])] == [""]
    with pytest.raises(UsageError, match="given twice"):
        open_folders([places[0], places[0] / ".." / "results"])


def verdict(text: str, *places: Path) -> Claim:
    (claim,) = own_claims([text], open_folders(places))
    return claim


@pytest.fixture
def one(tmp_path: Path) -> Path:
    slots = [
        *halves(methods=("zero-shot", "mmrl", "coop", "mine"), datasets=("one", "two")),
        *halves(methods=("mine",), variants=("lr=1",), datasets=("one", "two")),
        *few_shot(methods=("mmrl", "mine"), shots=(1, 4), datasets=("one", "two")),
        *halves("lambda", ("mine",), variants=("0.2",), datasets=("one",)),
    ]
    return made(tmp_path / "all", slots, lambda each: flat(each) - (0.3 if (each.variant, each.dataset) == ("lr=1", "one") else 0))


def test_a_claim_holds_by_the_paired_interval(one: Path):
    found = verdict("mine > mmrl on hm", one)
    assert (found.verdict, found.text) == ("holds", "mine > mmrl on hm")
    assert found.evidence == (
        "Base-to-novel generalisation, HM: mine 82.00, MMRL 72.00: +10.00 points, 95% interval +10.00 to +10.00; higher on 2 of 2 data "
        "sets, 6 pairs.",
    )
    assert verdict("coop > MMRL  on  HM in base-to-novel", one).verdict == "does not hold"  # by title, in any case
    assert verdict("mine:lr=1 > mmrl on base", one).verdict == "undecided"
    assert verdict("mine > zero-shot on novel", one).verdict == "holds"


def test_a_claim_is_of_every_study_and_number_of_shots(one: Path):
    found = verdict("mine > mmrl on accuracy", one)
    assert found.verdict == "holds" and [sentence.split(":")[0] for sentence in found.evidence] == [
        "Few-shot learning, 1 shot, accuracy", "Few-shot learning, 4 shots, accuracy"
    ]  # fmt: skip
    assert verdict("coop > mine on base in base-to-novel", one).verdict == "does not hold"


def test_a_claim_across_folders(both: list[Path]):
    found = verdict("mine > coop on hm", *both)
    assert found.verdict == "holds" and "mine (new <b>) 84.00, CoOp (old) 62.00" in found.evidence[0]
    inside = verdict("coop > zero-shot on hm", *both)
    assert len(inside.evidence) == 1 and inside.evidence[0].count("(old)") == 2


def test_one_pair_decides_nothing_and_none_is_not_run(tmp_path: Path):
    slots = halves(methods=("mmrl", "mine", "coop"), datasets=("one",), seeds=(1,))
    fill(make_results(tmp_path, slots), [each for each in slots if each.method != "coop"], at=flat)
    alone = verdict("mine > mmrl on hm", tmp_path)
    assert alone.verdict == "undecided" and "one pair alone" in alone.evidence[0]
    assert verdict("mine > coop on hm", tmp_path).verdict == "not run"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine is better", r"'mine is better' is no claim. Write METHOD > METHOD on METRIC \[in STUDY\]: 'mine > coop on hm'"),
        ("mine > mmrl", "is no claim"),
        ("> mmrl on hm", "is no claim"),
        ("mine > mmrl on hm in", "unknown metric 'hm in'|is no claim"),
        ("mine < mmrl on hm", "is no claim"),
        ("mines > mmrl on hm", "unknown method 'mines'. Did you mean 'mine'. Known: coop, mine, mmrl, zero-shot"),
        ("mine > mmlr on hm", "unknown method 'mmlr'. Did you mean 'mmrl'"),
        ("coop > mmrl on accuracy", "unknown method 'coop'.* Known: mine, mmrl"),
        ("mine:lr=2 > mmrl on hm", "unknown variant of mine 'lr=2'. Did you mean 'lr=1'"),
        ("mine > mmrl on f1", "unknown metric 'f1'.* Known: accuracy, all, base, hm, novel"),
        ("mine > mmrl on hm in base-to-nowhere", "unknown study 'base-to-nowhere'. Did you mean 'base-to-novel'"),
        ("mine > mmrl on hm in few-shot", "few-shot has no HM; it has accuracy"),
        ("mine > mine on hm", "compares mine with itself"),
    ],
)
def test_a_claim_that_cannot_be_read_is_refused_with_the_fix(one: Path, text: str, message: str):
    with pytest.raises(UsageError, match=message):
        verdict(text, one)


def test_the_command(one: Path, tmp_path: Path):
    words = ["report", str(one), "--out", str(tmp_path / "r"), "--claim", "mine > mmrl on hm", "--claim", "coop > mine on hm"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert "holds: mine > mmrl on hm\n  Base-to-novel generalisation, HM: mine 82.00" in done.output
    assert "does not hold: coop > mine on hm\n" in done.output and "tables in" in done.output
    html = (tmp_path / "r" / "index.html").read_text(encoding="utf-8")
    assert "<h3>Your claims</h3>" in html and "<h3>Claims of the paper</h3>" in html
    assert html.index("mine &gt; mmrl on hm") < html.index("MMRL has a higher HM of base and novel")
    assert "--out report --claim &#39;mine &gt; mmrl on hm&#39; --claim" in html
    table = (tmp_path / "r" / "tables" / "claims.md").read_text(encoding="utf-8")
    assert "| mine &gt; mmrl on hm | yours | holds |" in table
    refused = CliRunner().invoke(app, [*words[:2], "--out", str(tmp_path / "none"), "--claim", "nonsense"])
    assert isinstance(refused.exception, UsageError) and not (tmp_path / "none").exists()
