"""`mmrl report`: the folder it writes, and the page as a browser shows it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from typer.testing import CliRunner

from mmrl.cli.main import app
from mmrl.errors import MmrlError, UsageError
from mmrl.reports import diagnostics
from mmrl.reports.cost import CostTable
from mmrl.reports.report import build_report
from mmrl.reports.svg import fitted, ticks, width_of
from tests.results_folder import cost_row, edit_tests, fail, few_shot, fill, halves, make_results, scores, whole, write_json

SRC = Path(__file__).parents[2] / "src"
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
STUDIES = ("base-to-novel", "few-shot", "cross-dataset", "domain-generalisation", "variants", "rep-dim", "layers", "tokens", "alpha",
           "lambda", "regulariser")  # fmt: skip
TITLE = 'A <report> & "more"'
KINDS = ("text/csv", "application/x-tex", "text/markdown")
INSIDE = ("#", "data:,", *(f"data:{kind};charset=utf-8," for kind in KINDS))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = whole(tmp_path_factory.mktemp("results"))
    write_json(folder / "cost.json", CostTable(rows=(cost_row("mmrl"),)).model_dump(mode="json", by_alias=True))
    (folder / "runs" / "cut.json").write_text('{"schema": "mmrl.ru')
    return folder


@pytest.fixture(scope="module")
def written(results: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return build_report(results, tmp_path_factory.mktemp("report"), title=TITLE)


@pytest.fixture(scope="module")
def html(written: list[Path]) -> str:
    return written[0].read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Elements left open or closed twice, ids, and everything that names a place elsewhere."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self._attributes(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(attrs)

    def _attributes(self, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag


def test_the_page_is_whole_and_needs_nothing_else(html: str):
    outline = Outline(html)
    assert not outline.open and len(set(outline.ids)) == len(outline.ids)
    assert all(link.startswith(INSIDE) for link in outline.links)
    assert {link[1:] for link in outline.links if link.startswith("#")} <= set(outline.ids)
    assert not re.search(r"https?://|@import|url\(", html)
    assert len(html) < 1_500_000


def test_every_section_is_there(html: str):
    ids = set(Outline(html).ids)
    assert {*STUDIES, "summary", "claims", "cost", "calibration", "confusions", "training", "problems", "failed", "dirty", "damaged",
            "reproduce"} <= ids  # fmt: skip
    assert "2 of 3 seeds" in html and "mmrl bench few-shot --suite mini" in html and "0123456789ab" in html
    assert "paper 8" not in html  # the mini benchmark stands beside no number of the paper


def test_what_users_named_is_text(html: str):
    assert "zebra &lt;striped&gt; &amp; |tall|" in html and "<striped>" not in html
    assert "out of memory &lt;on&gt; the &amp; device" in html
    assert "<title>A &lt;report&gt; &amp; &#34;more&#34;</title>" in html


def test_names_of_every_kind_are_text(tmp_path: Path):
    bad = """</title><script>alert('{}')</script><img src=x onerror=y>"&'<a href="http://e.com">"""
    folder = tmp_path / "a <b>bold<" / "b>"
    slots = halves(datasets=(bad.format("data"),), variants=(bad.format("variant"),), backbone=bad.format("backbone"))
    slots += few_shot(datasets=(bad.format("data"),), backbone=bad.format("backbone"))
    make_results(folder, slots)
    fill(folder, slots[:-1], dirty=True, names=[bad.format("class"), "b", "c"])
    fail(folder, slots[-1], error=bad.format("error"))
    edit_tests(folder, slots[:-1], warnings=[bad.format("warning")])
    for path in (folder / "plans").iterdir():
        write_json(path, json.loads(path.read_text()) | {"command": bad.format("command"), "notes": [bad.format("note")]})
    html = build_report(folder, tmp_path / "r")[0].read_text(encoding="utf-8")
    outline = Outline(html)
    assert not outline.open and outline.links and all(link.startswith(INSIDE) for link in outline.links)
    assert html.count("<script") == 1 and "<img" not in html and "http://e.com" in html and "<b>" not in html
    for place in ("data", "variant", "backbone", "class", "error", "warning", "command", "note"):
        assert re.search(f"&lt;script&gt;alert\\((&#39;|&#x27;){place}", html), place


def test_every_table_in_three_forms(written: list[Path]):
    page, *tables = written
    assert page.name == "index.html" and all(path.is_file() for path in written) and len(set(written)) == len(written)
    names = {path.stem for path in tables}
    assert {*STUDIES[:4], "claims", "cost", "calibration", "lambda-hm", "variants-average"} <= names
    assert {path.suffix for path in tables} == {".md", ".tex", ".csv"} and len(tables) == 3 * len(names)
    assert "holds" in (page.parent / "tables" / "claims.md").read_text(encoding="utf-8")
    assert set(page.parent.rglob("*.*")) == set(written)  # nothing half written is left


def test_every_table_links_its_files_which_are_in_the_page(html: str, written: list[Path]):
    """But for the claims, whose table is written out on the page."""
    links = re.findall(r'<a download="([^"]+)" href="data:[^,"]+,([^"]*)"', html)
    found = {name: unquote(content) for name, content in links}
    assert found == {path.name: path.read_text(encoding="utf-8") for path in written[1:] if path.stem != "claims"}


def test_a_single_panel_keeps_its_size(tmp_path: Path):
    slots = few_shot(datasets=("one",))
    make_results(tmp_path / "r", slots)
    fill(tmp_path / "r", slots)
    page = build_report(tmp_path / "r", tmp_path / "p")[0].read_text(encoding="utf-8")
    assert set(re.findall(r'<div class="(charts[^"]*)"><div><svg width="310"', page)) == {"charts"}


def test_verdicts_come_before_numbers(html: str):
    places = [html.index(f'id="{part}"') for part in ("summary", "claims", "base-to-novel", "cost")]
    assert places == sorted(places)


def test_without_torch(results: Path, html: str, tmp_path: Path):
    code = (
        "import sys\n"
        "class Refused:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'torchvision', 'open_clip'): raise ImportError(name + ' is not installed')\n"
        "sys.meta_path.insert(0, Refused())\n"
        "from mmrl.cli.main import run\n"
        "run()"
    )
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    for words, wanted in ((["report", results, "--out", tmp_path, "--title", TITLE], 0), (["status", results, "--json"], 1)):
        command = [sys.executable, "-c", code, *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == wanted, done.stderr
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == html  # the same results, the same bytes


def test_a_folder_in_the_middle(tmp_path: Path):
    """One score of one study: a page all the same, with what is missing."""
    slots = halves()
    make_results(tmp_path, slots)
    fill(tmp_path, slots[:1])
    fail(tmp_path, slots[-1], kind="cancelled", error="stopped")
    page = build_report(tmp_path, tmp_path / "r")[0].read_text(encoding="utf-8")
    ids = set(Outline(page).ids)
    assert {"missing", "cancelled", "base-to-novel"} <= ids and not {"failed", "dirty", "damaged", "training"} & ids
    assert "–<small>missing</small>" in page and "MMRL, 16 shots, seed 1, on mini:digits (base classes)" in page


def test_refusals_and_the_first_result(tmp_path: Path):
    with pytest.raises(UsageError, match="does not exist"):
        build_report(tmp_path / "none", tmp_path / "r")
    make_results(tmp_path / "empty", halves())
    with pytest.raises(MmrlError, match="nothing is done yet"):
        build_report(tmp_path / "empty", tmp_path / "r")
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["report", str(tmp_path / "empty"), "--out", str(tmp_path / "file")])
    assert isinstance(done.exception, MmrlError) and not (tmp_path / "r").exists()
    fill(tmp_path / "empty", halves()[:1])
    done = CliRunner().invoke(app, ["report", str(tmp_path / "empty"), "--out", str(tmp_path / "r")])
    assert done.exit_code == 0 and "tables in" in done.output
    with pytest.raises(MmrlError, match="cannot write"):
        build_report(tmp_path / "empty", tmp_path / "file")


def test_seeds_are_pooled_by_their_counts():
    two = diagnostics.pooled([scores(0.5).bins, scores(0.9).bins])
    assert [each.count for each in two] == [20 * i for i in range(15)]
    assert two[10].accuracy == pytest.approx((scores(0.5).bins[10].accuracy + scores(0.9).bins[10].accuracy) / 2)
    assert diagnostics.pooled([]) == () == diagnostics.pooled([scores(0.5).bins, ()])


def test_confusions_are_a_matrix_or_a_list():
    few, many = scores(0.9, [f"c{i}" for i in range(60)]), scores(0.9, [f"c{i}" for i in range(61)])
    assert diagnostics.confusion("x", few).startswith("<svg") and diagnostics.confusion("x", many) == ""
    assert diagnostics.confused(many)[0] == ("c0", "c1", 10, 0.1) and len(diagnostics.confused(many)) == diagnostics.COMMONEST
    assert diagnostics.confusion("x", scores(0.9).model_copy(update={"confusion": ()})) == ""


def test_ticks_are_round_and_inside():
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(70.2, 72.9) == pytest.approx([71, 72])
    assert ticks(-0.003, 0.004, 4) == pytest.approx([-0.002, 0, 0.002, 0.004])
    assert ticks(3, 3) == [3]


def test_long_names_are_cut_to_their_room():
    for name in ("a long name of a class", "MMMMMMMMMMMM", "illlllllllllllllllllllll"):
        assert name.startswith(fitted(name, 60)[:-1]) and fitted(name, 60)[-1] == "…" and width_of(fitted(name, 60)) <= 60
    assert fitted("short", 60) == "short"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if found is None:
        pytest.skip("no Chromium to open the page with")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=found, args=QUIET.split())
        yield running
        running.close()


@pytest.fixture(scope="module")
def page(browser: Any, written: list[Path]) -> Any:
    """The page, open; `page.heard` has every message on the console and `page.asked` every request."""
    opened = browser.new_page(viewport={"width": 1100, "height": 800})
    opened.heard, opened.asked = [], []
    opened.on("console", lambda message: opened.heard.append(message.text))
    opened.on("pageerror", lambda error: opened.heard.append(str(error)))
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto(written[0].as_uri())
    return opened


def test_no_error_and_no_request(page: Any):
    assert page.heard == [] and [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
    assert page.title() == TITLE


def test_a_header_sorts(page: Any):
    table = page.locator("table", has=page.get_by_role("columnheader", name="data set")).first
    head = table.get_by_role("columnheader").nth(2)
    values = table.locator("tbody tr td:nth-child(3)")

    def shown() -> list[float]:
        return [float(text.split()[0].rstrip("‡")) for text in values.all_inner_texts()]

    before = shown()
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending" and shown() == sorted(before) != before
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending" and shown() == sorted(before, reverse=True)
    table.get_by_role("columnheader").nth(0).get_by_role("button").click()
    names = table.locator("tbody tr td:nth-child(1)").all_inner_texts()
    assert names == sorted(names) and head.get_attribute("aria-sort") == "none"


def test_dark_mode(page: Any):
    def colours() -> tuple[str, str, str]:
        style = "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]"
        mark = page.locator("svg.chart .s0").first.evaluate("e => getComputedStyle(e).color")
        return (*page.locator("html").evaluate(style), mark)

    light = colours()
    page.emulate_media(color_scheme="dark")
    dark = colours()
    page.emulate_media(color_scheme="light")
    assert all(one != other for one, other in zip(light, dark, strict=True))


CHARTS = """() => [...document.querySelectorAll('svg.chart')].map(svg => {
  const frame = svg.getBoundingClientRect();
  const spills = [...svg.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
  }).map(text => text.textContent);
  return {title: svg.querySelector('title').textContent, text: svg.querySelector('desc').textContent,
          width: frame.width, height: frame.height, spills};
})"""


def test_print_shows_everything_and_charts_keep_their_text(page: Any):
    assert page.locator("details:not([open])").count() > 0
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator("details:not([open])").count() == 0 and not page.locator("nav").is_visible()
    page.emulate_media(media="screen")
    charts = page.evaluate(CHARTS)
    assert len(charts) > 40
    for chart in charts:
        assert chart["width"] > 100 and chart["height"] > 80 and chart["title"] and chart["text"], chart
        assert not chart["spills"], chart
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0


def test_notes_are_as_wide_as_the_page(page: Any):
    widths = page.evaluate("[...document.querySelectorAll('p.note')].map(note => note.clientWidth)")
    assert max(widths) > 0.9 * page.evaluate("document.querySelector('.scroll').clientWidth") > 900


def test_a_phone_scrolls_tables_not_the_page(browser: Any, written: list[Path]):
    phone = browser.new_page(viewport={"width": 390, "height": 800})
    phone.goto(written[0].as_uri())
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth).length"
    assert phone.evaluate(boxes) > 0
    phone.close()
